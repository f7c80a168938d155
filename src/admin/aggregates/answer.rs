//! How rows are answered: as JSON, lines of it, or CSV, each with an `ETag` of its content.

use std::convert::Infallible;

use actix_web::{
    HttpRequest, HttpResponse, HttpResponseBuilder,
    body::SizedStream,
    http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, IF_NONE_MATCH, LINK, VARY},
};
use bytes::Bytes;
use futures::stream;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;

use super::parameters::Asked;
use crate::{
    admin::exposition,
    config::AggregateConfig,
    store::{Rows, query::Format},
};

const JSON: &str = "application/json";

pub fn of_list(request: &HttpRequest, json: String) -> HttpResponse {
    let etag = etag(&[json.as_bytes()]);
    match head(request, &etag, JSON) {
        Head::Same(answer) => answer,
        Head::Whole(mut answer) => answer.body(json),
    }
}

pub fn of_rows(
    request: &HttpRequest,
    aggregate: &AggregateConfig,
    asked: &Asked,
    rows: Rows,
    turn: OwnedSemaphorePermit,
) -> HttpResponse {
    let next = rows.next().map(|place| asked.cursor(place.clone()));
    let (before, after) = match asked.format() {
        Format::Json => around(aggregate, asked, next.as_deref()),
        Format::Ndjson | Format::Csv => Default::default(),
    };
    let etag = etag(&[rows.digest(), before.as_bytes(), after.as_bytes(), next.as_deref().unwrap_or("").as_bytes()]);
    let mut answer = match head(request, &etag, media_type(asked.format())) {
        Head::Same(answer) => return answer,
        Head::Whole(answer) => answer,
    };
    if let Some(next) = next {
        answer.insert_header((LINK, link(request, &next)));
    }
    let rows = Bytes::from_owner(Answered { rows: rows.into_written(), _turn: turn });
    let parts = [Bytes::from(before), rows, Bytes::from(after)];
    let length = parts.iter().map(|part| part.len() as u64).sum();
    answer.body(SizedStream::new(length, stream::iter(parts.map(Ok::<_, Infallible>))))
}

