use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use actix::Addr;
use arc_swap::ArcSwap;
use futures::{FutureExt, future::BoxFuture};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::mpsc;

use super::*;
use crate::{
    config::{AggregateConfig, Config, QueueKind},
    consume::FromSink,
    event::TimeBounds,
    log::{
        ByteBudget,
        dead_letters::{DeadLetter, Origin},
        record::RecordBuffer,
    },
    measure::Measures,
    position::{Position, Timestamp, TopicIdentity},
    store::{
        Answer, BucketDelta, BucketKey, Counted, CountedList, EventsPage, EventsQuery, Fence, GroupsFound, GroupsOf,
        History, Prepared, ProcessedEvent, Query, Rebuilds, Removal, Rows,
        rebuild::{Kept, NewRebuild, Progress, Reached, Rebuild, RebuildId, Swapped},
    },
};

/// Buckets in memory with the fence of the real stores.
#[derive(Default)]
struct MemoryStore {
    buckets: Mutex<HashMap<(Partition, BucketKey), (Measures, Offset)>>,
    aggregates: Vec<AggregateConfig>,
    away: AtomicBool,
    /// The next flush takes effect, and its answer is lost.
    lose_answer: AtomicBool,
    /// The event at this offset is refused for good.
    refuses: Option<Offset>,
}

impl MemoryStore {
    fn counts(&self) -> Vec<(String, u64)> {
        let buckets = self.buckets.lock().unwrap();
        let mut counts: Vec<_> =
            buckets.iter().map(|((_, key), (held, _))| (key.group.to_string(), held.count)).collect();
        counts.sort();
        counts
    }
}

impl Store for MemoryStore {
    fn prepare(&self) -> BoxFuture<'_, Result<Prepared, StoreError>> {
        async { Ok(Prepared { remarks: Vec::new(), counted: self.counted() }) }.boxed()
    }

    fn counted(&self) -> CountedList {
        self.aggregates.iter().map(Counted::configured).collect()
    }

    fn history(&self, _: Partition, _: Offset, bounds: TimeBounds) -> BoxFuture<'_, Result<History, StoreError>> {
        async move {
            Ok(History { bounds: vec![(Offset(0), bounds)], removed: vec![None], progress: vec![Progress::default()] })
        }
        .boxed()
    }

    fn remove<'a>(&'a self, _: &'a Removal) -> BoxFuture<'a, Result<bool, StoreError>> {
        async { Ok(false) }.boxed()
    }

    fn groups<'a>(
        &'a self,
        _: &'a CountedList,
        asked: &'a [GroupsOf],
    ) -> BoxFuture<'a, Result<Vec<GroupsFound>, StoreError>> {
        let buckets = self.buckets.lock().unwrap();
        let groups = |of: &GroupsOf| {
            let keys = buckets.keys().filter(|(partition, _)| *partition == of.partition).map(|(_, key)| key);
            let all: Vec<_> = keys.filter(|key| key.window_start == of.window_start).map(|key| &key.group).collect();
            let present = of.groups.iter().map(|group| all.contains(&group)).collect();
            GroupsFound { present, buckets: all.iter().filter(|group| ***group != of.other).count() }
        };
        let found = asked.iter().map(groups).collect();
        async { Ok(found) }.boxed()
    }

    fn fences<'a>(
        &'a self,
        partition: Partition,
        committed: Offset,
        _: &'a TopicIdentity,
    ) -> BoxFuture<'a, Result<Vec<Fence>, StoreError>> {
        let buckets = self.buckets.lock().unwrap();
        let fences = buckets.iter().filter(|((of, _), (_, last))| *of == partition && *last >= committed);
        let fences = fences.map(|((_, key), (_, last))| Fence { aggregate: 0, key: key.clone(), last_offset: *last });
        let fences = fences.collect();
        async { Ok(fences) }.boxed()
    }

    fn fences_of<'a>(
        &'a self,
        _: &'a CountedList,
        _: usize,
        partition: Partition,
        from: Offset,
        identity: &'a TopicIdentity,
    ) -> Answer<'a, Vec<Fence>> {
        self.fences(partition, from, identity)
    }

    fn flush<'a>(
        &'a self,
        _: &'a CountedList,
        deltas: &'a [BucketDelta],
        events: &'a [ProcessedEvent],
    ) -> BoxFuture<'a, Result<Flushed, StoreError>> {
        let mut fenced = Vec::new();
        if let Some(event) = events.iter().find(|event| Some(event.offset) == self.refuses) {
            let (partition, offset) = (event.partition, event.offset);
            let refused = vec![RefusedEvent { partition, offset, message: "too large".to_owned() }];
            return async { Ok(Flushed { refused, ..Flushed::default() }) }.boxed();
        }
        if !self.away.load(Ordering::Acquire) {
            let mut buckets = self.buckets.lock().unwrap();
            for delta in deltas {
                let bucket = buckets.entry((delta.partition, delta.key.clone()));
                match bucket {
                    std::collections::hash_map::Entry::Occupied(bucket) if bucket.get().1 >= delta.first => {
                        fenced.push(delta.partition);
                    }
                    bucket => {
                        let (measures, last) = bucket.or_default();
                        measures.merge((*delta.measures).clone());
                        *last = delta.last;
                    }
                }
            }
        }
        let lost = self.away.load(Ordering::Acquire) || self.lose_answer.swap(false, Ordering::AcqRel);
        let outcome = if lost {
            Err(StoreError::Unavailable("away".to_owned()))
        } else {
            Ok(Flushed { fenced, ..Flushed::default() })
        };
        async { outcome }.boxed()
    }

    fn events(&self, _: EventsQuery) -> BoxFuture<'_, Result<EventsPage, StoreError>> {
        unreachable!("the aggregator only flushes")
    }

    fn rebuilds(&self) -> &dyn Rebuilds {
        self
    }

    fn query(&self, _: Query) -> BoxFuture<'_, Result<Rows, StoreError>> {
        async { Err(StoreError::Unavailable("not asked here".to_owned())) }.boxed()
    }
}

