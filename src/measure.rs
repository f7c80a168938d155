//! What is measured of the records in a bucket: how many they are, and what an aggregate's `measures` ask for.
//!
//! Everything here can be merged: of records in one order, in another, or in parts, comes the same. (Of the most frequent
//! values, [`top`], that is so within their error.) A [`Plan`] says what an aggregate measures; a [`More`] is what was
//! measured by it, and stands in the stores as bytes.

mod decimal;
mod format;
mod item;
mod top;
mod unique;

use std::borrow::Cow;

use sha2::{Digest, Sha256};
use smallvec::SmallVec;

pub use decimal::{Decimal, Numeric, Sum, compare};
pub use format::Damaged;
pub use item::Item;
pub use top::{Frequent, Top};
pub use unique::{Hashed, RELATIVE_ERROR, Unique};

use crate::{
    config::{AggregateConfig, Function, Measure},
    event,
};
use top::{LONGEST_ITEM, Places};

/// What an aggregate measures beside the number of events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Whose values are read, each once.
    fields: Vec<String>,
    /// Indexes into `fields`: numbers, different values, frequent values.
    numbers: Vec<usize>,
    uniques: Vec<usize>,
    tops: Vec<(usize, Places)>,
    outputs: Vec<Output>,
}

/// A measure of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub name: String,
    kind: Kind,
}

impl Output {
    /// Whether it is no number.
    pub fn is_list(&self) -> bool {
        matches!(self.kind, Kind::Top(..))
    }
}

/// Indexes into the plan's `numbers`, `uniques`, `tops`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sum(usize),
    Min(usize),
    Max(usize),
    Avg(usize),
    Unique(usize),
    Top(usize, u32),
}

impl Plan {
    pub fn new(aggregate: &AggregateConfig) -> Self {
        let (mut plan, mut outputs) = (Self::default(), Vec::new());
        let mut measured: Vec<_> = aggregate.measures.iter().enumerate().collect();
        // What stands in the stores is in this order, whatever the order in the configuration is.
        measured.sort_by_key(|(_, measure)| measure.identity());
        for (place, measure) in measured {
            let Measure::Of(of) = measure else { continue };
            let field = index_of(&mut plan.fields, &of.field);
            let kind = match of.function {
                Function::Sum => Kind::Sum(index_of(&mut plan.numbers, &field)),
                Function::Min => Kind::Min(index_of(&mut plan.numbers, &field)),
                Function::Max => Kind::Max(index_of(&mut plan.numbers, &field)),
                Function::Avg => Kind::Avg(index_of(&mut plan.numbers, &field)),
                Function::Unique => Kind::Unique(index_of(&mut plan.uniques, &field)),
                Function::Top(k) => Kind::Top(index_of(&mut plan.tops, &(field, Places::of(k))), k),
            };
            outputs.push((place, Output { name: measure.to_string(), kind }));
        }
        outputs.sort_by_key(|(place, _)| *place);
        plan.outputs = outputs.into_iter().map(|(_, output)| output).collect();
        plan
    }

    /// Whether only the number of events is measured.
    pub fn is_empty(&self) -> bool {
        self.outputs.is_empty()
    }

    /// The fields of an event whose values are measured: what [`Measures::add`] is given, in this order.
    pub fn fields(&self) -> &[String] {
        &self.fields
    }

    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// Whether numbers are measured, so that some may not be exact.
    pub fn has_numbers(&self) -> bool {
        !self.numbers.is_empty()
    }
}

/// The largest error of a count among the `k` most frequent values, as a share of all values.
pub fn error_of_top(k: u32) -> f64 {
    Places::of(k).epsilon()
}

fn index_of<T: PartialEq + Clone>(known: &mut Vec<T>, wanted: &T) -> usize {
    known.iter().position(|one| one == wanted).unwrap_or_else(|| {
        known.push(wanted.clone());
        known.len() - 1
    })
}

