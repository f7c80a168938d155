//! Rebuilds in MongoDB, in the aggregate's document of `ingestd_aggregates`: `shadow` is the version that is rebuilt, with its
//! range, the topic and generation it is rebuilt from, and how far each partition is; `finished` is the last one that took the
//! aggregate's place. Collections that are out of use stand in `retired` until they are dropped.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use mongodb::{
    bson::{Bson, DateTime, Document, doc},
    results::{CollectionSpecification, CollectionType},
};

use super::{
    DEFINITIONS, Failure, SOURCES,
    buckets::Buckets,
    database::StoreDatabase,
    definitions,
    reply::{WriteReply, code},
};
use crate::{
    position::{Offset, Partition, Timestamp},
    store::{
        Definition, StoreError,
        rebuild::{Kept, NewRebuild, Progress, Range, Reached, Rebuild, RebuildId, Swapped},
    },
};

/// Buckets that are kept at once, and what else is in the last of their windows.
const KEPT_AT_ONCE: u64 = 5000;
/// How long a collection that is out of use stays: other processes ask their lists anew within seconds.
const RETIRED_MS: i64 = 60_000;

pub async fn find(store: &StoreDatabase, aggregates: &[String]) -> Result<Vec<Rebuild>, Failure> {
    // It is asked every second, mostly where there is none.
    let filter = doc! {
        "_id": { "$in": aggregates },
        "$or": [{ "shadow": { "$exists": true } }, { "finished": { "$exists": true } }],
    };
    let fields = doc! { "shadow": 1, "finished": 1 };
    let found: Vec<Document> = store.majority(DEFINITIONS).find(filter).projection(fields).await?.try_collect().await?;
    let of = |found: &Document| {
        let aggregate = found.get_str("_id").ok()?;
        let rebuild = |field| found.get_document(field).ok().and_then(|shadow| read(store, aggregate, shadow));
        rebuild("shadow").or_else(|| rebuild("finished"))
    };
    Ok(found.iter().filter_map(of).collect())
}

/// Whether a shadow is rebuilt from this topic and generation.
pub fn is_ours(store: &StoreDatabase, shadow: &Document) -> bool {
    shadow.get_str("topic").is_ok_and(|topic| topic == store.options.topic)
        && shadow.get_i64("generation").is_ok_and(|it| it == i64::from(store.options.generation))
}

/// Of a document of a shadow that is rebuilt from this topic and generation.
fn read(store: &StoreDatabase, aggregate: &str, shadow: &Document) -> Option<Rebuild> {
    let time = |field| shadow.get_datetime(field).ok().map(|time| Timestamp(time.timestamp_millis()));
    let id = RebuildId { aggregate: aggregate.to_owned(), shadow: shadow.get_str("collection").ok()?.to_owned() };
    if !is_ours(store, shadow) {
        return None;
    }
    let partitions = shadow.get_document("partitions").ok()?.iter().filter_map(|(partition, reached)| {
        let reached = reached.as_document()?;
        Some((Partition(partition.parse().ok()?), read_reached(reached)?))
    });
    Some(Rebuild {
        id,
        range: range(shadow),
        started: time("started")?,
        finished: time("finished"),
        partitions: partitions.collect::<BTreeMap<_, _>>(),
    })
}

pub fn range(shadow: &Document) -> Range {
    let time = |field| shadow.get_datetime(field).ok().map(|time| Timestamp(time.timestamp_millis()));
    Range { from: time("from"), to: time("to") }
}

fn read_reached(reached: &Document) -> Option<Reached> {
    let progress = Progress::of_parts(reached.get_str("state").ok()?, reached.get_i64("position").ok()?);
    Some(Reached { progress, records: reached.get_i64("records").unwrap_or_default().unsigned_abs() })
}

fn reached_document(Reached { progress, records }: Reached) -> Document {
    let (state, position) = progress.parts();
    doc! { "state": state, "position": position.as_i64(), "records": i64::try_from(records).unwrap_or(i64::MAX) }
}

