//! Events that bring attributes beside their values, or values that were made of a body: they are taken one by one, and what
//! is made of them is counted as it grows.

use actix_web::http::StatusCode;
use bytes::Bytes;

use super::{
    arrival::Arrival,
    attributes::Attributes,
    check::{Checked, EVENT, EventError, Taking, span_within},
    conforming::Untaken,
    format::Format,
    in_flight::Reservation,
    replies::longest_answer,
};
use crate::{
    config::HttpConfig,
    event::{EventFields, Invalid},
    http::Problem,
};

/// The events of one request so far.
pub struct Checking<'r> {
    share: &'r mut Reservation,
    taking: Taking<'r>,
    errors: Vec<EventError>,
    /// Whether what is wrong may become letters: then it is taken down.
    keeps_wrong: bool,
    /// The most that may stand aside of the body. A request that is alone may exceed `http.max_in_flight`, so this bound is its
    /// own: what is beyond it is not to be tried again. And places are 32-bit numbers.
    most: usize,
    /// What of the bytes aside the share has.
    counted: usize,
    /// What of the errors it has.
    remarks: usize,
}

impl<'r> Checking<'r> {
    /// Values that are parts of `body` stay there; others are copied.
    pub fn new(
        body: &'r Bytes,
        http: &'r HttpConfig,
        fields: &'r EventFields,
        arrival: Arrival<'r>,
        share: &'r mut Reservation,
    ) -> Self {
        let taking = Taking::new(body, Format::Data, None, http, fields, arrival);
        let most = http.max_in_flight.as_usize().min(u32::MAX as usize);
        Self { share, taking, errors: Vec::new(), keeps_wrong: true, most, counted: 0, remarks: 0 }
    }

    /// Whether the bytes of wrong events are taken down.
    pub fn keeping(mut self, keeps_wrong: bool) -> Self {
        self.keeps_wrong = keeps_wrong;
        self
    }

    pub fn keeps_wrong(&self) -> bool {
        self.keeps_wrong
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
        self.make_room(value, attributes)?;
        let before = self.taking.checked.aside.len();
        let taken = self.taking.take_with(index, value, attributes);
        if let Err(Untaken::NoRoom(problem)) = taken {
            return Err(problem);
        }
        if let Err(Untaken::Invalid(invalid)) = taken {
            let error = if self.keeps_wrong {
                self.taking.refused(index, value, invalid)
            } else {
                self.taking.checked.aside.truncate(before);
                EventError::new(index, invalid, None, None)
            };
            self.push(error)?;
        }
        self.count()
    }

    /// Says in the answer why an event with these bytes, which brings these attributes, is not accepted.
    ///
    /// # Errors
    /// As [`Checking::take`].
    pub fn refuse(
        &mut self,
        index: usize,
        value: &[u8],
        attributes: &Attributes<'_>,
        invalid: Invalid,
    ) -> Result<(), Problem> {
        if !self.keeps_wrong {
            return self.push(EventError::new(index, invalid, None, None));
        }
        self.make_room(value, attributes)?;
        let error = self.taking.refused_with(index, value, attributes, invalid);
        self.push(error)?;
        self.count()
    }

    fn push(&mut self, error: EventError) -> Result<(), Problem> {
        let size = error.size();
        self.share.grow(size)?;
        self.remarks += size;
        self.errors.push(error);
        Ok(())
    }

    /// Makes room for what an event needs aside of the body, and counts it before it is there.
    fn make_room(&mut self, value: &[u8], attributes: &Attributes<'_>) -> Result<(), Problem> {
        let copied = if span_within(self.taking.body, value).is_some() { 0 } else { value.len() };
        let aside = &mut self.taking.checked.aside;
        let (length, have) = (aside.len(), aside.capacity());
        let needed = length.saturating_add(copied).saturating_add(attributes.size() + self.taking.arrival.size());
        if needed <= have {
            return Ok(());
        }
        if needed > self.most {
            return Err(too_much());
        }
        let room = needed.max(2 * have).min(self.most);
        self.share.grow(room.saturating_sub(self.counted))?;
        self.counted = self.counted.max(room);
        aside.reserve_exact(room - length);
        self.count()
    }

    /// Counts what else was made aside of the body, such as keys.
    fn count(&mut self) -> Result<(), Problem> {
        let aside = &mut self.taking.checked.aside;
        if aside.capacity() <= self.counted {
            return Ok(());
        }
        if aside.len() > self.most {
            return Err(too_much());
        }
        aside.shrink_to(self.most);
        let have = aside.capacity();
        self.share.grow(have.saturating_sub(self.counted))?;
        self.counted = self.counted.max(have);
        Ok(())
    }

    /// All of them. The answer becomes a part of the share.
    ///
    /// # Errors
    /// There is no room for that at present.
    pub fn finish(mut self) -> Result<Checked, Problem> {
        self.count()?;
        let Taking { checked, body, .. } = self.taking;
        let checked = Checked { errors: self.errors, body: body.clone(), ..checked };
        self.share.grow(checked.remarks_size() - self.remarks + longest_answer(&checked))?;
        Ok(checked)
    }
}

/// What is not to be tried again.
pub(super) fn too_much() -> Problem {
    let detail = "what the events of this request become, each with what it shares with others, is more than \
                  http.max_in_flight: send them in smaller requests";
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
}
