//! What is installed beside the binary.

use std::{fs, path::Path, process::Command};

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let unit = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/ingestd.service"));
    let unit = unit.expect("packaging/ingestd.service can be read");
    // systemd looks for the program, which is not installed here.
    let program_here = |line: &str| match line.strip_prefix("ExecStart=") {
        Some(command) => {
            let arguments = command.split_once(' ').map(|(_, arguments)| arguments).unwrap_or_default();
            format!("ExecStart={} {arguments}\n", env!("CARGO_BIN_EXE_ingestd"))
        }
        None => format!("{line}\n"),
    };
    let unit: String = unit.lines().map(program_here).collect();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ingestd.service");
    fs::write(&path, unit).expect("it can be written");
    let Ok(verified) = Command::new("systemd-analyze").arg("verify").arg("--man=no").arg(&path).output() else {
        let required = std::env::var_os("INGESTD_REQUIRE_SERVICES").is_some_and(|value| value == "1");
        assert!(!required, "INGESTD_REQUIRE_SERVICES=1, and systemd-analyze cannot be run");
        eprintln!("\n!!! SKIPPED: the check of the systemd unit; systemd-analyze cannot be run\n");
        return;
    };
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success(), "{said}");
    // It also warns, with success, about keys that it does not know.
    assert!(!said.contains("ingestd.service:"), "{said}");
}
