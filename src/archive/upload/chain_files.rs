//! What stands beside the objects, below `_chain/<topic>/`: each partition's head, and the operator's marker that a gap which
//! retention tore may be left (4.4), so that whichever worker holds the partition finds it.

use bytes::Bytes;
use chrono::Utc;
use futures::TryStreamExt as _;
use object_store::{Error, PutMode, path::Path};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    archive::Archive,
    objects::Listing,
    opening::{Head, HeadError, Heads},
};
use crate::position::{Offset, Partition};

/// `<prefix>/_chain/<topic>/<partition>.skip.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skip {
    pub version: u32,
    /// Records below this offset may be missing from the archive, where the log has them no more.
    pub to: Offset,
    /// When it was said, RFC 3339.
    pub time: String,
}

impl Skip {
    pub const VERSION: u32 = 1;
}

/// What the names of a chain's files end in.
const HEAD: &str = ".json";
const SKIP: &str = ".skip.json";

/// The partitions whose chain has files of its own: heads, and markers of the operator.
#[derive(Debug, Default)]
pub struct ChainFiles {
    pub heads: Vec<Partition>,
    pub skips: Vec<Partition>,
    pub strays: Vec<String>,
}

impl Archive {
    fn chain_file(&self, partition: Partition, kind: &str) -> Path {
        Path::from(format!("_chain/{}/{partition}{kind}", self.topic))
    }

    /// Reads a file of a chain's, if there is one; one that a newer release wrote is an error.
    async fn read<T: DeserializeOwned>(
        &self,
        key: Path,
        is_newer: impl FnOnce(&T) -> bool,
    ) -> Result<Option<T>, HeadError> {
        let Some(bytes) = self.find(&key).await? else { return Ok(None) };
        let file = serde_json::from_slice(&bytes).map_err(|error| HeadError::Unreadable(format!("{key}: {error}")))?;
        if is_newer(&file) {
            return Err(HeadError::Unreadable(format!("{key} was written by a newer release")));
        }
        Ok(Some(file))
    }

    /// The operator's marker on this partition, if there is one.
    pub async fn skip(&self, partition: Partition) -> Result<Option<Skip>, HeadError> {
        self.read(self.chain_file(partition, SKIP), |skip: &Skip| skip.version > Skip::VERSION).await
    }

    /// Says it, in the place of an earlier one. Returns the key.
    pub async fn write_skip(&self, partition: Partition, skip: &Skip) -> object_store::Result<Path> {
        let key = self.chain_file(partition, SKIP);
        self.put(&key, json(skip), PutMode::Overwrite).await?;
        Ok(key)
    }

    pub async fn write_head(&self, partition: Partition, head: &Head) -> object_store::Result<()> {
        self.put(&self.chain_file(partition, HEAD), json(head), PutMode::Overwrite).await.map(drop)
    }

    /// What stands below `_chain/<topic>/`.
    pub async fn list_chain_files(&self) -> object_store::Result<ChainFiles> {
        let folder = Path::from(format!("_chain/{}", self.topic));
        let mut found = self.store().await?.list(Some(&folder));
        let mut files = ChainFiles::default();
        while let Some(object) = self.within(found.try_next()).await? {
            let name = object.location.filename().unwrap_or_default();
            let partition = |suffix: &str| name.strip_suffix(suffix)?.parse().ok().map(Partition);
            if let Some(partition) = partition(SKIP) {
                files.skips.push(partition);
            } else if let Some(partition) = partition(HEAD) {
                files.heads.push(partition);
            } else if files.strays.len() < Listing::MOST_STRAYS {
                files.strays.push(object.location.to_string());
            }
        }
        Ok(files)
    }
}

impl Heads for Archive {
    async fn head(&self, partition: Partition) -> Result<Option<Head>, HeadError> {
        self.read(self.chain_file(partition, HEAD), |head: &Head| head.version > Head::VERSION).await
    }

    async fn pin(&self, partition: Partition, head: &Head) -> object_store::Result<bool> {
        match self.create(&self.chain_file(partition, HEAD), json(head)).await {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn look_ahead(&self, partition: Partition, head: &Head) -> Result<Option<Offset>, HeadError> {
        match self.newest_after(partition, head, Utc::now()).await? {
            Some(name) => self.object_end(&name.key(&self.topic), name.format).await.map(Some),
            None => Ok(None),
        }
    }

    async fn find_end(&self, partition: Partition) -> Result<Option<(Offset, String)>, HeadError> {
        let Some((key, format)) = self.last_object(partition).await? else { return Ok(None) };
        Ok(Some((self.object_end(&key, format).await?, key.to_string())))
    }
}

/// A struct of strings and numbers, which always serialises.
pub(super) fn json(file: &impl Serialize) -> Bytes {
    serde_json::to_vec(file).unwrap_or_default().into()
}
