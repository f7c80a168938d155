//! The process among others: who reads its log, sends it signals, waits for it, and connects to it.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixDatagram,
    process::{Child, Command, Stdio},
    time::Instant,
};

use crate::support::{
    PATIENCE,
    daemon::Setup,
    eventually, free_port,
    http::Client,
    program,
    s3::{Behaviour, S3},
    scratch,
    services::services,
};

/// A daemon whose stdout and stderr are pipes of this test. Killed at its end, and after a while in any case.
struct Piped {
    child: Child,
    http: String,
    admin: String,
    folder: tempfile::TempDir,
}

impl Piped {
    fn start(settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir_in(scratch()).expect("target can be written to");
        let (http, admin) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
        let mut command = Command::new("timeout");
        // In the foreground: else it passes a signal on twice, to its child and to their group.
        command.args([
            "--foreground",
            "--kill-after=30",
            &PATIENCE.as_secs().to_string(),
            &program(),
            "--config",
            "config.toml",
        ]);
        for (key, value) in [
            ("http.listen", &*http),
            ("admin.listen", &admin),
            ("disk.max_used_percent", "99.5"),
            ("disk.resume_percent", "99"),
        ]
        .iter()
        .chain(settings)
        {
            command.args(["--set", &format!("{key}={value}")]);
        }
        std::fs::write(folder.path().join("config.toml"), "").expect("the folder was just made");
        command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { child: command.spawn().expect("coreutils are installed"), http, admin, folder }
    }

    fn wait_ready(&self, client: &Client) {
        eventually("ready", PATIENCE, || (client.get(&self.url("/health/ready")).ok()?.status == 200).then_some(()));
    }

    fn metric(&self, client: &Client, name: &str) -> Option<f64> {
        let metrics = client.get(&self.url("/metrics")).ok()?;
        metrics.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    /// Until its pipe is full and lines are dropped: each reload of a file that is wrong is a long line.
    fn fill_log(&self, client: &Client) {
        let wrong: String = (0..1000).map(|key| format!("unknown_key_{key} = 1\n")).collect();
        std::fs::write(self.folder.path().join("config.toml"), wrong).expect("it can be written");
        let dropped = || self.metric(client, "ingestd_log_lines_dropped_total");
        let before = dropped();
        eventually("lines are dropped", PATIENCE, || {
            let reloaded = client.post(&self.url("/reload"), None, b"").expect("it answers");
            assert_eq!(reloaded.status, 422, "{reloaded:?}");
            (dropped()? > before.unwrap_or(0.0)).then_some(())
        });
    }

    /// Asks for a stop, which ends in order.
    fn stop(&mut self) {
        self.signal("TERM");
        let status = eventually("it ends", PATIENCE, || self.child.try_wait().expect("it is our child"));
        assert_eq!(status.code(), Some(0), "in order");
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    /// To `timeout`, which passes it on.
    fn signal(&self, name: &str) {
        assert!(send(name, self.child.id()).is_ok_and(|status| status.success()), "it runs");
    }
}

/// By the shell's own `kill`: the program is not everywhere.
fn send(signal: &str, pid: u32) -> std::io::Result<std::process::ExitStatus> {
    Command::new("sh").args(["-c", "kill -$0 $1", signal, &pid.to_string()]).status()
}

impl Drop for Piped {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // A stop that does not end is killed by `timeout`.
            let _ = send("TERM", self.child.id());
            let _ = self.child.wait();
        }
    }
}

#[test]
fn whoever_reads_the_log_may_stand_still_and_nothing_else_does() {
    let mut daemon = Piped::start(&[]);
    let client = Client::new();
    daemon.wait_ready(&client);
    daemon.fill_log(&client);
    // Somebody reads again.
    let mut log = daemon.child.stderr.take().expect("it is piped");
    let (mut read, mut piece) = (String::new(), [0; 65536]);
    let deadline = Instant::now() + PATIENCE;
    while !read.contains("lines of the log were dropped") {
        assert!(Instant::now() < deadline, "it is not said");
        let bytes = log.read(&mut piece).expect("a pipe");
        read.push_str(&String::from_utf8_lossy(&piece[..bytes]));
    }
    // And stands still again, until the end.
    daemon.fill_log(&client);
    daemon.stop();
}

