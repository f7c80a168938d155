//! Processed events as documents of the collection `events`.
//!
//! `_id` is `<topic>[@<generation>]/<partition>/<offset>`, so that writing one again changes nothing. `event` is the
//! event itself; one that BSON cannot hold exactly stands as the string `raw` instead, and one that is too large for a
//! document is left out (`omitted: true`; the archive has it). They expire by their time of receipt, so that a late
//! event is not removed at once.

mod document;

use std::time::Duration;

use mongodb::{
    Database,
    bson::{RawArrayBuf, RawDocumentBuf, doc, rawdoc},
    error::ErrorKind,
};

use super::{Buckets, Failure, MongoStore, WriteReply, code, primary};
use crate::store::{ProcessedEvent, StoreOptions};

use document::Form;

const COLLECTION: &str = "events";
const TTL_INDEX: &str = "received";
/// Documents in one command; the server takes 100,000.
const DOCUMENTS: usize = 1000;
/// Bytes of one command's documents; the server takes 48,000,000 for a message.
const BYTES: usize = 8 << 20;

/// Creates the indexes; `ttl` may have changed since they were created.
pub async fn prepare(store: &MongoStore, database: &Database, ttl: Duration) -> Result<(), Failure> {
    let indexes = [
        doc! { "key": { "time": 1 }, "name": "time" },
        doc! { "key": { "type": 1, "time": 1 }, "name": "type" },
        doc! { "key": { "client_id": 1, "time": 1 }, "name": "client" },
    ];
    let create = doc! { "createIndexes": COLLECTION, "indexes": indexes.to_vec() };
    store.write(database, create).await?.ok()?;
    let seconds = i32::try_from(ttl.as_secs()).unwrap_or(i32::MAX);
    let expiry = doc! { "key": { "received": 1 }, "name": TTL_INDEX, "expireAfterSeconds": seconds };
    match store.write(database, doc! { "createIndexes": COLLECTION, "indexes": [expiry] }).await {
        Err(Failure::Driver(error)) if is_other_ttl(&error) => {
            let change = doc! { "name": TTL_INDEX, "expireAfterSeconds": seconds };
            store.write(database, doc! { "collMod": COLLECTION, "index": change }).await?.ok()
        }
        reply => reply?.ok(),
    }
}

fn is_other_ttl(error: &mongodb::error::Error) -> bool {
    matches!(&*error.kind, ErrorKind::Command(command) if command.code == code::INDEX_OPTIONS_CONFLICT)
}

/// Inserts what is not there yet. A document that the server does not take for its form is written in a plainer one, so
/// that one event never stops all others.
pub async fn write(store: &MongoStore, database: &Database, events: &[ProcessedEvent]) -> Result<(), Failure> {
    let mut refused: Vec<&ProcessedEvent> = events.iter().collect();
    for form in [Form::Document, Form::Raw, Form::Omitted] {
        refused = insert(store, database, &refused, form).await?;
        if refused.is_empty() {
            return Ok(());
        }
    }
    Err(Failure::unavailable("events are refused in every form; see the server's log"))
}

/// Gives back those that the server refused.
async fn insert<'e>(
    store: &MongoStore,
    database: &Database,
    events: &[&'e ProcessedEvent],
    form: Form,
) -> Result<Vec<&'e ProcessedEvent>, Failure> {
    let mut refused = Vec::new();
    let mut rest = events;
    while !rest.is_empty() {
        let (mut documents, mut bytes, mut count) = (RawArrayBuf::new(), 0, 0);
        for event in rest.iter().take(DOCUMENTS) {
            let document = document::of(event, id(&store.options, event), form);
            let size = document.as_bytes().len();
            if count > 0 && bytes + size > BYTES {
                break;
            }
            documents.push(document);
            (bytes, count) = (bytes + size, count + 1);
        }
        let (part, after) = rest.split_at(count);
        rest = after;
        let concern = RawDocumentBuf::try_from(&store.write_concern()).map_err(mongodb::error::Error::from)?;
        let command =
            rawdoc! { "insert": COLLECTION, "ordered": false, "documents": documents, "writeConcern": concern };
        let reply = database.run_raw_command(command).selection_criteria(primary()).await?;
        let reply = WriteReply::read(&reply);
        for error in &reply.errors {
            match part.get(error.index) {
                Some(_) if error.code == code::DUPLICATE_KEY => {}
                Some(event) => {
                    tracing::debug!(partition = %event.partition, offset = %event.offset, error.message,
                        "processed event refused in this form");
                    refused.push(*event);
                }
                None => return Err(Failure::unavailable(&error.message)),
            }
        }
        reply.concern_ok()?;
    }
    Ok(refused)
}

fn id(options: &StoreOptions, event: &ProcessedEvent) -> String {
    format!("{}/{}", Buckets::source(options, event.partition), event.offset)
}
