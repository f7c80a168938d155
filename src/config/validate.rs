//! The rules between keys, and those that a value's kind does not say. Everything that is broken is reported.

use std::{collections::BTreeMap, fmt::Display, net::SocketAddr};

use serde_json::Value;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::{
    Config, ConfigError, QueueKind, StoreKind, admin_key, aggregate, cors, event_type, http_key, http_source,
    keys::flatten, roles, secrets, tls,
};

/// The rules of one backend for the sections that are its own.
pub type Rules = fn(&mut Check<'_>);

/// Where each key that is not at its default was given, and what stands for it elsewhere.
pub(super) struct Origins {
    pub given: BTreeMap<String, String>,
    pub otherwise: &'static str,
}

/// Everything that is wrong, by the rules here and those of the backends.
pub(super) fn validate(config: &Config, origins: &Origins, backends: &[Rules]) -> Vec<ConfigError> {
    let mut check = Check { config, origins, flat: flatten(config), errors: Vec::new() };
    for rule in roles::broken_rules(config) {
        check.fault("roles", rule);
    }
    if config.data.dir.as_os_str().is_empty() {
        check.fault("data.dir", "must not be empty");
    }
    check.http();
    check.event();
    check.sizes();
    check.disk();
    if let Err(rule) = log_filter(&config.logging.level) {
        check.fault("logging.level", rule);
    }
    for rules in backends {
        rules(&mut check);
    }
    check.aggregates();
    check.errors
}

/// A configuration that is being checked, and what was found.
pub struct Check<'a> {
    pub config: &'a Config,
    origins: &'a Origins,
    flat: BTreeMap<String, Value>,
    pub errors: Vec<ConfigError>,
}

