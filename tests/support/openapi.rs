//! Whether an answer is as the documents of `GET /openapi.json` describe it: its status, its head, and each field of its body.

use std::sync::LazyLock;

use ingestd::internals::{
    config::{Config, CorsConfig, HttpConfig},
    openapi,
};
use serde_json::{Map, Value, json};

/// Fields of any answer, which OpenAPI does not describe.
const OF_THE_TRANSPORT: [&str; 5] = ["content-length", "content-type", "connection", "date", "transfer-encoding"];

pub struct Answered<'a> {
    pub method: &'a str,
    /// With its query, if there is one.
    pub target: &'a str,
    pub status: u16,
    /// Names in small letters.
    pub headers: Vec<(String, String)>,
    pub body: &'a [u8],
}

/// Both documents, of a daemon that leaves nothing out: pages are allowed, and there are keys and a rate.
pub static DOCUMENTS: LazyLock<[Value; 2]> = LazyLock::new(|| {
    let cors = CorsConfig { origins: vec!["*".to_owned()], ..CorsConfig::default() };
    let mut config = Config { http: HttpConfig { cors, ..HttpConfig::default() }, ..Config::default() };
    let key = json!({ "name": "a", "hash": format!("sha256:{}", "0".repeat(64)) });
    config.http.auth.keys = serde_json::from_value(json!([key])).expect("a key");
    config.admin.auth.keys = serde_json::from_value(json!([key])).expect("a key");
    config.http.rate = serde_json::from_value(json!("1/s")).expect("a rate");
    let parsed = |document: Vec<u8>| serde_json::from_slice(&document).expect("it is JSON");
    [parsed(openapi::ingest(&config)), parsed(openapi::admin(&config))]
});

/// Fails where an answer of one of the listeners is not described. What neither has is not ours, a source's, or 404.
#[track_caller]
pub fn check(answered: &Answered<'_>) {
    check_by(&*DOCUMENTS, answered);
}

/// The same by other documents.
#[track_caller]
pub fn check_by(documents: &[Value], answered: &Answered<'_>) {
    let path = answered.target.split('?').next().unwrap_or_default();
    let found = documents.iter().filter_map(|document| Some((document, operations(document, path)?)));
    let found: Vec<_> = found.collect();
    // The listeners share one path, which both have; any other is the other's 404.
    if found.is_empty() || (found.len() == 1 && answered.status == 404 && is_problem(answered)) {
        return;
    }
    let wrong: Vec<String> =
        found.iter().filter_map(|(document, operations)| by(document, operations, answered).err()).collect();
    assert!(
        wrong.len() < found.len(),
        "openapi.json does not describe this answer ({wrong:?}): {} {} {}: {:?} {}",
        answered.method,
        answered.target,
        answered.status,
        answered.headers,
        String::from_utf8_lossy(&answered.body[..answered.body.len().min(2000)])
    );
}

fn is_problem(answered: &Answered<'_>) -> bool {
    media_type(answered) == "application/problem+json"
}

fn media_type<'a>(answered: &'a Answered<'_>) -> &'a str {
    let given = answered.headers.iter().find(|(name, _)| name == "content-type");
    given.map_or("", |(_, value)| value.split(';').next().unwrap_or_default().trim())
}

/// The operations of the path that this one is.
pub fn operations<'a>(document: &'a Value, path: &str) -> Option<&'a Map<String, Value>> {
    let paths = document["paths"].as_object().expect("paths");
    let is = |template: &str| {
        let parts = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
        let (template, path) = (parts(template), parts(path));
        let is_part = |(template, part): (&String, &String)| template == part || template.starts_with('{');
        template.len() == path.len() && template.iter().zip(&path).all(is_part)
    };
    let exact = paths.get(path).or_else(|| paths.iter().find(|(template, _)| is(template)).map(|(_, found)| found));
    exact?.as_object()
}

