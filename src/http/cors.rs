//! What pages of other origins may do, by `http.cors` (the CORS protocol of the Fetch standard).
//!
//! A browser asks first where a form could not send the same (a *preflight*), and hides each answer that does not allow the
//! page's origin from it. `navigator.sendBeacon` sends with credentials, and then no answer may say `*`: what is allowed is
//! always the page's own origin, with credentials. That gives nothing away: the daemon knows no cookies, what an
//! answer tells is the page's own request, and a key that a browser remembers (Basic) is sent by pages of allowed origins alone,
//! since what other pages send unasked is refused (`ingest::pages`).

use actix_http::RequestHead;
use actix_web::{
    HttpResponse, ResponseError as _,
    http::{
        Method, StatusCode,
        header::{
            ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
            ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
            ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderValue, ORIGIN, VARY,
        },
    },
};

use super::Problem;
use crate::config::{ANY_ORIGIN, CorsConfig, LiveConfig, OPAQUE_ORIGIN};

/// Those of the routes that pages may use.
const METHODS: &str = "GET, HEAD, POST";
/// What a page may read of an answer's head, beside what it always may (the length and the media type among it).
const EXPOSED: &str = "Retry-After, Preference-Applied, Accept-Encoding, Allow, WWW-Authenticate, X-Request-Id, RateLimit, RateLimit-Policy";

/// A page of the public network that sends into a private one asks for that, too (Private Network Access).
const REQUEST_PRIVATE_NETWORK: &str = "access-control-request-private-network";
const ALLOW_PRIVATE_NETWORK: &str = "access-control-allow-private-network";

/// Names of fields that a page is allowed at once: they are echoed, so they are bounded.
const LONGEST_LIST: usize = 1024;
/// An origin is a scheme and a host, of at most 253 characters.
const LONGEST_ORIGIN: usize = 320;

/// What the answer to a request says of other origins.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There are none.
    Silent,
    /// Another page would be answered otherwise.
    Varies,
    /// This origin's page may read it.
    Allowed(HeaderValue),
}

impl Verdict {
    fn of(cors: &CorsConfig, request: &HeaderMap) -> Self {
        if cors.origins.is_empty() {
            return Self::Silent;
        }
        allowed_origin(cors, request).map_or(Self::Varies, |origin| Self::Allowed(origin.clone()))
    }

    /// Says it in an answer's head.
    pub fn write(self, answer: &mut HeaderMap) {
        if self == Self::Silent {
            return;
        }
        answer.append(VARY, HeaderValue::from_static("Origin"));
        if let Self::Allowed(origin) = self {
            answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
        }
    }
}

/// The answer, where it is a preflight, and what any other answer says.
pub fn look(config: Option<&LiveConfig>, request: &RequestHead) -> (Option<HttpResponse>, Verdict) {
    let Some(config) = config.map(|config| config.load()) else { return (None, Verdict::Silent) };
    let cors = &config.http.cors;
    match preflight(cors, request) {
        Some(answer) => (Some(answer), Verdict::Silent),
        None => (None, Verdict::of(cors, request.headers())),
    }
}

/// The origin of the request, where its pages may send and read.
pub fn allowed_origin<'a>(cors: &CorsConfig, request: &'a HeaderMap) -> Option<&'a HeaderValue> {
    let mut given = request.get_all(ORIGIN);
    let origin = given.next().filter(|_| given.next().is_none())?;
    let is = |allowed: &str| origin.as_bytes().eq_ignore_ascii_case(allowed.as_bytes());
    let allowed = cors.origins.iter().any(|allowed| match allowed.as_str() {
        ANY_ORIGIN => !is(OPAQUE_ORIGIN) && is_origin(origin.as_bytes()),
        allowed => is(allowed),
    });
    allowed.then_some(origin)
}

/// Whether it may be said again in an answer.
fn is_origin(bytes: &[u8]) -> bool {
    let has_scheme = bytes.windows(3).any(|part| part == b"://");
    has_scheme && bytes.len() <= LONGEST_ORIGIN && bytes.iter().all(|byte| byte.is_ascii_graphic() && *byte != b',')
}

