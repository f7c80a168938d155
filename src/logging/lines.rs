//! The lines of the log, on their way to their reader.
//!
//! A pipe whose reader stands still takes 64 KiB and then blocks its writers. So lines go through a queue to one thread,
//! which alone may be blocked; what does not fit into the queue is dropped and counted.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded};
use prometheus_client::metrics::counter::Counter;
use rustix::io::Errno;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait at most; a burst of a start with all topics, several times over.
const LINES: usize = 8192;
/// Bytes of them at most.
const BYTES: usize = 4 << 20;
/// How soon a stream that would block is tried again, where it does not block by itself.
const AGAIN: Duration = Duration::from_millis(20);

enum Line {
    Log(Vec<u8>),
    /// To the standard output.
    Banner(Vec<u8>),
    /// Answered when all before it is written.
    Mark(Sender<()>),
}

/// Where lines go. Nothing of it blocks but [`Lines::flush`], for as long as it may.
#[derive(Clone)]
pub struct Lines {
    queue: Sender<Line>,
    waiting: Arc<AtomicUsize>,
    /// Since it was said last.
    dropped: Arc<AtomicU64>,
    all_dropped: Counter,
}

impl Lines {
    /// Starts the thread, which lives as long as the process. `all_dropped` counts the lines that are dropped.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(all_dropped: Counter) -> io::Result<Self> {
        let (lines, queue) = Self::new(all_dropped);
        let writing = lines.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || writing.serve(&queue, &write))?;
        Ok(lines)
    }

    fn new(all_dropped: Counter) -> (Self, Receiver<Line>) {
        let (queue, lines) = bounded(LINES);
        (Self { queue, waiting: Arc::default(), dropped: Arc::default(), all_dropped }, lines)
    }

    pub fn log(&self, line: Vec<u8>) {
        self.put(line, Line::Log);
    }

    pub fn banner(&self, text: Vec<u8>) {
        self.put(text, Line::Banner);
    }

    fn put(&self, text: Vec<u8>, line: fn(Vec<u8>) -> Line) {
        let bytes = text.len();
        let fits = self.waiting.fetch_add(bytes, Ordering::AcqRel) + bytes <= BYTES;
        if !fits || self.queue.try_send(line(text)).is_err() {
            self.waiting.fetch_sub(bytes, Ordering::AcqRel);
            self.dropped.fetch_add(1, Ordering::AcqRel);
            self.all_dropped.inc();
        }
    }

    /// Waits until what was said before is written, but no longer than `patience`.
    pub fn flush(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let (written, heard) = bounded(1);
        if self.queue.send_deadline(Line::Mark(written), deadline).is_ok() {
            // An error says that the time is over.
            let _ = heard.recv_deadline(deadline);
        }
    }

    fn serve(&self, lines: &Receiver<Line>, write: &dyn Fn(&Line)) {
        for line in lines {
            write(&line);
            match line {
                Line::Log(text) | Line::Banner(text) => _ = self.waiting.fetch_sub(text.len(), Ordering::AcqRel),
                // `flush` may have given up.
                Line::Mark(written) => _ = written.send(()),
            }
            let dropped = self.dropped.swap(0, Ordering::AcqRel);
            if dropped > 0 {
                // Through the queue like any other, behind those that were kept.
                tracing::warn!(lines = dropped, "lines of the log were dropped, because whoever reads it stood still");
            }
        }
    }
}

/// Past the locks of std's streams, which others might want while the reader stands still.
fn write(line: &Line) {
    match line {
        Line::Log(text) => write_all(io::stderr().as_fd(), text),
        Line::Banner(text) => write_all(io::stdout().as_fd(), text),
        Line::Mark(_) => {}
    }
}

fn write_all(stream: BorrowedFd<'_>, mut text: &[u8]) {
    while !text.is_empty() {
        match rustix::io::write(stream, text) {
            Ok(written) => text = text.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            // Another process made the stream so.
            Err(Errno::AGAIN) => thread::sleep(AGAIN),
            // Nobody reads it any more.
            Err(_) => return,
        }
    }
}

/// One event's line.
pub struct Event<'a> {
    lines: &'a Lines,
    text: Vec<u8>,
}

impl io::Write for Event<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Event<'_> {
    fn drop(&mut self) {
        self.lines.log(std::mem::take(&mut self.text));
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Event<'a>;

    fn make_writer(&'a self) -> Event<'a> {
        Event { lines: self, text: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_dropped_and_counted_and_nobody_waits() {
        let all_dropped = Counter::default();
        let (lines, queue) = Lines::new(all_dropped.clone());
        // Nobody reads.
        for _ in 0..LINES + 5 {
            lines.log(b"line\n".to_vec());
        }
        lines.flush(Duration::from_millis(1));
        assert_eq!(all_dropped.get(), 5);
        // Then somebody does, to the end, which comes with the last sender.
        let written = AtomicU64::new(0);
        let Lines { queue: sender, waiting, dropped, .. } = lines;
        drop(sender);
        let reader = Lines { queue: bounded(0).0, waiting, dropped, all_dropped };
        reader.serve(&queue, &|_| _ = written.fetch_add(1, Ordering::Relaxed));
        assert_eq!((written.into_inner(), reader.waiting.load(Ordering::Relaxed)), (LINES as u64, 0));
        assert_eq!(reader.dropped.load(Ordering::Relaxed), 0, "it was said");
    }

    #[test]
    fn large_lines_are_bounded_by_their_bytes() {
        let (lines, queue) = Lines::new(Counter::default());
        for _ in 0..10 {
            lines.log(vec![b'x'; 1 << 20]);
        }
        assert_eq!((queue.len(), lines.dropped.load(Ordering::Relaxed)), (4, 6));
    }
}
