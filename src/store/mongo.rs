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
mod definitions;
mod events;
mod history;
mod indexes;
mod rebuild;
mod rehearsal;
mod reply;

use std::{fmt, sync::Arc, time::Duration};

use anyhow::bail;
use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use mongodb::{
    Client,
    bson::{RawBson, doc},
    error::{Error, ErrorKind},
    options::{
        Acknowledgment, ClientOptions, ConnectionString, HostInfo, ReadPreference, SelectionCriteria, WriteConcern,
    },
};
use parking_lot::Mutex;
use serde_json::Number;
use tokio::{runtime::Handle, sync::OnceCell};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    config::StoreConfig,
    event::TimeBounds,
    position::{Offset, Partition, Timestamp, TopicIdentity},
    store::{
        Answer, BucketDelta, CountedList, Definition, EventsPage, EventsQuery, Fence, Flushed, GroupsFound, GroupsOf,
        History, Prepared, ProcessedEvent, Query, Rebuilds, Removal, Rows, Store, StoreError, StoreOptions, Versions,
        counted::Found,
        rebuild::{Kept, NewRebuild, Reached, Rebuild, RebuildId, Swapped},
    },
};
use buckets::{Buckets, Remembered};
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
    /// With the names that their buckets' collections have behind `aggregate_`.
    versions: Arc<ArcSwap<Versions<String>>>,
    /// Made at the first call: a `mongodb+srv://` URL is looked up in the DNS, which may be out of reach at the start.
    client: Arc<OnceCell<Client>>,
    /// What a flush need not read.
    remembered: Arc<Mutex<Remembered>>,
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
        let versions = Versions::configured(&options, |aggregate| Some(aggregate.name.clone()));
        Ok(Self {
            url,
            hosts,
            choice,
            database,
            options: options.into(),
            versions,
            client: Arc::default(),
            remembered: Arc::default(),
            io,
        })
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
            let versions = store.versions.load_full();
            call(StoreDatabase { database, options: store.options, versions, remembered: store.remembered }).await
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
        Box::pin(async {
            let versions = self.call(compare).await?;
            let refused = versions.ensure_same();
            self.versions.store(Arc::new(versions));
            *self.remembered.lock() = Remembered::default();
            refused?;
            self.call(prepare).await
        })
    }

    fn counted(&self) -> CountedList {
        self.versions.load().counted.clone()
    }

    fn history(&self, partition: Partition, from: Offset, bounds: TimeBounds) -> Answer<'_, History> {
        Box::pin(self.call(move |store| async move { history::history(&store, partition, from, bounds).await }))
    }

    fn remove<'a>(&'a self, removal: &'a Removal) -> Answer<'a, bool> {
        let removal = removal.clone();
        Box::pin(self.call(move |store| async move { history::remove(&store, &removal).await }))
    }

    fn groups<'a>(&'a self, counted: &'a CountedList, asked: &'a [GroupsOf]) -> Answer<'a, Vec<GroupsFound>> {
        let (counted, asked) = (counted.clone(), asked.to_vec());
        Box::pin(self.call(move |store| async move {
            store.ensure_is(&counted)?;
            buckets::groups::find(&store, &asked).await
        }))
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
        self.remembered.lock().forget(partition);
        Box::pin(self.call(move |store| async move {
            let all: Vec<usize> = (0..store.versions.len()).collect();
            buckets::fences(&store, &all, partition, committed, &identity).await
        }))
    }

    fn fences_of<'a>(
        &'a self,
        counted: &'a CountedList,
        aggregate: usize,
        partition: Partition,
        from: Offset,
        identity: &'a TopicIdentity,
    ) -> Answer<'a, Vec<Fence>> {
        let (counted, identity) = (counted.clone(), identity.clone());
        self.remembered.lock().forget(partition);
        Box::pin(self.call(move |store| async move {
            store.ensure_is(&counted)?;
            buckets::fences(&store, &[aggregate], partition, from, &identity).await
        }))
    }

    fn flush<'a>(
        &'a self,
        counted: &'a CountedList,
        deltas: &'a [BucketDelta],
        events: &'a [ProcessedEvent],
    ) -> Answer<'a, Flushed> {
        let (counted, deltas, events) = (counted.clone(), deltas.to_vec(), events.to_vec());
        Box::pin(self.call(move |store| async move {
            store.ensure_is(&counted)?;
            let refused = events::write(&store, &events).await?;
            let is_refused = |delta: &BucketDelta| refused.iter().any(|event| event.partition == delta.partition);
            let deltas: Vec<&BucketDelta> = deltas.iter().filter(|delta| !is_refused(delta)).collect();
            let flushed = buckets::write(&store, &deltas).await?;
            Ok(Flushed { refused, ..flushed })
        }))
    }

    fn rebuilds(&self) -> &dyn Rebuilds {
        self
    }

    fn query(&self, query: Query) -> Answer<'_, Rows> {
        Box::pin(async {
            if !self.versions.load().is_known() {
                let known = Arc::new(self.call(compare).await?);
                // What is counted may be prepared meanwhile.
                self.versions.rcu(|versions| if versions.is_known() { versions.clone() } else { known.clone() });
            }
            self.call(move |store| async move { buckets::rows(&store, query).await }).await
        })
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

