//! What is wrong of a request, as dead letters (`event.on_invalid = "quarantine"`).

use std::collections::BTreeSet;

use bytes::Bytes;

use super::{
    check::{Checked, EventError},
    ids::Ids,
};
use crate::{
    config::QueueConfig,
    event::Code,
    log::{
        NewHeaders, Part, Span,
        dead_letters::{DeadLetter, Origin, QUARANTINE},
        record::Headers,
    },
    position::{Partition, Timestamp},
};

/// What a letter takes in memory besides its bytes, which are the body's, and its message: its facts, and its copy on the way
/// into the queue.
const LETTER: usize = size_of::<DeadLetter>() + 512;

/// What a header of a letter takes besides its bytes.
const HEADER: usize = size_of::<(String, Option<Vec<u8>>)>();

/// Whether a letter is to be made of it.
fn is_due(error: &EventError) -> bool {
    // What a key may not send is nobody's to keep, and no operator's to replay by mistake.
    !error.is_quarantined && error.value.is_some() && error.invalid.code != Code::ForbiddenType
}

/// Whether a letter is to be made of anything.
pub fn is_any_due(checked: &Checked) -> bool {
    checked.errors.iter().any(is_due)
}

/// What the letters of these errors take of the request's share.
pub fn cost(checked: &Checked) -> usize {
    let aside = |error: &EventError| match error.value {
        Some(Part::Aside(span)) => span.size(),
        _ => 0,
    };
    let headers = |error: &EventError| {
        error.headers.map_or(0, |NewHeaders { count, bytes }| bytes.size() + count as usize * HEADER)
    };
    let errors = checked.errors.iter().filter(|error| is_due(error));
    errors.map(|error| LETTER + 2 * error.invalid.message.len() + aside(error) + headers(error)).sum()
}

/// A letter for each error that one is due of, in their order. They borrow the body; what was made of it, and stands `aside`,
/// they have for themselves.
pub fn letters(checked: &Checked, aside: &[u8], queue: &QueueConfig, received: Timestamp) -> Vec<DeadLetter> {
    let mut ids = Ids::new(received);
    let errors = checked.errors.iter().filter(|error| is_due(error));
    let letter = errors.map(|error| DeadLetter {
        topic: format!("{}{QUARANTINE}", queue.topic),
        generation: queue.generation,
        partition: Partition(0),
        origin: Origin::Request(ids.next()),
        received,
        reason: error.invalid.code.as_str().to_owned(),
        message: error.invalid.message.clone(),
        time: received,
        key: None,
        value: error.value.map(|part| bytes_of(&checked.body, aside, part)),
        headers: error.headers.map_or_else(Vec::new, |headers| headers_of(aside, headers)),
    });
    letter.collect()
}

fn bytes_of(body: &Bytes, aside: &[u8], part: Part) -> Bytes {
    match part {
        Part::InBody(Span { start, end }) => body.slice(start as usize..end as usize),
        Part::Aside(span) => Bytes::copy_from_slice(span.of(aside)),
    }
}

fn headers_of(aside: &[u8], headers: NewHeaders) -> Vec<(String, Option<Vec<u8>>)> {
    let headers = Headers::new(headers.count, headers.bytes.of(aside));
    headers.iter().map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec))).collect()
}

/// What became of the letters: all are kept but these, which are larger than one may be. Returns the codes of those kept.
pub fn settle(checked: &mut Checked, too_large: &[usize]) -> Vec<Code> {
    let too_large: BTreeSet<&usize> = too_large.iter().collect();
    let mut kept = Vec::new();
    for (index, error) in checked.errors.iter_mut().filter(|error| is_due(error)).enumerate() {
        if too_large.contains(&index) {
            give_up(error, NOT_KEPT);
        } else {
            error.is_quarantined = true;
            kept.push(error.invalid.code);
        }
    }
    kept
}

/// None of those that were due could be kept, and others are stored already.
pub fn settle_none(checked: &mut Checked) {
    checked.errors.iter_mut().filter(|error| is_due(error)).for_each(|error| give_up(error, NOT_WRITTEN));
}

/// It stays rejected, and says so.
fn give_up(error: &mut EventError, why: &str) {
    error.value = None;
    error.invalid.message.push_str(why);
}

/// Behind the sentence of one that is not kept.
const NOT_KEPT: &str = " (not quarantined: it is larger than a dead letter may be)";
const NOT_WRITTEN: &str = " (not quarantined: its dead letter could not be written)";

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{super::attributes::Attributes, *};
    use crate::event::Invalid;

    fn unsplittable(body: &'static [u8], code: Code, message: &str) -> Checked {
        Checked::unsplittable(Bytes::from_static(body), Invalid::new(code, message), &Attributes::default())
    }

    #[test]
    fn a_letter_has_the_bytes_the_reason_and_the_time_and_an_id_beside_the_topics_records() {
        let checked = unsplittable(b"{broken", Code::InvalidJson, "broken");
        let queue = QueueConfig { generation: 2, ..QueueConfig::default() };
        let received = Timestamp(1_795_420_800_123);
        let letters = letters(&checked, &checked.aside, &queue, received);
        let [letter] = letters.as_slice() else { panic!("{letters:?}") };
        let uuid = letter.id().strip_prefix("events.ingest@2/0/").map(|id| uuid::Uuid::parse_str(id).unwrap());
        assert_eq!(uuid.map(|uuid| uuid.get_version_num()), Some(7), "{}", letter.id());
        assert_eq!((letter.reason.as_str(), letter.message.as_str()), ("invalid_json", "broken"));
        assert_eq!((letter.received, letter.time), (received, received));
        let value = letter.value.as_ref().unwrap();
        assert_eq!((value, value.as_ptr()), (&checked.body, checked.body.as_ptr()), "not a copy");
    }

    #[test]
    fn what_says_how_a_body_is_read_is_beside_it() {
        let mut beside = Attributes::default();
        beside.set("content-type", "application/cloudevents+json");
        let invalid = Invalid::new(Code::InvalidJson, "broken");
        let checked = Checked::unsplittable(Bytes::from_static(b"{"), invalid, &beside);
        let letters = letters(&checked, &checked.aside, &QueueConfig::default(), Timestamp(0));
        let expected = ("content-type".to_owned(), Some(b"application/cloudevents+json".to_vec()));
        assert_eq!(letters[0].headers, [expected]);
    }

    #[test]
    fn one_that_is_too_large_for_a_letter_stays_rejected_and_says_so() {
        let mut checked = unsplittable(b"x", Code::TooLarge, "large");
        assert!(is_any_due(&checked) && cost(&checked) > LETTER);
        assert_eq!(settle(&mut checked, &[]), [Code::TooLarge]);
        assert_eq!((checked.quarantined(), checked.rejected().count(), is_any_due(&checked)), (1, 0, false));
        assert_eq!((settle(&mut checked, &[]), cost(&checked)), (vec![], 0), "it is one letter, not two");
        for (give_up, words) in [
            ((|checked| drop(settle(checked, &[0]))) as fn(&mut Checked), "larger than a dead letter"),
            (settle_none, "could not be written"),
        ] {
            let mut checked = unsplittable(b"x", Code::TooLarge, "large");
            give_up(&mut checked);
            assert_eq!((checked.quarantined(), checked.rejected().count(), is_any_due(&checked)), (0, 1, false));
            let message = &checked.errors[0].invalid.message;
            assert!(message.contains("not quarantined") && message.contains(words), "{message}");
        }
    }
}
