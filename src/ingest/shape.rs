//! What the body of a request is, which decides how it is taken apart.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    arrival::Arrival,
    attributes::Attributes,
    check::{Checked, check},
    cloudevents::{self, InHeaders},
    format::Format,
    in_flight::Reservation,
    otlp::{self, Encoding},
    source,
};
use crate::{
    config::{HttpConfig, HttpSource, Pointer},
    event::EventFields,
    http::Problem,
};

/// What the body of a request is.
#[derive(Debug)]
pub enum Shape {
    /// Events by themselves, or as CloudEvents; perhaps the attributes of the one whose data is the body.
    Events(Format, Option<InHeaders>),
    /// What arrives at the path of a source; the format is that of a body which is the array itself.
    Source(Arc<HttpSource>, Format),
    /// The logs of OpenTelemetry. Where wrong ones are kept, what they are is.
    Logs { encoding: Encoding, keeps_wrong: bool },
}

/// Bodies from here on are parsed on a blocking thread: they keep a core busy for milliseconds, and a worker has other
/// connections to serve.
const LONG_PARSE: usize = 256 * 1024;
/// The same of logs: each record becomes an event with all of its resource, so that a few KiB may be many MiB to write and to
/// check.
const LONG_LOGS: usize = 4 * 1024;
/// The same of events that are looked at as trees, for the schemas of their types.
const LONG_TREE: usize = 64 * 1024;
/// The same of bodies with so many parts: ten thousand events fit into 20 KiB, and each that is wrong has its own sentence in the
/// answer. An array of a hundred ordinary events has a thousand.
const MANY_PARTS: usize = 4 * 1024;

impl Shape {
    /// Takes a body apart, and checks its events.
    ///
    /// # Errors
    /// What refuses the body as a whole: then nothing of it is accepted.
    pub fn check(
        self,
        body: Bytes,
        http: &HttpConfig,
        fields: &EventFields,
        arrival: Arrival<'_>,
        share: &mut Reservation,
    ) -> Result<Checked, Problem> {
        match self {
            Self::Events(format, in_headers) => check(body, format, in_headers, http, fields, arrival, share),
            Self::Source(source, lines) => source::check(body, &source, lines, http, fields, arrival, share),
            Self::Logs { encoding, keeps_wrong } => {
                otlp::check(&body, encoding, keeps_wrong, http, fields, arrival, share)
            }
        }
    }

    /// What stands beside a body that cannot be split, as the headers of its letter: what says how to read its correction.
    pub fn beside(&self) -> Attributes<'static> {
        match self {
            Self::Events(Format::CloudEvent, _) => cloudevents::beside_envelope(),
            Self::Events(Format::CloudEvents, _) => cloudevents::beside_batch(),
            Self::Events(Format::Data, Some(in_headers)) => in_headers.attributes.clone(),
            Self::Source(source, _) => source::beside(source),
            Self::Events(..) | Self::Logs { .. } => Attributes::default(),
        }
    }

    /// Where in the body its sender's key is.
    pub fn key_in_body(&self) -> Option<&Pointer> {
        match self {
            Self::Source(source, _) => source.key.as_ref(),
            Self::Events(..) | Self::Logs { .. } => None,
        }
    }

    /// Whether it takes long to check.
    pub fn is_long(&self, body: &[u8], has_schemas: bool) -> bool {
        if has_schemas && body.len() >= LONG_TREE {
            return true;
        }
        match self {
            Self::Events(..) => body.len() >= LONG_PARSE || has_many_parts(body),
            // What is wrapped is more than it seems.
            Self::Source(..) => body.len() >= LONG_PARSE || has_many_parts(body) || source::is_wrapped(body),
            Self::Logs { .. } => body.len() >= LONG_LOGS,
        }
    }
}

/// Whether checking it takes many milliseconds.
pub fn is_large(body: &[u8]) -> bool {
    body.len() >= LONG_PARSE
}

/// Elements and fields end with a comma, lines with their own sign, and texts beside each other perhaps with a bracket alone. To
/// count them costs a hundredth of what it costs to parse them.
fn has_many_parts(body: &[u8]) -> bool {
    let count = |sign: u8| memchr::memchr_iter(sign, body).count();
    body.len() >= MANY_PARTS && count(b',') + count(b'\n') + count(b'}') >= MANY_PARTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_of_parts_are_long_however_they_are_separated_and_an_array_of_ordinary_events_is_not() {
        let event = r#"{"type":"login_success","client_id":"client-1","event_id":"e","timestamp":0,"ip":"::1","agent":"x","os":"y"}"#;
        let is_long = |body: &str| Shape::Events(Format::Json, None).is_long(body.as_bytes(), false);
        assert!(!is_long(&format!("[{}]", vec![event; 100].join(","))));
        for body in [format!("[{}]", vec!["1"; 5_000].join(",")), "1\n".repeat(5_000), "{}".repeat(5_000)] {
            assert!(is_long(&body), "{}", &body[..20]);
        }
        assert!(is_long(&" ".repeat(LONG_PARSE)));
        assert!(!is_long(&",".repeat(MANY_PARTS - 1)));
    }
}
