//! What all clients of librdkafka share: their context, the log lines, how a client that lost its way is told from brokers that
//! are away, and the questions that the `rdkafka` crate does not wrap.
//!
//! That crate wraps neither `DescribeTopics` nor what a fetch says of a log's end, and panics on a committed offset's metadata
//! that is not UTF-8; so here librdkafka's C interface is used. Beside `fetched`, `outgoing`, `probe`, [`crate::vector`] and the program's own
//! pages (`app::mapped`), this is the library's only file with `unsafe`.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{CStr, CString, c_char},
    ops::Deref,
    panic::{self, AssertUnwindSafe},
    ptr::{self, NonNull},
    slice,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use parking_lot::Mutex;
use rdkafka::{
    ClientConfig, ClientContext, Offset as KafkaOffset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, ConfigResource, ResourceSpecifier},
    client::Client,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult},
    message::{self, DeliveryResult, OwnedHeaders},
    metadata::{Metadata, MetadataTopic},
    producer::ProducerContext,
    topic_partition_list::TopicPartitionListElem,
    types::RDKafkaErrorCode as Code,
    util::IntoOpaque,
};
use rdkafka_sys as sys;

use crate::position::{Offset, Partition, TopicIdentity};

/// The context of every client: it passes librdkafka's log lines on, and remembers why the brokers could not be reached.
/// What else becomes of what librdkafka reports is the role's: nothing where a client only asks, which is `()`.
#[derive(Default)]
pub(in crate::log) struct Context<R = ()> {
    role: R,
    last_error: Mutex<Option<String>>,
}

/// What one kind of client does with what librdkafka reports.
pub(in crate::log) trait Role: Sized + Send + Sync + 'static {
    /// An error, as a rule of a connection; `last` is what [`Context::last_error`] returns from now on.
    fn error(&self, code: Option<Code>, reason: &str, last: &mut Option<String>) {
        // That all are down says nothing of why.
        if code != Some(Code::AllBrokersDown) || last.is_none() {
            *last = Some(reason.to_owned());
        }
    }

    /// The group gives these partitions to a member, or takes them. The default is for consumers without a group.
    fn rebalance(&self, _: &BaseConsumer<Context<Self>>, _: sys::RDKafkaRespErr, _: &TopicPartitionList) {}
}

impl Role for () {}

/// The role of a producer.
pub(in crate::log) trait Deliveries: Role {
    /// What goes with each record.
    type Sent: IntoOpaque;

    /// A record was acknowledged, or will not be.
    fn delivered(&self, outcome: &DeliveryResult<'_>, sent: Self::Sent);
}

impl<R> Context<R> {
    pub fn new(role: R) -> Self {
        Self { role, last_error: Mutex::default() }
    }

    /// What librdkafka said last about its connections: `Connect to … failed: Connection refused`.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }

    /// The same as the end of a sentence; empty where it said nothing.
    pub fn says(&self) -> String {
        self.last_error().map(|said| format!("; librdkafka says: {said}")).unwrap_or_default()
    }
}

impl<R> Deref for Context<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.role
    }
}

impl<R: Role> ClientContext for Context<R> {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        forward(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "rdkafka", %error, reason, "librdkafka reports an error");
        self.role.error(error.rdkafka_error_code(), reason, &mut self.last_error.lock());
    }
}

impl<R: Role> ConsumerContext for Context<R> {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, what: sys::RDKafkaRespErr, list: &mut TopicPartitionList) {
        self.role.rebalance(consumer, what, list);
    }
}

impl<R: Deliveries> ProducerContext for Context<R> {
    type DeliveryOpaque = R::Sent;

    fn delivery(&self, outcome: &DeliveryResult<'_>, sent: R::Sent) {
        // rdkafka hears of many records at once, and a panic over one would leave those after it without an answer. It is
        // reported by the hook; what came with the record is dropped, and answers those that wait.
        let _ = panic::catch_unwind(AssertUnwindSafe(|| self.role.delivered(outcome, sent)));
    }
}

