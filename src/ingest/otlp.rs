//! Logs by OTLP/HTTP (`POST /v1/logs`): each log record becomes an event, whichever of the two encodings it came in.
//!
//! The specification: <https://opentelemetry.io/docs/specs/otlp/#otlphttp>. `wire` and `json` take a request apart, `event` writes
//! what a record becomes; here is what surrounds it: the bounds, and the answers, which have the encoding of the request.
//!
//! A record is decoded when it is its turn, checked, and gone before the next: what a request holds in memory is its body,
//! what its events have become so far, and one record, all of them counted.

mod event;
mod json;
mod wire;

use actix_web::{
    HttpResponse, HttpResponseBuilder,
    http::{
        StatusCode,
        header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER},
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
use super::{attributes::Attributes, check::Checked, checking::Checking, format::Unsplittable, in_flight::Reservation};
use crate::{
    config::HttpConfig,
    event::{Code, EventFields, Invalid},
    http::Problem,
    position::Timestamp,
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
    /// 415 for any other, for none, and for several.
    pub fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut given = headers.get_all(CONTENT_TYPE);
        let media_type = match (given.next(), given.next()) {
            (Some(given), None) => given.to_str().ok().and_then(|given| given.split(';').next()),
            _ => None,
        };
        let media_type = media_type.unwrap_or_default().trim();
        Self::ALL.into_iter().find(|encoding| encoding.media_type().eq_ignore_ascii_case(media_type)).ok_or_else(|| {
            let types = Self::ALL.map(Self::media_type).join(" or ");
            let detail =
                format!("Content-Type of logs must be {types}: set OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf");
            Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
        })
    }
}

/// Takes the log records of a request apart, and checks what they become.
///
/// # Errors
/// What refuses the request as a whole: then nothing of it is accepted.
pub fn check(
    body: &[u8],
    encoding: Encoding,
    http: &HttpConfig,
    fields: &EventFields,
    received: Timestamp,
    share: &mut Reservation,
) -> Result<Checked, Problem> {
    // No value is a part of the body, which goes when this is done.
    let no_body = Bytes::new();
    let checking = Checking::new(body.len(), &no_body, http, fields, received, share);
    let mut logs = Logs { checking, http, next: 0, scratch: Vec::new() };
    match encoding {
        Encoding::Protobuf => logs.take_protobuf(body)?,
        Encoding::Json => logs.take_json(body)?,
    }
    logs.checking.finish()
}

