//! The documents of both listeners, as a running daemon serves them. That each answer is described is checked where the tests
//! get it (`support::openapi`).

use std::process::Command;

use serde_json::Value;

use crate::support::{
    PATIENCE,
    daemon::{Daemon, Setup},
    http::Client,
    openapi,
    raw::exchange,
    skip,
};

fn document(address: &str) -> Value {
    let reply = Client::new().get(&format!("http://{address}/openapi.json")).expect("it answers");
    assert_eq!((reply.status, reply.content_type.as_str()), (200, "application/json"), "{reply:?}");
    reply.json()
}

/// The daemon, with what changes the documents.
fn start(name: &str) -> Daemon {
    let key = format!("[{{ name = \"a\", hash = \"sha256:{}\" }}]", "0".repeat(64));
    Setup::new(name).set("http.cors.origins", "*").set("http.auth.keys", key).set("store.events", true).start()
}

#[test]
fn what_a_document_describes_is_served_and_nothing_else_is() {
    let daemon = start("openapi");
    for (address, title) in [(daemon.http_address(), "events"), (daemon.admin_address(), "operators")] {
        let document = document(address);
        assert!(document["info"]["title"].as_str().is_some_and(|given| given.contains(title)), "{}", document["info"]);
        for path in document["paths"].as_object().expect("paths").keys() {
            let described = openapi::operations(&document, path).expect("it is one of them");
            let name = if path.starts_with("/assets/") { "main.js" } else { "events_by_type" };
            let concrete = path.replace("{name}", name).replace(['{', '}'], "");
            for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE"] {
                if (method, path.as_str()) == ("GET", "/v1/live") {
                    // It has no end: `dashboard` reads it.
                    assert!(described.contains_key("get"));
                    continue;
                }
                let fields = "Host: x\r\nConnection: close\r\nContent-Length: 0\r\n";
                let request = format!("{method} {concrete} HTTP/1.1\r\n{fields}\r\n");
                let outcome = exchange(address, request.as_bytes(), 1, true, PATIENCE);
                let status = outcome.answers[0].status;
                let is_described = described.contains_key(&method.to_ascii_lowercase());
                assert_eq!(status != 405, is_described, "{method} {path}: {status}");
                // Of a letter that there is not.
                assert!(status != 404 || path.ends_with("{offset}"), "{method} {path}: {status}");
            }
        }
        let elsewhere = exchange(address, b"GET /elsewhere HTTP/1.1\r\nHost: x\r\n\r\n", 1, false, PATIENCE);
        assert_eq!(elsewhere.summary(), "404");
    }
    daemon.terminate();
}

#[test]
fn a_validator_of_openapi_takes_both_documents() {
    let daemon = start("validator");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openapi/run.py");
    let urls = [daemon.http_address(), daemon.admin_address()].map(|address| format!("http://{address}"));
    let run = Command::new("python3").args([script, "validate"]).args(&urls).output().expect("python3 runs");
    let said = String::from_utf8_lossy(&[run.stdout, run.stderr].concat()).into_owned();
    if run.status.code() == Some(77) {
        return skip("the validator's packages cannot be installed");
    }
    assert!(run.status.success() && said.contains("2 passed, 0 failed"), "{said}");
    daemon.terminate();
}
