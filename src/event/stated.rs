//! What stands of an event beside its data: in a record's headers, as the Kafka protocol binding of CloudEvents 1.0 names
//! them, or in the envelope that is the record's value (`content-type: application/cloudevents+json`).
//!
//! Each of type, id, time and source (the client) wins over the data's field with the same role; what is absent is looked
//! for in the data. With a type beside it the data may be anything: JSON of any kind, other bytes, or nothing.
//!
//! The door asks more of what says that it is a CloudEvent (`ce_specversion`) than readers of the log do: the attributes that
//! each has, and data that is JSON where its content type says so.

use std::{borrow::Cow, collections::BTreeMap};

use smallvec::SmallVec;

use super::{
    Code, Event, EventFields, Field, Found, Invalid, MAX_ID_CHARS, MAX_TYPE_CHARS, Rules, Texts, Unreadable, admit,
    envelope::{DATA, DATA_CONTENT_TYPE, Envelope, check_spec_version, is_event_format, is_json_type},
    event_type_of,
    fields::{explain, find_readable, not_utf8, scan, unreadable},
    id_of, key_of, time_of, too_large,
};
use crate::config::{ByteSize, OnUnreadable};

/// Before an attribute's name in a header.
const PREFIX: &str = "ce_";
/// The header of the attribute that has no prefix.
const CONTENT_TYPE: &str = "content-type";

/// The attribute that a header of this name carries. (Kafka's header names are case-sensitive; a producer that writes
/// `Content-Type` means no other thing.)
pub fn attribute_of(header: &str) -> Option<&str> {
    match header.split_at_checked(PREFIX.len()) {
        Some((prefix, name)) if prefix.eq_ignore_ascii_case(PREFIX) => Some(name),
        _ => header.eq_ignore_ascii_case(CONTENT_TYPE).then_some(DATA_CONTENT_TYPE),
    }
}

