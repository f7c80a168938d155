//! A strict, fast reading of JSON: it takes what is valid and nested no deeper than [`MAX_DEPTH`], and nothing else.
//!
//! Events are read three times on their way (in, into the archive, into the aggregates), so this is where time goes.
//! What is not taken here is left to serde_json, which words the error: property tests compare the two. Strings, which are most of
//! an event, are searched many bytes at a time ([`vector`]), and names are told apart by their marks.

use smallvec::SmallVec;

use super::{
    MAX_DEPTH,
    names::{Names, mark},
};
use crate::vector;

/// The JSON texts of fields, in the order of their names; more than these few need memory of their own.
pub type Texts<'a> = SmallVec<[Option<&'a str>; 12]>;

/// Nothing in so many places.
#[inline(always)]
pub fn none<'a>(places: usize) -> Texts<'a> {
    let few = [None; 12];
    if places <= few.len() { SmallVec::from_buf_and_len(few, places) } else { SmallVec::from_elem(None, places) }
}

/// Sees the parts of a text as they are read; `()` sees nothing and costs nothing.
pub trait Watch<'a> {
    fn object_opens(&mut self) {}
    /// Of the object that opened last, without its quotes.
    fn name(&mut self, _json: &'a [u8], _mark: u32, _escaped: bool) {}
    fn object_closes(&mut self) {}
    /// One with escapes, with its quotes.
    fn escaped_string(&mut self, _json: &'a [u8]) {}
    fn number(&mut self, _json: &'a [u8], _has_exponent: bool) {}
}

impl Watch<'_> for () {}

/// Whether the whole of `text` is one value.
pub fn is_value<'a>(text: &'a str, watch: &mut impl Watch<'a>) -> bool {
    let json = Json(text.as_bytes());
    json.value(json.white_space(0), 0, watch).is_some_and(|end| json.white_space(end) == text.len())
}

/// The whole of `text` as an object, and the values of its fields of these names, of duplicates the last.
pub fn object<'a>(text: &'a str, names: &impl Names, watch: &mut impl Watch<'a>) -> Option<Texts<'a>> {
    let mut found = SmallVec::from_elem(None, names.count());
    find(text, names, watch, &mut found).then_some(found)
}

/// The same; the values are put into `found`, which has as many places as there are names and is empty.
pub fn find<'a>(text: &'a str, names: &impl Names, watch: &mut impl Watch<'a>, found: &mut [Option<&'a str>]) -> bool {
    let is_object = Json(text.as_bytes()).fields(text, names, watch, found).is_some();
    if !is_object {
        found.fill(None);
    }
    is_object
}

/// The whole of `text` as an object: calls `member` with each name, in its quotes, and its value. Where `member` says so,
/// the object is not taken.
pub fn members<'a>(
    text: &'a str,
    watch: &mut impl Watch<'a>,
    mut member: impl FnMut(&'a str, &'a str) -> Option<()>,
) -> Option<()> {
    let json = Json(text.as_bytes());
    watch.object_opens();
    json.only_sequence([b'{', b'}'], |at| {
        let Str { end, escaped } = json.string(json.after(at, b'"')?)?;
        let name = &json.0[at + 1..end];
        watch.name(name, mark(name), escaped);
        let value = json.colon(end + 1)?;
        let after = json.value(value, 1, watch)?;
        member(&text[at..=end], &text[value..after])?;
        Some(after)
    })?;
    watch.object_closes();
    Some(())
}

/// The place of a name as it stands, with its quotes; nothing where escapes in it are no characters.
#[cold]
fn escaped_place(names: &impl Names, json: &str) -> Option<Option<usize>> {
    serde_json::from_str::<String>(json).ok().map(|name| names.place(name.as_bytes(), mark(name.as_bytes())))
}

