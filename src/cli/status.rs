//! `ingestd status`: what a running daemon says of itself, on one page, once or again and again.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::{Value, json};

use super::{
    Options,
    endpoint::{Endpoint, failed},
    print,
    terminal::{harmless, harmless_json, one_line},
    watch::{self, Screen},
};
use crate::{log::dead_letters::client::AdminClient, names::exit, position::Timestamp};

#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    endpoint: Endpoint,
    /// Print JSON; with --watch one a line
    #[arg(long)]
    json: bool,
    /// Look again and again until Ctrl-C: on a terminal on one screen, elsewhere a line each
    #[arg(long)]
    watch: bool,
    /// Between two looks
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = watch::interval, requires = "watch")]
    interval: Duration,
}

const COMMAND: &str = "status";

/// Ends with 0 where the daemon is ready, and with 1 where it is not, or does not answer.
pub(super) fn status(options: Options, command: &Status) -> ExitCode {
    let client = match command.endpoint.asked_by(COMMAND, options.and_then(command.options.clone())) {
        Ok(client) => client,
        Err(exit) => return exit,
    };
    if command.watch {
        return keep_watching(&client, command);
    }
    let page = match client.status() {
        Ok(page) => page,
        Err(error) => return failed(COMMAND, exit::FAILURE, &error),
    };
    let printed = print(&if command.json { harmless_json(&page.to_string()) } else { text(&page) });
    if page["ready"] == true { printed } else { ExitCode::from(exit::FAILURE) }
}

/// Looks until a signal ends the process, or nobody reads any more. A daemon that does not answer is asked again: it may be
/// restarting.
fn keep_watching(client: &AdminClient, command: &Status) -> ExitCode {
    let screen = match Screen::open() {
        Ok(screen) => screen,
        Err(error) => return failed(COMMAND, exit::FAILURE, &format!("signals cannot be listened to: {error}")),
    };
    let draws = screen.is_terminal() && !command.json;
    let mut before: Option<(Instant, Value)> = None;
    loop {
        let now = Timestamp::now().to_rfc3339();
        let shown = client.status().map(|mut page| {
            let looked = Instant::now();
            if let Some(rates) = before.as_ref().and_then(|(at, before)| between(before, &page, looked - *at)) {
                page["rates"] = rates;
            }
            let shown = match (command.json, draws) {
                (true, _) => harmless_json(&page.to_string()),
                (false, true) => {
                    format!("{now}, every {}\n\n{}", humantime::format_duration(command.interval), text(&page))
                }
                (false, false) => line(&now, &page),
            };
            before = Some((looked, page));
            shown
        });
        let goes_on = match shown {
            Ok(shown) if draws => {
                screen.show(&shown);
                true
            }
            Ok(shown) => watch::print_line(&shown),
            Err(error) if draws => {
                screen.show(&format!("{now}\n\n{}", harmless(&error.to_string())));
                true
            }
            Err(error) => {
                eprintln!("ingestd status: {now} {}", one_line(&error.to_string()));
                true
            }
        };
        if !goes_on {
            return ExitCode::SUCCESS;
        }
        thread::sleep(command.interval);
    }
}

/// What is counted, by its name in `events` and `rates`.
const COUNTED: [&str; 4] = ["accepted", "produced", "archived", "aggregated"];

/// Events a second between two looks; `None` where another process answers by now.
fn between(before: &Value, now: &Value, passed: Duration) -> Option<Value> {
    let tenths = |number: f64| (number * 10.0).round() / 10.0;
    let seconds = passed.as_secs_f64();
    let same = before["pid"] == now["pid"] && seconds > 0.0;
    let mut rates = json!({ "seconds": tenths(seconds) });
    for name in COUNTED.iter().filter(|_| same) {
        let more = now["events"][name].as_u64()?.checked_sub(before["events"][name].as_u64()?)?;
        rates[name] = tenths(more as f64 / seconds).into();
    }
    same.then_some(rates)
}

fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn state(page: &Value) -> &'static str {
    match (page["ready"] == true, page["degraded"] == true) {
        (true, false) => "ready",
        (true, true) => "ready, degraded",
        (false, _) => "not ready",
    }
}

fn rate(page: &Value, name: &str) -> String {
    word(&page["rates"][name])
}

/// One sink's partitions here.
#[derive(Default)]
struct Lag {
    records: u64,
    partitions: usize,
    behind: usize,
    /// Topic, partition and records of the one that is the furthest behind.
    most: (u64, String),
}

fn lags(page: &Value) -> BTreeMap<String, Lag> {
    let mut sinks: BTreeMap<String, Lag> = BTreeMap::new();
    for lag in page["lag"].as_array().into_iter().flatten() {
        let sink = sinks.entry(word(&lag["sink"])).or_default();
        let records = lag["records"].as_u64().unwrap_or_default();
        sink.records = sink.records.saturating_add(records);
        sink.partitions += 1;
        sink.behind += usize::from(records > 0);
        if records > sink.most.0 {
            sink.most = (records, format!("{} {}", word(&lag["topic"]), lag["partition"]));
        }
    }
    sinks
}

/// One look, where many are printed one below the other.
fn line(now: &str, page: &Value) -> String {
    let rates = COUNTED.map(|name| format!("{name} {}/s", rate(page, name))).join(", ");
    let lags = lags(page).iter().map(|(sink, lag)| format!(", {sink} lag {}", lag.records)).collect::<String>();
    let halted = page["halted"].as_array().map_or(0, Vec::len);
    let halted = if halted > 0 { format!(", {halted} halted") } else { String::new() };
    let why = page["refusing_events"].as_str().map(|why| format!(": {why}")).unwrap_or_default();
    let disk = &page["disk"]["used_percent"];
    harmless(&format!("{now} {}{why}; {rates}{lags}, disk {disk} %{halted}", state(page)).replace('\n', " "))
}

