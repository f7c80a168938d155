//! What each store keeps beside counts: merged behind the fences, whoever has written before.

use ingestd::internals::{
    measure::{Measures, More, Plan},
    position::Partition,
    store::{BucketDelta, Flushed, StoreError, StoreOptions},
};

use super::conformance::{Backend, delta, options, prepared};

fn measuring() -> StoreOptions {
    let text = "name = \"by_type\"\nwindow = \"1m\"\ngroup_by = [\"type\", \"$dollar.dot\"]\n\
                measures = [{ sum = \"n\" }, { unique = \"u\" }, { top = \"u\" }]";
    StoreOptions { aggregates: vec![toml::from_str(text).unwrap()], ..options() }
}

fn plan() -> Plan {
    Plan::new(&measuring().aggregates[0])
}

/// Of one record at each offset.
fn measured(partition: i32, first: u64, last: u64) -> BucketDelta {
    let (plan, mut measures) = (plan(), Measures::default());
    for offset in first..=last {
        let (n, u) = (format!("{offset}.25"), format!("\"u{}\"", offset % 3));
        measures.add(&plan, |field| Some(if field == 0 { n.as_str() } else { u.as_str() }));
    }
    BucketDelta { measures: measures.into(), ..delta(partition, "[1,1]", first, last, 0) }
}

/// What all buckets have is what was measured of these.
async fn expect(backend: &impl Backend, deltas: &[BucketDelta]) {
    let (mut all, mut whole) = (Measures::default(), Measures::default());
    for (count, bytes) in backend.measured().await {
        all.merge(Measures { count, more: Some(Box::new(More::from_bytes(&plan(), &bytes).unwrap())) });
    }
    deltas.iter().for_each(|delta| whole.merge((*delta.measures).clone()));
    assert_eq!(all, whole);
}

pub async fn what_was_measured_is_merged_behind_the_same_fences(backend: &impl Backend) {
    let store = prepared(backend, measuring()).await;
    for (delta, expected) in [
        (measured(0, 0, 3), Flushed::default()),
        (measured(0, 0, 3), Flushed { fenced: vec![Partition(0)], ..Flushed::default() }),
        (measured(0, 4, 5), Flushed::default()),
        (measured(0, 3, 6), Flushed { fenced: vec![Partition(0)], ..Flushed::default() }),
        (measured(1, 0, 0), Flushed::default()),
    ] {
        assert_eq!(store.flush(&store.counted(), &[delta], &[]).await.unwrap(), expected);
    }
    expect(backend, &[measured(0, 0, 5), measured(1, 0, 0)]).await;
}

/// A store may remember what it has written itself.
pub async fn what_another_writer_has_measured_meanwhile_is_neither_lost_nor_measured_twice(backend: &impl Backend) {
    let (one, other) = (prepared(backend, measuring()).await, prepared(backend, measuring()).await);
    for first in (0..60).step_by(3) {
        // Now the one, now the other; and now and then one twice.
        let store = if first % 4 == 0 || first % 5 == 0 { &one } else { &other };
        let deltas = [measured(0, first, first + 2), measured(1, first, first)];
        let mut attempts = 0;
        let flushed = loop {
            attempts += 1;
            match store.flush(&store.counted(), &deltas, &[]).await {
                Ok(flushed) => break flushed,
                // Nothing of it took effect, since both were written by the other.
                Err(StoreError::Unavailable(why)) => assert!(attempts == 1 && why.contains("has changed"), "{why}"),
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(flushed, Flushed::default(), "{first}");
        // What is known to be there is no less fenced for it.
        let again = store.flush(&store.counted(), &deltas, &[]).await.unwrap();
        assert_eq!(again.fenced, [Partition(0), Partition(1)], "{first}");
    }
    let first = (0..60).step_by(3).map(|first| measured(1, first, first));
    expect(backend, &first.chain([measured(0, 0, 59)]).collect::<Vec<_>>()).await;
}
