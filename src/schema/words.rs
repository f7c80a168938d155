//! What is wrong, in sentences: of a schema for its operator, of a value for its sender. Values are not said again.

use std::path::Path;

use jsonschema::{
    ReferencingError, ValidationError,
    error::{TypeKind, ValidationErrorKind as Kind},
    paths::LocationSegment,
};
use serde_json::Value;

use super::{
    Mismatch,
    graph::{self, Unbounded},
};

/// Bytes of a name of a value that is said again, and of what a schema asks for.
const LONGEST_NAME: usize = 64;
const LONGEST_RULE: usize = 120;
/// Of a sentence, with what it takes to say that it is cut: 500 bytes with what is escaped.
pub(super) const LONGEST: usize = 497;
/// Of all names on the way to a value.
const LONGEST_POINTER: usize = 200;

/// Why a schema cannot be compiled.
pub(super) fn unusable(path: &Path, error: &ValidationError<'_>) -> String {
    let path = path.display();
    match error.kind() {
        // What it says names the file.
        Kind::Referencing(ReferencingError::Unretrievable { source, .. }) => format!("{path}: {source}"),
        Kind::Referencing(error) => format!("{path}: a reference cannot be resolved: {error}"),
        Kind::Format { format } if format == "regex" => {
            let at = error.schema_path();
            format!(
                "{path}: the pattern at {:?} cannot be used: it must be a regular expression without look-around and \
                 back-references, which is matched in a time linear in the text, of at most 1 MiB compiled",
                at.as_str()
            )
        }
        _ => {
            let at = error.instance_path();
            format!("{path}: at {:?}: it is no JSON Schema of 2020-12: {}", at.as_str(), short(&error.to_string()))
        }
    }
}

/// Why it is not even tried.
pub(super) fn unbounded(path: &Path, unbounded: Unbounded) -> String {
    let (most, deepest) = (graph::MOST, graph::DEEPEST);
    let rule = match unbounded {
        Unbounded::Unresolved(error) => return unusable(path, &ValidationError::from(error)),
        Unbounded::TooMany => {
            format!(
                "its references multiply to more than {most} schemas, which would all be asked about each event: refer to fewer \
                 from one to the next"
            )
        }
        Unbounded::TooDeep => format!(
            "an event may lead through more than {deepest} of its schemas within each other: refer to fewer from one to \
             the next"
        ),
        Unbounded::Endless => "a reference leads back to the schema in which it stands, about the same value, of \
                               which nothing can be said: take it out"
            .to_owned(),
    };
    format!("{}: {rule}", path.display())
}

/// What is valid JSON for the daemon and not for a tree of it.
pub(super) fn no_json(json: &[u8], error: &serde_json::Error) -> Mismatch {
    let rule = match json.trim_ascii() {
        [] => "there is no data, and a schema is about JSON".to_owned(),
        _ => format!("it must be JSON that can be read as a whole: {error}"),
    };
    at_the_top(rule)
}

pub(super) fn too_large_to_say() -> Mismatch {
    at_the_top(
        "it does not match, and it would take too long to say where (anyOf, oneOf and recursion are explained of less)"
            .to_owned(),
    )
}

fn at_the_top(rule: String) -> Mismatch {
    let nothing = String::new;
    Mismatch {
        pointer: nothing(),
        place: nothing(),
        keyword: "json".to_owned(),
        schema_pointer: "\"\"".to_owned(),
        rule,
    }
}

pub(super) fn mismatch(error: &ValidationError<'_>) -> Mismatch {
    let (member, rule) = rule(error.kind());
    let (mut pointer, mut place) = (String::new(), String::new());
    for segment in error.instance_path() {
        match segment {
            LocationSegment::Property(name) => {
                let name = escaped(&name);
                push(&mut pointer, &name);
                push(&mut place, &name);
            }
            LocationSegment::Index(index) => {
                push(&mut pointer, &index.to_string());
                push(&mut place, "*");
            }
        }
    }
    if let Some(member) = member {
        let member = escaped(member);
        push(&mut pointer, &member);
        push(&mut place, &member);
    }
    let schema_pointer = format!("{:?}", cut(error.schema_path().as_str(), LONGEST_POINTER));
    Mismatch { pointer, place, keyword: error.kind().keyword().to_owned(), schema_pointer, rule }
}

