//! The archive: an object store below a prefix, its keys, and the chain's heads.
//!
//! ```text
//! <prefix>/topic=<topic>/date=YYYY-MM-DD/hour=HH/<partition>-<x, 20 digits>.ndjson.zst
//! <prefix>/_chain/<topic>/<partition>.json        the head: how far the chain is known to reach
//! <prefix>/_chain/<topic>/<partition>.skip.json   the operator's marker that a gap may be left (`chain_files`)
//! <prefix>/_chain/probe.json                      shows that the store refuses a second create-only PUT
//! <prefix>/_chain/race.json                       says that it let one of many at the same time win (`race`)
//! <prefix>/_chain/race-<id>                       what they put
//! ```

use std::{ops::Range, panic::AssertUnwindSafe, time::Duration};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::{FutureExt as _, TryStreamExt};
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload, path::Path};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::{
    errors::{self, ProbeError, failed},
    local::{self, Local},
    objects::ObjectName,
    settings::{Provider, Settings},
    store::Root,
};
use crate::{
    archive::{format::ObjectFormat, spool::segment::SegmentHeader},
    config::Config,
    panics::panic_message,
};

/// Last objects read at once, to find where they end.
const ENDS_AT_ONCE: usize = 2;

pub struct Archive {
    root: Root,
    /// Where requests go, where that is not the cloud itself.
    pub(super) endpoint: Option<String>,
    /// `None` for a folder.
    provider: Option<Provider>,
    /// The topic with its generation.
    pub topic: String,
    /// Of objects that are put.
    pub format: ObjectFormat,
    /// For one request; object stores that do not answer by then are tried again.
    pub(super) timeout: Duration,
    /// A LIST gives the keys in ascending order.
    pub(super) lists_in_order: bool,
    /// Of an archive in a folder.
    pub(super) local: Option<Local>,
    /// Bounds the memory when many chains are opened at once: each last object has up to `spool.max_bytes`.
    pub(super) ends: Semaphore,
}

impl Archive {
    /// Opens the archive that the configuration names. Nothing is asked of the store yet.
    ///
    /// # Errors
    /// When the URL or its options make no store, or the local folder cannot be made.
    pub fn open(config: &Config) -> anyhow::Result<Self> {
        let url = &config.archive.url;
        let root = Root::open(config).with_context(|| format!("archive.url {url:?} cannot be used"))?;
        let topic = config.queue.name().to_string();
        // S3 Express lists in no order, nor does a folder.
        let settings = Settings::of(&config.archive);
        let is_express = settings.as_ref().and_then(|settings| settings.get("aws_s3_express"));
        let is_express = is_express.is_some_and(|given| !matches!(given.value.as_str(), "false" | "0" | "no" | "off"));
        let lists_in_order = !config.archive.is_local() && !is_express;
        let provider = Provider::of(url);
        let local = Local::open(config).with_context(|| format!("archive.url {url:?} cannot be used"))?;
        let timeout = config.upload.timeout;
        let endpoint = settings.and_then(|settings| Some(settings.endpoint()?.value.clone()));
        let (format, ends) = (ObjectFormat::OF_CHAINS, Semaphore::new(ENDS_AT_ONCE));
        Ok(Self { root, endpoint, provider, topic, format, timeout, lists_in_order, local, ends })
    }

    /// Opens an archive that is there, for a topic as its paths name it: `topic`, or `topic@generation`.
    ///
    /// # Errors
    /// As [`Self::open`], and when it is a folder that does not exist.
    pub fn open_existing(config: &Config, topic: String) -> anyhow::Result<Self> {
        if !config.archive.is_on() {
            bail!("there is no archive: archive.url is \"none\"");
        }
        if config.archive.is_local() {
            let folder = local::folder(config);
            if !folder.is_dir() {
                bail!(
                    "there is no archive in {}: name the right one by --config, --set data.dir=DIR or archive.url",
                    folder.display()
                );
            }
        }
        Ok(Self { topic, ..Self::open(config)? })
    }

    /// The key of a segment's object.
    pub fn key(&self, header: &SegmentHeader) -> Path {
        ObjectName::of(header, self.format).key(&self.topic)
    }

    /// The store below the archive's prefix.
    pub(super) async fn store(&self) -> object_store::Result<&dyn ObjectStore> {
        self.root.get().await
    }

    /// A create-only PUT. `AlreadyExists` is also what stores answer to conflicting requests. Returns the object's tag, where
    /// the store gives one.
    pub async fn create(&self, key: &Path, data: Bytes) -> object_store::Result<Option<String>> {
        let tag = self.put(key, data, PutMode::Create).await?;
        self.settle(key).await?;
        Ok(tag)
    }

    /// The tag of what stands there.
    pub(super) async fn tag(&self, key: &Path) -> object_store::Result<Option<String>> {
        self.within(async { Ok(self.store().await?.head(key).await?.e_tag) }).await
    }

