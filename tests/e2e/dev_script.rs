//! `./dev`, with stubs of all that it calls: what it installs, what it says, and what it then hands to cargo.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

/// What the script and its stubs take from the system.
const FROM_THE_SYSTEM: [&str; 14] =
    ["bash", "sh", "env", "cat", "cut", "dirname", "grep", "head", "mkdir", "nproc", "rm", "sed", "sort", "uname"];
/// What a machine has that nothing is to be installed on. Each writes its call into the log, and succeeds.
const PROGRAMS: [&str; 19] = [
    "apt-get",
    "c++",
    "cargo",
    "cc",
    "chromium",
    "curl",
    "java",
    "javac",
    "jq",
    "make",
    "mvn",
    "openssl",
    "pkg-config",
    "python3",
    "rustc",
    "rustup",
    "shellcheck",
    "systemd-analyze",
    "zstdcat",
];

/// A machine as the script sees it.
struct Machine {
    folder: TempDir,
}

struct Ran {
    status: Option<i32>,
    out: String,
    said: String,
}

impl Machine {
    /// Root's, with everything there.
    fn complete() -> Self {
        let machine = Self { folder: tempfile::tempdir().expect("a folder") };
        fs::create_dir(machine.bin()).expect("it was just made");
        for name in FROM_THE_SYSTEM {
            let found =
                ["/usr/bin", "/bin"].map(|folder| Path::new(folder).join(name)).into_iter().find(|it| it.exists());
            symlink(found.expect("coreutils, grep and sed are installed"), machine.bin().join(name)).expect("a link");
        }
        PROGRAMS.iter().for_each(|name| machine.stub(name, "exit 0"));
        machine.stub("id", "echo 0");
        machine.stub("java", "echo 'openjdk version \"17.0.1\" 2021' >&2");
        machine.stub("rustup", "echo 1.95.0-x86_64-unknown-linux-gnu");
        machine
    }

    fn bin(&self) -> PathBuf {
        self.folder.path().join("bin")
    }

    fn stub(&self, name: &str, does: &str) {
        let (path, log) = (self.bin().join(name), self.log_file());
        let text = format!("#!/bin/bash\necho \"{name} $*\" >>'{}'\n{does}\n", log.display());
        fs::write(&path, text).expect("it can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it was just written");
    }

    fn without(self, name: &str) -> Self {
        fs::remove_file(self.bin().join(name)).expect("it was there");
        self
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("calls")
    }

    /// The calls of this program.
    fn calls(&self, program: &str) -> Vec<String> {
        let log = fs::read_to_string(self.log_file()).unwrap_or_default();
        let called = |line: &&str| line.split(' ').next() == Some(program);
        log.lines().filter(called).map(str::to_owned).collect()
    }

    fn dev(&self, arguments: &[&str]) -> Ran {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("dev");
        let mut command = Command::new("/bin/bash");
        command.arg(script).args(arguments).stdin(Stdio::null());
        command.env_clear().env("PATH", self.bin()).env("HOME", self.folder.path());
        let output = command.output().expect("bash runs");
        let text = |bytes| String::from_utf8(bytes).expect("it prints UTF-8");
        Ran { status: output.status.code(), out: text(output.stdout), said: text(output.stderr) }
    }
}

#[test]
fn where_nothing_is_missing_nothing_is_asked_for_and_cargo_is_called() {
    let machine = Machine::complete();
    let ran = machine.dev(&["run", "--set", "spool.max_age=2s"]);
    assert_eq!((ran.status, &*ran.said), (Some(0), ""), "{}", ran.out);
    assert_eq!(machine.calls("apt-get"), [""; 0]);
    assert_eq!(machine.calls("curl"), [""; 0]);
    let cargo = machine.calls("cargo");
    assert_eq!(cargo.last().expect("it is called"), "cargo run --release --locked -- run --set spool.max_age=2s");
    assert_eq!(machine.calls("python3"), [""; 0], "to run, no service is needed");

    let ran = machine.dev(&["test"]);
    assert_eq!((ran.status, &*ran.said), (Some(0), ""), "{}", ran.out);
    assert_eq!(machine.calls("apt-get"), [""; 0]);
    assert!(machine.calls("python3").iter().any(|call| call.contains("services.py install ")));
    assert!(machine.calls("cargo").last().expect("it is called").starts_with("cargo test --release --locked"));
}

#[test]
fn the_unit_tests_need_no_service() {
    let machine = Machine::complete().without("python3").without("java").without("mvn");
    let ran = machine.dev(&["test", "unit", "event::"]);
    assert_eq!((ran.status, &*ran.said), (Some(0), ""), "{}", ran.out);
    let cargo = machine.calls("cargo");
    assert!(cargo.last().expect("it is called").ends_with("--lib event::"), "{cargo:?}");
}

#[test]
fn what_is_missing_is_said_with_its_reason_and_installed_and_nothing_else() {
    for (program, package) in [("make", "build-essential"), ("pkg-config", "pkg-config")] {
        let machine = Machine::complete().without(program);
        let ran = machine.dev(&["run"]);
        assert_eq!(ran.status, Some(0), "{}", ran.said);
        assert!(ran.said.contains(&format!("missing: {package} (")), "{}", ran.said);
        let asked = machine.calls("apt-get");
        let expected =
            ["apt-get update -q".to_owned(), format!("apt-get install -qy --no-install-recommends {package}")];
        assert_eq!(asked, expected);
    }
    let machine = Machine::complete().without("mvn");
    assert_eq!(machine.dev(&["run"]).said, "", "only tests need Maven");
    assert_eq!(machine.dev(&["test"]).status, Some(0));
    assert!(machine.calls("apt-get").last().expect("it is called").ends_with(" maven"));
}

