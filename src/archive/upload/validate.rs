//! The archive: where it is, and options that its store knows.

use std::collections::BTreeMap;

use url::Url;

use super::{
    build, prefixes,
    settings::{Given, Provider, Settings},
};
use crate::config::{ARCHIVE_OPTIONS, Check, is_archive_option, nearest};

/// For "did you mean" only: what people set.
const COMMON: &[&str] = &[
    "access_key_id",
    "account_key",
    "account_name",
    "allow_http",
    "allow_invalid_certificates",
    "application_credentials",
    "base_url",
    "bearer_token",
    "checksum_algorithm",
    "client_id",
    "client_secret",
    "conditional_put",
    "connect_timeout",
    "endpoint",
    "proxy_url",
    "region",
    "sas_token",
    "secret_access_key",
    "service_account",
    "service_account_key",
    "session_token",
    "skip_signature",
    "tenant_id",
    "timeout",
    "virtual_hosted_style_request",
];

/// The rules of `[archive]`.
pub fn validate(check: &mut Check<'_>) {
    check.archive();
}

impl Check<'_> {
    fn archive(&mut self) {
        let provider = match place(&self.config.archive.url) {
            Ok(provider) => provider,
            Err(rule) => return self.fault("archive.url", rule),
        };
        let mut given: BTreeMap<String, &str> = BTreeMap::new();
        for (name, value) in &self.config.archive.options {
            let key = format!("{ARCHIVE_OPTIONS}.{name}");
            // Without a remote store they say nothing, but a process may turn off the archive of a shared file.
            let canonical = match provider {
                Some(provider) => provider.canonical(name),
                None => is_archive_option(name).then(|| name.clone()),
            };
            let Some(canonical) = canonical else {
                let known = |near: &&str| provider.is_none_or(|provider| provider.canonical(near).is_some());
                let hint = match (provider, nearest(name, COMMON.iter().copied().filter(known))) {
                    (Some(Provider::Gcs), _) if name.ends_with("endpoint") => "; here it is called base_url".to_owned(),
                    (_, Some(near)) => format!("; did you mean {near}?"),
                    (_, None) => String::new(),
                };
                self.unknown(&key, format!("unknown option of this kind of store{hint}"));
                continue;
            };
            // S3's client knows two, of which one wins.
            let means = if canonical == "aws_endpoint_url_s3" { "aws_endpoint".to_owned() } else { canonical.clone() };
            if let Some(other) = given.insert(means, name) {
                self.fault(&key, format!("is the same option as {ARCHIVE_OPTIONS}.{other}: keep one"));
            }
            if let Err(rule) = option(&canonical, value) {
                self.fault(&key, rule);
            }
        }
        self.settings();
    }

    /// What the store's client makes of the settings in force, those of the environment among them: a start would stumble
    /// over the same.
    fn settings(&mut self) {
        let archive = &self.config.archive;
        let Some(settings) = Settings::of(archive).filter(|_| self.config.roles().archive()) else { return };
        let faults = settings.faults();
        let is_sound = faults.is_empty() && !self.errors.iter().any(|error| error.key.starts_with("archive."));
        for (given, rule) in faults {
            self.setting(given, rule);
        }
        if !is_sound {
            return;
        }
        if let Err(unbuildable) = build(&settings, &archive.url, self.config.upload.timeout) {
            match settings.all.values().find(|given| unbuildable.by.as_ref() == Some(&given.by)) {
                Some(given) => self.setting(given, unbuildable.why),
                None => self.fault("archive.url", unbuildable.why),
            }
        }
    }

    fn setting(&mut self, given: &Given, rule: String) {
        self.fault(&given.by, rule);
        if let Some(error) = self.errors.last_mut().filter(|_| given.from_environment) {
            // Which variables are secrets is not known.
            error.origin = "environment".to_owned();
        }
    }
}

