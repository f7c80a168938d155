//! Which settings the archive's store has in force: those of the configuration, and what the clouds' own environment
//! variables add to them.
//!
//! What the configuration says wins, whole: no part of the environment's says where its keys are sent, and none of the
//! environment's tokens goes with its keys. What is empty is not set.

use std::{collections::BTreeMap, str::FromStr};

use object_store::{aws::AmazonS3ConfigKey, azure::AzureConfigKey, gcp::GoogleConfigKey};
use url::Url;

use crate::config::{ARCHIVE_OPTIONS, ArchiveConfig};

/// The kinds of store that are reached over a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    S3,
    Gcs,
    Azure,
}

impl Provider {
    /// Of the archive's URL; none for a folder, and where the archive is off.
    pub fn of(url: &str) -> Option<Self> {
        match url.split_once("://")?.0 {
            "s3" => Some(Self::S3),
            "gs" => Some(Self::Gcs),
            "az" => Some(Self::Azure),
            _ => None,
        }
    }

    /// The name by which the store knows the option; several names can mean the same.
    pub fn canonical(self, name: &str) -> Option<String> {
        match self {
            Self::S3 => AmazonS3ConfigKey::from_str(name).ok().map(|key| key.as_ref().to_owned()),
            Self::Gcs => GoogleConfigKey::from_str(name).ok().map(|key| key.as_ref().to_owned()),
            Self::Azure => AzureConfigKey::from_str(name).ok().map(|key| key.as_ref().to_owned()),
        }
    }

    /// The setting that a variable of the environment is, as object_store's builders read them.
    fn of_variable(self, name: &str) -> Option<String> {
        let prefix = match (self, name) {
            (Self::Gcs, "SERVICE_ACCOUNT") => return Some("google_service_account".to_owned()),
            (Self::Azure, "IDENTITY_ENDPOINT") => return Some("azure_msi_endpoint".to_owned()),
            (Self::S3, _) => "AWS_",
            (Self::Gcs, _) => "GOOGLE_",
            (Self::Azure, _) => "AZURE_",
        };
        name.starts_with(prefix).then(|| self.canonical(&name.to_ascii_lowercase())).flatten()
    }
}

// What the stores' clients know, by their names for it, each of which says whose it is.

/// Where requests go; of two, the first one counts.
const ENDPOINTS: &[&str] = &["aws_endpoint_url_s3", "aws_endpoint", "google_base_url", "azure_storage_endpoint"];

/// What sends requests elsewhere in spite of an endpoint.
const INSTEAD_OF_AN_ENDPOINT: &[&str] = &["azure_storage_use_emulator", "azure_use_fabric_endpoint"];

/// What else takes a URL.
const URLS: &[&str] = &[
    "aws_metadata_endpoint",
    "aws_endpoint_url_sts",
    "aws_container_credentials_full_uri",
    "azure_msi_endpoint",
    "azure_storage_authority_host",
    "azure_fabric_token_service_url",
];

/// The ways to sign in, each with its settings.
const IDENTITIES: &[&[&str]] = &[
    &["aws_access_key_id", "aws_secret_access_key", "aws_session_token"],
    &["aws_web_identity_token_file", "aws_role_arn", "aws_role_session_name"],
    &["aws_container_credentials_relative_uri"],
    &["aws_container_credentials_full_uri", "aws_container_authorization_token_file"],
    &["aws_skip_signature"],
    &["google_service_account"],
    &["google_service_account_key"],
    &["google_application_credentials"],
    &["google_bearer_token"],
    &["google_skip_signature"],
    &["azure_storage_account_key"],
    &[
        "azure_storage_client_id",
        "azure_storage_client_secret",
        "azure_storage_tenant_id",
        "azure_federated_token_file",
    ],
    &["azure_storage_sas_key"],
    &["azure_storage_token"],
    &["azure_msi_endpoint", "azure_object_id", "azure_msi_resource_id"],
    &["azure_use_azure_cli"],
    &["azure_skip_signature"],
];