pub async fn begin(store: &StoreDatabase, wanted: &NewRebuild) -> Result<Rebuild, Failure> {
    let aggregate = store.options.aggregate(&wanted.aggregate).map_err(Failure::Store)?;
    let definition = Definition::of(aggregate);
    let found = store.majority(DEFINITIONS).find_one(doc! { "_id": &aggregate.name }).await?.unwrap_or_default();
    let standing = found.get_document("shadow").ok();
    let is_same = |shadow: &Document| definitions::shadow(shadow).is_some_and(|it| it.definition == definition);
    if !standing.is_some_and(is_same) {
        ensure_alone(store).await?;
        let mut shadow = definitions::document(&definition);
        let collection = format!("{}@{}-{:08x}", aggregate.name, wanted.now.0, fastrand::u32(..));
        shadow.extend(doc! {
            "collection": collection,
            "topic": &store.options.topic,
            "generation": i64::from(store.options.generation),
            "started": DateTime::from_millis(wanted.now.0),
            "partitions": partitions(store, wanted).await?,
        });
        for (field, time) in [("from", wanted.range.from), ("to", wanted.range.to)] {
            if let Some(time) = time {
                shadow.insert(field, DateTime::from_millis(time.0));
            }
        }
        let mut update = doc! { "$set": { "shadow": shadow } };
        let mut is_unchanged = doc! { "_id": &aggregate.name, "shadow": { "$exists": false } };
        if let Some(standing) = standing {
            let collection = standing.get_str("collection").unwrap_or_default();
            is_unchanged = doc! { "_id": &aggregate.name, "shadow.collection": collection };
            update.insert("$push", doc! { "retired": retired(collection, wanted.now) });
        }
        // Where another process was faster, its rebuild is the one that is found.
        store.write(doc! { "update": DEFINITIONS, "updates": [{ "q": is_unchanged, "u": update }] }).await?.ok()?;
    }
    let begun = find(store, std::slice::from_ref(&aggregate.name)).await?.pop();
    let begun = begun.filter(|rebuild| rebuild.finished.is_none());
    begun.ok_or_else(|| {
        Failure::unavailable(format!(
            "the aggregate {:?} is rebuilt from another topic: wait for its end",
            aggregate.name
        ))
    })
}

pub async fn kept(store: &StoreDatabase, aggregate: &str) -> Result<Kept, Failure> {
    let wanted = Definition::of(store.options.aggregate(aggregate).map_err(Failure::Store)?);
    let found = store.majority(DEFINITIONS).find_one(doc! { "_id": aggregate }).await?;
    let active = found.map(|found| definitions::active(aggregate, &found).definition);
    let fits = active.is_none_or(|active| active.has_windows_and_groups_of(&wanted));
    Ok(Kept { fits, of_others: !other_sources(store).await?.is_empty() })
}

/// The names of what was counted into this database beside our topic in its generation; a few are enough.
async fn other_sources(store: &StoreDatabase) -> Result<Vec<String>, Failure> {
    let (prefix, end) = source_ids(store);
    let others = doc! { "$or": [{ "_id": { "$lt": prefix } }, { "_id": { "$gte": end } }] };
    let collection = store.majority(SOURCES);
    let find = collection.find(others).projection(doc! { "_id": 1 }).limit(100);
    let sources: Vec<Document> = find.await?.try_collect().await?;
    let name = |source: &Document| Some(source.get_str("_id").ok()?.rsplit_once('/')?.0.to_owned());
    Ok(sources.iter().filter_map(name).collect())
}

/// Where the ids of our sources begin and end.
fn source_ids(store: &StoreDatabase) -> (String, String) {
    let prefix = Buckets::source(&store.options, Partition(0));
    let prefix = prefix.trim_end_matches('0').to_owned();
    // The character behind the slash that the prefix ends with.
    let end = format!("{}0", prefix.trim_end_matches('/'));
    (prefix, end)
}

/// What the daemon of another topic counts into the old buckets, once they are copied, would be lost: it knows nothing of this
/// rebuild.
async fn ensure_alone(store: &StoreDatabase) -> Result<(), Failure> {
    let topic = &store.options.topic;
    let is_ours = |name: &String| name.split('@').next() == Some(topic);
    let others = other_sources(store).await?;
    let Some(other) = others.iter().find(|name| !is_ours(name)) else { return Ok(()) };
    Err(Failure::Store(StoreError::Refused(format!(
        "the database {} holds what was counted of topic {other:?}, too, whose daemon would lose counts at the end of a rebuild: give each topic          a database of its own (store.database), or, where no daemon counts that topic any more, remove its documents from \
         {SOURCES}",
        store.database.name(),
    ))))
}

