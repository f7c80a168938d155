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
mod history;
mod indexes;
mod rehearsal;
mod reply;

use std::{fmt, sync::Arc, time::Duration};

use anyhow::bail;
use futures::future::BoxFuture;
use mongodb::{
    Client,
    bson::{Bson, Document, doc},
    error::{Error, ErrorKind},
    options::{
        Acknowledgment, ClientOptions, ConnectionString, HostInfo, ReadPreference, SelectionCriteria, WriteConcern,
    },
};
use serde_json::{Number, Value};
use tokio::{runtime::Handle, sync::OnceCell};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    config::StoreConfig,
    event::TimeBounds,
    position::{Offset, Partition, TopicIdentity},
    store::{
        Answer, BucketDelta, Definition, EventsPage, EventsQuery, Fence, Flushed, GroupsFound, GroupsOf, History,
        Prepared, ProcessedEvent, Query, Removal, Rows, Store, StoreError, StoreOptions,
    },
};
use buckets::Buckets;
pub use database::DatabaseChoice;
use database::StoreDatabase;
use reply::{Refusal, code, shortened};

const DEFINITIONS: &str = "ingestd_aggregates";
const SOURCES: &str = "ingestd_sources";

/// Aggregates in MongoDB.
#[derive(Clone)]
pub struct MongoStore {
    url: ConnectionString,
    /// For messages: without user and password.
    hosts: String,
    choice: DatabaseChoice,
    /// The database of the choice, once the server was asked.
    database: Arc<OnceCell<String>>,
    options: Arc<StoreOptions>,
    /// Made at the first call: a `mongodb+srv://` URL is looked up in the DNS, which may be out of reach at the start.
    client: Arc<OnceCell<Client>>,
    io: Handle,
}

impl MongoStore {
    /// How long to look for a server before a call fails; the callers' own back-off goes on from there.
    const SERVER_SELECTION: Duration = Duration::from_secs(5);
    const CLOSING: Duration = Duration::from_secs(1);

    /// Reads the URL; the server needs not be in reach.
    ///
    /// # Errors
    /// The URL is no MongoDB URL.
    pub fn new(config: &StoreConfig, options: StoreOptions, io: Handle) -> anyhow::Result<Self> {
        // Without the driver's reason, which quotes what may be a piece of the password.
        let Ok(url) = ConnectionString::parse(&config.url) else {
            bail!("store.url is no MongoDB URL such as \"mongodb://127.0.0.1:27017\"");
        };
        let hosts = match &url.host_info {
            HostInfo::HostIdentifiers(hosts) => hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            HostInfo::DnsRecord(name) => name.clone(),
            _ => "the hosts of store.url".to_owned(),
        };
        let (choice, database) = (DatabaseChoice::of(config), Arc::default());
        Ok(Self { url, hosts, choice, database, options: options.into(), client: Arc::default(), io })
    }

    /// Runs a call on the I/O runtime, bounded by the configured timeout. Dropping the future ends the call.
    async fn call<T, F>(&self, call: impl FnOnce(StoreDatabase) -> F + Send + 'static) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send,
    {
        let store = self.clone();
        let task = self.io.spawn(async move {
            let client = store.connect().await?;
            let settle = || store.choice.settle(client, &store.options.topic);
            let database = client.database(store.database.get_or_try_init(settle).await?);
            call(StoreDatabase { database, options: store.options }).await
        });
        match tokio::time::timeout(self.options.timeout, AbortOnDropHandle::new(task)).await {
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
            ErrorKind::ServerSelection { message, .. }
                if message.contains("reports wire version") && message.contains("requires at least") =>
            {
                self.unavailable("is older than MongoDB 4.4, which is the oldest that can be used: upgrade it")
            }
            ErrorKind::ServerSelection { message, .. } => {
                // The message is the driver's view of all servers; the first error in it says what is wrong.
                let cause = message.split("Error: Kind: ").nth(1).and_then(|rest| rest.split(", labels").next());
                let cause = cause.unwrap_or("no primary answered");
                self.unavailable(&format!("cannot be reached; is it running, is store.url right? ({cause})"))
            }
            // Of the URL, or of what the DNS adds to it: the message may quote a piece of the password.
            ErrorKind::InvalidArgument { .. } => self.unavailable("the driver refuses store.url or an option in it"),
            kind => self.unavailable(&shortened(&kind.to_string())),
        }
    }
}

impl Store for MongoStore {
    fn prepare(&self) -> Answer<'_, Prepared> {
        Box::pin(self.call(prepare))
    }

