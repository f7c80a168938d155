//! One reading for both sinks: where the sources of a process hold the same partition and stand at the same place of it, one of
//! them fetches, and hands each batch to the other's consumer, too.
//!
//! A source that fetches a partition is *reading* it, and says how far it is. One that could begin there *attaches* itself: it
//! fetches nothing, and its consumer gets the batches under the attached one's own epoch, with permits of its own budget. Groups,
//! positions, lags and failures stay each sink's own, and each sink's cursor judges what it is handed as before (docs/design.md, 6).
//!
//! Invariants: an attached source's batches are contiguous from where it attached itself; they come after all that it had read
//! itself ([`SharedReader::open`]); and nothing is handed to it any more once [`SharedReader::detach`] has returned, which says
//! where it goes on by itself. A source that reads for another one does not attach itself, so that somebody always reads.
//!
//! The reading one waits for the other's budget as for its own. So that a slow sink does not hold up a fast one, they part when
//! that lasts ([`Waits`]).

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;

use crate::{
    log::{Batch, ByteBudget, Epoch, Permit, SourceEvent, SourceEvents, kafka::partitions::Starved},
    position::{Offset, Partition, TopicIdentity},
};

/// A source that is ahead by no more offsets than this waits for the one that reads: half a second of work.
const AHEAD: u64 = 100_000;
/// Longer than any wait of a source that reads. One that answers a rebalance commits in it, and its coordinator may be away.
const HANGS: Duration = Duration::from_secs(2);
/// How long two that parted read by themselves, at least.
const APART: Duration = Duration::from_secs(60);

/// What the sources of a process know of each other's reading.
#[derive(Clone, Default)]
pub struct SharedReads(Arc<Mutex<BTreeMap<Partition, Sources>>>);

#[derive(Default)]
struct Sources {
    /// One a source that holds the partition and has begun.
    entries: Vec<Entry>,
    /// Nobody attaches itself before.
    apart_until: Option<Instant>,
    /// The log's end, records of open transactions among it, as the fetches of the one that reads say it.
    high: Option<Offset>,
}

struct Entry {
    source: u64,
    identity: TopicIdentity,
    state: State,
}

enum State {
    Reading {
        /// Everything below was handed on.
        handed: Offset,
        /// Everything below was fetched.
        fetched: Offset,
        /// When it said so: a source that hangs reads for nobody.
        said: Instant,
    },
    Attached(Attached),
}

struct Attached {
    /// The source that reads.
    to: u64,
    epoch: Epoch,
    /// The next offset that the consumer gets.
    at: Offset,
    events: SourceEvents,
    budget: ByteBudget,
    /// Batches that wait until what the source had read itself is handed on; `None` from then on.
    waiting: Option<VecDeque<Batch>>,
    /// It has to read by itself.
    parted: bool,
}

impl Sources {
    fn state(&mut self, source: u64) -> Option<&mut State> {
        self.entries.iter_mut().find(|entry| entry.source == source).map(|entry| &mut entry.state)
    }

    fn attached_to(&mut self, source: u64) -> Option<&mut Attached> {
        self.entries.iter_mut().find_map(|entry| match &mut entry.state {
            State::Attached(attached) if attached.to == source && !attached.parted => Some(attached),
            _ => None,
        })
    }

    /// Whoever is attached to it reads by itself.
    fn remove(&mut self, source: u64) -> Option<State> {
        if let Some(attached) = self.attached_to(source) {
            attached.parted = true;
        }
        let at = self.entries.iter().position(|entry| entry.source == source)?;
        let state = self.entries.swap_remove(at).state;
        if let State::Reading { .. } = state {
            self.high = None;
        }
        Some(state)
    }
}

/// A source's own end.
pub struct SharedReader {
    source: u64,
    reads: SharedReads,
    /// Of the topic that it announced.
    identity: Option<TopicIdentity>,
    events: SourceEvents,
    budget: ByteBudget,
    /// Shows of how many partitions another source reads for it.
    attached: Gauge,
}

