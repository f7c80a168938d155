//! `http.max_in_flight`: what all requests together may hold in memory.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;

use crate::{config::ByteSize, http::Problem};

/// What all requests hold. The gauges themselves are the count, so that what is shown is what is enforced.
#[derive(Clone, Debug, Default)]
pub struct InFlight {
    pub all: Gauge,
    /// What of it is held by large requests.
    pub large: Gauge,
}

/// One request, with what it holds in all of its shares.
#[derive(Debug)]
struct Request {
    held: AtomicI64,
    limit: i64,
    in_flight: InFlight,
}

impl Request {
    /// A request is large that holds more than one part in so many of the limit: 64 KiB of the default.
    const LARGE: i64 = 1024;
    /// Of the limit, the part that large requests leave to small ones.
    const LEFT: i64 = 4;

    /// How much of what a request holds is that of a large one.
    fn of_large(&self, held: i64) -> i64 {
        if held > self.limit / Self::LARGE { held } else { 0 }
    }

    /// Takes more, where it may. Nobody ever finds more taken than may be, also while that is looked at: a large request that is
    /// refused must not stand in a small one's way meanwhile.
    ///
    /// Several large requests leave as much as each of them holds, up to a quarter of the limit: so small ones find room beside
    /// them, whoever sends them.
    fn take(&self, bytes: i64, may_exceed_alone: bool) -> bool {
        let (held, large) = self.hold(bytes);
        let is_one_of_many_large = self.of_large(held) > 0 && large > held;
        let left = if is_one_of_many_large { held.min(self.limit / Self::LEFT) } else { 0 };
        let most = (self.limit - left).max(if may_exceed_alone { held } else { 0 });
        let more = |all: i64| all.checked_add(bytes).filter(|all| *all <= most);
        let is_taken = self.in_flight.all.inner().fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        if !is_taken {
            self.hold(-bytes);
        }
        is_taken
    }

    fn give_back(&self, bytes: i64) {
        self.hold(-bytes);
        self.in_flight.all.dec_by(bytes);
    }

    /// What it holds then, and what all large requests do. Each change moves the gauge by what it means for that, so their sum is
    /// right whoever comes first.
    fn hold(&self, bytes: i64) -> (i64, i64) {
        let before = self.held.fetch_add(bytes, Ordering::Relaxed);
        let held = before.saturating_add(bytes);
        let moved = self.of_large(held) - self.of_large(before);
        let large = &self.in_flight.large;
        (held, if moved == 0 { large.get() } else { large.inc_by(moved).saturating_add(moved) })
    }
}

/// What one request takes of it: bytes of its body, what its events cost besides, its answer.
pub struct Reservation {
    bytes: i64,
    may_exceed_alone: bool,
    request: Arc<Request>,
}

impl Reservation {
    /// Of a new request.
    pub fn new(in_flight: &InFlight, limit: ByteSize) -> Self {
        let limit = i64::try_from(limit.0).unwrap_or(i64::MAX);
        let request = Request { held: AtomicI64::new(0), limit, in_flight: in_flight.clone() };
        Self { bytes: 0, may_exceed_alone: false, request: Arc::new(request) }
    }

    /// One for what the same request costs besides its body. `http.max_in_flight` is at least `http.max_body`: a body that was let
    /// in, and is alone, is not to be told for ever to come later for the sake of its events' places in lists, of which
    /// `http.max_events` bounds the number. Whoever takes more than these needs a bound of its own.
    pub fn beside(&self) -> Self {
        Self { bytes: 0, may_exceed_alone: true, request: self.request.clone() }
    }

    /// One for other bytes of the same request, which are given back apart from these.
    pub fn another(&self) -> Self {
        Self { bytes: 0, may_exceed_alone: self.may_exceed_alone, request: self.request.clone() }
    }