/// Nothing is rebuilt.
impl Rebuilds for MemoryStore {
    fn find_all<'a>(&'a self, _: &'a [String]) -> Answer<'a, Vec<Rebuild>> {
        async { Ok(Vec::new()) }.boxed()
    }

    fn kept<'a>(&'a self, _: &'a str) -> Answer<'a, Kept> {
        unreachable!("nothing is rebuilt here")
    }

    fn begin<'a>(&'a self, _: &'a NewRebuild) -> Answer<'a, Rebuild> {
        unreachable!("nothing is rebuilt here")
    }

    fn reached<'a>(&'a self, _: &'a RebuildId, _: Partition, _: Reached) -> Answer<'a, bool> {
        async { Ok(false) }.boxed()
    }

    fn settled<'a>(&'a self, _: &'a RebuildId, _: Partition) -> Answer<'a, ()> {
        unreachable!("nothing is rebuilt here")
    }

    fn leave_out(&self, _: Partition, _: Offset) -> Answer<'_, ()> {
        async { Ok(()) }.boxed()
    }

    fn keep<'a>(&'a self, _: &'a RebuildId, _: Timestamp) -> Answer<'a, Option<Timestamp>> {
        async { Ok(None) }.boxed()
    }

    fn swap<'a>(&'a self, _: &'a RebuildId, _: &'a Rebuild, _: Timestamp) -> Answer<'a, Swapped> {
        async { Ok(Swapped::Over) }.boxed()
    }

    fn cancel<'a>(&'a self, _: &'a str, _: Timestamp) -> Answer<'a, bool> {
        async { Ok(false) }.boxed()
    }

    fn tidy(&self, _: Timestamp) -> Answer<'_, bool> {
        async { Ok(false) }.boxed()
    }
}

#[derive(Default)]
struct MemoryLetters(Mutex<Vec<DeadLetter>>);

impl DeadLetterWriter for MemoryLetters {
    fn write(&self, letters: Vec<DeadLetter>) -> BoxFuture<'static, anyhow::Result<()>> {
        self.0.lock().unwrap().extend(letters);
        async { Ok(()) }.boxed()
    }

    fn known(&self, source: Source, from: Offset) -> BoxFuture<'static, anyhow::Result<BTreeSet<Offset>>> {
        if source.partition == WITHOUT_LETTERS {
            return async { Err(anyhow::anyhow!("no broker has them")) }.boxed();
        }
        let letters = self.0.lock().unwrap();
        let known =
            letters.iter().filter_map(|letter| letter.origin.offset()).filter(|offset| *offset >= from).collect();
        async { Ok(known) }.boxed()
    }
}

