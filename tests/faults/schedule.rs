//! Which faults, how long, and in which order: a pure function of the seed.

use std::{fmt, time::Duration};

use fastrand::Rng;

/// The daemons of a drawn run: the first takes events in, the others are workers.
pub const MEMBERS: usize = 4;
const INGEST_ACTORS: [&str; 3] = ["ingestor", "producer", "watchdog"];
const WORKER_ACTORS: [&str; 6] =
    ["consumer-archive", "consumer-aggregate", "spooler", "uploader", "aggregator", "watchdog"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`, and a start.
    Kill(usize),
    KillAll,
    /// SIGTERM under load, and a start.
    Stop(usize),
    /// SIGSTOP for less than the session's timeout, and SIGCONT.
    Freeze(usize),
    /// SIGSTOP for longer than that: it comes back as a zombie.
    Zombie(usize),
    /// A worker ends, its partitions go to the others, and it joins again.
    Leave(usize),
    Panic(usize, &'static str),
    KafkaKilled,
    KafkaStopped,
    KafkaFrozen,
    MongodbKilled,
    MongodbFrozen,
    StoreKilled,
    StoreFrozen,
    StoreForbids,
    StoreSlowsDown,
    StoreDropsReplies,
    StoreAnswersLate,
    PartitionAdded,
    /// Another program writes what is no event, small and large.
    ForeignRecords,
}

/// What a fault befalls: two at the same time befall different things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Member(usize),
    Members,
    Kafka,
    Mongodb,
    Store,
}

impl Fault {
    pub fn target(self) -> Target {
        match self {
            Self::Kill(member)
            | Self::Stop(member)
            | Self::Freeze(member)
            | Self::Zombie(member)
            | Self::Leave(member)
            | Self::Panic(member, _) => Target::Member(member),
            Self::KillAll => Target::Members,
            Self::KafkaKilled
            | Self::KafkaStopped
            | Self::KafkaFrozen
            | Self::PartitionAdded
            | Self::ForeignRecords => Target::Kafka,
            Self::MongodbKilled | Self::MongodbFrozen => Target::Mongodb,
            Self::StoreKilled
            | Self::StoreFrozen
            | Self::StoreForbids
            | Self::StoreSlowsDown
            | Self::StoreDropsReplies
            | Self::StoreAnswersLate => Target::Store,
        }
    }

    /// A service was away or refused what it was asked.
    pub fn is_outage(self) -> bool {
        matches!(self.target(), Target::Kafka | Target::Mongodb | Target::Store)
            && !matches!(self, Self::PartitionAdded | Self::ForeignRecords)
    }

    /// As the report groups them.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Kill(_) => "daemon killed (-9)",
            Self::KillAll => "all daemons killed (-9)",
            Self::Stop(_) => "daemon stopped (TERM)",
            Self::Freeze(_) => "daemon frozen",
            Self::Zombie(_) => "daemon frozen beyond its session",
            Self::Leave(_) => "worker leaves and joins",
            Self::Panic(..) => "actor panics",
            Self::KafkaKilled => "Kafka killed (-9)",
            Self::KafkaStopped => "Kafka restarted (TERM)",
            Self::KafkaFrozen => "Kafka frozen",
            Self::MongodbKilled => "MongoDB killed (-9)",
            Self::MongodbFrozen => "MongoDB frozen",
            Self::StoreKilled => "object store killed (-9)",
            Self::StoreFrozen => "object store frozen",
            Self::StoreForbids => "object store: 403",
            Self::StoreSlowsDown => "object store: 503 SlowDown",
            Self::StoreDropsReplies => "object store: PUT's reply lost",
            Self::StoreAnswersLate => "object store: PUT lands late",
            Self::PartitionAdded => "partition added",
            Self::ForeignRecords => "records that are no events",
        }
    }

    fn overlaps(self, other: Self) -> bool {
        let member = |target| matches!(target, Target::Member(_) | Target::Members);
        let (one, two) = (self.target(), other.target());
        one == two || (member(one) && member(two) && (one == Target::Members || two == Target::Members))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())?;
        match self {
            Self::Panic(member, actor) => write!(f, " [{}: {actor}]", name(*member)),
            fault => match fault.target() {
                Target::Member(member) => write!(f, " [{}]", name(member)),
                _ => Ok(()),
            },
        }
    }
}

pub fn name(member: usize) -> String {
    if member == 0 { "ingest".to_owned() } else { format!("worker-{member}") }
}

/// One step: a fault for some time, perhaps a second one in its middle, then calm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub fault: Fault,
    pub lasts: Duration,
    pub second: Option<Fault>,
    /// After the daemons are ready again.
    pub calm: Duration,
}

impl Step {
    pub fn panics(&self) -> bool {
        [Some(self.fault), self.second].into_iter().flatten().any(|fault| matches!(fault, Fault::Panic(..)))
    }
}

/// Without an end. All kinds come once (`kill -9` three times) before any comes again.
pub struct Schedule {
    random: Rng,
    bag: Vec<Fault>,
}

impl Schedule {
    pub fn of(seed: u64) -> Self {
        Self { random: Rng::with_seed(seed), bag: Vec::new() }
    }

    fn refill(&mut self) {
        let random = &mut self.random;
        let mut any = || random.usize(0..MEMBERS);
        let mut bag = vec![
            Fault::Kill(any()),
            Fault::Kill(any()),
            Fault::Kill(any()),
            Fault::KillAll,
            Fault::Stop(any()),
            Fault::Freeze(any()),
            Fault::KafkaKilled,
            Fault::KafkaStopped,
            Fault::KafkaFrozen,
            Fault::MongodbKilled,
            Fault::MongodbFrozen,
            Fault::StoreKilled,
            Fault::StoreFrozen,
            Fault::StoreForbids,
            Fault::StoreSlowsDown,
            Fault::StoreDropsReplies,
            Fault::StoreAnswersLate,
            Fault::PartitionAdded,
            Fault::ForeignRecords,
        ];
        bag.push(Fault::Zombie(random.usize(1..MEMBERS)));
        bag.push(Fault::Leave(random.usize(1..MEMBERS)));
        bag.push(Fault::Panic(0, INGEST_ACTORS[random.usize(0..INGEST_ACTORS.len())]));
        for _ in 0..2 {
            bag.push(Fault::Panic(random.usize(1..MEMBERS), WORKER_ACTORS[random.usize(0..WORKER_ACTORS.len())]));
        }
        random.shuffle(&mut bag);
        self.bag = bag;
    }
}

impl Iterator for Schedule {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.bag.is_empty() {
            self.refill();
        }
        let fault = self.bag.pop()?;
        let lasts = match fault {
            // Kafka gives a member up after `SESSION_TIMEOUT` (8 s), and looks from time to time.
            Fault::Zombie(_) | Fault::Leave(_) => self.random.u64(12_000..14_000),
            Fault::KafkaFrozen => self.random.u64(500..8_000),
            Fault::Panic(..) | Fault::PartitionAdded | Fault::ForeignRecords => 0,
            _ => self.random.u64(0..4_000),
        };
        let wants_second = self.random.u8(0..4) == 0;
        let second = self.bag.last().copied().filter(|second| {
            let short = !matches!(second, Fault::Zombie(_) | Fault::Leave(_));
            wants_second && lasts > 0 && short && !fault.overlaps(*second)
        });
        if second.is_some() {
            self.bag.pop();
        }
        let calm = Duration::from_millis(self.random.u64(200..1_500));
        Some(Step { fault, lasts: Duration::from_millis(lasts), second, calm })
    }
}

#[test]
fn the_same_seed_gives_the_same_schedule_and_another_one_another() {
    let steps = |seed| Schedule::of(seed).take(200).collect::<Vec<_>>();
    assert_eq!(steps(7), steps(7));
    assert_ne!(steps(7), steps(8));
}

#[test]
fn every_kind_comes_in_each_bag_and_two_at_once_befall_different_things() {
    let mut kinds = std::collections::BTreeSet::new();
    // A bag has 24 faults, so that many steps reach beyond the first.
    for step in Schedule::of(3).take(24) {
        kinds.extend([step.fault.kind()].into_iter().chain(step.second.map(Fault::kind)));
        assert!(step.second.is_none_or(|second| second.target() != step.fault.target()), "{step:?}");
    }
    assert_eq!(kinds.len(), 20, "{kinds:?}");
}
