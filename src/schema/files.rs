//! The files of a schema: its own, and those in its folder that it refers to. Nothing leaves the folder: no other scheme, no `..`,
//! no link.
//!
//! A reference is resolved by the `$id` of the file in which it stands, and without one by the file's name. What is in the folder
//! of the first file's `$id` is in the folder of that file: `common.json` beside `https://example.com/schemas/login.json` is
//! `https://example.com/schemas/common.json`, and is read from the disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs,
    io::Read,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use jsonschema::{Retrieve, Uri};
use parking_lot::Mutex;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::Value;

/// What a file without an absolute `$id` is called.
const OWN: &str = "schema:/folder/";
const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";
const ELSEWHERE: &str = "only files in the schema's own folder are read, by their names, such as \"common.json\"";

const LARGEST_FILE: u64 = 1 << 20;
const MOST_FILES: usize = 64;
/// Objects and lists in each other.
const DEEPEST: usize = 64;
/// In one file.
const MOST_REFERENCES: usize = 1000;

/// The folder of a schema. A clone is the same.
#[derive(Debug, Clone)]
pub(super) struct Folder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What the folder is called by the schema's `$id`.
    called: Option<String>,
    read: BTreeMap<PathBuf, Vec<u8>>,
    /// These, and those that could not be read: they may be there soon.
    wanted: BTreeSet<PathBuf>,
}

impl Folder {
    pub fn of(file: &Path) -> Self {
        let path = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Self(Arc::new(Inner { path: path.to_owned(), state: Mutex::default() }))
    }

    /// All that was read so far.
    pub fn read(&self) -> Vec<(PathBuf, Vec<u8>)> {
        self.0.state.lock().read.clone().into_iter().collect()
    }

    /// All that it was tried to read.
    pub fn wanted(&self) -> Vec<PathBuf> {
        self.0.state.lock().wanted.iter().cloned().collect()
    }

    /// The first file, and what it is called, unless it says so itself.
    ///
    /// # Errors
    /// In one sentence that names it.
    pub fn open(&self, file: &Path) -> Result<(Value, Option<String>), String> {
        let schema = self.load(file)?;
        let id = schema.get("$id").and_then(Value::as_str);
        let absolute = id.filter(|id| Uri::<&str>::parse(*id).is_ok());
        let Some(id) = absolute else {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            return Ok((schema, Some(format!("{OWN}{}", utf8_percent_encode(&name, NON_ALPHANUMERIC)))));
        };
        let path = id.split(['?', '#']).next().unwrap_or_default();
        self.0.state.lock().called = path.rfind('/').map(|slash| path[..=slash].to_owned());
        Ok((schema, None))
    }

    fn load(&self, file: &Path) -> Result<Value, String> {
        let fault = |rule: String| format!("{}: {rule}", file.display());
        let mut state = self.0.state.lock();
        // Once, so that all that is asked of it is asked of the same text.
        if let Some(bytes) = state.read.get(file) {
            return parse(bytes).map_err(fault);
        }
        if state.read.len() == MOST_FILES {
            return Err(fault(format!("is one file too many, as a schema may have {MOST_FILES}: refer to fewer")));
        }
        state.wanted.insert(file.to_owned());
        let bytes = read(file).map_err(fault)?;
        let parsed = parse(&bytes).map_err(fault);
        state.read.insert(file.to_owned(), bytes);
        parsed
    }

    /// The file that is called so.
    fn file(&self, uri: &str) -> Result<PathBuf, String> {
        let elsewhere = || format!("the reference to {uri:?} leads elsewhere: {ELSEWHERE}");
        let uri = uri.split('#').next().unwrap_or_default();
        let called = self.0.state.lock().called.clone();
        let name = called.iter().map(String::as_str).chain([OWN]).find_map(|folder| uri.strip_prefix(folder));
        let name = percent_decode_str(name.filter(|name| !name.contains('?')).ok_or_else(elsewhere)?).decode_utf8();
        let name = PathBuf::from(name.map_err(|_| elsewhere())?.into_owned());
        let is_below = name.components().all(|component| matches!(component, Component::Normal(_)));
        if !is_below || name.as_os_str().is_empty() || name.as_os_str().as_encoded_bytes().contains(&0) {
            return Err(elsewhere());
        }
        let file = self.0.path.join(&name);
        let unreadable = |error: std::io::Error| {
            format!(
                "{} cannot be read ({error}), and a schema refers to it: write it, or take out the reference",
                file.display()
            )
        };
        self.0.state.lock().wanted.insert(file.clone());
        let (folder, real) = (fs::canonicalize(&self.0.path), fs::canonicalize(&file));
        let (folder, real) = (folder.map_err(unreadable)?, real.map_err(unreadable)?);
        if real.starts_with(&folder) {
            return Ok(file);
        }
        Err(format!("{} is a link that leads out of the schema's folder: {ELSEWHERE}", file.display()))
    }
}

impl Retrieve for Folder {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, Box<dyn Error + Send + Sync>> {
        Ok(self.file(uri.as_str()).and_then(|file| self.load(&file))?)
    }
}

/// A regular file: what else there is may have no end.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error: std::io::Error| format!("cannot be read ({error}): write it, or set another path");
    // A pipe would be waited for as soon as it is opened.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err("is no file: give the path of a file with a JSON Schema".to_owned());
    }
    let mut bytes = Vec::new();
    fs::File::open(path).and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(format!("is larger than {LARGEST_FILE} bytes: a schema is a short text, is it the right file?"));
    }
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Result<Value, String> {
    let schema: Value = serde_json::from_slice(bytes).map_err(|error| format!("is no JSON: {error}"))?;
    if !schema.is_object() && !schema.is_boolean() {
        return Err("is no schema: it must be a JSON object, such as {\"type\": \"object\"}".to_owned());
    }
    let mut references = 0;
    let depth = depth(&schema, &mut references);
    if depth > DEEPEST {
        return Err(format!(
            "is nested deeper than {DEEPEST} levels: write what is so deep under $defs, and refer to it"
        ));
    }
    if references > MOST_REFERENCES {
        return Err(format!(
            "has {references} references, and {MOST_REFERENCES} may be in a file: spread them over several"
        ));
    }
    match schema.get("$schema").map(|draft| draft.as_str().unwrap_or_default().trim_end_matches('#')) {
        None | Some(DRAFT) => Ok(schema),
        Some(draft) => Err(format!("$schema is {draft:?}: write it for {DRAFT}, or leave it out")),
    }
}

/// How deep it is, which the parser has bounded, and the references in it.
fn depth(value: &Value, references: &mut usize) -> usize {
    match value {
        Value::Object(members) => {
            *references += members.keys().filter(|name| matches!(name.as_str(), "$ref" | "$dynamicRef")).count();
            1 + members.values().map(|value| depth(value, references)).max().unwrap_or_default()
        }
        Value::Array(elements) => 1 + elements.iter().map(|value| depth(value, references)).max().unwrap_or_default(),
        _ => 0,
    }
}
