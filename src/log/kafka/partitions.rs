//! The partitions that the group gave to a source: what each waits for, whether librdkafka fetches it, and its records on their
//! way into a batch.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{Offset as KafkaOffset, TopicPartitionList, consumer::Consumer, error::KafkaResult};

use crate::{
    config::BatchConfig,
    log::{
        Batch, Epoch, Permit, SourceEvent,
        kafka::{
            client::list,
            fetched::{Fetched, Message, Taken, is_out_of_range},
            group::SourceConsumer,
            offsets::LogRange,
            shared::{SharedReader, Waits},
        },
        record::RecordBuffer,
    },
    position::{Offset, Partition, Timestamp, TopicIdentity},
};

/// A seek is answered by librdkafka itself, not by a broker.
const SEEK: Duration = Duration::from_secs(1);
/// It takes one within a second of the assignment.
const REFUSED: Duration = Duration::from_secs(30);

/// The budget has no room for the next batch.
pub(super) struct Starved;

pub(super) struct Partitions {
    topic: String,
    consumer: Arc<SourceConsumer>,
    held: BTreeMap<Partition, Held>,
    /// Cut, and not yet known to be of the topic that was announced. Bounded by the budget, whose permits they hold.
    unproven: VecDeque<Cut>,
    fetched: Fetched,
    reader: SharedReader,
    waits: Waits,
}

struct Cut {
    when: Instant,
    batch: Batch,
    /// Of the other sink, for which this source reads.
    others: Option<Permit>,
}

struct Held {
    phase: Phase,
    fetcher: Fetcher,
    /// Since when librdkafka has not begun to fetch it, though it was told to.
    refused: Option<Instant>,
    reading: Reading,
    /// At the last look its position lay beyond the log's end, while another source read it.
    lay_beyond: bool,
}

/// Who fetches a partition that is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// This source, if anybody.
    Own,
    /// The other sink's source, while what this one fetched before is being handed on.
    Attached,
    /// The other sink's source, to which everything is left ([`SharedReader::open`]).
    Open,
}

enum Phase {
    /// The answer of this lookup is awaited.
    PartitionOffsets {
        round: u64,
    },
    /// The sink knows, and has not begun (or holds).
    Waiting,
    Delivered(Delivery),
}

/// librdkafka's side of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fetcher {
    Paused,
    Running,
    /// Ended by an out-of-range error, or suspected to be: it takes no seek, it has to be assigned anew.
    Ended,
    /// In no assignment of librdkafka's, to be put into it at the position where it begins.
    Absent,
}

impl Partitions {
    pub fn new(topic: &str, consumer: Arc<SourceConsumer>, reader: SharedReader) -> KafkaResult<Self> {
        let (held, unproven, waits) = (BTreeMap::new(), VecDeque::new(), Waits::default());
        let fetched = Fetched::new(consumer.clone())?;
        Ok(Self { topic: topic.to_owned(), consumer, held, unproven, fetched, reader, waits })
    }

    /// The topic that is read; from now on the other sink's source may read for this one, and this one for it.
    pub fn belongs_to(&mut self, identity: TopicIdentity) {
        self.reader.belongs_to(identity);
    }

    /// Tells the consumer of this source's sink.
    pub fn tell(&self, event: SourceEvent) {
        self.reader.tell(event);
    }

    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn all(&self) -> BTreeSet<Partition> {
        self.held.keys().copied().collect()
    }

    pub fn holds(&self, partition: Partition) -> bool {
        self.held.contains_key(&partition)
    }

    /// The group gave it to us; librdkafka does not fetch it yet.
    pub fn assigned(&mut self, partition: Partition) {
        self.reader.detach(partition);
        let (phase, fetcher, reading) = (Phase::Waiting, Fetcher::Absent, Reading::Own);
        self.held.insert(partition, Held { phase, fetcher, refused: None, reading, lay_beyond: false });
    }

    /// It is not ours any more; what is buffered of it is dropped.
    pub fn revoked(&mut self, partition: Partition) {
        self.reader.detach(partition);
        self.drop_unproven(partition);
        self.held.remove(&partition);
    }

    /// Stops these partitions until this lookup has an answer. Returns those that we hold.
    pub fn await_lookup(&mut self, partitions: BTreeSet<Partition>, round: u64) -> BTreeSet<Partition> {
        let held: BTreeSet<_> = partitions.into_iter().filter(|partition| self.holds(*partition)).collect();
        for partition in &held {
            self.set(*partition, Phase::PartitionOffsets { round });
        }
        held
    }