impl SharedReader {
    pub fn new(reads: SharedReads, events: SourceEvents, budget: ByteBudget, attached: Gauge) -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let source = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        Self { source, reads, identity: None, events, budget, attached }
    }

    /// The topic that it reads; nothing is shared before that is known, nor with a source of another one.
    pub(super) fn belongs_to(&mut self, identity: TopicIdentity) {
        self.identity = Some(identity);
    }

    /// It fetches the partition: everything below `handed` was handed on, everything below `fetched` is here.
    pub(super) fn reads(&self, partition: Partition, handed: Offset, fetched: Offset) {
        let Some(identity) = &self.identity else { return };
        let mut reads = self.reads.0.lock();
        let sources = reads.entry(partition).or_default();
        let state = State::Reading { handed, fetched, said: Instant::now() };
        match sources.state(self.source) {
            Some(present) => *present = state,
            None => sources.entries.push(Entry { source: self.source, identity: identity.clone(), state }),
        }
    }

    /// Whether another source reads for this one from now on, which is at `at`.
    pub(super) fn attach(&self, partition: Partition, epoch: Epoch, at: Offset, now: Instant) -> bool {
        let Some(identity) = &self.identity else { return false };
        let mut reads = self.reads.0.lock();
        let Some(sources) = reads.get_mut(&partition) else { return false };
        if sources.apart_until.is_some_and(|until| now < until) || sources.attached_to(self.source).is_some() {
            return false;
        }
        let is_near = |entry: &&Entry| match entry.state {
            State::Reading { handed, fetched, said } => {
                entry.source != self.source
                    && said.elapsed() < HANGS
                    && entry.identity == *identity
                    && handed <= at
                    && at.since(fetched) <= AHEAD
            }
            State::Attached(_) => false,
        };
        let Some(to) = sources.entries.iter().find(is_near).map(|entry| entry.source) else { return false };
        if sources.attached_to(to).is_some() {
            return false;
        }
        sources.remove(self.source);
        let attached = Attached {
            to,
            epoch,
            at,
            events: self.events.clone(),
            budget: self.budget.clone(),
            waiting: Some(VecDeque::new()),
            parted: false,
        };
        let state = State::Attached(attached);
        sources.entries.push(Entry { source: self.source, identity: identity.clone(), state });
        self.attached.inc();
        true
    }

    /// The log's end as this source's own fetches say it, for whoever is attached to it; where it is attached itself, as those of
    /// the one that reads do, and nothing where that is not known.
    pub(super) fn high(&self, partition: Partition, own: Offset) -> Option<Offset> {
        let mut reads = self.reads.0.lock();
        let Some(sources) = reads.get_mut(&partition) else { return Some(own) };
        match sources.state(self.source) {
            Some(State::Attached(_)) => sources.high,
            Some(State::Reading { .. }) => {
                sources.high = Some(own);
                sources.high
            }
            None => Some(own),
        }
    }

    /// Whether somebody still reads for this source, which is attached.
    pub(super) fn is_fed(&self, partition: Partition) -> bool {
        let mut reads = self.reads.0.lock();
        let Some(sources) = reads.get_mut(&partition) else { return false };
        let Some(State::Attached(Attached { to, parted: false, .. })) = sources.state(self.source) else {
            return false;
        };
        let to = *to;
        matches!(sources.state(to), Some(State::Reading { said, .. }) if said.elapsed() < HANGS)
    }

    /// Everything that this source, which is attached, had read itself is handed on: what came meanwhile follows, and then
    /// whatever comes.
    pub(super) fn open(&self, partition: Partition) {
        let mut reads = self.reads.0.lock();
        if let Some(State::Attached(attached)) =
            reads.get_mut(&partition).and_then(|sources| sources.state(self.source))
        {
            for batch in attached.waiting.take().into_iter().flatten() {
                (attached.events)(SourceEvent::Batch(batch));
            }
        }
    }

    /// Where this source is, if it is attached and open.
    pub(super) fn at(&self, partition: Partition) -> Option<Offset> {
        let mut reads = self.reads.0.lock();
        match reads.get_mut(&partition)?.state(self.source)? {
            State::Attached(Attached { at, waiting: None, .. }) => Some(*at),
            _ => None,
        }
    }

    /// Ends what this source says of the partition: whoever is attached to it reads by itself. Where it was attached and open,
    /// this is where it goes on; else it goes on where it was.
    pub(super) fn detach(&self, partition: Partition) -> Option<Offset> {
        let mut reads = self.reads.0.lock();
        let sources = reads.get_mut(&partition)?;
        let state = sources.remove(self.source)?;
        if sources.entries.is_empty() && sources.apart_until.is_none_or(|until| until <= Instant::now()) {
            reads.remove(&partition);
        }
        match state {
            State::Reading { .. } => None,
            State::Attached(Attached { at, waiting, .. }) => {
                self.attached.dec();
                waiting.is_none().then_some(at)
            }
        }
    }

    /// The same, and nobody attaches itself for a while.
    pub(super) fn part_with(&self, partition: Partition, now: Instant) -> Option<Offset> {
        let at = self.detach(partition);
        if let Some(sources) = self.reads.0.lock().get_mut(&partition) {
            sources.apart_until = Some(now + APART);
        }
        at
    }

    /// A permit for a batch of this source's, of whoever is attached to it.
    pub(super) fn permit(&self, partition: Partition, bytes: usize) -> Result<Option<Permit>, Starved> {
        let mut reads = self.reads.0.lock();
        let attached = reads.get_mut(&partition).and_then(|sources| sources.attached_to(self.source));
        attached.map(|attached| attached.budget.try_take(bytes).ok_or(Starved)).transpose()
    }

    /// Whether somebody is attached to this source, of whatever partition, whose budget has room.
    pub(super) fn others_have_room(&self) -> bool {
        let mut reads = self.reads.0.lock();
        let mut others = reads.values_mut().filter_map(|sources| sources.attached_to(self.source));
        others.any(|attached| attached.budget.has_room())
    }

    /// Hands a batch, which this source hands on now, to whoever is attached to it. Without a permit, where that one came after
    /// the batch was cut, one is taken beyond its budget.
    pub(super) fn hand(&self, batch: &Batch, permit: Option<Permit>) {
        let mut reads = self.reads.0.lock();
        let Some(sources) = reads.get_mut(&batch.partition) else { return };
        if let Some(State::Reading { handed, .. }) = sources.state(self.source) {
            *handed = batch.to;
        }
        let Some(attached) = sources.attached_to(self.source) else { return };
        if batch.to <= attached.at {
            return;
        }
        if attached.at < batch.from {
            // It cannot be, since it attached itself at or above what was handed on; what is missing it reads itself.
            attached.parted = true;
            return;
        }
        let permit = permit.unwrap_or_else(|| attached.budget.take(batch.records.size()));
        let handed = Batch {
            partition: batch.partition,
            epoch: attached.epoch,
            from: attached.at,
            to: batch.to,
            records: batch.records.clone(),
            permit,
        };
        attached.at = batch.to;
        match &mut attached.waiting {
            Some(waiting) => waiting.push_back(handed),
            None => (attached.events)(SourceEvent::Batch(handed)),
        }
    }

    /// How this source's own consumer is told what happens.
    pub(super) fn tell(&self, event: SourceEvent) {
        (self.events)(event);
    }

    /// The budget of this source's own sink.
    pub(super) fn budget(&self) -> &ByteBudget {
        &self.budget
    }

    /// Has all who are attached to this source read by themselves, for a while.
    pub(super) fn part(&self, now: Instant) {
        for sources in self.reads.0.lock().values_mut() {
            if let Some(attached) = sources.attached_to(self.source) {
                attached.parted = true;
                sources.apart_until = Some(now + APART);
            }
        }
    }
}

