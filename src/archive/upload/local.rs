//! An archive in a folder of this machine.
//!
//! One below the data directory takes a segment's file as its object, by a hard link. Nothing is copied, and nothing of it is
//! in memory. A sealed segment's file is durable and is not written again, only removed; and to link is to create, as a PUT is:
//! it fails where the name is taken. So the object is what a PUT of the same bytes would have made.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    path::{Path as FilePath, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context;
use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt, local::LocalFileSystem, path::Path};
use rustix::fs::{CWD, RenameFlags};

use super::errors::failed;
use crate::{archive::format::ObjectFormat, config::Config, files};

/// What the folder of a local archive can besides its store.
pub(super) struct Local {
    folder: PathBuf,
    links: Option<Links>,
}

struct Links {
    /// The data directory as a store, which links as it copies.
    store: LocalFileSystem,
    /// As the segments' paths begin.
    data_dir: PathBuf,
    /// The archive in that store.
    archive: Path,
    /// Spool and archive are not on one file system.
    refused: AtomicBool,
}

impl Local {
    /// `None` when the archive is no folder.
    pub(super) fn open(config: &Config) -> anyhow::Result<Option<Self>> {
        if !config.archive.is_on() || !config.archive.is_local() {
            return Ok(None);
        }
        let folder = folder(config);
        let folder =
            fs::canonicalize(&folder).with_context(|| format!("cannot use the folder {}", folder.display()))?;
        Ok(Some(Self { links: Links::open(config, &folder)?, folder }))
    }

    /// Whether [`Self::link`] can be expected to link.
    pub(super) fn takes_links(&self) -> bool {
        self.links.as_ref().is_some_and(|links| !links.refused.load(Ordering::Relaxed))
    }

    /// Makes the file `from` the object `key`; `false` when it has to be put. `AlreadyExists` where one stands.
    pub(super) async fn link(&self, from: &FilePath, key: &Path) -> object_store::Result<bool> {
        let Some(links) = &self.links else { return Ok(false) };
        let Some(from) = below(&links.data_dir, from) else { return Ok(false) };
        let key = links.archive.parts().chain(key.parts()).collect();
        match links.store.copy_if_not_exists(&from, &key).await {
            Ok(()) => Ok(true),
            Err(error) => match cause(&error) {
                Some(ErrorKind::CrossesDevices) => {
                    links.refused.store(true, Ordering::Relaxed);
                    Ok(false)
                }
                // A file that is another user's can be read, but not linked (fs.protected_hardlinks); and some file systems
                // have no links, and say so in one of these ways.
                Some(ErrorKind::PermissionDenied | ErrorKind::Unsupported) => Ok(false),
                _ => Err(error),
            },
        }
    }

    /// Makes an object where the file system has no hard links (exFAT, SMB, some of FUSE), by which a create-only PUT is made
    /// elsewhere: a file beside it, renamed so that nothing is replaced.
    pub(super) async fn create(&self, key: &Path, data: Bytes) -> object_store::Result<()> {
        let (object, path) = (self.folder.join(key.as_ref()), key.to_string());
        let created = tokio::task::spawn_blocking(move || create_by_rename(&object, &data));
        created.await.unwrap_or_else(|error| Err(error.into())).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => object_store::Error::AlreadyExists { path, source: error.into() },
            _ => failed(format!(
                "{path} cannot be made: the file system has neither hard links nor, it seems, renames that replace nothing \
                 (RENAME_NOREPLACE): put the archive on another one ({error})"
            )),
        })
    }

    /// Makes the name of an object durable, which stands: its folders up to the archive.
    pub(super) async fn settle(&self, key: &Path) -> object_store::Result<()> {
        let (object, root) = (self.folder.join(key.as_ref()), self.folder.clone());
        let settled = tokio::task::spawn_blocking(move || {
            let mut folders = object.ancestors().skip(1).take_while(|folder| folder.starts_with(&root));
            folders.try_for_each(|folder| File::open(folder)?.sync_all())
        });
        let settled = settled.await.unwrap_or_else(|error| Err(error.into()));
        settled.map_err(|error| failed(format!("the folder of {key} cannot be synced: {error}")))
    }
}