    /// Whether this is the answer that the partition waits for; from now on it waits for the sink.
    pub fn found(&mut self, partition: Partition, round: u64) -> bool {
        let awaited = matches!(
            self.held.get(&partition).map(|held| &held.phase),
            Some(Phase::PartitionOffsets { round: awaited }) if *awaited == round
        );
        if awaited {
            self.set(partition, Phase::Waiting);
        }
        awaited
    }

    /// Delivers from `at` on; also a seek. Ignored while a lookup is awaited (the sink has not seen the announcement
    /// that will follow), and from an older epoch.
    pub fn begin(&mut self, partition: Partition, epoch: Epoch, at: Offset) {
        match self.held.get(&partition).map(|held| &held.phase) {
            None | Some(Phase::PartitionOffsets { .. }) => {}
            Some(Phase::Delivered(delivery)) if epoch < delivery.epoch => {}
            Some(_) => self.set(partition, Phase::Delivered(Delivery::new(epoch, at))),
        }
    }

    /// Delivers nothing more until the next `begin`.
    pub fn hold(&mut self, partition: Partition) {
        if matches!(self.held.get(&partition).map(|held| &held.phase), Some(Phase::Delivered(_))) {
            self.set(partition, Phase::Waiting);
        }
    }

    fn set(&mut self, partition: Partition, phase: Phase) {
        self.stop(&[partition]);
        self.drop_unproven(partition);
        if let Some(held) = self.held.get_mut(&partition) {
            held.phase = phase;
        }
    }

    fn drop_unproven(&mut self, partition: Partition) {
        self.unproven.retain(|cut| cut.batch.partition != partition);
    }

    /// Takes a record over; says whether its partition has a full batch now. Records of partitions that are not
    /// delivered are dropped: they are fetched again when they are.
    fn take(held: &mut BTreeMap<Partition, Held>, message: &Message<'_>, limits: &BatchConfig) -> bool {
        match held.get_mut(&message.partition()) {
            Some(Held { phase: Phase::Delivered(delivery), fetcher: Fetcher::Running, .. }) => {
                delivery.take(message);
                delivery.is_full(limits)
            }
            _ => false,
        }
    }

    /// Takes what librdkafka has, about `most` records, until a batch is full; waits for the first. What could not be fetched is
    /// fetched again, but where librdkafka has ended the partition ([`Self::outside`]).
    pub fn fetch(&mut self, wait: Duration, most: usize, limits: &BatchConfig) -> Taken {
        let held = &mut self.held;
        let taken = self.fetched.each(wait, most, |message| !Self::take(held, message, limits));
        let again = taken.errors.iter().filter(|(_, code)| !is_out_of_range(*code));
        again.for_each(|(partition, _)| self.fetch_again(*partition));
        taken
    }

    /// Whether librdkafka has something else to tell.
    pub fn has_events(&self) -> bool {
        self.fetched.has_events()
    }

    /// A record of this partition could not be fetched, or came by another way than [`Self::fetch`]: it is fetched again, in its
    /// order.
    pub fn fetch_again(&mut self, partition: Partition) {
        self.stop(&[partition]);
    }

    /// At each look, which says where the log ends: whether a partition that another source reads for this one has been told to end
    /// before its position twice, one after the other. Then the log was cut back, and this source's own fetch finds that.
    pub fn lies_beyond(&mut self, partition: Partition, end: Offset) -> bool {
        let at = self.delivered(partition);
        let Some(held) = self.held.get_mut(&partition) else { return false };
        let lies_beyond = held.reading == Reading::Open && at.is_some_and(|at| at > end);
        std::mem::replace(&mut held.lay_beyond, lies_beyond) && lies_beyond
    }

    fn deliveries(&self) -> impl Iterator<Item = (Partition, &Delivery)> {
        self.held.iter().filter_map(|(partition, held)| match &held.phase {
            Phase::Delivered(delivery) => Some((*partition, delivery)),
            _ => None,
        })
    }

    /// The time until a batch is due; `None` while nothing is buffered.
    pub fn due_in(&self, limits: &BatchConfig) -> Option<Duration> {
        let now = Instant::now();
        let due = |held: &Held| match &held.phase {
            Phase::Delivered(delivery) => {
                let due = delivery.due_in(limits, now)?;
                Some(if held.reading == Reading::Attached { Duration::ZERO } else { due })
            }
            _ => None,
        };
        self.held.values().filter_map(due).min()
    }

