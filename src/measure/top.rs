//! The values that occur most often: a frequent-items sketch of Apache DataSketches, which its libraries in other languages
//! read, too (items are strings).
//!
//! Of fewer different values than it has places, every count is exact. Beyond, a count is wrong by at most [`Top::error`],
//! which is at most [`Places::epsilon`] of all.

use std::cmp::Reverse;

use datasketches::frequencies::{ErrorType, FrequentItemsSketch};

use super::item::Item;

/// How many values are kept apart: 3/4 of the table's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places(usize);

impl Places {
    /// Enough for the `k` most frequent ones.
    pub fn of(k: u32) -> Self {
        Self((10 * k as usize).next_power_of_two().clamp(256, 1024))
    }

    /// The largest error of a count, as a share of all that were counted.
    pub fn epsilon(self) -> f64 {
        3.5 / self.0 as f64
    }
}

/// One of the most frequent values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frequent {
    pub value: String,
    /// About how often.
    pub count: u64,
}

#[derive(Debug, Clone)]
pub struct Top {
    sketch: Option<FrequentItemsSketch<Item>>,
    places: Places,
    /// About what the items take beside the table.
    text: usize,
}

impl Top {
    pub fn new(places: Places) -> Self {
        Self { sketch: None, places, text: 0 }
    }

    /// Returns by how many bytes it grew: others may have gone for it.
    pub fn add(&mut self, value: Item) -> isize {
        let Some(sketch) = &mut self.sketch else { return self.begin(value) };
        let (items, room, size) = (sketch.num_active_items(), sketch.current_map_capacity(), value.size());
        sketch.update(value);
        let now = sketch.num_active_items();
        if now == items {
            return 0;
        }
        let before = self.text;
        self.text += size;
        if now < items {
            // Which ones went is not told.
            self.text = share(self.text, now, items + 1);
        }
        // Tables are twice as large each time.
        let table = if sketch.current_map_capacity() == room { 0 } else { sketch.estimated_size() / 2 };
        table as isize + self.text as isize - before as isize
    }

    /// Adds the first value.
    fn begin(&mut self, value: Item) -> isize {
        // The size is one of those that there are.
        let Ok(mut sketch) = FrequentItemsSketch::new(self.places.0) else { return 0 };
        self.text = value.size();
        sketch.update(value);
        self.sketch = Some(sketch);
        self.size() as isize
    }

    pub fn merge(&mut self, other: &Self) {
        match (&mut self.sketch, &other.sketch) {
            (_, None) => {}
            (None, Some(_)) => {
                self.sketch.clone_from(&other.sketch);
                self.text = other.text;
            }
            (Some(own), Some(other_sketch)) => {
                let items = own.num_active_items() + other_sketch.num_active_items();
                own.merge(other_sketch);
                self.text = share(self.text + other.text, own.num_active_items(), items);
            }
        }
    }

    /// The `k` most frequent, the most frequent first; of equals by their text.
    pub fn frequent(&self, k: u32) -> Vec<Frequent> {
        let Some(sketch) = &self.sketch else { return Vec::new() };
        let rows = sketch.frequent_items_with_threshold(ErrorType::NoFalseNegatives, 0);
        let mut rows: Vec<_> = rows.iter().map(|row| (Reverse(row.estimate()), row.item().as_bytes())).collect();
        rows.sort_unstable();
        let frequent = |(Reverse(count), value)| Frequent { value: String::from_utf8_lossy(value).into_owned(), count };
        rows.into_iter().take(k as usize).map(frequent).collect()
    }

    /// No count is further from the true one.
    pub fn error(&self) -> u64 {
        self.sketch.as_ref().map_or(0, |sketch| sketch.maximum_error())
    }

    /// About the memory that it takes beside itself.
    pub fn size(&self) -> usize {
        self.sketch.as_ref().map_or(0, |sketch| sketch.estimated_size() + self.text)
    }

