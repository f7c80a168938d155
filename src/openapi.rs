//! OpenAPI 3.1: what the listeners' documents are made of. Each listener describes its routes beside them (`openapi` in its
//! own folder), by the configuration in force. Answers are written as they go and not from types, so a description is one,
//! too; that it says what is answered is what the tests compare, with each answer that they get.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::config::Config;

pub const PROBLEM: &str = "application/problem+json";
pub const JSON: &str = "application/json";

/// The path of a listener's own document.
pub const PATH: &str = "/openapi.json";

/// A listener's document, written once for each configuration: anybody may ask for it, and writing it takes a while.
pub struct Document {
    write: fn(&Config) -> Vec<u8>,
    latest: ArcSwapOption<(Arc<Config>, Bytes)>,
}

impl Document {
    pub fn new(write: fn(&Config) -> Vec<u8>) -> Self {
        Self { write, latest: ArcSwapOption::empty() }
    }

    /// By this configuration.
    pub fn of(&self, config: &Arc<Config>) -> Bytes {
        if let Some(latest) = &*self.latest.load()
            && Arc::ptr_eq(&latest.0, config)
        {
            return latest.1.clone();
        }
        let document = Bytes::from((self.write)(config));
        self.latest.store(Some(Arc::new((config.clone(), document.clone()))));
        document
    }
}

/// A whole document, of these paths, schemas, and headers that many answers have.
pub fn document(
    title: &str,
    description: &str,
    mut paths: Map<String, Value>,
    mut schemas: Map<String, Value>,
    mut headers: Map<String, Value>,
    security_schemes: Map<String, Value>,
) -> Vec<u8> {
    schemas.insert("Problem".to_owned(), problem_schema());
    paths.values_mut().filter_map(Value::as_object_mut).flat_map(Map::values_mut).for_each(with_request_id);
    headers.insert(REQUEST_ID.to_owned(), request_id());
    let sent = "What the request is called, in its answer and in the log: 1 to 128 letters, digits and . _ - : / + = @. Any other \
                is replaced; no request is refused for it.";
    let parameters = json!({ REQUEST_ID: parameter("header", REQUEST_ID, sent, &json!({ "type": "string" })) });
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": env!("CARGO_PKG_VERSION"),
            "description": description,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": { "schemas": schemas, "headers": headers, "parameters": parameters },
    });
    if !security_schemes.is_empty() {
        document["components"]["securitySchemes"] = security_schemes.into();
    }
    document.to_string().into_bytes()
}

const REQUEST_ID: &str = "X-Request-Id";

/// What each answer has of it.
fn request_id() -> Value {
    let description = "The request's own, where that was well-formed, or else a new one.";
    header(description, &json!({ "type": "string", "pattern": "^[A-Za-z0-9._:/+=@-]{1,128}$" }))
}

/// Any request may bring one, and each answer has one.
fn with_request_id(operation: &mut Value) {
    let sent = json!({ "$ref": format!("#/components/parameters/{REQUEST_ID}") });
    match operation.get_mut("parameters").and_then(Value::as_array_mut) {
        Some(parameters) => parameters.push(sent),
        None => operation["parameters"] = json!([sent]),
    }
    let answers = operation.get_mut("responses").and_then(Value::as_object_mut);
    for answer in answers.into_iter().flat_map(Map::values_mut) {
        answer["headers"][REQUEST_ID] = json!({ "$ref": format!("#/components/headers/{REQUEST_ID}") });
    }
}

/// How a request may say whose it is: each of them will do.
pub const KEY_SCHEMES: [&str; 3] = ["bearer", "basic", "apiKey"];

/// Where a key may stand.
pub fn key_schemes() -> Map<String, Value> {
    let schemes = KEY_SCHEMES.map(|name| {
        let mut scheme = match name {
            "apiKey" => json!({ "type": "apiKey", "in": "header", "name": "X-Api-Key" }),
            scheme => json!({ "type": "http", "scheme": scheme }),
        };
        scheme["description"] = match name {
            "basic" => "The key is the password; the user may be anything.".into(),
            _ => "The key as `ingestd key new` printed it.".into(),
        };
        (name.to_owned(), scheme)
    });
    schemes.into_iter().collect()
}

/// What an answer to a request without a right key has.
pub fn challenge() -> Value {
    header("How a key is sent (RFC 9110, 11.6.1): a field each.", &text("A challenge."))
}

