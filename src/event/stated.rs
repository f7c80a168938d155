//! What stands of an event beside its data: in a record's headers, as the Kafka protocol binding of CloudEvents 1.0 names
//! them, or in the envelope that is the record's value (`content-type: application/cloudevents+json`).
//!
//! Each of type, id, time and source (the client) wins over the data's field with the same role; what is absent is looked
//! for in the data. With a type beside it the data may be anything: JSON of any kind, other bytes, or nothing.
//!
//! The door asks more of what says that it is a CloudEvent (`ce_specversion`) than readers of the log do: the attributes that
//! each has. Data that is JSON by its content type and its bytes is what `event.on_unreadable` lets in.

use std::{borrow::Cow, collections::BTreeMap};

use super::{
    Code, Event, EventFields, Field, Found, Invalid, MAX_ID_CHARS, MAX_TYPE_CHARS, Place, Rules, Texts, Unreadable,
    admit,
    envelope::{DATA_CONTENT_TYPE, Envelope, check_spec_version, is_event_format, is_json_type},
    event_type_of,
    fields::{explain, find_readable, not_utf8, scan, unreadable},
    id_of, judge, key_of, too_large, written,
};
use crate::{
    config::{ByteSize, OnUnreadable},
    position::Timestamp,
    vector,
};

/// Before an attribute's name in a header.
const PREFIX: &str = "ce_";
/// The header of the attribute that has no prefix.
const CONTENT_TYPE: &str = "content-type";

/// The attribute that a header of this name carries. (Kafka's header names are case-sensitive; a producer that writes
/// `Content-Type` means no other thing.)
fn attribute_of(header: &str) -> Option<&str> {
    match header.split_at_checked(PREFIX.len()) {
        Some((prefix, name)) if prefix.eq_ignore_ascii_case(PREFIX) => Some(name),
        _ => header.eq_ignore_ascii_case(CONTENT_TYPE).then_some(DATA_CONTENT_TYPE),
    }
}

/// The header that carries this attribute.
pub fn header_of(attribute: &str) -> Cow<'static, str> {
    if attribute == DATA_CONTENT_TYPE { CONTENT_TYPE.into() } else { format!("{PREFIX}{attribute}").into() }
}

/// Whether a header of this name carries an attribute.
pub fn is_attribute(header: &str) -> bool {
    attribute_of(header).is_some()
}

/// The content type among a record's headers, which says what its value is. Of one name the last counts.
pub fn content_type_of<'a>(headers: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>) -> Option<&'a str> {
    let content_types = headers.into_iter().filter(|(name, _)| attribute_of(name) == Some(DATA_CONTENT_TYPE));
    content_types.filter_map(|(_, value)| std::str::from_utf8(value?).ok()).last()
}

/// As [`admit`] an event that has attributes beside its value, named as the headers of a record are.
///
/// # Errors
/// Why it is not accepted.
pub fn admit_with<'e>(
    value: &'e [u8],
    headers: impl IntoIterator<Item = (&'e str, Option<&'e [u8]>), IntoIter: Clone>,
    max_event: ByteSize,
    fields: &EventFields,
    received: Timestamp,
) -> Result<Event<'e>, Invalid> {
    let headers = headers.into_iter();
    let Some(stated) = Stated::in_headers(headers.clone()) else { return admit(value, max_event, fields, received) };
    let attributes = headers.filter(|(name, _)| attribute_of(name).is_some());
    let attributes = attributes.map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len));
    let size = value.len() + attributes.sum::<usize>();
    if size > max_event.as_usize() {
        return Err(too_large(size, "bytes of data and attributes", max_event));
    }
    stated.read(Rules::Acceptance, value, fields, received).map(|(event, _)| event)
}

/// The attributes that are read of those beside the data.
#[derive(Debug, Default)]
pub(super) struct Stated<'a> {
    spec_version: Field<'a>,
    event_type: Field<'a>,
    id: Field<'a>,
    time: Field<'a>,
    source: Field<'a>,
    partition_key: Field<'a>,
    content_type: Field<'a>,
}

