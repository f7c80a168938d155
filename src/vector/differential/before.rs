//! The reader of JSON as it was before it had vectors, step by step: what the one of now is compared with. It is not to be
//! made faster, nor to be used for anything else.

use std::borrow::Cow;

use super::{MAX_DEPTH, Unreadable};

const LONGEST_NUMBER: usize = 1000;
const LONGEST_NAME: usize = 50_000;

/// Finds the fields called `names` in any JSON value that every reader can read; one that is no object has none.
pub fn find_readable<'a>(text: &'a str, names: &[String]) -> Result<Vec<Option<&'a str>>, Unreadable> {
    let mut findings = Findings::default();
    if let Some(found) = object(text, names, &mut findings) {
        return findings.verdict().map(|()| found);
    }
    check(text)?;
    Ok(vec![None; names.len()])
}

/// Whether every reader can read the whole of `text`.
pub fn check(text: &str) -> Result<(), Unreadable> {
    let mut findings = Findings::default();
    if is_value(text, &mut findings) {
        return findings.verdict();
    }
    Err(if is_deeper_than(text.as_bytes()) { Unreadable::TooDeep } else { Unreadable::NotJson })
}

/// What is found on the way through a text; the first counts.
#[derive(Default)]
struct Findings<'a> {
    first: Option<Unreadable>,
    /// Of the objects that are open, one after the other.
    names: Vec<Cow<'a, [u8]>>,
    /// Where the names of each open object begin.
    open: Vec<usize>,
}

impl<'a> Findings<'a> {
    fn verdict(self) -> Result<(), Unreadable> {
        self.first.map_or(Ok(()), Err)
    }

    fn find(&mut self, what: Unreadable) {
        self.first.get_or_insert(what);
    }
}

impl<'a> Watch<'a> for Findings<'a> {
    fn object_opens(&mut self) {
        self.open.push(self.names.len());
    }

    fn name(&mut self, json: &'a [u8], escaped: bool) {
        let name = if escaped {
            self.escaped_string(json);
            // Of a lone surrogate there are no characters; it was found already.
            Cow::Owned(serde_json::from_slice::<String>(json).unwrap_or_default().into_bytes())
        } else {
            Cow::Borrowed(&json[1..json.len() - 1])
        };
        if name.len() > LONGEST_NAME {
            self.find(Unreadable::LongName(shown(&name)));
        }
        self.names.push(name);
    }

    fn object_closes(&mut self) {
        let start = self.open.pop().unwrap_or_default();
        if self.first.is_none()
            && let Some(name) = repeated(&mut self.names[start..])
        {
            self.first = Some(Unreadable::RepeatedName(shown(name)));
        }
        self.names.truncate(start);
    }

    fn escaped_string(&mut self, json: &'a [u8]) {
        if let Some(escape) = lone_surrogate(json) {
            self.find(Unreadable::LoneSurrogate(shown(escape)));
        }
    }

    fn number(&mut self, json: &'a [u8], has_exponent: bool) {
        /// Numbers of this many digits are below 1.8e308.
        const SAFE: usize = 300;
        if json.len() <= SAFE && !has_exponent {
            return;
        }
        if json.len() > LONGEST_NUMBER {
            self.find(Unreadable::LongNumber(shown(json)));
        } else if std::str::from_utf8(json).ok().and_then(|text| text.parse().ok()).is_none_or(f64::is_infinite) {
            self.find(Unreadable::OutOfRange(shown(json)));
        }
    }
}

/// A name that stands twice among these; their order is lost.
fn repeated<'n>(names: &'n mut [Cow<'_, [u8]>]) -> Option<&'n [u8]> {
    /// Up to this many are compared with each other; most differ in their length.
    const FEW: usize = 16;
    if names.len() <= FEW {
        let again = (1..names.len()).find(|at| names[..*at].contains(&names[*at]))?;
        return Some(&names[again]);
    }
    names.sort_unstable();
    names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| &*pair[0])
}

/// The first escape that is half of a pair without its other half. The string is valid JSON.
fn lone_surrogate(json: &[u8]) -> Option<&[u8]> {
    let unit = |at: usize| match json.get(at..at + 6) {
        Some(escape @ [b'\\', b'u', ..]) => {
            std::str::from_utf8(&escape[2..]).ok().and_then(|hex| u16::from_str_radix(hex, 16).ok())
        }
        _ => None,
    };
    let mut at = 0;
    while let Some(offset) = memchr::memchr(b'\\', json.get(at..)?) {
        at += offset;
        at += match unit(at) {
            None => 2,
            Some(0xd800..=0xdbff) if matches!(unit(at + 6), Some(0xdc00..=0xdfff)) => 12,
            Some(0xd800..=0xdfff) => return json.get(at..at + 6),
            Some(_) => 6,
        };
    }
    None
}

/// The beginning of it: it may be as long as an event.
fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 40;
    let text = String::from_utf8_lossy(bytes);
    match text.char_indices().nth(MOST) {
        None => text.into_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// Whether brackets are open deeper than [`MAX_DEPTH`] anywhere. serde_json has no such limit where it skips values.
pub fn is_deeper_than(json: &[u8]) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return true;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

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
pub fn object<'a>(text: &'a str, names: &[String], watch: &mut impl Watch<'a>) -> Option<Vec<Option<&'a str>>> {
    let json = Json(text.as_bytes());
    let mut found = vec![None; names.len()];
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

/// Among `names`. Most fields are none of them, and most of those differ from all in their length or first letter: a
/// comparison of the whole is a call.
fn place(names: &[String], name: &str) -> Option<usize> {
    let first = name.as_bytes().first();
    let mut names = names.iter();
    names.position(|other| other.len() == name.len() && other.as_bytes().first() == first && *other == name)
}

/// The same of a name as it stands, with its quotes; nothing where escapes in it are no characters.
#[cold]
fn escaped_place(names: &[String], json: &str) -> Option<Option<usize>> {
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
