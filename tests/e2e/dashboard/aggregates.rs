//! The view of aggregates: what it shows is what the API says of the same question.

use std::{cell::Cell, fs, net::TcpStream, rc::Rc, thread, time::Duration};

use chrono::{DateTime, DurationRound, NaiveDate, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};
use url::Url;

use super::{assert_no_complaint, browser, click, send, setup, view};
use crate::support::{
    PATIENCE,
    daemon::{Daemon, Setup},
    devtools::Browser,
    eventually, scratch,
};

const DEFINITIONS: &str = r#"
[[aggregate]]
name = "purchases"
window = "1m"
group_by = ["client_id", "/geo/country"]
filter = { type = "purchase" }
measures = ["count", { sum = "/amount" }, { min = "/amount" }, { max = "/amount" }, { avg = "/amount", as = "mean" },
            { unique = "user_id" }, { top = "ip", k = 2 }]

[[aggregate]]
name = "few"
window = "1h"
group_by = ["user_id"]
max_groups = 2

[[aggregate]]
name = "sessions"
window = "1m"
group_by = ["session"]
filter = { session = { exists = true } }

[[aggregate]]
name = "clients_by_day"
window = "1d"
time_zone = "America/New_York"
group_by = ["client_id"]
measures = [{ unique = "user_id", as = "users" }]
"#;
const EVENTS: i64 = 600;
/// Of more digits than a double holds.
const ADDED: &str = r#"{"type":"purchase","client_id":"exact","amount":123456789012345.12345678901234567,"geo":{"country":"AT"},"user_id":"u","timestamp":"TIME"}"#;
/// That sum, as it stands in the answer.
const EXACT: &str = "123456789012345.12345678901234567";

/// Purchases and others of two hours; of a client a day each before that.
fn events(begin: DateTime<Utc>) -> Vec<String> {
    let text = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Millis, true);
    let one = |n: i64, time: DateTime<Utc>, client: String| {
        let country = ["\"DE\"", "\"a, \\\"b\\\"\"", "null"][(n % 3) as usize];
        let kind = if n % 4 == 3 { "login" } else { "purchase" };
        format!(
            r#"{{"type":"{kind}","timestamp":"{}","client_id":"{client}","geo":{{"country":{country}}},"amount":{}.{:02},"user_id":"u{}","ip":"10.0.0.{}"}}"#,
            text(time),
            n * 37 % 1000,
            n % 100,
            n * n % 23,
            n % 7
        )
    };
    let recent = (0..EVENTS).map(|n| one(n, begin + TimeDelta::seconds(n * 12), format!("c{}", n * n % 5)));
    let days = (1..4).map(|day| one(day, begin - TimeDelta::days(day), format!("of day {day}")));
    recent.chain(days).chain([ADDED.replace("TIME", &text(begin))]).collect()
}

fn start(name: &str) -> Daemon {
    let daemon = Setup::new(name).config(DEFINITIONS).start();
    let begin = (Utc::now() - TimeDelta::hours(3)).duration_trunc(TimeDelta::hours(1)).expect("a time of today");
    let events = events(begin);
    send(&daemon, &events);
    eventually("all are counted", PATIENCE, || {
        (daemon.metric("ingestd_events_aggregated_total")? >= events.len() as f64).then_some(())
    });
    daemon
}

/// Chooses as a person does, and waits for what comes of it.
#[track_caller]
pub(super) fn choose(browser: &mut Browser, id: &str, value: &str) {
    browser.evaluate(&format!(
        "{{ const it = document.getElementById({id:?}); it.value = {value:?}; it.dispatchEvent(new Event('change', {{ bubbles: true }})); \
         if (it.value !== {value:?}) throw new Error({id:?} + ' has no ' + {value:?}); 0 }}"
    ));
    settle(browser);
}

#[track_caller]
fn settle(browser: &mut Browser) {
    let note = "document.getElementById('aggregates-note').textContent";
    browser.until("an answer", &format!("!['', 'Waiting for the daemon …', 'Asking …'].includes({note})"));
}

