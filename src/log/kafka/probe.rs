//! What is asked of the brokers: by the probe, a thread beside each producer, while they are away or silent, while records
//! wait for longer than they should, and while partitions take no writes; and whether they take this machine's time.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{CStr, CString, c_char, c_int, c_void},
    ptr,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, bounded, select};
use rdkafka::{
    ClientConfig,
    admin::ConfigResource,
    client::Client,
    metadata::Metadata,
    producer::{BaseProducer, Producer},
    types::RDKafkaErrorCode as Code,
};
use rdkafka_sys as sys;

use crate::{
    backoff,
    log::kafka::{
        brokers::{BrokerStatus, Reporter, Silent, Writability, takes_a_connection},
        client::{Admin, Context, Deliveries, Reconnect, leader_answers, topic_in},
    },
    position::Timestamp,
};

/// One question by way of the producer.
const DEADLINE: Duration = Duration::from_secs(3);
/// The same while requests wait for the answer.
const QUESTION: Duration = Duration::from_millis(1500);
/// How often it looks whether something is to be asked: a part of what a record may wait.
const TICK: Duration = Duration::from_millis(250);
/// The clocks, which takes two new clients, while they agree and records are refused all the same.
const COMPARE_EVERY: Duration = Duration::from_secs(5);
/// The same while they do not.
const COMPARE_AGAIN: Duration = Duration::from_secs(1);

pub(super) struct Probe<R: Deliveries> {
    producer: Arc<BaseProducer<Context<R>>>,
    plain: ClientConfig,
    topic: String,
    reporter: Arc<Reporter>,
    reconnect: Reconnect,
    /// While there is something to find out.
    scout: Option<Scout>,
    /// The topic's `min.insync.replicas`, as last known.
    minimum: Option<usize>,
    /// It was asked for.
    informed: bool,
    silent: Silent,
    /// When the clocks were compared last after a refusal.
    compared: Option<Instant>,
}

impl<R: Deliveries> Probe<R> {
    /// `plain` are the settings of a client that asks and writes nothing.
    pub fn new(
        producer: Arc<BaseProducer<Context<R>>>,
        plain: ClientConfig,
        topic: &str,
        reporter: Arc<Reporter>,
    ) -> Self {
        Self {
            producer,
            plain,
            topic: topic.to_owned(),
            reporter,
            reconnect: Reconnect::default(),
            scout: None,
            minimum: None,
            informed: false,
            silent: Silent::default(),
            compared: None,
        }
    }

    /// Asks at once when it is woken.
    pub fn run(mut self, woken: &Receiver<()>, stopped: &Receiver<()>) {
        let mut asked = Instant::now();
        // With ±20 %, so that daemons that lost Kafka together do not return together.
        let mut jitter = 1.0;
        loop {
            let now = select! {
                recv(stopped) -> _ => return,
                recv(woken) -> _ => true,
                default(TICK) => false,
            };
            let reporter = self.reporter.clone();
            let Some(brokers) = reporter.live() else { continue };
            // No callback tells of it.
            if !brokers.has_failed()
                && let Some((_, reason)) = self.producer.client().fatal_error()
            {
                brokers.failed(&reason);
            }
            // Records may be refused for other reasons, and by the thousand.
            if self.compared.is_none_or(|at| at.elapsed() >= COMPARE_EVERY) && brokers.take_refused_time() {
                self.compare_clocks(&reporter);
            }
            if now || brokers.is_due(asked.elapsed().mul_f64(jitter)) {
                self.ask(&reporter);
                asked = Instant::now();
                jitter = backoff::jitter();
            }
        }
    }

