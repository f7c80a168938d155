//! The buckets of all aggregates: flushes behind their fences, the fences of a partition, and the rows of a query.

mod document;
pub mod groups;
mod remembered;
mod rows;
mod state;

use futures::TryStreamExt;
use mongodb::bson::{Document, RawArrayBuf, RawDocumentBuf, doc};

use super::{
    Failure, SOURCES,
    database::StoreDatabase,
    reply::{StatementError, WriteReply, before_the_second_attempt, code},
};
use crate::{
    position::{Offset, Partition, TopicIdentity},
    store::{BucketDelta, Fence, Flushed, topic_recreated},
};

pub use document::Buckets;
pub use remembered::Remembered;
pub use rows::rows;
use state::Change;

/// Buckets with more than a count that are read, merged and written together.
const MEASURED_AT_ONCE: usize = 200;
/// Bytes of one command's statements; the server takes 16 MiB for a document.
const COMMAND: usize = 8 << 20;
/// How often fences are read until they hold still, before the caller's back-off takes over.
const FENCE_READS: usize = 5;

/// Adds the deltas to their buckets.
pub async fn write(store: &StoreDatabase, deltas: &[&BucketDelta]) -> Result<Flushed, Failure> {
    let mut flushed = Flushed::default();
    store.remembered.lock().begin();
    for (index, buckets) in Buckets::of_all(store).enumerate() {
        let of_aggregate: Vec<&BucketDelta> = deltas.iter().copied().filter(|delta| delta.aggregate == index).collect();
        let is_measured = of_aggregate.iter().any(|delta| delta.measures.more.is_some());
        for part in document::split(&of_aggregate) {
            // What buckets have beside their counts is held in memory meanwhile.
            for some in part.chunks(if is_measured { MEASURED_AT_ONCE } else { part.len() }) {
                write_part(store, &buckets, some, &mut flushed).await?;
            }
        }
    }
    flushed.fenced.sort_unstable();
    flushed.fenced.dedup();
    Ok(flushed)
}

/// Of one command: sends a bucket that is refused once more, in its plainer form.
async fn write_part(
    store: &StoreDatabase,
    buckets: &Buckets<'_>,
    part: &[&BucketDelta],
    flushed: &mut Flushed,
) -> Result<(), Failure> {
    let changes = state::changes(store, buckets, part, flushed).await?;
    if changes.is_empty() {
        return Ok(());
    }
    let statements = changes.iter().map(|change| buckets.statement(change)).collect();
    let all: Vec<&Change<'_>> = changes.iter().collect();
    let Sent { mut taken, refused, others } = send(store, buckets, &all, statements).await?;
    if taken.is_empty() && refused.is_empty() {
        remember(store, buckets, changes);
        return Ok(());
    }
    if !refused.is_empty() {
        let may_pass = refused.iter().any(|(_, error)| !code::is_of_the_document(error.code));
        before_the_second_attempt(may_pass).await;
        let again: Vec<&Change<'_>> = refused.iter().map(|(change, _)| *change).collect();
        let plainer = again.iter().map(|change| buckets.plain_statement(change)).collect();
        let again = send(store, buckets, &again, plainer).await?;
        taken.extend(again.taken);
        for (Change { delta, id, .. }, StatementError { code, message, .. }) in again.refused {
            // Where nothing else is stored either, it may be the collection's fault, and pass.
            if !code::is_of_the_document(code) && !others && !again.others {
                return Err(Failure::unavailable(message));
            }
            let name = buckets.collection();
            let reason =
                format!("an index or a rule of the collection {name} refuses the bucket {id} (code {code}): {message}");
            flushed.block(delta.partition, reason);
        }
    }
    if taken.is_empty() { Ok(()) } else { judge_taken(store, buckets, &taken, flushed).await }
}

/// All of this is durable.
fn remember(store: &StoreDatabase, buckets: &Buckets<'_>, changes: Vec<Change<'_>>) {
    let name = buckets.collection();
    let mut remembered = store.remembered.lock();
    for Change { delta, id, state } in changes {
        if let Some(state) = state {
            remembered.keep(&name, id, delta.partition, delta.last, state.bytes);
        }
    }
}

/// What came of some statements.
#[derive(Default)]
struct Sent<'c, 'd> {
    /// Buckets whose key is taken.
    taken: Vec<(&'c Change<'d>, StatementError)>,
    /// Buckets that are refused in this form.
    refused: Vec<(&'c Change<'d>, StatementError)>,
    /// Others took effect.
    others: bool,
}

/// Sends the statements of `changes`, in any of their forms.
async fn send<'c, 'd>(
    store: &StoreDatabase,
    buckets: &Buckets<'_>,
    changes: &[&'c Change<'d>],
    statements: Vec<RawDocumentBuf>,
) -> Result<Sent<'c, 'd>, Failure> {
    let (mut sent, mut at) = (Sent::default(), 0);
    for some in cut(&statements) {
        let changes = &changes[at..at + some.len()];
        at += some.len();
        send_command(store, buckets, changes, some, &mut sent).await?;
    }
    Ok(sent)
}

