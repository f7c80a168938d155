//! What stands between a partition's delivered records and the end of its log, where nothing has come for a while.
//!
//! It may be no records at all: the markers of transactions (a replay of dead letters is one) take offsets as well. Nobody
//! delivers them, so a sink that has everything would seem to lag behind for as long as nothing is appended. Or there are
//! records, and librdkafka does not fetch them: it has lost its way, which it tells nobody, and which looks the same. So
//! when a partition has stood still below its log's end from one look to the next, a client of its own reads from there.

use std::{
    collections::BTreeMap,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Offset as KafkaOffset,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult},
};

use crate::{
    config::Config,
    log::kafka::{
        client::{self, Context, high_watermark, list},
        settings,
    },
    position::{Offset, Partition},
};

/// A client without an answer by then leaves the question open.
const DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);
/// A partition whose next record another client reads, and that still has not moved after as long, and so many looks, is
/// not fetched: one fetch takes half a second, and as long as its answer is on its way.
const STUCK_AFTER: Duration = Duration::from_secs(20);
const STUCK_LOOKS: u32 = 4;

/// What is behind the records that a partition delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tail {
    /// It moves, or nothing is known yet.
    Open,
    /// No record stands up to the log's end.
    Empty,
    /// A record stands there, and is not fetched.
    Stuck,
}

/// What another client found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    Record,
    /// It did not come that far in time.
    Unknown,
}

/// What is known of the tails of the logs that are read.
pub(super) struct Tails {
    settings: ClientConfig,
    topic: String,
    stretches: BTreeMap<Partition, Stretch>,
    /// When the source last took nothing from librdkafka, though there may have been something.
    held_back: Option<Instant>,
    /// The one question that is being asked.
    asking: Option<(Partition, Offset, Offset, JoinHandle<Found>)>,
}

/// `[from, to)`, from what was delivered to the log's end, at the last look.
#[derive(Debug)]
struct Stretch {
    from: Offset,
    to: Offset,
    /// Nothing is in it.
    empty: bool,
    /// Since when a record is known to stand behind `from` while the source took all that there was, and the looks since.
    unread: Option<(Instant, u32)>,
    /// The last look.
    looked: Instant,
}

impl Tails {
    pub fn new(config: &Config) -> Self {
        Self {
            settings: settings::dead_letter_reader(config),
            topic: config.queue.topic.clone(),
            stretches: BTreeMap::new(),
            held_back: None,
            asking: None,
        }
    }

    /// The source takes nothing now: its sink has paused it, or there is no budget. Records of one partition then wait in librdkafka's
    /// queue behind those of others, and that they do not come says nothing.
    pub fn held_back(&mut self, now: Instant) {
        self.held_back = Some(now);
    }

    /// Called with each look at the logs: how far a partition was delivered, where all of that is handed on and it is
    /// fetched, and its log's end.
    pub fn look(&mut self, partition: Partition, delivered: Option<Offset>, end: Offset, now: Instant) -> Tail {
        if let Some((asked, from, to, thread)) = self.asking.take_if(|(.., thread)| thread.is_finished()) {
            // A panic was reported by the thread that it ended.
            self.learn(asked, from, to, thread.join().unwrap_or(Found::Unknown), now);
        }
        let (tail, ask) = self.judge(partition, delivered, end, now);
        if let Some(from) = ask.filter(|_| self.asking.is_none()) {
            self.ask(partition, from, end);
        }
        tail
    }

    /// Another client has looked behind `from`, when the log ended at `to`.
    fn learn(&mut self, partition: Partition, from: Offset, to: Offset, found: Found, now: Instant) {
        let Some(stretch) = self.stretches.get_mut(&partition).filter(|stretch| stretch.from == from) else { return };
        match found {
            Found::Nothing => stretch.empty = stretch.to == to,
            Found::Record => _ = stretch.unread.get_or_insert((now, 0)),
            Found::Unknown => {}
        }
    }

