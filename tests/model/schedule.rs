//! Schedules: what happens, in which order, to which worker. A failing one is shrunk by leaving steps out.

use std::{collections::BTreeMap, ops::Range};

/// One step. What `choice` means is the operation's business; every value is allowed.
#[derive(Debug, Clone, Copy)]
pub struct Step<Op> {
    pub op: Op,
    pub worker: usize,
    pub choice: u32,
}

pub const WORKERS: usize = 3;

/// A rule was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub String);

/// What a run came across, so that a test can tell that it met what it is about.
pub type Seen = BTreeMap<&'static str, u64>;

/// What a run says of itself: always what it has seen, and its story where somebody wants to read it.
#[derive(Default)]
pub struct Trace {
    pub seen: Seen,
    pub story: Option<Vec<String>>,
}

impl Trace {
    pub fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    pub fn say(&mut self, what: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(what());
        }
    }
}

/// How schedules are drawn.
pub struct Draw<'a, Op> {
    /// How often each operation comes, beside the others.
    pub weights: &'a [(Op, u32)],
    pub steps: Range<usize>,
}

fn generate<Op: Copy>(random: &mut fastrand::Rng, draw: &Draw<'_, Op>) -> Vec<Step<Op>> {
    let weights = draw.weights;
    let total: u32 = weights.iter().map(|(_, weight)| weight).sum();
    let length = random.usize(draw.steps.clone());
    let step = |random: &mut fastrand::Rng| {
        let mut at = random.u32(0..total);
        let (op, _) = weights
            .iter()
            .find(|(_, weight)| {
                let found = at < *weight;
                at = at.saturating_sub(*weight);
                found
            })
            .expect("below the total");
        // Half of the steps go to the first worker, so that there is progress.
        let worker = if random.bool() { random.usize(0..WORKERS) } else { 0 };
        Step { op: *op, worker, choice: random.u32(0..1 << 16) }
    };
    (0..length).map(|_| step(random)).collect()
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// The schedule that breaks a rule.
pub struct Broken<Op> {
    case: u64,
    schedule: Vec<Step<Op>>,
}

/// Runs schedules until one breaks a rule, at most `cases`; the first that does, and what was seen.
pub fn search<Op: Copy>(
    cases: u64,
    draw: &Draw<'_, Op>,
    run: impl Fn(&[Step<Op>], &mut Trace) -> Result<(), Violation>,
) -> (Option<Broken<Op>>, Seen) {
    let first = number("INGESTD_MODEL_SEED", 1) << 32;
    let mut trace = Trace::default();
    for case in 0..cases {
        let schedule = generate(&mut fastrand::Rng::with_seed(first + case), draw);
        if run(&schedule, &mut trace).is_err() {
            return (Some(Broken { case, schedule }), trace.seen);
        }
    }
    (None, trace.seen)
}

/// The rules hold in all schedules (`INGESTD_MODEL_CASES`, or `cases`), and each of `met` was seen.
pub fn holds<Op: Copy>(
    cases: u64,
    draw: &Draw<'_, Op>,
    met: &[&str],
    run: impl Fn(&[Step<Op>], &mut Trace) -> Result<(), Violation>,
) {
    let cases = number("INGESTD_MODEL_CASES", cases);
    let (broken, seen) = search(cases, draw, &run);
    eprintln!("{cases} schedules, seen: {seen:?}");
    if let Some(Broken { case, schedule }) = broken {
        let schedule = shrink(schedule, &run);
        let mut trace = Trace { story: Some(Vec::new()), ..Trace::default() };
        let violation = run(&schedule, &mut trace).expect_err("shrinking keeps the violation");
        panic!("schedule {case}: {}\n  {}", violation.0, trace.story.unwrap_or_default().join("\n  "));
    }
    for what in met {
        assert!(seen.contains_key(what), "no schedule met: {what}");
    }
}

/// With a rule taken out, some schedule breaks what the rule is for.
pub fn breaks<Op: Copy>(
    cases: u64,
    draw: &Draw<'_, Op>,
    run: impl Fn(&[Step<Op>], &mut Trace) -> Result<(), Violation>,
) {
    let (broken, _) = search(cases, draw, &run);
    assert!(broken.is_some(), "{cases} schedules hold without the rule: the model does not see what it is for");
}

fn shrink<Op: Copy>(
    mut schedule: Vec<Step<Op>>,
    run: impl Fn(&[Step<Op>], &mut Trace) -> Result<(), Violation>,
) -> Vec<Step<Op>> {
    let mut size = schedule.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < schedule.len() {
            let mut less = schedule.clone();
            less.drain(at..less.len().min(at + size));
            if run(&less, &mut Trace::default()).is_err() {
                schedule = less;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    schedule
}
