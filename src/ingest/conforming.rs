//! What events of a request have to be by their types, and the memory for looking, which is the request's.

use super::in_flight::Reservation;
use crate::{
    config::{Config, EventConfig},
    event::{self, Code, Invalid},
    http::Problem,
};

/// Why an event is not taken.
#[derive(Debug)]
pub enum Untaken {
    /// It is wrong.
    Invalid(Invalid),
    /// There is no room for looking at it at present: nothing of its request is accepted.
    NoRoom(Problem),
}

impl From<Invalid> for Untaken {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
    }
}

/// What is asked of the events of a request.
pub struct Conforming<'r> {
    event: &'r EventConfig,
    share: Reservation,
    most: usize,
}

impl<'r> Conforming<'r> {
    /// `None` where nothing is.
    pub fn of(config: &'r Config, share: &Reservation) -> Option<Self> {
        let most = config.http.max_in_flight.as_usize() / 2;
        event::is_any_asked(&config.event).then(|| Self { event: &config.event, share: share.another(), most })
    }

    /// Whether an event of this type may have this value.
    ///
    /// # Errors
    /// It may not, or there is no room for looking.
    pub fn check(&self, event_type: &str, value: &[u8]) -> Result<(), Untaken> {
        let weight = event::weight(event_type, value, self.event);
        if weight > self.most {
            let message = format!(
                "it takes {weight} bytes to look whether it matches the schema of its type, which is more than half of \
                 http.max_in_flight: send less in one"
            );
            return Err(Invalid::new(Code::TooLarge, message).into());
        }
        let mut work = self.share.another();
        work.grow(weight).map_err(Untaken::NoRoom)?;
        Ok(event::conform(event_type, value, self.event)?)
    }
}

impl std::fmt::Debug for Conforming<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conforming").finish_non_exhaustive()
    }
}
