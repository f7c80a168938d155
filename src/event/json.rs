//! A strict, fast reading of JSON: it takes what is valid and nested no deeper than [`MAX_DEPTH`], and nothing else.
//!
//! Events are read three times on their way (in, into the archive, into the aggregates), so this is where time goes.
//! What is not taken here is left to serde_json, which words the error: property tests compare the two. Strings, which are most of an
//! event, are searched eight bytes at a time (Mycroft's test for a zero byte; Knuth, TAOCP 7.1.3).

use smallvec::SmallVec;

use super::MAX_DEPTH;

/// The JSON texts of fields, in the order of their names; more than these few need memory of their own.
pub type Texts<'a> = SmallVec<[Option<&'a str>; 12]>;

/// Sees the parts of a text as they are read; `()` sees nothing and costs nothing.
pub trait Watch<'a> {
    fn object_opens(&mut self) {}
    /// Of the object that opened last, with its quotes.
    fn name(&mut self, _json: &'a [u8], _escaped: bool) {}
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
pub fn object<'a, N: AsRef<str>>(text: &'a str, names: &[N], watch: &mut impl Watch<'a>) -> Option<Texts<'a>> {
    let json = Json(text.as_bytes());
    let mut found = SmallVec::from_elem(None, names.len());
    watch.object_opens();
    json.only_sequence([b'{', b'}'], |at| {
        let start = json.after(at, b'"')?;
        let Str { end, escaped } = json.string(start)?;
        watch.name(&json.0[at..=end], escaped);
        let place = if escaped { escaped_place(names, &text[at..=end])? } else { place(names, &text[start..end]) };
        let value = json.white_space(json.after(json.white_space(end + 1), b':')?);
        let end = json.value(value, 1, watch)?;
        if let Some(place) = place {
            found[place] = Some(&text[value..end]);
        }
        Some(end)
    })?;
    watch.object_closes();
    Some(found)
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
        watch.name(&json.0[at..=end], escaped);
        let value = json.white_space(json.after(json.white_space(end + 1), b':')?);
        let after = json.value(value, 1, watch)?;
        member(&text[at..=end], &text[value..after])?;
        Some(after)
    })?;
    watch.object_closes();
    Some(())
}

/// Among `names`. Most fields are none of them, and most of those differ from all in their length or first letter: a
/// comparison of the whole is a call.
fn place<N: AsRef<str>>(names: &[N], name: &str) -> Option<usize> {
    let first = name.as_bytes().first();
    let mut names = names.iter().map(N::as_ref);
    names.position(|other| other.len() == name.len() && other.as_bytes().first() == first && other == name)
}

/// The same of a name as it stands, with its quotes; nothing where escapes in it are no characters.
#[cold]
fn escaped_place<N: AsRef<str>>(names: &[N], json: &str) -> Option<Option<usize>> {
    serde_json::from_str::<String>(json).ok().map(|name| place(names, &name))
}

/// The whole of `text` as an array, each element as it stands there, at most `most`; `None` where it is not one, or perhaps
/// not: who asks looks closer at those.
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

/// Positions in a text. Whatever takes a position and finds what it is for returns the one behind it.
struct Json<'a>(&'a [u8]);

/// A string's characters end here, before its quote.
struct Str {
    end: usize,
    escaped: bool,
}

impl<'a> Json<'a> {
    fn byte(&self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    fn after(&self, at: usize, expected: u8) -> Option<usize> {
        (self.byte(at)? == expected).then_some(at + 1)
    }

    fn white_space(&self, mut at: usize) -> usize {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.byte(at) {
            at += 1;
        }
        at
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
    fn value(&self, at: usize, inside: usize, watch: &mut impl Watch<'a>) -> Option<usize> {
        match self.byte(at)? {
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
        watch.name(&self.0[at..=end], escaped);
        Some(self.white_space(self.after(self.white_space(end + 1), b':')?))
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
    fn string(&self, mut at: usize) -> Option<Str> {
        let mut escaped = false;
        loop {
            at = self.special(at)?;
            match self.0[at] {
                b'"' => return Some(Str { end: at, escaped }),
                b'\\' => {
                    escaped = true;
                    at += match self.byte(at + 1)? {
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => 2,
                        b'u' if self.0.get(at + 2..at + 6)?.iter().all(u8::is_ascii_hexdigit) => 6,
                        _ => return None,
                    };
                }
                // A control character.
                _ => return None,
            }
        }
    }

    /// The next byte that is no ordinary part of a string: a quote, a backslash, or a control character.
    fn special(&self, mut at: usize) -> Option<usize> {
        const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
        const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
        while let Some(eight) = self.0.get(at..).and_then(<[u8]>::first_chunk::<8>) {
            // Little endian: the lowest bit that is set belongs to the first such byte. Those above may be wrong.
            let eight = u64::from_le_bytes(*eight);
            let is_zero = |bytes: u64| bytes.wrapping_sub(ONES) & !bytes;
            let quotes = is_zero(eight ^ (ONES * u64::from(b'"')));
            let backslashes = is_zero(eight ^ (ONES * u64::from(b'\\')));
            let control = eight.wrapping_sub(ONES * 0x20) & !eight;
            let special = (quotes | backslashes | control) & HIGH;
            if special != 0 {
                return Some(at + special.trailing_zeros() as usize / 8);
            }
            at += 8;
        }
        let rest = self.0.get(at..)?;
        rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | ..0x20)).map(|offset| at + offset)
    }
}
