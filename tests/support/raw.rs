//! Bytes to a socket and what comes back, with nothing in between that would make them proper HTTP.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

/// How long a connection that is to stay open is watched for its end.
const QUIET: Duration = Duration::from_millis(300);

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

/// What came back.
#[derive(Debug, Default)]
pub struct Outcome {
    pub answers: Vec<Answer>,
    pub closed: bool,
}

impl Outcome {
    /// Such as `400, closed` or `200, 200`; several equal ones as `100 × 200`.
    pub fn summary(&self) -> String {
        let statuses: Vec<u16> = self.answers.iter().map(|answer| answer.status).collect();
        let mut words: Vec<String> = statuses
            .chunk_by(|a, b| a == b)
            .map(|equal| match equal.len() {
                1 | 2 => vec![equal[0].to_string(); equal.len()].join(", "),
                many => format!("{many} × {}", equal[0]),
            })
            .collect();
        words.extend(self.closed.then(|| "closed".to_owned()));
        words.join(", ")
    }
}

pub fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_nodelay(true).expect("a socket");
    stream
}

/// Sends all of it, while it reads `answers` answers (and the connection's end, when it is to `close`).
pub fn exchange(address: &str, bytes: &[u8], answers: usize, close: bool, within: Duration) -> Outcome {
    let bodiless = bytes.starts_with(b"HEAD ");
    let stream = connect(address);
    let mut sender = stream.try_clone().expect("a socket");
    thread::scope(|scope| {
        // Who answers early need not read all of it.
        scope.spawn(move || sender.write_all(bytes));
        let outcome = read_answers(&stream, answers, close, within, bodiless);
        // So that the sender ends, too.
        let _ = stream.shutdown(Shutdown::Both);
        outcome
    })
}

pub fn read(stream: &TcpStream, answers: usize, close: bool, within: Duration) -> Outcome {
    read_answers(stream, answers, close, within, false)
}

fn read_answers(mut stream: &TcpStream, answers: usize, close: bool, within: Duration, bodiless: bool) -> Outcome {
    let deadline = Instant::now() + within;
    let (mut outcome, mut bytes) = (Outcome::default(), Vec::new());
    let mut buffer = vec![0; 64 << 10];
    loop {
        while let Some(answer) = take_answer(&mut bytes, bodiless) {
            outcome.answers.push(answer);
        }
        let done = outcome.answers.len() >= answers && !close;
        let patience = if done { QUIET } else { deadline.saturating_duration_since(Instant::now()) };
        if patience.is_zero() {
            return outcome;
        }
        stream.set_read_timeout(Some(patience)).expect("it is not zero");
        match stream.read(&mut buffer) {
            Ok(0) => outcome.closed = true,
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return outcome;
            }
            // What was not read there is reset.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => outcome.closed = true,
            Err(error) => panic!("{error}"),
        }
        if outcome.closed {
            while let Some(answer) = take_answer(&mut bytes, bodiless) {
                outcome.answers.push(answer);
            }
            assert!(bytes.is_empty(), "the rest is no whole answer: {}", String::from_utf8_lossy(&bytes));
            return outcome;
        }
    }
}

/// `bodiless`: an answer to HEAD has the length of what it leaves out.
fn take_answer(bytes: &mut Vec<u8>, bodiless: bool) -> Option<Answer> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8(bytes[..end].to_vec()).expect("a head is ASCII");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{head}"));
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let length = length.filter(|_| !bodiless).unwrap_or(0);
    let body = bytes.get(end..end + length)?.to_vec();
    bytes.drain(..end + length);
    Some(Answer { status, head, body })
}
