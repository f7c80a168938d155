//! One pass over an event: checks all of it and keeps the raw texts of a few top-level fields.

use serde::{Deserialize, de::IgnoredAny};

use super::{
    Code, Invalid, json,
    names::Names,
    readable::{Glance, Unreadable, check, closely},
};
use crate::vector;

/// Levels of objects and arrays, the event itself included. In the archive a line is one level around it, and together
/// they are what `serde_json` reads into a tree by default (127), so that readers can parse what was accepted.
pub const MAX_DEPTH: usize = 126;

/// Finds the fields called `names`, which differ, in the object `value`, and puts their texts into `found`, which has a place
/// for each. Where there is an error, none are found.
pub fn scan<'a>(value: &'a [u8], names: &impl Names, found: &mut [Option<&'a str>]) -> Result<(), Invalid> {
    let text = vector::text(value).map_err(not_utf8)?;
    if json::find(text, names, &mut (), found) { Ok(()) } else { Err(explain(text)) }
}

/// The same of a value that every reader can read.
#[inline]
pub fn scan_readable<'a>(value: &'a [u8], names: &impl Names, found: &mut [Option<&'a str>]) -> Result<(), Invalid> {
    let text = vector::text(value).map_err(not_utf8)?;
    let mut glance = Glance::default();
    if !json::find(text, names, &mut glance, found) {
        return Err(explain(text));
    }
    if glance.has_doubt() { closely(text).map_err(unreadable) } else { Ok(()) }
}

/// Finds the fields called `names` in any JSON value that every reader can read; one that is no object has none.
///
/// # Errors
/// Why not every reader of JSON can read it.
#[inline]
pub fn find_readable<'a>(text: &'a str, names: &impl Names, found: &mut [Option<&'a str>]) -> Result<(), Unreadable> {
    let mut glance = Glance::default();
    if !json::find(text, names, &mut glance, found) {
        // What is an object and not taken as one, not every reader can read.
        return check(text);
    }
    if glance.has_doubt() { closely(text) } else { Ok(()) }
}

pub(super) fn not_utf8(error: std::str::Utf8Error) -> Invalid {
    Invalid::new(Code::InvalidJson, format!("not valid UTF-8 at byte {}", error.valid_up_to()))
}

pub(super) fn unreadable(what: Unreadable) -> Invalid {
    Invalid::new(Code::InvalidJson, format!("{what}, which not every reader of JSON takes (event.on_unreadable)"))
}

/// Any object: serde_json reads its names, and skips its values.
#[derive(Deserialize)]
struct Object {}