/// A client that only asks.
///
/// # Errors
/// When librdkafka refuses the settings.
pub(in crate::log) fn open<T: FromClientConfigAndContext<Context>>(settings: &ClientConfig) -> KafkaResult<T> {
    T::from_config_and_context(settings, Context::default())
}

/// An administrator of topics, and what drives its futures, which end by their own deadlines.
pub(super) struct Admin {
    pub client: AdminClient<Context>,
    runtime: tokio::runtime::Runtime,
}

impl Admin {
    pub fn open(settings: &ClientConfig) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        Ok(Self { client: open(settings)?, runtime: runtime.context("cannot make a runtime to ask Kafka with")? })
    }

    pub fn wait<T>(&self, answer: impl Future<Output = T>) -> T {
        self.runtime.block_on(answer)
    }

    /// The topic's settings; `None` in an empty answer.
    pub fn describe(&self, topic: &str, timeout: Duration) -> KafkaResult<Option<Result<ConfigResource, Code>>> {
        let options = AdminOptions::new().request_timeout(Some(timeout));
        let resource = [ResourceSpecifier::Topic(topic)];
        Ok(self.wait(self.client.describe_configs(&resource, &options))?.into_iter().next())
    }
}

/// Lines of librdkafka's log, of one level, that pass in each [`WINDOW`]: a broker that is away makes one every few
/// milliseconds.
const LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(10);

/// One level's window: when it began, the lines that passed, the lines that did not.
struct Limit(Mutex<Option<(Instant, u32, u32)>>);

impl Limit {
    const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Whether a line may pass, and how many did not before it.
    fn admit(&self, now: Instant) -> Option<u32> {
        let mut window = self.0.lock();
        match window.as_mut() {
            Some((began, passed, dropped)) if now.duration_since(*began) < WINDOW => {
                if *passed == LINES {
                    *dropped += 1;
                    return None;
                }
                *passed += 1;
                Some(0)
            }
            _ => {
                let dropped = window.map_or(0, |(_, _, dropped)| dropped);
                *window = Some((now, 1, 0));
                Some(dropped)
            }
        }
    }
}

static ERRORS: Limit = Limit::new();
static WARNINGS: Limit = Limit::new();
static NOTICES: Limit = Limit::new();

/// Passes a line of librdkafka's log on, as an event of `tracing` with the target `rdkafka`.
fn forward(level: RDKafkaLogLevel, facility: &str, line: &str) {
    use RDKafkaLogLevel::{Alert, Critical, Debug, Emerg, Error, Info, Notice, Warning};
    // A property that is meant for producers alone is no mistake, though librdkafka warns about it in consumers.
    let level = if facility == "CONFWARN" { Debug } else { level };
    match level {
        Emerg | Alert | Critical => {
            if let Some(suppressed) = ERRORS.admit(Instant::now()) {
                tracing::error!(target: "rdkafka", facility, suppressed, "{line}");
            }
        }
        Error | Warning => {
            if let Some(suppressed) = WARNINGS.admit(Instant::now()) {
                tracing::warn!(target: "rdkafka", facility, suppressed, "{line}");
            }
        }
        Notice | Info => {
            if let Some(suppressed) = NOTICES.admit(Instant::now()) {
                tracing::info!(target: "rdkafka", facility, suppressed, "{line}");
            }
        }
        // Only when the operator asked for it with the property `debug`.
        Debug => tracing::debug!(target: "rdkafka", facility, "{line}"),
    }
}

/// The pause between two questions by a new client.
const NEW_CLIENT_EVERY: Duration = Duration::from_secs(4);
/// What the old one may take to notice that the brokers are back: twice its longest pause between two connections.
const OWN_TIME: Duration = Duration::from_secs(4);
/// The new client's question; it has to connect first.
const NEW_CLIENT_DEADLINE: Duration = Duration::from_secs(3);

