//! The README's pictures.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{browser, send, setup, view};
use crate::support::{PATIENCE, daemon::Daemon, eventually};

const REQUESTS: &str = r#"
[[aggregate]]
name = "requests"
window = "1m"
group_by = ["type", "client_id"]
measures = ["count", { max = "duration_ms" }, { unique = "user_id" }]
"#;

/// Sends for so long, more and less, of some clients; now and then something wrong.
fn send_for(daemon: &Daemon, time: Duration) {
    let began = Instant::now();
    let mut number = 0;
    while began.elapsed() < time {
        let busy = 1.0 + 0.5 * (began.elapsed().as_secs_f64() / 9.0).sin();
        let lines: Vec<String> = (0..fastrand::usize(1..(60.0 * busy) as usize))
            .map(|_| {
                number += 1;
                let of = ["login_success", "login_success", "page_view", "page_view", "page_view", "login_failure", "order"][number % 7];
                let client = format!("client-{}", fastrand::u8(1..4));
                let amount = f64::from(fastrand::u32(100..9000)) / 100.0;
                json!({ "type": of, "client_id": client, "amount": amount, "ip": format!("192.0.2.{}", fastrand::u8(1..30)) }).to_string()
            })
            .collect();
        send(daemon, &lines);
        if fastrand::u16(0..400) == 0 {
            send(daemon, &[json!({ "client_id": "client-2", "amount": 12.5 }).to_string()]);
        }
        std::thread::sleep(Duration::from_millis(fastrand::u64(5..60)));
    }
}

/// Of the README: what it shows has to be there, and small. `INGESTD_SCREENSHOTS=1` makes them anew.
#[test]
fn pictures_of_the_readme_are_of_this_page() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    if std::env::var_os("INGESTD_SCREENSHOTS").is_some()
        && let Some(mut browser) = browser(&["--hide-scrollbars"])
    {
        let daemon = setup("pictures")
            .config(REQUESTS)
            .set("event.on_invalid", "quarantine")
            .set("disk.max_used_percent", "90")
            .set("disk.resume_percent", "85")
            .start();
        browser.prefer("light");
        browser.resize(1280, 1100);
        browser.go(&daemon.admin_url("/"));
        send_for(&daemon, Duration::from_secs(100));
        browser.screenshot(&docs.join("dashboard-overview.png"));
        // The hour before, as it came late.
        let now = chrono::Utc::now();
        for minute in 1..60_u32 {
            let at = (now - chrono::TimeDelta::minutes(minute.into())).to_rfc3339();
            let busy = 60.0 + 30.0 * (f64::from(minute) / 8.0).sin();
            let counts = [
                ("page_view", busy),
                ("login_success", busy / 2.0 + 8.0),
                ("login_failure", if minute % 17 < 3 { 45.0 } else { 6.0 }),
            ];
            let lines = counts.into_iter().flat_map(|(of, count)| {
                let client = format!("client-{}", minute % 3);
                let line = |_| {
                    let duration = f64::from(fastrand::u32(900..9000)) * of.len() as f64 / 1000.0;
                    let user = format!("u{}", fastrand::u16(0..400));
                    json!({ "type": of, "client_id": client, "timestamp": at, "duration_ms": duration, "user_id": user }).to_string()
                };
                (0..count as usize + fastrand::usize(0..9)).map(line).collect::<Vec<_>>()
            });
            send(&daemon, &lines.collect::<Vec<_>>());
        }
        eventually("they are counted", PATIENCE, || {
            let events = &daemon.get("/status").json()["events"];
            (events["aggregated"] == events["accepted"]).then_some(())
        });
        browser.prefer("dark");
        view(&mut browser, "aggregates");
        browser.until("rows", "document.querySelectorAll('#rows tbody tr').length > 0");
        browser.resize(1280, 900);
        browser.evaluate("document.getElementById('group-1').click()");
        browser.until("fewer columns", "document.querySelectorAll('#rows thead th')[1].textContent === 'count'");
        browser.screenshot(&docs.join("dashboard-aggregates.png"));
        daemon.terminate();
    }
    let readme = std::fs::read_to_string(docs.join("../README.md")).expect("it is there");
    let named: Vec<&str> =
        readme.split("](docs/dashboard-").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    assert!(!named.is_empty());
    for name in named {
        let picture = std::fs::read(docs.join(format!("dashboard-{name}")))
            .unwrap_or_else(|error| panic!("docs/dashboard-{name}: {error}"));
        assert!(
            picture.starts_with(b"\x89PNG") && picture.len() < 200 << 10,
            "docs/dashboard-{name}: {} bytes",
            picture.len()
        );
    }
}