impl Check<'_> {
    /// The value of this key is at fault, for this rule.
    pub fn fault(&mut self, key: &str, rule: impl Into<String>) {
        let value = self.flat.get(key).map(|value| match value {
            Value::String(text) => format!("{:?}", secrets::shown(key, text)),
            value => value.to_string(),
        });
        let origin = self.origins.given.get(key).map_or(self.origins.otherwise, String::as_str).to_owned();
        self.errors.push(ConfigError { origin, key: key.to_owned(), value, rule: rule.into() });
    }

    /// An unknown name may be that of a secret, mistyped: its value is not shown.
    pub fn unknown(&mut self, key: &str, rule: impl Into<String>) {
        self.fault(key, rule);
        if let Some(error) = self.errors.last_mut() {
            error.value = None;
        }
    }

    /// The first must not be above the second; whichever of the two was given is at fault.
    fn at_most<T: PartialOrd + Display>(&mut self, small: (&str, T), large: (&str, T), why: &str) {
        if small.1 <= large.1 {
            return;
        }
        if self.origins.given.contains_key(large.0) && !self.origins.given.contains_key(small.0) {
            self.fault(large.0, format!("must be at least {} ({}): {why}", small.0, small.1));
        } else {
            self.fault(small.0, format!("must be at most {} ({}): {why}", large.0, large.1));
        }
    }

    fn http(&mut self) {
        let (http, admin) = (&self.config.http.listen, &self.config.admin.listen);
        for (key, listen) in [("http.listen", http), ("admin.listen", admin)] {
            if !is_address(listen) {
                self.fault(key, "must be HOST:PORT, such as 127.0.0.1:8080, [::1]:8080 or, for all, 0.0.0.0:8080");
            }
        }
        self.at_most(
            ("http.max_body", self.config.http.max_body),
            ("http.max_in_flight", self.config.http.max_in_flight),
            "a larger request would be told for ever to come later",
        );
        if http == admin && !http.ends_with(":0") {
            self.fault("admin.listen", "must differ from http.listen: the public side and the operators' are apart");
        }
        for origin in &self.config.http.cors.origins {
            if let Err(rule) = cors::check_origin(origin) {
                self.fault("http.cors.origins", format!("{origin:?} {rule}"));
            }
        }
        for (key, rule) in tls::broken_rules(self.config) {
            self.fault(key, rule);
        }
        if self.config.http.cors.max_age.subsec_nanos() != 0 {
            self.fault("http.cors.max_age", "must be whole seconds: browsers are told a number of them");
        }
        for rule in self.config.http.trusted_proxies.broken_rules() {
            self.unknown("http.trusted_proxies", rule);
        }
        for rule in http_source::broken_rules(&self.config.http.source) {
            // The value is a whole list, which says no more than the path in the rule.
            self.unknown("http.source", rule);
        }
        for rule in http_key::broken_rules(&self.config.http.auth.keys) {
            self.unknown("http.auth.keys", rule);
        }
        for rule in admin_key::broken_rules(&self.config.admin.auth.keys) {
            self.unknown("admin.auth.keys", rule);
        }
    }

    fn sizes(&mut self) {
        let Config { spool, upload, .. } = self.config;
        self.at_most(
            ("spool.max_bytes", spool.max_bytes),
            ("upload.max_in_flight", upload.max_in_flight),
            "an upload holds its segment in memory",
        );
        let (backoff, longest) =
            (humantime::format_duration(upload.backoff), humantime::format_duration(upload.max_backoff));
        if upload.backoff > upload.max_backoff {
            self.fault("upload.max_backoff", format!("{longest} is below upload.backoff ({backoff})"));
        }
    }

    fn disk(&mut self) {
        let disk = &self.config.disk;
        let (max, resume) = ("disk.max_used_percent", "disk.resume_percent");
        if disk.resume_percent >= disk.max_used_percent {
            if self.origins.given.contains_key(max) && !self.origins.given.contains_key(resume) {
                self.fault(max, format!("must be above {resume} ({}): set that lower, too", disk.resume_percent));
            } else {
                self.fault(resume, format!("must be below {max} ({})", disk.max_used_percent));
            }
        }
    }

    fn event(&mut self) {
        let event = &self.config.event;
        let mut seen = BTreeMap::new();
        for (key, name) in [
            ("event.type_field", &event.type_field),
            ("event.id_field", &event.id_field),
            ("event.time_field", &event.time_field),
            ("event.client_field", &event.client_field),
        ] {
            if let Err(rule) = field_name(name) {
                self.fault(key, rule);
            } else if let Some(other) = seen.insert(name, key) {
                self.fault(key, format!("is the same field as {other}"));
            }
        }
        if let Err(rule) = field_name(event.key_field()) {
            self.fault("event.key_field", rule);
        }
        for (key, rule) in event_type::broken_rules(&event.types, event.unknown_type) {
            // The value is a whole list, which says no more than the name in the rule.
            if key == "event.types" { self.unknown(key, rule) } else { self.fault(key, rule) }
        }
    }

    fn aggregates(&mut self) {
        for rule in aggregate::broken_rules(&self.config.aggregate, field_name) {
            // The value is a whole list, which says no more than the name in the rule.
            self.unknown("aggregate", rule);
        }
    }

    pub fn is_kafka(&self) -> bool {
        self.config.queue.kind == QueueKind::Kafka
    }

    pub fn is_mongodb(&self) -> bool {
        self.config.store.kind == StoreKind::Mongodb
    }
}

/// `HOST:PORT`; port 0 lets the system choose.
pub fn is_address(text: &str) -> bool {
    if text.parse::<SocketAddr>().is_ok() {
        return true;
    }
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let named = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.' || c == '_';
    // What looks like an IPv4 address is one, and was not parsed.
    let is_name = host.chars().all(named) && host.chars().any(|c| c.is_ascii_alphabetic());
    is_name && port.parse::<u16>().is_ok()
}

/// A field at the top of an event, which is a field of the store's documents as well.
fn field_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("must not be empty".to_owned());
    }
    if name.len() > 128 || name.chars().any(char::is_control) {
        return Err("must be at most 128 bytes without control characters".to_owned());
    }
    if name.contains('.') || name.starts_with('$') {
        return Err("must name a field at the top of an event, without dots and no $ in front".to_owned());
    }
    Ok(())
}

