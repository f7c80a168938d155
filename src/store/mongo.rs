//! MongoDB as the store, shared by any number of daemons.
//!
//! | collection | documents |
//! | --- | --- |
//! | `aggregate_<name>` | buckets: `window_start`, `group`, `topic`, `partition`, `generation`, `count`, `last_offset` |
//! | `events` | processed events, where they are kept |
//! | `ingestd_aggregates` | the definition of each aggregate |
//! | `ingestd_sources` | for each partition, the identity of the topic that was counted |
//!
//! All writes go to the primary with `{w: "majority", j: true}`, on a standalone too: without the journal a crash of the
//! server loses what it had acknowledged. The driver's client lives on the I/O runtime; every call is bounded in time,
//! because a server that hangs is worse than one that is gone.

mod buckets;
mod database;
mod events;
mod indexes;
mod rehearsal;
mod reply;

use std::time::Duration;

use anyhow::bail;
use chrono::DateTime;
use futures::{TryStreamExt, future::BoxFuture};
use mongodb::{
    Client, Collection, Database,
    bson::{Bson, Document, doc},
    error::{Error, ErrorKind},
    options::{
        Acknowledgment, ClientOptions, ConnectionString, HostInfo, ReadConcern, ReadConcernLevel, ReadPreference,
        SelectionCriteria, WriteConcern,
    },
};
use serde_json::Value;
use tokio::{runtime::Handle, sync::OnceCell, task::AbortHandle};

use crate::{
    config::StoreConfig,
    position::{Offset, Partition, TopicIdentity},
    store::{
        BucketDelta, Fence, Flushed, ProcessedEvent, Query, RefusedEvent, Rows, Store, StoreError, StoreOptions,
        ceil_millis, definition_changed, topic_recreated,
    },
};
use buckets::Buckets;
pub use database::DatabaseChoice;
use indexes::{Refusal, Wanted};
use reply::{StatementError, WriteReply, code, shortened};

/// Aggregates in MongoDB.
#[derive(Clone)]
pub struct MongoStore {
    url: ConnectionString,
    /// For messages: without user and password.
    hosts: String,
    choice: DatabaseChoice,
    /// The database of the choice, once the server was asked.
    database: std::sync::Arc<OnceCell<String>>,
    options: std::sync::Arc<StoreOptions>,
    /// Made at the first call: a `mongodb+srv://` URL is looked up in the DNS, which may be out of reach at the start.
    client: std::sync::Arc<OnceCell<Client>>,
    io: Handle,
}

impl MongoStore {
    /// How long to look for a server before a call fails; the callers' own back-off goes on from there.
    const SERVER_SELECTION: Duration = Duration::from_secs(5);
    const CLOSING: Duration = Duration::from_secs(1);
    /// How often fences are read until they hold still, before the caller's back-off takes over.
    const FENCE_READS: usize = 5;
    const DEFINITIONS: &str = "ingestd_aggregates";
    const SOURCES: &str = "ingestd_sources";

    /// Reads the URL; the server needs not be in reach.
    ///
    /// # Errors
    /// The URL is no MongoDB URL, or asks for less safety than the fence needs.
    pub fn new(config: &StoreConfig, options: StoreOptions, io: Handle) -> anyhow::Result<Self> {
        // Without the driver's reason, which quotes what may be a piece of the password.
        let Ok(url) = ConnectionString::parse(&config.url) else {
            bail!("store.url is no MongoDB URL such as \"mongodb://127.0.0.1:27017\"");
        };
        refuse_weaker(&url)?;
        let hosts = match &url.host_info {
            HostInfo::HostIdentifiers(hosts) => hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            HostInfo::DnsRecord(name) => name.clone(),
            _ => "the hosts of store.url".to_owned(),
        };
        let (choice, database) = (DatabaseChoice::of(config), std::sync::Arc::default());
        Ok(Self { url, hosts, choice, database, options: options.into(), client: std::sync::Arc::default(), io })
    }