/// Why this is not taken as an object, in serde_json's words.
pub(super) fn explain(text: &str) -> Invalid {
    if is_deeper_than(MAX_DEPTH, text.as_bytes()) {
        return Invalid::new(Code::InvalidJson, format!("nested deeper than {MAX_DEPTH} levels"));
    }
    let is_object = text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{');
    let read = if is_object {
        serde_json::from_str(text).map(|Object {}| ())
    } else {
        serde_json::from_str(text).map(|IgnoredAny| ())
    };
    match read {
        Err(_) if text.trim_ascii().is_empty() => {
            Invalid::new(Code::InvalidJson, "nothing stands here: there is a comma too many")
        }
        Err(error) => Invalid::new(Code::InvalidJson, described(text, &error)),
        Ok(()) => Invalid::new(Code::NotAnObject, "an event must be a JSON object"),
    }
}

/// What common encoders write where JSON has nothing.
const NO_NUMBERS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// serde_json's words, and the name of what is a number elsewhere.
fn described(text: &str, error: &serde_json::Error) -> String {
    let line_start = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum::<usize>();
    // The byte that it stopped at, or the one behind; of a word with a sign the second.
    let at = line_start + error.column();
    let found = (at.saturating_sub(3)..=at).find_map(|at| {
        let rest = text.as_bytes().get(at..)?;
        NO_NUMBERS.iter().find(|word| rest.starts_with(word.as_bytes()))
    });
    match found {
        Some(word) => format!("{word} is no JSON, send null or a string: {error}"),
        None => error.to_string(),
    }
}

/// Whether brackets are open deeper than `limit` anywhere. serde_json has no such limit where it skips values.
pub(super) fn is_deeper_than(limit: usize, json: &[u8]) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*, sample::select};
    use serde_json::value::RawValue;

    use super::*;
    use crate::event::Texts;

    fn names() -> Vec<String> {
        ["type", "a", ""].map(str::to_owned).to_vec()
    }

    /// The fields of an object as serde_json reads it.
    fn by_serde_json(text: &str) -> Option<Texts<'_>> {
        let fields: BTreeMap<String, &RawValue> = serde_json::from_str(text).ok()?;
        let is_shallow = !is_deeper_than(MAX_DEPTH, text.as_bytes());
        is_shallow.then(|| names().iter().map(|name| fields.get(name).map(|value| value.get())).collect())
    }

    /// What is taken is what serde_json takes, with the same fields.
    fn compare(text: &str) {
        let found = json::object(text, &names(), &mut ());
        assert_eq!(found, by_serde_json(text), "{text:?}");
        if found.is_none() && text.trim_ascii_start().starts_with('{') {
            assert_eq!(explain(text).code, Code::InvalidJson, "{text:?}");
        }
        if let Some(found) = json::array(text, usize::MAX) {
            let elements: Vec<&RawValue> = serde_json::from_str(text).expect(text);
            assert_eq!(
                found,
                elements.into_iter().map(|element| element.get().as_bytes()).collect::<Vec<_>>(),
                "{text:?}"
            );
        }
    }

    fn json(depth: u32) -> impl Strategy<Value = String> {
        let string = prop_oneof![
            "[a-z\u{e9}\u{1f600}]{0,20}".prop_map(|text| serde_json::to_string(&text).expect("a string")),
            any::<String>().prop_map(|text| serde_json::to_string(&text).expect("a string")),
            select(vec![r#""\ud800""#, r#""\u0061\/""#, r#""type""#, r#""a""#, r#""""#]).prop_map(str::to_owned),
        ];
        let space = || select(vec!["", "", "", " ", "\n\t", "\r\n"]);
        let leaf = prop_oneof![
            string.clone(),
            select(vec!["0", "-0", "1e5", "-1.25E+10", "123456789012345678901", "true", "false", "null"])
                .prop_map(str::to_owned),
        ];
        leaf.prop_recursive(depth, 64, 6, move |inner| {
            let field = (space(), string.clone(), space(), space(), inner.clone(), space());
            let field = field.prop_map(|(a, name, b, c, value, d)| format!("{a}{name}{b}:{c}{value}{d}"));
            prop_oneof![
                (vec(inner, 0..6), space()).prop_map(|(parts, space)| format!("[{space}{}]", parts.join(","))),
                (vec(field, 0..6), space()).prop_map(|(parts, space)| format!("{{{space}{}}}", parts.join(","))),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3_000))]

        #[test]
        fn valid_json_is_read_as_serde_json_reads_it(text in json(6)) {
            compare(&text);
        }

        #[test]
        fn a_changed_byte_is_judged_as_serde_json_judges_it(
            text in json(4), at in any::<prop::sample::Index>(), byte in select(b"[]{},:\"\\ \n\r\0u0-.e1tx".to_vec()),
            inserted in any::<bool>(),
        ) {
            let mut bytes = text.into_bytes();
            let at = at.index(bytes.len());
            if inserted { bytes.insert(at, byte) } else { bytes[at] = byte }
            if let Ok(text) = std::str::from_utf8(&bytes) {
                compare(text);
            }
        }

        #[test]
        fn any_bytes_are_judged_as_serde_json_judges_them(
            bytes in vec(select(b"[]{},:\"\\ \n\r1e-0.utrfalsn\0\x1f\x7f".to_vec()), 0..40),
        ) {
            let text = std::str::from_utf8(&bytes).expect("ASCII");
            compare(text);
            compare(&format!("{{\"a\":{text}}}"));
            compare(&format!("[{text}]"));
        }
    }

    #[test]
    fn strings_end_where_they_end_wherever_that_is_in_eight_bytes() {
        for length in 0..40 {
            for (character, valid) in
                [('\u{1f}', false), ('\u{7f}', true), (' ', true), ('"', false), ('\\', false), ('\u{a2}', true)]
            {
                for at in 0..=length {
                    let mut string = "x".repeat(length);
                    string.insert(at, character);
                    let text = format!("{{\"a\":\"{string}\",\"type\":\"b\"}}");
                    compare(&text);
                    let is_taken = json::object(&text, &names(), &mut ()).is_some();
                    assert!(is_taken == valid || character == '\\', "{text:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_a_number_elsewhere_is_named() {
        for word in ["NaN", "Infinity", "-Infinity"] {
            for text in [
                format!("{{\"a\":{word}}}"),
                format!("{{\"a\":1,\n\"b\":[1, {word}, 2]}}"),
                format!("{{\n\n\"a\" : {word}\n}}"),
                format!("[{word}]"),
                word.to_owned(),
            ] {
                let message = explain(&text).message;
                assert!(message.starts_with(&format!("{word} is no JSON")), "{text:?}: {message}");
            }
            let quoted = explain(&format!("{{\"a\":\"{word}\",\"b\":}}")).message;
            assert!(!quoted.contains("is no JSON"), "{quoted}");
        }
    }

    #[test]
    fn what_opens_is_closed_by_its_own_kind() {
        for text in [
            r#"{"a":{"x":1]}"#,
            r#"{"a":[1}}"#,
            r#"{"a":[{"x":1]}]}"#,
            r#"{"a":[[1}]}"#,
            r#"{"a":[1,]}"#,
            r#"{"a":{"x":1,}}"#,
            r#"{"a":{,}}"#,
            r#"{"a":[,]}"#,
            r#"{"a":{"x"}}"#,
            r#"{"a":{1:1}}"#,
            r#"{"a":["x":1]}"#,
            r#"{"a":[1]"#,
            r#"{"a":1]"#,
        ] {
            assert!(json::object(text, &names(), &mut ()).is_none(), "{text}");
            compare(text);
        }
        for text in ["[1}", "[1,]", "[,]", "[1", "[1]]", "[[1}]"] {
            assert!(json::array(text, 9).is_none(), "{text}");
        }
    }

    #[test]
    fn what_is_as_deep_as_allowed_is_taken_and_nothing_deeper() {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let nested = |levels: usize| format!("{{\"a\":{}1{}}}", open.repeat(levels - 1), close.repeat(levels - 1));
            assert!(json::object(&nested(MAX_DEPTH), &names(), &mut ()).is_some());
            assert!(json::object(&nested(MAX_DEPTH + 1), &names(), &mut ()).is_none());
            assert!(explain(&nested(MAX_DEPTH + 1)).message.contains("deeper than 126"));
        }
    }
}
