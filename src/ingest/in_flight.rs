//! `http.max_in_flight`: what all requests together may hold in memory.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;

use crate::{config::ByteSize, http::Problem};

/// What one request takes of it: bytes of its body, what its events cost besides, its answer. The gauge itself is the
/// count, so that what is shown is what is enforced.
pub struct Reservation {
    bytes: i64,
    limit: i64,
    /// What the same request holds in all of its shares, its body among them; then it may exceed the limit while no other holds
    /// anything.
    request: Option<Arc<AtomicI64>>,
    in_flight: Gauge,
}

impl Reservation {
    pub fn new(in_flight: &Gauge, limit: ByteSize) -> Self {
        Self {
            bytes: 0,
            limit: i64::try_from(limit.0).unwrap_or(i64::MAX),
            request: None,
            in_flight: in_flight.clone(),
        }
    }

    /// For what a body of so many bytes costs besides. `http.max_in_flight` is at least `http.max_body`: a body that was let
    /// in, and is alone, is not to be told for ever to come later for the sake of its events' places in lists, of which
    /// `http.max_events` bounds the number. Whoever takes more than these needs a bound of its own.
    pub fn beside(mut self, body: usize) -> Self {
        let body = i64::try_from(body).unwrap_or(i64::MAX);
        self.request = Some(Arc::new(AtomicI64::new(body.saturating_add(self.bytes))));
        self
    }

    /// One for other bytes of the same request, which are given back apart from these.
    pub fn another(&self) -> Self {
        Self { bytes: 0, limit: self.limit, request: self.request.clone(), in_flight: self.in_flight.clone() }
    }

    /// Takes more, without waiting.
    ///
    /// # Errors
    /// 503 when less than that is left.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Problem> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.bytes = self.bytes.saturating_add(bytes);
        let all = self.in_flight.inc_by(bytes).saturating_add(bytes);
        let of_request =
            self.request.as_ref().map(|held| held.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes));
        let is_alone = |held: i64| all <= held;
        if all <= self.limit || of_request.is_some_and(is_alone) {
            return Ok(());
        }
        Err(Problem::unavailable("too many bytes of requests are being handled (http.max_in_flight): try again"))
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
        self.give_back(i64::try_from(held - bytes).unwrap_or(0));
        Ok(())
    }

    fn give_back(&mut self, bytes: i64) {
        self.bytes -= bytes;
        if let Some(held) = &self.request {
            held.fetch_sub(bytes, Ordering::Relaxed);
        }
        self.in_flight.dec_by(bytes);
    }

    /// So much of it as a share of its own, which may live longer.
    pub fn split_off(&mut self, bytes: usize) -> Self {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX).min(self.bytes);
        self.bytes -= bytes;
        Self { bytes, limit: self.limit, request: self.request.clone(), in_flight: self.in_flight.clone() }
    }

    /// These bytes, which count until the last clone of them is gone.
    pub fn hold(self, bytes: impl AsRef<[u8]> + Send + 'static) -> Bytes {
        Bytes::from_owner(Held { bytes, _share: self })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.give_back(self.bytes);
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
        assert_eq!(second.grow(5).unwrap_err().status, 503);
        drop(second);
        assert!(first.grow(4).is_ok());
        assert!(first.another().grow(1).is_err());
        let part = first.split_off(3).hold(vec![3]);
        let held = first.hold(vec![1, 2]);
        assert_eq!((held.as_ref(), in_flight.get()), (&[1, 2][..], 10));
        drop(held);
        assert_eq!(in_flight.get(), 3);
        drop(part);
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
        assert_eq!(share.resize(11).unwrap_err().status, 503);
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
        assert_eq!(share().grow(5).unwrap_err().status, 503, "it is another request's");
        let mut other = share();
        body.resize(9).unwrap();
        other.grow(1).unwrap();
        assert_eq!(share().beside(9).grow(5).unwrap_err().status, 503, "it is not alone");
    }

    #[test]
    fn all_shares_of_a_request_are_its_own() {
        let in_flight = Gauge::default();
        let share = || Reservation::new(&in_flight, ByteSize(10));
        let mut body = share();
        body.grow(10).unwrap();
        let mut first = share().beside(10);
        first.grow(2).unwrap();
        let mut work = first.another();
        assert!(work.grow(20).is_ok(), "it is alone, whichever of its shares grows");
        assert!(first.grow(1).is_ok());
        let part = first.split_off(2);
        work.resize(5).unwrap();
        assert!(first.grow(1).is_ok());
        let mut other = share();
        assert_eq!(other.grow(1).unwrap_err().status, 503);
        assert_eq!(work.grow(1).unwrap_err().status, 503, "it is not alone");
        drop(other);
        assert!(work.grow(1).is_ok());
        drop((body, first, work, part));
        assert_eq!(in_flight.get(), 0);
    }
}
