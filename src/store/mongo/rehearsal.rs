//! What `ingestd check --connect` tries: the statements of flushes, fences and queries, on documents of its own. A server
//! that only speaks MongoDB's protocol may take some of them and not others.

use std::{sync::Arc, time::Duration};

use chrono::DateTime;
use mongodb::bson::{Document, doc};
use serde_json::Value;

use super::{Buckets, Failure, SOURCES, buckets, database::StoreDatabase, events};
use crate::{
    config::AggregateConfig,
    measure::Measures,
    position::{Offset, Partition, Timestamp, TopicIdentity},
    store::{
        BucketDelta, BucketKey, Definition, Flushed, Known, ProcessedEvent, Query, StoreError, StoreOptions, Versions,
        counted::Found,
    },
};

const PARTITION: Partition = Partition(0);
const WINDOW: Duration = Duration::from_secs(60);

/// Runs all of it in a collection of its own, and in that of the events where they are kept, and removes what it wrote.
pub async fn rehearse(store: StoreDatabase) -> Result<(), Failure> {
    // A name that no aggregate may have, and that two checks at once do not share.
    let name = format!("check-{:016x}", fastrand::u64(..));
    let group_by = store.options.aggregates.first().map(|aggregate| aggregate.group_by.clone()).unwrap_or_default();
    let aggregate = AggregateConfig::counting(name.clone(), WINDOW, group_by);
    let options = StoreOptions { topic: name, aggregates: vec![aggregate], ..(*store.options).clone() };
    let place = |aggregate: &AggregateConfig| aggregate.name.clone();
    let found = options.aggregates.iter().map(|aggregate| Found {
        configured: aggregate,
        active: Known { definition: Definition::of(aggregate), place: place(aggregate) },
        shadow: None,
    });
    let versions = Arc::new(Versions::of(found.collect()));
    let store = StoreDatabase { options: options.into(), versions, ..store };
    let outcome = run_through(&store).await;
    let removed = remove(&store).await;
    outcome.and(removed)
}

async fn run_through(store: &StoreDatabase) -> Result<(), Failure> {
    let aggregate = &store.options.aggregates[0];
    let values = Value::from(vec!["x"; aggregate.group_by.len()]).to_string();
    let deltas = [0, 1].map(|window| BucketDelta {
        key: BucketKey { window_start: Timestamp(window * 60_000), group: values.as_str().into() },
        partition: PARTITION,
        aggregate: 0,
        first: Offset(0),
        last: Offset(1),
        measures: Measures::of_count(2).into(),
    });
    let events: Vec<_> = store.options.events.then(event).into_iter().collect();
    // The second time is a repetition, of which nothing may take effect.
    for fenced in [Vec::new(), vec![PARTITION]] {
        // A rule of the operator's may refuse this event and take all others: those that it refuses become dead letters.
        events::write(store, &events).await?;
        let flushed = buckets::write(store, &deltas.each_ref()).await?;
        let expected = Flushed { fenced, ..Flushed::default() };
        if flushed != expected {
            return Err(otherwise(format!("{flushed:?} came of a flush, instead of {expected:?}")));
        }
    }
    let identity = TopicIdentity(store.options.topic.as_str().into());
    let fences = buckets::fences(store, &[0], PARTITION, Offset(0), &identity).await?;
    let found: Vec<Offset> = fences.iter().map(|fence| fence.last_offset).collect();
    if found != [Offset(1); 2] {
        return Err(otherwise(format!("the fences {found:?} were read, instead of two at 1")));
    }
    let query = Query::of(aggregate, Timestamp(0), Timestamp(120_000));
    let rows = buckets::rows(store, query).await?.into_written();
    let rows: Vec<Value> = serde_json::from_slice(&[b"[", &*rows, b"]"].concat()).unwrap_or_default();
    let counts: Vec<_> = rows.iter().map(|row| row["count"].as_u64()).collect();
    if counts != [Some(2); 2] {
        return Err(otherwise(format!("the counts {counts:?} were queried, instead of two of 2")));
    }
    Ok(())
}

async fn remove(store: &StoreDatabase) -> Result<(), Failure> {
    let drop = doc! { "drop": Buckets::of(store, 0).collection() };
    if let Err(failure) = store.database.run_command(drop).await.map_err(Failure::from)
        // Otherwise not even the first statement was taken.
        && failure.refusal().is_none()
    {
        return Err(failure);
    }
    delete(store, SOURCES, Buckets::source(&store.options, PARTITION)).await?;
    if store.options.events {
        delete(store, events::COLLECTION, events::id(&store.options, &event())).await?;
    }
    Ok(())
}

async fn delete(store: &StoreDatabase, collection: &str, id: String) -> Result<(), Failure> {
    let delete: Document = doc! { "q": { "_id": id }, "limit": 1 };
    store.write(doc! { "delete": collection, "deletes": [delete] }).await?.ok()
}

fn event() -> ProcessedEvent {
    ProcessedEvent {
        partition: PARTITION,
        offset: Offset(0),
        time: DateTime::default(),
        received: Timestamp(0),
        event_type: "ingestd-check".to_owned(),
        client: None,
        id: None,
        attributes: Vec::new(),
        data: br#"{"type":"ingestd-check"}"#.to_vec(),
    }
}

fn otherwise(what: String) -> Failure {
    Failure::Store(StoreError::Refused(format!(
        "it takes the statements of the aggregates and does not do what MongoDB does: {what}; use MongoDB from 4.4 on"
    )))
}
