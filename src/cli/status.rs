//! `ingestd status`: what a running daemon says of itself, on one page.

use std::{fmt::Write as _, process::ExitCode};

use clap::Args;
use serde_json::Value;

use super::{Options, endpoint::Endpoint, load, print};
use crate::names::exit;

#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    endpoint: Endpoint,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Ends with 0 where the daemon is ready, and with 1 where it is not, or does not answer.
pub(super) fn status(options: Options, command: &Status) -> ExitCode {
    let config = match load(&options.and_then(command.options.clone()).sources()) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let client = match command.endpoint.client(&config) {
        Ok(Some(client)) => client,
        Ok(None) => {
            return failed(2, "admin.listen has a port that is chosen at the start: say where it is by --admin URL");
        }
        Err((exit, why)) => return failed(exit, &why),
    };
    let page = match client.status() {
        Ok(page) => page,
        Err(error) => return failed(exit::FAILURE, &error.to_string()),
    };
    let printed = print(&if command.json { page.to_string() } else { text(&page) });
    if page["ready"] == true { printed } else { ExitCode::from(exit::FAILURE) }
}

fn failed(exit: u8, why: &str) -> ExitCode {
    eprintln!("ingestd status: {why}");
    ExitCode::from(exit)
}

/// The page for people. What a newer daemon says beside it is in the JSON.
fn text(page: &Value) -> String {
    let word = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let mut lines = String::new();
    let mut line = |name: &str, value: String| _ = writeln!(lines, "{name:<11}{value}");
    let state = match (page["ready"] == true, page["degraded"] == true) {
        (true, false) => "ready",
        (true, true) => "ready, degraded",
        (false, _) => "not ready",
    };
    line("state", state.to_owned());
    if let Some(why) = page["refusing_events"].as_str() {
        line("refusing", why.to_owned());
    }
    line(
        "version",
        format!(
            "{} ({}), pid {}, up {}",
            word(&page["version"]),
            word(&page["commit"]),
            page["pid"],
            word(&page["uptime"])
        ),
    );
    let roles: Vec<String> = page["roles"].as_array().into_iter().flatten().map(word).collect();
    line("roles", roles.join(", "));
    line("queue", format!("{}, topic {}", word(&page["queue"]["kind"]), word(&page["queue"]["topic"])));
    line("archive", word(&page["archive"]));
    line("store", word(&page["store"]));
    let events = ["accepted", "produced", "archived", "aggregated", "dead_lettered"];
    let events = events.map(|name| format!("{} {}", page["events"][name], name.replace('_', " ")));
    line("events", events.join(", "));
    for lag in page["lag"].as_array().into_iter().flatten().filter(|lag| lag["records"] != 0) {
        let (sink, topic) = (word(&lag["sink"]), word(&lag["topic"]));
        line("lag", format!("{sink}, {topic} {}: {} records", lag["partition"], lag["records"]));
    }
    let disk = &page["disk"];
    line("disk", format!("{} % used, events are refused from {} % on", disk["used_percent"], disk["max_used_percent"]));
    let parts = |name: &str| page[name].as_object().cloned().unwrap_or_default();
    for (name, dependency) in parts("dependencies").iter().filter(|(_, it)| it["available"] != true) {
        line("away", format!("{name}: {}", word(&dependency["reason"])));
    }
    for (name, actor) in parts("actors").iter().filter(|(_, it)| !it["reason"].is_null()) {
        line("actor", format!("{name} is {}: {}", word(&actor["state"]), word(&actor["reason"])));
    }
    for halted in page["halted"].as_array().into_iter().flatten() {
        let at = format!("{}, {} {}", word(&halted["sink"]), word(&halted["topic"]), halted["partition"]);
        line("halted", format!("{at}: {}; {}", word(&halted["reason"]), word(&halted["do"])));
    }
    for (listener, tls) in parts("tls").iter().filter(|(_, it)| !it["warning"].is_null()) {
        line("tls", format!("{listener}: {}", word(&tls["warning"])));
    }
    // Reasons quote what came from outside: nothing of it drives the terminal.
    let shown = lines.trim_end().chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_wrong_stands_on_the_page_and_what_is_right_takes_no_line() {
        let well = json!({
            "version": "0.1.0", "commit": "abc", "pid": 7, "uptime": "1m", "roles": ["ingestor"], "ready": true, "degraded": false,
            "refusing_events": null, "queue": { "kind": "kafka", "topic": "events" }, "archive": "s3://a", "store": "mongodb",
            "events": { "accepted": 3, "produced": 3, "archived": 2, "aggregated": 1, "dead_lettered": 0 },
            "lag": [{ "sink": "archive", "topic": "events", "partition": 0, "records": 0 }],
            "disk": { "used_percent": 12.5, "max_used_percent": 70.0 }, "tls": { "http": { "warning": null } },
            "dependencies": { "kafka": { "available": true, "reason": null } },
            "actors": { "ingestor": { "state": "running", "reason": null } }, "halted": [],
        });
        let page = text(&well);
        assert!(page.starts_with("state      ready\nversion    0.1.0 (abc), pid 7, up 1m\n"), "{page}");
        assert!(
            page.contains("\nevents     3 accepted, 3 produced, 2 archived, 1 aggregated, 0 dead lettered\n"),
            "{page}"
        );
        assert_eq!(page.lines().count(), 8, "{page}");
        let mut ill = well;
        ill["ready"] = false.into();
        ill["refusing_events"] = "the disk is full".into();
        ill["lag"][0]["records"] = 5.into();
        ill["dependencies"]["kafka"] = json!({ "available": false, "reason": "re\u{1b}fused" });
        ill["actors"]["ingestor"] = json!({ "state": "paused", "reason": "why" });
        ill["halted"] = json!([{ "sink": "archive", "topic": "t", "partition": 1, "reason": "a hole", "do": "look" }]);
        ill["tls"]["http"]["warning"] = "ends soon".into();
        let page = text(&ill);
        for line in [
            "state      not ready",
            "refusing   the disk is full",
            "lag        archive, events 0: 5 records",
            "away       kafka: re\u{fffd}fused",
            "actor      ingestor is paused: why",
            "halted     archive, t 1: a hole; look",
            "tls        http: ends soon",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
    }
}
