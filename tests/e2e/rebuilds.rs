//! An aggregate that is counted anew from the archive has what one of its definition has that was counted live all the while: bucket
//! by bucket, whatever is killed meanwhile.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    PATIENCE, StopOnDrop,
    daemon::{Daemon, Setup},
    eventually,
    services::services,
};

/// `changed` becomes what `control` is.
fn definitions(changed: &str) -> String {
    format!("{}\n[[aggregate]]\nname = \"changed\"\n{changed}\n[[aggregate]]\nname = \"control\"\n{NEW}\n", {
        "[[aggregate]]\nname = \"all\"\nwindow = \"1h\"\ngroup_by = []\n"
    })
}

const OLD: &str = "window = \"1m\"\ngroup_by = [\"type\"]";
const NEW: &str = r#"window = "1h"
group_by = ["client_id", "/place/country"]
max_groups = 5
filter = { cost = { min = -40 } }
measures = ["count", { sum = "cost" }, { min = "cost" }, { max = "cost" }, { avg = "cost" }, { sum = "/amount" },
            { unique = "n" }, { top = "/place/country", k = 3 }]"#;

/// Of three days, five clients, seven countries.
fn event(n: u64) -> Value {
    let time = chrono::Utc::now() - chrono::TimeDelta::minutes((n * 7919 % 4320) as i64);
    let kind = ["login", "logout"][n as usize % 2];
    let country = ["DE", "FR", "IT", "ES", "PT", "AT", "CH"][(n * n % 7) as usize];
    json!({
        "type": kind, "client_id": format!("c{}", n % 5), "timestamp": time.to_rfc3339(),
        "event_id": format!("e{n}"), "cost": (n * 31 % 101) as f64 / 2.0 - 45.0, "amount": n % 17, "n": n * 13 % 400,
        "place": { "country": country },
    })
}

/// What was taken: so many events, and where the last one of each partition stands.
#[derive(Default)]
struct Sent {
    events: AtomicU64,
    last: Mutex<BTreeMap<String, String>>,
}

impl Sent {
    fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }
}

/// Sends so many, one request of 100 after the other; what may not have been taken is sent again.
fn send(daemon: &Daemon, sent: &Sent, events: u64) {
    let from = sent.events();
    let fields = [("content-type", "application/json"), ("prefer", "return=positions")];
    for first in (from..from + events).step_by(100) {
        let body = Value::from((first..first + 100).map(event).collect::<Vec<_>>()).to_string();
        let reply = eventually("they are taken", PATIENCE, || {
            let reply = daemon.post_with(&fields, body.as_bytes());
            (reply.status == 200).then_some(reply)
        });
        // A broker that has it from an earlier attempt does not say where.
        for position in reply.json()["positions"].as_array().into_iter().flatten() {
            let position = position.as_str().expect("text");
            let partition = position.split(':').next().expect("a partition");
            sent.last.lock().unwrap().insert(partition.to_owned(), position.to_owned());
        }
        sent.events.store(first + 100, Ordering::Relaxed);
    }
}

/// Until everything is counted, each partition by one of these. (A lag of 0 is one to the end that was seen last.)
fn wait_counted<'a>(daemons: impl IntoIterator<Item = &'a Daemon> + Clone, sent: &Sent) {
    for position in sent.last.lock().unwrap().values() {
        let path = format!("/v1/aggregates/all?limit=1&after={position}");
        eventually(&format!("{position} is counted"), PATIENCE, || {
            daemons.clone().into_iter().any(|daemon| daemon.get(&path).status == 200).then_some(())
        });
    }
    let daemon = daemons.into_iter().next().expect("a daemon");
    eventually("all are counted", PATIENCE, || (total(&rows(daemon, "all")) >= sent.events()).then_some(()));
}

fn rows(daemon: &Daemon, name: &str) -> Value {
    let reply = daemon.get(&format!("/v1/aggregates/{name}?from=-5d&limit=100000"));
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()["rows"].take()
}

fn total(rows: &Value) -> u64 {
    rows.as_array().expect("rows").iter().map(|row| row["count"].as_u64().expect("a count")).sum()
}

