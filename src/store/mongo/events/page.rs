//! Pages of events, read by exact bounds of one index (`min`, `max` and `hint` of `find`): MongoDB never chooses another way, and
//! never scans or sorts.
//!
//! Each index goes on with `time, partition, offset, _id`. Documents of earlier releases have no partition and offset of
//! their own: they stand before the others of their millisecond, by their ids.

use futures::TryStreamExt;
use mongodb::{
    bson::{Bson, DateTime, Document, RawBsonRef, RawDocument, RawDocumentBuf, spec::BinarySubtype},
    error::Error,
};
use serde_json::value::RawValue;

use super::{COLLECTION, json};
use crate::{
    position::Timestamp,
    store::{
        events::{By, Cursor, Data, End, EventsPage, EventsQuery, KeptEvent},
        mongo::{Failure, database::StoreDatabase},
    },
};

/// What stands behind an index's first field.
const ORDER: [&str; 4] = ["time", "partition", "offset", "_id"];
/// `find` has this for a hint that no index fits.
const BAD_VALUE: i32 = 2;

fn first_field(by: By<'_>) -> Option<(&'static str, &str)> {
    match by {
        By::Id(id) => Some(("event_id", id)),
        By::Client(client) => Some(("client_id", client)),
        By::Type(event_type) => Some(("type", event_type)),
        By::Time => None,
    }
}

/// The keys of the index that serves this.
pub fn index(by: By<'_>) -> Document {
    let first = first_field(by).map(|(name, _)| name);
    first.into_iter().chain(ORDER).map(|name| (name.to_owned(), Bson::Int32(1))).collect()
}

/// A key of the index: its fields with these values.
fn key(by: By<'_>, values: [Bson; 4]) -> Document {
    let first = first_field(by).map(|(name, value)| (name.to_owned(), Bson::from(value)));
    first.into_iter().chain(ORDER.iter().map(|name| (*name).to_owned()).zip(values)).collect()
}

fn at(time: i64) -> Bson {
    DateTime::from_millis(time).into()
}

/// The key of the first event that is asked for, and that behind the last one; times alone are before all of theirs.
fn bounds(query: &EventsQuery) -> (Document, Document) {
    let by = query.by();
    let before = |time| key(by, [time, Bson::MinKey, Bson::MinKey, Bson::MinKey]);
    let end = match query.end() {
        // No time is behind this, whatever its type.
        End::Open => before(Bson::MaxKey),
        End::Before(end) => before(at(end)),
        End::Behind(Cursor { time, place }) => {
            let (partition, offset, id) = read_place(place);
            key(by, [at(*time), partition, offset, id.into()])
        }
    };
    (before(query.start().map_or(Bson::MinKey, at)), end)
}

/// A document's place: whether it has its partition and offset beside its id.
fn place(id: &str, is_complete: bool) -> String {
    format!("{}{id}", if is_complete { '+' } else { '-' })
}

fn read_place(place: &str) -> (Bson, Bson, &str) {
    let none = |id| (Bson::Null, Bson::Null, id);
    match place.strip_prefix('+') {
        Some(id) => source(id).map_or(none(id), |source| (source.partition.into(), source.offset.into(), id)),
        None => none(place.strip_prefix('-').unwrap_or(place)),
    }
}

/// What an id says: `<topic>[@<generation>]/<partition>/<offset>`.
struct Source<'i> {
    topic: &'i str,
    generation: u32,
    partition: i32,
    offset: i64,
}

fn source(id: &str) -> Option<Source<'_>> {
    let (rest, offset) = id.rsplit_once('/')?;
    let (name, partition) = rest.rsplit_once('/')?;
    let (topic, generation) = name.split_once('@').unwrap_or((name, "0"));
    let (generation, partition, offset) = (generation.parse().ok()?, partition.parse().ok()?, offset.parse().ok()?);
    Some(Source { topic, generation, partition, offset })
}

pub async fn page(store: &StoreDatabase, query: &EventsQuery) -> Result<EventsPage, Failure> {
    let mut page = EventsPage::default();
    if query.is_empty() {
        return Ok(page);
    }
    let (by, mut filter) = (query.by(), Document::new());
    for (name, value) in [("event_id", &query.id), ("client_id", &query.client), ("type", &query.event_type)] {
        if let Some(value) = value.as_ref().filter(|_| first_field(by).is_none_or(|(first, _)| first != name)) {
            filter.insert(name, value);
        }
    }
    let index = index(by);
    let backwards: Document = index.keys().map(|name| (name.clone(), Bson::Int32(-1))).collect();
    let (min, max) = bounds(query);
    let collection = store.database.collection::<RawDocumentBuf>(COLLECTION);
    let found =
        collection.find(filter).hint(mongodb::options::Hint::Keys(index.clone())).min(min).max(max).sort(backwards);
    // One more, which says that there is another page.
    let limit = i64::try_from(query.limit).unwrap_or(i64::MAX).saturating_add(1);
    let mut cursor =
        found.limit(limit).max_time(store.options.timeout).await.map_err(|error| explain(error, &index))?;
    let mut read = 0;
    while let Some(document) = cursor.try_next().await? {
        read += 1;
        match push(&mut page, &document, query.limit) {
            Ok(true) => {}
            Ok(false) => break,
            // Another program's, or what a flush tries the collection with: it is passed over.
            Err(error) => tracing::debug!(%error, "a document of the collection {COLLECTION} is no event of ours"),
        }
    }
    if read > query.limit && !page.end_here() {
        return Err(Failure::unavailable(format!(
            "the collection {COLLECTION} holds {read} documents in a row that are no events of ours: ask for a shorter time"
        )));
    }
    Ok(page)
}

