//! What a real browser makes of the door: pages of another origin that send in all the ways that pages have.
//!
//! There is no driver: the pages come from servers of the test, do their calls, tell those servers what came of them, and go
//! on to the next one.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
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
    eventually, free_port,
    process::{Frozen, Process},
    scratch, skip,
};

/// A Chromium, or why there is none.
fn chromium() -> Result<String, String> {
    let program = match std::env::var("INGESTD_CHROMIUM") {
        Ok(program) if program == "none" => return Err("INGESTD_CHROMIUM=none".to_owned()),
        Ok(program) => program,
        Err(_) => "chromium".to_owned(),
    };
    let runs = Command::new(&program).arg("--version").output().is_ok_and(|output| output.status.success());
    runs.then_some(program.clone()).ok_or(format!("there is no Chromium: {program} --version fails (INGESTD_CHROMIUM)"))
}

/// The browser, which ends with the test.
fn browse(program: &str, url: &str, folder: &Path) -> Process {
    let (profile, log) = (folder.join("profile"), folder.join("browser.log"));
    let mut arguments: Vec<String> = vec!["guard".into(), "--log".into(), log.display().to_string(), "--".into()];
    arguments.extend([program.to_owned(), format!("--user-data-dir={}", profile.display())]);
    // It is root's in CI, in a container, and has nobody to talk to; the port keeps it open.
    let fixed = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --no-proxy-server \
                 --disable-background-networking --disable-component-update --disable-extensions --disable-sync \
                 --remote-debugging-port=0";
    arguments.extend(fixed.split_whitespace().map(str::to_owned));
    arguments.push(url.to_owned());
    Process::start(arguments, folder, &log)
}

/// A page: its name, its origin, and how much it tells of itself.
struct Page {
    name: &'static str,
    origin: String,
    referrer: &'static str,
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
        let status = if answer.is_some() { "200 OK" } else { "404 Not Found" };
        let body = answer.unwrap_or_default();
        let length = body.len();
        write!(stream, "HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {length}\r\n")?;
        write!(stream, "Cache-Control: no-store\r\nConnection: close\r\n\r\n{body}")
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

/// A call, what each page is told of it, and whether its event is stored: of an allowed origin, of another one, and of an
/// allowed one that keeps its name to itself (`Referrer-Policy: no-referrer`), so that what it sends without asking comes of `null`.
const CALLS: [(&str, [(&str, bool); 3]); 20] = [
    ("largest beacon", [("sent", true), ("sent", false), ("sent", false)]),
    ("json", [("200", true), ("TypeError", false), ("200", true)]),
    ("json with credentials", [("200", true), ("TypeError", false), ("200", true)]),
    ("text", [("200", true), ("TypeError", false), ("200", true)]),
    ("untyped", [("200", true), ("TypeError", false), ("200", true)]),
    ("no-cors", [("opaque", true), ("opaque", false), ("opaque", false)]),
    ("some wrong", [("207", true), ("TypeError", false), ("207", true)]),
    ("all wrong", [("400", false), ("TypeError", false), ("400", false)]),
    ("form", [("415", false), ("TypeError", false), ("415", false)]),
    ("another method", [("TypeError", false), ("TypeError", false), ("TypeError", false)]),
    ("closed", [("503", false), ("TypeError", false), ("503", false)]),
    ("largest keepalive", [("200", true), ("TypeError", false), ("200", true)]),
    ("too large keepalive", [("TypeError", false), ("TypeError", false), ("TypeError", false)]),
    ("too large beacon", [("not sent", false), ("not sent", false), ("not sent", false)]),
    ("beacon", [("sent", true), ("sent", false), ("sent", false)]),
    ("untyped beacon", [("sent", true), ("sent", false), ("sent", false)]),
    // It has asked, and the page does not hear that it was refused.
    ("json beacon", [("sent", true), ("sent", false), ("sent", true)]),
    ("lines beacon", [("sent", true), ("sent", false), ("sent", true)]),
    ("text at the end", [("", true), ("", false), ("", true)]),
    ("json at the end", [("", true), ("", false), ("", true)]),
];
/// The same of a beacon, which says by no mode of its own where it comes from.
const BEACON_AT_THE_END: (&str, [bool; 3]) = ("beacon at the end", [true, false, false]);

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
    let page = |name, origin: &str, referrer| Page { name, origin: origin.to_owned(), referrer };
    let (ended, end) = mpsc::channel();
    let site = Site {
        pages: vec![
            page("allowed", &origins[0], ""),
            page("other", &origins[1], ""),
            page("silent", &origins[0], "no-referrer"),
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
    for (at, page) in site.pages.iter().enumerate() {
        let report = &reports[page.name];
        for (call, of_pages) in CALLS.iter().filter(|(_, of_pages)| !of_pages[0].0.is_empty()) {
            assert_eq!(told(report, call), of_pages[at].0, "{call} of {}: {}", page.name, report[call]);
        }
        if page.name != "other" {
            assert_eq!(report["closed"]["retryAfter"], "30", "a page reads Retry-After: {}", report["closed"]);
            let body = report["some wrong"]["body"].as_str().expect("a body");
            assert!(body.contains(r#""index":1"#) && body.contains("not_an_object"), "{body}");
        }
    }
}

/// The events that are stored are those that were to be, each once.
fn check_stored(door: &Daemon, site: &Site<'_>) {
    let (end, ends) = BEACON_AT_THE_END;
    let mut expected = BTreeSet::new();
    for (at, page) in site.pages.iter().enumerate() {
        let calls = CALLS.iter().map(|(call, of_pages)| (*call, of_pages[at].1)).chain([(end, ends[at])]);
        expected.extend(calls.filter(|(_, stored)| *stored).map(|(call, _)| format!("{} {call}", page.name)));
    }
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