/// What `changed` and `control` have is the same.
#[track_caller]
fn assert_same(daemon: &Daemon) {
    let (changed, control) = (rows(daemon, "changed"), rows(daemon, "control"));
    let by_window = |rows: &Value| {
        rows.as_array().expect("rows").iter().map(|row| (row.to_string(), total(&json!([row])))).collect::<Vec<_>>()
    };
    let (changed, control) = (by_window(&changed), by_window(&control));
    let differ: Vec<_> = changed.iter().zip(&control).filter(|(changed, control)| changed != control).take(3).collect();
    assert!(changed == control, "{} and {} rows; {differ:#?}", changed.len(), control.len());
    assert!(control.iter().any(|(row, _)| row.contains("…other")), "max_groups was never reached");
}

/// Starts it anew, with `changed` as it is to be; nothing is counted until that is rebuilt.
fn change(daemon: &mut Daemon) {
    daemon.terminate();
    daemon.write_config(&definitions(NEW));
    daemon.respawn();
    let reason = eventually("the changed definition is refused", PATIENCE, || {
        let readiness = daemon.try_readiness()?.to_string();
        readiness.contains("ingestd rebuild changed").then_some(readiness)
    });
    assert!(reason.contains("was counted with window 1m"), "{reason}");
}

fn rebuilt_and_killed(mut daemon: Daemon) {
    let sent = Sent::default();
    send(&daemon, &sent, 30_000);
    wait_counted([&daemon], &sent);
    let old = rows(&daemon, "changed");
    assert_eq!(total(&old), 30_000);
    change(&mut daemon);

    let begun = daemon.ask("POST", "/v1/aggregates/changed/rebuild");
    assert_eq!((begun.status, begun.json()["state"].as_str()), (202, Some("running")), "{begun:?}");
    eventually("it is shown", PATIENCE, || {
        (daemon.metric("ingestd_rebuild_partitions")? > 0.0).then_some(daemon.metric("ingestd_rebuild_records")?)
    });
    let mut interrupted = 0;
    for pause in [0, 300, 900, 1500] {
        thread::sleep(Duration::from_millis(pause));
        daemon.kill();
        daemon.wait_exit(PATIENCE);
        daemon.restart();
        let progress = daemon.get("/v1/aggregates/changed/rebuild").json();
        if progress["state"] == "running" {
            interrupted += 1;
            // The old buckets answer.
            let group = rows(&daemon, "changed")[0]["group"].clone();
            let still = daemon.get("/v1/aggregates/changed/rebuild").json()["state"] == "running";
            assert!(!still || group.get("type").is_some(), "{group}");
        }
        send(&daemon, &sent, 500);
    }
    assert!(interrupted > 0, "it was over before it was killed");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                send(&daemon, &sent, 100);
            }
        });
        let ran = daemon.command(&["rebuild", "changed", "--status"]);
        assert_eq!(ran.status, Some(0), "{ran:?}");
        eventually("it is rebuilt", PATIENCE, || {
            (daemon.get("/v1/aggregates/changed/rebuild").json()["state"] == "done").then_some(())
        });
        // It answers the new way from now on, and goes on being counted.
        thread::sleep(Duration::from_secs(1));
    });
    eventually("it is shown no more", PATIENCE, || daemon.metric("ingestd_rebuild_partitions").is_none().then_some(()));
    wait_counted([&daemon], &sent);
    assert_same(&daemon);
    let all = total(&rows(&daemon, "all"));
    assert!(all >= sent.events(), "{all}");
    daemon.kill();
    daemon.wait_exit(PATIENCE);
    daemon.restart();
    wait_counted([&daemon], &sent);
    assert_same(&daemon);
    assert_eq!(total(&rows(&daemon, "all")), all);
    daemon.terminate();
    daemon.assert_no_panic();
}

#[test]
fn a_rebuild_that_is_killed_ends_with_what_was_counted_live_alone() {
    rebuilt_and_killed(Setup::new("rebuilt").config(&definitions(OLD)).start());
}

#[test]
fn a_rebuild_that_is_killed_ends_with_what_was_counted_live_on_services() {
    let Some(services) = services() else { return };
    services.create_bucket("rebuilt");
    services.create_topic("rebuilt", 3);
    rebuilt_and_killed(services.setup("rebuilt").config(&definitions(OLD)).start());
}

/// By the hour; `partly` measures more from now on.
fn partly(measures: &str) -> String {
    format!(
        "[[aggregate]]\nname = \"all\"\nwindow = \"1h\"\ngroup_by = []\n
         [[aggregate]]\nname = \"control\"\nwindow = \"1h\"\ngroup_by = [\"client_id\"]\n
         [[aggregate]]\nname = \"partly\"\nwindow = \"1h\"\ngroup_by = [\"client_id\"]\n{measures}"
    )
}

