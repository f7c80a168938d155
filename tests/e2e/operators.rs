//! Keys of the admin listener (`admin.auth`): who may look, who may operate, and how the commands show theirs.

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    daemon::{Daemon, Setup},
    eventually,
    http::{Client, Reply},
};

/// A key, and its lines for the configuration.
fn make(arguments: &[&str]) -> (String, String) {
    let output = std::process::Command::new(crate::support::program())
        .args([&["key", "new"], arguments].concat())
        .output()
        .expect("the program runs");
    let out = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{out}");
    let (key, lines) = out.split_once('\n').expect("lines");
    assert!(lines.starts_with("[[admin.auth.keys]]\n"), "{lines}");
    (key.to_owned(), lines.to_owned())
}

fn ask(daemon: &Daemon, method: &str, path: &str, key: Option<&str>) -> Reply {
    let authorization = key.map(|key| format!("Bearer {key}"));
    let fields: Vec<_> = authorization.iter().map(|value| ("authorization", value.as_str())).collect();
    Client::new().ask(method, &daemon.admin_url(path), &fields, b"").expect("an answer")
}

#[test]
fn who_has_a_key_looks_who_has_another_operates_and_nobody_else_does_either() {
    const LOUD: &str = "[logging]\nlevel = \"trace\"\n";
    let (ops, ops_lines) = make(&["ops", "--admin"]);
    let (scraper, scraper_lines) = make(&["scraper", "--admin", "read"]);
    let (unknown, _) = make(&["ops", "--admin", "operate"]);
    let daemon = Setup::new("operators").config(LOUD).start();
    assert_eq!(ask(&daemon, "GET", "/status", None).status, 200, "nobody is asked where there are no keys");
    daemon.write_config(&format!("{LOUD}{ops_lines}\n{scraper_lines}"));
    let reload = daemon.reload();
    assert_eq!((reload.status, reload.json()["applied"].clone()), (200, json!(["admin.auth.keys"])), "{reload:?}");

    assert_eq!(daemon.post(None, br#"{"n":1}"#).status, 400, "senders are not asked for an operator's key");
    let (ops, scraper, unknown) = (ops.as_str(), scraper.as_str(), unknown.as_str());
    for (method, path, none, reads, operates) in [
        ("GET", "/health/live", 200, 200, 200),
        ("GET", "/health/ready", 200, 200, 200),
        ("GET", "/openapi.json", 200, 200, 200),
        ("GET", "/metrics", 401, 200, 200),
        ("HEAD", "/metrics", 401, 200, 200),
        ("GET", "/status", 401, 200, 200),
        ("GET", "/v1/aggregates", 401, 200, 200),
        ("GET", "/v1/aggregates/events_by_type", 401, 200, 200),
        ("GET", "/v1/events", 401, 404, 404),
        ("GET", "/v1/dead-letters", 401, 200, 200),
        ("GET", "/v1/dead-letters/a/0/1", 401, 404, 404),
        ("GET", "/%73tatus", 401, 200, 200),
        ("GET", "//status", 401, 404, 404),
        ("GET", "/health/ready/", 401, 404, 404),
        ("GET", "/nothing", 401, 404, 404),
        ("POST", "/reload", 401, 403, 200),
        ("POST", "/health/live", 405, 405, 405),
        ("TRACE", "/", 405, 405, 405),
        ("GET", "/assets/nothing", 404, 404, 404),
        ("GET", "/assets/../status", 401, 404, 404),
        ("DELETE", "/v1/dead-letters?to=0s", 401, 403, 200),
        ("POST", "/v1/dead-letters/replay", 401, 403, 200),
    ] {
        for (key, status) in [(None, none), (Some(unknown), none), (Some(scraper), reads), (Some(ops), operates)] {
            let reply = ask(&daemon, method, path, key);
            assert_eq!(reply.status, status, "{method} {path} {reply:?}");
        }
    }
    for (method, path, key, sentence) in [
        (
            "GET",
            "/status",
            None,
            "this needs a key: send it as Authorization: Bearer KEY, as the password of Authorization: Basic, or as X-Api-Key: KEY",
        ),
        (
            "GET",
            "/status",
            Some(unknown),
            "the key is none of admin.auth.keys: send it whole and as it was given to you; if it was withdrawn, ask for a new one \
             where you have it from",
        ),
        (
            "POST",
            "/reload",
            Some(scraper),
            "the key \"scraper\" may only look: POST /reload needs one with access = \"operate\" (admin.auth.keys)",
        ),
    ] {
        assert_eq!(ask(&daemon, method, path, key).json()["detail"], sentence);
    }
    // A probe hears whether it is ready; the reasons name brokers and folders.
    let keys = |reply: Reply| reply.json().as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(ask(&daemon, "GET", "/health/ready", None)), ["degraded", "ready"]);
    assert!(keys(ask(&daemon, "GET", "/health/ready", Some(scraper))).contains(&"dependencies".to_owned()));

    // The commands show theirs.
    let sentence = "this needs a key";
    let without = daemon.command(&["dlq", "list"]);
    assert!(without.status == Some(1) && without.error.contains(sentence), "{without:?}");
    assert!(without.error.contains("(here by --key or INGESTD_KEY)"), "{without:?}");
    let listed = |arguments: &[&str]| daemon.command(arguments).json(0)["dead_letters"].clone();
    assert_eq!(listed(&["dlq", "list", "--json", "--key", scraper]), json!([]));
    let refused = daemon.command(&["dlq", "purge", "--to", "0s", "--key", scraper]);
    assert!(refused.status == Some(1) && refused.error.contains("may only look"), "{refused:?}");
    assert_eq!(daemon.command(&["dlq", "purge", "--to", "0s", "--key", ops]).status, Some(0));
    for wrong in ["", "two words hunter2"] {
        let refused = daemon.command(&["dlq", "list", "--key", wrong]);
        assert!(refused.status == Some(2) && refused.error.contains("a key is one word"), "{refused:?}");
        assert!(!refused.error.contains("hunter2"), "{refused:?}");
    }
    let output = std::process::Command::new(crate::support::program())
        .args(["dlq", "list", "--json", "--admin", &daemon.admin_url("")])
        .env("INGESTD_KEY", scraper)
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{output:?}");

    // The page for people, and the same for programs.
    let page = daemon.command(&["status", "--key", scraper]);
    assert!(page.status == Some(0) && page.out.starts_with("state      ready\n"), "{page:?}");
    assert_eq!(daemon.command(&["status", "--json", "--key", scraper]).json(0)["ready"], true);
    let without = daemon.command(&["status"]);
    assert!(without.status == Some(1) && without.out.is_empty(), "{without:?}");
    assert!(without.error.contains(sentence) && without.error.contains("--key or INGESTD_KEY"), "{without:?}");

    let metrics = ask(&daemon, "GET", "/metrics", Some(scraper)).body;
    for reason in ["missing", "unknown", "forbidden"] {
        let counted = format!("ingestd_admin_auth_refusals_total{{reason=\"{reason}\"}}");
        assert!(metrics.lines().any(|line| line.starts_with(&counted)), "{counted}: {metrics}");
    }
    let log = daemon.log();
    let said = "an operator's request";
    assert!(log.lines().any(|line| line.contains(said) && line.contains("/reload") && line.contains("ops")), "{log}");

    // A key is withdrawn by a reload that another may ask for.
    daemon.write_config(&format!("{LOUD}{ops_lines}"));
    eventually("the key is withdrawn", PATIENCE, || {
        let _ = ask(&daemon, "POST", "/reload", Some(ops));
        (ask(&daemon, "GET", "/status", Some(scraper)).status == 401).then_some(())
    });
    let config = daemon.command(&["config"]);
    let status = ask(&daemon, "GET", "/status", Some(ops)).body;
    for said in [daemon.log(), config.out, config.error, status, metrics] {
        assert!([ops, scraper, unknown].iter().all(|key| !said.contains(key)), "a key stands in: {said}");
    }
    daemon.terminate();
    let ended = daemon.command(&["status"]);
    assert!(ended.status == Some(1) && ended.error.contains("nobody listens there"), "{ended:?}");
}

#[test]
fn keys_that_open_nothing_are_a_warning() {
    let (_, lines) = make(&["scraper", "--admin", "read", "--expires", "90d"]);
    let daemon = Setup::new("readers").config(&lines).start();
    let sentence = "admin.auth.keys: none has access = ";
    let check = daemon.command(&["check"]);
    assert!(check.status == Some(0) && check.error.contains(sentence), "{check:?}");
    assert!(daemon.log().contains(sentence), "{}", daemon.log());
    let ready: Value = daemon.readiness();
    assert_eq!(ready["ready"], true);
    daemon.terminate();
}

/// Watches until it has been shown so much, then presses Ctrl-C; prints the exit status, and what the terminal got.
const ON_A_TERMINAL: &str = r#"
import os, pty, sys, time
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
shown, deadline = b"", time.time() + 60
while shown.count(b"roles") < 3 and time.time() < deadline:
    shown += os.read(terminal, 65536)
os.write(terminal, b"\x03")
try:
    while more := os.read(terminal, 65536):
        shown += more
except OSError:
    pass
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
sys.stdout.flush()
sys.stdout.buffer.write(shown)
"#;

#[test]
fn a_status_that_is_watched_is_one_screen_on_a_terminal_and_a_line_a_look_elsewhere() {
    let daemon = Setup::new("watched").start();
    let program = crate::support::program();
    let admin = daemon.admin_url("");
    let watch = ["status", "--admin", &admin, "--watch", "--interval", "100ms"];
    let name = daemon.get("/v1/aggregates").json()["aggregates"][0]["name"].as_str().expect("a name").to_owned();
    let stats = ["stats", &name, "--admin", &admin, "--watch"];
    for (arguments, word) in [(&watch[..], "roles"), (&stats[..], name.as_str())] {
        let output = std::process::Command::new("python3")
            .args(["-c", &ON_A_TERMINAL.replace("roles", word), &program])
            .args(arguments)
            .output()
            .expect("python3 runs");
        let out = String::from_utf8(output.stdout).expect("UTF-8");
        let (status, shown) = out.split_once('\n').expect("lines");
        assert_eq!(status, "0", "{shown}");
        assert!(
            shown.starts_with("\x1b[?1049h\x1b[?25l\x1b[?7l") && shown.ends_with("\x1b[?7h\x1b[?25h\x1b[?1049l"),
            "{shown:?}"
        );
        assert_eq!(shown.matches("\x1b[?1049").count(), 2, "entered and left once: {shown:?}");
        assert!(!shown.contains("\x1b[2J"), "a screen that is cleared flickers: {shown:?}");
    }

    // Elsewhere: until nobody reads any more, or a signal.
    let read = |arguments: &[&str], lines: usize| {
        let mut child = std::process::Command::new(&program)
            .args(watch)
            .args(arguments)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("the program runs");
        let out = std::io::BufReader::new(child.stdout.take().expect("a pipe"));
        let lines: Vec<String> = std::io::BufRead::lines(out).take(lines).map(|line| line.expect("UTF-8")).collect();
        assert_eq!(child.wait().expect("it is our child").code(), Some(0), "{lines:?}");
        lines
    };
    // The daemon's own rates are those of its last seconds.
    eventually("there is a rate", PATIENCE, || daemon.get("/status").json()["rates"]["seconds"].as_f64());
    daemon.post(None, br#"[{"type":"a"},{"type":"b"}]"#);
    for line in read(&["--json"], 3) {
        let page: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!((&page["ready"], &page["events"]["accepted"]), (&json!(true), &json!(2)), "{line}");
    }
    let lines = read(&[], 3);
    assert!(lines.iter().all(|line| line.contains(" ready; accepted ")), "{lines:?}");
    // Between two looks there was nothing.
    assert!(lines[1..].iter().all(|line| line.contains("accepted 0.0/s")), "{lines:?}");
    assert!(lines.iter().all(|line| line.starts_with("20") && !line.contains('\x1b')), "{lines:?}");
    // Without --watch there is nothing between two looks.
    let refused = daemon.command(&["status", "--interval", "1s"]);
    assert!(refused.status == Some(2) && refused.error.contains("--watch"), "{refused:?}");
    let page = daemon.command(&["status"]);
    assert!(page.out.contains("\nrates      in: ") && page.out.contains("\nlag        aggregate: "), "{page:?}");
    daemon.terminate();
}
