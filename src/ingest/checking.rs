//! Events that bring attributes beside their values, or values that were made of a body: they are taken one by one, and what
//! is made of them is counted as it grows.

use actix_web::http::StatusCode;
use bytes::Bytes;

use super::{
    attributes::Attributes,
    check::{Checked, EVENT, EventError, Taking},
    format::Format,
    in_flight::Reservation,
    replies::longest_answer,
};
use crate::{
    config::HttpConfig,
    event::{EventFields, Invalid},
    http::Problem,
    position::Timestamp,
};

/// The events of one request so far.
pub struct Checking<'r> {
    share: &'r mut Reservation,
    /// Bytes of the request as it came, which are counted elsewhere.
    came: usize,
    taking: Taking<'r>,
    errors: Vec<EventError>,
    /// What of the bytes aside of the body the share has.
    counted: usize,
}

impl<'r> Checking<'r> {
    /// Of a request that came in so many bytes. Values that are parts of `body` stay there; others are copied.
    pub fn new(
        came: usize,
        body: &'r Bytes,
        http: &'r HttpConfig,
        fields: &'r EventFields,
        received: Timestamp,
        share: &'r mut Reservation,
    ) -> Self {
        let taking = Taking::new(body, Format::Data, None, http, fields, received);
        Self { share, came, taking, errors: Vec::new(), counted: 0 }
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
    pub fn take(&mut self, index: usize, value: &[u8], attributes: &Attributes<'_>) -> Result<(), Problem> {
        if let Err(invalid) = self.taking.take_with(index, value, attributes) {
            self.refuse(index, value, invalid);
        }
        self.count()
    }

    /// Counts what was made aside of the body.
    fn count(&mut self) -> Result<(), Problem> {
        let aside = self.taking.checked.aside.capacity();
        if aside <= self.counted {
            return Ok(());
        }
        // Places are 32-bit numbers, and what cannot pass when nothing else is in flight is not to be tried again.
        if aside > u32::MAX as usize || self.share.can_never_grow(self.came + aside - self.counted) {
            let detail = "what the events of this request become, each with what it shares with others, is more than \
                          http.max_in_flight: send them in smaller requests";
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
        self.share.grow(aside - self.counted)?;
        self.counted = aside;
        Ok(())
    }

    /// Says in the answer why an event with these bytes is not accepted.
    pub fn refuse(&mut self, index: usize, value: &[u8], invalid: Invalid) {
        let error = self.taking.refused(index, value, invalid);
        self.errors.push(error);
    }

    /// The same of one that brings these attributes.
    ///
    /// # Errors
    /// As [`Checking::take`].
    pub fn refuse_with(
        &mut self,
        index: usize,
        value: &[u8],
        attributes: &Attributes<'_>,
        invalid: Invalid,
    ) -> Result<(), Problem> {
        let error = self.taking.refused_with(index, value, attributes, invalid);
        self.errors.push(error);
        self.count()
    }

    /// All of them. The answer becomes a part of the share.
    ///
    /// # Errors
    /// There is no room for that at present.
    pub fn finish(mut self) -> Result<Checked, Problem> {
        self.count()?;
        let Taking { checked, body, .. } = self.taking;
        let checked = Checked { errors: self.errors, body: body.clone(), ..checked };
        self.share.grow(checked.remarks_size() + longest_answer(&checked))?;
        Ok(checked)
    }
}
