//! What the daemon reads of an event: its type, id, time, client and key. Everything else is the user's and is carried
//! as it came.
//!
//! The rules, for the ingestor ([`parse`]) and for every reader of the log ([`read`]) alike:
//!
//! - the whole value is valid JSON in valid UTF-8, an object, and nested no deeper than [`MAX_DEPTH`];
//! - of duplicate fields the last one counts, where they are taken;
//! - `null` is as good as absent;
//! - the type is a required string of 1 to 128 characters, the id an optional one of 1 to 256;
//! - the timestamp is an optional [`time`], from 1970 on, from `event.max_past` before the record's receipt up to
//!   `event.max_future` after it. An event
//!   with another one is counted by the time of its receipt;
//! - the client and the key are a string's characters or another scalar's JSON text; an object or an array is neither. A
//!   string that says "nobody" (empty, blank, a nil UUID) is no key, and a long one stands for itself by its hash.
//!
//! What stands beside the value, in headers (`ce_type`, `ce_id`, `ce_time`, `ce_source`) or in an envelope around it, wins over
//! the value's field with the same role, each on its own. With a type of that kind the value may be anything ([`stated`]).
//!
//! The ingestor refuses more than a reader does: what stands in the log is read and counted by the rules that it was
//! accepted under. What not every reader of JSON can read ([`Unreadable`]) is refused unless the configuration says
//! otherwise. A time that is not believed, or that few other readers know (`time::InvalidTime`), it names to the client, or
//! refuses, as `event.on_invalid_time` says.

mod conform;
mod date;
mod envelope;
mod fields;
mod json;
mod names;
mod pointer;
mod readable;
mod stated;
mod time;
mod time_bounds;

use std::borrow::Cow;

use sha2::{Digest, Sha256};
use smallvec::SmallVec;
use uuid::Uuid;

use crate::{
    config::{ByteSize, EventConfig, Field as Selected, OnInvalidTime, OnUnreadable},
    position::Timestamp,
    vector,
};

pub use conform::{conform, is_any_asked, permit, weight};
use date::Written;
pub use envelope::{BASE64, BATCH_TYPE, ENVELOPE_TYPE, Envelope, is_attribute_name, is_event_format, longest_envelope};
pub use fields::{MAX_DEPTH, find_readable};
pub use json::{Texts, text};
pub use names::FieldNames;
use names::Names;
pub use pointer::{Pointers, locate, surrounds};
pub use readable::{Unreadable, check};
use stated::Stated;
pub use stated::{Carried, admit_with, content_type_of, header_of, is_attribute};
pub use time::{InvalidTime, text_of as text_of_time};
pub use time_bounds::TimeBounds;

/// Which fields are read: those of the head, and further ones that an aggregate groups, filters or measures by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventFields {
    /// Each name once, so that a field of an event is compared with as few as possible.
    names: FieldNames,
    /// Indexes into `names`: type, id, time, client, key.
    head: [usize; 5],
    selected: Vec<Place>,
    /// Those of the selected that are pointers, as one tree.
    pointers: Pointers,
    /// Indexes into `names`, of what the pointers pass through first.
    first_names: Vec<usize>,
    /// How many pointers there are.
    pointed: usize,
    /// All readers of a record must have the same.
    bounds: TimeBounds,
    /// What the ingestor does; readers of the log do not ask.
    on_unreadable: OnUnreadable,
    /// The same.
    on_invalid_time: OnInvalidTime,
}

/// Where a selected field is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Index into `names`.
    Name(usize),
    /// Index into what pointers lead to.
    Pointer(usize),
}

impl From<&EventConfig> for EventFields {
    fn from(config: &EventConfig) -> Self {
        let mut names = FieldNames::default();
        let head = [
            config.type_field.as_str(),
            &config.id_field,
            &config.time_field,
            &config.client_field,
            config.key_field(),
        ];
        let head = head.map(|name| names.add(name));
        Self {
            names,
            head,
            selected: Vec::new(),
            pointers: Pointers::default(),
            first_names: Vec::new(),
            pointed: 0,
            bounds: TimeBounds::from(config),
            on_unreadable: config.on_unreadable,
            on_invalid_time: config.on_invalid_time,
        }
    }
}

