//! The lines of an archive object, read back.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    archive::spool::line::{decode_raw, present},
    event::{self, Unreadable},
    position::Offset,
};

/// What every line holds.
#[derive(Debug)]
pub struct Line<'a> {
    pub offset: Offset,
    pub received: DateTime<Utc>,
    event: Option<&'a RawValue>,
}

impl Line<'_> {
    /// Why not every reader of JSON can read the line, where it is so: an older release let such an event stand as it
    /// came.
    pub fn unreadable(&self) -> Option<Unreadable> {
        self.event.and_then(|event| event::check(event.get()).err())
    }
}

#[derive(Deserialize)]
struct AsWritten<'a> {
    offset: u64,
    #[serde(borrow)]
    received: std::borrow::Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "present")]
    event: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    raw: Option<&'a RawValue>,
}

/// Reads a line; fields that are not known here may stand in it.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &[u8]) -> Result<Line<'_>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not UTF-8".to_owned())?;
    let line: AsWritten<'_> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    match (line.event, line.raw.map(RawValue::get)) {
        (Some(_), None) | (None, Some("null")) => {}
        (None, Some(raw)) => {
            let bytes = serde_json::from_str(raw).ok().and_then(|raw: String| decode_raw(&raw));
            bytes.ok_or("\"raw\" is not base64")?;
        }
        (Some(_), Some(_)) => return Err("both \"event\" and \"raw\" stand in it".to_owned()),
        (None, None) => return Err("neither \"event\" nor \"raw\" stands in it".to_owned()),
    }
    // Not RFC 3339 alone: a timestamp beyond the year 9999 is written with a sign.
    let received = line.received.parse().map_err(|_| format!("\"received\" is no time: {:.40}", line.received))?;
    Ok(Line { offset: Offset(line.offset), received, event: line.event })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{archive::spool::line::LineEncoder, log::record::RecordBuffer, position::Timestamp};

    #[test]
    fn every_line_that_is_written_reads_back() {
        let mut buffer = RecordBuffer::default();
        let times = [1_795_420_800_123, 0, -1, 1_795_420_800_123_000, i64::MAX];
        let values = [Some(b"{\"a\":1}".as_slice()), Some(b"null"), None, Some(b"\xff"), Some(b"")];
        for (offset, (time, value)) in times.into_iter().zip(values).enumerate() {
            buffer.push(Offset(offset as u64), Timestamp(time), Some(b"\xff"), value, [("h", None)]);
        }
        for record in buffer.iter() {
            let mut text = Vec::new();
            LineEncoder::new(String::new()).encode(&record, &mut text);
            let line = parse(text.trim_ascii_end()).unwrap_or_else(|why| panic!("{why}: {}", text.escape_ascii()));
            // To the second: of a time that no calendar holds, the milliseconds alone are written.
            let seconds = record.received.to_datetime().timestamp();
            assert_eq!((line.offset, line.received.timestamp()), (record.offset, seconds));
        }
    }

    #[test]
    fn what_is_no_line_says_why() {
        let broken = [
            (r#"{"offset":1,"received":"2026-11-23T08:00:00.123Z"}"#, "neither"),
            (r#"{"offset":1,"received":"2026-11-23T08:00:00.123Z","event":1,"raw":null}"#, "both"),
            (r#"{"offset":1,"received":"2026-11-23T08:00:00.123Z","raw":"?"}"#, "base64"),
            (r#"{"offset":1,"received":"yesterday","event":1}"#, "no time"),
            (r#"{"offset":-1,"received":"2026-11-23T08:00:00.123Z","event":1}"#, "-1"),
            (r#"{"offset":1,"received":"2026-11-23T08:00:00.123Z","event":}"#, "expected value"),
            ("", "EOF"),
        ];
        for (text, word) in broken {
            let why = parse(text.as_bytes()).unwrap_err();
            assert!(why.contains(word), "{text}: {why}");
        }
    }
}
