//! The documents of `ingestd_aggregates`: each aggregate's definition, and while it is rebuilt that of its `shadow`.
//! `collection` is the name of the buckets' collection behind `aggregate_`, where that is not the aggregate's.

use mongodb::bson::{Document, doc};
use serde_json::Value;

use crate::store::{Definition, Known};

/// The fields of a definition.
pub fn document(definition: &Definition) -> Document {
    let group_by: Vec<String> = serde_json::from_str(&definition.group_by).unwrap_or_default();
    let mut document = doc! { "window_ms": definition.window_ms, "group_by": group_by };
    if !definition.more.is_empty() {
        document.insert("definition", Value::Object(definition.more.clone()).to_string());
    }
    document
}

/// The version that answers.
pub fn active(name: &str, found: &Document) -> Known<String> {
    let place = found.get_str("collection").unwrap_or(name).to_owned();
    Known { definition: definition(found), place }
}

/// The one that is rebuilt; nothing where it does not say where.
pub fn shadow(found: &Document) -> Option<Known<String>> {
    Some(Known { definition: definition(found), place: found.get_str("collection").ok()?.to_owned() })
}

/// As it is known; what is missing in it is as in no definition of ours.
fn definition(found: &Document) -> Definition {
    let names = found.get_array("group_by").map(Vec::as_slice).unwrap_or_default();
    let names: Vec<&str> = names.iter().map(|name| name.as_str().unwrap_or_default()).collect();
    let more = found.get_str("definition").ok().and_then(|more| serde_json::from_str(more).ok());
    Definition {
        window_ms: found.get_i64("window_ms").unwrap_or_default(),
        group_by: Value::from(names).to_string(),
        more: more.unwrap_or_default(),
    }
}
