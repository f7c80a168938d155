use crossbeam_channel::{Receiver, unbounded};
use proptest::prelude::*;

use super::*;
use crate::{log::record::RecordBuffer, position::Timestamp};

const P: Partition = Partition(0);

/// A source's end, and what its consumer is told.
struct Sink {
    reader: SharedReader,
    told: Receiver<SourceEvent>,
}

impl Sink {
    fn new(reads: &SharedReads, budget: u64) -> Self {
        let (sender, told) = unbounded();
        let events: SourceEvents = Arc::new(move |event| drop(sender.send(event)));
        let budget = ByteBudget::new(budget, Gauge::default());
        let mut reader = SharedReader::new(reads.clone(), events, budget, Gauge::default());
        reader.belongs_to(TopicIdentity("a".into()));
        Self { reader, told }
    }

    /// The ranges of the batches that it was handed, each by its epoch.
    fn ranges(&self) -> Vec<(Epoch, u64, u64)> {
        let events = self.told.try_iter();
        let batches = events.filter_map(|event| match event {
            SourceEvent::Batch(batch) => Some((batch.epoch, batch.from.0, batch.to.0)),
            _ => None,
        });
        batches.collect()
    }

    fn attach(&self, at: u64) -> Option<Epoch> {
        let epoch = Epoch::fresh();
        self.reader.attach(P, epoch, Offset(at), Instant::now()).then_some(epoch)
    }

    fn reads(&self, handed: u64, fetched: u64) {
        self.reader.reads(P, Offset(handed), Offset(fetched));
    }

    fn hands(&self, from: u64, to: u64) {
        let mut records = RecordBuffer::default();
        for offset in from..to {
            records.push(Offset(offset), Timestamp(0), None, Some(b"{}"), []);
        }
        let (permit, records) = (self.reader.budget().take(records.size()), Arc::new(records));
        let batch = Batch { partition: P, epoch: Epoch::fresh(), from: Offset(from), to: Offset(to), records, permit };
        self.reader.hand(&batch, None);
    }
}

fn two() -> (Sink, Sink) {
    let reads = SharedReads::default();
    (Sink::new(&reads, 1 << 20), Sink::new(&reads, 1 << 20))
}

#[test]
fn one_reads_for_both_from_where_the_other_was() {
    let (one, other) = two();
    assert_eq!(other.attach(0), None, "nobody reads");
    one.reads(10, 30);
    let epoch = other.attach(20).unwrap();
    assert_eq!(one.attach(10), None, "somebody has to read");
    one.hands(10, 15);
    one.hands(15, 25);
    assert_eq!(other.ranges(), [], "what it had read itself comes first");
    other.reader.open(P);
    one.hands(25, 26);
    assert_eq!(other.ranges(), [(epoch, 20, 25), (epoch, 25, 26)]);
    assert!(other.reader.is_fed(P));
    assert_eq!(other.reader.detach(P), Some(Offset(26)));
    one.hands(26, 27);
    assert_eq!(other.ranges(), []);
}

#[test]
fn only_a_source_that_is_at_the_same_place_of_the_same_topic_attaches_itself() {
    let (one, mut other) = two();
    one.reads(100, 200);
    assert_eq!(other.attach(99), None, "what is handed on already");
    assert_eq!(other.attach(200 + AHEAD + 1), None, "too far ahead");
    other.reader.belongs_to(TopicIdentity("b".into()));
    assert_eq!(other.attach(150), None, "of another topic");
    other.reader.belongs_to(TopicIdentity("a".into()));
    assert!(other.attach(200 + AHEAD).is_some());
}

#[test]
fn who_has_not_read_all_of_its_own_goes_on_there_when_it_has_to() {
    let (one, other) = two();
    one.reads(0, 0);
    other.attach(0).unwrap();
    one.hands(0, 5);
    assert_eq!(other.reader.at(P), None);
    assert_eq!(other.reader.detach(P), None, "what waited is dropped");
    assert_eq!(other.ranges(), []);
}

#[test]
fn nobody_waits_for_a_source_that_stopped_reading_began_elsewhere_or_ended() {
    for leaves in [
        |one: Sink| one.reader.detach(P).map(drop).map_or(Some(one), |()| None),
        |one: Sink| {
            one.reader.detach(P);
            one.reads(0, 0);
            Some(one)
        },
        |one: Sink| {
            drop(one);
            None
        },
    ] {
        let (one, other) = two();
        one.reads(0, 0);
        other.attach(0).unwrap();
        other.reader.open(P);
        one.hands(0, 5);
        let one = leaves(one);
        assert!(!other.reader.is_fed(P));
        assert_eq!(other.reader.detach(P), Some(Offset(5)));
        drop(one);
    }
}

#[test]
fn the_others_budget_is_asked_and_its_batches_count_there() {
    let reads = SharedReads::default();
    let (one, other) = (Sink::new(&reads, 1 << 20), Sink::new(&reads, 1));
    one.reads(0, 0);
    assert!(matches!(one.reader.permit(P, 1), Ok(None)));
    other.attach(0).unwrap();
    other.reader.open(P);
    one.hands(0, 1);
    one.hands(1, 2);
    assert!(one.reader.permit(P, 1).is_err());
    assert_eq!(other.ranges().len(), 2);
    assert!(matches!(one.reader.permit(P, 1), Ok(Some(_))), "its sink is done with them");
    one.reader.part(Instant::now());
    assert!(!other.reader.is_fed(P));
    assert!(matches!(one.reader.permit(P, 1), Ok(None)));
    assert_eq!(other.reader.detach(P), Some(Offset(2)));
    assert_eq!(other.attach(2), None, "for a while");
    assert!(other.reader.attach(P, Epoch::fresh(), Offset(2), Instant::now() + APART));
}

