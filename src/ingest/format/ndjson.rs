//! Newline-delimited JSON: an event a line.

use super::{Events, Unsplittable, trim};

pub(super) fn split(body: &[u8], max_events: usize) -> Result<Events<'_>, Unsplittable> {
    let mut lines = Vec::new();
    let mut start = 0;
    for end in memchr::memchr_iter(b'\n', body).chain([body.len()]) {
        let line = trim(&body[start..end]);
        start = end + 1;
        if line.is_empty() {
            continue;
        }
        if lines.len() == max_events {
            return Err(Unsplittable::TooMany(max_events));
        }
        lines.push(line);
    }
    if lines.is_empty() { Err(Unsplittable::Empty) } else { Ok(Events::Many(lines)) }
}
