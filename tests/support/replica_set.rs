//! A replica set of three MongoDBs, for a test that wants elections: started by it, and ended with it.

use std::{
    thread,
    time::{Duration, Instant},
};

use futures::TryStreamExt;
use mongodb::{
    Client,
    bson::{Bson, Document, doc},
    options::ReadConcern,
};
use tokio::runtime::{Builder, Runtime};

use super::{
    PATIENCE, eventually,
    services::{Service, installed},
};

const NAME: &str = "rs0";
const MEMBERS: usize = 3;
/// Of one question to one member; a frozen one never answers.
const ASK: Duration = Duration::from_secs(2);

pub struct ReplicaSet {
    members: Vec<Service>,
    io: Runtime,
    /// Past the driver's view of the set: one client a member.
    direct: Vec<Client>,
    whole: Client,
}

impl ReplicaSet {
    /// `None`, and a loud line, where MongoDB cannot be had: the test is skipped.
    pub fn start() -> Option<Self> {
        installed().then(|| {
            let start = |_| Service::start("mongodb", &["--replica-set", NAME]);
            let members: Vec<Service> = (0..MEMBERS).map(start).collect();
            let io = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
            let client = |url: &str| {
                let url = format!("{url}&serverSelectionTimeoutMS=2000&connectTimeoutMS=2000");
                io.block_on(Client::with_uri_str(url)).expect("a valid URL")
            };
            let direct = members.iter().map(|it| client(&format!("mongodb://{}/?directConnection=true", it.address())));
            let direct = direct.collect();
            let whole = client(&url(&members));
            let set = Self { members, io, direct, whole };
            set.initiate();
            set
        })
    }

    fn initiate(&self) {
        for (member, service) in self.members.iter().enumerate() {
            service.wait(|| self.ask(member, doc! { "ping": 1 }).map(drop));
        }
        let members = self.members.iter().zip(0..).map(|(it, id): (_, i32)| doc! { "_id": id, "host": it.address() });
        let config = doc! {
            "_id": NAME,
            "members": members.collect::<Vec<_>>(),
            // Elections within seconds; the default's are 10.
            "settings": { "electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500 },
        };
        self.ask_within(PATIENCE, 0, doc! { "replSetInitiate": config }).expect("a new set can be initiated");
        self.wait_whole();
    }

    /// As a daemon's `store.url`.
    pub fn url(&self) -> String {
        url(&self.members)
    }

    pub fn member(&self, member: usize) -> &Service {
        &self.members[member]
    }

    /// All but this one.
    pub fn others(&self, member: usize) -> impl Iterator<Item = &Service> {
        self.members.iter().enumerate().filter(move |(other, _)| *other != member).map(|(_, service)| service)
    }

    /// Runs a command on one member, whatever its state.
    fn ask(&self, member: usize, command: Document) -> Result<Document, String> {
        self.ask_within(ASK, member, command)
    }

    fn ask_within(&self, within: Duration, member: usize, command: Document) -> Result<Document, String> {
        let asked = self.io.block_on(async {
            let run = async { self.direct[member].database("admin").run_command(command).await };
            tokio::time::timeout(within, run).await
        });
        asked.map_err(|_| format!("no answer within {within:?}"))?.map_err(|error| error.to_string())
    }

    /// The member that takes writes. One that was frozen may still believe that it is the one: the latest election counts.
    pub fn primary(&self) -> usize {
        let elected = |member: usize| {
            let hello = self.ask(member, doc! { "hello": 1 }).ok()?;
            let election = hello.get_object_id("electionId").ok()?;
            hello.get_bool("isWritablePrimary").ok()?.then_some((election, member))
        };
        let (_, primary) = eventually("a primary", PATIENCE, || (0..MEMBERS).filter_map(elected).max());
        primary
    }

    /// Waits until one is primary and the others follow it.
    pub fn wait_whole(&self) {
        eventually("one primary and two secondaries", PATIENCE, || {
            let mut states = self.states(self.primary());
            states.sort_unstable();
            (states == ["PRIMARY", "SECONDARY", "SECONDARY"]).then_some(())
        });
    }

    /// The members' states as this one sees them.
    fn states(&self, member: usize) -> Vec<String> {
        let Ok(status) = self.ask(member, doc! { "replSetGetStatus": 1 }) else { return Vec::new() };
        let members = status.get_array("members").map_or(&[][..], Vec::as_slice).iter().filter_map(Bson::as_document);
        members.filter_map(|member| member.get_str("stateStr").ok()).map(str::to_owned).collect()
    }

    /// The primary gives way, and another one is elected. Returns who was the primary.
    pub fn step_down(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let primary = self.primary();
            // Not for long, so that it can be elected the next time.
            let command = doc! { "replSetStepDown": 5, "secondaryCatchUpPeriodSecs": 2, "force": true };
            match self.ask_within(PATIENCE, primary, command) {
                Ok(_) => return primary,
                // Another election was faster.
                Err(error) => assert!(Instant::now() < deadline, "the primary does not step down: {error}"),
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// How many documents this member holds, whether or not they can still be rolled back; `None` when it does not say.
    pub fn count_on(&self, member: usize, database: &str, collection: &str) -> Option<u64> {
        let collection = self.direct[member].database(database).collection::<Document>(collection);
        let count = collection.count_documents(doc! {}).into_future();
        self.io.block_on(async { tokio::time::timeout(ASK, count).await.ok()?.ok() })
    }

    /// What can not be rolled back any more.
    pub fn documents(&self, database: &str, collection: &str) -> Vec<Document> {
        let collection = self.whole.database(database).collection::<Document>(collection);
        let find = collection.find(doc! {}).read_concern(ReadConcern::majority());
        self.io.block_on(async { find.await?.try_collect().await }).expect("the collection can be read")
    }
}

fn url(members: &[Service]) -> String {
    let hosts = members.iter().map(Service::address).collect::<Vec<_>>().join(",");
    format!("mongodb://{hosts}/?replicaSet={NAME}")
}

impl Drop for ReplicaSet {
    fn drop(&mut self) {
        if thread::panicking() {
            for (member, service) in self.members.iter().enumerate() {
                eprintln!("{} sees {:?}", service.address(), self.states(member));
            }
        }
    }
}
