//! Events a second over the last seconds, from what the counters said in each of them.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use serde::Serialize;

/// Looks that are kept, one a second: ten seconds lie between the first and the last.
const LOOKS: usize = 11;

/// What the counters say.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub accepted: u64,
    pub produced: u64,
    pub archived: u64,
    pub aggregated: u64,
}

/// A second, with one digit behind the point.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rates {
    /// Over so many.
    pub seconds: f64,
    pub accepted: f64,
    pub produced: f64,
    pub archived: f64,
    pub aggregated: f64,
}

#[derive(Debug, Default)]
pub struct Looks(VecDeque<(Instant, Counts)>);

impl Looks {
    /// What the counters say at this time.
    pub fn note(&mut self, at: Instant, counts: Counts) {
        if self.0.len() == LOOKS {
            self.0.pop_front();
        }
        self.0.push_back((at, counts));
    }

    /// `None` before there was a second.
    pub fn rates(&self) -> Option<Rates> {
        let ((began, first), (ended, last)) = self.0.front().zip(self.0.back())?;
        let passed = ended.duration_since(*began);
        (passed >= Duration::from_millis(100)).then(|| {
            let rate = |count: fn(&Counts) -> u64| {
                tenths(count(last).saturating_sub(count(first)) as f64 / passed.as_secs_f64())
            };
            Rates {
                seconds: tenths(passed.as_secs_f64()),
                accepted: rate(|counts| counts.accepted),
                produced: rate(|counts| counts.produced),
                archived: rate(|counts| counts.archived),
                aggregated: rate(|counts| counts.aggregated),
            }
        })
    }
}

fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_ten_seconds() {
        let (mut looks, began) = (Looks::default(), Instant::now());
        let note = |looks: &mut Looks, second: u64, accepted| {
            looks.note(began + Duration::from_secs(second), Counts { accepted, archived: second, ..Counts::default() });
        };
        note(&mut looks, 0, 0);
        assert_eq!(looks.rates(), None);
        note(&mut looks, 1, 5);
        let rates = looks.rates().unwrap();
        assert_eq!((rates.seconds, rates.accepted, rates.archived, rates.aggregated), (1.0, 5.0, 1.0, 0.0));
        // A burst is over after ten seconds.
        (2..=11).for_each(|second| note(&mut looks, second, 5));
        let rates = looks.rates().unwrap();
        assert_eq!((rates.seconds, rates.accepted, rates.archived), (10.0, 0.0, 1.0));
        assert_eq!(looks.0.len(), LOOKS);
    }
}