    /// Cuts the batches that are due, the longest waiting first, as far as the budget goes, and that of the sink which this
    /// source reads for. They wait for [`Self::hand_on_proven`].
    pub fn cut_due(&mut self, limits: &BatchConfig) -> Result<(), Starved> {
        let now = Instant::now();
        let buffered: usize = self.deliveries().map(|(_, delivery)| delivery.size()).sum();
        // Many partitions with a little each go early, so that what waits here is bounded by two batches.
        let early = buffered >= 2 * limits.max_bytes.as_usize();
        let mut due: Vec<_> = self
            .held
            .iter()
            .filter_map(|(partition, held)| match &held.phase {
                Phase::Delivered(delivery) => Some((*partition, delivery, held.reading == Reading::Attached)),
                _ => None,
            })
            .filter(|(_, delivery, last)| {
                delivery.due_in(limits, now).is_some_and(|due| early || *last || due.is_zero())
            })
            .map(|(partition, delivery, _)| (delivery.since, partition))
            .collect();
        due.sort_unstable();
        for (_, partition) in due {
            if let Some(Held { phase: Phase::Delivered(delivery), reading, .. }) = self.held.get_mut(&partition) {
                let (budget, size) = (self.reader.budget(), delivery.size());
                // The last batch of its own, for which those wait that another source has handed over, with their permits.
                let own = if *reading == Reading::Attached { Some(budget.take(size)) } else { budget.try_take(size) };
                let others = self.reader.permit(partition, size);
                let (permit, others) = match (own, others) {
                    (Some(permit), Ok(others)) => (permit, others),
                    (own, _) => {
                        // Where both have no room they wait for their own sinks.
                        let one_has_room = own.is_some() || self.reader.others_have_room();
                        if one_has_room && self.waits.waits(now) {
                            tracing::debug!(topic = self.topic, %partition, "one sink waits for the other: both read by themselves");
                            self.reader.part(now);
                        }
                        return Err(Starved);
                    }
                };
                self.unproven.push_back(Cut { when: now, batch: delivery.cut(partition, permit), others });
            }
        }
        self.waits.went_on(now);
        Ok(())
    }

    /// Whether batches wait for an answer of the topic watch.
    pub fn has_unproven(&self) -> bool {
        !self.unproven.is_empty()
    }

    /// Hands on the batches that were cut before `asked`, when the topic was still the one that was announced.
    pub fn hand_on_proven(&mut self, asked: Instant) {
        while let Some(Cut { batch, others, .. }) = self.unproven.pop_front_if(|cut| cut.when < asked) {
            if let Some(Held { phase: Phase::Delivered(delivery), .. }) = self.held.get_mut(&batch.partition) {
                delivery.handed = batch.to;
            }
            self.reader.hand(&batch, others);
            self.reader.tell(SourceEvent::Batch(batch));
        }
    }

    /// Leaves to the other sink's source what this one has nothing left to hand on of.
    pub fn open_attached(&mut self) {
        for (partition, held) in &mut self.held {
            if let Phase::Delivered(delivery) = &held.phase
                && held.reading == Reading::Attached
                && delivery.handed == delivery.next
            {
                held.reading = Reading::Open;
                self.reader.open(*partition);
            }
        }
    }

    /// Where a partition is delivered and nothing waits here: all records below are handed on.
    pub fn delivered(&self, partition: Partition) -> Option<Offset> {
        match self.held.get(&partition)? {
            Held { reading: Reading::Open, .. } => self.reader.at(partition),
            Held { phase: Phase::Delivered(delivery), fetcher: Fetcher::Running, .. } if delivery.since.is_none() => {
                Some(delivery.next)
            }
            _ => None,
        }
    }

    /// The log's end, records of open transactions among it: as fetches of this source say it, or of the one that reads for it.
    /// Nothing where nobody fetches the partition.
    pub fn high(&self, partition: Partition, own: Offset) -> Option<Offset> {
        self.delivered(partition).and_then(|_| self.reader.high(partition, own))
    }

    /// After an out-of-range error, which does not say for which partition: the delivered ones whose position is
    /// outside the log. **Every** partition is assigned anew before it is fetched again, whatever it waits for and
    /// whether its range is known: one that librdkafka stopped looks like one that has nothing to fetch, and takes no
    /// seek. Where nothing was wrong it goes on where it was.
    pub fn outside(&mut self, ranges: &[(Partition, LogRange)]) -> BTreeSet<Partition> {
        self.stop_all();
        for held in self.held.values_mut().filter(|held| held.fetcher != Fetcher::Absent) {
            held.fetcher = Fetcher::Ended;
        }
        let mut outside = BTreeSet::new();
        for (partition, log) in ranges {
            let Some(Held { phase: Phase::Delivered(delivery), .. }) = self.held.get(partition) else { continue };
            if delivery.next < log.start || delivery.next > log.end {
                tracing::warn!(
                    topic = self.topic, %partition, position = %delivery.next, log_start = %log.start,
                    log_end = %log.end, "the position is outside the log"
                );
                outside.insert(*partition);
            }
        }
        outside
    }

