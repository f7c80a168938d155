//! Libraries that stand between the daemon and the C library (`LD_PRELOAD`), built from the C files beside this one.

use std::{path::Path, process::Command};

use crate::support::skip;

/// Builds `tests/faults/<name>.c` into `folder`. `None` where there is no C compiler: the test is skipped.
///
/// # Panics
/// When it does not compile.
pub fn library(folder: &Path, name: &str) -> Option<String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults").join(name).with_extension("c");
    let library = folder.join(name).with_extension("so");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wno-format-truncation", "-o"])
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
