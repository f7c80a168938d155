//! `http.max_in_flight`: what all requests together may hold in memory.

use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;

use crate::{config::ByteSize, http::Problem};

/// What one request takes of it: bytes of its body, what its events cost besides, its answer. The gauge itself is the
/// count, so that what is shown is what is enforced.
pub struct Reservation {
    bytes: i64,
    limit: i64,
    /// What the same request has taken elsewhere; then it may exceed the limit while no other takes anything.
    beside: Option<i64>,
    in_flight: Gauge,
}

impl Reservation {
    pub fn new(in_flight: &Gauge, limit: ByteSize) -> Self {
        Self { bytes: 0, limit: i64::try_from(limit.0).unwrap_or(i64::MAX), beside: None, in_flight: in_flight.clone() }
    }

    /// For what a body of so many bytes costs besides. `http.max_in_flight` is at least `http.max_body`: a body that was let
    /// in, and is alone, is not to be told for ever to come later for the sake of its events' places in lists, of which
    /// `http.max_events` bounds the number.
    pub fn beside(mut self, body: usize) -> Self {
        self.beside = Some(i64::try_from(body).unwrap_or(i64::MAX));
        self
    }

    /// Takes more, without waiting.
    ///
    /// # Errors
    /// 429 when less than that is left.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Problem> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.bytes = self.bytes.saturating_add(bytes);
        let all = self.in_flight.inc_by(bytes).saturating_add(bytes);
        let is_alone = |beside: i64| all <= beside.saturating_add(self.bytes);
        if all <= self.limit || self.beside.is_some_and(is_alone) {
            return Ok(());
        }
        Err(Problem::too_busy("too many bytes of requests are being handled (http.max_in_flight): try again"))
    }

    /// Takes more or gives back, so that it is this much.
    ///
    /// # Errors
    /// As [`Reservation::grow`].
    pub fn resize(&mut self, bytes: usize) -> Result<(), Problem> {
        let held = usize::try_from(self.bytes).unwrap_or(0);
        if bytes > held {
            return self.grow(bytes - held);
        }
        let back = i64::try_from(held - bytes).unwrap_or(0);
        self.bytes -= back;
        self.in_flight.dec_by(back);
        Ok(())
    }

    /// These bytes, which count until the last clone of them is gone.
    pub fn hold(self, bytes: impl AsRef<[u8]> + Send + 'static) -> Bytes {
        Bytes::from_owner(Held { bytes, _share: self })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.in_flight.dec_by(self.bytes);
    }
}

/// Bytes and their share, which live equally long.
struct Held<B> {
    bytes: B,
    _share: Reservation,
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for Held<B> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_never_exceed_the_budget_and_come_back() {
        let in_flight = Gauge::default();
        let share = || Reservation::new(&in_flight, ByteSize(10));
        let (mut first, mut second) = (share(), share());
        assert!(first.grow(6).is_ok());
        assert_eq!(second.grow(5).unwrap_err().status, 429);
        drop(second);
        assert!(first.grow(4).is_ok());
        let held = first.hold(vec![1, 2]);
        assert_eq!((held.as_ref(), in_flight.get()), (&[1, 2][..], 10));
        drop(held);
        assert_eq!(in_flight.get(), 0);
    }

    #[test]
    fn a_share_grows_and_shrinks_to_what_is_held() {
        let in_flight = Gauge::default();
        let mut share = Reservation::new(&in_flight, ByteSize(10));
        for bytes in [4, 10, 3, 0, 10] {
            assert!(share.resize(bytes).is_ok());
            assert_eq!(in_flight.get(), bytes as i64);
        }
        assert_eq!(share.resize(11).unwrap_err().status, 429);
        drop(share);
        assert_eq!(in_flight.get(), 0);
    }

    #[test]
    fn what_a_body_costs_besides_exceeds_the_budget_only_where_nothing_else_is_in_flight() {
        let in_flight = Gauge::default();
        let share = || Reservation::new(&in_flight, ByteSize(10));
        let mut body = share();
        assert!(body.grow(10).is_ok());
        assert!(share().beside(10).grow(5).is_ok(), "it is alone");
        assert_eq!(share().grow(5).unwrap_err().status, 429, "it is another request's");
        let mut other = share();
        body.resize(9).unwrap();
        other.grow(1).unwrap();
        assert_eq!(share().beside(9).grow(5).unwrap_err().status, 429, "it is not alone");
    }
}
