//! The built binary in a folder and on ports of its own.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    PATIENCE, eventually, free_port,
    http::{Client, NoReply, Reply},
    process::{Exit, Frozen, Process},
    program, scratch,
};

/// Where a daemon of a build with debug assertions looks for the names of actors that are to panic.
const PANICS: &str = "INGESTD_PANICS";

/// How to start a daemon. The default: everything embedded, and bounds small enough that a test sees many segments.
#[derive(Clone)]
pub struct Setup {
    name: String,
    settings: BTreeMap<String, String>,
    roles: Option<String>,
    config: Option<String>,
    data: Option<PathBuf>,
    arguments: Vec<&'static str>,
    environment: BTreeMap<String, String>,
}

impl Setup {
    pub fn new(name: &str) -> Self {
        let defaults = [
            ("spool.max_age", "1s"),
            ("spool.max_records", "3000"),
            // The machine's disk may be as full as it likes; the test of the threshold sets its own.
            ("disk.max_used_percent", "99.5"),
            ("disk.resume_percent", "99"),
        ];
        let settings = defaults.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Self {
            name: name.to_owned(),
            settings,
            roles: None,
            config: None,
            data: None,
            arguments: Vec::new(),
            environment: BTreeMap::new(),
        }
    }

    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.settings.insert(key.to_owned(), value.to_string());
        self
    }

    pub fn without(mut self, key: &str) -> Self {
        self.settings.remove(key);
        self
    }

    pub fn roles(mut self, roles: &str) -> Self {
        self.roles = Some(roles.to_owned());
        self
    }

    /// The content of its `config.toml`; `--set` comes after it.
    pub fn config(mut self, text: &str) -> Self {
        self.config = Some(text.to_owned());
        self
    }

    /// Another daemon's data directory.
    pub fn data(mut self, dir: PathBuf) -> Self {
        self.data = Some(dir);
        self
    }

    /// More arguments, as they stand.
    pub fn arguments(mut self, arguments: &[&'static str]) -> Self {
        self.arguments.extend(arguments);
        self
    }

    /// A variable of its environment, beside those of the test.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Starts it and waits until it accepts work.
    pub fn start(self) -> Daemon {
        let daemon = self.spawn();
        daemon.wait_ready();
        daemon
    }

    /// Starts it and does not wait.
    pub fn spawn(mut self) -> Daemon {
        let folder =
            tempfile::Builder::new().prefix(&self.name).tempdir_in(scratch()).expect("target can be written to");
        let mut port_of = |key: &str| {
            let listen = self.settings.entry(key.to_owned()).or_insert_with(|| format!("127.0.0.1:{}", free_port()));
            listen.clone()
        };
        let (http, admin) = (port_of("http.listen"), port_of("admin.listen"));
        let data = self.data.clone().unwrap_or_else(|| folder.path().join("data"));
        self.settings.insert("data.dir".to_owned(), data.display().to_string());
        if let Some(config) = &self.config {
            std::fs::write(folder.path().join("config.toml"), config).expect("the folder was just made");
        }
        let process = launch(&self, folder.path());
        Daemon { setup: self, data, http, admin, process, client: Client::new(), folder }
    }

    /// Runs it to its end: for starts that must be refused.
    pub fn run_to_end(self) -> (Exit, String) {
        let daemon = self.spawn();
        let exit = daemon.wait_exit(PATIENCE);
        (exit, daemon.log())
    }
}

fn launch(setup: &Setup, folder: &Path) -> Process {
    let log = folder.join("log");
    let mut arguments: Vec<OsString> = vec!["guard".into(), "--log".into(), log.clone().into()];
    arguments.extend(["--remove".into(), folder.into(), "--".into(), "env".into()]);
    arguments.push(format!("{PANICS}={}", folder.join("panics").display()).into());
    arguments.extend(setup.environment.iter().map(|(name, value)| format!("{name}={value}").into()));
    arguments.push(program().into());
    arguments.extend(setup.arguments.iter().map(OsString::from));
    if setup.config.is_some() {
        arguments.extend(["--config".into(), folder.join("config.toml").into()]);
    }
    if let Some(roles) = &setup.roles {
        arguments.extend(["--roles".into(), roles.into()]);
    }
    for (key, value) in &setup.settings {
        arguments.extend(["--set".into(), format!("{key}={value}").into()]);
    }
    Process::start(arguments, folder, &log)
}

/// A command that has ended.
#[derive(Debug)]
pub struct Ran {
    /// `None` after a signal.
    pub status: Option<i32>,
    pub out: String,
    pub error: String,
}