/// Rows on their way to the client, whose turn ends when it has them.
struct Answered {
    rows: Vec<u8>,
    _turn: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Answered {
    fn as_ref(&self) -> &[u8] {
        &self.rows
    }
}

/// What a JSON document has before its rows, and behind them.
fn around(aggregate: &AggregateConfig, asked: &Asked, next: Option<&str>) -> (String, String) {
    let window = humantime::format_duration(aggregate.window);
    let mut before = format!(r#"{{"aggregate":{},"window":"{window}""#, Value::from(aggregate.name.as_str()));
    let (from, to) = asked.range();
    for (name, value) in [("step", Some(asked.step.clone())), ("from", from), ("to", to)] {
        if let Some(value) = value {
            before.push_str(&format!(r#","{name}":{}"#, Value::from(value)));
        }
    }
    before.push_str(r#","rows":["#);
    let after = match next {
        // It has nothing to escape.
        Some(next) => format!(r#"],"truncated":true,"next":"{next}"}}"#),
        None => "]}".to_owned(),
    };
    (before, after)
}

/// Strong: of the bytes of the answer.
fn etag(parts: &[&[u8]]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    format!("\"{}\"", hex::encode(&digest.finalize()[..16]))
}

enum Head {
    /// The client has it.
    Same(HttpResponse),
    Whole(HttpResponseBuilder),
}

fn head(request: &HttpRequest, etag: &str, media_type: &str) -> Head {
    let is_same = is_named(request.headers(), etag);
    let mut answer = if is_same { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    // Late events may still come.
    answer.insert_header((ETAG, etag)).insert_header((CACHE_CONTROL, "no-cache")).insert_header((VARY, "accept"));
    if is_same {
        return Head::Same(answer.finish());
    }
    answer.insert_header((CONTENT_TYPE, media_type));
    Head::Whole(answer)
}

/// Whether `If-None-Match` names it, by the weak comparison (RFC 9110, 13.1.2).
fn is_named(headers: &HeaderMap, etag: &str) -> bool {
    let fields = headers.get_all(IF_NONE_MATCH).filter_map(|field| field.to_str().ok());
    fields.into_iter().any(|field| field.trim() == "*" || tags(field).any(|tag| tag == etag))
}

/// The tags of a list, without what says that they are weak.
fn tags(list: &str) -> impl Iterator<Item = &str> {
    let mut rest = list;
    std::iter::from_fn(move || {
        let tag = rest.trim_start_matches([' ', '\t', ',']);
        let tag = tag.strip_prefix("W/").unwrap_or(tag);
        let end = 2 + tag.strip_prefix('"')?.find('"')?;
        let (tag, behind) = tag.split_at(end);
        rest = behind;
        Some(tag)
    })
}

/// The same request for the next page (RFC 8288).
fn link(request: &HttpRequest, next: &str) -> String {
    let parameters = url::form_urlencoded::parse(request.query_string().as_bytes());
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(parameters.filter(|(name, _)| name != "cursor"));
    query.append_pair("cursor", next);
    format!("<{}?{}>; rel=\"next\"", request.uri().path(), query.finish())
}

fn media_type(format: Format) -> &'static str {
    match format {
        Format::Json => JSON,
        Format::Ndjson => "application/x-ndjson",
        Format::Csv => "text/csv; charset=utf-8; header=present",
    }
}

/// What `Accept` prefers; JSON where it prefers nothing of ours.
pub fn preferred(headers: &HeaderMap) -> Format {
    let accept = exposition::list(headers, &actix_web::http::header::ACCEPT);
    let weight = |media: &[&str]| {
        let of = |media: &&str| exposition::weight(&accept, |range| exposition::specificity(range, media, &[]));
        media.iter().map(of).max().unwrap_or_default()
    };
    let json = weight(&[JSON]);
    let ndjson = weight(&["application/x-ndjson", "application/ndjson", "application/jsonl"]);
    let csv = weight(&["text/csv"]);
    if csv > json && csv >= ndjson {
        Format::Csv
    } else if ndjson > json {
        Format::Ndjson
    } else {
        Format::Json
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{ACCEPT, HeaderName, HeaderValue};

    use super::*;

    fn headers(name: &HeaderName, values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        values.iter().for_each(|value| headers.append(name.clone(), HeaderValue::from_static(value)));
        headers
    }

    #[test]
    fn a_tag_is_found_in_a_list_whether_it_is_weak_or_not() {
        let etag = "\"ab\"";
        for (values, expected) in [
            (&["\"ab\""][..], true),
            (&["W/\"ab\""], true),
            (&["\"x,\" , W/\"ab\""], true),
            (&["\"x\"", "\"ab\""], true),
            (&["*"], true),
            (&["\"x\"", "\"a\", \"abc\""], false),
            (&["ab"], false),
            (&["\"ab"], false),
            (&[""], false),
            (&[], false),
        ] {
            assert_eq!(is_named(&headers(&IF_NONE_MATCH, values), etag), expected, "{values:?}");
        }
    }

    #[test]
    fn the_format_is_what_the_client_prefers() {
        for (accept, expected) in [
            ("", Format::Json),
            ("*/*", Format::Json),
            ("text/csv", Format::Csv),
            ("text/*", Format::Csv),
            ("application/x-ndjson", Format::Ndjson),
            ("application/jsonl, */*;q=0.1", Format::Ndjson),
            ("application/json, text/csv;q=0.9", Format::Json),
            ("application/json;q=0.5, text/csv;q=0.9", Format::Csv),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Format::Json),
            ("image/png", Format::Json),
        ] {
            assert_eq!(preferred(&headers(&ACCEPT, &[accept])), expected, "{accept}");
        }
    }
}