/// What is refused as a whole (RFC 9457).
fn problem_schema() -> Value {
    let mut schema = object(
        &[
            ("type", json!({ "const": "about:blank" })),
            ("title", text("The status's own phrase.")),
            ("status", json!({ "type": "integer", "description": "The answer's status." })),
            ("detail", text("What is wrong, where, and what to do: one sentence for people.")),
        ],
        &[("code", text("Why a body is refused, where single events are refused for the same: one of their codes."))],
    );
    schema["description"] = "An answer about the whole request (RFC 9457).".into();
    schema
}

/// An operation that is still to be described.
pub struct Operation(Value);

impl Operation {
    /// With the refusals that any request may get from the transport below the routes.
    pub fn new(id: &str, summary: &str, description: &str) -> Self {
        let responses = json!({
            "400": problem("The request is no valid HTTP/1.1, or its body ended before all that its head announced."),
            "408": problem("The head, or the body, did not arrive in time."),
            "431": problem("The head is larger than 32 KiB, or has more than 96 fields."),
        });
        let mut operation = json!({ "operationId": id, "summary": summary, "responses": responses });
        if !description.is_empty() {
            operation["description"] = description.into();
        }
        Self(operation)
    }

    pub fn parameter(mut self, parameter: Value) -> Self {
        match self.0.get_mut("parameters").and_then(Value::as_array_mut) {
            Some(parameters) => parameters.push(parameter),
            None => self.0["parameters"] = json!([parameter]),
        }
        self
    }

    /// A body, as these media types.
    pub fn body(mut self, required: bool, description: &str, content: Map<String, Value>) -> Self {
        self.0["requestBody"] = json!({ "required": required, "description": description, "content": content });
        self
    }

    /// The answer with this status, in the place of one that was there.
    pub fn answer(mut self, status: u16, answer: Value) -> Self {
        self.0["responses"][status.to_string()] = answer;
        self
    }

    /// A header that each answer may have.
    pub fn header_of_all(mut self, name: &str, header: &Value) -> Self {
        if let Some(answers) = self.0["responses"].as_object_mut() {
            answers.values_mut().for_each(|answer| answer["headers"][name] = header.clone());
        }
        self
    }

    /// A header that an answer of this status may have.
    pub fn header(mut self, status: u16, name: &str, header: &Value) -> Self {
        self.0["responses"][status.to_string()]["headers"][name] = header.clone();
        self
    }

    /// Each of these schemes will do.
    pub fn secured(mut self, schemes: &[&str]) -> Self {
        let each = schemes.iter().map(|scheme| json!({ *scheme: [] }));
        self.0["security"] = each.collect();
        self
    }

    /// It may have one of these, or none in its head.
    pub fn secured_perhaps(mut self) -> Self {
        if let Some(security) = self.0["security"].as_array_mut() {
            security.push(json!({}));
        }
        self
    }

    /// The same, as HEAD asks it: answers have no bodies.
    fn head(&self) -> Value {
        let mut head = self.0.clone();
        let id = head["operationId"].as_str().unwrap_or_default().to_owned();
        head["operationId"] = format!("{id}Head").into();
        if let Some(responses) = head["responses"].as_object_mut() {
            responses.values_mut().filter_map(Value::as_object_mut).for_each(|answer| _ = answer.remove("content"));
        }
        head
    }
}

/// A path that takes GET and HEAD.
pub fn get(operation: Operation) -> Value {
    json!({ "head": operation.head(), "get": operation.0 })
}

/// A path's operations, by their methods in small letters.
pub fn methods<const N: usize>(operations: [(&str, Operation); N]) -> Value {
    operations.into_iter().map(|(method, operation)| (method.to_owned(), operation.0)).collect()
}

/// A parameter of this kind (`path`, `query` or `header`).
pub fn parameter(kind: &str, name: &str, description: &str, schema: &Value) -> Value {
    json!({ "in": kind, "name": name, "required": kind == "path", "description": description, "schema": schema })
}

/// A header of an answer.
pub fn header(description: &str, schema: &Value) -> Value {
    json!({ "description": description, "schema": schema })
}

/// `Retry-After`.
pub fn retry_after() -> Value {
    header("Seconds after which another try is worth while.", &json!({ "type": "integer", "minimum": 1 }))
}

/// An answer with a body of this media type.
pub fn answer(description: &str, media_type: &str, schema: &Value) -> Value {
    json!({ "description": description, "content": { media_type: { "schema": schema } } })
}

/// A refusal.
pub fn problem(description: &str) -> Value {
    answer(description, PROBLEM, &reference("Problem"))
}

/// A refusal that passes: it says when to come again.
pub fn passing(description: &str) -> Value {
    let mut answer = problem(description);
    answer["headers"]["Retry-After"] = retry_after();
    answer
}

