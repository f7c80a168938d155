//! What may stand in `http.cors.origins`: origins as browsers send them in `Origin` (RFC 6454, 6.2), so that a page is not
//! kept out by a slash.

use url::Url;

/// Every origin but [`OPAQUE_ORIGIN`].
pub const ANY_ORIGIN: &str = "*";

/// What a browser sends for a page that has no origin, or does not tell it.
pub const OPAQUE_ORIGIN: &str = "null";

const NO_ORIGIN: &str = "is no origin: write SCHEME://HOST[:PORT] as browsers send it, such as https://app.example.com; \"*\" is \
                         all of them, \"null\" the pages of files";

/// # Errors
/// What it has to be.
pub(super) fn check_origin(origin: &str) -> Result<(), String> {
    if [ANY_ORIGIN, OPAQUE_ORIGIN].contains(&origin) {
        return Ok(());
    }
    if origin.contains('*') {
        return Err(
            "is no origin: \"*\" stands alone for all of them; else name each, there are no patterns".to_owned()
        );
    }
    if !origin.is_ascii() {
        return Err("is not how browsers send it: write its host in ASCII (xn--…)".to_owned());
    }
    let lower = origin.to_ascii_lowercase();
    let Some((scheme, host)) = lower.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) else {
        return Err(NO_ORIGIN.to_owned());
    };
    if let Some(end) = host.find(['/', '?', '#', '\\']).filter(|end| *end > 0) {
        let (origin, _) = lower.split_at(lower.len() - host.len() + end);
        return Err(format!("has more than an origin (no path, no slash at its end): write {origin}"));
    }
    if host.contains('@') {
        return Err("has more than an origin (no user, no password): write SCHEME://HOST[:PORT]".to_owned());
    }
    let sent = match scheme {
        "http" | "https" => Url::parse(&lower).map_err(|_| NO_ORIGIN)?.origin().ascii_serialization(),
        // Those of extensions and of apps that are pages.
        _ if is_plain_host(host) => lower.clone(),
        _ => return Err(NO_ORIGIN.to_owned()),
    };
    if sent == lower { Ok(()) } else { Err(format!("is not how browsers send it: write {sent}")) }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c))
}

fn is_plain_host(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let named = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
    !host.is_empty() && host.chars().all(named) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_browsers_send() {
        for good in [
            "*",
            "null",
            "https://app.example.com",
            "HTTPS://App.Example.com",
            "http://localhost:3000",
            "http://[::1]:3000",
            "http://192.168.0.7",
            "https://xn--bcher-kva.example:8443",
            "chrome-extension://abcdefghijklmnop",
            "capacitor://localhost",
            "tauri://localhost:1420",
        ] {
            assert_eq!(check_origin(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_is_no_origin_is_told_what_to_write() {
        for (bad, told) in [
            ("", "SCHEME://HOST[:PORT]"),
            ("app.example.com", "SCHEME://HOST[:PORT]"),
            ("NULL", "SCHEME://HOST[:PORT]"),
            ("https://", "SCHEME://HOST[:PORT]"),
            ("https:///", "SCHEME://HOST[:PORT]"),
            ("file:///index.html", "SCHEME://HOST[:PORT]"),
            ("https://a b.example", "SCHEME://HOST[:PORT]"),
            ("https://a.example:99999", "SCHEME://HOST[:PORT]"),
            ("capacitor://local host", "SCHEME://HOST[:PORT]"),
            (" https://a.example", "SCHEME://HOST[:PORT]"),
            ("https://*.example.com", "no patterns"),
            ("https://app.example.com/", "write https://app.example.com"),
            ("https://App.example.com/a?b#c", "write https://app.example.com"),
            ("https://me@app.example.com", "no user"),
            ("https://app.example.com:443", "write https://app.example.com"),
            ("http://app.example.com:0080", "write http://app.example.com"),
            ("https://bücher.example", "in ASCII (xn--…)"),
            ("http://127.1", "write http://127.0.0.1"),
            ("https://app.example.com ", "write https://app.example.com"),
        ] {
            let error = check_origin(bad).unwrap_err();
            assert!(error.ends_with(told) || (!told.starts_with("write") && error.contains(told)), "{bad}: {error}");
        }
    }
}
