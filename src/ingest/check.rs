//! Checks each event of a body and makes the valid ones into records for the queue.

use std::borrow::Cow;

use bytes::Bytes;
use uuid::Uuid;

use super::{
    attributes::Attributes,
    cloudevents::{self, InHeaders},
    format::{Events, Format, split},
    ids::Ids,
    in_flight::Reservation,
    replies::longest_answer,
};
use crate::{
    config::HttpConfig,
    event::{self, Code, Event, EventFields, Invalid},
    http::Problem,
    log::{NewHeaders, NewRecord, Part, Span},
    position::Timestamp,
};

/// The events of one body. `records[i]` and `accepted[i]` are the same event.
#[derive(Debug, Default)]
pub struct Checked {
    /// What records and ids point into.
    pub body: Bytes,
    pub records: Vec<NewRecord>,
    /// What `Part::Aside` and headers point into.
    pub aside: Vec<u8>,
    pub accepted: Vec<Accepted>,
    /// Ascending by index.
    pub errors: Vec<EventError>,
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
    /// The client's, which was escaped in the body, or stood in a header.
    Unescaped(String),
}

/// Why one event of a request is refused.
#[derive(Debug)]
pub struct EventError {
    pub index: usize,
    pub invalid: Invalid,
}

/// What an event costs besides its bytes, however small it is: its places in lists, which grow by doubling.
pub(super) const EVENT: usize = 2 * (size_of::<&[u8]>() + size_of::<NewRecord>() + size_of::<Accepted>());

/// Checks all events of a body. What they cost besides the body, and what the answer will, is taken from `share` before
/// anything is accepted. `in_headers` are the attributes of the event whose data is the body.
///
/// # Errors
/// What refuses the body as a whole: then nothing of it is accepted.
pub fn check(
    body: Bytes,
    format: Format,
    in_headers: Option<InHeaders>,
    http: &HttpConfig,
    fields: &EventFields,
    received: Timestamp,
    share: &mut Reservation,
) -> Result<Checked, Problem> {
    let body = format.into_json(body, share)?;
    let mut taking = Taking::new(&body, format, in_headers, http, fields, received);
    let mut errors = Vec::new();
    let mut counted = 0;
    let events = split(&body, format, http.max_events)?;
    share.grow(EVENT * events.count())?;
    match events {
        Events::One(event) => match taking.take(0, event) {
            Err(invalid) if invalid.code == Code::InvalidJson => return Err(invalid_body(&invalid)),
            Err(invalid) => errors.push(EventError { index: 0, invalid }),
            Ok(()) => {}
        },
        Events::Many(events) => {
            for (index, event) in events.into_iter().enumerate() {
                if let Err(invalid) = taking.take(index, event) {
                    errors.push(EventError { index, invalid });
                }
                // Values that had to be decoded may be as large as the body.
                let aside = taking.checked.aside.capacity();
                if aside > counted {
                    share.grow(aside - counted)?;
                    counted = aside;
                }
            }
        }
    }
    let mut checked = taking.checked;
    checked.errors = errors;
    checked.body = body;
    share.grow(checked.aside.capacity() - counted + checked.errors_size() + longest_answer(&checked))?;
    Ok(checked)
}

/// Makes one event after the other into a record.
pub(super) struct Taking<'c> {
    pub(super) body: &'c Bytes,
    format: Format,
    in_headers: Option<InHeaders>,
    http: &'c HttpConfig,
    fields: &'c EventFields,
    ids: Ids,
    pub(super) checked: Checked,
}

impl<'c> Taking<'c> {
    pub(super) fn new(
        body: &'c Bytes,
        format: Format,
        in_headers: Option<InHeaders>,
        http: &'c HttpConfig,
        fields: &'c EventFields,
        received: Timestamp,
    ) -> Self {
        Self { body, format, in_headers, http, fields, ids: Ids::new(received), checked: Checked::default() }
    }

    fn take(&mut self, index: usize, event: &[u8]) -> Result<(), Invalid> {
        match self.format {
            Format::Json | Format::Ndjson => {
                let head = event::admit(event, self.http.max_event, self.fields)?;
                self.push(index, Part::InBody(span(self.body, event)), head, None);
                Ok(())
            }
            Format::CloudEvent | Format::CloudEvents => {
                let (attributes, data) = cloudevents::open(event, self.http.max_event, self.fields.on_unreadable())?;
                self.take_with(index, &data, &attributes)
            }
            Format::Data => {
                let attributes = self.in_headers.take().unwrap_or_else(|| Ok(Attributes::default()))?;
                self.take_with(index, event, &attributes)
            }
        }
    }

    /// Takes an event whose attributes stand beside its data.
    pub(super) fn take_with(&mut self, index: usize, data: &[u8], attributes: &Attributes<'_>) -> Result<(), Invalid> {
        let head = event::admit_with(data, attributes.headers(), self.http.max_event, self.fields)?;
        let value = self.part(data);
        let headers = attributes.write(&mut self.checked.aside);
        self.push(index, value, head, Some(headers));
        Ok(())
    }

