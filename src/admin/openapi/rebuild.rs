//! Rebuilds of aggregates.

use serde_json::{Value, json};

use crate::{
    config::Config,
    openapi::{JSON, Operation, answer, array, count, get, methods, object, one_of, parameter, passing, problem, text},
};

pub fn path(config: &Config) -> Value {
    let names: Vec<&str> = config.aggregate.iter().map(|aggregate| aggregate.name.as_str()).collect();
    let of_one = |operation: Operation| {
        operation
            .parameter(parameter("path", "name", "The aggregate's.", &json!({ "type": "string", "examples": names })))
            .answer(400, problem("A parameter is wrong, or there is none of its name."))
            .answer(503, passing("The store, or the archive, cannot be reached."))
    };
    let show = Operation::new("rebuild", "How far the last rebuild of an aggregate is", "")
        .answer(200, answer("The rebuild that is under way, or the one before.", JSON, &progress()))
        .answer(404, problem("There is no such aggregate, or no store in this process."));
    let begin = [
        ("from", "The first window's start; without it, the archive's.", super::moment("-7d")),
        ("to", "The first window's that is not rebuilt; without it there is none. It is after `from`.", super::moment("now")),
        (
            "drop",
            "Lose what was counted of windows that are not rebuilt, where it cannot be kept, since window, time_zone or \
             group_by has changed.",
            json!({ "type": "boolean", "default": false }),
        ),
    ]
    .into_iter()
    .fold(
        Operation::new(
            "beginRebuild",
            "Has an aggregate counted anew, from the archive",
            "By the definition that is configured, beside the old buckets, which answer until the new ones are complete and take \
             their place.",
        ),
        |operation, (name, description, schema)| operation.parameter(parameter("query", name, description, &schema)),
    )
    .answer(200, answer("It was under way already.", JSON, &progress()))
    .answer(202, answer("It has begun.", JSON, &progress()))
    .answer(404, problem("There is no such aggregate, or no store in this process."))
    .answer(409, problem("There is no archive, another range is being rebuilt, or something would be lost (`drop`)."));
    let cancelled = object(&[("aggregate", text("Its name.")), ("state", one_of(&["cancelled"], "It is over."))], &[]);
    let cancel = Operation::new("cancelRebuild", "Cancels a rebuild", "The old buckets go on answering.")
        .answer(200, answer("It is cancelled.", JSON, &cancelled))
        .answer(404, problem("It is not being rebuilt, or there is no such aggregate, or no store in this process."));
    let mut path = get(of_one(show));
    let mut others = methods([("post", of_one(begin)), ("delete", of_one(cancel))]);
    for method in ["post", "delete"] {
        path[method] = others[method].take();
    }
    path
}

fn progress() -> Value {
    let time = |description: &str| json!({ "type": "string", "format": "date-time", "description": description });
    let partition = object(
        &[("partition", count("Its number.")), ("records", count("That were read from the archive."))],
        &[
            (
                "state",
                one_of(&["history", "catching", "live"], "Whether it is read from the archive, or counted live."),
            ),
            ("cursor", count("The next record of it.")),
            ("end", count("The next record to be counted live; what lies before is counted in the old buckets.")),
        ],
    );
    object(
        &[
            ("aggregate", text("Its name.")),
            ("state", one_of(&["none", "running", "done"], "There was none, it is under way, or over.")),
        ],
        &[
            ("started", time("When it was asked for.")),
            ("finished", time("When the new buckets took the old ones' place.")),
            ("from", time("The first window that is rebuilt.")),
            ("to", time("The first one that is not.")),
            ("partitions", array(partition)),
            ("records", count("That were read from the archive.")),
            ("records_per_second", json!({ "type": "number", "minimum": 0, "description": "Of them." })),
            ("remaining_seconds", json!({ "type": "number", "minimum": 0, "description": "As far as can be said." })),
            ("waiting", text("Why it does not go on at present; it tries again by itself.")),
        ],
    )
}
