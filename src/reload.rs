//! Reload: reads the configuration anew and puts its live keys in force. A bad file changes nothing; keys that need a
//! restart are named.
//!
//! Three things ask for it: SIGHUP, `POST /reload`, and a changed file ([`FileWatch`]).

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::config::{Config, LiveConfig, Reloaded};

/// Puts a new configuration in force, one reload at a time.
pub struct Reloader {
    next: Box<Next>,
    live: LiveConfig,
    on_change: Box<dyn Fn(&Config) + Send + Sync>,
    turn: Mutex<()>,
}

/// Reads the configuration from where it came at the start, and compares it with the one in force: what is to be in force,
/// and what differed. The error lists everything that is wrong.
type Next = dyn Fn(&Config) -> Result<(Config, Reloaded), String> + Send + Sync;

impl Reloader {
    /// `on_change` is called with the configuration in force after each reload that changed it, for what does not read
    /// it at each use (such as the log's filter).
    pub fn new(
        live: LiveConfig,
        next: impl Fn(&Config) -> Result<(Config, Reloaded), String> + Send + Sync + 'static,
        on_change: impl Fn(&Config) + Send + Sync + 'static,
    ) -> Self {
        Self { next: Box::new(next), live, on_change: Box::new(on_change), turn: Mutex::default() }
    }

    /// Reads files: call it on a blocking thread. `cause` says in the log who asked, and `request_id` by which request.
    ///
    /// # Errors
    /// What is wrong with the new configuration; the old one stays in force.
    pub fn reload(&self, cause: &'static str, request_id: Option<&str>) -> Result<Reloaded, String> {
        let _turn = self.turn.lock();
        let (config, reloaded) = (self.next)(&self.live.load_full()).inspect_err(|error| {
            tracing::error!(cause, request_id, error, "configuration not reloaded: the one in force stays");
        })?;
        if !reloaded.applied.is_empty() {
            self.live.store(Arc::new(config));
            (self.on_change)(&self.live.load());
        }
        let (applied, needs_restart) = (reloaded.applied.join(", "), reloaded.needs_restart.join(", "));
        if needs_restart.is_empty() {
            tracing::info!(cause, request_id, applied, "configuration reloaded");
        } else {
            tracing::warn!(
                cause,
                request_id,
                applied,
                needs_restart,
                "configuration reloaded; some keys need a restart"
            );
        }
        Ok(reloaded)
    }
}

/// Notices that the content of a file changed which the configuration is read from, files of secrets among them: edited
/// in place, replaced by a rename, or behind a symbolic link that was turned (as mounted config maps do). Reloads once
/// for each change, so that a bad file is reported once.
pub struct FileWatch {
    /// Which files these are; the configuration says so, so it is asked again after each reload.
    files: Box<dyn Fn() -> Vec<PathBuf> + Send + Sync>,
    reloader: Arc<Reloader>,
    seen: Mutex<BTreeMap<PathBuf, Seen>>,
}

/// SHA-256 of the content; `None` where there is no readable file.
type Content = Option<[u8; 32]>;

/// What is watched has some KiB. A larger file counts as changed with its stamp.
const LARGEST: u64 = 4 << 20;

struct Seen {
    stamp: Option<Stamp>,
    /// What the last check found.
    latest: Content,
    /// What the last reload, or the start, was about.
    acted_on: Content,
}

/// What changes whenever a file's content does (of the file behind symbolic links): where it is, how long, and when it was
/// modified and changed.
type Stamp = ((u64, u64), u64, (i64, i64), (i64, i64));

impl FileWatch {
    /// Takes the files' present content as the one in force: make it before the configuration is loaded, or right
    /// after.
    pub fn new(files: impl Fn() -> Vec<PathBuf> + Send + Sync + 'static, reloader: Arc<Reloader>) -> Self {
        let seen = files().into_iter().map(|path| (path.clone(), Seen::of(&path))).collect();
        Self { files: Box::new(files), reloader, seen: Mutex::new(seen) }
    }

    /// Looks at the files, and reloads when a content changed and stood still since the check before (a file that is
    /// being written is left alone). Reads files: call it on a blocking thread.
    pub fn check(&self) {
        let mut seen = self.seen.lock();
        // Each of them is looked at.
        let changed = seen.iter_mut().filter_map(|(path, seen)| seen.changed(path).then_some(())).count() > 0;
        if changed {
            // The reloader has logged what is wrong.
            let _ = self.reloader.reload("changed file", None);
            let mut known = std::mem::take(&mut *seen);
            let files = (self.files)().into_iter();
            *seen = files.map(|path| (path.clone(), known.remove(&path).unwrap_or_else(|| Seen::of(&path)))).collect();
        }
    }
}

impl Seen {
    fn of(path: &Path) -> Self {
        let stamp = stamp(path);
        let content = digest(path, stamp);
        Self { stamp, latest: content, acted_on: content }
    }

