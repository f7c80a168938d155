//! Reading an object that stands where ours was to go: where it ends, and whether its records are ours.

use std::{
    cmp::Ordering,
    io::{BufRead, BufReader, Lines},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    archive::spool::line::{decode_raw, is_same_value, present},
    position::Offset,
};

/// The parts of a line that a record decides.
#[derive(Deserialize)]
pub struct RecordLine<'a> {
    pub offset: u64,
    #[serde(borrow, default, deserialize_with = "present")]
    event: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    raw: Option<&'a RawValue>,
}

impl<'a> RecordLine<'a> {
    /// # Errors
    /// When it is no line of an object.
    pub fn parse(line: &'a str) -> Result<Self> {
        serde_json::from_str(line).with_context(|| format!("a line of it is not readable: {line:.80}"))
    }

    /// Also where one writer let stand as `"event"` what another keeps as `"raw"`: these are a rule of the writer's
    /// release, and the bytes are the record.
    pub fn same_record(&self, other: &RecordLine<'_>) -> bool {
        fn text(value: Option<&RawValue>) -> Option<&str> {
            value.map(RawValue::get)
        }
        fn same_bytes(event: &RawValue, raw: &RawValue) -> bool {
            let raw: Option<std::borrow::Cow<'_, str>> = serde_json::from_str(raw.get()).ok();
            raw.and_then(|raw| decode_raw(&raw)).is_some_and(|raw| is_same_value(event.get(), &raw))
        }
        match (self.event, self.raw, other.event, other.raw) {
            (Some(event), None, None, Some(raw)) | (None, Some(raw), Some(event), None) => same_bytes(event, raw),
            _ => text(self.event) == text(other.event) && text(self.raw) == text(other.raw),
        }
    }
}

/// The end (last offset + 1) of an object. Blocks for its decompression.
///
/// # Errors
/// When it cannot be read to its end, or holds no record.
pub fn object_end(object: &[u8]) -> Result<Offset> {
    let mut end = None;
    for line in lines(object)? {
        end = Some(RecordLine::parse(&line?)?.offset + 1);
    }
    end.map(Offset).context("it holds no record")
}

/// Compares the object that stands with the segment that was to go there.
///
/// # Errors
/// When the object cannot be read, or both hold the same offset and the records differ: says where.
pub fn compare(object: &[u8], segment: &[u8]) -> Result<Offset> {
    let mut ours = lines(segment)?;
    let mut our_line = next(&mut ours)?;
    let mut end = None;
    for line in lines(object)? {
        let line = line?;
        let theirs = RecordLine::parse(&line)?;
        while let Some(text) = &our_line {
            let ours_parsed = RecordLine::parse(text)?;
            match ours_parsed.offset.cmp(&theirs.offset) {
                Ordering::Less => our_line = next(&mut ours)?,
                Ordering::Equal if ours_parsed.same_record(&theirs) => break,
                Ordering::Equal => bail!("offset {} holds another record than the log", theirs.offset),
                Ordering::Greater => break,
            }
        }
        end = Some(theirs.offset + 1);
    }
    end.map(Offset).context("it holds no record")
}

/// The lines of an object or segment that is in memory.
///
/// # Errors
/// When the decoder cannot be made; each line may fail for itself.
pub fn segment_lines(object: &[u8]) -> Result<impl Iterator<Item = std::io::Result<String>> + use<'_>> {
    lines(object)
}

type ObjectLines<'a> = Lines<BufReader<zstd::Decoder<'static, BufReader<&'a [u8]>>>>;

fn lines(object: &[u8]) -> Result<ObjectLines<'_>> {
    let decoder = zstd::Decoder::new(object).context("it is not compressed with zstd")?;
    Ok(BufReader::with_capacity(128 * 1024, decoder).lines())
}

