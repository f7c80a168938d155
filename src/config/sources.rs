//! Where a configuration comes from: file, environment, `--set`. Each source is read into entries, key by key.

use std::{
    env,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use figment::{
    util::nest,
    value::{Dict, Value},
};
use object_store::{aws::AmazonS3ConfigKey, azure::AzureConfigKey, gcp::GoogleConfigKey};
use rdkafka::{config::ClientConfig, error::KafkaError, types::RDKafkaConfRes};
use toml::Value as Toml;

use super::{
    ConfigError, EventTypes, HttpSource, event_type,
    keys::{self, ARCHIVE_OPTIONS, KAFKA_PROPERTIES, Kind, Meaning, below},
    read, secrets, tls,
    validate::Rules,
};

/// A key and its value from the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The flag, as errors name it.
    pub flag: &'static str,
    pub key: String,
    pub value: String,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE, such as http.listen=127.0.0.1:8080")?;
        Ok(Self { flag: "--set", key: key.to_owned(), value: value.to_owned() })
    }
}

/// Where the configuration comes from, kept for reloads: the environment is that of the start.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    file: Option<PathBuf>,
    environment: Vec<(String, OsString)>,
    settings: Vec<Setting>,
    backends: &'static [Rules],
}

impl Sources {
    const DEFAULT_FILE: &str = "config.toml";
    const PREFIX: &str = "INGESTD__";

    /// The given file, which must exist; else `./config.toml` if it is there now. From then on it must stay: a reload
    /// that meets the moment in which an editor replaces it must not fall back to the defaults.
    pub fn new(file: Option<PathBuf>, settings: Vec<Setting>, backends: &'static [Rules]) -> Self {
        let default = PathBuf::from(Self::DEFAULT_FILE);
        let file = file.or_else(|| default.exists().then_some(default));
        let mut environment: Vec<(String, OsString)> = env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with(Self::PREFIX))
            .collect();
        environment.sort();
        Self { file, environment, settings, backends }
    }

    /// What else a configuration is checked by.
    pub fn backends(&self) -> &'static [Rules] {
        self.backends
    }

    /// The configuration file, where there is one.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// What to watch for changes: the configuration file, the files of secrets, and those of TLS.
    pub fn files(&self) -> Vec<PathBuf> {
        let layers = self.layers();
        let entries = || layers.iter().flat_map(|layer| &layer.entries);
        let of_tls = entries().filter(|entry| tls::KEYS.contains(&entry.key.as_str()));
        let of_tls = of_tls.filter_map(|entry| entry.value.find_ref(&entry.key)?.as_str()).map(PathBuf::from);
        let of_tls = of_tls.filter(|path| !path.as_os_str().is_empty());
        let named = entries().flat_map(|entry| entry.files(&self.folder()));
        let named: Vec<_> = of_tls.chain(named).collect();
        let secrets = layers.into_iter().flat_map(|layer| layer.files);
        self.file.iter().cloned().chain(secrets).chain(named).collect()
    }

    /// What paths of schemas and of signatures' secrets are relative to: where the configuration file is.
    pub(super) fn folder(&self) -> PathBuf {
        let folder = self.file.as_deref().and_then(Path::parent);
        folder.map(Path::to_owned).unwrap_or_default()
    }

    /// Lowest precedence first.
    pub(super) fn layers(&self) -> Vec<Layer> {
        let file = self.file.iter().map(|path| {
            let mut layer = Layer::of(path.display().to_string());
            layer.read_file(path);
            layer
        });
        let mut environment = Layer::default();
        for (name, value) in &self.environment {
            environment.origin = format!("environment variable {name}");
            environment.read_variable(name.strip_prefix(Self::PREFIX).unwrap_or(name), value);
        }
        let settings = self.settings.iter().map(|Setting { flag, key, value }| {
            let mut layer = Layer::of((*flag).to_owned());
            layer.put_text(key, value);
            layer
        });
        file.chain([environment]).chain(settings).collect()
    }
}

impl fmt::Display for Sources {
    /// `config.toml, the environment, --set`: those that say something.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = vec![match &self.file {
            Some(path) => path.display().to_string(),
            None => format!("defaults, as there is no ./{}", Self::DEFAULT_FILE),
        }];
        if !self.environment.is_empty() {
            parts.push("the environment".to_owned());
        }
        if !self.settings.is_empty() {
            parts.push("the command line".to_owned());
        }
        f.write_str(&parts.join(", "))
    }
}

/// A key with a value that its kind allows.
pub(super) struct Entry {
    pub origin: String,
    pub key: String,
    /// In the tables that it stands in.
    pub value: Value,
}

