//! Indexes. Counting goes on without them: what cannot be had is said, with what to do, and stops nothing.

use std::time::Duration;

use mongodb::bson::{Bson, Document, doc};

use super::{
    Failure,
    buckets::Buckets,
    database::{StoreDatabase, first_batch},
    events, primary,
    reply::{Refusal, code},
};

/// An index that readers and the daemon are faster with, or that lets documents expire.
pub struct Wanted {
    pub name: &'static str,
    pub key: Document,
    /// In seconds.
    pub expiry: Option<i32>,
}

impl Wanted {
    pub fn new(name: &'static str, key: Document) -> Self {
        Self { name, key, expiry: None }
    }

    /// As large a time as MongoDB takes, where it is longer.
    pub fn expiring(name: &'static str, key: Document, after: Duration) -> Self {
        Self { name, key, expiry: Some(i32::try_from(after.as_secs()).unwrap_or(i32::MAX)) }
    }
}

/// What is to be done for one.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// An index with its keys is there, whatever its name.
    Nothing,
    Create,
    /// Of the index of that name.
    ChangeExpiry(String),
}

fn step(wanted: &Wanted, standing: &[&Document]) -> Step {
    let same = standing.iter().filter(|index| index.get_document("key").is_ok_and(|key| same_keys(key, &wanted.key)));
    let same: Vec<_> = same.filter(|index| has_all_documents(index)).collect();
    let expires_after = |index: &Document| index.get("expireAfterSeconds").and_then(seconds);
    match (same.first(), wanted.expiry) {
        (None, _) => Step::Create,
        (Some(_), None) => Step::Nothing,
        (Some(_), Some(expiry)) if same.iter().any(|index| expires_after(index) == Some(i64::from(expiry))) => {
            Step::Nothing
        }
        (Some(first), Some(_)) => Step::ChangeExpiry(first.get_str("name").unwrap_or(wanted.name).to_owned()),
    }
}

/// A direction may be written as any type of number.
fn same_keys(one: &Document, other: &Document) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|((name, direction), (other_name, other_direction))| {
            name == other_name && seconds(direction).is_some() && seconds(direction) == seconds(other_direction)
        })
}

fn has_all_documents(index: &Document) -> bool {
    let options = ["partialFilterExpression", "sparse", "collation", "hidden"];
    options.iter().all(|option| matches!(index.get(option), None | Some(Bson::Boolean(false))))
}

fn seconds(value: &Bson) -> Option<i64> {
    match value {
        Bson::Int32(number) => Some(i64::from(*number)),
        Bson::Int64(number) => Some(*number),
        Bson::Double(number) => Some(*number as i64),
        _ => None,
    }
}

/// Makes those of all collections that are missing; gives back what cannot be done.
///
/// # Errors
/// The server is away, so that this is to be tried again.
pub async fn ensure(store: &StoreDatabase) -> Result<Vec<String>, Failure> {
    let mut remarks = Vec::new();
    for buckets in Buckets::of_all(store) {
        ensure_on(store, &buckets.collection(), &Buckets::indexes(), &mut remarks).await?;
    }
    if store.options.events {
        let wanted = events::indexes(store.options.events_ttl);
        ensure_on(store, events::COLLECTION, &wanted, &mut remarks).await?;
    }
    Ok(remarks)
}

async fn ensure_on(
    store: &StoreDatabase,
    collection: &str,
    wanted: &[Wanted],
    remarks: &mut Vec<String>,
) -> Result<(), Failure> {
    let list = store.database.run_command(doc! { "listIndexes": collection }).selection_criteria(primary());
    // Where that is refused, nothing is there yet, or it cannot be seen: then it shows when it is made.
    let standing = or_refusal(list.await.map_err(Failure::from))?.unwrap_or_default();
    let standing = first_batch(&standing);
    for index in wanted {
        let done = match step(index, &standing) {
            Step::Nothing => continue,
            Step::Create => {
                let mut new = doc! { "key": index.key.clone(), "name": index.name };
                if let Some(expiry) = index.expiry {
                    new.insert("expireAfterSeconds", expiry);
                }
                let create = doc! { "createIndexes": collection, "indexes": [new] };
                or_refusal(store.command(create).await)?.map_err(|why| not_made(collection, index, &why))
            }
            Step::ChangeExpiry(name) => {
                let expiry = index.expiry.unwrap_or_default();
                let change = doc! { "collMod": collection, "index": { "name": &name, "expireAfterSeconds": expiry } };
                or_refusal(store.command(change.clone()).await)?
                    .map_err(|why| not_changed(collection, &name, expiry, &change, &why))
            }
        };
        remarks.extend(done.err());
    }
    Ok(())
}

/// What the server says to a command: the inner error is its refusal.
fn or_refusal(reply: Result<Document, Failure>) -> Result<Result<Document, Refusal>, Failure> {
    reply.map(Ok).or_else(|failure| failure.refusal().map(Err).ok_or(failure))
}

fn not_made(collection: &str, index: &Wanted, Refusal { code, message }: &Refusal) -> String {
    let Wanted { name, key, .. } = index;
    match *code {
        code::INDEX_KEY_SPECS_CONFLICT | code::INDEX_OPTIONS_CONFLICT => format!(
            "the collection {collection} has another index in the place of {name:?} on {key} ({message}): queries are \
             slower without it; drop or rename the other one, then restart"
        ),
        _ => format!(
            "the index {name:?} on {key} of the collection {collection} cannot be made ({message}): queries are slower \
             without it; make it, or see to it that it can be made and restart"
        ),
    }
}

fn not_changed(collection: &str, name: &str, expiry: i32, change: &Document, refusal: &Refusal) -> String {
    let why = match refusal.code {
        code::UNAUTHORIZED => "that needs the role dbAdmin, which the user of store.url does not have".to_owned(),
        _ => refusal.message.clone(),
    };
    format!(
        "store.events_ttl is {expiry} s, and the index {name:?} of the collection {collection} cannot be changed to it \
         ({why}): documents go at the time that was in force before; have db.runCommand({change}) run, or the index dropped, \
         then restart"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_with_the_same_keys_is_good_enough_whatever_its_name() {
        let plain = Wanted::new("time", doc! { "time": 1 });
        let expiring = Wanted::expiring("received", doc! { "received": 1 }, Duration::from_secs(60));
        let step =
            |wanted: &Wanted, standing: Document| super::step(wanted, &[&doc! { "key": { "_id": 1 } }, &standing]);
        assert_eq!(step(&plain, doc! { "key": { "time": 1.0 }, "name": "time_1", "unique": true }), Step::Nothing);
        assert_eq!(step(&plain, doc! { "key": { "time": 1, "type": 1 }, "name": "time" }), Step::Create);
        assert_eq!(step(&plain, doc! { "key": { "time": -1 }, "name": "x" }), Step::Create);
        assert_eq!(step(&plain, doc! { "key": { "time": "hashed" }, "name": "x" }), Step::Create);
        assert_eq!(step(&plain, doc! { "key": { "time": 1 }, "name": "x", "sparse": true }), Step::Create);
        let change = Step::ChangeExpiry("received_1".to_owned());
        assert_eq!(step(&expiring, doc! { "key": { "received": 1 }, "name": "received_1" }), change);
        let other = doc! { "key": { "received": 1 }, "name": "received_1", "expireAfterSeconds": 61 };
        assert_eq!(step(&expiring, other), change);
        let same = doc! { "key": { "received": 1 }, "name": "mine", "expireAfterSeconds": 60.0 };
        assert_eq!(step(&expiring, same), Step::Nothing);
    }
}
