//! Checks each event of a body and makes the valid ones into records for the queue.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use uuid::Uuid;

use super::{
    format::{Events, Format, split},
    ids::Ids,
    in_flight::Reservation,
    replies::longest_answer,
};
use crate::{
    config::HttpConfig,
    event::{self, Code, EventFields, Invalid},
    http::Problem,
    log::{Delivery, Failed, Key, NewRecord, Span},
    position::Timestamp,
};

/// The events of one body. `records[i]` and `accepted[i]` are the same event.
#[derive(Debug, Default)]
pub struct Checked {
    /// What records and ids point into.
    pub body: Bytes,
    pub records: Vec<NewRecord>,
    /// What `Key::Unescaped` points into.
    pub unescaped: Vec<u8>,
    pub accepted: Vec<Accepted>,
    /// Those that are wrong. Ascending by index.
    pub errors: Vec<EventError>,
    /// Those that are not known to be durable, where each event has its own result. Ascending by index.
    pub unavailable: Vec<Unavailable>,
}

/// An event that may be acknowledged.
#[derive(Debug)]
pub struct Accepted {
    /// Its place in the request.
    pub index: usize,
    pub id: EventId,
}

#[derive(Debug)]
pub enum EventId {
    Assigned(Uuid),
    /// The client's, without escapes.
    InBody(Span),
    /// The client's, which was escaped in the body.
    Unescaped(String),
}

/// Why one event of a request is refused.
#[derive(Debug)]
pub struct EventError {
    pub index: usize,
    pub invalid: Invalid,
    /// Its bytes in the body; `None` where the queue refused it, which has them.
    pub value: Option<Span>,
    /// It is a dead letter, and durable.
    pub is_quarantined: bool,
}

impl EventError {
    fn new(index: usize, invalid: Invalid, value: Option<Span>) -> Self {
        Self { index, invalid, value, is_quarantined: false }
    }
}

/// An event that may be sent again as it is.
#[derive(Debug)]
pub struct Unavailable {
    pub index: usize,
    /// Then it may stand there twice.
    pub may_be_stored: bool,
    pub reason: Arc<str>,
}

/// What an event costs besides its bytes, however small it is: its places in lists, which grow by doubling.
const EVENT: usize = 2 * (size_of::<&[u8]>() + size_of::<NewRecord>() + size_of::<Accepted>());

/// Checks all events of a body. What they cost besides the body, and what the answer will, is taken from `share` before
/// anything is accepted.
///
/// # Errors
/// What refuses the body as a whole: then nothing of it is accepted.
pub fn check(
    body: Bytes,
    format: Format,
    http: &HttpConfig,
    fields: &EventFields,
    received: Timestamp,
    share: &mut Reservation,
) -> Result<Checked, Problem> {
    let body = format.into_json(body, share)?;
    let mut ids = Ids::new(received);
    let mut checked = Checked::default();
    let mut accept = |index: usize, event: &[u8]| -> Result<(), Invalid> {
        let head = event::admit(event, http.max_event, fields)?;
        let (id, assigned_id) = match head.id {
            Some(Cow::Borrowed(id)) => (EventId::InBody(span(&body, id.as_bytes())), None),
            Some(Cow::Owned(id)) => (EventId::Unescaped(id), None),
            None => {
                let id = ids.next();
                (EventId::Assigned(id), Some(id))
            }
        };
        let key = head.key.map(|key| match key {
            Cow::Borrowed(key) => Key::InBody(span(&body, key.as_bytes())),
            Cow::Owned(key) => Key::Unescaped(append(&mut checked.unescaped, key.as_bytes())),
        });
        checked.records.push(NewRecord { value: span(&body, event), key, assigned_id });
        checked.accepted.push(Accepted { index, id });
        Ok(())
    };
    let mut errors = Vec::new();
    let events = split(&body, format, http.max_events)?;
    share.grow(EVENT * events.count())?;
    match events {
        Events::One(event) => match accept(0, event) {
            Err(invalid) if invalid.code == Code::InvalidJson => return Err(invalid_body(&invalid)),
            Err(invalid) => errors.push(EventError::new(0, invalid, Some(span(&body, event)))),
            Ok(()) => {}
        },
        Events::Many(events) => {
            for (index, event) in events.into_iter().enumerate() {
                if let Err(invalid) = accept(index, event) {
                    errors.push(EventError::new(index, invalid, Some(span(&body, event))));
                }
            }
        }
    }
    checked.errors = errors;
    checked.body = body;
    share.grow(checked.unescaped.len() + checked.errors_size() + longest_answer(&checked))?;
    Ok(checked)
}

