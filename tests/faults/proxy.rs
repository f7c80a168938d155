//! A proxy in front of the object store that behaves as stores and networks do on bad days.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// What it does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Passes it on.
    Honest,
    /// 403, as after a change of keys or of the bucket's policy.
    Forbids,
    /// 503 `SlowDown`.
    SlowsDown,
    /// Passes a PUT on, and closes the connection instead of passing its answer back.
    DropsReplies,
    /// Closes the connection of an object's PUT and keeps the request; it reaches the store when the mood changes.
    AnswersLate,
}

/// A request is one head and one body on a connection of its own: the answers say `Connection: close`.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    upstream: String,
    mood: Mutex<Mood>,
    /// Those that land late, at most [`MOST_LATE`].
    late: Mutex<Vec<Vec<u8>>>,
    /// Requests that were not passed on as they came.
    spoiled: AtomicUsize,
    stop: AtomicBool,
}

const MOST_LATE: usize = 256;
const LARGEST_HEAD: usize = 64 << 10;
const LARGEST_BODY: usize = 64 << 20;
/// Above the daemons' own timeouts, so that those decide.
const SILENCE: Duration = Duration::from_secs(10);

impl Proxy {
    pub fn new(upstream: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            upstream,
            mood: Mutex::new(Mood::Honest),
            late: Mutex::default(),
            spoiled: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let acceptor = thread::spawn({
            let shared = shared.clone();
            move || accept(&listener, &shared)
        });
        Self { address, shared, acceptor: Some(acceptor) }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Requests so far that were not passed on as they came.
    pub fn spoiled(&self) -> usize {
        self.shared.spoiled.load(Ordering::Acquire)
    }

    /// What was kept reaches the store now, the last one first.
    pub fn set(&self, mood: Mood) {
        *self.shared.mood.lock().unwrap_or_else(PoisonError::into_inner) = mood;
        let late = std::mem::take(&mut *self.shared.late.lock().unwrap_or_else(PoisonError::into_inner));
        for request in late.iter().rev() {
            // The store may be away; then it never lands, which is a fate of requests as well.
            let _ = self.shared.pass(request);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // Wakes the acceptor up; when that fails it has ended.
        let _ = TcpStream::connect(self.address);
        let _ = self.acceptor.take().map(JoinHandle::join);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut connections: Vec<JoinHandle<()>> = Vec::new();
    for client in listener.incoming().map_while(Result::ok) {
        if shared.stop.load(Ordering::Acquire) {
            break;
        }
        connections.retain(|connection| !connection.is_finished());
        let shared = shared.clone();
        connections.push(thread::spawn(move || {
            // An error ends this connection only, as it would on the way to a real store.
            let _ = shared.serve(client);
        }));
    }
    for connection in connections {
        let _ = connection.join();
    }
}

impl Shared {
    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        client.set_read_timeout(Some(SILENCE))?;
        client.set_write_timeout(Some(SILENCE))?;
        let Some(request) = read_request(&mut client)? else { return Ok(()) };
        let mood = *self.mood.lock().unwrap_or_else(PoisonError::into_inner);
        if mood != Mood::Honest {
            self.spoiled.fetch_add(1, Ordering::AcqRel);
        }
        let line =
            String::from_utf8_lossy(request.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
        match mood {
            Mood::Forbids => client.write_all(refusal("403 Forbidden", "AccessDenied").as_bytes()),
            Mood::SlowsDown => client.write_all(refusal("503 Service Unavailable", "SlowDown").as_bytes()),
            Mood::DropsReplies if line.starts_with("PUT ") => self.pass(&request).map(drop),
            Mood::AnswersLate if line.starts_with("PUT ") && line.contains(".ndjson.zst") => {
                let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
                if late.len() < MOST_LATE {
                    late.push(request);
                }
                Ok(())
            }
            _ => client.write_all(&self.pass(&request)?),
        }?;
        client.shutdown(Shutdown::Both)
    }

    /// The store's answer, whole.
    fn pass(&self, request: &[u8]) -> io::Result<Vec<u8>> {
        let mut upstream = TcpStream::connect(&self.upstream)?;
        upstream.set_read_timeout(Some(SILENCE))?;
        upstream.set_write_timeout(Some(SILENCE))?;
        upstream.write_all(request)?;
        let mut answer = Vec::new();
        upstream.read_to_end(&mut answer)?;
        Ok(answer)
    }
}

/// Head and body, the head saying `Connection: close`; `None` when the client sends nothing.
fn read_request(client: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut read = Vec::new();
    let mut part = [0; 16 << 10];
    let end = loop {
        if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        let count = client.read(&mut part)?;
        if count == 0 || read.len() > LARGEST_HEAD {
            return if read.is_empty() { Ok(None) } else { Err(bad("the head is cut short or too long")) };
        }
        read.extend_from_slice(&part[..count]);
    };
    let head = std::str::from_utf8(&read[..end]).map_err(|_| bad("the head is no text"))?;
    let mut length = 0;
    let mut passed = String::new();
    for line in head.split("\r\n") {
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(|_| bad("content-length is no number"))?;
        } else if lower.starts_with("transfer-encoding:") {
            return Err(bad("the body has no length"));
        }
        if !lower.starts_with("connection:") {
            passed.push_str(line);
            passed.push_str("\r\n");
        }
    }
    if length > LARGEST_BODY {
        return Err(bad("the body is too large"));
    }
    passed.push_str("Connection: close\r\n\r\n");
    let mut body = read.split_off(end + 4);
    let missing = length.saturating_sub(body.len());
    client.take(missing as u64).read_to_end(&mut body)?;
    if body.len() < length {
        return Err(bad("the body is cut short"));
    }
    Ok(Some([passed.into_bytes(), body].concat()))
}

fn refusal(status: &str, code: &str) -> String {
    let body =
        format!(r#"<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>"#);
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}
