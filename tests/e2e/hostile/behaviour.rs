//! Clients that are hostile by what they do, by name, with what each gets.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::net::{self, AddressFamily, SocketType};

use super::{
    MEMORY,
    table::{CHUNKED, NDJSON, bomb, chunk, coded, event, post, sized},
    tls,
};
use crate::support::{
    PATIENCE,
    coding::CODINGS,
    daemon::Setup,
    eventually,
    raw::{connect, exchange, read},
};

pub struct Behaviour {
    pub name: &'static str,
    pub gets: &'static str,
    /// Says what it got.
    pub run: fn(&str) -> String,
    /// Whether its [`event`] is stored.
    pub stored: bool,
    /// It needs the machine, or `http.max_in_flight`, for itself.
    pub alone: bool,
}

pub const BEHAVIOURS: [Behaviour; 30] = [
    Behaviour {
        name: "a silent connection",
        gets: "closed",
        run: |address| got(&connect(address), 0),
        stored: false,
        alone: false,
    },
    Behaviour { name: "a head, byte by byte", gets: "408, closed", run: slow_head, stored: false, alone: false },
    Behaviour {
        name: "a second head, byte by byte",
        gets: "200, 408, closed",
        run: slow_second_head,
        stored: true,
        alone: false,
    },
    Behaviour { name: "a body, byte by byte", gets: "408, closed", run: slow_body, stored: false, alone: false },
    Behaviour {
        name: "a chunked body, byte by byte",
        gets: "408, closed",
        run: slow_chunks,
        stored: false,
        alone: false,
    },
    Behaviour {
        name: "a body in gzip, byte by byte",
        gets: "408, closed",
        run: slow_gzip,
        stored: false,
        alone: false,
    },
    Behaviour {
        name: "Content-Length longer than the body",
        gets: "408, closed",
        run: long_length,
        stored: false,
        alone: false,
    },
    Behaviour { name: "a chunk of 2^64 - 1 bytes", gets: "408, closed", run: huge_chunk, stored: false, alone: false },
    Behaviour { name: "a body that is cut off", gets: "400, closed", run: cut_body, stored: false, alone: false },
    Behaviour { name: "a reset in the middle of a body", gets: "nothing", run: reset, stored: false, alone: false },
    Behaviour { name: "an endless head", gets: "431, closed", run: endless_head, stored: false, alone: false },
    Behaviour { name: "an endless chunked body", gets: "413, closed", run: endless_body, stored: false, alone: true },
    Behaviour {
        name: "an endless chunk extension",
        gets: "408, closed",
        run: endless_extension,
        stored: false,
        alone: false,
    },
    Behaviour { name: "endless trailers", gets: "408, closed", run: endless_trailers, stored: false, alone: false },
    Behaviour { name: "answers that are never read", gets: "closed", run: never_read, stored: false, alone: false },
    Behaviour {
        name: "pipelined heads, and no answer read",
        gets: "closed",
        run: pipelined_heads,
        stored: false,
        alone: false,
    },
    Behaviour {
        name: "20 bodies of 16 MiB at once",
        gets: "400 or 503",
        run: large_bodies,
        stored: false,
        alone: true,
    },
    Behaviour { name: "80 bombs at once", gets: "413 or 503", run: bombs, stored: false, alone: true },
    Behaviour { name: "2,000 silent connections", gets: "closed", run: silent_crowd, stored: false, alone: false },
    Behaviour {
        name: "100,000 connections that come and go",
        gets: "200, closed",
        run: churn,
        stored: false,
        alone: true,
    },
    Behaviour { name: "100,000 wrong keys", gets: "401", run: wrong_keys, stored: false, alone: true },
    Behaviour {
        name: "1,000 TLS handshakes, a byte a second",
        gets: "closed",
        run: tls::slow_handshakes,
        stored: false,
        alone: true,
    },
    Behaviour {
        name: "200 TLS handshakes of 64 KiB",
        gets: "closed",
        run: tls::large_hello,
        stored: false,
        alone: true,
    },
    Behaviour { name: "renegotiation", gets: "closed", run: tls::renegotiation, stored: false, alone: true },
    Behaviour {
        name: "20 endless heads over TLS",
        gets: "431, closed",
        run: tls::header_floods,
        stored: false,
        alone: true,
    },
    Behaviour {
        name: "HTTP to a port that speaks TLS",
        gets: "400, closed",
        run: tls::plain_http,
        stored: false,
        alone: true,
    },
    Behaviour {
        name: "10,000 connections of one address",
        gets: "503, closed",
        run: tls::one_address,
        stored: false,
        alone: true,
    },
    Behaviour {
        name: "100,000 addresses that a proxy names",
        gets: "400, 429",
        run: many_addresses,
        stored: false,
        alone: true,
    },
    Behaviour {
        name: "a PROXY header of a proxy, byte by byte",
        gets: "408, closed",
        run: slow_proxy_header,
        stored: false,
        alone: false,
    },
    Behaviour {
        name: "100 events of 120 levels at a recursive schema",
        gets: "400",
        run: deep_events_at_a_schema,
        stored: false,
        alone: true,
    },
];

