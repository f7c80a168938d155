//! Makes the object store that the archive's URL and its settings name.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use futures::StreamExt as _;
use object_store::{
    ClientOptions, ObjectStore, RetryConfig, StaticCredentialProvider,
    aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder,
    gcp::{GcpCredential, GoogleCloudStorageBuilder},
    path::Path,
    prefix::PrefixStore,
};
use tokio::sync::OnceCell;
use url::Url;

use super::{
    client::Connector,
    local,
    settings::{Given, NO_CHECKSUM, Provider, Settings},
};
use crate::{config::Config, panics::panic_message, tls};

/// How long a connection to the store may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// As S3's client calls the option.
const CHECKSUM: &str = "aws_checksum_algorithm";

/// The store below the archive's prefix.
pub(super) struct Root {
    /// The prefix as it was typed.
    typed: Arc<dyn ObjectStore>,
    /// As releases before this one took it: percent-encoded. Only where that is another one.
    encoded: Option<Arc<dyn ObjectStore>>,
    chosen: OnceCell<Arc<dyn ObjectStore>>,
}

impl Root {
    pub(super) fn open(config: &Config) -> anyhow::Result<Self> {
        let url = config.archive.url.as_str();
        let (typed, encoded) = match Settings::of(&config.archive) {
            None if config.archive.is_local() => (local::open_store(config)?, None),
            None => bail!("{url:?} is no kind of store: use file:, s3://, gs://, az:// or none"),
            Some(settings) => {
                let store = build(&settings, url, config.upload.timeout)?;
                let below = |prefix| Arc::new(PrefixStore::new(store.clone(), prefix)) as Arc<dyn ObjectStore>;
                let (typed, encoded) = prefixes(url)?;
                (below(typed), encoded.map(below))
            }
        };
        Ok(Self { typed, encoded, chosen: OnceCell::new() })
    }

    /// The store. An archive that was begun below the percent-encoded prefix goes on there.
    ///
    /// # Errors
    /// When the store does not say where the archive stands.
    pub(super) async fn get(&self) -> object_store::Result<&dyn ObjectStore> {
        let Some(encoded) = &self.encoded else { return Ok(&self.typed) };
        let choose = async || -> object_store::Result<_> {
            let is_begun = async |store: &Arc<dyn ObjectStore>| -> object_store::Result<bool> {
                let folder = Path::from("_chain");
                let first = store.list(Some(&folder)).next().await;
                Ok(first.transpose()?.is_some())
            };
            let goes_on = !is_begun(&self.typed).await? && is_begun(encoded).await?;
            Ok(if goes_on { encoded.clone() } else { self.typed.clone() })
        };
        self.chosen.get_or_try_init(choose).await.map(|store| store as &dyn ObjectStore)
    }
}

/// The prefix as it was typed, and as a URL writes it where that differs.
///
/// # Errors
/// When it is none: one sentence.
pub(crate) fn prefixes(url: &str) -> anyhow::Result<(Path, Option<Path>)> {
    let typed = url.split_once("://").and_then(|(_, place)| place.split_once('/')).map_or("", |(_, prefix)| prefix);
    let parse = |prefix: &str| Path::parse(prefix.trim_matches('/'));
    let typed = parse(typed).context("its prefix must be without empty segments, . and ..")?;
    let encoded = Url::parse(url).ok().and_then(|url| parse(url.path()).ok()).filter(|encoded| *encoded != typed);
    Ok((typed, encoded))
}

/// Why settings make no store.
#[derive(Debug, thiserror::Error)]
#[error("{}{why}", by.as_ref().map(|by| format!("{by}: ")).unwrap_or_default())]
pub(crate) struct Unbuildable {
    /// The option or variable at fault, where it is one alone.
    pub(crate) by: Option<String>,
    pub(crate) why: String,
}

/// The store of a bucket. Nothing is asked of it.
pub(crate) fn build(settings: &Settings, url: &str, timeout: Duration) -> Result<Arc<dyn ObjectStore>, Unbuildable> {
    tls::install();
    try_build(settings, url, timeout).map_err(|why| {
        let without = |setting: &String| {
            let mut settings = settings.clone();
            settings.all.remove(setting);
            try_build(&settings, url, timeout).is_ok()
        };
        let culprit = settings.all.iter().find(|(setting, _)| without(setting));
        Unbuildable { by: culprit.map(|(_, given)| given.by.clone()), why }
    })
}

fn try_build(settings: &Settings, url: &str, timeout: Duration) -> Result<Arc<dyn ObjectStore>, String> {
    // Nothing of it outlives a panic.
    match catch_unwind(AssertUnwindSafe(|| builder(settings, url, timeout))) {
        Ok(built) => built.map_err(|error| reason(&error)),
        Err(panic) => Err(format!("makes no store: {}", panic_message(panic.as_ref()))),
    }
}

/// The client's own words, but for what it says of options under other names.
fn reason(error: &anyhow::Error) -> String {
    let said = error.root_cause().to_string();
    let needs = |what: &str| format!("needs archive.options.{what} as well");
    match said.as_str() {
        "Account must be specified" => needs("account_name"),
        "Missing AccessKeyId" => needs("access_key_id"),
        "Missing SecretAccessKey" => needs("secret_access_key"),
        _ => format!("makes no store: {said}"),
    }
}

fn builder(settings: &Settings, url: &str, timeout: Duration) -> anyhow::Result<Arc<dyn ObjectStore>> {
    // The bucket alone: the prefix is ours.
    let parsed = Url::parse(url)?;
    let bucket = format!("{}://{}", parsed.scheme(), parsed.host_str().unwrap_or_default());
    // Attempts are counted, shown and spaced by the uploader.
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let client = ClientOptions::new()
        .with_timeout(timeout)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_allow_http(settings.is_plain());
    let given = || settings.all.iter().map(|(setting, given)| (setting.as_str(), given.value.as_str()));
    // The three builders have the same methods, and no trait.
    macro_rules! store {
        ($builder:expr, $given:expr) => {{
            let mut builder = $builder.with_client_options(client).with_retry(retry).with_url(bucket);
            for (setting, value) in $given {
                builder = builder.with_config(setting.parse()?, value);
            }
            Arc::new(builder.with_http_connector(Connector::default()).build()?)
        }};
    }
    Ok(match settings.provider {
        Provider::S3 => {
            let mut builder = AmazonS3Builder::new();
            // Buckets with Object Lock ask for a checksum, and it costs nothing: the signature has it, too.
            match settings.get(CHECKSUM).map(|given| given.value.as_str()) {
                Some(NO_CHECKSUM) => {}
                algorithm => builder = builder.with_config(CHECKSUM.parse()?, algorithm.unwrap_or("sha256")),
            }
            store!(builder, given().filter(|(setting, _)| *setting != CHECKSUM))
        }
        Provider::Gcs => {
            let mut builder = GoogleCloudStorageBuilder::new();
            // Its PUTs ask for credentials all the same, by default the metadata address.
            let nobody = |given: &Given| ["true", "1", "yes", "on", "y"].contains(&&*given.value.to_lowercase());
            if settings.get("google_skip_signature").is_some_and(nobody) {
                let nobody = GcpCredential { bearer: String::new() };
                builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(nobody)));
            }
            store!(builder, given())
        }
        Provider::Azure => store!(MicrosoftAzureBuilder::new(), given()),
    })
}
