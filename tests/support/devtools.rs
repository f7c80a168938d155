//! A Chromium that a test drives: Chrome's DevTools protocol over two pipes (`--remote-debugging-pipe`), each message a text of
//! JSON with a zero byte behind it.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{PATIENCE, process::Process, scratch};

/// A Chromium, or why there is none.
pub fn chromium() -> Result<String, String> {
    let program = match std::env::var("INGESTD_CHROMIUM") {
        Ok(program) if program == "none" => return Err("INGESTD_CHROMIUM=none".to_owned()),
        Ok(program) => program,
        Err(_) => "chromium".to_owned(),
    };
    let runs = Command::new(&program).arg("--version").output().is_ok_and(|output| output.status.success());
    runs.then_some(program.clone()).ok_or(format!("there is no Chromium: {program} --version fails (INGESTD_CHROMIUM)"))
}

/// How a Chromium of the tests is started: it is root's in CI, in a container, and has nobody to talk to.
pub const FLAGS: &str = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --no-proxy-server \
                         --disable-background-networking --disable-component-update --disable-extensions --disable-sync";

/// Of a URL: the status, the media type and the body, or 404.
type StandIn = dyn Fn(&str) -> Option<(u16, &'static str, String)>;

/// One tab.
pub struct Browser {
    commands: File,
    answers: Receiver<Value>,
    sent: u64,
    session: Option<String>,
    /// What pages complained of since it was looked at last: errors and warnings of the console, exceptions.
    complaints: Vec<String>,
    /// What pages asked for.
    pub requests: Vec<String>,
    /// What is answered in the place of whoever was asked.
    stand_in: Option<Box<StandIn>>,
    process: Process,
    _folder: TempDir,
}

impl Browser {
    /// Starts it, with these flags beside.
    pub fn start(program: &str, flags: &[&str]) -> Self {
        let folder =
            tempfile::Builder::new().prefix("devtools").tempdir_in(scratch()).expect("target can be written to");
        let [to, from] = ["commands", "answers"].map(|name| folder.path().join(name));
        let made = Command::new("mkfifo").args([&to, &from]).status().expect("coreutils are installed");
        assert!(made.success());
        let log = folder.path().join("browser.log");
        let shell = r#"exec 3<commands 4>answers; exec "$@""#;
        let mut arguments: Vec<String> = vec!["guard".into(), "--log".into(), log.display().to_string()];
        arguments.extend(["--", "bash", "-c", shell, "bash", program].map(str::to_owned));
        arguments.push(format!("--user-data-dir={}", folder.path().join("profile").display()));
        arguments.extend(
            FLAGS
                .split_whitespace()
                .chain(["--remote-debugging-pipe", "--force-device-scale-factor=1"])
                .map(str::to_owned),
        );
        arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let process = Process::start(arguments, folder.path(), &log);
        // For both, so that it does not wait for a reader that may never come.
        let commands = OpenOptions::new().read(true).write(true).open(to).expect("it was just made");
        let (read, answers) = mpsc::channel();
        thread::spawn(move || {
            let Ok(answers) = File::open(from) else { return };
            for message in BufReader::new(answers).split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).expect("it speaks JSON");
                if read.send(message).is_err() {
                    return;
                }
            }
        });
        let (complaints, requests) = (Vec::new(), Vec::new());
        let mut browser = Self {
            commands,
            answers,
            sent: 0,
            session: None,
            complaints,
            requests,
            stand_in: None,
            process,
            _folder: folder,
        };
        let tab = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].take();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": tab, "flatten": true }));
        browser.session = Some(attached["sessionId"].as_str().expect("a session").to_owned());
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    fn send(&mut self, method: &str, parameters: Value) -> Value {
        self.sent += 1;
        let mut command = json!({ "id": self.sent, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            command["sessionId"] = session.as_str().into();
        }
        let mut bytes = command.to_string().into_bytes();
        bytes.push(0);
        self.commands.write_all(&bytes).expect("the pipe is there");
        command
    }

    /// One command, and what came of it.
    #[track_caller]
    pub fn call(&mut self, method: &str, parameters: Value) -> Value {
        let command = self.send(method, parameters);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Ok(mut message) = self.answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
                self.process.print_log("chromium");
                panic!("no answer to {command}");
            };
            if message["id"] == command["id"] {
                assert!(message["error"].is_null(), "{command}: {}", message["error"]);
                return message["result"].take();
            }
            self.hear(&message);
        }
    }

    fn hear(&mut self, event: &Value) {
        let told = &event["params"];
        let complaint = match event["method"].as_str() {
            Some("Network.requestWillBeSent") => {
                self.requests.push(told["request"]["url"].as_str().unwrap_or_default().to_owned());
                return;
            }
            Some("Fetch.requestPaused") => {
                let answer = self.stand_in.as_ref().and_then(|answer| answer(told["request"]["url"].as_str()?));
                let (status, media_type, body) = answer.unwrap_or((404, "text/plain", String::new()));
                let answer = json!({
                    "requestId": told["requestId"],
                    "responseCode": status,
                    "responseHeaders": [{ "name": "content-type", "value": media_type }],
                    "body": BASE64_STANDARD.encode(body),
                });
                self.send("Fetch.fulfillRequest", answer);
                return;
            }
            Some("Runtime.exceptionThrown") => &told["exceptionDetails"],
            Some("Runtime.consoleAPICalled") if told["type"] == "error" || told["type"] == "warning" => &told["args"],
            Some("Log.entryAdded") if told["entry"]["level"] == "error" || told["entry"]["level"] == "warning" => {
                &told["entry"]
            }
            _ => return,
        };
        self.complaints.push(complaint.to_string());
    }

    /// What pages complained of since the last call.
    pub fn complaints(&mut self) -> Vec<String> {
        // What was said before this answer is heard with it.
        self.evaluate("0");
        std::mem::take(&mut self.complaints)
    }

    #[track_caller]
    pub fn go(&mut self, url: &str) {
        let went = self.call("Page.navigate", json!({ "url": url }));
        assert!(went["errorText"].is_null(), "{url}: {went}");
        self.until(&format!("{url} is there"), "document.readyState === 'complete'");
    }

    /// The value of an expression in the page; a promise's, once it has one.
    #[track_caller]
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let mut result = self.call("Runtime.evaluate", parameters);
        let failed = &result["exceptionDetails"];
        assert!(failed.is_null(), "{}: {failed}", expression.chars().take(500).collect::<String>());
        result["result"]["value"].take()
    }

    /// Asks the page until the expression is true, or something else than nothing.
    #[track_caller]
    pub fn until(&mut self, what: &str, expression: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let value = self.evaluate(expression);
            if !matches!(&value, Value::Null | Value::Bool(false)) {
                return value;
            }
            if Instant::now() >= deadline {
                let page = self.evaluate("document.body.innerText");
                panic!("{what}: not within {PATIENCE:?}; {expression}; complaints: {:?}; {page}", self.complaints);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Has what the page asks for by such a URL (`*` is any part of one) answered here.
    pub fn stand_in(&mut self, pattern: &str, answer: impl Fn(&str) -> Option<(u16, &'static str, String)> + 'static) {
        self.stand_in = Some(Box::new(answer));
        self.call("Fetch.enable", json!({ "patterns": [{ "urlPattern": pattern }] }));
    }

    /// Where what is downloaded goes.
    pub fn download_to(&mut self, folder: &Path) {
        self.call("Browser.setDownloadBehavior", json!({ "behavior": "allow", "downloadPath": folder }));
    }

    /// A key, as a person presses it.
    pub fn press(&mut self, key: &str) {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            "Escape" => (27, ""),
            " " => (32, " "),
            other => (u32::from(other.as_bytes()[0].to_ascii_uppercase()), other),
        };
        let name = if key == " " { "Space" } else { key };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({ "type": kind, "key": key, "code": name, "windowsVirtualKeyCode": code });
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = text.into();
            }
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    pub fn write(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text }));
    }

    /// The size of the window, in CSS pixels.
    pub fn resize(&mut self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    /// What the system of its user prefers: `light` or `dark`.
    pub fn prefer(&mut self, scheme: &str) {
        let feature = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": feature }));
    }

    /// What is to be seen, as PNG.
    pub fn screenshot(&mut self, file: &Path) {
        let shot = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        let png = BASE64_STANDARD.decode(shot["data"].as_str().expect("a picture")).expect("base64");
        std::fs::write(file, png).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}

/// What axe-core finds wrong with the page that is shown: of each, the rule, and the elements.
pub fn axe(browser: &mut Browser, packages: &Path) -> Vec<String> {
    let script: PathBuf = packages.join("node_modules/axe-core/axe.min.js");
    let script = std::fs::read_to_string(&script).unwrap_or_else(|error| panic!("{}: {error}", script.display()));
    browser.evaluate(&format!("{script};0"));
    let found = browser.evaluate(
        "axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) => violations.map(({ id, help, nodes }) => \
         `${id}: ${help}: ${nodes.map(({ html, any, all }) => html.slice(0, 200) + ' ' + [...any, ...all].map(({ message }) => \
         message).join(' ')).slice(0, 5).join(' | ')}`))",
    );
    found.as_array().expect("a list").iter().map(|each| each.as_str().unwrap_or_default().to_owned()).collect()
}
