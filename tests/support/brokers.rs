//! Two or three Kafka brokers, for a test in which some go away: started by it, and ended with it.

use std::{
    ffi::OsStr,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    types::RDKafkaErrorCode,
};
use tokio::runtime::{Builder, Runtime};

use super::{
    PATIENCE,
    daemon::Setup,
    eventually,
    services::{KAFKA_FLAGS, Service, free_ports, installed, kafka_libraries},
};

/// One question.
const ATTEMPT: Duration = Duration::from_secs(5);

/// One cluster at a time: two would keep the machine so busy that brokers are taken for dead.
static TURN: Mutex<()> = Mutex::new(());

pub struct Brokers {
    brokers: Vec<Service>,
    io: Runtime,
    _turn: MutexGuard<'static, ()>,
}

/// A partition as the brokers' metadata shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    pub leader: i32,
    pub in_sync: usize,
}

impl Brokers {
    /// Of two, the first is the controller; of three all are. `None`, and a loud line, where Kafka cannot be had.
    pub fn start(count: usize) -> Option<Self> {
        let controllers = if count == 3 { 3 } else { 1 };
        installed().then(|| {
            let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
            let ports: Vec<Vec<u16>> = (0..count).map(|_| free_ports("kafka")).collect();
            let voters = ports[..controllers].iter().map(|ports| ports[1].to_string()).collect::<Vec<_>>().join(",");
            let start = |(index, ports): (usize, Vec<u16>)| {
                let node = (index + 1).to_string();
                let flags = [KAFKA_FLAGS, &["--node", &node, "--voters", &voters]].concat();
                Service::start_on("kafka", ports, flags.into_iter().map(str::to_owned).collect())
            };
            let brokers: Vec<Service> = ports.into_iter().enumerate().map(start).collect();
            let io = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
            let cluster = Self { brokers, io, _turn: turn };
            cluster.wait_whole();
            cluster
        })
    }

    /// By its node's number, from 1 on.
    pub fn node(&self, node: i32) -> &Service {
        &self.brokers[usize::try_from(node - 1).expect("nodes are numbered from 1 on")]
    }

    pub fn nodes(&self) -> impl Iterator<Item = i32> {
        (1..).take(self.brokers.len())
    }

    fn address(&self) -> String {
        self.brokers.iter().map(Service::address).collect::<Vec<_>>().join(",")
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.address()).set("allow.auto.create.topics", "false");
        config.set("group.id", "tests");
        config
    }

    /// Waits until all of them are known to each other.
    pub fn wait_whole(&self) {
        let consumer: BaseConsumer = self.client().create().expect("a consumer");
        eventually("all brokers are there", PATIENCE, || {
            let metadata = consumer.fetch_metadata(None, ATTEMPT).ok()?;
            (metadata.brokers().len() == self.brokers.len()).then_some(())
        });
    }

    /// A topic on all brokers.
    pub fn create_topic(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("an administrator");
        let replicas = i32::try_from(self.brokers.len()).expect("a few");
        self.create(&admin, NewTopic::new(topic, partitions, TopicReplication::Fixed(replicas)), settings);
        self.wait_in_sync(topic, self.brokers.len());
    }

    /// A topic of as many partitions as there are nodes, each on one of them.
    pub fn create_topic_apart(&self, topic: &str) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("an administrator");
        let nodes: Vec<[i32; 1]> = self.nodes().map(|node| [node]).collect();
        let places: Vec<&[i32]> = nodes.iter().map(<[i32; 1]>::as_slice).collect();
        let partitions = i32::try_from(places.len()).expect("a few");
        self.create(&admin, NewTopic::new(topic, partitions, TopicReplication::Variable(&places)), &[]);
        self.wait_in_sync(topic, 1);
    }

    /// A topic of one partition, on these.
    pub fn create_topic_on(&self, topic: &str, nodes: &[i32], settings: &[(&str, &str)]) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("an administrator");
        self.create(&admin, NewTopic::new(topic, 1, TopicReplication::Variable(&[nodes])), settings);
        self.wait_in_sync(topic, nodes.len());
    }

    fn create<'a>(
        &self,
        admin: &AdminClient<DefaultClientContext>,
        mut new: NewTopic<'a>,
        settings: &'a [(&'a str, &'a str)],
    ) {
        for (name, value) in settings {
            new = new.set(name, value);
        }
        eventually("the topic is made", PATIENCE, || {
            let answer = self.io.block_on(admin.create_topics([&new], &AdminOptions::new())).ok()?;
            // Where an answer was lost the topic is there at the next attempt.
            matches!(answer[0], Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists))).then_some(())
        });
    }

    /// The node that is the controller now.
    pub fn controller(&self) -> i32 {
        self.administrate(&["controller"]).trim().parse().expect("a node's number")
    }

    /// Moves all partitions of the topic to these, and waits until they are there.
    pub fn move_to(&self, topic: &str, nodes: &[i32]) {
        let nodes = nodes.iter().map(i32::to_string);
        let arguments: Vec<String> = ["move", topic].map(str::to_owned).into_iter().chain(nodes).collect();
        self.administrate(&arguments);
    }

    /// By Kafka's own administrator: what it prints.
    fn administrate<S: AsRef<OsStr>>(&self, arguments: &[S]) -> String {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/Cluster.java");
        let mut java = Command::new("java");
        java.args(["-XX:TieredStopAtLevel=1", "-cp"]).arg(kafka_libraries()).arg(program).arg(self.address());
        let output = java.args(arguments).output().expect("there is Java, for the brokers");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Waits until each partition has so many in-sync replicas, and a leader.
    pub fn wait_in_sync(&self, topic: &str, replicas: usize) {
        eventually("so many replicas are in sync", PATIENCE, || {
            let partitions = self.partitions(topic);
            let is_so = |partition: &Partition| partition.leader > 0 && partition.in_sync == replicas;
            (!partitions.is_empty() && partitions.iter().all(is_so)).then_some(())
        });
    }

    pub fn partitions(&self, topic: &str) -> Vec<Partition> {
        let consumer: BaseConsumer = self.client().create().expect("a consumer");
        let Ok(metadata) = consumer.fetch_metadata(Some(topic), ATTEMPT) else { return Vec::new() };
        let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        partitions.map(|it| Partition { leader: it.leader(), in_sync: it.isr().len() }).collect()
    }

    /// A daemon whose log is there, all else local.
    pub fn setup(&self, name: &str) -> Setup {
        Setup::new(name)
            .set("queue.kind", "kafka")
            .set("queue.topic", name)
            .set("queue.kafka.brokers", self.address())
            .set("queue.kafka.group", name)
    }
}
