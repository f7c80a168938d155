//! What is measured of the records in a bucket: how many they are.
//!
//! Another measure is a field of [`Measures`], and in each store what holds it and how a delta is merged into that: in
//! `embedded/database.rs` and `mongo/buckets.rs`, beside those of `count`.

use serde::Serialize;

use crate::config::AggregateConfig;

/// What was measured of some records. A row of a query has these fields as they stand here.
///
/// A measure is of a fixed size: the fold adds it up in place, and bounds its memory by the number of buckets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Measures {
    /// The number of records.
    pub count: u64,
}

impl Measures {
    /// The fields of an event that an aggregate measures; a count reads none.
    pub fn fields(_: &AggregateConfig) -> impl Iterator<Item = &str> {
        std::iter::empty()
    }

    /// Of one record, whose values of [`Measures::fields`] are `values`: JSON texts, in the same order.
    #[inline]
    pub fn of_record<'a>(_values: impl Iterator<Item = Option<&'a str>>) -> Self {
        Self { count: 1 }
    }

    /// Adds what was measured of other records.
    #[inline]
    pub fn merge(&mut self, other: Self) {
        self.count += other.count;
    }
}
