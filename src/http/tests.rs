//! A listener with few connections, over real sockets.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Instant,
};

use actix_web::{HttpResponse, web};
use parking_lot::Mutex;

use super::*;

/// Serves `GET /` with a body of its own, and tells what it refused.
fn listen(max_connections: usize) -> (SocketAddr, Arc<Mutex<Vec<u16>>>) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    (socket.local_addr().unwrap(), listen_at(vec![socket], max_connections))
}

fn listen_at(sockets: Vec<TcpListener>, max_connections: usize) -> Arc<Mutex<Vec<u16>>> {
    let refused: Arc<Mutex<Vec<u16>>> = Arc::default();
    let listener = listener(max_connections, refused.clone());
    let routes = |app: &mut ServiceConfig| {
        app.route("/", web::to(|| async { HttpResponse::Ok().body("hello") }));
    };
    actix_rt::spawn(serve(sockets, listener, routes).unwrap());
    refused
}

pub(super) fn listener(max_connections: usize, refused: Arc<Mutex<Vec<u16>>>) -> Listener {
    Listener {
        name: "test",
        workers: 1,
        max_connections,
        max_body: Box::new(|| 10),
        turns_away: Box::new(|_| None),
        refuses: None,
        cors: None,
        tls: None,
        timeouts: Box::new(Timeouts::default),
        addresses: Addresses::default(),
        most_of_an_address: Box::new(|| 0),
        on_too_many: Box::new(|| ()),
        proxies: None,
        on_refusal: Box::new(move |status, _| refused.lock().push(status.as_u16())),
    }
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// Sends, and reads until `end` has come.
fn ask(stream: &mut TcpStream, sent: &[u8], end: &str) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(sent).unwrap();
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    while !text.ends_with(end) {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "closed after {text:?}");
        text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    text
}

async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    web::block(work).await.unwrap()
}

#[actix_rt::test]
async fn a_listener_answers_at_all_of_its_sockets() {
    let sockets = ["127.0.0.1:0", "127.0.0.2:0"].map(|address| TcpListener::bind(address).unwrap());
    let addresses = sockets.each_ref().map(|socket| socket.local_addr().unwrap());
    listen_at(sockets.into(), 4);
    aside(move || addresses.map(|address| ask(&mut TcpStream::connect(address).unwrap(), GET, "hello"))).await;
}

#[actix_rt::test]
async fn a_listener_that_takes_no_proxy_protocol_says_so() {
    let (address, refused) = listen(100);
    aside(move || {
        let version_2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc6\x33\x64\x07\x0a\0\0\x01\x12\x34\0\x50";
        for header in [&version_2[..], b"PROXY TCP4 198.51.100.7 10.0.0.1 4711 80\r\n"] {
            let text = ask(&mut TcpStream::connect(address).unwrap(), header, "\"about:blank\"}");
            assert!(text.starts_with("HTTP/1.1 400 ") && text.contains("have the proxy send none to it"), "{text}");
        }
    })
    .await;
    assert_eq!(*refused.lock(), [400, 400]);
}

#[actix_rt::test]
async fn when_all_connections_are_idle_the_next_client_waits_seconds_and_not_the_keep_alive_time() {
    let (address, _) = listen(4);
    aside(move || {
        let mut idle: Vec<_> = (0..4).map(|_| TcpStream::connect(address).unwrap()).collect();
        idle.iter_mut().for_each(|stream| drop(ask(stream, GET, "hello")));
        let started = Instant::now();
        ask(&mut TcpStream::connect(address).unwrap(), GET, "hello");
        assert!(started.elapsed() < Duration::from_secs(30));
    })
    .await;
}

#[actix_rt::test]
async fn an_idle_connection_stays_while_there_are_enough() {
    let (address, _) = listen(100);
    aside(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        ask(&mut stream, GET, "hello");
        std::thread::sleep(Duration::from_secs(7));
        ask(&mut stream, GET, "hello");
    })
    .await;
}

#[actix_rt::test]
async fn pipelined_requests_are_answered_in_turn_and_a_broken_one_ends_them() {
    let (address, refused) = listen(100);
    aside(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        let text = ask(&mut stream, &[&GET.repeat(200)[..], b"\0\r\n\r\n", GET].concat(), "\"about:blank\"}");
        assert_eq!((text.matches("200 OK").count(), text.matches("400 Bad").count()), (200, 1));
        assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
    })
    .await;
    assert_eq!(*refused.lock(), [400]);
}

#[actix_rt::test]
async fn each_answer_is_its_own_requests_and_an_upgrade_is_ignored() {
    let (address, refused) = listen(100);
    aside(move || {
        let upgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n";
        let sent = [
            &format!("GET / HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n"),
            "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        ];
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(sent.concat().as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        // Version, what it says of the connection, and its body.
        let answers: Vec<_> = text
            .split("HTTP/1.")
            .skip(1)
            .map(|answer| {
                let (head, body) = answer.split_once("\r\n\r\n").unwrap();
                let connection = head.lines().find_map(|line| line.strip_prefix("connection: "));
                assert!(head.contains(" 200 OK\r\n") && head.contains("content-length: 5\r\n"), "{text}");
                (&head[..1], connection, body)
            })
            .collect();
        let expected =
            [("1", None, "hello"), ("1", None, ""), ("0", Some("keep-alive"), "hello"), ("1", Some("close"), "hello")];
        assert_eq!(answers, expected, "and the fifth is none of this connection");
    })
    .await;
    assert!(refused.lock().is_empty());
}

#[actix_rt::test]
async fn a_body_that_nobody_reads_is_not_asked_for_and_ends_its_connection() {
    let (address, refused) = listen(100);
    aside(move || {
        let asks = b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 11\r\n\r\n";
        let text = ask(&mut TcpStream::connect(address).unwrap(), asks, "}");
        assert!(text.starts_with("HTTP/1.1 413 ") && text.contains("10 bytes"), "{text}");
        let chunks = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n";
        let mut stream = TcpStream::connect(address).unwrap();
        assert!(ask(&mut stream, chunks, "hello").contains("connection: close"));
        let mut ended = Ok(1);
        while ended.as_ref().is_ok_and(|read| *read > 0) {
            std::thread::sleep(Duration::from_millis(50));
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            ended = stream.write_all(b"1\r\nx\r\n").and_then(|()| stream.read(&mut [0; 1]));
        }
        let gone =
            ended.as_ref().map_or_else(|error| error.kind() != std::io::ErrorKind::WouldBlock, |read| *read == 0);
        assert!(gone, "still open: {ended:?}");
    })
    .await;
    assert_eq!(*refused.lock(), [413]);
}

#[test]
fn connections_leave_files_for_the_rest_of_the_process() {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let connections = affordable_connections() as u64;
    assert!(connections <= files.saturating_sub(RESERVED_FILES).max(files / 2) && connections > 0, "{connections}");
}
