//! Records as they lie in memory and in the embedded log: one contiguous buffer, each record with room for its checksum,
//! which [`RecordBuffer::checksummed`] fills in where it is stored.
//!
//! ```text
//! record  = length u32 · crc32c u32 · body            (little endian; length and checksum are those of body)
//! body    = offset u64 · received i64 · key length u32 · value length u32 · headers short · key · value · header*
//! header  = name length short · value length u32 · name · value
//! short   = u16, or where that is u16::MAX: the number as u32 behind it
//! ```
//! A length of `u32::MAX` says that there is no key, value or header value (null, as Kafka allows). Kafka allows any
//! number of headers with names of any length; what the daemon itself writes needs no more than the u16.

use std::ops::Range;

use thiserror::Error;

use crate::{
    position::{Offset, Timestamp},
    vector,
};

const NONE: u32 = u32::MAX;
/// In the place of a short number: it follows as a long one.
const LONG: u16 = u16::MAX;
const PREFIX: usize = 8;
const FIXED: usize = 8 + 8 + 4 + 4 + 2;

/// A record, borrowed from its buffer.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    pub offset: Offset,
    /// The log's timestamp: the time of receipt.
    pub received: Timestamp,
    pub key: Option<&'a [u8]>,
    /// `None` is Kafka's null value (a tombstone).
    pub value: Option<&'a [u8]>,
    pub headers: Headers<'a>,
}

/// The headers of a record, in their order.
#[derive(Debug, Clone, Copy)]
pub struct Headers<'a> {
    count: u32,
    bytes: &'a [u8],
}

/// The header that holds the id which the server assigned.
pub const ID_HEADER: &str = "id";

/// The header of a record that came with a key: the key's name. No client can set it: what clients say becomes headers of other
/// names.
pub const KEY_HEADER: &str = "ingestd-key";

impl<'a> Headers<'a> {
    pub const NONE: Self = Self { count: 0, bytes: &[] };

    /// So many headers as [`write_header`] wrote them, one after the other.
    pub fn new(count: u32, bytes: &'a [u8]) -> Self {
        Self { count, bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn iter(self) -> impl Iterator<Item = (&'a str, Option<&'a [u8]>)> + Clone {
        let mut rest = self.bytes;
        (0..self.count).map_while(move |_| {
            let name_length = take_short(&mut rest)? as usize;
            let value_length = u32::from_le_bytes(take(&mut rest)?);
            let name = vector::text(split(&mut rest, name_length)?).ok()?;
            let value = match value_length {
                NONE => None,
                length => Some(split(&mut rest, length as usize)?),
            };
            Some((name, value))
        })
    }

    /// The id that the server assigned, where it did.
    pub fn id(self) -> Option<&'a str> {
        let (_, value) = self.iter().find(|(name, _)| *name == ID_HEADER)?;
        vector::text(value?).ok()
    }
}

/// Why a buffer cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Corrupt {
    #[error("a record is cut short at byte {0}")]
    Short(usize),
    #[error("the checksum of the record at byte {0} does not match")]
    Checksum(usize),
    #[error("the record at byte {0} is another one")]
    Other(usize),
}

/// Records one after the other. Built by [`RecordBuffer::push`], or from bytes by [`RecordBuffer::from_bytes`].
#[derive(Debug, Default, Clone)]
pub struct RecordBuffer {
    bytes: Vec<u8>,
    count: u32,
}

