//! How many different values there are: a HyperLogLog sketch of Apache DataSketches, which its libraries in other languages
//! read, too.
//!
//! It has 2^12 registers of a byte. Up to some hundred values are kept as they are; beyond, the estimate's relative
//! standard error is [`RELATIVE_ERROR`]. It depends on the values alone, not on their order, nor on how the records were cut
//! into flushes.

use datasketches::{
    hash::value::raw_bytes,
    hll::{Coupon, HllSketch, HllType, HllUnion},
};

const LG_REGISTERS: u8 = 12;

/// 1.04 / √4096, rounded up.
pub const RELATIVE_ERROR: f64 = 0.017;

#[derive(Clone, PartialEq, Default)]
pub struct Unique(Option<HllSketch>);

/// A value by its hash, which is the same for all sketches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hashed(Coupon);

impl From<&str> for Hashed {
    fn from(value: &str) -> Self {
        Self(Coupon::from_value(raw_bytes::from_str(value)))
    }
}

impl Unique {
    /// Returns by how many bytes it grew.
    pub fn add(&mut self, Hashed(coupon): Hashed) -> usize {
        let before = self.size();
        if self.0.is_none() {
            self.0 = new();
        }
        if let Some(sketch) = &mut self.0 {
            sketch.update_with_coupon(coupon);
        }
        self.size().saturating_sub(before)
    }

    pub fn merge(&mut self, other: &Self) {
        match (&mut self.0, &other.0) {
            (_, None) => {}
            (None, Some(_)) => *self = other.clone(),
            (Some(own), Some(other)) => {
                // Fails for sizes that are none.
                if let Ok(mut union) = HllUnion::new(LG_REGISTERS) {
                    union.update(own);
                    union.update(other);
                    *own = union.to_sketch(HllType::Hll8);
                }
            }
        }
    }

    /// How many there are, or about that.
    pub fn estimate(&self) -> u64 {
        self.0.as_ref().map_or(0, |sketch| sketch.composite_estimate().round().max(0.0) as u64)
    }

    /// About the memory that it takes beside itself.
    pub fn size(&self) -> usize {
        self.0.as_ref().map_or(0, |sketch| sketch.estimated_size())
    }

    /// As DataSketches keeps it; of no value, nothing.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.as_ref().map_or_else(Vec::new, |sketch| sketch.serialize())
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self::default());
        }
        let sketch = HllSketch::deserialize(bytes).ok().filter(|sketch| sketch.lg_config_k() == LG_REGISTERS)?;
        Some(Self(Some(sketch)))
    }
}

fn new() -> Option<HllSketch> {
    HllSketch::new(LG_REGISTERS, HllType::Hll8).ok()
}

impl std::fmt::Debug for Unique {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Unique({})", self.estimate())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl Iterator<Item = u64>) -> Unique {
        let mut unique = Unique::default();
        values.for_each(|value| {
            unique.add(Hashed::from(&*format!("\"user-{value}\"")));
        });
        unique
    }

    #[test]
    fn few_are_counted_and_many_are_estimated_within_the_stated_error() {
        for exact in [0, 1, 2, 7, 8, 9, 50, 100] {
            assert_eq!(of(0..exact).estimate(), exact);
        }
        let mut squares = 0.0;
        let sets = 40;
        for set in 0..sets {
            let estimate = of((0..20_000).map(|value| set * 1_000_000 + value)).estimate();
            let error = (estimate as f64 - 20_000.0) / 20_000.0;
            assert!(error.abs() < 4.0 * RELATIVE_ERROR, "{error}");
            squares += error * error;
        }
        let measured = (squares / sets as f64).sqrt();
        assert!(measured < 1.3 * RELATIVE_ERROR, "{measured}");
    }

    #[test]
    fn the_estimate_is_the_same_in_whatever_order_and_parts_the_values_came() {
        for total in [5, 40, 300, 500, 3_000, 50_000] {
            let whole = of(0..total).estimate();
            assert_eq!(of((0..total).rev()).estimate(), whole, "{total}");
            let mut parts = Unique::default();
            for part in 0..7 {
                // With what others have, too, and through bytes.
                let piece = of((0..total).filter(|value| value % 7 <= part));
                parts.merge(&Unique::from_bytes(&piece.to_bytes()).unwrap());
                parts = Unique::from_bytes(&parts.to_bytes()).unwrap();
            }
            assert_eq!(parts.estimate(), whole, "{total}");
        }
    }

    #[test]
    fn bytes_that_are_no_such_sketch_are_told() {
        let other = HllSketch::new(10, HllType::Hll8).unwrap();
        let mut cut = of(0..10_000).to_bytes();
        cut.truncate(100);
        for bytes in [&b"x"[..], &[0; 8], &other.serialize(), &cut] {
            assert!(Unique::from_bytes(bytes).is_none());
        }
        assert_eq!(of(0..0).to_bytes(), [0; 0]);
    }
}