    fn push(&mut self, index: usize, value: Part, head: Event<'_>, headers: Option<NewHeaders>) {
        let (id, assigned_id) = match head.id {
            None => {
                let id = self.ids.next();
                (EventId::Assigned(id), Some(id))
            }
            Some(Cow::Owned(id)) => (EventId::Unescaped(id), None),
            Some(Cow::Borrowed(id)) => match span_within(self.body, id.as_bytes()) {
                Some(span) => (EventId::InBody(span), None),
                None => (EventId::Unescaped(id.to_owned()), None),
            },
        };
        let key = head.key.map(|key| self.part(key.as_bytes()));
        self.checked.records.push(NewRecord { value, key, headers, assigned_id });
        self.checked.accepted.push(Accepted { index, id });
    }

    /// These bytes where they stand in the body, or else aside of it.
    fn part(&mut self, bytes: &[u8]) -> Part {
        match span_within(self.body, bytes) {
            Some(span) => Part::InBody(span),
            None => Part::Aside(append(&mut self.checked.aside, bytes)),
        }
    }
}

/// Broken syntax: nothing of the body is accepted.
pub(super) fn invalid_body(invalid: &Invalid) -> Problem {
    let detail = format!("the body is not valid JSON, nothing was accepted: {}", invalid.message);
    Problem { code: Some(invalid.code.as_str()), ..Problem::bad_request(detail) }
}

impl Checked {
    pub(super) fn errors_size(&self) -> usize {
        self.errors.iter().map(|error| size_of::<EventError>() + error.invalid.message.len()).sum()
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
    }
}

/// Where `part` stands in the body that it borrows from. Bodies are below 4 GiB (`body::read` ensures it).
fn span(body: &[u8], part: &[u8]) -> Span {
    let start = part.as_ptr().addr() - body.as_ptr().addr();
    Span { start: start as u32, end: (start + part.len()) as u32 }
}

/// The same of bytes that may stand elsewhere.
fn span_within(body: &[u8], bytes: &[u8]) -> Option<Span> {
    let (within, part) = (body.as_ptr_range(), bytes.as_ptr_range());
    (within.start <= part.start && part.end <= within.end).then(|| span(body, bytes))
}

/// What stands aside was made of parts of the body, each of which is a value, a key or an attribute, and at most once each. A
/// header is at most twice as long as the attribute in its envelope, and the rest no longer than it was, so that together they
/// are below 4 GiB as well: a body is below 1 GiB (`http.max_body`).
fn append(aside: &mut Vec<u8>, bytes: &[u8]) -> Span {
    let start = aside.len() as u32;
    aside.extend_from_slice(bytes);
    Span { start, end: aside.len() as u32 }
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
        let body = Bytes::copy_from_slice(body.as_bytes());
        check(body, Format::Json, None, &http, &fields, Timestamp(0), &mut share).unwrap()
    }

    #[test]
    fn values_and_keys_are_parts_of_the_body_unless_they_were_escaped() {
        let body = r#"[ {"type":"a","client_id":"plain"}, {"type":"b","client_id":"q\"\n","event_id":"é"} ]"#;
        let checked = checked(body);
        let [plain, escaped] = checked.records.as_slice() else { panic!("{checked:?}") };
        let value = plain.value.of(body.as_bytes(), &checked.aside);
        assert_eq!(value, br#"{"type":"a","client_id":"plain"}"#);
        assert!(matches!(plain.key, Some(Part::InBody(key)) if key.of(body.as_bytes()) == b"plain"));
        assert!(plain.assigned_id.is_some() && escaped.assigned_id.is_none());
        assert!(matches!(escaped.key, Some(Part::Aside(key)) if key.of(&checked.aside) == b"q\"\n"));
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
    fn small_events_are_counted_with_what_they_cost_and_with_their_answer() {
        let in_flight = Gauge::default();
        let body = format!("[{}]", vec!["1"; 10_000].join(","));
        let refused = |limit: u64| {
            let http = HttpConfig { max_in_flight: ByteSize(limit), ..HttpConfig::default() };
            let mut share = Reservation::new(&in_flight, http.max_in_flight);
            let fields = EventFields::from(&EventConfig::default());
            let body = Bytes::copy_from_slice(body.as_bytes());
            let checked = check(body, Format::Json, None, &http, &fields, Timestamp(0), &mut share);
            assert!(in_flight.get() > 2_000_000, "10,000 errors with a sentence each: {}", in_flight.get());
            checked.err().map(|problem| problem.status.as_u16())
        };
        assert_eq!(refused(2_000_000), Some(429));
        assert_eq!(refused(64 << 20), None);
        assert_eq!(in_flight.get(), 0);
    }
}