impl RecordBuffer {
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), count: 0 }
    }

    /// Makes room for this many bytes more.
    pub fn reserve(&mut self, bytes: usize) {
        self.bytes.reserve(bytes);
    }

    /// Takes bytes that [`RecordBuffer::checksummed`] gave, checking every length and checksum.
    ///
    /// # Errors
    /// [`Corrupt`] names the first byte that cannot be trusted.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, Corrupt> {
        let count = check(&bytes, None)?;
        Ok(Self { bytes, count })
    }

    /// Adds the records with these offsets, which take `length` bytes; `fill` puts these into their place. Nothing is added
    /// where that fails.
    ///
    /// # Errors
    /// Those of `fill`; and [`Corrupt`], counted from the first of these bytes.
    pub fn extend<E>(
        &mut self,
        offsets: Range<Offset>,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Result<(), Corrupt>, E> {
        let start = self.bytes.len();
        self.bytes.resize(start + length, 0);
        let checked = fill(&mut self.bytes[start..]).map(|()| {
            let count = check(&self.bytes[start..], Some(offsets.start))?;
            if u64::from(count) == offsets.end.since(offsets.start) { Ok(count) } else { Err(Corrupt::Short(length)) }
        });
        match checked {
            Ok(Ok(count)) => self.count += count,
            _ => self.bytes.truncate(start),
        }
        checked.map(|checked| checked.map(drop))
    }

    /// Appends a record. Offsets must ascend. Keys, values and headers of 4 GiB and more do not occur
    /// (`message.max.bytes` is far below).
    #[inline]
    pub fn push<'h>(
        &mut self,
        offset: Offset,
        received: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl IntoIterator<Item = (&'h str, Option<&'h [u8]>), IntoIter: Clone>,
    ) {
        let headers = headers.into_iter();
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; PREFIX]);
        self.bytes.extend_from_slice(&offset.0.to_le_bytes());
        self.bytes.extend_from_slice(&received.0.to_le_bytes());
        self.bytes.extend_from_slice(&length_of(key).to_le_bytes());
        self.bytes.extend_from_slice(&length_of(value).to_le_bytes());
        write_short(&mut self.bytes, headers.clone().count());
        self.bytes.extend_from_slice(key.unwrap_or_default());
        self.bytes.extend_from_slice(value.unwrap_or_default());
        for (name, value) in headers {
            write_header(&mut self.bytes, name, value);
        }
        let length = (self.bytes.len() - start - PREFIX) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
        self.count += 1;
    }

    pub fn iter(&self) -> impl Iterator<Item = Record<'_>> {
        let mut rest = self.bytes.as_slice();
        std::iter::from_fn(move || {
            let length = u32::from_le_bytes(take(&mut rest)?) as usize;
            let _checksum: [u8; 4] = take(&mut rest)?;
            parse(split(&mut rest, length)?)
        })
    }

    /// Empties the buffer and keeps its memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }

    /// The same, and gives back what is more than this of its memory.
    pub fn reuse(&mut self, most: usize) {
        self.clear();
        self.bytes.shrink_to(most);
    }

    /// Records in the buffer.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The size of the buffer, which is what budgets count.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The records with their checksums, which only what is stored needs.
    pub fn checksummed(&mut self) -> &[u8] {
        let mut rest = self.bytes.as_mut_slice();
        while let Some((prefix, behind)) = rest.split_first_chunk_mut::<PREFIX>() {
            let [a, b, c, d, checksum @ ..] = prefix;
            let (body, behind) = behind.split_at_mut(u32::from_le_bytes([*a, *b, *c, *d]) as usize);
            checksum.copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
            rest = behind;
        }
        &self.bytes
    }
}

/// Appends a header as it stands in a record.
#[inline]
pub fn write_header(bytes: &mut Vec<u8>, name: &str, value: Option<&[u8]>) {
    write_short(bytes, name.len());
    bytes.extend_from_slice(&length_of(value).to_le_bytes());
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(value.unwrap_or_default());
}

/// How many whole records these are; where the first offset is said, one behind the other.
fn check(bytes: &[u8], first: Option<Offset>) -> Result<u32, Corrupt> {
    let (mut at, mut count) = (0, 0);
    while at < bytes.len() {
        let mut rest = &bytes[at..];
        let length = u32::from_le_bytes(take(&mut rest).ok_or(Corrupt::Short(at))?) as usize;
        let checksum = u32::from_le_bytes(take(&mut rest).ok_or(Corrupt::Short(at))?);
        let body = split(&mut rest, length).ok_or(Corrupt::Short(at))?;
        if crc32c::crc32c(body) != checksum {
            return Err(Corrupt::Checksum(at));
        }
        let record = parse(body).ok_or(Corrupt::Short(at))?;
        if first.is_some_and(|first| record.offset.0 != first.0 + u64::from(count)) {
            return Err(Corrupt::Other(at));
        }
        at += PREFIX + length;
        count += 1;
    }
    Ok(count)
}

fn length_of(bytes: Option<&[u8]>) -> u32 {
    bytes.map_or(NONE, |bytes| bytes.len() as u32)
}

#[inline]
fn write_short(bytes: &mut Vec<u8>, number: usize) {
    match u16::try_from(number) {
        Ok(short) if short != LONG => bytes.extend_from_slice(&short.to_le_bytes()),
        _ => {
            bytes.extend_from_slice(&LONG.to_le_bytes());
            bytes.extend_from_slice(&(number as u32).to_le_bytes());
        }
    }
}

fn parse(mut body: &[u8]) -> Option<Record<'_>> {
    if body.len() < FIXED {
        return None;
    }
    let offset = Offset(u64::from_le_bytes(take(&mut body)?));
    let received = Timestamp(i64::from_le_bytes(take(&mut body)?));
    let key_length = u32::from_le_bytes(take(&mut body)?);
    let value_length = u32::from_le_bytes(take(&mut body)?);
    let count = take_short(&mut body)?;
    let mut field = |length: u32| match length {
        NONE => Some(None),
        length => split(&mut body, length as usize).map(Some),
    };
    let key = field(key_length)?;
    let value = field(value_length)?;
    Some(Record { offset, received, key, value, headers: Headers { count, bytes: body } })
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

