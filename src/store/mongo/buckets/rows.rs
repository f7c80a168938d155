//! A query's buckets, read ahead. A server reads one cursor on one thread, and waits while what it gave is merged: so the range is
//! read in parts, two of them at a time.

use std::collections::VecDeque;

use futures::TryStreamExt;
use mongodb::{
    Collection,
    bson::{DateTime, Document, RawBsonRef, doc},
    raw_batch_cursor::{RawBatch, RawBatchCursor},
};
use tokio_util::task::AbortOnDropHandle;

use super::{Buckets, Failure, StoreDatabase, document};
use crate::{
    position::Timestamp,
    store::{
        Counted,
        query::{Merger, Query, Rows, Wanted},
    },
};

/// Buckets in one batch. It has at most 16 MiB, and four of them are held: of two parts, what comes next of the present one, and what
/// is merged.
const BATCH: u32 = 2000;
/// The server's default.
const FIRST_BATCH: u32 = 101;
const PARTS: i64 = 8;
/// Parts that are begun beside the one that is merged.
const AHEAD: usize = 2;

/// A batch, and where those behind it come from.
type Fetching = AbortOnDropHandle<Result<Option<(RawBatch, RawBatchCursor)>, Failure>>;

/// The answer to a query.
pub async fn rows(store: &StoreDatabase, query: Query) -> Result<Rows, Failure> {
    let (index, Counted { aggregate, plan, .. }) = store.versions.asked(&query).map_err(Failure::Store)?;
    // A page of few rows needs few buckets, as a rule, and is not read ahead of.
    let batch = u32::try_from(query.limit).map_or(BATCH, |rows| rows.saturating_add(1).clamp(FIRST_BATCH, BATCH));
    let mut merger = Merger::new(query, aggregate, plan);
    let reader = Reader {
        collection: store.database.collection(&Buckets::of(store, index).collection()),
        needs_state: merger.needs_state(),
        batch,
        timeout: store.options.timeout,
    };
    let window = i64::try_from(aggregate.window.as_millis()).unwrap_or(i64::MAX);
    let most = if batch < BATCH { 1 } else { PARTS };
    let mut parts = parts(merger.range(), window, most);
    let mut ahead: VecDeque<Fetching> = parts.by_ref().take(AHEAD).map(|part| reader.begin(part)).collect();
    while let Some(mut next) = ahead.pop_front() {
        while let Some((documents, cursor)) = taken(next).await? {
            if batch < BATCH {
                if merge(&mut merger, &documents, &aggregate.name)? == Wanted::Nothing {
                    return merger.finish().map_err(Failure::Store);
                }
                next = fetch(cursor);
                continue;
            }
            // The server reads on while these are merged. What was spawned waits on this worker, unless others may have it.
            next = fetch(cursor);
            if ahead.len() < AHEAD {
                ahead.extend(parts.next().map(|part| reader.begin(part)));
            }
            if tokio::task::block_in_place(|| merge(&mut merger, &documents, &aggregate.name))? == Wanted::Nothing {
                return merger.finish().map_err(Failure::Store);
            }
        }
        if ahead.is_empty() {
            ahead.extend(parts.next().map(|part| reader.begin(part)));
        }
    }
    merger.finish().map_err(Failure::Store)
}

/// A range of times in at most so many parts, none shorter than a window.
fn parts((from, to): (Timestamp, Timestamp), window: i64, most: i64) -> impl Iterator<Item = (Timestamp, Timestamp)> {
    let (from, to) = (i128::from(from.0), i128::from(to.0).max(from.0.into()));
    let count = ((to - from) / i128::from(window.max(1))).clamp(1, most.into());
    let at = move |part: i128| Timestamp(i64::try_from(from + (to - from) * part / count).unwrap_or(i64::MAX));
    (0..count).map(move |part| (at(part), at(part + 1)))
}

fn merge(merger: &mut Merger, documents: &RawBatch, aggregate: &str) -> Result<Wanted, Failure> {
    for document in documents.doc_slices()? {
        let bucket = document.ok().and_then(RawBsonRef::as_document).and_then(document::bucket).ok_or_else(|| {
            Failure::unavailable(format!("a document of aggregate {aggregate:?} is no bucket of ours"))
        })?;
        if merger.take(bucket).map_err(Failure::Store)? == Wanted::Nothing {
            return Ok(Wanted::Nothing);
        }
    }
    Ok(Wanted::More)
}

struct Reader {
    collection: Collection<Document>,
    needs_state: bool,
    batch: u32,
    timeout: std::time::Duration,
}

impl Reader {
    /// Begins with the windows from one time on, before another.
    fn begin(&self, (from, to): (Timestamp, Timestamp)) -> Fetching {
        let date = |time: Timestamp| DateTime::from_millis(time.0);
        let filter = doc! { "window_start": { "$gte": date(from), "$lt": date(to) } };
        let mut wanted = doc! { "key": 1, "window_start": 1, "count": 1 };
        if self.needs_state {
            wanted.insert("state", 1);
        }
        let (collection, batch, timeout) = (self.collection.clone(), self.batch, self.timeout);
        AbortOnDropHandle::new(tokio::spawn(async move {
            let find = collection.find(filter).projection(wanted).batch_size(batch).max_time(timeout);
            // The index has this order; where there is none, a sort may need the disk.
            let mut cursor = find.sort(doc! { "window_start": 1 }).allow_disk_use(true).batch().await?;
            Ok(cursor.try_next().await?.map(|batch| (batch, cursor)))
        }))
    }
}

fn fetch(mut cursor: RawBatchCursor) -> Fetching {
    AbortOnDropHandle::new(tokio::spawn(async move { Ok(cursor.try_next().await?.map(|batch| (batch, cursor))) }))
}

async fn taken(fetching: Fetching) -> Result<Option<(RawBatch, RawBatchCursor)>, Failure> {
    fetching.await.map_err(|_| Failure::unavailable("reading buckets failed: its task ended"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_range_one_behind_the_other() {
        let all = |from, to, window, most| {
            let parts: Vec<_> = parts((Timestamp(from), Timestamp(to)), window, most).collect();
            assert!(parts.windows(2).all(|pair| pair[0].1 == pair[1].0), "{parts:?}");
            assert_eq!((parts[0].0, parts[parts.len() - 1].1), (Timestamp(from), Timestamp(to.max(from))));
            parts.len()
        };
        assert_eq!(all(0, 86_400_000, 60_000, PARTS), 8);
        assert_eq!(all(-7, 86_400_000, 60_000, 1), 1);
        assert_eq!(all(60_000, 180_000, 60_000, PARTS), 2);
        assert_eq!(all(5, 5, 60_000, PARTS), 1);
        assert_eq!(all(9, 5, 0, PARTS), 1);
        assert_eq!(all(i64::MIN, i64::MAX, 1, PARTS), 8);
    }
}
