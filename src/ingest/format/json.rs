//! JSON: one object, or an array of them.

use std::fmt;

use serde::de::{Deserializer, Error, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{Events, Unsplittable, trim};
use crate::event;

pub(super) fn split(body: &[u8], max_events: usize) -> Result<Events<'_>, Unsplittable> {
    let value = trim(body);
    match value.first() {
        None => Err(Unsplittable::Empty),
        Some(b'{') => Ok(Events::One(value)),
        Some(b'[') => elements(body, max_events).map(Events::Many),
        Some(_) => Err(scalar(value)),
    }
}

fn elements(body: &[u8], max_events: usize) -> Result<Vec<&[u8]>, Unsplittable> {
    let text = std::str::from_utf8(body)
        .map_err(|error| Unsplittable::Syntax(format!("not valid UTF-8 at byte {}", error.valid_up_to())))?;
    if let Some(elements) = event::array(text, max_events) {
        return Ok(elements);
    }
    let mut elements = Vec::new();
    let mut json = serde_json::Deserializer::from_str(text);
    let outcome = json.deserialize_seq(Elements { elements: &mut elements, max_events }).and_then(|()| json.end());
    if elements.len() > max_events {
        return Err(Unsplittable::TooMany(max_events));
    }
    outcome.map_err(|error| Unsplittable::Syntax(error.to_string()))?;
    Ok(elements)
}

fn scalar(value: &[u8]) -> Unsplittable {
    match serde_json::from_slice::<IgnoredAny>(value) {
        Ok(_) => Unsplittable::NeitherObjectNorArray,
        Err(error) => Unsplittable::Syntax(error.to_string()),
    }
}

/// Takes the elements of an array, one more than `max_events` at most.
struct Elements<'e, 'a> {
    elements: &'e mut Vec<&'a [u8]>,
    max_events: usize,
}

impl<'a> Visitor<'a> for Elements<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut array: A) -> Result<(), A::Error> {
        while let Some(element) = array.next_element::<&'a RawValue>()? {
            self.elements.push(element.get().as_bytes());
            if self.elements.len() > self.max_events {
                return Err(A::Error::custom("too many elements"));
            }
        }
        Ok(())
    }
}
