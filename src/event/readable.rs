//! Which JSON values every reader can read.
//!
//! RFC 8259 lets names repeat, escapes stand for half a character and numbers be of any size, and leaves to each reader
//! what it makes of that: DuckDB, Spark, ClickHouse, pyarrow, Python and jq refuse such a file, or lose records of it
//! silently. RFC 7493 (I-JSON, 2.1 to 2.3) excludes them; its noncharacters harm no reader and are not looked for.
//! Whether a record stands as `"event"` or as `"raw"` in the archive follows from this and from its bytes alone.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::{
    fields::{MAX_DEPTH, is_deeper_than},
    json::{self, Watch},
    names,
};

use crate::vector::Marks;

/// Characters of the longest number: Jackson's bound, hence Spark's. Python's is 4,300 digits.
const LONGEST_NUMBER: usize = 1000;
/// Bytes of the longest name: Jackson's bound, in characters; Spark 4 loses a record that has a longer one.
const LONGEST_NAME: usize = 50_000;

/// What not every reader can read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("it is no JSON")]
    NotJson,
    #[error("it is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    #[error("the name {0:?} stands twice in one object")]
    RepeatedName(String),
    #[error("a string holds half of a surrogate pair: {0}")]
    LoneSurrogate(String),
    #[error("the number {0} is beyond the range of a double")]
    OutOfRange(String),
    #[error("a number is longer than {LONGEST_NUMBER} characters: {0}")]
    LongNumber(String),
    #[error("a name is longer than {LONGEST_NAME} bytes: {0:?}")]
    LongName(String),
}

/// Whether every reader can read the whole of `text`.
pub fn check(text: &str) -> Result<(), Unreadable> {
    let mut glance = Glance::default();
    if json::is_value(text, &mut glance) {
        return if glance.has_doubt() { closely(text) } else { Ok(()) };
    }
    Err(if is_deeper_than(MAX_DEPTH, text.as_bytes()) { Unreadable::TooDeep } else { Unreadable::NotJson })
}

/// The first finding in a text that is one value.
#[cold]
pub(super) fn closely(text: &str) -> Result<(), Unreadable> {
    let mut findings = Findings::default();
    json::is_value(text, &mut findings);
    findings.verdict()
}

/// What is found on the way through a text; the first counts.
#[derive(Default)]
pub struct Findings<'a> {
    first: Option<Unreadable>,
    /// Of the objects that are open, one after the other.
    names: SmallVec<[Cow<'a, [u8]>; 24]>,
    /// Where the names of each open object begin.
    open: SmallVec<[usize; 16]>,
}

