//! `[http.tls]` and `[admin.tls]`: which files a listener's TLS is made of. What must be in them is `crate::tls`'s to say.

use std::path::Path;

use super::{Config, secrets::is_content};

/// All keys of both.
pub(super) const KEYS: [&str; 6] =
    ["http.tls.cert", "http.tls.key", "http.tls.client_ca", "admin.tls.cert", "admin.tls.key", "admin.tls.client_ca"];

/// The files of one listener that speaks TLS.
#[derive(Debug, Clone, Copy)]
pub struct TlsFiles<'c> {
    /// The listener: `http` or `admin`.
    pub section: &'static str,
    pub cert: &'c Path,
    pub key: &'c Path,
    /// With it clients have to show a certificate.
    pub client_ca: Option<&'c Path>,
}

/// A section as it is written: its name, certificate, key, and CA of clients.
type Written<'c> = (&'static str, [&'c str; 3]);

fn written(config: &Config) -> [Written<'_>; 2] {
    let (http, admin) = (&config.http.tls, &config.admin.tls);
    [("http", [&http.cert, &http.key, &http.client_ca]), ("admin", [&admin.cert, &admin.key, &admin.client_ca])]
}

/// What [`KEYS`] are set to.
pub(super) fn paths(config: &mut Config) -> [&mut String; 6] {
    let (http, admin) = (&mut config.http.tls, &mut config.admin.tls);
    [&mut http.cert, &mut http.key, &mut http.client_ca, &mut admin.cert, &mut admin.key, &mut admin.client_ca]
}

fn files((section, [cert, key, client_ca]): Written<'_>) -> Option<TlsFiles<'_>> {
    let client_ca = Some(Path::new(client_ca)).filter(|path| !path.as_os_str().is_empty());
    (!cert.is_empty()).then_some(TlsFiles { section, cert: Path::new(cert), key: Path::new(key), client_ca })
}

impl Config {
    /// Those of the ingest listener and of the admin listener, in this order, where they speak TLS.
    pub fn tls(&self) -> [Option<TlsFiles<'_>>; 2] {
        written(self).map(files)
    }

    /// What a URL of the ingest listener, and one of the admin listener, begin with.
    pub fn schemes(&self) -> [&'static str; 2] {
        self.tls().map(|files| if files.is_some() { "https" } else { "http" })
    }
}

/// Whether the listener speaks TLS that this key is about.
pub(super) fn is_on(config: &Config, key: &str) -> bool {
    let mut sections = written(config).into_iter();
    sections.any(|(section, [cert, ..])| key.starts_with(section) && !cert.is_empty())
}

/// A certificate and its key go together, and all are paths.
pub(super) fn broken_rules(config: &Config) -> Vec<(&'static str, &'static str)> {
    let mut broken = Vec::new();
    for ((_, [cert, key, client_ca]), keys) in written(config).into_iter().zip(KEYS.as_chunks::<3>().0) {
        let [of_cert, of_key, of_ca] = *keys;
        let pasted = keys.iter().zip([cert, key, client_ca]).filter(|(_, value)| is_content(value));
        broken.extend(
            pasted.map(|(key, _)| (*key, "is the content of a file, or a key: give the path of a file of PEM")),
        );
        match (cert.is_empty(), key.is_empty()) {
            (false, true) => {
                broken.push((of_key, "must be set beside cert: the file of the certificate's private key (PEM)"))
            }
            (true, false) => {
                broken.push((of_cert, "must be set beside key: the file of the certificate with its chain (PEM)"))
            }
            (true, true) if !client_ca.is_empty() => {
                broken.push((of_ca, "needs TLS: set cert and key beside it, or no client is asked for a certificate"));
            }
            _ => {}
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConfigError, ConfigErrors, Sources};

    #[test]
    fn what_was_pasted_where_a_path_belongs_is_refused_and_not_shown() {
        let pem = "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n";
        let of_ours = format!("ingestd_{}", "hunter2".repeat(7));
        for (index, key) in KEYS.into_iter().enumerate() {
            for value in [pem, &pem.replace('\n', ""), "MIGH\nhunter2", &of_ours] {
                let mut config = Config::default();
                let values = paths(&mut config);
                for path in [0, 1].map(|beside| index / 3 * 3 + beside) {
                    *values[path] = "path".to_owned();
                }
                *values[index] = value.to_owned();
                let rules = broken_rules(&config);
                assert_eq!(
                    rules,
                    [(key, "is the content of a file, or a key: give the path of a file of PEM")],
                    "{value}"
                );
                assert!(!toml::to_string(&config.without_secrets()).unwrap().contains("hunter2"), "{key} {value}");
                let setting = format!("{key}={value}");
                let error = Sources::of(None, &[], &[&setting]).load().unwrap_err().to_string();
                assert!(error.contains("give the path") && !error.contains("hunter2"), "{error}");
                // As whoever reads the files says it.
                let origin = value.to_owned();
                let error = ConfigError { origin, key: key.to_owned(), value: None, rule: String::new() };
                let error = ConfigErrors::new(vec![error]).to_string();
                assert!(value.starts_with("MIGH") || !error.contains("hunter2"), "{error}");
            }
        }
    }

    #[test]
    fn certificate_and_key_are_set_together_and_a_ca_not_without_them() {
        let mut config = Config::default();
        assert!(broken_rules(&config).is_empty() && config.tls().iter().all(Option::is_none));
        config.http.tls.cert = "c".to_owned();
        config.admin.tls.key = "k".to_owned();
        let keys = |config: &Config| broken_rules(config).into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(keys(&config), ["http.tls.key", "admin.tls.cert"]);
        config.http.tls.key = "k".to_owned();
        config.admin.tls.key.clear();
        config.admin.tls.client_ca = "a".to_owned();
        assert_eq!(keys(&config), ["admin.tls.client_ca"]);
        assert_eq!(config.schemes(), ["https", "http"]);
        let [http, admin] = config.tls();
        assert!(admin.is_none() && http.is_some_and(|http| http.client_ca.is_none() && http.key == Path::new("k")));
    }
}
