//! What the ingest listener takes and answers, as OpenAPI. What is new at the door gets its lines in the table or function of
//! its kind: media types, codings, fields of a request's head, answers and their fields, codes.

mod auth;
mod logs;
mod rates;

use serde_json::{Map, Value, json};

use super::{coding::Coding, format::Format};
use crate::{
    config::{Config, EventConfig, HttpSource, OnInvalidTime},
    event::Code,
    openapi::{
        self, JSON, Operation, PROBLEM, answer, array, count, get, header, methods, object, one_of, parameter, passing,
        problem, reference, text,
    },
};

/// Why one event is refused.
const CODES: &[Code] = &[
    Code::InvalidJson,
    Code::NotAnObject,
    Code::MissingType,
    Code::InvalidType,
    Code::InvalidId,
    Code::InvalidTimestamp,
    Code::InvalidProtobuf,
    Code::InvalidCloudevent,
    Code::TooLarge,
    Code::ForbiddenType,
    Code::UnknownType,
    Code::Schema,
];
/// The code of a valid event that could not be stored for a passing reason.
const UNAVAILABLE: &str = "unavailable";

/// The document, as the listener is configured.
pub fn document(config: &Config) -> Vec<u8> {
    let mut paths = Map::new();
    let mut add = |path: &str, operations| _ = paths.insert(path.to_owned(), of_pages(config, operations));
    add("/v1/events", methods([("post", post_events(config))]));
    add("/v1/logs", methods([("post", logs::post(config))]));
    add("/health", get(health()));
    add(openapi::PATH, get(openapi::own().answer(503, passing("Too much is being handled (http.max_in_flight)."))));
    for (index, source) in config.http.source.iter().enumerate() {
        add(&source.path, methods([("post", post_to_source(config, index, source))]));
    }
    let description = "Events are taken by POST, and answered with 2xx when they are safe. docs/design.md, 9, and the README say \
                       what to do with each answer.";
    let headers = headers_of_pages().filter(|_| has_pages(config)).collect();
    openapi::document("ingestd: events", description, paths, schemas(config), headers, auth::schemes(config))
}

/// What any request with events may be answered.
fn post(config: &Config, id: &str, what: &str, description: &str, source: Option<&HttpSource>) -> Operation {
    let http = &config.http;
    let too_large = format!(
        "The body is larger than {} bytes (http.max_body), as it came or inflated, or has more than {} events \
         (http.max_events).",
        http.max_body.0, http.max_events
    );
    let unavailable = "The queue cannot be reached, the disk is full, the daemon starts or stops, or too much is being \
                       handled: send all again, later.";
    let operation = with_trace(Operation::new(id, what, description))
        .parameter(content_encoding())
        .answer(413, problem(&too_large))
        .answer(415, problem("The media type, its charset or the coding is none that is taken."))
        .answer(500, problem("A fault of this daemon."))
        .answer(503, passing(unavailable));
    let accepted = header("The codings that are taken (RFC 9110, 15.5.16).", &text("A list of codings."));
    let operation = operation.header(415, "Accept-Encoding", &accepted);
    match source {
        Some(source) => auth::of_source(config, source, operation),
        None => auth::secured(config, operation),
    }
}

/// Which trace a request that brings events may be a part of.
fn with_trace(operation: Operation) -> Operation {
    let word = json!({ "type": "string" });
    let parent = "W3C Trace Context: a header of each of the request's records. One that is malformed is ignored.";
    operation.parameter(parameter("header", "traceparent", parent, &word)).parameter(parameter(
        "header",
        "tracestate",
        "The same, with a traceparent: at most 512 characters.",
        &word,
    ))
}