    /// What is known, and from where another client is to be asked.
    fn judge(
        &mut self,
        partition: Partition,
        delivered: Option<Offset>,
        end: Offset,
        now: Instant,
    ) -> (Tail, Option<Offset>) {
        let Some(from) = delivered.filter(|from| *from < end) else {
            self.stretches.remove(&partition);
            return (Tail::Open, None);
        };
        let Some(stretch) = self.stretches.get_mut(&partition).filter(|stretch| stretch.from == from) else {
            self.stretches.insert(partition, Stretch { from, to: end, empty: false, unread: None, looked: now });
            return (Tail::Open, None);
        };
        if stretch.to != end {
            (stretch.to, stretch.empty) = (end, false);
        }
        if stretch.empty {
            return (Tail::Empty, None);
        }
        let before = std::mem::replace(&mut stretch.looked, now);
        let Some((since, looks)) = &mut stretch.unread else { return (Tail::Open, Some(from)) };
        if self.held_back.is_some_and(|held| held >= before) {
            (*since, *looks) = (now, 0);
            return (Tail::Open, None);
        }
        *looks += 1;
        let is_stuck = *looks >= STUCK_LOOKS && now.duration_since(*since) >= STUCK_AFTER;
        (if is_stuck { Tail::Stuck } else { Tail::Open }, None)
    }

    fn ask(&mut self, partition: Partition, from: Offset, to: Offset) {
        let (settings, topic) = (self.settings.clone(), self.topic.clone());
        let ask = move || {
            read(&settings, &topic, partition, from, to).unwrap_or_else(|error| {
                tracing::debug!(%error, %partition, "the end of a log could not be looked at, trying again");
                Found::Unknown
            })
        };
        match std::thread::Builder::new().name("kafka-tail".to_owned()).spawn(ask) {
            Ok(thread) => self.asking = Some((partition, from, to, thread)),
            Err(error) => tracing::debug!(%error, "no thread to look at the end of a log with, trying again"),
        }
    }

    /// Waits for the question that is being asked, at most its deadline.
    pub fn finish(self) {
        if let Some((.., thread)) = self.asking {
            // A panic was reported by the thread that it ended.
            let _ = thread.join();
        }
    }
}

