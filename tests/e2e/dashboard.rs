//! The dashboard in a real browser: what it shows is what the API says, it does what it is told to and what nobody else tells it to,
//! and everybody can use it.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    daemon::{Daemon, Setup},
    devtools::{Browser, axe, chromium},
    eventually,
    services::sdk,
    skip,
};

mod access;
mod aggregates;
mod pictures;

const CONFIG: &str = r#"
[[aggregate]]
name = "events_by_type"
window = "1m"
group_by = ["client_id", "type"]
"#;
const VIEWS: [&str; 4] = ["overview", "aggregates", "letters", "configuration"];
/// A phone, and a desk.
const SIZES: [(u32, u32); 2] = [(360, 740), (1280, 900)];

/// `None`, and a loud line, where there is none.
fn browser(flags: &[&str]) -> Option<Browser> {
    match chromium() {
        Ok(program) => Some(Browser::start(&program, flags)),
        Err(why) if why.starts_with("INGESTD_CHROMIUM") => {
            eprintln!("\n!!! SKIPPED: {why}\n");
            None
        }
        Err(why) => {
            skip(&why);
            None
        }
    }
}

fn setup(name: &str) -> Setup {
    Setup::new(name).config(CONFIG)
}

fn send(daemon: &Daemon, lines: &[String]) {
    let reply = daemon.post(Some("application/x-ndjson"), lines.join("\n").as_bytes());
    assert!(matches!(reply.status, 200 | 207), "{reply:?}");
}

fn event(number: usize) -> String {
    let of = ["login", "order"][number % 2];
    json!({ "type": of, "client_id": format!("client-{}", number % 3), "n": number }).to_string()
}

/// Wrong events, which become letters.
fn quarantine(daemon: &Daemon, letters: usize) {
    send(daemon, &(0..letters).map(|number| json!({ "n": number }).to_string()).collect::<Vec<_>>());
}

fn letters(daemon: &Daemon, query: &str) -> Vec<Value> {
    daemon.get(&format!("/v1/dead-letters{query}")).json()["dead_letters"].as_array().expect("a list").clone()
}

/// Shows a view that the page has already begun with.
fn view(browser: &mut Browser, name: &str) {
    browser.evaluate(&format!("document.querySelector('[data-view={name}]').click()"));
    browser.until(name, &format!("!document.getElementById('{name}').hidden"));
}

fn click(browser: &mut Browser, selector: &str, text: &str) {
    let button =
        format!("[...document.querySelectorAll('{selector}')].find((it) => it.textContent.startsWith({text:?}))");
    browser.until(text, &format!("{button} !== undefined && {button}.getAttribute('aria-disabled') === null"));
    browser.evaluate(&format!("{button}.click()"));
}

/// Answers the question whether one is sure.
fn decide(browser: &mut Browser, answer: &str) {
    browser.until("a question", "document.getElementById('sure').open");
    click(browser, "#sure button", answer);
    browser.until("it is closed", "!document.getElementById('sure').open");
}