    /// Runs a call on the I/O runtime, bounded by the configured timeout. Dropping the future ends the call.
    async fn call<T, F>(&self, call: impl FnOnce(Self, Database) -> F + Send + 'static) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send,
    {
        let store = self.clone();
        let mut task = self.io.spawn(async move {
            let client = store.connect().await?;
            let settle = || store.choice.settle(client, &store.options.topic);
            let database = client.database(store.database.get_or_try_init(settle).await?);
            call(store, database).await
        });
        let _abort = AbortOnDrop(task.abort_handle());
        match tokio::time::timeout(self.options.timeout, &mut task).await {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(Failure::Store(error)))) => Err(error),
            Ok(Ok(Err(Failure::Driver(error)))) => Err(self.describe(&error)),
            Ok(Err(_)) => Err(self.unavailable("a call failed: its task ended")),
            Err(_) => Err(self.unavailable(&format!("no answer within {:?}", self.options.timeout))),
        }
    }

    async fn connect(&self) -> Result<&Client, Failure> {
        let connect = || async {
            let mut options = ClientOptions::parse(self.url.clone()).await?;
            options.app_name.get_or_insert_with(|| "ingestd".to_owned());
            options.server_selection_timeout.get_or_insert(Self::SERVER_SELECTION);
            options.connect_timeout.get_or_insert(Self::SERVER_SELECTION);
            options.selection_criteria = Some(primary());
            options.write_concern = Some(WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build());
            Client::with_options(options)
        };
        Ok(self.client.get_or_try_init(connect).await?)
    }

    fn unavailable(&self, why: &str) -> StoreError {
        StoreError::Unavailable(format!("MongoDB at {}: {why}", self.hosts))
    }

    fn describe(&self, error: &Error) -> StoreError {
        match &*error.kind {
            ErrorKind::Authentication { message, .. } => {
                self.unavailable(&format!("refused the user or password of store.url ({message})"))
            }
            ErrorKind::Command(command) if command.code == code::UNAUTHORIZED => self.unavailable(&format!(
                "the user of store.url may not do this, it needs the role readWrite on {:?} ({})",
                self.database.get().map_or(self.choice.name(), String::as_str),
                shortened(&command.message)
            )),
            ErrorKind::ServerSelection { message, .. } if reply::is_too_old(message) => {
                self.unavailable("is older than MongoDB 4.4, which is the oldest that can be used: upgrade it")
            }
            ErrorKind::ServerSelection { message, .. } => {
                // The message is the driver's view of all servers; the first error in it is what people look for.
                let cause = message.split("Error: Kind: ").nth(1).and_then(|rest| rest.split(", labels").next());
                let cause = cause.unwrap_or("no primary answered");
                self.unavailable(&format!("cannot be reached; is it running, is store.url right? ({cause})"))
            }
            // Of the URL, or of what the DNS adds to it: the message may quote a piece of the password.
            ErrorKind::InvalidArgument { .. } => self.unavailable("the driver refuses store.url or an option in it"),
            kind => self.unavailable(&shortened(&kind.to_string())),
        }
    }

    fn write_concern(&self) -> Document {
        // With a time limit of its own, so that statements that nobody waits for do not pile up in the server.
        let timeout = i64::try_from(self.options.timeout.as_millis()).unwrap_or(i64::MAX);
        doc! { "w": "majority", "j": true, "wtimeout": timeout }
    }

    /// Runs a command that writes, on the primary.
    async fn command(&self, database: &Database, mut command: Document) -> Result<Document, Failure> {
        command.insert("writeConcern", self.write_concern());
        Ok(database.run_command(command).selection_criteria(primary()).await?)
    }

    async fn write(&self, database: &Database, command: Document) -> Result<WriteReply, Failure> {
        Ok(WriteReply::read(&self.command(database, command).await?))
    }

    async fn prepare(self, database: Database) -> Result<Vec<String>, Failure> {
        for aggregate in &self.options.aggregates {
            let window_ms = i64::try_from(aggregate.window.as_millis()).unwrap_or(i64::MAX);
            let definition = doc! { "window_ms": window_ms, "group_by": aggregate.group_by.clone() };
            let upsert = doc! {
                "q": { "_id": &aggregate.name }, "u": { "$setOnInsert": definition.clone() }, "upsert": true,
            };
            self.write(&database, doc! { "update": Self::DEFINITIONS, "updates": [upsert] }).await?.ok()?;
            let found = majority(database.collection::<Document>(Self::DEFINITIONS))
                .find_one(doc! { "_id": &aggregate.name })
                .await?;
            let Some(mut found) = found else {
                return Err(Failure::unavailable("a definition that was just written is not there yet"));
            };
            found.remove("_id");
            if found != definition {
                let known_group_by = found.get_array("group_by").map(|names| {
                    Value::from(names.iter().map(|name| name.as_str().unwrap_or_default()).collect::<Vec<_>>())
                });
                let (known_window, known_group_by) =
                    (found.get_i64("window_ms").unwrap_or_default(), known_group_by.unwrap_or_default().to_string());
                return Err(Failure::Store(definition_changed(aggregate, known_window, &known_group_by)));
            }
        }
        // Of a large collection an index takes longer than counting should wait for.
        let patience = self.options.timeout / 2;
        tokio::time::timeout(patience, self.index(&database)).await.unwrap_or_else(|_| {
            Ok(vec![format!(
                "indexes of the database {:?} are not there after {patience:?}: queries are slower until they are; if the \
                 server does not go on by itself, make those of docs/design.md, 3.5, by hand",
                database.name()
            )])
        })
    }

    async fn index(&self, database: &Database) -> Result<Vec<String>, Failure> {
        let mut remarks = Vec::new();
        for index in 0..self.options.aggregates.len() {
            let wanted = [
                Wanted::new("window_start", doc! { "window_start": 1 }),
                Wanted::new("fence", doc! { "topic": 1, "generation": 1, "partition": 1, "last_offset": 1 }),
            ];
            let collection = Buckets::new(&self.options, index).collection();
            remarks.append(&mut indexes::ensure(self, database, &collection, &wanted).await?);
        }
        if self.options.events {
            let wanted = events::indexes(self.options.events_ttl);
            remarks.append(&mut indexes::ensure(self, database, events::COLLECTION, &wanted).await?);
        }
        Ok(remarks)
    }

    /// Fences must be durable before records are skipped for them. A read may see a bucket that the server has not
    /// journaled (or a majority not confirmed) and that a crash undoes. So: read, write something durably, read again;
    /// what was there both times came before the write and is durable as well.
    async fn read_fences(
        self,
        database: Database,
        partition: Partition,
        committed: Offset,
        identity: TopicIdentity,
    ) -> Result<Vec<Fence>, Failure> {
        let mut before = self.find_fences(&database, partition, committed).await?;
        for _ in 0..Self::FENCE_READS {
            self.claim(&database, partition, &identity).await?;
            let after = self.find_fences(&database, partition, committed).await?;
            if after == before {
                return Ok(after);
            }
            before = after;
        }
        Err(Failure::unavailable("another worker still writes to the buckets of this partition"))
    }

    async fn find_fences(
        &self,
        database: &Database,
        partition: Partition,
        committed: Offset,
    ) -> Result<Vec<Fence>, Failure> {
        let mut fences = Vec::new();
        for index in 0..self.options.aggregates.len() {
            let buckets = Buckets::new(&self.options, index);
            let collection = majority(database.collection::<Document>(&buckets.collection()));
            let mut cursor =
                collection.find(buckets.fence_filter(partition, committed)).sort(doc! { "_id": 1 }).await?;
            while let Some(bucket) = cursor.try_next().await? {
                let fence = buckets.fence(partition, &bucket);
                fences.push(fence.ok_or_else(|| {
                    Failure::unavailable(&format!("a document of {} is no bucket of ours", buckets.collection()))
                })?);
            }
        }
        Ok(fences)
    }

    /// A durable write that says which topic is counted, and refuses when it was another one.
    async fn claim(&self, database: &Database, partition: Partition, identity: &TopicIdentity) -> Result<(), Failure> {
        let id = Buckets::source(&self.options, partition);
        let claim = doc! {
            "findAndModify": Self::SOURCES,
            "query": { "_id": id },
            "update": { "$inc": { "claims": 1_i64 }, "$setOnInsert": { "identity": &*identity.0 } },
            "upsert": true,
            "new": true,
        };
        let reply = self.command(database, claim).await?;
        WriteReply::read(&reply).ok()?;
        let known = reply.get_document("value").ok().and_then(|source| source.get_str("identity").ok());
        if known.is_some_and(|known| !identity.contradicts(known)) {
            Ok(())
        } else {
            Err(Failure::Store(topic_recreated(&self.options, partition)))
        }
    }

    async fn write_buckets(self, database: Database, deltas: Vec<BucketDelta>) -> Result<Flushed, Failure> {
        let mut flushed = Flushed::default();
        for index in 0..self.options.aggregates.len() {
            let buckets = Buckets::new(&self.options, index);
            let of_aggregate: Vec<&BucketDelta> = deltas.iter().filter(|delta| delta.aggregate == index).collect();
            for part in buckets::split(&of_aggregate) {
                let statements: Vec<Document> = part.iter().map(|delta| buckets.statement(delta)).collect();
                let Sent { mut taken, refused, others } = self.send(&database, &buckets, part, statements).await?;
                if !refused.is_empty() {
                    let may_pass = refused.iter().any(|(_, error)| !code::is_of_the_document(error.code));
                    reply::before_the_second_attempt(may_pass).await;
                    let deltas: Vec<&BucketDelta> = refused.iter().map(|(delta, _)| *delta).collect();
                    let plainer = deltas.iter().map(|delta| buckets.plain_statement(delta)).collect();
                    let mut again = self.send(&database, &buckets, &deltas, plainer).await?;
                    taken.append(&mut again.taken);
                    for (delta, error) in again.refused {
                        // Where nothing else is stored either, it may be the collection's fault, and pass.
                        if !code::is_of_the_document(error.code) && !others && !again.others {
                            return Err(Failure::unavailable(&error.message));
                        }
                        let (name, id) = (buckets.collection(), buckets.id(delta));
                        flushed.block(
                            delta.partition,
                            format!(
                                "an index or a rule of the collection {name} refuses the bucket {id} (code {}): {}",
                                error.code, error.message
                            ),
                        );
                    }
                }
                if !taken.is_empty() {
                    self.judge_taken(&database, &buckets, &taken, &mut flushed).await?;
                }
            }
        }
        flushed.fenced.sort_unstable();
        flushed.fenced.dedup();
        Ok(flushed)
    }

    /// Sends the statements of `deltas`, in any of their forms.
    async fn send<'d>(
        &self,
        database: &Database,
        buckets: &Buckets<'_>,
        deltas: &[&'d BucketDelta],
        statements: Vec<Document>,
    ) -> Result<Sent<'d>, Failure> {
        let command = doc! { "update": buckets.collection(), "updates": statements, "ordered": false };
        let mut reply = self.write(database, command).await?;
        let mut sent = Sent { others: reply.effects > 0, ..Sent::default() };
        for error in std::mem::take(&mut reply.errors) {
            match deltas.get(error.index) {
                Some(delta) if error.code == code::DUPLICATE_KEY => sent.taken.push((*delta, error)),
                Some(delta) if !code::is_passing(error.code) => sent.refused.push((*delta, error)),
                _ => return Err(Failure::unavailable(&error.message)),
            }
        }
        reply.concern_ok()?;
        Ok(sent)
    }

    /// Of buckets whose key is taken: by another writer of ours, whose fence says what is counted, or by something else.
    ///
    /// The others of a partition that is fenced may have taken effect: all of them are dropped and the fences read again,
    /// which shows what did. Where no fence will show why the key was taken that would go on for ever.
    async fn judge_taken(
        &self,
        database: &Database,
        buckets: &Buckets<'_>,
        taken: &[(&BucketDelta, StatementError)],
        flushed: &mut Flushed,
    ) -> Result<(), Failure> {
        let name = buckets.collection();
        let ids: Vec<String> = taken.iter().map(|(delta, _)| buckets.id(delta)).collect();
        let collection = majority(database.collection::<Document>(&name));
        let found = collection.find(doc! { "_id": { "$in": &ids } }).projection(doc! { "group": 0 }).await?;
        let found: Vec<Document> = found.try_collect().await?;
        for ((delta, error), id) in taken.iter().zip(ids) {
            let document = found.iter().find(|document| document.get_str("_id").is_ok_and(|found| found == id));
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

    async fn read_rows(self, database: Database, query: Query) -> Result<Rows, Failure> {
        let (index, definition) = self.options.aggregate(&query.aggregate).map_err(Failure::Store)?;
        let date = |time| Bson::DateTime(mongodb::bson::DateTime::from_millis(ceil_millis(time)));
        let limit = i64::try_from(query.limit).unwrap_or(i64::MAX).saturating_add(1);
        let mut totals =
            doc! { "_id": { "window_start": "$window_start", "group": { "$ifNull": ["$group", "$key"] } } };
        totals.extend(buckets::totals());
        let pipeline = [
            doc! { "$match": { "window_start": { "$gte": date(query.from), "$lt": date(query.to) } } },
            doc! { "$group": totals },
            doc! { "$sort": { "_id.window_start": 1, "_id.group": 1 } },
            doc! { "$limit": limit },
        ];
        let mut cursor = database
            .collection::<Document>(&Buckets::new(&self.options, index).collection())
            .aggregate(pipeline)
            .allow_disk_use(true)
            .max_time(self.options.timeout)
            .await?;
        let mut rows = Rows::default();
        while let Some(row) = cursor.try_next().await? {
            let row = buckets::row(&definition.group_by, &row).ok_or_else(|| {
                Failure::unavailable(&format!("a document of aggregate {:?} is no bucket of ours", query.aggregate))
            })?;
            if !rows.push(&row, query.limit) {
                break;
            }
        }
        Ok(rows)
    }
}

impl Store for MongoStore {
    fn prepare(&self) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        Box::pin(self.call(Self::prepare))
    }

    fn rehearse(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.call(rehearsal::rehearse))
    }

    fn fences<'a>(
        &'a self,
        partition: Partition,
        committed: Offset,
        identity: &'a TopicIdentity,
    ) -> BoxFuture<'a, Result<Vec<Fence>, StoreError>> {
        let identity = identity.clone();
        Box::pin(self.call(move |store, database| store.read_fences(database, partition, committed, identity)))
    }

    fn flush<'a>(
        &'a self,
        deltas: &'a [BucketDelta],
        events: &'a [ProcessedEvent],
    ) -> BoxFuture<'a, Result<Flushed, StoreError>> {
        let (deltas, events) = (deltas.to_vec(), events.to_vec());
        Box::pin(self.call(move |store, database| async move {
            let refused = events::write(&store, &database, &events).await?;
            let is_refused = |partition| refused.iter().any(|event: &RefusedEvent| event.partition == partition);
            let deltas = deltas.into_iter().filter(|delta| !is_refused(delta.partition)).collect();
            Ok(Flushed { refused, ..store.write_buckets(database, deltas).await? })
        }))
    }

    fn query(&self, query: Query) -> BoxFuture<'_, Result<Rows, StoreError>> {
        Box::pin(self.call(move |store, database| store.read_rows(database, query)))
    }

    /// A client that is dropped while its runtime ends panics in a task of the driver.
    fn close(&self) -> BoxFuture<'_, ()> {
        let Some(client) = self.client.get().cloned() else { return Box::pin(std::future::ready(())) };
        let task = self.io.spawn(async move { client.shutdown().immediate(true).await });
        Box::pin(async move {
            if tokio::time::timeout(Self::CLOSING, task).await.is_err() {
                tracing::debug!("MongoDB does not answer to the end of its sessions; they expire by themselves");
            }
        })
    }
}

