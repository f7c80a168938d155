//! What a replayed letter has to pass: the ingestor's check, with the configuration of now. It becomes the record that the
//! ingestor would have made: an envelope is opened, so that a replay writes no record that the door does not.

use std::{borrow::Cow, collections::HashMap};

use uuid::Uuid;

use super::{DeadLetter, Origin, REPLAYED_HEADER, Refused, WRONG_HEADER};
use crate::{
    config::{ByteSize, Config, EventConfig, HttpKey},
    event::{self, BATCH_TYPE, Envelope, EventFields, Invalid},
    log::record::{ID_HEADER, KEY_HEADER},
    position::Timestamp,
};

/// What a letter's value has to satisfy.
pub struct ReplayCheck {
    fields: EventFields,
    max_event: ByteSize,
    /// What events have to be by their types.
    event: EventConfig,
    /// By their names, those that may not send all types.
    keys: HashMap<String, HttpKey>,
}

type OwnedHeaders = Vec<(String, Option<Vec<u8>>)>;

/// A letter's record, as it is to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// The letter's.
    pub id: String,
    /// Now: the log's records are in the order of their receipt, and its retention goes by that.
    pub received: Timestamp,
    pub key: Option<Vec<u8>>,
    pub value: Vec<u8>,
    pub headers: OwnedHeaders,
}

impl Admitted {
    /// About the memory that it takes.
    pub fn size(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len));
        self.value.len() + self.key.as_ref().map_or(0, Vec::len) + headers.sum::<usize>()
    }
}

impl ReplayCheck {
    pub fn of(config: &Config) -> Self {
        let keys = config.http.auth.keys.iter().filter(|key| key.types.is_some());
        Self {
            fields: EventFields::from(&config.event),
            max_event: config.http.max_event,
            event: config.event.clone(),
            keys: keys.map(|key| (key.name.clone(), key.clone())).collect(),
        }
    }

    /// The record of `letter`, with `correction` in the place of its value. `omitted` is the size of a value that was
    /// not kept.
    ///
    /// # Errors
    /// It is no valid event, with the ingestor's code and message.
    pub fn admit(
        &self,
        letter: &DeadLetter,
        omitted: Option<u64>,
        correction: Option<&[u8]>,
    ) -> Result<Admitted, Refused> {
        let id = letter.id();
        let refused = |reason: &str, message: String| Refused { id: id.clone(), reason: reason.to_owned(), message };
        let is_batch = is_batch(letter);
        let is_wrong_beside = letter.headers.iter().any(|(name, _)| name == WRONG_HEADER);
        let value = match (correction, omitted) {
            (Some(correction), _) => correction,
            (None, Some(size)) => {
                let message = format!(
                    "its value of {size} bytes was too large to be kept with it: take it from the archive, and replay \
                     it with --value FILE"
                );
                return Err(refused("value_omitted", message));
            }
            (None, None) if is_batch || is_wrong_beside => {
                let how =
                    if is_batch { "one event of it, in its envelope" } else { "its value, corrected or as it is" };
                let message = format!("{}; replay it with --value FILE, {how}", letter.message);
                return Err(refused(&letter.reason, message));
            }
            (None, None) => letter.value.as_deref().unwrap_or_default(),
        };
        let received = Timestamp::now();
        let invalid = |invalid: Invalid| refused(invalid.code.as_str(), invalid.message);
        let (value, mut headers) = self.carried(letter, value, is_batch).map_err(invalid)?;
        let named = headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
        let event = event::admit_with(&value, named, self.max_event, &self.fields, received).map_err(invalid)?;
        self.key_of(letter).map_or(Ok(()), |key| event::permit(key, &event.event_type)).map_err(invalid)?;
        event::conform(&event.event_type, &value, &self.event).map_err(invalid)?;
        let key = event.key.map(|key| key.as_bytes().to_vec());
        if event.id.is_none() && !headers.iter().any(|(name, _)| name == ID_HEADER) {
            headers.push((ID_HEADER.to_owned(), Some(Uuid::now_v7().to_string().into_bytes())));
        }
        headers.push((REPLAYED_HEADER.to_owned(), Some(id.clone().into_bytes())));
        Ok(Admitted { id, received, key, value: value.into_owned(), headers })
    }

    /// The key that it came with, and whose record it becomes, where there still is one of that name that may not send all types.
    fn key_of(&self, letter: &DeadLetter) -> Option<&HttpKey> {
        let (_, name) = letter.headers.iter().find(|(name, _)| name == KEY_HEADER)?;
        self.keys.get(std::str::from_utf8(name.as_deref()?).ok()?)
    }

