//! Whatever is cut off while a history is read, the shadow ends with what live counting gives.

use std::{path::Path, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{super::limit::limits_of, *};
use crate::{
    config::AggregateConfig,
    log::dead_letters::DeadLetter,
    store::{
        Query, StoreOptions,
        embedded::EmbeddedStore,
        rebuild::{NewRebuild, Range},
    },
};

const P: Partition = Partition(0);
const RECEIVED: Timestamp = Timestamp(1_795_939_200_000);

/// Records of two windows and six groups; each is its offset's.
fn value(offset: usize, seed: usize) -> String {
    let at = offset * 7 + seed;
    let time = RECEIVED.0 / 1000 - 60 * (at % 2) as i64;
    format!("{{\"type\":\"t{}\",\"timestamp\":{time},\"n\":{at},\"u\":\"{}\"}}", at * at % 6, at % 5)
}

fn records(values: &[String], from: usize) -> RecordBuffer {
    let mut records = RecordBuffer::default();
    for (offset, value) in (from as u64..).zip(values) {
        records.push(Offset(offset), RECEIVED, None, Some(value.as_bytes()), std::iter::empty());
    }
    records
}

/// Ends with an error after so many pieces.
struct Cut {
    values: Vec<String>,
    piece: usize,
    pieces: usize,
}

impl Archived for Cut {
    fn chains(&self) -> anyhow::Result<Vec<Chain>> {
        Ok(vec![Chain { partition: P, begins_late: None }])
    }

    fn each(&self, wanted: Wanted, take: &mut dyn FnMut(Piece) -> ControlFlow<()>) -> anyhow::Result<()> {
        let mut from = wanted.from.0 as usize;
        for _ in 0..self.pieces {
            let to = (from + self.piece).min(self.values.len());
            if from == to {
                return Ok(());
            }
            let piece = Piece {
                from: Offset(from as u64),
                to: Offset(to as u64),
                records: records(&self.values[from..to], from),
            };
            if take(piece).is_break() {
                return Ok(());
            }
            from = to;
        }
        anyhow::bail!("killed")
    }
}

/// One record is a letter.
struct Letters(Offset);

impl DeadLetterWriter for Letters {
    fn write(&self, _: Vec<DeadLetter>) -> BoxFuture<'static, anyhow::Result<()>> {
        unreachable!("no letter comes of the archive")
    }

    fn known(&self, _: Source, from: Offset) -> BoxFuture<'static, anyhow::Result<BTreeSet<Offset>>> {
        let known = [self.0].into_iter().filter(|offset| from <= *offset).collect();
        async { Ok(known) }.boxed()
    }
}

fn config(aggregate: &str) -> Arc<Config> {
    let aggregate = toml::from_str(&format!("name = \"a\"\nwindow = \"1m\"\n{aggregate}")).unwrap();
    let mut config = Config { aggregate: vec![aggregate], ..Config::default() };
    config.aggregator.flush_buckets = 3;
    Arc::new(config)
}

const NEW: &str = "group_by = [\"type\"]\nmax_groups = 3\nmeasures = [{ sum = \"n\" }, { unique = \"u\" }]";

fn open(dir: &Path, config: &Config, io: &Runtime) -> Arc<dyn Store> {
    Arc::new(EmbeddedStore::open(&dir.join("store.db"), StoreOptions::from(config), io.handle().clone()).unwrap())
}

fn identity() -> TopicIdentity {
    TopicIdentity("t".into())
}

fn rows(io: &Runtime, store: &dyn Store, aggregate: &AggregateConfig) -> Vec<u8> {
    let all = Query::of(aggregate, Timestamp(0), Timestamp(RECEIVED.0 * 2));
    io.block_on(store.query(all)).unwrap().into_written().to_vec()
}

/// A store that begins to rebuild another definition, and the part of the one partition.
fn begun(dir: &Path, io: &Runtime) -> (Arc<dyn Store>, RebuildId) {
    let before = open(dir, &config("group_by = []"), io);
    io.block_on(before.prepare()).unwrap();
    io.block_on(before.fences(P, Offset(0), &identity())).unwrap();
    drop(before);
    let store = open(dir, &config(NEW), io);
    let wanted = NewRebuild { aggregate: "a".to_owned(), range: Range::default(), partitions: vec![P], now: RECEIVED };
    let id = io.block_on(store.rebuilds().begin(&wanted)).unwrap().id;
    io.block_on(store.prepare()).unwrap();
    (store, id)
}