impl EventFields {
    pub fn on_unreadable(&self) -> OnUnreadable {
        self.on_unreadable
    }

    /// The same, by other bounds of its time.
    pub fn within(&self, bounds: TimeBounds) -> Self {
        Self { bounds, ..self.clone() }
    }

    pub fn bounds(&self) -> TimeBounds {
        self.bounds
    }

    /// The same head, and these fields for [`Found::selected`].
    pub fn selecting(mut self, fields: &[Selected]) -> Self {
        for field in fields {
            let place = match field {
                Selected::Name(name) => Place::Name(self.names.add(name)),
                Selected::Pointer(pointer) => {
                    self.pointers.add(pointer, self.pointed);
                    self.pointed += 1;
                    Place::Pointer(self.pointed - 1)
                }
            };
            self.selected.push(place);
        }
        self.first_names = self.pointers.names().iter().map(|name| self.names.add(name)).collect();
        self
    }

    /// A place for the value of each name.
    #[inline(always)]
    fn none<'a>(&self) -> Texts<'a> {
        json::none(self.names.count())
    }

    /// The event whose fields have these values.
    fn head_of<'a>(&self, values: &Texts<'a>, rules: Rules, received: Timestamp) -> Result<Event<'a>, Invalid> {
        let field = |role: usize| {
            let name = self.head[role];
            Field::read(values[name], &self.names[name])
        };
        let [event_type, id, time_field, of_client, of_key] = self.head;
        let event_type = event_type_of(field(0)?, &self.names[event_type])?;
        let id = id_of(field(1)?, &self.names[id])?;
        let written = self.written(values)?;
        let what = || format!("field {:?}", &self.names[time_field]);
        let (time, invalid_time) = judge(written, what, rules, self, received)?;
        let client = field(3)?.scalar();
        let key = if of_key == of_client { client.clone() } else { field(4)?.scalar() };
        Ok(Event { event_type, id, time, invalid_time, client, key: key.and_then(key_of) })
    }

    /// The time in the field of these values that is for it; the inner `None` is one that cannot be read.
    #[inline]
    fn written(&self, values: &Texts<'_>) -> Result<Option<Option<Written>>, Invalid> {
        let name = self.head[2];
        match values[name].and_then(time::of_json) {
            None => Ok(written(&Field::read(values[name], &self.names[name])?)),
            read => Ok(Some(read)),
        }
    }

    /// What the pointers lead to in a value whose fields were found.
    fn point<'a>(&self, value: &'a [u8], values: &Texts<'a>) -> Pointed<'a> {
        if self.pointed == 0 {
            return Pointed::new();
        }
        let mut found = Texts::from_elem(None, self.pointed);
        for (index, name) in self.first_names.iter().enumerate() {
            if let Some(text) = values[*name] {
                self.pointers.find_below(index, text, &mut found);
            }
        }
        // The data of a CloudEvent may be an array; what is no JSON has no part that a pointer leads to.
        if value.trim_ascii_start().first() == Some(&b'[') {
            let _ = self.pointers.find_in(value, &mut found);
        }
        found.into_iter().map(|text| text.map(Cow::Borrowed)).collect()
    }
}

type Pointed<'a> = SmallVec<[Option<Cow<'a, str>>; 4]>;

/// The raw JSON texts of an event's fields, the last of duplicates.
#[derive(Debug)]
pub struct Found<'f, 'a> {
    fields: &'f EventFields,
    /// In the order of the names.
    values: Texts<'a>,
    /// What stands beside the value in the place of selected fields: the name's index, and a JSON string.
    stated: Vec<(usize, String)>,
    /// In the order of the pointers.
    pointed: Pointed<'a>,
}

impl<'a> Found<'_, 'a> {
    /// The value of the field that was given to [`EventFields::selecting`] at this place; `None` where it is missing.
    pub fn selected(&self, index: usize) -> Option<&str> {
        match self.fields.selected[index] {
            Place::Name(name) => self.named(name),
            Place::Pointer(place) => self.pointed[place].as_deref(),
        }
    }

    fn named(&self, name: usize) -> Option<&str> {
        let stated = self.stated.iter().find(|(stated, _)| *stated == name);
        stated.map(|(_, json)| json.as_str()).or(self.values[name])
    }

    fn head(&self, index: usize) -> Result<Field<'a>, Invalid> {
        let name = self.fields.head[index];
        Field::read(self.values[name], &self.fields.names[name])
    }
}

