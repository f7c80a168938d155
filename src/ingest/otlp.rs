//! Logs by OTLP/HTTP (`POST /v1/logs`): each log record becomes an event, whichever of the two encodings it came in.
//!
//! The specification: <https://opentelemetry.io/docs/specs/otlp/#otlphttp>. `wire` and `json` take a request apart, `event` writes
//! what a record becomes; here is what surrounds it: the bounds, and the answers, which have the encoding of the request.
//!
//! A record is decoded when it is its turn, checked, and gone before the next: what a request holds in memory is its body,
//! what its events have become so far, and one record, all of them counted.

mod event;
mod json;
mod typed;
mod wire;

use actix_web::{
    HttpResponse, HttpResponseBuilder,
    http::{
        StatusCode,
        header::{ACCEPT_ENCODING, ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER},
    },
};
use bytes::Bytes;
use opentelemetry_proto::tonic::{
    collector::logs::v1::{ExportLogsPartialSuccess, ExportLogsServiceResponse},
    logs::v1::LogRecord,
};
use prost::{DecodeError, Message};
use serde_json::{json, value::RawValue};

use self::wire::{Kind, ResourceHead, ScopeHead};
use super::{
    arrival::Arrival,
    attributes::Attributes,
    check::Checked,
    checking::Checking,
    format::{Unsplittable, is_utf_8},
    in_flight::Reservation,
    replies,
};
use crate::{
    config::HttpConfig,
    event::{Code, EventFields, Invalid},
    http::{Challenge, Problem},
};

/// How a request is written, and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Protobuf,
    Json,
}

impl Encoding {
    const ALL: [Self; 2] = [Self::Protobuf, Self::Json];

    pub fn media_type(self) -> &'static str {
        match self {
            Self::Protobuf => "application/x-protobuf",
            Self::Json => "application/json",
        }
    }

    /// What `Content-Type` says that a request is.
    ///
    /// # Errors
    /// 415 for any other, for none, for several, and for another charset than UTF-8.
    pub fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut given = headers.get_all(CONTENT_TYPE);
        let content_type = match (given.next(), given.next()) {
            (Some(given), None) => given.to_str().unwrap_or_default(),
            _ => "",
        };
        let mut parts = content_type.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default();
        let encoding = Self::ALL.into_iter().find(|encoding| encoding.media_type().eq_ignore_ascii_case(media_type));
        encoding.filter(|_| parts.all(is_utf_8)).ok_or_else(|| {
            let types = Self::ALL.map(Self::media_type).join(" or ");
            let detail = format!(
                "Content-Type of logs must be {types}, in UTF-8: set OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf"
            );
            Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
        })
    }
}

/// Takes the log records of a request apart, and checks what they become. What is wrong has its bytes where `keeps_wrong`.
///
/// # Errors
/// What refuses the request as a whole: then nothing of it is accepted.
pub fn check(
    body: &[u8],
    encoding: Encoding,
    keeps_wrong: bool,
    http: &HttpConfig,
    fields: &EventFields,
    arrival: Arrival<'_>,
    share: &mut Reservation,
) -> Result<Checked, Problem> {
    // No value is a part of the body, which goes when this is done.
    let no_body = Bytes::new();
    let checking = Checking::new(&no_body, http, fields, arrival, share).keeping(keeps_wrong);
    let mut logs = Logs { checking, encoding, http, next: 0, scratch: Vec::new() };
    match encoding {
        Encoding::Protobuf => logs.take_protobuf(body)?,
        Encoding::Json => logs.take_json(body)?,
    }
    logs.checking.finish()
}

/// The log records of a request so far.
struct Logs<'r> {
    checking: Checking<'r>,
    encoding: Encoding,
    http: &'r HttpConfig,
    /// The place of the next one.
    next: usize,
    /// What one becomes.
    scratch: Vec<u8>,
}

/// What the events of one resource, or one scope, have in common.
struct Shared {
    fields: Vec<u8>,
    service: Option<String>,
    /// Its memory.
    _work: Reservation,
}

