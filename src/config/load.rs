//! Defaults < file < environment < `--set`, merged, completed and checked.

use std::{collections::BTreeMap, path::Path};

use figment::{Figment, providers::Serialized};

use super::{
    Config, ConfigError, ConfigErrors, Sources, default_aggregates,
    validate::{Origins, validate},
};

impl Sources {
    /// Reads and checks the configuration.
    ///
    /// # Errors
    /// Everything that is wrong, not only the first.
    pub fn load(&self) -> Result<Config, ConfigErrors> {
        let mut figment = Figment::from(Serialized::defaults(Config::default()));
        let mut errors = Vec::new();
        let mut origins = BTreeMap::new();
        for layer in self.layers() {
            errors.extend(layer.errors);
            for entry in layer.entries {
                origins.insert(entry.key, entry.origin);
                figment = figment.merge(Serialized::defaults(entry.value));
            }
        }
        let mut config: Config = match figment.extract() {
            Ok(config) => config,
            Err(error) => {
                let key = error.path.join(".");
                let origin = origins.remove(&key).unwrap_or_else(|| "configuration".to_owned());
                errors.push(ConfigError { origin, key, value: None, rule: error.kind.to_string() });
                return Err(ConfigErrors::new(errors));
            }
        };
        if !origins.contains_key("aggregate") {
            config.aggregate = default_aggregates(&config.event);
        }
        allow_http(&mut config);
        for (key, rule) in config.read_files(&self.folder()) {
            let origin = origins.get(key).cloned().unwrap_or_else(|| "configuration".to_owned());
            errors.push(ConfigError { origin, key: key.to_owned(), value: None, rule });
        }
        errors.extend(validate(&config, &Origins { given: origins, otherwise: "default" }, self.backends()));
        if errors.is_empty() { Ok(config) } else { Err(ConfigErrors::new(errors)) }
    }
}

impl Config {
    /// Reads the files that live keys name: schemas of types, and secrets of signatures. Paths are relative to the folder.
    ///
    /// # Errors
    /// What is wrong with them: the key, and a sentence.
    pub fn read_files(&mut self, folder: &Path) -> Vec<(&'static str, String)> {
        let types = self.event.types.read(folder).into_iter().map(|rule| ("event.types", rule));
        let mut faults: Vec<_> = types.collect();
        for source in &mut self.http.source {
            let read = source.signature.as_mut().map_or(Ok(()), |signature| signature.read(folder));
            faults.extend(read.err().map(|rule| ("http.source", format!("{:?}: {rule}", source.path))));
        }
        faults
    }
}

