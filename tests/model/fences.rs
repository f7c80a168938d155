//! The aggregates: [`PartitionFold`] and [`Assignments`] under three workers, against a database that upserts behind
//! fences.
//!
//! Invariant of each bucket, after every statement: `count` = number of matching records with offset ≤ `last_offset`,
//! but for those that the log removed before anybody counted them. At rest every record that the log holds is counted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ingestd::internals::{
    aggregate::{Coverage, GroupFold, PartitionFold},
    consume::assignments::Assignments,
    log::{Assignment, Epoch},
    position::{Offset, Partition, Timestamp, TopicIdentity},
    store::{BucketDelta, BucketKey, Fence},
};

use crate::schedule::{Draw, Step, Trace, Violation, WORKERS, breaks, holds};

const PARTITION: Partition = Partition(0);
const GROUPS: [&str; 3] = ["a", "b", "c"];
/// There are never so many.
const OTHERS: &str = "others";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Produce,
    Assign,
    LookUp,
    Load,
    Fetch,
    Deliver,
    Flush,
    Commit,
    Network,
    Crash,
    SinkPanic,
    Retention,
    Rewind,
}

const DRAW: Draw<'static, Op> = Draw {
    steps: 50..400,
    weights: &[
        (Op::Produce, 40),
        (Op::Assign, 10),
        (Op::LookUp, 40),
        (Op::Load, 60),
        (Op::Fetch, 90),
        (Op::Deliver, 120),
        (Op::Flush, 80),
        (Op::Commit, 40),
        (Op::Network, 30),
        (Op::Crash, 5),
        (Op::SinkPanic, 3),
        (Op::Retention, 2),
        (Op::Rewind, 4),
    ],
};

/// A rule that is taken out, to see the model find what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Without {
    Nothing,
    /// Fences are loaded where `last_offset > committed`.
    FenceAtTheCommittedOffset,
    Fences,
    /// Upserts do not ask whether the bucket was advanced meanwhile.
    FencedUpserts,
    /// A batch that begins beyond the cursor is folded all the same.
    Cursor,
    /// Positions are committed when records were folded, not when they were flushed.
    CommitAfterTheFlush,
    /// What is not known to have taken effect is dropped instead of sent again.
    SameStatementsAgain,
}

#[derive(Debug, Clone)]
enum Late {
    Upsert(BucketDelta),
    Commit { generation: u64, position: Offset },
}

enum ToSink {
    Assign(Epoch, Assignment),
    Unassign(Epoch),
    Batch { epoch: Epoch, from: Offset, to: Offset },
}

enum ToConsumer {
    Begin(Epoch, Offset),
    Confirm(Epoch, Offset),
    Reassign(Epoch),
}

enum Sink {
    Loading(Epoch, Assignment),
    Open { epoch: Epoch, fold: PartitionFold, flush: Option<Vec<BucketDelta>> },
}

fn statements_of(fold: &mut PartitionFold) -> Vec<BucketDelta> {
    let delta = |GroupFold { partition, aggregate, key, folded }: GroupFold| {
        let tally = folded.uncounted.expect("there are no further groups");
        BucketDelta { key, partition, aggregate, first: tally.first, last: tally.last, measures: tally.measures.into() }
    };
    fold.begin_flush().into_iter().map(delta).collect()
}

/// One process that reads the partition, or believes so.
struct Life {
    generation: u64,
    consumer: Assignments,
    /// Where the source fetches next.
    source: Option<(Epoch, Offset)>,
    looking_up: bool,
    sink: Option<Sink>,
    to_sink: VecDeque<ToSink>,
    to_consumer: VecDeque<ToConsumer>,
    to_commit: Option<Offset>,
}

struct World<'t> {
    without: Without,
    trace: &'t mut Trace,
    /// The group of each offset; `None` where the log has an offset without a record.
    log: Vec<Option<usize>>,
    log_start: Offset,
    /// By group: count and `last_offset`.
    buckets: BTreeMap<usize, (u64, Offset)>,
    /// Removed by the log before they were counted.
    lost: BTreeSet<Offset>,
    committed: Option<Offset>,
    generation: u64,
    network: Vec<Late>,
    workers: [Option<Life>; WORKERS],
}

