//! Whether this machine's clock is one that the topic takes records by.
//!
//! A broker refuses a record whose timestamp is too far from its own clock: `message.timestamp.after.max.ms`, an hour by
//! default since Kafka 4.0, and `message.timestamp.before.max.ms` (KIP-937). Only that refusal says what time it is there:
//! "should be within [from, to]", in milliseconds since 1970 (KIP-467). So the clocks are compared by a record that the
//! topic has to refuse, and nothing is written. (One is where the bound is taken off the topic in the moment between the
//! question for it and the record: empty, as what no producer of ours writes.)

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    ptr,
    time::Duration,
};

use crossbeam_channel::{Receiver, bounded};
use rdkafka::{
    ClientConfig,
    client::{Client, DefaultClientContext},
    types::RDKafkaErrorCode as Code,
};
use rdkafka_sys as sys;

use crate::{log::kafka::writable::Scout, position::Timestamp};

/// A wider bound is none, in milliseconds: no clock misses it, and [`Side::far`] does not either. The default of most is
/// `Long.MAX_VALUE`.
const WIDEST: i64 = 30 * 365 * 24 * 3_600_000;

/// For the answer to one record.
const DEADLINE: Duration = Duration::from_secs(3);

/// What a topic lets a clock differ by, as its settings say it; `None` is no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::log) struct Bounds {
    before: Option<i64>,
    after: Option<i64>,
}

impl Bounds {
    /// By the topic's setting of this name.
    pub fn of<'v>(value: impl Fn(&str) -> Option<&'v str>) -> Self {
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
pub(in crate::log) struct Taken {
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
pub(in crate::log) fn seconds(millis: i64) -> humantime::FormattedDuration {
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
pub(in crate::log) fn judge(plain: &ClientConfig, topic: &str) -> Verdict {
    let silent = || Verdict::Unknown(format!("topic {topic} does not say which times it takes"));
    let scout = Scout::open(plain, topic).map_err(|error| format!("{error:#}"));
    let Some(sender) = Sender::open(plain, topic) else { return silent() };
    // Without a bound the record would stand in the topic: the settings are asked for at the last moment.
    let side = match scout.and_then(|scout| scout.clock_bounds()).map(Bounds::side) {
        Ok(Some(side)) => side,
        Ok(None) => return Verdict::Right,
        Err(reason) => return Verdict::Unknown(format!("the settings of topic {topic} are not told: {reason}")),
    };
    match sender.ask(side) {
        Answer::Refused(taken) => match taken.complaint(topic, Timestamp::now()) {
            Some((side, reason)) => Verdict::Wrong(side, reason),
            None => Verdict::Right,
        },
        Answer::Stored => Verdict::Right,
        Answer::None => silent(),
    }
}

/// What became of a record from a time that is far away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::log) enum Answer {
    /// The topic takes these.
    Refused(Taken),
    /// The bound was taken away a moment ago.
    Stored,
    None,
}

/// Sends a record that the topic has to refuse on this side, where it has a bound. The topic must be there. Blocks, for
/// some seconds at most.
pub(in crate::log) fn ask(plain: &ClientConfig, topic: &str, side: Side) -> Answer {
    Sender::open(plain, topic).map_or(Answer::None, |sender| sender.ask(side))
}

/// A client that sends one record, and is connected.
struct Sender {
    /// Ends before what its interceptor points to.
    client: Client<DefaultClientContext>,
    _told: Box<Told>,
    answer: Receiver<Result<(), String>>,
    topic: CString,
}

impl Sender {
    fn open(plain: &ClientConfig, topic: &str) -> Option<Self> {
        let mut settings = plain.clone();
        settings.set("acks", "all").set("linger.ms", "0").set("message.timeout.ms", DEADLINE.as_millis().to_string());
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
        let client = Client::new(&settings, native, kind, DefaultClientContext).ok()?;
        client.fetch_metadata(Some(topic), DEADLINE).ok()?;
        Some(Self { client, _told: told, answer, topic: CString::new(topic).ok()? })
    }

    fn ask(&self, side: Side) -> Answer {
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
            return Answer::None;
        }
        match self.answer.recv_timeout(DEADLINE) {
            Ok(Ok(())) => Answer::Stored,
            Ok(Err(said)) => Taken::of(&said).map_or(Answer::None, Answer::Refused),
            Err(_) => Answer::None,
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
    // Whoever asked may have given up.
    let _ = told.try_send(if is_stored { Ok(()) } else { Err(text) });
    sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;
    const NOW: Timestamp = Timestamp(1_795_420_800_000);

    #[test]
    fn a_refusal_says_which_times_are_taken() {
        let said = |from: i64, to: i64| {
            format!(
                "Timestamp 1 of message with offset 0 is out of range. The timestamp should be within [{from}, {to}]"
            )
        };
        let now = NOW.0 - 2 * HOUR;
        // As Kafka adds Long.MAX_VALUE to its clock.
        let taken = Taken::of(&said(now.wrapping_sub(i64::MAX), now + HOUR)).unwrap();
        assert_eq!(taken.misses(NOW), Some((Side::Ahead, HOUR)));
        assert_eq!(taken.misses(Timestamp(now)), None);
        let bounds = Bounds::of(|name| (name == "message.timestamp.after.max.ms").then_some("3600000"));
        assert_eq!((bounds.side(), taken.difference(bounds, NOW)), (Some(Side::Ahead), Some(2 * HOUR)));
        let (side, words) = taken.complaint("events", NOW).unwrap();
        assert_eq!(side, Side::Ahead);
        assert!(words.contains(" 1h later ") && words.contains("message.timestamp.after.max.ms"), "{words}");

        let taken = Taken::of(&said(NOW.0 + HOUR, (NOW.0 + 2 * HOUR).wrapping_add(i64::MAX))).unwrap();
        assert_eq!(taken.misses(NOW), Some((Side::Behind, HOUR)));
        assert_eq!(Taken::of("One or more records have been rejected"), None);
    }

    #[test]
    fn a_topic_that_stamps_records_itself_or_has_no_bound_takes_any_time() {
        let bounds = |settings: &[(&'static str, &'static str)]| {
            Bounds::of(|name| settings.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)).side()
        };
        let (after, before) = ("message.timestamp.after.max.ms", "message.timestamp.before.max.ms");
        assert_eq!(bounds(&[(after, "3600000"), (before, "9223372036854775807")]), Some(Side::Ahead));
        assert_eq!(bounds(&[(after, "9223372036854775807"), (before, "60000")]), Some(Side::Behind));
        assert_eq!(bounds(&[("message.timestamp.difference.max.ms", "1000")]), Some(Side::Ahead));
        assert_eq!(bounds(&[(after, "3600000"), ("message.timestamp.type", "LogAppendTime")]), None);
        assert_eq!(bounds(&[]), None);
        // As Kafka 3.9 describes a topic that has the old setting alone.
        let unset = "9223372036854775807";
        let old = [(after, unset), (before, unset), ("message.timestamp.difference.max.ms", "1000")];
        assert_eq!(bounds(&old), Some(Side::Ahead));
        assert_eq!(bounds(&[(after, "999999999999999"), (before, unset)]), None, "some 30,000 years");
    }
}
