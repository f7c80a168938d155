//! Which values are secrets, and what stands in their place where people read.

use mongodb::options::ConnectionString;
use url::Url;

use super::{
    Config,
    http_key::KEY_PREFIX,
    keys::{ARCHIVE_OPTIONS, KAFKA_PROPERTIES, below},
    tls,
};

const HIDDEN: &str = "***";

/// The value as it may be shown: a secret becomes `***`, also inside a URL.
pub fn shown(key: &str, value: &str) -> String {
    if value.is_empty() {
        return String::new();
    }
    let name = below(key, ARCHIVE_OPTIONS).or_else(|| below(key, KAFKA_PROPERTIES));
    match name {
        Some(name) if is_secret(name) => HIDDEN.to_owned(),
        None if tls::KEYS.contains(&key) && is_content(value) => HIDDEN.to_owned(),
        // What is no URL may be a password alone, or one with a slip in front of it.
        None if key == "store.url" && ConnectionString::parse(value).is_err() => HIDDEN.to_owned(),
        None if key == "archive.url" && value.contains(['@', '?']) && Url::parse(value).is_err() => HIDDEN.to_owned(),
        _ if value.contains("://") => shown_url(value),
        _ if value.contains('@') && (key == "archive.url" || name.is_some_and(is_address)) => HIDDEN.to_owned(),
        _ => value.to_owned(),
    }
}

/// Whether this is what should stand in a file, where the path of one belongs: PEM, or a key that `ingestd key new` made.
pub(super) fn is_content(value: &str) -> bool {
    value.contains(['\n', '\r']) || scrubbed(value.to_owned()) != value
}

/// The text without keys, which are told by how they begin: PEM, and what `ingestd key new` made.
pub(super) fn scrubbed(text: String) -> String {
    without_keys(without_pem(text))
}

/// How each part of PEM begins, and how its last line does.
const PEM: [&str; 2] = ["-----BEGIN", "-----END"];

/// From the first beginning to the last end; to the text's own where it was cut.
fn without_pem(mut text: String) -> String {
    let Some(from) = text.find(PEM[0]) else { return text };
    let rest = text.rfind(PEM[1]).map(|at| at + PEM[1].len()).filter(|at| *at > from);
    let to = rest.and_then(|at| text[at..].find("-----").map(|dashes| at + dashes + "-----".len()));
    text.replace_range(from..to.unwrap_or(text.len()), HIDDEN);
    text
}

fn without_keys(text: String) -> String {
    let mut parts = text.split(KEY_PREFIX);
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        let is_key = part.len() - rest.len() >= LIKE_A_KEY;
        shown.push_str(KEY_PREFIX);
        shown += if is_key { HIDDEN } else { &part[..part.len() - rest.len()] };
        shown += rest;
    }
    shown
}

/// A whole key has 43 characters behind what it begins with; what was cut would still be too much.
const LIKE_A_KEY: usize = 30;

/// Where user and password may stand in front of a host.
fn is_address(name: &str) -> bool {
    ["url", "uri", "endpoint", "proxy", "servers"].iter().any(|end| name.to_ascii_lowercase().ends_with(end))
}

/// Whether the option of that name holds a secret. Ids, paths and addresses are not secrets.
fn is_secret(name: &str) -> bool {
    const SECRET: [&str; 6] = ["password", "passphrase", "secret", "token", "key", "oauthbearer.config"];
    const HARMLESS: [&str; 7] = ["key_id", "key_enabled", ".location", "_file", ".file", "url", "uri"];
    let name = name.to_ascii_lowercase();
    SECRET.iter().any(|word| name.contains(word)) && !HARMLESS.iter().any(|end| name.ends_with(end))
}

/// Hides the password, and parameters that are secrets. The password ends at the last `@`, because one that was not
/// percent-encoded must be hidden as well.
fn shown_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let rest = match rest.rsplit_once('@') {
        Some((user_info, rest)) => match user_info.split_once(':') {
            Some((user, _)) => format!("{user}:{HIDDEN}@{rest}"),
            None => format!("{user_info}@{rest}"),
        },
        None => rest.to_owned(),
    };
    let Some((address, query)) = rest.split_once('?') else { return format!("{scheme}://{rest}") };
    let parameters: Vec<String> = query
        .split('&')
        .map(|parameter| match parameter.split_once('=') {
            Some((name, _)) if is_secret(name) || name.eq_ignore_ascii_case("authMechanismProperties") => {
                format!("{name}={HIDDEN}")
            }
            _ => parameter.to_owned(),
        })
        .collect();
    format!("{scheme}://{address}?{}", parameters.join("&"))
}

