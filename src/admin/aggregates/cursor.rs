//! Where a page ends, as its answer says it (`next`) and the request for the one behind it (`cursor`): opaque, and of A–Z, a–z,
//! 0–9, - and _ alone.
//!
//! With the place it holds the range, so that a page behind one of `from=-1h` is of the same hour; and a digest of all other
//! parameters but `limit` and `format`, so that it goes on with nothing else.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::{
    measure::Sum,
    position::Timestamp,
    store::query::{GroupName, Place},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub digest: String,
    pub from: Timestamp,
    pub to: Timestamp,
    pub place: Place,
}

/// As it is written.
#[derive(Serialize, Deserialize)]
struct Written {
    q: String,
    f: i64,
    t: i64,
    w: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    g: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    h: Option<String>,
    /// The whole part, which may have more digits than JSON's readers take, and the fraction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    n: Option<(String, u64)>,
}

impl Cursor {
    pub fn encode(self) -> String {
        let Self { digest, from, to, place: Place { number, window_start, group } } = self;
        let (g, h) = match group {
            GroupName::Text(text) => (Some(text), None),
            GroupName::Hash(hash) => (None, Some(hash)),
        };
        let n = number.map(Sum::parts).map(|(whole, fraction)| (whole.to_string(), fraction));
        let written = Written { q: digest, f: from.0, t: to.0, w: window_start.0, g, h, n };
        // Strings and numbers always serialise.
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&written).unwrap_or_default())
    }

    pub fn decode(text: &str) -> Option<Self> {
        let json = URL_SAFE_NO_PAD.decode(text).ok()?;
        let Written { q, f, t, w, g, h, n } = serde_json::from_slice(&json).ok()?;
        let number = match n {
            Some((whole, fraction)) => Some(Sum::of_parts(whole.parse().ok()?, fraction)?),
            None => None,
        };
        let group = g.map(GroupName::Text).or(h.map(GroupName::Hash))?;
        let place = Place { number, window_start: Timestamp(w), group };
        Some(Self { digest: q, from: Timestamp(f), to: Timestamp(t), place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_nothing_else_is_one() {
        for (number, group) in [
            (None, GroupName::Text("[\"ä?>~\",null]".to_owned())),
            (Sum::of_parts(-(10_i128.pow(25)), 5), GroupName::Hash("ab".to_owned())),
        ] {
            let place = Place { number, window_start: Timestamp(-60_000), group };
            let cursor = Cursor { digest: "d".to_owned(), from: Timestamp(-120_000), to: Timestamp(7), place };
            let text = cursor.clone().encode();
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{text}");
            assert_eq!(Cursor::decode(&text), Some(cursor));
            assert_eq!(Cursor::decode(&text[1..]), None);
        }
        assert_eq!(Cursor::decode(""), None);
    }
}
