//! What buckets have beside their counts (`state`), which MongoDB cannot add to: it is read, or remembered, merged here, and
//! written where the bucket's fence is still the one that it had.

use std::{borrow::Cow, collections::HashMap};

use mongodb::bson::{RawDocument, RawDocumentBuf, doc};

use super::{Buckets, Failure, StoreDatabase};
use crate::{
    measure::More,
    position::Offset,
    store::{BucketDelta, Flushed},
};

/// What is to become of a bucket.
#[derive(Debug)]
pub struct Change<'d> {
    pub delta: &'d BucketDelta,
    /// The bucket's.
    pub id: String,
    /// Nothing where the aggregate only counts.
    pub state: Option<State<'d>>,
}

/// What a bucket is to have, and where its fence has to stand for that.
#[derive(Debug)]
pub struct State<'d> {
    pub more: Cow<'d, More>,
    /// The same as it is stored.
    pub bytes: Vec<u8>,
    /// `None` where there is no bucket yet.
    pub fence: Option<Offset>,
}

impl<'d> State<'d> {
    fn new(more: Cow<'d, More>, fence: Option<Offset>) -> Self {
        Self { bytes: more.to_bytes(), more, fence }
    }
}

/// Finds out what these buckets have, and merges the deltas into it. Those of partitions that are fenced or blocked by that are left
/// out.
pub async fn changes<'d>(
    store: &StoreDatabase,
    buckets: &Buckets<'_>,
    part: &[&'d BucketDelta],
    flushed: &mut Flushed,
) -> Result<Vec<Change<'d>>, Failure> {
    let change = |delta: &&'d BucketDelta| Change { delta, id: buckets.id(delta), state: None };
    let mut changes: Vec<Change<'d>> = part.iter().map(change).collect();
    if part.iter().all(|delta| delta.measures.more.is_none()) {
        return Ok(changes);
    }
    remembered(store, buckets, &mut changes);
    let known = read(store, buckets, &changes).await?;
    for Change { delta, id, state } in &mut changes {
        let Some(more) = delta.measures.more.as_ref().filter(|_| state.is_none()) else { continue };
        match known.get(id).map(|document| merged(buckets, more, document)) {
            None => *state = Some(State::new(Cow::Borrowed(more), None)),
            Some(Ok(found)) if found.fence.is_some_and(|fence| fence >= delta.first) => {
                flushed.fenced.push(delta.partition);
            }
            Some(Ok(found)) => *state = Some(found),
            Some(Err(why)) => {
                let name = buckets.collection();
                flushed.block(
                    delta.partition,
                    format!(
                        "{why} of the document with the _id {id} in the collection {name}: a newer release wrote it, or it is \
                         no bucket of ours"
                    ),
                );
            }
        }
    }
    changes.retain(|Change { delta, .. }| {
        !flushed.fenced.contains(&delta.partition)
            && flushed.blocked.iter().all(|blocked| blocked.partition != delta.partition)
    });
    Ok(changes)
}

/// Where it is remembered what a bucket has, that needs not be read.
fn remembered(store: &StoreDatabase, buckets: &Buckets<'_>, changes: &mut [Change<'_>]) {
    let name = buckets.collection();
    let mut remembered = store.remembered.lock();
    for Change { delta, id, state } in changes {
        let Some(more) = &delta.measures.more else { continue };
        // One that is as far as these records is looked at: they may have been written before an attempt failed.
        let known = remembered.take(&name, id).filter(|(fence, _)| *fence < delta.first);
        let Some((fence, bytes)) = known else { continue };
        if let Ok(mut merged) = More::from_bytes(buckets.plan(), &bytes) {
            merged.merge(more);
            *state = Some(State::new(Cow::Owned(merged), Some(fence)));
        }
    }
}

/// The buckets of those that are not known, by their ids.
async fn read(
    store: &StoreDatabase,
    buckets: &Buckets<'_>,
    changes: &[Change<'_>],
) -> Result<HashMap<String, RawDocumentBuf>, Failure> {
    let unknown = changes.iter().filter(|change| change.state.is_none());
    let ids: Vec<&str> = unknown.map(|change| &*change.id).collect();
    let mut known = HashMap::with_capacity(ids.len());
    if ids.is_empty() {
        return Ok(known);
    }
    let collection = store.majority(&buckets.collection());
    let find = collection.find(doc! { "_id": { "$in": ids } });
    let mut cursor = find.projection(doc! { "last_offset": 1, "state": 1 }).await?;
    while cursor.advance().await? {
        let document = cursor.current();
        if let Ok(id) = document.get_str("_id") {
            known.insert(id.to_owned(), document.to_owned());
        }
    }
    Ok(known)
}

fn merged<'d>(buckets: &Buckets<'_>, more: &More, document: &RawDocument) -> Result<State<'d>, String> {
    let unreadable = "what was measured cannot be read";
    let fence = document.get_i64("last_offset").ok().and_then(Offset::from_kafka).ok_or(unreadable)?;
    let mut merged = match document.get("state").map_err(|_| unreadable)? {
        // A rebuild kept it, and it was measured otherwise: of what it had nothing is known.
        None => More::new(buckets.plan()),
        Some(state) => {
            let bytes = state.as_binary().ok_or(unreadable)?.bytes;
            More::from_bytes(buckets.plan(), bytes).map_err(|damaged| damaged.to_string())?
        }
    };
    merged.merge(more);
    Ok(State::new(Cow::Owned(merged), Some(fence)))
}
