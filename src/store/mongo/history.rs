//! What was decided of a partition for good, in its document of `ingestd_sources`: `time_bounds`, a list, and `removed`, by the
//! names of aggregates; and the removal of windows.

use futures::TryStreamExt;
use mongodb::bson::{Bson, DateTime, Document, doc};

use super::{Failure, SOURCES, buckets::Buckets, database::StoreDatabase, rebuild};
use crate::{
    event::TimeBounds,
    position::{Offset, Partition, Timestamp},
    store::{History, Removal, Version, rebuild::Progress},
};

/// How often the present bounds are put, where another worker is faster.
const ATTEMPTS: usize = 5;
/// Buckets that are removed with one command.
const AT_ONCE: usize = 1000;

pub async fn history(
    store: &StoreDatabase,
    partition: Partition,
    from: Offset,
    present: TimeBounds,
) -> Result<History, Failure> {
    let id = Buckets::source(&store.options, partition);
    for _ in 0..ATTEMPTS {
        let source = store.majority(SOURCES).find_one(doc! { "_id": &id }).await?.unwrap_or_default();
        let known = source.get_array("time_bounds").map(Vec::as_slice).unwrap_or_default();
        let bounds: Option<Vec<_>> = known.iter().map(read).collect();
        let bounds = bounds.ok_or_else(|| {
            Failure::unavailable(format!("time_bounds of the document {id} in {SOURCES} cannot be read"))
        })?;
        if bounds.last().is_some_and(|(_, last)| *last == present) {
            let removed = source.get_document("removed").ok();
            let before = |aggregate| {
                let before = removed?.get_datetime(Buckets::of(store, aggregate).name()).ok()?;
                Some(Timestamp(before.timestamp_millis()))
            };
            let removed = (0..store.versions.len()).map(before).collect();
            let mut progress = Vec::with_capacity(store.versions.len());
            for (counted, place) in store.versions.counted.iter().zip(&store.versions.places) {
                progress.push(match counted.version {
                    Version::Active => Progress::default(),
                    Version::Shadow => {
                        let known = rebuild::progress(store, &counted.aggregate.name, place, partition).await?;
                        known.unwrap_or_default()
                    }
                });
            }
            return Ok(History { bounds, removed, progress });
        }
        let entries = History::new_bounds(bounds.is_empty(), from, present).into_iter().map(|(from, of)| {
            doc! { "first_offset": from.as_i64(), "max_past": of.max_past, "max_future": of.max_future }
        });
        let entries: Vec<Document> = entries.collect();
        // Where another worker has put some meanwhile, they are read again.
        let is_unchanged = match known.len() {
            0 => doc! { "_id": &id, "time_bounds.0": { "$exists": false } },
            length => doc! { "_id": &id, "time_bounds": { "$size": i32::try_from(length).unwrap_or(i32::MAX) } },
        };
        let push = doc! { "q": is_unchanged, "u": { "$push": { "time_bounds": { "$each": entries } } } };
        store.write(doc! { "update": SOURCES, "updates": [push] }).await?.ok()?;
    }
    Err(Failure::unavailable(
        "another worker changes the bounds of times as well: give all of them the same event.max_past and event.max_future",
    ))
}

fn read(entry: &Bson) -> Option<(Offset, TimeBounds)> {
    let entry = entry.as_document()?;
    let bounds =
        TimeBounds { max_past: entry.get_i64("max_past").ok()?, max_future: entry.get_i64("max_future").ok()? };
    Some((Offset::from_kafka(entry.get_i64("first_offset").ok()?)?, bounds))
}

pub async fn remove(store: &StoreDatabase, removal: &Removal) -> Result<bool, Failure> {
    let buckets = Buckets::of(store, removal.aggregate);
    let id = Buckets::source(&store.options, removal.partition);
    let before = DateTime::from_millis(removal.before.0);
    let mark = doc! { "q": { "_id": id }, "u": { "$max": { format!("removed.{}", buckets.name()): before } } };
    store.write(doc! { "update": SOURCES, "updates": [mark] }).await?.ok()?;
    let name = buckets.collection();
    let collection = store.majority(&name);
    let find = collection.find(buckets.removal_filter(removal)).projection(doc! { "_id": 1 });
    let found: Vec<Document> = find.limit(i64::try_from(AT_ONCE).unwrap_or(i64::MAX)).await?.try_collect().await?;
    if found.is_empty() {
        return Ok(false);
    }
    let is_full = found.len() == AT_ONCE;
    let ids: Vec<Bson> = found.into_iter().filter_map(|mut found| found.remove("_id")).collect();
    // What was counted in meanwhile stays.
    let mut filter = buckets.removal_filter(removal);
    filter.insert("_id", doc! { "$in": ids });
    store.write(doc! { "delete": name, "deletes": [{ "q": filter, "limit": 0 }] }).await?.ok()?;
    Ok(is_full)
}
