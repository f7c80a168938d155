//! The open door: what hostile requests and clients get, and that nothing else comes of them.

mod behaviour;
mod shapes;
mod table;
mod tls;

use std::{collections::BTreeSet, io::Write, path::Path, thread};

use self::{
    behaviour::{BEHAVIOURS, Behaviour},
    table::{MARK, cases, event, sized},
};
use crate::support::{
    PATIENCE,
    archive::Archive,
    daemon::{Daemon, Setup},
    eventually,
    openapi::{self, Answered},
    raw::{Answer, connect, exchange},
};

/// What `docs/hostile.md` promises: `http.max_in_flight`, twice for the bodies that are being put together, and what
/// the rest of the process and 2,000 connections need.
const MEMORY: u64 = 320 << 20;

fn good(daemon: &Daemon, name: &str) -> Vec<u8> {
    let event = event(name);
    let outcome = exchange(daemon.http_address(), &sized("", &event), 1, false, PATIENCE);
    assert_eq!(outcome.summary(), "200", "{name}: the door is open to others");
    event
}

/// Refusals are problems, or name each event; none says again what it was sent.
fn check_answer(name: &str, answer: &Answer) {
    let body = String::from_utf8_lossy(&answer.body);
    assert!(!answer.head.contains(MARK) && !body.contains(MARK), "{name}: {} {body}", answer.head);
    let is_head = name == "HEAD";
    if answer.status < 400 {
        return;
    }
    if answer.head.contains("content-type: application/problem+json") {
        let problem: Option<serde_json::Value> = serde_json::from_slice(&answer.body).ok();
        assert!(is_head || problem.is_some_and(|problem| problem["status"] == answer.status), "{name}: {body}");
    } else if answer.head.contains("content-type: application/x-protobuf") || body.starts_with("{\"code\":") {
        // A `google.rpc.Status`, as exporters of logs read it.
        assert!(!answer.body.is_empty(), "{name}: {}", answer.head);
    } else {
        assert!(answer.status == 400 && body.contains(r#""errors":[{"#), "{name}: {} {body}", answer.head);
    }
}

/// What the listener's own document says of such a request, where it is one, holds for hostile ones, too.
fn check_described(sent: &[u8], answer: &Answer) {
    let line = sent.split(|byte| *byte == b'\r').next().and_then(|line| std::str::from_utf8(line).ok());
    let mut words = line.unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some("HTTP/1.1"), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return;
    };
    let field = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    let headers = answer.head.lines().filter_map(field).collect();
    if answer.status >= 200 {
        openapi::check(&Answered { method, target, status: answer.status, headers, body: &answer.body });
    }
}

/// A daemon that has what it needs open, and how many sockets that is.
fn start(name: &str, request_timeout: &str) -> (Daemon, usize, Vec<Vec<u8>>) {
    let daemon =
        Setup::new(name).set("http.request_timeout", request_timeout).set("http.source", shapes::SOURCE).start();
    let stored = vec![good(&daemon, "before")];
    let sockets = daemon.open_sockets();
    (daemon, sockets, stored)
}

/// Runs them at the same time; what of theirs is stored is `stored`.
fn run(daemon: &Daemon, behaviours: &[&'static Behaviour], stored: &mut Vec<Vec<u8>>) {
    let address = daemon.http_address();
    thread::scope(|scope| {
        let run = |behaviour: &&'static Behaviour| (*behaviour, scope.spawn(|| (behaviour.run)(address)));
        let mut wrong = Vec::new();
        for (behaviour, running) in behaviours.iter().map(run).collect::<Vec<_>>() {
            let got = running.join().unwrap_or_else(|_| "a panic".to_owned());
            eprintln!("hostile: {}: {got}", behaviour.name);
            wrong.extend(
                (got != behaviour.gets).then(|| format!("{} got {got}, not {}", behaviour.name, behaviour.gets)),
            );
            stored.extend(behaviour.stored.then(|| event(behaviour.name)));
        }
        assert!(wrong.is_empty(), "{}", wrong.join("; "));
    });
}

/// The door is open to others, and of those that were hostile nothing is held, logged or stored but `stored`.
fn check_nothing_else_is_left(daemon: Daemon, sockets: usize, mut stored: Vec<Vec<u8>>) {
    stored.push(good(&daemon, "after"));
    eventually("connections are closed", PATIENCE, || (daemon.open_sockets() <= sockets + 2).then_some(()));
    assert_eq!(daemon.metric("ingestd_in_flight_bytes"), Some(0.0), "all shares of http.max_in_flight are back");
    let peak = daemon.peak_memory();
    eprintln!("hostile: peak memory {} MiB", peak >> 20);
    assert!(peak < MEMORY, "{peak} bytes of memory, more than {MEMORY}");
    let log = daemon.log();
    let loud: Vec<_> = log.lines().filter(|line| line.contains(" ERROR ") || line.contains(" WARN ")).collect();
    assert!(loud.is_empty(), "clients write no lines into the log: {loud:?}");
    assert_eq!(daemon.metric("ingestd_events_accepted_total"), Some(stored.len() as f64));
    daemon.wait_read(stored.len());
    daemon.terminate();

    let mut archive = Archive::local(&daemon.data().join("archive"));
    archive.refresh();
    let mut archived: Vec<Vec<u8>> = archive.lines().map(|line| line.value.clone().unwrap_or_default()).collect();
    archived.sort();
    stored.sort();
    let texts = |values: &[Vec<u8>]| -> Vec<String> {
        values.iter().map(|value| String::from_utf8_lossy(&value[..value.len().min(200)]).into_owned()).collect()
    };
    assert!(archived == stored, "archived {:?}\nexpected {:?}", texts(&archived), texts(&stored));
}

#[test]
fn hostile_requests_get_what_the_table_says_and_leave_nothing_behind() {
    let (daemon, sockets, mut stored) = start("hostile", "2s");
    for case in cases() {
        let answers = case.gets.split(" × ").next().and_then(|count| count.parse().ok());
        let answers = answers
            .filter(|_| case.gets.contains('×'))
            .unwrap_or(case.gets.split(", ").filter(|word| *word != "closed").count());
        let outcome = exchange(daemon.http_address(), &case.sent, answers, case.gets.ends_with("closed"), PATIENCE);
        assert_eq!(outcome.summary(), case.gets, "{}: {outcome:?}", case.name);
        outcome.answers.iter().for_each(|answer| {
            check_answer(case.name, answer);
            check_described(&case.sent, answer);
        });
        stored.extend(case.stored);
    }
    stored.push(good(&daemon, "between"));
    let at_once: Vec<_> = BEHAVIOURS.iter().filter(|behaviour| !behaviour.alone).collect();
    run(&daemon, &at_once, &mut stored);
    check_nothing_else_is_left(daemon, sockets, stored);
}

#[test]
fn hostile_clients_that_need_the_machine_for_themselves_get_what_the_table_says_and_leave_nothing_behind() {
    // Their bodies are large, and a busy machine needs longer for them than the daemon gives by default.
    let (daemon, sockets, mut stored) = start("hostile-alone", "60s");
    for behaviour in BEHAVIOURS.iter().filter(|behaviour| behaviour.alone) {
        run(&daemon, &[behaviour], &mut stored);
    }
    check_nothing_else_is_left(daemon, sockets, stored);
}

#[test]
fn the_documented_table_of_hostile_requests_is_the_tested_one() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/hostile.md"));
    let text = text.expect("it is there");
    let (_, tables) = text.split_once("\n## Where a request ends\n").expect("the tables begin here");
    let rows = tables.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        Some((cells.next()?.to_owned(), cells.next()?.to_owned()))
    });
    let documented: BTreeSet<_> = rows.filter(|(name, _)| name != "request" && name != "---").collect();
    let tested = cases().into_iter().map(|case| (case.name, case.gets));
    let tested = tested.chain(BEHAVIOURS.iter().map(|behaviour| (behaviour.name, behaviour.gets)));
    let tested: BTreeSet<_> = tested.map(|(name, gets)| (name.to_owned(), gets.to_owned())).collect();
    let differences: Vec<_> = tested.symmetric_difference(&documented).collect();
    assert!(differences.is_empty(), "only in the tests, or only in docs/hostile.md: {differences:#?}");
}

#[test]
fn a_stuck_scraper_does_not_lock_operators_out() {
    let daemon = Setup::new("scrapers").start();
    let ready = b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n";
    let sockets = daemon.open_sockets();
    // More than admin.listen takes at a time, each in the middle of its second request.
    let stuck = [&ready[..], b"GET /metr"].concat();
    let crowd: Vec<_> = (0..300)
        .map(|_| {
            let mut stream = connect(daemon.admin_address());
            stream.write_all(&stuck).expect("the kernel takes it");
            stream
        })
        .collect();
    let outcome = exchange(daemon.admin_address(), ready, 1, false, PATIENCE);
    assert_eq!(outcome.summary(), "200");
    drop(crowd);
    eventually("connections are closed", PATIENCE, || (daemon.open_sockets() <= sockets + 2).then_some(()));
    daemon.terminate();
}
