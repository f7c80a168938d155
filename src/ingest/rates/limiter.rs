//! One rate and its buckets: whether so many events may come now, and when they may.

use std::{num::NonZeroU32, time::Duration};

use governor::{Quota, RateLimiter, clock::Clock, middleware::StateInformationMiddleware};
use prometheus_client::metrics::gauge::Gauge;

use super::buckets::{Act, Ask, Buckets, Client, Ticks};
use crate::config::Rate;

/// What a bucket says to so many events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// They may come.
    Now(Standing),
    /// They may when this has passed.
    In(Duration, Standing),
    /// Never: they are more than the burst.
    Never,
}

/// How a bucket stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Events that may come at once.
    pub left: u32,
    /// Seconds until it is full, or until there is room for what was refused.
    pub seconds: u64,
}

pub struct Limiter {
    pub rate: Rate,
    buckets: RateLimiter<Ask, Buckets, Ticks, StateInformationMiddleware>,
}

impl Limiter {
    /// Of all addresses; `tracked` counts those that have used some of it.
    pub fn of_many(rate: Rate, ticks: Ticks, tracked: Gauge) -> Self {
        Self::new(rate, Buckets::of_many(ticks.clone(), tracked), ticks)
    }

    /// Of a key.
    pub fn of_one(rate: Rate, ticks: Ticks) -> Self {
        Self::new(rate, Buckets::of_one(ticks.clone()), ticks)
    }

    fn new(rate: Rate, buckets: Buckets, ticks: Ticks) -> Self {
        // An event never takes no time.
        let quota = Quota::with_period(rate.per_event()).unwrap_or(Quota::per_second(NonZeroU32::MAX));
        Self { rate, buckets: RateLimiter::new(quota.allow_burst(rate.burst), buckets, ticks) }
    }

    /// Takes the room for so many events, where there is any.
    pub fn take(&self, client: Client, events: NonZeroU32) -> Verdict {
        self.ask(Ask { client, act: Act::Take }, events)
    }

    /// Whether there is room for so many events.
    pub fn look(&self, client: Client, events: NonZeroU32) -> Verdict {
        self.look_and(client, Act::Look, events)
    }

    /// Gives back the room that so many events have taken, and says what there is then.
    pub fn give_back(&self, client: Client, events: NonZeroU32) -> Standing {
        let time = self.rate.per_event() * events.get();
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        match self.look_and(client, Act::GiveBack(nanos), NonZeroU32::MIN) {
            Verdict::Now(standing) | Verdict::In(_, standing) => standing,
            // (A burst is at least one event.)
            Verdict::Never => self.standing(0),
        }
    }

    fn look_and(&self, client: Client, act: Act, events: NonZeroU32) -> Verdict {
        match self.ask(Ask { client, act }, events) {
            // As if they had been taken.
            Verdict::Now(Standing { left, .. }) => Verdict::Now(self.standing(left + events.get())),
            other => other,
        }
    }

    fn ask(&self, ask: Ask, events: NonZeroU32) -> Verdict {
        let per_event = self.rate.per_event();
        match self.buckets.check_key_n(&ask, events) {
            Err(_) => Verdict::Never,
            Ok(Ok(state)) => Verdict::Now(self.standing(state.remaining_burst_capacity())),
            Ok(Err(until)) => {
                let wait = until.wait_time_from(self.buckets.clock().now());
                let missing = wait.as_nanos().div_ceil(per_event.as_nanos().max(1));
                let left = events.get().saturating_sub(u32::try_from(missing).unwrap_or(u32::MAX));
                Verdict::In(wait, Standing { left, seconds: whole_seconds(wait) })
            }
        }
    }

    fn standing(&self, left: u32) -> Standing {
        let missing = self.rate.burst.get().saturating_sub(left);
        let wait = self.rate.per_event() * missing;
        Standing { left, seconds: if missing == 0 { 0 } else { whole_seconds(wait) } }
    }

    /// Seconds in which an empty bucket becomes full.
    pub fn window(&self) -> u64 {
        whole_seconds(self.rate.per_event() * self.rate.burst.get())
    }
}