impl<'a> Findings<'a> {
    pub fn verdict(self) -> Result<(), Unreadable> {
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

    fn name(&mut self, name: &'a [u8], _: u32, escaped: bool) {
        let name = if escaped {
            if let Some(escape) = lone_surrogate(name) {
                self.find(Unreadable::LoneSurrogate(shown(escape)));
            }
            Cow::Owned(unescaped(name))
        } else {
            Cow::Borrowed(name)
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
        if is_large(json, has_exponent) {
            if json.len() > LONGEST_NUMBER {
                self.find(Unreadable::LongNumber(shown(json)));
            } else if is_out_of_range(json) {
                self.find(Unreadable::OutOfRange(shown(json)));
            }
        }
    }
}

/// Sees whether there may be a finding, in a fraction of the time: where it has no doubt there is none.
pub struct Glance {
    has_doubt: bool,
    /// Those of the names in the objects that are open, one after the other, and before each object's where those of the one
    /// around it begin.
    marks: Marks,
    /// Where those of the object begin that opened last.
    start: usize,
}

impl Default for Glance {
    fn default() -> Self {
        Self { has_doubt: false, marks: Marks::new(), start: 0 }
    }
}

impl Glance {
    #[inline(always)]
    pub fn has_doubt(&self) -> bool {
        self.has_doubt
    }
}

impl<'a> Watch<'a> for Glance {
    #[inline(always)]
    fn object_opens(&mut self) {
        self.marks.push(self.start as u32);
        self.start = self.marks.len();
    }

    #[inline(always)]
    fn name(&mut self, name: &'a [u8], mark: u32, escaped: bool) {
        let mark = if escaped {
            let (name, is_lone) = (unescaped(name), lone_surrogate(name).is_some());
            self.has_doubt |= is_lone;
            names::mark(&name)
        } else {
            mark
        };
        if name.len() > LONGEST_NAME {
            self.has_doubt = true;
        }
        self.marks.push(mark | 1);
    }

    #[inline(always)]
    fn object_closes(&mut self) {
        if self.marks.has_twice(self.start) {
            self.has_doubt = true;
        }
        self.marks.truncate(self.start);
        self.start = self.marks.pop().unwrap_or_default() as usize;
    }

    fn escaped_string(&mut self, json: &'a [u8]) {
        self.has_doubt |= lone_surrogate(json).is_some();
    }

    #[inline(always)]
    fn number(&mut self, json: &'a [u8], has_exponent: bool) {
        if is_large(json, has_exponent) {
            self.has_doubt |= json.len() > LONGEST_NUMBER || is_out_of_range(json);
        }
    }
}

/// The characters of a name that stands there with escapes; of a lone surrogate there are none.
#[cold]
fn unescaped(name: &[u8]) -> Vec<u8> {
    let json = [b"\"", name, b"\""].concat();
    serde_json::from_slice::<String>(&json).unwrap_or_default().into_bytes()
}

/// Whether a number may be beyond the range of a double, or too long: those of so many digits are not, nor small powers of ten
/// of them.
#[inline(always)]
fn is_large(json: &[u8], has_exponent: bool) -> bool {
    const SAFE: usize = 200;
    match json {
        _ if json.len() > SAFE => true,
        // An exponent below 100: it has one digit or two, behind its sign or without.
        [.., b'e' | b'E', _] | [.., b'e' | b'E', _, _] | [.., b'e' | b'E', b'+' | b'-', _, _] => false,
        _ => has_exponent,
    }
}

#[cold]
fn is_out_of_range(json: &[u8]) -> bool {
    std::str::from_utf8(json).ok().and_then(|text| text.parse().ok()).is_none_or(f64::is_infinite)
}

/// Up to this many are compared with each other; most differ in their length.
const FEW: usize = 16;

/// A name that stands twice among these; their order is lost.
fn repeated<'n>(names: &'n mut [Cow<'_, [u8]>]) -> Option<&'n [u8]> {
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
pub(super) fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 40;
    let text = String::from_utf8_lossy(bytes);
    match text.char_indices().nth(MOST) {
        None => text.into_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*, sample::select};
    use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

    use super::*;

    #[test]
    fn what_not_every_reader_takes_is_named() {
        let deep = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        let many = |last: &str| {
            let names: Vec<String> = (0..40).map(|at| format!("\"n{at}\":{at}")).collect();
            format!("{{{},\"{last}\":0}}", names.join(","))
        };
        let digits = |count: usize| format!("0.{}", "1".repeat(count - 2));
        let repeated = |name: &str| Err(Unreadable::RepeatedName(name.to_owned()));
        let surrogate = |text: &str| Err(Unreadable::LoneSurrogate(text.to_owned()));
        let range = |text: &str| Err(Unreadable::OutOfRange(text.to_owned()));
        for (text, expected) in [
            (r#"{"a":1,"A":2,"b":{"a":1},"c":[{"a":1},{"a":1}]}"#.to_owned(), Ok(())),
            (r#"{"a":1,"b":{},"a":2}"#.to_owned(), repeated("a")),
            (r#"{"a":1,"\u0061":2}"#.to_owned(), repeated("a")),
            (r#"{"":1,"":2}"#.to_owned(), repeated("")),
            (r#"[{"x":{"é":1,"b":{"é":1},"\u00E9":2}}]"#.to_owned(), repeated("é")),
            (many("n40"), Ok(())),
            (many("n7"), repeated("n7")),
            (r#""\ud83d\ude00 \\ud800 \uD7FF\ue000""#.to_owned(), Ok(())),
            (r#"{"a":"x\ud800"}"#.to_owned(), surrogate("\\ud800")),
            (r#"["\ud800\ud800\udc00"]"#.to_owned(), surrogate("\\ud800")),
            (r#"["\uDC00\ud800"]"#.to_owned(), surrogate("\\uDC00")),
            (r#"{"\\\udfff":1}"#.to_owned(), surrogate("\\udfff")),
            ("[1.7976931348623157e308,1e-400,-0,0e999]".to_owned(), Ok(())),
            (r#"{"n":1e400}"#.to_owned(), range("1e400")),
            ("[[-2E308]]".to_owned(), range("-2E308")),
            ("9".repeat(308), Ok(())),
            ("9".repeat(309), range(&format!("{}…", "9".repeat(40)))),
            (digits(LONGEST_NUMBER), Ok(())),
            (digits(LONGEST_NUMBER + 1), Err(Unreadable::LongNumber(format!("{}…", &digits(40))))),
            ("9".repeat(4301), Err(Unreadable::LongNumber(format!("{}…", "9".repeat(40))))),
            (format!("{{\"{}\":1}}", "n".repeat(LONGEST_NAME)), Ok(())),
            (
                format!("{{\"\\u006e{}\":1}}", "n".repeat(LONGEST_NAME)),
                Err(Unreadable::LongName(format!("{}…", "n".repeat(40)))),
            ),
            (deep(MAX_DEPTH), Ok(())),
            (deep(MAX_DEPTH + 1), Err(Unreadable::TooDeep)),
            ("null ".to_owned(), Ok(())),
            (String::new(), Err(Unreadable::NotJson)),
            ("{} {}".to_owned(), Err(Unreadable::NotJson)),
        ] {
            assert_eq!(check(&text), expected, "{text:.80}");
        }
    }

    #[test]
    fn names_of_a_hostile_object_are_compared_in_little_time() {
        let names: Vec<String> = (0..100_000).map(|at| format!("\"\\u0061{at}\":0")).collect();
        let text = format!("{{{}}}", names.join(","));
        let started = std::time::Instant::now();
        assert_eq!(check(&text), Ok(()));
        // Each with each, these were five billion comparisons.
        assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
    }

    /// What serde_json's trees take, and whose names differ.
    struct Strict;

    impl<'de> Deserialize<'de> for Strict {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_any(Self)
        }
    }

    impl<'de> Visitor<'de> for Strict {
        type Value = Self;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("JSON")
        }

        fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
            Ok(Self)
        }

        fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
            Ok(Self)
        }

        fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
            Ok(Self)
        }

        fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
            Ok(Self)
        }

        fn visit_str<E>(self, _: &str) -> Result<Self, E> {
            Ok(Self)
        }

        fn visit_unit<E>(self) -> Result<Self, E> {
            Ok(Self)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self, A::Error> {
            while seq.next_element::<Self>()?.is_some() {}
            Ok(Self)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
            let mut names = BTreeSet::new();
            while let Some(name) = map.next_key::<String>()? {
                map.next_value::<Self>()?;
                if !names.insert(name) {
                    return Err(serde::de::Error::custom("repeated"));
                }
            }
            Ok(Self)
        }
    }

    fn json() -> impl Strategy<Value = String> {
        let string =
            select(vec![r#""a""#, r#""\u0061""#, r#""b""#, r#""\ud800""#, r#""\ud83d\ude00""#, r#""\udc00\\""#]);
        let number = select(vec!["1", "1e308", "1e309", "-1E+400", "1e-999", "0.5"]);
        prop_oneof![string.clone(), number].prop_map(str::to_owned).prop_recursive(5, 48, 5, move |inner| {
            let field = (string.clone(), inner.clone()).prop_map(|(name, value)| format!("{name} :{value}"));
            prop_oneof![
                vec(inner, 0..5).prop_map(|parts| format!("[{}]", parts.join(", "))),
                vec(field, 0..4).prop_map(|parts| format!("{{{}}}", parts.join(","))),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3_000))]

        #[test]
        fn a_value_is_readable_where_a_strict_reader_makes_a_tree_of_it(text in json()) {
            prop_assert_eq!(check(&text).is_ok(), serde_json::from_str::<Strict>(&text).is_ok(), "{}", text);
        }
    }
}
