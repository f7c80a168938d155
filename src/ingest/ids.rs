//! The ids that the server assigns to events whose client sent none.

use uuid::{Builder, Uuid, Version};

use crate::position::Timestamp;

/// The ids of one request: UUIDv7 of its time of receipt, ascending in the order of its events.
///
/// RFC 9562, section 6.2, method 2: the first one's random part comes from the operating system, each next one is one more.
/// So a request of thousands of events asks the system once, and its ids take four bytes each in a compressed batch, where
/// random steps took eight. They are no secrets: the others of a request can be guessed from one.
pub struct Ids {
    received: Timestamp,
    /// The latest id; the first is drawn when it is needed.
    latest: Option<u128>,
}

/// Above the random part, which a UUIDv4 has at the same place as a UUIDv7.
const MILLIS_SHIFT: u32 = 80;
/// The highest bit of the last 62 random ones. It starts as 0, so that no number of steps overflows them.
const HIGHEST: u128 = 1 << 61;

impl Ids {
    pub fn new(received: Timestamp) -> Self {
        Self { received, latest: None }
    }

    pub fn next(&mut self) -> Uuid {
        let next = self.latest.map_or_else(|| self.first(), |latest| latest + 1);
        self.latest = Some(next);
        Uuid::from_u128(next)
    }

    fn first(&self) -> u128 {
        let millis = u128::from(self.received.0.unsigned_abs()) << MILLIS_SHIFT;
        let random = Uuid::new_v4().as_u128() % (1 << MILLIS_SHIFT);
        let id = Builder::from_u128(millis | random).with_version(Version::SortRand).into_uuid();
        id.as_u128() & !HIGHEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_ascending_uuids_of_version_7_at_the_time_of_receipt() {
        let received = Timestamp(1_795_420_800_123);
        let mut ids = Ids::new(received);
        let drawn: Vec<Uuid> = (0..10_000).map(|_| ids.next()).collect();
        assert!(drawn.is_sorted_by(|a, b| a < b));
        let highest = drawn[0].as_u128() | (HIGHEST - 1);
        for id in [drawn[0], drawn[9_999], Ids { received, latest: Some(highest) }.next()] {
            assert_eq!((id.get_version_num(), id.get_variant()), (7, uuid::Variant::RFC4122));
            let (seconds, nanos) = id.get_timestamp().unwrap().to_unix();
            assert_eq!((seconds, nanos / 1_000_000), (1_795_420_800, 123));
        }
    }

    #[test]
    fn two_requests_of_the_same_millisecond_share_no_id() {
        assert_ne!(Ids::new(Timestamp(1)).next(), Ids::new(Timestamp(1)).next());
    }
}
