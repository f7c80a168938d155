//! An object that stands beside the one that was to go there.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{ObjectFormat::NdjsonZst, *};
use crate::archive::line::RecordLine;

fn object(lines: &[&str]) -> Vec<u8> {
    zstd::encode_all(lines.join("\n").as_bytes(), 1).unwrap()
}

const A: &str = r#"{"offset":1,"received":"r","event":{"a":1}}"#;
const B: &str = r#"{"offset":2,"received":"r","event":{"b":1}}"#;
const C: &str = r#"{"offset":4,"received":"r","raw":"AA=="}"#;

#[test]
fn an_object_that_agrees_gives_its_end() {
    assert_eq!(NdjsonZst.compare(&object(&[A, B]), &object(&[A, B, C])).unwrap(), Offset(3));
    assert_eq!(NdjsonZst.compare(&object(&[A, B, C]), &object(&[B])).unwrap(), Offset(5));
    assert_eq!(NdjsonZst.compare(&object(&[C]), &object(&[A])).unwrap(), Offset(5));
}

#[test]
fn another_record_at_the_same_offset_is_told() {
    let other = r#"{"offset":2,"received":"r","event":{"b":2}}"#;
    assert!(NdjsonZst.compare(&object(&[A, other]), &object(&[A, B])).is_err());
    let raw = r#"{"offset":2,"received":"r","raw":"AA=="}"#;
    assert!(NdjsonZst.compare(&object(&[A, raw]), &object(&[A, B])).is_err());
}

#[test]
fn the_event_null_is_another_record_than_none() {
    let (event, none) = (r#"{"offset":1,"received":"r","event":null}"#, r#"{"offset":1,"received":"r","raw":null}"#);
    assert!(NdjsonZst.compare(&object(&[event]), &object(&[none])).is_err());
    assert_eq!(NdjsonZst.compare(&object(&[none]), &object(&[none])).unwrap(), Offset(2));
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
    assert_eq!(NdjsonZst.compare(&older, &newer).unwrap(), Offset(5));
    assert_eq!(NdjsonZst.compare(&newer, &older).unwrap(), Offset(5));
    for at in 0..lines.len() {
        let mut other = lines.clone();
        other[at].1 = lines[at].1.replace(&STANDARD.encode(values[at]), &STANDARD.encode(values[at].to_owned() + "1"));
        let other = of(other.iter().map(|(_, raw)| raw).collect());
        let error = NdjsonZst.compare(&older, &other).unwrap_err().to_string();
        assert!(error.contains(&format!("offset {at} holds another record")), "{error}");
        assert!(NdjsonZst.compare(&other, &older).is_err());
    }
    let (null, none) =
        (RecordLine::parse(br#"{"offset":1,"event":null}"#), RecordLine::parse(br#"{"offset":1,"raw":"bnVsbA=="}"#));
    assert!(null.unwrap().same_record(&none.unwrap()));
}

#[test]
fn a_cut_object_is_not_read_as_a_shorter_one() {
    let whole = object(&[A, B, C]);
    assert!(NdjsonZst.compare(&whole[..whole.len() - 4], &object(&[A])).is_err());
    assert!(NdjsonZst.end(&whole[..whole.len() - 4]).is_err());
    assert!(NdjsonZst.end(&object(&[])).is_err());
}
