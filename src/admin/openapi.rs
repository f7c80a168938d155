//! What the admin listener answers, as OpenAPI.

mod aggregates;
mod rebuild;

use serde_json::{Map, Value, json};

use crate::{
    admin::auth,
    config::Config,
    event, moment,
    openapi::{
        self, JSON, KEY_SCHEMES, Operation, answer, array, challenge, count, get, header, key_schemes, methods, object,
        one_of, parameter, passing, problem, reference, text,
    },
};

/// The document.
pub fn document(config: &Config) -> Vec<u8> {
    let paths = [
        ("/", get(page())),
        ("/assets/{name}", get(asset())),
        ("/health/live", get(live())),
        ("/health/ready", get(ready())),
        ("/metrics", get(metrics())),
        ("/status", get(status())),
        ("/reload", methods([("post", reload())])),
        ("/v1/aggregates", get(aggregates::list())),
        ("/v1/aggregates/{name}", get(aggregates::rows(config))),
        ("/v1/aggregates/{name}/rebuild", rebuild::path(config)),
        ("/v1/events", get(events())),
        ("/v1/dead-letters", letters()),
        ("/v1/dead-letters/replay", methods([("post", replay(config))])),
        // Its parts are an id.
        ("/v1/dead-letters/{topic}/{partition}/{offset}", get(letter())),
        ("/v1/live", methods([("get", stream())])),
        (openapi::PATH, get(openapi::own())),
    ];
    let mut paths: Map<_, _> = paths.into_iter().map(|(path, operations)| (path.to_owned(), operations)).collect();
    paths.values_mut().for_each(refuse_pages);
    let mut security_schemes = Map::new();
    let mut description = "For operators: health, metrics, queries and dead letters. It asks for no key, as there are none in \
                           admin.auth.keys. docs/design.md, 9, has the metrics.";
    if !config.admin.auth.keys.is_empty() {
        description = "For operators: health, metrics, queries and dead letters. docs/design.md, 9, has the metrics.";
        security_schemes = key_schemes();
        let needing = paths.iter_mut().filter(|(path, _)| !auth::is_open(&path.replace("{name}", "main.js")));
        needing.for_each(|(_, operations)| secure(operations));
    }
    openapi::document("ingestd: operators", description, paths, schemas(), Map::new(), security_schemes)
}

/// None of these is done for a page of another origin.
fn refuse_pages(operations: &mut Value) {
    for (method, operation) in operations.as_object_mut().into_iter().flatten() {
        let looks = matches!(method.as_str(), "get" | "head");
        let why = if looks {
            "Its Host may be a page's of another site."
        } else {
            "A page of another origin sent it, its Host may be one's of another site, or the key may only look (access in \
             admin.auth.keys)."
        };
        operation["responses"]["403"] = problem(why);
        if method == "head" {
            operation["responses"]["403"].as_object_mut().map(|answer| answer.remove("content"));
        }
    }
}

/// Each of these needs a key.
fn secure(operations: &mut Value) {
    for (method, operation) in operations.as_object_mut().into_iter().flatten() {
        operation["security"] = KEY_SCHEMES.map(|scheme| json!({ scheme: [] })).into();
        let answers = &mut operation["responses"];
        answers["401"] = problem("There is no key, or it is wrong, or has expired.");
        answers["401"]["headers"]["WWW-Authenticate"] = challenge();
        if method == "head" {
            answers["401"].as_object_mut().map(|answer| answer.remove("content"));
        }
    }
}

/// What an answer of the dashboard has in its head.
fn protected(operation: Operation) -> Operation {
    let word = json!({ "type": "string" });
    let fields = [
        ("Content-Security-Policy", "What the page may load, and from where: from here."),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("Cache-Control", "no-cache"),
        ("ETag", "Of the content."),
        ("Vary", "accept-encoding"),
    ];
    let unchanged = json!({ "description": "It is the one that If-None-Match names." });
    let operation = operation
        .parameter(parameter("header", "Accept-Encoding", "gzip is given.", &word))
        .parameter(parameter("header", "If-None-Match", "What the client has.", &word))
        .answer(304, unchanged)
        .header(200, "Content-Encoding", &header("gzip, where it is taken.", &word));
    fields.into_iter().fold(operation, |operation, (name, what)| {
        let field = header(what, &word);
        operation.header(200, name, &field).header(304, name, &field)
    })
}

