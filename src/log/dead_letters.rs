//! Dead letters: records that cannot be parsed, or that the store refuses for good, and what the ingestor was sent and did
//! not take, kept with their original bytes, position and reason.
//!
//! Those of records come from the aggregates' side, and are written durably before the position moves past the record
//! ([`DeadLetterWriter`]). Such a letter's id is its position, so writing one again changes nothing that a reader sees.
//! Those of requests come from the ingestor, and are durable before the request's answer ([`Quarantine`]). A request that
//! comes again makes new ones: only the client knows that it is the same.
//!
//! What operators do with them stands behind [`DeadLetters`]: the embedded log and Kafka implement it, and
//! [`client`] asks a running daemon. A replay goes through [`replay`], which is the ingestor's check, and appends the
//! record and marks its letter in one transaction: it happens once, whatever is killed and however many try.

pub mod client;
mod filter;
pub mod replay;

use std::{collections::BTreeSet, fmt, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::position::{Offset, Partition, Timestamp, TopicName};

pub use filter::Filter;

/// The header of a record that came from a letter: the letter's id.
pub const REPLAYED_HEADER: &str = "ingestd-replayed";
/// The header of a letter of which something beside its value is wrong and not kept: what that is. As it is it would pass a
/// check that it did not pass.
pub const WRONG_HEADER: &str = "ingestd-wrong";
/// One operation may take so long; what it has done by then stands, and the answer says that there is more.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Letters and bytes of one transaction of a replay: small enough that appends do not wait for it.
pub const BATCH_LETTERS: usize = 100;
pub const BATCH_BYTES: usize = 4 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    pub topic: String,
    pub generation: u32,
    pub partition: Partition,
    pub origin: Origin,
    /// The record's own timestamp, or when the request came.
    pub received: Timestamp,
    /// A code such as `invalid_json`: those of the ingest replies, or [`REFUSED_BY_STORE`].
    pub reason: String,
    /// What is wrong, for people.
    pub message: String,
    /// When it was found.
    pub time: Timestamp,
    pub key: Option<Vec<u8>>,
    /// Of a request, a part of its body.
    pub value: Option<Bytes>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

/// What a letter was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A record, at this offset.
    Record(Offset),
    /// An event that the ingestor did not take, or a whole body. It stood in no log.
    Request(Uuid),
}

impl Origin {
    /// The offset as it is stored and sent: that of a request is negative, and all readers of offsets pass it over.
    pub fn stored(self) -> i64 {
        match self {
            Self::Record(offset) => offset.as_i64(),
            Self::Request(_) => -1,
        }
    }

    /// Of a letter with this id; `None` where the two do not fit.
    pub fn of(stored: i64, id: &str) -> Option<Self> {
        match Offset::from_kafka(stored) {
            Some(offset) => Some(Self::Record(offset)),
            None => Uuid::try_parse(id.rsplit('/').next()?).ok().map(Self::Request),
        }
    }

    pub fn offset(self) -> Option<Offset> {
        match self {
            Self::Record(offset) => Some(offset),
            Self::Request(_) => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(offset) => offset.fmt(f),
            Self::Request(id) => id.hyphenated().fmt(f),
        }
    }
}

/// Stands behind the topic in the id of what the ingestor did not take, so that it is taken for no record.
pub const QUARANTINE: &str = ".ingest";

/// The reason of a valid event that the store does not take, whatever is tried.
pub const REFUSED_BY_STORE: &str = "refused_by_store";

impl DeadLetter {
    /// `topic/partition/offset` (the topic with its generation, where that is above 0), with a UUID in the place of the offset
    /// where there is none.
    pub fn id(&self) -> String {
        let name = TopicName { topic: &self.topic, generation: self.generation };
        format!("{name}/{}/{}", self.partition, self.origin)
    }
}

/// Where dead letters are written: Kafka's `<topic>.dlq`, or a table of the embedded log.
pub trait DeadLetterWriter: Send + Sync {
    /// Resolves when all letters are durable. May be called again with the same letters.
    fn write(&self, letters: Vec<DeadLetter>) -> BoxFuture<'static, anyhow::Result<()>>;

