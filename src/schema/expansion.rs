//! How much a schema is when each reference is replaced by what it leads to: forty references, each to two of the next, are 2⁴⁰
//! schemas, which would all be asked about one event.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use percent_encoding::percent_decode_str;
use serde_json::Value;

/// Schemas, with those that references lead to once for each reference.
pub(super) const MOST: u64 = 100_000;

/// Counts them from the first file on. What refers to itself is counted once.
pub(super) fn count(first: &Path, read: &[(PathBuf, Vec<u8>)]) -> u64 {
    let parsed = read.iter().filter_map(|(path, bytes)| Some((path.as_path(), serde_json::from_slice(bytes).ok()?)));
    let documents: BTreeMap<&Path, Value> = parsed.collect();
    let mut counting = Counting { documents: &documents, known: BTreeMap::new() };
    documents.get(first).map_or(0, |root| counting.of(first, root))
}

struct Counting<'d> {
    documents: &'d BTreeMap<&'d Path, Value>,
    /// By the address of what was counted; `None` while that is going on.
    known: BTreeMap<*const Value, Option<u64>>,
}

impl<'d> Counting<'d> {
    fn of(&mut self, file: &'d Path, value: &'d Value) -> u64 {
        let below: Vec<&'d Value> = match value {
            Value::Object(members) => members.values().collect(),
            Value::Array(elements) => elements.iter().collect(),
            _ => return 0,
        };
        match self.known.get(&std::ptr::from_ref(value)) {
            Some(Some(count)) => return *count,
            Some(None) => return 0,
            None => _ = self.known.insert(value, None),
        }
        let mut count = 1_u64;
        for value in below {
            count = count.saturating_add(self.of(file, value));
        }
        for keyword in ["$ref", "$dynamicRef"] {
            let reference = value.get(keyword).and_then(Value::as_str);
            if let Some((file, target)) = reference.and_then(|reference| self.target(file, reference)) {
                count = count.saturating_add(self.of(file, target));
            }
        }
        self.known.insert(value, Some(count));
        count
    }

    /// By the last part of a file's name, and a JSON pointer; what an anchor names is at most all of its file.
    fn target(&self, file: &'d Path, reference: &str) -> Option<(&'d Path, &'d Value)> {
        let (name, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let name = name.rsplit('/').next().unwrap_or_default();
        let named = |(path, _): &(&&'d Path, &'d Value)| path.file_name().is_some_and(|of| of == name);
        let (file, document) = match name {
            "" => (file, self.documents.get(file)?),
            _ => self.documents.iter().find(named).map(|(path, document)| (*path, document))?,
        };
        let pointer = percent_decode_str(fragment).decode_utf8().ok()?;
        Some((file, if pointer.starts_with('/') { document.pointer(&pointer)? } else { document }))
    }
}
