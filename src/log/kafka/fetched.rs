//! What librdkafka has fetched, taken many records at a time.
//!
//! The `rdkafka` crate hands out one message a call, and of what such a call costs most is around it: four looks at the clock, three
//! locks and two allocations. librdkafka gives many at once, but not from the queue in which it also tells of rebalances and
//! errors. So all partitions' records go to a queue of ours, and [`poll`](rdkafka::consumer::BaseConsumer::poll) gets the rest; where something comes there
//! while this one waits, the wait ends.

use std::{
    borrow::Cow,
    ffi::{CStr, CString, c_char, c_int, c_void},
    ptr::{self, NonNull},
    slice,
    sync::Arc,
    time::Duration,
};

use rdkafka::{
    consumer::Consumer,
    error::{KafkaError, KafkaResult},
    message::BorrowedMessage,
    types::{RDKafkaErrorCode as Code, RDKafkaRespErr},
};
use rdkafka_sys as sys;
use smallvec::SmallVec;

use crate::{
    log::kafka::group::SourceConsumer,
    position::{Offset, Partition, Timestamp},
};

/// Records taken at once: what one costs besides is shared by so many, and a batch that is full gets no more than these.
const AT_ONCE: usize = 64;

/// A queue of librdkafka's, released when dropped.
struct Queue(NonNull<sys::rd_kafka_queue_t>);

// SAFETY: librdkafka's queues may be used by any thread.
unsafe impl Send for Queue {}

impl Queue {
    fn new(queue: *mut sys::rd_kafka_queue_t) -> KafkaResult<Self> {
        NonNull::new(queue).map(Self).ok_or(KafkaError::Subscription("librdkafka has no such queue".to_owned()))
    }

    fn ptr(&self) -> *mut sys::rd_kafka_queue_t {
        self.0.as_ptr()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: it was made by librdkafka, and nobody else releases it.
        unsafe { sys::rd_kafka_queue_destroy(self.ptr()) }
    }
}

/// What came of taking records.
pub(super) struct Taken {
    /// There were some, or errors.
    pub any: bool,
    /// In their order.
    pub errors: Vec<(Partition, Code)>,
}

/// librdkafka's position lies outside the log, and it has ended the partition.
pub(super) fn is_out_of_range(code: Code) -> bool {
    matches!(code, Code::OffsetOutOfRange | Code::AutoOffsetReset | Code::NoOffset)
}

/// The records of all partitions that a source reads.
pub(super) struct Fetched {
    /// Where librdkafka tells of everything else. Dropped first: it wakes the other.
    events: Queue,
    records: Queue,
    /// Outlives its queues.
    consumer: Arc<SourceConsumer>,
}

impl Fetched {
    pub fn new(consumer: Arc<SourceConsumer>) -> KafkaResult<Self> {
        let rk = consumer.client().native_ptr();
        // SAFETY: the client lives as long as `consumer`.
        let (records, events) = unsafe { (sys::rd_kafka_queue_new(rk), sys::rd_kafka_queue_get_consumer(rk)) };
        let (records, events) = (Queue::new(records)?, Queue::new(events)?);
        // SAFETY: `wake` takes the queue that it is given here, which is released after this is undone (in `drop`).
        unsafe { sys::rd_kafka_queue_cb_event_enable(events.ptr(), Some(wake), records.ptr().cast()) };
        Ok(Self { events, records, consumer })
    }

    /// From now on records of this partition come here, until its assignment ends.
    pub fn forward(&self, topic: &str, partition: Partition) -> KafkaResult<()> {
        let topic = CString::new(topic).map_err(KafkaError::Nul)?;
        let rk = self.consumer.client().native_ptr();
        // SAFETY: the client lives as long as `self`, and `topic` longer than the call.
        let queue = Queue::new(unsafe { sys::rd_kafka_queue_get_partition(rk, topic.as_ptr(), partition.0) })?;
        // SAFETY: both queues are alive; the partition's keeps a reference to ours.
        unsafe { sys::rd_kafka_queue_forward(queue.ptr(), self.records.ptr()) };
        Ok(())
    }

