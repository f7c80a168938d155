//! Checks each event of a body and makes the valid ones into records for the queue.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use uuid::Uuid;

use super::{
    arrival::Arrival,
    attributes::Attributes,
    cloudevents::{self, HeaderAttributes, InHeaders},
    conforming::Untaken,
    format::{Events, Format, SeveralTexts, split, texts},
    ids::Ids,
    in_flight::Reservation,
    replies::longest_answer,
};
use crate::{
    config::HttpConfig,
    event::{self, Code, Event, EventFields, Invalid},
    http::Problem,
    log::{Delivery, Failed, NewHeaders, NewRecord, Part, Span},
    position::{Position, Timestamp},
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
    /// Those that are wrong. Ascending by index.
    pub errors: Vec<EventError>,
    /// Of accepted events, ascending by index.
    pub warnings: Vec<Warning>,
    /// Those that are not known to be durable, where each event has its own result. Ascending by index.
    pub unavailable: Vec<Unavailable>,
    /// The last position in each partition that the accepted events are in, where that was asked for and is known.
    pub positions: Option<Vec<Position>>,
    /// Of a body that is one event, and broken, of which all that is known stands in `errors`: how it is refused as a whole,
    /// unless it is kept.
    pub refusal: Option<Problem>,
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
    /// Its bytes; `None` where no letter is made of it (any more).
    pub value: Option<Part>,
    /// What stands beside them.
    pub headers: Option<NewHeaders>,
    /// It is a dead letter, and durable.
    pub is_quarantined: bool,
}

impl EventError {
    pub(super) fn new(index: usize, invalid: Invalid, value: Option<Part>, headers: Option<NewHeaders>) -> Self {
        Self { index, invalid, value, headers, is_quarantined: false }
    }

    /// Of itself and its message.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>() + self.invalid.message.len()
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

/// What is said of one event of a request that is accepted all the same.
#[derive(Debug)]
pub struct Warning {
    pub index: usize,
    pub code: Code,
    pub message: &'static str,
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
    arrival: Arrival<'_>,
    share: &mut Reservation,
) -> Result<Checked, Problem> {
    let body = format.into_json(body, share)?;
    let mut taking = Taking::new(&body, format, in_headers, http, fields, arrival);
    let mut errors = Vec::new();
    let mut counted = 0;
    let events = split(&body, format, http.max_events)?;
    share.grow(EVENT * events.count())?;
    let (events, broken) = match events {
        Events::One(event) => match taking.take(0, event) {
            Ok(()) => (Vec::new(), None),
            Err(Untaken::NoRoom(problem)) => return Err(problem),
            Err(Untaken::Invalid(invalid)) => match several(event, format, &invalid, http.max_events, share)? {
                Some(SeveralTexts { whole, broken }) => (whole, broken),
                None if invalid.code == Code::InvalidJson => return Err(invalid_body(&invalid)),
                None => {
                    errors.push(taking.refused(0, event, invalid));
                    (Vec::new(), None)
                }
            },
        },
        Events::Many(events) => (events, None),
        Events::Texts(SeveralTexts { whole, broken }) => (whole, broken),
    };
    let count = events.len();
    for (index, event) in events.into_iter().enumerate() {
        match taking.take(index, event) {
            Ok(()) => {}
            Err(Untaken::NoRoom(problem)) => return Err(problem),
            Err(Untaken::Invalid(invalid)) => errors.push(taking.refused(index, event, invalid)),
        }
        // Values that had to be decoded may be as large as the body.
        let aside = taking.checked.aside.capacity();
        if aside > counted {
            share.grow(aside - counted)?;
            counted = aside;
        }
    }
    if let Some(rest) = broken {
        errors.push(taking.refused(count, rest, no_text(rest, fields, arrival.received)));
    }
    let mut checked = taking.checked;
    checked.errors = errors;
    checked.body = body;
    share.grow(checked.aside.capacity() - counted + checked.remarks_size() + longest_answer(&checked))?;
    Ok(checked)
}

/// The texts of a body that is no event, if they are several.
fn several<'b>(
    body: &'b [u8],
    format: Format,
    invalid: &Invalid,
    max_events: usize,
    share: &mut Reservation,
) -> Result<Option<SeveralTexts<'b>>, Problem> {
    if format != Format::Json || !matches!(invalid.code, Code::InvalidJson | Code::TooLarge) {
        return Ok(None);
    }
    let texts = texts(body, max_events)?;
    if let Some(texts) = &texts {
        // One is counted already.
        share.grow(EVENT * (texts.count() - 1))?;
    }
    Ok(texts)
}

