//! JSON: one object, an array of them, or several texts one behind the other.

use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::{
    Events, SeveralTexts, Unsplittable,
    brackets::{Uncut, closed, cut},
};
use crate::{event, vector::trim};

pub(super) fn split(body: &[u8], max_events: usize) -> Result<Events<'_>, Unsplittable> {
    let value = trim(body);
    match value.first() {
        None => Err(Unsplittable::Empty),
        Some(b'{') => Ok(Events::One(value)),
        Some(b'[') => array(value, max_events),
        Some(_) => scalar(value, max_events),
    }
}

fn array(value: &[u8], max_events: usize) -> Result<Events<'_>, Unsplittable> {
    match cut(value, max_events) {
        Ok(array) if array.end == value.len() => Ok(Events::Many(array.elements)),
        Ok(array) => match other_texts(value, max_events)? {
            Some(texts) => Ok(Events::Texts(texts)),
            None => Err(Unsplittable::Syntax(format!(
                "something stands behind the end of the array, from its byte {} on",
                array.end
            ))),
        },
        Err(Uncut::TooMany) => Err(Unsplittable::TooMany(max_events)),
        Err(Uncut::NoEnd { element, begins }) => Err(Unsplittable::Syntax(format!(
            "the array has no end: a string or a bracket stays open in element {element} (from the array's byte {begins} on)"
        ))),
        Err(Uncut::Unbalanced { element, begins }) => Err(Unsplittable::Syntax(format!(
            "brackets do not match in element {element} of the array (from the array's byte {begins} on)"
        ))),
    }
}

fn scalar(value: &[u8], max_events: usize) -> Result<Events<'_>, Unsplittable> {
    if let Some(texts) = other_texts(value, max_events)? {
        return Ok(Events::Texts(texts));
    }
    Err(match serde_json::from_slice::<IgnoredAny>(value) {
        Ok(_) => Unsplittable::NeitherObjectNorArray,
        Err(error) => Unsplittable::Syntax(error.to_string()),
    })
}

/// The texts of a body whose first is none that would be taken: only where another is whole, too, anything can be.
fn other_texts(value: &[u8], max_events: usize) -> Result<Option<SeveralTexts<'_>>, Unsplittable> {
    Ok(texts(value, max_events)?.filter(|texts| texts.whole.len() > 1))
}

/// See [`super::texts`]: `value` begins and ends with no white space.
pub(super) fn texts(value: &[u8], max_events: usize) -> Result<Option<SeveralTexts<'_>>, Unsplittable> {
    let text = match std::str::from_utf8(value) {
        Ok(text) => text,
        // Those before what is no UTF-8.
        Err(error) => std::str::from_utf8(&value[..error.valid_up_to()]).unwrap_or_default(),
    };
    let mut texts = SeveralTexts { whole: Vec::new(), broken: None };
    let mut at = 0;
    while at < value.len() {
        if texts.whole.len() == max_events {
            return Err(Unsplittable::TooMany(max_events));
        }
        let Some(end) = text_end(value, text, at) else {
            texts.broken = Some(&value[at..]);
            break;
        };
        texts.whole.push(&value[at..end]);
        at = value.len() - trim(&value[end..]).len();
    }
    Ok((!texts.whole.is_empty() && texts.count() > 1).then_some(texts))
}

/// Where the text ends that begins here, if one does; of `value`, `text` is the beginning that is UTF-8. A number or a word
/// is one only up to white space, a bracket that opens, or a quote: `01` is not two texts.
fn text_end(value: &[u8], text: &str, at: usize) -> Option<usize> {
    let end = event::text(text, at).or_else(|| Some(at + deep_text(text.get(at..)?)?))?;
    let ends_itself = matches!(value[at], b'{' | b'[' | b'"');
    match value.get(end) {
        None | Some(b' ' | b'\t' | b'\r' | b'\n' | b'{' | b'[' | b'"') => Some(end),
        Some(_) => ends_itself.then_some(end),
    }
}

/// The same of what is broken, or nested too deeply for an event, which is a text all the same.
fn deep_text(text: &str) -> Option<usize> {
    // serde_json remembers each bracket that is open in a byte: not many of what does not close them.
    if text.starts_with(['{', '[']) {
        closed(text.as_bytes(), 0)?;
    }
    let mut json = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    json.next()?.ok().map(|_| json.byte_offset())
}