/// Broken syntax: nothing of the body is accepted.
fn invalid_body(invalid: &Invalid) -> Problem {
    let detail = format!("the body is not valid JSON, nothing was accepted: {}", invalid.message);
    Problem { code: Some(invalid.code), ..Problem::bad_request(detail) }
}

impl Checked {
    /// Of a body that cannot be split: it is one wrong event.
    pub fn unsplittable(body: Bytes, invalid: Invalid) -> Self {
        let whole = Span { start: 0, end: body.len() as u32 };
        Self { errors: vec![EventError::new(0, invalid, Some(whole))], body, ..Self::default() }
    }

    /// Wrong events that nobody keeps.
    pub fn rejected(&self) -> impl Iterator<Item = &EventError> {
        self.errors.iter().filter(|error| !error.is_quarantined)
    }

    /// Wrong events that are kept.
    pub fn quarantined(&self) -> usize {
        self.errors.iter().filter(|error| error.is_quarantined).count()
    }

    fn errors_size(&self) -> usize {
        self.errors.iter().map(|error| size_of::<EventError>() + error.invalid.message.len()).sum()
    }

    /// Takes the records that are not durable out of the accepted ones.
    pub fn settle(&mut self, delivery: &Delivery) {
        // `None` says that it is too large.
        let mut others: BTreeMap<usize, Option<&Failed>> =
            delivery.too_large.iter().map(|record| (*record, None)).collect();
        for failed in &delivery.failed {
            others.extend(failed.events.clone().map(|record| (record, Some(failed))));
        }
        if others.is_empty() {
            return;
        }
        let mut record = 0;
        let (errors, unavailable) = (&mut self.errors, &mut self.unavailable);
        self.accepted.retain(|Accepted { index, .. }| {
            let other = others.get(&record);
            record += 1;
            match other {
                None => {}
                Some(None) => {
                    let rule = "larger than the queue takes (max.message.bytes of its topic)";
                    errors.push(EventError::new(*index, Invalid::new(Code::TooLarge, rule), None));
                }
                Some(Some(Failed { may_be_stored, reason, .. })) => unavailable.push(Unavailable {
                    index: *index,
                    may_be_stored: *may_be_stored,
                    reason: reason.clone(),
                }),
            }
            other.is_none()
        });
        errors.sort_by_key(|error| error.index);
    }
}

/// Where `part` stands in the body that it borrows from. Bodies are below 4 GiB (`body::read` ensures it).
fn span(body: &[u8], part: &[u8]) -> Span {
    let start = part.as_ptr().addr() - body.as_ptr().addr();
    Span { start: start as u32, end: (start + part.len()) as u32 }
}