#[test]
fn a_wait_is_too_long_by_itself_or_with_others() {
    let now = Instant::now();
    let at = |milliseconds| now + Duration::from_millis(milliseconds);
    let mut waits = Waits::default();
    assert!(!waits.waits(now));
    assert!(!waits.waits(at(499)));
    assert!(waits.waits(at(500)));
    // Of each 100 ms 60 are waited for.
    let waited = |share: u64| {
        let mut waits = Waits::default();
        (0..1000).find(|step| {
            let enough = waits.waits(at(step * 100)) || waits.waits(at(step * 100 + share));
            waits.went_on(at(step * 100 + share));
            enough
        })
    };
    assert_eq!(waited(60), Some(300));
    assert_eq!(waited(40), None);
}

/// What happens to two sources, as the source's thread does it.
#[derive(Debug, Clone)]
enum Step {
    /// Fetches this many more records.
    Fetch(usize, u64),
    /// Cuts and hands on what was fetched.
    HandOn(usize),
    /// Looks whether another one reads for it, or could.
    Look(usize),
    /// The sink begins anew at this share of what it has.
    Begin(usize, u64),
    Part(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..2_usize, 1..6_u64).prop_map(|(source, records)| Step::Fetch(source, records)),
        (0..2_usize).prop_map(Step::HandOn),
        (0..2_usize).prop_map(Step::Look),
        (0..2_usize, 0..4_u64).prop_map(|(source, back)| Step::Begin(source, back)),
        (0..2_usize).prop_map(Step::Part),
    ]
}

struct Model {
    sink: Sink,
    epoch: Epoch,
    handed: u64,
    fetched: u64,
    /// Whether somebody reads for it, and whether everything is left to that one.
    attached: Option<bool>,
    /// By the consumer: what the present epoch's next batch has to begin with.
    cursor: u64,
    seen: u64,
}

proptest! {
    #[test]
    fn each_sink_is_handed_every_record_in_order(steps in prop::collection::vec(step(), 1..200)) {
        let reads = SharedReads::default();
        let mut sources: Vec<Model> = (0..2).map(|_| Model {
            sink: Sink::new(&reads, 1 << 30), epoch: Epoch::fresh(), handed: 0, fetched: 0, attached: None, cursor: 0, seen: 0,
        }).collect();
        let mut now = Instant::now();
        let last = (0..2).flat_map(|source| [Step::HandOn(source), Step::Look(source), Step::Look(source), Step::HandOn(source)]);
        for step in steps.into_iter().chain(last) {
            // A source that is attached to nobody may attach itself again.
            now += APART;
            match step {
                Step::Fetch(source, records) => {
                    let source = &mut sources[source];
                    if source.attached.is_none() {
                        source.fetched += records;
                    }
                }
                Step::HandOn(source) => {
                    let source = &mut sources[source];
                    if source.fetched > source.handed {
                        let (from, to) = (source.handed, source.fetched);
                        source.sink.hands(from, to);
                        let records = Arc::new(RecordBuffer::default());
                        let (epoch, permit) = (source.epoch, source.sink.reader.budget().take(1));
                        let batch = Batch { partition: P, epoch, from: Offset(from), to: Offset(to), records, permit };
                        source.sink.reader.tell(SourceEvent::Batch(batch));
                        source.handed = to;
                    }
                    if source.attached == Some(false) {
                        source.sink.reader.open(P);
                        source.attached = Some(true);
                    }
                }
                Step::Look(source) => {
                    let source = &mut sources[source];
                    if source.attached.is_some() {
                        if source.sink.reader.is_fed(P) {
                            continue;
                        }
                        if let Some(at) = source.sink.reader.detach(P) {
                            (source.handed, source.fetched) = (at.0, at.0);
                        }
                        source.attached = None;
                    }
                    if source.sink.reader.attach(P, source.epoch, Offset(source.fetched), now) {
                        source.attached = Some(false);
                    } else {
                        source.sink.reads(source.handed, source.fetched);
                    }
                }
                Step::Begin(source, back) => {
                    let source = &mut sources[source];
                    source.sink.reader.detach(P);
                    // What is under way is of an older epoch.
                    source.sink.ranges();
                    source.epoch = Epoch::fresh();
                    let at = source.cursor.saturating_sub(back);
                    (source.attached, source.handed, source.fetched, source.cursor) = (None, at, at, at);
                }
                Step::Part(source) => sources[source].sink.reader.part(now - APART),
            }
            for source in &mut sources {
                for (epoch, from, to) in source.sink.ranges() {
                    prop_assert_eq!(epoch, source.epoch);
                    prop_assert_eq!(from, source.cursor);
                    prop_assert!(to > from);
                    source.cursor = to;
                    source.seen += to - from;
                }
            }
        }
        // Somebody reads, and nobody waits for what was handed on already.
        prop_assert!(sources.iter().any(|source| source.attached.is_none()));
        for source in &sources {
            if source.attached == Some(true) && source.sink.reader.is_fed(P) {
                let at = source.sink.reader.at(P).map(|at| at.0);
                prop_assert_eq!(at, Some(source.cursor));
            }
        }
    }
}

#[test]
fn the_logs_end_is_as_the_fetches_of_the_one_that_reads_say_it() {
    let (one, other) = two();
    assert_eq!(other.reader.high(P, Offset(3)), Some(Offset(3)), "its own, where nobody reads");
    one.reads(0, 0);
    other.attach(0).unwrap();
    assert_eq!(other.reader.high(P, Offset(3)), None, "an old one");
    assert_eq!(one.reader.high(P, Offset(7)), Some(Offset(7)));
    assert_eq!(other.reader.high(P, Offset(3)), Some(Offset(7)));
    one.reader.detach(P);
    assert_eq!(other.reader.high(P, Offset(3)), None);
}