pub fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

pub fn text(description: &str) -> Value {
    json!({ "type": "string", "description": description })
}

pub fn count(description: &str) -> Value {
    json!({ "type": "integer", "minimum": 0, "description": description })
}

pub fn one_of(words: &[&str], description: &str) -> Value {
    json!({ "type": "string", "enum": words, "description": description })
}

pub fn array(items: Value) -> Value {
    json!({ "type": "array", "items": items })
}

/// An object with these properties: those that it always has, and those that it may have.
pub fn object(always: &[(&str, Value)], maybe: &[(&str, Value)]) -> Value {
    let properties: Map<String, Value> =
        always.iter().chain(maybe).map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    let required: Vec<&str> = always.iter().map(|(name, _)| *name).collect();
    json!({ "type": "object", "required": required, "properties": properties })
}

/// The document itself, which each listener serves.
pub fn own() -> Operation {
    let document = object(
        &[
            ("openapi", text("The version of OpenAPI.")),
            ("info", json!({ "type": "object", "additionalProperties": true })),
            ("paths", json!({ "type": "object", "additionalProperties": true })),
            ("components", json!({ "type": "object", "additionalProperties": true })),
        ],
        &[],
    );
    Operation::new("openapi", "This document", "It describes this listener as it is configured at present.")
        .answer(200, answer("OpenAPI 3.1.", JSON, &document))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{event::Code, http::Problem};

    #[test]
    fn the_described_problem_is_the_one_that_is_answered() {
        let with_code = Problem { code: Some(Code::InvalidJson), ..Problem::bad_request("why") };
        let answered: Value = serde_json::from_str(&with_code.json()).unwrap();
        let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(names(&problem_schema()["properties"]), names(&answered));
        let plain: Value = serde_json::from_str(&Problem::bad_request("why").json()).unwrap();
        let required: BTreeSet<_> = problem_schema()["required"]
            .as_array()
            .unwrap()
            .iter()
            .map(|name| name.as_str().unwrap().to_owned())
            .collect();
        assert_eq!(required, names(&plain));
    }

    #[test]
    fn any_request_may_be_called_something_and_each_answer_says_it() {
        let operation = || Operation::new("a", "A", "").answer(200, answer("It.", JSON, &text("It.")));
        let named = operation().parameter(parameter("query", "q", "Q.", &text("Q.")));
        let paths = [("/a", get(operation())), ("/b", methods([("post", named)]))];
        let paths = paths.map(|(path, operations)| (path.to_owned(), operations)).into_iter().collect();
        let document: Value =
            serde_json::from_slice(&document("", "", paths, Map::new(), Map::new(), Map::new())).unwrap();
        let found = |reference: &Value| document.pointer(&reference["$ref"].as_str().unwrap()[1..]).cloned().unwrap();
        for (path, method, parameters) in [("/a", "get", 1), ("/a", "head", 1), ("/b", "post", 2)] {
            let operation = &document["paths"][path][method];
            let all = operation["parameters"].as_array().unwrap();
            assert_eq!((all.len(), &found(&all[parameters - 1])["name"]), (parameters, &json!("X-Request-Id")));
            for answer in operation["responses"].as_object().unwrap().values() {
                assert!(found(&answer["headers"]["X-Request-Id"])["schema"]["pattern"].is_string(), "{answer}");
            }
        }
    }

    #[test]
    fn what_head_answers_is_what_get_does_without_a_body() {
        let path = get(Operation::new("a", "A", "").answer(200, answer("It.", JSON, &text("It."))));
        assert_eq!((&path["get"]["operationId"], &path["head"]["operationId"]), (&json!("a"), &json!("aHead")));
        assert!(path["get"]["responses"]["200"].get("content").is_some());
        let head = path["head"]["responses"].as_object().unwrap();
        assert!(head.len() == 4 && head.values().all(|answer| answer.get("content").is_none()), "{head:?}");
    }

    #[test]
    fn a_document_is_written_once_for_each_configuration() {
        let document = Document::new(|config| config.http.max_events.to_string().into_bytes());
        let [first, second] = [1, 2].map(|most| {
            let mut config = Config::default();
            config.http.max_events = most;
            Arc::new(config)
        });
        let written = document.of(&first);
        assert_eq!((&written[..], document.of(&first).as_ptr()), (&b"1"[..], written.as_ptr()));
        assert_eq!(document.of(&second), "2");
        assert_eq!(document.of(&first), "1");
    }
}
