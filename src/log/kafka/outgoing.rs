//! Records on their way into librdkafka. What `rdkafka` does for each record is done once a request here: the topic is looked up
//! (by its name librdkafka locks all of the client for it), and what the records of a request share is kept in one place.

use std::{
    ffi::{CString, c_char, c_void},
    ptr::{self, NonNull},
    sync::{Arc, Weak},
};

use rdkafka::{
    error::{KafkaError, KafkaResult},
    producer::{BaseProducer, Producer, ProducerContext},
    util::IntoOpaque,
};
use rdkafka_sys::{self as sys, rd_kafka_vtype_t as vtype};
use smallvec::SmallVec;

/// librdkafka chooses the partition (`RD_KAFKA_PARTITION_UA`).
const BY_KEY: i32 = -1;

/// Some records of one request, and what they share. It is dropped when each of them was answered.
pub(super) struct Batch<T> {
    shared: T,
    /// Of each record. Most requests have one.
    places: SmallVec<[Place<T>; 1]>,
}

/// What librdkafka gives back with the answer of a record: this one's address.
struct Place<T> {
    index: usize,
    /// Where it stands itself.
    batch: *const Batch<T>,
}

// SAFETY: the pointer is followed in `Sent::from_ptr` alone, where it stands for an `Arc`, which may be sent and shared like this.
unsafe impl<T: Send + Sync> Send for Place<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Place<T> {}

impl<T> Batch<T> {
    /// Of the records with the indexes from `first` on.
    pub fn new(shared: T, first: usize, records: usize) -> Arc<Self> {
        Arc::new_cyclic(|batch: &Weak<Self>| {
            let batch = batch.as_ptr();
            let places = (first..first + records).map(|index| Place { index, batch }).collect();
            Self { shared, places }
        })
    }

    /// Those of its records.
    pub fn indexes(&self) -> impl Iterator<Item = usize> {
        self.places.iter().map(|place| place.index)
    }

    /// The record with this index.
    ///
    /// # Panics
    /// If it is none of the batch.
    pub fn sent(self: &Arc<Self>, index: usize) -> Sent<T> {
        let first = self.places[0].index;
        assert!((first..first + self.places.len()).contains(&index), "record {index} is not of these");
        Sent { batch: self.clone(), index }
    }
}

/// One record that was sent.
pub(super) struct Sent<T> {
    batch: Arc<Batch<T>>,
    pub index: usize,
}

impl<T> Sent<T> {
    pub fn shared(&self) -> &T {
        &self.batch.shared
    }
}

impl<T: Send + Sync> IntoOpaque for Sent<T> {
    fn into_ptr(self) -> *mut c_void {
        let places = &self.batch.places;
        let place = ptr::from_ref(&places[self.index - places[0].index]);
        // The place stands for it from now on.
        let _ = Arc::into_raw(self.batch);
        place.cast_mut().cast()
    }

    unsafe fn from_ptr(place: *mut c_void) -> Self {
        // SAFETY: `into_ptr` gave it and left its `Arc` to it, so the batch is alive, and `batch` is its address.
        unsafe {
            let Place { index, batch } = &*place.cast::<Place<T>>();
            Self { batch: Arc::from_raw(*batch), index: *index }
        }
    }
}

/// A topic of a producer.
pub(super) struct Topic<C: ProducerContext + 'static> {
    topic: NonNull<sys::rd_kafka_topic_t>,
    /// Outlives it.
    producer: Arc<BaseProducer<C>>,
}

// SAFETY: librdkafka's topics may be used by any thread, and the producer may.
unsafe impl<C: ProducerContext> Send for Topic<C> {}
// SAFETY: as above.
unsafe impl<C: ProducerContext> Sync for Topic<C> {}

impl<C: ProducerContext> Drop for Topic<C> {
    fn drop(&mut self) {
        // SAFETY: librdkafka made it, nobody else releases it, and its client is dropped after this.
        unsafe { sys::rd_kafka_topic_destroy(self.topic.as_ptr()) }
    }
}

/// A record that is to be sent. All is copied.
pub(super) struct Record<'r> {
    /// `None`: by its key, as librdkafka places it.
    pub partition: Option<i32>,
    pub value: &'r [u8],
    pub key: Option<&'r [u8]>,
    /// Milliseconds.
    pub timestamp: i64,
    pub headers: Option<Headers>,
}

impl<C: ProducerContext> Topic<C> {
    /// librdkafka begins to ask the brokers about it.
    ///
    /// # Errors
    /// When librdkafka takes no such name.
    pub fn new(producer: Arc<BaseProducer<C>>, name: &str) -> KafkaResult<Self> {
        let name = CString::new(name)?;
        // SAFETY: the client lives as long as `producer`, and the name longer than the call.
        let topic = unsafe { sys::rd_kafka_topic_new(producer.client().native_ptr(), name.as_ptr(), ptr::null_mut()) };
        // SAFETY: what failed last on this thread is this.
        let why = || KafkaError::ClientCreation(format!("{:?}", unsafe { sys::rd_kafka_last_error() }));
        let topic = NonNull::new(topic).ok_or_else(why)?;
        Ok(Self { topic, producer })
    }

