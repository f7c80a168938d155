//! Aggregates that people define, as they ask for them: by HTTP and on the terminal, on each store.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    process::{Command, Stdio},
};

use chrono::{DateTime, DurationRound, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    daemon::{Daemon, Setup},
    eventually,
    http::{Client, Reply},
    services::services,
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
name = "failed_logins"
window = "1m"
group_by = ["client_id"]
filter = { type = ["login_failed"], attempt = { min = 2 } }

[[aggregate]]
name = "visitors"
window = "1d"
time_zone = "Europe/Berlin"
group_by = []
measures = [{ unique = "user_id", as = "users" }]

[[aggregate]]
name = "few"
window = "1h"
group_by = ["user_id"]
max_groups = 2
"#;

const COUNTRIES: [&str; 3] = ["\"DE\"", "\"=A \\\"T\\\", or\\r\\nso\"", "null"];
const EVENTS: i64 = 400;

/// One of the events.
struct Sent {
    time: DateTime<Utc>,
    client: String,
    country: usize,
    /// In hundredths; `None` where its number is not exact.
    amount: Option<i64>,
    user: String,
    ip: String,
    kind: usize,
    attempt: i64,
}

impl Sent {
    /// Two hours of them.
    fn all(begin: DateTime<Utc>) -> Vec<Self> {
        let one = |n: i64| Self {
            time: begin + TimeDelta::seconds(n * 18),
            client: format!("c{}", n % 7),
            country: (n % 3) as usize,
            amount: (n % 50 != 7).then_some(n * 37 % 1000 - 300),
            user: format!("u{}", n * n % 23),
            ip: format!("10.0.0.{}", n % 5 * (n % 2)),
            kind: (n / 6 % 3) as usize,
            attempt: n % 4,
        };
        (0..EVENTS).map(one).collect()
    }

    fn json(&self) -> String {
        let Self { time, client, country, amount, user, ip, kind, attempt } = self;
        let kind = ["purchase", "login_failed", "login"][*kind];
        let amount = amount.map_or("1e40".to_owned(), |it| {
            format!("{}{}.{:02}", if it < 0 { "-" } else { "" }, it.abs() / 100, it.abs() % 100)
        });
        let (time, country) = (time.to_rfc3339_opts(SecondsFormat::Millis, true), COUNTRIES[*country]);
        format!(
            r#"{{"type":"{kind}","timestamp":"{time}","client_id":"{client}","geo":{{"country":{country}}},"amount":{amount},"user_id":"{user}","ip":"{ip}","attempt":{attempt}}}"#
        )
    }
}

fn number(hundredths: i64) -> Value {
    if hundredths % 100 == 0 { (hundredths / 100).into() } else { (hundredths as f64 / 100.0).into() }
}

/// What the measures of these purchases are.
fn measures(sent: &[&Sent]) -> Value {
    let amounts: Vec<i64> = sent.iter().filter_map(|sent| sent.amount).collect();
    let users: BTreeSet<_> = sent.iter().map(|sent| &sent.user).collect();
    let mut ips: BTreeMap<&str, u64> = BTreeMap::new();
    sent.iter().for_each(|sent| *ips.entry(&sent.ip).or_default() += 1);
    let mut ips: Vec<_> = ips.into_iter().collect();
    ips.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let top: Vec<_> = ips.iter().take(2).map(|(ip, count)| json!({ "value": ip, "count": count })).collect();
    json!({
        "sum(/amount)": number(amounts.iter().sum()), "min(/amount)": amounts.iter().min().map(|it| number(*it)),
        "max(/amount)": amounts.iter().max().map(|it| number(*it)), "unique(user_id)": users.len(), "top(ip)": top,
    })
}

#[track_caller]
fn rows(daemon: &Daemon, path: &str) -> Vec<Value> {
    let reply = daemon.get(path);
    assert_eq!(reply.status, 200, "{path}: {reply:?}");
    reply.json()["rows"].as_array().expect("rows").clone()
}

/// Over the whole range that was sent.
fn path(name: &str, begin: DateTime<Utc>, parameters: &str) -> String {
    let text = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Secs, true);
    format!("/v1/aggregates/{name}?from={}&to={}&{parameters}", text(begin), text(begin + TimeDelta::hours(2)))
}