    /// Which records at or beyond `from` are letters already, in whatever state. They are never counted: a configuration
    /// that makes one valid would count it beside its replay.
    fn known(&self, source: Source, from: Offset) -> BoxFuture<'static, anyhow::Result<BTreeSet<Offset>>>;
}

/// Where the ingestor keeps what it does not take: with the other letters.
pub trait Quarantine: Send + Sync {
    /// Resolves when all letters are durable, but for those with the indexes that it returns: their bytes are more than a
    /// letter may have, and nothing of them is kept.
    fn keep(&self, letters: Vec<DeadLetter>) -> BoxFuture<'static, anyhow::Result<Vec<usize>>>;
}

/// The partition that letters come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub topic: String,
    pub generation: u32,
    pub partition: Partition,
}

/// What operators do with letters. All calls block, up to [`PATIENCE`] and a little: never on an arbiter.
pub trait DeadLetters: Send + Sync {
    /// The letters that the filter selects, the oldest first.
    fn list(&self, filter: &Filter) -> Result<Listed, LettersError>;

    /// One letter with all that is kept of it.
    fn show(&self, id: &str) -> Result<FullLetter, LettersError>;

    /// Appends the selected letters to the log, with `correction` instead of its value where one alone is selected by
    /// its id. What is no valid event by the present configuration stays a letter and is named.
    fn replay(&self, filter: &Filter, correction: Option<&[u8]>) -> Result<Replay, LettersError>;

    /// Removes the selected letters.
    fn purge(&self, filter: &Filter) -> Result<Purge, LettersError>;
}

/// Why an operation was not done, or not to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LettersError {
    /// A letter that was named does not exist; nothing was changed.
    #[error("{0}")]
    NotFound(String),
    /// It asks for something that there is not; nothing was changed.
    #[error("{0}")]
    Invalid(String),
    /// Passing: try again. What was done stands, and is not done twice.
    #[error("{0}")]
    Unavailable(String),
}

impl LettersError {
    pub(crate) fn no_such(ids: &[&str]) -> Self {
        let plural = if ids.len() == 1 { "there is no dead letter" } else { "there are no dead letters" };
        Self::NotFound(format!("{plural} {}: `ingestd dlq list --all` names those that there are", ids.join(", ")))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Open,
    /// Its record was appended to the log again.
    Replayed,
    Purged,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Replayed => "replayed",
            Self::Purged => "purged",
        }
    }
}

/// A letter without its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub id: String,
    pub state: State,
    pub reason: String,
    pub message: String,
    /// When it was found.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
    /// The record's own timestamp, or when the request came.
    #[serde(with = "rfc3339")]
    pub received: Timestamp,
    pub topic: String,
    pub generation: u32,
    pub partition: Partition,
    /// Absent where it was no record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<Offset>,
    /// Bytes of the record's value, also where it was too large to be kept.
    pub size: u64,
    /// The value was too large to be kept: the archive has it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub value_omitted: bool,
}

impl Summary {
    pub fn of(letter: &DeadLetter, state: State, omitted: Option<u64>) -> Self {
        Self {
            id: letter.id(),
            state,
            reason: letter.reason.clone(),
            message: letter.message.clone(),
            time: letter.time,
            received: letter.received,
            topic: letter.topic.clone(),
            generation: letter.generation,
            partition: letter.partition,
            offset: letter.origin.offset(),
            size: omitted.unwrap_or_else(|| letter.value.as_ref().map_or(0, Bytes::len) as u64),
            value_omitted: omitted.is_some(),
        }
    }
}

/// A letter with its bytes: as text where they are UTF-8, else as base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FullLetter {
    #[serde(flatten)]
    pub summary: Summary,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_base64: Option<String>,
    pub headers: Vec<HeaderText>,
}

impl FullLetter {
    pub fn of(letter: &DeadLetter, state: State, omitted: Option<u64>) -> Self {
        let (key, key_base64) = text_or_base64(letter.key.as_deref());
        let (value, value_base64) = text_or_base64(letter.value.as_deref());
        let headers = letter.headers.iter().map(|(name, value)| HeaderText::of(name, value.as_deref())).collect();
        Self { summary: Summary::of(letter, state, omitted), key, key_base64, value, value_base64, headers }
    }
}