fn content_encoding() -> Value {
    let codings: Vec<&str> = Coding::ACCEPTED.split(", ").chain(["identity"]).collect();
    let in_any_case = |name: &str| {
        let letter = |letter: char| match letter {
            'a'..='z' => format!("[{letter}{}]", letter.to_ascii_uppercase()),
            other => other.to_string(),
        };
        name.chars().map(letter).collect::<String>()
    };
    let names: Vec<String> = codings.iter().chain(&["x-gzip"]).map(|name| in_any_case(name)).collect();
    let schema = json!({ "type": "string", "pattern": format!("^({})?$", names.join("|")), "examples": codings });
    parameter("header", "Content-Encoding", "How the body is compressed: one of these, in any case.", &schema)
}

/// `Prefer`, of the paths that answer with a summary.
fn prefer(operation: Operation) -> Operation {
    preferences(operation).header(207, "Retry-After", &openapi::retry_after())
}

fn preferences(operation: Operation) -> Operation {
    let description = "RFC 7240. handling=strict: one wrong event, and nothing is stored. handling=lenient: each event has its \
                       own result, also where it could not be stored for a passing reason. return=positions (not at /v1/logs): the \
                       answer says where the events stand in the log, unless they wait in the buffer for Kafka.";
    let schema = json!({ "type": "string", "examples": ["handling=strict", "handling=lenient", "return=positions"] });
    let applied = header("Which of the preferences was honoured.", &json!({ "type": "string" }));
    operation
        .parameter(parameter("header", "Prefer", description, &schema))
        .header_of_all("Preference-Applied", &applied)
}

const ALL_SAFE: &str = "All events are durable, or kept as dead letters (event.on_invalid).";
const SOME_SAFE: &str = "Some events are durable, and the others stand in `errors`.";

/// `POST /v1/events`.
fn post_events(config: &Config) -> Operation {
    let summary = reference("Summary");
    let mut operation = post(config, "postEvents", "Stores events", "", None)
        .body(
            true,
            "One event or many. Without a Content-Type it is application/json. With ce-specversion it is data, of \
             any media type but those of CloudEvents, whatever else stands here.",
            bodies(config),
        )
        .answer(200, answer(ALL_SAFE, JSON, &summary))
        .answer(207, answer(SOME_SAFE, JSON, &summary))
        .answer(400, refused());
    for (name, description) in [
        (
            "ce-specversion",
            "1.0. With it the body is the data of one CloudEvent (binary mode), of any media type but those of CloudEvents: \
             ce-type, ce-source and ce-id stand beside it.",
        ),
        ("ce-type", "The type of that event: 1 to 128 characters."),
        ("ce-source", "Its source: the client."),
        ("ce-id", "Its id: 1 to 256 characters."),
        ("ce-time", "Its time."),
    ] {
        operation = operation.parameter(parameter("header", name, description, &json!({ "type": "string" })));
    }
    rates::limited(config, prefer(operation))
}

/// A path of `[[http.source]]`: bodies of other people's shape.
fn post_to_source(config: &Config, index: usize, source: &HttpSource) -> Operation {
    let summary = reference("Summary");
    // Its own words for a success, where it has some, and the summary for whoever prefers something.
    let success = |description| {
        let mut success = answer(description, JSON, &summary);
        match source.answer.as_deref().map(|own| (own, serde_json::from_str::<Value>(own))) {
            None => {}
            Some((_, Ok(own))) => {
                success["content"][JSON]["schema"] = json!({ "anyOf": [{ "const": own }, summary.clone()] });
            }
            Some((own, Err(_))) => success["content"]["text/plain"] = json!({ "schema": { "const": own } }),
        }
        success
    };
    let events = match &source.records {
        None => "The body is one event.".to_owned(),
        Some(records) if records.names().is_empty() => "The body is an array of events, or one, or several.".to_owned(),
        Some(records) => format!("The events are the elements of the array at {:?} (RFC 6901).", records.to_string()),
    };
    let description = format!("JSON, whatever it is called. {events}");
    let mut body = Map::new();
    body.insert("*/*".to_owned(), json!({}));
    let operation = post(
        config,
        &format!("postToSource{index}"),
        "Stores events of another shape",
        "[[http.source]]",
        Some(source),
    )
    .body(true, &description, body)
    .answer(200, success(ALL_SAFE))
    .answer(207, success(SOME_SAFE))
    .answer(400, refused());
    rates::limited(config, prefer(operation))
}

