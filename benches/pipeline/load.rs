//! The load generator: one thread over epoll, keep-alive connections, requests that were prepared before.
//!
//! Closed loop: each connection sends its next request when it has its answer, so that the rate follows from the
//! latency. Open loop: requests are due at a fixed rate, and a latency counts from the time that a request was due,
//! also where no connection was free for it then (no coordinated omission).

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use mio::{Interest, Poll, Token, net::TcpStream};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::{process, support::tls::shake_on};

/// For one answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long an open loop sleeps between two looks at the clock and the sockets: the resolution of its latencies.
const TICK: Duration = Duration::from_micros(100);
/// Latencies in microseconds, to three digits.
const DIGITS: u8 = 3;

pub struct Load<'r> {
    pub server: SocketAddr,
    pub pid: u32,
    pub requests: &'r [Vec<u8>],
    pub connections: usize,
    /// How connections speak TLS, if they do.
    pub tls: Option<Arc<ClientConfig>>,
    pub warm_up: Duration,
    pub length: Duration,
}

/// What happened between the end of the warm-up and the end.
pub struct Measured {
    pub answers: u64,
    /// Of the whole, with the warm-up.
    pub acknowledged: u64,
    pub elapsed: Duration,
    pub latencies: Histogram<u64>,
    pub server_cpu: Duration,
    /// Of the generator itself, which shares the machine.
    pub own_cpu: Duration,
}

impl Load<'_> {
    /// # Errors
    /// When the server breaks off, or answers anything but 200.
    pub fn closed(&self) -> anyhow::Result<Measured> {
        let mut connections = self.connect()?;
        let mut meter = Meter::new(self)?;
        let mut next = 1;
        let mut begun = vec![Instant::now(); self.connections];
        for (index, begun) in begun.iter_mut().enumerate() {
            *begun = Instant::now();
            connections.begin(index, self.take(&mut next))?;
        }
        let mut answered = Vec::new();
        while !meter.is_over() {
            connections.turn(Some(meter.remaining()), &mut answered)?;
            meter.look()?;
            for index in answered.drain(..) {
                let now = Instant::now();
                meter.answered(now - begun[index])?;
                begun[index] = now;
                connections.begin(index, self.take(&mut next))?;
            }
        }
        meter.finish()
    }

    /// # Errors
    /// As [`Load::closed`], and when the server cannot keep up with the rate.
    pub fn open(&self, requests_per_second: f64) -> anyhow::Result<Measured> {
        let mut connections = self.connect()?;
        let mut meter = Meter::new(self)?;
        let interval = Duration::from_secs_f64(1.0 / requests_per_second);
        let mut due = Instant::now();
        // Bounded by the rate times the length: nothing that is due is left out.
        let mut waiting: VecDeque<Instant> = VecDeque::new();
        // Taken in turns: a server may end a connection on which nothing comes.
        let mut free: VecDeque<usize> = (0..self.connections).collect();
        let mut begun = vec![due; self.connections];
        let (mut next, mut answered) = (1, Vec::new());
        while !meter.is_over() || free.len() < self.connections || !waiting.is_empty() {
            let now = Instant::now();
            ensure!(
                now < meter.end + PATIENCE,
                "it cannot keep up with {requests_per_second:.0} requests/s: {} were due {PATIENCE:?} ago",
                waiting.len()
            );
            while due <= now && due < meter.end {
                waiting.push_back(due);
                due += interval;
            }
            while let Some(index) = (!waiting.is_empty()).then(|| free.pop_front()).flatten() {
                begun[index] = waiting.pop_front().context("it is not empty")?;
                connections.begin(index, self.take(&mut next))?;
            }
            connections.turn(Some(Duration::ZERO), &mut answered)?;
            meter.look()?;
            if answered.is_empty() {
                thread::sleep(TICK);
            }
            for index in answered.drain(..) {
                // What was due during the warm-up is no part of what is measured.
                meter.due_answered(begun[index])?;
                free.push_back(index);
            }
        }
        meter.finish()
    }

    /// All connections, after one answer: a producer's first one waits until it knows the brokers.
    fn connect(&self) -> anyhow::Result<Connections<'_>> {
        let mut connections = Connections::open(self.server, self.connections, self.tls.as_ref())?;
        connections.begin(0, self.take(&mut 0))?;
        let mut answered = Vec::new();
        while answered.is_empty() {
            connections.turn(Some(PATIENCE), &mut answered)?;
        }
        Ok(connections)
    }

    fn take(&self, next: &mut usize) -> &[u8] {
        let request = &self.requests[*next % self.requests.len()];
        *next += 1;
        request
    }
}