/// The log records of a request so far.
struct Logs<'r> {
    checking: Checking<'r>,
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
type MaybeShared = Option<Result<Shared, Invalid>>;

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
                    if resource.is_none() {
                        resource = Some(self.protobuf_resource(logs)?);
                    }
                    if scope.is_none() {
                        scope = Some(self.protobuf_scope(scope_logs)?);
                    }
                    let weight = Kind::LogRecord.weight(record);
                    let decode = || LogRecord::decode(record).map_err(|error| undecodable("log record", &error));
                    self.take(record, weight, decode, &resource, &scope)?;
                }
            }
        }
        Ok(())
    }

    fn protobuf_resource(&self, logs: &[u8]) -> Result<Result<Shared, Invalid>, Problem> {
        let (size, weight) = weigh(logs, wire::RESOURCE, Kind::Resource);
        self.shared(size, weight, || {
            let read = ResourceHead::decode(logs).map_err(|error| undecodable("resource", &error))?;
            Ok(event::of_resource(&read.resource.unwrap_or_default(), &read.schema_url))
        })
    }

    fn protobuf_scope(&self, logs: &[u8]) -> Result<Result<Shared, Invalid>, Problem> {
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
    ) -> Result<Result<Shared, Invalid>, Problem> {
        if let Some(invalid) = self.too_large_to_decode(size, weight) {
            return Ok(Err(invalid));
        }
        let work = self.checking.work(weight)?;
        Ok(make().map(|(fields, service)| Shared { fields, service, _work: work }))
    }

    fn take_json(&mut self, body: &[u8]) -> Result<(), Problem> {
        let request: json::Request<'_> = serde_json::from_slice(body).map_err(no_json_request)?;
        for logs in self.elements(request.resource_logs)? {
            let logs: json::ResourceLogs<'_> = serde_json::from_str(logs.get()).map_err(no_json_request)?;
            let mut resource = None;
            for scope_logs in self.elements(logs.scope_logs)? {
                let scope_logs: json::ScopeLogs<'_> =
                    serde_json::from_str(scope_logs.get()).map_err(no_json_request)?;
                let mut scope = None;
                let records = self.elements(scope_logs.log_records)?;
                self.expect(records.len())?;
                for record in records {
                    if resource.is_none() {
                        resource = Some(self.json_resource(&logs)?);
                    }
                    if scope.is_none() {
                        scope = Some(self.json_scope(&scope_logs)?);
                    }
                    let record = record.get();
                    let read = || json::record(record).map_err(|error| unreadable("log record", &error));
                    self.take(record.as_bytes(), json::weight(record), read, &resource, &scope)?;
                }
            }
        }
        Ok(())
    }

    fn json_resource(&self, logs: &json::ResourceLogs<'_>) -> Result<Result<Shared, Invalid>, Problem> {
        let [text, url] = [logs.resource, logs.schema_url].map(|raw| raw.map_or("null", RawValue::get));
        self.shared(text.len() + url.len(), json::weight(text) + json::weight(url), || {
            let read = json::resource(text).and_then(|resource| Ok((resource, json::schema_url(url)?)));
            let (resource, schema_url) = read.map_err(|error| unreadable("resource", &error))?;
            Ok(event::of_resource(&resource, &schema_url))
        })
    }

    fn json_scope(&self, logs: &json::ScopeLogs<'_>) -> Result<Result<Shared, Invalid>, Problem> {
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
        let max_event = self.http.max_event.as_usize();
        if let Some(invalid) = self.too_large_to_decode(raw.len(), weight) {
            self.checking.refuse(index, raw, invalid);
            return Ok(());
        }
        let _work = self.checking.work(weight)?;
        let (resource, scope, record) = match (resource, scope, decode()) {
            (Some(Err(invalid)), ..) | (_, Some(Err(invalid)), _) => {
                self.checking.refuse(index, raw, invalid.clone());
                return Ok(());
            }
            (_, _, Err(invalid)) => {
                self.checking.refuse(index, raw, invalid);
                return Ok(());
            }
            (Some(Ok(resource)), Some(Ok(scope)), Ok(record)) => (resource, scope, record),
            // Both were made before.
            (None, ..) | (_, None, _) => return Ok(()),
        };
        self.scratch.clear();
        event::write(&mut self.scratch, &record);
        let whole = self.scratch.len() + resource.fields.len() + scope.fields.len();
        if whole > max_event {
            self.checking.refuse(index, raw, self.too_large(whole));
            return Ok(());
        }
        self.scratch.extend_from_slice(&resource.fields);
        self.scratch.extend_from_slice(&scope.fields);
        event::close(&mut self.scratch);
        let time = event::event_time(&record);
        let mut attributes = Attributes::default();
        attributes.set("ce_type", event::event_type(&record));
        if let Some(time) = &time {
            attributes.set("ce_time", time.as_str());
        }
        if let Some(service) = &resource.service {
            attributes.set("ce_source", service.as_str());
        }
        self.checking.take(index, &self.scratch, &attributes)
    }

    /// Why something is not decoded at all: larger as it is than an event may be, or more in memory than there may be.
    fn too_large_to_decode(&self, size: usize, weight: usize) -> Option<Invalid> {
        if size > self.http.max_event.as_usize() {
            return Some(self.too_large(size));
        }
        let rule = || format!("it takes {weight} bytes to decode, which is more than half of http.max_in_flight");
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
///
/// The answer counts as the request's `share` until the client has it.
pub fn answer(encoding: Encoding, checked: &Checked, share: Reservation) -> HttpResponse {
    let Some(first) = checked.errors.first() else {
        let warning = checked.warnings.first().map(|warning| ExportLogsPartialSuccess {
            rejected_log_records: 0,
            error_message: format!("log record {}: {}: {}", warning.index, warning.code.as_str(), warning.message),
        });
        return success(encoding, warning, share);
    };
    let (wrong, kept) = (checked.errors.len(), checked.quarantined());
    let mut message = format!("log record {}: {}", first.index, first.invalid);
    if wrong > 1 {
        message = format!("{message}; and {} more", wrong - 1);
    }
    if kept > 0 {
        message = format!("{message}; {kept} kept as dead letters");
    }
    if checked.accepted.is_empty() && kept == 0 {
        return refusal(encoding, Problem::bad_request(format!("no log record was accepted: {message}")));
    }
    // With none rejected the message is a warning, as above.
    let partial = ExportLogsPartialSuccess { rejected_log_records: (wrong - kept) as i64, error_message: message };
    success(encoding, Some(partial), share)
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
const UNIMPLEMENTED: i32 = 12;
const INTERNAL: i32 = 13;
const UNAVAILABLE: i32 = 14;

fn respond(status: StatusCode, encoding: Encoding) -> HttpResponseBuilder {
    let mut builder = HttpResponse::build(status);
    builder.insert_header((CONTENT_TYPE, HeaderValue::from_static(encoding.media_type())));
    builder
}

#[cfg(test)]
mod tests;