/// Each media type with what a body of it holds.
fn bodies(config: &Config) -> Map<String, Value> {
    let mut events = array(reference("Event"));
    events["maxItems"] = config.http.max_events.into();
    let cloud_event = reference("CloudEvent");
    let mut bodies = Map::new();
    for (format, media_type) in Format::NAMED {
        let schema = match format {
            Format::Json => json!({ "oneOf": [reference("Event"), events] }),
            Format::Ndjson => text("A JSON object a line; empty lines are none."),
            Format::CloudEvent => cloud_event.clone(),
            Format::CloudEvents => array(cloud_event.clone()),
            Format::Data => continue,
        };
        bodies.insert(media_type.to_owned(), json!({ "schema": schema }));
    }
    if has_pages(config) {
        let text = text("What application/json takes, from a page whose origin is allowed (http.cors.origins).");
        bodies.insert("text/plain".to_owned(), json!({ "schema": text }));
    }
    bodies
}

/// 400 says what is wrong with each event, or with the whole.
fn refused() -> Value {
    let description = "None of the events is valid, or handling=strict and one is not; or the body as a whole is none.";
    let mut refused = answer(description, JSON, &reference("Summary"));
    refused["content"][PROBLEM] = problem("")["content"][PROBLEM].clone();
    refused
}

fn schemas(config: &Config) -> Map<String, Value> {
    [("Event", event(&config.event)), ("CloudEvent", cloud_event(&config.event)), ("Summary", summary())]
        .into_iter()
        .chain(logs::schemas())
        .map(|(name, schema)| (name.to_owned(), schema))
        .collect()
}

/// A string of 1 to so many characters.
fn string(longest: u32, description: &str) -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": longest, "description": description })
}

/// An event's fields, as the configuration calls them.
fn event(fields: &EventConfig) -> Value {
    let mut id = string(256, "The client's own id; without one, or with null, the server assigns it.");
    id["type"] = json!(["string", "null"]);
    let mut event = object(
        &[(&fields.type_field, string(128, "The event's type."))],
        &[
            (&fields.id_field, id),
            (&fields.time_field, time(fields, "RFC 3339, or a number since 1970", &["string", "number", "null"])),
            (&fields.client_field, json!({ "description": "Who sent it: also the record's key." })),
        ],
    );
    event["description"] = "Any JSON object with a type; all else is carried as it is.".into();
    event["additionalProperties"] = true.into();
    event
}

/// When an event happened. What cannot be read as that is taken all the same, whatever it is, and named in `warnings`, unless that
/// is to be refused: then these types may be times.
fn time(fields: &EventConfig, what: &str, times: &[&str]) -> Value {
    let code = Code::InvalidTimestamp.as_str();
    let (types, otherwise) = match fields.on_invalid_time {
        OnInvalidTime::Reject => (Some(times), format!("Anything else is refused: {code} (event.on_invalid_time).")),
        OnInvalidTime::Receipt => (
            None,
            format!(
                "Anything else is taken, counted by when it is received, and named in `warnings`: {code} \
                 (event.on_invalid_time)."
            ),
        ),
    };
    let description = format!("When it happened: {what}. Without one, when it is received. {otherwise}");
    let mut schema = json!({ "description": description, "examples": ["2026-11-23T08:00:00.5Z"] });
    if let Some(types) = types {
        schema["type"] = json!(types);
    }
    schema
}

