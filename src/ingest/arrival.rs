//! What is known of a request before its body: when it came, whose key it has, and whose certificate its client showed. Its records
//! say that in headers.

use super::conforming::{Conforming, Untaken};
use crate::{
    config::HttpKey,
    event::{self, Invalid},
    log::{
        NewHeaders,
        record::{KEY_HEADER, write_header},
    },
    position::Timestamp,
};

/// The header of a record whose client showed a certificate (`http.tls.client_ca`): the client's name. No client can set it either.
pub const CLIENT_HEADER: &str = "ingestd-client";

#[derive(Debug, Clone, Copy)]
pub struct Arrival<'r> {
    pub received: Timestamp,
    /// Its key; `None` where there are none.
    pub key: Option<&'r HttpKey>,
    /// The client's name by its certificate; `None` where none is asked for.
    pub client: Option<&'r str>,
    /// What its events have to be by their types; `None` where they may be anything.
    pub conforming: Option<&'r Conforming<'r>>,
}

impl From<Timestamp> for Arrival<'_> {
    fn from(received: Timestamp) -> Self {
        Self { received, key: None, client: None, conforming: None }
    }
}

impl Arrival<'_> {
    /// Bytes of [`Arrival::write`], at most.
    pub fn size(self) -> usize {
        /// Of two lengths.
        const FRAME: usize = 10;
        self.headers().map(|(name, value)| FRAME + name.len() + value.len()).sum()
    }

    /// Whether it says something of each record.
    pub fn has_headers(&self) -> bool {
        self.headers().next().is_some()
    }

    fn headers(&self) -> impl Iterator<Item = (&'static str, &'_ str)> {
        let key = self.key.map(|key| (KEY_HEADER, key.name.as_str()));
        key.into_iter().chain(self.client.map(|client| (CLIENT_HEADER, client)))
    }

    /// Appends what it says to the headers of an event, which were just written there.
    pub fn write(self, aside: &mut Vec<u8>, headers: NewHeaders) -> NewHeaders {
        let mut headers = headers;
        for (name, value) in self.headers() {
            write_header(aside, name, Some(value.as_bytes()));
            headers.count += 1;
            // (Below 4 GiB: see `append` in `check`.)
            headers.bytes.end = aside.len() as u32;
        }
        headers
    }

    /// Whether an event of this type may come with it.
    ///
    /// # Errors
    /// Which may. The type itself is not said again.
    pub fn permit(self, event_type: &str) -> Result<(), Invalid> {
        self.key.map_or(Ok(()), |key| event::permit(key, event_type))
    }

    /// Whether an event of this type may have this value.
    ///
    /// # Errors
    /// It may not, or there is no room for looking at present.
    pub fn conform(self, event_type: &str, value: &[u8]) -> Result<(), Untaken> {
        self.conforming.map_or(Ok(()), |conforming| conforming.check(event_type, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::Code,
        log::{Span, record::Headers},
    };

    fn key(types: &[&str]) -> HttpKey {
        let hash = crate::config::KeyHash::of(b"k").to_string();
        serde_json::from_value(serde_json::json!({ "name": "shop", "hash": hash, "types": types })).unwrap()
    }

    #[test]
    fn the_names_of_key_and_client_stand_behind_the_headers_of_an_event_and_nothing_does_without_a_key() {
        let key = key(&["a"]);
        let with = Arrival { key: Some(&key), client: Some("till.example.com"), ..Timestamp(0).into() };
        let mut aside = b"before".to_vec();
        let none = NewHeaders { count: 0, bytes: Span { start: 6, end: 6 } };
        assert_eq!(Arrival::from(Timestamp(0)).write(&mut aside, none), none);
        write_header(&mut aside, "ce_type", Some(b"a"));
        let before = NewHeaders { count: 1, bytes: Span { start: 6, end: aside.len() as u32 } };
        let NewHeaders { count, bytes } = with.write(&mut aside, before);
        let headers: Vec<_> = Headers::new(count, bytes.of(&aside)).iter().collect();
        assert_eq!(
            headers,
            [("ce_type", Some(&b"a"[..])), (KEY_HEADER, Some(b"shop")), (CLIENT_HEADER, Some(b"till.example.com"))]
        );
        assert!(with.size() >= bytes.size() - before.bytes.size());
    }

    #[test]
    fn a_key_with_types_permits_these_and_the_refusal_names_them_and_not_the_other() {
        let key = key(&["login_success", "login_failed"]);
        let with = Arrival { key: Some(&key), ..Timestamp(0).into() };
        assert_eq!(with.permit("login_failed"), Ok(()));
        assert_eq!(Arrival::from(Timestamp(0)).permit("anything"), Ok(()));
        let refused = with.permit("purchase").unwrap_err();
        assert_eq!(refused.code, Code::ForbiddenType);
        let words = ["\"shop\"", "login_success, login_failed", "http.auth.keys"];
        assert!(words.iter().all(|word| refused.message.contains(word)), "{refused}");
        assert!(!refused.message.contains("purchase"), "{refused}");
    }
}
