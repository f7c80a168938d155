use std::cell::Cell;

use super::*;

/// What is looked at together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lanes {
    /// Whatever the processor has.
    All,
    /// Vectors of sixteen bytes, and no larger ones.
    Sixteen,
    /// Words.
    Eight,
}

thread_local! {
    /// What this thread goes with.
    pub static LANES: Cell<Lanes> = const { Cell::new(Lanes::All) };
}

/// What comes of it with all vectors, with some, and without.
pub fn each<T>(run: impl Fn() -> T) -> [T; 3] {
    [Lanes::All, Lanes::Sixteen, Lanes::Eight].map(|lanes| {
        LANES.set(lanes);
        let result = run();
        LANES.set(Lanes::All);
        result
    })
}

/// Texts of up to so many bytes with one that may be found at each place, and with none.
fn texts(longest: usize, bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    (0..=longest).flat_map(move |length| {
        let with = (0..length).flat_map(move |at| {
            bytes.iter().map(move |byte| {
                let mut text = vec![b'x'; length];
                text[at] = *byte;
                text
            })
        });
        with.chain([vec![b'x'; length]])
    })
}

#[test]
fn what_is_special_in_a_string_is_found_wherever_it_stands() {
    for text in texts(150, b"\"\\\x00\x1f \x7f\x80\xff!#]") {
        let expected =
            |at: usize| text[at..].iter().position(|byte| is_special(*byte)).map_or(text.len(), |it| at + it);
        for at in (0..=text.len()).step_by(3) {
            assert_eq!(each(|| special(&text, at)), [expected(at); 3], "{} from {at}", text.escape_ascii());
        }
        assert_eq!(each(|| is_plain(&text)), [expected(0) == text.len(); 3], "{}", text.escape_ascii());
    }
}

#[test]
fn each_byte_is_special_or_not() {
    for byte in 0..=u8::MAX {
        for length in [1, 4, 8, 16, 40, 100] {
            let text = vec![byte; length];
            assert_eq!(each(|| is_plain(&text)), [!is_special(byte); 3], "{byte}");
        }
    }
}

#[test]
fn text_is_what_is_utf_8_and_its_control_characters_are_seen() {
    for text in texts(150, b"\n\x1f\x7f\x80\xc3\xed") {
        let expected = std::str::from_utf8(&text).map(|text| (text, text.bytes().any(|byte| byte < 0x20)));
        assert_eq!(each(|| survey(&text)), [expected; 3], "{}", text.escape_ascii());
    }
    for text in ["é", &"日本".repeat(40), &format!("{}é\n", "x".repeat(70))] {
        assert_eq!(each(|| survey(text.as_bytes())), [Ok((text, text.contains('\n'))); 3]);
    }
}

#[test]
fn lines_are_those_that_are_not_blank() {
    for text in texts(300, b"\n").chain([b"\n\n \r\n".to_vec(), b"a\n\r b \t\nc".to_vec(), b"{}\n".repeat(200)]) {
        let expected: Vec<&[u8]> =
            text.split(|byte| *byte == b'\n').map(trim).filter(|line| !line.is_empty()).collect();
        assert_eq!(each(|| lines(&text, expected.len())), [(); 3].map(|()| Some(expected.clone())));
        if let Some(less) = expected.len().checked_sub(1) {
            assert_eq!(each(|| lines(&text, less)), [None, None, None]);
        }
    }
}

#[test]
fn a_bracket_is_closed_where_it_is_or_nothing_is_said() {
    let closed = |json: &str| closed(json.as_bytes(), 0);
    let is_told = has_vectors_of_32();
    for (json, end) in [
        (r#"{"a":[1,"]}"]} x"#, Some(14)),
        ("[]]", Some(2)),
        (r#"{"a\"}":{}}"#, Some(11)),
        (r#"["\\"]]"#, Some(6)),
        ("[}", None),
        ("[[]", None),
        (r#"["]"#, None),
        // A backslash that is in no string escapes nothing.
        (r#"[\"]"]"#, None),
    ] {
        for spaces in 0..130 {
            let padded = json.replacen(['[', '{'], &format!("{}{}", &json[..1], " ".repeat(spaces)), 1);
            assert_eq!(closed(&padded), end.filter(|_| is_told).map(|end| end + spaces), "{padded}");
            assert_eq!(each(|| closed(&padded))[1..], [None; 2], "step by step is left to who asks");
        }
    }
    // Backslashes over the end of a block, an odd number of them and an even one.
    for begins in 50..70 {
        for count in 0..5 {
            let json = format!("[\"{}{}\" ]\" ]", "x".repeat(begins), "\\".repeat(count));
            let end = if count % 2 == 0 { json.len() - 3 } else { json.len() };
            assert_eq!(closed(&json), Some(end).filter(|_| is_told), "{json}");
        }
    }
    let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    assert_eq!(closed(&deep(64)), Some(128).filter(|_| is_told));
    assert_eq!(closed(&deep(65)), None);
}

/// Whether this machine has them.
fn has_vectors_of_32() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2") && is_x86_feature_detected!("pclmulqdq");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[test]
fn marks_tell_whether_two_of_an_object_are_the_same() {
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..2_000 {
        let mut marks = Marks::new();
        let mut expected: Vec<Vec<u32>> = Vec::new();
        for _ in 0..random.usize(..300) {
            match random.u8(..if round % 2 == 0 { 24 } else { 200 }) {
                0 => {
                    marks.push(1);
                    expected.push(Vec::new());
                }
                1 if expected.len() > 1 => {
                    let count = expected.pop().map_or(0, |top| top.len());
                    marks.truncate(marks.len() - count);
                    assert_eq!(marks.pop(), Some(1));
                }
                _ => {
                    let mark = random.u32(..if round % 3 == 0 { 1_000 } else { u32::MAX }) | 1;
                    marks.push(mark);
                    if expected.is_empty() {
                        expected.push(Vec::new());
                    }
                    expected.last_mut().expect("one").push(mark);
                }
            }
            let top = expected.last().expect("one");
            let distinct: std::collections::BTreeSet<_> = top.iter().collect();
            let start = marks.len() - top.len();
            for lanes in [Lanes::Eight, Lanes::All] {
                LANES.set(lanes);
                assert_eq!(marks.has_twice(start), distinct.len() < top.len(), "{top:?}");
            }
        }
    }
}