impl<'a> Stated<'a> {
    /// Those in a record's headers; `None` where there are none. Of one name the last counts, as Kafka's own readers have it.
    pub fn in_headers(headers: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>) -> Option<Self> {
        let attribute = |(header, value): (&'a str, Option<&'a [u8]>)| {
            // What is no text is no attribute.
            attribute_of(header).zip(value.and_then(|value| std::str::from_utf8(value).ok()))
        };
        let mut attributes = headers.into_iter().filter_map(attribute);
        let first = attributes.next()?;
        let mut stated = Self::default();
        for (name, value) in std::iter::once(first).chain(attributes) {
            if let Some(place) = stated.place(name) {
                *place = Field::Text(value.into());
            }
        }
        Some(stated)
    }

    fn place(&mut self, attribute: &str) -> Option<&mut Field<'a>> {
        Some(match attribute {
            "specversion" => &mut self.spec_version,
            "type" => &mut self.event_type,
            "id" => &mut self.id,
            "time" => &mut self.time,
            "source" => &mut self.source,
            "partitionkey" => &mut self.partition_key,
            DATA_CONTENT_TYPE => &mut self.content_type,
            _ => return None,
        })
    }

    /// Those of an envelope.
    fn in_envelope(attributes: Vec<(Cow<'a, str>, Cow<'a, str>)>) -> Self {
        let mut stated = Self::default();
        for (name, value) in attributes {
            if let Some(place) = stated.place(&name) {
                *place = Field::Text(value);
            }
        }
        stated
    }

    /// Reads the event that these are attributes of. One in an envelope is read as the record that the binary mode has of it.
    pub fn read<'f>(
        self,
        rules: Rules,
        value: &'a [u8],
        fields: &'f EventFields,
        received: Timestamp,
    ) -> Result<(Event<'a>, Found<'f, 'a>), Invalid> {
        if !self.content_type.text().is_some_and(is_event_format) {
            return self.judge(rules, value, fields, received);
        }
        let on_unreadable = match rules {
            Rules::Acceptance => fields.on_unreadable,
            Rules::Log => OnUnreadable::Accept,
        };
        let Envelope { attributes, data } = Envelope::open(value, on_unreadable)?;
        let stated = Self::in_envelope(attributes);
        match data {
            Cow::Borrowed(data) => stated.judge(rules, data, fields, received),
            Cow::Owned(data) => {
                let (event, found) = stated.judge(rules, &data, fields, received)?;
                Ok((event.into_owned(), found.into_owned()))
            }
        }
    }

    /// The same, with the data itself.
    fn judge<'f>(
        self,
        rules: Rules,
        data: &'a [u8],
        fields: &'f EventFields,
        received: Timestamp,
    ) -> Result<(Event<'a>, Found<'f, 'a>), Invalid> {
        if rules == Rules::Acceptance && !matches!(self.spec_version, Field::Absent) {
            self.check()?;
        }
        self.with(rules, data, fields, received)
    }

    /// What each CloudEvent has.
    fn check(&self) -> Result<(), Invalid> {
        check_spec_version(self.spec_version.text())?;
        if matches!(self.event_type, Field::Absent) {
            let rule = format!(
                "attribute \"type\" is missing: a CloudEvent must have one, a string of 1 to {MAX_TYPE_CHARS} characters"
            );
            return Err(Invalid::new(Code::MissingType, rule));
        }
        if matches!(self.id, Field::Absent) {
            let rule = format!(
                "attribute \"id\" is missing: a CloudEvent must have one, a string of 1 to {MAX_ID_CHARS} characters"
            );
            return Err(Invalid::new(Code::InvalidId, rule));
        }
        match self.source.text() {
            Some(source) if !source.is_empty() => Ok(()),
            _ => {
                let rule =
                    "attribute \"source\" must be a string that is not empty: a CloudEvent says where it is from";
                Err(Invalid::new(Code::InvalidCloudevent, rule))
            }
        }
    }

    fn with<'f>(
        self,
        rules: Rules,
        data: &'a [u8],
        fields: &'f EventFields,
        received: Timestamp,
    ) -> Result<(Event<'a>, Found<'f, 'a>), Invalid> {
        let mut values = fields.none();
        match self.event_type {
            Field::Absent => rules.scan(fields.on_unreadable, data, &fields.names, &mut values)?,
            _ => self.fields_of(rules, data, fields, &mut values)?,
        }
        let pointed = fields.point(data, &values);
        let mut found = Found { fields, values, stated: Vec::new(), pointed };
        let Self { event_type, id, time, source, partition_key, .. } = self;
        for (name, stated) in fields.head.into_iter().zip([&event_type, &id, &time, &source]) {
            if let Some(text) = stated.text().filter(|_| fields.selected.contains(&Place::Name(name))) {
                found.stated.push((name, serde_json::Value::from(text).to_string()));
            }
        }
        let names_a_client = source.text().is_some();
        let or_found = |stated: Field<'a>, role: usize, name: &'static str| match stated {
            Field::Absent => Ok((found.head(role)?, &fields.names[fields.head[role]])),
            stated => Ok((stated, name)),
        };
        let (event_type, name) = or_found(event_type, 0, "type")?;
        let event_type = event_type_of(event_type, name)?;
        let (id, name) = or_found(id, 1, "id")?;
        let id = id_of(id, name)?;
        let (time, name) = or_found(time, 2, "time")?;
        let (client, _) = or_found(source, 3, "source")?;
        let client = client.scalar();
        let [of_type, of_id, of_time, of_client, of_key] = fields.head;
        let key = match partition_key.scalar() {
            Some(key) => Some(key),
            None if of_key == of_client => client.clone(),
            None if of_key == of_type => Some(event_type.clone()),
            None if of_key == of_id => id.clone(),
            None if of_key == of_time => time.clone().scalar(),
            None if names_a_client => client.clone(),
            None => found.head(4)?.scalar(),
        };
        let (time, invalid_time) = judge(written(&time), || format!("{name:?}"), rules, fields, received)?;
        Ok((Event { event_type, id, time, invalid_time, client, key: key.and_then(key_of) }, found))
    }

    /// The fields of data that has its type beside it.
    fn fields_of(
        &self,
        rules: Rules,
        data: &'a [u8],
        fields: &EventFields,
        found: &mut Texts<'a>,
    ) -> Result<(), Invalid> {
        let names = &fields.names;
        if rules == Rules::Log || data.is_empty() {
            // What is no object has none.
            let _ = scan(data, names, found);
            return Ok(());
        }
        // What is no CloudEvent came as a part of JSON. A CloudEvent that does not say what its data is lets nothing be assumed
        // (JSON format, 3.1.2), and one that says JSON may be anything all the same: SDKs for JavaScript and Python send a
        // string or bytes as they are, under application/json.
        let came_as_json = matches!((&self.spec_version, &self.content_type), (Field::Absent, Field::Absent));
        let says_json = self.content_type.text().map_or(came_as_json, is_json_type);
        let text = vector::text(data).map_err(|_| Unreadable::NotJson);
        match text.and_then(|text| find_readable(text, names, found)) {
            Ok(()) => Ok(()),
            Err(Unreadable::NotJson) if came_as_json => Err(not_json(data)),
            Err(Unreadable::NotJson) => Ok(()),
            Err(what) if says_json && fields.on_unreadable == OnUnreadable::Reject => Err(unreadable(what)),
            Err(_) => {
                let _ = scan(data, names, found);
                Ok(())
            }
        }
    }
}

