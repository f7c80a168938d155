//! Kafka, an S3 store and MongoDB, real ones, in sets that the tests take turns with.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Condvar, LazyLock, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard},
    thread,
    time::{Duration, Instant},
};

use futures::TryStreamExt;
use mongodb::{
    Client as MongoClient,
    bson::{Document, doc},
};

use object_store::{
    ObjectStore, ObjectStoreExt,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path as ObjectPath,
    signer::Signer,
};
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
};
use tokio::runtime::{Builder, Runtime};
use ureq::http::Method;

use super::{
    PATIENCE,
    daemon::Setup,
    eventually, free_port,
    http::Client,
    process::{Process, services_script},
    services_root, skip,
};

/// How many ports each takes.
const SERVICES: [(&str, usize); 3] = [("kafka", 2), ("s3", 4), ("mongodb", 1)];

/// So many as a service takes.
pub(super) fn free_ports(name: &str) -> Vec<u16> {
    let (_, count) = SERVICES.into_iter().find(|(known, _)| *known == name).expect("a service that there is");
    (0..count).map(|_| free_port()).collect()
}

/// One running service.
pub struct Service {
    name: &'static str,
    dir: PathBuf,
    ports: Vec<u16>,
    /// Of `services.py run`, beside those that each service has.
    flags: Vec<String>,
    process: RwLock<Process>,
}

impl Service {
    /// `flags` are those of `services.py run`.
    pub(super) fn start(name: &'static str, flags: &[&str]) -> Self {
        Self::start_on(name, free_ports(name), flags.iter().map(|flag| (*flag).to_owned()).collect())
    }

    /// On ports that were looked for before.
    pub(super) fn start_on(name: &'static str, ports: Vec<u16>, flags: Vec<String>) -> Self {
        let dir = services_root().join("run").join(format!("{name}-{}-{}", std::process::id(), ports[0]));
        fs::create_dir_all(&dir).expect("target can be written to");
        let process = RwLock::new(Self::launch(name, &dir, &ports, &flags));
        Self { name, dir, ports, flags, process }
    }