/// An `http://` endpoint says already that HTTP is meant.
fn allow_http(config: &mut Config) {
    let options = &mut config.archive.options;
    let is_endpoint =
        |name: &str| name.ends_with("endpoint") || name.contains("endpoint_url") || name.ends_with("base_url");
    let plain = options.iter().any(|(name, value)| is_endpoint(name) && value.starts_with("http://"));
    let said = options.keys().any(|name| name.ends_with("allow_http"));
    if plain && !said {
        options.insert("allow_http".to_owned(), "true".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::config::{ByteSize, keys::flatten};

    fn loaded(file: &str, environment: &[(&str, &str)], settings: &[&str]) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        fs::write(&path, file).unwrap();
        let result = Sources::of(Some(&path), environment, settings).load();
        result.map_err(|errors| errors.to_string().replace(&format!("{}/", folder.path().display()), ""))
    }

    #[test]
    fn later_sources_win_key_by_key() {
        let file = "[http]\nmax_body = \"8MiB\"\nmax_events = 1\nlisten = \"127.0.0.1:1\"";
        let environment = [("INGESTD__HTTP__MAX_EVENTS", "2"), ("INGESTD__HTTP__LISTEN", "127.0.0.1:2")];
        let config = loaded(file, &environment, &["http.listen=127.0.0.1:3"]).unwrap();
        assert_eq!(config.http.max_body, ByteSize(8 << 20));
        assert_eq!((config.http.max_events, &*config.http.listen), (2, "127.0.0.1:3"));
        assert_eq!(config.http.max_event, ByteSize(960 << 10));
    }

    #[test]
    fn the_type_of_the_key_decides_how_text_is_read() {
        let settings = ["queue.topic=123", "store.events=true", "disk.max_used_percent=90", "http.max_body=2000000"];
        let config = loaded("", &[("INGESTD__ROLES", "ingest, worker")], &settings).unwrap();
        assert_eq!(config.queue.topic, "123");
        assert_eq!(config.roles, ["ingest", "worker"]);
        assert!(config.store.events && config.disk.max_used_percent > 89.0);
        assert_eq!(config.http.max_body, ByteSize(2_000_000));
        let aggregate = ["aggregate=[{ name = \"logins\", window = \"5m\", group_by = \"user,country\" }]"];
        let config = loaded("", &[], &aggregate).unwrap();
        assert_eq!(config.aggregate[0].group_by, ["user", "country"]);
    }

    #[test]
    fn below_the_two_tables_names_keep_their_dots_and_scalars_are_strings() {
        let file = "[queue.kafka.properties]\nsasl.password = \"0123\"\nsocket.keepalive.enable = true\n\
                    \"session.timeout.ms\" = 20000\n[archive]\nurl = \"s3://b/x\"\n[archive.options]\nallow_http = true";
        let environment = [
            ("INGESTD__QUEUE__KAFKA__PROPERTIES__SASL_USERNAME", "0"),
            ("INGESTD__ARCHIVE__OPTIONS__ACCESS_KEY_ID", "0"),
            ("INGESTD__ARCHIVE__OPTIONS__SECRET_ACCESS_KEY", "=a="),
        ];
        let config = loaded(file, &environment, &["queue.kafka.properties.socket.timeout.ms=9000"]).unwrap();
        let expected = [
            ("sasl.password", "0123"),
            ("sasl.username", "0"),
            ("session.timeout.ms", "20000"),
            ("socket.keepalive.enable", "true"),
            ("socket.timeout.ms", "9000"),
        ];
        let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        assert_eq!(config.queue.kafka.properties, expected.into_iter().map(pair).collect());
        let expected = [("access_key_id", "0"), ("allow_http", "true"), ("secret_access_key", "=a=")];
        assert_eq!(config.archive.options, expected.into_iter().map(pair).collect());
    }

    #[test]
    fn an_error_names_source_key_value_and_rule_and_all_are_reported() {
        let file = "[http]\nlisen = \"x\"\nmax_events = 0\n[queue]\ntopic = 7\n[batch]\nmax_wait = 5";
        let environment = [("INGESTD__DISK__MAX_USED_PERCENT", "170"), ("INGESTD__HTTPS__PORT", "1")];
        let errors = loaded(file, &environment, &["spool.max_age=soon", "http.auth=x", "http=x"]).unwrap_err();
        for line in [
            "config.toml: http.lisen: unknown key; did you mean http.listen?",
            "config.toml: http.max_events = 0: must be an integer from 1 to 10000000",
            "config.toml: queue.topic = 7: must be a string (in quotation marks)",
            "config.toml: batch.max_wait = 5: must be a duration with its unit, such as \"200ms\", \"1m\" or \"30d\"",
            "environment variable INGESTD__DISK__MAX_USED_PERCENT: disk.max_used_percent = \"170\": must be a number above 0, at most 100",
            "--set: spool.max_age = \"soon\": must be a duration with its unit, such as \"200ms\", \"1m\" or \"30d\"",
            "--set: http: is a section: set a key in it",
        ] {
            assert!(errors.lines().any(|error| error == line), "{line} is not in:\n{errors}");
        }
        assert!(errors.contains("INGESTD__HTTPS__PORT: https.port: unknown key"), "{errors}");
        assert!(errors.contains("--set: http.auth: is a section"), "{errors}");
        assert_eq!(errors.lines().count(), 9, "{errors}");
    }

    #[test]
    fn a_rule_between_keys_blames_the_one_that_was_given() {
        let error = loaded("", &[], &["upload.max_in_flight=1MiB"]).unwrap_err();
        assert_eq!(
            error,
            "--set: upload.max_in_flight = \"1MiB\": must be at least spool.max_bytes (16MiB): an upload holds its segment in memory"
        );
    }

    #[test]
    fn a_file_that_is_no_toml_is_refused_with_the_line_but_not_its_content() {
        let error = loaded("[store]\nurl = \"mongodb://a:hunter2@b\n", &[], &[]).unwrap_err();
        assert!(error.starts_with("config.toml: line 2: is not TOML") && !error.contains("hunter2"), "{error}");
        let missing = Sources::of(Some(Path::new("no/such.toml")), &[], &[]).load().unwrap_err();
        assert!(missing.to_string().starts_with("no/such.toml: the configuration file cannot be read"), "{missing}");
    }

    #[test]
    fn secrets_come_from_files_and_are_not_printed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, "mongodb://app:hunter2@db/?w=1\n").unwrap();
        let (url, kafka) = (format!("store.url_file={}", path.display()), format!("{}", path.display()));
        let sources = Sources::of(
            None,
            &[("INGESTD__QUEUE__KAFKA__PROPERTIES__SASL_PASSWORD_FILE", &kafka)],
            &[&url, "store.kind=embedded"],
        );
        let config = sources.load().unwrap();
        assert_eq!(config.store.url, "mongodb://app:hunter2@db/?w=1");
        assert_eq!(config.queue.kafka.properties["sasl.password"], config.store.url);
        assert_eq!((sources.file(), sources.files()), (None, vec![path.clone(), path]));
        assert!(!toml::to_string(&config.without_secrets()).unwrap().contains("hunter2"));
        let error = Sources::of(None, &[], &[&url, "store.kind=mongodb"]).load().unwrap_err().to_string();
        assert!(error.contains("w=1") && !error.contains("hunter2"), "{error}");
        fs::write(folder.path().join("secret"), "hunter2\n").unwrap();
        let error = Sources::of(None, &[], &[&url, "store.kind=mongodb"]).load().unwrap_err().to_string();
        assert!(error.contains("store.url = \"***\"") && !error.contains("hunter2"), "{error}");
        let misplaced = "store.url_file=mongodb://app:hunter2@db";
        let error = Sources::of(None, &[], &[misplaced]).load().unwrap_err().to_string();
        assert!(error.contains("store.url_file") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn settings_whose_own_names_end_in_file_are_no_secrets() {
        let settings = ["archive.url=s3://b", "archive.options.aws_web_identity_token_file=/no/such/file"];
        let config = loaded("", &[], &settings).unwrap();
        assert_eq!(config.archive.options["aws_web_identity_token_file"], "/no/such/file");
        let private_key = "INGESTD__QUEUE__KAFKA__PROPERTIES__SASL_OAUTHBEARER_ASSERTION_PRIVATE_KEY_FILE";
        // This build of librdkafka knows it and has no support for it.
        let error = loaded("", &[(private_key, "/no/such/file")], &[]).unwrap_err();
        assert!(error.contains("sasl.oauthbearer.assertion.private.key.file = "), "{error}");
        let twice = "[store]\nurl = \"x\"\nurl_file = \"/dev/null\"";
        assert!(loaded(twice, &[], &[]).unwrap_err().contains("store.url: is given twice"));
    }

    #[test]
    fn the_default_aggregate_follows_renamed_fields() {
        let config = loaded("[event]\nclient_field = \"tenant\"", &[], &[]).unwrap();
        assert_eq!(config.aggregate[0].group_by, ["tenant", "type"]);
        assert!(loaded("aggregate = []", &[], &[]).unwrap().aggregate.is_empty());
    }

    #[test]
    fn a_plain_endpoint_allows_http() {
        let with = |settings: &[&str]| loaded("", &[], settings).unwrap().archive.options;
        assert_eq!(with(&["archive.url=s3://b", "archive.options.endpoint=http://a:1"])["allow_http"], "true");
        assert!(!with(&["archive.url=s3://b", "archive.options.endpoint=https://a"]).contains_key("allow_http"));
    }

    #[test]
    fn the_printed_configuration_loads_again() {
        let config = loaded("", &[], &["queue.kafka.properties.client.rack=a", "http.max_body=1234567"]).unwrap();
        assert_eq!(loaded(&toml::to_string(&config).unwrap(), &[], &[]).unwrap(), config);
    }

    const DOCUMENTED: &str = include_str!("../../config.toml");

    /// `config.toml` with the defaults that it documents in force: `#key` and `#[[` are those, `# ` is prose.
    fn uncommented() -> String {
        let line = |line: &str| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => rest.to_owned(),
            _ => line.to_owned(),
        };
        DOCUMENTED.lines().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn config_toml_documents_the_defaults() {
        assert_eq!(loaded(DOCUMENTED, &[], &[]).unwrap(), Config::default());
        assert_eq!(loaded(&uncommented(), &[], &[]).unwrap(), Config::default());
    }

    #[test]
    fn config_toml_documents_every_key() {
        let table: toml::Table = uncommented().parse().unwrap();
        for key in flatten(&Config::default()).into_keys() {
            let mut parts = key.split('.');
            let first = parts.next().and_then(|part| table.get(part));
            let value = parts.fold(first, |value, part| value?.get(part));
            // Lists of tables that are empty by default stand there as an example.
            let is_shown = value.is_some() || DOCUMENTED.contains(&format!("\n# [[{key}]]"));
            assert!(is_shown, "{key} does not stand in config.toml");
        }
    }
}