/// Made where the first record needs it; where it cannot be, all its records say why.
type MaybeShared = Result<Shared, Invalid>;

impl Logs<'_> {
    fn take_protobuf(&mut self, body: &[u8]) -> Result<(), Problem> {
        let records = wire::count(body, self.http.max_events).map_err(no_request)?;
        self.expect(records)?;
        for logs in wire::below(body, wire::RESOURCE_LOGS) {
            let logs = logs.map_err(no_request)?;
            let mut resource = None;
            for scope_logs in wire::below(logs, wire::SCOPE_LOGS) {
                let scope_logs = scope_logs.map_err(no_request)?;
                let mut scope = None;
                for record in wire::below(scope_logs, wire::LOG_RECORDS) {
                    let record = record.map_err(no_request)?;
                    let resource = match &mut resource {
                        Some(known) => known,
                        first => first.insert(self.protobuf_resource(logs)?),
                    };
                    let scope = match &mut scope {
                        Some(known) => known,
                        first => first.insert(self.protobuf_scope(scope_logs)?),
                    };
                    let weight = Kind::LogRecord.weight(record);
                    let decode = || LogRecord::decode(record).map_err(|error| undecodable("log record", &error));
                    self.take(record, weight, decode, resource, scope)?;
                }
            }
        }
        Ok(())
    }

    fn protobuf_resource(&self, logs: &[u8]) -> Result<MaybeShared, Problem> {
        let (size, weight) = weigh(logs, wire::RESOURCE, Kind::Resource);
        self.shared(size, weight, || {
            let read = ResourceHead::decode(logs).map_err(|error| undecodable("resource", &error))?;
            Ok(event::of_resource(&read.resource.unwrap_or_default(), &read.schema_url))
        })
    }

    fn protobuf_scope(&self, logs: &[u8]) -> Result<MaybeShared, Problem> {
        let (size, weight) = weigh(logs, wire::SCOPE, Kind::Scope);
        self.shared(size, weight, || {
            let read = ScopeHead::decode(logs).map_err(|error| undecodable("scope", &error))?;
            Ok((event::of_scope(&read.scope.unwrap_or_default(), &read.schema_url), None))
        })
    }

    /// Makes what events have in common, of that size as it was sent, and of that weight once it is decoded.
    fn shared(
        &self,
        size: usize,
        weight: usize,
        make: impl FnOnce() -> Result<(Vec<u8>, Option<String>), Invalid>,
    ) -> Result<MaybeShared, Problem> {
        if let Some(invalid) = self.too_large_to_decode(size, weight) {
            return Ok(Err(invalid));
        }
        let mut work = self.checking.work(weight)?;
        let (fields, service) = match make() {
            Ok(made) => made,
            Err(invalid) => return Ok(Err(invalid)),
        };
        // What was decoded is gone: no more than this is held beside the records.
        work.resize(fields.capacity() + service.as_ref().map_or(0, String::capacity))?;
        Ok(Ok(Shared { fields, service, _work: work }))
    }

    fn take_json(&mut self, body: &[u8]) -> Result<(), Problem> {
        let request = json::request(body).map_err(no_json_request)?;
        for logs in self.elements(request.resource_logs)? {
            let logs = json::resource_logs(logs.get()).map_err(no_json_request)?;
            let mut resource = None;
            for scope_logs in self.elements(logs.scope_logs)? {
                let scope_logs = json::scope_logs(scope_logs.get()).map_err(no_json_request)?;
                let mut scope = None;
                let records = self.elements(scope_logs.log_records)?;
                self.expect(records.len())?;
                for record in records {
                    let resource = match &mut resource {
                        Some(known) => known,
                        first => first.insert(self.json_resource(&logs)?),
                    };
                    let scope = match &mut scope {
                        Some(known) => known,
                        first => first.insert(self.json_scope(&scope_logs)?),
                    };
                    let record = record.get();
                    let read = || json::record(record).map_err(|error| unreadable("log record", &error));
                    self.take(record.as_bytes(), json::weight(record), read, resource, scope)?;
                }
            }
        }
        Ok(())
    }

    fn json_resource(&self, logs: &json::ResourceLogs<'_>) -> Result<MaybeShared, Problem> {
        let [text, url] = [logs.resource, logs.schema_url].map(|raw| raw.map_or("null", RawValue::get));
        self.shared(text.len() + url.len(), json::weight(text) + json::weight(url), || {
            let read = json::resource(text).and_then(|resource| Ok((resource, json::schema_url(url)?)));
            let (resource, schema_url) = read.map_err(|error| unreadable("resource", &error))?;
            Ok(event::of_resource(&resource, &schema_url))
        })
    }

    fn json_scope(&self, logs: &json::ScopeLogs<'_>) -> Result<MaybeShared, Problem> {
        let [text, url] = [logs.scope, logs.schema_url].map(|raw| raw.map_or("null", RawValue::get));
        self.shared(text.len() + url.len(), json::weight(text) + json::weight(url), || {
            let read = json::scope(text).and_then(|scope| Ok((scope, json::schema_url(url)?)));
            let (scope, schema_url) = read.map_err(|error| unreadable("scope", &error))?;
            Ok((event::of_scope(&scope, &schema_url), None))
        })
    }

    /// Of one of the lists in a request, no longer than that all of them may be.
    fn elements<'t>(&self, list: Option<&'t RawValue>) -> Result<Vec<&'t RawValue>, Problem> {
        let elements = list.map_or(Ok(Vec::new()), |list| json::elements(list, self.http.max_events));
        let elements = elements.map_err(no_json_request)?;
        if elements.len() > self.http.max_events {
            return Err(Unsplittable::TooMany(self.http.max_events).into());
        }
        Ok(elements)
    }

    /// So many records are to come.
    fn expect(&mut self, records: usize) -> Result<(), Problem> {
        if self.next + records > self.http.max_events {
            return Err(Unsplittable::TooMany(self.http.max_events).into());
        }
        self.checking.expect(records)
    }

    /// Takes the next record, as it was sent, and of that weight once it is decoded.
    fn take(
        &mut self,
        raw: &[u8],
        weight: usize,
        decode: impl FnOnce() -> Result<LogRecord, Invalid>,
        resource: &MaybeShared,
        scope: &MaybeShared,
    ) -> Result<(), Problem> {
        let index = self.next;
        self.next += 1;
        let service = resource.as_ref().ok().and_then(|resource| resource.service.as_deref());
        if let Some(invalid) = self.too_large_to_decode(raw.len(), weight) {
            return self.refuse_undecoded(index, raw, service, invalid);
        }
        let (resource, scope) = match (resource, scope) {
            (Ok(resource), Ok(scope)) => (resource, scope),
            (Err(invalid), _) | (_, Err(invalid)) => {
                return self.refuse_undecoded(index, raw, service, invalid.clone());
            }
        };
        let _work = self.checking.work(weight + self.scratch.capacity())?;
        let record = match decode() {
            Ok(record) => record,
            Err(invalid) => return self.refuse_undecoded(index, raw, service, invalid),
        };
        self.scratch.clear();
        event::write(&mut self.scratch, &record);
        let whole = self.scratch.len() + resource.fields.len() + scope.fields.len();
        let too_large = (whole > self.http.max_event.as_usize()).then(|| self.too_large(whole));
        let time = event::event_time(&record);
        let mut attributes = Attributes::default();
        attributes.set("ce_type", event::event_type(&record));
        if let Some(time) = &time {
            attributes.set("ce_time", time.as_str());
        }
        if let Some(service) = service {
            attributes.set("ce_source", service);
        }
        if too_large.is_none() || self.checking.keeps_wrong() {
            self.scratch.extend_from_slice(&resource.fields);
            self.scratch.extend_from_slice(&scope.fields);
            event::close(&mut self.scratch);
        }
        match too_large {
            None => self.checking.take(index, &self.scratch, &attributes),
            Some(invalid) => self.checking.refuse(index, &self.scratch, &attributes, invalid),
        }
    }

    /// Says in the answer why a record is not accepted that no event can be made of. Where it is kept it is so as it was sent,
    /// beside the attributes that any event has which is made of it by hand. It has no content type: with one, a replay of
    /// these bytes would take them for the data of an event whatever they are, and what corrects them is JSON.
    fn refuse_undecoded(
        &mut self,
        index: usize,
        raw: &[u8],
        service: Option<&str>,
        invalid: Invalid,
    ) -> Result<(), Problem> {
        let mut attributes = Attributes::default();
        attributes.set("ce_type", event::NO_NAME);
        if let Some(service) = service {
            attributes.set("ce_source", service);
        }
        self.checking.refuse(index, raw, &attributes, invalid)
    }

    /// Why something is not decoded at all: larger as it is than an event may be, or more in memory than there may be.
    fn too_large_to_decode(&self, size: usize, weight: usize) -> Option<Invalid> {
        let (max_event, media_type) = (self.http.max_event, self.encoding.media_type());
        if size > max_event.as_usize() {
            let message = format!(
                "{size} bytes of {media_type} are more than an event may have: {max_event} (http.max_event); it was not decoded"
            );
            return Some(Invalid::new(Code::TooLarge, message));
        }
        let rule = || {
            format!(
                "it takes {weight} bytes to decode, which is more than half of http.max_in_flight: send less in one"
            )
        };
        (weight > self.http.max_in_flight.as_usize() / 2).then(|| Invalid::new(Code::TooLarge, rule()))
    }

    fn too_large(&self, size: usize) -> Invalid {
        let max_event = self.http.max_event;
        let message = format!(
            "{size} bytes with its resource and scope are more than an event may have: {max_event} (http.max_event)"
        );
        Invalid::new(Code::TooLarge, message)
    }
}