fn push(pointer: &mut String, name: &str) {
    if pointer.len() < LONGEST_POINTER {
        pointer.push('/');
        pointer.push_str(name);
    } else if !pointer.ends_with('…') {
        pointer.push_str("/…");
    }
}

/// A name as it stands in a pointer. One that is long is hardly a name.
fn escaped(name: &str) -> String {
    cut(name, LONGEST_NAME).replace('~', "~0").replace('/', "~1")
}

pub(super) fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(most)])
}

fn short(text: &str) -> String {
    cut(text, 2 * LONGEST_RULE)
}

/// What a schema asks for, as it stands there.
fn wanted(value: &Value) -> String {
    cut(&value.to_string(), LONGEST_RULE)
}

/// What it has to be, and the member that is at fault, where it is not the whole.
fn rule(kind: &Kind) -> (Option<&str>, String) {
    let first = |unexpected: &[String]| match unexpected {
        [] | [_] => "must not be there".to_owned(),
        all => format!("must not be there, nor {} more", all.len() - 1),
    };
    match kind {
        Kind::Required { property } => (property.as_str(), "is missing".to_owned()),
        Kind::AdditionalProperties { unexpected } | Kind::UnevaluatedProperties { unexpected } => {
            (unexpected.first().map(String::as_str), first(unexpected))
        }
        Kind::PropertyNames { error } => {
            (error.instance().as_str(), format!("its name is none that may be there: it {}", rule(error.kind()).1))
        }
        kind => (None, of_whole(kind)),
    }
}

fn of_whole(kind: &Kind) -> String {
    let of = |count: u64, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
    match kind {
        Kind::Type { kind: TypeKind::Single(kind) } => format!("must be of type {kind}"),
        Kind::Type { kind: TypeKind::Multiple(kinds) } => {
            let kinds: Vec<String> = kinds.iter().map(|kind| kind.to_string()).collect();
            format!("must be of type {}", kinds.join(" or "))
        }
        Kind::Constant { expected_value } => format!("must be {}", wanted(expected_value)),
        Kind::Enum { options } => format!("must be one of {}", wanted(options)),
        Kind::Pattern { pattern } => format!("must match the pattern {}", cut(pattern, LONGEST_RULE)),
        Kind::Minimum { limit } => format!("must be at least {limit}"),
        Kind::Maximum { limit } => format!("must be at most {limit}"),
        Kind::ExclusiveMinimum { limit } => format!("must be above {limit}"),
        Kind::ExclusiveMaximum { limit } => format!("must be below {limit}"),
        Kind::MultipleOf { multiple_of } => format!("must be a multiple of {multiple_of}"),
        Kind::MinLength { limit } => format!("must have at least {}", of(*limit, "character", "characters")),
        Kind::MaxLength { limit } => format!("must have at most {}", of(*limit, "character", "characters")),
        Kind::MinItems { limit } => format!("must have at least {}", of(*limit, "element", "elements")),
        Kind::MaxItems { limit } => format!("must have at most {}", of(*limit, "element", "elements")),
        Kind::AdditionalItems { limit } => {
            format!("must have at most {}", of(*limit as u64, "element", "elements"))
        }
        Kind::MinProperties { limit } => format!("must have at least {}", of(*limit, "member", "members")),
        Kind::MaxProperties { limit } => format!("must have at most {}", of(*limit, "member", "members")),
        Kind::Contains => "must have such elements as contains asks for".to_owned(),
        Kind::UniqueItems => "must have no two elements alike".to_owned(),
        Kind::UnevaluatedItems { .. } => "has elements that no keyword allows".to_owned(),
        Kind::FalseSchema => "must not be there".to_owned(),
        Kind::Not { .. } => "is what must not be".to_owned(),
        Kind::AnyOf { .. } => "matches none of the schemas in anyOf".to_owned(),
        Kind::OneOfNotValid { .. } => "matches none of the schemas in oneOf".to_owned(),
        Kind::OneOfMultipleValid { .. } => "matches more than one of the schemas in oneOf".to_owned(),
        // Those of our own.
        Kind::Custom { message, .. } => message.clone(),
        kind => format!("does not match {}", kind.keyword()),
    }
}
