//! `http.max_in_flight`: what all requests together may hold in memory.

use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;

use crate::{config::ByteSize, http::Problem};

/// What one request takes of it: bytes of its body, what its events cost besides, its answer. The gauge itself is the
/// count, so that what is shown is what is enforced.
pub struct Reservation {
    bytes: i64,
    limit: i64,
    in_flight: Gauge,
}

impl Reservation {
    pub fn new(in_flight: &Gauge, limit: ByteSize) -> Self {
        Self { bytes: 0, limit: i64::try_from(limit.0).unwrap_or(i64::MAX), in_flight: in_flight.clone() }
    }

    /// Takes more, without waiting.
    ///
    /// # Errors
    /// 503 when less than that is left.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Problem> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.bytes = self.bytes.saturating_add(bytes);
        if self.in_flight.inc_by(bytes).saturating_add(bytes) <= self.limit {
            return Ok(());
        }
        Err(Problem::unavailable("too many bytes of requests are being handled (http.max_in_flight): try again"))
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
        assert_eq!(second.grow(5).unwrap_err().status, 503);
        drop(second);
        assert!(first.grow(4).is_ok());
        let held = first.hold(vec![1, 2]);
        assert_eq!((held.as_ref(), in_flight.get()), (&[1, 2][..], 10));
        drop(held);
        assert_eq!(in_flight.get(), 0);
    }
}