#[test]
fn a_browser_is_installed_for_the_tests_that_have_pages_where_a_package_has_one() {
    let packaged = fs::read_to_string("/etc/os-release").is_ok_and(|text| text.lines().any(|line| line == "ID=debian"));
    for (arguments, browses) in
        [(&["test"][..], true), (&["test", "e2e"], true), (&["test", "faults"], false), (&["test", "unit"], false)]
    {
        let machine = Machine::complete().without("chromium");
        machine.stub("cargo", "echo \"chromium: ${INGESTD_CHROMIUM:-}\"");
        let ran = machine.dev(arguments);
        assert_eq!(ran.status, Some(0), "{}", ran.said);
        let asked = machine.calls("apt-get").pop().unwrap_or_default();
        assert_eq!(asked.ends_with(" chromium"), browses && packaged, "{arguments:?}: {asked}");
        assert_eq!(ran.out.contains("chromium: none"), browses && !packaged, "{arguments:?}: {}", ran.out);
    }
}

#[test]
fn a_java_that_is_too_old_is_missing() {
    let machine = Machine::complete();
    machine.stub("java", "echo 'openjdk version \"11.0.20\" 2023' >&2");
    assert_eq!(machine.dev(&["test"]).status, Some(0));
    let asked = machine.calls("apt-get").pop().expect("it is called");
    assert!(asked.ends_with("-jdk-headless"), "{asked}");
    let machine = Machine::complete().without("javac");
    assert_eq!(machine.dev(&["test"]).status, Some(0));
    assert!(machine.calls("apt-get").pop().expect("it is called").ends_with("-jdk-headless"), "a JRE is not enough");
}

#[test]
fn a_user_installs_by_sudo_and_without_it_is_told_what_to_install() {
    let machine = Machine::complete().without("make");
    machine.stub("id", "echo 1000");
    machine.stub("sudo", "exec \"$@\"");
    assert_eq!(machine.dev(&["run"]).status, Some(0));
    assert!(machine.calls("sudo").iter().any(|call| call.ends_with(" build-essential")));

    let machine = Machine::complete().without("make");
    machine.stub("id", "echo 1000");
    let ran = machine.dev(&["run"]);
    assert_eq!(ran.status, Some(78), "{}", ran.said);
    assert!(ran.said.contains("neither root nor sudo"), "{}", ran.said);
    assert!(ran.said.contains("`apt-get install build-essential`"), "{}", ran.said);
    assert_eq!(machine.calls("apt-get"), [""; 0]);
    assert_eq!(machine.calls("cargo"), [""; 0]);
}

#[test]
fn without_a_network_a_sentence_says_what_is_missing() {
    let machine = Machine::complete().without("make");
    machine.stub("apt-get", "exit 100");
    let ran = machine.dev(&["run"]);
    assert_eq!(ran.status, Some(78));
    assert!(ran.said.contains("apt-get could not install build-essential"), "{}", ran.said);

    let machine = Machine::complete().without("rustup").without("cargo");
    machine.stub("curl", "exit 6");
    let ran = machine.dev(&["run"]);
    assert_eq!(ran.status, Some(78));
    assert!(ran.said.contains("Rust is missing and rustup could not be fetched"), "{}", ran.said);

    let machine = Machine::complete();
    machine.stub("cargo", "[ \"$1\" != fetch ]");
    let ran = machine.dev(&["run"]);
    assert_eq!(ran.status, Some(78));
    assert!(ran.said.contains("the crates of Cargo.lock are not all here"), "{}", ran.said);

    let machine = Machine::complete();
    machine.stub("python3", "[ \"$*\" = \"-m pip --version\" ]");
    let ran = machine.dev(&["test"]);
    assert_eq!(ran.status, Some(78));
    assert!(ran.said.contains("the services of the tests are missing"), "{}", ran.said);
}

#[test]
fn rust_that_is_there_is_used_and_one_that_is_too_old_is_not() {
    // A distribution's, without rustup.
    let machine = Machine::complete().without("rustup");
    machine.stub("cargo", "[ \"$1\" = --version ] && echo 'cargo 1.99.0 (0000000 2027-01-01)'; exit 0");
    let ran = machine.dev(&["run"]);
    assert_eq!((ran.status, &*ran.said), (Some(0), ""));
    machine.stub("cargo", "[ \"$1\" = --version ] && echo 'cargo 1.63.0'; exit 0");
    machine.stub("curl", "exit 6");
    let ran = machine.dev(&["run"]);
    assert!(ran.said.contains("missing: Rust 1.95.0 (here: 1.63.0)"), "{}", ran.said);

    // rustup without the toolchain: just that is installed.
    let machine = Machine::complete();
    machine.stub("rustup", "[ \"$1 $2\" = 'toolchain list' ] && echo stable-x86_64-unknown-linux-gnu; exit 0");
    assert_eq!(machine.dev(&["run"]).status, Some(0));
    let asked = machine.calls("rustup").pop().expect("it is called");
    assert!(asked.starts_with("rustup toolchain install 1.95.0 "), "{asked}");
}

#[test]
fn alone_it_lists_its_commands_and_what_it_does_not_know_is_refused() {
    let machine = Machine::complete();
    let ran = machine.dev(&[]);
    assert_eq!(ran.status, Some(0));
    for command in ["run", "test", "services", "faults", "bench", "docs", "ci"] {
        assert!(ran.out.contains(&format!("./dev {command}")), "{command} is not in:\n{}", ran.out);
    }
    let ran = machine.dev(&["tset"]);
    assert_eq!((ran.status, &*ran.out), (Some(2), ""));
    assert!(ran.said.contains("./dev test"), "{}", ran.said);
}
