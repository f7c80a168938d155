//! Who may do what by the page: with a key, and from pages of other origins.

use std::net::TcpStream;

use sha2::{Digest, Sha256};

use super::{CONFIG, browser, click, decide, letters, quarantine, setup, view};
use crate::support::{PATIENCE, daemon::Setup, devtools::Browser, eventually};

fn key(name: &str, access: &str) -> (String, String) {
    let key = format!("the-key-of-{name}");
    let hash = hex::encode(Sha256::digest(&key));
    (key, format!("[[admin.auth.keys]]\nname = \"{name}\"\nhash = \"sha256:{hash}\"\naccess = \"{access}\"\n"))
}

#[test]
fn the_page_asks_for_a_key_and_does_what_that_may() {
    let Some(mut browser) = browser(&[]) else { return };
    let ((reader, of_reader), (operator, of_operator)) = (key("reader", "read"), key("operator", "operate"));
    let config = |keys: &[&str]| format!("{CONFIG}{}", keys.join(""));
    let daemon = Setup::new("dashboard-keys").config(&config(&[&of_reader, &of_operator])).spawn();
    eventually("it listens", PATIENCE, || TcpStream::connect(daemon.admin_address()).ok());
    let give = |browser: &mut Browser, key: &str| {
        browser.until("a question", "!document.getElementById('key').hidden");
        browser.until("the focus", "document.activeElement.id === 'key-text'");
        browser.write(key);
        browser.press("Enter");
    };
    browser.go(&daemon.admin_url("/"));
    give(&mut browser, "no-such-key");
    browser.until(
        "why not",
        "document.getElementById('key-why').textContent.startsWith('The key is none of admin.auth.keys')",
    );
    give(&mut browser, &reader);
    browser.until("its status", "document.querySelectorAll('.tile').length > 0");
    browser.until("the badge", "document.getElementById('state').textContent === 'ready'");
    view(&mut browser, "configuration");
    click(&mut browser, "#configuration button", "Reload");
    decide(&mut browser, "Reload it");
    browser.until(
        "why not",
        "document.getElementById('reloaded').textContent.includes('The key \"reader\" may only look')",
    );

    // It is kept for the tab, until somebody says otherwise.
    browser.go(&daemon.admin_url("/?again"));
    browser.until("its status", "document.querySelectorAll('.tile').length > 0");
    daemon.write_config(&config(&[&of_operator]));
    give(&mut browser, &operator);
    browser.until(
        "its status",
        "!document.getElementById('overview').hidden && document.querySelectorAll('.tile').length > 0",
    );
    view(&mut browser, "configuration");
    daemon.write_config(&format!("{}[logging]\nlevel = \"debug\"\n", config(&[&of_operator])));
    click(&mut browser, "#configuration button", "Reload");
    decide(&mut browser, "Reload it");
    browser.until("it is read", "document.getElementById('reloaded').textContent.startsWith('It is read.')");
    daemon.signal("TERM");
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
}

#[test]
fn a_page_of_another_origin_changes_nothing_and_one_of_a_name_made_for_it_reads_nothing() {
    let Some(mut browser) = browser(&["--host-resolver-rules=MAP evil.example 127.0.0.1"]) else { return };
    let daemon = setup("another-origin").set("event.on_invalid", "quarantine").start();
    quarantine(&daemon, 3);
    let refused = |reason: &str| {
        daemon.try_metric("ingestd_admin_auth_refusals_total", &format!("reason={reason:?}")).unwrap_or(0.0)
    };
    let port = daemon.http_address().rsplit(':').next().expect("a port").to_owned();
    let mut tried = 0.0;
    // Of the same machine, and of another one as the browser sees it.
    for origin in [format!("http://{}", daemon.http_address()), format!("http://localhost:{port}")] {
        browser.go(&format!("{origin}/health"));
        let admin = daemon.admin_url("");
        for (path, init) in [
            ("/reload", "{ method: 'POST', mode: 'no-cors' }"),
            ("/v1/dead-letters/replay", "{ method: 'POST', mode: 'no-cors' }"),
            ("/v1/dead-letters/replay", "{ method: 'POST', mode: 'no-cors', body: new URLSearchParams({ a: 'b' }) }"),
        ] {
            let told = browser.evaluate(&format!("fetch('{admin}{path}', {init}).then(({{ type }}) => type)"));
            assert_eq!(told, "opaque", "{path} {init}: it was sent");
            tried += 1.0;
            assert_eq!(refused("another_origin"), tried, "{path} {init}");
        }
        // What a browser asks for first is not done either, and nothing is read.
        for (path, init) in [
            ("/v1/dead-letters?to=0s", "{ method: 'DELETE' }"),
            ("/reload", "{ method: 'POST', headers: { 'X-Requested-With': 'ingestd' } }"),
            ("/status", "{}"),
            ("/v1/live", "{}"),
        ] {
            let told =
                browser.evaluate(&format!("fetch('{admin}{path}', {init}).then(() => 'read', ({{ name }}) => name)"));
            assert_eq!(told, "TypeError", "{path} {init}");
        }
        // A preflight is no GET, and a GET below /v1/ is not answered.
        tried += 3.0;
        browser.evaluate(&format!(
            "{{ const form = document.createElement('form'); form.method = 'post'; form.action = '{admin}/reload'; \
             document.body.append(form); form.submit(); }}"
        ));
        browser.until(
            "the form's answer",
            "document.body?.innerText.includes('a page of another origin may change nothing here')",
        );
        tried += 1.0;
        assert_eq!(refused("another_origin"), tried, "{origin}");
    }
    let open = letters(&daemon, "");
    assert!(open.len() == 3 && open.iter().all(|letter| letter["state"] == "open"), "{open:?}");

    // DNS rebinding: the page's own name means this machine by now.
    let port = daemon.admin_address().rsplit(':').next().expect("a port").to_owned();
    browser.go(&format!("http://evil.example:{port}/status"));
    browser.until("a sentence", "document.body.innerText.includes('Host is neither an address nor localhost')");
    assert!(refused("host") >= 1.0);
    let told = browser.evaluate("fetch('/v1/dead-letters').then(({ status }) => status)");
    assert_eq!(told, 403);
    browser.go(&format!("http://localhost:{port}/"));
    browser.until("its own page", "document.querySelectorAll('.tile').length > 0");
    daemon.terminate();
}