fn page() -> Operation {
    let page = Operation::new("dashboard", "The dashboard", "A page for a browser. It needs no key: it asks for one.");
    protected(page.answer(200, answer("The page.", "text/html", &text("HTML."))))
}

fn asset() -> Operation {
    let mut files = answer("The file.", "text/javascript", &text("A script."));
    files["content"]["text/css"] = json!({ "schema": text("A style sheet.") });
    files["content"]["text/plain"] = json!({ "schema": text("The licence of a part.") });
    files["content"]["image/svg+xml"] = json!({ "schema": text("A picture.") });
    let operation = Operation::new("asset", "A part of the dashboard", "")
        .parameter(parameter("path", "name", "The file's.", &json!({ "type": "string", "examples": ["main.js"] })))
        .answer(200, files)
        .answer(404, problem("There is no such file."));
    protected(operation)
}

fn stream() -> Operation {
    let word = json!({ "type": "string" });
    Operation::new(
        "liveStream",
        "Status and counters, each second",
        "Server-sent events, whose data is one line of JSON each: what /status has, `time` (milliseconds since 1970), `counters` \
         (`rejected` and `quarantined` by code, `consumed` by sink, `restarts` by actor, `answers` by status) and `latency` (pairs of a bound in \
         seconds, null at the end, and the number of requests that took at most so long). A stream ends after ten minutes.",
    )
    .answer(200, answer("The events.", "text/event-stream", &text("retry: and data: lines.")))
    .header(200, "Cache-Control", &header("no-store", &word))
    .header(200, "X-Content-Type-Options", &header("nosniff", &word))
    .header(200, "X-Accel-Buffering", &header("no", &word))
    .answer(503, passing("There are as many streams as there may be."))
}

fn live() -> Operation {
    Operation::new("live", "Whether the process answers", "")
        .answer(200, answer("It does.", JSON, &object(&[("live", json!({ "const": true }))], &[])))
}

fn ready() -> Operation {
    Operation::new("ready", "Whether this process does its work, and what is wrong", "")
        .answer(200, answer("It is ready, maybe degraded.", JSON, &reference("Readiness")))
        .answer(503, answer("It is not.", JSON, &reference("Readiness")))
}

fn metrics() -> Operation {
    let mut formats = answer(
        "OpenMetrics 1.0, or Prometheus's text format where Accept prefers it.",
        "application/openmetrics-text",
        &text("Ends with # EOF."),
    );
    formats["content"]["text/plain"] = json!({ "schema": text("Version 0.0.4.") });
    let word = json!({ "type": "string" });
    Operation::new("metrics", "Metrics for a scraper", "")
        .parameter(parameter("header", "Accept-Encoding", "gzip is given.", &word))
        .answer(200, formats)
        .header(200, "Content-Encoding", &header("gzip, where it is taken.", &word))
        .header(200, "Vary", &header("By what the answer was chosen.", &word))
}

fn status() -> Operation {
    Operation::new("status", "One page for people", "Its fields may grow.")
        .answer(200, answer("Version, roles, lag, disk and counters.", JSON, &reference("Status")))
}

fn reload() -> Operation {
    let keys = || array(text("A key, dotted."));
    let reloaded = object(&[("applied", keys()), ("needs_restart", keys())], &[]);
    Operation::new("reload", "Reads the configuration anew", "A bad one changes nothing.")
        .answer(200, answer("What changed, and what changes with the next start.", JSON, &reloaded))
        .answer(422, problem("The configuration is bad: nothing changed."))
        .answer(503, passing("The daemon is stopping."))
}

