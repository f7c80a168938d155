//! Whether this process holds every partition of the topic in its group, which stores that are not shared depend on.
//!
//! The number of partitions is heard from the brokers within seconds, but the group hands new partitions out only when
//! a member's own metadata is refreshed. Until then a process that held all holds all that are given out.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Ownership {
    /// How long new partitions may stand without an owner.
    patience: Duration,
    /// Of the topic, as last heard.
    partitions: Option<usize>,
    /// We held all of so many when there came to be more, at this moment.
    outgrown: Option<(usize, Instant)>,
    /// What was announced last.
    told: Option<bool>,
}

impl Ownership {
    pub fn new(patience: Duration) -> Self {
        Self { patience, partitions: None, outgrown: None, told: None }
    }

    /// The topic has so many partitions, and we hold `held` of them.
    pub fn counted(&mut self, partitions: usize, held: usize, now: Instant) {
        let before = self.partitions.replace(partitions);
        if before == Some(held) && partitions > held {
            self.outgrown = Some((held, now));
        }
    }

    pub fn holds_all(&self, held: usize, now: Instant) -> bool {
        let waiting = |(all, since): (usize, Instant)| held >= all && now.duration_since(since) < self.patience;
        self.partitions == Some(held) || self.outgrown.is_some_and(waiting)
    }

    /// It was announced with an assignment.
    pub fn tell(&mut self, held: usize, now: Instant) {
        self.told = Some(self.holds_all(held, now));
    }

    /// Everything that was announced is gone.
    pub fn lost(&mut self) {
        (self.told, self.outgrown) = (None, None);
    }

    /// Whether the announcement is not true any more; it has to be made again then.
    pub fn take_changed(&mut self, held: usize, now: Instant) -> bool {
        let holds_all = self.holds_all(held, now);
        self.told.take_if(|told| *told != holds_all).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Holds all of four partitions, and has said so.
    fn sole(now: Instant) -> Ownership {
        let mut share = Ownership::new(PATIENCE);
        share.counted(4, 4, now);
        share.tell(4, now);
        assert_eq!(share.told, Some(true));
        share
    }

    #[test]
    fn partitions_that_were_added_are_not_taken_for_another_workers() {
        let now = Instant::now();
        let mut share = sole(now);
        share.counted(6, 4, now);
        assert!(!share.take_changed(4, now));
        // The group hands them out.
        share.counted(6, 4, now + PATIENCE / 2);
        assert!(!share.take_changed(6, now + PATIENCE / 2));
        assert!(!share.take_changed(6, now + PATIENCE * 2));
    }

    #[test]
    fn they_are_when_they_stay_away() {
        let now = Instant::now();
        let mut share = sole(now);
        share.counted(6, 4, now);
        share.counted(6, 4, now + PATIENCE);
        assert!(share.take_changed(4, now + PATIENCE) && !share.holds_all(4, now + PATIENCE));
    }

    #[test]
    fn another_worker_is_noticed_at_once_also_while_partitions_are_added() {
        let now = Instant::now();
        let mut share = sole(now);
        assert!(share.take_changed(2, now));
        let mut share = sole(now);
        share.counted(6, 4, now);
        assert!(share.take_changed(3, now));
    }

    #[test]
    fn one_that_held_a_part_never_holds_all_of_a_topic_that_grows() {
        let now = Instant::now();
        let mut share = Ownership::new(PATIENCE);
        share.counted(4, 2, now);
        share.counted(8, 2, now);
        assert!(!share.holds_all(4, now));
    }
}
