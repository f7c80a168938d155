//! What a sink has confirmed, and the thread that commits it to the group.
//!
//! The thread commits synchronously: with `rdkafka`'s event interface nobody hears what became of an asynchronous
//! commit, and one that failed would be forgotten.

use std::{
    collections::BTreeMap,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};

use crate::{
    log::kafka::group::Group,
    position::{Offset, Partition},
};

/// From the first position that is due to its commit: those that come meanwhile go with it.
const EVERY: Duration = Duration::from_secs(1);
/// While the last positions cannot be committed, they are tried again so often.
const LAST_TRY_EVERY: Duration = Duration::from_millis(100);

/// The positions of the partitions that are held: what was confirmed, and what of it was sent to the group.
#[derive(Default)]
pub(super) struct Commits(BTreeMap<Partition, Position>);

#[derive(Default)]
struct Position {
    confirmed: Option<Offset>,
    sent: Option<Offset>,
}

impl Commits {
    /// A new assignment: nothing is known of it.
    pub fn hold(&mut self, partition: Partition) {
        self.0.insert(partition, Position::default());
    }

    /// The group has this position already.
    pub fn stands(&mut self, partition: Partition, committed: Offset) {
        if let Some(held) = self.0.get_mut(&partition) {
            held.sent = Some(committed);
        }
    }

    pub fn release(&mut self, partition: Partition) {
        self.0.remove(&partition);
    }

    /// Never backwards within an assignment, and never for partitions that are not held.
    pub fn confirm(&mut self, partition: Partition, position: Offset) {
        if let Some(held) = self.0.get_mut(&partition) {
            held.confirmed = held.confirmed.max(Some(position));
        }
    }

    /// The positions that were confirmed and not sent. They count as sent now.
    pub fn take_due(&mut self, wanted: impl Fn(Partition) -> bool) -> Vec<(Partition, Offset)> {
        let mut due = Vec::new();
        for (partition, position) in self.0.iter_mut().filter(|(partition, _)| wanted(**partition)) {
            if let Some(confirmed) = position.confirmed.filter(|_| position.confirmed != position.sent) {
                position.sent = position.confirmed;
                due.push((*partition, confirmed));
            }
        }
        due
    }

    /// Whether any is due.
    pub fn has_due(&self) -> bool {
        self.0.values().any(|position| position.confirmed.is_some() && position.confirmed != position.sent)
    }

    /// They were not committed after all, and are due again.
    pub fn failed(&mut self, positions: &[(Partition, Offset)]) {
        for (partition, _) in positions {
            if let Some(position) = self.0.get_mut(partition) {
                position.sent = None;
            }
        }
    }
}

/// Commits what is due, at most once a second.
pub(super) struct Committer {
    /// Says that something is due. One word that waits says all that several would.
    due: Sender<()>,
    /// Sends the deadline of the last commit.
    last: Sender<Instant>,
    thread: JoinHandle<()>,
}

impl Committer {
    pub fn start(consumer: Arc<BaseConsumer<Group>>) -> anyhow::Result<Self> {
        // One message, the last.
        let (last, asked) = bounded(1);
        let (due, woken) = bounded(1);
        let thread = std::thread::Builder::new()
            .name("kafka-commit".to_owned())
            .spawn(move || run(&consumer, &woken, &asked))
            .context("cannot start the thread that commits to Kafka")?;
        Ok(Self { due, last, thread })
    }

    /// To be called after positions were confirmed.
    pub fn wake(&self) {
        // Full: it is awake.
        let _ = self.due.try_send(());
    }

    /// Whether the thread has ended, which it does unasked by a panic only.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Commits what is due, then ends; until `deadline` a failure is tried again.
    pub fn finish(self, deadline: Instant) -> JoinHandle<()> {
        // An error says that the thread has ended.
        let _ = self.last.send(deadline);
        self.thread
    }
}