/// The questions of one client that went unanswered: whether it lost its way to the brokers for good, or they are away.
///
/// When a broker stops, the brokers that it names last may be none, and librdkafka forgets all that it knew. It then
/// goes back to `bootstrap.servers`, yet was seen to stay without any broker for minutes after Kafka was back, while
/// every new client was answered at once. So who has no answer asks by a new one at times, and is replaced if that has one.
#[derive(Debug, Default)]
pub(super) struct Reconnect {
    /// When a new client asked last.
    asked: Option<Instant>,
    /// When one was answered first.
    found: Option<Instant>,
}

impl Reconnect {
    pub fn answered(&mut self) {
        *self = Self::default();
    }

    /// A question was not answered. Whether the client has lost its way to the brokers; `is_answered` asks by a new one, and may block.
    pub fn unanswered(&mut self, now: Instant, is_answered: impl FnOnce() -> bool) -> bool {
        let too_early = self.asked.is_some_and(|asked| now.duration_since(asked) < NEW_CLIENT_EVERY);
        let soon = self.found.is_some_and(|found| now.duration_since(found) < OWN_TIME);
        if too_early || soon {
            return false;
        }
        self.asked = Some(now);
        if !is_answered() {
            self.found = None;
            return false;
        }
        self.found.replace(now).is_some()
    }
}

/// Whether a new client gets an answer to the question for the topic's identity.
pub(super) fn a_new_client_is_answered(settings: &ClientConfig, topic: &str) -> bool {
    open::<BaseConsumer<Context>>(settings)
        .is_ok_and(|client| topic_identity(client.client(), topic, NEW_CLIENT_DEADLINE).is_ok())
}

/// A list for librdkafka: partitions of one topic, each at its offset.
pub(in crate::log) fn list(
    topic: &str,
    places: impl IntoIterator<Item = (i32, KafkaOffset)>,
) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in places {
        list.add_partition_offset(topic, partition, offset)?;
    }
    Ok(list)
}

/// The offsets in an answer about one topic; partitions with an error or without an offset are left out.
pub(in crate::log) fn offsets(answer: &TopicPartitionList) -> BTreeMap<Partition, Offset> {
    let offset = |element: &TopicPartitionListElem<'_>| match element.offset() {
        KafkaOffset::Offset(offset) if element.error().is_ok() => Offset::from_kafka(offset),
        _ => None,
    };
    let elements = answer.elements();
    elements.iter().filter_map(|element| Some((Partition(element.partition()), offset(element)?))).collect()
}

/// The first error in an answer about partitions.
pub(in crate::log) fn no_failed(answer: &TopicPartitionList) -> KafkaResult<()> {
    answer.elements().iter().try_for_each(|element| element.error())
}

/// The topic in an answer of the brokers; `None` where they know no such topic.
pub(super) fn topic_in<'m>(metadata: &'m Metadata, topic: &str) -> Result<Option<&'m MetadataTopic>, Code> {
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else { return Ok(None) };
    match found.error().map(Code::from) {
        // There may be an error as well: of a topic that was just created, whose partitions have no leaders yet.
        _ if !found.partitions().is_empty() => Ok(Some(found)),
        None | Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => Ok(None),
        Some(code) => Err(code),
    }
}

/// The headers of a record that is to be sent.
pub(in crate::log) fn owned_headers<'h>(
    headers: impl IntoIterator<Item = (&'h str, Option<&'h [u8]>)>,
) -> OwnedHeaders {
    headers.into_iter().fold(OwnedHeaders::new(), |all, (key, value)| all.insert(message::Header { key, value }))
}