#[test]
fn windows_that_are_not_rebuilt_are_counted_on_by_two_processes_and_no_event_is_lost_or_doubled() {
    let Some(services) = services() else { return };
    services.create_bucket("partly");
    services.create_topic("partly", 3);
    let worker = |config: &str| services.setup("partly").roles("worker").config(config).start();
    let ingest = services.setup("partly").roles("ingest").start();
    let before = [worker(&partly("")), worker(&partly(""))];
    let sent = Sent::default();
    send(&ingest, &sent, 10_000);
    wait_counted(&before, &sent);
    before.iter().for_each(Daemon::terminate);
    let workers = [0, 1].map(|_| {
        let setup = services.setup("partly").roles("worker").config(&partly("measures = [{ sum = \"cost\" }]"));
        let worker = setup.spawn();
        eventually("it listens", PATIENCE, || worker.try_readiness());
        worker
    });
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        // Most of them of windows that are not rebuilt.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                send(&ingest, &sent, 100);
            }
        });
        let ran = workers[0].command(&["rebuild", "partly", "--from", "-6h", "--detach", "--json"]);
        assert_eq!(ran.json(0)["state"], "running", "{ran:?}");
        services.grow_topic("partly", 4);
        eventually("it is rebuilt", PATIENCE, || {
            (workers[1].get("/v1/aggregates/partly/rebuild").json()["state"] == "done").then_some(())
        });
        thread::sleep(Duration::from_secs(3));
    });
    // The new partition is found by and by.
    wait_counted(&workers, &sent);
    let counts = |name: &str| {
        let rows = rows(&workers[0], name);
        let rows = rows.as_array().expect("rows").iter();
        rows.map(|row| (row["window_start"].clone(), row["group"].clone(), row["count"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(total(&rows(&workers[0], "control")), sent.events());
    let (partly, control) = (counts("partly"), counts("control"));
    let differ: Vec<_> = partly.iter().zip(&control).filter(|(partly, control)| partly != control).take(3).collect();
    assert!(partly == control, "{} and {} rows; {differ:#?}", partly.len(), control.len());
    // What was rebuilt is measured, also of the events before.
    let last = rows(&workers[0], "partly");
    let last = last.as_array().and_then(|rows| rows.last()).expect("a row");
    assert!(last["measures"]["sum(cost)"].is_number(), "{last}");
    workers.iter().for_each(Daemon::terminate);
    ingest.terminate();
}

#[test]
fn a_range_that_would_lose_counts_is_refused_until_that_is_wanted() {
    let mut daemon = Setup::new("refused").config(&definitions(OLD)).start();
    let sent = Sent::default();
    send(&daemon, &sent, 1000);
    wait_counted([&daemon], &sent);
    change(&mut daemon);
    let ran = daemon.command(&["rebuild", "changed", "--from", "-2h"]);
    assert_eq!(ran.status, Some(1), "{ran:?}");
    assert!(ran.error.contains("cannot be kept, since window, time_zone or group_by has changed"), "{ran:?}");
    assert!(ran.error.contains("--drop"), "{ran:?}");
    assert_eq!(total(&rows(&daemon, "changed")), 1000, "the old counts answer");
    let ran = daemon.command(&["rebuild", "changed", "--from", "-2h", "--drop"]);
    assert_eq!(ran.status, Some(0), "{ran:?}");
    let (changed, control) = (rows(&daemon, "changed"), rows(&daemon, "control"));
    assert!(total(&changed) < total(&control), "{changed}");
    let ran = daemon.command(&["rebuild", "changed"]);
    assert_eq!((ran.status, ran.error.as_str()), (Some(0), ""), "{ran:?}");
    assert_same(&daemon);
    for (arguments, part) in [
        (&["rebuild", "nothing"][..], "there is no aggregate \"nothing\""),
        (&["rebuild", "changed", "--to", "-5x"], "to: \"-5x\" is no time so long ago"),
        (&["rebuild", "changed", "--cancel"], "is not being rebuilt"),
    ] {
        let ran = daemon.command(arguments);
        assert!(ran.status == Some(1) && ran.error.contains(part), "{ran:?}");
    }
    daemon.terminate();
}
