//! A wire between a daemon and a service, on which requests can be held up: they arrive later, when the world has moved
//! on and their sender may be dead or frozen.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

pub struct Wire {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Default)]
struct State {
    /// Requests that have this in them are held up, and whatever follows on their connections.
    holds: Option<&'static str>,
    ended: bool,
    held: usize,
    /// All answers since the release.
    answers: Vec<u8>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while this request is held up.
    fn pass(&self, request: &[u8]) {
        let mut state = self.state();
        if !state.holds.is_some_and(|what| contains(request, what)) {
            return;
        }
        state.held += 1;
        let held = |state: &mut State| state.holds.is_some() && !state.ended;
        drop(self.released.wait_while(state, held).unwrap_or_else(PoisonError::into_inner));
    }
}

impl Wire {
    pub fn to(service: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared::default());
        thread::spawn({
            let shared = shared.clone();
            move || {
                for client in listener.incoming().map_while(Result::ok) {
                    if shared.state().ended {
                        break;
                    }
                    // A service that is away ends the connection, as it would without a wire.
                    let Ok(server) = TcpStream::connect(&service) else { continue };
                    connect(&client, &server, &shared);
                }
            }
        });
        Self { address, shared }
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// From now on no request that has `what` in it arrives.
    pub fn hold(&self, what: &'static str) {
        *self.shared.state() = State { holds: Some(what), ..State::default() };
    }

    /// Whether there is one.
    pub fn holds_any(&self) -> bool {
        self.shared.state().held > 0
    }

    /// What was held up arrives now.
    pub fn release(&self) {
        let mut state = self.shared.state();
        state.holds = None;
        state.answers.clear();
        drop(state);
        self.shared.released.notify_all();
    }

    /// Whether an answer since [`Wire::release`] has `what` in it.
    pub fn answered(&self, what: &str) -> bool {
        contains(&self.shared.state().answers, what)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.shared.released.notify_all();
        // Wakes the acceptor up; when that fails it has ended.
        let _ = TcpStream::connect(self.address);
    }
}

fn contains(bytes: &[u8], what: &str) -> bool {
    bytes.windows(what.len()).any(|window| window == what.as_bytes())
}

/// Both directions, each on a thread that ends with its connection.
fn connect(client: &TcpStream, server: &TcpStream, shared: &Arc<Shared>) {
    let end = |stream: &TcpStream| stream.try_clone().expect("a descriptor is free");
    let (requests, answers) = ((end(client), end(server)), (end(server), end(client)));
    let request_side = shared.clone();
    thread::spawn(move || relay(requests, |bytes| request_side.pass(bytes)));
    let answer_side = shared.clone();
    thread::spawn(move || relay(answers, |bytes| answer_side.state().answers.extend_from_slice(bytes)));
}

fn relay((mut from, mut to): (TcpStream, TcpStream), seen: impl Fn(&[u8])) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        seen(&bytes[..count]);
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    // Either side may be gone already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