impl Drop for SharedReader {
    fn drop(&mut self) {
        let mut reads = self.reads.0.lock();
        reads.retain(|_, sources| {
            if let Some(State::Attached(_)) = sources.remove(self.source) {
                self.attached.dec();
            }
            !sources.entries.is_empty()
        });
    }
}

/// How long a source that reads for another one has waited for one of both budgets, while the other had room.
#[derive(Debug, Default)]
pub(super) struct Waits {
    /// The wait that goes on, and when it was seen last.
    waiting: Option<(Instant, Instant)>,
    /// When the stretch began in which waits are summed, and their sum.
    stretch: Option<(Instant, Duration)>,
}

impl Waits {
    /// One wait of this length is too long.
    const LONGEST: Duration = Duration::from_millis(500);
    /// And of this stretch no more than half, so that a sink that is more than twice as fast does not wait for the other one
    /// for longer than that.
    const STRETCH: Duration = Duration::from_secs(30);

    /// It waits now. Whether that is enough.
    pub fn waits(&mut self, now: Instant) -> bool {
        let (began, seen) = *self.waiting.get_or_insert((now, now));
        self.waiting = Some((began, now));
        let (since, sum) = self.stretch.get_or_insert((now, Duration::ZERO));
        *sum += now.duration_since(seen);
        let is_enough = now.duration_since(began) >= Self::LONGEST
            || (now.duration_since(*since) >= Self::STRETCH && *sum * 2 >= Self::STRETCH);
        if is_enough {
            *self = Self::default();
        }
        is_enough
    }

    /// It does not wait (any more).
    pub fn went_on(&mut self, now: Instant) {
        self.waiting = None;
        self.stretch.take_if(|(since, _)| now.duration_since(*since) >= Self::STRETCH);
    }
}

#[cfg(test)]
mod tests;