#[track_caller]
fn assert_no_complaint(browser: &mut Browser) {
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn the_overview_shows_what_the_status_says_and_asks_no_other_host() {
    let Some(mut browser) = browser(&[]) else { return };
    let mut daemon = setup("dashboard").start();
    let wrong = ["{}".to_owned(), "7".to_owned()];
    send(&daemon, &[(0..500).map(event).collect(), wrong.to_vec()].concat());
    let page = eventually("both sinks have all", PATIENCE, || {
        let page = daemon.get("/status").json();
        let done = |name: &str| page["events"][name] == 500;
        (done("archived") && done("aggregated")).then_some(page)
    });
    let root = daemon.admin_url("/");
    browser.go(&root);
    browser.until("all is counted", "[...document.querySelectorAll('.tile b')].some((it) => it.textContent === '500')");
    let tiles = browser.evaluate(
        "Object.fromEntries([...document.querySelectorAll('.tile')].map((it) => [it.querySelector('dt').textContent, \
         it.querySelector('b').textContent]))",
    );
    for (tile, shown) in [
        ("Accepted", "500"),
        ("Rejected", "2"),
        ("Archived", "500"),
        ("Aggregated", "500"),
        ("Dead letters", "0"),
        ("Lag", "0"),
        ("Restarts", "0"),
    ] {
        assert_eq!(tiles[tile], shown, "{tile}: {tiles}");
    }
    assert_eq!(daemon.metric("ingestd_events_rejected_total"), Some(2.0));
    let rows = |browser: &mut Browser, table: &str| {
        let rows = format!(
            "[...document.querySelectorAll('table')].find((it) => it.caption.textContent.startsWith({table:?}))"
        );
        browser.until(table, &format!("{rows} !== undefined"));
        browser.evaluate(&format!(
            "[...{rows}.tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.textContent))"
        ))
    };
    let expected = json!([["archive", "500", "500", "0"], ["aggregate", "500", "500", "0"]]);
    assert_eq!(rows(&mut browser, "Progress of each sink"), expected);
    let actors: Vec<Value> = page["actors"]
        .as_object()
        .expect("actors")
        .iter()
        .map(|(name, actor)| json!([name, actor["state"], "0", ""]))
        .collect();
    assert_eq!(rows(&mut browser, "Actors"), Value::from(actors));
    let dependencies = rows(&mut browser, "Dependencies");
    let names: Vec<&Value> = dependencies.as_array().expect("rows").iter().map(|row| &row[0]).collect();
    let expected: Vec<&String> = page["dependencies"].as_object().expect("dependencies").keys().collect();
    assert_eq!(json!(names), json!(expected));
    // Each chart's numbers stand beside it.
    for (chart, series) in [("Throughput", 4), ("Acknowledgement latency", 2), ("Lag of each sink", 2)] {
        assert_eq!(rows(&mut browser, chart).as_array().map(Vec::len), Some(series), "{chart}");
    }
    assert_eq!(browser.evaluate("document.querySelectorAll('.chart canvas').length"), 3);
    view(&mut browser, "configuration");
    let process = rows(&mut browser, "This process").to_string();
    assert!(process.contains(page["data_dir"].as_str().expect("a folder")) && process.contains("0.1.0"), "{process}");
    assert_no_complaint(&mut browser);

    // Nothing comes from elsewhere, and nothing that stands in the page itself is run.
    let strangers: Vec<_> =
        browser.requests.iter().filter(|url| !url.starts_with(&root) && *url != "about:blank").collect();
    assert!(strangers.is_empty() && browser.requests.len() > 10, "{:?}", browser.requests);
    let parts = browser.evaluate(
        "Promise.all([...document.querySelectorAll('[src], [href]')].map(async (it) => { const url = it.src ?? it.href; \
         return [new URL(url).origin === origin && new URL(url).pathname.startsWith('/assets/'), (await fetch(url)).status]; }))",
    );
    let parts = parts.as_array().expect("a list");
    assert!(parts.len() >= 5 && parts.iter().all(|part| *part == json!([true, 200])), "{parts:?}");
    let policy = browser.evaluate("fetch('/').then((answer) => answer.headers.get('content-security-policy'))");
    let policy = policy.as_str().expect("a policy");
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"),
        "{policy}"
    );
    assert!(!policy.contains("unsafe") && !policy.contains("data:"), "{policy}");
    let inlined = browser.evaluate(
        "{ const script = document.createElement('script'); script.textContent = 'window.inlined = true'; \
         document.head.append(script); window.inlined === true }",
    );
    assert_eq!((inlined, browser.complaints().is_empty()), (json!(false), false), "the policy says so");

    // It sees its daemon go, and come back.
    let process = page["pid"].to_string();
    view(&mut browser, "overview");
    browser.until(
        "the process",
        &format!("document.getElementById('overview-source').textContent.includes('process {process},')"),
    );
    daemon.kill();
    browser.until("it is gone", "document.getElementById('state').textContent === 'no answer'");
    daemon.restart();
    browser.until("it is back", "document.getElementById('state').textContent === 'ready'");
    let is_another = format!("!document.getElementById('overview-source').textContent.includes('process {process},')");
    browser.until("another process", &is_another);
    daemon.terminate();
}

