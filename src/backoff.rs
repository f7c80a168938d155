//! The pause before another attempt, one for the whole house: doubled with each failure, bounded, and spread by ±20 %, so that
//! whatever failed together does not return together.

use std::time::Duration;

/// How the pauses of one thing that may fail grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
}

impl Backoff {
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest }
    }

    /// The pause after this number of failures in a row, from 1 on.
    pub fn pause(self, failures: u32) -> Duration {
        let factor = 2u32.saturating_pow(failures.saturating_sub(1).min(16));
        spread(self.first.saturating_mul(factor).min(self.longest))
    }

    /// The pause where another attempt alone will not help.
    pub fn longest(self) -> Duration {
        spread(self.longest)
    }
}

/// What spreads a time that many share: 1 ± 20 %.
pub fn jitter() -> f64 {
    0.8 + 0.4 * fastrand::f64()
}

fn spread(time: Duration) -> Duration {
    time.mul_f64(jitter())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_are_spread() {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for (failures, millis) in [(0, 100), (1, 100), (2, 200), (3, 400), (4, 800), (5, 1000), (u32::MAX, 1000)] {
            let exact = Duration::from_millis(millis);
            let pauses: Vec<_> = (0..50).map(|_| backoff.pause(failures)).collect();
            assert!(
                pauses.iter().all(|pause| (exact.mul_f64(0.79)..exact.mul_f64(1.21)).contains(pause)),
                "{pauses:?}"
            );
            assert!(pauses.iter().any(|pause| *pause != pauses[0]), "each the same");
        }
    }
}
