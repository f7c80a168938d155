//! TLS as operators and clients meet it: curl, OpenSSL, certificates that are renewed, and those that end.

use std::{
    io::{Read, Write},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{
    PATIENCE, StopOnDrop,
    archive::Archive,
    daemon::{Daemon, Setup},
    eventually,
    raw::{connect, exchange, read},
    tls::{Certificates, ask, post, shake},
};

fn setup(name: &str, files: &Certificates) -> Setup {
    Setup::new(name).set("http.tls.cert", files.text("server.pem")).set("http.tls.key", files.text("server.key"))
}

fn url(daemon: &Daemon) -> String {
    format!("https://{}/v1/events", daemon.http_address())
}

#[test]
fn curl_sends_over_tls_1_2_and_1_3_and_http_without_it_hears_what_is_wrong() {
    let files = Certificates::new();
    let daemon = setup("tls", &files).start();
    assert!(daemon.log().contains(&format!("https://{}", daemon.http_address())), "{}", daemon.log());
    let send = |more: &[&str]| {
        let url = url(&daemon);
        let written = ["--json", r#"{"type":"a"}"#, "--write-out", "\n%{http_version} %{http_code}", &url];
        files.curl(&[&written, more].concat())
    };
    for version in [&["--tls-max", "1.2"], &["--tlsv1.3", "--http2"][..2], &["--http1.1", "--compressed"]] {
        let (exit, said) = send(version);
        assert_eq!((exit, said.lines().last()), (0, Some("1.1 200")), "{version:?}: {said}");
    }
    // What OpenSSL would not even try by itself.
    let (exit, said) = send(&["--tlsv1.0", "--tls-max", "1.1", "--ciphers", "DEFAULT:@SECLEVEL=0"]);
    assert_eq!(exit, 35, "{said}");
    assert!(daemon.try_metric("ingestd_tls_handshakes_failed_total", r#"reason="incompatible""#) >= Some(1.0));
    let (exit, said) = Certificates::new().curl(&[&url(&daemon)]);
    assert_ne!(exit, 0, "another CA's: {said}");
    eventually("it is counted that the client does not take it", PATIENCE, || {
        let refused = daemon.try_metric("ingestd_tls_handshakes_failed_total", r#"reason="refused_by_client""#);
        (refused == Some(1.0)).then_some(())
    });

    let plain = exchange(daemon.http_address(), &post(r#"{"type":"plain"}"#), 1, true, PATIENCE);
    assert_eq!(plain.summary(), "400, closed");
    let problem: Value = serde_json::from_slice(&plain.answers[0].body).expect("a problem");
    assert_eq!(problem["detail"], "this port speaks TLS, and this is HTTP without it: use https://");
    assert!(plain.answers[0].head.contains("content-type: application/problem+json\r\n"), "{plain:?}");
    assert_eq!(daemon.try_metric("ingestd_tls_handshakes_failed_total", r#"reason="plain_http""#), Some(1.0));
    assert_eq!(daemon.metric("ingestd_events_accepted_total"), Some(3.0));
    assert_eq!(daemon.try_metric("ingestd_tls_handshakes_total", r#"listener="http""#), Some(3.0));
    daemon.terminate();
}

#[test]
fn keys_are_taken_as_openssl_writes_them() {
    let files = Certificates::new();
    for (name, arguments) in [
        ("pkcs1", &["genrsa", "-traditional", "2048"][..]),
        ("sec1", &["ecparam", "-name", "prime256v1", "-genkey"]),
        ("pkcs8", &["genpkey", "-algorithm", "ed25519"]),
    ] {
        files.issue_with(name, arguments);
        let (cert, key) = (files.text(&format!("{name}.pem")), files.text(&format!("{name}.key")));
        let daemon = Setup::new(name).set("http.tls.cert", cert).set("http.tls.key", key).start();
        let (exit, said) = files.curl(&["--json", r#"{"type":"a"}"#, &url(&daemon)]);
        assert!(exit == 0 && said.contains("\"accepted\":1"), "{name}: {said}");
        daemon.terminate();
    }
}

#[test]
fn a_client_shows_its_certificate_and_its_name_stands_in_its_records() {
    let files = Certificates::new();
    let with_ca = ["http", "admin"].map(|listener| (format!("{listener}.tls"), files.text("ca.pem")));
    let setup = with_ca
        .iter()
        .fold(setup("mutual", &files), |setup, (section, ca)| setup.set(&format!("{section}.client_ca"), ca));
    let setup = setup.set("admin.tls.cert", files.text("server.pem")).set("admin.tls.key", files.text("server.key"));
    let daemon = setup.set("event.on_invalid", "quarantine").spawn();
    let (cert, key) = (files.text("shop.pem"), files.text("shop.key"));
    let shown = ["--cert", &cert, "--key", &key];
    let admin =
        |path: &str| files.curl(&[&shown[..], &[&format!("https://{}{path}", daemon.admin_address())]].concat());
    eventually("ready", PATIENCE, || admin("/health/ready").1.contains("\"ready\":true").then_some(()));

    let claimed = ["--header", "ingestd-client: somebody-else", "--json", r#"{"type":"a","ingestd-client":"x"}"#];
    let (exit, said) = files.curl(&[&shown[..], &claimed, &[&url(&daemon)]].concat());
    assert!(exit == 0 && said.contains("\"accepted\":1"), "{said}");
    let (exit, said) = files.curl(&[&shown[..], &["--json", "{}", &url(&daemon)]].concat());
    assert!(exit == 0 && said.contains("\"quarantined\":1"), "{said}");
    for address in [url(&daemon), format!("https://{}/metrics", daemon.admin_address())] {
        let (exit, said) = files.curl(&["--json", "{}", &address]);
        assert!(exit != 0 && !said.contains("accepted"), "without a certificate: {said}");
    }
    let others = Certificates::new();
    let (cert_of_other, key_of_other) = (others.text("shop.pem"), others.text("shop.key"));
    let (exit, said) = files.curl(&["--cert", &cert_of_other, "--key", &key_of_other, "--json", "{}", &url(&daemon)]);
    assert_ne!(exit, 0, "a certificate of another CA: {said}");

    let metrics = admin("/metrics").1;
    for line in [
        r#"ingestd_tls_handshakes_failed_total{listener="http",reason="no_certificate"} 1"#,
        r#"ingestd_tls_handshakes_failed_total{listener="admin",reason="no_certificate"} 1"#,
        r#"ingestd_tls_handshakes_failed_total{listener="http",reason="bad_certificate"} 1"#,
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in {metrics}");
    }

    // What an operator does stands in the log, by the certificate where there are no keys.
    let reload = format!("https://{}/reload", daemon.admin_address());
    let (exit, said) = files.curl(&[&shown[..], &["--request", "POST", &reload]].concat());
    assert!(exit == 0 && said.contains("needs_restart"), "{said}");
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("an operator's request")).unwrap_or_default();
    assert!(line.contains("/reload") && line.contains("client") && line.contains("shop"), "{log}");

    // The daemon's certificate is known by the configuration, though 127.0.0.1 is asked.
    let none = daemon.command(&["dlq", "list"]);
    assert!(none.status == Some(1) && none.error.contains("see --cert and --cert-key"), "{none:?}");
    let letters = daemon.command(&["dlq", "show", "--json", "--cert", &cert, "--cert-key", &key]).json(0);
    let headers = letters[0]["headers"].as_array().expect("headers");
    assert!(headers.contains(&json!({ "name": "ingestd-client", "value": "shop" })), "{letters}");
    let admin_url = format!("https://{}", daemon.admin_address());
    let by_ca = [
        "dlq",
        "list",
        "--json",
        "--admin",
        &admin_url,
        "--ca",
        &files.text("ca.pem"),
        "--cert",
        &cert,
        "--cert-key",
        &key,
    ];
    assert_eq!(daemon.command(&by_ca).json(0)["dead_letters"].as_array().map(Vec::len), Some(1));
    let strangers = ["dlq", "list", "--admin", &admin_url, "--ca", &others.text("ca.pem")];
    let refused = daemon.command(&strangers);
    assert!(refused.status == Some(1) && refused.error.contains("see --ca"), "{refused:?}");

    daemon.signal("TERM");
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    let mut archive = Archive::local(&daemon.data().join("archive"));
    archive.refresh();
    let headers: Vec<_> = archive.lines().map(|line| line.headers.clone()).collect();
    assert_eq!(headers, [vec![("ingestd-client".to_owned(), Some(b"shop".to_vec()))]]);
}

#[test]
fn dlq_asks_an_admin_listener_that_speaks_tls() {
    let files = Certificates::new();
    let setup = Setup::new("dlq-tls").set("event.on_invalid", "quarantine");
    let setup = setup.set("admin.tls.cert", files.text("server.pem")).set("admin.tls.key", files.text("server.key"));
    let daemon = setup.spawn();
    let ready = format!("https://{}/health/ready", daemon.admin_address());
    eventually("ready", PATIENCE, || files.curl(&[&ready]).1.contains("\"ready\":true").then_some(()));
    assert_eq!(daemon.post(None, b"{}").status, 200);
    let listed = daemon.command(&["dlq", "list", "--json"]).json(0);
    assert_eq!(listed["dead_letters"].as_array().map(Vec::len), Some(1), "{listed}");
    let plain = format!("http://{}", daemon.admin_address());
    let refused = daemon.command(&["dlq", "list", "--admin", &plain]);
    assert!(refused.status == Some(1) && refused.error.contains("this port speaks TLS"), "{refused:?}");
    daemon.signal("TERM");
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
}

#[test]
fn certificates_are_renewed_under_load_without_a_failed_request() {
    let files = Certificates::new();
    let daemon = setup("renewal", &files).start();
    let (client, first) = (files.client(None), files.der("server"));
    let (stop, connected, sent) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        for _ in 0..3 {
            scope.spawn(|| {
                // One connection goes on over all renewals, others come and go.
                let mut kept = shake(daemon.http_address(), &client).expect("a handshake");
                connected.fetch_add(1, Ordering::AcqRel);
                while !stop.load(Ordering::Acquire) {
                    let mut short = shake(daemon.http_address(), &client).expect("a handshake");
                    for stream in [&mut kept, &mut short] {
                        let (status, answer) = ask(stream, &post(r#"{"type":"a"}"#)).expect("an answer");
                        assert_eq!(status, 200, "{answer}");
                        sent.fetch_add(1, Ordering::AcqRel);
                    }
                }
                let shown = kept.conn.peer_certificates().expect("a certificate")[0].clone();
                assert_eq!(shown, first, "an open connection goes on as it began");
            });
        }
        eventually("all have connected", PATIENCE, || (connected.load(Ordering::Acquire) == 3).then_some(()));
        for renewal in 0..4 {
            let before = sent.load(Ordering::Acquire);
            files.issue("server", 91 + renewal);
            let renewed = files.der("server");
            // Two of them by asking, two by waiting: the daemon looks itself.
            if renewal % 2 == 0 {
                let applied = daemon.reload().json()["applied"].clone();
                assert_eq!(applied, json!(["http.tls.cert", "http.tls.key"]));
            }
            eventually("the new certificate is shown", PATIENCE, || {
                let stream = shake(daemon.http_address(), &client).expect("a handshake");
                (stream.conn.peer_certificates().expect("a certificate")[0] == renewed).then_some(())
            });
            eventually("requests go on", PATIENCE, || (sent.load(Ordering::Acquire) > before + 20).then_some(()));
        }
    });
    let sent = sent.load(Ordering::Acquire);
    assert_eq!(daemon.metric("ingestd_events_accepted_total"), Some(sent as f64));

    // A wrong one changes nothing.
    let good = files.der("server");
    std::fs::write(files.path("server.pem"), "").expect("it can be written");
    let refused = daemon.reload();
    refused.assert_problem(422);
    let path = files.text("server.pem");
    let sentence = format!("{path}: http.tls.cert: is empty: was what writes it interrupted? Write it anew, as PEM");
    assert!(refused.body.contains(&sentence), "{refused:?}");
    let stream = shake(daemon.http_address(), &client).expect("the old one stays in force");
    assert_eq!(stream.conn.peer_certificates().expect("a certificate")[0], good);
    assert!(daemon.log().contains("configuration not reloaded"), "{}", daemon.log());
    drop(stream);
    daemon.terminate();
}

#[test]
fn a_certificate_that_ends_soon_is_a_warning_a_metric_and_a_line_of_the_status() {
    let files = Certificates::new();
    files.issue("server", 10);
    let daemon = setup("expiry", &files).start();
    let tls = daemon.get("/status").json()["tls"].clone();
    let (http, admin) = (&tls["http"], &tls["admin"]);
    assert_eq!(
        (&http["certificate"], &http["days_left"], admin.is_null()),
        (&json!("server"), &json!(10), true),
        "{tls}"
    );
    let warning = http["warning"].as_str().expect("a warning");
    assert!(
        warning.starts_with("http.tls.cert: the certificate of \"server\", or one of its chain, ends at "),
        "{warning}"
    );
    assert!(warning.ends_with(", in 10 days: renew it"), "{warning}");
    let said = warning.split('"').next_back().expect("an end");
    assert!(daemon.log().contains(said), "{}", daemon.log());
    let ends = daemon.try_metric("ingestd_tls_certificate_not_after_timestamp_seconds", r#"listener="http""#);
    let at = chrono::DateTime::parse_from_rfc3339(http["not_after"].as_str().expect("a time")).expect("a time");
    assert_eq!(ends, Some(at.timestamp() as f64));
    let check = daemon.command(&["check"]);
    assert!(check.status == Some(0) && check.error.contains(&format!("warning: {warning}")), "{check:?}");

    files.issue("server", 90);
    eventually("the daemon has the new one", PATIENCE, || {
        daemon.get("/status").json()["tls"]["http"]["warning"].is_null().then_some(())
    });
    std::fs::write(files.path("server.key"), "").expect("it can be written");
    let check = daemon.command(&["check", "--json"]);
    let error = &check.json(78)["errors"][0];
    assert_eq!((&error["key"], &error["source"]), (&json!("http.tls.key"), &json!(files.text("server.key"))));
    daemon.terminate();
    let (exit, said) = setup("no-key", &files).run_to_end();
    assert_eq!(exit, 78, "{said}");
    assert!(said.contains("http.tls.key: is empty"), "{said}");
}

#[test]
fn whether_there_is_tls_needs_a_restart_and_a_reload_says_so() {
    let files = Certificates::new();
    let daemon = Setup::new("tls-restart").config("").start();
    let (cert, key) = (files.text("server.pem"), files.text("server.key"));
    daemon.write_config(&format!("[http.tls]\ncert = {cert:?}\nkey = {key:?}\n"));
    let reloaded = daemon.reload().json();
    assert_eq!(reloaded, json!({ "applied": [], "needs_restart": ["http.tls.cert", "http.tls.key"] }));
    assert_eq!(daemon.post(None, br#"{"type":"a"}"#).status, 200, "still without");
    daemon.terminate();
}

/// What OpenSSL, which can speak all of it, finds that the daemon does: no protocol below 1.2, and no suite without forward secrecy
/// and authenticated encryption.
#[test]
fn openssl_finds_no_protocol_below_1_2_and_no_weak_suite() {
    let files = Certificates::new();
    let daemon = setup("scan", &files).start();
    let is_taken = |arguments: &[&str]| {
        let connect = ["s_client", "-connect", daemon.http_address(), "-no_ign_eof"];
        let mut command = Command::new("timeout");
        command.arg("20").arg("openssl").args(connect).args(arguments).stdin(Stdio::null());
        let output = command.output().expect("openssl is installed");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let suite = said.lines().find_map(|line| line.trim().strip_prefix("New, ")?.split("Cipher is ").nth(1));
        suite.filter(|suite| *suite != "(NONE)").map(str::to_owned)
    };
    for version in ["-tls1", "-tls1_1"] {
        assert_eq!(is_taken(&[version, "-cipher", "ALL:@SECLEVEL=0"]), None, "{version}");
    }
    let listed = Command::new("openssl").args(["ciphers", "-tls1_2", "-s", "ALL:eNULL:@SECLEVEL=0"]).output();
    let listed = String::from_utf8(listed.expect("openssl is installed").stdout).expect("names");
    let suites: Vec<&str> = listed.trim().split(':').filter(|suite| !suite.starts_with("TLS_")).collect();
    assert!(suites.len() > 50 && suites.contains(&"AES128-SHA"), "OpenSSL can speak weak ones: {listed}");
    let mut taken: Vec<_> = suites
        .iter()
        .filter(|suite| is_taken(&["-tls1_2", "-cipher", &format!("{suite}:@SECLEVEL=0")]).is_some())
        .copied()
        .collect();
    for suite in
        ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_CCM_SHA256"]
    {
        taken.extend(is_taken(&["-tls1_3", "-ciphersuites", suite]).map(|_| suite));
    }
    taken.sort_unstable();
    let expected = [
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
    ];
    assert_eq!(taken, expected);
    daemon.terminate();
}

/// How long until the daemon closes the connection.
fn closed_after(stream: &mut impl Read) -> Duration {
    let began = Instant::now();
    // A reset is an end, too.
    let _ = stream.read_to_end(&mut Vec::new());
    began.elapsed()
}

#[test]
fn clients_are_waited_for_as_long_as_the_configuration_says_also_after_a_reload() {
    let config = |head: &str, idle: &str| format!("[http]\nhead_timeout = {head:?}\nidle_timeout = {idle:?}\n");
    let daemon = Setup::new("timeouts").config(&config("1s", "1s")).start();
    let health = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut silent = connect(daemon.http_address());
    let silent = closed_after(&mut silent);
    assert!((Duration::from_millis(900)..Duration::from_secs(4)).contains(&silent), "{silent:?}");
    let idle = |address: &str| {
        let began = Instant::now();
        let outcome = exchange(address, health, 1, true, PATIENCE);
        assert_eq!(outcome.summary(), "200, closed");
        began.elapsed()
    };
    let short = idle(daemon.http_address());
    assert!((Duration::from_millis(900)..Duration::from_secs(4)).contains(&short), "{short:?}");
    daemon.write_config(&config("2s", "7s"));
    assert_eq!(daemon.reload().status, 200);
    eventually("both are in force", PATIENCE, || daemon.log().contains("idle_timeout").then_some(()));
    let mut silent = connect(daemon.http_address());
    let silent = closed_after(&mut silent);
    assert!((Duration::from_millis(1900)..Duration::from_secs(6)).contains(&silent), "{silent:?}");
    let long = idle(daemon.http_address());
    assert!((Duration::from_millis(6900)..Duration::from_secs(15)).contains(&long), "{long:?}");
    daemon.terminate();
}

#[test]
fn an_address_has_no_more_connections_than_it_may_with_and_without_tls() {
    let files = Certificates::new();
    let config = |most: usize| format!("[http]\nmax_connections_per_address = {most}\n");
    let plain = Setup::new("address").config(&config(2)).start();
    let health = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    let held: Vec<_> = (0..2).map(|_| connect(plain.http_address())).collect();
    // They are answered, and so counted.
    held.iter().for_each(|stream| {
        let mut stream = stream;
        stream.write_all(health).expect("the kernel takes it");
        assert_eq!(read(stream, 1, false, PATIENCE).summary(), "200");
    });
    let refused = exchange(plain.http_address(), health, 1, true, PATIENCE);
    assert_eq!(refused.summary(), "503, closed");
    let answer = &refused.answers[0];
    let problem: Value = serde_json::from_slice(&answer.body).expect("a problem");
    let sentence = "your address has as many connections as it may have at a time (http.max_connections_per_address): use those, or \
                    close some";
    assert_eq!((problem["status"].as_u64(), problem["detail"].as_str()), (Some(503), Some(sentence)));
    assert!(answer.head.contains("retry-after: 1\r\n") && answer.head.contains("x-request-id: "), "{}", answer.head);
    assert!(plain.try_metric("ingestd_connections_refused_total", r#"reason="address""#) >= Some(1.0));
    plain.write_config(&config(3));
    assert_eq!(plain.reload().status, 200);
    assert_eq!(exchange(plain.http_address(), health, 1, false, PATIENCE).summary(), "200", "the limit is live");
    drop(held);
    plain.terminate();

    let daemon = setup("address-tls", &files).set("http.max_connections_per_address", 1).start();
    let client = files.client(None);
    let mut first = shake(daemon.http_address(), &client).expect("a handshake");
    assert!(shake(daemon.http_address(), &client).is_err(), "closed before the handshake");
    assert_eq!(ask(&mut first, health).expect("an answer").0, 200);
    drop(first);
    eventually("its place is free again", PATIENCE, || shake(daemon.http_address(), &client).ok());
    daemon.terminate();
}