fn events() -> Operation {
    let word = json!({ "type": "string" });
    let limit = json!({
        "type": "integer", "minimum": 1, "maximum": super::events::MAX_LIMIT, "default": super::events::DEFAULT_LIMIT,
    });
    let mut operation =
        Operation::new("events", "Processed events, the newest first", "Where they are kept (store.events).");
    for (name, description, schema) in [
        ("id", "With this id.", word.clone()),
        ("client", "Of this client.", word.clone()),
        ("type", "Of this type.", word.clone()),
        ("from", "Of this time or later.", moment("-1h")),
        ("to", "Of an earlier time, which is not before `from`.", moment("now")),
        ("limit", "The most events of a page.", limit),
        ("cursor", "The `next` of the page before.", word.clone()),
        after(),
    ] {
        operation = operation.parameter(parameter("query", name, description, &schema));
    }
    let time = |description: &str| json!({ "type": "string", "format": "date-time", "description": description });
    let event = object(
        &[
            ("id", maybe_text("The event's id.")),
            ("type", text("Its type.")),
            ("client", maybe_text("Its client.")),
            ("time", time("Its time, by which it is counted.")),
            ("received", time("When it was received.")),
            ("topic", text("Where its record stands.")),
            ("generation", count("Of the topic.")),
            ("partition", count("The record's.")),
            ("offset", count("The record's.")),
        ],
        &[
            ("event", json!({ "description": "The event; of a CloudEvent its data." })),
            ("raw", text("What is no JSON.")),
            ("raw_base64", text("What is no text.")),
            (
                "omitted",
                json!({ "const": true, "description": "The archive alone has it: it is too large for the store." }),
            ),
            ("attributes", json!({ "type": "object", "additionalProperties": word })),
        ],
    );
    let page =
        object(&[("events", array(event))], &[("next", text("The cursor of the next page, where there is one."))]);
    operation
        .answer(200, answer("A page.", JSON, &page))
        .answer(400, problem("A parameter is wrong, or there is none of its name."))
        .answer(404, problem("No events are kept, or there is no store in this process."))
        .answer(409, problem("A partition of `after` is not counted by this process."))
        .answer(500, problem("The store refuses the query."))
        .answer(503, passing("The store cannot be reached, others are being answered, or `after` is not counted yet."))
}

/// A time in a query.
fn moment(example: &str) -> Value {
    json!({ "type": "string", "pattern": moment::pattern(), "examples": ["2026-11-23T08:00:00Z", example] })
}

/// The positions that a query waits for.
pub(super) fn after() -> (&'static str, &'static str, Value) {
    let description = "Answered once this record is counted: PARTITION:OFFSET, such as 0:17, of a request's positions.";
    // With a pattern, tools that make up requests would make up positions, and wait for records that never come.
    ("after", description, array(json!({ "type": "string" })))
}

/// Which letters are meant.
fn selected(mut operation: Operation, limit: usize) -> Operation {
    let word = json!({ "type": "string" });
    let number = json!({ "type": "integer", "minimum": 0, "maximum": i32::MAX });
    for (name, description, schema) in [
        ("from", "Found at or after it: a time, or so long ago.", moment("-2h")),
        ("to", "Found before it.", moment("now")),
        ("reason", "With this reason.", word.clone()),
        ("partition", "Of records of this partition.", number),
        ("id", "This letter.", array(word)),
        ("all", "The closed ones, too; without a value it is true.", switch()),
        (
            "limit",
            "The most letters.",
            json!({ "type": "integer", "minimum": 1, "maximum": 100_000, "default": limit }),
        ),
    ] {
        operation = operation.parameter(parameter("query", name, description, &schema));
    }
    operation
        .answer(400, problem("A parameter is wrong, there is none of its name, or none says which letters."))
        .answer(404, problem("A letter that was named does not exist; nothing was done."))
        .answer(503, passing("The letters cannot be reached, or another operation is running."))
}

/// A parameter that is true where it is there without a value.
fn switch() -> Value {
    json!({ "type": "string", "enum": ["true", "false", ""], "default": "false" })
}

/// That not all of them are there.
fn truncated() -> (&'static str, Value) {
    ("truncated", json!({ "const": true, "description": "There are more." }))
}

fn letters() -> Value {
    let listed = object(&[("dead_letters", array(reference("DeadLetter")))], &[truncated()]);
    let purged = object(&[("purged", array(text("A letter's id.")))], &[truncated()]);
    let list = Operation::new("deadLetters", "Lists dead letters, the oldest first", "");
    let list = selected(list, 100).answer(200, answer("The letters.", JSON, &listed));
    let purge = Operation::new("purge", "Removes dead letters", "Some parameter must say which.");
    let purge = selected(purge, 10_000).answer(200, answer("What was removed.", JSON, &purged));
    let mut path = get(list);
    path["delete"] = methods([("delete", purge)])["delete"].take();
    path
}