/// What was asked last: the paths of the whole range, and of the steps.
fn asked(browser: &Browser) -> [Url; 2] {
    let urls: Vec<_> = browser.requests.iter().filter(|url| url.contains("/v1/aggregates/")).collect();
    let [.., whole, steps] = urls.as_slice() else { panic!("{urls:?}") };
    [whole, steps].map(|url| Url::parse(url).expect("a URL"))
}

fn given(url: &Url, name: &str) -> Vec<String> {
    url.query_pairs().filter(|(given, _)| given == name).map(|(_, value)| value.into_owned()).collect()
}

/// The same question, asked by this test.
#[track_caller]
fn rows(daemon: &Daemon, url: &Url) -> Vec<Value> {
    let path = format!("{}?{}", url.path(), url.query().unwrap_or_default());
    let reply = daemon.get(&path);
    assert_eq!(reply.status, 200, "{path}: {reply:?}");
    let answer: Value = serde_json::from_str(&with_all_digits(&reply.body)).expect("JSON");
    assert!(answer["next"].is_null(), "{path}");
    answer["rows"].as_array().expect("rows").clone()
}

/// Numbers of more digits than a double holds as texts.
fn with_all_digits(json: &str) -> String {
    let (mut texts, mut is_quoted, mut is_escaped, mut rest) = (String::new(), false, false, json);
    while let Some(next) = rest.chars().next() {
        let length = rest.find(|it: char| !matches!(it, '0'..='9' | '.' | '-' | '+' | 'e')).unwrap_or(rest.len());
        let token = if is_quoted || length == 0 { &rest[..next.len_utf8()] } else { &rest[..length] };
        let digits = token.trim_start_matches(['-', '0', '.']).replace('.', "");
        if !is_quoted && digits.len() > 15 && digits.bytes().all(|it| it.is_ascii_digit()) {
            texts.push_str(&format!("\"{token}\""));
        } else {
            texts.push_str(token);
        }
        is_quoted ^= next == '"' && !is_escaped;
        is_escaped = is_quoted && next == '\\' && !is_escaped;
        rest = &rest[token.len()..];
    }
    texts
}

/// A number as the page writes it.
fn number(number: f64) -> String {
    let text = format!("{:.6}", number.abs());
    let text = text.trim_end_matches('0').trim_end_matches('.');
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let groups: Vec<_> = whole.as_bytes().rchunks(3).rev().map(|it| std::str::from_utf8(it).expect("digits")).collect();
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{}{}{point}{fraction}", if number < 0.0 { "-" } else { "" }, groups.join(","))
}

fn text(value: &Value) -> String {
    value.as_str().map_or(if value.is_null() { "(none)".to_owned() } else { value.to_string() }, str::to_owned)
}

/// The values of a group, in the order of the definitions.
fn group(row: &Value) -> Vec<String> {
    let fields = ["client_id", "/geo/country", "user_id"];
    fields.iter().filter_map(|field| row["group"].get(field)).map(text).collect()
}

/// A measure as the page writes it.
fn measured(label: &str, value: &Value) -> String {
    match value {
        // A quotient ends nowhere; all else is shown with all its digits.
        Value::String(digits) => match digits.parse() {
            Ok(mean) if label == "mean" && mean < 1e9 => number(mean),
            _ => digits.clone(),
        },
        Value::Number(it) => number(it.as_f64().expect("a number")),
        Value::Array(values) => {
            let one = |it: &Value| format!("{} ({})", text(&it["value"]), measured(label, &it["count"]));
            Some(values.iter().map(one).collect::<Vec<_>>().join(", "))
                .filter(|it| !it.is_empty())
                .unwrap_or("–".to_owned())
        }
        _ => "–".to_owned(),
    }
}

/// The cells of a table's body.
fn cells(browser: &mut Browser, place: &str) -> Vec<Vec<String>> {
    let cells = browser.evaluate(&format!(
        "[...document.querySelectorAll('{place} tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"
    ));
    serde_json::from_value(cells).expect("rows of texts")
}