/// `EnvFilter` takes a mistyped level for a target.
fn log_filter(text: &str) -> Result<(), String> {
    const RULE: &str =
        "must be a level (off, error, warn, info, debug, trace), also by target: info,ingestd::archive=debug";
    let parts = || text.split(',').map(str::trim);
    let is_level = |part: &str| part.contains(['=', '[']) || part.parse::<LevelFilter>().is_ok();
    if parts().all(|part| !part.is_empty() && is_level(part)) && EnvFilter::try_new(text).is_ok() {
        return Ok(());
    }
    Err(RULE.to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The errors of a configuration that is the default but for what `change` does.
    pub(crate) fn errors_by(backends: &[Rules], change: impl FnOnce(&mut Config)) -> Vec<String> {
        let mut config = Config::default();
        change(&mut config);
        let origins = Origins { given: BTreeMap::new(), otherwise: "test" };
        validate(&config, &origins, backends).iter().map(ToString::to_string).collect()
    }

    fn errors(change: impl FnOnce(&mut Config)) -> Vec<String> {
        errors_by(&[], change)
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(errors(|_| ()), [""; 0]);
    }

    #[test]
    fn addresses_are_host_and_port() {
        for good in ["127.0.0.1:8080", "[::]:80", "localhost:0", "ingest-1.example.com:443"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["", ":8080", "127.0.0.1", "127.0.0.1:99999", "::1:80", "256.0.0.1:80", "http://a:80", "a b:1"] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn a_mistyped_level_is_no_target() {
        for good in ["info", "INFO,ingestd::archive=debug", "off", "warn,ingestd[{topic=events}]=trace"] {
            assert_eq!(log_filter(good), Ok(()), "{good}");
        }
        for bad in ["", "inof", "info,", "info,ingestd=debgu"] {
            assert!(log_filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_largest_request_fits_into_what_is_handled_at_once() {
        let errors = errors(|config| config.http.max_in_flight = crate::config::ByteSize(1 << 20));
        assert!(errors[0].contains("http.max_body") && errors[0].contains("http.max_in_flight"), "{errors:?}");
    }

    #[test]
    fn each_entry_that_is_no_origin_is_named() {
        let errors = errors(|config| {
            config.http.cors.origins =
                ["https://a.example", "https://b.example/", "*.example"].map(str::to_owned).into();
            config.http.cors.max_age = std::time::Duration::from_millis(1500);
        });
        assert_eq!(errors.len(), 3, "{errors:?}");
        assert!(errors[0].contains("http.cors.origins") && errors[0].contains("\"https://b.example/\""), "{errors:?}");
        assert!(errors[1].contains("\"*.example\"") && errors[2].contains("whole seconds"), "{errors:?}");
    }

    #[test]
    fn disk_thresholds_leave_a_gap() {
        let errors = errors(|config| config.disk.resume_percent = 70.0);
        assert!(
            errors[0].contains("disk.resume_percent = 70.0: must be below disk.max_used_percent (70)"),
            "{errors:?}"
        );
    }

    #[test]
    fn aggregates_have_names_of_their_own_and_fields_that_a_store_can_hold() {
        let errors = errors(|config| {
            let first = config.aggregate[0].clone();
            config.aggregate.push(first);
            config.aggregate[1].group_by = vec!["a".into(), "a".into(), "b.c".into(), String::new()];
            config.aggregate[1].window = std::time::Duration::from_millis(1500);
        });
        let found = |rule: &str| errors.iter().filter(|error| error.contains(rule)).count();
        assert_eq!((found("used twice"), found("\"a\" twice"), found("whole seconds")), (1, 1, 1), "{errors:?}");
        assert_eq!((found("without dots"), found("must not be empty")), (1, 1), "{errors:?}");
    }
}
