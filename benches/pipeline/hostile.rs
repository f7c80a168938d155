//! A steady load of well-meaning clients on one process, alone, and while other connections misbehave.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::Context;

use crate::{
    events::{self, Shape},
    load::Load,
    rows::{Hostile, LOGIN},
    stage::{Server, Stage, alone, sample},
    support::coding::{CODINGS, compressed},
    table::Sample,
};

/// Events per second, one a request.
const RATE: f64 = 500.0;
const CONNECTIONS: usize = 64;
const MISBEHAVING: usize = 64;
/// Of one connection that misbehaves, from one answer to its next request.
const PAUSE: Duration = Duration::from_secs(1);
/// For the answer to something that asks for none.
const PATIENCE: Duration = Duration::from_secs(2);

impl Stage<'_> {
    /// The latencies are those of the well-meaning.
    pub(crate) fn beside_hostile(&mut self, hostile: Hostile) -> anyhow::Result<Sample> {
        let server = Server::ingestd(alone(&self.name()));
        let requests = events::requests(Shape::Single, LOGIN, false, "");
        let address: SocketAddr = server.address.parse()?;
        let load = Load {
            server: address,
            pid: server.running.pid(),
            requests: &requests,
            connections: CONNECTIONS,
            tls: None,
            warm_up: self.warm_up,
            length: self.length,
        };
        let elsewhere = match hostile {
            Hostile::Elsewhere => Some(Server::ingestd(alone(&format!("{}-beside", self.name())))),
            Hostile::No | Hostile::Here => None,
        };
        let (target, misbehaving) = match (hostile, &elsewhere) {
            (Hostile::No, _) => (address, 0),
            (_, Some(other)) => (other.address.parse()?, MISBEHAVING),
            (_, None) => (address, MISBEHAVING),
        };
        let (sent, over) = (requests_that_misbehave(), AtomicBool::new(false));
        let measured = thread::scope(|scope| {
            for first in 0..misbehaving {
                let (sent, over) = (&sent, &over);
                scope.spawn(move || misbehave(target, sent, first, over));
            }
            let measured = load.open(RATE);
            over.store(true, Ordering::Relaxed);
            measured
        });
        let measured = measured.with_context(|| server.running.log())?;
        let memory = server.running.peak_memory();
        Ok(sample(&measured, 1, memory))
    }
}

/// Sends one after the other, each on a connection of its own, and takes what is answered. It stands for another machine, and
/// has of this one what is left.
fn misbehave(address: SocketAddr, sent: &[Vec<u8>], first: usize, over: &AtomicBool) {
    // A thread may always be nicer.
    let _ = rustix::process::setpriority_process(None, 19);
    for request in sent.iter().cycle().skip(first) {
        if over.load(Ordering::Relaxed) {
            return;
        }
        // The server may end the connection at any time.
        if let Ok(mut connection) = TcpStream::connect(address) {
            let _ = connection.set_read_timeout(Some(PATIENCE));
            let _ = connection.set_write_timeout(Some(PATIENCE));
            let _ = connection.write_all(request);
            let _ = connection.read(&mut [0; 4096]);
        }
        thread::sleep(PAUSE);
    }
}

/// Requests of which each is refused, or never whole.
fn requests_that_misbehave() -> Vec<Vec<u8>> {
    let coded = |coding: &str, body: &[u8]| request(&format!("Content-Encoding: {coding}\r\n"), body, body.len());
    let event = br#"{"type":"hostile"}"#;
    let mut requests = Vec::new();
    for coding in CODINGS {
        // 64 MiB.
        requests.push(coded(coding, &compressed(coding, &vec![b' '; 64 << 20])));
        let whole = compressed(coding, event);
        requests.push(coded(coding, &whole[..whole.len() - 1]));
        requests.push(coded(coding, b"{\"type\":\"hostile\"} and no coding"));
    }
    requests.extend([
        request("Content-Type: application/x-ndjson\r\n", &b"1\n".repeat(100_000), 200_000),
        request("", format!("[{}]", vec!["1"; 10_000].join(",")).as_bytes(), 20_001),
        request("", &b"[".repeat(1 << 20), 1 << 20),
        request("", b"[{},", 1 << 20),
        b"POST /v1/events HTTP/1.1\r\nHost: x\r\nX-Half: ".to_vec(),
        vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3],
    ]);
    requests
}

fn request(fields: &str, body: &[u8], length: usize) -> Vec<u8> {
    let head = format!("POST /v1/events HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}
