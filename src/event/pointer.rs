//! JSON pointers (RFC 6901) in a text, of which no tree is built.
//!
//! [`Pointers`] reads a text that is valid as a whole, all its pointers in one pass over what they pass through.
//! [`locate`] finds one part of a text in which other parts may be broken, by strings and brackets alone.

use std::{io::Read as _, ops::Range};

use serde::{Deserialize as _, de::IgnoredAny};

use super::{
    Invalid,
    fields::{explain, not_utf8},
    json,
};
use crate::config::Pointer;

/// Pointers that are looked for at the same time, as a tree of their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pointers {
    /// Places of those that end here.
    ends: Vec<usize>,
    names: Vec<String>,
    /// Below each of the names.
    below: Vec<Self>,
}

impl Pointers {
    /// Looks for one more; what it leads to is put at `place`.
    pub fn add(&mut self, pointer: &Pointer, place: usize) {
        let mut node = self;
        for name in pointer.names() {
            let at = node.names.iter().position(|known| known == name).unwrap_or_else(|| {
                node.names.push(name.clone());
                node.below.push(Self::default());
                node.names.len() - 1
            });
            node = &mut node.below[at];
        }
        node.ends.push(place);
    }

    /// What the pointers pass through first; a pointer to the whole passes through nothing.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// As [`Self::find_in`], below the one of [`Self::names`] with this index, whose value is `text`.
    pub fn find_below<'a>(&self, index: usize, text: &'a str, found: &mut [Option<&'a str>]) {
        if let Some(below) = self.below.get(index) {
            // The text was found to be JSON; what a pointer does not fit leads to nothing.
            let _ = below.descend(text, found);
        }
    }

    /// Puts the JSON text that each pointer leads to at its place in `found`, of names that stand twice the last one's;
    /// places of pointers that lead to nothing stay as they are.
    ///
    /// # Errors
    /// Why the value is not what the daemon takes for JSON.
    pub fn find_in<'a>(&self, value: &'a [u8], found: &mut [Option<&'a str>]) -> Result<(), Invalid> {
        let text = std::str::from_utf8(value).map_err(not_utf8)?;
        self.find(text, found).ok_or_else(|| explain(text))
    }

    fn find<'a>(&self, text: &'a str, found: &mut [Option<&'a str>]) -> Option<()> {
        let value = text.trim_matches([' ', '\t', '\n', '\r']);
        match value.as_bytes().first() {
            Some(b'{' | b'[') if !self.names.is_empty() => self.descend(value, found),
            _ if json::is_value(value, &mut ()) => self.descend(value, found),
            _ => None,
        }
    }

    /// The text is one value without white space around it; what is below it is checked where it is passed through.
    fn descend<'a>(&self, text: &'a str, found: &mut [Option<&'a str>]) -> Option<()> {
        for place in &self.ends {
            found[*place] = Some(text);
        }
        match text.as_bytes().first()? {
            b'{' if !self.names.is_empty() => {
                let values = json::object(text, &self.names, &mut ())?;
                for (below, value) in self.below.iter().zip(values) {
                    value.map_or(Some(()), |value| below.descend(value, found))?;
                }
            }
            b'[' => {
                for (below, name) in self.below.iter().zip(&self.names) {
                    // One pass each: few pointers name elements.
                    let element = json::element(text, index(name).unwrap_or(usize::MAX))?;
                    element.map_or(Some(()), |element| below.descend(element, found))?;
                }
            }
            _ => {}
        }
        Some(())
    }
}

/// RFC 6901, section 4: without leading zeros.
fn index(name: &str) -> Option<usize> {
    let is_index = name == "0" || (!name.starts_with('0') && name.bytes().all(|byte| byte.is_ascii_digit()));
    is_index.then(|| name.parse().ok()).flatten()
}

/// Where in `body` the value is that a pointer leads to, of names that stand twice the last one's; `None` where there is
/// none, or where strings do not close, brackets do not balance, or what is on the way is no JSON. What is beside the way
/// is only skipped: [`surrounds`] judges it.
pub fn locate(body: &[u8], pointer: &Pointer) -> Option<Range<usize>> {
    let skim = Skim(body);
    let mut start = skim.white_space(0);
    let mut place = None;
    for name in pointer.names() {
        let below = match skim.byte(start)? {
            b'{' => skim.member(start, name)?,
            b'[' => skim.element(start, index(name)?)?,
            _ => return None,
        };
        start = below.start;
        place = Some(below);
    }
    place.or_else(|| Some(start..skim.value(start)?))
}

