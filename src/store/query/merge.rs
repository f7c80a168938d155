//! From buckets to rows, within bounds of memory and work.

use std::sync::Arc;

use hashbrown::{HashMap, hash_map::Entry};

use super::{
    Bounds, GroupName, Order, Ordered, Place, Query, Rows, Step,
    groups::{Group, Groups, place_of},
    ranked::{Rank, Ranked},
    rows::{self, Columns},
};
use crate::{
    config::AggregateConfig,
    measure::{Damaged, Measures, More, Plan, Shown, Sum},
    position::Timestamp,
    store::StoreError,
    window::Windows,
};

/// A bucket as it stands in a store.
#[derive(Debug, Clone, Copy)]
pub struct Bucket<'b> {
    pub window_start: Timestamp,
    /// The group's values as a JSON array.
    pub group: &'b str,
    pub count: u64,
    /// What was measured beside the count, as [`More::to_bytes`] gives it.
    pub state: Option<&'b [u8]>,
}

/// Whether a store is to go on reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    More,
    Nothing,
}

pub struct Merger {
    plan: Plan,
    windows: Option<Windows>,
    from: Timestamp,
    to: Timestamp,
    order: Order,
    limit: usize,
    after: Option<After>,
    bounds: Bounds,
    columns: Arc<Columns>,
    groups: Groups,
    /// From when to when the step is whose buckets are being merged.
    step: Option<(Timestamp, Timestamp)>,
    /// By group.
    merged: HashMap<usize, Merged>,
    /// About what these take.
    merged_bytes: usize,
    read: u64,
    rows: Rows,
    /// The place of the last row.
    last: Option<Place>,
    /// In another order than that of the windows.
    ranked: Ranked,
    /// There is more than the answer takes.
    more: bool,
}

/// What was merged for a group.
struct Merged {
    count: u64,
    more: State,
}

/// What was measured beside the count. As bytes it is smaller, and the only bucket of a group need not be read before its row is
/// made.
enum State {
    None,
    Bytes(Box<[u8]>),
    Read(Box<More>),
}

impl Merged {
    fn new(bucket: Bucket<'_>) -> Self {
        let more = bucket.state.map_or(State::None, |bytes| State::Bytes(bytes.into()));
        Self { count: bucket.count, more }
    }

    /// Adds another bucket of the group.
    fn merge(&mut self, plan: &Plan, other: Self) -> Result<(), Damaged> {
        self.count = self.count.saturating_add(other.count);
        match (&mut self.more, other.more) {
            (_, State::None) => {}
            (own @ State::None, other) => *own = other,
            (own, other) => {
                let mut merged = std::mem::replace(own, State::None).read(plan)?;
                if let (Some(merged), Some(other)) = (merged.as_mut(), other.read(plan)?) {
                    merged.merge(&other);
                }
                *own = merged.map_or(State::None, State::Read);
            }
        }
        Ok(())
    }

    fn size(&self) -> usize {
        let more = match &self.more {
            State::None => 0,
            State::Bytes(bytes) => bytes.len(),
            State::Read(more) => more.size(),
        };
        2 * size_of::<(usize, Self)>() + more
    }

    fn shrink(&mut self) {
        if let State::Read(more) = &self.more {
            self.more = State::Bytes(more.to_bytes().into());
        }
    }

    fn read(self, plan: &Plan) -> Result<Measures, Damaged> {
        Ok(Measures { count: self.count, more: self.more.read(plan)? })
    }
}

impl State {
    fn read(self, plan: &Plan) -> Result<Option<Box<More>>, Damaged> {
        Ok(match self {
            Self::None => None,
            Self::Bytes(bytes) => Some(Box::new(More::from_bytes(plan, &bytes)?)),
            Self::Read(more) => Some(more),
        })
    }
}

/// The last row of the answer before.
struct After {
    place: Place,
    /// Its group, once it is known.
    group: Option<Arc<Group>>,
}

impl After {
    fn new(place: Place) -> Self {
        let group = match &place.group {
            GroupName::Text(text) => Some(Arc::new(place_of(text))),
            GroupName::Hash(_) => None,
        };
        Self { place, group }
    }
}

impl Merger {
    /// Groups that are remembered from window to window.
    const GROUPS_BYTES: usize = 8 << 20;