/// The size of a message in another one, as it was sent, and its weight once it is decoded.
fn weigh(message: &[u8], tag: u32, kind: Kind) -> (usize, usize) {
    let contents = |tag| wire::below(message, tag).filter_map(Result::ok);
    let urls: usize = contents(wire::SCHEMA_URL).map(<[u8]>::len).sum();
    contents(tag)
        .fold((urls, 7 * urls), |(size, weight), content| (size + content.len(), weight + kind.weight(content)))
}

fn no_request(error: DecodeError) -> Problem {
    let detail = format!("the body is no ExportLogsServiceRequest in protobuf, nothing was accepted: {error}");
    Problem { code: Some(Code::InvalidProtobuf), ..Problem::bad_request(detail) }
}

fn no_json_request(error: serde_json::Error) -> Problem {
    let detail = format!("the body is no ExportLogsServiceRequest in OTLP/JSON, nothing was accepted: {error}");
    Problem { code: Some(Code::InvalidJson), ..Problem::bad_request(detail) }
}

fn undecodable(what: &str, error: &DecodeError) -> Invalid {
    Invalid::new(Code::InvalidProtobuf, format!("its {what} is no valid protobuf: {error}"))
}

fn unreadable(what: &str, error: &serde_json::Error) -> Invalid {
    Invalid::new(Code::InvalidJson, format!("its {what} is no valid OTLP/JSON: {error}"))
}

