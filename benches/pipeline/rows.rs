//! What is measured, each with the ratio that it is to reach.

use crate::events::Shape;

/// The usual size of an event, in bytes.
pub const LOGIN: usize = 310;
pub const PARTITIONS: i32 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    Yardstick,
    Ingestd,
}

impl System {
    pub fn name(self) -> &'static str {
        match self {
            Self::Yardstick => "bare",
            Self::Ingestd => "ingestd",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    Kafka,
    /// Alone: embedded log, local archive, embedded store.
    Embedded,
}

/// What a request has to pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Open,
    /// Bodies have this coding.
    Gzip,
    /// TLS.
    Tls,
    /// TLS, a key, gzip, and a schema of each type.
    All,
}

#[derive(Debug, Clone, Copy)]
pub struct Ingest {
    pub queue: Queue,
    pub shape: Shape,
    pub door: Door,
    pub connections: usize,
    pub size: usize,
    pub partitions: i32,
    /// As long as the usual one.
    pub times: u32,
}

#[derive(Debug, Clone, Copy)]
pub struct Drain {
    pub workers: usize,
    pub partitions: i32,
    /// As many records as usual.
    pub times: u32,
    pub aggregates: Aggregates,
}

#[derive(Debug, Clone, Copy)]
pub enum Aggregates {
    /// The one that is configured by default, in MongoDB.
    Default,
    /// With all measures each.
    Five(Store),
}

#[derive(Debug, Clone, Copy)]
pub enum Store {
    Embedded,
    Mongodb,
}

#[derive(Debug, Clone, Copy)]
pub enum Silent {
    None,
    Mongodb,
    Store,
}

#[derive(Debug, Clone, Copy)]
pub enum Hostile {
    /// There are none.
    No,
    /// To the same process.
    Here,
    /// To another one on the machine: what of their effect is the machine's, whatever a process does.
    Elsewhere,
}

#[derive(Debug, Clone, Copy)]
pub enum Work {
    /// Closed loop.
    Ingest(Ingest),
    /// Open loop, at so many hundredths of what the slower one of both reaches in [`FULL_RATE`].
    Rate(u32),
    /// Into S3 and MongoDB, from the start of the processes until both groups have no lag.
    Drain(Drain),
    /// A steady load on everything in one process, while this does not answer.
    Outage(Silent),
    /// A steady load on one process, while 64 other connections misbehave.
    BesideHostile(Hostile),
    /// Of a day by ten groups.
    Query(Store),
    /// What a process costs that has nothing to do.
    Idle(Queue),
    /// From exec to readiness.
    Start,
}

/// What a row is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Against {
    Yardstick,
    /// ingestd itself in another row.
    Row(&'static str),
    Nothing,
}

/// Ratios to what it is compared with, and absolute bounds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Goal {
    /// At least.
    pub rate: Option<f64>,
    /// At most.
    pub cpu: Option<f64>,
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    pub memory: Option<f64>,
    /// CPU seconds per million events.
    pub cpu_seconds: Option<f64>,
    pub memory_mib: Option<f64>,
    pub idle_percent: Option<f64>,
    pub ready_ms: Option<f64>,
    pub p50_ms: Option<f64>,
}

pub struct Row {
    pub name: &'static str,
    pub work: Work,
    pub against: Against,
    pub goal: Goal,
    /// Measured only when it is named, or with `--all`.
    pub on_request: bool,
}

/// The row whose rate is the maximum for [`Work::Rate`].
pub const FULL_RATE: &str = "kafka single 512";

/// What the rows with a silent dependency are compared with.
const STEADY: &str = "steady";
/// And the one with connections that misbehave.
const WELL_MEANING: &str = "well-meaning";