/// Its dead letters cannot be read.
const WITHOUT_LETTERS: Partition = Partition(9);

#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Begin(Offset),
    Confirm(Offset),
    Halt(String),
    Reassign,
    Hold(bool),
    Started,
}

impl From<FromSink> for Reply {
    fn from(message: FromSink) -> Self {
        match message {
            FromSink::Begin(begin) => Self::Begin(begin.at),
            FromSink::Confirm(confirm) => Self::Confirm(confirm.position),
            FromSink::Halt(halt) => Self::Halt(halt.reason),
            FromSink::Reassign(_) => Self::Reassign,
            FromSink::Hold(hold) => Self::Hold(hold.on),
            FromSink::Started => Self::Started,
        }
    }
}

struct Fixture {
    addr: Addr<Aggregator>,
    store: Arc<MemoryStore>,
    letters: Arc<MemoryLetters>,
    replies: mpsc::UnboundedReceiver<Reply>,
    budget: ByteBudget,
    health: Health,
}

impl Fixture {
    async fn start(configure: impl FnOnce(&mut Config)) -> Self {
        Self::start_with(MemoryStore::default(), configure).await
    }

    async fn start_with(mut store: MemoryStore, configure: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        config.aggregate[0].group_by = vec!["type".to_owned()];
        // Flushes are asked for by draining, or by size.
        config.aggregator.flush_interval = Duration::from_secs(3600);
        configure(&mut config);
        store.aggregates = config.aggregate.clone();
        let (store, letters) = (Arc::new(store), Arc::new(MemoryLetters::default()));
        let (sender, replies) = mpsc::unbounded_channel();
        let config = Arc::new(ArcSwap::from_pointee(config));
        let replies_to = Replies::new(move |message| _ = sender.send(message.into()));
        let (health, metrics) = (Health::default(), Arc::default());
        let addr = Aggregator::new(
            store.clone(),
            letters.clone(),
            replies_to,
            Rebuilding::new(None, tokio::runtime::Handle::current()),
            config,
            health.clone(),
            metrics,
        )
        .start();
        let budget = ByteBudget::new(1 << 30, Gauge::default());
        let mut fixture = Self { addr, store, letters, replies, budget, health };
        fixture.expect([Reply::Started, Reply::Hold(false)]).await;
        fixture
    }

    async fn expect<const N: usize>(&mut self, expected: [Reply; N]) {
        for expected in expected {
            let reply = tokio::time::timeout(Duration::from_secs(20), self.replies.recv()).await;
            assert_eq!(reply, Ok(Some(expected)));
        }
    }

    fn assign(&self, committed: Option<u64>, log_start: u64, holds_all: bool) -> Epoch {
        self.assign_up_to(committed, log_start, 1000, holds_all)
    }

    fn assign_up_to(&self, committed: Option<u64>, log_start: u64, log_end: u64, holds_all: bool) -> Epoch {
        self.assign_partition(Partition(0), committed, log_start, log_end, holds_all)
    }

    fn assign_partition(
        &self,
        partition: Partition,
        committed: Option<u64>,
        log_start: u64,
        log_end: u64,
        holds_all: bool,
    ) -> Epoch {
        let epoch = Epoch::fresh();
        let assignment = Assignment {
            partition,
            committed: committed.map(Offset),
            log_start: Offset(log_start),
            log_end: Offset(log_end),
            identity: TopicIdentity("x".into()),
            holds_all,
        };
        self.addr.do_send(Assign { epoch, assignment });
        epoch
    }

    fn send(&self, epoch: Epoch, from: u64, values: &[&str]) {
        let mut records = RecordBuffer::default();
        for (offset, value) in (from..).zip(values) {
            records.push(Offset(offset), Timestamp(0), None, Some(value.as_bytes()), []);
        }
        let permit = self.budget.try_take(records.size()).unwrap();
        let to = Offset(from + values.len() as u64);
        self.addr.do_send(Batch {
            partition: Partition(0),
            epoch,
            from: Offset(from),
            to,
            records: Arc::new(records),
            permit,
        });
    }
}