/// Reads from `from` until there is a record or the end, which was at `to`.
fn read(settings: &ClientConfig, topic: &str, partition: Partition, from: Offset, to: Offset) -> KafkaResult<Found> {
    let consumer: BaseConsumer<Context> = client::open(settings)?;
    consumer.assign(&list(topic, [(partition.0, KafkaOffset::Offset(from.as_i64()))])?)?;
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        match consumer.poll(POLL) {
            Some(Ok(_)) => return Ok(Found::Record),
            // A leader that has just become one tells an older end until its followers have answered it: that is none of
            // this log's, and nothing is said of what stands behind it.
            Some(Err(KafkaError::PartitionEOF(_)))
                if high_watermark(consumer.client(), topic, partition).is_none_or(|high| high < to) => {}
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(Found::Nothing),
            Some(Err(error)) => tracing::debug!(%error, "while looking at the end of a log"),
            None => {}
        }
    }
    Ok(Found::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTITION: Partition = Partition(0);

    fn at(offset: u64) -> Offset {
        Offset(offset)
    }

    /// What is said at a look `seconds` after the first, and whether another client is asked.
    fn judged(tails: &mut Tails, start: Instant, seconds: u64, delivered: Option<u64>, end: u64) -> (Tail, bool) {
        let now = start + Duration::from_secs(seconds);
        let (tail, asked) = tails.judge(PARTITION, delivered.map(at), at(end), now);
        assert!(asked.is_none_or(|from| Some(from) == delivered.map(at)));
        (tail, asked.is_some())
    }

    #[test]
    fn a_tail_of_markers_is_known_as_empty_until_the_log_grows() {
        let (mut tails, start) = (Tails::new(&Config::default()), Instant::now());
        assert_eq!(judged(&mut tails, start, 0, Some(10), 12), (Tail::Open, false));
        assert_eq!(judged(&mut tails, start, 3, Some(10), 12), (Tail::Open, true));
        tails.learn(PARTITION, at(10), at(12), Found::Nothing, start);
        assert_eq!(judged(&mut tails, start, 6, Some(10), 12), (Tail::Empty, false));
        assert_eq!(judged(&mut tails, start, 9, Some(10), 14), (Tail::Open, true));
        // What was found when the log ended earlier says nothing of its end now.
        tails.learn(PARTITION, at(10), at(12), Found::Nothing, start);
        assert_eq!(judged(&mut tails, start, 12, Some(10), 14), (Tail::Open, true));
        assert_eq!(judged(&mut tails, start, 15, Some(14), 14), (Tail::Open, false));
    }

    #[test]
    fn a_partition_is_stuck_when_another_client_reads_what_this_one_does_not_for_long() {
        let (mut tails, start) = (Tails::new(&Config::default()), Instant::now());
        judged(&mut tails, start, 0, Some(10), 12);
        assert_eq!(judged(&mut tails, start, 3, Some(10), 12), (Tail::Open, true));
        tails.learn(PARTITION, at(10), at(12), Found::Unknown, start + Duration::from_secs(5));
        assert_eq!(judged(&mut tails, start, 6, Some(10), 12), (Tail::Open, true), "asked again");
        tails.learn(PARTITION, at(10), at(12), Found::Record, start + Duration::from_secs(7));
        // Records that come go on to be appended: it is the place where it stands that counts.
        for (seconds, end) in [(9, 12), (12, 20), (15, 30), (18, 40), (24, 50)] {
            assert_eq!(judged(&mut tails, start, seconds, Some(10), end), (Tail::Open, false), "{seconds}");
        }
        assert_eq!(judged(&mut tails, start, 27, Some(10), 60), (Tail::Stuck, false));
        // A daemon that was frozen for long has not looked often.
        tails.stretches.clear();
        judged(&mut tails, start, 30, Some(10), 60);
        tails.learn(PARTITION, at(10), at(60), Found::Record, start + Duration::from_secs(31));
        assert_eq!(judged(&mut tails, start, 600, Some(10), 60), (Tail::Open, false));
    }

    #[test]
    fn a_partition_is_not_stuck_while_the_source_takes_nothing() {
        let (mut tails, start) = (Tails::new(&Config::default()), Instant::now());
        judged(&mut tails, start, 0, Some(10), 12);
        judged(&mut tails, start, 3, Some(10), 12);
        tails.learn(PARTITION, at(10), at(12), Found::Record, start + Duration::from_secs(4));
        for look in 2..20 {
            // For a moment between two looks each.
            tails.held_back(start + Duration::from_secs(3 * look - 1));
            assert_eq!(judged(&mut tails, start, 3 * look, Some(10), 12), (Tail::Open, false), "{look}");
        }
        // From then on it takes all that comes, and has as long as another.
        for seconds in [60, 63, 66, 69, 72, 75] {
            assert_eq!(judged(&mut tails, start, seconds, Some(10), 12), (Tail::Open, false), "{seconds}");
        }
        assert_eq!(judged(&mut tails, start, 78, Some(10), 12), (Tail::Stuck, false));
    }

    #[test]
    fn a_partition_that_moves_or_is_not_fetched_is_not_stuck() {
        for between in [Some(11), None] {
            let (mut tails, start) = (Tails::new(&Config::default()), Instant::now());
            judged(&mut tails, start, 0, Some(10), 12);
            tails.learn(PARTITION, at(10), at(12), Found::Record, start);
            for look in 1..10 {
                judged(&mut tails, start, look, Some(10), 12);
            }
            judged(&mut tails, start, 18, between, 12);
            tails.learn(PARTITION, at(10), at(12), Found::Record, start + Duration::from_secs(19));
            assert_ne!(judged(&mut tails, start, 30, Some(10), 12).0, Tail::Stuck, "{between:?}");
            assert_ne!(judged(&mut tails, start, 33, Some(10), 12).0, Tail::Stuck, "{between:?}");
        }
    }
}
