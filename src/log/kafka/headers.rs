//! A message's headers. rdkafka's own iterator panics on a name that is not UTF-8, which any producer may write and no
//! broker checks; here such names are read with U+FFFD in place of what is not. Beside `identity` and `clock`, the library's only `unsafe`.

use std::{
    borrow::Cow,
    ffi::{CStr, c_char, c_void},
    ptr, slice,
};

use rdkafka::message::BorrowedMessage;
use rdkafka_sys::{RDKafkaRespErr, rd_kafka_header_get_all, rd_kafka_message_headers};
use smallvec::SmallVec;

/// A header's name and value.
type Header<'m> = (Cow<'m, str>, Option<&'m [u8]>);

/// Name and value of each header, in their order; few of them need no memory of their own.
pub(super) fn headers<'m>(message: &'m BorrowedMessage<'_>) -> SmallVec<[Header<'m>; 4]> {
    let mut all = SmallVec::new();
    let mut headers = ptr::null_mut();
    // SAFETY: the message is alive for 'm, and librdkafka only writes `headers`.
    let found = unsafe { rd_kafka_message_headers(message.ptr(), &raw mut headers) };
    if found != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        return all;
    }
    loop {
        let (mut name, mut value, mut size) = (ptr::null::<c_char>(), ptr::null::<c_void>(), 0);
        // SAFETY: `headers` belongs to the message; an index past the last one is answered with an error.
        let got = unsafe { rd_kafka_header_get_all(headers, all.len(), &raw mut name, &raw mut value, &raw mut size) };
        if got != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return all;
        }
        // SAFETY: librdkafka ends names with a NUL; name and value live as long as the message, which is 'm.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        // SAFETY: as above; a null pointer stands for a null value.
        let value = (!value.is_null()).then(|| unsafe { slice::from_raw_parts(value.cast::<u8>(), size) });
        all.push((name, value));
    }
}