/// What came of some statements.
#[derive(Default)]
struct Sent<'d> {
    /// Buckets whose key is taken.
    taken: Vec<(&'d BucketDelta, StatementError)>,
    /// Buckets that are refused in this form.
    refused: Vec<(&'d BucketDelta, StatementError)>,
    /// Others took effect.
    others: bool,
}

/// Why a call failed, before it is told as a [`StoreError`].
enum Failure {
    Driver(Error),
    Store(StoreError),
}

impl Failure {
    /// Of a command that the server does not run.
    fn code(&self) -> Option<i32> {
        match self {
            Self::Driver(error) => match &*error.kind {
                ErrorKind::Command(command) => Some(command.code),
                _ => None,
            },
            Self::Store(_) => None,
        }
    }

    /// The server's refusal of a command, unless that passes.
    fn refusal(&self) -> Option<Refusal> {
        let code = self.code().filter(|code| *code == code::UNAUTHORIZED || !code::is_passing(*code))?;
        let Self::Driver(error) = self else { return None };
        let ErrorKind::Command(command) = &*error.kind else { return None };
        Some(Refusal { code, message: shortened(&command.message).into_owned() })
    }

    fn unavailable(why: &str) -> Self {
        Self::Store(StoreError::Unavailable(format!("MongoDB: {why}")))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Driver(error)
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn primary() -> SelectionCriteria {
    SelectionCriteria::ReadPreference(ReadPreference::Primary)
}

/// Reads what cannot be rolled back any more.
fn majority<T: Send + Sync>(collection: Collection<T>) -> Collection<T> {
    let options = mongodb::options::CollectionOptions::builder().read_concern(ReadConcern::majority()).build();
    collection.client().database(&collection.namespace().db).collection_with_options(collection.name(), options)
}

/// Refuses options that ask for less than the fence needs; what is refused would have no effect, so that nobody should
/// believe that it has.
fn refuse_weaker(url: &ConnectionString) -> anyhow::Result<()> {
    if let Some(concern) = &url.write_concern {
        let weaker = !matches!(concern.w, None | Some(Acknowledgment::Majority)) || concern.journal == Some(false);
        if weaker {
            bail!(
                "store.url weakens the write concern: buckets need w=majority and journal=true, remove w and journal"
            );
        }
    }
    let reads_enough =
        |concern: &ReadConcern| matches!(concern.level, ReadConcernLevel::Majority | ReadConcernLevel::Linearizable);
    if url.read_concern.as_ref().is_some_and(|concern| !reads_enough(concern)) {
        bail!("store.url weakens the read concern: fences need readConcernLevel=majority, remove readConcernLevel");
    }
    if !matches!(url.read_preference, None | Some(ReadPreference::Primary)) {
        bail!("store.url reads from secondaries: fences are read from the primary, remove readPreference");
    }
    Ok(())
}

/// A calendar time that MongoDB gave; its range is larger than a calendar's.
fn datetime(date: mongodb::bson::DateTime) -> DateTime<chrono::Utc> {
    DateTime::from_timestamp_millis(date.timestamp_millis()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> StoreOptions {
        StoreOptions {
            topic: "events".to_owned(),
            generation: 0,
            aggregates: crate::config::Config::default().aggregate,
            events: false,
            events_ttl: Duration::from_secs(3600),
            timeout: Duration::from_millis(500),
        }
    }

    fn config(url: &str) -> StoreConfig {
        StoreConfig { url: url.to_owned(), ..StoreConfig::default() }
    }

    #[tokio::test]
    async fn options_that_weaken_the_fence_are_refused() {
        let refused = |query: &str| {
            let url = format!("mongodb://127.0.0.1:27017/?{query}");
            MongoStore::new(&config(&url), options(), Handle::current()).err().map(|error| error.to_string())
        };
        for query in ["w=1", "w=0", "journal=false", "readConcernLevel=local", "readPreference=secondary"] {
            assert!(refused(query).is_some_and(|why| why.contains("remove")), "{query}");
        }
        assert_eq!(refused("w=majority&journal=true&readPreference=primary"), None);
    }

    #[tokio::test]
    async fn a_server_that_is_away_is_unavailable_and_the_password_stays_secret() {
        let url = "mongodb://user:secret@127.0.0.1:1/?serverSelectionTimeoutMS=100";
        let store = MongoStore::new(&config(url), options(), Handle::current()).unwrap();
        let Err(StoreError::Unavailable(why)) = Store::prepare(&store).await else { panic!("prepared") };
        assert!(why.contains("127.0.0.1:1") && !why.contains("secret"), "{why}");
    }
}
