//! Bytes, many at a time: sixteen with the vectors that each x86-64 has, thirty-two where the processor says that it has those,
//! and eight in a word everywhere else. All find the same. `unsafe` for that stands in this module alone.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::{mem::MaybeUninit, str::Utf8Error};

/// Calls what this machine has.
macro_rules! lanes {
    ($function:ident($($argument:expr),*)) => {{
        #[cfg(target_arch = "x86_64")]
        if has_vectors() {
            return x86::$function($($argument),*);
        }
        portable::$function($($argument),*)
    }};
}

/// Tests may say otherwise.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn has_vectors() -> bool {
    #[cfg(test)]
    return tests::LANES.get() != tests::Lanes::Eight;
    #[cfg(not(test))]
    true
}

/// The text that these bytes are.
///
/// # Errors
/// They are no UTF-8.
#[inline(always)]
pub fn text(bytes: &[u8]) -> Result<&str, Utf8Error> {
    survey(bytes).map(|(text, _)| text)
}

/// The same, and whether a control character stands in it.
///
/// # Errors
/// They are no UTF-8.
#[inline(always)]
pub fn survey(bytes: &[u8]) -> Result<(&str, bool), Utf8Error> {
    let Survey { is_ascii, has_control } = look_at(bytes);
    if is_ascii {
        // SAFETY: ASCII is UTF-8.
        return Ok((unsafe { std::str::from_utf8_unchecked(bytes) }, has_control));
    }
    beyond_ascii(bytes).map(|text| (text, has_control))
}

#[inline(never)]
fn beyond_ascii(bytes: &[u8]) -> Result<&str, Utf8Error> {
    // It does not say where they are wrong.
    simdutf8::basic::from_utf8(bytes).or_else(|_| std::str::from_utf8(bytes))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Survey {
    is_ascii: bool,
    has_control: bool,
}

#[inline(always)]
fn look_at(bytes: &[u8]) -> Survey {
    lanes!(survey(bytes))
}

/// The place of the next byte from `at` on that is no ordinary part of a JSON string: a quote, a backslash, or a control
/// character. Where there is none, the length of the text.
#[inline(always)]
pub fn special(text: &[u8], at: usize) -> usize {
    lanes!(special(text, at))
}

/// Whether it has no such byte.
#[inline(always)]
pub fn is_plain(text: &[u8]) -> bool {
    lanes!(is_plain(text))
}

fn is_special(byte: u8) -> bool {
    matches!(byte, b'"' | b'\\' | ..0x20)
}

/// The place behind the bracket that closes the one at `at`, where strings end and brackets match up to there. None is told
/// where they do not, or where that would be too much to look for here.
#[inline]
pub fn closed(json: &[u8], at: usize) -> Option<usize> {
    lanes!(closed(json, at))
}

/// The lines that are not blank, without the white space around them; none where they are more than `most`.
#[inline]
pub fn lines(text: &[u8], most: usize) -> Option<Vec<&[u8]>> {
    lanes!(lines(text, most))
}

/// It without the white space around it, as JSON has that.
#[inline(always)]
pub fn trim(bytes: &[u8]) -> &[u8] {
    match (bytes.first(), bytes.last()) {
        (Some(b'!'..), Some(b'!'..)) => bytes,
        _ => trimmed(bytes),
    }
}

#[inline(never)]
fn trimmed(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t' | b'\r' | b'\n', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t' | b'\r' | b'\n'] = bytes {
        bytes = rest;
    }
    bytes
}

/// The bytes from `at` on, where there are so many.
#[inline(always)]
pub fn chunk<const N: usize>(text: &[u8], at: usize) -> Option<&[u8; N]> {
    let last = text.len().checked_sub(N)?;
    // SAFETY: they end where the text ends, or before, and an array of bytes has no alignment.
    (at <= last).then(|| unsafe { &*text.as_ptr().add(at).cast() })
}

/// Numbers on a stack, of which it is asked whether two are the same.
pub struct Marks {
    count: usize,
    /// Of these, those below the count are written.
    few: Few,
    /// Those for which there is no room in that.
    many: Vec<u32>,
}

type Few = [MaybeUninit<u32>; ROOM + PAST];
const ROOM: usize = 60;
/// What is read behind the last one at most.
const PAST: usize = 4;
/// Up to this many are compared with each other.
const COMPARED: usize = 40;

impl Marks {
    pub const fn new() -> Self {
        Self { count: 0, few: [const { MaybeUninit::uninit() }; ROOM + PAST], many: Vec::new() }
    }

    #[inline(always)]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Adds an odd number.
    #[inline(always)]
    pub fn push(&mut self, number: u32) {
        if self.count < ROOM {
            self.few[self.count].write(number);
        } else {
            self.push_to_many(number);
        }
        self.count += 1;
    }

    #[cold]
    fn push_to_many(&mut self, number: u32) {
        self.many.push(number);
    }

    #[inline(always)]
    pub fn truncate(&mut self, count: usize) {
        if self.count > ROOM {
            self.many.truncate(count.saturating_sub(ROOM));
        }
        self.count = self.count.min(count);
    }

    /// Takes the last one away.
    #[inline(always)]
    pub fn pop(&mut self) -> Option<u32> {
        let last = self.count.checked_sub(1)?;
        let number = match self.few.get(last) {
            // SAFETY: those below the count are written.
            Some(number) if last < ROOM => unsafe { number.assume_init() },
            _ => *self.many.last()?,
        };
        self.truncate(last);
        Some(number)
    }

    /// Whether two of those from `start` on are the same.
    #[inline(always)]
    pub fn has_twice(&mut self, start: usize) -> bool {
        if self.count > ROOM || self.count.saturating_sub(start) > COMPARED {
            return self.has_twice_of_many(start);
        }
        // What is read behind them is even, and differs.
        for (place, number) in self.few[self.count..].iter_mut().take(PAST).zip([0, 2, 4, 6]) {
            place.write(number);
        }
        are_twice(&self.few, start.min(self.count), self.count)
    }

    #[cold]
    fn has_twice_of_many(&self, start: usize) -> bool {
        let few = self.few.get(start..self.count.min(ROOM)).unwrap_or_default();
        // SAFETY: those below the count are written.
        let few = few.iter().map(|number| unsafe { number.assume_init() });
        let many = self.many.get(start.saturating_sub(ROOM)..).unwrap_or_default();
        let mut all: Vec<u32> = few.chain(many.iter().copied()).collect();
        all.sort_unstable();
        all.windows(2).any(|pair| pair[0] == pair[1])
    }
}

/// Whether two of the numbers from `start` up to `end` are the same, with what is written behind them.
#[inline(always)]
fn are_twice(few: &Few, start: usize, end: usize) -> bool {
    lanes!(are_twice(few, start, end))
}

#[cfg(test)]
#[path = "vector/differential/tests.rs"]
mod differential;
#[cfg(test)]
mod tests;
