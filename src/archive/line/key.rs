//! A record's key, of its line.

use std::borrow::Cow;

use serde::Deserialize;

use super::{Line, decode_raw, inspect};
use crate::event::{self, FieldNames};

#[derive(Deserialize)]
#[serde(untagged)]
enum WrittenKey {
    Text(String),
    Base64 { base64: String },
}

impl Line<'_> {
    /// The record's key: as it is written or, where it is not, the one that the door finds in this field of the event.
    ///
    /// # Errors
    /// What is written is no key.
    pub fn key(&self, key_field: &FieldNames) -> Result<Option<Cow<'_, [u8]>>, String> {
        let Some(written) = self.key else {
            let event = self.event.and_then(|event| inspect(event.get().as_bytes(), key_field));
            return Ok(event.and_then(|event| event.key).and_then(event::key_of).map(bytes));
        };
        let key = match serde_json::from_str(written.get()) {
            Ok(WrittenKey::Text(key)) => Some(key.into_bytes()),
            Ok(WrittenKey::Base64 { base64 }) => decode_raw(&base64),
            Err(_) => None,
        };
        let key = key.ok_or_else(|| format!("\"key\" is neither text nor base64: {:.40}", written.get()))?;
        Ok(Some(key.into()))
    }
}

fn bytes(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => text.as_bytes().into(),
        Cow::Owned(text) => text.into_bytes().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        archive::line::LineEncoder,
        log::record::RecordBuffer,
        position::{Offset, Timestamp},
    };

    fn key_of(key: Option<&[u8]>, value: &[u8]) -> Option<Vec<u8>> {
        let mut record = RecordBuffer::default();
        record.push(Offset(1), Timestamp(0), key, Some(value), []);
        let mut line = Vec::new();
        for record in record.iter() {
            LineEncoder::new("client_id".to_owned()).encode(&record, &mut line);
        }
        let line = Line::parse(line.trim_ascii_end()).unwrap();
        line.key(&FieldNames::of("client_id")).unwrap().map(Cow::into_owned)
    }

    #[test]
    fn a_key_reads_back_whether_it_is_written_or_stands_in_the_event() {
        let keys: [&[u8]; 4] = [b"c", b"7", b"\xff", b""];
        for value in [&br#"{"client_id":"\u0063"}"#[..], br#"{"client_id":7}"#, b"{}", b"\xff", b"[]"] {
            for key in keys {
                assert_eq!(key_of(Some(key), value).as_deref(), Some(key), "{}", value.escape_ascii());
            }
        }
        assert_eq!(key_of(None, b"{}"), None);
    }

    #[test]
    fn clients_that_are_nobody_share_no_key_and_a_record_of_others_without_one_gets_that_of_its_event() {
        assert_eq!(key_of(None, br#"{"client_id":" "}"#), None);
        assert_eq!(key_of(None, br#"{"client_id":"c"}"#).as_deref(), Some(&b"c"[..]));
    }

    #[test]
    fn what_is_written_and_no_key_is_said() {
        let line = br#"{"offset":1,"received":"2026-11-23T08:00:00Z","key":7,"event":5}"#;
        let why = Line::parse(line).unwrap().key(&FieldNames::of("")).unwrap_err();
        assert!(why.contains("neither text nor base64: 7"), "{why}");
    }
}