    /// Each question takes up to some seconds, in which another producer may take this one's place: what comes of it is
    /// told by way of the reporter, which knows.
    fn ask(&mut self, reporter: &Reporter) {
        let Some(brokers) = reporter.live() else { return };
        if brokers.clock().is_some() && self.compared.is_none_or(|at| at.elapsed() >= COMPARE_AGAIN) {
            self.compare_clocks(reporter);
        }
        let is_well = !brokers.is_away() && brokers.unwritable().is_none() && !brokers.is_suspicious();
        let mut is_heard = true;
        if is_well && self.informed {
            self.scout = None;
            let answer = answers(&self.producer, &self.topic, self.minimum, DEADLINE);
            is_heard = answer.is_ok();
            if answer.is_ok_and(|topic| topic.is_some_and(|topic| topic.unwritable.is_empty())) {
                self.reconnect.answered();
                reporter.tell(BrokerStatus::answered);
                return;
            }
        }
        self.find_out(reporter, is_heard);
    }

    /// Whether our time is refused, or still is.
    fn compare_clocks(&mut self, reporter: &Reporter) {
        self.compared = Some(Instant::now());
        match clock_verdict(&self.plain, &self.topic) {
            Verdict::Wrong(side, reason) => reporter.tell(|brokers| brokers.clock_is_wrong(side, &reason)),
            Verdict::Right => reporter.tell(BrokerStatus::clock_is_right),
            Verdict::Unknown(_) => {}
        }
    }

    /// `is_heard`: as far as is known, the producer gets answers.
    fn find_out(&mut self, reporter: &Reporter, is_heard: bool) {
        let began = Instant::now();
        let own = self.ask_by_the_producer();
        match self.look() {
            Err(reason) => {
                // The next one begins anew with the configured brokers.
                self.scout = None;
                // The producer knows all brokers, and a new client those of the configuration alone.
                let own = own.and_then(|own| own.recv_timeout(QUESTION).ok()).and_then(Result::ok);
                reporter.tell(|brokers| match own {
                    _ if brokers.has_acknowledged_since(began) => {}
                    Some(Some(topic)) if !brokers.acknowledges_nothing() => {
                        brokers.sees(topic);
                        brokers.answered();
                    }
                    _ => {
                        brokers.down(&reason);
                    }
                });
            }
            Ok(None) => reporter.tell(|brokers| {
                brokers.down(&format!(
                    "topic {} does not exist: it was deleted, or not created yet; a start creates it where \
                     queue.kafka.create_topic is true",
                    self.topic
                ));
            }),
            Ok(Some(topic)) => {
                self.informed = true;
                let is_clear = topic.unwritable.is_empty();
                let mut is_to_be_confirmed = false;
                reporter.tell(|brokers| {
                    brokers.sees(topic);
                    if is_clear && brokers.clock().is_none() && brokers.acknowledges_nothing() {
                        brokers.idle();
                    } else {
                        is_to_be_confirmed = is_clear && (brokers.is_away() || !is_heard);
                    }
                });
                if is_to_be_confirmed {
                    self.confirm(reporter);
                }
            }
        }
    }

    fn look(&mut self) -> Result<Option<Writability>, String> {
        let scout = match self.scout.take() {
            Some(scout) => scout,
            None => Scout::open(&self.plain, &self.topic).map_err(|error| format!("{error:#}"))?,
        };
        // Before the first answer nothing is on its way, and a broker that is slow to answer is not away.
        self.scout.insert(scout).look(&mut self.minimum, &mut self.silent, self.informed)
    }

    /// The producer is asked beside the scout, on a thread that ends by the question's deadline; nobody waits for it where
    /// the scout was answered.
    fn ask_by_the_producer(&self) -> Option<Receiver<Result<Option<Writability>, String>>> {
        let (told, answer) = bounded(1);
        let (producer, topic, minimum) = (self.producer.clone(), self.topic.clone(), self.minimum);
        let ask = move || {
            let _ = told.send(answers(&producer, &topic, minimum, QUESTION));
        };
        std::thread::Builder::new().name("kafka-ask".to_owned()).spawn(ask).ok().map(|_| answer)
    }