fn text_or_base64(bytes: Option<&[u8]>) -> (Option<String>, Option<String>) {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => (None, None),
        Some((_, Ok(text))) => (Some(text.to_owned()), None),
        Some((bytes, Err(_))) => (None, Some(BASE64_STANDARD.encode(bytes))),
    }
}

/// A header in JSON, as the archive writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum HeaderText {
    Base64 { name: String, base64: String },
    Text { name: String, value: Option<String> },
}

impl HeaderText {
    pub fn of(name: &str, value: Option<&[u8]>) -> Self {
        let name = name.to_owned();
        match text_or_base64(value) {
            (_, Some(base64)) => Self::Base64 { name, base64 },
            (value, None) => Self::Text { name, value },
        }
    }

    /// Name and bytes.
    ///
    /// # Errors
    /// It is no base64.
    pub fn into_bytes(self) -> Result<(String, Option<Vec<u8>>), base64::DecodeError> {
        Ok(match self {
            Self::Base64 { name, base64 } => (name, Some(BASE64_STANDARD.decode(base64)?)),
            Self::Text { name, value } => (name, value.map(String::into_bytes)),
        })
    }
}

#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    pub dead_letters: Vec<Summary>,
    /// There are more than the limit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// A letter that was not replayed, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub id: String,
    pub reason: String,
    pub message: String,
}

#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// Their records stand in the log again, once.
    pub replayed: Vec<String>,
    /// They were replayed or purged before; nothing was done.
    pub already: Vec<String>,
    /// They stay letters.
    pub refused: Vec<Refused>,
    /// There are more than the limit, or the time was up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purge {
    pub purged: Vec<String>,
    /// There are more than the limit, or the time was up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

mod rfc3339 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::position::Timestamp;

    pub fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&time.to_rfc3339())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = chrono::DateTime::parse_from_rfc3339(&text).map_err(D::Error::custom)?;
        Ok(Timestamp(time.timestamp_millis()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_and_what_is_stored_of_an_origin_lead_back_to_it() {
        let uuid = Uuid::now_v7();
        for (origin, stored, id) in [
            (Origin::Record(Offset(7)), 7, "events@2/3/7".to_owned()),
            (Origin::Request(uuid), -1, format!("events@2/3/{uuid}")),
        ] {
            let letter = DeadLetter {
                topic: "events".to_owned(),
                generation: 2,
                partition: Partition(3),
                origin,
                received: Timestamp(0),
                reason: String::new(),
                message: String::new(),
                time: Timestamp(0),
                key: None,
                value: None,
                headers: Vec::new(),
            };
            assert_eq!((letter.id(), origin.stored()), (id.clone(), stored));
            assert_eq!(Origin::of(stored, &id), Some(origin));
            let offset = serde_json::to_value(Summary::of(&letter, State::Open, None)).unwrap().get("offset").cloned();
            assert_eq!(offset, origin.offset().map(|offset| offset.0.into()));
        }
        assert_eq!(Origin::of(-1, "events/0/7"), None);
    }

    #[test]
    fn bytes_that_are_no_text_come_back_from_json_as_they_were() {
        let headers = [("a", Some(b"x".as_slice())), ("b", None), ("c", Some(b"\xff\x00".as_slice()))];
        let written: Vec<_> = headers.iter().map(|(name, value)| HeaderText::of(name, *value)).collect();
        let json = serde_json::to_string(&written).unwrap();
        assert_eq!(json, r#"[{"name":"a","value":"x"},{"name":"b","value":null},{"name":"c","base64":"/wA="}]"#);
        let read: Vec<HeaderText> = serde_json::from_str(&json).unwrap();
        for (read, (name, value)) in read.into_iter().zip(headers) {
            assert_eq!(read.into_bytes().unwrap(), (name.to_owned(), value.map(<[u8]>::to_vec)));
        }
    }
}