impl Ran {
    /// What it printed, after it ended with this status.
    #[track_caller]
    pub fn json(&self, status: i32) -> Value {
        assert_eq!(self.status, Some(status), "{self:?}");
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

pub struct Daemon {
    setup: Setup,
    data: PathBuf,
    http: String,
    admin: String,
    process: Process,
    client: Client,
    folder: TempDir,
}

impl Daemon {
    /// A setting of its next start.
    pub fn set(&mut self, key: &str, value: impl ToString) {
        self.setup.settings.insert(key.to_owned(), value.to_string());
    }

    /// Runs a command of the program beside it, with the same settings.
    pub fn command(&self, arguments: &[&str]) -> Ran {
        self.command_with(arguments, &[])
    }

    /// The same, with settings of its own over them.
    pub fn command_with(&self, arguments: &[&str], settings: &[(&str, &str)]) -> Ran {
        let output = self.prepare(arguments, settings).output().expect("the program runs");
        let text = |bytes| String::from_utf8(bytes).expect("it prints UTF-8");
        Ran { status: output.status.code(), out: text(output.stdout), error: text(output.stderr) }
    }

    /// The same, with `kill -9` after a while.
    pub fn command_that_is_killed(&self, arguments: &[&str], after: Duration) {
        let mut child = self.prepare(arguments, &[]).spawn().expect("the program runs");
        std::thread::sleep(after);
        // An error says that it was faster.
        let _ = child.kill();
        child.wait().expect("it is our child");
    }

    fn prepare(&self, arguments: &[&str], settings: &[(&str, &str)]) -> std::process::Command {
        let mut command = std::process::Command::new(program());
        command.args(arguments).current_dir(self.folder.path()).stdin(std::process::Stdio::null());
        if self.setup.config.is_some() {
            command.args(["--config", "config.toml"]);
        }
        let own = self.setup.settings.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        for (key, value) in own.chain(settings.iter().copied()) {
            command.args(["--set", &format!("{key}={value}")]);
        }
        command
    }

    /// Starts it again in the same place, after it has ended.
    pub fn restart(&mut self) {
        self.respawn();
        self.wait_ready();
    }

    /// The same, without waiting for it.
    pub fn respawn(&mut self) {
        assert!(self.process.exit().is_some(), "it still runs");
        self.process = launch(&self.setup, self.folder.path());
    }

    /// Has an actor panic (`consumer-archive`), or librdkafka fetch nothing for a sink (`stall-archive`); only builds with
    /// debug assertions do.
    pub fn inject(&self, fault: &str) {
        let folder = self.folder.path().join("panics");
        let ask = || std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(folder.join(fault), b""));
        ask().expect("the daemon's folder can be written to");
    }

    /// Whether it has done so.
    pub fn is_injected(&self, fault: &str) -> bool {
        !self.folder.path().join("panics").join(fault).exists()
    }

    pub fn wait_ready(&self) {
        let ready = || {
            if let Some(exit) = self.process.exit() {
                panic!("{} ended with {exit} instead of becoming ready", self.setup.name);
            }
            (self.client.get(&self.admin_url("/health/ready")).ok()?.status == 200).then_some(())
        };
        eventually("ready", PATIENCE, ready);
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn http_address(&self) -> &str {
        &self.http
    }

    /// `http://…/v1/events`
    pub fn events_url(&self) -> String {
        format!("http://{}/v1/events", self.http)
    }

    pub fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    pub fn get(&self, path: &str) -> Reply {
        self.client.get(&self.admin_url(path)).unwrap_or_else(|error| panic!("GET {path}: {error:?}"))
    }

    pub fn post(&self, content_type: Option<&str>, body: &[u8]) -> Reply {
        self.client.post(&self.events_url(), content_type, body).unwrap_or_else(|error| panic!("POST: {error:?}"))
    }

    /// The same with `Prefer: handling=…`.
    pub fn prefer(&self, handling: &str, body: &[u8]) -> Reply {
        self.post_with(&[("prefer", &format!("handling={handling}"))], body)
    }

    /// With these fields beside the body's length.
    pub fn post_with(&self, fields: &[(&str, &str)], body: &[u8]) -> Reply {
        self.client.post_with(&self.events_url(), fields, body).unwrap_or_else(|error| panic!("POST: {error:?}"))
    }

    /// At the admin endpoint, without a body.
    pub fn ask(&self, method: &str, path: &str) -> Reply {
        self.try_ask(method, path).unwrap_or_else(|error| panic!("{method} {path}: {error:?}"))
    }

    /// An error while nobody listens.
    pub fn try_ask(&self, method: &str, path: &str) -> Result<Reply, NoReply> {
        let url = self.admin_url(path);
        match method {
            "GET" => self.client.get(&url),
            "POST" => self.client.post(&url, None, b""),
            "DELETE" => self.client.delete(&url),
            other => panic!("no {other} here"),
        }
    }

    pub fn reload(&self) -> Reply {
        self.client.post(&self.admin_url("/reload"), None, b"").unwrap_or_else(|error| panic!("reload: {error:?}"))
    }

    /// Runs the program with other arguments and this daemon's settings, to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        // Bounded: a command that hangs ends with 124.
        let mut command = Command::new("timeout");
        command.arg(PATIENCE.as_secs().to_string()).arg(program()).args(arguments).args(self.settings());
        command.current_dir(self.folder.path()).output().expect("coreutils are installed")
    }

    /// `--set` and each setting that it was started with.
    pub fn settings(&self) -> impl Iterator<Item = String> {
        self.setup.settings.iter().flat_map(|(key, value)| ["--set".to_owned(), format!("{key}={value}")])
    }

    pub fn write_config(&self, text: &str) {
        // In one step, because the daemon watches it.
        let (written, final_name) =
            (self.folder.path().join("config.toml.new"), self.folder.path().join("config.toml"));
        std::fs::write(&written, text).and_then(|()| std::fs::rename(written, final_name)).expect("it can be written");
    }

    pub fn readiness(&self) -> Value {
        self.get("/health/ready").json()
    }

    /// `None` while nobody listens.
    pub fn try_readiness(&self) -> Option<Value> {
        Some(self.client.get(&self.admin_url("/health/ready")).ok()?.json())
    }

    /// What it says of itself, for one who looks for what holds it up: its status, and all its numbers that are not 0.
    pub fn account(&self) -> String {
        let ask = |path: &str| {
            self.client.get(&self.admin_url(path)).map_or_else(|none| format!("{path}: {none:?}"), |reply| reply.body)
        };
        let (status, metrics) = (ask("/status"), ask("/metrics"));
        let numbers = metrics.lines().filter(|line| !line.starts_with('#') && !line.ends_with(" 0"));
        let numbers: Vec<_> = numbers.filter(|line| !line.contains("_bucket{")).collect();
        format!("{status}\n{}", numbers.join("\n"))
    }

    /// The sum of a metric over its labels; `None` when there is no such sample.
    pub fn metric(&self, name: &str) -> Option<f64> {
        sum(&self.get("/metrics").body, name, "")
    }

    /// The sum over the samples with this label (`actor="spooler"`); `None` also while nobody listens.
    pub fn try_metric(&self, name: &str, label: &str) -> Option<f64> {
        sum(&self.client.get(&self.admin_url("/metrics")).ok()?.body, name, label)
    }

    /// Waits until each sink has read so many records since the daemon's start, so that a stop carries them on.
    #[track_caller]
    pub fn wait_read(&self, records: usize) {
        let read = |sink: &str| self.try_metric("ingestd_events_consumed_total", &format!("sink={sink:?}"));
        eventually("both sinks have read all", PATIENCE, || {
            let all = |sink| read(sink).is_some_and(|read| read >= records as f64);
            (all("archive") && all("aggregate")).then_some(())
        });
    }

    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    pub fn kill(&self) {
        self.process.kill();
    }

    pub fn freeze(&self) -> Frozen<'_> {
        self.process.freeze()
    }

