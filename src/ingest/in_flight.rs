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

    /// One for other bytes of the same request, which are given back apart from these.
    pub fn another(&self) -> Self {
        Self { bytes: 0, limit: self.limit, in_flight: self.in_flight.clone() }
    }

    /// Whether so much more could not be had either if nothing else were in flight.
    pub fn can_never_grow(&self, bytes: usize) -> bool {
        i64::try_from(bytes).unwrap_or(i64::MAX).saturating_add(self.bytes) > self.limit
    }

    /// Takes more, without waiting.
    ///
    /// # Errors
    /// 429 when less than that is left.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Problem> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.bytes = self.bytes.saturating_add(bytes);
        if self.in_flight.inc_by(bytes).saturating_add(bytes) <= self.limit {
            return Ok(());
        }
        Err(Problem::too_busy("too many bytes of requests are being handled (http.max_in_flight): try again"))
    }

    /// So much of it as a share of its own, which may live longer.
    pub fn split_off(&mut self, bytes: usize) -> Self {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX).min(self.bytes);
        self.bytes -= bytes;
        Self { bytes, limit: self.limit, in_flight: self.in_flight.clone() }
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
        assert!(first.another().grow(1).is_err());
        assert!(first.can_never_grow(1) && !share().can_never_grow(10));
        let part = first.split_off(3).hold(vec![3]);
        let held = first.hold(vec![1, 2]);
        assert_eq!((held.as_ref(), in_flight.get()), (&[1, 2][..], 10));
        drop(held);
        assert_eq!(in_flight.get(), 3);
        drop(part);
        assert_eq!(in_flight.get(), 0);
    }
}
