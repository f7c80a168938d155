//! What a real browser makes of the door: pages of another origin that send in all the ways that pages have.
//!
//! There is no driver: the pages come from servers of the test, do their calls, tell those servers what came of them, and go
//! on to the next one.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::support::{
    PATIENCE, StopOnDrop,
    archive::Archive,
    daemon::{Daemon, Setup},
    devtools::{FLAGS, chromium},
    eventually, free_port,
    process::{Frozen, Process},
    scratch, skip,
};

/// The browser, which ends with the test.
fn browse(program: &str, url: &str, folder: &Path) -> Process {
    let (profile, log) = (folder.join("profile"), folder.join("browser.log"));
    let mut arguments: Vec<String> = vec!["guard".into(), "--log".into(), log.display().to_string(), "--".into()];
    arguments.extend([program.to_owned(), format!("--user-data-dir={}", profile.display())]);
    arguments.extend(FLAGS.split_whitespace().map(str::to_owned));
    // The port keeps it open.
    arguments.extend(["--remote-debugging-port=0".to_owned(), url.to_owned()]);
    Process::start(arguments, folder, &log)
}

/// A page.
struct Page {
    name: &'static str,
    /// Where it comes from.
    origin: String,
    /// Its `Referrer-Policy`.
    referrer: &'static str,
    /// It has no origin, wherever it comes from.
    is_sandboxed: bool,
}

impl Page {
    fn is_allowed(&self) -> bool {
        self.name != "other" && !self.is_sandboxed
    }
}

/// What the pages' servers know.
struct Site<'a> {
    pages: Vec<Page>,
    door: &'a Daemon,
    closed: &'a Daemon,
    reports: Mutex<BTreeMap<String, Value>>,
    /// Holds the door still from a page's report on until the page is gone.
    frozen: Mutex<Option<Frozen<'a>>>,
    ended: mpsc::Sender<()>,
}

impl<'a> Site<'a> {
    /// A page or what one asks for; `None` is 404.
    fn answer(&self, method: &str, target: &str, body: &[u8]) -> Option<String> {
        let (path, name) = target.split_once('?').unwrap_or((target, ""));
        let at = self.pages.iter().position(|page| page.name == name)?;
        match (method, path) {
            ("GET", "/page") => Some(
                include_str!("browser/page.html")
                    .replace("REFERRER", self.pages[at].referrer)
                    .replace("PAGE", name)
                    .replace("DOOR", self.door.http_address())
                    .replace("CLOSED", self.closed.http_address()),
            ),
            ("POST", "/report") => {
                let report = serde_json::from_slice(body).expect("the page writes JSON");
                // What it sends at its end is not answered before it is gone.
                *self.frozen.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.door.freeze());
                self.reports.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), report);
                Some(String::new())
            }
            ("GET", "/gone") => Some(format!(
                "<!doctype html><meta charset=\"utf-8\"><script>\
                 fetch('/next?{name}').then(async (next) => location.href = await next.text())</script>"
            )),
            ("GET", "/next") => {
                self.frozen.lock().unwrap_or_else(PoisonError::into_inner).take();
                let next = self.pages.get(at + 1).map(|next| format!("{}/page?{}", next.origin, next.name));
                if next.is_none() {
                    let _ = self.ended.send(());
                }
                Some(next.unwrap_or_else(|| "about:blank".to_owned()))
            }
            _ => None,
        }
    }

    /// One request a connection.
    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let (mut line, mut length) = (String::new(), 0);
        reader.read_line(&mut line)?;
        loop {
            let mut field = String::new();
            reader.read_line(&mut field)?;
            let Some((name, value)) = field.split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let mut words = line.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let answer = self.answer(method, target, &body);
        let is_sandboxed = self.pages.iter().any(|page| page.is_sandboxed && target == format!("/page?{}", page.name));
        let sandbox = if is_sandboxed { "Content-Security-Policy: sandbox allow-scripts\r\n" } else { "" };
        let status = if answer.is_some() { "200 OK" } else { "404 Not Found" };
        let body = answer.unwrap_or_default();
        let length = body.len();
        write!(stream, "HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {length}\r\n")?;
        // A page without an origin may read it, too.
        let fields = "Cache-Control: no-store\r\nAccess-Control-Allow-Origin: *\r\nConnection: close\r\n";
        write!(stream, "{fields}{sandbox}\r\n{body}")
    }
}

/// What the page told of one of its calls: `200`, `opaque`, or that it failed.
fn told(report: &Value, call: &str) -> String {
    let told = &report[call];
    match (told["failed"].as_str(), told["type"].as_str(), told.as_bool()) {
        (Some(error), _, _) => error.to_owned(),
        (_, Some("cors"), _) => told["status"].to_string(),
        (_, Some(other), _) => other.to_owned(),
        (_, _, Some(true)) => "sent".to_owned(),
        (_, _, Some(false)) => "not sent".to_owned(),
        _ => panic!("{call} is not in {report}"),
    }
}