#[test]
fn what_is_wrong_stands_first_with_what_to_do() {
    let Some(mut browser) = browser(&[]) else { return };
    let daemon = setup("dashboard-wrong").start();
    let mut page = daemon.get("/status").json();
    page["time"] = 1_795_000_000_000_i64.into();
    page["counters"] =
        json!({ "rejected": {}, "quarantined": {}, "consumed": {}, "restarts": { "spooler": 3 }, "answers": {} });
    page["latency"] = json!([[0.5, 0], [null, 0]]);
    (page["ready"], page["degraded"]) = (false.into(), true.into());
    page["refusing_events"] = "the disk is full: 71 % used".into();
    page["dependencies"]["object_store"] = json!({ "available": false, "reason": "connection refused" });
    page["actors"]["uploader"] = json!({ "state": "failing", "reason": "<img src=x onerror=alert(1)>" });
    page["halted"] = json!([{ "sink": "archive", "topic": "events", "partition": 4, "reason": "offsets 7 to 9 were removed",
        "do": "ingestd archive skip events 4 --to 10" }]);
    browser.stand_in("*/v1/live", move |_| Some((200, "text/event-stream", format!("data: {page}\n\n"))));
    browser.go(&daemon.admin_url("/"));
    browser.until("what is wrong", "document.querySelectorAll('#attention .note').length === 4");
    let notes = browser.evaluate("[...document.querySelectorAll('#attention .note')].map((it) => it.innerText)");
    for (at, parts) in [
        (0, &["Events are refused.", "the disk is full: 71 % used"][..]),
        (
            1,
            &[
                "Partition 4 of events is halted (archive).",
                "offsets 7 to 9 were removed",
                "What to do: ingestd archive skip events 4 --to 10",
            ],
        ),
        (2, &["object_store cannot be used.", "connection refused"]),
        // It is text, whatever it looks like.
        (3, &["uploader is failing.", "<img src=x onerror=alert(1)>"]),
    ] {
        let note = notes[at].as_str().expect("text");
        assert!(parts.iter().all(|part| note.contains(part)), "{note}");
    }
    assert_eq!(browser.evaluate("document.getElementById('state').textContent"), "not ready");
    let restarts = browser.evaluate(
        "[...document.querySelectorAll('.tile')].find((it) => it.innerText.startsWith('Restarts')).innerText",
    );
    assert!(restarts.as_str().expect("text").ends_with("3\nspooler 3"), "{restarts}");
    assert_no_complaint(&mut browser);
    daemon.terminate();
}

#[test]
fn axe_finds_nothing_in_any_view_in_light_and_dark_on_a_desk_and_on_a_phone() {
    let Some(mut browser) = browser(&[]) else { return };
    if !Command::new("npm").arg("--version").output().is_ok_and(|output| output.status.success()) {
        // Not among what the tests need.
        return eprintln!("\n!!! SKIPPED: there is no npm to install axe-core with\n");
    }
    let Some(packages) = sdk("axe-core") else { return };
    let daemon = setup("axe").set("event.on_invalid", "quarantine").start();
    send(&daemon, &(0..100).map(event).collect::<Vec<_>>());
    eventually("they are counted", PATIENCE, || {
        (daemon.metric("ingestd_events_aggregated_total")? >= 100.0).then_some(())
    });
    quarantine(&daemon, 5);
    browser.go(&daemon.admin_url("/"));
    browser.until("its status", "document.querySelectorAll('.tile').length > 0");
    let mut found = Vec::new();
    let mut look = |browser: &mut Browser, at: &str| {
        for theme in ["light", "dark"] {
            browser.prefer(theme);
            for (width, height) in SIZES {
                browser.resize(width, height);
                found.extend(axe(browser, &packages).into_iter().map(|rule| format!("{at}, {theme}, {width}: {rule}")));
                let over = browser.evaluate("document.documentElement.scrollWidth - innerWidth");
                assert!(over.as_i64() <= Some(0), "{at}, {width}: {over} pixels stand out to the right");
            }
        }
    };
    for name in VIEWS {
        view(&mut browser, name);
        if name == "aggregates" {
            browser.until("its ranges", "document.getElementById('range').options.length > 0");
            aggregates::choose(&mut browser, "range", "custom");
            browser.until("an answer", "!document.getElementById('answer').hidden");
            look(&mut browser, "steps of an aggregate");
            aggregates::choose(&mut browser, "rows-of", "steps");
        }
        if name == "letters" {
            browser.until("letters", "document.querySelectorAll('#letters-list tbody tr').length === 5");
        }
        look(&mut browser, name);
        if name == "letters" {
            click(&mut browser, "#letters-list button.plain", "");
            browser.until("one of them", "document.getElementById('letter').open");
            look(&mut browser, "a letter");
            click(&mut browser, "#letter button", "Purge");
            browser.until("a question", "document.getElementById('sure').open");
            look(&mut browser, "a question");
            decide(&mut browser, "Leave it");
            click(&mut browser, "#letter button", "Close");
        }
    }
    assert!(found.is_empty(), "{found:#?}");
    daemon.terminate();
}

/// What has the focus: its id, or its text.
const FOCUSED: &str =
    "((it) => it === document.body ? 'BODY' : it.id || it.textContent.trim() || it.tagName)(document.activeElement)";

