//! How far records are counted, by partition: written by the aggregator, awaited by those who want to read what they have
//! written.
//!
//! While somebody waits the aggregator flushes early (`aggregate::early`), where that lets one of them go on.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::position::{Offset, Partition, Position};

/// Shared by the aggregator and the admin endpoint. Its lock is held for moments and over no await.
#[derive(Clone, Default)]
pub struct Counted(Arc<Shared>);

#[derive(Default)]
struct Shared {
    board: Mutex<Board>,
    /// The board has moved.
    moved: Notify,
    /// Somebody waits.
    wanted: Notify,
}

struct Board {
    /// Since when none has been assigned, since the start of the aggregator; `None` once one was.
    starting: Option<Instant>,
    /// Everything before it is counted durably; `None` where that is not known yet.
    reached: BTreeMap<Partition, Option<Offset>>,
    /// What those who wait want, by a number for each.
    wanted: BTreeMap<u64, Vec<Position>>,
    next: u64,
}

impl Default for Board {
    fn default() -> Self {
        Self { starting: Some(Instant::now()), reached: BTreeMap::new(), wanted: BTreeMap::new(), next: 0 }
    }
}

impl Board {
    /// How long partitions may take to be assigned after a start: a consumer group waits for its other members first, some
    /// seconds each time.
    const START: Duration = Duration::from_secs(30);

    fn is_starting(&self) -> bool {
        self.starting.is_some_and(|since| since.elapsed() < Self::START)
    }

    /// Whether these are counted. The error is a partition that is counted elsewhere.
    fn holds(&self, positions: &[Position]) -> Result<bool, Partition> {
        if self.is_starting() {
            return Ok(false);
        }
        let mut all = true;
        for Position { partition, offset } in positions {
            all &= self.reached.get(partition).ok_or(*partition)?.is_some_and(|reached| reached > *offset);
        }
        Ok(all)
    }
}

impl Counted {
    /// The partition is to be counted here; how far it is turns out in a moment.
    pub fn assigned(&self, partition: Partition) {
        let mut board = self.0.board.lock();
        board.starting = None;
        // What was known of it is of an earlier assignment, and its log may have lost its end since.
        board.reached.insert(partition, None);
    }

    /// Everything before `position` is counted, and durable.
    pub fn reached(&self, partition: Partition, position: Offset) {
        let mut board = self.0.board.lock();
        board.starting = None;
        board.reached.insert(partition, Some(position));
        drop(board);
        self.0.moved.notify_waiters();
    }

    /// The partition is not counted here any more.
    pub fn forget(&self, partition: Partition) {
        self.0.board.lock().reached.remove(&partition);
        self.0.moved.notify_waiters();
    }

    /// None is, for the time being: the aggregator starts.
    pub fn forget_all(&self) {
        let mut board = self.0.board.lock();
        board.starting = Some(Instant::now());
        board.reached.clear();
    }

    /// How far the partition is counted: the next record to count. `None` where it is not counted here, or that is not known yet.
    pub fn position(&self, partition: Partition) -> Option<Offset> {
        self.0.board.lock().reached.get(&partition).copied().flatten()
    }

    /// Resolves while somebody waits.
    pub async fn wanted(&self) {
        loop {
            let wanted = self.0.wanted.notified();
            if !self.0.board.lock().wanted.is_empty() {
                return;
            }
            wanted.await;
        }
    }

    /// Whether somebody waits for a record that is read and not durable yet: read is what is before `cursor` says.
    pub fn waits_for_flush(&self, cursor: impl Fn(Partition) -> Option<Offset>) -> bool {
        let board = self.0.board.lock();
        board.wanted.values().flatten().any(|Position { partition, offset }| {
            board.reached.get(partition).copied().flatten().is_some_and(|reached| reached <= *offset)
                && cursor(*partition).is_some_and(|cursor| cursor > *offset)
        })
    }

    /// Waits until the records at these positions are counted. A partition that is not counted here may come (back) within
    /// `absence`: in a rebalance, for one.
    ///
    /// # Errors
    /// A partition that is not counted here.
    pub async fn wait(&self, positions: &[Position], absence: Duration) -> Result<(), Partition> {
        let mut waiting = None;
        let mut absent_since = None;
        loop {
            let moved = self.0.moved.notified();
            tokio::pin!(moved);
            // From here on no move is missed.
            moved.as_mut().enable();
            let (holds, is_starting) = {
                let board = self.0.board.lock();
                (board.holds(positions), board.is_starting())
            };
            let absent = match holds {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    absent_since = None;
                    None
                }
                Err(partition) => {
                    let since = *absent_since.get_or_insert_with(Instant::now);
                    let left = absence.saturating_sub(since.elapsed());
                    if left.is_zero() {
                        return Err(partition);
                    }
                    Some(left)
                }
            };
            waiting.get_or_insert_with(|| Waiting::enter(self.0.clone(), positions));
            // Only time ends a start without an assignment.
            match absent.or_else(|| is_starting.then_some(Board::START / 30)) {
                Some(pause) => _ = tokio::time::timeout(pause, moved).await,
                None => moved.await,
            }
        }
    }
}