/// Where the index is missing: without it the whole collection would be read.
fn explain(error: Error, index: &Document) -> Failure {
    let failure = Failure::from(error);
    match failure.refusal() {
        Some(why) if why.code == BAD_VALUE && why.message.contains("hint") => Failure::unavailable(format!(
            "the collection {COLLECTION} has no index {index} yet, by which these events are found: it is made at a start of a \
             daemon that aggregates; where it cannot, have db.{COLLECTION}.createIndex({index}) run"
        )),
        _ => failure,
    }
}

fn push(page: &mut EventsPage, document: &RawDocument, limit: usize) -> anyhow::Result<bool> {
    let text = |name| document.get(name).map(|value| value.and_then(RawBsonRef::as_str));
    let millis = |name| document.get_datetime(name).map(mongodb::bson::DateTime::timestamp_millis);
    let id = document.get_str("_id")?;
    let source = source(id).ok_or_else(|| anyhow::anyhow!("its _id is {id:?}"))?;
    let is_complete = document.get("partition")?.is_some() && document.get("offset")?.is_some();
    let time = millis("time")?;
    let as_json = |value| -> anyhow::Result<String> {
        let mut written = Vec::new();
        json::write(&mut written, value)?;
        Ok(String::from_utf8(written)?)
    };
    let whole = document.get("event")?.map(as_json).transpose()?;
    let data = match (&whole, document.get("raw")?) {
        (Some(json), _) => Data::Text(json),
        (None, Some(RawBsonRef::String(text))) => Data::Text(text),
        (None, Some(RawBsonRef::Binary(binary))) if binary.subtype == BinarySubtype::Generic => {
            Data::Binary(binary.bytes)
        }
        (None, _) => Data::Omitted,
    };
    let attributes = document.get("attributes")?.map(as_json).transpose()?.map(RawValue::from_string).transpose()?;
    let event = KeptEvent {
        id: text("event_id")?,
        event_type: document.get_str("type")?,
        client: text("client_id")?,
        time: Timestamp(time),
        received: Timestamp(millis("received")?),
        topic: source.topic,
        generation: source.generation,
        partition: source.partition,
        offset: source.offset,
        data,
        attributes: attributes.as_deref(),
    };
    Ok(page.push(&event, Cursor { time, place: place(id, is_complete) }, limit))
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    #[test]
    fn a_page_begins_at_the_key_behind_the_one_before() {
        let minimum = [Bson::MinKey, Bson::MinKey, Bson::MinKey];
        let query = EventsQuery { event_type: Some("t".to_owned()), limit: 1, ..EventsQuery::default() };
        let (min, max) = bounds(&query);
        let of = |time| {
            let [partition, offset, id] = minimum.clone();
            doc! { "type": "t", "time": time, "partition": partition, "offset": offset, "_id": id }
        };
        assert_eq!((min, max), (of(Bson::MinKey), of(Bson::MaxKey)));
        let behind = |place: String| {
            let after = Some(Cursor { time: 5, place });
            bounds(&EventsQuery { after, limit: 1, ..EventsQuery::default() }).1
        };
        let id = "a@2/3/17";
        let complete = doc! { "time": at(5), "partition": 3, "offset": 17_i64, "_id": id };
        assert_eq!(behind(place(id, true)), complete);
        let earlier = doc! { "time": at(5), "partition": Bson::Null, "offset": Bson::Null, "_id": id };
        assert_eq!(behind(place(id, false)), earlier);
        // The fields of a bound are those of the index, in its order.
        assert!(complete.keys().eq(index(By::Time).keys()));
    }

    #[test]
    fn an_id_says_where_its_record_stands() {
        let read = |id| source(id).map(|it| (it.topic, it.generation, it.partition, it.offset));
        assert_eq!(read("events/0/17"), Some(("events", 0, 0, 17)));
        assert_eq!(read("a.b@12/3/9007199254740993"), Some(("a.b", 12, 3, 9_007_199_254_740_993)));
        for id in ["", "events/17", "ingestd-check/00ff", "events/x/1"] {
            assert!(source(id).is_none(), "{id}");
        }
    }
}