    fn changed(&mut self, path: &Path) -> bool {
        let stamp = stamp(path);
        if stamp != self.stamp {
            self.stamp = stamp;
            self.latest = digest(path, stamp);
            return false;
        }
        let settled = self.latest != self.acted_on;
        self.acted_on = self.latest;
        settled
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = fs::metadata(path).ok()?;
    let (modified, changed) = ((file.mtime(), file.mtime_nsec()), (file.ctime(), file.ctime_nsec()));
    Some(((file.dev(), file.ino()), file.len(), modified, changed))
}

fn digest(path: &Path, stamp: Option<Stamp>) -> Content {
    // A pipe would be waited for at its opening, and a device read without end.
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut content = Vec::new();
    File::open(path).ok()?.take(LARGEST + 1).read_to_end(&mut content).ok()?;
    if content.len() as u64 > LARGEST {
        content = format!("{stamp:?}").into();
    }
    Some(Sha256::digest(&content).into())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use arc_swap::ArcSwap;

    use super::*;

    /// Loads a file that holds `disk.max_used_percent` as a bare number, and counts how often it is asked to.
    fn reloader(path: PathBuf, loads: Arc<AtomicUsize>) -> (Arc<Reloader>, LiveConfig) {
        let live: LiveConfig = Arc::new(ArcSwap::from_pointee(Config::default()));
        let next = move |old: &Config| {
            loads.fetch_add(1, Ordering::SeqCst);
            let text = fs::read_to_string(&path).map_err(|error| error.to_string())?;
            let mut new = Config::default();
            new.disk.max_used_percent = text.trim().parse().map_err(|_| format!("{text:?} is not a number"))?;
            let applied = if old.disk == new.disk { vec![] } else { vec!["disk.max_used_percent".to_owned()] };
            Ok((new, Reloaded { applied, needs_restart: vec![] }))
        };
        (Arc::new(Reloader::new(live.clone(), next, |_| ())), live)
    }

    fn watch(paths: &[&Path], reloader: Arc<Reloader>) -> FileWatch {
        let paths: Vec<PathBuf> = paths.iter().map(|path| (*path).to_owned()).collect();
        FileWatch::new(move || paths.clone(), reloader)
    }

    #[test]
    fn each_file_of_the_configuration_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        let (path, secret) = (dir.path().join("config.toml"), dir.path().join("secret"));
        fs::write(&path, "70").unwrap();
        fs::write(&secret, "one").unwrap();
        let loads = Arc::new(AtomicUsize::new(0));
        let (reloader, live) = reloader(path.clone(), loads.clone());
        let watch = watch(&[&path, &secret], reloader);
        fs::write(&secret, "another").unwrap();
        (0..3).for_each(|_| watch.check());
        assert_eq!(loads.load(Ordering::SeqCst), 1);
        // Both at once are one change.
        fs::write(&path, "80").unwrap();
        fs::write(&secret, "a third").unwrap();
        (0..3).for_each(|_| watch.check());
        assert_eq!((live.load().disk.max_used_percent, loads.load(Ordering::SeqCst)), (80.0, 2));
    }

    #[test]
    fn a_bad_file_changes_nothing_and_is_reported_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, "70").unwrap();
        let loads = Arc::new(AtomicUsize::new(0));
        let (reloader, live) = reloader(path.clone(), loads.clone());
        let before = live.load_full();
        let watch = watch(&[&path], reloader.clone());
        fs::write(&path, "seventy").unwrap();
        (0..5).for_each(|_| watch.check());
        assert_eq!(loads.load(Ordering::SeqCst), 1);
        assert!(reloader.reload("test", None).unwrap_err().contains("seventy"));
        assert!(Arc::ptr_eq(&before, &live.load_full()));
    }

    #[test]
    fn a_file_replaced_by_a_rename_or_by_a_turned_link_is_reloaded_once() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("a"), dir.path().join("config.toml"));
        fs::write(&path, "70").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let loads = Arc::new(AtomicUsize::new(0));
        let (reloader, live) = reloader(link.clone(), loads.clone());
        let watch = watch(&[&link], reloader);
        let percent = || live.load().disk.max_used_percent;

        fs::write(dir.path().join("new"), "80").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        (0..3).for_each(|_| watch.check());
        assert_eq!((percent(), loads.load(Ordering::SeqCst)), (80.0, 1));

        fs::write(dir.path().join("b"), "90").unwrap();
        std::os::unix::fs::symlink(dir.path().join("b"), dir.path().join("turned")).unwrap();
        fs::rename(dir.path().join("turned"), &link).unwrap();
        (0..3).for_each(|_| watch.check());
        assert_eq!((percent(), loads.load(Ordering::SeqCst)), (90.0, 2));
    }

    #[test]
    fn what_is_no_file_is_not_read_and_a_huge_one_goes_by_its_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let [path, pipe, huge] = ["config.toml", "pipe", "huge"].map(|name| dir.path().join(name));
        fs::write(&path, "70").unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let loads = Arc::new(AtomicUsize::new(0));
        let (reloader, _) = reloader(path.clone(), loads.clone());
        let watched = [path, pipe, huge.clone(), PathBuf::from("/dev/zero")];
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let watch = FileWatch::new(move || watched.to_vec(), reloader);
            for to in [1 << 40, 1 << 41] {
                File::create(&huge).unwrap().set_len(to).unwrap();
                (0..3).for_each(|_| watch.check());
                done.send(loads.load(Ordering::SeqCst)).unwrap();
            }
        });
        let next = || is_done.recv_timeout(std::time::Duration::from_secs(20)).expect("it does not hang");
        assert_eq!((next(), next()), (1, 2));
    }

    #[test]
    fn a_touched_file_with_the_same_content_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, "70").unwrap();
        let loads = Arc::new(AtomicUsize::new(0));
        let (reloader, _) = reloader(path.clone(), loads.clone());
        let watch = watch(&[&path], reloader);
        fs::write(dir.path().join("new"), "70").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        (0..3).for_each(|_| watch.check());
        assert_eq!(loads.load(Ordering::SeqCst), 0);
    }
}
