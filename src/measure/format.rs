//! What was measured, as it stands in the stores.
//!
//! ```text
//! state   = version u8 (1) · inexact · number* · unique* · top*      as many as the plan has, in its order
//! number  = count · (sum whole · sum fraction · min whole · min fraction · max whole · max fraction)   these where count > 0
//! unique  = length · HyperLogLog sketch of DataSketches (empty: of no value)
//! top     = length · frequent-items sketch of DataSketches, of strings (the same)
//! ```
//!
//! Numbers are LEB128, those that may be negative in zigzag. Fractions are in units of 10^-17; a sum's is from 0 on and below
//! 1, those of min and max have the sign of the whole.

use super::{Decimal, More, Number, Plan, Sum, Top, Unique};

const VERSION: u8 = 1;

/// Bytes that are not what this plan writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what was measured cannot be read")]
pub struct Damaged;

impl More {
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        write(&mut bytes, self.inexact.into());
        for number in &self.numbers {
            write(&mut bytes, number.count.into());
            if number.count > 0 {
                let (whole, fraction) = number.sum.parts();
                write(&mut bytes, zigzag(whole));
                write(&mut bytes, fraction.into());
                for (whole, fraction) in [number.min.parts(), number.max.parts()] {
                    write(&mut bytes, zigzag(whole.into()));
                    write(&mut bytes, zigzag(fraction.into()));
                }
            }
        }
        let sketches = self.uniques.iter().map(Unique::to_bytes).chain(self.tops.iter().map(Top::to_bytes));
        for sketch in sketches {
            write(&mut bytes, sketch.len() as u128);
            bytes.extend_from_slice(&sketch);
        }
        bytes
    }

    /// # Errors
    /// The bytes are not those that were written by this plan.
    pub fn from_bytes(plan: &Plan, bytes: &[u8]) -> Result<Self, Damaged> {
        let mut reader = Reader(bytes);
        let read = |reader: &mut Reader<'_>| {
            let mut more = Self::new(plan);
            if reader.take(1)? != [VERSION] {
                return None;
            }
            more.inexact = reader.count()?;
            for number in &mut more.numbers {
                *number = reader.measured_number()?;
            }
            for unique in &mut more.uniques {
                *unique = Unique::from_bytes(reader.sketch()?)?;
            }
            for (top, (_, places)) in more.tops.iter_mut().zip(&plan.tops) {
                *top = Top::from_bytes(reader.sketch()?, *places)?;
            }
            reader.0.is_empty().then_some(more)
        };
        read(&mut reader).ok_or(Damaged)
    }
}

fn zigzag(number: i128) -> u128 {
    ((number << 1) ^ (number >> 127)) as u128
}

fn unzigzag(number: u128) -> i128 {
    ((number >> 1) as i128) ^ -((number & 1) as i128)
}

fn write(bytes: &mut Vec<u8>, mut number: u128) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u128> {
        let mut number = 0_u128;
        for shift in (0..128).step_by(7) {
            let byte = *self.take(1)?.first()?;
            number |= u128::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn count(&mut self) -> Option<u64> {
        self.number()?.try_into().ok()
    }

    fn signed(&mut self) -> Option<i128> {
        self.number().map(unzigzag)
    }

    fn decimal(&mut self) -> Option<Decimal> {
        let (whole, fraction) = (self.signed()?, self.signed()?);
        Decimal::of_parts(whole.try_into().ok()?, fraction.try_into().ok()?)
    }

    fn measured_number(&mut self) -> Option<Number> {
        let count = self.count()?;
        if count == 0 {
            return Some(Number::default());
        }
        let sum = Sum::of_parts(self.signed()?, self.count()?)?;
        Some(Number { count, sum, min: self.decimal()?, max: self.decimal()? })
    }

    fn sketch(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(length.try_into().ok()?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_read_back(number in any::<i128>()) {
            let mut bytes = Vec::new();
            write(&mut bytes, zigzag(number));
            let mut reader = Reader(&bytes);
            prop_assert_eq!(reader.signed(), Some(number));
            prop_assert!(reader.0.is_empty());
        }
    }
}
