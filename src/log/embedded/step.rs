//! The seam for tests of crashes: the writer says each step between one thing that becomes durable and the next.

use std::{io, path::Path};

/// What can come between one thing that becomes durable and the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// A file was made; its name is not durable.
    Created,
    /// A segment was listed.
    Listed,
    /// A frame is about to be written.
    Write,
    /// The frames of a commit are written, and about to be made durable.
    Sync,
    /// They are durable, and nobody was told.
    Synced,
    /// Segments are no longer listed; their files are still there.
    Removed,
}

/// Says that it is done, or about to be.
///
/// # Errors
/// Where a test has it fail.
#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "tests have it fail")]
pub(super) fn step(_: &Path, _: Step) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(super) use self::steps::{Steps, step};

#[cfg(test)]
mod steps {
    use std::{collections::BTreeMap, path::PathBuf};

    use parking_lot::Mutex;

    use super::*;

    type Hook = Box<dyn FnMut(Step) -> io::Result<()> + Send>;

    static HOOKS: Mutex<BTreeMap<PathBuf, Hook>> = Mutex::new(BTreeMap::new());

    pub fn step(folder: &Path, step: Step) -> io::Result<()> {
        HOOKS.lock().get_mut(folder).map_or(Ok(()), |hook| hook(step))
    }

    /// Has each step of the log in a folder told, which fails where that fails, until it is dropped.
    pub struct Steps(PathBuf);

    impl Steps {
        pub fn tell(folder: PathBuf, hook: impl FnMut(Step) -> io::Result<()> + Send + 'static) -> Self {
            HOOKS.lock().insert(folder.clone(), Box::new(hook));
            Self(folder)
        }
    }

    impl Drop for Steps {
        fn drop(&mut self) {
            HOOKS.lock().remove(&self.0);
        }
    }
}