    /// Takes records, about `most` of them, for as long as `take` wants more; waits for the first one.
    ///
    /// What librdkafka cannot fetch stands among them, as an error of its partition. To librdkafka that counts as read: where it
    /// resumes the partition by itself, as after a rebalance, it would begin behind the record that it could not fetch. So nothing
    /// of that partition is taken any more, and whoever asks has to seek.
    pub fn each(&self, wait: Duration, most: usize, mut take: impl FnMut(&Message<'_>) -> bool) -> Taken {
        let wait = c_int::try_from(wait.as_millis()).unwrap_or(c_int::MAX);
        let (mut taken, mut errors) = (0, Vec::new());
        let mut wants_more = true;
        while wants_more && taken < most && errors.is_empty() {
            // At first one alone: more would be waited for, too.
            let (wait, at_once) = if taken == 0 { (wait, 1) } else { (0, AT_ONCE) };
            let mut messages = [ptr::null_mut(); AT_ONCE];
            // SAFETY: the array has room for that many; those that are written there are ours to release.
            let got =
                unsafe { sys::rd_kafka_consume_batch_queue(self.records.ptr(), wait, messages.as_mut_ptr(), at_once) };
            let got = usize::try_from(got).unwrap_or_default();
            if got == 0 {
                break;
            }
            taken += got;
            for message in messages.iter().take(got).filter_map(|message| NonNull::new(*message)) {
                let message = Owned(message);
                let message = message.get();
                match message.error() {
                    Some(code) => errors.push((message.partition(), code)),
                    None if errors.iter().any(|(partition, _)| *partition == message.partition()) => {}
                    None => wants_more &= take(&message),
                }
            }
        }
        Taken { any: taken > 0, errors }
    }

    /// Whether librdkafka has something else to tell.
    pub fn has_events(&self) -> bool {
        // SAFETY: the queue is alive.
        unsafe { sys::rd_kafka_queue_length(self.events.ptr()) > 0 }
    }
}

impl Drop for Fetched {
    fn drop(&mut self) {
        // SAFETY: the queue is alive. When this returns the callback is not running, and will not be called again.
        unsafe { sys::rd_kafka_queue_cb_event_enable(self.events.ptr(), None, ptr::null_mut()) }
    }
}

/// Called by librdkafka's threads when something is put into the empty queue of events.
unsafe extern "C" fn wake(_: *mut sys::rd_kafka_t, records: *mut c_void) {
    // SAFETY: it is the queue that the callback was set with.
    unsafe { sys::rd_kafka_queue_yield(records.cast()) }
}

/// A message that is released when dropped.
struct Owned(NonNull<sys::rd_kafka_message_t>);

impl Owned {
    fn get(&self) -> Message<'_> {
        // SAFETY: librdkafka gave it to us, and it is alive until it is dropped.
        Message(unsafe { self.0.as_ref() })
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nothing borrows it any more.
        unsafe { sys::rd_kafka_message_destroy(self.0.as_ptr()) }
    }
}

/// The headers of a message that came one at a time.
pub(super) fn headers<'m>(message: &'m BorrowedMessage<'_>) -> SmallVec<[Header<'m>; 4]> {
    // SAFETY: the message is alive for 'm.
    Message(unsafe { &*message.ptr() }).headers()
}

/// A header's name and value.
type Header<'m> = (Cow<'m, str>, Option<&'m [u8]>);

/// A record as librdkafka has it.
pub(super) struct Message<'m>(&'m sys::rd_kafka_message_t);

impl<'m> Message<'m> {
    fn error(&self) -> Option<Code> {
        (self.0.err != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).then(|| self.0.err.into())
    }

    pub fn partition(&self) -> Partition {
        Partition(self.0.partition)
    }

    pub fn offset(&self) -> Option<Offset> {
        Offset::from_kafka(self.0.offset)
    }

    /// 1970 where the record has none.
    pub fn time(&self) -> Timestamp {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is alive for 'm, and librdkafka only writes `kind`.
        let time = unsafe { sys::rd_kafka_message_timestamp(self.0, &raw mut kind) };
        Timestamp(if time == -1 { 0 } else { time })
    }

    pub fn key(&self) -> Option<&'m [u8]> {
        bytes(self.0.key, self.0.key_len)
    }

    pub fn value(&self) -> Option<&'m [u8]> {
        bytes(self.0.payload, self.0.len)
    }

    /// Name and value of each header, in their order; few of them need no memory of their own. A name that is not UTF-8,
    /// which any producer may write and no broker checks, has U+FFFD in place of what is not.
    pub fn headers(&self) -> SmallVec<[Header<'m>; 4]> {
        let mut all = SmallVec::new();
        let mut headers = ptr::null_mut();
        // SAFETY: the message is alive for 'm, and librdkafka only writes `headers`.
        let found = unsafe { sys::rd_kafka_message_headers(self.0, &raw mut headers) };
        if found != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return all;
        }
        loop {
            let (mut name, mut value, mut size) = (ptr::null::<c_char>(), ptr::null::<c_void>(), 0);
            // SAFETY: `headers` belongs to the message; an index past the last one is answered with an error.
            let got = unsafe {
                sys::rd_kafka_header_get_all(headers, all.len(), &raw mut name, &raw mut value, &raw mut size)
            };
            if got != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                return all;
            }
            // SAFETY: librdkafka ends names with a NUL; they live as long as the message, which is 'm.
            let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
            all.push((name, bytes(value, size)));
        }
    }
}

/// A part of a message, whose lifetime the caller gives it; a null pointer stands for a null value.
fn bytes<'m>(start: *const c_void, length: usize) -> Option<&'m [u8]> {
    // SAFETY: librdkafka gave both for a message that is alive for 'm.
    (!start.is_null()).then(|| unsafe { slice::from_raw_parts(start.cast(), length) })
}
