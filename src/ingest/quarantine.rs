//! What is wrong of a request, as dead letters (`event.on_invalid = "quarantine"`).

use bytes::Bytes;

use super::{
    check::{Checked, EventError},
    ids::Ids,
};
use crate::{
    config::QueueConfig,
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

/// What the letters of these errors take of the request's share.
pub fn cost(checked: &Checked) -> usize {
    let aside = |error: &EventError| match error.value {
        Some(Part::Aside(span)) => (span.end - span.start) as usize,
        _ => 0,
    };
    let headers = |error: &EventError| {
        error
            .headers
            .map_or(0, |NewHeaders { count, bytes }| (bytes.end - bytes.start) as usize + count as usize * HEADER)
    };
    let errors = checked.errors.iter();
    errors.map(|error| LETTER + 2 * error.invalid.message.len() + aside(error) + headers(error)).sum()
}

/// A letter for each error, in their order. They borrow the body; what was made of it they have for themselves.
pub fn letters(checked: &Checked, queue: &QueueConfig, received: Timestamp) -> Vec<DeadLetter> {
    let mut ids = Ids::new(received);
    let errors = checked.errors.iter();
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
        value: error.value.map(|part| bytes_of(checked, part)),
        headers: error.headers.map_or_else(Vec::new, |headers| headers_of(checked, headers)),
    });
    letter.collect()
}

fn bytes_of(checked: &Checked, part: Part) -> Bytes {
    match part {
        Part::InBody(Span { start, end }) => checked.body.slice(start as usize..end as usize),
        Part::Aside(span) => Bytes::copy_from_slice(span.of(&checked.aside)),
    }
}

fn headers_of(checked: &Checked, headers: NewHeaders) -> Vec<(String, Option<Vec<u8>>)> {
    let headers = Headers::new(headers.count, headers.bytes.of(&checked.aside));
    headers.iter().map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec))).collect()
}

/// What became of them: all are kept but these, which are larger than a letter may be.
pub fn settle(checked: &mut Checked, too_large: &[usize]) {
    for error in &mut checked.errors {
        error.is_quarantined = true;
    }
    for index in too_large {
        if let Some(error) = checked.errors.get_mut(*index) {
            error.is_quarantined = false;
            error.invalid.message.push_str(NOT_KEPT);
        }
    }
}

/// Behind the sentence of one that is not kept.
const NOT_KEPT: &str = " (not quarantined: it is larger than a dead letter may be)";

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        event::{Code, Invalid},
        ingest::attributes::Attributes,
    };

    #[test]
    fn a_letter_has_the_bytes_the_reason_and_the_time_and_an_id_beside_the_topics_records() {
        let body = Bytes::from_static(b"{broken");
        let checked =
            Checked::unsplittable(body.clone(), Invalid::new(Code::InvalidJson, "broken"), &Attributes::default());
        let queue = QueueConfig { generation: 2, ..QueueConfig::default() };
        let received = Timestamp(1_795_420_800_123);
        let letters = letters(&checked, &queue, received);
        let [letter] = letters.as_slice() else { panic!("{letters:?}") };
        let uuid = letter.id().strip_prefix("events.ingest@2/0/").map(|id| uuid::Uuid::parse_str(id).unwrap());
        assert_eq!(uuid.map(|uuid| uuid.get_version_num()), Some(7), "{}", letter.id());
        assert_eq!((letter.reason.as_str(), letter.message.as_str()), ("invalid_json", "broken"));
        assert_eq!((letter.received, letter.time), (received, received));
        let value = letter.value.as_ref().unwrap();
        assert_eq!((value, value.as_ptr()), (&body, body.as_ptr()), "not a copy");
    }

    #[test]
    fn one_that_is_too_large_for_a_letter_stays_rejected_and_says_so() {
        let mut checked = Checked::unsplittable(
            Bytes::from_static(b"x"),
            Invalid::new(Code::TooLarge, "large"),
            &Attributes::default(),
        );
        settle(&mut checked, &[]);
        assert_eq!((checked.quarantined(), checked.rejected().count()), (1, 0));
        settle(&mut checked, &[0]);
        assert_eq!((checked.quarantined(), checked.rejected().count()), (0, 1));
        assert!(checked.errors[0].invalid.message.contains("not quarantined"));
    }
}
