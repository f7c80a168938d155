//! The first rows in an order by a number: of however many there are, so many are kept.

use std::{cmp::Ordering, collections::BinaryHeap, sync::Arc};

use super::{MAX_BYTES, Place, groups::Group};
use crate::{measure::Sum, position::Timestamp};

/// Where a row stands.
#[derive(Debug, PartialEq, Eq)]
pub struct Rank {
    pub number: Option<Sum>,
    pub descending: bool,
    pub window_start: Timestamp,
    pub group: Arc<Group>,
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_number = match (&self.number, &other.number) {
            (Some(a), Some(b)) if self.descending => b.cmp(a),
            (Some(a), Some(b)) => a.cmp(b),
            (a, b) => a.is_none().cmp(&b.is_none()),
        };
        by_number.then(self.window_start.cmp(&other.window_start)).then_with(|| self.group.cmp(&other.group))
    }
}

impl Rank {
    pub fn place(&self) -> Place {
        Place { number: self.number, window_start: self.window_start, group: self.group.name() }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Row {
    rank: Rank,
    written: Vec<u8>,
}

impl PartialOrd for Row {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Row {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank.cmp(&other.rank)
    }
}

/// The first ones so far.
pub struct Ranked {
    limit: usize,
    /// The last of them on top.
    rows: BinaryHeap<Row>,
    /// Of what is written.
    bytes: usize,
    /// Others were left out.
    pub more: bool,
}

impl Ranked {
    /// What a row takes beside what is written of it, which has its group once more.
    const OF_A_ROW: usize = 256;

    pub fn new(limit: usize) -> Self {
        Self { limit, rows: BinaryHeap::new(), bytes: 0, more: false }
    }

    pub fn add(&mut self, rank: Rank, write: impl FnOnce(&Rank) -> Vec<u8>) {
        if self.rows.len() == self.limit && self.rows.peek().is_some_and(|last| last.rank < rank) {
            self.more = true;
            return;
        }
        let written = write(&rank);
        self.bytes += written.len();
        self.rows.push(Row { rank, written });
        while self.rows.len() > self.limit || (self.bytes > MAX_BYTES && self.rows.len() > 1) {
            self.bytes -= self.rows.pop().map_or(0, |last| last.written.len());
            self.more = true;
        }
    }

    /// About the memory that they take.
    pub fn size(&self) -> usize {
        2 * self.bytes + self.rows.len() * Self::OF_A_ROW
    }

    /// In order.
    pub fn into_rows(self) -> impl Iterator<Item = (Rank, Vec<u8>)> {
        self.rows.into_sorted_vec().into_iter().map(|row| (row.rank, row.written))
    }
}