impl Rebuilds for MongoStore {
    fn find_all<'a>(&'a self, aggregates: &'a [String]) -> Answer<'a, Vec<Rebuild>> {
        let aggregates = aggregates.to_vec();
        Box::pin(self.call(move |store| async move { rebuild::find(&store, &aggregates).await }))
    }

    fn begin<'a>(&'a self, wanted: &'a NewRebuild) -> Answer<'a, Rebuild> {
        let wanted = wanted.clone();
        Box::pin(self.call(move |store| async move { rebuild::begin(&store, &wanted).await }))
    }

    fn kept<'a>(&'a self, aggregate: &'a str) -> Answer<'a, Kept> {
        let aggregate = aggregate.to_owned();
        Box::pin(self.call(move |store| async move { rebuild::kept(&store, &aggregate).await }))
    }

    fn reached<'a>(&'a self, id: &'a RebuildId, partition: Partition, reached: Reached) -> Answer<'a, bool> {
        let id = id.clone();
        Box::pin(self.call(move |store| async move { rebuild::reached(&store, &id, partition, reached).await }))
    }

    fn settled<'a>(&'a self, id: &'a RebuildId, partition: Partition) -> Answer<'a, ()> {
        let id = id.clone();
        Box::pin(self.call(move |store| async move { rebuild::settled(&store, &id, partition).await }))
    }

    fn leave_out(&self, partition: Partition, at: Offset) -> Answer<'_, ()> {
        Box::pin(self.call(move |store| async move { rebuild::leave_out(&store, partition, at).await }))
    }

    fn keep<'a>(&'a self, id: &'a RebuildId, from: Timestamp) -> Answer<'a, Option<Timestamp>> {
        let id = id.clone();
        Box::pin(self.call(move |store| async move { rebuild::keep(&store, &id, from).await }))
    }

    fn swap<'a>(&'a self, id: &'a RebuildId, noted: &'a Rebuild, now: Timestamp) -> Answer<'a, Swapped> {
        let (id, noted) = (id.clone(), noted.clone());
        Box::pin(self.call(move |store| async move { rebuild::swap(&store, &id, &noted, now).await }))
    }

    fn cancel<'a>(&'a self, aggregate: &'a str, now: Timestamp) -> Answer<'a, bool> {
        let aggregate = aggregate.to_owned();
        Box::pin(self.call(move |store| async move { rebuild::cancel(&store, &aggregate, now).await }))
    }

    fn tidy(&self, now: Timestamp) -> Answer<'_, bool> {
        Box::pin(self.call(move |store| async move { rebuild::tidy(&store, now).await }))
    }
}

/// Compares the definitions with those that are known.
async fn compare(store: StoreDatabase) -> Result<Versions<String>, Failure> {
    let options = store.options.clone();
    let mut known = Vec::with_capacity(options.aggregates.len());
    for aggregate in &options.aggregates {
        let insert = definitions::document(&Definition::of(aggregate));
        let upsert = doc! { "q": { "_id": &aggregate.name }, "u": { "$setOnInsert": insert }, "upsert": true };
        store.write(doc! { "update": DEFINITIONS, "updates": [upsert] }).await?.ok()?;
        let found = store.majority(DEFINITIONS).find_one(doc! { "_id": &aggregate.name }).await?;
        let Some(found) = found else {
            return Err(Failure::unavailable("a definition that was just written is not there yet"));
        };
        let shadow = found.get_document("shadow").ok().filter(|shadow| rebuild::is_ours(&store, shadow));
        let shadow = shadow.and_then(|shadow| Some((definitions::shadow(shadow)?, rebuild::range(shadow))));
        known.push(Found { configured: aggregate, active: definitions::active(&aggregate.name, &found), shadow });
    }
    Ok(Versions::of(known))
}

/// Makes the indexes.
async fn prepare(store: StoreDatabase) -> Result<Prepared, Failure> {
    // Of a large collection an index takes longer than counting should wait for.
    let patience = store.options.timeout / 2;
    let remarks = tokio::time::timeout(patience, indexes::ensure(&store)).await.unwrap_or_else(|_| {
        Ok(vec![format!(
            "indexes of the database {:?} are not there after {patience:?}: queries are slower until they are; if the \
             server does not go on by itself, make those of docs/design.md, 3.5, by hand",
            store.database.name()
        )])
    })?;
    Ok(Prepared { remarks, counted: store.versions.counted.clone() })
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
fn bson_number(number: &Number) -> RawBson {
    number.as_i64().map(RawBson::Int64).or_else(|| number.as_f64().map(RawBson::Double)).unwrap_or(RawBson::Null)
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
    async fn a_server_that_is_away_is_unavailable_and_the_password_stays_secret() {
        let url = "mongodb://user:secret@127.0.0.1:1/?serverSelectionTimeoutMS=100";
        let store = MongoStore::new(&config(url), options(), Handle::current()).unwrap();
        let Err(StoreError::Unavailable(why)) = Store::prepare(&store).await else { panic!("prepared") };
        assert!(why.contains("127.0.0.1:1") && !why.contains("secret"), "{why}");
    }
}