    #[track_caller]
    pub fn wait_exit(&self, within: Duration) -> Exit {
        self.process.wait(within).unwrap_or_else(|| panic!("{} still runs after {within:?}", self.setup.name))
    }

    pub fn exit(&self) -> Option<Exit> {
        self.process.exit()
    }

    /// SIGTERM; asserts that it ends with 0 and that nothing in it panicked.
    #[track_caller]
    pub fn terminate(&self) {
        self.signal("TERM");
        assert_eq!(self.wait_exit(PATIENCE), 0, "exit status after SIGTERM");
        self.assert_no_panic();
    }

    #[track_caller]
    pub fn assert_no_panic(&self) {
        let log = self.log();
        let panicked = log.lines().find(|line| line.contains("panicked at"));
        assert_eq!(panicked, None, "{} panicked", self.setup.name);
    }

    /// Prints the peak of its memory, and asserts its bound where the build is one that users run.
    #[track_caller]
    pub fn check_memory(&self, bound: u64) {
        let peak = self.process.peak_memory();
        eprintln!("{}: peak memory {} MiB", self.setup.name, peak >> 20);
        assert!(cfg!(debug_assertions) || peak < bound, "{peak} bytes of memory, more than {bound}");
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn peak_memory(&self) -> u64 {
        self.process.peak_memory()
    }

    pub fn open_sockets(&self) -> usize {
        self.process.open_sockets()
    }

    pub fn admin_address(&self) -> &str {
        &self.admin
    }

    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// Of the samples of one metric that hold `label`.
fn sum(metrics: &str, name: &str, label: &str) -> Option<f64> {
    let samples = metrics.lines().filter_map(|line| {
        let labels_and_value = line.strip_prefix(name)?;
        let value = match labels_and_value.strip_prefix('{') {
            Some(labels) => labels.rsplit_once("} ").filter(|(labels, _)| labels.contains(label))?.1,
            None => labels_and_value.strip_prefix(' ').filter(|_| label.is_empty())?,
        };
        value.split(' ').next()?.parse::<f64>().ok()
    });
    samples.reduce(|sum, value| sum + value)
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.process.print_log(&self.setup.name);
        }
    }
}