#[test]
fn all_can_be_done_with_keys() {
    let Some(mut browser) = browser(&[]) else { return };
    let daemon = setup("keyboard").set("event.on_invalid", "quarantine").start();
    quarantine(&daemon, 2);
    browser.resize(1280, 900);
    browser.go(&daemon.admin_url("/#/letters"));
    browser.until("letters", "document.querySelectorAll('#letters-list tbody tr').length === 2");
    let mut walk = Vec::new();
    for _ in 0..60 {
        browser.press("Tab");
        let focused = browser.evaluate(FOCUSED).as_str().expect("text").to_owned();
        if focused == "BODY" || walk.first() == Some(&focused) {
            break;
        }
        // It is to be seen where one is.
        let seen = browser.evaluate(
            "(() => { const it = document.activeElement; const { width, height, top, bottom } = it.getBoundingClientRect(); const { \
             outlineStyle, outlineWidth } = getComputedStyle(it); return width > 0 && height > 0 && bottom > 0 && top < innerHeight && \
             outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2; })()",
        );
        assert_eq!(seen, true, "{focused} after {walk:?}");
        walk.push(focused);
    }
    let mut expected = vec!["skip", "Overview", "Aggregates", "Dead letters", "Configuration", "theme"];
    expected.extend(["reason", "found-from", "found-to", "partition", "letter-id", "limit", "closed", "List"]);
    expected.extend(["replay-chosen", "purge-chosen"]);
    assert_eq!(walk[..expected.len()], expected, "{walk:?}");
    let first = letters(&daemon, "")[0]["id"].as_str().expect("an id").to_owned();
    let at = walk.iter().position(|focused| *focused == first).unwrap_or_else(|| panic!("{first} is not in {walk:?}"));

    // A letter is opened, closed, and one is where one was.
    browser.evaluate("document.activeElement.blur()");
    browser.go(&daemon.admin_url("/?again#/letters"));
    browser.until("letters", "document.querySelectorAll('#letters-list tbody tr').length === 2");
    for _ in 0..=at {
        browser.press("Tab");
    }
    browser.press("Enter");
    browser.until("the letter", "document.getElementById('letter').open");
    assert_eq!(browser.evaluate("document.getElementById('letter').contains(document.activeElement)"), true);
    browser.press("Escape");
    browser.until("it is closed", "!document.getElementById('letter').open");
    assert_eq!(browser.evaluate(FOCUSED), Value::from(first));

    // Past the head of the page, and to another view.
    browser.go(&daemon.admin_url("/?third#/letters"));
    browser.press("Tab");
    browser.press("Enter");
    assert_eq!(browser.evaluate(FOCUSED), "main");
    browser.go(&daemon.admin_url("/?fourth#/letters"));
    for _ in 0..5 {
        browser.press("Tab");
    }
    browser.press(" ");
    browser.until("the configuration", "!document.getElementById('configuration').hidden");
    assert_eq!(browser.evaluate("document.querySelector('[aria-current=page]').textContent"), "Configuration");
    assert_eq!(browser.evaluate("document.title"), "Configuration – ingestd");
    daemon.terminate();
}

