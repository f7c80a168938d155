//! Checks each event of a body and makes the valid ones into records for the queue.

use std::borrow::Cow;

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
    log::{Key, NewRecord, Span},
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
    /// Ascending by index.
    pub errors: Vec<EventError>,
    /// Of accepted events, ascending by index.
    pub warnings: Vec<Warning>,
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
}

/// What is said of one event of a request that is accepted all the same.
#[derive(Debug)]
pub struct Warning {
    pub index: usize,
    pub code: Code,
    pub message: &'static str,
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
        let head = event::admit(event, http.max_event, fields, received)?;
        if let Some(invalid) = head.invalid_time {
            let (code, message) = (Code::InvalidTimestamp, invalid.warning());
            checked.warnings.push(Warning { index, code, message });
        }
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
            Err(invalid) => errors.push(EventError { index: 0, invalid }),
            Ok(()) => {}
        },
        Events::Many(events) => {
            for (index, event) in events.into_iter().enumerate() {
                if let Err(invalid) = accept(index, event) {
                    errors.push(EventError { index, invalid });
                }
            }
        }
    }
    checked.errors = errors;
    checked.body = body;
    share.grow(checked.unescaped.len() + checked.remarks_size() + longest_answer(&checked))?;
    Ok(checked)
}

/// Broken syntax: nothing of the body is accepted.
fn invalid_body(invalid: &Invalid) -> Problem {
    let detail = format!("the body is not valid JSON, nothing was accepted: {}", invalid.message);
    Problem { code: Some(invalid.code.as_str()), ..Problem::bad_request(detail) }
}

impl Checked {
    /// Of errors and warnings.
    fn remarks_size(&self) -> usize {
        let errors = self.errors.iter().map(|error| size_of::<EventError>() + error.invalid.message.len());
        errors.sum::<usize>() + self.warnings.capacity() * size_of::<Warning>()
    }

    /// Takes the records that the queue refused for their size out of the accepted ones.
    pub fn refuse_too_large(&mut self, mut records: Vec<usize>) {
        if records.is_empty() {
            return;
        }
        records.sort_unstable();
        let mut record = 0;
        let errors = &mut self.errors;
        self.accepted.retain(|accepted| {
            let refused = records.binary_search(&record).is_ok();
            record += 1;
            if refused {
                let invalid =
                    Invalid::new(Code::TooLarge, "larger than the queue takes (max.message.bytes of its topic)");
                errors.push(EventError { index: accepted.index, invalid });
            }
            !refused
        });
        errors.sort_by_key(|error| error.index);
        let is_refused = |index: usize| errors.binary_search_by_key(&index, |error| error.index).is_ok();
        self.warnings.retain(|warning| !is_refused(warning.index));
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
        checked.refuse_too_large(vec![2, 0]);
        assert_eq!(checked.accepted.iter().map(|accepted| accepted.index).collect::<Vec<_>>(), [1]);
        let errors: Vec<_> = checked.errors.iter().map(|error| (error.index, error.invalid.code)).collect();
        assert_eq!(errors, [(0, Code::TooLarge), (2, Code::MissingType), (3, Code::TooLarge), (4, Code::NotAnObject)]);
    }

    #[test]
    fn an_event_whose_time_is_not_believed_is_named_as_long_as_it_is_accepted() {
        let mut checked = checked(
            r#"[{"type":"a","timestamp":"2026"},{"type":"b"},{},{"type":"c","timestamp":-1},{"type":"d","timestamp":{}}]"#,
        );
        let warned = |checked: &Checked| checked.warnings.iter().map(|warning| warning.index).collect::<Vec<_>>();
        assert_eq!((checked.records.len(), checked.errors.len(), warned(&checked)), (4, 1, vec![0, 3, 4]));
        assert!(checked.warnings.iter().all(|warning| warning.code == Code::InvalidTimestamp));
        checked.refuse_too_large(vec![2]);
        assert_eq!(warned(&checked), [0, 4]);
    }

    #[test]
    fn warnings_are_counted_with_their_answer() {
        let held = |time: &str| {
            let in_flight = Gauge::default();
            let body = format!("[{}]", vec![format!(r#"{{"type":"a","timestamp":{time}}}"#); 1000].join(","));
            let (http, fields) = (HttpConfig::default(), EventFields::from(&EventConfig::default()));
            let mut share = Reservation::new(&in_flight, http.max_in_flight);
            let checked = check(body.into(), Format::Json, &http, &fields, Timestamp(0), &mut share).unwrap();
            (in_flight.get(), checked.warnings.len())
        };
        let ((plain, none), (named, all)) = (held("10"), held("-1"));
        assert_eq!((none, all), (0, 1000));
        let least = 1000 * (size_of::<Warning>() + checked(r#"{"type":"a","timestamp":-1}"#).warnings[0].message.len());
        assert!(named >= plain + i64::try_from(least).unwrap(), "{named} beside {plain}");
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
        assert_eq!(refused(2_000_000), Some(429));
        assert_eq!(refused(64 << 20), None);
        assert_eq!(in_flight.get(), 0);
    }
}