async fn send_command<'c, 'd>(
    store: &StoreDatabase,
    buckets: &Buckets<'_>,
    changes: &[&'c Change<'d>],
    statements: &[RawDocumentBuf],
    sent: &mut Sent<'c, 'd>,
) -> Result<(), Failure> {
    let mut updates = RawArrayBuf::new();
    statements.iter().for_each(|statement| updates.push(&**statement));
    let mut reply = store.update(&buckets.collection(), updates).await?;
    sent.others |= reply.effects > 0;
    let answered = usize::try_from(reply.effects).unwrap_or_default() + reply.errors.len();
    for error in std::mem::take(&mut reply.errors) {
        match changes.get(error.index) {
            Some(change) if error.code == code::DUPLICATE_KEY => sent.taken.push((*change, error)),
            Some(change) if !code::is_passing(error.code) => sent.refused.push((*change, error)),
            _ => return Err(Failure::unavailable(error.message)),
        }
    }
    reply.concern_ok()?;
    if answered < changes.len() {
        // One with a state changes what was read and nothing else: the next attempt reads it again.
        return Err(Failure::unavailable("a bucket has changed since it was read"));
    }
    Ok(())
}

/// Cuts statements into commands that the server takes.
fn cut(statements: &[RawDocumentBuf]) -> impl Iterator<Item = &[RawDocumentBuf]> {
    let mut rest = statements;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|statement| {
            let is_first = bytes == 0;
            bytes += statement.as_bytes().len();
            is_first || bytes <= COMMAND
        });
        let (command, after) = rest.split_at(fits.count());
        rest = after;
        (!command.is_empty()).then_some(command)
    })
}

/// Of buckets whose key is taken: by another writer of ours, whose fence says what is counted, or by something else.
///
/// The others of a partition that is fenced may have taken effect: all of them are dropped and the fences read again,
/// which shows what did. Where no fence will show why the key was taken that would go on for ever.
async fn judge_taken(
    store: &StoreDatabase,
    buckets: &Buckets<'_>,
    taken: &[(&Change<'_>, StatementError)],
    flushed: &mut Flushed,
) -> Result<(), Failure> {
    let name = buckets.collection();
    let ids: Vec<&str> = taken.iter().map(|(change, _)| &*change.id).collect();
    let found = store
        .majority(&name)
        .find(doc! { "_id": { "$in": &ids } })
        .projection(doc! { "group": 0, "state": 0, "measures": 0 })
        .await?;
    let found: Vec<Document> = found.try_collect().await?;
    for (Change { delta, id, .. }, error) in taken {
        let document = found.iter().find(|document| document.get_str("_id").is_ok_and(|found| found == *id));
        let reason = match document.map(|document| buckets.fence_of(delta.partition, document)) {
            Some(Some(fence)) if fence.last_offset >= delta.first => {
                flushed.fenced.push(delta.partition);
                continue;
            }
            Some(None) => format!("the document with the _id {id} in the collection {name} is no bucket of ours"),
            None if error.in_another_index => {
                format!("a unique index of the collection {name} keeps the bucket {id} out: {}", error.message)
            }
            // It was removed, or came, between the two commands.
            Some(Some(_)) | None => return Err(Failure::unavailable(&error.message)),
        };
        flushed.block(delta.partition, reason);
    }
    Ok(())
}

/// Fences must be durable before records are skipped for them. A read may see a bucket that the server has not journaled
/// (or a majority not confirmed) and that a crash undoes. So: read, write something durably, read again; what was there
/// both times came before the write and is durable as well.
pub async fn fences(
    store: &StoreDatabase,
    aggregates: &[usize],
    partition: Partition,
    committed: Offset,
    identity: &TopicIdentity,
) -> Result<Vec<Fence>, Failure> {
    let mut before = find_fences(store, aggregates, partition, committed).await?;
    for _ in 0..FENCE_READS {
        claim(store, partition, identity).await?;
        let after = find_fences(store, aggregates, partition, committed).await?;
        if after == before {
            return Ok(after);
        }
        before = after;
    }
    Err(Failure::unavailable("another worker still writes to the buckets of this partition"))
}

async fn find_fences(
    store: &StoreDatabase,
    aggregates: &[usize],
    partition: Partition,
    committed: Offset,
) -> Result<Vec<Fence>, Failure> {
    let mut fences = Vec::new();
    for buckets in aggregates.iter().map(|aggregate| Buckets::of(store, *aggregate)) {
        let name = buckets.collection();
        let collection = store.majority(&name);
        let find = collection.find(buckets.fence_filter(partition, committed)).sort(doc! { "_id": 1 });
        let mut cursor = find.projection(doc! { "group": 0, "state": 0, "measures": 0 }).await?;
        while let Some(bucket) = cursor.try_next().await? {
            let fence = buckets.fence(partition, &bucket);
            let not_ours = || Failure::unavailable(format!("a document of {name} is no bucket of ours"));
            fences.push(fence.ok_or_else(not_ours)?);
        }
    }
    Ok(fences)
}

/// A durable write that says which topic is counted, and refuses when it was another one.
async fn claim(store: &StoreDatabase, partition: Partition, identity: &TopicIdentity) -> Result<(), Failure> {
    let claim = doc! {
        "findAndModify": SOURCES,
        "query": { "_id": Buckets::source(&store.options, partition) },
        "update": { "$inc": { "claims": 1_i64 }, "$setOnInsert": { "identity": &*identity.0 } },
        "upsert": true,
        "new": true,
    };
    let reply = store.command(claim).await?;
    WriteReply::read(&reply).ok()?;
    let known = reply.get_document("value").ok().and_then(|source| source.get_str("identity").ok());
    if known.is_some_and(|known| !identity.contradicts(known)) {
        Ok(())
    } else {
        Err(Failure::Store(topic_recreated(&store.options, partition)))
    }
}