/// What the table has to say of these rows: the fields, and these measures.
fn expected(rows: &[Value], measures: &[&str]) -> Vec<Vec<String>> {
    let of = |row: &Value, label: &&str| {
        if *label == "count" { row["count"].clone() } else { row["measures"][label].clone() }
    };
    let numbers = |row: &Value| measures.iter().map(|label| measured(label, &of(row, label))).collect::<Vec<_>>();
    rows.iter().map(|row| [group(row), numbers(row)].concat()).collect()
}

/// The first columns, and no more.
fn cut(rows: Vec<Vec<String>>, columns: usize) -> Vec<Vec<String>> {
    rows.into_iter().map(|row| row.into_iter().take(columns).collect()).collect()
}

/// Of each line of the chart: its name, sum, least and most a step, by the steps' counts.
fn lines(whole: &[Value], steps: &[Value], count: usize) -> Vec<[String; 4]> {
    let of = |row: &Value| {
        let is_its = |step: &&Value| step["group"] == row["group"];
        let counts: Vec<u64> = steps.iter().filter(is_its).filter_map(|step| step["count"].as_u64()).collect();
        let least = if counts.len() < count { 0 } else { counts.iter().copied().min().unwrap_or_default() };
        let numbers = [counts.iter().sum(), least, counts.iter().copied().max().unwrap_or_default()];
        let [sum, least, most] = numbers.map(|it| number(it as f64));
        [group(row).join(", "), sum, least, most]
    };
    whole.iter().take(8).map(of).collect()
}

/// Asserts that the chart of counts is of the steps that the API answers.
#[track_caller]
fn assert_chart(browser: &mut Browser, whole: &[Value], steps: &[Value], count: usize) {
    let shown: Vec<_> = cells(browser, "#answer-chart")
        .into_iter()
        .map(|row| [row[0].clone(), row[1].clone(), row[4].clone(), row[5].clone()])
        .collect();
    assert_eq!(shown, lines(whole, steps, count));
    assert_eq!(browser.evaluate("document.querySelectorAll('#answer-chart canvas').length"), 1);
}

/// Downloads the table, and asserts that the API says the same.
#[track_caller]
fn assert_csv(browser: &mut Browser, daemon: &Daemon, of: &Url) {
    let folder = tempfile::Builder::new().prefix("downloads").tempdir_in(scratch()).expect("target can be written to");
    browser.download_to(folder.path());
    click(browser, "#question button", "Download CSV");
    let name = of.path().rsplit('/').next().expect("a name");
    let file = eventually("the file", PATIENCE, || {
        fs::read_to_string(folder.path().join(format!("{name}.csv"))).ok().filter(|text| !text.is_empty())
    });
    let reply = daemon.get(&format!("{}?{}&format=csv", of.path(), of.query().unwrap_or_default()));
    assert_eq!((reply.status, &reply.body), (200, &file));
    assert_eq!(file.lines().count(), rows(daemon, of).len() + 1, "one line a row, and the names of the columns");
}

