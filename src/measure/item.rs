//! A value that is counted apart: its JSON text with its hash, so that an event's value is hashed once for all sketches that it is
//! added to. Short ones stand where they are compared.

use std::{
    hash::{Hash, Hasher},
    str,
    sync::Arc,
};

use datasketches::{
    codec::{SketchBytes, SketchSlice},
    error::{Error, ErrorKind},
    frequencies::FrequentItemValue,
};

use super::Hashed;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    hash: Hashed,
    text: Text,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Text {
    /// So many bytes, and zeros.
    Short(u8, [u8; SHORT]),
    Long(Arc<[u8]>),
}

/// An address of IPv4 in quotes is within it, and an item takes 32 bytes.
const SHORT: usize = 22;

impl Item {
    pub fn as_bytes(&self) -> &[u8] {
        match &self.text {
            Text::Short(length, bytes) => &bytes[..usize::from(*length)],
            Text::Long(bytes) => bytes,
        }
    }

    /// About the memory that it takes beside itself.
    pub fn size(&self) -> usize {
        match &self.text {
            Text::Short(..) => 0,
            // Two counters, and as allocators round it.
            Text::Long(bytes) => (16 + bytes.len()).next_multiple_of(16),
        }
    }
}

impl From<&str> for Item {
    fn from(text: &str) -> Self {
        let (hash, bytes) = (Hashed::from(text), text.as_bytes());
        let text = match u8::try_from(bytes.len()) {
            Ok(length) if bytes.len() <= SHORT => {
                let mut short = [0; SHORT];
                short[..bytes.len()].copy_from_slice(bytes);
                Text::Short(length, short)
            }
            _ => Text::Long(bytes.into()),
        };
        Self { hash, text }
    }
}

impl Hash for Item {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

/// As DataSketches writes strings.
impl FrequentItemValue for Item {
    fn serialize_size(item: &Self) -> usize {
        size_of::<u32>() + item.as_bytes().len()
    }

    fn serialize_value(&self, out: &mut SketchBytes) {
        let bytes = self.as_bytes();
        out.write_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        out.write(bytes);
    }

    fn deserialize_value(cursor: &mut SketchSlice<'_>) -> Result<Self, Error> {
        let damaged = || Error::new(ErrorKind::InvalidData, "no string");
        let length = cursor.read_u32_le().map_err(|_| damaged())?;
        let bytes = usize::try_from(length).ok().and_then(|length| cursor.remaining().get(..length));
        let item = Self::from(bytes.and_then(|bytes| str::from_utf8(bytes).ok()).ok_or_else(damaged)?);
        cursor.advance(length.into());
        Ok(item)
    }
}

#[cfg(test)]
mod tests {
    use datasketches::frequencies::FrequentItemsSketch;

    use super::*;

    fn texts() -> impl Iterator<Item = String> {
        [0, 1, 21, 22, 23, 255, 256, 300].into_iter().map(|length| "ä".repeat(length / 2) + &"x".repeat(length % 2))
    }

    #[test]
    fn items_are_equal_where_their_texts_are() {
        assert_eq!(size_of::<Option<Item>>(), 32);
        for (at, text) in texts().enumerate() {
            assert_eq!(Item::from(&*text).as_bytes(), text.as_bytes());
            for (other, other_text) in texts().enumerate() {
                assert_eq!(Item::from(&*text) == Item::from(&*other_text), at == other);
            }
        }
        assert_ne!(Item::from("a\0"), Item::from("a"));
    }

    #[test]
    fn a_sketch_of_them_is_one_of_strings() {
        let (mut items, mut strings) = (FrequentItemsSketch::new(256).unwrap(), FrequentItemsSketch::new(256).unwrap());
        for (count, text) in (1..).zip(texts()) {
            items.update_with_count(Item::from(&*text), count);
            strings.update_with_count(text, count);
        }
        let of_strings = FrequentItemsSketch::<Item>::deserialize(&strings.serialize()).unwrap();
        let of_items = FrequentItemsSketch::<String>::deserialize(&items.serialize()).unwrap();
        for (count, text) in (1..).zip(texts()) {
            assert_eq!((of_strings.estimate(&Item::from(&*text)), of_items.estimate(&text)), (count, count));
        }
        let mut cut = strings.serialize();
        cut.pop();
        assert!(FrequentItemsSketch::<Item>::deserialize(&cut).is_err());
        let length = cut.len();
        cut[length - 5..].fill(0xff);
        cut.push(b'x');
        assert!(FrequentItemsSketch::<Item>::deserialize(&cut).is_err(), "no UTF-8");
    }
}