fn send(daemon: &Daemon, begin: DateTime<Utc>) -> Vec<Sent> {
    let sent = Sent::all(begin);
    for part in sent.chunks(90) {
        let lines: Vec<_> = part.iter().map(Sent::json).collect();
        let reply = daemon.post(None, format!("[{}]", lines.join(",")).as_bytes());
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    eventually("all are counted", PATIENCE, || {
        (daemon.metric("ingestd_events_aggregated_total")? >= EVENTS as f64).then_some(())
    });
    sent
}

fn begin() -> DateTime<Utc> {
    (Utc::now() - TimeDelta::hours(4)).duration_trunc(TimeDelta::hours(1)).expect("a time of today")
}

fn check(daemon: &Daemon) {
    let begin = begin();
    let sent = send(daemon, begin);
    check_list(daemon);
    check_measures(daemon, begin, &sent);
    check_filters_and_limits(daemon, begin, &sent);
    check_pages(daemon, begin);
    check_csv(daemon, begin, &sent);
    check_tags(daemon, begin);
    check_refusals(daemon);
    check_stats(daemon, begin, &sent);
}

fn check_list(daemon: &Daemon) {
    let listed = daemon.get("/v1/aggregates").json();
    let names: Vec<_> = listed["aggregates"].as_array().expect("a list").iter().map(|it| it["name"].clone()).collect();
    assert_eq!(names, ["purchases", "failed_logins", "visitors", "few"]);
    let purchases = &listed["aggregates"][0];
    assert_eq!(purchases["about"]["mean"], json!({ "function": "avg", "field": "/amount" }));
    assert_eq!(purchases["measures"][6], "top(ip)");
    assert_eq!(listed["aggregates"][2]["time_zone"], "Europe/Berlin");
}

fn check_measures(daemon: &Daemon, begin: DateTime<Utc>, sent: &[Sent]) {
    let purchases: Vec<_> = sent.iter().filter(|sent| sent.kind == 0).collect();
    let of_all = rows(daemon, &path("purchases", begin, "step=all&group_by="));
    let [whole] = &of_all[..] else { panic!("one row: {of_all:?}") };
    let mut found = whole["measures"].clone();
    let mean = found.as_object_mut().and_then(|it| it.remove("mean")).and_then(|it| it.as_f64()).expect("a mean");
    assert_eq!((&whole["count"], &found), (&json!(purchases.len()), &measures(&purchases)), "{whole}");
    let exact: Vec<_> = purchases.iter().filter_map(|sent| sent.amount).collect();
    assert!((mean - exact.iter().sum::<i64>() as f64 / 100.0 / exact.len() as f64).abs() < 1e-9, "{mean}");
    assert_eq!(whole["inexact"], purchases.len() - exact.len());
    assert!(whole["inexact"].as_u64() > Some(0), "some are too large: {whole}");
    // By country, the largest sum first.
    let by_country = rows(daemon, &path("purchases", begin, "step=all&group_by=/geo/country&order=-sum(/amount)"));
    let mut expected: Vec<_> = (0..3)
        .map(|country| {
            let of: Vec<_> = purchases.iter().copied().filter(|sent| sent.country == country).collect();
            (of.iter().filter_map(|sent| sent.amount).sum::<i64>(), country, measures(&of))
        })
        .collect();
    expected.sort_by_key(|(sum, ..)| -sum);
    assert_eq!(by_country.len(), 3);
    for (row, (_, country, measures)) in by_country.iter().zip(&expected) {
        let name: Value = serde_json::from_str(COUNTRIES[*country]).expect("JSON");
        assert_eq!(row["group"], json!({ "/geo/country": name }));
        for (label, value) in measures.as_object().expect("measures") {
            assert_eq!(&row["measures"][label], value, "{row}");
        }
    }
    // Window by window, and in steps, it is as much.
    for step in ["1m", "30m", "1h"] {
        let of_steps = rows(daemon, &path("purchases", begin, &format!("step={step}")));
        let count: u64 = of_steps.iter().filter_map(|row| row["count"].as_u64()).sum();
        assert_eq!(count, purchases.len() as u64, "{step}");
    }
}

fn check_filters_and_limits(daemon: &Daemon, begin: DateTime<Utc>, sent: &[Sent]) {
    let mut failed: BTreeMap<&str, u64> = BTreeMap::new();
    let is_counted = |sent: &&Sent| sent.kind == 1 && sent.attempt >= 2;
    sent.iter().filter(is_counted).for_each(|sent| *failed.entry(&sent.client).or_default() += 1);
    let counts = |rows: &[Value], field: &str| -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for row in rows {
            let group = row["group"][field].as_str().expect("text").to_owned();
            *counts.entry(group).or_default() += row["count"].as_u64().expect("a count");
        }
        counts
    };
    let found = rows(daemon, &path("failed_logins", begin, "step=all&order=-count"));
    assert!(found.windows(2).all(|pair| pair[0]["count"].as_u64() >= pair[1]["count"].as_u64()), "{found:?}");
    let expected: BTreeMap<String, u64> =
        failed.into_iter().map(|(client, count)| (client.to_owned(), count)).collect();
    assert_eq!(counts(&found, "client_id"), expected);
    let of_two = rows(daemon, &path("failed_logins", begin, "step=all&where=client_id:c1&where=client_id:c3"));
    assert_eq!(counts(&of_two, "client_id").into_keys().collect::<Vec<_>>(), ["c1", "c3"]);
    // Days begin at midnight in Berlin.
    let days = rows(daemon, "/v1/aggregates/visitors?from=-2d");
    let total: u64 = days.iter().filter_map(|row| row["count"].as_u64()).sum();
    assert_eq!(total, EVENTS as u64, "{days:?}");
    for day in &days {
        let start: DateTime<Utc> = day["window_start"].as_str().and_then(|text| text.parse().ok()).expect("a time");
        let local = start.with_timezone(&chrono_tz_berlin(start));
        assert_eq!(local.format("%H:%M").to_string(), "00:00", "{day}");
        assert!(day["measures"]["users"].as_u64() > Some(1) && day.get("inexact").is_none(), "{day}");
    }
    // The first two users of each hour have groups of their own.
    for (hour, row_start) in [(0, begin), (1, begin + TimeDelta::hours(1))] {
        let of_hour: Vec<_> = sent.iter().filter(|sent| (sent.time - begin).num_hours() == hour).collect();
        let mut first: Vec<&str> = Vec::new();
        let mut expected: BTreeMap<String, u64> = BTreeMap::new();
        for sent in of_hour {
            if first.len() < 2 && !first.contains(&&*sent.user) {
                first.push(&sent.user);
            }
            let group = if first.contains(&&*sent.user) { &*sent.user } else { "…other" };
            *expected.entry(group.to_owned()).or_default() += 1;
        }
        let start = row_start.to_rfc3339_opts(SecondsFormat::Secs, true);
        let found: Vec<_> =
            rows(daemon, &path("few", begin, "")).into_iter().filter(|row| row["window_start"] == start).collect();
        assert_eq!(counts(&found, "user_id"), expected);
    }
}