    fn history(&self, partition: Partition, from: Offset, bounds: TimeBounds) -> Answer<'_, History> {
        Box::pin(self.call(move |store| async move { history::history(&store, partition, from, bounds).await }))
    }

    fn remove<'a>(&'a self, removal: &'a Removal) -> Answer<'a, bool> {
        let removal = removal.clone();
        Box::pin(self.call(move |store| async move { history::remove(&store, &removal).await }))
    }

    fn groups<'a>(&'a self, asked: &'a [GroupsOf]) -> Answer<'a, Vec<GroupsFound>> {
        let asked = asked.to_vec();
        Box::pin(self.call(move |store| async move { buckets::groups::find(&store, &asked).await }))
    }

    fn rehearse(&self) -> Answer<'_, ()> {
        Box::pin(self.call(rehearsal::rehearse))
    }

    fn fences<'a>(
        &'a self,
        partition: Partition,
        committed: Offset,
        identity: &'a TopicIdentity,
    ) -> Answer<'a, Vec<Fence>> {
        let identity = identity.clone();
        Box::pin(self.call(move |store| async move { buckets::fences(&store, partition, committed, &identity).await }))
    }

    fn flush<'a>(&'a self, deltas: &'a [BucketDelta], events: &'a [ProcessedEvent]) -> Answer<'a, Flushed> {
        let (deltas, events) = (deltas.to_vec(), events.to_vec());
        Box::pin(self.call(move |store| async move {
            let refused = events::write(&store, &events).await?;
            let is_refused = |delta: &BucketDelta| refused.iter().any(|event| event.partition == delta.partition);
            let deltas: Vec<&BucketDelta> = deltas.iter().filter(|delta| !is_refused(delta)).collect();
            let flushed = buckets::write(&store, &deltas).await?;
            Ok(Flushed { refused, ..flushed })
        }))
    }

    fn query(&self, query: Query) -> Answer<'_, Rows> {
        Box::pin(self.call(move |store| async move { buckets::rows(&store, query).await }))
    }

    fn events(&self, query: EventsQuery) -> Answer<'_, EventsPage> {
        Box::pin(self.call(move |store| async move { events::page(&store, &query).await }))
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

/// Compares the definitions with those that are known, and makes the indexes.
async fn prepare(store: StoreDatabase) -> Result<Prepared, Failure> {
    let mut names_only = Vec::new();
    for aggregate in &store.options.aggregates {
        let wanted = Definition::of(aggregate);
        let group_by: Vec<String> = aggregate.group_by.clone();
        let mut insert = doc! { "window_ms": wanted.window_ms, "group_by": group_by };
        if !wanted.more.is_empty() {
            insert.insert("definition", Value::Object(wanted.more).to_string());
        }
        let upsert = doc! { "q": { "_id": &aggregate.name }, "u": { "$setOnInsert": insert }, "upsert": true };
        store.write(doc! { "update": DEFINITIONS, "updates": [upsert] }).await?.ok()?;
        let found = store.majority(DEFINITIONS).find_one(doc! { "_id": &aggregate.name }).await?;
        let Some(found) = found else {
            return Err(Failure::unavailable("a definition that was just written is not there yet"));
        };
        names_only.push(Definition::judge(aggregate, &definition(&found)).map_err(Failure::Store)?);
    }
    // Of a large collection an index takes longer than counting should wait for.
    let patience = store.options.timeout / 2;
    let remarks = tokio::time::timeout(patience, indexes::ensure(&store)).await.unwrap_or_else(|_| {
        Ok(vec![format!(
            "indexes of the database {:?} are not there after {patience:?}: queries are slower until they are; if the \
             server does not go on by itself, make those of docs/design.md, 3.5, by hand",
            store.database.name()
        )])
    })?;
    Ok(Prepared { remarks, names_only })
}

/// As it is known; what is missing in it is as in no definition of ours.
fn definition(found: &Document) -> Definition {
    let names = found.get_array("group_by").map(Vec::as_slice).unwrap_or_default();
    let names: Vec<&str> = names.iter().map(|name| name.as_str().unwrap_or_default()).collect();
    let more = found.get_str("definition").ok().and_then(|more| serde_json::from_str(more).ok());
    Definition {
        window_ms: found.get_i64("window_ms").unwrap_or_default(),
        group_by: Value::from(names).to_string(),
        more: more.unwrap_or_default(),
    }
}

/// Why a call failed, before it becomes a [`StoreError`].
enum Failure {
    Driver(Error),
    Store(StoreError),
}

impl Failure {
    /// The server's refusal of a command, unless that passes.
    fn refusal(&self) -> Option<Refusal> {
        let Self::Driver(error) = self else { return None };
        let ErrorKind::Command(command) = &*error.kind else { return None };
        let passes = code::is_passing(command.code) && command.code != code::UNAUTHORIZED;
        (!passes).then(|| Refusal { code: command.code, message: shortened(&command.message).into_owned() })
    }

    fn unavailable(why: impl fmt::Display) -> Self {
        Self::Store(StoreError::Unavailable(format!("MongoDB: {why}")))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Driver(error)
    }
}

fn primary() -> SelectionCriteria {
    SelectionCriteria::ReadPreference(ReadPreference::Primary)
}

/// An integer as 64 bits, all else as a double.
fn bson_number(number: &Number) -> Bson {
    number.as_i64().map(Bson::Int64).or_else(|| number.as_f64().map(Bson::Double)).unwrap_or(Bson::Null)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> StoreOptions {
        StoreOptions {
            topic: "events".to_owned(),
            generation: 0,
            plans: vec![crate::measure::Plan::default()],
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
    async fn a_server_that_is_away_is_unavailable_and_the_password_stays_secret() {
        let url = "mongodb://user:secret@127.0.0.1:1/?serverSelectionTimeoutMS=100";
        let store = MongoStore::new(&config(url), options(), Handle::current()).unwrap();
        let Err(StoreError::Unavailable(why)) = Store::prepare(&store).await else { panic!("prepared") };
        assert!(why.contains("127.0.0.1:1") && !why.contains("secret"), "{why}");
    }
}