/// Why there is no text at the beginning of this.
pub(super) fn no_text(rest: &[u8], fields: &EventFields, received: Timestamp) -> Invalid {
    let why = event::parse(rest, fields, received).map_or_else(|invalid| invalid.message, |_| String::new());
    Invalid::new(Code::InvalidJson, format!("here is no JSON text, and nothing behind it was looked at: {why}"))
}

/// Makes one event after the other into a record.
pub(super) struct Taking<'c> {
    pub(super) body: &'c Bytes,
    format: Format,
    in_headers: Option<InHeaders>,
    http: &'c HttpConfig,
    fields: &'c EventFields,
    pub(super) arrival: Arrival<'c>,
    ids: Ids,
    pub(super) checked: Checked,
    /// What stands beside each event that has nothing else there; written with the first.
    alone: Option<NewHeaders>,
    /// What stands beside the event that was refused last.
    beside: Option<NewHeaders>,
}

impl<'c> Taking<'c> {
    pub(super) fn new(
        body: &'c Bytes,
        format: Format,
        in_headers: Option<InHeaders>,
        http: &'c HttpConfig,
        fields: &'c EventFields,
        arrival: Arrival<'c>,
    ) -> Self {
        let (ids, checked) = (Ids::new(arrival.received), Checked::default());
        Self { body, format, in_headers, http, fields, arrival, ids, checked, alone: None, beside: None }
    }

    fn take(&mut self, index: usize, event: &[u8]) -> Result<(), Untaken> {
        match self.format {
            Format::Json | Format::Ndjson => {
                let head = event::admit(event, self.http.max_event, self.fields, self.arrival.received)?;
                self.arrival.permit(&head.event_type)?;
                self.arrival.conform(&head.event_type, event)?;
                let headers = self.alone();
                self.push(index, Part::InBody(span(self.body, event)), head, headers);
                Ok(())
            }
            Format::CloudEvent | Format::CloudEvents => {
                let (attributes, data) = cloudevents::open(event, self.http.max_event, self.fields.on_unreadable())?;
                self.take_with(index, &data, &attributes)
            }
            Format::Data => {
                let HeaderAttributes { attributes, wrong } = self.in_headers.take().map(|it| *it).unwrap_or_default();
                if let Some(invalid) = wrong {
                    self.beside = Some(self.write(&attributes));
                    return Err(invalid.into());
                }
                self.take_with(index, event, &attributes)
            }
        }
    }

    /// Takes an event whose attributes stand beside its data.
    pub(super) fn take_with(&mut self, index: usize, data: &[u8], attributes: &Attributes<'_>) -> Result<(), Untaken> {
        let headers = self.write(attributes);
        let received = self.arrival.received;
        let admitted = event::admit_with(data, attributes.headers(), self.http.max_event, self.fields, received)
            .and_then(|head| self.arrival.permit(&head.event_type).map(|()| head))
            .map_err(Untaken::from)
            .and_then(|head| self.arrival.conform(&head.event_type, data).map(|()| head));
        let head = admitted.inspect_err(|_| self.beside = Some(headers))?;
        let value = self.part(data);
        self.push(index, value, head, Some(headers));
        Ok(())
    }

    /// An event that [`Taking::take`] or [`Taking::take_with`] refused, with what it would be a record of.
    pub(super) fn refused(&mut self, index: usize, event: &[u8], invalid: Invalid) -> EventError {
        let beside = self.beside.take();
        let headers = match self.format {
            Format::Json | Format::Ndjson => self.alone(),
            // Its attributes are in its bytes.
            Format::CloudEvent | Format::CloudEvents => Some(self.write(&cloudevents::beside_envelope())),
            Format::Data => beside,
        };
        EventError::new(index, invalid, Some(self.part(event)), headers)
    }

    /// The same of one that has these attributes beside it.
    pub(super) fn refused_with(
        &mut self,
        index: usize,
        event: &[u8],
        attributes: &Attributes<'_>,
        invalid: Invalid,
    ) -> EventError {
        self.beside = Some(self.write(attributes));
        self.refused(index, event, invalid)
    }

    fn write(&mut self, attributes: &Attributes<'_>) -> NewHeaders {
        let headers = attributes.write(&mut self.checked.aside);
        self.arrival.write(&mut self.checked.aside, headers)
    }

    /// Where the request has something to say of each event: the same bytes for all that have nothing else beside them.
    fn alone(&mut self) -> Option<NewHeaders> {
        self.arrival.has_headers().then_some(())?;
        self.alone = Some(self.alone.unwrap_or_else(|| self.write(&Attributes::default())));
        self.alone
    }

