//! The operator's marker that a gap torn by retention may be left (4.4): an object beside the chain's head, so that
//! whichever worker holds the partition finds it.

use bytes::Bytes;
use object_store::{PutMode, path::Path};
use serde::{Deserialize, Serialize};

use super::{archive::Archive, opening::HeadError};
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

impl Archive {
    fn skip_path(&self, partition: Partition) -> Path {
        Path::from(format!("_chain/{}/{partition}.skip.json", self.topic))
    }

    /// The operator's marker on this partition, if there is one.
    ///
    /// # Errors
    /// When it cannot be read; what a newer release wrote is not obeyed.
    pub async fn skip(&self, partition: Partition) -> Result<Option<Skip>, HeadError> {
        let path = self.skip_path(partition);
        let bytes = match self.get(&path).await {
            Ok(bytes) => bytes,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(HeadError::Store(error)),
        };
        let skip: Skip =
            serde_json::from_slice(&bytes).map_err(|error| HeadError::Unreadable(format!("{path}: {error}")))?;
        if skip.version > Skip::VERSION {
            return Err(HeadError::Unreadable(format!("{path} was written by a newer release")));
        }
        Ok(Some(skip))
    }

    /// Says it, in the place of an earlier one. Returns the key.
    pub async fn write_skip(&self, partition: Partition, skip: &Skip) -> object_store::Result<Path> {
        let path = self.skip_path(partition);
        // A struct of strings and numbers always serialises.
        let bytes = Bytes::from(serde_json::to_vec(skip).unwrap_or_default());
        self.put(&path, bytes, PutMode::Overwrite).await?;
        Ok(path)
    }
}