/// What was measured of some records.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measures {
    /// How many they are.
    pub count: u64,
    /// What else; nothing where the plan has nothing.
    pub more: Option<Box<More>>,
}

impl Measures {
    /// Of so many records, by a plan that only counts.
    pub fn of_count(count: u64) -> Self {
        Self { count, more: None }
    }

    /// Adds one record. `value` gives the JSON text of each of the plan's fields.
    pub fn add<'v>(&mut self, plan: &Plan, value: impl Fn(usize) -> Option<&'v str>) {
        self.add_values(plan, &value);
    }

    /// The same of values that others may have looked at. Returns by how many bytes it grew ([`Measures::size`]).
    #[inline]
    pub fn add_values<'v>(&mut self, plan: &Plan, values: &impl Values<'v>) -> isize {
        self.count += 1;
        if plan.is_empty() {
            return 0;
        }
        match &mut self.more {
            Some(more) => more.add(plan, values),
            none => {
                let more = none.insert(Box::new(More::new(plan)));
                more.add(plan, values);
                more.size() as isize
            }
        }
    }

    /// Adds what was measured of other records by the same plan.
    pub fn merge(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        match (&mut self.more, other.more) {
            (Some(own), Some(other)) => own.merge(&other),
            (own @ None, other) => *own = other,
            (Some(_), None) => {}
        }
    }

    /// About the memory that they take beside themselves.
    pub fn size(&self) -> usize {
        self.more.as_ref().map_or(0, |more| more.size())
    }
}

/// What an event has in a plan's fields.
pub trait Values<'v> {
    /// The JSON text of a field.
    fn json(&self, field: usize) -> Option<&'v str>;

    /// What it is to measures of numbers.
    fn number(&self, field: usize) -> Numeric {
        present(self.json(field)).map_or(Numeric::No, Numeric::read)
    }

    /// And to those of different values.
    fn hashed(&self, field: usize) -> Option<Hashed> {
        present(self.json(field)).map(|json| Hashed::from(&*normal(json)))
    }

    /// And to those of frequent ones.
    fn item(&self, field: usize) -> Option<Item> {
        present(self.json(field)).map(item)
    }
}

impl<'v, F: Fn(usize) -> Option<&'v str>> Values<'v> for F {
    fn json(&self, field: usize) -> Option<&'v str> {
        self(field)
    }
}

/// null is as good as absent.
fn present(json: Option<&str>) -> Option<&str> {
    json.filter(|json| *json != "null")
}

/// What was measured beside the number of records.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct More {
    /// Numbers that are in no measure: too large, or of too many places. One a field and record.
    pub inexact: u64,
    // One of each is the usual, and is found where all of it is.
    numbers: SmallVec<[Number; 1]>,
    uniques: SmallVec<[Unique; 1]>,
    tops: SmallVec<[Top; 1]>,
}

/// The numbers of one field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Number {
    count: u64,
    sum: Sum,
    min: Decimal,
    max: Decimal,
}

impl Number {
    fn add(&mut self, number: Decimal) {
        if self.count == 0 {
            (self.min, self.max) = (number, number);
        }
        self.count += 1;
        self.sum.add(number);
        self.min = self.min.min(number);
        self.max = self.max.max(number);
    }

    fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            *self = *other;
            return;
        }
        self.count = self.count.saturating_add(other.count);
        self.sum.merge(other.sum);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }
}

/// A measure in an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Shown {
    /// There was no number.
    Nothing,
    /// A decimal number, exact but for an average's last place.
    Number(Sum),
    /// About so many.
    Count(u64),
    /// No count is further from the true one than the error.
    Top { values: Vec<Frequent>, error: u64 },
}

impl More {
    pub fn new(plan: &Plan) -> Self {
        Self {
            inexact: 0,
            numbers: plan.numbers.iter().map(|_| Number::default()).collect(),
            uniques: plan.uniques.iter().map(|_| Unique::default()).collect(),
            tops: plan.tops.iter().map(|(_, places)| Top::new(*places)).collect(),
        }
    }