fn next(lines: &mut ObjectLines<'_>) -> Result<Option<String>> {
    Ok(lines.next().transpose()?)
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::STANDARD};

    use super::*;

    fn object(lines: &[&str]) -> Vec<u8> {
        zstd::encode_all(lines.join("\n").as_bytes(), 1).unwrap()
    }

    const A: &str = r#"{"offset":1,"received":"r","event":{"a":1}}"#;
    const B: &str = r#"{"offset":2,"received":"r","event":{"b":1}}"#;
    const C: &str = r#"{"offset":4,"received":"r","raw":"AA=="}"#;

    #[test]
    fn an_object_that_agrees_gives_its_end() {
        assert_eq!(compare(&object(&[A, B]), &object(&[A, B, C])).unwrap(), Offset(3));
        assert_eq!(compare(&object(&[A, B, C]), &object(&[B])).unwrap(), Offset(5));
        assert_eq!(compare(&object(&[C]), &object(&[A])).unwrap(), Offset(5));
    }

    #[test]
    fn another_record_at_the_same_offset_is_told() {
        let other = r#"{"offset":2,"received":"r","event":{"b":2}}"#;
        assert!(compare(&object(&[A, other]), &object(&[A, B])).is_err());
        let raw = r#"{"offset":2,"received":"r","raw":"AA=="}"#;
        assert!(compare(&object(&[A, raw]), &object(&[A, B])).is_err());
    }

    #[test]
    fn the_event_null_is_another_record_than_none() {
        let (event, none) =
            (r#"{"offset":1,"received":"r","event":null}"#, r#"{"offset":1,"received":"r","raw":null}"#);
        assert!(compare(&object(&[event]), &object(&[none])).is_err());
        assert_eq!(compare(&object(&[none]), &object(&[none])).unwrap(), Offset(2));
    }

    #[test]
    fn what_an_older_release_let_stand_as_an_event_is_the_same_record_as_its_bytes() {
        // As commit da1f0d3 wrote what the door took, and what another program wrote.
        let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
        let values = [
            r#"{"type":"a","n":1e400}"#,
            " {\"type\":\"a\",\r\n\"type\":\"b\"}\n",
            r#"{"type":"a","x":"\ud800"}"#,
            &"9".repeat(4301),
            &deep,
        ];
        let lines: Vec<(String, String)> = values
            .iter()
            .enumerate()
            .map(|(offset, value)| {
                let head = format!("{{\"offset\":{offset},\"received\":\"2026-11-23T08:00:00.123Z\"");
                let event = value.replace(['\r', '\n'], " ");
                (format!("{head},\"event\":{event}}}"), format!("{head},\"raw\":\"{}\"}}", STANDARD.encode(value)))
            })
            .collect();
        let of = |lines: Vec<&String>| object(&lines.into_iter().map(String::as_str).collect::<Vec<_>>());
        let older = of(lines.iter().map(|(event, _)| event).collect());
        let newer = of(lines.iter().map(|(_, raw)| raw).collect());
        assert_eq!(compare(&older, &newer).unwrap(), Offset(5));
        assert_eq!(compare(&newer, &older).unwrap(), Offset(5));
        for at in 0..lines.len() {
            let mut other = lines.clone();
            other[at].1 =
                lines[at].1.replace(&STANDARD.encode(values[at]), &STANDARD.encode(values[at].to_owned() + "1"));
            let other = of(other.iter().map(|(_, raw)| raw).collect());
            let error = compare(&older, &other).unwrap_err().to_string();
            assert!(error.contains(&format!("offset {at} holds another record")), "{error}");
            assert!(compare(&other, &older).is_err());
        }
        let (null, none) =
            (RecordLine::parse(r#"{"offset":1,"event":null}"#), RecordLine::parse(r#"{"offset":1,"raw":"bnVsbA=="}"#));
        assert!(null.unwrap().same_record(&none.unwrap()));
    }

    #[test]
    fn a_cut_object_is_not_read_as_a_shorter_one() {
        let whole = object(&[A, B, C]);
        assert!(compare(&whole[..whole.len() - 4], &object(&[A])).is_err());
        assert!(object_end(&whole[..whole.len() - 4]).is_err());
        assert!(object_end(&object(&[])).is_err());
    }
}