fn run(consumer: &BaseConsumer<Group>, woken: &Receiver<()>, asked: &Receiver<Instant>) {
    let Some(deadline) = keep(woken, asked, || commit(consumer)) else { return };
    while !commit(consumer) && Instant::now() < deadline {
        std::thread::sleep(LAST_TRY_EVERY);
    }
}

/// Commits what is due until the last commit is asked for, and returns that one's deadline; `None` when the source is gone.
/// `commit` says whether nothing is due any more.
fn keep(woken: &Receiver<()>, asked: &Receiver<Instant>, mut commit: impl FnMut() -> bool) -> Option<Instant> {
    loop {
        select! {
            recv(asked) -> deadline => return deadline.ok(),
            // The last commit may have been asked for before the source went, and both be ready here.
            recv(woken) -> word => if word.is_err() { return asked.recv().ok() },
        }
        loop {
            match asked.recv_timeout(EVERY) {
                Err(RecvTimeoutError::Timeout) if commit() => break,
                Err(RecvTimeoutError::Timeout) => {}
                Ok(deadline) => return Some(deadline),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }
}

/// Whether nothing is due any more. Blocks: without a coordinator for `session.timeout.ms`, else until it answers or
/// `socket.timeout.ms` is over.
fn commit(consumer: &BaseConsumer<Group>) -> bool {
    let group = consumer.context();
    let due = group.take_due();
    if due.is_empty() {
        return true;
    }
    match consumer.commit(&group.list(&due), CommitMode::Sync) {
        Ok(()) => true,
        Err(error) => {
            // As a rule a rebalance under way.
            tracing::debug!(%error, "positions are not committed, trying again");
            group.not_committed(&due);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_never_go_backwards_and_only_held_partitions_have_one() {
        let mut commits = Commits::default();
        commits.hold(Partition(0));
        for (partition, position) in [(0, 5), (0, 3), (1, 7)] {
            commits.confirm(Partition(partition), Offset(position));
        }
        assert_eq!(commits.take_due(|_| true), [(Partition(0), Offset(5))]);
        assert_eq!(commits.take_due(|_| true), []);
    }

    #[test]
    fn what_the_group_has_already_is_not_due() {
        let mut commits = Commits::default();
        commits.hold(Partition(0));
        commits.stands(Partition(0), Offset(5));
        commits.confirm(Partition(0), Offset(5));
        assert!(!commits.has_due());
        commits.confirm(Partition(0), Offset(6));
        assert!(commits.has_due());
    }

    #[test]
    fn a_commit_that_failed_is_due_again() {
        let mut commits = Commits::default();
        commits.hold(Partition(0));
        commits.confirm(Partition(0), Offset(5));
        let sent = commits.take_due(|_| true);
        assert!(!commits.has_due());
        commits.failed(&sent);
        assert!(commits.has_due());
        assert_eq!(commits.take_due(|_| true), sent);
    }

    #[test]
    fn a_commit_is_tried_until_nothing_is_due_and_then_not_again() {
        let ((due, woken), (last, asked)) = (bounded(1), bounded(1));
        due.send(()).unwrap();
        let mut tries = 0;
        let deadline = Instant::now();
        let ended = keep(&woken, &asked, || {
            tries += 1;
            if tries == 2 {
                last.send(deadline).unwrap();
            }
            tries == 2
        });
        assert_eq!((ended, tries), (Some(deadline), 2));
    }

    #[test]
    fn the_last_commit_is_made_although_the_source_has_gone_since() {
        // Of two channels that are ready either may be looked at first.
        for _ in 0..100 {
            let ((due, woken), (last, asked)) = (bounded(1), bounded(1));
            let deadline = Instant::now();
            last.send(deadline).unwrap();
            drop((due, last));
            assert_eq!(keep(&woken, &asked, || true), Some(deadline));
        }
    }

    #[test]
    fn nobody_waits_for_a_source_that_is_gone() {
        let ((due, woken), (last, asked)) = (bounded(1), bounded(1));
        due.send(()).unwrap();
        drop((due, last));
        assert_eq!(keep(&woken, &asked, || panic!("nothing is to be committed")), None);
    }
}
