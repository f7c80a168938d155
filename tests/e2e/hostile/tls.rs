//! What is hostile by TLS, or by the number of connections. Each has a daemon of its own.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{
    MEMORY,
    behaviour::{connect_from, got},
};
use crate::support::{
    PATIENCE,
    daemon::{Daemon, Setup},
    eventually,
    raw::{connect, exchange, read},
    tls::{Certificates, ask, post, shake},
};

fn start(name: &str, files: &Certificates) -> Daemon {
    let setup = Setup::new(name).set("http.tls.cert", files.text("server.pem"));
    setup.set("http.tls.key", files.text("server.key")).start()
}

/// Others are served, and afterwards nothing is left, and nothing was said.
fn check(daemon: Daemon, files: &Certificates, sockets: usize) {
    let mut stream = shake(daemon.http_address(), &files.client(None)).expect("a handshake");
    assert_eq!(ask(&mut stream, &post(r#"{"type":"good"}"#)).expect("an answer").0, 200);
    drop(stream);
    eventually("connections are closed", PATIENCE, || (daemon.open_sockets() <= sockets + 2).then_some(()));
    assert_eq!(daemon.metric("ingestd_in_flight_bytes"), Some(0.0));
    let peak = daemon.peak_memory();
    eprintln!("hostile: peak memory with TLS {} MiB", peak >> 20);
    assert!(peak < MEMORY, "{peak} bytes of memory");
    let log = daemon.log();
    assert!(!log.contains(" WARN ") && !log.contains(" ERROR "), "{log}");
    daemon.terminate();
}

/// A ClientHello as OpenSSL's and browsers' begin: a record of a handshake of so many bytes.
fn hello(length: u16) -> Vec<u8> {
    let [high, low] = length.to_be_bytes();
    let [of_high, of_low] = (length - 4).to_be_bytes();
    let mut hello = vec![0x16, 3, 1, high, low, 1, 0, of_high, of_low, 3, 3];
    hello.resize(usize::from(length) + 5, 0);
    hello
}

pub fn slow_handshakes(_: &str) -> String {
    const CROWD: usize = 1_000;
    let files = Certificates::new();
    let daemon = start("hostile-tls-slow", &files);
    let (address, sockets) = (daemon.http_address(), daemon.open_sockets());
    let bytes = hello(512);
    let mut crowd: Vec<TcpStream> = (0..CROWD).map(|_| connect(address)).collect();
    let began = Instant::now();
    // A byte a second, for longer than a handshake may take.
    for byte in &bytes[..8] {
        crowd.iter_mut().for_each(|stream| _ = stream.write_all(&[*byte]));
        let mut good = shake(address, &files.client(None)).expect("others are served meanwhile");
        assert_eq!(ask(&mut good, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").expect("an answer").0, 200);
        thread::sleep(Duration::from_secs(1));
    }
    let open = crowd.iter().filter(|stream| got(stream, 0) != "closed").count();
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    let timeouts = daemon.try_metric("ingestd_tls_handshakes_failed_total", r#"reason="timeout""#);
    assert_eq!((open, timeouts), (0, Some(CROWD as f64)));
    check(daemon, &files, sockets);
    "closed".to_owned()
}

pub fn large_hello(_: &str) -> String {
    let files = Certificates::new();
    let daemon = start("hostile-tls-large", &files);
    let sockets = daemon.open_sockets();
    // One message in four records, each of the largest size.
    let record = |of: &[u8]| [&[0x16, 3, 1, 0x40, 0][..], of, &vec![0; (1 << 14) - of.len()]].concat();
    let sent = [record(&[1, 0, 0xff, 0xf0, 3, 3]), record(&[]), record(&[]), record(&[])].concat();
    let crowd: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = connect(daemon.http_address());
            // Who has enough need not read the rest.
            let _ = stream.write_all(&sent);
            stream
        })
        .collect();
    crowd.iter().for_each(|stream| {
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        // An alert, perhaps, and the end.
        let mut stream = stream;
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let failed = daemon.metric("ingestd_tls_handshakes_failed_total");
    assert_eq!(failed, Some(200.0), "{}", daemon.get("/metrics").body);
    check(daemon, &files, sockets);
    "closed".to_owned()
}

/// OpenSSL asks for a new handshake within the connection (TLS 1.2), again and again.
pub fn renegotiation(_: &str) -> String {
    let files = Certificates::new();
    let daemon = start("hostile-tls-renegotiation", &files);
    let sockets = daemon.open_sockets();
    let mut client = Command::new("timeout")
        .args(["60", "openssl", "s_client", "-tls1_2", "-legacy_renegotiation", "-connect", daemon.http_address()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl is installed");
    let mut input = client.stdin.take().expect("it is piped");
    for _ in 0..5 {
        thread::sleep(Duration::from_millis(500));
        // It has ended when the other side closed.
        let _ = input.write_all(b"R\n");
    }
    drop(input);
    let output = client.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("RENEGOTIATING") && said.contains("no renegotiation"), "{said}");
    assert_eq!(daemon.try_metric("ingestd_tls_handshakes_total", r#"listener="http""#), Some(1.0));
    check(daemon, &files, sockets);
    "closed".to_owned()
}

pub fn header_floods(_: &str) -> String {
    let files = Certificates::new();
    let daemon = start("hostile-tls-heads", &files);
    let (address, sockets) = (daemon.http_address(), daemon.open_sockets());
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let mut stream = shake(address, &files.client(None)).expect("a handshake");
                stream.sock.set_write_timeout(Some(PATIENCE)).expect("a socket");
                let mut sent = stream.write_all(b"POST /v1/events HTTP/1.1\r\n");
                let mut fields = 0;
                // As an endless head does without TLS, until the other side has enough.
                while sent.is_ok() && fields < 100_000 {
                    sent = stream.write_all(&b"X-Field: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(100));
                    fields += 100;
                }
                let mut text = Vec::new();
                let _ = stream.read_to_end(&mut text);
                let text = String::from_utf8_lossy(&text);
                assert!(text.starts_with("HTTP/1.1 431 ") || sent.is_err(), "{text}");
            });
        }
    });
    assert_eq!(daemon.try_metric("ingestd_requests_total", r#"status="431""#), Some(20.0));
    check(daemon, &files, sockets);
    "431, closed".to_owned()
}

pub fn plain_http(_: &str) -> String {
    let files = Certificates::new();
    let daemon = start("hostile-tls-plain", &files);
    let sockets = daemon.open_sockets();
    let outcome = exchange(daemon.http_address(), &post(r#"{"type":"plain"}"#), 1, true, PATIENCE);
    check(daemon, &files, sockets);
    outcome.summary()
}

/// One address opens as many as it likes, and holds what it has; another one is served.
pub fn one_address(_: &str) -> String {
    const CONNECTIONS: usize = 10_000;
    const MOST: usize = 100;
    let daemon = Setup::new("hostile-address").set("http.max_connections_per_address", MOST).start();
    let address: SocketAddrV4 = daemon.http_address().parse().expect("IPv4, as the tests bind it");
    let sockets = daemon.open_sockets();
    let health = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    let (mut held, mut refused) = (Vec::new(), 0);
    for connection in 0..CONNECTIONS {
        let mut stream = connect_from(Ipv4Addr::new(127, 0, 0, 99), address);
        if held.len() < MOST {
            // Silent ones would be closed after seconds, and others let in.
            stream.write_all(health).expect("the kernel takes it");
            assert_eq!(read(&stream, 1, false, PATIENCE).summary(), "200");
            held.push(stream);
            continue;
        }
        let summary = got(&stream, 1);
        match summary.as_str() {
            "503, closed" => refused += 1,
            other => assert_eq!(other, "closed", "what the kernel did not take"),
        }
        if connection % 1_000 == 0 {
            let began = Instant::now();
            assert_eq!(exchange(daemon.http_address(), health, 1, false, PATIENCE).summary(), "200", "another address");
            assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        }
    }
    let counted = daemon.try_metric("ingestd_connections_refused_total", r#"reason="address""#);
    assert_eq!((refused, counted), (CONNECTIONS - MOST, Some((CONNECTIONS - MOST) as f64)));
    assert!(daemon.open_sockets() <= sockets + MOST + 12, "{} sockets", daemon.open_sockets());
    drop(held);
    eventually("connections are closed", PATIENCE, || (daemon.open_sockets() <= sockets + 2).then_some(()));
    assert!(daemon.peak_memory() < MEMORY, "{} bytes of memory", daemon.peak_memory());
    daemon.terminate();
    "503, closed".to_owned()
}
