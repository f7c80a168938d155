//! Segments on the archive's own disk: an archive below the data directory takes a segment's file as its object, by a hard
//! link. Nothing is copied, and nothing of it is in memory.
//!
//! A sealed segment's file is durable and is not written again, only removed; and to link is to create, as a PUT is: it
//! fails where the name is taken. So the object is what a PUT of the same bytes would have made.

use std::path::{Path as FilePath, PathBuf};

use object_store::{ObjectStoreExt, local::LocalFileSystem, path::Path};

use super::archive::local_folder;
use crate::config::Config;

/// An archive that may share a file system with the spool.
pub(super) struct Links {
    /// The data directory as a store, which links as it copies.
    store: LocalFileSystem,
    data_dir: PathBuf,
    /// The archive, below the data directory.
    archive: Path,
}

impl Links {
    /// `None` for an archive that is not below the data directory: what is elsewhere may have its own permissions.
    ///
    /// # Errors
    /// When there is no data directory.
    pub(super) fn within_data_dir(config: &Config) -> object_store::Result<Option<Self>> {
        if !config.archive.is_on() || !config.archive.is_local() {
            return Ok(None);
        }
        let data_dir = config.data.dir.clone();
        let folder = local_folder(config, &config.archive.url);
        let Some(archive) = below(&data_dir, &folder) else { return Ok(None) };
        let store = LocalFileSystem::new_with_prefix(&data_dir)?.with_fsync(true);
        Ok(Some(Self { store, data_dir, archive }))
    }

    /// Makes the file `from` the object `key`, durably. `AlreadyExists` where one stands; other errors say that this cannot
    /// be linked: the archive may be another disk's folder.
    pub(super) async fn link(&self, from: &FilePath, key: &Path) -> object_store::Result<()> {
        let Some(from) = below(&self.data_dir, from) else {
            let what = format!("{} is not below {}", from.display(), self.data_dir.display());
            return Err(object_store::Error::Generic { store: "archive", source: what.into() });
        };
        let key = self.archive.parts().chain(key.parts()).collect();
        self.store.copy_if_not_exists(&from, &key).await
    }
}

/// The path of `file` in the store of `folder`.
fn below(folder: &FilePath, file: &FilePath) -> Option<Path> {
    let relative = file.strip_prefix(folder).ok()?;
    Path::parse(relative.to_str()?).ok()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _};

    use super::*;

    fn links(config: &Config) -> Option<Links> {
        Links::within_data_dir(config).unwrap()
    }

    #[tokio::test]
    async fn a_segment_is_the_object_itself_unless_one_stands_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.data.dir = dir.path().join("data");
        let (spool, archive) = (config.data.dir.join("spool/t@1/0"), config.data.dir.join("archive/topic=t@1"));
        fs::create_dir_all(&spool).unwrap();
        fs::create_dir(dir.path().join("data/archive")).unwrap();
        let links = links(&config).unwrap();
        let (ours, theirs) = (spool.join("1.zst"), spool.join("2.zst"));
        let key = Path::from("topic=t@1/date=2026-11-23/0-1.ndjson.zst");
        fs::write(&ours, "ours").unwrap();
        fs::write(&theirs, "theirs").unwrap();
        links.link(&ours, &key).await.unwrap();
        for _ in 0..2 {
            let refused = links.link(&theirs, &key).await;
            assert!(matches!(refused, Err(object_store::Error::AlreadyExists { .. })), "{refused:?}");
        }
        let object = archive.join("date=2026-11-23/0-1.ndjson.zst");
        assert_eq!(fs::metadata(&object).unwrap().ino(), fs::metadata(&ours).unwrap().ino());
        fs::remove_file(&ours).unwrap();
        assert_eq!(fs::read(object).unwrap(), b"ours");
    }

    #[test]
    fn only_a_folder_below_the_data_directory_takes_links() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.data.dir = dir.path().to_owned();
        let elsewhere = format!("file://{}-elsewhere", dir.path().display());
        let below = format!("file://{}/objects", dir.path().display());
        for (url, takes) in [("file:", true), (&below, true), (&elsewhere, false), ("none", false), ("s3://b", false)] {
            config.archive.url = url.to_owned();
            assert_eq!(links(&config).is_some(), takes, "{url}");
        }
    }
}