    fn push(&mut self, index: usize, value: Part, head: Event<'_>, headers: Option<NewHeaders>) {
        if let Some(invalid) = head.invalid_time {
            let (code, message) = (Code::InvalidTimestamp, invalid.warning());
            self.checked.warnings.push(Warning { index, code, message });
        }
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
    Problem { code: Some(invalid.code), ..Problem::bad_request(detail) }
}

impl Checked {
    /// Of errors and warnings.
    pub(super) fn remarks_size(&self) -> usize {
        self.errors.iter().map(EventError::size).sum::<usize>() + self.warnings.capacity() * size_of::<Warning>()
    }

    /// Of a body that cannot be split: it is one wrong event, with this beside it.
    pub fn unsplittable(body: Bytes, invalid: Invalid, beside: &Attributes<'_>) -> Self {
        let whole = Part::InBody(Span { start: 0, end: body.len() as u32 });
        let mut aside = Vec::new();
        let headers = beside.write(&mut aside);
        let headers = Some(headers).filter(|headers| headers.count > 0);
        Self { errors: vec![EventError::new(0, invalid, Some(whole), headers)], body, aside, ..Self::default() }
    }

    /// Wrong events that nobody keeps.
    pub fn rejected(&self) -> impl Iterator<Item = &EventError> {
        self.errors.iter().filter(|error| !error.is_quarantined)
    }

    /// Wrong events that are kept.
    pub fn quarantined(&self) -> usize {
        self.errors.iter().filter(|error| error.is_quarantined).count()
    }

    /// Makes errors of the records that are larger than the queue takes.
    pub fn refuse_larger(&mut self, largest: usize) {
        let each = self.records.iter().enumerate();
        let too_large: Vec<usize> = each.filter(|(_, it)| it.size() > largest).map(|(index, _)| index).collect();
        if too_large.is_empty() {
            return;
        }
        let records = std::mem::take(&mut self.records);
        self.settle(&Delivery { too_large, ..Delivery::default() }, &records);
        self.records = records.into_iter().filter(|record| record.size() <= largest).collect();
    }

    /// Takes the records that are not durable out of the accepted ones. `records` are those that letters may be made of.
    pub fn settle(&mut self, delivery: &Delivery, records: &[NewRecord]) {
        // `None` says that it is too large.
        let mut others: BTreeMap<usize, Option<&Failed>> =
            delivery.too_large.iter().map(|record| (*record, None)).collect();
        for failed in &delivery.failed {
            others.extend(failed.events.clone().map(|record| (record, Some(failed))));
        }
        if others.is_empty() {
            return;
        }
        let mut at = 0;
        let (errors, unavailable) = (&mut self.errors, &mut self.unavailable);
        self.accepted.retain(|Accepted { index, .. }| {
            let (other, record) = (others.get(&at), records.get(at));
            at += 1;
            match other {
                None => {}
                Some(None) => {
                    let rule = "larger than the queue takes (max.message.bytes of its topic)";
                    let (value, headers) = (record.map(|it| it.value), record.and_then(|it| it.headers));
                    errors.push(EventError::new(*index, Invalid::new(Code::TooLarge, rule), value, headers));
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
        let is_accepted = |index: usize| self.accepted.binary_search_by_key(&index, |event| event.index).is_ok();
        self.warnings.retain(|warning| is_accepted(warning.index));
    }
}

/// Where `part` stands in the body that it borrows from. Bodies are below 4 GiB (`body::read` ensures it).
fn span(body: &[u8], part: &[u8]) -> Span {
    let start = part.as_ptr().addr() - body.as_ptr().addr();
    Span { start: start as u32, end: (start + part.len()) as u32 }
}

/// The same of bytes that may stand elsewhere.
pub(super) fn span_within(body: &[u8], bytes: &[u8]) -> Option<Span> {
    let (within, part) = (body.as_ptr_range(), bytes.as_ptr_range());
    (within.start <= part.start && part.end <= within.end).then(|| span(body, bytes))
}

/// What stands aside was made of parts of the body, each of which is a value, a key or an attribute, and at most once each. A
/// header is at most twice as long as the attribute in its envelope, and the rest no longer than it was, so that together they
/// are below 4 GiB as well: a body is below 1 GiB (`http.max_body`). The name of the request's key beside each is below 100 bytes,
/// of at most ten million events (`http.max_events`).
fn append(aside: &mut Vec<u8>, bytes: &[u8]) -> Span {
    let start = aside.len() as u32;
    aside.extend_from_slice(bytes);
    Span { start, end: aside.len() as u32 }
}

#[cfg(test)]
mod tests;
