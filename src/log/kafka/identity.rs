//! Which topic it is, beyond its name: Kafka's topic id (KIP-516). A topic that was deleted and created anew has
//! another one, and offsets of the old one say nothing about it.
//!
//! The `rdkafka` crate wraps neither `DescribeTopics` nor what a fetch says of a log's end, and panics on a committed
//! offset's metadata that is not UTF-8, so this file talks to librdkafka's C interface. Beside `headers` and `clock`, the
//! library's only one with `unsafe`.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString, c_char},
    ptr::{self, NonNull},
    slice,
    time::Duration,
};

use rdkafka::{ClientContext, Offset as KafkaOffset, TopicPartitionList, client::Client, types::RDKafkaErrorCode};
use rdkafka_sys as sys;

use crate::position::{Offset, Partition, TopicIdentity};

/// Asks the brokers for the topic's id. Blocks, at most `timeout`.
///
/// # Errors
/// librdkafka's code when there was no answer, or the broker's when there is no such topic.
pub fn topic_identity<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    timeout: Duration,
) -> Result<TopicIdentity, RDKafkaErrorCode> {
    let name = CString::new(topic).map_err(|_| RDKafkaErrorCode::InvalidTopic)?;
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
    let event = Owned::new(event, sys::rd_kafka_event_destroy).map_err(|_| RDKafkaErrorCode::OperationTimedOut)?;
    // SAFETY: the event is live.
    no_error(unsafe { sys::rd_kafka_event_error(event.ptr()) })?;
    // SAFETY: the event is live; the result is null for an event of another kind, and belongs to the event.
    let result = unsafe { sys::rd_kafka_event_DescribeTopics_result(event.ptr()) };
    if result.is_null() {
        return Err(RDKafkaErrorCode::Fail);
    }
    let mut count = 0;
    // SAFETY: the result lives as long as the event; it holds `count` descriptions.
    let descriptions = unsafe { sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count) };
    if descriptions.is_null() || count == 0 {
        return Err(RDKafkaErrorCode::UnknownTopicOrPartition);
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
    let mut list = TopicPartitionList::with_capacity(1);
    if list.add_partition_offset(topic, partition, KafkaOffset::Beginning).is_err() {
        return false;
    }
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
    let elements = unsafe {
        let list = &*list.ptr();
        let count = usize::try_from(list.cnt).unwrap_or(0);
        if list.elems.is_null() { &[] } else { slice::from_raw_parts(list.elems, count) }
    };
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

fn no_error(code: sys::rd_kafka_resp_err_t) -> Result<(), RDKafkaErrorCode> {
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
    fn new(object: *mut T, destroy: unsafe extern "C" fn(*mut T)) -> Result<Self, RDKafkaErrorCode> {
        let object = NonNull::new(object).ok_or(RDKafkaErrorCode::Fail)?;
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