/// The answer to a browser that asks whether a page may send a request; `None` where it is another request.
fn preflight(cors: &CorsConfig, request: &RequestHead) -> Option<HttpResponse> {
    let headers = request.headers();
    let asks = |name| headers.contains_key(name);
    if request.method != Method::OPTIONS || !asks(ORIGIN) || !asks(ACCESS_CONTROL_REQUEST_METHOD) {
        return None;
    }
    let mut answer = allow(cors, headers).unwrap_or_else(|problem| problem.error_response());
    if !cors.origins.is_empty() {
        let vary = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
        answer.headers_mut().insert(VARY, HeaderValue::from_static(vary));
    }
    Some(answer)
}

fn allow(cors: &CorsConfig, request: &HeaderMap) -> Result<HttpResponse, Problem> {
    let origin = allowed_origin(cors, request).ok_or_else(|| {
        let detail = "pages of this origin may not send requests here: name it in http.cors.origins, as the browser sends \
                      it, if they are to";
        Problem::new(StatusCode::FORBIDDEN, detail)
    })?;
    let mut answer = HttpResponse::NoContent();
    answer
        .insert_header((ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone()))
        .insert_header((ACCESS_CONTROL_ALLOW_CREDENTIALS, "true"))
        .insert_header((ACCESS_CONTROL_ALLOW_METHODS, METHODS))
        .insert_header((ACCESS_CONTROL_MAX_AGE, HeaderValue::from(cors.max_age.as_secs())));
    let mut asked = request.get_all(ACCESS_CONTROL_REQUEST_HEADERS);
    if let Some(names) = asked.next() {
        if asked.next().is_some() || !is_list_of_names(names.as_bytes()) {
            let detail = format!(
                "Access-Control-Request-Headers must be one list of field names, of at most {LONGEST_LIST} bytes in all"
            );
            return Err(Problem::bad_request(detail));
        }
        // With credentials a `*` would be the name of a field. There is none that does harm: those that a page may set
        // are read by no route, or are there for clients to set.
        answer.insert_header((ACCESS_CONTROL_ALLOW_HEADERS, names.clone()));
    }
    if request.get(REQUEST_PRIVATE_NETWORK).is_some_and(|asked| asked == "true") {
        answer.insert_header((ALLOW_PRIVATE_NETWORK, "true"));
    }
    Ok(answer.finish())
}

