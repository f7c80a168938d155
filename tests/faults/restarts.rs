//! Kafka restarts again and again, in order, as in a rolling update: a broker that goes is the last one that its
//! clients know, and they must find it again each time.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    load,
    support::{
        StopOnDrop, archive::Archive, events::Ledger, log::Evidence, measured::DEFINITIONS, oracle::Oracle,
        services::services,
    },
};

/// librdkafka lost its way in about one of ten; `INGESTD_FAULTS_RESTARTS` makes it more.
const RESTARTS: usize = 2;
/// The broker's start, and then what a client takes to be given up and replaced.
const BOUND: Duration = Duration::from_secs(120);

#[test]
fn every_client_finds_kafka_again_after_each_restart() {
    let Some(services) = services() else { return };
    let restarts = std::env::var("INGESTD_FAULTS_RESTARTS");
    let restarts = restarts.map_or(RESTARTS, |count| count.parse().expect("INGESTD_FAULTS_RESTARTS: a number"));
    let topic = "faults-restarts";
    services.create_bucket(topic);
    let setup = |roles| {
        services
            .setup(topic)
            .config(DEFINITIONS)
            .roles(roles)
            .set("store.events", "true")
            .set("http.request_timeout", "5s")
    };
    let members: Vec<_> = ["ingest", "worker", "worker"].into_iter().map(|roles| setup(roles).start()).collect();
    let ledger = Ledger::new();
    let mut oracle = Oracle::new(&ledger, Archive::new(services.bucket(topic)));
    let (url, stop) = (members[0].events_url(), AtomicBool::new(false));
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| load::post_until(&ledger, &url, &stop));
        for restart in 1..=restarts {
            thread::sleep(Duration::from_secs(2));
            services.kafka.process().signal("TERM");
            assert!(services.kafka.process().wait(BOUND).is_some(), "Kafka stops when it is asked to");
            services.kafka.restart();
            let (since, before) = (Instant::now(), ledger.acknowledged());
            loop {
                let readiness: Vec<_> = members.iter().map(|member| member.readiness()).collect();
                let well = readiness.iter().all(|it| it["ready"] == true && it["degraded"] == false);
                if well && ledger.acknowledged() > before {
                    break;
                }
                assert!(since.elapsed() < BOUND, "{BOUND:?} after restart {restart}: {readiness:?}");
                thread::sleep(Duration::from_millis(100));
            }
            eprintln!("    restart {restart}: all is well after {:.1} s", since.elapsed().as_secs_f64());
        }
        stop.store(true, Ordering::Release);
    });
    oracle.settle(&members.iter().collect::<Vec<_>>(), BOUND);
    for member in &members {
        member.signal("TERM");
        assert_eq!(member.wait_exit(BOUND), 0);
    }
    let replaced = members.iter().filter(|member| member.log().contains("finds no broker any more")).count();
    eprintln!("    daemons that replaced a client: {replaced}");
    oracle.audit(&Evidence::on_services(&services, topic)).assert_clean();
}