    /// As [`BaseProducer::send`], which gives `sent` back with the answer.
    ///
    /// # Errors
    /// When librdkafka does not take it. Then `sent` is dropped.
    pub fn send(&self, record: Record<'_>, sent: C::DeliveryOpaque) -> KafkaResult<()> {
        let Record { partition, value, key, timestamp, headers } = record;
        let (key, key_size) = key.map_or((ptr::null(), 0), |key| (key.as_ptr(), key.len()));
        let headers_ptr = headers.as_ref().map_or(ptr::null_mut(), |headers| headers.0);
        let sent = sent.into_ptr();
        // SAFETY: each argument has the type that its tag says, all are alive, and value and key are copied. `sent` comes back
        // once, with the answer.
        let code = unsafe {
            sys::rd_kafka_producev(
                self.producer.client().native_ptr(),
                vtype::RD_KAFKA_VTYPE_RKT,
                self.topic.as_ptr(),
                vtype::RD_KAFKA_VTYPE_PARTITION,
                partition.unwrap_or(BY_KEY),
                vtype::RD_KAFKA_VTYPE_MSGFLAGS,
                sys::RD_KAFKA_MSG_F_COPY,
                vtype::RD_KAFKA_VTYPE_VALUE,
                value.as_ptr(),
                value.len(),
                vtype::RD_KAFKA_VTYPE_KEY,
                key,
                key_size,
                vtype::RD_KAFKA_VTYPE_OPAQUE,
                sent,
                vtype::RD_KAFKA_VTYPE_TIMESTAMP,
                timestamp,
                vtype::RD_KAFKA_VTYPE_HEADERS,
                headers_ptr,
                vtype::RD_KAFKA_VTYPE_END,
            )
        };
        if code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            // They are librdkafka's now.
            std::mem::forget(headers);
            return Ok(());
        }
        // SAFETY: it is what `into_ptr` gave, and librdkafka has not taken it.
        drop(unsafe { C::DeliveryOpaque::from_ptr(sent) });
        Err(KafkaError::MessageProduction(code.into()))
    }
}

/// Headers of a record, in their order.
pub(super) struct Headers(*mut sys::rd_kafka_headers_t);

impl Headers {
    /// With room for so many.
    pub fn new(count: usize) -> Self {
        // SAFETY: there is nothing to hold. Without memory librdkafka ends the process.
        Self(unsafe { sys::rd_kafka_headers_new(count) })
    }

    pub fn add(&mut self, name: &str, value: Option<&[u8]>) {
        let size = |bytes: &[u8]| isize::try_from(bytes.len()).unwrap_or(isize::MAX);
        let (value, value_size) = value.map_or((ptr::null(), 0), |value| (value.as_ptr(), size(value)));
        // SAFETY: name and value are copied. It fails for a list that is read only, which those of a message are that was received.
        unsafe {
            let name_size = size(name.as_bytes());
            let name = name.as_ptr().cast::<c_char>();
            sys::rd_kafka_header_add(self.0, name, name_size, value.cast(), value_size);
        }
    }
}

impl Drop for Headers {
    fn drop(&mut self) {
        // SAFETY: librdkafka made them, and nobody else has them.
        unsafe { sys::rd_kafka_headers_destroy(self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_records_share_is_dropped_with_the_last_one_that_comes_back() {
        for (first, records) in [(0, 1), (3, 1), (2, 100)] {
            let shared = Arc::new(());
            let batch = Batch::new(shared.clone(), first, records);
            let sent: Vec<_> = (first..first + records).map(|index| batch.sent(index).into_ptr()).collect();
            drop(batch);
            let last = sent.len() - 1;
            for (at, place) in sent.into_iter().rev().enumerate() {
                assert_eq!(Arc::strong_count(&shared), 2);
                // SAFETY: each is taken back once.
                let sent = unsafe { Sent::<Arc<()>>::from_ptr(place) };
                assert_eq!(sent.index, first + last - at);
                assert!(Arc::ptr_eq(sent.shared(), &shared));
            }
            assert_eq!(Arc::strong_count(&shared), 1);
        }
    }

    #[test]
    fn what_was_not_sent_keeps_nothing() {
        let shared = Arc::new(());
        let batch = Batch::new(shared.clone(), 0, 2);
        drop(batch.sent(1));
        drop(batch);
        assert_eq!(Arc::strong_count(&shared), 1);
    }
}