async fn partitions(store: &StoreDatabase, wanted: &NewRebuild) -> Result<Document, Failure> {
    let (prefix, end) = source_ids(store);
    let collection = store.majority(SOURCES);
    let find = collection.find(doc! { "_id": { "$gte": &prefix, "$lt": end } });
    let sources: Vec<Document> = find.projection(doc! { "_id": 1 }).await?.try_collect().await?;
    let counted = sources.iter().filter_map(|source| source.get_str("_id").ok()?.strip_prefix(&*prefix)?.parse().ok());
    let mut all: Vec<i32> = counted.chain(wanted.partitions.iter().map(|partition| partition.0)).collect();
    all.sort_unstable();
    all.dedup();
    let start = || reached_document(Reached { progress: Progress::History(Offset(0)), records: 0 });
    Ok(all.into_iter().map(|partition| (partition.to_string(), Bson::from(start()))).collect())
}

pub async fn reached(
    store: &StoreDatabase,
    id: &RebuildId,
    partition: Partition,
    reached: Reached,
) -> Result<bool, Failure> {
    let field = format!("shadow.partitions.{partition}");
    let update = doc! { "q": under_way(id), "u": { "$set": { field: reached_document(reached) } } };
    let reply = store.command(doc! { "update": DEFINITIONS, "updates": [update] }).await?;
    found_one(&reply)
}

pub async fn settled(store: &StoreDatabase, id: &RebuildId, partition: Partition) -> Result<(), Failure> {
    let query = doc! { "_id": &id.aggregate, "finished.collection": &id.shadow };
    let state = format!("finished.partitions.{partition}.state");
    let update = doc! { "q": query, "u": { "$set": { state: "live" } } };
    store.write(doc! { "update": DEFINITIONS, "updates": [update] }).await?.ok()
}

/// Whether the one document that a command is about was there.
fn found_one(reply: &Document) -> Result<bool, Failure> {
    let reply = WriteReply::read(reply);
    let found = reply.effects > 0;
    reply.ok().map(|()| found)
}

fn under_way(id: &RebuildId) -> Document {
    doc! { "_id": &id.aggregate, "shadow.collection": &id.shadow }
}

pub async fn leave_out(store: &StoreDatabase, partition: Partition, at: Offset) -> Result<(), Failure> {
    let ours = doc! {
        "shadow.topic": &store.options.topic, "shadow.generation": i64::from(store.options.generation),
    };
    let documents: Vec<Document> = store.majority(DEFINITIONS).find(ours).await?.try_collect().await?;
    for document in documents {
        let (Ok(name), Some(shadow)) =
            (document.get_str("_id"), document.get_document("shadow").ok().and_then(definitions::shadow))
        else {
            continue;
        };
        if store.versions.places.contains(&shadow.place) {
            continue;
        }
        let field = format!("shadow.partitions.{partition}");
        let state = format!("{field}.state");
        let put = |is: &str, position: Option<Offset>| {
            let mut set = doc! { &state: "history" };
            if let Some(position) = position {
                set.insert(format!("{field}.position"), position.as_i64());
            }
            doc! { "q": { "_id": name, "shadow.collection": &shadow.place, &state: is }, "u": { "$set": set } }
        };
        // One that is behind has less.
        let missing = doc! { "_id": name, "shadow.collection": &shadow.place, &field: { "$exists": false } };
        let start = reached_document(Reached { progress: Progress::History(Offset(0)), records: 0 });
        // It was not there when the rebuild began.
        let new = doc! { "q": missing, "u": { "$set": { &field: start } } };
        let updates = vec![put("live", Some(at)), put("catching", None), new];
        store.write(doc! { "update": DEFINITIONS, "updates": updates }).await?.ok()?;
    }
    Ok(())
}