    /// The value and the headers of the record that the ingestor makes of this.
    fn carried<'v>(
        &self,
        letter: &DeadLetter,
        value: &'v [u8],
        is_batch: bool,
    ) -> Result<(Cow<'v, [u8]>, OwnedHeaders), Invalid> {
        // Of a letter that was a replay already the header names the latest one, which itself names the one before.
        let is_carried = |name: &str| name != REPLAYED_HEADER && name != WRONG_HEADER;
        let headers = letter.headers.iter().filter(|(name, _)| is_carried(name)).cloned();
        if !is_batch && !content_type(letter).is_some_and(event::is_event_format) {
            return Ok((value.into(), headers.collect()));
        }
        let Envelope { attributes, data } = Envelope::open_sent(value, self.max_event, self.fields.on_unreadable())?;
        let attribute = |(name, text): (Cow<'_, str>, Cow<'_, str>)| {
            (event::header_of(&name).into_owned(), Some(text.into_owned().into_bytes()))
        };
        let mut carried: OwnedHeaders = attributes.into_iter().map(attribute).collect();
        carried.sort_unstable();
        // What stands beside an envelope is a copy of what stands in it.
        carried.extend(headers.filter(|(name, _)| !event::is_attribute(name)));
        Ok((data, carried))
    }
}

fn content_type(letter: &DeadLetter) -> Option<&str> {
    event::content_type_of(letter.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())))
}