    /// As DataSketches keeps it; of no value, nothing.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.sketch.as_ref().map_or_else(Vec::new, |sketch| sketch.serialize())
    }

    pub fn from_bytes(bytes: &[u8], places: Places) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self::new(places));
        }
        let sketch = FrequentItemsSketch::deserialize(bytes).ok().filter(|sketch| sketch.max_map_size() == places.0)?;
        Some(Self { sketch: Some(sketch), places, text: bytes.len() })
    }
}

/// The longest value that is kept as it is, in bytes; whoever adds a longer one adds its hash.
pub const LONGEST_ITEM: usize = 256;

/// The part of some bytes that so many of the items have.
fn share(bytes: usize, items: usize, of: usize) -> usize {
    bytes * items / of.max(1)
}

impl PartialEq for Top {
    fn eq(&self, other: &Self) -> bool {
        (self.places, self.error(), self.frequent(u32::MAX)) == (other.places, other.error(), other.frequent(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn of(values: impl Iterator<Item = u64>) -> Top {
        let mut top = Top::new(Places::of(10));
        values.for_each(|value| {
            top.add(Item::from(&*format!("\"{value}\"")));
        });
        top
    }

    #[test]
    fn few_values_are_counted_exactly_and_equals_stand_by_their_text() {
        let top = of([3, 1, 2, 3, 1, 3].into_iter());
        let shown: Vec<_> = top.frequent(2).into_iter().map(|item| (item.value, item.count)).collect();
        assert_eq!(shown, [("\"3\"".to_owned(), 3), ("\"1\"".to_owned(), 2)]);
        assert_eq!((top.error(), top.frequent(9).len()), (0, 3));
        assert_eq!(Top::new(Places::of(1)).frequent(3), []);
    }

    #[test]
    fn many_values_are_within_the_stated_error_also_in_parts_and_through_bytes() {
        // As those of the world are: few often, many seldom.
        let mut random = fastrand::Rng::with_seed(7);
        let values: Vec<u64> = (0..200_000).map(|_| (1.0 / random.f64().max(1e-9)) as u64 % 50_000).collect();
        let mut exact: BTreeMap<String, u64> = BTreeMap::new();
        for value in &values {
            *exact.entry(format!("\"{value}\"")).or_default() += 1;
        }
        let mut parts = Top::new(Places::of(10));
        for part in values.chunks(9_000) {
            parts.merge(&of(part.iter().copied()));
            parts = Top::from_bytes(&parts.to_bytes(), Places::of(10)).unwrap();
        }
        for top in [of(values.iter().copied()), parts] {
            assert!(top.error() as f64 <= Places::of(10).epsilon() * values.len() as f64);
            let frequent = top.frequent(10);
            assert_eq!(frequent.len(), 10);
            for item in frequent {
                assert!(exact[&item.value].abs_diff(item.count) <= top.error(), "{item:?}");
            }
            assert!(top.size() < 20_000, "{}", top.size());
        }
    }

    #[test]
    fn the_memory_that_is_told_is_what_there_is_however_many_values_were_dropped() {
        let mut top = Top::new(Places::of(10));
        let mut grown = 0;
        for value in 0..100_000_u64 {
            grown += top.add(Item::from(&*format!("\"{value:040}\"")));
            assert_eq!(usize::try_from(grown), Ok(top.size()), "{value}");
        }
        let (items, largest) = (top.frequent(u32::MAX).len(), 256 * 3 / 4);
        assert!(items <= largest && (items * 42..=items * 64 + 12_000).contains(&top.size()), "{items} {}", top.size());
    }

    #[test]
    fn bytes_that_are_no_such_sketch_are_told() {
        let bytes = of(0..1000).to_bytes();
        assert!(Top::from_bytes(&bytes, Places::of(100)).is_none());
        assert!(Top::from_bytes(&bytes[..bytes.len() - 1], Places::of(10)).is_none());
        assert!(Top::from_bytes(b"x", Places::of(10)).is_none());
    }
}