impl<'f> Found<'f, '_> {
    /// What was selected, apart from the data that it was found in.
    fn into_owned<'b>(self) -> Found<'f, 'b> {
        let names = self.fields.selected.iter().filter_map(|place| match place {
            Place::Name(name) => Some(*name),
            Place::Pointer(_) => None,
        });
        let stated = names.filter_map(|name| self.named(name).map(|json| (name, json.to_owned()))).collect();
        let values = Texts::from_elem(None, self.fields.names.count());
        let owned = |text: Option<Cow<'_, str>>| text.map(|text| Cow::Owned(text.into_owned()));
        Found { fields: self.fields, values, stated, pointed: self.pointed.into_iter().map(owned).collect() }
    }
}

/// What was read of an event. Text is borrowed from it, unless it was escaped there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    pub event_type: Cow<'a, str>,
    pub id: Option<Cow<'a, str>>,
    /// Its own time, where it has one that is believed; it counts in the window of this or, without, of its receipt.
    pub time: Option<Timestamp>,
    /// What its sender should be told of its time.
    pub invalid_time: Option<InvalidTime>,
    pub client: Option<Cow<'a, str>>,
    /// The log record's key.
    pub key: Option<Cow<'a, str>>,
}

impl Event<'_> {
    /// Apart from the bytes that it was read of.
    fn into_owned(self) -> Event<'static> {
        let owned = |text: Option<Cow<'_, str>>| text.map(|text| text.into_owned().into());
        Event {
            event_type: self.event_type.into_owned().into(),
            id: owned(self.id),
            time: self.time,
            invalid_time: self.invalid_time,
            client: owned(self.client),
            key: owned(self.key),
        }
    }
}

/// Why an event is refused, as clients, dead letters and metrics name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    InvalidJson,
    NotAnObject,
    MissingType,
    InvalidType,
    InvalidId,
    InvalidTimestamp,
    InvalidProtobuf,
    InvalidCloudevent,
    TooLarge,
    /// The key that it came with may not send its type.
    ForbiddenType,
    /// Its type is none of `[[event.types]]`, and others are not taken.
    UnknownType,
    /// It does not match the schema of its type.
    Schema,
}

impl Code {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::NotAnObject => "not_an_object",
            Self::MissingType => "missing_type",
            Self::InvalidType => "invalid_type",
            Self::InvalidId => "invalid_id",
            Self::InvalidTimestamp => "invalid_timestamp",
            Self::InvalidProtobuf => "invalid_protobuf",
            Self::InvalidCloudevent => "invalid_cloudevent",
            Self::TooLarge => "too_large",
            Self::ForbiddenType => "forbidden_type",
            Self::UnknownType => "unknown_type",
            Self::Schema => "schema",
        }
    }
}

/// Why an event cannot be accepted, or why a record of the log is no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct Invalid {
    pub code: Code,
    pub message: String,
}

impl Invalid {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: shortened(message.into()).into_owned() }
    }
}

/// Bytes of the longest message, and of its end where that is not all of it.
const LONGEST_MESSAGE: usize = 500;
const END_OF_MESSAGE: usize = 150;

/// A message that is bounded, whatever a library quotes in it: its beginning, and its end, where positions stand.
pub fn shortened<'m>(message: impl Into<Cow<'m, str>>) -> Cow<'m, str> {
    const GAP: &str = " … ";
    let message = message.into();
    if message.len() <= LONGEST_MESSAGE {
        return message;
    }
    let beginning = message.floor_char_boundary(LONGEST_MESSAGE - END_OF_MESSAGE - GAP.len());
    let end = message.ceil_char_boundary(message.len() - END_OF_MESSAGE);
    format!("{}{GAP}{}", &message[..beginning], &message[end..]).into()
}

const MAX_TYPE_CHARS: usize = 128;
const MAX_ID_CHARS: usize = 256;