    /// Adds one record. Returns by how many bytes it grew.
    pub fn add<'v>(&mut self, plan: &Plan, values: &impl Values<'v>) -> isize {
        for (number, field) in self.numbers.iter_mut().zip(&plan.numbers) {
            match values.number(*field) {
                Numeric::Exact(decimal) => number.add(decimal),
                Numeric::Inexact => self.inexact += 1,
                Numeric::No => {}
            }
        }
        let mut grown = 0;
        for (unique, field) in self.uniques.iter_mut().zip(&plan.uniques) {
            grown += values.hashed(*field).map_or(0, |value| unique.add(value)) as isize;
        }
        for (top, (field, _)) in self.tops.iter_mut().zip(&plan.tops) {
            grown += values.item(*field).map_or(0, |value| top.add(value));
        }
        grown
    }

    /// Adds what was measured of other records by the same plan.
    pub fn merge(&mut self, other: &Self) {
        self.inexact = self.inexact.saturating_add(other.inexact);
        self.numbers.iter_mut().zip(&other.numbers).for_each(|(own, other)| own.merge(other));
        self.uniques.iter_mut().zip(&other.uniques).for_each(|(own, other)| own.merge(other));
        self.tops.iter_mut().zip(&other.tops).for_each(|(own, other)| own.merge(other));
    }

    /// What an answer shows of it.
    pub fn show(&self, output: &Output) -> Shown {
        let number = |at: usize, of: fn(&Number) -> Option<Sum>| {
            self.numbers.get(at).filter(|number| number.count > 0).and_then(of).map_or(Shown::Nothing, Shown::Number)
        };
        match output.kind {
            Kind::Sum(at) => number(at, |number| Some(number.sum)),
            Kind::Min(at) => number(at, |number| Some(number.min.into())),
            Kind::Max(at) => number(at, |number| Some(number.max.into())),
            Kind::Avg(at) => number(at, |number| number.sum.average(number.count)),
            Kind::Unique(at) => Shown::Count(self.uniques.get(at).map_or(0, Unique::estimate)),
            Kind::Top(at, k) => match self.tops.get(at) {
                Some(top) => Shown::Top { values: top.frequent(k), error: top.error() },
                None => Shown::Top { values: Vec::new(), error: 0 },
            },
        }
    }

    /// About the memory that it takes.
    pub fn size(&self) -> usize {
        let beside = |inline: bool, size: usize| if inline { 0 } else { size };
        size_of::<Self>()
            + beside(!self.numbers.spilled(), size_of_val(&*self.numbers))
            + beside(!self.uniques.spilled(), size_of_val(&*self.uniques))
            + beside(!self.tops.spilled(), size_of_val(&*self.tops))
            + self.uniques.iter().map(Unique::size).sum::<usize>()
            + self.tops.iter().map(Top::size).sum::<usize>()
    }
}

/// One text for the same string, however it was escaped; of other values their own.
pub fn normal(json: &str) -> Cow<'_, str> {
    if !json.starts_with('"') || memchr::memchr(b'\\', json.as_bytes()).is_none() {
        return json.into();
    }
    // Half of a surrogate pair is no text: such a string stays as it is written.
    let Ok(text) = event::unescape(json) else { return json.into() };
    serde_json::to_string(&text).map_or(json.into(), Cow::Owned)
}

/// A JSON text as it is counted among frequent values.
pub fn item(json: &str) -> Item {
    Item::from(&*bounded(normal(json)))
}

/// What is too long to be kept stands for itself by its hash, as a JSON string.
fn bounded(json: Cow<'_, str>) -> Cow<'_, str> {
    if json.len() <= LONGEST_ITEM {
        return json;
    }
    format!("\"sha256:{}\"", hex::encode(Sha256::digest(json.as_bytes()))).into()
}

#[cfg(test)]
mod tests;