/// A call; what a page is told of it whose origin is allowed, and any other one; and whether it stores an event where it is.
const CALLS: [(&str, &str, &str, bool); 18] = [
    ("largest beacon", "sent", "sent", true),
    ("json", "200", "TypeError", true),
    ("json with credentials", "200", "TypeError", true),
    ("text", "200", "TypeError", true),
    ("untyped", "200", "TypeError", true),
    ("no-cors", "opaque", "opaque", true),
    ("some wrong", "207", "TypeError", true),
    ("all wrong", "400", "TypeError", false),
    ("form", "415", "TypeError", false),
    ("another method", "TypeError", "TypeError", false),
    ("closed", "503", "TypeError", false),
    ("largest keepalive", "200", "TypeError", true),
    ("too large keepalive", "TypeError", "TypeError", false),
    ("too large beacon", "not sent", "not sent", false),
    ("beacon", "sent", "sent", true),
    ("untyped beacon", "sent", "sent", true),
    // The browser has asked, and the page does not hear that it was refused.
    ("json beacon", "sent", "sent", true),
    ("lines beacon", "sent", "sent", true),
];
/// What a page sends while it goes away, of which it is told nothing.
const AT_THE_END: [&str; 3] = ["text at the end", "json at the end", "beacon at the end"];

#[test]
fn pages_of_an_allowed_origin_send_in_every_way_and_read_the_answers_and_others_store_nothing() {
    let program = match chromium() {
        Ok(program) => program,
        Err(why) if why.starts_with("INGESTD_CHROMIUM") => return eprintln!("\n!!! SKIPPED: {why}\n"),
        Err(why) => return skip(&why),
    };
    let listeners = [(); 2].map(|()| TcpListener::bind(("127.0.0.1", free_port())).expect("a free port"));
    let origins = listeners.each_ref().map(|it| format!("http://{}", it.local_addr().expect("it is bound")));
    let door = Setup::new("browser").set("http.cors.origins", &origins[0]).start();
    let closed = Setup::new("browser-closed")
        .set("http.cors.origins", &origins[0])
        .set("disk.max_used_percent", "0.2")
        .set("disk.resume_percent", "0.1")
        .set("disk.check_interval", "100ms")
        .spawn();
    eventually("it listens", PATIENCE, || TcpStream::connect(closed.http_address()).ok());
    eventually("a refusal for the disk", PATIENCE, || {
        closed.post(None, br#"{"type":"a"}"#).body.contains("disk").then_some(())
    });
    let page = |name, origin: &str| Page { name, origin: origin.to_owned(), referrer: "", is_sandboxed: false };
    let (ended, end) = mpsc::channel();
    let site = Site {
        pages: vec![
            page("allowed", &origins[0]),
            page("other", &origins[1]),
            // Chromium tells the origin of what it sends without asking, too (by the Fetch standard it would be `null`).
            Page { referrer: "no-referrer", ..page("silent", &origins[0]) },
            Page { is_sandboxed: true, ..page("sandboxed", &origins[0]) },
        ],
        door: &door,
        closed: &closed,
        reports: Mutex::default(),
        frozen: Mutex::default(),
        ended,
    };
    let folder = tempfile::Builder::new().prefix("chromium").tempdir_in(scratch()).expect("target can be written to");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        for listener in &listeners {
            listener.set_nonblocking(true).expect("a socket");
            let (site, stop) = (&site, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    match listener.accept() {
                        Ok((stream, _)) => {
                            stream.set_nonblocking(false).expect("a socket");
                            // A browser opens some that it does not use.
                            scope.spawn(move || site.serve(stream));
                        }
                        Err(_) => thread::sleep(Duration::from_millis(5)),
                    }
                }
            });
        }
        let browser = browse(&program, &format!("{}/page?allowed", origins[0]), folder.path());
        if end.recv_timeout(PATIENCE).is_err() {
            browser.print_log("chromium");
            panic!("the pages did not come to their end; reports: {:?}", site.reports);
        }
        check_stored(&door, &site);
    });
    let reports = site.reports.lock().unwrap_or_else(PoisonError::into_inner);
    for page in &site.pages {
        let report = &reports[page.name];
        for (call, of_allowed, of_other, _) in CALLS {
            let expected = if page.is_allowed() { of_allowed } else { of_other };
            assert_eq!(told(report, call), expected, "{call} of {}: {}", page.name, report[call]);
        }
        if page.is_allowed() {
            assert_eq!(report["closed"]["retryAfter"], "30", "a page reads Retry-After: {}", report["closed"]);
            let body = report["some wrong"]["body"].as_str().expect("a body");
            assert!(body.contains(r#""index":1"#) && body.contains("not_an_object"), "{body}");
        }
    }
}

/// The events that are stored are those that were to be, each once.
fn check_stored(door: &Daemon, site: &Site<'_>) {
    let stored = CALLS.iter().filter(|call| call.3).map(|call| call.0).chain(AT_THE_END);
    let of_page = |page: &Page| stored.clone().map(|call| format!("{} {call}", page.name)).collect::<Vec<_>>();
    let expected: BTreeSet<String> = site.pages.iter().filter(|page| page.is_allowed()).flat_map(of_page).collect();
    eventually("all are stored", PATIENCE, || {
        (door.metric("ingestd_events_accepted_total")? >= expected.len() as f64).then_some(())
    });
    door.wait_read(expected.len());
    door.terminate();
    let mut archive = Archive::local(&door.data().join("archive"));
    archive.refresh();
    let name = |value: &Option<Vec<u8>>| {
        let event: Value = serde_json::from_slice(value.as_ref().expect("an event")).expect("JSON");
        event["name"].as_str().expect("its name").to_owned()
    };
    let stored: Vec<String> = archive.lines().map(|line| name(&line.value)).collect();
    let distinct: BTreeSet<String> = stored.iter().cloned().collect();
    assert_eq!(distinct, expected);
    assert_eq!(stored.len(), expected.len(), "each once: {stored:?}");
}