    pub(super) async fn put(&self, key: &Path, data: Bytes, mode: PutMode) -> object_store::Result<Option<String>> {
        let creates = matches!(mode, PutMode::Create);
        let payload = PutPayload::from_bytes(data.clone());
        let put = async { self.store().await?.put_opts(key, payload, mode.into()).await };
        match (self.within(put).await, &self.local) {
            (Err(error), Some(local)) if creates && local::has_no_links(&error) => {
                self.within(local.create(key, data)).await.map(|()| None)
            }
            (put, _) => Ok(put?.e_tag),
        }
    }

    pub async fn get(&self, key: &Path) -> object_store::Result<Bytes> {
        self.within(async { self.store().await?.get(key).await?.bytes().await }).await
    }

    /// What stands there, if anything does.
    pub(super) async fn find(&self, key: &Path) -> object_store::Result<Option<Bytes>> {
        match self.get(key).await {
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            found => found.map(Some),
        }
    }

    /// A part of an object.
    pub async fn get_range(&self, key: &Path, range: Range<u64>) -> object_store::Result<Bytes> {
        self.within(async { self.store().await?.get_range(key, range).await }).await
    }

    /// Makes an object durable in all its folders, also when it is met and its writer was killed on the way, or when
    /// another writer is just making a folder above it. For a store other than a folder nothing is to be done.
    pub async fn settle(&self, key: &Path) -> object_store::Result<()> {
        match &self.local {
            Some(local) => self.within(local.settle(key)).await,
            None => Ok(()),
        }
    }

    /// A store that hangs is worse than one that fails, and one whose client panics has failed.
    pub(super) async fn within<T>(
        &self,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> object_store::Result<T> {
        Self::within_time(self.timeout, request).await
    }

    /// The same, for a request that has a time of its own.
    pub(super) async fn within_time<T>(
        time: Duration,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> object_store::Result<T> {
        // What a request has half-built is dropped with it.
        match tokio::time::timeout(time, AssertUnwindSafe(request).catch_unwind()).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(panic)) => Err(failed(format!(
                "the store's client panicked, perhaps at a value of archive.options: {}",
                panic_message(panic.as_ref())
            ))),
            Err(_) => Err(failed(format!("no answer within {}", humantime::format_duration(time)))),
        }
    }

    /// What a start asks: the cheap question, and the race where this archive has not seen it yet.
    pub async fn probe(&self) -> Result<(), ProbeError> {
        self.ask_cheaply().await?;
        self.ask_for_rights().await?;
        self.race_once().await
    }

    /// Does what else a worker will do: reads a key that is missing, and lists. Without the right to list, S3 answers the
    /// first as if the key were not to be read.
    async fn ask_for_rights(&self) -> Result<(), ProbeError> {
        let denied = |to| {
            move |error| match errors::is_denied(&error) {
                true => ProbeError::Right { to, error },
                false => ProbeError::Store(error),
            }
        };
        let folder = Path::from("_chain");
        let first = async { self.store().await?.list(Some(&folder)).try_next().await };
        self.within(first).await.map_err(denied(self.right("list the bucket", "s3:ListBucket")))?;
        let missing = Path::from(format!("_chain/missing-{}", Uuid::now_v7().simple()));
        let to = self.right("be told that a key is missing", "s3:ListBucket and s3:GetObject");
        self.find(&missing).await.map(drop).map_err(denied(to))
    }

    /// With the names that S3 has for it.
    fn right(&self, to: &str, on_s3: &str) -> String {
        if self.provider == Some(Provider::S3) { format!("{to} ({on_s3})") } else { to.to_owned() }
    }

    /// Two create-only PUTs of one object must give one refusal; a store that overwrites silently would lose data.
    async fn ask_cheaply(&self) -> Result<(), ProbeError> {
        let path = Path::from("_chain/probe.json");
        for _ in 0..2 {
            match self.create(&path, Bytes::from_static(b"{}")).await {
                // A refusal proves something only where the object stands: some stores answer 409 to what fails otherwise.
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                    return Ok(self.get(&path).await.map(drop)?);
                }
                put => drop(put?),
            }
        }
        Err(ProbeError::Overwrites)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_whose_client_panics_has_failed_and_says_where_to_look() {
        let panics = async { panic!("invalid header") };
        let failed: object_store::Result<()> = Archive::within_time(Duration::from_secs(30), panics).await;
        let said = failed.unwrap_err().to_string();
        assert!(said.contains("archive.options") && said.contains("invalid header"), "{said}");
        let hangs = std::future::pending::<object_store::Result<()>>();
        let failed = Archive::within_time(Duration::from_millis(1), hangs).await;
        assert!(failed.unwrap_err().to_string().contains("no answer within 1ms"));
    }
}