/// Asks the brokers which topic it is, beyond its name: its topic id (KIP-516). A topic that was deleted and created anew
/// has another one, and offsets of the old one say nothing about it. Blocks, at most `timeout`. To be asked of a client that
/// had an answer a moment ago: as long as an administrator's request waits for a broker that takes no connection, librdkafka
/// 2.12.1 connects to it hundreds of times a second, whatever `reconnect.backoff.ms` says.
///
/// # Errors
/// librdkafka's code when there was no answer, or the broker's when there is no such topic.
pub fn topic_identity<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    timeout: Duration,
) -> Result<TopicIdentity, Code> {
    let name = CString::new(topic).map_err(|_| Code::InvalidTopic)?;
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let rk = client.native_ptr();
    let mut names = [name.as_ptr()];

    // SAFETY: `names` holds one valid C string, which is copied.
    let topics = unsafe { sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len()) };
    let topics = Owned::new(topics, sys::rd_kafka_TopicCollection_destroy)?;
    // SAFETY: `rk` is a live client for as long as `client` is borrowed.
    let options =
        unsafe { sys::rd_kafka_AdminOptions_new(rk, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS) };
    let options = Owned::new(options, sys::rd_kafka_AdminOptions_destroy)?;
    // SAFETY: `options` is live; no error text is asked for, which a null pointer of size 0 says.
    let set = unsafe { sys::rd_kafka_AdminOptions_set_request_timeout(options.ptr(), timeout_ms, ptr::null_mut(), 0) };
    no_error(set)?;
    // SAFETY: `rk` is live, and outlives the queue, which is destroyed at the end of this function.
    let queue = Owned::new(unsafe { sys::rd_kafka_queue_new(rk) }, sys::rd_kafka_queue_destroy)?;

    // SAFETY: all four are live; librdkafka copies the collection and the options, and keeps the queue by its own count.
    unsafe { sys::rd_kafka_DescribeTopics(rk, topics.ptr(), options.ptr(), queue.ptr()) };
    // SAFETY: the queue is live. The request ends by its own timeout, a little before this one.
    let event = unsafe { sys::rd_kafka_queue_poll(queue.ptr(), timeout_ms.saturating_add(500)) };
    let event = Owned::new(event, sys::rd_kafka_event_destroy).map_err(|_| Code::OperationTimedOut)?;
    // SAFETY: the event is live.
    no_error(unsafe { sys::rd_kafka_event_error(event.ptr()) })?;
    // SAFETY: the event is live; the result is null for an event of another kind, and belongs to the event.
    let result = unsafe { sys::rd_kafka_event_DescribeTopics_result(event.ptr()) };
    if result.is_null() {
        return Err(Code::Fail);
    }
    let mut count = 0;
    // SAFETY: the result lives as long as the event; it holds `count` descriptions.
    let descriptions = unsafe { sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count) };
    if descriptions.is_null() || count == 0 {
        return Err(Code::UnknownTopicOrPartition);
    }
    // SAFETY: there is a first description, and it lives as long as the event.
    let description = unsafe { *descriptions };
    // SAFETY: the description is live; its error is null or lives as long.
    let error = unsafe { sys::rd_kafka_TopicDescription_error(description) };
    if !error.is_null() {
        // SAFETY: it is not null, and live.
        no_error(unsafe { sys::rd_kafka_error_code(error) })?;
    }
    // SAFETY: the description is live; the id belongs to it.
    Ok(TopicIdentity(unsafe { id_of(description) }.unwrap_or_else(|| TopicIdentity::UNAVAILABLE.to_owned()).into()))
}

