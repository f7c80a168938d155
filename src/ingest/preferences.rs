//! What a client would like (`Prefer`, RFC 7240): `handling` says what becomes of a request of which one event is wrong, or
//! fails. Other preferences are not ours, and are passed over as the RFC wants it, as is what is no preference.

use std::borrow::Cow;

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

const PREFER: HeaderName = HeaderName::from_static("prefer");
/// Names the preferences that an answer was made by.
pub const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// What a request prefers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Preferences {
    /// `None`: as without the header.
    pub handling: Option<Handling>,
}

/// The values of `handling` (RFC 7240, 4.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handling {
    /// All events of the request, or none.
    Strict,
    /// Each event has its own result, also where some fail for a passing reason.
    Lenient,
}

impl Handling {
    /// As `Preference-Applied` says it.
    pub fn applied(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Strict => "handling=strict",
            Self::Lenient => "handling=lenient",
        })
    }
}

impl Preferences {
    /// Of several with one name the first counts, whatever its value (RFC 7240, 2).
    pub fn of(headers: &HeaderMap) -> Self {
        let mut lines = headers.get_all(PREFER).map(HeaderValue::as_bytes);
        let handling = lines.find_map(|line| {
            Preferred(line).find(|(name, _)| name.eq_ignore_ascii_case(b"handling")).map(|(_, value)| value)
        });
        let handling = handling.and_then(|value| {
            let is = |word: &[u8]| value.eq_ignore_ascii_case(word);
            is(b"strict").then_some(Handling::Strict).or_else(|| is(b"lenient").then_some(Handling::Lenient))
        });
        Self { handling }
    }
}

/// The preferences of one line, name and value, without their parameters:
///
/// ```text
/// Prefer     = preference *( "," preference )
/// preference = parameter *( ";" [ parameter ] )
/// parameter  = token [ "=" ( token / quoted-string ) ]
/// ```
///
/// with white space wherever it can stand. An empty value is as good as none.
struct Preferred<'l>(&'l [u8]);

impl<'l> Iterator for Preferred<'l> {
    type Item = (&'l [u8], Cow<'l, [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.0.is_empty() {
            let name = self.until(b",;=").trim_ascii();
            let value = if self.takes(b'=') { self.value() } else { Cow::Borrowed(&b""[..]) };
            // Parameters, and what may stand behind a quoted string and is none.
            while !self.takes(b',') && !self.0.is_empty() {
                self.until(b",;=\"");
                if self.0.first() == Some(&b'"') {
                    self.quoted();
                } else if self.0.first() != Some(&b',') {
                    self.skip();
                }
            }
            if !name.is_empty() {
                return Some((name, value));
            }
        }
        None
    }
}

impl<'l> Preferred<'l> {
    /// What stands before the next of these bytes, or the end.
    fn until(&mut self, ends: &[u8]) -> &'l [u8] {
        let length = self.0.iter().position(|byte| ends.contains(byte)).unwrap_or(self.0.len());
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken
    }

    fn takes(&mut self, byte: u8) -> bool {
        let is_next = self.0.first() == Some(&byte);
        if is_next {
            self.skip();
        }
        is_next
    }

    fn skip(&mut self) {
        self.0 = self.0.get(1..).unwrap_or_default();
    }

    fn value(&mut self) -> Cow<'l, [u8]> {
        self.0 = self.0.trim_ascii_start();
        if self.0.first() == Some(&b'"') {
            return self.quoted().into();
        }
        self.until(b",;").trim_ascii().into()
    }

    /// A quoted string; one without its end goes to that of the line.
    fn quoted(&mut self) -> Vec<u8> {
        self.skip();
        let mut text = Vec::new();
        while let Some((byte, rest)) = self.0.split_first() {
            self.0 = rest;
            match byte {
                b'"' => break,
                b'\\' => {
                    text.extend(self.0.first());
                    self.skip();
                }
                byte => text.push(*byte),
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn handling(lines: &[&str]) -> Option<Handling> {
        let mut headers = HeaderMap::new();
        lines.iter().for_each(|line| headers.append(PREFER, HeaderValue::from_bytes(line.as_bytes()).unwrap()));
        Preferences::of(&headers).handling
    }

    #[test]
    fn the_first_handling_of_all_lines_counts_and_what_is_not_ours_is_passed_over() {
        use Handling::{Lenient, Strict};
        for (lines, expected) in [
            (&[][..], None),
            (&[""], None),
            (&["handling=strict"], Some(Strict)),
            (&["handling=lenient"], Some(Lenient)),
            (&["Handling = \"Strict\""], Some(Strict)),
            (&["handling=\"len\\ient\""], Some(Lenient)),
            (&["respond-async, wait=10, handling=lenient"], Some(Lenient)),
            (&["respond-async", "wait=10", "handling=strict"], Some(Strict)),
            (&["handling=strict; x=y; z, return=minimal"], Some(Strict)),
            (&["return=minimal;handling=lenient, handling=strict"], Some(Strict)),
            (&["a=\"handling=lenient, handling=lenient\", handling=strict"], Some(Strict)),
            (&["a;b=\"\\\", handling=lenient\";c,handling=strict"], Some(Strict)),
            (&["handling=strict, handling=lenient"], Some(Strict)),
            (&["handling=lenient", "handling=strict"], Some(Lenient)),
            // Unknown values, and those that are as good as none: nothing is applied, and no later one counts.
            (&["handling=perhaps, handling=strict"], None),
            (&["handling", "handling=strict"], None),
            (&["handling=", "handling=strict"], None),
            (&["handling=\"\", handling=lenient"], None),
            (&["handling=strictly"], None),
            (&["x-handling=strict"], None),
            // What is no preference.
            (&[",,;;=,=\"\",handling=strict"], Some(Strict)),
            (&["a=\"without an end, handling=strict"], None),
            (&["a=\"b\"handling=lenient, handling=strict"], Some(Strict)),
            (&["häkchen=✓, handling=lenient"], Some(Lenient)),
        ] {
            assert_eq!(handling(lines), expected, "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic_or_hang(line in proptest::collection::vec(
            prop_oneof![0x20..=0xffu8, proptest::sample::select(b",;=\"\\ handlingstrict".to_vec())], 0..64,
        )) {
            let line: Vec<u8> = line.into_iter().filter(|byte| *byte != 0x7f).collect();
            let length = line.len();
            prop_assert!(Preferred(&line).count() <= length);
        }
    }
}
