//! What pages in an operator's browser may do here: all that the dashboard does, and nothing that another page has it do.
//!
//! - A page of another origin can have a browser send forms, and much else unasked. What is not GET or HEAD is refused where the
//!   browser says that such a page sent it: by `Sec-Fetch-Site`, or, where there is none, by an `Origin` that is not this host's.
//!   Programs send neither. What is below `/v1/` is not looked up for such a page either, though it could not read the answer: a
//!   page full of images of queries would take the turns of those who ask. A link that a person follows is answered.
//!   (Go's `CrossOriginProtection` goes by the same; `Sec-Fetch-Site` first, since a proxy may have
//!   changed `Host`.)
//! - A page whose name is made to mean this machine (*DNS rebinding*) is of this origin, as its browser sees it. It has no key
//!   and no certificate of its name; where neither is asked for, what comes over the loopback, or from a browser wherever it is (a
//!   container whose port is published on the loopback sees the bridge's address), has to ask for a host that no such page can
//!   have: an address, `localhost`, a name without a dot, or the one in `admin.listen` (as Syncthing and Node's inspector do).

use std::net::IpAddr;

use actix_http::RequestHead;
use actix_web::http::{
    StatusCode,
    header::{HOST, HeaderName, ORIGIN, USER_AGENT},
};

use crate::{config::AdminConfig, http::Problem};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_USER: HeaderName = HeaderName::from_static("sec-fetch-user");

/// Why a request is refused for the page that it came from, or may have come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    AnotherOrigin,
    /// The same, for what only looks.
    AnotherOriginLooks,
    Host,
}

impl Refusal {
    /// In metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::AnotherOrigin | Self::AnotherOriginLooks => "another_origin",
            Self::Host => "host",
        }
    }

    pub fn problem(self) -> Problem {
        let detail = match self {
            Self::AnotherOrigin => {
                "a page of another origin may change nothing here: use the dashboard at / of this listener, or a program, which \
                 sends neither Origin nor Sec-Fetch-Site"
            }
            Self::AnotherOriginLooks => {
                "a page of another origin may have nothing below /v1/ looked up here: use the dashboard at / of this listener, or a \
                 program, which sends no Sec-Fetch-Site"
            }
            Self::Host => {
                "the request's Host is neither an address nor localhost, which a page of another site could have sent: ask for \
                 127.0.0.1, have a proxy send that as Host, or set admin.auth.keys or admin.tls.cert"
            }
        };
        Problem::new(StatusCode::FORBIDDEN, detail)
    }
}

/// # Errors
/// The request is not to be answered.
pub(super) fn check(head: &RequestHead, only_looks: bool, config: &AdminConfig) -> Result<(), Refusal> {
    let host = head.headers.get(HOST).and_then(|host| host.to_str().ok());
    let asks_nobody = config.auth.keys.is_empty() && config.tls.cert.is_empty();
    let is_local = head.peer_addr.is_some_and(|peer| peer.ip().to_canonical().is_loopback());
    if asks_nobody
        && (is_local || is_of_a_browser(head))
        && host.is_some_and(|host| !is_of_no_other_page(host, &config.listen))
    {
        return Err(Refusal::Host);
    }
    if only_looks {
        let is_refused = head.uri.path().starts_with("/v1/") && is_embedded_elsewhere(head);
        return if is_refused { Err(Refusal::AnotherOriginLooks) } else { Ok(()) };
    }
    if is_ours(head, host) { Ok(()) } else { Err(Refusal::AnotherOrigin) }
}

/// Whether a page of another origin has it sent, and no person who follows a link there.
fn is_embedded_elsewhere(head: &RequestHead) -> bool {
    let is = |name: &HeaderName, value: &str| head.headers.get(name).is_some_and(|found| found == value);
    let is_elsewhere = head.headers.get_all(SEC_FETCH_SITE).any(|site| site == "cross-site" || site == "same-site");
    is_elsewhere && !(is(&SEC_FETCH_MODE, "navigate") && is(&SEC_FETCH_USER, "?1"))
}