pub fn rows() -> Vec<Row> {
    let ingest_goal = Goal { rate: Some(0.85), cpu: Some(1.3), p99: Some(1.5), ..Goal::default() };
    let login = Ingest {
        queue: Queue::Kafka,
        shape: Shape::Single,
        door: Door::Open,
        connections: 64,
        size: LOGIN,
        partitions: PARTITIONS,
        times: 1,
    };
    let kafka = |name, ingest| Row {
        name,
        work: Work::Ingest(ingest),
        against: Against::Yardstick,
        goal: ingest_goal,
        on_request: false,
    };
    let embedded = |name, kafka, shape, connections, rate| Row {
        name,
        work: Work::Ingest(Ingest { queue: Queue::Embedded, shape, connections, ..login }),
        against: Against::Row(kafka),
        goal: Goal { rate: Some(rate), ..Goal::default() },
        on_request: false,
    };
    let rate = |name, percent| Row {
        name,
        work: Work::Rate(percent),
        against: Against::Yardstick,
        goal: Goal { cpu: Some(1.3), p99: Some(1.5), ..Goal::default() },
        on_request: false,
    };
    let drain = |name, workers, partitions| Row {
        name,
        work: Work::Drain(Drain { workers, partitions, times: 1, aggregates: Aggregates::Default }),
        against: if workers == 1 { Against::Yardstick } else { Against::Row("drain 1 worker") },
        goal: Goal {
            rate: Some(if workers == 1 { 0.6 } else { 1.0 }),
            // Several are to cost no rate; what one event costs is measured with one.
            cpu_seconds: (workers == 1).then_some(4.0),
            memory_mib: Some(128.0),
            ..Goal::default()
        },
        on_request: workers > 2,
    };
    let measured = |name, store| Row {
        name,
        work: Work::Drain(Drain { workers: 1, partitions: PARTITIONS, times: 1, aggregates: Aggregates::Five(store) }),
        against: Against::Row("drain 1 worker"),
        goal: Goal { cpu: Some(2.0), ..Goal::default() },
        on_request: matches!(store, Store::Embedded),
    };
    let query = |name, store| Row {
        name,
        work: Work::Query(store),
        against: Against::Yardstick,
        goal: Goal { p50: Some(3.0), p50_ms: Some(20.0), ..Goal::default() },
        on_request: true,
    };
    let array = Shape::Array(100);
    // Of much more work than `than` the peak of memory is the same.
    let flat = |name, than, work, p99| Row {
        name,
        work,
        against: Against::Row(than),
        goal: Goal { memory: Some(1.1), p99, ..Goal::default() },
        on_request: true,
    };
    let through = |name, than, queue, door, cpu| Row {
        name,
        work: Work::Ingest(Ingest { queue, shape: array, door, connections: 16, ..login }),
        against: Against::Row(than),
        goal: Goal { cpu: Some(cpu), ..Goal::default() },
        on_request: false,
    };
    let long = Ingest { shape: array, connections: 16, times: 10, ..login };
    vec![
        kafka("kafka single 64", login),
        kafka(FULL_RATE, Ingest { connections: 512, ..login }),
        kafka("kafka array 16", Ingest { shape: array, connections: 16, ..login }),
        kafka("kafka array 64", Ingest { shape: array, connections: 64, ..login }),
        kafka("kafka ndjson 16", Ingest { shape: Shape::Ndjson(100), connections: 16, ..login }),
        embedded("embedded single 64", "kafka single 64", Shape::Single, 64, 0.7),
        embedded("embedded array 16", "kafka array 16", array, 16, 0.4),
        through("kafka array 16 gzip", "kafka array 16", Queue::Kafka, Door::Gzip, 1.35),
        through("embedded array 16 gzip", "embedded array 16", Queue::Embedded, Door::Gzip, 1.35),
        through("kafka array 16 TLS", "kafka array 16", Queue::Kafka, Door::Tls, 2.0),
        through("kafka array 16, all doors", "kafka array 16", Queue::Kafka, Door::All, 2.0),
        through("embedded array 16, all doors", "embedded array 16", Queue::Embedded, Door::All, 2.0),
        drain("drain 1 worker", 1, PARTITIONS),
        drain("drain 2 workers", 2, PARTITIONS),
        drain("drain 4 workers", 4, PARTITIONS),
        measured("drain, five aggregates", Store::Mongodb),
        measured("drain, five aggregates, embedded store", Store::Embedded),
        kafka("array 16, 1 partition", Ingest { shape: array, connections: 16, partitions: 1, ..login }),
        kafka("array 16, 16 partitions", Ingest { shape: array, connections: 16, partitions: 16, ..login }),
        drain("drain 1 partition", 1, 1),
        drain("drain 16 partitions", 1, 16),
        kafka("array 16, 100 B", Ingest { shape: array, connections: 16, size: 100, ..login }),
        kafka("array 16, 1 KiB", Ingest { shape: array, connections: 16, size: 1 << 10, ..login }),
        kafka("array 16, 10 KiB", Ingest { shape: array, connections: 16, size: 10 << 10, ..login }),
        rate("single at 25 %", 25),
        rate("single at 50 %", 50),
        rate("single at 75 %", 75),
        query("query of a day, embedded", Store::Embedded),
        query("query of a day, MongoDB", Store::Mongodb),
        flat("tenfold, on Kafka", "kafka array 16", Work::Ingest(long), None),
        flat("tenfold, embedded", "embedded array 16", Work::Ingest(Ingest { queue: Queue::Embedded, ..long }), None),
        flat(
            "tenfold, out",
            "drain 1 worker",
            Work::Drain(Drain { workers: 1, partitions: PARTITIONS, times: 10, aggregates: Aggregates::Default }),
            None,
        ),
        Row {
            name: STEADY,
            work: Work::Outage(Silent::None),
            against: Against::Nothing,
            goal: Goal::default(),
            on_request: true,
        },
        flat("steady, MongoDB silent", STEADY, Work::Outage(Silent::Mongodb), Some(1.5)),
        flat("steady, object store silent", STEADY, Work::Outage(Silent::Store), Some(1.5)),
        Row {
            name: WELL_MEANING,
            work: Work::BesideHostile(Hostile::No),
            against: Against::Nothing,
            goal: Goal::default(),
            on_request: true,
        },
        Row {
            name: "well-meaning, 64 misbehave",
            work: Work::BesideHostile(Hostile::Here),
            against: Against::Row(WELL_MEANING),
            goal: Goal { p99: Some(2.0), ..Goal::default() },
            on_request: true,
        },
        Row {
            name: "well-meaning, 64 misbehave elsewhere",
            work: Work::BesideHostile(Hostile::Elsewhere),
            against: Against::Row(WELL_MEANING),
            goal: Goal::default(),
            on_request: true,
        },
        Row {
            name: "idle, embedded",
            work: Work::Idle(Queue::Embedded),
            against: Against::Nothing,
            goal: Goal { memory_mib: Some(30.0), idle_percent: Some(0.5), ..Goal::default() },
            on_request: false,
        },
        Row {
            name: "idle, on Kafka, S3, MongoDB",
            work: Work::Idle(Queue::Kafka),
            against: Against::Nothing,
            goal: Goal { memory_mib: Some(30.0), idle_percent: Some(0.5), ..Goal::default() },
            on_request: false,
        },
        Row {
            name: "start, embedded",
            work: Work::Start,
            against: Against::Nothing,
            goal: Goal { ready_ms: Some(100.0), ..Goal::default() },
            on_request: false,
        },
    ]
}