/// The whole of `text` as an array, each element as it stands there, at most `most`; `None` where it is not one, or perhaps
/// not: who asks looks closer at those.
#[cfg(test)]
pub fn array(text: &str, most: usize) -> Option<Vec<&[u8]>> {
    let json = Json(text.as_bytes());
    let mut elements = Vec::new();
    json.only_sequence([b'[', b']'], |start| {
        // An element may be nested as deep as an event.
        let end = json.value(start, 0, &mut ())?;
        if elements.len() == most {
            return None;
        }
        elements.push(&json.0[start..end]);
        Some(end)
    })?;
    Some(elements)
}

/// Where the value ends that begins at this byte of `text`; `None` where there is none, or perhaps none.
pub fn text(text: &str, at: usize) -> Option<usize> {
    // As deep as an event.
    Json(text.as_bytes()).value(at, 0, &mut ())
}

/// The whole of `text` as an array, and its element with this index, if it has so many.
pub fn element(text: &str, index: usize) -> Option<Option<&str>> {
    let json = Json(text.as_bytes());
    let (mut count, mut found) = (0, None);
    json.only_sequence([b'[', b']'], |start| {
        let end = json.value(start, 1, &mut ())?;
        if count == index {
            found = Some(&text[start..end]);
        }
        count += 1;
        Some(end)
    })?;
    Some(found)
}

/// Whether a word begins with these bytes.
#[inline(always)]
fn is_like(word: u64, bytes: &[u8; 3]) -> bool {
    let [a, b, c] = *bytes;
    word & 0xff_ffff == u64::from(a) | u64::from(b) << 8 | u64::from(c) << 16
}

/// Positions in a text. Whatever takes a position and finds what it is for returns the one behind it.
struct Json<'a>(&'a [u8]);

/// A string's characters end here, before its quote.
struct Str {
    end: usize,
    escaped: bool,
}

