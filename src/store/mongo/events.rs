//! Processed events as documents of the collection `events`.
//!
//! `_id` is `<topic>[@<generation>]/<partition>/<offset>`, so that writing one again changes nothing. `event` is the
//! event itself (of a CloudEvent its data, and `attributes` the rest); one that is no JSON, that BSON cannot hold exactly, or
//! that an index of an operator does not take, stands as the string (or binary) `raw` instead, and one that is too large for a document, or not taken so either, is left out (`omitted: true`; the archive
//! has it). They expire by their time of receipt, so that a late event is not removed at once.

mod document;
mod json;
mod page;

use std::time::Duration;

use mongodb::bson::{DateTime, RawArrayBuf, RawDocumentBuf, doc, rawdoc};

use super::{
    Buckets, Failure,
    database::StoreDatabase,
    indexes::Wanted,
    primary,
    reply::{StatementError, WriteReply, before_the_second_attempt, code},
};
use crate::store::{ProcessedEvent, RefusedEvent, StoreOptions, events::By};

use document::Form;
pub use page::page;

pub const COLLECTION: &str = "events";
/// Documents in one command; the server takes 100,000.
const DOCUMENTS: usize = 1000;
/// Bytes of one command's documents, but for one that is larger alone; a command is a document itself.
const BYTES: usize = 8 << 20;
/// The largest document that the server takes.
const LARGEST: usize = 16 << 20;

/// Pages are read by the first four (`page`).
pub fn indexes(ttl: Duration) -> [Wanted; 5] {
    [
        Wanted::new("by_time", page::index(By::Time)),
        Wanted::new("by_type", page::index(By::Type(""))),
        Wanted::new("by_client", page::index(By::Client(""))),
        Wanted::new("by_id", page::index(By::Id(""))),
        Wanted::expiring("received", doc! { "received": 1 }, ttl),
    ]
}

/// Why a document is refused in a form.
struct Reason {
    message: String,
    /// It is the document's fault. Else it may be the collection's, and pass.
    certain: bool,
}

/// Inserts what is not there yet. A document that the server does not take is written in a plainer form, so that one
/// event never stops all others; gives back those that it takes in none.
pub async fn write(store: &StoreDatabase, events: &[ProcessedEvent]) -> Result<Vec<RefusedEvent>, Failure> {
    let mut rest: Vec<&ProcessedEvent> = events.iter().collect();
    let mut reasons = Vec::new();
    for form in [Form::Document, Form::Raw, Form::Omitted] {
        let refused = insert(store, &rest, form).await?;
        let (mut refused, uncertain): (Vec<_>, Vec<_>) = refused.into_iter().partition(|(_, reason)| reason.certain);
        // For a reason that is not known to be theirs they fail a second time before anything is made of it.
        let again: Vec<&ProcessedEvent> = uncertain.into_iter().map(|(event, _)| event).collect();
        before_the_second_attempt(!again.is_empty()).await;
        refused.extend(insert(store, &again, form).await?);
        (rest, reasons) = refused.into_iter().unzip();
        if rest.is_empty() {
            return Ok(Vec::new());
        }
    }
    if let Some(Reason { message, .. }) = reasons.iter().find(|reason| !reason.certain)
        && !takes_documents(store).await?
    {
        return Err(Failure::unavailable(message));
    }
    let refused = rest.into_iter().zip(reasons);
    Ok(refused
        .map(|(event, Reason { message, .. })| RefusedEvent {
            partition: event.partition,
            offset: event.offset,
            message: format!("MongoDB does not take it as a document of the collection {COLLECTION}: {message}"),
        })
        .collect())
}

/// Gives back those that cannot be taken in this form, and why.
async fn insert<'e>(
    store: &StoreDatabase,
    events: &[&'e ProcessedEvent],
    form: Form,
) -> Result<Vec<(&'e ProcessedEvent, Reason)>, Failure> {
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
                let message = format!("{size} bytes are more than a document may have ({LARGEST})");
                refused.push((event, Reason { message, certain: true }));
                continue;
            }
            documents.push(document);
            part.push(event);
            bytes += size;
        }
        if part.is_empty() {
            continue;
        }
        let reply = insert_raw(store, documents).await?;
        let stands = |error: &&StatementError| error.code == code::DUPLICATE_KEY && !error.in_another_index;
        for error in reply.errors.iter().filter(|error| !stands(error)) {
            let Some(event) = part.get(error.index).filter(|_| !code::is_passing(error.code)) else {
                return Err(Failure::unavailable(&error.message));
            };
            tracing::debug!(partition = %event.partition, offset = %event.offset, code = error.code, error.message,
                "processed event refused in this form");
            let message = format!("{} (code {})", error.message, error.code);
            refused.push((*event, Reason { message, certain: is_of_the_document(error) }));
        }
        reply.concern_ok()?;
    }
    Ok(refused)
}

async fn insert_raw(store: &StoreDatabase, documents: RawArrayBuf) -> Result<WriteReply, Failure> {
    let concern = RawDocumentBuf::try_from(&store.write_concern()).map_err(mongodb::error::Error::from)?;
    let command = rawdoc! { "insert": COLLECTION, "ordered": false, "documents": documents, "writeConcern": concern };
    Ok(WriteReply::read(&store.database.run_raw_command(command).selection_criteria(primary()).await?))
}

/// A unique index of an operator refuses it in every form.
fn is_of_the_document(error: &StatementError) -> bool {
    error.in_another_index || code::is_of_the_document(error.code)
}

/// Whether the collection judges documents at all: tried with one of no event, which is removed again. (Where that fails,
/// the index on `received` removes it.)
async fn takes_documents(store: &StoreDatabase) -> Result<bool, Failure> {
    let id = format!("ingestd-check/{:016x}", fastrand::u64(..));
    let old = DateTime::from_millis(0);
    let document = rawdoc! { "_id": id.as_str(), "time": old, "received": old, "omitted": true };
    let reply = insert_raw(store, RawArrayBuf::from_iter([document])).await?;
    let judged = reply.errors.iter().all(|error| error.code == code::DUPLICATE_KEY || is_of_the_document(error));
    let remove = doc! { "delete": COLLECTION, "deletes": [{ "q": { "_id": id }, "limit": 1 }] };
    store.write(remove).await?.ok()?;
    Ok(judged)
}

pub fn id(options: &StoreOptions, event: &ProcessedEvent) -> String {
    format!("{}/{}", Buckets::source(options, event.partition), event.offset)
}