impl Entry {
    /// The files that its value names, as far as it can be read.
    fn files(&self, folder: &Path) -> Vec<PathBuf> {
        let listed = self.value.find_ref(&self.key);
        match (self.key.as_str(), listed) {
            ("event.types", Some(types)) => {
                let types: EventTypes = types.deserialize().unwrap_or_default();
                let schemas = types.iter().filter_map(|of| of.schema.as_ref());
                schemas.flat_map(|path| event_type::files(&folder.join(path))).collect()
            }
            ("http.source", Some(sources)) => {
                let sources: Vec<HttpSource> = sources.deserialize().unwrap_or_default();
                let signatures = sources.iter().filter_map(|source| source.signature.as_ref());
                signatures.map(|signature| folder.join(&signature.secret_file)).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// What one source says, and what is wrong with it.
#[derive(Default)]
pub(super) struct Layer {
    /// Where the next entry comes from.
    origin: String,
    pub entries: Vec<Entry>,
    pub errors: Vec<ConfigError>,
    /// Files of secrets that it names.
    pub files: Vec<PathBuf>,
}

impl Layer {
    fn of(origin: String) -> Self {
        Self { origin, ..Self::default() }
    }

    fn read_file(&mut self, path: &Path) {
        let text = match fs::read(path).map(text) {
            Ok(Ok(text)) => text,
            Ok(Err(rule)) => return self.error("", None, format!("the configuration file {rule}")),
            Err(error) => return self.error("", None, format!("the configuration file cannot be read: {error}")),
        };
        match text.parse::<toml::Table>() {
            Ok(table) => self.walk("", &table),
            Err(error) => {
                // Not its Display: that prints the line, which may hold a secret.
                let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
                let line = before.matches('\n').count() + 1;
                self.error("", None, format!("line {line}: is not TOML: {}", error.message()));
            }
        }
    }

    fn walk(&mut self, section: &str, table: &toml::Table) {
        for (name, value) in table {
            let path = if section.is_empty() { name.clone() } else { format!("{section}.{name}") };
            match (keys::meaning(&path), value) {
                // Below an option they are dotted keys, which TOML reads as tables.
                (Meaning::Section | Meaning::Key(Kind::Options(_)) | Meaning::Option { .. }, Toml::Table(table)) => {
                    self.walk(&path, table);
                }
                (Meaning::Section, _) => self.error(&path, None, "is a section: write it as a table"),
                (Meaning::Option { .. }, value) => match read::option(value) {
                    Ok(text) => self.put_text(&path, &text),
                    Err(rule) => self.error(&path, None, rule),
                },
                (Meaning::Key(kind), value) => {
                    let given = value.as_str().map_or_else(|| value.to_string(), |text| format!("{text:?}"));
                    self.put(&path, &given, read::from_toml(kind, value));
                }
                (Meaning::Unknown, value) => match (secret_file(&path), value.as_str()) {
                    (Some(_), Some(text)) => self.put_text(&path, text),
                    (Some(_), None) => self.error(&path, None, "must be the path of a file"),
                    (None, _) => self.error(&path, None, keys::unknown(&path)),
                },
            }
        }
    }

    fn read_variable(&mut self, name: &str, value: &OsString) {
        let key = key_of_variable(name);
        match value.to_str() {
            Some(text) => self.put_text(&key, text),
            None => self.error(&key, None, "must be UTF-8"),
        }
    }

    fn put_text(&mut self, path: &str, text: &str) {
        // As `$(cat FILE)` leaves it.
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        if let Some(key) = secret_file(path) {
            return self.put_secret(path, key, text);
        }
        match keys::meaning(path) {
            Meaning::Key(kind) => self.put(path, &format!("{text:?}"), read::from_text(kind, text)),
            Meaning::Option { .. } => self.put(path, "", read::from_text(Kind::Text, text)),
            Meaning::Section => self.error(path, None, "is a section: set a key in it"),
            Meaning::Unknown => self.error(path, None, keys::unknown(path)),
        }
    }

    fn put_secret(&mut self, path: &str, key: &str, file: &str) {
        self.files.push(PathBuf::from(file));
        match fs::read(file).map(text) {
            Ok(Ok(secret)) => self.put(key, "", Ok(Value::from(secret.trim()))),
            Ok(Err(rule)) => self.error(path, Some(format!("{file:?}")), rule),
            // The secret itself where its file's path belongs is a slip that is soon made.
            Err(error) if file.contains(['@', ':']) || !file.contains(['/', '.']) => {
                let rule = format!("cannot be read: {error}; it must be the path of a file, not the secret itself");
                self.error(path, None, rule);
            }
            Err(error) => self.error(path, Some(format!("{file:?}")), format!("cannot be read: {error}")),
        }
    }

    fn put(&mut self, path: &str, given: &str, value: Result<Value, String>) {
        if self.entries.iter().any(|entry| entry.key == path) {
            return self.error(path, None, "is given twice here (a secret by value or by file, not both)");
        }
        // Names of options may contain dots.
        let (section, name) = match keys::meaning(path) {
            Meaning::Option { table, name } => (table, name),
            _ => path.rsplit_once('.').unwrap_or(("", path)),
        };
        match value {
            Ok(value) => {
                let (origin, key) = (self.origin.clone(), path.to_owned());
                let value = nest(section, Dict::from([(name.to_owned(), value)]).into());
                self.entries.push(Entry { origin, key, value });
            }
            // Where a hash, or the path of a file, belongs the key itself may stand.
            Err(rule) if matches!(path, "http.auth.keys" | "admin.auth.keys" | "http.source") => {
                self.error(path, None, rule);
            }
            Err(rule) => self.error(path, Some(secrets::shown(path, given)), rule),
        }
    }

    fn error(&mut self, key: &str, value: Option<String>, rule: impl Into<String>) {
        let (origin, key) = (self.origin.clone(), key.to_owned());
        self.errors.push(ConfigError { origin, key, value, rule: rule.into() });
    }
}

const BYTE_ORDER_MARK: char = '\u{feff}';

/// The text of a file, whichever editor it was written in. The error is a rule.
fn text(bytes: Vec<u8>) -> Result<String, String> {
    const UTF_16: &str = "is UTF-16: save it as UTF-8";
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(UTF_16.to_owned());
    }
    // Without its mark every other byte of ASCII is NUL.
    if bytes.contains(&0) {
        return Err(format!("holds NUL bytes, or {UTF_16}"));
    }
    let text = String::from_utf8(bytes).map_err(|error| format!("is not UTF-8 ({})", error.utf8_error()))?;
    Ok(text.strip_prefix(BYTE_ORDER_MARK).map(str::to_owned).unwrap_or(text))
}

/// The key whose value stands in a file, when the path is `<key>_file` and no setting has that name itself.
fn secret_file(path: &str) -> Option<&str> {
    let key = path.strip_suffix("_file")?;
    match keys::meaning(key) {
        Meaning::Key(_) => (key == "store.url").then_some(key),
        Meaning::Option { table: ARCHIVE_OPTIONS, .. } => {
            let name = below(path, ARCHIVE_OPTIONS)?;
            (!is_archive_option(name)).then_some(key)
        }
        // librdkafka's own names end in `.file` and `.location`.
        Meaning::Option { .. } => Some(key),
        Meaning::Section | Meaning::Unknown => None,
    }
}

/// Whether one of the stores has an option of that name.
pub fn is_archive_option(name: &str) -> bool {
    AmazonS3ConfigKey::from_str(name).is_ok()
        || GoogleConfigKey::from_str(name).is_ok()
        || AzureConfigKey::from_str(name).is_ok()
}

/// `QUEUE__KAFKA__PROPERTIES__SASL_PASSWORD` is `queue.kafka.properties.sasl.password`: environment variables cannot
/// have dots, and librdkafka's names have no underscores.
fn key_of_variable(name: &str) -> String {
    let key = name.to_ascii_lowercase().replace("__", ".");
    let Some(property) = below(&key, KAFKA_PROPERTIES) else { return key };
    let dotted = property.replace('_', ".");
    match property.strip_suffix("_file") {
        Some(secret) if !is_kafka_property(&dotted) => format!("{KAFKA_PROPERTIES}.{}_file", secret.replace('_', ".")),
        _ => format!("{KAFKA_PROPERTIES}.{dotted}"),
    }
}

/// Also those that this build of librdkafka lacks, which are refused by that name.
pub fn is_kafka_property(name: &str) -> bool {
    let made = ClientConfig::new().set(name, "x").create_native_config();
    !matches!(made, Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Sources {
        pub(in crate::config) fn of(file: Option<&Path>, environment: &[(&str, &str)], settings: &[&str]) -> Self {
            let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), value.into())).collect();
            let settings = settings.iter().map(|setting| setting.parse().expect("KEY=VALUE")).collect();
            Self { file: file.map(Path::to_owned), environment, settings, backends: crate::app::BACKENDS }
        }
    }

    fn secret(bytes: &[u8]) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        fs::write(&file, bytes).unwrap();
        let setting = format!("queue.kafka.properties.sasl.password_file={}", file.display());
        let loaded = Sources::of(None, &[], &[&setting]).load().map_err(|errors| errors.to_string());
        loaded.map(|config| config.queue.kafka.properties["sasl.password"].clone())
    }

    #[test]
    fn a_secret_is_the_text_of_its_file_as_any_editor_saves_it() {
        assert_eq!(secret(b" hunter2\r\n").unwrap(), "hunter2");
        assert_eq!(secret("\u{feff}hunter2\n".as_bytes()).unwrap(), "hunter2");
        for utf_16 in [&b"\xff\xfeh\0u\0"[..], b"\xfe\xff\0h\0u", b"h\0u\0", b"\0h\0u"] {
            assert!(secret(utf_16).unwrap_err().contains("is UTF-16: save it as UTF-8"), "{utf_16:?}");
        }
        assert!(secret(b"h\xe4").unwrap_err().contains("is not UTF-8"));
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_file_or_value() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        fs::write(&file, "\u{feff}[queue]\ntopic = \"a\"\n").unwrap();
        let config = Sources::of(Some(&file), &[("INGESTD__QUEUE__KAFKA__GROUP", "\u{feff}g")], &[]).load().unwrap();
        assert_eq!((&*config.queue.topic, &*config.queue.kafka.group), ("a", "g"));
        fs::write(&file, b"\xff\xfe[\0").unwrap();
        assert!(Sources::of(Some(&file), &[], &[]).load().unwrap_err().to_string().contains("UTF-16"));
    }
}