    /// The brokers are well; whether the producer finds them, too.
    fn confirm(&mut self, reporter: &Reporter) {
        match answers(&self.producer, &self.topic, self.minimum, DEADLINE) {
            Ok(_) => {
                self.reconnect.answered();
                reporter.tell(BrokerStatus::answered);
            }
            Err(error) => {
                // The scout was answered a moment ago.
                let is_stranded = self.reconnect.unanswered(Instant::now(), || true);
                reporter.tell(|brokers| {
                    brokers.down(&error);
                    if is_stranded {
                        brokers.failed("it finds no broker any more, while a new client is answered");
                        // The next event finds the door open, and replaces this producer.
                        brokers.answered();
                    }
                });
            }
        }
    }
}

/// Asks by way of the producer: `None` where the topic is not known.
fn answers<R: Deliveries>(
    producer: &BaseProducer<Context<R>>,
    topic: &str,
    minimum: Option<usize>,
    deadline: Duration,
) -> Result<Option<Writability>, String> {
    let metadata = producer.client().fetch_metadata(Some(topic), deadline).map_err(|error| error.to_string())?;
    Ok(Writability::of(&metadata, topic, minimum, &Silent::default()))
}

/// Whether one broker answers: asked while requests wait.
const PING: Duration = Duration::from_millis(1200);

/// A client of its own that asks: a producer's questions wait behind the records that are not acknowledged.
struct Scout {
    admin: Admin,
    topic: String,
}

impl Scout {
    fn open(settings: &ClientConfig, topic: &str) -> anyhow::Result<Self> {
        Ok(Self { admin: Admin::open(settings)?, topic: topic.to_owned() })
    }

    /// What the topic takes; `None` where the brokers know no such topic. Asks them, and, where records may be waiting for
    /// it, whether each answers; `minimum` is the topic's `min.insync.replicas` as last known, `silent` who did not answer
    /// before. Blocks for some seconds at most.
    ///
    /// # Errors
    /// A sentence, when no broker answers.
    fn look(
        &self,
        minimum: &mut Option<usize>,
        silent: &mut Silent,
        of_each: bool,
    ) -> Result<Option<Writability>, String> {
        let client = self.admin.client.inner();
        let metadata = client.fetch_metadata(Some(&self.topic), QUESTION).map_err(|error| {
            let said = client.context().last_error().map(|said| format!(" ({said})")).unwrap_or_default();
            format!("{error}{said}")
        })?;
        if topic_in(&metadata, &self.topic).map_err(|code| format!("topic {}: {code}", self.topic))?.is_none() {
            return Ok(None);
        }
        let found = || self.settings().ok()?.get("min.insync.replicas")?.value.as_deref()?.parse().ok();
        *minimum = found().or(*minimum);
        silent.are_now(&if of_each { self.unreachable(&metadata) } else { BTreeSet::new() });
        Ok(Writability::of(&metadata, &self.topic, *minimum, silent))
    }

    /// The topic's settings, or why they are not told: there is no right to ask for instance.
    fn settings(&self) -> Result<ConfigResource, String> {
        let answer = self.admin.describe(&self.topic, QUESTION).map_err(|error| error.to_string())?;
        answer.ok_or("an empty answer")?.map_err(|code| code.to_string())
    }

