//! What buckets have beside their counts (`state`), which MongoDB cannot add to: it is read, merged here, and written where
//! the bucket's fence is still the one that was read.

use std::collections::HashMap;

use futures::TryStreamExt;
use mongodb::bson::{Document, doc};

use super::{Buckets, Failure, StoreDatabase};
use crate::{
    measure::More,
    position::Offset,
    store::{BucketDelta, Flushed},
};

/// What a bucket is to have, and where its fence has to stand for that.
#[derive(Debug)]
pub struct State {
    pub more: More,
    /// `None` where there is no bucket yet.
    pub fence: Option<Offset>,
}

/// By the ids of the buckets.
#[derive(Default)]
pub struct States<'b> {
    buckets: Option<&'b Buckets<'b>>,
    by_id: HashMap<String, State>,
}

impl States<'_> {
    /// Nothing where the aggregate only counts.
    pub fn of(&self, delta: &BucketDelta) -> Option<&State> {
        self.buckets.and_then(|buckets| self.by_id.get(&buckets.id(delta)))
    }

    /// Its partition is neither fenced nor blocked by what was read.
    pub fn is_to_be_written(&self, delta: &BucketDelta, flushed: &Flushed) -> bool {
        self.buckets.is_none()
            || (!flushed.fenced.contains(&delta.partition)
                && flushed.blocked.iter().all(|blocked| blocked.partition != delta.partition))
    }
}

/// Reads what these buckets have, and merges the deltas into it.
pub async fn read<'b>(
    store: &StoreDatabase,
    buckets: &'b Buckets<'b>,
    part: &[&BucketDelta],
    flushed: &mut Flushed,
) -> Result<States<'b>, Failure> {
    if part.iter().all(|delta| delta.measures.more.is_none()) {
        return Ok(States::default());
    }
    let ids: Vec<String> = part.iter().map(|delta| buckets.id(delta)).collect();
    let collection = store.majority(&buckets.collection());
    let find = collection.find(doc! { "_id": { "$in": &ids } });
    let mut cursor = find.projection(doc! { "last_offset": 1, "state": 1 }).await?;
    let mut known: HashMap<String, Document> = HashMap::with_capacity(ids.len());
    while let Some(document) = cursor.try_next().await? {
        if let Ok(id) = document.get_str("_id") {
            known.insert(id.to_owned(), document);
        }
    }
    let mut by_id = HashMap::with_capacity(ids.len());
    for (delta, id) in part.iter().zip(ids) {
        let Some(more) = &delta.measures.more else { continue };
        let state = match known.get(&id) {
            None => State { more: (**more).clone(), fence: None },
            Some(document) => match merged(buckets, more, document) {
                Ok(state) if state.fence.is_some_and(|fence| fence >= delta.first) => {
                    flushed.fenced.push(delta.partition);
                    continue;
                }
                Ok(state) => state,
                Err(why) => {
                    let name = buckets.collection();
                    flushed.block(
                        delta.partition,
                        format!(
                            "{why} of the document with the _id {id} in the collection {name}: a newer release wrote it, or it \
                             is no bucket of ours"
                        ),
                    );
                    continue;
                }
            },
        };
        by_id.insert(id, state);
    }
    Ok(States { buckets: Some(buckets), by_id })
}

fn merged(buckets: &Buckets<'_>, more: &More, document: &Document) -> Result<State, String> {
    let unreadable = "what was measured cannot be read";
    let fence = document.get_i64("last_offset").ok().and_then(Offset::from_kafka).ok_or(unreadable)?;
    let mut merged = match document.get("state") {
        // A rebuild kept it, and it was measured otherwise: of what it had nothing is known.
        None => More::new(buckets.plan()),
        Some(_) => {
            let bytes = document.get_binary_generic("state").map_err(|_| unreadable)?;
            More::from_bytes(buckets.plan(), bytes).map_err(|damaged| damaged.to_string())?
        }
    };
    merged.merge(more);
    Ok(State { more: merged, fence: Some(fence) })
}