/// Asks the brokers which partitions of `topic` the group's members have; `None` while the group divides them, and where its
/// coordinator does not answer. Blocks, at most `timeout`.
///
/// `rd_kafka_list_groups` asks every broker, and says `PARTIAL` when one of them does not answer in time: its list holds what
/// the others said then, which is all that matters here. `rd_kafka_DescribeConsumerGroups`, which asks the coordinator alone,
/// was seen to abort the process (an assertion in librdkafka 2.12.1) while coordinators go and come.
///
/// # Errors
/// librdkafka's code when there was no answer at all.
pub(super) fn partitions_of_members<C: ClientContext>(
    client: &Client<C>,
    group: &str,
    topic: &str,
    timeout: Duration,
) -> Result<Option<BTreeSet<Partition>>, Code> {
    let name = CString::new(group).map_err(|_| Code::InvalidGroupId)?;
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let mut list = ptr::null();
    // SAFETY: the client is live for as long as it is borrowed, the name is a C string, and `list` is ours.
    let code = unsafe { sys::rd_kafka_list_groups(client.native_ptr(), name.as_ptr(), &raw mut list, timeout_ms) };
    // SAFETY: the list is null, or live until it is destroyed below, which nobody else does.
    let partitions = unsafe {
        let partitions = list.as_ref().and_then(|list| assigned_at_rest(list, group, topic));
        if !list.is_null() {
            sys::rd_kafka_group_list_destroy(list);
        }
        partitions
    };
    if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__PARTIAL {
        no_error(code)?;
    }
    Ok(partitions)
}

/// # Safety
/// The list must be librdkafka's: it holds `group_cnt` groups with `member_cnt` members each, whose names and states are C
/// strings, or null, and whose assignments are bytes.
unsafe fn assigned_at_rest(list: &sys::rd_kafka_group_list, group: &str, topic: &str) -> Option<BTreeSet<Partition>> {
    // SAFETY: the caller's promise.
    unsafe {
        let is =
            |text: *const c_char, wanted: &str| !text.is_null() && CStr::from_ptr(text).to_bytes() == wanted.as_bytes();
        let mut groups = slice_of(list.groups, list.group_cnt).iter();
        let found =
            groups.find(|each| is(each.group, group) && is(each.state, "Stable") && no_error(each.err).is_ok())?;
        let mut partitions = BTreeSet::new();
        for member in slice_of(found.members, found.member_cnt) {
            let assignment = slice_of(member.member_assignment.cast::<u8>(), member.member_assignment_size);
            partitions.extend(assigned(assignment, topic)?);
        }
        Some(partitions)
    }
}

/// # Safety
/// `first` must be null, or point to `count` elements that live for as long as they are used.
unsafe fn slice_of<'s, T>(first: *const T, count: i32) -> &'s [T] {
    match usize::try_from(count) {
        // SAFETY: the caller's promise.
        Ok(count) if !first.is_null() => unsafe { slice::from_raw_parts(first, count) },
        _ => &[],
    }
}

/// The partitions of `topic` in a member's assignment, as consumers encode it: a version, the topics, each with its
/// partitions, and what the assignor adds; none of a member that was given nothing; `None` when it is something else.
fn assigned(assignment: &[u8], topic: &str) -> Option<Vec<Partition>> {
    fn int(rest: &mut &[u8]) -> Option<i32> {
        let (int, after) = rest.split_first_chunk()?;
        *rest = after;
        Some(i32::from_be_bytes(*int))
    }
    if assignment.is_empty() {
        return Some(Vec::new());
    }
    let mut rest = assignment.get(2..)?;
    let mut assigned = Vec::new();
    for _ in 0..int(&mut rest)? {
        let (length, after) = rest.split_first_chunk()?;
        let (name, after) = after.split_at_checked(usize::try_from(i16::from_be_bytes(*length)).ok()?)?;
        rest = after;
        for _ in 0..int(&mut rest)? {
            let partition = Partition(int(&mut rest)?);
            if name == topic.as_bytes() {
                assigned.push(partition);
            }
        }
    }
    Some(assigned)
}

/// The end of a partition's log, records of open transactions included, as the client's last fetch told it; `None` where it
/// has fetched nothing. Asks nobody.
pub(super) fn high_watermark<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    partition: Partition,
) -> Option<Offset> {
    let name = CString::new(topic).ok()?;
    let (mut low, mut high) = (-1, -1);
    // SAFETY: the client is live for as long as it is borrowed, the name is a C string, and both offsets are ours.
    let code = unsafe {
        let rk = client.native_ptr();
        sys::rd_kafka_get_watermark_offsets(rk, name.as_ptr(), partition.0, &raw mut low, &raw mut high)
    };
    no_error(code).ok()?;
    Offset::from_kafka(high)
}