fn by(document: &Value, operations: &Map<String, Value>, answered: &Answered<'_>) -> Result<(), String> {
    let Some(operation) = operations.get(&answered.method.to_ascii_lowercase()) else {
        let allow = answered.headers.iter().find(|(name, _)| name == "allow").map(|(_, value)| value.as_str());
        let methods = |list: &str| {
            let mut methods: Vec<_> = list.split(", ").map(str::to_ascii_lowercase).collect();
            methods.sort();
            methods
        };
        let mut described: Vec<_> = operations.keys().filter(|method| *method != "options").cloned().collect();
        described.sort();
        return match (answered.status, allow) {
            // The transport's own.
            (400 | 408 | 431, None) if is_problem(answered) => Ok(()),
            // Who may not ask is not told what there is.
            (401 | 403, None) if is_problem(answered) => Ok(()),
            (405, Some(allow)) if methods(allow) == described => Ok(()),
            (405, None) if answered.method == "HEAD" => Ok(()),
            _ => Err(format!("a method that is not described is 405 with Allow: {described:?}")),
        };
    };
    let answer = &operation["responses"][answered.status.to_string()];
    if answer.is_null() {
        return Err("the status is not described".to_owned());
    }
    let described = |name: &str| {
        let headers = answer["headers"].as_object()?;
        let (_, header) = headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        header["$ref"].as_str().map_or(Some(header), |name| document.pointer(name.strip_prefix('#')?))
    };
    for (name, value) in answered.headers.iter().filter(|(name, _)| !OF_THE_TRANSPORT.contains(&name.as_str())) {
        let header = described(name).ok_or_else(|| format!("its header {name} is not described"))?;
        let value = match header["schema"]["type"].as_str() {
            Some("integer") => value.parse::<u64>().map_or_else(|_| Value::from(value.clone()), Value::from),
            _ => Value::from(value.clone()),
        };
        valid(document, &header["schema"], &value, name)?;
    }
    if answered.method == "HEAD" || answered.status == 204 {
        return Ok(());
    }
    match (answer.get("content"), media_type(answered)) {
        (None, "") if answered.body.is_empty() => Ok(()),
        (None, _) => Err("no body is described".to_owned()),
        (Some(content), media_type) => {
            let schema = content.get(media_type).ok_or_else(|| format!("{media_type:?} is not described"))?;
            let is_compressed = answered.headers.iter().any(|(name, _)| name == "content-encoding");
            let is_json = media_type.ends_with("json") && media_type != "application/x-ndjson";
            if is_json && !is_compressed {
                let body = serde_json::from_slice(answered.body).map_err(|error| format!("no JSON: {error}"))?;
                return valid(document, &schema["schema"], &body, "the body");
            }
            Ok(())
        }
    }
}

/// As a schema of ours says it, where each field has to be described.
fn valid(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(name) = schema["$ref"].as_str() {
        let pointer = name.strip_prefix('#').ok_or_else(|| format!("{name} is no part of this document"))?;
        let schema = document.pointer(pointer).ok_or_else(|| format!("there is no {name}"))?;
        return valid(document, schema, value, at);
    }
    let wrong = |what: &str| Err(format!("{at} is {what}: {value} by {schema}"));
    if let Some(schemas) = schema["anyOf"].as_array() {
        let is_one = schemas.iter().any(|schema| valid(document, schema, value, at).is_ok());
        return if is_one { Ok(()) } else { wrong("none of these") };
    }
    if schema.get("const").is_some_and(|only| only != value) {
        return wrong("another constant");
    }
    if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
        return wrong("no such word");
    }
    let is = |name: &str| match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        other => panic!("no type {other} here"),
    };
    let is_type = match &schema["type"] {
        Value::String(name) => is(name),
        Value::Array(names) => names.iter().any(|name| is(name.as_str().expect("a type's name"))),
        _ => true,
    };
    if !is_type {
        return wrong("of another type");
    }
    if value.as_i64().zip(schema["minimum"].as_i64()).is_some_and(|(value, least)| value < least) {
        return wrong("too small");
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        valid(document, &schema["items"], item, &format!("{at}[{index}]"))?;
    }
    let Some(fields) = value.as_object().filter(|_| schema["type"] == "object") else { return Ok(()) };
    for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(required) {
            return wrong(&format!("without {required}"));
        }
    }
    for (name, field) in fields {
        let at = format!("{at}.{name}");
        match (schema["properties"].get(name), &schema["additionalProperties"]) {
            (Some(schema), _) => valid(document, schema, field, &at)?,
            (None, schema @ Value::Object(_)) => valid(document, schema, field, &at)?,
            // What may grow is described all the same: only what has no fields of its own is anything.
            (None, Value::Bool(true)) if schema["properties"].is_null() => {}
            _ => return Err(format!("{at} is not described")),
        }
    }
    Ok(())
}