/// The header that carries this attribute.
pub fn header_of(attribute: &str) -> Cow<'static, str> {
    if attribute == DATA_CONTENT_TYPE { CONTENT_TYPE.into() } else { format!("{PREFIX}{attribute}").into() }
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
) -> Result<Event<'e>, Invalid> {
    let headers = headers.into_iter();
    let Some(stated) = Stated::in_headers(headers.clone()) else { return admit(value, max_event, fields) };
    let attributes = headers.filter(|(name, _)| attribute_of(name).is_some());
    let attributes = attributes.map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len));
    let size = value.len() + attributes.sum::<usize>();
    if size > max_event.as_usize() {
        return Err(too_large(size, "bytes of data and attributes", max_event));
    }
    stated.read(Rules::Acceptance, value, fields).map(|(event, _)| event)
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

    /// Those in the envelope that is the record's value, and the JSON that it holds as its data. Data of another kind has no
    /// fields.
    fn in_envelope(value: &'a [u8], rules: Rules, on_unreadable: OnUnreadable) -> Result<(Self, &'a [u8]), Invalid> {
        const MEMBERS: [&str; 8] =
            ["specversion", "type", "id", "time", "source", "partitionkey", DATA_CONTENT_TYPE, DATA];
        let texts = rules.scan(on_unreadable, value, &MEMBERS)?;
        let mut stated = Self::default();
        for (name, text) in MEMBERS.into_iter().zip(&texts) {
            if let Some(place) = stated.place(name) {
                *place = Field::read(*text, name)?;
            }
        }
        let is_json = stated.content_type.text().is_none_or(is_json_type);
        let data = texts.last().copied().flatten().filter(|_| is_json);
        Ok((stated, data.unwrap_or_default().as_bytes()))
    }

    /// Reads the event that these are attributes of.
    pub fn read<'f>(
        self,
        rules: Rules,
        value: &'a [u8],
        fields: &'f EventFields,
    ) -> Result<(Event<'a>, Found<'f, 'a>), Invalid> {
        if self.content_type.text().is_some_and(is_event_format) {
            let (stated, data) = Self::in_envelope(value, rules, fields.on_unreadable)?;
            if rules == Rules::Acceptance {
                stated.check()?;
            }
            return stated.with(rules, data, fields);
        }
        if rules == Rules::Acceptance && !matches!(self.spec_version, Field::Absent) {
            self.check()?;
        }
        self.with(rules, value, fields)
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
                let rule = "attribute \"source\" must be a string that is not empty: a CloudEvent says where it is from";
                Err(Invalid::new(Code::InvalidCloudevent, rule))
            }
        }
    }

    fn with<'f>(
        self,
        rules: Rules,
        data: &'a [u8],
        fields: &'f EventFields,
    ) -> Result<(Event<'a>, Found<'f, 'a>), Invalid> {
        let values = match self.event_type {
            Field::Absent => rules.scan(fields.on_unreadable, data, &fields.names)?,
            _ => self.fields_of(rules, data, fields)?,
        };
        let mut found = Found { fields, values, stated: Vec::new() };
        let Self { event_type, id, time, source, partition_key, .. } = self;
        for (name, stated) in fields.head.into_iter().zip([&event_type, &id, &time, &source]) {
            if let Some(text) = stated.text().filter(|_| fields.selected.contains(&name)) {
                found.stated.push((name, serde_json::Value::from(text).to_string()));
            }
        }
        let names_a_client = source.text().is_some();
        let or_found = |stated: Field<'a>, role: usize, name: &'static str| match stated {
            Field::Absent => Ok((found.head(role)?, fields.names[fields.head[role]].as_str())),
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
        let time = time_of(&time, name, rules)?;
        Ok((Event { event_type, id, time, client, key: key.and_then(key_of) }, found))
    }

    /// The fields of data that has its type beside it.
    fn fields_of(&self, rules: Rules, data: &'a [u8], fields: &EventFields) -> Result<Texts<'a>, Invalid> {
        let none = || SmallVec::from_elem(None, fields.names.len());
        let any = || scan(data, &fields.names).unwrap_or_else(|_| none());
        if rules == Rules::Log || data.is_empty() {
            return Ok(any());
        }
        let content_type = self.content_type.text();
        // A CloudEvent that does not say what its data is lets nothing be assumed (JSON format, 3.1.2). What is none came as
        // a part of JSON.
        let is_json = content_type.map_or(matches!(self.spec_version, Field::Absent), is_json_type);
        match find_readable(data, &fields.names) {
            Ok(values) => Ok(values),
            Err(Unreadable::NotJson | Unreadable::TooDeep) if is_json => Err(not_json(data, content_type)),
            Err(Unreadable::NotJson | Unreadable::TooDeep) => Ok(none()),
            Err(what) if is_json && fields.on_unreadable == OnUnreadable::Reject => Err(unreadable(what)),
            Err(_) => Ok(any()),
        }
    }
}

/// Why data is not the JSON that it is said to be.
fn not_json(data: &[u8], content_type: Option<&str>) -> Invalid {
    let why = match std::str::from_utf8(data) {
        Err(error) => not_utf8(error),
        Ok(text) => explain(text),
    };
    let said = content_type.map(|it| format!("the data is not the JSON that its content type {it:?} says it is: "));
    Invalid::new(Code::InvalidJson, said.unwrap_or_default() + &why.message)
}

/// What a record carries, for those who keep it: its attributes by their own names, and its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried<'a> {
    pub attributes: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    pub data: Cow<'a, [u8]>,
}

impl<'a> Carried<'a> {
    /// Of a record without attributes it is the value.
    pub fn of(
        value: &'a [u8],
        headers: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
        fields: &EventFields,
    ) -> Self {
        // Of one name the last, as in the head.
        let mut attributes = BTreeMap::new();
        for (header, text) in headers {
            let Some(name) = attribute_of(header) else { continue };
            let Some(text) = text.and_then(|text| std::str::from_utf8(text).ok()) else { continue };
            if name == DATA_CONTENT_TYPE
                && is_event_format(text)
                && let Ok(Envelope { attributes, data }) = Envelope::open(value, fields)
            {
                return Self { attributes, data };
            }
            attributes.insert(name, text);
        }
        // The content type alone, which many programs write, makes no attributes of an event.
        if attributes.keys().all(|name| *name == DATA_CONTENT_TYPE) {
            attributes.clear();
        }
        let attributes = attributes.into_iter().map(|(name, text)| (name.into(), text.into())).collect();
        Self { attributes, data: value.into() }
    }
}