/// Whether it is the body of a request that was to hold several envelopes.
fn is_batch(letter: &DeadLetter) -> bool {
    matches!(letter.origin, Origin::Request(_)) && content_type(letter) == Some(BATCH_TYPE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::OnInvalidTime,
        log::dead_letters::Origin,
        position::{Offset, Partition},
    };

    fn letter(value: &[u8], headers: &[(&str, &str)]) -> DeadLetter {
        DeadLetter {
            topic: "events".to_owned(),
            generation: 0,
            partition: Partition(0),
            origin: Origin::Record(Offset(7)),
            received: Timestamp(1000),
            reason: "missing_type".to_owned(),
            message: "no type".to_owned(),
            time: Timestamp(2000),
            key: None,
            value: Some(value.to_vec().into()),
            headers: headers.iter().map(|(n, v)| ((*n).to_owned(), Some(v.as_bytes().to_vec()))).collect(),
        }
    }

    fn check() -> ReplayCheck {
        let mut config = Config::default();
        config.event.type_field = "kind".to_owned();
        config.http.max_event = ByteSize(60);
        ReplayCheck::of(&config)
    }

    fn header<'a>(admitted: &'a Admitted, wanted: &str) -> Vec<&'a [u8]> {
        let of_name = admitted.headers.iter().filter(|(name, _)| name == wanted);
        of_name.map(|(_, value)| value.as_deref().unwrap_or_default()).collect()
    }

    #[test]
    fn a_record_keeps_its_bytes_and_headers_and_says_which_letter_it_was() {
        let value = br#"{"kind":"a", "client_id":"c"}"#;
        let letter = letter(value, &[("id", "u"), ("x", "y"), (REPLAYED_HEADER, "events/0/1")]);
        let admitted = check().admit(&letter, None, None).unwrap();
        assert_eq!((admitted.value.as_slice(), admitted.key.as_deref()), (value.as_slice(), Some(b"c".as_slice())));
        assert_eq!(header(&admitted, "id"), [b"u"]);
        assert_eq!(header(&admitted, "x"), [b"y"]);
        assert_eq!(header(&admitted, REPLAYED_HEADER), [b"events/0/7"]);
    }

    #[test]
    fn an_event_without_any_id_gets_one_as_at_the_front_door() {
        let admitted = check().admit(&letter(br#"{"kind":"a"}"#, &[]), None, None).unwrap();
        assert_eq!(header(&admitted, "id")[0].len(), 36);
        let own = check().admit(&letter(br#"{"kind":"a","event_id":"e"}"#, &[]), None, None).unwrap();
        assert!(header(&own, "id").is_empty());
    }

    #[test]
    fn a_cloudevent_keeps_its_attributes_which_are_checked_as_at_the_front_door() {
        let attributes = [
            ("ce_specversion", "1.0"),
            ("ce_id", "1"),
            ("ce_source", "/s"),
            ("ce_type", "t"),
            ("content-type", "text/plain"),
        ];
        let mut check = check();
        check.max_event = ByteSize(100);
        let admitted = check.admit(&letter(b"no JSON", &attributes), None, None).unwrap();
        assert_eq!((&*admitted.value, admitted.key.as_deref()), (&b"no JSON"[..], Some(&b"/s"[..])));
        for (name, value) in attributes {
            assert_eq!(header(&admitted, name), [value.as_bytes()]);
        }
        assert!(header(&admitted, "id").is_empty());
        let empty = check.admit(&letter(b"", &attributes), None, None).unwrap();
        assert!(empty.value.is_empty());
        for (without, reason) in [
            ("ce_id", "invalid_id"),
            ("ce_source", "invalid_cloudevent"),
            ("ce_type", "missing_type"),
            ("content-type", "too_large"),
        ] {
            let attributes: Vec<_> = attributes.into_iter().filter(|(name, _)| *name != without).collect();
            let value = if without == "content-type" { "x".repeat(60) } else { String::new() };
            let refused = check.admit(&letter(value.as_bytes(), &attributes), None, None).unwrap_err();
            assert_eq!(refused.reason, reason, "{refused:?}");
        }
    }

    const STRUCTURED: [(&str, &str); 1] = [("content-type", "application/cloudevents+json; charset=utf-8")];

    #[test]
    fn an_envelope_is_replayed_as_the_record_that_the_door_makes_of_it() {
        let mut check = check();
        check.max_event = ByteSize(200);
        let envelope =
            br#"{"specversion":"1.0","id":"1","source":"/s","type":"t","partitionkey":"p","data":{"kind":7}}"#;
        let beside = [&STRUCTURED[..], &[("ce_type", "a copy"), ("traceparent", "t")]].concat();
        let admitted = check.admit(&letter(envelope, &beside), None, None).unwrap();
        assert_eq!((&*admitted.value, admitted.key.as_deref()), (&br#"{"kind":7}"#[..], Some(&b"p"[..])));
        let names: Vec<_> = admitted.headers.iter().map(|(name, _)| name.as_str()).collect();
        let attributes = ["ce_id", "ce_partitionkey", "ce_source", "ce_specversion", "ce_type", "content-type"];
        assert_eq!(names, [&attributes[..], &["traceparent", REPLAYED_HEADER]].concat());
        assert_eq!(header(&admitted, "content-type"), [b"application/json"]);
        assert_eq!(header(&admitted, "ce_type"), [b"t"]);
        // It may be larger than its event.
        let escaped = format!(
            r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"text/plain","data":"{}"}}"#,
            "\\u0001".repeat(60)
        );
        assert_eq!(check.admit(&letter(escaped.as_bytes(), &STRUCTURED), None, None).unwrap().value, [1; 60]);
    }

    #[test]
    fn what_the_door_refuses_in_an_envelope_a_replay_refuses_too_until_it_is_corrected() {
        let mut check = check();
        check.max_event = ByteSize(1000);
        let right = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t"}"#;
        for wrong in [
            r#""Bad_Name":1"#,
            r#""data":1,"data_base64":"MQ==""#,
            r#""data_base64":"***""#,
            r#""x":{}"#,
            r#""datacontenttype":"application/cloudevents+json""#,
        ] {
            let letter = letter(right.replace('}', &format!(",{wrong}}}")).as_bytes(), &STRUCTURED);
            assert_eq!(check.admit(&letter, None, None).unwrap_err().reason, "invalid_cloudevent", "{wrong}");
            let admitted = check.admit(&letter, None, Some(right.as_bytes())).unwrap();
            assert_eq!((&*admitted.value, header(&admitted, "ce_id")), (&b""[..], vec![&b"1"[..]]));
        }
        let without = br#"{"specversion":"1.0","id":"1","type":"t","data":{"kind":"k"}}"#;
        let refused = check.admit(&letter(without, &STRUCTURED), None, None).unwrap_err();
        assert_eq!(refused.reason, "invalid_cloudevent");
        // A batch that could not be split, or was a single envelope.
        let of_request = |value: &[u8], headers: &[(&str, &str)]| DeadLetter {
            origin: Origin::Request(Uuid::now_v7()),
            reason: "invalid_cloudevent".to_owned(),
            ..letter(value, headers)
        };
        let batch = of_request(right.as_bytes(), &[("content-type", BATCH_TYPE)]);
        let refused = check.admit(&batch, None, None).unwrap_err();
        assert!(refused.reason == "invalid_cloudevent" && refused.message.contains("one event of it"), "{refused:?}");
        let admitted = check.admit(&batch, None, Some(right.as_bytes())).unwrap();
        assert_eq!(header(&admitted, "ce_type"), [b"t"]);
    }

    #[test]
    fn what_is_wrong_beside_a_value_is_refused_again_and_passes_with_a_correction() {
        let letter = letter(br#"{"kind":"a"}"#, &[("ce_type", "t"), (WRONG_HEADER, "ce_id")]);
        let refused = check().admit(&letter, None, None).unwrap_err();
        assert!(refused.reason == letter.reason && refused.message.contains("no type; "), "{refused:?}");
        let admitted = check().admit(&letter, None, letter.value.as_deref()).unwrap();
        assert_eq!((header(&admitted, "ce_type"), header(&admitted, WRONG_HEADER)), (vec![&b"t"[..]], vec![]));
    }

    #[test]
    fn a_type_that_the_key_of_a_letter_may_not_send_is_refused_and_so_is_a_correction() {
        let mut config = Config::default();
        let hash = crate::config::KeyHash::of(b"k").to_string();
        let key = |name: &str| serde_json::json!({ "name": name, "hash": hash, "types": ["a"] });
        config.http.auth.keys = serde_json::from_value(serde_json::json!([key("shop")])).unwrap();
        let check = ReplayCheck::of(&config);
        let (own, other) = (&br#"{"type":"a"}"#[..], &br#"{"type":"b"}"#[..]);
        let of = |name: &'static str, value| letter(value, &[("x", "y"), (KEY_HEADER, name)]);
        let refused = check.admit(&of("shop", other), None, None).unwrap_err();
        let words = ["\"shop\" may not send events of this type", "http.auth.keys"];
        assert!(
            refused.reason == "forbidden_type" && words.iter().all(|word| refused.message.contains(word)),
            "{refused:?}"
        );
        let refused = check.admit(&of("shop", b"{broken"), None, Some(other)).unwrap_err();
        assert_eq!(refused.reason, "forbidden_type");
        assert!(check.admit(&of("shop", other), None, Some(own)).is_ok());
        // Of a key that is gone nobody knows what it might send.
        assert_eq!(header(&check.admit(&of("gone", other), None, None).unwrap(), KEY_HEADER), [b"gone"]);
        assert!(check.admit(&letter(other, &[]), None, None).is_ok());
        config.http.auth.keys = serde_json::from_value(serde_json::json!([{ "name": "shop", "hash": hash }])).unwrap();
        assert!(ReplayCheck::of(&config).admit(&of("shop", other), None, None).is_ok());
    }

    #[test]
    fn what_is_no_event_by_the_present_configuration_is_refused_with_the_ingestors_code() {
        let large = format!(r#"{{"kind":"{}"}}"#, "x".repeat(60));
        for (value, reason) in [(r#"{"type":"a"}"#, "missing_type"), ("x", "invalid_json"), (&*large, "too_large")] {
            let refused = check().admit(&letter(value.as_bytes(), &[]), None, None).unwrap_err();
            assert_eq!((&*refused.id, &*refused.reason), ("events/0/7", reason));
        }
    }

    #[test]
    fn a_time_that_is_not_believed_is_treated_as_at_the_front_door() {
        // It was no such time when the letter's record came.
        let later = (Timestamp::now().0 / 1000 + 7 * 24 * 3600).to_string();
        for time in [&*later, "-1", "\"yesterday\""] {
            let value = format!("{{\"type\":\"a\",\"timestamp\":{time}}}");
            let mut config = Config::default();
            let admitted = ReplayCheck::of(&config).admit(&letter(value.as_bytes(), &[]), None, None).unwrap();
            assert_eq!(admitted.value, value.as_bytes());
            config.event.on_invalid_time = OnInvalidTime::Reject;
            let refused = ReplayCheck::of(&config).admit(&letter(value.as_bytes(), &[]), None, None).unwrap_err();
            assert_eq!(refused.reason, "invalid_timestamp");
        }
    }

    #[test]
    fn a_value_that_was_not_kept_is_asked_for() {
        let refused = check().admit(&letter(b"", &[]), Some(99), None).unwrap_err();
        assert!(refused.message.contains("99 bytes") && refused.message.contains("--value"), "{refused:?}");
        assert!(check().admit(&letter(b"", &[]), Some(99), Some(br#"{"kind":"a"}"#)).is_ok());
    }
}