pub async fn keep(store: &StoreDatabase, id: &RebuildId, from: Timestamp) -> Result<Option<Timestamp>, Failure> {
    let Some(found) = store.majority(DEFINITIONS).find_one(under_way(id)).await? else { return Ok(None) };
    let Ok(document) = found.get_document("shadow") else { return Ok(None) };
    let Some(shadow) = definitions::shadow(document) else { return Ok(None) };
    let active = definitions::active(&id.aggregate, &found);
    if !active.definition.has_windows_and_groups_of(&shadow.definition) {
        return Ok(None);
    }
    let (range, of_others) = (range(document), !other_sources(store).await?.is_empty());
    let Some((from, end)) = range.kept_from(from, of_others) else { return Ok(None) };
    // BSON's last time lies before the end of time.
    let date = |time: Timestamp| DateTime::from_millis(time.0);
    let windows = doc! { "window_start": { "$gte": date(from), "$lt": date(end) } };
    let buckets = store.majority(&format!("aggregate_{}", active.place));
    let last = buckets.find_one(windows).sort(doc! { "window_start": 1 }).skip(KEPT_AT_ONCE);
    let last = last.projection(doc! { "_id": 0, "window_start": 1 }).await?;
    // Whole windows: those of the last one, too.
    let last = last.and_then(|last| Some(last.get_datetime("window_start").ok()?.timestamp_millis()));
    let to = last.map_or(end, |last| Timestamp(last + 1));
    let mut kept = vec![
        doc! { "topic": { "$ne": &store.options.topic } },
        doc! { "generation": { "$ne": i64::from(store.options.generation) } },
    ];
    kept.extend(range.from.map(|from| doc! { "window_start": { "$lt": date(from) } }));
    kept.extend(range.to.map(|to| doc! { "window_start": { "$gte": date(to) } }));
    let windows = doc! { "window_start": { "$gte": date(from), "$lt": date(to) } };
    let mut pipeline = vec![doc! { "$match": { "$and": [windows, { "$or": kept }] } }];
    if active.definition.more.get("measures") != shadow.definition.more.get("measures") {
        // What was measured otherwise is not known of them.
        pipeline.push(doc! { "$unset": ["state", "measures"] });
    }
    // One that was counted further stays: another process may copy, too, or count in the shadow already.
    let is_further = doc! { "$gt": ["$$new.last_offset", "$last_offset"] };
    let further = doc! { "$replaceWith": { "$cond": [is_further, "$$new", "$$ROOT"] } };
    let into = format!("aggregate_{}", shadow.place);
    pipeline.push(doc! { "$merge": { "into": into, "on": "_id", "whenMatched": [further] } });
    let copy = doc! { "aggregate": format!("aggregate_{}", active.place), "pipeline": pipeline, "cursor": {} };
    store.command(copy).await?;
    Ok(range.kept_from(to, of_others).map(|(from, _)| from))
}

pub async fn swap(store: &StoreDatabase, id: &RebuildId, noted: &Rebuild, now: Timestamp) -> Result<Swapped, Failure> {
    let Some(found) = store.majority(DEFINITIONS).find_one(under_way(id)).await? else { return Ok(Swapped::Over) };
    let Ok(document) = found.get_document("shadow") else { return Ok(Swapped::Over) };
    let (Some(shadow), Some(rebuild)) = (definitions::shadow(document), read(store, &id.aggregate, document)) else {
        return Ok(Swapped::Over);
    };
    let Some(again) = rebuild.counted_again(noted) else { return Ok(Swapped::NotYet) };
    let active = definitions::active(&id.aggregate, &found);
    let (from, to) = (format!("removed.{}", active.place), format!("removed.{}", shadow.place));
    let update = doc! {
        "q": { &from: { "$exists": true } },
        "u": [{ "$set": { &to: { "$max": [format!("${to}"), format!("${from}")] } } }],
        "multi": true,
    };
    store.write(doc! { "update": SOURCES, "updates": [update] }).await?.ok()?;
    let mut set = definitions::document(&shadow.definition);
    let mut finished = document.clone();
    finished.insert("finished", DateTime::from_millis(now.0));
    // Another process may count in the old collection until it looks again.
    let again =
        again.into_iter().map(|(partition, again)| (partition.to_string(), Bson::from(reached_document(again))));
    finished.insert("partitions", again.collect::<Document>());
    let mut unset = doc! { "shadow": "" };
    if !set.contains_key("definition") {
        unset.insert("definition", "");
    }
    set.extend(doc! { "collection": &shadow.place, "finished": finished });
    // As it was read: a partition may have been put back meanwhile.
    let mut is_unchanged = under_way(id);
    is_unchanged.insert("shadow.partitions", document.get_document("partitions").cloned().unwrap_or_default());
    let update = doc! {
        "q": is_unchanged,
        "u": { "$set": set, "$unset": unset, "$push": { "retired": retired(&active.place, now) } },
    };
    let reply = store.command(doc! { "update": DEFINITIONS, "updates": [update] }).await?;
    Ok(if found_one(&reply)? { Swapped::Yes } else { Swapped::NotYet })
}

fn retired(collection: &str, now: Timestamp) -> Document {
    doc! { "collection": collection, "since": DateTime::from_millis(now.0) }
}

