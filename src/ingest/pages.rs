//! Bodies that any web page can have a browser send, without asking anybody: `text/plain`, forms, and those without a type (in
//! Fetch's words, a `Content-Type` that is safelisted). Others a browser asks for first, and `http::cors` answers.
//!
//! A request says by `Origin` that a page sent it. From a page that may send, `text/plain` is JSON: that is what
//! `navigator.sendBeacon` and `fetch` make of a string.

use actix_web::http::{
    StatusCode,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue, ORIGIN},
};

use super::{
    cloudevents::{InHeaders, format_of, is_in_headers},
    format::Format,
};
use crate::{
    config::{CorsConfig, LiveConfig},
    http::{Problem, cors},
};

/// What the request says that its body is, where that may be.
///
/// # Errors
/// 415 as [`format_of`] and [`check`] have it.
pub fn format(headers: &HeaderMap, config: &LiveConfig) -> Result<(Format, Option<InHeaders>), Problem> {
    if !headers.contains_key(ORIGIN) {
        return format_of(headers);
    }
    check(headers, &config.load().http.cors)?;
    match json_of_text(headers).filter(|_| !is_in_headers(headers)) {
        Some(headers) => Ok((Format::of(&headers)?, None)),
        None => format_of(headers),
    }
}

/// Refuses what a page sends without having asked, unless its origin is allowed.
///
/// # Errors
/// 415 for such a body. Whatever else a page sends is what any client may send: if its origin is not allowed, its browser
/// has asked, and was refused.
pub fn check(headers: &HeaderMap, cors: &CorsConfig) -> Result<(), Problem> {
    let is_pages = headers.contains_key(ORIGIN) && is_sent_unasked(headers);
    if !is_pages || cors::allowed_origin(cors, headers).is_some() {
        return Ok(());
    }
    let detail = "pages of this origin may send no text/plain, no form and nothing without a Content-Type: name the origin \
                  in http.cors.origins, or send application/json";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail))
}

fn is_sent_unasked(headers: &HeaderMap) -> bool {
    // Browsers send one. Of several each is looked at.
    let mut given = headers.get_all(CONTENT_TYPE).peekable();
    given.peek().is_none() || !given.all(|given| is_asked_for(given.as_bytes()))
}

/// Whether a browser asks before it sends this type: it can be read, and is none that is safelisted. Parameters make no
/// difference, and may be any bytes.
fn is_asked_for(content_type: &[u8]) -> bool {
    const SAFELISTED: [&[u8]; 3] = [b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data"];
    let is_token = |part: &[u8]| {
        !part.is_empty() && part.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
    };
    let media_type = content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let mut parts = media_type.split(|byte| *byte == b'/');
    let is_readable = matches!((parts.next(), parts.next(), parts.next()), (Some(kind), Some(subtype), None)
        if is_token(kind) && is_token(subtype));
    is_readable && !SAFELISTED.iter().any(|known| known.eq_ignore_ascii_case(media_type))
}

/// The media type, and its parameters as they stand.
fn split(content_type: &str) -> (&str, &str) {
    let (media_type, parameters) = content_type.split_at(content_type.find(';').unwrap_or(content_type.len()));
    (media_type.trim(), parameters)
}

/// `text/plain` as JSON with its parameters, the charset among them.
fn json_of_text(headers: &HeaderMap) -> Option<HeaderMap> {
    let mut given = headers.get_all(CONTENT_TYPE);
    let (media_type, parameters) = split(given.next().filter(|_| given.next().is_none())?.to_str().ok()?);
    if !media_type.eq_ignore_ascii_case("text/plain") {
        return None;
    }
    let mut json = HeaderMap::with_capacity(1);
    json.insert(CONTENT_TYPE, HeaderValue::from_str(&format!("application/json{parameters}")).ok()?);
    Some(json)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arc_swap::ArcSwap;

    use super::*;
    use crate::config::Config;

    #[test]
    fn what_any_page_can_send_is_taken_of_allowed_origins_alone_and_text_is_json() {
        const ALLOWED: &str = "https://a.example";
        const OTHER: &str = "https://b.example";
        let (json, lines, refused) = (Ok(Format::Json), Ok(Format::Ndjson), Err(415));
        let mut config = Config::default();
        config.http.cors.origins = vec![ALLOWED.to_owned()];
        let live: LiveConfig = Arc::new(ArcSwap::from_pointee(config));
        for (content_types, nobody, allowed, other) in [
            (&["text/plain;charset=UTF-8"][..], refused, json, refused),
            (&["Text/Plain"], refused, json, refused),
            (&["text/plain ; charset=utf-8"], refused, json, refused),
            (&["text/plain;charset=latin1"], refused, refused, refused),
            (&["text/plainer"], refused, refused, refused),
            (&["text/html"], refused, refused, refused),
            (&[], json, json, refused),
            (&["application/json"], json, json, json),
            (&["application/x-ndjson"], lines, lines, lines),
            (&["application/x-www-form-urlencoded"], refused, refused, refused),
            (&["multipart/form-data; boundary=x"], refused, refused, refused),
            (&["text/plain", "application/json"], refused, refused, refused),
        ] {
            for (origin, expected) in [(None, nobody), (Some(ALLOWED), allowed), (Some(OTHER), other)] {
                let mut headers = HeaderMap::new();
                content_types.iter().for_each(|given| headers.append(CONTENT_TYPE, HeaderValue::from_static(given)));
                origin.iter().for_each(|origin| headers.append(ORIGIN, HeaderValue::from_static(origin)));
                let found =
                    format(&headers, &live).map(|(format, _)| format).map_err(|problem| problem.status.as_u16());
                assert_eq!(found, expected, "{content_types:?} of {origin:?}");
            }
        }
        // What no text can be made of is no way around that.
        for (content_type, allowed, other) in [
            (&b"text/plain;a=\xe9"[..], refused, refused),
            (b"application/x-www-form-urlencoded; a=\xff", refused, refused),
            (b"multipart/form-data;boundary=\xe9", refused, refused),
            (b"text/plain\xe9", refused, refused),
            (b"application/json\xe9", refused, refused),
            (b"", refused, refused),
            (b"application/json, text/plain", refused, refused),
        ] {
            for (origin, expected) in [(ALLOWED, allowed), (OTHER, other)] {
                let mut headers = HeaderMap::new();
                headers.append(CONTENT_TYPE, HeaderValue::from_bytes(content_type).unwrap());
                headers.append(ORIGIN, HeaderValue::from_static(origin));
                let found =
                    format(&headers, &live).map(|(format, _)| format).map_err(|problem| problem.status.as_u16());
                assert_eq!(found, expected, "{content_type:?} of {origin}");
                let is_told = check(&headers, &live.load().http.cors).is_err();
                assert_eq!(is_told, origin == OTHER, "{content_type:?} of {origin}");
            }
        }
        let mut asked = HeaderMap::new();
        asked.append(CONTENT_TYPE, HeaderValue::from_bytes(b"application/json;a=\xe9").unwrap());
        asked.append(ORIGIN, HeaderValue::from_static(OTHER));
        assert!(check(&asked, &live.load().http.cors).is_ok(), "its browser has asked");
        let mut headers = HeaderMap::new();
        headers.append(ORIGIN, HeaderValue::from_static(OTHER));
        let problem = format(&headers, &live).unwrap_err();
        assert!(problem.detail.contains("http.cors.origins"), "{problem}");
    }
}