const A: &str = r#"{"type":"a"}"#;
const B: &str = r#"{"type":"b"}"#;

fn counts(expected: &[(&str, u64)]) -> Vec<(String, u64)> {
    expected.iter().map(|(group, count)| (format!("[\"{group}\"]"), *count)).collect()
}

#[actix_rt::test]
async fn a_position_is_confirmed_when_counts_and_dead_letters_are_durable() {
    let mut f = Fixture::start(|_| {}).await;
    let epoch = f.assign(Some(5), 0, true);
    f.expect([Reply::Begin(Offset(5))]).await;
    f.send(epoch, 4, &[A, A, "no event", B]);
    f.addr.send(Drain).await.unwrap();
    f.expect([Reply::Confirm(Offset(8))]).await;
    assert_eq!(f.store.counts(), counts(&[("a", 1), ("b", 1)]));
    let letters = f.letters.0.lock().unwrap();
    assert_eq!((letters.len(), letters[0].origin, &*letters[0].reason), (1, Origin::Record(Offset(6)), "invalid_json"));
    assert_eq!(letters[0].value.as_deref(), Some(b"no event".as_slice()));
}

#[actix_rt::test]
async fn who_waits_for_its_records_has_them_flushed_before_the_interval_is_over() {
    let mut f = Fixture::start(|_| {}).await;
    let epoch = f.assign(Some(5), 0, true);
    f.expect([Reply::Begin(Offset(5))]).await;
    f.send(epoch, 5, &[A]);
    let counted = f.health.counted.clone();
    let at = |offset| [Position { partition: Partition(0), offset: Offset(offset) }];
    assert_eq!(counted.position(Partition(0)), Some(Offset(5)));
    let waiting = actix_rt::spawn({
        let counted = counted.clone();
        async move { counted.wait(&at(6), Duration::from_secs(20)).await }
    });
    // What is read helps nobody, so it is not flushed: the first that is confirmed are both.
    while !counted.waits_for_flush(|_| Some(Offset(7))) {
        tokio::task::yield_now().await;
    }
    assert!(!counted.waits_for_flush(|_| Some(Offset(6))));
    f.send(epoch, 6, &[B]);
    f.expect([Reply::Confirm(Offset(7))]).await;
    assert_eq!(waiting.await.unwrap(), Ok(()));
    assert_eq!(f.store.counts(), counts(&[("a", 1), ("b", 1)]));
    // Without anybody it stays with the interval: nothing else is listened to.
    assert_eq!(counted.wanted().now_or_never(), None);
    f.send(epoch, 7, &[A]);
    f.addr.send(Unassign { partition: Partition(0), epoch }).await.unwrap();
    assert_eq!(f.store.counts(), counts(&[("a", 1), ("b", 1)]));
    assert_eq!(counted.position(Partition(0)), None);
}

#[actix_rt::test]
async fn a_partition_that_cannot_be_begun_is_named_while_another_one_is_counted() {
    let mut f = Fixture::start(|_| {}).await;
    f.assign_partition(WITHOUT_LETTERS, None, 0, 10, true);
    let epoch = f.assign(None, 0, true);
    f.expect([Reply::Begin(Offset(0))]).await;
    f.send(epoch, 0, &[A]);
    f.addr.send(Drain).await.unwrap();
    f.expect([Reply::Confirm(Offset(1))]).await;
    let status = &f.health.readiness().actors["aggregator"];
    let named = "partition 9 is not counted: dead letters cannot be read: no broker has them";
    assert_eq!((status.state, status.reason.as_deref()), (ActorState::Failing, Some(named)));
}

