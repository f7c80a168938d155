//! Newline-delimited JSON: an event a line.

use super::{Events, Unsplittable};
use crate::vector;

pub(super) fn split(body: &[u8], max_events: usize) -> Result<Events<'_>, Unsplittable> {
    let lines = vector::lines(body, max_events).ok_or(Unsplittable::TooMany(max_events))?;
    if lines.is_empty() { Err(Unsplittable::Empty) } else { Ok(Events::Many(lines)) }
}