fn replay(config: &Config) -> Operation {
    let ids = || array(text("A letter's id."));
    let refused =
        object(&[("id", text("The letter's.")), ("reason", text("A code.")), ("message", text("What is wrong."))], &[]);
    let replayed = object(&[("replayed", ids()), ("already", ids()), ("refused", array(refused))], &[truncated()]);
    let longest = event::longest_envelope(config.http.max_event);
    let too_large =
        format!("The value is larger than {longest} bytes, as an event's envelope may be (http.max_event).");
    let mut body = Map::new();
    body.insert("application/octet-stream".to_owned(), json!({}));
    selected(Operation::new("replay", "Appends dead letters to the log again", "Each once, whatever is tried."), 10_000)
        .body(false, "The corrected value of the one letter that `id` names.", body)
        .answer(200, answer("What became of each.", JSON, &replayed))
        .answer(413, problem(&too_large))
        .answer(415, problem("A corrected value is sent as application/octet-stream."))
}

fn letter() -> Operation {
    let part = |name, description, schema: &Value| parameter("path", name, description, schema);
    Operation::new("deadLetter", "One dead letter with its bytes", "")
        .parameter(part("topic", "The first part of its id.", &json!({ "type": "string" })))
        .parameter(part("partition", "The second.", &json!({ "type": "integer", "minimum": 0 })))
        .parameter(part("offset", "The third: an offset, or a UUID.", &json!({ "type": "string" })))
        .answer(200, answer("The letter.", JSON, &reference("FullDeadLetter")))
        .answer(404, problem("There is no such letter."))
        .answer(503, passing("The letters cannot be reached, or another operation is running."))
}

fn schemas() -> Map<String, Value> {
    [
        ("Readiness", readiness()),
        ("Status", status_page()),
        ("DeadLetter", dead_letter(&[])),
        ("FullDeadLetter", dead_letter(&bytes_of_letter())),
    ]
    .into_iter()
    .map(|(name, schema)| (name.to_owned(), schema))
    .collect()
}

fn maybe_text(description: &str) -> Value {
    json!({ "type": ["string", "null"], "description": description })
}