fn is_list_of_names(bytes: &[u8]) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let is_name = |name: &[u8]| !name.is_empty() && name.iter().all(|byte| is_token(*byte));
    bytes.len() <= LONGEST_LIST && bytes.split(|byte| *byte == b',').all(|name| is_name(name.trim_ascii()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use actix_web::{http::header::HeaderName, test::TestRequest};

    use super::*;

    fn cors(origins: &[&str]) -> CorsConfig {
        let origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
        CorsConfig { origins, max_age: Duration::from_secs(600) }
    }

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn an_origin_is_allowed_as_it_is_named_in_any_case_and_null_by_its_name_alone() {
        for (origins, origin, allowed) in [
            (&["https://app.example.com"][..], "https://app.example.com", true),
            (&["https://App.example.com"], "https://app.EXAMPLE.com", true),
            (&["https://app.example.com"], "https://app.example.com:8443", false),
            (&["https://app.example.com"], "http://app.example.com", false),
            (&["https://app.example.com"], "https://app.example.com.evil.example", false),
            (&["https://app.example.com"], "https://evil.example/https://app.example.com", false),
            (&["https://app.example.com"], "null", false),
            (&["*"], "http://anything.example:1", true),
            (&["*"], "null", false),
            (&["*", "null"], "null", true),
            (&["*"], "", false),
            (&["*"], "not an origin", false),
            (&["*"], "https://a.example, https://b.example", false),
            (&[], "https://app.example.com", false),
        ] {
            let request = headers(&[("origin", origin)]);
            assert_eq!(allowed_origin(&cors(origins), &request).is_some(), allowed, "{origin} by {origins:?}");
        }
        assert_eq!(allowed_origin(&cors(&["*"]), &headers(&[])), None);
        let two = headers(&[("origin", "https://a.example"), ("origin", "https://a.example")]);
        assert_eq!(allowed_origin(&cors(&["*"]), &two), None);
        let long = format!("https://{}.example", "a".repeat(LONGEST_ORIGIN));
        assert_eq!(allowed_origin(&cors(&["*"]), &headers(&[("origin", &long)])), None);
    }

    #[test]
    fn an_answer_says_which_page_may_read_it_and_nothing_where_there_are_no_origins() {
        let request = headers(&[("origin", "https://a.example")]);
        let written = |cors: &CorsConfig, request: &HeaderMap| {
            let mut answer = headers(&[("vary", "Prefer")]);
            Verdict::of(cors, request).write(&mut answer);
            let mut lines: Vec<_> =
                answer.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
            lines.sort();
            lines
        };
        assert_eq!(written(&cors(&[]), &request), ["vary: Prefer"]);
        assert_eq!(written(&cors(&["https://b.example"]), &request), ["vary: Origin", "vary: Prefer"]);
        assert_eq!(written(&cors(&["*"]), &headers(&[])), ["vary: Origin", "vary: Prefer"]);
        let expected = [
            "access-control-allow-credentials: true",
            "access-control-allow-origin: https://a.example",
            "access-control-expose-headers: Retry-After, Preference-Applied, Accept-Encoding, Allow, WWW-Authenticate, X-Request-Id, \
             RateLimit, RateLimit-Policy",
            "vary: Origin",
            "vary: Prefer",
        ];
        assert_eq!(written(&cors(&["*"]), &request), expected);
    }

    fn asked(cors: &CorsConfig, fields: &[(&'static str, &str)]) -> Option<HttpResponse> {
        let mut request = TestRequest::with_uri("/v1/events").method(Method::OPTIONS);
        for (name, value) in fields {
            request = request.append_header((*name, *value));
        }
        preflight(cors, request.to_srv_request().head())
    }

    fn answered(response: &HttpResponse, name: &str) -> String {
        response.headers().get(name).map_or("absent", |value| value.to_str().unwrap()).to_owned()
    }

    const ORIGIN: (&str, &str) = ("origin", "https://a.example");
    const METHOD: (&str, &str) = ("access-control-request-method", "POST");

    #[test]
    fn a_browser_that_asks_is_told_what_a_page_may_send() {
        let names = "ce-type,content-type,traceparent,tracestate,x-api-key,x-request-id";
        let fields = [ORIGIN, METHOD, ("access-control-request-headers", names)];
        let answer = asked(&cors(&["https://a.example"]), &fields).unwrap();
        assert_eq!(answer.status(), 204);
        for (name, value) in [
            ("access-control-allow-origin", "https://a.example"),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-methods", "GET, HEAD, POST"),
            ("access-control-allow-headers", names),
            ("access-control-max-age", "600"),
            ("access-control-allow-private-network", "absent"),
            ("vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
        ] {
            assert_eq!(answered(&answer, name), value, "{name}");
        }
        let private = [ORIGIN, METHOD, ("access-control-request-private-network", "true")];
        let answer = asked(&cors(&["*"]), &private).unwrap();
        assert_eq!(answered(&answer, "access-control-allow-private-network"), "true");
        assert_eq!(answered(&answer, "access-control-allow-headers"), "absent");
    }

    #[test]
    fn a_page_that_may_not_send_is_refused_without_any_of_these_headers() {
        let long = "a,".repeat(LONGEST_LIST / 2) + "a";
        let list = |names| [ORIGIN, METHOD, ("access-control-request-headers", names)];
        for (origins, fields, status) in [
            (&[][..], list("content-type"), 403),
            (&["https://b.example"], list("content-type"), 403),
            (&["*"], list(&long), 400),
            (&["*"], list("content-type,,x"), 400),
            (&["*"], list("content type"), 400),
        ] {
            let answer = asked(&cors(origins), &fields).unwrap();
            assert_eq!(answer.status(), status, "{origins:?} {fields:?}");
            let names: Vec<_> = answer.headers().keys().map(ToString::to_string).collect();
            assert!(names.iter().all(|name| !name.starts_with("access-control")), "{names:?}");
            assert_eq!(names.contains(&"vary".to_owned()), !origins.is_empty());
        }
    }

    #[test]
    fn options_that_is_no_preflight_is_any_other_request() {
        for fields in [&[ORIGIN][..], &[METHOD], &[]] {
            assert!(asked(&cors(&["*"]), fields).is_none(), "{fields:?}");
        }
        let post = TestRequest::post().append_header(ORIGIN).append_header(METHOD).to_srv_request();
        assert!(preflight(&cors(&["*"]), post.head()).is_none());
    }
}