/// For what ends by a deadline of the daemon's, which is up to 30 s. Who does not read may hear of it by the answer to a probe
/// alone, and a kernel waits twice as long before each, up to two minutes.
const ENDLESS: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(100);

/// What comes until the connection is closed.
pub fn got(stream: &TcpStream, answers: usize) -> String {
    read(stream, answers, true, PATIENCE).summary()
}

/// Sends piece after piece until the other side has enough, and says what it got.
fn feed(address: &str, first: &[u8], piece: &[u8], pause: Duration) -> String {
    let stream = connect(address);
    let mut sender = stream.try_clone().expect("a socket");
    thread::scope(|scope| {
        scope.spawn(move || {
            let deadline = Instant::now() + ENDLESS;
            let mut sent = sender.write_all(first);
            while sent.is_ok() && Instant::now() < deadline {
                thread::sleep(pause);
                sent = sender.write_all(piece);
            }
        });
        let summary = got(&stream, 1);
        let _ = stream.shutdown(Shutdown::Both);
        summary
    })
}

fn slow_head(address: &str) -> String {
    feed(address, b"POST /v1/events HTTP/1.1\r\nX: ", b"y", PAUSE)
}

fn slow_second_head(address: &str) -> String {
    feed(address, &sized("", &event("a second head, byte by byte")), b"P", PAUSE)
}

fn slow_body(address: &str) -> String {
    feed(address, &post("Content-Length: 1000\r\n", &event("a body, byte by byte")), b" ", PAUSE)
}

fn slow_chunks(address: &str) -> String {
    feed(address, &post(CHUNKED, &chunk(&event("a chunked body, byte by byte"))), b"1\r\n \r\n", PAUSE)
}

fn slow_gzip(address: &str) -> String {
    // A member's head and that of a block of 1,000 bytes as they are.
    let begun =
        [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1][..], &1_000u16.to_le_bytes(), &(!1_000u16).to_le_bytes()].concat();
    feed(address, &post("Content-Encoding: gzip\r\nContent-Length: 1023\r\n", &begun), b" ", PAUSE)
}

fn long_length(address: &str) -> String {
    let name = "Content-Length longer than the body";
    exchange(address, &post("Content-Length: 500\r\n", &event(name)), 1, true, PATIENCE).summary()
}

fn huge_chunk(address: &str) -> String {
    let chunk = [b"FFFFFFFFFFFFFFFF\r\n", &event("a chunk of 2^64 - 1 bytes")[..]].concat();
    exchange(address, &post(CHUNKED, &chunk), 1, true, PATIENCE).summary()
}

fn cut_body(address: &str) -> String {
    let mut stream = connect(address);
    stream.write_all(&post("Content-Length: 500\r\n", &event("a body that is cut off"))).expect("it listens");
    stream.shutdown(Shutdown::Write).expect("a socket");
    got(&stream, 1)
}

fn reset(address: &str) -> String {
    for fields in ["Content-Length: 500\r\n", CHUNKED] {
        let body = [&b"{}\n"[..], &event("a reset in the middle of a body"), b"\n"].concat();
        let body = if fields == CHUNKED { chunk(&body) } else { body };
        let mut stream = connect(address);
        stream.write_all(&post(&format!("{NDJSON}{fields}"), &body)).expect("it listens");
        // Without waiting for what is under way: the other side gets a reset.
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("a socket");
    }
    "nothing".to_owned()
}

fn endless_head(address: &str) -> String {
    feed(address, b"POST /v1/events HTTP/1.1\r\nX: ", &[b'y'; 4096], Duration::ZERO)
}

fn endless_body(address: &str) -> String {
    feed(address, &post(CHUNKED, b""), &chunk(&[b' '; 64 << 10]), Duration::ZERO)
}

fn endless_extension(address: &str) -> String {
    feed(address, &post(CHUNKED, b"1;"), &[b'a'; 64 << 10], Duration::ZERO)
}