    pub fn new(query: Query, aggregate: &AggregateConfig, plan: &Plan) -> Self {
        let fields = query.group_by.iter().filter_map(|field| aggregate.group_by.get(*field).cloned()).collect();
        let columns = Arc::new(Columns::new(query.format, fields, plan));
        Self {
            plan: plan.clone(),
            windows: match query.step {
                Step::Of(windows) => Some(windows),
                Step::Whole => None,
            },
            from: query.from,
            to: query.to,
            order: query.order,
            limit: query.limit,
            after: query.after.map(After::new),
            bounds: query.bounds,
            groups: Groups::new(aggregate.group_by.len(), query.group_by, query.conditions, columns.clone()),
            rows: Rows::new(&columns),
            columns,
            step: None,
            merged: HashMap::new(),
            merged_bytes: 0,
            read: 0,
            last: None,
            ranked: Ranked::new(query.limit),
            more: false,
        }
    }

    /// From which window on, and before which one, buckets are to be read, in this order.
    pub fn range(&self) -> (Timestamp, Timestamp) {
        let from = match (&self.after, &self.order, &self.windows) {
            // The next page begins where the one before ended.
            (Some(after), Order::Window, Some(_)) => self.from.max(after.place.window_start),
            _ => self.from,
        };
        (from, self.to)
    }

    /// Whether what was measured beside the count is to be read.
    pub fn needs_state(&self) -> bool {
        !self.plan.is_empty()
    }