/// `google.rpc.Status`, the body of an error.
#[derive(Clone, PartialEq, Message)]
struct Status {
    /// Of `google.rpc.Code`.
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// What became of the log records: 200, with how many of them were rejected and what was wrong, or 400 where all were rejected.
/// Those that failed for a passing reason, where each has its own result, count as rejected, too: an exporter sends none of them
/// again, and the message says which they are.
///
/// The answer counts as the request's `share` until the client has it.
pub fn answer(encoding: Encoding, checked: &Checked, share: Reservation) -> HttpResponse {
    let (wrong, kept, failed) = (checked.errors.len(), checked.quarantined(), checked.unavailable.len());
    let mut parts = Vec::new();
    if let Some(first) = checked.errors.first() {
        parts.push(format!("log record {}: {}", first.index, first.invalid));
    }
    if wrong > 1 {
        parts.push(format!("and {} more", wrong - 1));
    }
    if kept > 0 {
        parts.push(format!("{kept} kept as dead letters"));
    }
    parts.extend(replies::to_send_again(checked).map(|which| format!("log records {which}")));
    if let (None, Some(warning)) = (parts.first(), checked.warnings.first()) {
        parts.push(format!("log record {}: {}: {}", warning.index, warning.code.as_str(), warning.message));
    }
    let message = parts.join("; ");
    if wrong > 0 && failed == 0 && checked.accepted.is_empty() && kept == 0 {
        let problem = Problem::bad_request(format!("no log record was accepted: {message}"));
        return refusal(encoding, Problem { status: replies::refused_as(checked), ..problem });
    }
    // With none rejected the message is a warning (the specification's words).
    let rejected_log_records = (wrong - kept + failed) as i64;
    let partial = ExportLogsPartialSuccess { rejected_log_records, error_message: message };
    success(encoding, Some(partial).filter(|partial| !partial.error_message.is_empty()), share)
}

fn success(encoding: Encoding, partial_success: Option<ExportLogsPartialSuccess>, share: Reservation) -> HttpResponse {
    let body = match (encoding, &partial_success) {
        (Encoding::Protobuf, _) => ExportLogsServiceResponse { partial_success }.encode_to_vec(),
        (Encoding::Json, None) => b"{}".to_vec(),
        // Integers of 64 bits are strings in this encoding.
        (Encoding::Json, Some(partial)) => {
            let rejected = partial.rejected_log_records.to_string();
            json!({"partialSuccess": {"rejectedLogRecords": rejected, "errorMessage": partial.error_message}})
                .to_string()
                .into_bytes()
        }
    };
    respond(StatusCode::OK, encoding).body(share.hold(body))
}

/// An error as exporters read it. They send again what is answered 429, 502, 503 or 504, and nothing else.
pub fn refusal(encoding: Encoding, problem: Problem) -> HttpResponse {
    // A body that did not arrive in time is worth another try, and nothing of it was stored.
    let (status, retry_after) = match problem.status {
        StatusCode::REQUEST_TIMEOUT => (StatusCode::SERVICE_UNAVAILABLE, problem.retry_after.or(Some(1))),
        status => (status, problem.retry_after),
    };
    let code = match status {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => UNAVAILABLE,
        StatusCode::METHOD_NOT_ALLOWED => UNIMPLEMENTED,
        StatusCode::UNAUTHORIZED => UNAUTHENTICATED,
        StatusCode::FORBIDDEN => PERMISSION_DENIED,
        status if status.is_server_error() => INTERNAL,
        _ => INVALID_ARGUMENT,
    };
    let mut builder = respond(status, encoding);
    if let Some(seconds) = retry_after {
        builder.insert_header((RETRY_AFTER, HeaderValue::from(seconds)));
    }
    if let Some(allow) = problem.allow {
        builder.insert_header((ALLOW, HeaderValue::from_static(allow)));
    }
    if let Some(codings) = problem.accept_encoding {
        builder.insert_header((ACCEPT_ENCODING, HeaderValue::from_static(codings)));
    }
    problem.challenge.into_iter().flat_map(Challenge::fields).for_each(|field| _ = builder.append_header(field));
    if problem.closing {
        builder.force_close();
    }
    let message = problem.detail.into_owned();
    builder.body(match encoding {
        Encoding::Protobuf => Status { code, message }.encode_to_vec(),
        Encoding::Json => json!({"code": code, "message": message}).to_string().into_bytes(),
    })
}

/// Of `google.rpc.Code`.
const INVALID_ARGUMENT: i32 = 3;
const PERMISSION_DENIED: i32 = 7;
const UNIMPLEMENTED: i32 = 12;
const INTERNAL: i32 = 13;
const UNAVAILABLE: i32 = 14;
const UNAUTHENTICATED: i32 = 16;

fn respond(status: StatusCode, encoding: Encoding) -> HttpResponseBuilder {
    let mut builder = HttpResponse::build(status);
    builder.insert_header((CONTENT_TYPE, HeaderValue::from_static(encoding.media_type())));
    builder
}

#[cfg(test)]
mod tests;