/// The JSON form of a CloudEvent, 1.0.
fn cloud_event(fields: &EventConfig) -> Value {
    // An attribute that is null is as good as none.
    let maybe = |description: &str| json!({ "type": ["string", "null"], "description": description });
    let base64 = json!({
        "type": ["string", "null"],
        "contentEncoding": "base64",
        "pattern": BASE64,
        "description": "Data that is no JSON; then there is no `data`.",
    });
    let mut event = object(
        &[
            ("specversion", json!({ "const": "1.0" })),
            ("type", string(128, "The event's type.")),
            ("source", json!({ "type": "string", "minLength": 1, "description": "The client." })),
            ("id", string(256, "The event's id.")),
        ],
        &[
            ("time", time(fields, "RFC 3339, or a number since 1970", &["string", "number", "null"])),
            ("subject", maybe("What in the source it is about.")),
            ("dataschema", maybe("The URI of the data's schema.")),
            ("datacontenttype", maybe("The media type of the data; not that of a CloudEvent.")),
            ("partitionkey", extension("The record's key; without one, the source is.")),
            ("data", json!({ "description": "Any JSON." })),
            ("data_base64", base64),
        ],
    );
    event["description"] =
        "CloudEvents 1.0 in its JSON format, with any extensions: as many as make 128 attributes.".into();
    event["propertyNames"] = json!({ "pattern": "^([a-z0-9]+|data_base64)$" });
    event["additionalProperties"] = true.into();
    // What all others may be stands where validators read it alone: as `additionalProperties`, generators have `data` be one of
    // these as well.
    let known: Map<String, Value> = event["properties"]
        .as_object()
        .into_iter()
        .flat_map(Map::keys)
        .map(|name| (name.clone(), true.into()))
        .collect();
    let others = json!({ "properties": known, "additionalProperties": extension("An extension.") });
    event["dependentSchemas"] = json!({ "specversion": others });
    event["not"] =
        json!({ "required": ["data", "data_base64"], "properties": { "data_base64": { "type": "string" } } });
    event
}

/// The value of an attribute that CloudEvents does not define.
fn extension(description: &str) -> Value {
    json!({ "type": ["string", "integer", "boolean", "null"], "description": description })
}

/// Base64 as a regular expression of ECMA 262: with its padding or without, and no bits in it that stand for nothing.
const BASE64: &str = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]={0,2}|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=?)?$";

/// What became of each event.
fn summary() -> Value {
    let codes: Vec<&str> = CODES.iter().map(|code| code.as_str()).chain([UNAVAILABLE]).collect();
    let index = || count("The event's place in the request, from 0; empty lines are none.");
    let error = object(
        &[
            ("index", index()),
            ("code", one_of(&codes, "Why it was not stored.")),
            ("message", text("What is wrong, and what it has to be.")),
        ],
        &[("retry", json!({ "const": true, "description": "The reason passes: send this event again." }))],
    );
    let warning = object(
        &[
            ("index", index()),
            ("code", one_of(&[Code::InvalidTimestamp.as_str()], "What was not taken as it was meant.")),
            ("message", text("What is wrong, and what was done.")),
        ],
        &[],
    );
    object(
        &[
            ("accepted", count("Events that are durable.")),
            ("rejected", count("Events that are not stored.")),
            ("ids", array(text("The ids of the accepted events, in order: the client's own, or assigned."))),
        ],
        &[
            (
                "positions",
                array(text(
                    "With return=positions: PARTITION:OFFSET of the last of the accepted events in each partition, by \
                     partition; `after` of the admin listener's queries takes them.",
                )),
            ),
            ("quarantined", count("Events that are wrong and are kept as dead letters (event.on_invalid).")),
            ("errors", array(error)),
            ("warnings", array(warning)),
        ],
    )
}

/// `GET /health`.
fn health() -> Operation {
    Operation::new("health", "Whether events are accepted, for load balancers", "")
        .answer(200, json!({ "description": "They are." }))
        .answer(503, passing("They are not: the admin listener's /health/ready says why."))
}

/// Whether there are pages of other origins that may send.
fn has_pages(config: &Config) -> bool {
    !config.http.cors.origins.is_empty()
}

/// What answers say of pages of other origins.
fn headers_of_pages() -> impl Iterator<Item = (String, Value)> {
    [
        ("Access-Control-Allow-Origin", "The page's origin, where it is allowed (http.cors.origins)."),
        ("Access-Control-Allow-Credentials", "`true` where the origin is allowed: beacons are sent with credentials."),
        ("Access-Control-Expose-Headers", "What the page may read of the head."),
        ("Vary", "Other pages may be answered otherwise."),
    ]
    .into_iter()
    .map(|(name, description)| (name.to_owned(), header(description, &json!({ "type": "string" }))))
}