    /// The brokers of in-sync replicas that do not answer. Those that lead are asked for the start of a log, which also
    /// one that hangs fails; of the others it is only tried whether they take a connection.
    fn unreachable(&self, metadata: &Metadata) -> BTreeSet<i32> {
        let mut leaders = BTreeMap::new();
        let mut others = BTreeSet::new();
        for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
            if partition.leader() >= 0 {
                leaders.entry(partition.leader()).or_insert(partition.id());
            }
            others.extend(partition.isr());
        }
        others.retain(|broker| !leaders.contains_key(broker));
        let address = |broker: &i32| {
            let found = metadata.brokers().iter().find(|found| found.id() == *broker)?;
            Some((found.host(), u16::try_from(found.port()).ok()?))
        };
        std::thread::scope(|scope| {
            let leads = leaders.iter().map(|(broker, partition)| {
                scope.spawn(move || {
                    let answers = leader_answers(self.admin.client.inner(), &self.topic, *partition, PING);
                    (!answers).then_some(*broker)
                })
            });
            let follows = others.iter().map(|broker| {
                let address = address(broker);
                scope.spawn(move || {
                    (!address.is_some_and(|address| takes_a_connection(address, PING))).then_some(*broker)
                })
            });
            let asked: Vec<_> = leads.collect::<Vec<_>>().into_iter().chain(follows.collect::<Vec<_>>()).collect();
            // A panic was reported by its thread, and says nothing about a broker.
            asked.into_iter().filter_map(|asked| asked.join().ok().flatten()).collect()
        })
    }
}

/// A wider bound counts as none, in milliseconds: no clock misses it, and [`Side::far`] does not either. The default of most is
/// `Long.MAX_VALUE`.
const WIDEST: i64 = 30 * 365 * 24 * 3_600_000;

/// For the answer to one record.
const REFUSAL: Duration = Duration::from_secs(3);

/// What a topic lets this machine's clock differ by, as its settings say it; `None` is no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    before: Option<i64>,
    after: Option<i64>,
}

impl Bounds {
    pub fn of(settings: &ConfigResource) -> Self {
        Self::by(|name| settings.get(name).and_then(|entry| entry.value.as_deref()))
    }

    /// By the topic's setting of a name.
    fn by<'v>(value: impl Fn(&str) -> Option<&'v str>) -> Self {
        if value("message.timestamp.type") == Some("LogAppendTime") {
            // Then the brokers' time is taken, whatever ours says.
            return Self { before: None, after: None };
        }
        let millis = |name| value(name)?.parse().ok().filter(|millis| *millis < WIDEST);
        // From 3.6 to 3.9 a broker has all three, and takes the old one where the new ones are at their defaults.
        let bound = |name| millis(name).or_else(|| millis("message.timestamp.difference.max.ms"));
        Self { before: bound("message.timestamp.before.max.ms"), after: bound("message.timestamp.after.max.ms") }
    }

    /// On which side a record can be refused.
    pub fn side(self) -> Option<Side> {
        self.after.map(|_| Side::Ahead).or(self.before.map(|_| Side::Behind))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::log) enum Side {
    Ahead,
    Behind,
}

impl Side {
    /// A time that is refused on this side wherever one is.
    fn far(self) -> i64 {
        match self {
            // The last day of 9999.
            Self::Ahead => 253_402_214_400_000,
            // librdkafka takes 0 for now.
            Self::Behind => 1,
        }
    }

    fn setting(self) -> &'static str {
        match self {
            Self::Ahead => "message.timestamp.after.max.ms",
            Self::Behind => "message.timestamp.before.max.ms",
        }
    }
}

/// The times that a topic takes at present, in milliseconds since 1970; `None` is no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    from: Option<i64>,
    to: Option<i64>,
}

impl Taken {
    /// Out of a broker's words.
    pub fn of(said: &str) -> Option<Self> {
        let (_, range) = said.split_once("should be within [")?;
        let (from, to) = range.split_once(']')?.0.split_once(", ")?;
        // What is added to no bound is beyond 64 bits, and comes out negative.
        let time = |text: &str| text.parse::<i64>().map(|time| (time > 0).then_some(time)).ok();
        Some(Self { from: time(from)?, to: time(to)? })
    }

    /// On which side this time is out of it, and by how many milliseconds.
    pub fn misses(self, now: Timestamp) -> Option<(Side, i64)> {
        let ahead = self.to.filter(|to| now.0 > *to).map(|to| (Side::Ahead, now.0 - to));
        ahead.or_else(|| self.from.filter(|from| now.0 < *from).map(|from| (Side::Behind, from - now.0)))
    }

