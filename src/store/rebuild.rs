//! What a store knows of the rebuild of an aggregate: its shadow is counted beside it, from the archive and then live, and
//! takes its place with one atomic write when it is complete.

use std::{collections::BTreeMap, fmt};

use super::Answer;
use crate::position::{Offset, Partition, Timestamp};

/// Which windows are rebuilt, by their starts. The others keep the buckets that they have.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub from: Option<Timestamp>,
    /// The first one that is not.
    pub to: Option<Timestamp>,
}

impl Range {
    pub fn has(&self, window_start: Timestamp) -> bool {
        self.from.is_none_or(|from| from <= window_start) && self.to.is_none_or(|to| window_start < to)
    }
}

/// One of all rebuilds that there ever were in a store: what is said of an earlier one changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RebuildId {
    pub aggregate: String,
    /// Names the shadow.
    pub(super) shadow: String,
}

/// How far a shadow has the records of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Those below, as far as the archive has them; live counting leaves it alone.
    History(Offset),
    /// Those below; live counting begins there.
    Catching(Offset),
    /// Those that the aggregate itself has: at least those below. Where several processes count, they begin there once more when
    /// the shadow has taken its place, since one of them may have counted in what it replaces a moment longer.
    Live(Offset),
}

impl Default for Progress {
    fn default() -> Self {
        Self::Live(Offset(0))
    }
}

impl Progress {
    /// Whether live counting adds the record at this offset to the shadow.
    #[inline]
    pub fn counts(self, offset: Offset) -> bool {
        match self {
            Self::History(_) => false,
            Self::Catching(from) => from <= offset,
            Self::Live(_) => true,
        }
    }

    /// Nothing that it is to add lies below.
    pub fn counts_all_from(self, at: Offset) -> bool {
        !matches!(self, Self::Catching(from) if from < at)
    }

    /// As the stores keep it.
    pub(crate) fn parts(self) -> (&'static str, Offset) {
        match self {
            Self::History(cursor) => ("history", cursor),
            Self::Catching(from) => ("catching", from),
            Self::Live(at) => ("live", at),
        }
    }

    pub(super) fn of_parts(state: &str, position: i64) -> Self {
        let position = Offset(position.unsigned_abs());
        match state {
            "catching" => Self::Catching(position),
            "live" => Self::Live(position),
            _ => Self::History(position),
        }
    }
}

/// As it is shown.
impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.parts().0)
    }
}

/// A partition's part of a rebuild.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    pub progress: Progress,
    /// Records that were read from the archive.
    pub records: u64,
}

/// A rebuild that is under way, or the last one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuild {
    pub id: RebuildId,
    pub range: Range,
    pub started: Timestamp,
    /// When the shadow took the aggregate's place.
    pub finished: Option<Timestamp>,
    /// Those of the configured topic and generation; one that is not here is counted live from its start.
    pub partitions: BTreeMap<Partition, Reached>,
}

impl Rebuild {
    /// All that there is, is counted by the shadow, too.
    pub fn is_complete(&self) -> bool {
        self.behind() == 0
    }

    /// Partitions of which the shadow has not all that is counted.
    pub fn behind(&self) -> usize {
        self.partitions.values().filter(|reached| !matches!(reached.progress, Progress::Live(_))).count()
    }

    /// Records that were counted from the archive.
    pub fn records(&self) -> u64 {
        self.partitions.values().map(|reached| reached.records).sum()
    }
}

impl Rebuild {
    /// How far its partitions are once it has taken the aggregate's place, where `noted` is what it was before the first bucket was
    /// copied. Nothing where one is not live, or has come since.
    pub(super) fn counted_again(&self, noted: &Self) -> Option<Vec<(Partition, Reached)>> {
        let again = self.partitions.iter().map(|(partition, reached)| {
            let (Progress::Live(at), Progress::Live(noted)) =
                (reached.progress, noted.partitions.get(partition)?.progress)
            else {
                return None;
            };
            // Where all windows are rebuilt the shadow has what is counted anywhere.
            let progress = match self.range == Range::default() {
                true => reached.progress,
                false => Progress::Catching(at.min(noted)),
            };
            Some((*partition, Reached { progress, ..*reached }))
        });
        again.collect()
    }
}

