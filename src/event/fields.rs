//! One pass over an event: checks all of it and keeps the raw texts of a few top-level fields.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::{Code, Invalid};

/// Levels of objects and arrays, the event itself included. In the archive a line is one level around it, and together
/// they are what `serde_json` reads into a tree by default (127), so that readers can parse what was accepted.
pub const MAX_DEPTH: usize = 126;

/// Finds the fields called `names`, which differ, in the object `value`; `None` where one is missing.
pub fn scan<'a>(value: &'a [u8], names: &[String]) -> Result<SmallVec<[Option<&'a RawValue>; 12]>, Invalid> {
    let text = std::str::from_utf8(value)
        .map_err(|error| Invalid::new(Code::InvalidJson, format!("not valid UTF-8 at byte {}", error.valid_up_to())))?;
    if is_deeper_than(MAX_DEPTH, value) {
        return Err(Invalid::new(Code::InvalidJson, format!("nested deeper than {MAX_DEPTH} levels")));
    }
    let syntax = |error: serde_json::Error| Invalid::new(Code::InvalidJson, error.to_string());
    if !text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{') {
        serde_json::from_str::<IgnoredAny>(text).map_err(syntax)?;
        return Err(Invalid::new(Code::NotAnObject, "an event must be a JSON object"));
    }
    let mut found = SmallVec::from_elem(None, names.len());
    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_map(Object { names, found: &mut found }).and_then(|()| json.end()).map_err(syntax)?;
    Ok(found)
}

/// Whether brackets are open deeper than `limit` anywhere. serde_json has no such limit where it skips values.
fn is_deeper_than(limit: usize, json: &[u8]) -> bool {
    let opened = |bracket| memchr::memchr_iter(bracket, json).count();
    // Few events have so many brackets at all.
    if opened(b'{') + opened(b'[') <= limit {
        return false;
    }
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

struct Object<'n, 'f, 'a> {
    names: &'n [String],
    found: &'f mut [Option<&'a RawValue>],
}

impl<'a> Visitor<'a> for Object<'_, '_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(name) = map.next_key_seed(NameAmong(self.names))? {
            match name {
                Some(name) => self.found[name] = Some(map.next_value()?),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// Reads a field's name as its place among these.
struct NameAmong<'n>(&'n [String]);

impl<'a> DeserializeSeed<'a> for NameAmong<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NameAmong<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|candidate| candidate == name))
    }
}