/// Keys were parts of the body, and unescaping shortens them, so that together they are below 4 GiB as well.
fn append(unescaped: &mut Vec<u8>, key: &[u8]) -> Span {
    let start = unescaped.len() as u32;
    unescaped.extend_from_slice(key);
    Span { start, end: unescaped.len() as u32 }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::gauge::Gauge;

    use super::*;
    use crate::config::{ByteSize, EventConfig};

    fn checked(body: &str) -> Checked {
        let fields = EventFields::from(&EventConfig::default());
        let http = HttpConfig { max_event: ByteSize(64), ..HttpConfig::default() };
        let mut share = Reservation::new(&Gauge::default(), http.max_in_flight);
        check(Bytes::copy_from_slice(body.as_bytes()), Format::Json, &http, &fields, Timestamp(0), &mut share).unwrap()
    }

    #[test]
    fn values_and_keys_are_parts_of_the_body_unless_they_were_escaped() {
        let body = r#"[ {"type":"a","client_id":"plain"}, {"type":"b","client_id":"q\"\n","event_id":"é"} ]"#;
        let checked = checked(body);
        let [plain, escaped] = checked.records.as_slice() else { panic!("{checked:?}") };
        assert_eq!(plain.value.of(body.as_bytes()), br#"{"type":"a","client_id":"plain"}"#);
        assert!(matches!(plain.key, Some(Key::InBody(key)) if key.of(body.as_bytes()) == b"plain"));
        assert!(plain.assigned_id.is_some() && escaped.assigned_id.is_none());
        assert!(matches!(escaped.key, Some(Key::Unescaped(key)) if key.of(&checked.unescaped) == b"q\"\n"));
        assert!(matches!(checked.accepted[1].id, EventId::InBody(id) if id.of(body.as_bytes()) == "é".as_bytes()));
    }

    #[test]
    fn an_event_above_the_limit_is_refused_alone() {
        let body = format!(r#"[{{"type":"a"}},{{"type":"{}"}},{{"type":"c"}}]"#, "x".repeat(64));
        let checked = checked(&body);
        assert_eq!(checked.records.len(), 2);
        assert_eq!((checked.errors[0].index, checked.errors[0].invalid.code), (1, Code::TooLarge));
    }

    #[test]
    fn what_the_queue_finds_too_large_becomes_that_events_error_in_order() {
        let mut checked = checked(r#"[{"type":"a"},{"type":"b"},{},{"type":"c"},7]"#);
        checked.settle(&Delivery { too_large: vec![2, 0], durable: 1, ..Delivery::default() });
        assert_eq!(checked.accepted.iter().map(|accepted| accepted.index).collect::<Vec<_>>(), [1]);
        let errors: Vec<_> = checked.errors.iter().map(|error| (error.index, error.invalid.code)).collect();
        assert_eq!(errors, [(0, Code::TooLarge), (2, Code::MissingType), (3, Code::TooLarge), (4, Code::NotAnObject)]);
    }

    #[test]
    fn what_failed_for_a_passing_reason_is_neither_accepted_nor_an_error() {
        let mut checked = checked(r#"[{"type":"a"},{"type":"b"},{},{"type":"c"},{"type":"d"}]"#);
        let failed = |events, may_be_stored| Failed { events, may_be_stored, reason: "away".into() };
        let failed = vec![failed(2..3, true), failed(0..1, false)];
        checked.settle(&Delivery { failed, too_large: vec![3], durable: 1, ..Delivery::default() });
        assert_eq!(checked.accepted.iter().map(|accepted| accepted.index).collect::<Vec<_>>(), [1]);
        assert_eq!(checked.errors.iter().map(|error| error.index).collect::<Vec<_>>(), [2, 4]);
        let unavailable: Vec<_> = checked.unavailable.iter().map(|event| (event.index, event.may_be_stored)).collect();
        assert_eq!(unavailable, [(0, false), (3, true)]);
    }

    #[test]
    fn a_wrong_event_is_told_with_where_its_bytes_stand() {
        let body = r#"[{"type":"a"}, {} ,7]"#;
        let checked = checked(body);
        let values: Vec<_> = checked.errors.iter().map(|error| error.value.unwrap().of(body.as_bytes())).collect();
        assert_eq!(values, [b"{}".as_slice(), b"7"]);
        let whole = Checked::unsplittable(Bytes::from_static(b"[{"), Invalid::new(Code::InvalidJson, "broken"));
        assert_eq!(whole.errors[0].value.unwrap().of(&whole.body), b"[{");
    }

    #[test]
    fn small_events_are_counted_with_what_they_cost_and_with_their_answer() {
        let in_flight = Gauge::default();
        let body = format!("[{}]", vec!["1"; 10_000].join(","));
        let refused = |limit: u64| {
            let http = HttpConfig { max_in_flight: ByteSize(limit), ..HttpConfig::default() };
            let mut share = Reservation::new(&in_flight, http.max_in_flight);
            let fields = EventFields::from(&EventConfig::default());
            let checked =
                check(Bytes::copy_from_slice(body.as_bytes()), Format::Json, &http, &fields, Timestamp(0), &mut share);
            assert!(in_flight.get() > 2_000_000, "10,000 errors with a sentence each: {}", in_flight.get());
            checked.err().map(|problem| problem.status.as_u16())
        };
        assert_eq!(refused(2_000_000), Some(503));
        assert_eq!(refused(64 << 20), None);
        assert_eq!(in_flight.get(), 0);
    }
}
