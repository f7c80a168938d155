//! The view of aggregates, on answers that the test makes up: such as have all that an answer may have.

use std::fs;

use serde_json::{Value, json};
use url::Url;

use super::{assert_no_complaint, browser, click, setup, view};
use crate::support::{PATIENCE, eventually, scratch};

const SUM: &str = "123456789012345678901234567890.1234567890123456";

/// What the daemon would answer.
fn answer(url: &str) -> Option<(&'static str, String)> {
    let url = Url::parse(url).ok()?;
    let given = |name: &str| url.query_pairs().find(|(given, _)| given == name).map(|(_, value)| value.into_owned());
    if url.path() == "/v1/aggregates" {
        let measures = ["count", "sum(/amount)", "avg(/amount)", "unique(user_id)", "top(ip)"];
        let about =
            [("sum(/amount)", "sum"), ("avg(/amount)", "avg"), ("unique(user_id)", "unique"), ("top(ip)", "top")];
        let about: serde_json::Map<_, _> =
            about.into_iter().map(|(label, function)| (label.to_owned(), json!({ "function": function }))).collect();
        let mut purchases =
            json!({ "name": "purchases", "window": "1m", "group_by": ["client_id", "type"], "measures": measures });
        purchases["about"] = about.into();
        let daily = json!({ "name": "daily", "window": "1day", "time_zone": "Europe/Berlin", "group_by": [], "measures": ["count"] });
        return Some(("application/json", json!({ "aggregates": [purchases, daily] }).to_string()));
    }
    if given("format").as_deref() == Some("csv") {
        return Some(("text/csv", "window_start,client_id,type,count\n2026-11-23T08:00:00Z,a,login,3\n".to_owned()));
    }
    let is_whole = given("group_by").as_deref() == Some("");
    let row = |minute: u32, client: &str, count: u64| {
        let group = if is_whole { json!({}) } else { json!({ "client_id": client, "type": null }) };
        let start = format!("2026-11-23T08:{minute:02}:00Z");
        let top = json!([{ "value": "10.0.0.1", "count": 7 }, { "value": null, "count": 2 }]);
        let measures = json!({ "sum(/amount)": "SUM", "avg(/amount)": null, "unique(user_id)": 2, "top(ip)": top });
        json!({ "window_start": start, "group": group, "count": count, "measures": measures, "errors": { "top(ip)": 1 } })
    };
    // Two pages, by the cursor.
    let (rows, next) = match given("cursor").as_deref() {
        _ if is_whole => (vec![row(0, "", 12)], None),
        None => (vec![row(0, "a", 5), row(0, "…other", 7)], Some("a-b_C")),
        Some("a-b_C") => (vec![row(3, "a", 1)], None),
        Some(other) => panic!("no cursor of ours: {other}"),
    };
    let mut answered = json!({ "aggregate": "purchases", "window": "1m", "rows": rows });
    if let Some(next) = next {
        answered["next"] = next.into();
    }
    Some(("application/json", answered.to_string().replace("\"SUM\"", SUM)))
}

const ROWS: &str =
    "[...document.querySelectorAll('#rows tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))";

#[test]
fn an_aggregate_is_drawn_its_numbers_stand_beside_it_and_are_downloaded() {
    let Some(mut browser) = browser(&[]) else { return };
    let daemon = setup("dashboard-aggregates").start();
    browser.stand_in("*/v1/aggregates*", answer);
    let folder = tempfile::Builder::new().prefix("downloads").tempdir_in(scratch()).expect("target can be written to");
    browser.download_to(folder.path());
    browser.call("Emulation.setTimezoneOverride", json!({ "timezoneId": "UTC" }));
    browser.go(&daemon.admin_url("/"));
    view(&mut browser, "aggregates");
    browser.until("rows", "document.querySelectorAll('#rows tbody tr').length === 3");
    let rest = |count: &str| json!([count, SUM, "–", "2", "10.0.0.1 (7 ±1), (none) (2 ±1)"]);
    let row = |start: &str, client: &str, count: &str| {
        let mut row = vec![json!(format!("2026-11-23 08:{start}:00")), json!(client), json!("(none)")];
        row.extend(rest(count).as_array().expect("a list").clone());
        Value::from(row)
    };
    assert_eq!(browser.evaluate(ROWS), json!([row("03", "a", "1"), row("00", "…other", "7"), row("00", "a", "5")]));
    // A line for each group, of which there is nothing where nothing was.
    let series = "[...document.querySelectorAll('#answer-chart tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))";
    let expected = json!([["…other, (none)", "7", "0", "1.75", "0", "7"], ["a, (none)", "6", "1", "1.5", "0", "5"]]);
    assert_eq!(browser.evaluate(series), expected);
    assert_eq!(browser.evaluate("document.querySelectorAll('#answer-chart canvas').length"), 1);

    // What is chosen is what is asked.
    let asked = |browser: &crate::support::devtools::Browser| {
        let last = browser.requests.iter().rev().find(|url| url.contains("/v1/aggregates/")).expect("it asked");
        Url::parse(last)
            .expect("a URL")
            .query_pairs()
            .map(|(name, value)| format!("{name}={value}"))
            .collect::<Vec<_>>()
    };
    assert_eq!(asked(&browser), ["from=-1h", "to=now", "step=1m", "limit=2000", "cursor=a-b_C"]);
    browser.evaluate(
        "{ const at = (id) => document.getElementById(id); const set = (id, value) => { at(id).value = value; \
         at(id).dispatchEvent(new Event('change')); }; set('range', '24h'); set('step', '30m'); set('measure', 'unique(user_id)'); \
         at('where-1').value = 'a:b c'; for (const box of document.querySelectorAll('#groups input')) box.click(); 0 }",
    );
    click(&mut browser, "#question button", "Ask");
    browser.until("the whole", "document.querySelectorAll('#rows tbody tr').length === 1");
    assert_eq!(asked(&browser), ["from=-24h", "to=now", "step=30m", "where=type:a:b c", "limit=2000", "group_by="]);
    assert!(
        browser
            .evaluate("document.getElementById('answer-title').textContent")
            .as_str()
            .expect("text")
            .starts_with("purchases: unique(user_id)")
    );
    click(&mut browser, "#question button", "Download CSV");
    let file = eventually("the file", PATIENCE, || {
        fs::read_to_string(folder.path().join("purchases.csv")).ok().filter(|text| !text.is_empty())
    });
    assert_eq!(
        file.lines().collect::<Vec<_>>(),
        ["window_start,client_id,type,count", "2026-11-23T08:00:00Z,a,login,3"]
    );
    assert!(asked(&browser).contains(&"format=csv".to_owned()), "{:?}", asked(&browser));

    // One of days has steps of days.
    browser.evaluate("{ const it = document.getElementById('aggregate'); it.value = 'daily'; it.dispatchEvent(new Event('change')); 0 }");
    browser.until("days", "document.getElementById('step').value === '1d'");
    assert_eq!(browser.evaluate("document.getElementById('where').hidden"), true);
    assert_no_complaint(&mut browser);
    daemon.terminate();
}