impl Links {
    /// `None` for an archive that is not below the data directory: what is elsewhere may have permissions of its own (a group,
    /// ACLs), which a link does not take over.
    fn open(config: &Config, archive: &FilePath) -> anyhow::Result<Option<Self>> {
        let data_dir = config.data.dir.clone();
        let Ok(real) = fs::canonicalize(&data_dir) else { return Ok(None) };
        let Some(archive) = below(&real, archive) else { return Ok(None) };
        let store = LocalFileSystem::new_with_prefix(&real)
            .with_context(|| format!("cannot use the folder {}", data_dir.display()))?
            .with_fsync(true);
        Ok(Some(Self { store, data_dir, archive, refused: AtomicBool::new(false) }))
    }
}

/// Blocks. What an interruption leaves, `…#n`, the next start sweeps away.
fn create_by_rename(object: &FilePath, data: &[u8]) -> io::Result<()> {
    let folder = object.parent().ok_or(ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    let mut name = object.file_name().ok_or(ErrorKind::InvalidInput)?.to_owned();
    name.push(format!("#{}", fastrand::u32(..)));
    let staged = folder.join(name);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&staged)?;
    let renamed = file
        .write_all(data)
        .and_then(|()| file.sync_all())
        .and_then(|()| Ok(rustix::fs::renameat_with(CWD, &staged, CWD, object, RenameFlags::NOREPLACE)?));
    if renamed.is_err() {
        // It is swept away otherwise.
        let _ = fs::remove_file(&staged);
    }
    renamed
}

/// Whether it failed for want of hard links.
pub(super) fn has_no_links(error: &object_store::Error) -> bool {
    matches!(cause(error), Some(ErrorKind::PermissionDenied | ErrorKind::Unsupported | ErrorKind::TooManyLinks))
        && error.to_string().contains("Unable to rename file")
}

/// The path of `file` in the store of `folder`.
fn below(folder: &FilePath, file: &FilePath) -> Option<Path> {
    let relative = file.strip_prefix(folder).ok()?;
    Path::parse(relative.to_str()?).ok()
}

fn cause(error: &object_store::Error) -> Option<ErrorKind> {
    anyhow::Chain::new(error).find_map(|error| error.downcast_ref()).map(io::Error::kind)
}

/// The folder that the configuration names.
pub(super) fn folder(config: &Config) -> PathBuf {
    match config.archive.url.strip_prefix("file:").map(|rest| rest.strip_prefix("//").unwrap_or(rest)) {
        Some("") | None => config.data.dir.join("archive"),
        Some(path) => path.into(),
    }
}