impl<'a> Json<'a> {
    #[inline(always)]
    fn byte(&self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    #[inline(always)]
    fn after(&self, at: usize, expected: u8) -> Option<usize> {
        (self.byte(at)? == expected).then_some(at + 1)
    }

    #[inline(always)]
    fn white_space(&self, at: usize) -> usize {
        match self.byte(at) {
            Some(..=b' ') => self.behind_white_space(at),
            _ => at,
        }
    }

    #[inline(never)]
    fn behind_white_space(&self, mut at: usize) -> usize {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.byte(at) {
            at += 1;
        }
        at
    }

    /// Behind a name: the value behind its colon.
    #[inline(always)]
    fn colon(&self, at: usize) -> Option<usize> {
        let at = if self.byte(at)? == b':' { at + 1 } else { self.after(self.white_space(at), b':')? };
        Some(self.white_space(at))
    }

    /// Reads the whole text as one object. Without white space a name ends with `":` and a string before another name with `","`:
    /// these are compared together, and all else is read part by part.
    #[inline(always)]
    fn fields(
        &self,
        text: &'a str,
        names: &impl Names,
        watch: &mut impl Watch<'a>,
        found: &mut [Option<&'a str>],
    ) -> Option<()> {
        watch.object_opens();
        let mut at = self.white_space(self.after(self.white_space(0), b'{')?);
        if self.byte(at)? != b'}' {
            at = self.after(at, b'"')?;
            // Behind the quote of a name.
            loop {
                let end = vector::special(self.0, at);
                let behind = self.word(end);
                let name = self.0.get(at..end)?;
                let (place, value, is_string);
                if behind as u16 == u16::from_le_bytes(*b"\":") && (behind >> 16) as u8 > b' ' {
                    let mark = mark(name);
                    watch.name(name, mark, false);
                    (place, value, is_string) = (names.place(name, mark), end + 2, (behind >> 16) as u8 == b'"');
                } else {
                    (place, value) = self.any_name(text, names, watch, at, end)?;
                    is_string = self.byte(value)? == b'"';
                }
                let after;
                if is_string {
                    let end = vector::special(self.0, value + 1);
                    let behind = self.word(end);
                    if is_like(behind, b"\",\"") {
                        if let Some(place) = place.and_then(|place| found.get_mut(place)) {
                            *place = text.get(value..end + 1);
                        }
                        at = end + 3;
                        continue;
                    }
                    after = self.any_string(value, end, watch)?;
                } else {
                    after = self.value(value, 1, watch)?;
                }
                if let Some(place) = place.and_then(|place| found.get_mut(place)) {
                    *place = text.get(value..after);
                }
                match self.comma(after)? {
                    (b',', next) => at = self.after(next, b'"')?,
                    (b'}', end) => {
                        at = end;
                        break;
                    }
                    _ => return None,
                }
            }
        }
        watch.object_closes();
        (self.white_space(at + 1) == self.0.len()).then_some(())
    }

    /// A name whose first special character stands at `end`: its place, and where the value begins.
    #[inline(never)]
    fn any_name(
        &self,
        text: &'a str,
        names: &impl Names,
        watch: &mut impl Watch<'a>,
        start: usize,
        end: usize,
    ) -> Option<(Option<usize>, usize)> {
        let Str { end, escaped } = self.string_from(end)?;
        let name = self.0.get(start..end)?;
        let mark = mark(name);
        watch.name(name, mark, escaped);
        let place =
            if escaped { escaped_place(names, text.get(start - 1..end + 1)?)? } else { names.place(name, mark) };
        Some((place, self.colon(end + 1)?))
    }

    /// A string whose first special character stands at `end`: what is behind it.
    #[inline(always)]
    fn any_string(&self, start: usize, end: usize, watch: &mut impl Watch<'a>) -> Option<usize> {
        let Str { end, escaped } = self.string_from(end)?;
        if escaped {
            watch.escaped_string(self.0.get(start..end + 1)?);
        }
        Some(end + 1)
    }

    /// The eight bytes from there on, or none where they are fewer.
    #[inline(always)]
    fn word(&self, at: usize) -> u64 {
        vector::chunk(self.0, at).map_or(0, |word| u64::from_le_bytes(*word))
    }

    /// Behind a value: what stands there, and the place behind it and white space where it is a comma, its own where it is not.
    #[inline(always)]
    fn comma(&self, at: usize) -> Option<(u8, usize)> {
        let (byte, at) = match self.byte(at)? {
            ..=b' ' => {
                let at = self.behind_white_space(at);
                (self.byte(at)?, at)
            }
            byte => (byte, at),
        };
        Some((byte, if byte == b',' { self.white_space(at + 1) } else { at }))
    }

    /// Reads the whole text as one object or array, each item of it by `item`.
    #[inline]
    fn only_sequence(&self, [open, close]: [u8; 2], mut item: impl FnMut(usize) -> Option<usize>) -> Option<()> {
        let mut at = self.white_space(self.after(self.white_space(0), open)?);
        if self.byte(at)? != close {
            loop {
                at = self.white_space(item(at)?);
                match self.byte(at)? {
                    b',' => at = self.white_space(at + 1),
                    byte if byte == close => break,
                    _ => return None,
                }
            }
        }
        (self.white_space(at + 1) == self.0.len()).then_some(())
    }

    /// A value inside of `inside` objects and arrays.
    #[inline(always)]
    fn value(&self, at: usize, inside: usize, watch: &mut impl Watch<'a>) -> Option<usize> {
        match self.byte(at)? {
            b'"' => {
                let Str { end, escaped } = self.string(at + 1)?;
                if escaped {
                    watch.escaped_string(&self.0[at..=end]);
                }
                Some(end + 1)
            }
            b'{' | b'[' => self.nested(at, inside, watch),
            _ => self.scalar(at, watch),
        }
    }

    /// An object or an array with all that is in it.
    fn nested(&self, mut at: usize, inside: usize, watch: &mut impl Watch<'a>) -> Option<usize> {
        // Of each level a bit: whether it is an object. MAX_DEPTH levels fit.
        let (mut levels, mut depth) = (0u128, 0);
        loop {
            let open = self.byte(at)?;
            if open == b'{' || open == b'[' {
                depth += 1;
                if inside + depth > MAX_DEPTH {
                    return None;
                }
                let is_object = open == b'{';
                levels = levels << 1 | u128::from(is_object);
                if is_object {
                    watch.object_opens();
                }
                at = self.white_space(at + 1);
                // In ASCII the closing ones are two behind the opening ones.
                if self.byte(at)? != open + 2 {
                    if is_object {
                        at = self.name(at, watch)?;
                    }
                    continue;
                }
                if is_object {
                    watch.object_closes();
                }
                at += 1;
                levels >>= 1;
                depth -= 1;
            } else {
                at = self.scalar(at, watch)?;
            }
            // Behind a value: levels end, or the next value begins.
            loop {
                if depth == 0 {
                    return Some(at);
                }
                at = self.white_space(at);
                let is_object = levels & 1 == 1;
                match self.byte(at)? {
                    b',' => {
                        at = self.white_space(at + 1);
                        if is_object {
                            at = self.name(at, watch)?;
                        }
                        break;
                    }
                    b'}' if is_object => watch.object_closes(),
                    b']' if !is_object => {}
                    _ => return None,
                }
                at += 1;
                levels >>= 1;
                depth -= 1;
            }
        }
    }

    /// A name and its colon, and the white space behind it.
    fn name(&self, at: usize, watch: &mut impl Watch<'a>) -> Option<usize> {
        let Str { end, escaped } = self.string(self.after(at, b'"')?)?;
        let name = self.0.get(at + 1..end)?;
        watch.name(name, mark(name), escaped);
        self.colon(end + 1)
    }

    fn scalar(&self, at: usize, watch: &mut impl Watch<'a>) -> Option<usize> {
        let literal = |text: &[u8]| self.0[at..].starts_with(text).then_some(at + text.len());
        match self.byte(at)? {
            b'"' => {
                let Str { end, escaped } = self.string(at + 1)?;
                if escaped {
                    watch.escaped_string(&self.0[at..=end]);
                }
                Some(end + 1)
            }
            b't' => literal(b"true"),
            b'f' => literal(b"false"),
            b'n' => literal(b"null"),
            _ => self.number(at, watch),
        }
    }

    fn number(&self, start: usize, watch: &mut impl Watch<'a>) -> Option<usize> {
        let at = start + usize::from(self.byte(start)? == b'-');
        let mut at = match self.byte(at)? {
            b'0' => at + 1,
            _ => self.digits(at)?,
        };
        if self.byte(at) == Some(b'.') {
            at = self.digits(at + 1)?;
        }
        let has_exponent = matches!(self.byte(at), Some(b'e' | b'E'));
        if has_exponent {
            at += 1;
            if let Some(b'+' | b'-') = self.byte(at) {
                at += 1;
            }
            at = self.digits(at)?;
        }
        watch.number(&self.0[start..at], has_exponent);
        Some(at)
    }

    /// One at least.
    fn digits(&self, at: usize) -> Option<usize> {
        let count = self.0.get(at..)?.iter().take_while(|byte| byte.is_ascii_digit()).count();
        (count > 0).then_some(at + count)
    }

    /// Behind the opening quote.
    #[inline(always)]
    fn string(&self, at: usize) -> Option<Str> {
        self.string_from(vector::special(self.0, at))
    }

    /// A string from its first special character on.
    #[inline(always)]
    fn string_from(&self, at: usize) -> Option<Str> {
        if self.byte(at)? == b'"' { Some(Str { end: at, escaped: false }) } else { self.escaped(at) }
    }

    /// The same where it is no quote.
    fn escaped(&self, mut at: usize) -> Option<Str> {
        loop {
            match self.byte(at)? {
                b'"' => return Some(Str { end: at, escaped: true }),
                b'\\' => {
                    at += match self.byte(at + 1)? {
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => 2,
                        b'u' if self.0.get(at + 2..at + 6)?.iter().all(u8::is_ascii_hexdigit) => 6,
                        _ => return None,
                    };
                }
                // A control character.
                _ => return None,
            }
            at = vector::special(self.0, at);
        }
    }
}
