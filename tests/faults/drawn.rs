//! A schedule that a seed decides, over four daemons under load.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    load,
    report::Report,
    schedule::{Fault, Schedule, Step},
    support::{
        StopOnDrop,
        archive::Archive,
        events::Ledger,
        log::Evidence,
        oracle::{Oracle, Verdict},
        panics_on_demand,
        services::{Services, services},
    },
    world::World,
};

/// Faults of one round; a round has a topic, a bucket and a database of its own, so that the audit's size is bounded.
const ROUND: usize = 24;
/// Before which of them the aggregates that measure are rebuilt: what comes then befalls the rebuilds, too.
const REBUILT_AT: usize = 3;

/// `INGESTD_FAULTS_SEEDS`, else one from the clock.
fn seeds() -> Vec<u64> {
    match std::env::var("INGESTD_FAULTS_SEEDS") {
        Ok(seeds) => {
            let seeds = seeds.split(',').map(|seed| seed.trim().parse().expect("INGESTD_FAULTS_SEEDS: numbers"));
            seeds.collect()
        }
        Err(_) => vec![SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()],
    }
}

/// `INGESTD_FAULTS_MINUTES` for each seed, else one: CI's share.
fn length() -> Duration {
    let minutes = std::env::var("INGESTD_FAULTS_MINUTES");
    let minutes: f64 = minutes.map_or(1.0, |minutes| minutes.parse().expect("INGESTD_FAULTS_MINUTES: a number"));
    Duration::from_secs_f64(minutes * 60.0)
}

#[test]
fn whatever_fails_nothing_is_lost_and_nothing_stands_twice() {
    let Some(services) = services() else { return };
    let length = length();
    for seed in seeds() {
        eprintln!("\nfaults of seed {seed}, again with INGESTD_FAULTS_SEEDS={seed}");
        let mut report = Report::new(seed);
        let mut schedule = Schedule::of(seed);
        let mut round = 0;
        let mut verdict = Verdict::default();
        while report.elapsed() < length && verdict.is_clean() {
            round += 1;
            verdict = play(&services, &format!("faults-{seed}-{round}"), &mut schedule, length, &mut report);
        }
        eprintln!("\n{report}");
        verdict.assert_clean();
    }
}

/// One round: the daemons start, faults befall them under load, everything settles, and the audit says what it says.
fn play(services: &Services, topic: &str, schedule: &mut Schedule, length: Duration, report: &mut Report) -> Verdict {
    let ledger = Ledger::new();
    let mut world = World::new(services, topic);
    let mut oracle = Oracle::new(&ledger, Archive::new(services.bucket(topic)));
    let (url, stop) = (world.events_url(), AtomicBool::new(false));
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| load::post_until(&ledger, &url, &stop));
        let steps = schedule.filter(|step| panics_on_demand() || !step.panics()).take(ROUND);
        for (number, step) in steps.enumerate() {
            if number == REBUILT_AT {
                world.begin_rebuilds();
            }
            befall(&mut world, &mut oracle, step, report);
            if report.elapsed() >= length {
                break;
            }
        }
        stop.store(true, Ordering::Release);
    });
    let assignments = world.finish();
    let verdict = oracle.audit(&Evidence::on_services(services, topic));
    report.round(ledger.acknowledged(), assignments, world.proxy.spoiled(), &verdict);
    eprintln!("    {topic}: {verdict}");
    if !verdict.is_clean() {
        world.keep_logs(&format!("{verdict:#?}"));
    }
    verdict
}

fn befall(world: &mut World<'_>, oracle: &mut Oracle<'_>, step: Step, report: &mut Report) {
    let Step { fault, lasts, second, calm } = step;
    let elapsed = report.elapsed().as_secs_f64();
    let also = second.map_or(String::new(), |second| format!(", and in its middle: {second}"));
    eprintln!("    {elapsed:>7.1} s  {fault}, {:.1} s{also}", lasts.as_secs_f64());
    let began = Instant::now();
    world.begin(fault, oracle);
    match second {
        None => thread::sleep(lasts),
        Some(second) => {
            thread::sleep(lasts / 2);
            world.begin(second, oracle);
            report.began_fault(second, World::kills(second));
            thread::sleep(lasts / 2);
            world.end(second);
        }
    }
    world.end(fault);
    // A panic is over when it has happened; the others when they are undone.
    let over = if matches!(fault, Fault::Panic(..)) { began } else { Instant::now() };
    let recovery = world.recover(fault, over);
    eprintln!("               {recovery}");
    report.fault(fault, World::kills(fault), recovery);
    thread::sleep(calm);
}