fn endless_trailers(address: &str) -> String {
    let first = [&chunk(&event("endless trailers"))[..], b"0\r\n"].concat();
    feed(address, &post(CHUNKED, &first), &b"X: y\r\n".repeat(1_000), Duration::ZERO)
}

/// Sends again and again, reads nothing, and waits until the connection is taken away.
fn deaf(address: &str, request: &[u8]) -> String {
    let address: SocketAddrV4 = address.parse().expect("IPv4, as the tests bind it");
    let socket = net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    // So that it is the other side's turn to wait, soon. (Set later, the kernel drops what it has room for no more, and with
    // it the other side's last word.)
    net::sockopt::set_socket_recv_buffer_size(&socket, 4096).expect("a socket");
    net::connect(&socket, &address).expect("it listens");
    let mut stream = TcpStream::from(socket);
    stream.set_write_timeout(Some(Duration::from_secs(1))).expect("a socket");
    let deadline = Instant::now() + ENDLESS;
    while Instant::now() < deadline {
        match stream.write(request) {
            // So far it fits between the two.
            Ok(_) => thread::sleep(Duration::from_millis(1)),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => return "closed".to_owned(),
        }
    }
    format!("held for {ENDLESS:?}")
}

fn never_read(address: &str) -> String {
    deaf(address, &sized("", format!("[{}]", vec!["1"; 10_000].join(",")).as_bytes()))
}

fn pipelined_heads(address: &str) -> String {
    let field = format!("X: {}\r\n", "y".repeat(1_000));
    deaf(address, format!("GET / HTTP/1.1\r\nHost: x\r\n{field}\r\n").repeat(30).as_bytes())
}

fn large_bodies(address: &str) -> String {
    at_once(address, &[sized(NDJSON, &vec![b'\n'; 16 << 20])], [400, 503])
}

fn bombs(address: &str) -> String {
    at_once(address, &CODINGS.map(|coding| coded(coding, &bomb(coding))), [413, 503])
}

/// Sends each of them twenty times; each time the answer is one of both.
fn at_once(address: &str, requests: &[Vec<u8>], expected: [u16; 2]) -> String {
    let outcomes: Vec<_> = thread::scope(|scope| {
        let requests = requests.iter().flat_map(|request| [request.as_slice(); 20]);
        let send = |request| scope.spawn(move || exchange(address, request, 1, false, PATIENCE));
        let sending: Vec<_> = requests.map(send).collect();
        sending.into_iter().map(|sending| sending.join().expect("it does not panic")).collect()
    });
    let wrong = outcomes
        .iter()
        .find(|outcome| !matches!(outcome.answers[..], [ref answer] if expected.contains(&answer.status)));
    wrong.map_or_else(|| format!("{} or {}", expected[0], expected[1]), |wrong| format!("{wrong:?}"))
}

fn silent_crowd(address: &str) -> String {
    let crowd: Vec<TcpStream> = (0..2_000).map(|_| connect(address)).collect();
    // The door is open to others meanwhile.
    let health = exchange(address, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", 1, false, PATIENCE).summary();
    assert_eq!(health, "200");
    let open = |stream: &&TcpStream| got(stream, 0) != "closed";
    match crowd.iter().filter(open).count() {
        0 => "closed".to_owned(),
        open => format!("{open} of them are still open"),
    }
}

/// What each connection of [`churn`] does, by turns.
const MANNERS: usize = 4;
const CHURNING: usize = 100_000;

/// Connections, a few at a time: one closed at once, one in the middle of a head, one whose answer nobody reads, one in
/// order.
fn churn(address: &str) -> String {
    const THREADS: usize = 4;
    // Each closed connection keeps its port for a minute, of 28,000 for one address: each of these has fewer.
    const ADDRESSES: usize = 8;
    let address: SocketAddrV4 = address.parse().expect("IPv4, as the tests bind it");
    let (done, began) = (AtomicUsize::new(0), Instant::now());
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let done = &done;
            scope.spawn(move || {
                for round in 0..CHURNING / THREADS {
                    let last = u8::try_from(2 + thread * ADDRESSES + round % ADDRESSES).expect("some dozens");
                    come_and_go(connect_from(Ipv4Addr::new(127, 0, 0, last), address), round / ADDRESSES % MANNERS);
                    if done.fetch_add(1, Ordering::Relaxed) % 20_000 == 0 {
                        eprintln!("hostile: connection {} after {:.1?}", done.load(Ordering::Relaxed), began.elapsed());
                    }
                }
            });
        }
    });
    assert_eq!(done.into_inner(), CHURNING);
    "200, closed".to_owned()
}