/// The page for people. What a newer daemon says beside it is in the JSON.
fn text(page: &Value) -> String {
    let mut lines = String::new();
    let mut line = |name: &str, value: String| _ = writeln!(lines, "{name:<11}{value}");
    line("state", state(page).to_owned());
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
    if page["rates"].is_object() {
        let [accepted, produced, archived, aggregated] = COUNTED.map(|name| rate(page, name));
        line(
            "rates",
            format!(
                "in: {accepted}/s accepted, {produced}/s produced; out: {archived}/s archived, {aggregated}/s aggregated (last {} s)",
                rate(page, "seconds")
            ),
        );
    }
    for (sink, Lag { records, partitions, behind, most }) in lags(page) {
        let of = if partitions == 1 { "1 partition".to_owned() } else { format!("{partitions} partitions") };
        let most = if records > 0 {
            format!("; {behind} behind, most of all {} by {}", most.1, most.0)
        } else {
            String::new()
        };
        line("lag", format!("{sink}: {records} records in {of}{most}"));
    }
    let disk = &page["disk"];
    let limits = format!(
        "events are refused from {} % on, and taken below {} %",
        disk["max_used_percent"], disk["resume_percent"]
    );
    line("disk", format!("{} % used; {limits}; {} in the spool", disk["used_percent"], bytes(&page["spool_bytes"])));
    line("memory", bytes(&page["resident_memory_bytes"]));
    if page["events"]["dead_lettered"].as_u64() > Some(0) {
        line("letters", format!("{} records since the start: see `ingestd dlq list`", page["events"]["dead_lettered"]));
    }
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
    harmless(&lines)
}

fn bytes(value: &Value) -> String {
    let bytes = value.as_u64().unwrap_or_default();
    match bytes >> 20 {
        0 => format!("{bytes} bytes"),
        mebibytes => format!("{mebibytes} MiB"),
    }
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
            "rates": { "seconds": 10.0, "accepted": 2.5, "produced": 2.5, "archived": 1.0, "aggregated": 0.0 },
            "spool_bytes": 17, "resident_memory_bytes": 104_857_600,
            "disk": { "used_percent": 12.5, "max_used_percent": 70.0, "resume_percent": 65.0 }, "tls": { "http": { "warning": null } },
            "dependencies": { "kafka": { "available": true, "reason": null } },
            "actors": { "ingestor": { "state": "running", "reason": null } }, "halted": [],
        });
        let page = text(&well);
        assert!(page.starts_with("state      ready\nversion    0.1.0 (abc), pid 7, up 1m\n"), "{page}");
        assert!(
            page.contains("\nevents     3 accepted, 3 produced, 2 archived, 1 aggregated, 0 dead lettered\n"),
            "{page}"
        );
        for line in [
            "rates      in: 2.5/s accepted, 2.5/s produced; out: 1.0/s archived, 0.0/s aggregated (last 10.0 s)",
            "lag        archive: 0 records in 1 partition",
            "disk       12.5 % used; events are refused from 70.0 % on, and taken below 65.0 %; 17 bytes in the spool",
            "memory     100 MiB",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
        assert_eq!(page.lines().count(), 11, "{page}");
        assert_eq!(
            line("2026-11-29T20:00:00.000Z", &well),
            "2026-11-29T20:00:00.000Z ready; accepted 2.5/s, produced 2.5/s, archived 1.0/s, aggregated 0.0/s, archive lag 0, disk 12.5 %"
        );
        let mut ill = well;
        ill["ready"] = false.into();
        ill["refusing_events"] = "the disk is full".into();
        let lag = |partition, records| json!({ "sink": "archive", "topic": "events", "partition": partition, "records": records });
        ill["lag"] = json!([lag(0, 5), lag(1, 0), lag(2, 1_000)]);
        ill["events"]["dead_lettered"] = 3.into();
        ill["dependencies"]["kafka"] = json!({ "available": false, "reason": "re\u{1b}fused" });
        ill["actors"]["ingestor"] = json!({ "state": "paused", "reason": "why" });
        ill["halted"] = json!([{ "sink": "archive", "topic": "t", "partition": 1, "reason": "a hole", "do": "look" }]);
        ill["tls"]["http"]["warning"] = "ends soon".into();
        let page = text(&ill);
        for line in [
            "state      not ready",
            "refusing   the disk is full",
            "lag        archive: 1005 records in 3 partitions; 2 behind, most of all events 2 by 1000",
            "letters    3 records since the start: see `ingestd dlq list`",
            "away       kafka: re\u{fffd}fused",
            "actor      ingestor is paused: why",
            "halted     archive, t 1: a hole; look",
            "tls        http: ends soon",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
    }

    #[test]
    fn a_rate_is_what_came_between_two_looks_at_one_process() {
        let look = |pid: u64, events: u64| json!({ "pid": pid, "events": { "accepted": events, "produced": events, "archived": 0, "aggregated": 1 } });
        let rates = between(&look(1, 100), &look(1, 150), Duration::from_millis(2_500)).unwrap();
        assert_eq!(
            rates,
            json!({ "seconds": 2.5, "accepted": 20.0, "produced": 20.0, "archived": 0.0, "aggregated": 0.0 })
        );
        assert_eq!(between(&look(1, 100), &look(2, 150), Duration::from_secs(2)), None);
        assert_eq!(between(&look(1, 100), &look(1, 50), Duration::from_secs(2)), None);
    }
}