/// Somebody waits, until it is dropped.
struct Waiting {
    shared: Arc<Shared>,
    number: u64,
}

impl Waiting {
    fn enter(shared: Arc<Shared>, positions: &[Position]) -> Self {
        let number = {
            let mut board = shared.board.lock();
            board.next += 1;
            let number = board.next;
            board.wanted.insert(number, positions.to_vec());
            number
        };
        // The aggregator alone listens.
        shared.wanted.notify_one();
        Self { shared, number }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shared.board.lock().wanted.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::{FutureExt, poll};

    use super::*;

    const ABSENCE: Duration = Duration::from_secs(30);

    fn at(partition: i32, offset: u64) -> Position {
        Position { partition: Partition(partition), offset: Offset(offset) }
    }

    #[tokio::test]
    async fn who_waits_goes_on_when_all_its_records_are_counted_and_no_sooner() {
        let counted = Counted::default();
        let positions = [at(0, 4), at(1, 9)];
        let mut waiting = Box::pin(counted.wait(&positions, ABSENCE));
        assert!(poll!(&mut waiting).is_pending(), "nothing is assigned yet");
        // One after the other is begun.
        counted.assigned(Partition(0));
        counted.assigned(Partition(1));
        counted.reached(Partition(0), Offset(4));
        assert!(poll!(&mut waiting).is_pending(), "partition 1 is not known yet");
        counted.reached(Partition(1), Offset(10));
        assert!(poll!(&mut waiting).is_pending(), "record 4 is the next to be counted");
        counted.reached(Partition(0), Offset(5));
        assert_eq!(waiting.await, Ok(()));
        assert_eq!(counted.wait(&positions, ABSENCE).now_or_never(), Some(Ok(())), "nobody waits for what is there");
        assert_eq!(counted.wait(&[at(2, 0)], Duration::ZERO).await, Err(Partition(2)));
    }

    #[tokio::test]
    async fn a_partition_that_goes_away_ends_the_wait() {
        let counted = Counted::default();
        counted.reached(Partition(0), Offset(0));
        counted.reached(Partition(1), Offset(0));
        let positions = [at(1, 0)];
        let mut waiting = Box::pin(counted.wait(&positions, Duration::ZERO));
        assert!(poll!(&mut waiting).is_pending());
        counted.forget(Partition(1));
        assert_eq!(waiting.await, Err(Partition(1)));
    }

    #[tokio::test]
    async fn a_partition_that_comes_back_from_a_rebalance_is_waited_for() {
        let counted = Counted::default();
        counted.reached(Partition(0), Offset(4));
        // An eager rebalance takes all away.
        counted.forget(Partition(0));
        let positions = [at(0, 4)];
        let mut waiting = Box::pin(counted.wait(&positions, ABSENCE));
        assert!(poll!(&mut waiting).is_pending());
        counted.assigned(Partition(0));
        counted.reached(Partition(0), Offset(5));
        assert_eq!(waiting.await, Ok(()));
        counted.forget(Partition(0));
        let none = tokio::time::timeout(ABSENCE, counted.wait(&positions, Duration::from_millis(10))).await;
        assert_eq!(none, Ok(Err(Partition(0))), "nothing is assigned any more");
    }

    #[tokio::test]
    async fn a_process_that_gets_no_partition_says_so_some_time_after_its_start() {
        let counted = Counted::default();
        let positions = [at(0, 4)];
        let ask = || tokio::time::timeout(Duration::from_millis(50), counted.wait(&positions, Duration::ZERO));
        assert!(ask().await.is_err(), "it may be assigned in a moment");
        counted.0.board.lock().starting = Instant::now().checked_sub(Board::START);
        assert_eq!(ask().await, Ok(Err(Partition(0))));
    }

    #[tokio::test]
    async fn what_an_earlier_assignment_had_reached_promises_nothing() {
        let counted = Counted::default();
        counted.reached(Partition(0), Offset(1000));
        counted.assigned(Partition(0));
        assert_eq!(counted.position(Partition(0)), None);
        assert!(counted.wait(&[at(0, 600)], ABSENCE).now_or_never().is_none());
    }

    #[tokio::test]
    async fn an_early_flush_is_wanted_only_where_it_lets_somebody_go_on() {
        let counted = Counted::default();
        counted.reached(Partition(0), Offset(3));
        let cursor = |offset| move |partition: Partition| (partition == Partition(0)).then_some(Offset(offset));
        assert!(counted.wanted().now_or_never().is_none() && !counted.waits_for_flush(cursor(10)));
        let positions = [at(0, 5)];
        let mut waiting = Box::pin(counted.wait(&positions, ABSENCE));
        assert!(poll!(&mut waiting).is_pending());
        tokio::time::timeout(Duration::from_secs(30), counted.wanted()).await.expect("somebody waits");
        assert!(!counted.waits_for_flush(cursor(5)), "record 5 is not read yet");
        assert!(counted.waits_for_flush(cursor(6)));
        counted.reached(Partition(0), Offset(6));
        assert!(!counted.waits_for_flush(cursor(6)), "it is durable");
        drop(waiting);
        assert!(counted.wanted().now_or_never().is_none(), "who has gone waits no more");
    }
}
