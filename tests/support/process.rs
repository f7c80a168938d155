//! A process that cannot outlive its test: it runs under `services.py guard`, which ends it when the pipe to the test
//! breaks, also after a panic or `kill -9` of the test binary.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{PATIENCE, eventually, services_root};

/// How a process ended: its exit status, or the negative number of the signal.
pub type Exit = i32;

pub struct Process {
    guard: Child,
    /// Commands to the guard. Closing it ends the process.
    commands: Mutex<Option<ChildStdin>>,
    pid: u32,
    exit: Arc<(Mutex<Option<Exit>>, Condvar)>,
    reader: Option<JoinHandle<()>>,
    log: PathBuf,
}

/// `services.py` with its root set.
pub fn services_script() -> Command {
    let mut command = Command::new("python3");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/services/services.py"));
    command.arg("--root").arg(services_root());
    command
}

impl Process {
    /// Runs `services.py run …` or `services.py guard …`; what the process prints goes to `log`.
    pub fn start<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>, current_dir: &Path, log: &Path) -> Self {
        let mut command = services_script();
        command.args(arguments).current_dir(current_dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        // A group of its own, so that Ctrl-C reaches only the tests and the guard can still clean up.
        let mut guard = command.process_group(0).spawn().expect("python3 is installed");
        let commands = guard.stdin.take().expect("it is piped");
        let says = BufReader::new(guard.stdout.take().expect("it is piped"));
        let exit = Arc::new((Mutex::new(None), Condvar::new()));
        let (started, pid) = mpsc::channel();
        let reader = thread::spawn({
            let exit = exit.clone();
            move || {
                for line in says.lines().map_while(Result::ok) {
                    match line.split_once(' ') {
                        Some(("started", pid)) => drop(started.send(pid.parse().expect("a pid"))),
                        Some(("exited", status)) => {
                            *exit.0.lock().unwrap_or_else(PoisonError::into_inner) = status.parse().ok();
                            exit.1.notify_all();
                        }
                        _ => eprintln!("{line}"),
                    }
                }
            }
        });
        let pid = pid.recv_timeout(PATIENCE).expect("the guard started the process (its errors stand above)");
        Self { guard, commands: Mutex::new(Some(commands)), pid, exit, reader: Some(reader), log: log.to_owned() }
    }

    /// Sends `TERM`, `KILL`, `STOP` …; nothing happens when the process has ended.
    pub fn signal(&self, name: &str) {
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        let commands = commands.as_mut().expect("open until it is dropped");
        writeln!(commands, "{name}").expect("the guard lives");
    }

    pub fn exit(&self) -> Option<Exit> {
        *self.exit.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn wait(&self, within: Duration) -> Option<Exit> {
        let (exit, changed) = &*self.exit;
        let exit = exit.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = changed.wait_timeout_while(exit, within, |exit| exit.is_none());
        *wait.unwrap_or_else(PoisonError::into_inner).0
    }

    pub fn kill(&self) {
        self.signal("KILL");
        assert!(self.wait(PATIENCE).is_some(), "process {} survives SIGKILL", self.pid);
    }

    /// Stops it as it stands; it goes on when the answer is dropped.
    pub fn freeze(&self) -> Frozen<'_> {
        self.signal("STOP");
        eventually("the process is frozen", PATIENCE, || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).expect("the process lives");
            let (_, after_name) = stat.rsplit_once(") ").expect("proc(5)");
            after_name.starts_with('T').then_some(())
        });
        Frozen(self)
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The largest resident memory so far, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("the process lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("proc(5)");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// Sockets that it has open. Files are not counted: which ones a daemon has open changes by itself.
    pub fn open_sockets(&self) -> usize {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("the process lives");
        let target = |file: std::io::Result<std::fs::DirEntry>| std::fs::read_link(file.ok()?.path()).ok();
        open.filter_map(target).filter(|target| target.to_string_lossy().starts_with("socket:")).count()
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Prints the end of its log, for a test that fails.
    pub fn print_log(&self, title: &str) {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(150)..];
        eprintln!("---- {title} (the last {} of {} lines)\n{}\n----", last.len(), lines.len(), last.join("\n"));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Neither can fail in a way that matters here.
        let _ = self.guard.wait();
        let _ = self.reader.take().map(JoinHandle::join);
    }
}

pub struct Frozen<'a>(&'a Process);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.signal("CONT");
    }
}
