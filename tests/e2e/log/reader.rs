//! A sink for tests: it begins where its group stands, takes what comes, and checks what every source promises.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, unbounded};
use ingestd::internals::{
    log::{Assignment, Batch, ByteBudget, Epoch, SourceCommand, SourceEvent, SourceHandle},
    position::{Offset, Partition},
};

use super::conformance::{Backend, PATIENCE};

pub struct Reader {
    pub source: SourceHandle,
    pub events: Receiver<SourceEvent>,
    /// Where each partition's next batch of this epoch has to begin.
    pub expected: BTreeMap<Partition, (Epoch, Offset)>,
    pub assignments: Vec<Assignment>,
    pub seen: Vec<Seen>,
}

/// One record that was read.
#[derive(Debug, Clone)]
pub struct Seen {
    pub partition: Partition,
    pub offset: Offset,
    pub key: Option<Vec<u8>>,
    pub value: String,
    pub received: i64,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(header, _)| header == name)?.1.as_deref()
    }
}

impl Reader {
    pub fn start(backend: &impl Backend) -> Self {
        Self::with_budget(backend, 32 << 20)
    }

    pub fn with_budget(backend: &impl Backend, bytes: u64) -> Self {
        let budget = ByteBudget::new(bytes, prometheus_client::metrics::gauge::Gauge::default());
        Self::of(|tell| backend.source(&budget, tell))
    }

    pub fn of(spawn: impl FnOnce(super::conformance::SourceEvents) -> SourceHandle) -> Self {
        let (sender, events) = unbounded();
        let source = spawn(Arc::new(move |event| drop(sender.send(event))));
        Self { source, events, expected: BTreeMap::new(), assignments: Vec::new(), seen: Vec::new() }
    }

    pub fn command(&self, command: SourceCommand) {
        self.source.commands.send(command).unwrap();
    }

    pub fn begin(&mut self, partition: Partition, at: Offset) {
        let epoch = Epoch::fresh();
        self.expected.insert(partition, (epoch, at));
        self.command(SourceCommand::Begin { partition, epoch, at });
    }

    /// Handles one event, beginning what is assigned; returns the batch, when it was one of the current epoch.
    pub fn step(&mut self, wait: Duration) -> Option<Batch> {
        let event = self.events.recv_timeout(wait).ok()?;
        if let SourceEvent::Assigned(assignments) = event {
            for assignment in assignments {
                self.begin(assignment.partition, assignment.first_undone());
                self.assignments.push(assignment);
            }
            return None;
        }
        self.take(event)
    }

    /// Handles one event other than an assignment.
    pub fn take(&mut self, event: SourceEvent) -> Option<Batch> {
        match event {
            SourceEvent::Assigned(assignments) => self.assignments.extend(assignments),
            SourceEvent::Revoked(partitions) => {
                for partition in partitions {
                    self.expected.remove(&partition);
                }
            }
            SourceEvent::Batch(batch) => {
                let (epoch, from) = self.expected.get_mut(&batch.partition)?;
                if *epoch != batch.epoch {
                    return None;
                }
                assert_eq!(*from, batch.from, "batches of {} are contiguous", batch.partition);
                *from = batch.to;
                // A sink passes over what stands below its cursor: a batch that was read for another one has it, too.
                for record in batch.records.iter().filter(|record| record.offset >= batch.from) {
                    assert!(record.offset < batch.to, "{} in {batch:?}", record.offset);
                    let headers = record.headers.iter();
                    self.seen.push(Seen {
                        partition: batch.partition,
                        offset: record.offset,
                        key: record.key.map(<[u8]>::to_vec),
                        value: String::from_utf8(record.value.unwrap().to_vec()).unwrap(),
                        received: record.received.0,
                        headers: headers.map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec))).collect(),
                    });
                }
                return Some(batch);
            }
            SourceEvent::LogEnd(..) | SourceEvent::EmptyTail { .. } | SourceEvent::Available => {}
            SourceEvent::Unavailable(reason) => eprintln!("unavailable: {reason}"),
            SourceEvent::Fenced(reason) | SourceEvent::Failed(reason) => panic!("{reason}"),
        }
        None
    }

    /// Steps until so many records were seen.
    pub fn read(&mut self, records: usize) {
        self.until(|reader| reader.seen.len() >= records);
    }

    pub fn until(&mut self, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "{} records, expected {:?}", self.seen.len(), self.expected);
            drop(self.step(Duration::from_millis(100)));
        }
    }

    pub fn positions(&self) -> Vec<(Partition, Offset)> {
        self.expected.iter().map(|(partition, (_, position))| (*partition, *position)).collect()
    }

    pub fn close(self, positions: Vec<(Partition, Offset)>) -> Vec<Seen> {
        self.command(SourceCommand::Close(positions));
        let _ = self.source.thread.join().unwrap();
        self.seen
    }
}

/// Values that differ.
pub fn distinct(seen: &[Seen]) -> usize {
    seen.iter().map(|record| &record.value).collect::<BTreeSet<_>>().len()
}
