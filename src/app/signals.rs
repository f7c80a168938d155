//! Signals of the operating system, as a stream of what they ask for.

use std::io;

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::{Handle, Signals as SignalIterator},
};
use tokio::sync::mpsc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// SIGTERM or SIGINT, by name.
    Stop(&'static str),
    /// SIGHUP.
    Reload,
}

/// Signals that were received and not handled yet.
const WAITING: usize = 16;

/// Listens from its construction until it is dropped.
pub(super) struct Signals {
    received: mpsc::Receiver<Signal>,
    handle: Handle,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        let mut signals = SignalIterator::new([SIGTERM, SIGINT, SIGHUP])?;
        let handle = signals.handle();
        let (sender, received) = mpsc::channel(WAITING);
        let thread = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for signal in signals.forever() {
                // Errors say that the receiver is gone, or that enough reloads are waiting.
                let _ = match signal {
                    SIGTERM => sender.blocking_send(Signal::Stop("SIGTERM")).is_ok(),
                    SIGINT => sender.blocking_send(Signal::Stop("SIGINT")).is_ok(),
                    _ => sender.try_send(Signal::Reload).is_ok(),
                };
            }
        })?;
        Ok(Self { received, handle, thread: Some(thread) })
    }

    pub(super) async fn next(&mut self) -> Signal {
        match self.received.recv().await {
            Some(signal) => signal,
            // The thread ends with this value only.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // First, so that the thread does not wait for room while it is joined.
        self.received.close();
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            // It panics in no line of its own.
            let _ = thread.join();
        }
    }
}
