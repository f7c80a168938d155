//! Libraries that stand between the daemon and the C library (`LD_PRELOAD`), built from the C files beside this one.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::{daemon::Setup, skip};

/// Builds `tests/support/<name>.c` into `folder`. `None` where there is no C compiler: the test is skipped.
///
/// # Panics
/// When it does not compile.
pub fn library(folder: &Path, name: &str) -> Option<String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support").join(name).with_extension("c");
    let library = folder.join(name).with_extension("so");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wno-format-truncation", "-Wno-nonnull-compare", "-o"])
        .args([&library, &source])
        .args(["-ldl", "-lpthread"])
        .status();
    match built {
        Ok(status) => assert!(status.success(), "{} does not compile", source.display()),
        Err(error) => {
            skip(&format!("{name}.c cannot be built, cc cannot be run ({error}): apt-get install build-essential"));
            return None;
        }
    }
    Some(library.to_str().expect("target's path is UTF-8").to_owned())
}

/// The wall clock of the daemons that are given it, moved as a test says; monotonic clocks go on.
pub struct Clock {
    library: String,
    offset: PathBuf,
}

impl Clock {
    /// The right time. Its files are in `folder`; `None` as with [`library`].
    pub fn new(folder: &Path) -> Option<Self> {
        let clock = Self { library: library(folder, "clock")?, offset: folder.join("clock") };
        clock.step(0);
        Some(clock)
    }

    /// Moves it to so many seconds from the right time.
    pub fn step(&self, seconds: i64) {
        // In one step, so that nobody reads half of it.
        let next = self.offset.with_extension("next");
        std::fs::write(&next, seconds.to_string()).expect("target can be written to");
        std::fs::rename(&next, &self.offset).expect("target can be written to");
    }

    pub fn give(&self, setup: Setup) -> Setup {
        self.variables().into_iter().fold(setup, |setup, (name, value)| setup.environment(name, value))
    }

    /// The environment of a process that has it.
    pub fn variables(&self) -> [(&'static str, &str); 2] {
        let offset = self.offset.to_str().expect("target's path is UTF-8");
        [("LD_PRELOAD", &self.library), ("CLOCK_OFFSET_FILE", offset)]
    }
}