const WRONG_KEYS: usize = 100_000;

/// A daemon of its own, as the others are open to everybody: each wrong key is refused, and whoever has the right one is
/// served meanwhile.
fn wrong_keys(_: &str) -> String {
    const CONNECTIONS: usize = 4;
    /// Requests that are sent at once, on a connection that is kept.
    const PIPELINED: usize = 50;
    // SHA-256 of "right".
    const HASH: &str = "sha256:27042f4e6eca7d0b2a7ee4026df2ecfa51d3339e6d122aa099118ecd8563bad9";
    let keys = format!("[{{ name = \"right\", hash = \"{HASH}\" }}]");
    let daemon = Setup::new("hostile-keys").set("http.auth.keys", keys).start();
    let address = daemon.http_address();
    let good = || exchange(address, &sized("X-Api-Key: right\r\n", &event("right")), 1, false, PATIENCE).summary();
    let sockets = daemon.open_sockets();
    thread::scope(|scope| {
        for connection in 0..CONNECTIONS {
            scope.spawn(move || {
                let mut stream = connect(address);
                for batch in 0..WRONG_KEYS / CONNECTIONS / PIPELINED {
                    let ask = |n: usize| {
                        let key = format!("ingestd_{connection}-{batch}-{n}");
                        format!("POST /v1/events HTTP/1.1\r\nHost: x\r\nX-Api-Key: {key}\r\nContent-Length: 0\r\n\r\n")
                    };
                    let requests: String = (0..PIPELINED).map(ask).collect();
                    stream.write_all(requests.as_bytes()).expect("the kernel takes it");
                    refused(&mut stream, PIPELINED);
                }
            });
        }
        (0..20).for_each(|_| assert_eq!(good(), "200", "others are served meanwhile"));
    });
    // With a body, which is not read, the connection ends.
    let with_body = exchange(address, &sized("X-Api-Key: wrong\r\n", &event("wrong")), 1, true, PATIENCE);
    assert_eq!(with_body.summary(), "401, closed");
    assert_eq!(daemon.metric("ingestd_auth_refusals_total"), Some((WRONG_KEYS + 1) as f64));
    eventually("connections are closed", PATIENCE, || (daemon.open_sockets() <= sockets + 2).then_some(()));
    assert_eq!(daemon.metric("ingestd_in_flight_bytes"), Some(0.0));
    assert!(daemon.peak_memory() < MEMORY, "{} bytes of memory", daemon.peak_memory());
    let log = daemon.log();
    assert!(!log.contains("ingestd_0-0-0") && !log.contains(" WARN ") && !log.contains(" ERROR "), "{log}");
    daemon.terminate();
    "401".to_owned()
}

/// Each names another client, as whoever has many addresses comes through a proxy: as many as may be known have their own bucket.
fn many_addresses(_: &str) -> String {
    const ADDRESSES: u32 = 100_000;
    const PIPELINED: u32 = 50;
    let daemon = Setup::new("hostile-addresses")
        .set("http.rate", "1/m burst 5")
        .set("http.trusted_proxies", "127.0.0.1")
        .start();
    let (address, sockets) = (daemon.http_address(), daemon.open_sockets());
    let ask = |client: u32| {
        let client = std::net::Ipv4Addr::from_bits(0x0b00_0000 + client);
        let head = format!("POST /v1/events HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 1.1.1.1, {client}\r\n");
        // A body that is not read would end the connection.
        format!("{head}Content-Length: 0\r\n\r\n")
    };
    let stream = connect(address);
    let (mut taken, mut limited) = (0, 0);
    for from in (0..ADDRESSES).step_by(PIPELINED as usize) {
        let requests: String = (from..from + PIPELINED).map(ask).collect();
        (&stream).write_all(requests.as_bytes()).expect("the kernel takes it");
        let mut statuses = read_statuses(&stream, PIPELINED as usize);
        statuses.retain(|status| *status != 400);
        taken += PIPELINED as usize - statuses.len();
        limited += statuses.iter().filter(|status| **status == 429).count();
    }
    assert_eq!(taken + limited, ADDRESSES as usize, "nobody is answered otherwise");
    let known = daemon.metric("ingestd_rate_tracked_addresses").expect("a gauge");
    assert!((32_768.0..=65_536.0).contains(&known), "{known} addresses are known");
    assert!(daemon.peak_memory() < MEMORY, "{} bytes of memory", daemon.peak_memory());
    // Who is known already has what it had.
    let outcome = exchange(address, ask(0).as_bytes(), 1, false, PATIENCE);
    assert_eq!(outcome.summary(), "400");
    drop(stream);
    eventually("connections are closed", PATIENCE, || (daemon.open_sockets() <= sockets + 2).then_some(()));
    daemon.terminate();
    "400, 429".to_owned()
}