#[actix_rt::test]
async fn a_record_that_is_a_letter_already_is_not_counted_when_it_is_read_again_as_a_valid_event() {
    let mut f = Fixture::start(|_| {}).await;
    let epoch = f.assign(None, 0, true);
    f.expect([Reply::Begin(Offset(0))]).await;
    f.send(epoch, 0, &[A, "no event"]);
    f.addr.send(Drain).await.unwrap();
    f.expect([Reply::Confirm(Offset(2))]).await;
    // Its position was not committed, and the configuration has changed.
    let epoch = f.assign(Some(1), 0, true);
    f.expect([Reply::Begin(Offset(1))]).await;
    f.send(epoch, 1, &[B, B]);
    f.addr.send(Drain).await.unwrap();
    f.expect([Reply::Confirm(Offset(3))]).await;
    assert_eq!(f.store.counts(), counts(&[("a", 1), ("b", 1)]));
    assert_eq!(f.letters.0.lock().unwrap().len(), 1);
}

#[actix_rt::test]
async fn a_record_that_the_store_refuses_for_good_becomes_a_letter_and_the_rest_is_counted_once() {
    let store = MemoryStore { refuses: Some(Offset(1)), ..MemoryStore::default() };
    let mut f = Fixture::start_with(store, |config| config.store.events = true).await;
    let epoch = f.assign(None, 0, true);
    f.expect([Reply::Begin(Offset(0))]).await;
    f.send(epoch, 0, &[A, B, A]);
    f.addr.send(Drain).await.unwrap();
    f.expect([Reply::Reassign]).await;
    assert_eq!(f.store.counts(), []);
    let epoch = f.assign(None, 0, true);
    f.expect([Reply::Begin(Offset(0))]).await;
    f.send(epoch, 0, &[A, B, A]);
    f.addr.send(Drain).await.unwrap();
    f.expect([Reply::Confirm(Offset(3))]).await;
    assert_eq!(f.store.counts(), counts(&[("a", 2)]));
    let letters = f.letters.0.lock().unwrap();
    assert_eq!((letters.len(), &*letters[0].reason, &*letters[0].message), (1, "refused_by_store", "too large"));
}

#[actix_rt::test]
async fn a_lost_answer_counts_nothing_twice() {
    let mut f = Fixture::start(|_| {}).await;
    let epoch = f.assign(None, 0, true);
    f.expect([Reply::Begin(Offset(0))]).await;
    f.store.lose_answer.store(true, Ordering::Release);
    f.send(epoch, 0, &[A, A]);
    f.addr.send(Drain).await.unwrap();
    f.expect([Reply::Reassign]).await;
    let epoch = f.assign(None, 0, true);
    f.expect([Reply::Begin(Offset(0))]).await;
    f.send(epoch, 0, &[A, A, A]);
    f.addr.send(Drain).await.unwrap();
    f.expect([Reply::Confirm(Offset(3))]).await;
    assert_eq!(f.store.counts(), counts(&[("a", 3)]));
}

#[actix_rt::test]
async fn a_batch_beyond_the_cursor_is_answered_with_one_seek() {
    let mut f = Fixture::start(|_| {}).await;
    let epoch = f.assign(None, 0, true);
    f.expect([Reply::Begin(Offset(0))]).await;
    f.send(epoch, 1, &[A]);
    f.send(epoch, 2, &[A]);
    f.send(epoch, 0, &[A]);
    f.addr.send(Drain).await.unwrap();
    f.expect([Reply::Begin(Offset(0)), Reply::Confirm(Offset(1))]).await;
}

#[actix_rt::test]
async fn reading_is_held_while_the_store_is_away_and_goes_on_after() {
    let mut f = Fixture::start(|config| config.aggregator.flush_buckets = 1).await;
    let epoch = f.assign(None, 0, true);
    f.expect([Reply::Begin(Offset(0))]).await;
    f.store.away.store(true, Ordering::Release);
    f.send(epoch, 0, &[A]);
    f.send(epoch, 1, &[A, B]);
    f.expect([Reply::Hold(true)]).await;
    f.store.away.store(false, Ordering::Release);
    f.expect([Reply::Confirm(Offset(1)), Reply::Hold(false), Reply::Confirm(Offset(3))]).await;
    assert_eq!(f.store.counts(), counts(&[("a", 2), ("b", 1)]));
}