/// Knows when the measured time begins and ends, and reads the clocks of both processes there.
struct Meter {
    pid: u32,
    start: Instant,
    end: Instant,
    /// The CPU time of the server and of this thread: when the warm-up ended, and at the end.
    at_start: Option<(Instant, Duration, Duration)>,
    at_end: Option<(Instant, Duration, Duration)>,
    answers: u64,
    acknowledged: u64,
    latencies: Histogram<u64>,
}

impl Meter {
    fn new(load: &Load<'_>) -> anyhow::Result<Self> {
        let start = Instant::now() + load.warm_up;
        Ok(Self {
            pid: load.pid,
            start,
            end: start + load.length,
            at_start: None,
            at_end: None,
            answers: 0,
            // The one before it began.
            acknowledged: 1,
            latencies: Histogram::new(DIGITS)?,
        })
    }

    fn is_over(&self) -> bool {
        self.at_end.is_some()
    }

    fn remaining(&self) -> Duration {
        let until = if self.at_start.is_none() { self.start } else { self.end };
        until.saturating_duration_since(Instant::now())
    }

    fn look(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let clocks = || anyhow::Ok((now, process::cpu(self.pid)?, process::own_thread_cpu()?));
        if self.at_start.is_none() && now >= self.start {
            self.at_start = Some(clocks()?);
        }
        if self.at_end.is_none() && now >= self.end {
            self.at_end = Some(clocks()?);
        }
        Ok(())
    }

    /// An answer of the closed loop: counted by when it came.
    fn answered(&mut self, after: Duration) -> anyhow::Result<()> {
        self.acknowledged += 1;
        if self.at_start.is_some() && self.at_end.is_none() {
            self.answers += 1;
            self.latencies.record(after.as_micros().try_into()?)?;
        }
        Ok(())
    }

    /// An answer of the open loop: counted by when its request was due.
    fn due_answered(&mut self, due: Instant) -> anyhow::Result<()> {
        self.acknowledged += 1;
        if due >= self.start {
            self.answers += 1;
            self.latencies.record(due.elapsed().as_micros().try_into()?)?;
        }
        Ok(())
    }

    fn finish(self) -> anyhow::Result<Measured> {
        ensure!(self.answers > 0, "no answer in the time that is measured: {:?}", self.end - self.start);
        let zero = (self.start, Duration::ZERO, Duration::ZERO);
        let ((began, server, own), (ended, server_end, own_end)) =
            (self.at_start.unwrap_or(zero), self.at_end.unwrap_or(zero));
        Ok(Measured {
            answers: self.answers,
            acknowledged: self.acknowledged,
            elapsed: ended - began,
            latencies: self.latencies,
            server_cpu: server_end - server,
            own_cpu: own_end - own,
        })
    }
}

struct Connections<'r> {
    poll: Poll,
    events: mio::Events,
    connections: Vec<Connection<'r>>,
    buffer: Vec<u8>,
    /// Of the last answer of any.
    heard: Instant,
}

/// A connection that does not block, and speaks TLS or not.
enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    fn shaken(stream: std::net::TcpStream, tls: Option<&Arc<ClientConfig>>) -> anyhow::Result<Self> {
        let Some(tls) = tls else {
            stream.set_nonblocking(true)?;
            return Ok(Self::Plain(TcpStream::from_std(stream)));
        };
        let StreamOwned { conn, sock } = shake_on(stream, tls).context("the TLS handshake")?;
        sock.set_nonblocking(true)?;
        Ok(Self::Tls(Box::new(StreamOwned::new(conn, TcpStream::from_std(sock)))))
    }

    fn socket(&mut self) -> &mut TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &mut stream.sock,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    /// Sends what TLS holds back while the socket is full.
    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(stream) => stream.flush(),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }

    /// Whether a read that does not fill the buffer has emptied the socket.
    fn short_reads_are_last(&self) -> bool {
        matches!(self, Self::Plain(_))
    }
}