/// The statuses of so many answers.
fn read_statuses(mut stream: &TcpStream, answers: usize) -> Vec<u16> {
    const LINE: &[u8] = b"HTTP/1.1 ";
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let (mut buffer, mut text) = (vec![0; 64 << 10], Vec::new());
    loop {
        let lines = text.windows(LINE.len() + 3).filter(|window: &&[u8]| window.starts_with(LINE));
        let statuses: Vec<u16> =
            lines.filter_map(|line| std::str::from_utf8(&line[LINE.len()..]).ok()?.parse().ok()).collect();
        // (Whether the last body is whole is for the next one.)
        if statuses.len() == answers && text.ends_with(b"}") {
            return statuses;
        }
        let read = stream.read(&mut buffer).expect("an answer");
        assert!(
            read > 0,
            "closed after {statuses:?}: {}",
            String::from_utf8_lossy(&text[text.len().saturating_sub(600)..])
        );
        text.extend_from_slice(&buffer[..read]);
    }
}

fn slow_proxy_header(_: &str) -> String {
    let daemon = Setup::new("hostile-proxy").set("http.trusted_proxies", "127.0.0.1").start();
    let got = feed(daemon.http_address(), b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x0f\xff", b"x", PAUSE);
    assert_eq!(daemon.metric("ingestd_proxy_refusals_total"), Some(1.0));
    daemon.terminate();
    got
}

/// Each level is asked about in three branches, and the last is wrong: to gather what is wrong in each would take 3¹²⁰ steps.
fn deep_events_at_a_schema(_: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tree.json");
    let branch = |op: &str| {
        format!(
            r##"{{"type": "object", "properties": {{"op": {{"const": "{op}"}}, "of": {{"$ref": "#"}}}}, "required": ["op"]}}"##
        )
    };
    let schema = format!(r#"{{"anyOf": [{{"type": "string"}}, {}, {}]}}"#, branch("and"), branch("or"));
    std::fs::write(&path, schema).expect("it can be written");
    let config = format!("[[event.types]]\nname = \"tree\"\nschema = {path:?}\n");
    let daemon = Setup::new("hostile-schema").config(&config).start();
    let address = daemon.http_address();
    let deep = format!(r#"{}7{}"#, r#"{"op":"and","of":"#.repeat(119), "}".repeat(119));
    let one = deep.replacen('{', r#"{"type":"tree","#, 1);
    let events = vec![one; 100].join("\n");
    let got = exchange(address, &sized(NDJSON, events.as_bytes()), 1, false, PATIENCE).summary();
    let good = exchange(address, &sized("", &event("good")), 1, false, PATIENCE).summary();
    assert_eq!(good, "200", "others are served");
    assert_eq!(daemon.metric("ingestd_in_flight_bytes"), Some(0.0));
    assert!(daemon.peak_memory() < MEMORY, "{} bytes of memory", daemon.peak_memory());
    daemon.terminate();
    got
}

/// Reads so many answers, each of which is 401.
fn refused(stream: &mut TcpStream, answers: usize) {
    let (mut buffer, mut text) = (vec![0; 64 << 10], Vec::new());
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let count = |text: &[u8], of: &str| text.windows(of.len()).filter(|window| *window == of.as_bytes()).count();
    while count(&text, "\"status\":401") < answers {
        let read = stream.read(&mut buffer).expect("answers");
        assert!(read > 0, "the connection is kept: {}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&buffer[..read]);
    }
    assert_eq!(count(&text, "HTTP/1.1 401 "), answers);
}

pub fn connect_from(source: Ipv4Addr, address: SocketAddrV4) -> TcpStream {
    let socket = net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    net::bind(&socket, &SocketAddrV4::new(source, 0)).expect("a free port of the loopback network");
    net::connect(&socket, &address).expect("it listens");
    TcpStream::from(socket)
}

fn come_and_go(mut stream: TcpStream, manner: usize) {
    match manner {
        0 => {}
        1 => stream.write_all(b"POST /v1/ev").expect("the kernel takes it"),
        2 => stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").expect("the kernel takes it"),
        _ => {
            let request = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
            stream.write_all(request).expect("the kernel takes it");
            stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).expect("an answer, and the end");
            assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
        }
    }
}