#[actix_rt::test]
async fn a_stop_does_not_wait_for_a_store_that_refuses() {
    let mut f = Fixture::start(|config| config.aggregator.flush_buckets = 1).await;
    let epoch = f.assign(None, 0, true);
    f.expect([Reply::Begin(Offset(0))]).await;
    f.store.away.store(true, Ordering::Release);
    f.send(epoch, 0, &[A]);
    f.send(epoch, 1, &[A, B]);
    f.expect([Reply::Hold(true)]).await;
    // Half of the time for a stop, which a flush may take that works, is 15 s.
    tokio::time::timeout(Duration::from_secs(10), f.addr.send(Drain)).await.expect("it is told").unwrap();
    assert_eq!(f.store.counts(), []);
    assert!(f.replies.try_recv().is_err(), "no position moves");
}

#[actix_rt::test]
async fn what_is_not_durable_when_a_partition_is_taken_away_is_left_to_its_next_owner() {
    let mut f = Fixture::start(|_| {}).await;
    let epoch = f.assign(None, 0, true);
    f.expect([Reply::Begin(Offset(0))]).await;
    f.send(epoch, 0, &[A]);
    f.addr.do_send(Unassign { partition: Partition(0), epoch });
    f.addr.send(Drain).await.unwrap();
    assert_eq!(f.store.counts(), []);
    assert!(f.replies.try_recv().is_err());
}

#[actix_rt::test]
async fn records_that_retention_removed_are_counted_as_lost_and_the_rest_goes_on() {
    let mut f = Fixture::start(|_| {}).await;
    f.assign(Some(5), 9, true);
    f.expect([Reply::Confirm(Offset(9)), Reply::Begin(Offset(9))]).await;
}

#[actix_rt::test]
async fn counts_of_records_that_the_log_does_not_have_halt_their_partition_once_its_end_was_asked_for_again() {
    let mut f = Fixture::start(|_| {}).await;
    let epoch = f.assign(None, 0, true);
    f.expect([Reply::Begin(Offset(0))]).await;
    f.send(epoch, 0, &[A, B, A]);
    f.addr.send(Drain).await.unwrap();
    f.expect([Reply::Confirm(Offset(3))]).await;
    // Another writer was ahead: the end that is asked for anew is beyond its counts.
    f.assign_up_to(Some(1), 0, 2, true);
    f.expect([Reply::Reassign]).await;
    f.assign_up_to(Some(1), 0, 3, true);
    f.expect([Reply::Begin(Offset(1))]).await;
    // The log was restored from an older copy.
    f.assign_up_to(Some(1), 0, 2, true);
    f.expect([Reply::Reassign]).await;
    f.assign_up_to(Some(1), 0, 2, true);
    let Some(Reply::Halt(reason)) = f.replies.recv().await else { panic!("not halted") };
    assert!(reason.contains("the log ends at 2"), "{reason}");
    // Offsets 2 and 3 will be other records.
    assert_eq!(f.health.counted.position(Partition(0)), None);
}

#[actix_rt::test]
async fn a_partition_that_was_dropped_before_it_was_revoked_is_not_waited_for() {
    let store = MemoryStore { refuses: Some(Offset(1)), ..MemoryStore::default() };
    let mut f = Fixture::start_with(store, |config| config.store.events = true).await;
    let epoch = f.assign(None, 0, true);
    f.expect([Reply::Begin(Offset(0))]).await;
    f.send(epoch, 0, &[A, B]);
    f.addr.send(Drain).await.unwrap();
    f.expect([Reply::Reassign]).await;
    assert_eq!(f.health.counted.position(Partition(0)), Some(Offset(0)));
    f.addr.send(Unassign { partition: Partition(0), epoch }).await.unwrap();
    assert_eq!(f.health.counted.position(Partition(0)), None);
    // What comes late is of an earlier assignment.
    f.assign(None, 0, true);
    f.expect([Reply::Begin(Offset(0))]).await;
    f.addr.send(Unassign { partition: Partition(0), epoch }).await.unwrap();
    assert_eq!(f.health.counted.position(Partition(0)), Some(Offset(0)));
}

#[actix_rt::test]
async fn an_embedded_store_halts_where_another_worker_shares_the_topic() {
    let mut f = Fixture::start(|config| config.queue.kind = QueueKind::Kafka).await;
    f.assign(None, 0, false);
    let Some(Reply::Halt(reason)) = f.replies.recv().await else { panic!("not halted") };
    assert!(reason.contains("another worker is in group \"ingestd-aggregate\""), "{reason}");
}