/// Whether the partition's leader answers within `timeout`. It is asked for the log's start: the end it does not tell
/// while too few replicas are in sync for it to know what is committed.
pub(super) fn leader_answers<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    partition: i32,
    timeout: Duration,
) -> bool {
    let Ok(list) = list(topic, [(partition, KafkaOffset::Beginning)]) else { return false };
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the client is live for as long as it is borrowed, and the list is ours, which is filled before this returns.
    let code = unsafe { sys::rd_kafka_offsets_for_times(client.native_ptr(), list.ptr(), timeout_ms) };
    // SAFETY: the list is ours, and holds one element.
    let of_partition = unsafe { (*(*list.ptr()).elems).err };
    // Codes below 0 are librdkafka's own, those above a broker's answer: that it leads no more, for instance.
    let is_told = |code: sys::rd_kafka_resp_err_t| code as i32 >= 0;
    is_told(code) && is_told(of_partition)
}

/// The metadata of each committed offset in an answer about one topic; what is not UTF-8 with U+FFFD in its place.
pub(super) fn commit_metadata(list: &TopicPartitionList) -> BTreeMap<Partition, String> {
    // SAFETY: the list is live for as long as it is borrowed, and holds `cnt` elements.
    let elements = unsafe { slice_of((*list.ptr()).elems, (*list.ptr()).cnt) };
    let text = |element: &sys::rd_kafka_topic_partition_t| {
        if element.metadata.is_null() {
            return String::new();
        }
        // SAFETY: it is not null, and holds `metadata_size` bytes that belong to the element.
        let bytes = unsafe { slice::from_raw_parts(element.metadata.cast::<u8>(), element.metadata_size) };
        String::from_utf8_lossy(bytes).into_owned()
    };
    elements.iter().map(|element| (Partition(element.partition), text(element))).collect()
}

/// The id in base64, as Kafka's tools print it; `None` where the brokers gave none.
///
/// # Safety
/// `description` must be live.
unsafe fn id_of(description: *const sys::rd_kafka_TopicDescription_t) -> Option<String> {
    // SAFETY: the caller's promise; the id belongs to the description.
    let id = NonNull::new(unsafe { sys::rd_kafka_TopicDescription_topic_id(description) }.cast_mut())?;
    // SAFETY: the id is live.
    let bits = unsafe {
        (sys::rd_kafka_Uuid_most_significant_bits(id.as_ptr()), sys::rd_kafka_Uuid_least_significant_bits(id.as_ptr()))
    };
    if bits == (0, 0) {
        return None;
    }
    // SAFETY: the id is live; the text belongs to it.
    let text: *const c_char = unsafe { sys::rd_kafka_Uuid_base64str(id.as_ptr()) };
    if text.is_null() {
        return None;
    }
    // SAFETY: it is not null, and a C string.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

fn no_error(code: sys::rd_kafka_resp_err_t) -> Result<(), Code> {
    match code {
        sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        code => Err(code.into()),
    }
}

/// An object of librdkafka's that we have to destroy.
struct Owned<T> {
    object: NonNull<T>,
    destroy: unsafe extern "C" fn(*mut T),
}

impl<T> Owned<T> {
    /// `object` must be ours to destroy with `destroy`, or null.
    fn new(object: *mut T, destroy: unsafe extern "C" fn(*mut T)) -> Result<Self, Code> {
        let object = NonNull::new(object).ok_or(Code::Fail)?;
        Ok(Self { object, destroy })
    }

    fn ptr(&self) -> *mut T {
        self.object.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the object is ours, and nobody destroyed it before.
        unsafe { (self.destroy)(self.object.as_ptr()) }
    }
}

#[cfg(test)]
mod tests;