/// Names, each with what belongs to the one that bears it.
const BEARERS: &[(&str, &[&str])] = &[
    ("aws_access_key_id", &["aws_secret_access_key", "aws_session_token"]),
    ("azure_storage_account_name", &["azure_storage_account_key", "azure_storage_sas_key"]),
    ("azure_storage_client_id", &["azure_storage_client_secret"]),
];

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The key of the configuration, or the variable.
    pub by: String,
    pub from_environment: bool,
    pub value: String,
}

/// The settings in force, by the names that the store knows them by.
#[derive(Debug, Clone)]
pub struct Settings {
    pub provider: Provider,
    pub all: BTreeMap<String, Given>,
}

impl Settings {
    /// Those of this process; none where the archive is no remote store.
    pub fn of(archive: &ArchiveConfig) -> Option<Self> {
        // What is no UTF-8 is not for us.
        let environment =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Some(Self::new(Provider::of(&archive.url)?, &archive.options, environment))
    }

    pub fn new(
        provider: Provider,
        options: &BTreeMap<String, String>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Self {
        let given = |(name, value): (&String, &String)| {
            let by = format!("{ARCHIVE_OPTIONS}.{name}");
            Some((provider.canonical(name)?, Given { by, from_environment: false, value: value.clone() }))
        };
        let said: BTreeMap<_, _> = options.iter().filter(|(_, value)| !value.is_empty()).filter_map(given).collect();
        let given = |(by, value): (String, String)| {
            let setting = provider.of_variable(&by).filter(|setting| !is_ours(setting))?;
            Some((setting, Given { by, from_environment: true, value }))
        };
        let mut around: BTreeMap<_, _> = environment.filter(|(_, value)| !value.is_empty()).filter_map(given).collect();
        without_what_is_said_otherwise(&said, &mut around);
        // Said is said.
        around.extend(said);
        Self { provider, all: around }
    }

    pub fn get(&self, setting: &str) -> Option<&Given> {
        self.all.get(setting)
    }

    /// Where requests go, where that is not the cloud itself.
    pub fn endpoint(&self) -> Option<&Given> {
        self.endpoint_setting().map(|(_, given)| given)
    }

    /// With the name that the store knows it by.
    pub fn endpoint_setting(&self) -> Option<(&'static str, &Given)> {
        ENDPOINTS.iter().find_map(|setting| Some((*setting, self.all.get(*setting)?)))
    }

    /// The endpoint's scheme is `http`.
    pub fn is_plain(&self) -> bool {
        let url = self.endpoint().and_then(|given| Url::parse(&given.value).ok());
        url.is_some_and(|url| url.scheme() == "http")
    }

    /// Every setting that a store's client would stumble over, with the rule.
    pub fn faults(&self) -> Vec<(&Given, String)> {
        self.all.iter().filter_map(|(setting, given)| Some((given, self.broken_rule(setting, &given.value)?))).collect()
    }

    fn broken_rule(&self, setting: &str, value: &str) -> Option<String> {
        if ENDPOINTS.iter().chain(URLS).any(|url| *url == setting) {
            return url_rule(value);
        }
        let plain = |c: char| c.is_ascii_graphic() || c == ' ';
        match setting {
            // JSON and PEM have lines.
            "google_service_account_key" | "proxy_ca_certificate" => None,
            "aws_container_credentials_relative_uri" if !value.starts_with('/') => Some("must begin with /".to_owned()),
            "aws_checksum_algorithm" if !["sha256", "crc64nvme", NO_CHECKSUM].contains(&value) => {
                Some(format!("must be sha256 (the default), crc64nvme or {NO_CHECKSUM}"))
            }
            "proxy_url" if reqwest::Proxy::all(value).is_err() => {
                Some("must be the URL of a proxy, such as http://proxy:3128".to_owned())
            }
            "allow_http" if value == "false" && self.is_plain() => {
                let endpoint = self.endpoint()?;
                Some(format!("must not be false: {} is a URL of http://", endpoint.by))
            }
            _ if !value.chars().all(plain) => {
                Some("must be of printable ASCII characters, in one line (has a file a line too many?)".to_owned())
            }
            _ => None,
        }
    }
}

/// Turns the checksums off that are sent beside objects; ours alone, no store's client knows it.
pub const NO_CHECKSUM: &str = "none";

/// What the environment must not say: the URL names the bucket, and a promise needs the rest.
fn is_ours(setting: &str) -> bool {
    ["bucket", "bucket_name", "container_name", "conditional_put", "copy_if_not_exists", "disable_bulk_delete"]
        .iter()
        .any(|name| setting.strip_suffix(name).is_some_and(|cloud| cloud.ends_with('_')))
}

fn without_what_is_said_otherwise(said: &BTreeMap<String, Given>, around: &mut BTreeMap<String, Given>) {
    let is_said = |setting: &&str| said.contains_key(*setting);
    if ENDPOINTS.iter().any(is_said) {
        around.retain(|setting, _| !ENDPOINTS.iter().chain(INSTEAD_OF_AN_ENDPOINT).any(|other| other == setting));
    }
    if let Some(mine) = IDENTITIES.iter().find(|identity| identity.iter().any(is_said)) {
        let others = IDENTITIES.iter().filter(|identity| *identity != mine);
        others.copied().flatten().for_each(|setting| drop(around.remove(*setting)));
    }
    for (name, theirs) in BEARERS {
        if let (Some(said), Some(other)) = (said.get(*name), around.get(*name))
            && said.value != other.value
        {
            theirs.iter().for_each(|setting| drop(around.remove(*setting)));
        }
    }
    // A token is of one pair of keys.
    let same = |setting: &str| {
        said.get(setting).is_none_or(|said| around.get(setting).is_some_and(|it| it.value == said.value))
    };
    if !(same("aws_access_key_id") && same("aws_secret_access_key")) {
        around.remove("aws_session_token");
    }
}

fn url_rule(value: &str) -> Option<String> {
    const RULE: &str =
        "must be an absolute URL of http or https, such as http://127.0.0.1:8333 or https://s3.example.com";
    let Ok(url) = Url::parse(value) else { return Some(RULE.to_owned()) };
    // The parser mends what the store's client then takes as it is written.
    let written = value.get(..url.scheme().len() + 3).is_some_and(|begin| begin.ends_with("://"));
    let visible = value.chars().all(|c| c.is_ascii_graphic());
    if !["http", "https"].contains(&url.scheme()) || !url.has_host() || !written || !visible {
        return Some(RULE.to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        return Some("must be without user, password, query and fragment".to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_force(
        provider: Provider,
        options: &[(&str, &str)],
        environment: &[(&str, &str)],
    ) -> BTreeMap<String, String> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let options = options.iter().map(owned).collect();
        let settings = Settings::new(provider, &options, environment.iter().map(owned));
        settings.all.into_iter().map(|(name, given)| (name, given.value)).collect()
    }

    #[track_caller]
    fn assert_s3(options: &[(&str, &str)], environment: &[(&str, &str)], expected: &[(&str, &str)]) {
        let found = in_force(Provider::S3, options, environment);
        let found: Vec<(&str, &str)> = found.iter().map(|(name, value)| (&name[4..], &**value)).collect();
        assert_eq!(found, expected, "{options:?} and {environment:?}");
    }

    #[test]
    fn the_configurations_endpoint_wins_over_every_one_of_the_environment() {
        let around = [("AWS_ENDPOINT_URL_S3", "http://b"), ("AWS_ENDPOINT_URL", "http://c")];
        assert_s3(&[("endpoint", "http://a")], &around, &[("endpoint", "http://a")]);
        assert_s3(&[("endpoint", "")], &around, &[("endpoint", "http://c"), ("endpoint_url_s3", "http://b")]);
        let azure = in_force(Provider::Azure, &[("endpoint", "http://a")], &[("AZURE_STORAGE_USE_EMULATOR", "true")]);
        assert_eq!(azure.into_values().collect::<Vec<_>>(), ["http://a"]);
    }

    #[test]
    fn the_configurations_keys_go_with_nobody_elses_token() {
        let keys = [("access_key_id", "a"), ("secret_access_key", "b")];
        let mine = [("access_key_id", "a"), ("secret_access_key", "b")];
        let theirs = [("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "y"), ("AWS_SESSION_TOKEN", "z")];
        assert_s3(&keys, &theirs, &mine);
        assert_s3(&keys, &theirs[2..], &mine);
        assert_s3(&[], &theirs, &[("access_key_id", "x"), ("secret_access_key", "y"), ("session_token", "z")]);
        // As config.toml proposes: the id in the file, the secret in the environment.
        assert_s3(&keys[..1], &[("AWS_SECRET_ACCESS_KEY", "b")], &mine);
        assert_s3(&keys[..1], &theirs, &mine[..1]);
        let role = [("web_identity_token_file", "/f"), ("role_arn", "r")];
        assert_s3(&role, &theirs, &[("role_arn", "r"), ("web_identity_token_file", "/f")]);
        let azure = |options| {
            in_force(
                Provider::Azure,
                options,
                &[("AZURE_STORAGE_ACCOUNT_NAME", "x"), ("AZURE_STORAGE_ACCOUNT_KEY", "k")],
            )
        };
        assert_eq!(azure(&[("account_name", "a")]).into_values().collect::<Vec<_>>(), ["a"]);
        assert_eq!(azure(&[("account_name", "x")]).len(), 2);
        assert_eq!(azure(&[("sas_token", "s")]).into_values().collect::<Vec<_>>(), ["x", "s"]);
    }

    #[test]
    fn what_is_empty_is_not_set_and_a_promise_is_not_the_environments_to_break() {
        assert_s3(&[("region", "")], &[("AWS_SESSION_TOKEN", ""), ("AWS_REGION", "r")], &[("region", "r")]);
        assert_s3(&[], &[("AWS_CONDITIONAL_PUT", "disabled"), ("AWS_BUCKET", "b"), ("HOME", "/")], &[]);
    }

    #[test]
    fn what_a_stores_client_would_stumble_over_is_refused_by_name() {
        let faults = |provider, options: &[(&str, &str)]| {
            let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let settings = Settings::new(provider, &options, std::iter::empty());
            settings.faults().into_iter().map(|(given, _)| given.by.clone()).collect::<Vec<_>>()
        };
        for bad in [
            "localhost:8333",
            "127.0.0.1:8333",
            "s3.example.com",
            "//s3",
            "http:/s3",
            "http:s3",
            "http://",
            "ftp://s3",
            "http://a b",
            "http://u:p@s3",
            "http://s3?x",
        ] {
            assert_eq!(faults(Provider::S3, &[("endpoint", bad)]), ["archive.options.endpoint"], "{bad}");
            assert_eq!(faults(Provider::Gcs, &[("base_url", bad)]), ["archive.options.base_url"], "{bad}");
            assert_eq!(faults(Provider::Azure, &[("endpoint", bad)]), ["archive.options.endpoint"], "{bad}");
        }
        for good in ["http://127.0.0.1:8333", "https://s3.example.com/", "HTTP://[::1]:1/path"] {
            assert_eq!(faults(Provider::S3, &[("endpoint", good)]), [""; 0], "{good}");
        }
        for (name, value) in [
            ("session_token", "a\nb"),
            ("access_key_id", "é"),
            ("checksum_algorithm", "md5"),
            ("checksum_algorithm", "SHA256 "),
            ("container_credentials_relative_uri", "x"),
            ("proxy_url", "http://"),
        ] {
            assert_eq!(faults(Provider::S3, &[(name, value)]), [format!("archive.options.{name}")], "{value:?}");
        }
        assert_eq!(
            faults(Provider::Gcs, &[("service_account_key", "{\n}"), ("bearer_token", "a\n")]),
            ["archive.options.bearer_token"]
        );
        assert_eq!(
            faults(Provider::S3, &[("allow_http", "false"), ("endpoint", "http://a")]),
            ["archive.options.allow_http"]
        );
    }
}