impl Config {
    /// The same with its secrets hidden: what `ingestd config` prints.
    pub fn without_secrets(&self) -> Self {
        let mut config = self.clone();
        config.store.url = shown("store.url", &config.store.url);
        config.archive.url = shown("archive.url", &config.archive.url);
        tls::KEYS.into_iter().zip(tls::paths(&mut config)).for_each(|(key, path)| *path = shown(key, path));
        for (table, options) in
            [(ARCHIVE_OPTIONS, &mut config.archive.options), (KAFKA_PROPERTIES, &mut config.queue.kafka.properties)]
        {
            for (name, value) in options {
                *value = shown(&format!("{table}.{name}"), value);
            }
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_and_what_names_them_is_not() {
        let hidden = |key: &str| shown(key, "x1") == HIDDEN;
        for name in ["sasl.password", "ssl.key.password", "ssl.key.pem", "sasl.oauthbearer.client.secret"] {
            assert!(hidden(&format!("queue.kafka.properties.{name}")), "{name}");
        }
        for name in ["secret_access_key", "aws_session_token", "account_key", "sas_key", "service_account_key"] {
            assert!(hidden(&format!("archive.options.{name}")), "{name}");
        }
        assert!(!hidden("archive.options.access_key_id"));
        assert!(!hidden("queue.kafka.properties.ssl.key.location"));
        assert!(!hidden("event.key_field"), "only the two tables have secrets");
    }

    #[test]
    fn a_key_is_hidden_wherever_it_was_pasted_and_names_of_ours_are_not() {
        let key = format!("{KEY_PREFIX}{}", "aB3_-".repeat(9));
        for (text, shown) in [
            (format!("{key} is unknown; a key has name"), "ingestd_*** is unknown; a key has name"),
            (format!("a \"{key}\" b '{}' c", &key[..40]), "a \"ingestd_***\" b 'ingestd_***' c"),
            (format!("{key}{key}"), "ingestd_***ingestd_***"),
            (format!("x{key}"), "xingestd_***"),
            (
                "ingestd_events_accepted_total, ingestd_, ingestd_ü".to_owned(),
                "ingestd_events_accepted_total, ingestd_, ingestd_ü",
            ),
            (String::new(), ""),
        ] {
            assert_eq!(without_keys(text.clone()), shown, "{text}");
        }
    }

    #[test]
    fn pem_is_hidden_wherever_it_was_pasted() {
        let pem = |end: &str| format!("-----BEGIN PRIVATE KEY-----\nhunter2\n{end}");
        let whole = pem("-----END PRIVATE KEY-----");
        for (text, shown) in [
            (format!("{whole}: is not there"), "***: is not there"),
            (format!("{:?} is unknown", format!("{whole}\n")), "\"***\\n\" is unknown"),
            (format!("a {whole} b {whole} c"), "a *** c"),
            (format!("a {}", pem("")), "a ***"),
            (format!("a {}", pem("-----END PRIV")), "a ***"),
            (format!("-----END x----- {}", pem("")), "-----END x----- ***"),
            ("BEGIN CERTIFICATE ---- -----END".to_owned(), "BEGIN CERTIFICATE ---- -----END"),
        ] {
            assert_eq!(scrubbed(text.clone()), shown, "{text}");
        }
    }

    #[test]
    fn a_store_url_that_is_none_is_not_shown_at_all() {
        for url in ["hunter2", "mongodb:/app:hunter2@db", "mongodb://app:hunter2", "mongodb://app:hun/ter2@db", "//x@y"]
        {
            assert_eq!(shown("store.url", url), HIDDEN, "{url}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_hidden_whatever_it_contains() {
        let url = "mongodb://app:p%40ss@a:1,b:2/db?replicaSet=rs";
        assert_eq!(shown("store.url", url), "mongodb://app:***@a:1,b:2/db?replicaSet=rs");
        let with_options = "mongodb://a:1/db?replicaSet=rs&tlsCertificateKeyFilePassword=pw";
        assert_eq!(shown_url(with_options), "mongodb://a:1/db?replicaSet=rs&tlsCertificateKeyFilePassword=***");
        let proxy = "http://app:p@ss:w/o?rd@proxy:1";
        assert_eq!(shown("archive.options.proxy_url", proxy), "http://app:***@proxy:1");
        assert_eq!(shown("archive.options.proxy_url", "app:hunter2@proxy:1"), HIDDEN);
        assert_eq!(shown("archive.url", "s3:/key:hunter2@bucket"), HIDDEN);
        assert_eq!(shown("store.url", "mongodb://127.0.0.1:27017/?w=1"), "mongodb://127.0.0.1:27017/?w=1");
        assert_eq!(
            shown("archive.options.proxy_url", "http://u:secret@proxy:3128"),
            "http://u:***@proxy:3128",
            "proxies have passwords, too"
        );
    }
}
