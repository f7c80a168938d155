//! JSON Schemas (2020-12): compiled once, and asked about events and records, at the door, at a replay and over an archive.
//!
//! A schema is an operator's, an event is anybody's. So what a schema may cost is bounded when it is compiled: its files by their
//! size, number, depth and references (`files`), what these lead to by how much that is (`graph`), its patterns by an engine that
//! takes a time linear in the text, without look-around. And what an event may cost is bounded by its size: the memory that it takes as a tree is known beforehand
//! ([`Schema::weight`]), nothing is searched in more than n log n steps, and the first thing that is wrong ends it.
//!
//! A [`Mismatch`] says where something is wrong and what it has to be, and never what it is: that may be a password.

mod files;
mod graph;
mod unique;
mod words;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::Value;
use sha2::{Digest, Sha256};

use self::{files::Folder, graph::Graph};

/// A compiled schema.
pub struct Schema {
    validator: Validator,
    /// All that it was read from: its file, and those that it refers to.
    files: Vec<PathBuf>,
    /// SHA-256 of all these.
    content: [u8; 32],
    graph: Graph,
}

/// Why a schema cannot be used, in one sentence that names the file, and what it was tried to read until then.
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
        let whole = format!("at {pointer:?}: {rule} ({schema_pointer} of the schema)");
        f.write_str(&words::cut(&whole, words::LONGEST))
    }
}

/// Of one compiled pattern, and of what is kept while it is matched.
const LARGEST_PATTERN: usize = 1 << 20;
/// Of the thread that compiles: what a chain of [`graph::DEEPEST`] schemas takes of it, several times.
const STACK: usize = 64 << 20;

impl Schema {
    /// Reads the schema in this file, and those in its folder that it refers to.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn compile(path: &Path) -> Result<Self, Unusable> {
        let folder = Folder::of(path);
        let compiling = || compile(path, &folder);
        let compiled = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("schema".to_owned()).stack_size(STACK);
            let thread =
                thread.spawn_scoped(scope, compiling).map_err(|error| format!("{}: {error}", path.display()))?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let read = folder.read();
        let files = folder.wanted();
        match compiled {
            Err(sentence) => Err(Unusable { sentence, files }),
            Ok((validator, graph)) => {
                let mut content = Sha256::new();
                for (path, bytes) in &read {
                    content.update(path.as_os_str().as_encoded_bytes());
                    content.update((bytes.len() as u64).to_be_bytes());
                    content.update(bytes);
                }
                Ok(Self { validator, files, content: content.finalize().into(), graph })
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

    /// The memory that it takes to check this, at most: the tree, and what is remembered of its objects and lists.
    pub fn weight(&self, json: &[u8]) -> usize {
        /// A key of two words, in a table that is half full, or is being doubled.
        const REMEMBERED: usize = 4 * 24;
        let tree = weight(json);
        match self.graph.remembered() {
            0 => tree,
            of => {
                let containers = count(json, |byte| byte == b'{' || byte == b'[');
                tree.saturating_add(containers.saturating_mul(of).saturating_mul(REMEMBERED))
            }
        }
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
        if !self.graph.explains(&value) {
            return Err(words::too_large_to_say());
        }
        let wrong = self.validator.validate(&value).err();
        Err(wrong.map_or_else(words::too_large_to_say, |error| words::mismatch(&error)))
    }
}

/// Reads all files, and says no before it costs too much.
fn compile(path: &Path, folder: &Folder) -> Result<(Validator, Graph), String> {
    let (root, base) = folder.open(path)?;
    let graph = Graph::of(&root, base.as_deref(), folder).map_err(|unbounded| words::unbounded(path, unbounded))?;
    let options = jsonschema::options()
        .with_draft(Draft::Draft202012)
        .with_retriever(folder.clone())
        .with_pattern_options(PatternOptions::regex().size_limit(LARGEST_PATTERN).dfa_size_limit(LARGEST_PATTERN))
        .should_validate_formats(false)
        .with_keyword("uniqueItems", unique::keyword);
    let options = match base {
        Some(base) => options.with_base_uri(base),
        None => options,
    };
    let validator = options.build(&root).map_err(|error| words::unusable(path, &error))?;
    Ok((validator, graph))
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schema").field("files", &self.files).finish_non_exhaustive()
    }
}

/// The memory that JSON takes as a tree, at most: its strings, a place for each of its parts, of a list that is not empty four, and a
/// node for each of its objects, which has room for eleven members.
fn weight(json: &[u8]) -> usize {
    const OBJECT: usize = 11 * (size_of::<String>() + size_of::<Value>()) + 128;
    /// A list starts with four places; and the least that an allocation takes.
    const LIST: usize = 4 * size_of::<Value>() + 32;
    /// In a list that grew by doubling, or a node that is half full; and the least that an allocation takes.
    const PART: usize = 4 * size_of::<Value>();
    let of = |many: usize, each: usize| many.saturating_mul(each);
    let parts = count(json, |byte| byte == b',' || byte == b':');
    let containers =
        of(count(json, |byte| byte == b'{'), OBJECT).saturating_add(of(count(json, |byte| byte == b'['), LIST));
    json.len().saturating_add(containers).saturating_add(of(parts, PART))
}

/// How many of these bytes there are: sixteen or more at a time, since the counts of a chunk are bytes, too.
fn count(json: &[u8], is_meant: impl Fn(u8) -> bool) -> usize {
    let chunks = json.chunks(usize::from(u8::MAX));
    chunks.map(|chunk| usize::from(chunk.iter().map(|byte| u8::from(is_meant(*byte))).sum::<u8>())).sum()
}

#[cfg(test)]
mod tests;