/// What the clocks there showed against UTC, by the rules since 1996.
fn chrono_tz_berlin(time: DateTime<Utc>) -> chrono::FixedOffset {
    use chrono::Datelike as _;
    let last_sunday = |month: u32| {
        let end = chrono::NaiveDate::from_ymd_opt(time.year(), month, 31).expect("both months have 31 days");
        let back = i64::from(end.weekday().num_days_from_sunday());
        (end - TimeDelta::days(back)).and_hms_opt(1, 0, 0).expect("a time").and_utc()
    };
    let hours = if (last_sunday(3)..last_sunday(10)).contains(&time) { 2 } else { 1 };
    chrono::FixedOffset::east_opt(hours * 3600).expect("an offset")
}

fn check_pages(daemon: &Daemon, begin: DateTime<Utc>) {
    for order in ["window", "count", "-unique(user_id)", "-max(/amount)"] {
        let query = format!("step=10m&order={order}");
        let whole = rows(daemon, &path("purchases", begin, &query));
        assert!(whole.len() > 100, "{}", whole.len());
        let (mut pages, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = daemon.get(&path("purchases", begin, &format!("{query}&limit=37{cursor}"))).json();
            pages.extend(page["rows"].as_array().expect("rows").clone());
            assert_eq!(page.get("truncated").is_some(), page.get("next").is_some());
            let Some(next) = page["next"].as_str() else { break };
            assert!(next.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{next}");
            cursor = format!("&cursor={next}");
        }
        assert_eq!(pages, whole, "{order}");
    }
}

/// As Python's own module reads it.
fn read_csv(text: &str) -> Vec<BTreeMap<String, String>> {
    let program = "import csv, json, sys; sys.stdin.reconfigure(newline=''); print(json.dumps(list(csv.DictReader(sys.stdin, strict=True))))";
    let mut python = Command::new("python3");
    let mut python =
        python.args(["-c", program]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3");
    python.stdin.take().expect("it is piped").write_all(text.as_bytes()).expect("it reads");
    let output = python.wait_with_output().expect("it ends");
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn check_csv(daemon: &Daemon, begin: DateTime<Utc>, sent: &[Sent]) {
    let query = "step=all&group_by=/geo/country,client_id";
    let of_json = rows(daemon, &path("purchases", begin, query));
    let url = daemon.admin_url(&path("purchases", begin, query));
    let reply = Client::new().ask("GET", &url, &[("accept", "text/csv")], b"").expect("an answer");
    assert!(reply.content_type.starts_with("text/csv"), "{reply:?}");
    let columns = "window_start,/geo/country,client_id,count,sum(/amount),min(/amount),max(/amount),mean,unique(user_id),top(ip),inexact";
    assert_eq!(reply.body.lines().next(), Some(columns));
    let of_csv = read_csv(&reply.body);
    assert_eq!(of_csv.len(), of_json.len());
    let text = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    for (csv, json) in of_csv.iter().zip(&of_json) {
        for field in ["/geo/country", "client_id"] {
            assert_eq!(csv[field], text(&json["group"][field]), "{json}");
        }
        assert_eq!((&csv["count"], &csv["inexact"]), (&text(&json["count"]), &text(&json["inexact"])));
        let top: Value = serde_json::from_str(&csv["top(ip)"]).expect("JSON in its cell");
        assert_eq!(top, json["measures"]["top(ip)"]);
        let sum: f64 = csv["sum(/amount)"].parse().expect("a number");
        assert_eq!(Some(sum), json["measures"]["sum(/amount)"].as_f64());
    }
    assert!(sent.len() > of_csv.len());
    let lines = daemon.get(&path("purchases", begin, &format!("{query}&format=ndjson&limit=2")));
    let read: Vec<Value> = lines.body.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(read, of_json[..2]);
    let link = lines.link.expect("there is more");
    let next = link.strip_prefix('<').and_then(|link| link.split_once('>')).expect("a link").0;
    let next = daemon.get(next);
    let second: Value = serde_json::from_str(next.body.lines().next().expect("a line")).expect("JSON");
    assert_eq!(second, of_json[2]);
}

fn check_tags(daemon: &Daemon, begin: DateTime<Utc>) {
    let client = Client::new();
    let ask = |method: &str, path: &str, tag: &str| -> Reply {
        let fields: &[(&str, &str)] = if tag.is_empty() { &[] } else { &[("if-none-match", tag)] };
        client.ask(method, &daemon.admin_url(path), fields, b"").expect("an answer")
    };
    for path in ["/v1/aggregates".to_owned(), path("purchases", begin, "step=1h")] {
        let whole = ask("GET", &path, "");
        let etag = whole.etag.clone().expect("a tag");
        assert_eq!((ask("GET", &path, "").etag, ask("HEAD", &path, "").etag), (Some(etag.clone()), Some(etag.clone())));
        for (tag, status) in [(format!("\"x\", W/{etag}"), 304), ("*".to_owned(), 304), ("\"x\"".to_owned(), 200)] {
            for method in ["GET", "HEAD"] {
                let reply = ask(method, &path, &tag);
                assert_eq!((reply.status, reply.body.is_empty()), (status, status == 304 || method == "HEAD"), "{tag}");
            }
        }
    }
    let other = ask("GET", &path("purchases", begin, "step=1h&format=csv"), "");
    assert_ne!(other.etag, ask("GET", &path("purchases", begin, "step=1h"), "").etag);
}

fn check_refusals(daemon: &Daemon) {
    for (parameters, part) in [
        ("step=90s", "step"),
        ("group_by=type", "group_by"),
        ("where=type:a", "where"),
        ("order=top(ip)", "order"),
        ("format=xml", "format"),
        ("cursor=x", "cursor"),
        ("from=-1x", "from"),
    ] {
        let reply = daemon.get(&format!("/v1/aggregates/purchases?{parameters}"));
        reply.assert_problem(400);
        assert!(reply.json()["detail"].as_str().expect("a sentence").starts_with(part), "{reply:?}");
    }
}

fn check_stats(daemon: &Daemon, begin: DateTime<Utc>, sent: &[Sent]) {
    let stats = |arguments: &[&str]| daemon.command(&[&["stats"], arguments].concat());
    let all = stats(&[]);
    assert!(
        all.status == Some(0) && all.out.lines().count() == 5 && all.out.contains("1day in Europe/Berlin"),
        "{all:?}"
    );
    let range = ["--from", &begin.to_rfc3339(), "--to", &(begin + TimeDelta::hours(2)).to_rfc3339()];
    let table = stats(&[&["purchases", "--by", "client_id"], &range[..]].concat());
    assert_eq!(table.status, Some(0), "{table:?}");
    let lines: Vec<_> = table.out.lines().collect();
    assert!(lines[0].starts_with("purchases  ") && lines[0].ends_with("60 × 2m, 7 groups"), "{table:?}");
    assert!(lines[2].starts_with("client_id  count  sum(/amount)  min(/amount)"), "{table:?}");
    let purchases: Vec<_> = sent.iter().filter(|sent| sent.kind == 0).collect();
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    purchases.iter().for_each(|sent| *counts.entry(&sent.client).or_default() += 1);
    assert_eq!(lines.len(), 3 + counts.len());
    for line in &lines[3..] {
        let mut cells = line.split_whitespace();
        let (client, count) = (cells.next().expect("a client"), cells.next().and_then(|it| it.parse().ok()));
        assert_eq!(counts.get(client).copied(), count, "{line}");
        assert!(line.contains(['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']), "{line}");
    }
    let printed = stats(&[&["purchases", "--json", "--by", "", "--step", "all"], &range[..]].concat()).json(0);
    assert_eq!(printed["rows"][0]["count"], purchases.len());
    let csv = stats(&[&["failed_logins", "--csv", "--limit", "2"], &range[..]].concat());
    assert_eq!((csv.status, read_csv(&csv.out).len()), (Some(0), 2), "{csv:?}");
    for (arguments, status, part) in [
        (&["nothing"][..], 1, "failed_logins"),
        (&["purchases", "--by", "type"], 1, "group_by"),
        (&["purchases", "--step", "90s"], 1, "--step"),
        (&["--csv"], 2, "NAME"),
    ] {
        let refused = stats(arguments);
        assert!(refused.status == Some(status) && refused.error.contains(part), "{refused:?}");
    }
    let away = daemon.command(&["stats", "--admin", "http://127.0.0.1:1"]);
    assert!(away.status == Some(1) && away.error.contains("nobody listens"), "{away:?}");
}

#[test]
fn definitions_are_counted_exactly_and_asked_in_every_way_on_the_embedded_store() {
    let mut daemon = Setup::new("aggregates").config(DEFINITIONS).start();
    check(&daemon);
    // What stands in the store is what is answered.
    let query = path("purchases", begin(), "step=all");
    let before = daemon.get(&query).json();
    daemon.kill();
    daemon.wait_exit(PATIENCE);
    daemon.restart();
    assert_eq!(daemon.get(&query).json(), before);
    daemon.terminate();
}

#[test]
fn definitions_are_counted_exactly_and_asked_in_every_way_on_mongodb() {
    let Some(services) = services() else { return };
    let daemon = Setup::new("aggregates")
        .config(DEFINITIONS)
        .set("store.kind", "mongodb")
        .set("store.url", format!("mongodb://{}/?directConnection=true", services.mongodb.address()))
        .set("store.database", "aggregates_asked")
        .start();
    check(&daemon);
    daemon.terminate();
}