fn reading(
    store: &Arc<dyn Store>,
    id: &RebuildId,
    shadow: usize,
    archived: Cut,
    letter: Offset,
    io: &Runtime,
) -> Reading {
    let (config, counted) = (config(NEW), store.counted());
    Reading {
        archived: Arc::new(archived),
        store: store.clone(),
        letters: Arc::new(Letters(letter)),
        bounds: Reader::new(&config, &counted).fields.bounds(),
        config,
        limits: limits_of(&counted),
        counted,
        shadow,
        id: id.clone(),
        partition: P,
        identity: identity(),
        io: io.handle().clone(),
        position: Box::new(|| Some(Offset(u64::MAX))),
        cancelled: Arc::default(),
    }
}

/// What live counting of the new definition gives, in one go.
fn live(values: &[String], letter: Offset, io: &Runtime) -> Vec<u8> {
    let dir = TempDir::new().unwrap();
    let (config, store) = (config(NEW), open(dir.path(), &config(NEW), io));
    let counted = io.block_on(store.prepare()).unwrap().counted;
    let limits: Arc<[Limit]> = limits_of(&counted);
    let others: Vec<_> = limits.iter().map(|limit| limit.other.clone()).collect();
    let mut reader = Reader::new(&config, &counted);
    let history = io.block_on(store.history(P, Offset(0), reader.fields.bounds())).unwrap();
    let fold = PartitionFold::assign(P, Offset(0), &others, Vec::new());
    let mut open = OpenPartition::new(fold, BTreeSet::from([letter]), BTreeMap::new(), history, &reader.fields);
    let to = Offset(values.len() as u64);
    let permit = ByteBudget::new(1, Gauge::default()).take(1);
    let records = records(values, 0);
    open.take(
        &Batch { partition: P, epoch: Epoch::fresh(), from: Offset(0), to, records: Arc::new(records), permit },
        &mut reader,
    );
    let mut statements = Statements::default();
    open.begin_flush(P, Epoch::fresh(), &mut statements);
    let attempt = Attempt {
        store: store.clone(),
        writer: Arc::new(Letters(letter)),
        counted,
        limits,
        groups: Arc::default(),
        letters_written: false,
        timeout: Duration::from_secs(30),
    };
    assert_eq!(io.block_on(attempt.make(statements)).outcome.unwrap(), Flushed::default());
    rows(io, &*store, &config.aggregate[0])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_history_that_is_cut_off_anywhere_ends_with_what_live_counting_gives(
        count in 1_usize..60, seed in 0_usize..100, letter in 0_u64..60, piece in 1_usize..20,
        // How many pieces are read until a kill, and how far behind the stored position is what was flushed.
        kills in prop::collection::vec((0_usize..6, 0_u64..12), 0..6),
    ) {
        let io = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let values: Vec<String> = (0..count).map(|offset| value(offset, seed)).collect();
        let dir = TempDir::new().unwrap();
        let (store, id) = begun(dir.path(), &io);
        let letter = Offset(letter);
        let reached = || io.block_on(store.rebuilds().find("a")).unwrap().unwrap().partitions[&P];
        for (pieces, lost) in kills {
            let cut = Cut { values: values.clone(), piece, pieces };
            match reading(&store, &id, 1, cut, letter, &io).run(reached()) {
                Ended::Failed(why) => prop_assert_eq!(why, "killed"),
                ended => prop_assert!(matches!(ended, Ended::CaughtUp(_) | Ended::Over), "{:?}", ended),
            }
            // As where the position was not stored that was flushed last.
            let Reached { progress, records } = reached();
            let at = progress.parts().1;
            let back = Reached { progress: Progress::History(Offset(at.0.saturating_sub(lost))), records };
            prop_assert!(io.block_on(store.rebuilds().reached(&id, P, back)).unwrap());
        }
        let whole = Cut { values: values.clone(), piece, pieces: usize::MAX };
        let ended = reading(&store, &id, 1, whole, letter, &io).run(reached());
        prop_assert_eq!(ended, Ended::CaughtUp(Offset(count as u64)));
        prop_assert_eq!(reached().progress, Progress::Catching(Offset(count as u64)));
        let live_from = Reached { progress: Progress::default(), records: 0 };
        io.block_on(store.rebuilds().reached(&id, P, live_from)).unwrap();
        let noted = io.block_on(store.rebuilds().find("a")).unwrap().unwrap();
        io.block_on(store.rebuilds().swap(&id, &noted, RECEIVED)).unwrap();
        io.block_on(store.prepare()).unwrap();
        let expected = live(&values, letter, &io);
        prop_assert_eq!(rows(&io, &*store, &config(NEW).aggregate[0]), expected);
    }
}