#[test]
fn letters_are_listed_shown_replayed_corrected_and_purged_when_one_is_sure() {
    let Some(mut browser) = browser(&[]) else { return };
    let daemon = setup("dashboard-letters").set("event.on_invalid", "quarantine").start();
    quarantine(&daemon, 4);
    browser.go(&daemon.admin_url("/#/letters"));
    let listed = |browser: &mut Browser, count: usize| {
        browser.until("letters", &format!("document.querySelectorAll('#letters-list tbody tr').length === {count}"));
        browser.evaluate("[...document.querySelectorAll('#letters-list tbody th')].map((it) => it.textContent)")
    };
    let ids = |letters: Vec<Value>| letters.iter().map(|letter| letter["id"].clone()).collect::<Vec<_>>();
    let of_api = ids(letters(&daemon, ""));
    assert_eq!(listed(&mut browser, 4), Value::from(of_api.clone()));
    let says = |browser: &mut Browser, sentence: &str| {
        browser
            .until(sentence, &format!("document.getElementById('letters-note').textContent.startsWith({sentence:?})"));
    };
    says(&mut browser, "4 letters.");

    // One, as it is: it is still no event. Then with another value.
    let first = of_api[0].as_str().expect("an id").to_owned();
    click(&mut browser, "#letters-list button.plain", &first);
    browser.until("the letter", "document.getElementById('letter').open");
    let letter = daemon.get(&format!("/v1/dead-letters/{first}")).json();
    let shown = browser.evaluate("document.getElementById('letter').innerText");
    let shown = shown.as_str().expect("text");
    for part in [&letter["reason"], &letter["message"], &letter["time"], &letter["id"]] {
        assert!(shown.contains(part.as_str().expect("text")), "{part} is not in {shown}");
    }
    assert_eq!(browser.evaluate("document.getElementById('value').value"), letter["value"]);
    click(&mut browser, "#letter button", "Replay as it is");
    decide(&mut browser, "Replay");
    says(&mut browser, "0 replayed, 1 refused, the first for missing_type: ");
    assert_eq!(ids(letters(&daemon, "")), of_api);
    click(&mut browser, "#letters-list button.plain", &first);
    browser.until("the letter", "document.getElementById('letter').open");
    browser.evaluate(r#"document.getElementById('value').value = '{"type":"mended","n":1}'; 0"#);
    click(&mut browser, "#letter button", "Replay with this value");
    decide(&mut browser, "Replay");
    says(&mut browser, "1 replayed. 3 letters.");
    assert_eq!(listed(&mut browser, 3), Value::from(of_api[1..].to_vec()));
    assert_eq!(daemon.get(&format!("/v1/dead-letters/{first}")).json()["state"], "replayed");
    eventually("it is counted", PATIENCE, || (daemon.metric("ingestd_events_aggregated_total")? >= 1.0).then_some(()));

    // Two are chosen; who is not sure purges nothing.
    for row in [0, 1] {
        browser.evaluate(&format!("document.querySelectorAll('#letters-list tbody input')[{row}].click()"));
    }
    click(&mut browser, "#letters button", "Purge the chosen (2)");
    decide(&mut browser, "Leave it");
    assert_eq!(letters(&daemon, "").len(), 3);
    click(&mut browser, "#letters button", "Purge the chosen (2)");
    decide(&mut browser, "Purge");
    says(&mut browser, "2 purged. 1 letter.");
    assert_eq!(ids(letters(&daemon, "")), of_api[3..]);
    assert_eq!(listed(&mut browser, 1), Value::from(of_api[3..].to_vec()));

    // What the filter says is what is asked.
    for (field, value, count) in
        [("reason", "missing_type", 1), ("reason", "invalid_json", 0), ("reason", "", 1), ("found-to", "1h", 0)]
    {
        browser.evaluate(&format!("document.getElementById({field:?}).value = {value:?}; document.querySelector('#letters-filter .primary').click()"));
        says(&mut browser, if count == 1 { "1 letter." } else { "There are none." });
        listed(&mut browser, count);
    }
    browser.evaluate("document.getElementById('found-to').value = ''; document.getElementById('closed').click()");
    click(&mut browser, "#letters-filter button", "List");
    // What was purged is no more.
    says(&mut browser, "2 letters.");
    assert_no_complaint(&mut browser);
    browser.evaluate("document.getElementById('limit').value = 'many'; 0");
    click(&mut browser, "#letters-filter button", "List");
    says(&mut browser, "Limit: \"many\" is not a number");
    daemon.terminate();
}

/// A stream that has begun, whose first bytes are read.
fn stream(daemon: &Daemon) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(daemon.admin_address()).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream.write_all(b"GET /v1/live HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it reads");
    let mut bytes = [0; 4096];
    let read = stream.read(&mut bytes).expect("an answer");
    let head = String::from_utf8_lossy(&bytes[..read]).into_owned();
    (stream, head)
}

#[test]
fn streams_are_few_say_what_there_is_and_end_with_the_daemon() {
    const MOST: usize = 32;
    let daemon = setup("streams").start();
    let mut open: Vec<_> = (0..MOST).map(|_| stream(&daemon)).collect();
    for (_, head) in &open {
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("text/event-stream"), "{head}");
    }
    let (_, head) = stream(&daemon);
    assert!(head.starts_with("HTTP/1.1 503 ") && head.to_lowercase().contains("retry-after: 5"), "{head}");
    // One that is gone makes room: it is noticed by what it does not take.
    drop(open.pop());
    let (again, _) =
        eventually("a place", PATIENCE, || Some(stream(&daemon)).filter(|(_, head)| head.starts_with("HTTP/1.1 200 ")));
    drop(again);
    // The others are told the end, and do not hold it up.
    let began = Instant::now();
    daemon.terminate();
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    for (mut stream, _) in open {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("an end");
        let rest = String::from_utf8_lossy(&rest).into_owned();
        assert!(rest.ends_with("\r\n0\r\n\r\n"), "it was cut: …{}", &rest[rest.len().saturating_sub(200)..]);
        assert!(rest.contains("\"counters\":") && rest.contains("\"latency\":["), "{rest}");
    }
}