    /// Takes more, without waiting.
    ///
    /// # Errors
    /// 503 when less than that is left; then it has what it had.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Problem> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        if self.request.take(bytes, self.may_exceed_alone) {
            self.bytes += bytes;
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
        self.request.give_back(bytes);
    }

    /// So much of it as a share of its own, which may live longer.
    pub fn split_off(&mut self, bytes: usize) -> Self {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX).min(self.bytes);
        self.bytes -= bytes;
        Self { bytes, may_exceed_alone: self.may_exceed_alone, request: self.request.clone() }
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

    const LIMIT: i64 = 64 << 10;

    /// A request that holds so much.
    fn holding(in_flight: &InFlight, bytes: i64) -> Result<Reservation, Problem> {
        let mut share = Reservation::new(in_flight, ByteSize(LIMIT as u64));
        share.grow(bytes as usize).map(|()| share)
    }

    #[test]
    fn shares_never_exceed_the_budget_and_come_back() {
        let in_flight = InFlight::default();
        let share = || Reservation::new(&in_flight, ByteSize(10));
        let (mut first, mut second, mut third) = (share(), share(), share());
        first.grow(6).unwrap();
        assert_eq!(second.grow(5).unwrap_err().status, 503);
        assert_eq!(in_flight.all.get(), 6, "what is refused takes nothing");
        third.grow(1).unwrap();
        assert!(first.grow(4).is_err());
        drop((second, third));
        first.resize(9).unwrap();
        let part = first.split_off(3).hold(vec![3]);
        let held = first.hold(vec![1, 2]);
        assert_eq!((held.as_ref(), in_flight.all.get()), (&[1, 2][..], 9));
        drop(held);
        assert_eq!(in_flight.all.get(), 3);
        drop(part);
        assert_eq!((in_flight.all.get(), in_flight.large.get()), (0, 0));
    }

    #[test]
    fn a_share_grows_and_shrinks_to_what_is_held() {
        let in_flight = InFlight::default();
        let mut share = Reservation::new(&in_flight, ByteSize(10));
        for bytes in [4, 10, 3, 0, 10] {
            share.resize(bytes).unwrap();
            assert_eq!(in_flight.all.get(), bytes as i64);
        }
        assert_eq!(share.resize(11).unwrap_err().status, 503);
        drop(share);
        assert_eq!(in_flight.all.get(), 0);
    }

    #[test]
    fn a_request_exceeds_the_budget_only_where_nothing_else_is_in_flight_and_with_all_of_its_shares() {
        let in_flight = InFlight::default();
        let mut body = Reservation::new(&in_flight, ByteSize(10));
        body.grow(10).unwrap();
        assert_eq!(body.another().grow(1).unwrap_err().status, 503, "a body has to fit");
        let mut first = body.beside();
        first.grow(2).unwrap();
        let mut work = first.another();
        assert!(work.grow(20).is_ok(), "it is alone, whichever of its shares grows");
        let part = first.split_off(2);
        work.resize(5).unwrap();
        assert!(first.grow(1).is_ok());
        let mut other = Reservation::new(&in_flight, ByteSize(100));
        assert_eq!(
            Reservation::new(&in_flight, ByteSize(10)).beside().grow(1).unwrap_err().status,
            503,
            "it is not alone"
        );
        other.grow(1).unwrap();
        assert_eq!(work.grow(1).unwrap_err().status, 503, "nor is it any more");
        drop(other);
        assert!(work.grow(1).is_ok());
        drop((body, first, work, part));
        assert_eq!((in_flight.all.get(), in_flight.large.get()), (0, 0));
    }

    #[test]
    fn large_requests_leave_room_to_small_ones_and_one_of_them_gets_all_that_is_left() {
        let in_flight = InFlight::default();
        let large: Vec<_> = (0..10).filter_map(|_| holding(&in_flight, LIMIT / 4).ok()).collect();
        assert_eq!((large.len(), in_flight.large.get()), (3, 3 * LIMIT / 4), "a quarter is left");
        // Others that are large stop the earlier, the more they want.
        let half_as_large: Vec<_> = (0..10).filter_map(|_| holding(&in_flight, LIMIT / 8).ok()).collect();
        assert_eq!(half_as_large.len(), 1);
        let small: Vec<_> = (0..2000).filter_map(|_| holding(&in_flight, LIMIT / 1024).ok()).collect();
        assert_eq!((small.len(), in_flight.all.get()), (128, LIMIT), "small ones take all of the rest");
        drop((large, half_as_large));
        assert_eq!((in_flight.large.get(), in_flight.all.get()), (0, LIMIT / 8));
        // It would come for ever without success where there is always something small.
        let only = holding(&in_flight, 7 * LIMIT / 8).expect("it is the only large one");
        drop((only, small));
        assert_eq!((in_flight.large.get(), in_flight.all.get()), (0, 0));
    }

    #[test]
    fn what_is_held_by_large_requests_is_right_whoever_comes_first() {
        let in_flight = InFlight::default();
        let share = Reservation::new(&in_flight, ByteSize(LIMIT as u64)).beside();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let mut share = share.another();
                scope.spawn(move || {
                    for round in 0..10_000 {
                        share.resize([10, 40, 0][round % 3]).expect("it is alone");
                    }
                });
            }
        });
        assert_eq!((in_flight.large.get(), in_flight.all.get()), (0, 0));
    }
}
