//! The buckets of one rate: how much of it each client has used, in bounded memory.
//!
//! A bucket is the moment at which it will be full again (GCRA's theoretical arrival time): one that is full is as good as none, and is
//! forgotten. Where so many are in use that there is no room for another, all further clients share one: too few are let in then, never
//! too many.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    time::Duration,
};

use governor::{clock::Clock, nanos::Nanos, state::StateStore};
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;

/// Whose bucket it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Client {
    V4(u32),
    /// The first 64 bits: who has one IPv6 address has all of its network.
    V6(u64),
    /// The only one of its rate.
    Only,
}

impl From<IpAddr> for Client {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

/// A question to a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ask {
    pub client: Client,
    pub act: Act,
}

/// What becomes of a bucket that is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Act {
    Look,
    /// What is asked for is taken, where there is so much.
    Take,
    /// It is full by so many nanoseconds earlier. (A bucket that was forgotten meanwhile, or is shared, is left as it is: too few are
    /// let in then, never too many.)
    GiveBack(u64),
}

/// Time as buckets count it.
#[derive(Debug, Clone)]
pub enum Ticks {
    Since(std::time::Instant),
    #[cfg(test)]
    Set(std::sync::Arc<std::sync::atomic::AtomicU64>),
}

impl Clock for Ticks {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        match self {
            Self::Since(start) => start.elapsed().into(),
            #[cfg(test)]
            Self::Set(nanos) => nanos.load(std::sync::atomic::Ordering::Relaxed).into(),
        }
    }
}

/// Locks are held for as long as it takes to look at a shard: this many let the server's workers go on beside each other.
const SHARDS: usize = 16;
/// Buckets of a shard in use: 65,536 in all, some 3 MiB.
pub const MOST_OF_SHARD: usize = 4096;
/// How often a shard that gets new clients is looked through for full buckets: that takes some 20 µs.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

pub struct Buckets {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    ticks: Ticks,
    tracked: Gauge,
}

#[derive(Default)]
struct Shard {
    clients: HashMap<Client, u64>,
    /// The one of all clients that there is no room for.
    shared: Option<u64>,
    look_at: u64,
}

impl Buckets {
    /// `tracked` counts those in use.
    pub fn of_many(ticks: Ticks, tracked: Gauge) -> Self {
        Self::new(SHARDS, ticks, tracked)
    }

    pub fn of_one(ticks: Ticks) -> Self {
        Self::new(1, ticks, Gauge::default())
    }

    fn new(shards: usize, ticks: Ticks, tracked: Gauge) -> Self {
        let shards = (0..shards).map(|_| Mutex::default()).collect();
        Self { shards, hasher: RandomState::new(), ticks, tracked }
    }

    /// Forgets the full ones, now and then.
    fn look_through(&self, shard: &mut Shard) {
        let now = self.ticks.now().as_u64();
        if now < shard.look_at {
            return;
        }
        shard.look_at = now + LOOK_AGAIN.as_nanos() as u64;
        let before = shard.clients.len();
        shard.clients.retain(|_, full_at| *full_at > now);
        self.tracked.dec_by((before - shard.clients.len()) as i64);
    }
}

impl StateStore for Buckets {
    type Key = Ask;

    fn measure_and_replace<T, F, E>(&self, ask: &Ask, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        // (The remainder is below the number of shards.)
        let place = self.hasher.hash_one(ask.client) as usize % self.shards.len();
        let shard = &mut *self.shards[place].lock();
        if let Some(full_at) = shard.clients.get_mut(&ask.client) {
            if let Act::GiveBack(nanos) = ask.act {
                *full_at = full_at.saturating_sub(nanos);
            }
            let (outcome, then) = decide(Some((*full_at).into()))?;
            if ask.act == Act::Take {
                *full_at = then.as_u64();
            }
            return Ok(outcome);
        }
        self.look_through(shard);
        let has_room = shard.clients.len() < MOST_OF_SHARD;
        let (outcome, then) = decide(if has_room { None } else { shard.shared.map(Nanos::from) })?;
        match (ask.act, has_room) {
            (Act::Look | Act::GiveBack(_), _) => {}
            (Act::Take, true) => {
                shard.clients.insert(ask.client, then.as_u64());
                self.tracked.inc();
            }
            (Act::Take, false) => shard.shared = Some(then.as_u64()),
        }
        Ok(outcome)
    }
}

impl Drop for Buckets {
    fn drop(&mut self) {
        let tracked: usize = self.shards.iter().map(|shard| shard.lock().clients.len()).sum();
        self.tracked.dec_by(tracked as i64);
    }
}