/// The path, where there are such pages with a browser's question, and with what answers say of them.
fn of_pages(config: &Config, mut path: Value) -> Value {
    if !has_pages(config) {
        return path;
    }
    let id = path.as_object().and_then(|path| path.values().find_map(|operation| operation["operationId"].as_str()));
    let id = format!("{}Preflight", id.unwrap_or_default().trim_end_matches("Head"));
    path["options"] = preflight(&id);
    let operations = path.as_object_mut().into_iter().flat_map(|path| path.values_mut());
    for answer in
        operations.filter_map(|operation| operation["responses"].as_object_mut()).flat_map(|all| all.values_mut())
    {
        for (name, _) in headers_of_pages() {
            answer["headers"][&name] = json!({ "$ref": format!("#/components/headers/{name}") });
        }
    }
    path
}

/// What a browser asks before a page may send what a form could not.
fn preflight(id: &str) -> Value {
    let string = json!({ "type": "string" });
    let field = |name, description| parameter("header", name, description, &string);
    // Without one of the first two it is no such question, and is not refused for that.
    let operation = Operation::new(id, "A browser asks whether a page may send (CORS)", "")
        .parameter(field("Origin", "The page's."))
        .parameter(field("Access-Control-Request-Method", "What it is to send."))
        .parameter(field("Access-Control-Request-Headers", "Names of fields that it is to have, at most 1,024 bytes."))
        .parameter(field("Access-Control-Request-Private-Network", "`true`: from a public network into a private one."))
        .answer(204, json!({ "description": "The page may." }))
        .answer(403, problem("The origin is not in http.cors.origins."))
        .answer(405, problem("It is no such question: Origin or Access-Control-Request-Method is missing."));
    let operation = [
        ("Access-Control-Allow-Methods", "What the paths take."),
        ("Access-Control-Allow-Headers", "What was asked for."),
        ("Access-Control-Allow-Private-Network", "`true`, where it was asked for."),
        ("Access-Control-Max-Age", "Seconds for which the answer holds (http.cors.max_age)."),
    ]
    .into_iter()
    .fold(operation, |operation, (name, description)| operation.header(204, name, &header(description, &string)));
    let allow = header("The methods that the path takes.", &string);
    methods([("options", operation.header(405, "Allow", &allow))])["options"].take()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::CorsConfig;

    fn parsed(config: &Config) -> Value {
        serde_json::from_slice(&document(config)).unwrap()
    }

    #[test]
    fn every_path_that_is_served_is_described_and_no_other() {
        let routes = include_str!("handler.rs");
        let served: BTreeSet<_> =
            routes.split("web::resource(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        let document = parsed(&Config::default());
        let described: BTreeSet<_> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(described, served);
    }

    #[test]
    fn every_code_is_described() {
        // A new one does not compile here: it belongs into `CODES`, too.
        let place = |code: Code| match code {
            Code::InvalidJson => 0,
            Code::NotAnObject => 1,
            Code::MissingType => 2,
            Code::InvalidType => 3,
            Code::InvalidId => 4,
            Code::InvalidTimestamp => 5,
            Code::InvalidProtobuf => 6,
            Code::InvalidCloudevent => 7,
            Code::TooLarge => 8,
            Code::ForbiddenType => 9,
            Code::UnknownType => 10,
            Code::Schema => 11,
        };
        let places: Vec<_> = CODES.iter().map(|code| place(*code)).collect();
        assert_eq!(places, (0..=11).collect::<Vec<_>>());
        let described = &summary()["properties"]["errors"]["items"]["properties"]["code"]["enum"];
        assert_eq!(described.as_array().unwrap().len(), CODES.len() + 1);
    }

    #[test]
    fn it_is_of_the_configuration_in_force() {
        let mut config = Config::default();
        (config.event.type_field, config.http.max_events) = ("kind".to_owned(), 17);
        let sources = json!([
            { "path": "/hook", "records": "/alerts", "type": { "fixed": "alert" } },
            { "path": "/2/httpapi", "answer": "{\"code\":200}" },
            { "path": "/said", "answer": "ok" },
        ]);
        config.http.source = serde_json::from_value(sources).unwrap();
        let plain = parsed(&config);
        assert_eq!(plain["components"]["schemas"]["Event"]["required"], json!(["kind"]));
        let post = |document: &Value| document["paths"]["/v1/events"]["post"].clone();
        let success = |path: &str| plain["paths"][path]["post"]["responses"]["200"]["content"].clone();
        assert_eq!(success("/hook"), json!({ JSON: { "schema": reference("Summary") } }));
        let own = json!({ "anyOf": [{ "const": { "code": 200 } }, reference("Summary")] });
        assert_eq!(success("/2/httpapi"), json!({ JSON: { "schema": own } }));
        let said = json!({ "schema": { "const": "ok" } });
        assert_eq!(success("/said"), json!({ "text/plain": said, JSON: { "schema": reference("Summary") } }));
        assert!(plain["paths"]["/hook"]["post"]["requestBody"]["description"].as_str().unwrap().contains("/alerts"));
        let body = &post(&plain)["requestBody"]["content"];
        assert_eq!(body["application/json"]["schema"]["oneOf"][1]["maxItems"], 17);
        assert!(body.get("text/plain").is_none() && plain["paths"]["/v1/events"].get("options").is_none());
        assert!(!plain.to_string().contains("Access-Control"), "no page is allowed anything");

        config.http.cors = CorsConfig { origins: vec!["*".to_owned()], ..CorsConfig::default() };
        let of_pages = parsed(&config);
        assert!(post(&of_pages)["requestBody"]["content"].get("text/plain").is_some());
        for (path, operations) in of_pages["paths"].as_object().unwrap() {
            let operations = operations.as_object().unwrap();
            assert!(operations.contains_key("options"), "{path}");
            for answer in operations.values().flat_map(|operation| operation["responses"].as_object().unwrap().values())
            {
                assert!(answer["headers"].get("Access-Control-Allow-Origin").is_some(), "{path}: {answer}");
            }
        }
    }

    #[test]
    fn a_time_is_described_as_what_is_taken_for_one() {
        let types = |on_invalid_time, schema: &str, field: &str| {
            let event = EventConfig { on_invalid_time, ..EventConfig::default() };
            let document = parsed(&Config { event, ..Config::default() });
            document["components"]["schemas"][schema]["properties"][field].clone()
        };
        let [taken, refused] =
            [OnInvalidTime::Receipt, OnInvalidTime::Reject].map(|it| types(it, "Event", "timestamp"));
        assert!(
            taken.get("type").is_none() && taken["description"].as_str().unwrap().contains("`warnings`"),
            "{taken}"
        );
        assert_eq!(refused["type"], json!(["string", "number", "null"]));
        assert!(refused["description"].as_str().unwrap().contains("refused: invalid_timestamp"), "{refused}");
        let [taken, refused] =
            [OnInvalidTime::Receipt, OnInvalidTime::Reject].map(|it| types(it, "CloudEvent", "time"));
        assert!(taken.get("type").is_none(), "{taken}");
        assert_eq!(refused["type"], json!(["string", "number", "null"]));
    }

    #[test]
    fn each_operation_has_an_id_of_its_own() {
        let mut config = Config::default();
        config.http.cors.origins = vec!["*".to_owned()];
        config.http.source = serde_json::from_value(json!([{ "path": "/a" }, { "path": "/b" }])).unwrap();
        let document = parsed(&config);
        let paths = document["paths"].as_object().unwrap().values();
        let ids: Vec<_> = paths
            .flat_map(|path| path.as_object().unwrap().values())
            .map(|operation| operation["operationId"].as_str().unwrap())
            .collect();
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
    }
}