#[test]
fn an_archive_that_was_away_goes_on_although_nobody_reads_the_log() {
    // It takes no object, and neither a chain's head.
    let s3 = S3::start(Behaviour { refuses: Some("0"), ..Behaviour::default() });
    let mut daemon = Piped::start(&[
        ("archive.url", "s3://bucket/raw"),
        ("archive.options.endpoint", &s3.url()),
        ("archive.options.access_key_id", "test"),
        ("archive.options.secret_access_key", "test"),
        ("spool.max_age", "100ms"),
    ]);
    let client = Client::new();
    daemon.wait_ready(&client);
    let events = format!("http://{}/v1/events", daemon.http);
    let post = || assert_eq!(client.post(&events, None, br#"{"type":"a"}"#).expect("it answers").status, 200);
    post();
    eventually("the archive is away", PATIENCE, || {
        client.get(&daemon.url("/health/ready")).ok()?.body.contains("Please reduce your request rate").then_some(())
    });
    daemon.fill_log(&client);
    post();
    s3.behave(Behaviour::default());
    eventually("both are archived", PATIENCE, || {
        (daemon.metric(&client, "ingestd_events_archived_total")? == 2.0).then_some(())
    });
    daemon.stop();
}

#[test]
fn sigint_and_sigterm_at_once_are_one_wish_and_the_same_again_is_another() {
    let both = Setup::new("both-signals").start();
    for n in 0..200 {
        assert_eq!(both.post(None, format!(r#"{{"type":"a","n":{n}}}"#).as_bytes()).status, 200);
    }
    both.signal("INT");
    both.signal("TERM");
    assert_eq!(both.wait_exit(PATIENCE), 0, "{}", both.log());
    assert!(both.log().contains("positions are committed"), "{}", both.log());

    // Something to wait for: a request that does not end.
    let twice = Setup::new("twice").set("http.request_timeout", "60s").set("shutdown.timeout", "10m").start();
    let mut request = TcpStream::connect(twice.http_address()).expect("it listens");
    request.write_all(b"POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{").expect("it reads");
    let arrived = || twice.metric("ingestd_in_flight_bytes").is_some_and(|bytes| bytes > 0.0);
    eventually("the request has arrived", PATIENCE, || arrived().then_some(()));
    twice.signal("TERM");
    eventually("it stops", PATIENCE, || twice.log().contains("stopping").then_some(()));
    twice.signal("TERM");
    assert_eq!(twice.wait_exit(PATIENCE), 4, "{}", twice.log());
    assert!(twice.log().contains("a second signal (SIGTERM)"), "{}", twice.log());
}

#[test]
fn systemd_hears_that_it_is_ready_when_events_are_taken() {
    let Some(services) = services() else { return };
    let folder = tempfile::tempdir().expect("a short path, as a socket's must be");
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a new path");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time");
    let setup = services.setup("notified").environment("NOTIFY_SOCKET", &path.display().to_string());
    services.create_bucket("notified");
    let mut daemon = setup.spawn();
    for round in 0..3 {
        let mut message = [0; 4096];
        loop {
            let bytes = socket.recv(&mut message).expect("it tells");
            if message[..bytes].starts_with(b"READY=1") {
                break;
            }
        }
        let reply = daemon.post(None, br#"{"type":"a"}"#);
        assert_eq!(reply.status, 200, "start {round}: {reply:?}");
        daemon.terminate();
        if round < 2 {
            daemon.respawn();
        }
    }

    // What is away makes no failed start of it.
    let away = Setup::new("notified-away")
        .set("queue.kind", "kafka")
        .set("queue.kafka.brokers", format!("127.0.0.1:{}", free_port()))
        .set("shutdown.timeout", "5s")
        .environment("NOTIFY_SOCKET", &path.display().to_string())
        .spawn();
    let mut message = [0; 4096];
    while !message.starts_with(b"READY=1") {
        message = [0; 4096];
        socket.recv(&mut message).expect("it tells");
    }
    away.signal("KILL");
}