    /// By how many milliseconds this machine is ahead of the broker.
    pub fn difference(self, bounds: Bounds, now: Timestamp) -> Option<i64> {
        let by_end = self.to.zip(bounds.after).map(|(to, after)| now.0 - (to - after));
        by_end.or_else(|| self.from.zip(bounds.before).map(|(from, before)| now.0 - (from + before)))
    }

    /// What is wrong with this machine's time, where something is.
    pub fn complaint(self, topic: &str, now: Timestamp) -> Option<(Side, String)> {
        let (side, by) = self.misses(now)?;
        let words = format!(
            "this machine's clock says {}, {} {} than topic {topic} takes: its brokers allow {} of difference to their own \
             clock. Set the clocks (NTP)",
            now.to_rfc3339(),
            seconds(by),
            if side == Side::Ahead { "later" } else { "earlier" },
            side.setting(),
        );
        Some((side, words))
    }
}

/// Such as `1h 59m 58s`.
pub(super) fn seconds(millis: i64) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(millis.unsigned_abs() / 1000))
}

/// Whether a broker refused the batch with this record and appended nothing of it.
pub(in crate::log) fn is_refusal(code: Code) -> bool {
    matches!(code, Code::InvalidTimestamp | Code::InvalidRecord | Code::InvalidDifferentRecord)
}

/// What the topic makes of this machine's time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::log) enum Verdict {
    /// It takes records of now, or of any time.
    Right,
    /// It does not, on this side and with this reason.
    Wrong(Side, String),
    /// There was no answer, for this reason.
    Unknown(String),
}

/// Compares the clocks by the bounds of now. Blocks, for some seconds at most.
///
/// A broker refuses a record whose timestamp is too far from its own clock: `message.timestamp.after.max.ms`, an hour by
/// default since Kafka 4.0, and `message.timestamp.before.max.ms` (KIP-937). Only that refusal says what time it is there:
/// "should be within [from, to]", in milliseconds since 1970 (KIP-467). So the clocks are compared by a record that the
/// topic has to refuse, and nothing is written. (One is where the bound is taken off the topic in the moment between the
/// question for it and the record: empty, as what no producer of ours writes.)
pub(in crate::log) fn clock_verdict(plain: &ClientConfig, topic: &str) -> Verdict {
    let silent = || Verdict::Unknown(format!("topic {topic} does not say which times it takes"));
    let scout = Scout::open(plain, topic).map_err(|error| format!("{error:#}"));
    let Some(sender) = Sender::open(plain, topic) else { return silent() };
    // Without a bound the record would stand in the topic: the settings are asked for at the last moment.
    let side = match scout.and_then(|scout| scout.settings()).map(|settings| Bounds::of(&settings).side()) {
        Ok(Some(side)) => side,
        Ok(None) => return Verdict::Right,
        Err(reason) => return Verdict::Unknown(format!("the settings of topic {topic} are not told: {reason}")),
    };
    match sender.ask(side) {
        Some(Answer::Refused(taken)) => match taken.complaint(topic, Timestamp::now()) {
            Some((side, reason)) => Verdict::Wrong(side, reason),
            None => Verdict::Right,
        },
        Some(Answer::Stored) => Verdict::Right,
        None => silent(),
    }
}

/// What became of a record from a time that is far away.
enum Answer {
    /// The topic takes these.
    Refused(Taken),
    /// The bound was taken away a moment ago.
    Stored,
}

/// The times that the topic takes, by a record that it has to refuse on this side, where it has a bound; `None` without such
/// an answer. The topic must be there. Blocks, for some seconds at most.
pub(super) fn times_taken(plain: &ClientConfig, topic: &str, side: Side) -> Option<Taken> {
    match Sender::open(plain, topic)?.ask(side)? {
        Answer::Refused(taken) => Some(taken),
        Answer::Stored => None,
    }
}