/// Why data is no JSON.
fn not_json(data: &[u8]) -> Invalid {
    match std::str::from_utf8(data) {
        Err(error) => not_utf8(error),
        Ok(text) => explain(text),
    }
}

/// What a record carries, for those who keep it: its attributes by their own names, and its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried<'a> {
    pub attributes: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    pub data: Cow<'a, [u8]>,
}

impl<'a> Carried<'a> {
    /// Of a record without attributes it is the value.
    ///
    /// # Errors
    /// It is no envelope, though its content type says so: no reader takes it.
    pub fn of(
        value: &'a [u8],
        headers: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>), IntoIter: Clone>,
    ) -> Result<Self, Invalid> {
        let headers = headers.into_iter();
        if content_type_of(headers.clone()).is_some_and(is_event_format) {
            let Envelope { attributes, data } = Envelope::open(value, OnUnreadable::Accept)?;
            return Ok(Self { attributes, data });
        }
        // Of one name the last, as in the head.
        let mut attributes = BTreeMap::new();
        for (header, text) in headers {
            let text = text.and_then(|text| std::str::from_utf8(text).ok());
            attributes.extend(attribute_of(header).zip(text));
        }
        // The content type alone, which many programs write, makes no attributes of an event.
        if attributes.keys().all(|name| *name == DATA_CONTENT_TYPE) {
            attributes.clear();
        }
        let attributes = attributes.into_iter().map(|(name, text)| (name.into(), text.into())).collect();
        Ok(Self { attributes, data: value.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{EventConfig, Field as Selected},
        event,
        position::Timestamp,
    };

    type Headers<'h> = &'h [(&'h str, &'h str)];

    const TYPED: Headers<'_> = &[("ce_type", "t")];

    fn headers<'h>(headers: Headers<'h>) -> impl Iterator<Item = (&'h str, Option<&'h [u8]>)> + Clone {
        headers.iter().map(|(name, value)| (*name, Some(value.as_bytes())))
    }

    fn fields(config: &EventConfig) -> EventFields {
        EventFields::from(config).selecting(&["type", "client_id", "event_id", "timestamp", "x"].map(Selected::of))
    }

    /// Type, id, time, client and key, and the selected fields.
    fn read(value: &[u8], of: Headers<'_>) -> Result<(String, Vec<String>), Code> {
        let fields = fields(&EventConfig::default());
        let (event, found) = event::read(value, headers(of), &fields, Timestamp(0)).map_err(|invalid| invalid.code)?;
        let text = |text: Option<&str>| text.unwrap_or("-").to_owned();
        let (id, client, key) = (text(event.id.as_deref()), text(event.client.as_deref()), text(event.key.as_deref()));
        let time = text(event.time.map(Timestamp::to_rfc3339).as_deref());
        let selected = (0..5).map(|index| text(found.selected(index))).collect();
        Ok((format!("{} {id} {time} {client} {key}", event.event_type), selected))
    }

    #[test]
    fn each_attribute_wins_over_the_field_with_its_role_and_the_rest_is_found_in_the_data() {
        let value = br#"{"type":"a","event_id":"i","timestamp":"2026-11-23T08:00:00Z","client_id":"c","x":[7]}"#;
        let time = "2026-11-23T09:00:00.5+01:00";
        for (of, head, selected) in [
            (&[][..], "a i 2026-11-23T08:00:00.000Z c c", [r#""a""#, r#""c""#, r#""i""#, r#""2026-11-23T08:00:00Z""#]),
            (TYPED, "t i 2026-11-23T08:00:00.000Z c c", [r#""t""#, r#""c""#, r#""i""#, r#""2026-11-23T08:00:00Z""#]),
            (
                &[("id", "assigned"), ("CE_id", "e\"")],
                "a e\" 2026-11-23T08:00:00.000Z c c",
                [r#""a""#, r#""c""#, r#""e\"""#, r#""2026-11-23T08:00:00Z""#],
            ),
            (
                &[("ce_source", "/s"), ("ce_partitionkey", "p"), ("ce_time", time)],
                "a i 2026-11-23T08:00:00.500Z /s p",
                [r#""a""#, r#""/s""#, r#""i""#, r#""2026-11-23T09:00:00.5+01:00""#],
            ),
            (
                &[("ce_partitionkey", " "), ("content-type", "application/json")],
                "a i 2026-11-23T08:00:00.000Z c -",
                [r#""a""#, r#""c""#, r#""i""#, r#""2026-11-23T08:00:00Z""#],
            ),
            // Of one name the last counts.
            (
                &[("ce_type", "x"), ("ce_type", "y")],
                "y i 2026-11-23T08:00:00.000Z c c",
                [r#""y""#, r#""c""#, r#""i""#, r#""2026-11-23T08:00:00Z""#],
            ),
        ] {
            let (read_head, read_selected) = read(value, of).unwrap();
            assert_eq!(read_head, head, "{of:?}");
            assert_eq!(read_selected[..4], selected, "{of:?}");
            assert_eq!(read_selected[4], "[7]");
        }
    }

    #[test]
    fn with_its_type_beside_it_the_data_may_be_anything() {
        for value in [&b""[..], b"no JSON", b"\xff", b"[1]", b"7", b"null", b"{\"type\":", b"{}"] {
            assert_eq!(read(value, TYPED).unwrap().0, "t - - - -", "{}", value.escape_ascii());
            let without = read(value, &[("ce_id", "e"), ("ce_source", "s")]).unwrap_err();
            assert!(matches!(without, Code::InvalidJson | Code::NotAnObject | Code::MissingType), "{without:?}");
        }
        assert_eq!(read(b"{\"x\":1,\"x\":2}", TYPED).unwrap().1[4], "2");
        for (of, code) in
            [(&[("ce_type", "")][..], Code::InvalidType), (&[("ce_type", "t"), ("ce_id", "")], Code::InvalidId)]
        {
            assert_eq!(read(b"{}", of).unwrap_err(), code, "{of:?}");
        }
    }

    #[test]
    fn an_envelope_that_is_a_records_value_is_opened() {
        let structured = &[("content-type", "application/cloudevents+json; charset=UTF-8"), ("ce_type", "a copy")][..];
        let envelope =
            br#"{"specversion":"1.0","type":"t","id":"i","source":"/s","data":{"x":1,"type":"no","client_id":2}}"#;
        let (head, selected) = read(envelope, structured).unwrap();
        assert_eq!(head, "t i - /s /s");
        assert_eq!(selected, [r#""t""#, r#""/s""#, r#""i""#, "-", "1"]);
        let of_data = br#"{"specversion":"1.0","type":"t","partitionkey":7,"data":{"timestamp":"2026-11-23T08:00:00Z","client_id":"c"}}"#;
        assert_eq!(read(of_data, structured).unwrap().0, "t - 2026-11-23T08:00:00.000Z c 7");
        for data in
            [r#""data_base64":"e30=""#, r#""datacontenttype":"text/plain","data":"{}""#, r#""data":"{\"x\":1}""#]
        {
            let envelope = format!(r#"{{"specversion":"1.0","type":"t",{data}}}"#);
            assert_eq!(read(envelope.as_bytes(), structured).unwrap().1[4], "-", "{data}");
        }
        assert_eq!(read(b"no JSON", structured).unwrap_err(), Code::InvalidJson);
        // What the door does not open, no reader does.
        for (members, code) in [
            (r#""type":7"#, Code::InvalidType),
            (r#""type":"t","Bad_Name":1"#, Code::InvalidCloudevent),
            (r#""type":"t","x":{}"#, Code::InvalidCloudevent),
            (r#""type":"t","data":1,"data_base64":"""#, Code::InvalidCloudevent),
            (r#""type":"t","data_base64":"***""#, Code::InvalidCloudevent),
        ] {
            let envelope = format!(r#"{{"specversion":"1.0",{members}}}"#);
            assert_eq!(read(envelope.as_bytes(), structured).unwrap_err(), code, "{members}");
            let carried = Carried::of(envelope.as_bytes(), headers(structured));
            assert_eq!(carried.unwrap_err().code, code, "{members}");
        }
        assert_eq!(
            read(br#"{"specversion":"1.0"}"#, structured).unwrap_err(),
            Code::InvalidJson,
            "it has no data, either"
        );
        // A batch is none: Kafka's binding has no such thing.
        let batch = &[("content-type", "application/cloudevents-batch+json")][..];
        assert_eq!(read(br#"{"type":"a"}"#, batch).unwrap().0, "a - - - -");
    }

    #[test]
    fn the_key_is_the_partition_key_or_the_source_unless_another_role_is_asked_for() {
        let attributes = &[
            ("ce_specversion", "1.0"),
            ("ce_type", "t"),
            ("ce_id", "i"),
            ("ce_source", "/s"),
            ("ce_time", "2026-11-23T08:00:00Z"),
        ][..];
        let with_key = [attributes, &[("ce_partitionkey", "p")]].concat();
        for (key_field, key) in [
            ("", "/s"),
            ("client_id", "/s"),
            ("x", "/s"),
            ("type", "t"),
            ("event_id", "i"),
            ("timestamp", "2026-11-23T08:00:00Z"),
        ] {
            let config = EventConfig { key_field: key_field.to_owned(), ..EventConfig::default() };
            let fields = fields(&config);
            let admitted = |of| {
                admit_with(br#"{"x":"data","client_id":"c"}"#, headers(of), ByteSize(1000), &fields, Timestamp(0))
                    .unwrap()
            };
            assert_eq!(admitted(attributes).key.as_deref(), Some(key), "{key_field}");
            assert_eq!(admitted(&with_key).key.as_deref(), Some("p"));
        }
        let config = EventConfig { key_field: "x".to_owned(), ..EventConfig::default() };
        let admitted =
            admit_with(br#"{"x":"data"}"#, headers(TYPED), ByteSize(1000), &fields(&config), Timestamp(0)).unwrap();
        assert_eq!(admitted.key.as_deref(), Some("data"), "there is no client");
        let long = "x".repeat(9000);
        let of = [("ce_type", "t"), ("ce_source", &*long)];
        let fields = fields(&EventConfig::default());
        let admitted = admit_with(b"{}", headers(&of), ByteSize(10_000), &fields, Timestamp(0)).unwrap();
        assert!(admitted.key.unwrap().starts_with("sha256:") && admitted.client.as_deref() == Some(&*long));
    }

    const CLOUDEVENT: Headers<'_> = &[("ce_specversion", "1.0"), ("ce_type", "t"), ("ce_id", "i"), ("ce_source", "/s")];

    #[test]
    fn the_door_takes_a_cloudevent_that_has_what_each_has() {
        let fields = fields(&EventConfig::default());
        let admit = |of: Headers<'_>| admit_with(b"", headers(of), ByteSize(1000), &fields, Timestamp(0)).map(drop);
        assert_eq!(admit(CLOUDEVENT), Ok(()));
        for (name, value, code, words) in [
            ("ce_specversion", Some("0.3"), Code::InvalidCloudevent, "is \"0.3\""),
            ("ce_specversion", Some(""), Code::InvalidCloudevent, "must be \"1.0\""),
            ("ce_type", None, Code::MissingType, "\"type\" is missing"),
            ("ce_type", Some(""), Code::InvalidType, "\"type\" must be a string of 1 to 128"),
            ("ce_id", None, Code::InvalidId, "\"id\" is missing"),
            ("ce_id", Some(""), Code::InvalidId, "\"id\" must be a string of 1 to 256"),
            ("ce_source", None, Code::InvalidCloudevent, "\"source\" must be a string that is not empty"),
            ("ce_source", Some(""), Code::InvalidCloudevent, "\"source\" must be"),
        ] {
            let others = CLOUDEVENT.iter().filter(|(other, _)| *other != name).copied();
            let attributes: Vec<_> = others.chain(value.map(|value| (name, value))).collect();
            let invalid = admit(&attributes).unwrap_err();
            assert!(invalid.code == code && invalid.message.contains(words), "{name}: {invalid}");
        }
        // What does not say that it is one may lack all but its type.
        assert_eq!(admit_with(b"{}", headers(TYPED), ByteSize(1000), &fields, Timestamp(0)).map(drop), Ok(()));
    }

    #[test]
    fn data_that_is_no_json_is_taken_and_json_is_what_every_reader_takes() {
        let accepting = EventConfig { on_unreadable: OnUnreadable::Accept, ..EventConfig::default() };
        let (reject, accept) = (fields(&EventConfig::default()), fields(&accepting));
        let deep = "[".repeat(200) + &"]".repeat(200);
        let twice = r#"{"a":1,"a":2}"#;
        // By content type, with event.on_unreadable = "reject" and "accept".
        for (data, json, absent, text) in [
            ("{}", [true; 2], [true; 2], [true; 2]),
            ("[1]", [true; 2], [true; 2], [true; 2]),
            ("", [true; 2], [true; 2], [true; 2]),
            // As the JavaScript SDK sends a string.
            ("no JSON", [true; 2], [true; 2], [true; 2]),
            (&*deep, [false, true], [true; 2], [true; 2]),
            (twice, [false, true], [true; 2], [true; 2]),
        ] {
            for (content_type, taken) in [(Some("application/json"), json), (None, absent), (Some("text/plain"), text)]
            {
                let content_type = content_type.map(|it| ("content-type", it));
                let attributes: Vec<_> = CLOUDEVENT.iter().copied().chain(content_type).collect();
                for (fields, taken) in [&reject, &accept].into_iter().zip(taken) {
                    let admitted =
                        admit_with(data.as_bytes(), headers(&attributes), ByteSize(1000), fields, Timestamp(0));
                    assert_eq!(
                        admitted.map(drop).map_err(|invalid| invalid.code),
                        if taken { Ok(()) } else { Err(Code::InvalidJson) },
                        "{data:.20} {content_type:?}"
                    );
                }
            }
            // A part of a body that is JSON, of which something was found: as any event.
            let admitted = admit_with(data.as_bytes(), headers(TYPED), ByteSize(1000), &reject, Timestamp(0));
            assert_eq!(admitted.is_ok(), json[0] && data != "no JSON", "{data:.20}");
        }
    }

    #[test]
    fn attributes_count_as_the_events_size() {
        let fields = fields(&EventConfig::default());
        let size = "data".len() + CLOUDEVENT.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        let others = [CLOUDEVENT, &[("id", "not counted")]].concat();
        assert!(admit_with(b"data", headers(&others), ByteSize(size as u64), &fields, Timestamp(0)).is_ok());
        let refused =
            admit_with(b"data", headers(&others), ByteSize(size as u64 - 1), &fields, Timestamp(0)).unwrap_err();
        assert!(refused.code == Code::TooLarge && refused.message.contains("data and attributes"), "{refused}");
    }

    #[test]
    fn what_a_record_carries_is_its_attributes_and_its_data() {
        let carried = |value: &'static [u8], of: Headers<'static>| {
            let Carried { attributes, data } = Carried::of(value, headers(of)).unwrap();
            let attributes: Vec<_> = attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
            (attributes.join(" "), data.into_owned())
        };
        assert_eq!(
            carried(b"{}", &[("id", "x"), ("content-type", "application/json")]),
            (String::new(), b"{}".to_vec())
        );
        let binary: Headers<'static> =
            &[("content-type", "text/plain"), ("id", "x"), ("ce_type", "t"), ("ce_ext", "1"), ("ce_type", "u")];
        assert_eq!(carried(b"x", binary), ("datacontenttype=text/plain ext=1 type=u".to_owned(), b"x".to_vec()));
        let structured = &[("content-type", "application/cloudevents+json")];
        let envelope = br#"{"specversion":"1.0","type":"t","data_base64":"/w=="}"#;
        assert_eq!(carried(envelope, structured), ("specversion=1.0 type=t".to_owned(), vec![0xff]));
        // Of one name the last, as for those who count it.
        let twice = &[("content-type", "application/cloudevents+json"), ("content-type", "application/json")];
        assert_eq!(carried(envelope, twice).1, envelope);
    }
}