    /// Takes the next bucket.
    ///
    /// # Errors
    /// The query costs more than it may, or the bucket cannot be read.
    pub fn take(&mut self, bucket: Bucket<'_>) -> Result<Wanted, StoreError> {
        self.read += 1;
        if self.read > self.bounds.buckets {
            return Err(StoreError::TooMuch(format!(
                "this reads more than {} buckets: ask for a shorter range (from, to), or let a coarser aggregate (a longer \
                 window, fewer fields in group_by) count for such questions",
                self.bounds.buckets
            )));
        }
        if self.step.is_none_or(|(start, end)| !(start..end).contains(&bucket.window_start)) {
            self.end_step()?;
            self.step = Some(self.step_of(bucket.window_start));
        }
        if self.more {
            return Ok(Wanted::Nothing);
        }
        let Some(group) = self.groups.find(bucket.group) else { return self.check().map(|()| Wanted::More) };
        if self.order == Order::Window && self.rows.count() == self.limit {
            self.more = true;
            return Ok(Wanted::Nothing);
        }
        let bucket = Bucket { state: bucket.state.filter(|_| self.needs_state()), ..bucket };
        match self.merged.entry(group) {
            Entry::Vacant(free) => self.merged_bytes += free.insert(Merged::new(bucket)).size(),
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                let before = known.size();
                let merged = known.merge(&self.plan, Merged::new(bucket));
                merged.map_err(|damaged| unreadable(damaged, bucket.group, bucket.window_start))?;
                self.merged_bytes = self.merged_bytes + known.size() - before;
            }
        }
        self.check().map(|()| Wanted::More)
    }

    fn held(&self) -> usize {
        self.merged_bytes + self.groups.bytes() + self.ranked.size()
    }

    fn check(&mut self) -> Result<(), StoreError> {
        if self.held() <= self.bounds.bytes {
            return Ok(());
        }
        self.merged_bytes = 0;
        for merged in self.merged.values_mut() {
            merged.shrink();
            self.merged_bytes += merged.size();
        }
        // With less room it would be shrunk again and again.
        if self.held() <= self.bounds.bytes / 4 * 3 {
            return Ok(());
        }
        Err(StoreError::TooMuch(format!(
            "this holds more than {} MiB of groups at a time: ask for fewer of them (where, or fewer fields in group_by), for \
             shorter steps (step), or with another order than by window for a smaller limit",
            self.bounds.bytes >> 20
        )))
    }

    fn step_of(&self, window_start: Timestamp) -> (Timestamp, Timestamp) {
        match &self.windows {
            Some(windows) => (windows.start_of(window_start), windows.end_of(window_start)),
            None => (self.from, self.to),
        }
    }

    /// Makes rows of what was merged.
    fn end_step(&mut self) -> Result<(), StoreError> {
        let Some((start, _)) = self.step.take() else { return Ok(()) };
        let mut of_step: Vec<(Arc<Group>, Merged)> =
            self.merged.drain().map(|(group, merged)| (self.groups.get(group).clone(), merged)).collect();
        self.merged_bytes = 0;
        if let Some(after) =
            self.after.as_mut().filter(|after| after.place.window_start == start && after.group.is_none())
        {
            after.group = of_step.iter().map(|(group, _)| group).find(|it| it.is_called(&after.place.group)).cloned();
            if after.group.is_none() {
                return Err(gone());
            }
        }
        let written = rows::window_start(start);
        match self.order {
            Order::Window => {
                of_step.sort_by(|(a, _), (b, _)| a.cmp(b));
                self.add_in_order(start, &written, of_step)?;
            }
            Order::By { number, descending } => {
                for (group, merged) in of_step {
                    let measures = merged.read(&self.plan).map_err(|why| unreadable(why, group.text(), start))?;
                    let number = self.number(number, &measures);
                    let rank = Rank { number, descending, window_start: start, group };
                    if self.is_to_come(&rank) {
                        let columns = &self.columns;
                        self.ranked.add(rank, |rank| rows::written(columns, &written, &rank.group, &measures));
                    }
                }
            }
        }
        if self.groups.bytes() > Self::GROUPS_BYTES {
            self.groups.clear();
        }
        Ok(())
    }

    fn add_in_order(
        &mut self,
        start: Timestamp,
        written: &str,
        of_step: Vec<(Arc<Group>, Merged)>,
    ) -> Result<(), StoreError> {
        let mut last = None;
        for (group, merged) in of_step {
            let is_before = |after: &After| {
                let same = after.group.as_ref().filter(|_| after.place.window_start == start);
                same.is_some_and(|last| group <= *last)
            };
            if self.after.as_ref().is_some_and(is_before) {
                continue;
            }
            let measures = merged.read(&self.plan).map_err(|why| unreadable(why, group.text(), start))?;
            let columns = &self.columns;
            if !self.rows.push(columns, self.limit, |out| columns.row(out, written, &group, &measures)) {
                self.more = true;
                break;
            }
            last = Some(group);
        }
        if let Some(group) = last {
            self.last = Some(Place { number: None, window_start: start, group: group.name() });
        }
        Ok(())
    }

    /// Whether a row is behind the answer before.
    fn is_to_come(&self, rank: &Rank) -> bool {
        let Some(After { place, group }) = &self.after else { return true };
        let Some(group) = group else {
            // Its window is not this one, so that groups do not decide.
            let (number, window_start) = (place.number, place.window_start);
            return *rank > Rank { number, descending: rank.descending, window_start, group: rank.group.clone() };
        };
        let (number, window_start, group) = (place.number, place.window_start, group.clone());
        *rank > Rank { number, descending: rank.descending, window_start, group }
    }

    fn number(&self, number: Ordered, measures: &Measures) -> Option<Sum> {
        let of_count = |count: u64| Sum::of_parts(count.into(), 0);
        match number {
            Ordered::Count => of_count(measures.count),
            Ordered::Measure(index) => match measures.more.as_ref()?.show(self.plan.outputs().get(index)?) {
                Shown::Number(sum) => Some(sum),
                Shown::Count(count) => of_count(count),
                Shown::Nothing | Shown::Top { .. } => None,
            },
        }
    }

    /// The answer, once all buckets were taken that are wanted.
    ///
    /// # Errors
    /// What the next page begins behind is not there any more.
    pub fn finish(mut self) -> Result<Rows, StoreError> {
        self.end_step()?;
        if self.after.as_ref().is_some_and(|after| after.group.is_none()) {
            return Err(gone());
        }
        if self.order == Order::Window {
            let next = self.last.filter(|_| self.more);
            return Ok(self.rows.end(next));
        }
        let (mut more, mut last) = (self.ranked.more, None);
        for (rank, written) in self.ranked.into_rows() {
            if !self.rows.push(&self.columns, self.limit, |out| out.extend_from_slice(&written)) {
                more = true;
                break;
            }
            last = Some(rank);
        }
        let next = last.filter(|_| more).map(|rank| rank.place());
        Ok(self.rows.end(next))
    }
}

fn unreadable(damaged: Damaged, group: &str, window_start: Timestamp) -> StoreError {
    StoreError::Refused(format!(
        "{damaged} of the group {group} at {}: a newer release wrote it, or it is damaged",
        window_start.to_rfc3339()
    ))
}

fn gone() -> StoreError {
    StoreError::TooMuch("cursor: the row that it stands behind is not there any more: ask again without it".to_owned())
}

#[cfg(test)]
mod tests;
