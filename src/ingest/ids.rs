//! The ids that the server assigns to events whose client sent none.

use uuid::Uuid;

use crate::position::Timestamp;

/// The ids of one request: UUIDv7 of its time of receipt, ascending in the order of its events.
///
/// RFC 9562, section 6.2, method 2: the first one's random part comes from the operating system, each next one is one more.
/// So a request of thousands of events asks the system once, and its ids take four bytes each in a compressed batch, where
/// random steps took eight. They are no secrets: who knows one id of a request can guess the others.
pub struct Ids {
    received: Timestamp,
    /// The random part of the latest id; drawn when the first id is needed.
    random: Option<u128>,
}

/// Bits 80 and up of a UUIDv7 are milliseconds, 64 to 75 and 0 to 61 are random.
const MILLIS_SHIFT: u32 = 80;
const VERSION_7: u128 = 7 << 76;
const VARIANT: u128 = 0b10 << 62;
const LOW_BITS: u32 = 62;
const LOW: u128 = (1 << LOW_BITS) - 1;

impl Ids {
    pub fn new(received: Timestamp) -> Self {
        Self { received, random: None }
    }

    pub fn next(&mut self) -> Uuid {
        let random = match self.random {
            // The highest of the 74 random bits starts as 0, so that no number of steps overflows them.
            None => {
                let drawn = Uuid::new_v4().as_u128();
                (drawn & LOW) | ((drawn >> MILLIS_SHIFT) & 0x7ff) << LOW_BITS
            }
            Some(random) => random + 1,
        };
        self.random = Some(random);
        let millis = u128::from(self.received.0.unsigned_abs()) << MILLIS_SHIFT;
        Uuid::from_u128(millis | VERSION_7 | ((random >> LOW_BITS) << 64) | VARIANT | (random & LOW))
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
        for id in [drawn[0], drawn[9_999], Ids { received, random: Some((1 << 74) - (1 << 33)) }.next()] {
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