fn run(without: Without, schedule: &[Step<Op>], trace: &mut Trace) -> Result<(), Violation> {
    let mut world = World {
        without,
        trace,
        log: Vec::new(),
        log_start: Offset(0),
        buckets: BTreeMap::new(),
        lost: BTreeSet::new(),
        committed: None,
        generation: 0,
        network: Vec::new(),
        workers: [const { None }; WORKERS],
    };
    for step in schedule {
        world.step(*step)?;
    }
    world.settle()
}

impl World<'_> {
    fn log_end(&self) -> Offset {
        Offset(self.log.len() as u64)
    }

    fn group_of(&self, offset: Offset) -> Option<usize> {
        self.log[offset.0 as usize]
    }

    fn step(&mut self, Step { op, worker, choice }: Step<Op>) -> Result<(), Violation> {
        match op {
            Op::Produce => {
                let groups = (0..1 + choice % 3).map(|n| ((choice >> (2 * n + 2)) % 4) as usize);
                self.log.extend(groups.map(|group| (group < GROUPS.len()).then_some(group)));
            }
            Op::Assign => self.assign(worker, choice.is_multiple_of(2)),
            Op::LookUp => self.look_up(worker),
            Op::Load => self.load(worker),
            Op::Fetch => self.fetch(worker, choice),
            Op::Deliver => self.deliver(worker, choice),
            Op::Flush => self.flush(worker, choice)?,
            Op::Commit => self.commit(worker, !choice.is_multiple_of(3)),
            Op::Network if !self.network.is_empty() => {
                let late = self.network.remove(choice as usize / 64 % self.network.len());
                // Some never arrive; a commit may arrive although its sender was replaced meanwhile.
                if choice % 8 != 7 {
                    self.land(late, choice % 16 == 6)?;
                }
            }
            Op::Network => {}
            Op::Crash => {
                self.workers[worker] = None;
                self.trace.say(|| format!("worker {worker} is killed"));
            }
            Op::SinkPanic => {
                if let Some(life) = &mut self.workers[worker] {
                    (life.sink, life.looking_up, life.source) = (None, true, None);
                    life.to_sink.clear();
                    self.trace.say(|| format!("the aggregator of worker {worker} panics"));
                }
            }
            Op::Retention => {
                let to = Offset(self.log_start.0 + u64::from(choice % 4)).min(self.log_end());
                self.remove_before(to);
            }
            Op::Rewind => {
                if let Some(committed) = self.committed {
                    let back = Offset(u64::from(choice) % (committed.0 + 1));
                    self.committed = (!choice.is_multiple_of(4)).then_some(back);
                    self.trace.say(|| format!("the group's position is now {:?}", self.committed));
                }
            }
        }
        Ok(())
    }

    fn remove_before(&mut self, to: Offset) {
        for offset in (self.log_start.0..to.0).map(Offset) {
            if let Some(group) = self.group_of(offset)
                && self.buckets.get(&group).is_none_or(|(_, last)| *last < offset)
            {
                self.lost.insert(offset);
                self.trace.saw("lost to retention");
            }
        }
        self.log_start = to;
        self.trace.say(|| format!("the log starts at {to}"));
    }

    /// The group gives the partition to `worker`; who had it is told, or (a zombie) is not.
    fn assign(&mut self, worker: usize, zombie: bool) {
        let generation = self.generation + 1;
        if self.workers[worker].as_ref().is_some_and(|life| life.generation == self.generation && self.generation > 0) {
            return;
        }
        if !zombie {
            for life in self.workers.iter_mut().flatten() {
                if let Some(epoch) = life.consumer.revoked(PARTITION) {
                    life.to_sink.push_back(ToSink::Unassign(epoch));
                }
                (life.source, life.looking_up) = (None, false);
            }
        }
        self.generation = generation;
        let life = self.workers[worker].get_or_insert_with(|| Life {
            generation,
            consumer: Assignments::default(),
            source: None,
            looking_up: true,
            sink: None,
            to_sink: VecDeque::new(),
            to_consumer: VecDeque::new(),
            to_commit: None,
        });
        (life.generation, life.looking_up, life.source, life.to_commit) = (generation, true, None, None);
        self.trace
            .say(|| format!("worker {worker} is assigned the partition (generation {generation}, zombie: {zombie})"));
    }

    fn look_up(&mut self, worker: usize) {
        let assignment = Assignment {
            partition: PARTITION,
            committed: self.committed,
            log_start: self.log_start,
            log_end: self.log_end(),
            identity: TopicIdentity("id".into()),
            holds_all: true,
        };
        let Some(life) = self.workers[worker].as_mut().filter(|life| life.looking_up) else { return };
        life.looking_up = false;
        let epoch = life.consumer.assigned(&assignment);
        self.trace.say(|| format!("worker {worker} learns: committed {:?}", assignment.committed));
        life.to_sink.push_back(ToSink::Assign(epoch, assignment));
    }

    fn load(&mut self, worker: usize) {
        let Some(life) = &mut self.workers[worker] else { return };
        let Some(Sink::Loading(epoch, assignment)) = &life.sink else { return };
        let (epoch, at) = (*epoch, assignment.first_undone());
        let is_fence = |last: Offset| match self.without {
            Without::Fences => false,
            Without::FenceAtTheCommittedOffset => last > at,
            _ => last >= at,
        };
        let fences: Vec<Fence> = self
            .buckets
            .iter()
            .filter(|(_, (_, last))| is_fence(*last))
            .map(|(group, (_, last))| Fence { aggregate: 0, key: key(*group), last_offset: *last })
            .collect();
        self.trace.say(|| format!("worker {worker} begins at {at} with fences {fences:?}"));
        life.sink = Some(Sink::Open {
            epoch,
            fold: PartitionFold::assign(PARTITION, at, &[OTHERS.into()], fences),
            flush: None,
        });
        life.to_consumer.push_back(ToConsumer::Begin(epoch, at));
    }

    fn fetch(&mut self, worker: usize, choice: u32) {
        let end = self.log_end();
        let Some(life) = &mut self.workers[worker] else { return };
        let Some((epoch, from)) = life.source else { return };
        if from < self.log_start {
            // Out of range: announced anew.
            (life.source, life.looking_up) = (None, true);
            return self.trace.saw("out of range");
        }
        let to = Offset(from.0 + 1 + u64::from(choice % 5)).min(end);
        if to > from && life.consumer.delivers(PARTITION, epoch, to) {
            life.source = Some((epoch, to));
            // A batch may be lost on its way (its sink was being restarted).
            if choice % 32 != 9 {
                life.to_sink.push_back(ToSink::Batch { epoch, from, to });
            }
        }
    }

    /// Some of what waits in the mailboxes is handled.
    fn deliver(&mut self, worker: usize, choice: u32) {
        for bit in 0..6 {
            let Some(life) = &mut self.workers[worker] else { return };
            if choice >> bit & 1 == 0 {
                if let Some(message) = life.to_sink.pop_front() {
                    self.sink_hears(worker, message);
                }
            } else if let Some(message) = life.to_consumer.pop_front() {
                life.hear(message);
            }
        }
    }

    fn sink_hears(&mut self, worker: usize, message: ToSink) {
        let (log, without) = (&self.log, self.without);
        let Some(life) = &mut self.workers[worker] else { return };
        match message {
            ToSink::Assign(epoch, assignment) => life.sink = Some(Sink::Loading(epoch, assignment)),
            ToSink::Unassign(epoch) => {
                life.sink.take_if(
                    |sink| matches!(sink, Sink::Loading(at, _) | Sink::Open { epoch: at, .. } if *at <= epoch),
                );
            }
            ToSink::Batch { epoch, from, to } => {
                let Some(Sink::Open { epoch: present, fold, .. }) = &mut life.sink else { return };
                if *present != epoch {
                    return;
                }
                match fold.coverage(from, to) {
                    Coverage::Stale => return,
                    Coverage::Beyond { cursor } if without != Without::Cursor => {
                        self.trace.saw("refused beyond the cursor");
                        return life.to_consumer.push_back(ToConsumer::Begin(epoch, cursor));
                    }
                    Coverage::Beyond { .. } | Coverage::Continues => {}
                }
                for offset in from.0..to.0 {
                    if let Some(group) = log[offset as usize] {
                        fold.add(0, Offset(offset), Timestamp(0), GROUPS[group], |measures| {
                            measures.count += 1;
                            0
                        });
                    }
                }
                fold.advance(to);
                if without == Without::CommitAfterTheFlush {
                    life.to_consumer.push_back(ToConsumer::Confirm(epoch, to));
                }
            }
        }
    }

    /// One attempt of the flush in flight; a new flush where there is none.
    fn flush(&mut self, worker: usize, choice: u32) -> Result<(), Violation> {
        let Some(life) = &mut self.workers[worker] else { return Ok(()) };
        let Some(Sink::Open { epoch, fold, flush }) = &mut life.sink else { return Ok(()) };
        let epoch = *epoch;
        let statements = match flush {
            Some(statements) => statements.clone(),
            None if fold.is_dirty() => flush.insert(statements_of(fold)).clone(),
            None => return Ok(()),
        };
        match choice % 8 {
            // Some take effect, and nothing comes back; or they land later.
            fate @ (5 | 6) => {
                for (n, statement) in statements.iter().enumerate() {
                    match (choice >> (3 + 2 * (n % 6))) % 4 {
                        0 => {}
                        1 if fate == 6 => self.network.push(Late::Upsert(statement.clone())),
                        _ => {
                            self.upsert(statement)?;
                        }
                    }
                }
                self.trace.saw("answer lost");
                if self.without == Without::SameStatementsAgain {
                    self.flushed(worker, epoch);
                }
            }
            7 => {}
            _ => {
                let mut fenced = false;
                for statement in &statements {
                    fenced |= !self.upsert(statement)?;
                }
                if fenced {
                    self.trace.saw("fenced");
                    self.trace.say(|| format!("worker {worker} is fenced"));
                    if let Some(life) = &mut self.workers[worker] {
                        life.sink = None;
                        life.to_consumer.push_back(ToConsumer::Reassign(epoch));
                    }
                } else {
                    self.flushed(worker, epoch);
                }
            }
        }
        Ok(())
    }

    fn flushed(&mut self, worker: usize, epoch: Epoch) {
        if let Some(life) = &mut self.workers[worker]
            && let Some(Sink::Open { fold, flush, .. }) = &mut life.sink
        {
            *flush = None;
            let position = fold.flushed();
            life.to_consumer.push_back(ToConsumer::Confirm(epoch, position));
        }
    }

    /// Whether it took effect; `false` is a duplicate key.
    fn upsert(&mut self, statement: &BucketDelta) -> Result<bool, Violation> {
        let group = GROUPS.iter().position(|group| **group == *statement.key.group).expect("a group");
        let found = self.buckets.get(&group).copied();
        if found.is_some_and(|(_, last)| last >= statement.first) && self.without != Without::FencedUpserts {
            return Ok(false);
        }
        let count = found.map_or(0, |(count, _)| count) + statement.measures.count;
        self.buckets.insert(group, (count, statement.last));
        self.trace
            .say(|| format!("bucket {group}: +{} -> {count}, up to {}", statement.measures.count, statement.last));
        self.check(group)?;
        Ok(true)
    }

    fn check(&self, group: usize) -> Result<(), Violation> {
        let (count, last) = self.buckets[&group];
        let matching = || (0..=last.0).map(Offset).filter(|offset| self.group_of(*offset) == Some(group));
        let (most, least) = (matching().count() as u64, matching().filter(|it| !self.lost.contains(it)).count() as u64);
        if count > most {
            return Err(Violation(format!(
                "counted twice: bucket {group} is {count} up to {last}, the log had {most}"
            )));
        }
        if count < least {
            return Err(Violation(format!("not counted: bucket {group} is {count} up to {last}, the log had {least}")));
        }
        Ok(())
    }

    fn commit(&mut self, worker: usize, at_once: bool) {
        let Some(life) = &mut self.workers[worker] else { return };
        let Some(position) = life.to_commit.take() else { return };
        let commit = Late::Commit { generation: life.generation, position };
        if at_once {
            self.land(commit, false).expect("a commit changes no bucket");
        } else {
            self.network.push(commit);
        }
    }

    fn land(&mut self, late: Late, whoever: bool) -> Result<(), Violation> {
        match late {
            Late::Upsert(statement) => {
                self.trace.saw("late upsert");
                self.upsert(&statement)?;
            }
            Late::Commit { generation, position } => {
                if generation == self.generation || whoever {
                    self.committed = Some(position);
                    self.trace.say(|| format!("committed: {position}"));
                }
            }
        }
        Ok(())
    }

    /// No more faults: one worker has the partition, and everything comes to rest.
    fn settle(&mut self) -> Result<(), Violation> {
        self.trace.say(|| "-- from here on nothing fails".to_owned());
        while !self.network.is_empty() {
            let late = self.network.remove(0);
            self.land(late, false)?;
        }
        self.workers = [const { None }; WORKERS];
        self.assign(0, true);
        for _ in 0..20 + 4 * self.log.len() {
            self.look_up(0);
            self.load(0);
            self.deliver(0, 0b111_000);
            self.fetch(0, 4);
            self.flush(0, 0)?;
            self.commit(0, true);
        }
        for group in self.buckets.keys() {
            self.check(*group)?;
        }
        for offset in (self.log_start.0..self.log_end().0).map(Offset) {
            if let Some(group) = self.group_of(offset)
                && self.buckets.get(&group).is_none_or(|(_, last)| *last < offset)
            {
                return Err(Violation(format!("not counted: offset {offset} at rest")));
            }
        }
        Ok(())
    }
}

