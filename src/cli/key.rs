//! `ingestd key`: makes keys for those who send events (`http.auth`), and for operators (`admin.auth`).

use std::process::ExitCode;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::Subcommand;

use super::print;
use crate::{
    config::{Access, KEY_PREFIX, KeyHash, check_name},
    names::exit,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a key: its first line is the key, the others are for the configuration, which has the key's hash alone
    New {
        /// Of whoever sends with it, as it stands in records and metrics
        #[arg(value_parser = name)]
        name: String,
        /// When it ends: an RFC 3339 time, or so long from now (90d)
        #[arg(long, value_name = "WHEN", value_parser = expiry)]
        expires: Option<DateTime<Utc>>,
        /// For the admin listener, in the place of one that sends events: to "read", or to "operate" as well
        #[arg(long, value_name = "ACCESS", num_args = 0..=1, default_missing_value = "operate", value_parser = access)]
        admin: Option<Access>,
    },
}

pub(super) fn key(command: Command) -> ExitCode {
    let Command::New { name, expires, admin } = command;
    let mut bits = [0; 32];
    if rustls::crypto::ring::default_provider().secure_random.fill(&mut bits).is_err() {
        eprintln!("ingestd key: the operating system gives no random numbers; no key was made");
        return ExitCode::from(exit::FAILURE);
    }
    let key = text_of(&bits);
    let printed = print(&format!("{key}\n{}", lines(&name, &key, expires, admin)));
    if printed == ExitCode::SUCCESS {
        let whose = if admin.is_some() { "holder" } else { "sender" };
        eprintln!(
            "The first line is the key: give it to its {whose}, it is shown this once. The others go into the configuration; a \
             reload (SIGHUP, or POST /reload) puts them in force."
        );
    }
    printed
}

fn text_of(bits: &[u8; 32]) -> String {
    format!("{KEY_PREFIX}{}", URL_SAFE_NO_PAD.encode(bits))
}

/// As the configuration has them. (A name has no character that a string of TOML has another way.)
fn lines(name: &str, key: &str, expires: Option<DateTime<Utc>>, admin: Option<Access>) -> String {
    let hash = KeyHash::of(key.as_bytes());
    let table = if admin.is_some() { "admin.auth.keys" } else { "http.auth.keys" };
    let mut lines = format!("[[{table}]]\nname = \"{name}\"\nhash = \"{hash}\"");
    if let Some(access) = admin {
        lines += &format!("\naccess = \"{}\"", access.as_str());
    }
    if let Some(expires) = expires {
        lines += &format!("\nexpires = \"{}\"", expires.to_rfc3339_opts(SecondsFormat::Secs, true));
    }
    lines
}

fn name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned())
}

fn access(text: &str) -> Result<Access, String> {
    let known = Access::ALL.iter().find(|access| access.as_str() == text);
    known.copied().ok_or_else(|| format!("must be one of {}", Access::WORDS.join(", ")))
}

fn expiry(text: &str) -> Result<DateTime<Utc>, String> {
    let now = Utc::now();
    let until = match DateTime::parse_from_rfc3339(text) {
        Ok(time) => Some(time.to_utc()),
        Err(_) => {
            let ahead = humantime::parse_duration(text).map_err(|_| {
                format!("{text:?} is neither an RFC 3339 time such as 2027-01-31T00:00:00Z nor a duration such as 90d")
            })?;
            chrono::TimeDelta::from_std(ahead).ok().and_then(|ahead| now.checked_add_signed(ahead))
        }
    };
    let last = DateTime::parse_from_rfc3339("9999-12-31T23:59:59Z").map(|last| last.to_utc());
    let until = until.filter(|until| last.is_ok_and(|last| *until <= last));
    match until {
        Some(until) if until > now => Ok(until),
        Some(_) => Err(format!("{text:?} is not ahead: a key with it would be refused from the start")),
        None => Err(format!("{text:?} is beyond the year 9999: leave it out for a key without an end")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_all_of_its_bits_and_its_lines_are_those_of_the_configuration() {
        let key = text_of(&[0xff; 32]);
        assert_eq!(key, format!("ingestd_{}8", "_".repeat(42)));
        assert_eq!(URL_SAFE_NO_PAD.decode(&key[KEY_PREFIX.len()..]).unwrap(), [0xff; 32]);
        let hash = KeyHash::of(key.as_bytes());
        assert_eq!(lines("shop", &key, None, None), format!("[[http.auth.keys]]\nname = \"shop\"\nhash = \"{hash}\""));
        let until = expiry("9999-01-31T01:00:00.5+01:00").unwrap();
        assert!(lines("shop", &key, Some(until), None).ends_with("\nexpires = \"9999-01-31T00:00:00Z\""));
        let ops = lines("ops", &key, None, Some(Access::Operate));
        assert_eq!(ops, format!("[[admin.auth.keys]]\nname = \"ops\"\nhash = \"{hash}\"\naccess = \"operate\""));
    }

    #[test]
    fn an_end_is_ahead_and_told_in_one_of_two_ways() {
        let in_days = |days: i64| Utc::now() + chrono::TimeDelta::days(days);
        let until = expiry("90d").unwrap();
        assert!(in_days(89) < until && until <= in_days(90), "{until}");
        for (text, words) in [
            ("", "is neither an RFC 3339 time"),
            ("tomorrow", "is neither an RFC 3339 time"),
            ("2027-01-31", "is neither an RFC 3339 time"),
            ("90", "is neither an RFC 3339 time"),
            ("2020-01-31T00:00:00Z", "is not ahead"),
            ("0s", "is not ahead"),
            ("10000years", "beyond the year 9999"),
            ("100000000000years", "beyond the year 9999"),
        ] {
            let error = expiry(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
