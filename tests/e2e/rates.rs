//! Rates and trusted proxies as operators and senders meet them: set, reached, changed while senders send.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::support::{daemon::Setup, http::Client};

/// SHA-256 of "right".
const HASH: &str = "sha256:27042f4e6eca7d0b2a7ee4026df2ecfa51d3339e6d122aa099118ecd8563bad9";
const EVENTS: usize = 10;

fn key(rate: &str) -> String {
    format!("[[http.auth.keys]]\nname = \"shop\"\nhash = \"{HASH}\"\nrate = {rate}\n")
}

/// What was answered.
#[derive(Default)]
struct Sent {
    accepted: usize,
    refused: usize,
}

/// Sends requests of ten events one after the other until it is to end.
fn send(url: &str, is_over: impl Fn() -> bool) -> Sent {
    let (client, mut sent) = (Client::new(), Sent::default());
    let body = [r#"{"type":"a"}"#; EVENTS].join("\n");
    while !is_over() {
        let reply = client.post_with(url, &[("x-api-key", "right")], body.as_bytes()).expect("an answer");
        match reply.status {
            200 => sent.accepted += EVENTS,
            429 => {
                reply.assert_problem(429);
                let wait: u64 = reply.retry_after.as_ref().expect("when").parse().expect("seconds");
                assert_eq!(wait, 1, "ten events come in a tenth of a second");
                sent.refused += 1;
                thread::sleep(Duration::from_millis(5));
            }
            other => panic!("{other}: {reply:?}"),
        }
    }
    sent
}

#[test]
fn a_key_gets_its_burst_and_its_rate_and_a_reload_of_something_else_gives_no_more() {
    const RATE: &str = "{ events_per_second = 100, burst = 200 }";
    let config = |more: &str| format!("[http]\n{more}\n{}", key(RATE));
    let daemon = Setup::new("rates").config(&config("")).start();
    let (url, is_over) = (daemon.events_url(), AtomicBool::new(false));
    let started = Instant::now();
    let (sent, elapsed) = thread::scope(|scope| {
        let senders: Vec<_> = (0..2).map(|_| scope.spawn(|| send(&url, || is_over.load(Ordering::Relaxed)))).collect();
        for round in 0..8 {
            thread::sleep(Duration::from_millis(500));
            // Unchanged rates keep what was used of them, whatever else is changed.
            daemon.write_config(&config(&format!(
                "max_events = {}\ntrusted_proxies = [\"10.0.0.{round}\"]",
                5000 + round
            )));
            let reload = daemon.reload();
            assert_eq!((reload.status, reload.json()["needs_restart"].clone()), (200, json!([])), "{reload:?}");
        }
        is_over.store(true, Ordering::Relaxed);
        let sent: Vec<Sent> = senders.into_iter().map(|sender| sender.join().expect("it sends")).collect();
        (sent, started.elapsed().as_secs_f64())
    });
    let accepted: usize = sent.iter().map(|sent| sent.accepted).sum();
    let refused: usize = sent.iter().map(|sent| sent.refused).sum();
    let (least, most) = (200.0 + 100.0 * (elapsed - 2.0) * 0.7, 200.0 + 100.0 * elapsed + 1.0);
    assert!((least..=most).contains(&(accepted as f64)), "{accepted} in {elapsed} s: {least} to {most}");
    assert!(refused > 0);
    assert_eq!(daemon.metric("ingestd_events_accepted_total"), Some(accepted as f64), "nothing of what was refused");
    assert_eq!(daemon.metric("ingestd_rate_limited_total"), Some(refused as f64));
    // A higher rate holds at once.
    daemon.write_config(&key("\"1000/s burst 1000\""));
    assert_eq!(daemon.reload().json()["applied"], json!(["http.auth.keys", "http.max_events", "http.trusted_proxies"]));
    let body = [r#"{"type":"a"}"#; 1000].join("\n");
    assert_eq!(daemon.post_with(&[("x-api-key", "right")], body.as_bytes()).status, 200);
    let shown = daemon.run(&["config"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("rate = \"none\""), "{shown:?}");
    daemon.terminate();
}

#[test]
fn what_is_wrong_with_a_rate_or_a_proxy_changes_nothing_at_a_reload() {
    let daemon = Setup::new("rates-wrong").config("").start();
    for (config, line) in [
        ("[http]\nrate = \"fast\"\n", "http.rate = \"fast\": must be the events of a second (or a minute, \"60/m\")"),
        ("[http]\ntrusted_proxies = [\"0.0.0.0/0\"]\n", "http.trusted_proxies: \"0.0.0.0/0\" is everybody"),
        (&key("\"often\""), "http.auth.keys: entry 0 (from 0): rate must be the events of a second"),
    ] {
        daemon.write_config(config);
        let reload = daemon.reload();
        assert!(reload.status == 422 && reload.body.contains(&line.replace('"', "\\\"")), "{line}: {reload:?}");
    }
    daemon.terminate();
}