    fn launch(name: &str, dir: &Path, ports: &[u16], flags: &[String]) -> Process {
        let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
        let path = dir.to_str().expect("target's path is UTF-8");
        let mut arguments = vec!["run", name, "--dir", path, "--remove", path, "--ports", &ports];
        arguments.extend(flags.iter().map(String::as_str));
        Process::start(arguments, dir, &dir.join("log"))
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports[0])
    }

    pub fn process(&self) -> RwLockReadGuard<'_, Process> {
        self.process.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// As `kill -9`; its data stays for [`Service::restart`].
    pub fn kill(&self) {
        self.process().kill();
    }

    /// As `kill -STOP`: it hangs, and its connections with it.
    pub fn freeze(&self) {
        self.process().signal("STOP");
    }

    pub fn thaw(&self) {
        self.process().signal("CONT");
    }

    pub fn restart(&self) {
        let process = Self::launch(self.name, &self.dir, &self.ports, &self.flags);
        *self.process.write().unwrap_or_else(PoisonError::into_inner) = process;
    }

    /// Waits until `ready` says so.
    pub(super) fn wait(&self, mut ready: impl FnMut() -> Result<(), String>) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = ready() {
            if self.process().exit().is_some() || Instant::now() > deadline {
                self.process().print_log(self.name);
                panic!("{} does not come up: {error}", self.name);
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

pub struct Services {
    pub kafka: Service,
    pub s3: Service,
    pub mongodb: Service,
    pub(super) io: Runtime,
    mongo: MongoClient,
}

/// So many tests on services run beside each other: each has a set of its own, because tests freeze and kill them. A set
/// takes about a GiB of memory.
const SETS: usize = 4;

/// The benches, which have no debug assertions, measure a broker that compiles its code as in production.
pub(super) const KAFKA_FLAGS: &[&str] = if cfg!(debug_assertions) { &["--quick"] } else { &[] };

/// For `java -cp`: of any version that is here.
pub(super) fn kafka_libraries() -> PathBuf {
    let installed =
        fs::read_dir(services_root()).expect("a broker runs from there").flatten().map(|entry| entry.path());
    let is_kafka = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("kafka-"));
    installed.filter(is_kafka).max().expect("a broker runs from there").join("libs/*")
}

/// A set starts for the first test that gets it. Where they cannot be had it is `None`.
static STARTED: [OnceLock<Option<Services>>; SETS] = [const { OnceLock::new() }; SETS];

/// Which sets no test has. The one that was given back last is given first: the next one starts only when it is needed.
static FREE: LazyLock<Mutex<Vec<usize>>> = LazyLock::new(|| Mutex::new((0..SETS).rev().collect()));
static GIVEN_BACK: Condvar = Condvar::new();

/// A set of the services, for one test.
pub struct Exclusive {
    services: &'static Services,
    set: usize,
}

impl std::ops::Deref for Exclusive {
    type Target = Services;

    fn deref(&self) -> &Services {
        self.services
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        give_back(self.set);
    }
}

fn give_back(set: usize) {
    FREE.lock().unwrap_or_else(PoisonError::into_inner).push(set);
    GIVEN_BACK.notify_one();
}

/// Waits for a set, and installs and starts it at its first call. `None`, and a loud line, where the services cannot be
/// had: the test is skipped, unless `INGESTD_REQUIRE_SERVICES=1`.
pub fn services() -> Option<Exclusive> {
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    let set = loop {
        match free.pop() {
            Some(set) => break set,
            None => free = GIVEN_BACK.wait(free).unwrap_or_else(PoisonError::into_inner),
        }
    };
    drop(free);
    let started = STARTED[set].get_or_init(|| installed().then(Services::start));
    if started.is_none() {
        give_back(set);
    }
    started.as_ref().map(|services| Exclusive { services, set })
}

/// A MongoDB that asks for a password and knows no user; `None` as with [`services`].
pub fn mongodb_with_password() -> Option<Service> {
    installed().then(|| {
        let mongodb = Service::start("mongodb", &["--auth"]);
        mongodb.wait(|| TcpStream::connect(mongodb.address()).map(drop).map_err(|error| error.to_string()));
        mongodb
    })
}

/// A Kafka with the lines of this file at the end of its `server.properties`, where `{broker}` and `{controller}` are its
/// ports; `None` as with [`services`].
pub fn kafka_with(properties: &Path) -> Option<Service> {
    installed().then(|| {
        let properties = properties.display().to_string();
        let kafka = Service::start("kafka", &[KAFKA_FLAGS, &["--properties", &properties]].concat());
        let client: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", kafka.address())
            .create()
            .expect("librdkafka's defaults are valid");
        kafka.wait(|| client.fetch_metadata(None, Duration::from_secs(1)).map(drop).map_err(|error| error.to_string()));
        kafka
    })
}

pub(super) fn installed() -> bool {
    let installed = services_script().arg("install").status().is_ok_and(|status| status.success());
    if !installed {
        skip("the services cannot be installed (the reason stands above)");
    }
    installed
}

/// The packages of an SDK that `services.py` knows, installed. `None`, and a loud line, where they cannot be had.
pub fn sdk(name: &str) -> Option<PathBuf> {
    let output = services_script().args(["install", name]).stderr(Stdio::inherit()).output().expect("python3 runs");
    if !output.status.success() {
        skip(&format!("{name} cannot be installed (the reason stands above)"));
        return None;
    }
    Some(PathBuf::from(String::from_utf8(output.stdout).expect("UTF-8").trim_end()))
}

impl Services {
    fn start() -> Self {
        let flags = |name: &str| if name == "kafka" { KAFKA_FLAGS } else { &[] };
        let [kafka, s3, mongodb] = SERVICES.map(|(name, _)| Service::start(name, flags(name)));
        let io = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let url = format!("mongodb://{}/?serverSelectionTimeoutMS=1000&directConnection=true", mongodb.address());
        let mongo = io.block_on(MongoClient::with_uri_str(url)).expect("a valid URL");
        let services = Self { kafka, s3, mongodb, io, mongo };
        services.wait();
        services
    }

    /// Waits until all three answer requests.
    pub fn wait(&self) {
        self.wait_kafka();
        self.wait_mongodb();
        self.wait_s3();
    }

    pub fn wait_mongodb(&self) {
        let ping = || self.io.block_on(self.mongo.database("admin").run_command(doc! { "ping": 1 }).into_future());
        self.mongodb.wait(|| ping().map(drop).map_err(|error| error.to_string()));
    }

    /// It answers before it has a volume to write to.
    pub fn wait_s3(&self) {
        self.s3.wait(|| {
            self.try_create_bucket("probe")?;
            let (bucket, path) = (self.bucket("probe"), ObjectPath::from("probe"));
            let put = bucket.put(&path, "probe".into());
            self.io.block_on(put).map(drop).map_err(|error| error.to_string())
        });
    }

    /// Undoes whatever a test that failed left behind.
    pub fn heal(&self) {
        for service in [&self.kafka, &self.s3, &self.mongodb] {
            service.thaw();
            if service.process().exit().is_some() {
                service.restart();
            }
        }
        self.wait();
    }

    /// Waits until Kafka answers.
    pub fn wait_kafka(&self) {
        let consumer: BaseConsumer = self.kafka_config().create().expect("a consumer");
        let ask = || consumer.fetch_metadata(None, Duration::from_secs(1));
        self.kafka.wait(|| ask().map(drop).map_err(|error| error.to_string()));
    }

    /// A daemon on all three, with a bucket and a database of its own. `name` says whose; lower case.
    pub fn setup(&self, name: &str) -> Setup {
        Setup::new(name)
            .set("queue.kind", "kafka")
            .set("queue.topic", name)
            .set("queue.kafka.brokers", self.kafka.address())
            .set("queue.kafka.group", name)
            .set("archive.url", format!("s3://{name}/raw"))
            .set("archive.options.endpoint", format!("http://{}", self.s3.address()))
            .set("archive.options.access_key_id", "test")
            .set("archive.options.secret_access_key", "test")
            .set("archive.options.region", "us-east-1")
            .set("store.kind", "mongodb")
            .set("store.url", format!("mongodb://{}/?directConnection=true", self.mongodb.address()))
            .set("store.database", name)
    }

    /// A bucket whose store has passed its race before, below `raw/`: this one makes the PUTs of a race wait for each other, half a
    /// minute in all.
    pub fn create_bucket(&self, name: &str) {
        self.create_bucket_behind(name, &format!("http://{}", self.s3.address()));
    }

    /// The same for whoever meets the store at another endpoint.
    pub fn create_bucket_behind(&self, name: &str, endpoint: &str) {
        self.create_new_bucket(name);
        self.pass_race(name, "raw", endpoint);
    }

    /// Says that the store has passed the race of the archive below this prefix.
    pub fn pass_race(&self, name: &str, prefix: &str, endpoint: &str) {
        let passed = serde_json::json!({
            "version": 1, "time": "2026-01-01T00:00:00Z", "puts": 16, "rounds": 4, "endpoint": endpoint,
        });
        let (bucket, path) = (self.bucket(name), ObjectPath::from(format!("{prefix}/_chain/race.json")));
        eventually("the bucket takes an object", PATIENCE, || {
            self.io.block_on(bucket.put(&path, passed.to_string().into())).ok()
        });
    }

    /// One that nobody has tried.
    pub fn create_new_bucket(&self, name: &str) {
        eventually("the bucket is there", PATIENCE, || self.try_create_bucket(name).ok());
    }

    fn try_create_bucket(&self, name: &str) -> Result<(), String> {
        // Not every store takes a request without a signature.
        let (store, root) = (self.s3(name), ObjectPath::default());
        let signed = store.signed_url(Method::PUT, &root, Duration::from_secs(60));
        let url = self.io.block_on(signed).expect("it can be signed");
        let reply = Client::new().put(url.as_str());
        let reply = reply.map_err(|error| format!("{error:?}"))?;
        // 409: it is there already.
        if matches!(reply.status, 200 | 409) { Ok(()) } else { Err(format!("{reply:?}")) }
    }

    pub fn bucket(&self, name: &str) -> Arc<dyn ObjectStore> {
        Arc::new(self.s3(name))
    }

    fn s3(&self, bucket: &str) -> AmazonS3 {
        ingestd::internals::tls::install();
        let store = AmazonS3Builder::new()
            .with_endpoint(format!("http://{}", self.s3.address()))
            .with_allow_http(true)
            .with_bucket_name(bucket)
            .with_region("us-east-1")
            .with_access_key_id("test")
            .with_secret_access_key("test");
        store.build().expect("valid options")
    }

    /// Runs a command on MongoDB, as an operator or another program would.
    pub fn mongodb_command(&self, database: &str, command: Document) {
        let database = self.mongo.database(database);
        let reply = self.io.block_on(database.run_command(command).into_future()).expect("MongoDB takes it");
        assert!(!reply.contains_key("writeErrors"), "{reply}");
    }

    pub fn documents(&self, database: &str, collection: &str) -> Vec<Document> {
        let collection = self.mongo.database(database).collection::<Document>(collection);
        let found = self.io.block_on(async { collection.find(doc! {}).await?.try_collect().await });
        found.expect("the collection can be read")
    }
}
