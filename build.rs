//! Names the commit for `--version`, and packs the binary's relocations. From a tarball, where there is no repository,
//! `INGESTD_COMMIT` may say the commit. With `INGESTD_PORTABLE=1` relocations stay as older systems read them.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=INGESTD_COMMIT");
    let commit = env::var("INGESTD_COMMIT").ok().filter(|commit| !commit.is_empty()).or_else(commit);
    println!("cargo:rustc-env=INGESTD_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    println!("cargo:rerun-if-env-changed=INGESTD_PORTABLE");
    if relocations_can_be_packed() {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Packed, they take 13 KB instead of 1.1 MB, which are read with each start and then count as the daemon's memory. glibc
/// understands them since 2.36 (Ubuntu 22.04 and RHEL 9 have less). Where the target is not this machine nothing is known of
/// its glibc.
fn relocations_can_be_packed() -> bool {
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|it| it == value);
    if is("INGESTD_PORTABLE", "1")
        || !is("CARGO_CFG_TARGET_OS", "linux")
        || !is("CARGO_CFG_TARGET_ENV", "gnu")
        || env::var("HOST") != env::var("TARGET")
    {
        return false;
    }
    // Such as "glibc 2.36".
    let version = output("getconf", &["GNU_LIBC_VERSION"]);
    let minor = version.as_deref().and_then(|version| version.strip_prefix("glibc 2.")?.parse::<u32>().ok());
    minor.is_some_and(|minor| minor >= 36)
}

fn commit() -> Option<String> {
    // A tarball unpacked inside some other repository is not that repository's commit.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    let here = env::var("CARGO_MANIFEST_DIR").ok()?;
    if Path::new(&top).canonicalize().ok()? != Path::new(&here).canonicalize().ok()? {
        return None;
    }
    // A checkout changes HEAD, a commit the branch that it names. A path that is not there would rebuild each time.
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    for name in ["HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists()) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    output("git", arguments)
}

fn output(command: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(command).args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
