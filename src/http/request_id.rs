//! `X-Request-Id`: what a request is called, in its answer and in each line of the log about it.
//!
//! A client, or the proxy in front, may have named it. A name is taken over when it is 1 to 128 characters of `A-Z a-z 0-9` and
//! `. _ - : / + = @`: those of UUIDs, of base64 and of the ids of common proxies, and none that could mean something in a
//! log or a page. Any other is replaced by a UUID, and never said again; no request is refused for it.

use std::fmt;

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

pub const NAME: &str = "x-request-id";
static X_REQUEST_ID: HeaderName = HeaderName::from_static(NAME);

/// The most characters of one.
pub const LONGEST: usize = 128;

/// The id of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// For a request that brings none: a UUIDv4.
    pub fn new() -> Self {
        let mut text = Uuid::encode_buffer();
        let text = Uuid::new_v4().hyphenated().encode_lower(&mut text);
        // Digits, letters and hyphens always are a value.
        Self(HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("")))
    }

    /// The id that a request with this head has from now on: its own, or a new one, which then stands in the head as if the
    /// client had sent it.
    pub fn take_over(head: &mut HeaderMap) -> Self {
        let mut given = head.get_all(&X_REQUEST_ID);
        if let (Some(id), None) = (given.next(), given.next())
            && is_well_formed(id.as_bytes())
        {
            return Self(id.clone());
        }
        let id = Self::new();
        id.write(head);
        id
    }

    /// Says it in a head.
    pub fn write(&self, head: &mut HeaderMap) {
        head.insert(X_REQUEST_ID.clone(), self.0.clone());
    }

    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The id of the request with this head, for the log. `None` where it did not come through the server.
pub fn of(head: &HeaderMap) -> Option<&str> {
    head.get(&X_REQUEST_ID)?.to_str().ok()
}

fn is_well_formed(id: &[u8]) -> bool {
    let is_taken = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-:/+=@".contains(byte);
    (1..=LONGEST).contains(&id.len()) && id.iter().all(is_taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(ids: &[&str]) -> HeaderMap {
        let mut head = HeaderMap::new();
        for id in ids {
            head.append(X_REQUEST_ID.clone(), HeaderValue::from_bytes(id.as_bytes()).unwrap());
        }
        head
    }

    #[test]
    fn a_well_formed_id_is_taken_over_as_it_is() {
        let longest = "a".repeat(LONGEST);
        for id in ["a", "0190c7ff-0000-7000-8000-000000000000", "Root=1-67891233-abcdef", "a.b_c-d:e/f+g=h@i", &longest]
        {
            let mut head = head(&[id]);
            assert_eq!(RequestId::take_over(&mut head).as_str(), id);
            assert_eq!(of(&head), Some(id));
        }
    }

    #[test]
    fn none_several_and_malformed_ones_are_replaced_in_the_head_too() {
        let long = "a".repeat(LONGEST + 1);
        for ids in [
            &[][..],
            &[""],
            &["a b"],
            &["a,b"],
            &["<script>"],
            &["a\tb"],
            &["é"],
            &[&long],
            &["a", "a"],
            &["a", "b", "c"],
        ] {
            let mut head = head(ids);
            let id = RequestId::take_over(&mut head);
            assert_eq!(Uuid::parse_str(id.as_str()).unwrap().get_version_num(), 4, "{ids:?}");
            let has: Vec<_> = head.get_all(&X_REQUEST_ID).collect();
            assert_eq!((has, of(&head)), (vec![&id.0], Some(id.as_str())), "{ids:?}");
            assert_ne!(RequestId::take_over(&mut self::head(ids)), id, "no two are the same");
            assert_eq!(RequestId::take_over(&mut head), id, "it is the request's own from then on");
        }
    }
}
