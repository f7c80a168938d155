//! What is asked of an aggregate. A store reads the buckets of the query's range, in the order of their windows, and feeds them
//! to a [`Merger`], which makes rows of them: it drops the groups that are not meant, cuts the others to the fields that are
//! asked for, and merges over partitions, generations, the windows of a step, and what became one group.

mod groups;
mod merge;
mod ranked;
mod rows;

use super::Definition;
use crate::{config::AggregateConfig, measure::Sum, position::Timestamp, window::Windows};

pub use groups::GroupName;
pub use merge::{Bucket, Merger, Wanted};
pub use rows::{Format, Rows};

/// The bytes of rows in one answer; what goes beyond is left out, and the answer says so.
pub const MAX_BYTES: usize = 32 << 20;

pub const DEFAULT_LIMIT: usize = 10_000;

#[derive(Debug, Clone)]
pub struct Query {
    pub aggregate: String,
    /// That it was made for: `group_by`, conditions and measures are indexes into what it has.
    pub definition: Definition,
    /// The first window's start.
    pub from: Timestamp,
    /// That of the first window that is not asked for.
    pub to: Timestamp,
    pub step: Step,
    /// Indexes into the aggregate's `group_by`, in the order of the answer.
    pub group_by: Vec<usize>,
    /// All have to hold.
    pub conditions: Vec<Condition>,
    pub order: Order,
    pub limit: usize,
    /// The last row of the answer before.
    pub after: Option<Place>,
    pub format: Format,
    pub bounds: Bounds,
}

impl Query {
    /// All groups of an aggregate, window by window.
    pub fn of(aggregate: &AggregateConfig, from: Timestamp, to: Timestamp) -> Self {
        Self {
            aggregate: aggregate.name.clone(),
            definition: Definition::of(aggregate),
            from,
            to,
            step: Step::Of(Windows::of(aggregate)),
            group_by: (0..aggregate.group_by.len()).collect(),
            conditions: Vec::new(),
            order: Order::Window,
            limit: DEFAULT_LIMIT,
            after: None,
            format: Format::Json,
            bounds: Bounds::default(),
        }
    }
}

/// What becomes one row.
#[derive(Debug, Clone)]
pub enum Step {
    Of(Windows),
    /// The whole range.
    Whole,
}

/// One of a group's fields has one of these values, as text: a string by its characters, any other value by its JSON text, a
/// missing field as `null`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Index into the aggregate's `group_by`.
    pub field: usize,
    pub values: Vec<String>,
}

/// The order of the rows. Those that are equal in it stand by window, then by group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Window,
    /// Rows that have no such number stand last.
    By {
        number: Ordered,
        descending: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordered {
    Count,
    /// Index into the outputs of the aggregate's plan.
    Measure(usize),
}

/// Where a row stands in the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The number that it is ordered by, if it is and has one.
    pub number: Option<Sum>,
    pub window_start: Timestamp,
    pub group: GroupName,
}

/// What one query may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Buckets that are read.
    pub buckets: u64,
    /// Bytes of what was merged and is not yet part of the answer.
    pub bytes: usize,
}

impl Default for Bounds {
    /// Some seconds' reading, and twice the largest answer.
    fn default() -> Self {
        Self { buckets: 2_000_000, bytes: 64 << 20 }
    }
}
