//! JSON Schemas (2020-12): compiled once, and asked about events and records, at the door, at a replay and over an archive.
//!
//! A schema is an operator's, an event is anybody's. So what a schema may cost is bounded when it is compiled: its files by their
//! size, number, depth and references (`files`), its patterns by an engine that takes a time linear in the text, without
//! look-around. And what an event may cost is bounded by its size: the memory that it takes as a tree is known beforehand
//! ([`weight`]), nothing is searched in more than n log n steps, and the first thing that is wrong ends it.
//!
//! A [`Mismatch`] says where something is wrong and what it has to be, and never what it is: that may be a password.

mod expansion;
mod files;
mod unique;
mod words;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::Value;
use sha2::{Digest, Sha256};

use self::files::Folder;

/// A compiled schema.
pub struct Schema {
    validator: Validator,
    /// All that it was read from: its file, and those that it refers to.
    files: Vec<PathBuf>,
    /// SHA-256 of all these.
    content: [u8; 32],
    /// It has keywords of whose branches all that is wrong is gathered.
    has_branches: bool,
}

/// Why a schema cannot be used, in one sentence that names the file, and what was read until then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Unusable {
    pub sentence: String,
    pub files: Vec<PathBuf>,
}

/// What of a value is not as its schema has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Where in the value (RFC 6901).
    pub pointer: String,
    /// The same without numbers of elements, for counting.
    pub place: String,
    pub keyword: String,
    /// Where in the schema.
    pub schema_pointer: String,
    /// What it has to be.
    pub rule: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pointer, rule, schema_pointer, .. } = self;
        write!(f, "at {pointer:?}: {rule} ({schema_pointer} of the schema)")
    }
}

/// Of one compiled pattern, and of what is kept while it is matched.
const LARGEST_PATTERN: usize = 1 << 20;
/// Of a value with more parts it is not said where in it a schema with branches is not met: each of them may be wrong in each branch.
const MOST_GATHERED: usize = 1000;

impl Schema {
    /// Reads the schema in this file, and those in its folder that it refers to.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn compile(path: &Path) -> Result<Self, Unusable> {
        let folder = Folder::of(path);
        let compiled = folder.open(path).and_then(|(root, base)| {
            let options = jsonschema::options()
                .with_draft(Draft::Draft202012)
                .with_retriever(folder.clone())
                .with_pattern_options(
                    PatternOptions::regex().size_limit(LARGEST_PATTERN).dfa_size_limit(LARGEST_PATTERN),
                )
                .should_validate_formats(false)
                .with_keyword("uniqueItems", unique::keyword);
            let options = match base {
                Some(base) => options.with_base_uri(base),
                None => options,
            };
            options.build(&root).map_err(|error| words::unusable(path, &error))
        });
        let read = folder.read();
        let compiled = compiled.and_then(|validator| match expansion::count(path, &read) {
            ..=expansion::MOST => Ok(validator),
            _ => Err(words::too_many_references(path)),
        });
        let files = read.iter().map(|(path, _)| path.clone()).collect();
        match compiled {
            Err(sentence) => Err(Unusable { sentence, files }),
            Ok(validator) => {
                let mut content = Sha256::new();
                for (path, bytes) in &read {
                    content.update(path.as_os_str().as_encoded_bytes());
                    content.update((bytes.len() as u64).to_be_bytes());
                    content.update(bytes);
                }
                let has_branches = read.iter().any(|(_, bytes)| words::has_branches(bytes));
                Ok(Self { validator, files, content: content.finalize().into(), has_branches })
            }
        }
    }

    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Whether it was read from the same text.
    pub fn is_same(&self, other: &Self) -> bool {
        self.content == other.content
    }

    /// Whether this is JSON, and as the schema has it.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self, json: &[u8]) -> Result<(), Mismatch> {
        let value: Value = serde_json::from_slice(json).map_err(|error| words::no_json(json, &error))?;
        if self.validator.is_valid(&value) {
            return Ok(());
        }
        if self.has_branches && parts(json) > MOST_GATHERED {
            return Err(words::too_large_to_say());
        }
        let wrong = self.validator.validate(&value).err();
        Err(wrong.map_or_else(words::too_large_to_say, |error| words::mismatch(&error)))
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schema").field("files", &self.files).finish_non_exhaustive()
    }
}

/// Elements and members, about.
fn parts(json: &[u8]) -> usize {
    memchr::memchr2_iter(b',', b':', json).count()
}

/// The memory that JSON takes while it is checked, at most: its strings, a place for each of its parts, and a node for each of its
/// objects, which has room for eleven members.
pub fn weight(json: &[u8]) -> usize {
    const OBJECT: usize = 11 * (size_of::<String>() + size_of::<Value>()) + 128;
    /// In a list that grew by doubling, or a node that is half full; and the least that an allocation takes.
    const PART: usize = 4 * size_of::<Value>();
    let objects = memchr::memchr_iter(b'{', json).count();
    json.len().saturating_add(objects.saturating_mul(OBJECT)).saturating_add(parts(json).saturating_mul(PART))
}

#[cfg(test)]
mod tests;