/// Whether what stands around this place in `body` is JSON with any value there.
pub fn surrounds(body: &[u8], place: &Range<usize>) -> bool {
    let (before, behind) = (&body[..place.start], &body[place.end..]);
    if std::str::from_utf8(before).is_err() || std::str::from_utf8(behind).is_err() {
        return false;
    }
    let mut json = serde_json::Deserializer::from_reader(before.chain(&b"0"[..]).chain(behind));
    IgnoredAny::deserialize(&mut json).and_then(|_| json.end()).is_ok()
}

/// Positions in a text that may be broken. Whatever takes a position and finds what it is for returns the one behind it.
struct Skim<'a>(&'a [u8]);

impl Skim<'_> {
    fn byte(&self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    fn white_space(&self, mut at: usize) -> usize {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.byte(at) {
            at += 1;
        }
        at
    }

    /// The value of the last member of that name, in the object that opens here.
    fn member(&self, open: usize, name: &str) -> Option<Range<usize>> {
        let mut found = None;
        let mut at = self.white_space(open + 1);
        while self.byte(at)? != b'}' {
            let colon = self.string(at)?;
            let is_meant = self.is_name(&self.0[at..colon], name);
            at = self.white_space(colon);
            if self.byte(at)? != b':' {
                return None;
            }
            let start = self.white_space(at + 1);
            let end = self.value(start)?;
            if is_meant {
                found = Some(start..end);
            }
            at = self.next(end, b'}')?;
        }
        found
    }

    /// The element with this index, in the array that opens here.
    fn element(&self, open: usize, index: usize) -> Option<Range<usize>> {
        let mut at = self.white_space(open + 1);
        for _ in 0..index {
            if self.byte(at)? == b']' {
                return None;
            }
            at = self.next(self.value(at)?, b']')?;
        }
        (self.byte(at)? != b']').then(|| self.value(at)).flatten().map(|end| at..end)
    }

    /// Behind a value: the comma and the white space around it, or nothing but that before what closes.
    fn next(&self, at: usize, close: u8) -> Option<usize> {
        let at = self.white_space(at);
        match self.byte(at)? {
            b',' => Some(self.white_space(at + 1)),
            byte if byte == close => Some(at),
            _ => None,
        }
    }

    /// A string with its quotes.
    fn string(&self, at: usize) -> Option<usize> {
        if self.byte(at)? != b'"' {
            return None;
        }
        let mut at = at + 1;
        loop {
            at += memchr::memchr2(b'"', b'\\', self.0.get(at..)?)?;
            if self.0[at] == b'"' {
                return Some(at + 1);
            }
            at += 2;
        }
    }

    fn is_name(&self, json: &[u8], name: &str) -> bool {
        match memchr::memchr(b'\\', json) {
            None => json.get(1..json.len() - 1) == Some(name.as_bytes()),
            Some(_) => serde_json::from_slice::<String>(json).is_ok_and(|unescaped| unescaped == name),
        }
    }

    /// A value: to the end of its string, to where its brackets are balanced, or to what cannot be a part of a number or word.
    fn value(&self, start: usize) -> Option<usize> {
        let (mut at, mut depth) = (start, 0usize);
        loop {
            match self.byte(at)? {
                b'"' => at = self.string(at)?,
                b'{' | b'[' => {
                    (at, depth) = (at + 1, depth + 1);
                    continue;
                }
                b'}' | b']' => (at, depth) = (at + 1, depth.checked_sub(1)?),
                _ if depth > 0 => {
                    at += 1;
                    continue;
                }
                _ => return Some(self.word(at)).filter(|end| *end > at),
            }
            if depth == 0 {
                return Some(at);
            }
        }
    }

    fn word(&self, at: usize) -> usize {
        let ends =
            |byte: &u8| matches!(byte, b',' | b'}' | b']' | b'{' | b'[' | b':' | b'"' | b' ' | b'\n' | b'\r' | b'\t');
        self.0[at..].iter().position(ends).map_or(self.0.len(), |length| at + length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn pointer(text: &str) -> Pointer {
        Pointer::try_from(text.to_owned()).unwrap()
    }

    fn find<'a, const N: usize>(text: &'a str, pointers: [&str; N]) -> Option<[Option<&'a str>; N]> {
        let mut sought = Pointers::default();
        pointers.iter().enumerate().for_each(|(place, text)| sought.add(&pointer(text), place));
        let mut found = [None; N];
        sought.find(text, &mut found).map(|()| found)
    }

    #[test]
    fn pointers_lead_where_the_examples_of_rfc_6901_say() {
        let text = r#" {"foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, "k\"l": 6, " ": 7, "m~n": 8} "#;
        let pointers = ["", "/foo", "/foo/0", "/", "/a~1b", "/c%d", "/e^f", "/g|h", "/i\\j", "/k\"l", "/ ", "/m~0n"];
        let expected = [text.trim(), r#"["bar", "baz"]"#, "\"bar\"", "0", "1", "2", "3", "4", "5", "6", "7", "8"];
        assert_eq!(find(text, pointers), Some(expected.map(Some)));
        for (at, expected) in pointers.iter().zip(expected) {
            let place = locate(text.as_bytes(), &pointer(at)).expect(at);
            assert_eq!(&text[place], expected, "{at}");
        }
    }

    #[test]
    fn what_is_not_there_is_not_found_and_of_names_that_stand_twice_the_last_counts() {
        let text = r#"{"a":{"x":1,"\u0078":2},"b":[1,{"c":3}],"b":[{"c":4}],"s":"t","d":{"x":1},"d":7}"#;
        let pointers = ["/a/x", "/b/0/c", "/b/1", "/b/00", "/b/-", "/s/0", "/d/x", "/e", "/a/y/z"];
        let expected = [Some("2"), Some("4"), None, None, None, None, None, None, None];
        assert_eq!(find(text, pointers), Some(expected));
        for (at, expected) in pointers.iter().zip(expected) {
            assert_eq!(locate(text.as_bytes(), &pointer(at)).map(|place| &text[place]), expected, "{at}");
        }
        assert_eq!(find("7", ["", "/a"]), Some([Some("7"), None]));
    }

    #[test]
    fn a_text_that_is_no_json_has_nothing_wherever_it_is_broken() {
        for text in ["", "{", "{\"a\":1,}", "{\"a\":1} 2", "[1,]", "tru", "{\"b\":[1,01],\"a\":1}", "{\"a\":{\"b\":1}"]
        {
            for at in ["", "/a", "/a/b", "/0"] {
                assert_eq!(find(text, [at]), None, "{text} {at}");
            }
        }
    }

    #[test]
    fn a_part_is_located_though_others_are_broken_as_long_as_strings_close_and_brackets_balance() {
        for (body, expected) in [
            (r#"{"batch":[{"a":NaN},{"b" 1}],"sentAt":"x"}"#, Some(r#"[{"a":NaN},{"b" 1}]"#)),
            (r#"{"note":"]}\"","batch" : [ ] }"#, Some("[ ]")),
            (r#"{"batch":{"a":1}}"#, Some(r#"{"a":1}"#)),
            (r#"{"batch":[{"a":"x}]}"#, None),
            (r#"{"batch":[{"a":1]"#, None),
            (r#"{"batch" [1]}"#, None),
            (r#"{"batch":}"#, None),
            (r#"{batch:[1]}"#, None),
            (r#"["batch"]"#, None),
        ] {
            let place = locate(body.as_bytes(), &pointer("/batch"));
            assert_eq!(place.clone().map(|place| &body[place]), expected, "{body}");
            assert!(place.is_none_or(|place| surrounds(body.as_bytes(), &place)), "{body}");
        }
        for body in [r#"{"batch":[1],"b":nul}"#, r#"{"b":01,"batch":[1]}"#, r#"{"batch":[1]} x"#, r#"{"batch":[1],}"#] {
            let place = locate(body.as_bytes(), &pointer("/batch")).expect(body);
            assert!(!surrounds(body.as_bytes(), &place), "{body}");
        }
    }

    proptest! {
        #[test]
        fn a_pointer_leads_where_serde_json_says(
            text in prop_oneof![
                "[{\\[]?(\"a\":|\"b\":)?[\\[{]?[0-2,]{0,4}[\\]}]?(,\"a\":(1|\\[\"\\\\\\\\\"\\]))?[}\\]]?",
                ".{0,20}",
            ],
            at in proptest::sample::select(vec!["", "/a", "/b", "/a/0", "/0", "/1", "/0/a"]),
        ) {
            let expected: Option<Value> = serde_json::from_str(&text).ok();
            let found = find(&text, [at]);
            prop_assert_eq!(found.is_some(), expected.is_some(), "{}", text);
            let located = locate(text.as_bytes(), &pointer(at)).map(|place| &text[place]);
            if let (Some([found]), Some(tree)) = (found, expected) {
                let read = |text: Option<&str>| text.map(|text| serde_json::from_str::<Value>(text).expect("JSON"));
                prop_assert_eq!(read(found), tree.pointer(at).cloned());
                prop_assert_eq!(located, found);
            }
        }
    }
}