struct Connection<'r> {
    stream: Stream,
    /// What is left of the request.
    unsent: &'r [u8],
    /// The part of an answer that came without the rest.
    answer: Vec<u8>,
}

impl<'r> Connections<'r> {
    fn open(server: SocketAddr, count: usize, tls: Option<&Arc<ClientConfig>>) -> anyhow::Result<Self> {
        let poll = Poll::new()?;
        let mut connections = Vec::with_capacity(count);
        for index in 0..count {
            let stream = std::net::TcpStream::connect(server).with_context(|| format!("connecting to {server}"))?;
            stream.set_nodelay(true)?;
            let mut stream = Stream::shaken(stream, tls)?;
            poll.registry().register(stream.socket(), Token(index), Interest::READABLE | Interest::WRITABLE)?;
            connections.push(Connection { stream, unsent: &[], answer: Vec::new() });
        }
        let events = mio::Events::with_capacity(1024);
        Ok(Self { poll, events, connections, buffer: vec![0; 64 << 10], heard: Instant::now() })
    }

    fn begin(&mut self, index: usize, request: &'r [u8]) -> anyhow::Result<()> {
        let connection = &mut self.connections[index];
        connection.unsent = request;
        connection.send()
    }

    /// Waits for the sockets once; connections whose answer is whole are added to `answered`.
    fn turn(&mut self, timeout: Option<Duration>, answered: &mut Vec<usize>) -> anyhow::Result<()> {
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        for event in &self.events {
            let Token(index) = event.token();
            let connection = &mut self.connections[index];
            if event.is_writable() {
                connection.send()?;
            }
            if (event.is_readable() || event.is_read_closed()) && connection.receive(&mut self.buffer)? {
                answered.push(index);
            }
        }
        if !answered.is_empty() {
            self.heard = Instant::now();
        }
        ensure!(self.heard.elapsed() < PATIENCE, "no answer for {PATIENCE:?}");
        Ok(())
    }
}

impl Connection<'_> {
    /// Until the socket is full, which makes it writable again later.
    fn send(&mut self) -> anyhow::Result<()> {
        while !self.unsent.is_empty() {
            match self.stream.write(self.unsent) {
                Ok(sent) => self.unsent = &self.unsent[sent..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("the request cannot be sent"),
            }
        }
        match self.stream.flush() {
            Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Err(error).context("the request cannot be sent")
            }
            _ => Ok(()),
        }
    }

    /// Reads what there is; true when the answer is whole.
    fn receive(&mut self, buffer: &mut [u8]) -> anyhow::Result<bool> {
        let mut whole = false;
        loop {
            let read = match self.stream.read(buffer) {
                Ok(0) => bail!("the connection was closed instead of answered"),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(whole),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("the answer cannot be read"),
            };
            let more = read == buffer.len() || !self.stream.short_reads_are_last();
            if self.answer.is_empty() && is_whole(&buffer[..read])? {
                whole = true;
            } else {
                self.answer.extend_from_slice(&buffer[..read]);
                if is_whole(&self.answer)? {
                    self.answer.clear();
                    whole = true;
                }
            }
            // A short read emptied the socket: epoll(7) tells of what comes after it.
            if !more {
                return Ok(whole);
            }
        }
    }
}

/// # Errors
/// When it is no 200 with a length.
fn is_whole(answer: &[u8]) -> anyhow::Result<bool> {
    let Some(end) = memchr::memmem::find(answer, b"\r\n\r\n") else { return Ok(false) };
    let (head, body) = (&answer[..end], &answer[end + 4..]);
    ensure!(head.starts_with(b"HTTP/1.1 200 "), "not 200: {}", String::from_utf8_lossy(answer));
    let mut lines = head.split(|byte| *byte == b'\n');
    let length = lines.find_map(|line| {
        let (name, value) = line.split_at_checked(b"content-length:".len())?;
        name.eq_ignore_ascii_case(b"content-length:").then_some(value)
    });
    let length = length.context("an answer without its length")?;
    let length: usize = std::str::from_utf8(length)?.trim().parse()?;
    Ok(body.len() >= length)
}