/// A client that sends one record, and is connected.
struct Sender {
    /// Ends before what its interceptor points to.
    client: Client<Context>,
    _told: Box<Told>,
    answer: Receiver<Result<(), String>>,
    topic: CString,
}

impl Sender {
    fn open(plain: &ClientConfig, topic: &str) -> Option<Self> {
        let mut settings = plain.clone();
        settings.set("acks", "all").set("linger.ms", "0").set("message.timeout.ms", REFUSAL.as_millis().to_string());
        let (told, answer) = bounded(1);
        let told = Box::new(told);
        let native = settings.create_native_config().ok()?;
        // SAFETY: the name is copied, and what the opaque pointer points to outlives the client.
        let added = unsafe {
            let opaque = ptr::from_ref::<Told>(&told).cast_mut().cast();
            sys::rd_kafka_conf_interceptor_add_on_new(native.ptr(), INTERCEPTOR.as_ptr(), Some(on_new), opaque)
        };
        if added != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        let kind = sys::rd_kafka_type_t::RD_KAFKA_PRODUCER;
        let client = Client::new(&settings, native, kind, Context::default()).ok()?;
        client.fetch_metadata(Some(topic), REFUSAL).ok()?;
        Some(Self { client, _told: told, answer, topic: CString::new(topic).ok()? })
    }

    fn ask(&self, side: Side) -> Option<Answer> {
        // SAFETY: each argument is of the type that its tag says, and a value that is empty is not looked at.
        let sent = unsafe {
            use sys::rd_kafka_vtype_t as tag;
            sys::rd_kafka_producev(
                self.client.native_ptr(),
                tag::RD_KAFKA_VTYPE_TOPIC,
                self.topic.as_ptr(),
                tag::RD_KAFKA_VTYPE_MSGFLAGS,
                sys::RD_KAFKA_MSG_F_COPY as c_int,
                tag::RD_KAFKA_VTYPE_VALUE,
                self.topic.as_ptr().cast::<c_void>(),
                0_usize,
                tag::RD_KAFKA_VTYPE_TIMESTAMP,
                side.far(),
                tag::RD_KAFKA_VTYPE_END,
            )
        };
        if sent != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        match self.answer.recv_timeout(REFUSAL).ok()? {
            Ok(()) => Some(Answer::Stored),
            Err(said) => Taken::of(&said).map(Answer::Refused),
        }
    }
}

/// Hands on what the broker said of the one record.
type Told = crossbeam_channel::Sender<Result<(), String>>;

const INTERCEPTOR: &CStr = c"clock";

unsafe extern "C" fn on_new(
    client: *mut sys::rd_kafka_t,
    _: *const sys::rd_kafka_conf_t,
    opaque: *mut c_void,
    _: *mut c_char,
    _: usize,
) -> sys::rd_kafka_resp_err_t {
    // SAFETY: as it is given.
    unsafe {
        sys::rd_kafka_interceptor_add_on_acknowledgement(client, INTERCEPTOR.as_ptr(), Some(on_acknowledgement), opaque)
    }
}

/// The broker's words are librdkafka's until it has told of the record: a delivery, which is taken later, points to memory
/// that is freed.
unsafe extern "C" fn on_acknowledgement(
    _: *mut sys::rd_kafka_t,
    message: *mut sys::rd_kafka_message_t,
    opaque: *mut c_void,
) -> sys::rd_kafka_resp_err_t {
    // SAFETY: the message is a producer's and live, its text null or live, too; the sender outlives the client.
    let (told, code, text) = unsafe {
        let text = sys::rd_kafka_message_produce_errstr(message);
        let text = (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned());
        (&*opaque.cast::<Told>(), (*message).err, text.unwrap_or_default())
    };
    let is_stored = code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
    // The one who asked may have given up.
    let _ = told.try_send(if is_stored { Ok(()) } else { Err(text) });
    sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
}

#[cfg(test)]
mod tests;
