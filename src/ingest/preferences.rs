//! What a client would like (`Prefer`, RFC 7240): `handling` says what becomes of a request of which one event is wrong, or
//! fails, and `return=positions` asks where its events stand. Other preferences are not ours, and are passed over as the RFC wants it, as is what is no preference.

use std::borrow::Cow;

use actix_web::{
    HttpResponse,
    http::{
        StatusCode,
        header::{HeaderMap, HeaderName, HeaderValue},
    },
};

const PREFER: HeaderName = HeaderName::from_static("prefer");
/// Names the preferences that an answer was made by.
pub const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// What a request prefers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Preferences {
    /// `None`: as without the header.
    pub handling: Option<Handling>,
    /// The answer is to say where the events stand in the log.
    pub positions: bool,
}

/// The values of `handling` (RFC 7240, 4.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handling {
    /// All events of the request, or none.
    Strict,
    /// Each event has its own result, also where some fail for a passing reason.
    Lenient,
}

impl Preferences {
    /// Of several with one name the first counts, whatever its value (RFC 7240, 2).
    pub fn of(headers: &HeaderMap) -> Self {
        if !headers.contains_key(PREFER) {
            return Self::default();
        }
        let first = |wanted: &[u8]| {
            let mut lines = headers.get_all(PREFER).map(HeaderValue::as_bytes);
            lines.find_map(|line| {
                Preferred(line).find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value)
            })
        };
        let handling = first(b"handling").and_then(|value| {
            let is = |word: &[u8]| value.eq_ignore_ascii_case(word);
            is(b"strict").then_some(Handling::Strict).or_else(|| is(b"lenient").then_some(Handling::Lenient))
        });
        let positions = first(b"return").is_some_and(|value| value.eq_ignore_ascii_case(b"positions"));
        Self { handling, positions }
    }

    /// Whether it prefers anything that is ours.
    pub fn is_any(self) -> bool {
        self.handling.is_some() || self.positions
    }
}

/// `Preference-Applied` of an answer that has positions.
pub const POSITIONS: HeaderValue = HeaderValue::from_static("return=positions");

/// Says in an answer what the client had its way with; that it has positions stands there already.
pub fn applied(mut response: HttpResponse, handling: Option<Handling>) -> HttpResponse {
    // All or nothing that became some all the same: a broker found events too large after it had taken others.
    let was_broken = handling == Some(Handling::Strict) && response.status() == StatusCode::MULTI_STATUS;
    if let Some(handling) = handling.filter(|_| !was_broken) {
        let has_positions = response.headers().contains_key(PREFERENCE_APPLIED);
        response.headers_mut().insert(PREFERENCE_APPLIED, handling.applied(has_positions));
    }
    response
}

impl Handling {
    /// As `Preference-Applied` says it.
    fn applied(self, has_positions: bool) -> HeaderValue {
        HeaderValue::from_static(match (self, has_positions) {
            (Self::Strict, false) => "handling=strict",
            (Self::Lenient, false) => "handling=lenient",
            (Self::Strict, true) => "handling=strict, return=positions",
            (Self::Lenient, true) => "handling=lenient, return=positions",
        })
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

    #[test]
    fn positions_are_returned_where_that_is_the_first_return_of_all() {
        for (lines, expected) in [
            (&[][..], false),
            (&["handling=strict"], false),
            (&["return=positions"], true),
            (&["Return = \"Positions\""], true),
            (&["handling=lenient; x, return=positions"], true),
            (&["handling=lenient", "return=positions, wait=1"], true),
            (&["return=minimal, return=positions"], false),
            (&["return=minimal", "return=positions"], false),
            (&["return"], false),
        ] {
            let mut headers = HeaderMap::new();
            lines.iter().for_each(|line| headers.append(PREFER, HeaderValue::from_static(line)));
            assert_eq!(Preferences::of(&headers).positions, expected, "{lines:?}");
        }
    }

    #[test]
    fn what_is_applied_is_named() {
        use Handling::{Lenient, Strict};
        for (status, positions, handling, expected) in [
            (200, false, None, None),
            (200, true, None, Some("return=positions")),
            (200, false, Some(Strict), Some("handling=strict")),
            (207, true, Some(Lenient), Some("handling=lenient, return=positions")),
            (207, true, Some(Strict), Some("return=positions")),
            (207, false, Some(Strict), None),
            (400, false, Some(Strict), Some("handling=strict")),
        ] {
            let mut response = HttpResponse::build(StatusCode::from_u16(status).unwrap());
            if positions {
                response.insert_header((PREFERENCE_APPLIED, POSITIONS));
            }
            let applied = applied(response.finish(), handling);
            let applied = applied.headers().get(PREFERENCE_APPLIED).map(|value| value.to_str().unwrap());
            assert_eq!(applied, expected, "{status} {positions} {handling:?}");
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