/// What readiness and the status page have in common: actors, dependencies and halted partitions.
fn parts() -> [(&'static str, Value); 5] {
    let flag = |description: &str| json!({ "type": "boolean", "description": description });
    let states = ["starting", "running", "paused", "failing", "restarting", "stopped"];
    let actor = object(&[("state", one_of(&states, "What it does.")), ("reason", maybe_text("Why."))], &[]);
    let dependency = object(&[("available", flag("Whether it can be used.")), ("reason", maybe_text("Why not."))], &[]);
    let halted = object(
        &[
            ("sink", text("archive or aggregate.")),
            ("topic", text("The topic.")),
            ("partition", count("The partition.")),
            ("reason", text("Why it stands still.")),
            ("do", text("What you can do.")),
        ],
        &[],
    );
    [
        ("ready", flag("It does what it is there for.")),
        ("degraded", flag("Something is not as it should be.")),
        ("actors", json!({ "type": "object", "additionalProperties": actor })),
        ("dependencies", json!({ "type": "object", "additionalProperties": dependency })),
        ("halted", array(halted)),
    ]
}

/// The reasons are for those who have a key, where there are any.
fn readiness() -> Value {
    let [ready, degraded, reasons @ ..] = parts();
    object(&[ready, degraded], &reasons)
}

fn status_page() -> Value {
    let number = |description: &str| json!({ "type": "number", "description": description });
    let lag = object(
        &[
            ("sink", text("archive or aggregate.")),
            ("topic", text("The topic.")),
            ("partition", count("The partition.")),
            ("records", count("From the durable position to the log's end.")),
        ],
        &[],
    );
    let events: Vec<_> = ["accepted", "produced", "archived", "aggregated", "dead_lettered"]
        .map(|name| (name, count("Since the process started.")))
        .into();
    let mut rates = object(
        &[
            ("seconds", number("Over so many.")),
            ("accepted", number("Events a second that were answered with 2xx.")),
            ("produced", number("That the queue acknowledged.")),
            ("archived", number("In confirmed objects.")),
            ("aggregated", number("Counted durably.")),
        ],
        &[],
    );
    rates["type"] = json!(["object", "null"]);
    let disk = ["used_percent", "max_used_percent", "resume_percent"].map(|name| (name, number("Of data.dir's.")));
    let own = [
        ("version", text("Of ingestd.")),
        ("commit", text("That it was built from.")),
        ("pid", count("The process's.")),
        ("roles", array(text("An actor."))),
        ("uptime", text("For people.")),
        ("uptime_seconds", count("The same.")),
        ("config_file", maybe_text("The one that was read.")),
        ("data_dir", text("data.dir.")),
        ("queue", object(&[("kind", text("queue.kind.")), ("topic", text("With its generation."))], &[])),
        ("archive", text("archive.url.")),
        ("store", text("store.kind.")),
        ("refusing_events", maybe_text("Why, where events are refused.")),
        ("events", object(&events, &[])),
        ("rates", rates),
        ("lag", array(lag)),
        ("tls", object(&[("http", listener_tls()), ("admin", listener_tls())], &[])),
        ("disk", object(&disk, &[])),
        ("resident_memory_bytes", count("0 where it is not known.")),
        ("spool_bytes", count("Of sealed segments.")),
    ];
    let mut page = object(&[&own[..], &parts()].concat(), &[]);
    page["additionalProperties"] = true.into();
    page
}

/// What a listener's TLS says of itself.
fn listener_tls() -> Value {
    let mut tls = object(
        &[
            ("certificate", text("Whose it is.")),
            (
                "not_after",
                json!({ "type": "string", "format": "date-time", "description": "When it, or the first of its chain, ends." }),
            ),
            ("days_left", json!({ "type": "integer", "description": "Until then; below 0 it has ended." })),
            ("client_certificates", json!({ "type": "boolean", "description": "Whether clients have to show one." })),
            ("warning", maybe_text("What to do, where it ends soon, or does not hold.")),
        ],
        &[],
    );
    tls["type"] = json!(["object", "null"]);
    tls
}

/// A letter without its bytes, and what else it has.
fn dead_letter(more: &[(&'static str, Value)]) -> Value {
    let time = |description: &str| json!({ "type": "string", "format": "date-time", "description": description });
    let always = [
        ("id", text("topic/partition/offset, or topic.ingest/0/UUID of what the ingestor was sent and did not take.")),
        ("state", one_of(&["open", "replayed", "purged"], "What was done with it.")),
        ("reason", text("A code.")),
        ("message", text("What is wrong.")),
        ("time", time("When it was found.")),
        ("received", time("The record's, or when the request came.")),
        ("topic", text("The record's, or the one that it was meant for.")),
        ("generation", count("Of the topic.")),
        ("partition", count("The record's.")),
        ("size", count("Of the value.")),
    ];
    let offset = ("offset", count("The record's; a letter of a request has none."));
    let omitted =
        ("value_omitted", json!({ "const": true, "description": "The value is too large: the archive has it." }));
    let (headers, others): (Vec<_>, Vec<_>) = more.iter().cloned().partition(|(name, _)| *name == "headers");
    object(&[&always[..], &headers].concat(), &[&[offset, omitted][..], &others].concat())
}

fn bytes_of_letter() -> [(&'static str, Value); 5] {
    let header = object(
        &[("name", text("Its name."))],
        &[("value", maybe_text("As text.")), ("base64", text("What is no text."))],
    );
    [
        ("key", text("As text.")),
        ("key_base64", text("What is no text.")),
        ("value", text("As text.")),
        ("value_base64", text("What is no text.")),
        ("headers", array(header)),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_path_that_is_served_is_described_and_no_other() {
        let routes = include_str!("../admin.rs");
        let served: BTreeSet<_> = ["only(\"", "web::resource(\""]
            .into_iter()
            .flat_map(|made| routes.split(made).skip(1))
            .filter_map(|rest| rest.split('"').next())
            .map(|path| path.replace("{id:.+}", "{topic}/{partition}/{offset}"))
            .collect();
        let document: Value = serde_json::from_slice(&document(&Config::default())).unwrap();
        let described: BTreeSet<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(described, served);
    }
}
