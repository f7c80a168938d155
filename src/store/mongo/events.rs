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

use super::{Buckets, Failure, MongoStore, StatementError, WriteReply, code, primary};
use crate::store::{ProcessedEvent, RefusedEvent, StoreOptions};

use document::Form;

const COLLECTION: &str = "events";
const TTL_INDEX: &str = "received";
/// Documents in one command; the server takes 100,000.
const DOCUMENTS: usize = 1000;
/// Bytes of one command's documents, but for one that is larger alone; a command is a document itself.
const BYTES: usize = 8 << 20;
/// The largest document that the server takes.
const LARGEST: usize = 16 << 20;

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
/// that one event never stops all others; gives back those that it takes in none.
pub async fn write(
    store: &MongoStore,
    database: &Database,
    events: &[ProcessedEvent],
) -> Result<Vec<RefusedEvent>, Failure> {
    let mut rest: Vec<&ProcessedEvent> = events.iter().collect();
    let mut reasons = Vec::new();
    for form in [Form::Document, Form::Raw, Form::Omitted] {
        (rest, reasons) = insert(store, database, &rest, form).await?.into_iter().unzip();
        if rest.is_empty() {
            return Ok(Vec::new());
        }
    }
    let refused = rest.into_iter().zip(reasons);
    Ok(refused
        .map(|(event, why)| RefusedEvent {
            partition: event.partition,
            offset: event.offset,
            message: format!("MongoDB does not take it as a document of the collection {COLLECTION}: {why}"),
        })
        .collect())
}

/// Gives back those that cannot be taken in this form, and why.
async fn insert<'e>(
    store: &MongoStore,
    database: &Database,
    events: &[&'e ProcessedEvent],
    form: Form,
) -> Result<Vec<(&'e ProcessedEvent, String)>, Failure> {
    let mut refused = Vec::new();
    let mut next = 0;
    while next < events.len() {
        let (mut documents, mut bytes, mut part) = (RawArrayBuf::new(), 0, Vec::new());
        while next < events.len() && part.len() < DOCUMENTS {
            let event = events[next];
            let document = document::of(event, id(&store.options, event), form);
            let size = document.as_bytes().len();
            if !part.is_empty() && bytes + size > BYTES {
                break;
            }
            next += 1;
            if size > LARGEST {
                // Within a command it would be the command that is refused, with all that it holds.
                refused.push((event, format!("{size} bytes are more than a document may have ({LARGEST})")));
                continue;
            }
            documents.push(document);
            part.push(event);
            bytes += size;
        }
        if part.is_empty() {
            continue;
        }
        let concern = RawDocumentBuf::try_from(&store.write_concern()).map_err(mongodb::error::Error::from)?;
        let command =
            rawdoc! { "insert": COLLECTION, "ordered": false, "documents": documents, "writeConcern": concern };
        let reply = database.run_raw_command(command).selection_criteria(primary()).await?;
        let reply = WriteReply::read(&reply);
        let stands = |error: &&StatementError| error.code == code::DUPLICATE_KEY && !error.in_another_index;
        for error in reply.errors.iter().filter(|error| !stands(error)) {
            match part.get(error.index) {
                // A unique index of an operator refuses it in every form.
                Some(event) if error.in_another_index || code::is_of_the_document(error.code) => {
                    tracing::debug!(partition = %event.partition, offset = %event.offset, error.message,
                        "processed event refused in this form");
                    refused.push((*event, error.message.clone()));
                }
                _ => return Err(Failure::unavailable(&error.message)),
            }
        }
        reply.concern_ok()?;
    }
    Ok(refused)
}

fn id(options: &StoreOptions, event: &ProcessedEvent) -> String {
    format!("{}/{}", Buckets::source(options, event.partition), event.offset)
}
