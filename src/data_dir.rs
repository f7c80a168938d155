//! The data directory: made, locked against a second process, and told apart from a copy of it on another machine.

use std::{
    fs::{self, File, TryLockError},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::files::{create_private, create_private_dir};

/// An open data directory. Its lock is held until it is dropped, also by a `kill -9`: the kernel gives it back.
#[derive(Debug)]
pub struct DataDir {
    pub path: PathBuf,
    /// The id by which Kafka's groups know this worker (`group.instance.id`): the same after a restart, so that the
    /// partitions come back at once.
    pub instance: String,
    _lock: File,
}

/// The file `instance`.
#[derive(Serialize, Deserialize)]
struct Instance {
    version: u32,
    id: String,
    /// The machine that the id was made on.
    machine: String,
}

const VERSION: u32 = 1;

impl DataDir {
    /// Makes the folder where it is missing, locks it, and reads or makes the instance id. On another machine than
    /// before (a moved volume, a restored image) a new id is made, because the old machine may still be running.
    ///
    /// # Errors
    /// When the folder cannot be used, or another process uses it.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        create_private_dir(path).with_context(|| format!("data.dir: cannot make the folder {}", path.display()))?;
        let lock = lock(path)?;
        let instance = instance(&path.join("instance"))?;
        Ok(Self { path: path.to_owned(), instance, _lock: lock })
    }
}

/// Locks the folder, for as long as the file is open.
///
/// # Errors
/// When another process uses it.
pub fn lock(path: &Path) -> anyhow::Result<File> {
    let lock_path = path.join("lock");
    let lock = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .with_context(|| format!("data.dir: cannot open {}", lock_path.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!(
            "data.dir: {} is in use by another ingestd: stop it, or give this one a folder of its own",
            path.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("data.dir: cannot lock {}", lock_path.display()))
        }
    }
}

fn instance(path: &Path) -> anyhow::Result<String> {
    let machine = machine_id();
    match fs::read(path) {
        Ok(bytes) => {
            let known: Instance = serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is not readable: remove it to get a new instance id", path.display()))?;
            if known.version > VERSION {
                bail!("{} was written by a newer release: use that one", path.display());
            }
            if known.machine == machine {
                return Ok(known.id);
            }
            tracing::warn!(
                old = known.id,
                "data.dir comes from another machine: taking a new instance id; sealed segments are kept"
            );
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
    let made = Instance { version: VERSION, id: format!("ingestd-{}", Uuid::now_v7()), machine };
    write_private(path, &serde_json::to_vec_pretty(&made)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(made.id)
}

fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let staged = path.with_extension("tmp");
    let mut file = create_private(&staged)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(staged, path)
}

/// systemd's machine id; without one (some containers) all machines count as the same, and the lock must do.
fn machine_id() -> String {
    fs::read_to_string("/etc/machine-id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_refused_and_the_instance_stays() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataDir::open(folder.path()).unwrap();
        let refusal = DataDir::open(folder.path()).unwrap_err().to_string();
        assert!(refusal.contains("another ingestd"), "{refusal}");
        let instance = first.instance.clone();
        drop(first);
        assert_eq!(DataDir::open(folder.path()).unwrap().instance, instance);
    }

    #[test]
    fn on_another_machine_the_instance_is_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("instance");
        let moved = Instance { version: 1, id: "ingestd-old".into(), machine: "elsewhere".into() };
        fs::write(&path, serde_json::to_vec(&moved).unwrap()).unwrap();
        assert_ne!(instance(&path).unwrap(), "ingestd-old");
    }
}
