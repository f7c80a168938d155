//! Objects of ours that are looked at again: a store whose create-only PUTs are not atomic, in spite of its race, lets the
//! late PUT of a worker that stood still overwrite what its successor has put.
//!
//! Each object is asked for its tag three times: soon, and when a PUT that was under way should have ended by any store's
//! measure. What is overwritten later, `archive verify` finds: the objects around it no longer chain.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use object_store::path::Path;

/// How old an object is when it is looked at.
const AGES: [Duration; 3] = [Duration::from_secs(5), Duration::from_secs(60), Duration::from_secs(600)];
/// Objects of a partition that are watched; of more, the oldest ones are looked at no more.
const MOST: usize = 128;

/// What was put.
#[derive(Debug, Clone)]
pub(super) struct Watched {
    pub(super) key: Path,
    pub(super) tag: String,
    pub(super) bytes: u64,
    pub(super) crc32c: u32,
    pub(super) at: Instant,
}

/// The recent objects of one partition.
#[derive(Debug, Default)]
pub(super) struct Watch(VecDeque<(Watched, usize)>);

impl Watch {
    pub(super) fn put(&mut self, object: Watched) {
        self.0.push_back((object, 0));
        if self.0.len() > MOST {
            self.0.pop_front();
        }
    }

    /// Those to look at now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Watched> {
        let mut due = Vec::new();
        for (object, looked) in &mut self.0 {
            let age = now.saturating_duration_since(object.at);
            let passed = AGES.iter().filter(|due| **due <= age).count();
            if passed > *looked {
                *looked = passed;
                due.push(object.clone());
            }
        }
        self.0.retain(|(_, looked)| *looked < AGES.len());
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_object_is_looked_at_three_times_and_then_forgotten() {
        let (mut watch, at) = (Watch::default(), Instant::now());
        let object = |tag: &str| Watched { key: Path::from(tag), tag: tag.into(), bytes: 1, crc32c: 1, at };
        watch.put(object("1"));
        let times = |watch: &mut Watch, second| watch.due(at + Duration::from_secs(second)).len();
        let found: Vec<usize> = [0, 5, 6, 59, 60, 599, 600, 900].map(|second| times(&mut watch, second)).into();
        assert_eq!(found, [0, 1, 0, 0, 1, 0, 1, 0]);
        (0..2 * MOST).for_each(|_| watch.put(object("3")));
        assert_eq!(times(&mut watch, 900), MOST);
        assert_eq!(times(&mut watch, 901), 0);
    }
}