/// Whether a page may have had it sent: browsers call themselves Mozilla, and a page cannot have them send another name in a
/// request without one of the other fields.
fn is_of_a_browser(head: &RequestHead) -> bool {
    let agent = head.headers.get(USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(b"Mozilla/"));
    agent || head.headers.keys().any(|name| *name == ORIGIN || name.as_str().starts_with("sec-fetch-"))
}

/// Whether no page of another origin sent it.
fn is_ours(head: &RequestHead, host: Option<&str>) -> bool {
    let mut sites = head.headers.get_all(SEC_FETCH_SITE).peekable();
    if sites.peek().is_some() {
        // `none` is what a person did in the browser.
        return sites.all(|site| site == "same-origin" || site == "none");
    }
    let of_host = |origin: &str| {
        let named = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        named.zip(host).is_some_and(|(named, host)| named.eq_ignore_ascii_case(host))
    };
    head.headers.get_all(ORIGIN).all(|origin| origin.to_str().is_ok_and(of_host))
}

/// Whether no page elsewhere can have this host: nobody gives out such a name.
fn is_of_no_other_page(host: &str, listen: &str) -> bool {
    let name = name_of(host);
    let is_address = |name: &str| {
        name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok() || ends_in_number(name)
    };
    !name.contains('.')
        || is_address(name)
        || name.to_ascii_lowercase().ends_with(".localhost")
        || name.eq_ignore_ascii_case(name_of(listen))
}