/// Whose rules an event is read by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    /// The ingestor's and a replay's, which may still refuse it.
    Acceptance,
    /// Those of the log's readers, which find it there.
    Log,
}

impl Rules {
    /// Checks the whole of an object, and finds the fields called `names`.
    #[inline(always)]
    fn scan<'a>(
        self,
        on_unreadable: OnUnreadable,
        value: &'a [u8],
        names: &impl Names,
        found: &mut Texts<'a>,
    ) -> Result<(), Invalid> {
        match (self, on_unreadable) {
            (Self::Acceptance, OnUnreadable::Reject) => fields::scan_readable(value, names, found),
            (Self::Acceptance, OnUnreadable::Accept) | (Self::Log, _) => fields::scan(value, names, found),
        }
    }
}

/// Checks a whole event that is to be accepted, received at this time, and reads its head.
pub fn parse<'a>(value: &'a [u8], fields: &EventFields, received: Timestamp) -> Result<Event<'a>, Invalid> {
    let mut values = fields.none();
    Rules::Acceptance.scan(fields.on_unreadable, value, &fields.names, &mut values)?;
    fields.head_of(&values, Rules::Acceptance, received)
}

/// Checks a whole record of the log and reads its head, with the fields that were found on the way. `received` is the
/// record's own time.
pub fn read<'f, 'a>(
    value: &'a [u8],
    headers: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
    fields: &'f EventFields,
    received: Timestamp,
) -> Result<(Event<'a>, Found<'f, 'a>), Invalid> {
    match Stated::in_headers(headers) {
        None => read_by(Rules::Log, value, fields, received),
        Some(stated) => stated.read(Rules::Log, value, fields, received),
    }
}

fn read_by<'f, 'a>(
    rules: Rules,
    value: &'a [u8],
    fields: &'f EventFields,
    received: Timestamp,
) -> Result<(Event<'a>, Found<'f, 'a>), Invalid> {
    let mut values = fields.none();
    rules.scan(fields.on_unreadable, value, &fields.names, &mut values)?;
    let event = fields.head_of(&values, rules, received)?;
    let pointed = fields.point(value, &values);
    Ok((event, Found { fields, values, stated: Vec::new(), pointed }))
}

/// A field's value, as far as the head of an event is concerned.
#[derive(Debug, Default, Clone)]
enum Field<'a> {
    #[default]
    Absent,
    Text(Cow<'a, str>),
    /// A number or boolean, as it is written.
    Literal(&'a str),
    Nested,
}

impl<'a> Field<'a> {
    #[inline(always)]
    fn read(json: Option<&'a str>, name: &str) -> Result<Self, Invalid> {
        let Some(json) = json else { return Ok(Self::Absent) };
        Ok(match json.as_bytes().first() {
            Some(b'"') => Self::Text(match inner(json) {
                Some(text) => Cow::Borrowed(text),
                None => unescape(json).map_err(|error| unreadable_string(name, &error))?,
            }),
            Some(b'{' | b'[') => Self::Nested,
            Some(b'n') => Self::Absent,
            _ => Self::Literal(json),
        })
    }

    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Absent | Self::Literal(_) | Self::Nested => None,
        }
    }

    fn scalar(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) => Some(text),
            Self::Literal(json) => Some(Cow::Borrowed(json)),
            Self::Absent | Self::Nested => None,
        }
    }
}

#[cold]
fn unreadable_string(name: &str, error: &serde_json::Error) -> Invalid {
    Invalid::new(Code::InvalidJson, format!("the string in field {name:?} cannot be read: {error}"))
}

/// The characters of a valid JSON string.
pub fn unescape(json: &str) -> Result<Cow<'_, str>, serde_json::Error> {
    inner(json).map_or_else(|| serde_json::from_str(json).map(Cow::Owned), |text| Ok(Cow::Borrowed(text)))
}

/// What stands between the quotes of a string without escapes.
#[inline(always)]
fn inner(json: &str) -> Option<&str> {
    // Of what is special, a string can have a backslash alone.
    json.get(1..json.len() - 1).filter(|inner| vector::is_plain(inner.as_bytes()))
}