impl Life {
    fn hear(&mut self, message: ToConsumer) {
        match message {
            ToConsumer::Begin(epoch, at) => {
                if self.consumer.begin(PARTITION, epoch) {
                    self.source = Some((epoch, at));
                }
            }
            ToConsumer::Confirm(epoch, position) => {
                if self.consumer.confirm(PARTITION, epoch, position) {
                    self.to_commit = Some(position);
                }
            }
            ToConsumer::Reassign(epoch) => {
                if self.consumer.reassign(PARTITION, epoch) {
                    (self.source, self.looking_up) = (None, true);
                }
            }
        }
    }
}

fn key(group: usize) -> BucketKey {
    BucketKey { window_start: Timestamp(0), group: GROUPS[group].into() }
}

#[test]
fn every_record_is_counted_once_whatever_happens_to_three_workers() {
    let met =
        ["fenced", "answer lost", "late upsert", "refused beyond the cursor", "out of range", "lost to retention"];
    holds(60_000, &DRAW, &met, |schedule, trace| run(Without::Nothing, schedule, trace));
}

#[track_caller]
fn is_needed(without: Without) {
    breaks(20_000, &DRAW, |schedule, trace| run(without, schedule, trace));
}

#[test]
fn without_the_fence_at_the_committed_offset_itself_records_are_counted_wrong() {
    is_needed(Without::FenceAtTheCommittedOffset);
}

#[test]
fn without_fences_records_are_counted_wrong() {
    is_needed(Without::Fences);
}

#[test]
fn without_fenced_upserts_records_are_counted_twice() {
    is_needed(Without::FencedUpserts);
}

#[test]
fn without_the_cursor_rule_records_are_left_out() {
    is_needed(Without::Cursor);
}

#[test]
fn without_the_commit_after_the_flush_records_are_left_out() {
    is_needed(Without::CommitAfterTheFlush);
}

#[test]
fn without_the_same_statements_again_records_are_left_out() {
    is_needed(Without::SameStatementsAgain);
}