#[test]
fn an_aggregate_is_drawn_its_numbers_stand_beside_it_and_are_downloaded() {
    let Some(mut browser) = browser(&[]) else { return };
    let daemon = start("dashboard-aggregates");
    browser.call("Emulation.setTimezoneOverride", json!({ "timezoneId": "UTC" }));
    browser.resize(1280, 900);
    browser.go(&daemon.admin_url("/"));
    view(&mut browser, "aggregates");
    settle(&mut browser);
    // The last hour by the minute, until somebody asks for something else.
    let [whole, steps] = asked(&browser);
    assert_eq!([given(&whole, "step"), given(&whole, "order"), given(&steps, "step")], [["all"], ["-count"], ["1m"]]);
    assert!(
        browser.requests.iter().any(|url| url.contains("purchases?from=-1h&to=now&step=1m&")),
        "{:?}",
        browser.requests
    );
    let definition = browser.evaluate("document.getElementById('definition').textContent");
    assert_eq!(definition, "Events where type is purchase, in windows of 1m, by client_id, /geo/country.");

    choose(&mut browser, "range", "6h");
    choose(&mut browser, "step", "5m");
    let [whole, steps] = asked(&browser);
    let (of_whole, of_steps) = (rows(&daemon, &whole), rows(&daemon, &steps));
    assert!(of_whole.len() > 8 && of_steps.len() > 100, "{} groups, {} rows", of_whole.len(), of_steps.len());
    let all = ["count", "sum(/amount)", "min(/amount)", "max(/amount)", "mean", "unique(user_id)", "top(ip)"];
    let shown = cells(&mut browser, "#rows");
    assert_eq!(cut(shown.clone(), 9), expected(&of_whole, &all));
    // No digit is lost: there is one of more than a double holds.
    let raw = daemon.get(&format!("{}?{}", whole.path(), whole.query().unwrap_or_default())).body;
    assert!(raw.contains(&format!("\"sum(/amount)\":{EXACT}")), "{raw}");
    assert!(shown.iter().any(|row| row[0] == "exact" && row[3] == EXACT), "{shown:?}");
    let first = |row: &[String]| {
        let is_it = |step: &&Value| group(step) == row[..2];
        let start = of_steps.iter().find(is_it)?["window_start"].as_str()?;
        Some(start.replace('T', " ").replace(":00Z", ""))
    };
    for row in &shown {
        assert_eq!(Some(&row[9]), first(row).as_ref(), "{row:?}");
    }
    assert_chart(&mut browser, &of_whole, &of_steps, 73);
    assert_csv(&mut browser, &daemon, &whole);

    // Another order and another measure: the table's columns and the chart's lines follow.
    choose(&mut browser, "measure", "max(/amount)");
    choose(&mut browser, "order", "smallest");
    let [whole, steps] = asked(&browser);
    assert_eq!((given(&whole, "order"), given(&steps, "order")), (vec!["max(/amount)".to_owned()], vec![]));
    let of_whole = rows(&daemon, &whole);
    let reordered = ["max(/amount)", "count", "sum(/amount)", "min(/amount)", "mean", "unique(user_id)", "top(ip)"];
    assert_eq!(cut(cells(&mut browser, "#rows"), 9), expected(&of_whole, &reordered));
    let drawn: Vec<_> = cells(&mut browser, "#answer-chart").into_iter().map(|row| row[0].clone()).collect();
    let names: Vec<_> = expected(&of_whole, &[]).into_iter().take(8).map(|group| group.join(", ")).collect();
    assert_eq!(drawn, names);
    // A list is not drawn.
    choose(&mut browser, "measure", "top(ip)");
    assert_eq!(browser.evaluate("document.getElementById('answer-chart').hidden"), true);

    // Fewer fields, a filter, and each step.
    choose(&mut browser, "measure", "count");
    choose(&mut browser, "order", "largest");
    browser.evaluate("document.getElementById('group-0').click()");
    settle(&mut browser);
    choose(&mut browser, "where-1", "a, \"b\"");
    choose(&mut browser, "step", "30m");
    let [whole, steps] = asked(&browser);
    for url in [&whole, &steps] {
        assert_eq!([given(url, "group_by"), given(url, "where")], [["/geo/country"], ["/geo/country:a, \"b\""]]);
    }
    let (of_whole, of_steps) = (rows(&daemon, &whole), rows(&daemon, &steps));
    assert_eq!((of_whole.len(), given(&steps, "step")), (1, vec!["30m".to_owned()]));
    assert_eq!(cut(cells(&mut browser, "#rows"), 8), expected(&of_whole, &all));
    assert_chart(&mut browser, &of_whole, &of_steps, 13);
    choose(&mut browser, "rows-of", "steps");
    let [_, steps] = asked(&browser);
    let mut newest = rows(&daemon, &steps);
    newest.reverse();
    let shown = cells(&mut browser, "#rows");
    let starts = newest.iter().map(|row| text(&row["window_start"]).replace('T', " ").replace(":00Z", ""));
    let with_starts: Vec<_> =
        starts.zip(expected(&newest, &all)).map(|(start, row)| [vec![start], row].concat()).collect();
    assert_eq!(shown, with_starts);
    assert_csv(&mut browser, &daemon, &steps);
    // The whole has one line, and no group.
    choose(&mut browser, "rows-of", "groups");
    choose(&mut browser, "where-1", "");
    browser.evaluate("document.getElementById('group-1').click()");
    settle(&mut browser);
    let [whole, _] = asked(&browser);
    assert_eq!(given(&whole, "group_by"), [""]);
    let shown = cells(&mut browser, "#rows");
    assert_eq!((shown.len(), shown[0][0].as_str()), (1, "all events"));
    assert_eq!(cut(vec![shown[0][1..].to_vec()], 7), expected(&rows(&daemon, &whole), &all));

    // Who wants to sees what comes.
    let more: u64 = shown[0][1].parse::<u64>().expect("a count") + 1;
    browser.evaluate("document.getElementById('live').click()");
    send(&daemon, &[r#"{"type":"purchase","client_id":"late","amount":1}"#.to_owned()]);
    browser.until("it is counted", &format!("document.querySelector('#rows tbody td').textContent === '{more}'"));
    assert_no_complaint(&mut browser);
    daemon.terminate();
}

#[test]
fn groups_beyond_the_bound_are_one_and_new_clients_stand_first_by_the_days_of_their_place() {
    let Some(mut browser) = browser(&[]) else { return };
    let daemon = start("dashboard-days");
    browser.call("Emulation.setTimezoneOverride", json!({ "timezoneId": "Asia/Tokyo" }));
    browser.go(&daemon.admin_url("/#/aggregates"));
    settle(&mut browser);
    choose(&mut browser, "aggregate", "few");
    let [whole, steps] = asked(&browser);
    let shown = cells(&mut browser, "#rows");
    let (of_whole, of_steps) = (rows(&daemon, &whole), rows(&daemon, &steps));
    assert_eq!(cut(shown.clone(), 2), expected(&of_whole, &["count"]));
    assert!(shown.iter().any(|row| row[0] == "…other"), "{shown:?}");
    assert_eq!(cells(&mut browser, "#answer-chart").len(), of_whole.len().min(8));
    assert!(of_steps.iter().any(|row| row["group"]["user_id"] == "…other"));
    // A value that was seen is offered, and that group can be asked for as any.
    let offered = browser.evaluate("[...document.getElementById('where-0').list.options].map(({ value }) => value)");
    assert!(offered.as_array().expect("a list").contains(&json!("…other")), "{offered}");
    choose(&mut browser, "where-0", "…other");
    assert_eq!(cells(&mut browser, "#rows").len(), 1);

    // Days of thirty, by New York's calendar, whatever the reader's clock says.
    choose(&mut browser, "aggregate", "clients_by_day");
    choose(&mut browser, "order", "new");
    let [_, steps] = asked(&browser);
    assert_eq!(given(&steps, "step"), ["1d"]);
    let of_steps = rows(&daemon, &steps);
    let zone = "America/New_York";
    let shown = cells(&mut browser, "#rows");
    let days: Vec<NaiveDate> = shown.iter().map(|row| row[1].parse().expect("a day")).collect();
    assert!(days.is_sorted_by(|one, other| one >= other), "{shown:?}");
    for row in &shown {
        let first = of_steps.iter().find(|step| step["group"]["client_id"] == row[0]).expect("it is in the answer");
        let start = text(&first["window_start"]);
        let day =
            browser.evaluate(&format!("new Date({start:?}).toLocaleDateString('sv-SE', {{ timeZone: {zone:?} }})"));
        assert_eq!(day, row[1], "{start}");
    }
    let last: Vec<_> = shown.iter().rev().take(3).map(|row| row[0].as_str()).collect();
    assert_eq!(last, ["of day 3", "of day 2", "of day 1"]);
    let note = browser.evaluate("document.getElementById('aggregates-note').textContent");
    assert!(note.as_str().expect("text").contains("(America/New_York): "), "{note}");

    // However many groups there are, the steps of those that are drawn are asked for.
    let count = daemon.metric("ingestd_events_aggregated_total").expect("it counts");
    let line = |session: usize| json!({ "type": "a", "client_id": "c1", "session": format!("s{session}") }).to_string();
    let lines: Vec<_> = (0..5100).chain((0..8).flat_map(|session| vec![session; 9 - session])).map(line).collect();
    send(&daemon, &lines);
    eventually("all are counted", PATIENCE, || {
        (daemon.metric("ingestd_events_aggregated_total")? >= count + lines.len() as f64).then_some(())
    });
    choose(&mut browser, "aggregate", "sessions");
    choose(&mut browser, "range", "1h");
    choose(&mut browser, "order", "largest");
    let [_, steps] = asked(&browser);
    let largest: Vec<_> = (0..8).map(|session| format!("session:s{session}")).collect();
    assert_eq!(given(&steps, "where"), largest);
    let drawn: Vec<_> = cells(&mut browser, "#answer-chart").into_iter().map(|row| row[..2].join(" ")).collect();
    assert_eq!(drawn, (0..8).map(|session| format!("s{session} {}", 10 - session)).collect::<Vec<_>>());
    assert_eq!(cells(&mut browser, "#rows").len(), 100);
    let note = browser.evaluate("document.getElementById('aggregates-note').textContent");
    assert!(note.as_str().expect("text").contains("more than 5,000 groups. "), "{note}");
    assert_no_complaint(&mut browser);
    daemon.terminate();
}

#[test]
fn what_cannot_be_answered_is_said_in_a_sentence() {
    let Some(mut browser) = browser(&[]) else { return };
    let daemon = start("dashboard-refused");
    browser.go(&daemon.admin_url("/#/aggregates"));
    settle(&mut browser);
    let note = |browser: &mut Browser| {
        let note = "[document.getElementById('aggregates-note').textContent, document.getElementById('answer').hidden, \
                    document.getElementById('aggregates-note').classList.contains('bad')]";
        let told = browser.evaluate(note);
        assert_eq!((&told[1], &told[2]), (&json!(true), &json!(true)), "{told}");
        told[0].as_str().expect("text").to_owned()
    };
    choose(&mut browser, "range", "custom");
    choose(&mut browser, "from", "yesterday");
    let problem = daemon.get("/v1/aggregates/purchases?from=yesterday");
    problem.assert_problem(400);
    let detail = text(&problem.json()["detail"]);
    let told = note(&mut browser);
    assert_eq!(told.to_lowercase().trim_end_matches('.'), detail.to_lowercase().trim_end_matches('.'));
    choose(&mut browser, "from", "-7d");
    assert_eq!(browser.evaluate("document.getElementById('answer').hidden"), false);
    choose(&mut browser, "where-0", "nobody");
    let told = browser.evaluate("document.getElementById('aggregates-note').textContent");
    assert_eq!(told, "There is nothing in this range: choose a longer one, or a filter that more events meet.");

    // A daemon that is asked too much, or whose store is away.
    for (status, detail) in [
        (422, "more than 2000000 buckets would be read: ask for a shorter range (from, to)"),
        (503, "the store is out of reach: connection refused"),
    ] {
        let body = json!({ "type": "about:blank", "title": "", "status": status, "detail": detail }).to_string();
        browser.stand_in("*/v1/aggregates/*", move |_| Some((status, "application/problem+json", body.clone())));
        choose(&mut browser, "where-0", &status.to_string());
        let told = note(&mut browser);
        assert_eq!(told.to_lowercase(), format!("{detail}."), "{status}");
    }
    daemon.terminate();
}

#[test]
fn a_daemon_without_aggregates_says_so_and_asks_nothing() {
    let Some(mut browser) = browser(&[]) else { return };
    let none = Setup::new("dashboard-no-store").config("[store]\nkind = \"none\"\n");
    // It needs no brokers to say so.
    let front = Setup::new("dashboard-no-role").roles("ingest").set("queue.kind", "kafka");
    for (setup, sentence) in [
        (none, "store.kind is \"none\": this daemon keeps no aggregates."),
        (
            front.set("queue.kafka.brokers", "127.0.0.1:1"),
            "This process (roles: ingestor, producer, watchdog) does not aggregate: open the dashboard of one with the role aggregator.",
        ),
    ] {
        let daemon = setup.spawn();
        eventually("it listens", PATIENCE, || TcpStream::connect(daemon.admin_address()).ok());
        daemon.get("/v1/aggregates").assert_problem(404);
        browser.go(&daemon.admin_url("/#/aggregates"));
        browser.until(sentence, &format!("document.getElementById('aggregates-note').textContent === {sentence:?}"));
        let shown = browser.evaluate("['question', 'answer'].map((id) => document.getElementById(id).hidden)");
        assert_eq!(shown, json!([true, true]));
        assert_no_complaint(&mut browser);
        assert!(!browser.requests.iter().any(|url| url.contains("/v1/aggregates")), "{:?}", browser.requests);
        // A page whose daemon is gone complains.
        browser.go("about:blank");
        daemon.signal("TERM");
        daemon.wait_exit(PATIENCE);
    }
}

#[test]
fn whether_there_is_something_to_ask_is_known_by_the_status_however_late_and_anew_where_that_changes() {
    let Some(mut browser) = browser(&[]) else { return };
    let daemon = Setup::new("dashboard-late").config("[store]\nkind = \"none\"\n").start();
    let status = daemon.get("/status").json();
    browser.stand_in("*/v1/live", move |_| {
        thread::sleep(Duration::from_millis(2500));
        Some((200, "text/event-stream", format!("data: {status}\n\n")))
    });
    browser.go(&daemon.admin_url("/#/aggregates"));
    let sentence = "store.kind is \"none\": this daemon keeps no aggregates.";
    browser.until(sentence, &format!("document.getElementById('aggregates-note').textContent === {sentence:?}"));
    assert!(!browser.requests.iter().any(|url| url.contains("/v1/aggregates")), "{:?}", browser.requests);
    browser.go("about:blank");
    drop(daemon);
    // One that starts anew, maybe as another, is asked anew; and so is one that could not answer.
    let daemon = setup("dashboard-again").start();
    let status = daemon.get("/status").json();
    let (asked, pid) = (Cell::new(0), Rc::new(Cell::new(7)));
    let of_the_status = pid.clone();
    browser.stand_in("*/v1/*", move |url| {
        if url.ends_with("/v1/live") {
            let mut status = status.clone();
            status["pid"] = of_the_status.get().into();
            return Some((200, "text/event-stream", format!("data: {status}\n\n")));
        }
        let number = asked.replace(asked.get() + 1);
        let problem = |detail: &str| json!({ "detail": detail }).to_string();
        Some(match number {
            0 => (503, "application/problem+json", problem("the store is away")),
            1 => (200, "application/json", json!({ "aggregates": [] }).to_string()),
            _ => (404, "application/problem+json", problem("it is another")),
        })
    });
    browser.go(&daemon.admin_url("/#/aggregates"));
    for sentence in
        ["The store is away.", "There are none: an [[aggregate]] in the configuration makes one.", "It is another."]
    {
        browser.until(sentence, &format!("document.getElementById('aggregates-note').textContent === {sentence:?}"));
        pid.set(if sentence.starts_with("There are none") { 8 } else { 7 });
    }
    browser.go("about:blank");
    drop(daemon);
    // A stream that breaks has nobody wait for it.
    let daemon = setup("dashboard-broken").start();
    browser.stand_in("*/v1/live", |_| Some((503, "application/problem+json", "{}".to_owned())));
    browser.go(&daemon.admin_url("/#/aggregates"));
    browser.until("there is something to ask", "!document.getElementById('question').hidden");
}