/// The store's kind; none for a folder, and where the archive is off.
fn place(text: &str) -> Result<Option<Provider>, String> {
    const RULE: &str = "must be file: (below data.dir), file:///absolute/path, s3://bucket/prefix, gs://bucket/prefix, \
                        az://container/prefix, or none";
    if text == "none" || text == "file:" {
        return Ok(None);
    }
    let url = Url::parse(text).map_err(|_| RULE.to_owned())?;
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        return Err("must be without user, query and fragment: those are archive.options".to_owned());
    }
    if url.port().is_some() {
        return Err("must be without port: where the store is, archive.options says".to_owned());
    }
    let has_host = url.host_str().is_some_and(|host| !host.is_empty());
    match Provider::of(text) {
        Some(provider) if has_host => {
            prefixes(text).map_err(|error| error.to_string())?;
            Ok(Some(provider))
        }
        None if text.starts_with("file:///") && !text.starts_with("file:////") && url.path() != "/" => Ok(None),
        _ => Err(RULE.to_owned()),
    }
}

fn option(canonical: &str, value: &str) -> Result<(), String> {
    let name =
        ["aws_", "google_", "azure_"].iter().find_map(|cloud| canonical.strip_prefix(cloud)).unwrap_or(canonical);
    match name {
        _ if value.is_empty() => Ok(()),
        "conditional_put" if value.trim() != "etag" => {
            Err("must be etag: objects are written once, which only conditional PUTs guarantee".to_owned())
        }
        "bucket" | "bucket_name" | "container_name" => Err("must not be set: archive.url names it".to_owned()),
        "disable_bulk_delete" | "copy_if_not_exists" => Err("has no effect: nothing is deleted or copied".to_owned()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::validate;
    use crate::config::errors_by;

    fn with(url: &str, options: &[(&str, &str)]) -> Vec<String> {
        errors_by(&[validate], |config| {
            config.archive.url = url.to_owned();
            config.archive.options =
                options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        })
    }

    #[test]
    fn the_place_is_a_folder_or_a_bucket() {
        for good in ["none", "file:", "file:///srv/archive", "s3://bucket", "s3://b/raw/v1", "gs://b/x"] {
            assert_eq!(with(good, &[]), [""; 0], "{good}");
        }
        assert_eq!(with("az://c/x", &[("account_name", "a")]), [""; 0]);
        assert!(with("az://c/x", &[])[0].contains("needs archive.options.account_name"));
        assert!(with("s3://b", &[("secret_access_key", "x")])[0].contains("needs archive.options.access_key_id"));
        for bad in [
            "",
            "File",
            "file:archive",
            "file://archive",
            "file:///",
            "file:////srv",
            "s3:",
            "s3://",
            "S3://bucket",
            "ftp://x",
            "https://s3/b",
        ] {
            assert_eq!(with(bad, &[]).len(), 1, "{bad}");
        }
        assert!(with("s3://key:hunter2@bucket", &[])[0].contains("archive.options"));
        assert!(!with("s3://key:hunter2@bucket", &[])[0].contains("hunter2"));
    }

    #[test]
    fn options_are_those_of_the_store_that_the_url_names() {
        assert_eq!(with("s3://b", &[("endpoint", "https://x"), ("timeout", "5s"), ("aws_region", "x")]), [""; 0]);
        assert!(with("s3://b", &[("acess_key_id", "x")])[0].contains("did you mean access_key_id?"));
        assert!(!with("s3://b", &[("passwrd", "hunter2")])[0].contains("hunter2"));
        assert!(with("gs://b", &[("access_key_id", "x")])[0].contains("unknown option"));
        assert!(with("file:", &[("no_such_option", "x")])[0].contains("unknown option"));
        assert!(with("s3://b", &[("region", "x"), ("aws_region", "y")])[0].contains("same option"));
    }

    #[test]
    fn a_store_that_overwrites_is_refused() {
        assert!(with("s3://b", &[("conditional_put", "disabled")])[0].contains("must be etag"));
        assert!(with("s3://b", &[("aws_conditional_put", "disabled")])[0].contains("must be etag"));
        assert_eq!(with("s3://b", &[("conditional_put", "etag")]), [""; 0]);
    }
}
