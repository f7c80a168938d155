//! Events that bring attributes beside their values, or values that were made of a body: they are checked one by one, and
//! become records for the queue.

use std::borrow::Cow;

use actix_web::http::StatusCode;
use bytes::Bytes;

use super::{
    attributes::Attributes,
    check::{Accepted, Checked, EVENT, EventError, EventId, append, span},
    ids::Ids,
    in_flight::Reservation,
    replies::longest_answer,
};
use crate::{
    config::HttpConfig,
    event::{self, EventFields, Invalid},
    http::Problem,
    log::{NewRecord, Part},
    position::Timestamp,
};

/// The events of one request so far.
pub struct Checking<'r> {
    http: &'r HttpConfig,
    fields: &'r EventFields,
    share: &'r mut Reservation,
    ids: Ids,
    checked: Checked,
    /// What of `checked.aside` the share has.
    counted: usize,
}

/// The bytes of an event.
#[derive(Debug, Clone, Copy)]
pub enum Value<'v> {
    /// A part of the request's body.
    InBody(&'v [u8]),
    /// What was made of it.
    Made(&'v [u8]),
}

impl<'r> Checking<'r> {
    /// `body` is what values in it are parts of.
    pub fn new(
        body: Bytes,
        http: &'r HttpConfig,
        fields: &'r EventFields,
        received: Timestamp,
        share: &'r mut Reservation,
    ) -> Self {
        let checked = Checked { body, ..Checked::default() };
        Self { http, fields, share, ids: Ids::new(received), checked, counted: 0 }
    }

    /// So many events are to come.
    ///
    /// # Errors
    /// There is no room for them at present.
    pub fn expect(&mut self, events: usize) -> Result<(), Problem> {
        self.share.grow(EVENT * events)
    }

    /// Memory for the work on one event, counted until it is dropped.
    ///
    /// # Errors
    /// There is no room for it at present.
    pub fn work(&self, bytes: usize) -> Result<Reservation, Problem> {
        let mut work = self.share.another();
        work.grow(bytes).map(|()| work)
    }

    /// Takes an event, or says in the answer why it is not accepted.
    ///
    /// # Errors
    /// There is no room for it, at present or at all: nothing of the request is accepted.
    pub fn take(&mut self, index: usize, value: Value<'_>, attributes: &Attributes<'_>) -> Result<(), Problem> {
        if let Err(invalid) = self.try_take(index, value, attributes) {
            self.refuse(index, invalid);
        }
        self.count_aside()
    }

    /// Says in the answer why an event is not accepted.
    pub fn refuse(&mut self, index: usize, invalid: Invalid) {
        self.checked.errors.push(EventError { index, invalid });
    }

    fn try_take(&mut self, index: usize, value: Value<'_>, attributes: &Attributes<'_>) -> Result<(), Invalid> {
        let (Value::InBody(bytes) | Value::Made(bytes)) = value;
        let headers = attributes.iter().map(|(name, value)| (name, Some(value.as_bytes())));
        let head = event::admit_with(bytes, headers, self.http.max_event, self.fields)?;
        let Checked { body, aside, records, accepted, .. } = &mut self.checked;
        let (id, assigned_id) = match head.id {
            Some(Cow::Borrowed(id)) if is_within(body, id) => (EventId::InBody(span(body, id.as_bytes())), None),
            Some(id) => (EventId::Unescaped(id.into_owned()), None),
            None => {
                let id = self.ids.next();
                (EventId::Assigned(id), Some(id))
            }
        };
        let key = head.key.map(|key| match key {
            Cow::Borrowed(key) if is_within(body, key) => Part::InBody(span(body, key.as_bytes())),
            key => Part::Aside(append(aside, key.as_bytes())),
        });
        let value = match value {
            Value::InBody(value) => Part::InBody(span(body, value)),
            Value::Made(value) => Part::Aside(append(aside, value)),
        };
        let headers = (!attributes.is_empty()).then(|| attributes.write(aside));
        records.push(NewRecord { value, key, headers, assigned_id });
        accepted.push(Accepted { index, id });
        Ok(())
    }

    fn count_aside(&mut self) -> Result<(), Problem> {
        let capacity = self.checked.aside.capacity();
        if capacity <= self.counted {
            return Ok(());
        }
        // Places are 32-bit numbers, and what cannot pass when nothing else is in flight is not to be tried again.
        let most = self.http.max_in_flight.as_usize().min(u32::MAX as usize);
        if self.checked.body.len() + capacity > most {
            let detail = "what the events of this request become, each with what it shares with others, is more than \
                          http.max_in_flight: send them in smaller requests";
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
        self.share.grow(capacity - self.counted)?;
        self.counted = capacity;
        Ok(())
    }

    /// All of them. The answer becomes a part of the share.
    ///
    /// # Errors
    /// There is no room for that at present.
    pub fn finish(self) -> Result<Checked, Problem> {
        let Self { checked, share, .. } = self;
        share.grow(checked.errors_size() + longest_answer(&checked))?;
        Ok(checked)
    }
}

/// Whether the text is a part of the body, as what was not escaped there is.
fn is_within(body: &[u8], text: &str) -> bool {
    let (body, text) = (body.as_ptr_range(), text.as_bytes().as_ptr_range());
    body.start <= text.start && text.end <= body.end
}