/// Bytes of the longest key that stands as it is; a longer one is replaced by `sha256:<hex>`. The record is written with its
/// key beside its value, and the topic's bound has this much room beside an event.
const LONGEST_KEY: usize = 8 << 10;

/// The key that this text is. A text that stands for an unknown client is no key: the events of all of them would have one
/// partition.
pub fn key_of(text: Cow<'_, str>) -> Option<Cow<'_, str>> {
    if is_nil(&text) || text.trim_start().is_empty() {
        return None;
    }
    if text.len() > LONGEST_KEY {
        return Some(format!("sha256:{}", hex::encode(Sha256::digest(text.as_bytes()))).into());
    }
    Some(text)
}

/// Whether it is the UUID of zeros, with its hyphens or without.
fn is_nil(text: &str) -> bool {
    matches!(text.len(), 32 | 36) && text.starts_with('0') && Uuid::try_parse(text).is_ok_and(|uuid| uuid.is_nil())
}

fn event_type_of<'a>(field: Field<'a>, name: &str) -> Result<Cow<'a, str>, Invalid> {
    match field {
        Field::Text(text) if has_length(&text, MAX_TYPE_CHARS) => Ok(text),
        Field::Absent => {
            let rule = format!("field {name:?} is missing: it must be a string of 1 to {MAX_TYPE_CHARS} characters");
            Err(Invalid::new(Code::MissingType, rule))
        }
        _ => {
            let rule = format!("field {name:?} must be a string of 1 to {MAX_TYPE_CHARS} characters");
            Err(Invalid::new(Code::InvalidType, rule))
        }
    }
}

fn id_of<'a>(field: Field<'a>, name: &str) -> Result<Option<Cow<'a, str>>, Invalid> {
    match field {
        Field::Absent => Ok(None),
        Field::Text(text) if has_length(&text, MAX_ID_CHARS) => Ok(Some(text)),
        _ => {
            let rule = format!("field {name:?} must be a string of 1 to {MAX_ID_CHARS} characters, or absent");
            Err(Invalid::new(Code::InvalidId, rule))
        }
    }
}

/// A time as it is written, where there is one; the inner `None` is one that cannot be read.
fn written(field: &Field<'_>) -> Option<Option<Written>> {
    match field {
        Field::Absent => None,
        Field::Text(text) => Some(time::of_text(text)),
        Field::Literal(json) => Some(time::of_number(json)),
        Field::Nested => Some(None),
    }
}

/// The time that is believed, and what is wrong with it. `what` names the field or attribute.
///
/// # Errors
/// It is wrong, and the door refuses that.
#[inline]
fn judge(
    written: Option<Option<Written>>,
    what: impl FnOnce() -> String,
    rules: Rules,
    fields: &EventFields,
    received: Timestamp,
) -> Result<(Option<Timestamp>, Option<InvalidTime>), Invalid> {
    let Some(written) = written else { return Ok((None, None)) };
    let (time, invalid) = time::judge(written, &fields.bounds.around(received));
    match invalid {
        Some(invalid) if (rules, fields.on_invalid_time) == (Rules::Acceptance, OnInvalidTime::Reject) => {
            Err(Invalid::new(Code::InvalidTimestamp, format!("{} {}", what(), invalid.rule())))
        }
        _ => Ok((time, invalid)),
    }
}

/// 1 to `most` characters.
fn has_length(text: &str, most: usize) -> bool {
    !text.is_empty() && (text.len() <= most || text.chars().nth(most).is_none())
}

/// Checks one event that is received at this time, and reads what is read of it.
///
/// # Errors
/// Why it is not accepted.
pub fn admit<'e>(
    event: &'e [u8],
    max_event: ByteSize,
    fields: &EventFields,
    received: Timestamp,
) -> Result<Event<'e>, Invalid> {
    if event.len() > max_event.as_usize() {
        return Err(too_large(event.len(), "bytes", max_event));
    }
    parse(event, fields, received)
}

/// An event of this size is larger than one may be.
pub fn too_large(size: usize, of_what: &str, max_event: ByteSize) -> Invalid {
    let message = format!("{size} {of_what} are more than an event may have: {max_event} (http.max_event)");
    Invalid::new(Code::TooLarge, message)
}

#[cfg(test)]
mod tests;