fn take_short(bytes: &mut &[u8]) -> Option<u32> {
    match u16::from_le_bytes(take(bytes)?) {
        LONG => Some(u32::from_le_bytes(take(bytes)?)),
        short => Some(u32::from(short)),
    }
}

fn split<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> RecordBuffer {
        let mut buffer = RecordBuffer::default();
        let headers = [("id", Some(b"abc".as_slice())), ("none", None)];
        buffer.push(Offset(7), Timestamp(1000), Some(b"k"), Some(b"{}"), headers);
        buffer.push(Offset(9), Timestamp(1001), None, None, []);
        buffer
    }

    #[test]
    fn records_come_back_as_they_were_pushed() {
        let buffer = RecordBuffer::from_bytes(sample().checksummed().to_vec()).unwrap();
        let records: Vec<_> = buffer.iter().collect();
        assert_eq!(records.len(), 2);
        assert_eq!((records[0].offset, records[0].received), (Offset(7), Timestamp(1000)));
        assert_eq!((records[0].key, records[0].value), (Some(b"k".as_slice()), Some(b"{}".as_slice())));
        assert_eq!(records[0].headers.id(), Some("abc"));
        assert_eq!(records[0].headers.iter().last(), Some(("none", None)));
        assert_eq!((records[1].key, records[1].value), (None, None));
        assert!(records[1].headers.is_empty());
    }

    #[test]
    fn headers_may_be_many_and_have_long_names() {
        let name = "n".repeat(65_540);
        for (count, name) in [(65_534, "h"), (65_535, "h"), (65_537, "h"), (1, &name[..65_535]), (2, &*name)] {
            let mut buffer = RecordBuffer::default();
            let headers = std::iter::repeat_n((name, Some(b"v".as_slice())), count);
            buffer.push(Offset(1), Timestamp(0), Some(b"k"), Some(b"{}"), headers);
            let buffer = RecordBuffer::from_bytes(buffer.checksummed().to_vec()).unwrap();
            let record = buffer.iter().next().unwrap();
            assert_eq!((record.key, record.value), (Some(b"k".as_slice()), Some(b"{}".as_slice())));
            assert_eq!(record.headers.iter().count(), count);
            assert!(record.headers.iter().all(|header| header == (name, Some(b"v".as_slice()))));
        }
    }

    #[test]
    fn a_record_of_an_ordinary_size_is_stored_as_it_always_was() {
        let mut buffer = RecordBuffer::default();
        buffer.push(Offset(1), Timestamp(2), None, Some(b"{}"), [("id", Some(b"a".as_slice()))]);
        let body = b"\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\xff\xff\xff\xff\x02\0\0\0\x01\0{}\x02\0\x01\0\0\0ida";
        assert_eq!(&buffer.checksummed()[PREFIX..], body);
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let good = sample().checksummed().to_vec();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert!(RecordBuffer::from_bytes(bad).is_err(), "byte {at} flipped");
        }
    }

    #[test]
    fn a_buffer_takes_only_the_records_that_are_meant() {
        let mut two = RecordBuffer::default();
        two.push(Offset(7), Timestamp(1), None, Some(b"{}"), []);
        two.push(Offset(8), Timestamp(1), None, Some(b"{}"), []);
        let stored = two.checksummed().to_vec();
        let fill = |bytes: &mut [u8]| {
            bytes.copy_from_slice(&stored);
            Ok::<_, ()>(())
        };
        let mut buffer = sample();
        let (size, second) = (buffer.size(), stored.len() / 2);
        let mut take = |from, to| buffer.extend(Offset(from)..Offset(to), stored.len(), fill).unwrap();
        assert_eq!(take(6, 8), Err(Corrupt::Other(0)));
        assert_eq!(take(7, 10), Err(Corrupt::Short(stored.len())));
        assert_eq!(take(7, 9), Ok(()));
        assert_eq!(buffer.extend(Offset(9)..Offset(11), stored.len(), |_| Err("gone")), Err("gone"));
        assert_eq!((buffer.len(), buffer.size()), (4, size + 2 * second));
        assert!(buffer.iter().map(|record| record.offset.0).eq([7, 9, 7, 8]));
    }

    #[test]
    fn a_cut_buffer_is_short() {
        let good = sample().checksummed().to_vec();
        let second = good.len() - PREFIX - FIXED;
        let cut = RecordBuffer::from_bytes(good[..good.len() - 1].to_vec());
        assert_eq!(cut.err(), Some(Corrupt::Short(second)));
    }
}