pub async fn cancel(store: &StoreDatabase, aggregate: &str, now: Timestamp) -> Result<bool, Failure> {
    let found = store.majority(DEFINITIONS).find_one(doc! { "_id": aggregate }).await?.unwrap_or_default();
    let Some(shadow) = found.get_document("shadow").ok().and_then(definitions::shadow) else { return Ok(false) };
    let update = doc! {
        "q": { "_id": aggregate, "shadow.collection": &shadow.place },
        "u": { "$unset": { "shadow": "" }, "$push": { "retired": retired(&shadow.place, now) } },
    };
    let reply = store.command(doc! { "update": DEFINITIONS, "updates": [update] }).await?;
    found_one(&reply)
}

pub async fn tidy(store: &StoreDatabase, now: Timestamp) -> Result<bool, Failure> {
    let before = DateTime::from_millis(now.0.saturating_sub(RETIRED_MS));
    let expired = doc! { "retired": { "$elemMatch": { "since": { "$lte": before } } } };
    let Some(found) = store.majority(DEFINITIONS).find_one(expired).await? else { return Ok(false) };
    let entries = found.get_array("retired").map(Vec::as_slice).unwrap_or_default();
    let entry = entries
        .iter()
        .filter_map(Bson::as_document)
        .find(|entry| entry.get_datetime("since").is_ok_and(|since| *since <= before));
    let (Ok(name), Some(entry)) = (found.get_str("_id"), entry) else { return Ok(false) };
    let place = entry.get_str("collection").unwrap_or_default();
    let drop = store.command(doc! { "drop": format!("aggregate_{place}") }).await;
    match drop {
        Ok(_) => {}
        // It was dropped before.
        Err(failure) if failure.refusal().is_some_and(|why| why.code == code::NAMESPACE_NOT_FOUND) => {}
        Err(failure) => return Err(failure),
    }
    let active = definitions::active(name, &found).place;
    if active != name && place != active {
        show_under_its_name(store, name, &active).await?;
    }
    let forget = doc! { "q": { "_id": name }, "u": { "$pull": { "retired": entry } } };
    store.write(doc! { "update": DEFINITIONS, "updates": [forget] }).await?.ok()?;
    let removed = format!("removed.{place}");
    let forget = doc! { "q": { &removed: { "$exists": true } }, "u": { "$unset": { &removed: "" } }, "multi": true };
    store.write(doc! { "update": SOURCES, "updates": [forget] }).await?.ok()?;
    Ok(true)
}

/// Other programs find the aggregate by its name: a view shows what answers now. (No collection is renamed, as a process that does
/// not know yet would write to it.)
async fn show_under_its_name(store: &StoreDatabase, name: &str, active: &str) -> Result<(), Failure> {
    let view = format!("aggregate_{name}");
    let named = store.database.list_collections().filter(doc! { "name": &view }).await?;
    let is_view = |found: &CollectionSpecification| found.collection_type == CollectionType::View;
    let named: Vec<CollectionSpecification> = named.try_collect().await?;
    if named.iter().any(|found| !is_view(found)) {
        // It is retired, and its turn comes.
        return Ok(());
    }
    if !named.is_empty() {
        store.command(doc! { "drop": &view }).await?;
    }
    let create = doc! { "create": &view, "viewOn": format!("aggregate_{active}"), "pipeline": [] };
    match store.command(create).await {
        Ok(_) => {}
        Err(failure) if let Some(refusal) = failure.refusal() => {
            tracing::warn!(
                why = refusal.message,
                view,
                "the view of a rebuilt aggregate cannot be made: other programs read aggregate_{active}"
            );
        }
        Err(failure) => return Err(failure),
    }
    Ok(())
}

/// How far the shadow of this place is with a partition; nothing where it is counted live from its start.
pub async fn progress(
    store: &StoreDatabase,
    aggregate: &str,
    place: &str,
    partition: Partition,
) -> Result<Option<Progress>, Failure> {
    let of = doc! { "_id": aggregate, "shadow.collection": place };
    let found = store.majority(DEFINITIONS).find_one(of).await?;
    Ok(found.and_then(|found| {
        let shadow = found.get_document("shadow").ok()?;
        let reached = shadow.get_document("partitions").ok()?.get_document(partition.to_string()).ok()?;
        read_reached(reached).map(|reached| reached.progress)
    }))
}