    /// Sees to it that what is delivered is fetched: by the other sink's source where that one is at the same place, else by
    /// librdkafka. `answers`: whether the brokers are known to answer about a partition.
    pub fn start_all(&mut self, answers: impl Fn(Partition) -> bool) {
        let now = Instant::now();
        let mut attached = Vec::new();
        for (partition, held) in &mut self.held {
            let partition = *partition;
            let refused = held.refused.take();
            let Phase::Delivered(delivery) = &mut held.phase else { continue };
            if held.reading != Reading::Own {
                if self.reader.is_fed(partition) {
                    continue;
                }
                detach(&self.reader, partition, delivery);
                held.reading = Reading::Own;
            }
            if self.reader.attach(partition, delivery.epoch, delivery.next, now) {
                held.reading = Reading::Attached;
                attached.push(partition);
                continue;
            }
            if held.fetcher != Fetcher::Running {
                let started =
                    start(&self.consumer, &self.fetched, &self.topic, partition, &mut held.fetcher, delivery.next);
                if let Err(error) = started {
                    // A partition that was assigned a moment ago takes no seek yet.
                    tracing::debug!(topic = self.topic, %partition, %error, "not started yet, trying again");
                    held.refused = refused_since(refused, answers(partition), now);
                    continue;
                }
            }
            self.reader.reads(partition, delivery.handed, delivery.next);
        }
        self.pause(&attached);
    }

    /// A partition that librdkafka does not begin to fetch, for longer than any reason to.
    pub fn refused(&self, now: Instant) -> Option<Partition> {
        let mut held = self.held.iter();
        let long = |held: &Held| held.refused.is_some_and(|since| now.duration_since(since) >= REFUSED);
        held.find(|(_, held)| long(held)).map(|(partition, _)| *partition)
    }

    /// Makes librdkafka fetch nothing; what is buffered stays.
    pub fn stop_all(&mut self) {
        let all: Vec<_> = self.held.keys().copied().collect();
        self.stop(&all);
    }

    /// Reads the partition by itself for a while, where another one reads it for this source. Whether that is so.
    pub fn read_alone(&mut self, partition: Partition) -> bool {
        match self.held.get_mut(&partition) {
            Some(Held { phase: Phase::Delivered(delivery), reading, .. }) if *reading != Reading::Own => {
                if let Some(at) = self.reader.part_with(partition, Instant::now()) {
                    delivery.goes_on(at);
                }
                *reading = Reading::Own;
                true
            }
            _ => false,
        }
    }

    /// At the end: whoever is attached to this source reads by itself.
    pub fn leave(&self) {
        self.held.keys().for_each(|partition| _ = self.reader.detach(*partition));
    }

    /// Has librdkafka fetch nothing, as where it has lost its way: nothing here knows of it.
    #[cfg(debug_assertions)]
    pub fn stall(&mut self) {
        for partition in self.all() {
            self.read_alone(partition);
        }
        self.start_all(|_| true);
        let mut all = TopicPartitionList::new();
        self.held.keys().for_each(|partition| _ = all.add_partition(&self.topic, partition.0));
        self.consumer.pause(&all).expect("librdkafka pauses what it has");
    }

    /// Has librdkafka fetch nothing of these; who is attached to this source, and what it is attached to, it leaves.
    fn stop(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            let Some(held) = self.held.get_mut(partition) else { continue };
            match &mut held.phase {
                Phase::Delivered(delivery) => detach(&self.reader, *partition, delivery),
                _ => _ = self.reader.detach(*partition),
            }
            held.reading = Reading::Own;
        }
        self.pause(partitions);
    }

    fn pause(&mut self, partitions: &[Partition]) {
        let mut running = TopicPartitionList::new();
        for partition in partitions {
            if let Some(held) = self.held.get_mut(partition)
                && held.fetcher == Fetcher::Running
            {
                held.fetcher = Fetcher::Paused;
                running.add_partition(&self.topic, partition.0);
            }
        }
        if running.count() > 0
            && let Err(error) = self.consumer.pause(&running)
        {
            tracing::warn!(topic = self.topic, %error, "librdkafka refuses to pause");
        }
    }
}

/// Ends what this source says of a partition. Where another one read for it, it goes on behind what that one handed to it.
fn detach(reader: &SharedReader, partition: Partition, delivery: &mut Delivery) {
    if let Some(at) = reader.detach(partition) {
        delivery.goes_on(at);
    }
}