/// Rounded up, and at least one.
pub fn whole_seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, Ipv6Addr},
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
    };

    use super::{super::buckets::MOST_OF_SHARD, *};
    use crate::config::RateLimit;

    fn rate(text: &str) -> Rate {
        RateLimit::try_from(text.to_owned()).unwrap().0.unwrap()
    }

    fn events(events: u32) -> NonZeroU32 {
        NonZeroU32::new(events).unwrap()
    }

    fn set(text: &str) -> (Limiter, Arc<AtomicU64>, Gauge) {
        let (nanos, tracked) = (Arc::new(AtomicU64::new(7)), Gauge::default());
        (Limiter::of_many(rate(text), Ticks::Set(nanos.clone()), tracked.clone()), nanos, tracked)
    }

    fn pass(nanos: &AtomicU64, milliseconds: u64) {
        nanos.fetch_add(milliseconds * 1_000_000, Ordering::Relaxed);
    }

    fn address(index: u32) -> Client {
        IpAddr::from(index.to_be_bytes()).into()
    }

    #[test]
    fn a_burst_may_come_at_once_and_then_as_many_as_the_rate_brings() {
        let (limiter, nanos, _) = set("100/s burst 200");
        let client = address(1);
        assert_eq!(limiter.look(client, events(1)), Verdict::Now(Standing { left: 200, seconds: 0 }));
        assert_eq!(limiter.take(client, events(150)), Verdict::Now(Standing { left: 50, seconds: 2 }));
        assert_eq!(
            limiter.look(client, events(1)),
            Verdict::Now(Standing { left: 50, seconds: 2 }),
            "to look takes nothing"
        );
        // What does not fit takes nothing, and is told when it will.
        let refused = Verdict::In(Duration::from_millis(500), Standing { left: 50, seconds: 1 });
        assert_eq!((limiter.take(client, events(100)), limiter.take(client, events(100))), (refused, refused));
        assert_eq!(limiter.take(client, events(50)), Verdict::Now(Standing { left: 0, seconds: 2 }));
        assert_eq!(
            limiter.look(client, events(1)),
            Verdict::In(Duration::from_millis(10), Standing { left: 0, seconds: 1 })
        );
        assert_eq!(limiter.take(client, events(201)), Verdict::Never);
        assert!(matches!(limiter.take(address(2), events(200)), Verdict::Now(_)), "another has its own");
        pass(&nanos, 1000);
        assert_eq!(limiter.look(client, events(1)), Verdict::Now(Standing { left: 100, seconds: 1 }));
        pass(&nanos, 60_000);
        assert_eq!(
            limiter.look(client, events(1)),
            Verdict::Now(Standing { left: 200, seconds: 0 }),
            "no more than the burst"
        );
        assert_eq!(limiter.window(), 2);
    }

    #[test]
    fn what_is_given_back_may_come_again_and_no_more_than_the_burst() {
        let (limiter, nanos, tracked) = set("100/s burst 200");
        let client = address(1);
        assert_eq!(limiter.give_back(client, events(9)), Standing { left: 200, seconds: 0 }, "nothing was taken");
        assert!(matches!(limiter.take(client, events(150)), Verdict::Now(_)));
        assert!(matches!(limiter.take(client, events(50)), Verdict::Now(_)));
        assert_eq!(limiter.give_back(client, events(150)), Standing { left: 150, seconds: 1 });
        assert!(matches!(limiter.take(client, events(151)), Verdict::In(..)));
        assert_eq!(limiter.take(client, events(150)), Verdict::Now(Standing { left: 0, seconds: 2 }));
        pass(&nanos, 1900);
        assert_eq!(limiter.give_back(client, events(150)), Standing { left: 200, seconds: 0 });
        assert_eq!(limiter.take(client, events(200)), Verdict::Now(Standing { left: 0, seconds: 2 }));
        assert_eq!(tracked.get(), 1);
    }

    #[test]
    fn slow_rates_have_seconds_that_are_rounded_up() {
        let (limiter, nanos, _) = set("7/m");
        assert_eq!((limiter.window(), limiter.rate.burst.get()), (9, 1));
        assert_eq!(limiter.take(address(1), events(1)), Verdict::Now(Standing { left: 0, seconds: 9 }));
        pass(&nanos, 8500);
        let Verdict::In(wait, Standing { left: 0, seconds: 1 }) = limiter.look(address(1), events(1)) else { panic!() };
        assert!(wait < Duration::from_millis(100), "{wait:?}");
        pass(&nanos, 100);
        assert!(matches!(limiter.take(address(1), events(1)), Verdict::Now(_)));
    }

    #[test]
    fn an_ipv6_network_of_64_bits_is_one_client_and_a_mapped_address_is_that_of_ipv4() {
        let of = |text: &str| Client::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_ne!(Client::from(IpAddr::V6(Ipv6Addr::UNSPECIFIED)), of("0.0.0.0"));
    }

    #[test]
    fn a_hundred_thousand_addresses_have_bounded_memory_and_those_without_room_share_a_bucket() {
        let (limiter, nanos, tracked) = set("1/m burst 10");
        let most = (16 * MOST_OF_SHARD) as i64;
        for index in 0..100_000 {
            let _ = limiter.take(address(index), events(1));
        }
        // Shards are not filled evenly to the last place.
        assert!(tracked.get() <= most && tracked.get() > most * 9 / 10, "{}", tracked.get());
        // Those that came first keep their own.
        assert_eq!(limiter.look(address(0), events(1)), Verdict::Now(Standing { left: 9, seconds: 60 }));
        let newcomers =
            (200_000..201_000).filter(|index| matches!(limiter.take(address(*index), events(1)), Verdict::Now(_)));
        let taken = newcomers.count();
        assert!(taken <= 16 * 10, "{taken} of a thousand newcomers, by 16 shared buckets");
        // Full ones are forgotten, and make room.
        pass(&nanos, 61_000);
        for index in 300_000..301_000 {
            assert_eq!(limiter.take(address(index), events(1)), Verdict::Now(Standing { left: 9, seconds: 60 }));
        }
        assert_eq!(tracked.get(), 1000);
        drop(limiter);
        assert_eq!(tracked.get(), 0);
    }
}