/// A rebuild that is asked for, by the definition that is configured.
#[derive(Debug, Clone)]
pub struct NewRebuild {
    pub aggregate: String,
    pub range: Range,
    /// Those that the archive has; those that the store has counted come to them.
    pub partitions: Vec<Partition>,
    pub now: Timestamp,
}

/// What came of the end of a rebuild.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swapped {
    /// The shadow has taken the aggregate's place. [`super::Store::prepare`] gives the new list.
    Yes,
    /// A partition is not live.
    NotYet,
    /// It is over already: swapped, cancelled, or replaced.
    Over,
}

/// What of an aggregate is not rebuilt, beside windows outside the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Both versions have the same windows and groups.
    pub fits: bool,
    /// There are buckets of other generations of the topic, or of other topics.
    pub of_others: bool,
}

impl Range {
    /// The windows that are not rebuilt, from `at` on: from the first of these to the second; all of them where `of_others` are among
    /// them.
    pub(super) fn kept_from(self, at: Timestamp, of_others: bool) -> Option<(Timestamp, Timestamp)> {
        // No window begins at the end of time.
        let end = Timestamp(i64::MAX);
        if of_others {
            return (at < end).then_some((at, end));
        }
        if let Some(from) = self.from.filter(|from| at < *from) {
            return Some((at, from));
        }
        let to = self.to?.max(at);
        (to < end).then_some((to, end))
    }
}

/// The rebuilds of a store. Each call takes effect as a whole or not at all, and may be repeated.
pub trait Rebuilds: Send + Sync {
    /// Of each of these aggregates the one that is under way, or that was finished last.
    fn find_all<'a>(&'a self, aggregates: &'a [String]) -> Answer<'a, Vec<Rebuild>>;

    /// That of one.
    fn find<'a>(&'a self, aggregate: &'a str) -> Answer<'a, Option<Rebuild>> {
        Box::pin(async move { Ok(self.find_all(&[aggregate.to_owned()]).await?.pop()) })
    }

    /// Begins one, unless one of the same definition is under way, which is then given. One of another definition is cancelled:
    /// the configuration has changed since.
    fn begin<'a>(&'a self, wanted: &'a NewRebuild) -> Answer<'a, Rebuild>;

    /// What of the aggregate is not rebuilt.
    fn kept<'a>(&'a self, aggregate: &'a str) -> Answer<'a, Kept>;

    /// Notes how far a partition is, once that is durable. Says whether the rebuild is still under way.
    fn reached<'a>(&'a self, id: &'a RebuildId, partition: Partition, reached: Reached) -> Answer<'a, bool>;

    /// After the swap: this partition was counted once more from where it was noted ([`Progress::Live`]), and need not be again.
    fn settled<'a>(&'a self, id: &'a RebuildId, partition: Partition) -> Answer<'a, ()>;

    /// This process counts a partition from `at` on, and of the shadows those alone that [`super::Store::prepare`] gave: the
    /// others have what is below, and no more.
    fn leave_out(&self, partition: Partition, at: Offset) -> Answer<'_, ()>;

    /// Copies some buckets of what is not rebuilt to the shadow, those of windows from `from` on, where they fit: of each bucket the one
    /// that was counted further stays. Says from where on it goes on; nothing where it is over.
    fn keep<'a>(&'a self, id: &'a RebuildId, from: Timestamp) -> Answer<'a, Option<Timestamp>>;

    /// Puts the shadow in the aggregate's place, after all was kept. Of what is counted meanwhile in windows that are not rebuilt nothing is
    /// copied: their partitions are counted once more ([`Progress::Catching`]) from where `noted` has them, which was read
    /// before the first bucket was copied.
    fn swap<'a>(&'a self, id: &'a RebuildId, noted: &'a Rebuild, now: Timestamp) -> Answer<'a, Swapped>;

    /// Ends one without a swap. Says whether one was under way.
    fn cancel<'a>(&'a self, aggregate: &'a str, now: Timestamp) -> Answer<'a, bool>;

    /// Removes some of the buckets of what was swapped out or cancelled. Says whether there may be more.
    fn tidy(&self, now: Timestamp) -> Answer<'_, bool>;
}