/// Without its port, and the dot at the end of a name that is whole.
fn name_of(host: &str) -> &str {
    let name = match host.rfind(':') {
        // Within brackets a colon is the address's.
        Some(at) if !host[at..].contains(']') => &host[..at],
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

/// The last label of an address in any of its forms, as 127.1, begins with a digit; no top-level domain does (RFC 3696, 2).
fn ends_in_number(name: &str) -> bool {
    name.rsplit('.').next().is_some_and(|label| label.starts_with(|first: char| first.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;
    use crate::config::Config;

    fn ask(config: &Config, peer: &str, only_looks: bool, fields: &[(&str, &str)]) -> Result<(), Refusal> {
        let mut request = TestRequest::default().peer_addr(peer.parse().unwrap());
        for (name, value) in fields {
            request = request.append_header((*name, *value));
        }
        check(request.to_srv_request().head(), only_looks, &config.admin)
    }

    #[test]
    fn what_a_page_of_another_origin_sends_changes_nothing() {
        let config = Config::default();
        let other = Err(Refusal::AnotherOrigin);
        for (fields, expected) in [
            (&[][..], Ok(())),
            (&[("origin", "http://127.0.0.1:9600")], Ok(())),
            (&[("origin", "https://127.0.0.1:9600")], Ok(())),
            (&[("origin", "http://127.0.0.1:9601")], other),
            (&[("origin", "http://127.0.0.1")], other),
            (&[("origin", "http://127.0.0.1:9600.evil.example")], other),
            (&[("origin", "http://evil.example/127.0.0.1:9600")], other),
            (&[("origin", "https://evil.example")], other),
            (&[("origin", "null")], other),
            (&[("origin", "")], other),
            (&[("origin", "http://127.0.0.1:9600"), ("origin", "https://evil.example")], other),
            (&[("sec-fetch-site", "same-origin"), ("origin", "http://127.0.0.1:9600")], Ok(())),
            // Behind a proxy that says another Host.
            (&[("sec-fetch-site", "same-origin"), ("origin", "https://ops.example")], Ok(())),
            (&[("sec-fetch-site", "none")], Ok(())),
            (&[("sec-fetch-site", "same-site")], other),
            (&[("sec-fetch-site", "cross-site")], other),
            (&[("sec-fetch-site", "cross-site"), ("origin", "http://127.0.0.1:9600")], other),
            (&[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")], other),
            (&[("sec-fetch-site", "")], other),
        ] {
            let fields = [&[("host", "127.0.0.1:9600")], fields].concat();
            assert_eq!(ask(&config, "127.0.0.1:5000", false, &fields), expected, "{fields:?}");
            // Another page cannot read the answer.
            assert_eq!(ask(&config, "127.0.0.1:5000", true, &fields), Ok(()), "{fields:?}");
        }
        assert_eq!(ask(&config, "127.0.0.1:5000", false, &[("origin", "http://a")]), other, "there is no Host");
    }

    #[test]
    fn a_page_of_another_origin_has_nothing_looked_up() {
        let config = Config::default();
        let look = |path: &str, fields: &[(&str, &str)]| {
            let mut request = TestRequest::default().uri(path).peer_addr("127.0.0.1:5000".parse().unwrap());
            for (name, value) in fields {
                request = request.append_header((*name, *value));
            }
            check(request.to_srv_request().head(), true, &config.admin)
        };
        let query = "/v1/aggregates/events?step=all";
        for site in ["cross-site", "same-site"] {
            let site = ("sec-fetch-site", site);
            assert_eq!(look(query, &[site]), Err(Refusal::AnotherOriginLooks));
            let of_frame = [site, ("sec-fetch-mode", "navigate")];
            assert_eq!(look(query, &of_frame), Err(Refusal::AnotherOriginLooks));
            let link = [site, ("sec-fetch-mode", "navigate"), ("sec-fetch-user", "?1")];
            assert_eq!(look(query, &link), Ok(()));
            assert_eq!(look("/ready", &[site]), Ok(()));
        }
        for fields in [&[][..], &[("sec-fetch-site", "same-origin")], &[("sec-fetch-site", "none")]] {
            assert_eq!(look(query, fields), Ok(()));
        }
    }

    #[test]
    fn a_browser_that_comes_through_a_published_port_asks_for_no_name_of_a_page_either() {
        let config = Config::default();
        let ask_by = |host: &str, field: (&str, &str)| ask(&config, "172.17.0.1:5000", true, &[("host", host), field]);
        for field in [
            ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"),
            ("sec-fetch-dest", "image"),
            ("origin", "http://evil.example:9600"),
        ] {
            assert_eq!(ask_by("evil.example:9600", field), Err(Refusal::Host), "{field:?}");
            assert_eq!(ask_by("127.0.0.1:9600", field), Ok(()), "{field:?}");
        }
        assert_eq!(ask_by("metrics.example:9600", ("user-agent", "Prometheus/3.7.3")), Ok(()));
    }

    #[test]
    fn over_the_loopback_no_name_is_asked_for_that_a_page_elsewhere_can_have() {
        let mut config = Config::default();
        config.admin.listen = "Admin.internal.example:9600".to_owned();
        let ask_by = |config: &Config, peer: &str, host: &str| ask(config, peer, true, &[("host", host)]);
        for host in [
            "127.0.0.1:9600",
            "127.0.0.1",
            "[::1]:9600",
            "[::1]",
            "localhost:9600",
            "LocalHost",
            "localhost.",
            "a.localhost:1",
            "127.1",
            "ingestd:9600",
            "x",
            "",
            "192.168.1.5",
            "admin.internal.EXAMPLE:9600",
        ] {
            assert_eq!(ask_by(&config, "127.0.0.1:5000", host), Ok(()), "{host}");
        }
        for host in
            ["evil.example", "evil.example:9600", "evil.example.", "localhost.evil.example", "127.0.0.1.evil.example"]
        {
            for peer in ["127.0.0.1:5000", "[::1]:5000", "[::ffff:127.0.0.1]:5000"] {
                assert_eq!(ask_by(&config, peer, host), Err(Refusal::Host), "{host} of {peer}");
            }
            assert_eq!(ask_by(&config, "192.0.2.1:5000", host), Ok(()), "{host}: another machine knows its names");
        }
        assert_eq!(ask(&config, "127.0.0.1:5000", true, &[]), Ok(()), "HTTP/1.0");
        config.admin.tls.cert = "cert.pem".to_owned();
        assert_eq!(ask_by(&config, "127.0.0.1:5000", "evil.example"), Ok(()), "it has no certificate of that name");
        config.admin.tls.cert = String::new();
        let key = serde_json::json!([{ "name": "a", "hash": format!("sha256:{}", "0".repeat(64)) }]);
        config.admin.auth.keys = serde_json::from_value(key).unwrap();
        assert_eq!(ask_by(&config, "127.0.0.1:5000", "evil.example"), Ok(()), "it has no key");
    }
}