/// Since when librdkafka is to blame: not while the brokers are away, without which it begins nothing.
fn refused_since(before: Option<Instant>, answers: bool, now: Instant) -> Option<Instant> {
    answers.then(|| before.unwrap_or(now))
}

/// Makes librdkafka fetch a partition that is not fetched, from `at` on.
fn start(
    consumer: &SourceConsumer,
    fetched: &Fetched,
    topic: &str,
    partition: Partition,
    fetcher: &mut Fetcher,
    at: Offset,
) -> KafkaResult<()> {
    let at = KafkaOffset::Offset(at.as_i64());
    let one = list(topic, [(partition.0, at)])?;
    if *fetcher == Fetcher::Ended {
        consumer.pause(&one)?;
        consumer.incremental_unassign(&one)?;
        *fetcher = Fetcher::Absent;
    }
    if *fetcher == Fetcher::Absent {
        consumer.incremental_assign(&one)?;
        consumer.pause(&one)?;
        *fetcher = Fetcher::Paused;
    }
    consumer.seek(topic, partition.0, at, SEEK)?;
    // Where it was assigned before, librdkafka undoes this when it comes to that assignment's end, which is before the seek.
    fetched.forward(topic, partition)?;
    consumer.resume(&one)?;
    *fetcher = Fetcher::Running;
    Ok(())
}

/// What is delivered of one partition since the latest `Begin`.
///
/// Invariant: everything in `[Begin's at, from)` was cut, of that all below `handed` was handed on, `[from, next)` is in
/// `buffer`, and `next` is where librdkafka is (re)started. librdkafka's own position is never asked for.
pub(super) struct Delivery {
    pub epoch: Epoch,
    handed: Offset,
    from: Offset,
    /// The next offset to be fetched.
    pub next: Offset,
    buffer: RecordBuffer,
    /// What the batch before took.
    expected: usize,
    /// When the oldest record of the buffer arrived.
    pub since: Option<Instant>,
}

impl Delivery {
    pub fn new(epoch: Epoch, at: Offset) -> Self {
        Self { epoch, handed: at, from: at, next: at, buffer: RecordBuffer::default(), expected: 0, since: None }
    }

    pub fn size(&self) -> usize {
        self.buffer.size()
    }

    /// All below was handed on by another source.
    fn goes_on(&mut self, at: Offset) {
        (self.from, self.next, self.handed) = (at, at, at);
    }

    /// Takes a message over. Those below `next` were taken before; offsets skipped have no record (a transaction's
    /// markers, aborted records).
    fn take(&mut self, message: &Message<'_>) {
        let Some(offset) = message.offset() else { return };
        let headers = message.headers();
        let headers = headers.iter().map(|(name, value)| (name.as_ref(), *value));
        self.push(offset, message.time(), message.key(), message.value(), headers);
    }

    fn push<'h>(
        &mut self,
        offset: Offset,
        received: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl IntoIterator<Item = (&'h str, Option<&'h [u8]>), IntoIter: Clone>,
    ) {
        if offset < self.next {
            return;
        }
        if self.buffer.is_empty() {
            // A batch's worth at once: untouched it costs nothing, and growing by doubling would copy it twice.
            self.buffer.reserve(self.expected);
        }
        self.buffer.push(offset, received, key, value, headers);
        self.next = offset.next();
        // Once a batch: the clock's answer costs as much as what is done for a record.
        self.since.get_or_insert_with(Instant::now);
    }

    /// The buffer holds a whole batch.
    pub fn is_full(&self, limits: &BatchConfig) -> bool {
        self.buffer.len() >= limits.max_records || self.buffer.size() >= limits.max_bytes.as_usize()
    }

    /// How long its oldest record may wait yet; `None` when there is none.
    pub fn due_in(&self, limits: &BatchConfig, now: Instant) -> Option<Duration> {
        let waited = now.duration_since(self.since?);
        Some(if self.is_full(limits) { Duration::ZERO } else { limits.max_wait.saturating_sub(waited) })
    }

    /// Everything that is buffered, as a batch.
    pub fn cut(&mut self, partition: Partition, permit: Permit) -> Batch {
        let records = std::mem::take(&mut self.buffer);
        self.expected = records.size() + records.size() / 8;
        let from = std::mem::replace(&mut self.from, self.next);
        self.since = None;
        Batch { partition, epoch: self.epoch, from, to: self.next, records: Arc::new(records), permit }
    }
}

#[cfg(test)]
mod tests;
