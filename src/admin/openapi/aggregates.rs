//! The aggregates' answers.

use serde_json::{Value, json};

use crate::{
    config::Config,
    moment::DURATION,
    openapi::{JSON, Operation, answer, array, count, header, object, one_of, parameter, passing, problem, text},
};

/// What each answer has that a client may keep.
fn kept(operation: Operation) -> Operation {
    let word = json!({ "type": "string" });
    [200, 304].into_iter().fold(
        operation
            .parameter(parameter("header", "If-None-Match", "Tags of answers that the client has.", &word))
            .answer(304, json!({ "description": "The client has it." })),
        |operation, status| {
            operation
                .header(status, "ETag", &header("Strong: of the content.", &word))
                .header(status, "Cache-Control", &header("no-cache: late events may still come.", &word))
                .header(status, "Vary", &header("By what the answer was chosen.", &word))
        },
    )
}

pub fn list() -> Operation {
    let measure = object(
        &[
            ("function", one_of(&["sum", "min", "max", "avg", "unique", "top"], "What is measured.")),
            ("field", text("Of which field: a name, or a JSON pointer.")),
        ],
        &[
            ("k", count("So many of the most frequent values.")),
            ("relative_error", json!({ "type": "number", "description": "The relative standard error of unique." })),
            (
                "error",
                json!({ "type": "number", "description": "The largest error of a count of top, as a share of all values." }),
            ),
        ],
    );
    let aggregate = object(
        &[
            ("name", text("Its name.")),
            ("window", text("How long a window is.")),
            ("group_by", array(text("A field."))),
            ("measures", array(text("A label, as rows have it; `count` is in each row."))),
            ("max_groups", count("Of a window; all others are one group, \"…other\".")),
        ],
        &[
            ("time_zone", text("Whose days the windows are.")),
            (
                "filter",
                json!({ "type": "object", "additionalProperties": true, "description": "Which events are counted." }),
            ),
            ("retention", text("How long windows are kept.")),
            (
                "about",
                json!({ "type": "object", "additionalProperties": measure, "description": "What the labels stand for." }),
            ),
        ],
    );
    let listed = object(&[("aggregates", array(aggregate))], &[]);
    kept(
        Operation::new("aggregates", "The aggregates that can be asked", "")
            .answer(200, answer("In the order of the configuration.", JSON, &listed))
            .answer(400, problem("There is a parameter."))
            .answer(404, problem("There is no store in this process.")),
    )
}

/// A row of an answer.
fn row() -> Value {
    let item = object(&[("value", json!({})), ("count", count("About how often."))], &[]);
    let any = json!({ "type": ["number", "null", "array"], "items": item });
    object(
        &[
            ("window_start", json!({ "type": "string", "format": "date-time" })),
            ("group", json!({ "type": "object", "additionalProperties": true })),
            ("count", count("Events.")),
        ],
        &[
            (
                "measures",
                json!({ "type": "object", "additionalProperties": any, "description": "By label; null where there was no number." }),
            ),
            (
                "errors",
                json!({ "type": "object", "additionalProperties": { "type": "integer" }, "description": "By how much a count of top may be wrong, where it may." }),
            ),
            ("inexact", count("Numbers that are in no measure: too large, or of too many places.")),
        ],
    )
}

pub fn rows(config: &Config) -> Operation {
    let names: Vec<&str> = config.aggregate.iter().map(|aggregate| aggregate.name.as_str()).collect();
    let word = json!({ "type": "string" });
    let rows = object(
        &[
            ("aggregate", text("Its name.")),
            ("window", text("How long a window is.")),
            ("step", text("How long a step is; all: the whole range.")),
            ("rows", array(row())),
        ],
        &[
            ("from", text("The first step's start.")),
            ("to", text("The first step's that is not asked for; none where there is no end.")),
            ("truncated", json!({ "const": true, "description": "There is more than the limit, or than 32 MiB." })),
            ("next", text("The cursor of the next page.")),
        ],
    );
    let mut answers = answer("The rows.", JSON, &rows);
    answers["content"]["application/x-ndjson"] = json!({ "schema": text("A row a line.") });
    answers["content"]["text/csv"] = json!({ "schema": text("A header line, and a row a line (RFC 4180).") });
    let condition = json!({ "type": "string", "pattern": "^[^:]+:", "examples": ["type:login_failed"] });
    let limit = json!({ "type": "integer", "minimum": 1, "maximum": 1_000_000, "default": 10_000 });
    let operation = [
        ("from", "The first step's start; without it, an hour before `to`.", super::moment("-1h")),
        ("to", "The first step's that is not asked for; without it, the one behind the present.", super::moment("now")),
        (
            "step",
            "What is one row: a multiple of the window, or all.",
            json!({ "type": "string", "pattern": format!("^(all|{DURATION})$"), "examples": ["5m", "1d", "all"] }),
        ),
        ("group_by", "Some of the fields, separated by commas or repeated; empty: none.", array(word.clone())),
        ("where", "field:value; several of one field: any of them.", array(condition)),
        ("order", "window, count, or a measure's label; with - before it the largest first.", word.clone()),
        ("limit", "The most rows.", limit),
        ("cursor", "`next` of the page before.", word.clone()),
        ("format", "Without it, Accept decides.", json!({ "type": "string", "enum": ["json", "csv", "ndjson"] })),
        super::after(),
    ]
    .into_iter()
    .fold(
        Operation::new("rows", "An aggregate's rows", "By window and group, or in the order that is asked for.")
            .parameter(parameter("path", "name", "The aggregate's.", &json!({ "type": "string", "examples": names }))),
        |operation, (name, description, schema)| operation.parameter(parameter("query", name, description, &schema)),
    );
    kept(operation.answer(200, answers))
        .header(200, "Link", &header("The next page, where there is one.", &word))
        .answer(400, problem("A parameter is wrong, or there is none of its name."))
        .answer(404, problem("There is no such aggregate, or no store in this process."))
        .answer(409, problem("A partition of `after` is not counted by this process."))
        .answer(422, problem("The query costs more than it may; the detail says how to ask for less."))
        .answer(500, problem("The store refuses the query."))
        .answer(503, passing("The store cannot be reached, or others are being answered."))
}
