//! How old the oldest record is that librdkafka has and no broker has answered for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Records are told apart by when they were handed over, this finely.
const SLOT: Duration = Duration::from_millis(125);
/// So many slots go round: records live for less than 16 s as a rule, and older ones are taken for younger ones.
const SLOTS: usize = 128;

/// The records without an answer, by when they were handed over. Shared by those that append and the callbacks.
pub(super) struct Unanswered {
    epoch: Instant,
    slots: [AtomicUsize; SLOTS],
}

/// One record; answered when it is dropped.
pub(super) struct Handed {
    to: Arc<Unanswered>,
    slot: usize,
}

impl Unanswered {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { epoch: Instant::now(), slots: [const { AtomicUsize::new(0) }; SLOTS] })
    }

    /// A record is handed over now.
    pub fn hand(self: &Arc<Self>, now: Instant) -> Handed {
        let slot = self.slot(now) % SLOTS;
        self.slots[slot].fetch_add(1, Ordering::Relaxed);
        Handed { to: self.clone(), slot }
    }

    fn slot(&self, now: Instant) -> usize {
        let slot = now.saturating_duration_since(self.epoch).as_millis() / SLOT.as_millis();
        usize::try_from(slot).unwrap_or(usize::MAX)
    }

    /// The age of the oldest; zero where all are answered.
    pub fn oldest(&self, now: Instant) -> Duration {
        let present = self.slot(now);
        let oldest = (0..SLOTS).rev().find(|age| {
            present.checked_sub(*age).is_some_and(|slot| self.slots[slot % SLOTS].load(Ordering::Relaxed) > 0)
        });
        SLOT.saturating_mul(oldest.and_then(|age| u32::try_from(age).ok()).unwrap_or(0))
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        self.to.slots[self.slot].fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_record_counts_until_it_is_answered() {
        let unanswered = Unanswered::new();
        let at = |millis| unanswered.epoch + Duration::from_millis(millis);
        assert_eq!(unanswered.oldest(at(50)), Duration::ZERO);
        let first = unanswered.hand(at(0));
        let second = unanswered.hand(at(1000));
        assert_eq!(unanswered.oldest(at(2000)), Duration::from_secs(2));
        drop(first);
        assert_eq!(unanswered.oldest(at(2000)), Duration::from_secs(1));
        drop(second);
        assert_eq!(unanswered.oldest(at(2000)), Duration::ZERO);
    }
}