/// The store of that folder, which is made where it is missing.
pub(super) fn open_store(config: &Config) -> anyhow::Result<Arc<dyn ObjectStore>> {
    let folder = folder(config);
    files::create_private_dir(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let store = LocalFileSystem::new_with_prefix(&folder)
        .with_context(|| format!("cannot use the folder {}", folder.display()))?
        .with_fsync(true);
    Ok(Arc::new(store))
}

/// Removes what writes that were interrupted left in a local archive. Only while no other process writes there: once at
/// the start, under the data directory's lock. What cannot be looked at is left, and said.
pub fn sweep(config: &Config) {
    if !config.archive.is_local() {
        return;
    }
    let folder = folder(config);
    let ours = |name: &str| name == "_chain" || name.starts_with("topic=");
    let swept = fs::read_dir(&folder).and_then(|mut entries| {
        entries.try_for_each(|entry| match entry? {
            entry if ours(&entry.file_name().to_string_lossy()) => sweep_staging(&entry.path()),
            _ => Ok(()),
        })
    });
    if let Err(error) = swept {
        tracing::warn!(folder = %folder.display(), %error, "what interrupted writes left in the archive is not all removed");
    }
}

/// Removes what is staged for objects and chain files, `…#n`, that a write which was interrupted left behind.
fn sweep_staging(folder: &FilePath) -> io::Result<()> {
    let is_staged = |name: &str| {
        name.rsplit_once('#').is_some_and(|(object, n)| {
            (ObjectFormat::of_name(object).is_some() || object.ends_with(".json")) && n.parse::<u32>().is_ok()
        })
    };
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sweep_staging(&entry.path())?;
        } else if is_staged(&entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    #[test]
    fn a_start_removes_what_was_staged_for_objects_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let staged = ["topic=a/date=x/0-1.ndjson.zst#1", "_chain/a/0.json#22"];
        let others = ["report#3", "shared/0-1.ndjson.zst#1", "topic=a/notes#1", "topic=a/date=x/0-1.ndjson.zst"];
        for file in staged.iter().chain(&others) {
            let file = folder.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "x").unwrap();
        }
        sweep(&config(folder.path(), &url));
        let stands = |file: &&str| folder.path().join(file).exists();
        assert_eq!(
            (staged.iter().filter(|file| stands(file)).count(), others.iter().filter(|file| stands(file)).count()),
            (0, 4)
        );
    }

    fn config(data_dir: &FilePath, url: &str) -> Config {
        let mut config = Config::default();
        config.data.dir = data_dir.to_owned();
        config.archive.url = url.to_owned();
        config
    }

    fn opened(config: &Config) -> Option<Local> {
        if config.archive.is_local() {
            open_store(config).unwrap();
        }
        Local::open(config).unwrap()
    }

    #[tokio::test]
    async fn a_segment_is_the_object_itself_unless_one_stands_there() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, archive) = (dir.path().join("spool/t@1/0"), dir.path().join("archive/topic=t@1"));
        fs::create_dir_all(&spool).unwrap();
        let local = opened(&config(dir.path(), "file:")).unwrap();
        let (ours, theirs) = (spool.join("1.zst"), spool.join("2.zst"));
        let key = Path::from("topic=t@1/date=2026-11-23/0-1.ndjson.zst");
        fs::write(&ours, "ours").unwrap();
        fs::write(&theirs, "theirs").unwrap();
        assert!(local.link(&ours, &key).await.unwrap());
        local.settle(&key).await.unwrap();
        for _ in 0..2 {
            let refused = local.link(&theirs, &key).await;
            assert!(matches!(refused, Err(object_store::Error::AlreadyExists { .. })), "{refused:?}");
        }
        let object = archive.join("date=2026-11-23/0-1.ndjson.zst");
        assert_eq!(fs::metadata(&object).unwrap().ino(), fs::metadata(&ours).unwrap().ino());
        fs::remove_file(&ours).unwrap();
        assert_eq!(fs::read(object).unwrap(), b"ours");
    }

    #[tokio::test]
    async fn what_is_on_another_disk_is_put_and_no_longer_tried() {
        let dir = tempfile::tempdir().unwrap();
        // /proc is never where a temporary folder is.
        symlink("/proc/self", dir.path().join("spool")).unwrap();
        let local = opened(&config(dir.path(), "file:")).unwrap();
        assert!(local.takes_links());
        assert!(!local.link(&dir.path().join("spool/status"), &Path::from("1")).await.unwrap());
        assert!(!local.takes_links());
    }

    #[test]
    fn without_links_an_object_is_renamed_into_its_place_and_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let object = dir.path().join("topic=t/0-1.ndjson.zst");
        create_by_rename(&object, b"ours").unwrap();
        let refused = create_by_rename(&object, b"theirs").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&object).unwrap(), b"ours");
        assert_eq!(fs::read_dir(object.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[tokio::test]
    async fn a_link_that_fails_is_no_reason_to_put() {
        let dir = tempfile::tempdir().unwrap();
        let local = opened(&config(dir.path(), "file:")).unwrap();
        fs::create_dir(dir.path().join("spool")).unwrap();
        fs::write(dir.path().join("archive/topic=t"), "where a folder should be").unwrap();
        fs::write(dir.path().join("spool/1.zst"), "data").unwrap();
        assert!(local.link(&dir.path().join("spool/1.zst"), &Path::from("topic=t/1")).await.is_err());
        assert!(local.takes_links());
    }

    #[test]
    fn only_a_folder_below_the_data_directory_takes_links() {
        let dir = tempfile::tempdir().unwrap();
        let (data, elsewhere) = (dir.path().join("data"), dir.path().join("elsewhere"));
        fs::create_dir_all(&data).unwrap();
        fs::create_dir_all(&elsewhere).unwrap();
        symlink(&elsewhere, data.join("linked")).unwrap();
        let url = |folder: &FilePath| format!("file://{}", folder.display());
        for (url, takes) in [
            ("file:".to_owned(), true),
            (url(&data.join("objects")), true),
            (url(&elsewhere), false),
            (url(&data.join("linked")), false),
        ] {
            assert_eq!(opened(&config(&data, &url)).unwrap().takes_links(), takes, "{url}");
        }
        for url in ["none", "s3://b"] {
            assert!(opened(&config(&data, url)).is_none());
        }
    }
}
