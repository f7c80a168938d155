//! A connection that no client can hold for ever, nor fill memory with.
//!
//! The transport stands between the socket and actix's dispatcher, and knows from the handlers where in an exchange they
//! are ([`Phase`]):
//!
//! - a **head** must arrive within its time ([`Timeouts`]) of its first byte, for each request, and within [`HEAD_LIMIT`] bytes;
//! - a **body** has its handler's deadline (`http.request_timeout`);
//! - while an **answer** is made and written nothing more is read, so pipelined requests wait in the kernel; a client
//!   that does not read its answer (of one that is a stream: what there is of it) is reset after [`ANSWER_TIMEOUT`]; what came in the same packets waits here until the
//!   answer is handed over, so that the dispatcher has one request at a time ([`Framing`]);
//! - what is left of a body that was refused is read and thrown away for [`LINGER`], so that the client can read why, and
//!   then the connection ends;
//! - an **idle** connection is closed after its time, or at the next look when connections are scarce.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use actix_web::http::StatusCode;
use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep},
};

use super::{
    Listener, RequestId, Timeouts, addresses::Place, framing::Framing, proxy_protocol, refusal, socket::Socket,
};

/// As common servers have it; actix's own limit is 128 KiB and 96 fields.
const HEAD_LIMIT: usize = 32 * 1024;
/// Bytes that are handed on before the dispatcher has its turn, and that are written before others have theirs: of an answer of a
/// mebibyte the kernel's copy alone takes as long as many requests.
const TURN: usize = 32 * 1024;
const WRITTEN: usize = 64 * 1024;
/// From the moment that an answer cannot be written on, to its end: the largest ones are some MiB.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Above the dispatcher's own, which is for bodies of a known length.
const LINGER: Duration = Duration::from_secs(2);
/// How often an idle connection looks whether connections are scarce.
const IDLE_LOOK: Duration = Duration::from_secs(5);

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Between requests, or in the head of one.
    #[default]
    Head,
    Body,
    /// The body is read, if there is one, and the answer is not yet handed over.
    Answer,
    /// The request was answered before all of its body was read.
    Linger,
}

/// Where a connection stands. Shared by its transport and the handlers of its requests, all on one thread.
#[derive(Debug, Default)]
pub struct Connection {
    phase: Cell<Phase>,
    /// Until when the phase may last.
    deadline: Cell<Option<Instant>>,
    /// When the connection became idle, until the next head begins.
    idle_since: Cell<Option<Instant>>,
    /// Bytes of the phase so far.
    taken: Cell<usize>,
    /// The request's answer is handed over: the next one may come.
    answered: Cell<bool>,
    /// The answer has no end: it is written piece by piece as there is something to say.
    streams: Cell<bool>,
    /// The dispatcher, while it is not to read.
    reader: RefCell<Option<Waker>>,
    /// When the connection is looked at first after a request, unless the next one comes before.
    first_look: Cell<Duration>,
    /// Whose certificate the client showed.
    client: Option<Arc<str>>,
}

impl Connection {
    fn new(timeouts: Timeouts, client: Option<Arc<str>>) -> Rc<Self> {
        let deadline = Cell::new(Some(Instant::now() + timeouts.head));
        Rc::new(Self { deadline, first_look: Cell::new(timeouts.idle.min(IDLE_LOOK)), client, ..Self::default() })
    }

    /// The name in the certificate that the client showed; `None` where none is asked for.
    pub fn client(&self) -> Option<&Arc<str>> {
        self.client.as_ref()
    }

    /// A request's head has arrived.
    pub fn begin(self: Rc<Self>, has_body: bool) -> Exchange {
        self.enter(if has_body { Phase::Body } else { Phase::Answer }, None);
        Exchange(self)
    }

    /// The request's body has arrived, too.
    pub fn body_complete(&self) {
        if self.phase.get() == Phase::Body {
            self.enter(Phase::Answer, None);
        }
    }

    /// The answer is a stream: each piece of it has an answer's time to be taken, and not all of them together.
    pub fn stream(&self) {
        self.streams.set(true);
    }

    fn enter(&self, phase: Phase, deadline: Option<Instant>) {
        self.phase.set(phase);
        self.streams.set(false);
        self.deadline.set(deadline);
        self.idle_since.set(None);
        self.taken.set(0);
    }

    /// The connection is not idle any more, if it was: this many bytes of a head are there.
    fn head_begins(&self, taken: usize, timeouts: &dyn Fn() -> Timeouts) {
        if self.idle_since.take().is_some() {
            let Timeouts { head, idle } = timeouts();
            self.deadline.set(Some(Instant::now() + head));
            self.first_look.set(idle.min(IDLE_LOOK));
            self.taken.set(taken);
        }
    }

    /// The answer is handed over.
    fn end(&self) {
        let now = Instant::now();
        if self.phase.get() == Phase::Body {
            self.enter(Phase::Linger, Some(now + LINGER));
        } else {
            self.enter(Phase::Head, Some(now + self.first_look.get()));
            self.idle_since.set(Some(now));
            self.answered.set(true);
        }
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// One request and its answer; over when it is dropped.
pub struct Exchange(Rc<Connection>);

impl Exchange {
    /// Whether there is a body that is not read to its end.
    pub fn leaves_body(&self) -> bool {
        self.0.phase.get() == Phase::Body
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A socket whose phases have deadlines.
pub struct Transport {
    socket: Socket,
    connection: Rc<Connection>,
    /// A permit of the listener's connections. Its workers' shares are rounded up, so that the last few get none.
    slot: Option<OwnedSemaphorePermit>,
    /// Among the connections of its address.
    _place: Option<Place>,
    listener: Arc<Listener>,
    /// Of the request that the dispatcher is being given.
    framing: Framing,
    /// Bytes that were read and not handed on: a head that is not whole, or what follows a whole request.
    ahead: BytesMut,
    /// How many of them belong to the request.
    admitted: usize,
    /// Bytes read since the dispatcher had its turn.
    turn: usize,
    /// Bytes written since the other tasks of the thread had theirs.
    written: usize,
    /// Nothing was read yet.
    is_new: bool,
    /// Nothing more is read.
    ended: bool,
    /// A refusal in place of the one that the dispatcher wrote, as far as it is not sent.
    last: Vec<u8>,
    /// Until when the answer must be written, once the client does not take it.
    write_deadline: Option<Instant>,
    /// Timers wake the dispatcher at a deadline. They are made when first needed: most phases end long before.
    read_timer: Option<Pin<Box<Sleep>>>,
    write_timer: Option<Pin<Box<Sleep>>>,
}

/// Has the task woken at the deadline, or earlier: a task that is woken looks at its deadline again.
fn wake_at(timer: &mut Option<Pin<Box<Sleep>>>, deadline: Instant, cx: &mut Context<'_>) {
    let sleep = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
    if sleep.deadline() > deadline || sleep.is_elapsed() {
        sleep.as_mut().reset(deadline);
    }
    if sleep.as_mut().poll(cx).is_ready() {
        cx.waker().wake_by_ref();
    }
}

impl Transport {
    /// `client` is the name in the certificate that the client showed.
    pub fn new(
        socket: Socket,
        (slot, place): (Option<OwnedSemaphorePermit>, Option<Place>),
        client: Option<Arc<str>>,
        listener: Arc<Listener>,
    ) -> Self {
        Self {
            socket,
            connection: Connection::new((listener.timeouts)(), client),
            slot,
            _place: place,
            listener,
            framing: Framing::default(),
            ahead: BytesMut::new(),
            admitted: 0,
            turn: 0,
            written: 0,
            is_new: true,
            ended: false,
            last: Vec::new(),
            write_deadline: None,
            read_timer: None,
            write_timer: None,
        }
    }

    pub fn connection(&self) -> Rc<Connection> {
        self.connection.clone()
    }

    /// Ends the connection: the dispatcher reads its end, and closes it in order.
    fn end(&mut self) -> Poll<io::Result<()>> {
        self.ended = true;
        Poll::Ready(Ok(()))
    }

    /// Hands on what was read and belongs to the request; whether there is such.
    fn hand_on(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        if self.admitted == 0 && !self.ahead.is_empty() {
            self.admitted = self.framing.admit(&mut self.ahead);
        }
        let bytes = self.admitted.min(buffer.remaining());
        if bytes == 0 {
            return false;
        }
        buffer.put_slice(&self.ahead.split_to(bytes));
        self.admitted -= bytes;
        if self.ahead.is_empty() {
            // An idle connection holds no memory for it.
            self.ahead = BytesMut::new();
        }
        true
    }

    /// Leaves of what was read into the buffer what belongs to the request, and keeps the rest.
    fn sort(&mut self, buffer: &mut ReadBuf<'_>, before: usize) {
        let read = &mut buffer.filled_mut()[before..];
        let admitted = if self.ahead.is_empty() { self.framing.admit(read) } else { 0 };
        self.ahead.extend_from_slice(&read[admitted..]);
        buffer.set_filled(before + admitted);
    }

    /// The next request is not read before.
    fn wait_for_the_answer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        *self.connection.reader.borrow_mut() = Some(cx.waker().clone());
        self.turn = 0;
        Poll::Pending
    }

    /// Between two requests nothing else is being written, so an answer can be put in from here.
    fn refuse(&mut self, status: StatusCode, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing is known of its head.
        let id = RequestId::new();
        (self.listener.on_refusal)(status, &id);
        // The client need not take it.
        let _ = Pin::new(&mut self.socket).poll_write(cx, &refusal::response(status, &id));
        self.end()
    }

    /// A PROXY protocol header where none is taken.
    fn refuse_proxy(&mut self, refused: proxy_protocol::Refused, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (id, status) = (RequestId::new(), refused.status());
        self.listener.proxies.iter().for_each(|proxies| (proxies.on_refusal)(refused.reason()));
        (self.listener.on_refusal)(status, &id);
        let _ =
            Pin::new(&mut self.socket).poll_write(cx, &refusal::saying(status, refused.sentence(&self.listener), &id));
        self.end()
    }

    /// Whether more than three quarters of the listener's connections are open.
    fn connections_are_scarce(&self) -> bool {
        let most = self.listener.max_connections;
        self.slot.as_ref().is_none_or(|slot| slot.semaphore().available_permits() < most - most / 4 * 3)
    }

    /// What becomes of a phase whose time is up; `None` when it may go on.
    fn overdue(&mut self, cx: &mut Context<'_>) -> Option<Poll<io::Result<()>>> {
        let now = Instant::now();
        if self.connection.deadline.get().is_none_or(|deadline| now < deadline) {
            return None;
        }
        let end = |since: Instant| since + (self.listener.timeouts)().idle;
        Some(match (self.connection.phase.get(), self.connection.idle_since.get()) {
            (Phase::Head, Some(since)) if now < end(since) && !self.connections_are_scarce() => {
                self.connection.deadline.set(Some((now + IDLE_LOOK).min(end(since))));
                return None;
            }
            (Phase::Head, None) if self.connection.taken.get() > 0 => self.refuse(StatusCode::REQUEST_TIMEOUT, cx),
            _ => self.end(),
        })
    }

    /// Sends what is left of a refusal.
    fn poll_last(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.last.is_empty() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.last))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.last.drain(..written);
        }
        Poll::Ready(Ok(()))
    }

    /// A write that has to wait does so until the answer's deadline.
    fn stalled<R>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<R>> {
        let now = Instant::now();
        let deadline = *self.write_deadline.get_or_insert(now + ANSWER_TIMEOUT);
        if now >= deadline {
            // The connection is reset: what the client does not take would stay in the kernel for minutes, and the client
            // would wait as long. Where that cannot be set, the socket is closed as any other.
            let _ = self.socket.set_zero_linger();
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        wake_at(&mut self.write_timer, deadline, cx);
        Poll::Pending
    }
}

impl AsyncRead for Transport {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(Ok(()));
        }
        if let Some(end) = this.overdue(cx) {
            return end;
        }
        let phase = this.connection.phase.get();
        if phase == Phase::Answer || (phase == Phase::Head && this.write_deadline.is_some()) {
            return this.wait_for_the_answer(cx);
        }
        if phase == Phase::Linger {
            this.framing = Framing::Open;
        } else if phase == Phase::Head && this.connection.answered.take() {
            this.framing = Framing::Head;
        }
        loop {
            if this.hand_on(buffer) {
                return Poll::Ready(Ok(()));
            }
            if this.framing == Framing::Complete {
                return this.wait_for_the_answer(cx);
            }
            if !this.ahead.is_empty() {
                // Its beginning came with the request before it.
                this.connection.head_begins(this.ahead.len(), &*this.listener.timeouts);
                if this.ahead.len() >= HEAD_LIMIT {
                    return this.refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, cx);
                }
            }
            if this.turn >= TURN {
                this.turn = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let before = buffer.filled().len();
            let Poll::Ready(read) = Pin::new(&mut this.socket).poll_read(cx, buffer) else {
                this.turn = 0;
                if let Some(deadline) = this.connection.deadline.get() {
                    wake_at(&mut this.read_timer, deadline, cx);
                }
                return Poll::Pending;
            };
            read?;
            let bytes = buffer.filled().len() - before;
            if bytes == 0 {
                return Poll::Ready(Ok(()));
            }
            if std::mem::take(&mut this.is_new)
                && let Some(refused) = proxy_protocol::refused(&buffer.filled()[before..])
            {
                buffer.set_filled(before);
                return this.refuse_proxy(refused, cx);
            }
            this.turn += bytes;
            this.connection.head_begins(0, &*this.listener.timeouts);
            this.connection.taken.set(this.connection.taken.get() + bytes);
            this.sort(buffer, before);
            if buffer.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if !this.last.is_empty() {
            // Nothing comes after a refusal.
            return Poll::Ready(Ok(buffer.len()));
        }
        if this.connection.phase.get() == Phase::Head
            && let Some((start, status)) = refusal::at_the_end_of(buffer)
        {
            let id = RequestId::new();
            (this.listener.on_refusal)(status, &id);
            this.last = [&buffer[..start], &refusal::response(status, &id)].concat();
            // What does not go at once goes with the flush.
            let _ = this.poll_last(cx)?;
            return Poll::Ready(Ok(buffer.len()));
        }
        if this.written >= WRITTEN {
            this.written = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match Pin::new(&mut this.socket).poll_write(cx, &buffer[..buffer.len().min(WRITTEN)]) {
            Poll::Pending => {
                this.written = 0;
                this.stalled(cx)
            }
            ready => {
                if let Poll::Ready(Ok(bytes)) = &ready {
                    this.written += bytes;
                    if *bytes > 0 && this.connection.streams.get() {
                        // Its reader is slow, and reads on.
                        this.write_deadline = None;
                    }
                }
                ready
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.poll_last(cx)?.is_pending() {
            return this.stalled(cx);
        }
        match Pin::new(&mut this.socket).poll_flush(cx) {
            // TLS holds what the kernel does not take.
            Poll::Pending => return this.stalled(cx),
            Poll::Ready(flushed) => flushed?,
        }
        this.written = 0;
        let is_written = this.connection.phase.get() != Phase::Answer || this.connection.streams.get();
        if is_written && this.write_deadline.take().is_some() {
            // Reading waited for it.
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        match Pin::new(&mut self.socket).poll_shutdown(cx) {
            // TLS says its end, which the client need not take either.
            Poll::Pending => self.stalled(cx),
            ready => ready,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        net::{Ipv4Addr, TcpListener},
    };

    use rustls::{ClientConfig, RootCertStore, ServerConfig, pki_types::PrivateKeyDer};
    use tokio::net::TcpStream;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::http::{socket::Measured, tests::listener};

    #[actix_rt::test]
    async fn the_end_of_tls_has_a_deadline_where_the_client_does_not_take_it() {
        let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(issued.signing_key.serialize_der()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(issued.cert.der().clone()).unwrap();
        let server = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![issued.cert.der().clone()], key)
            .unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let connected = TcpStream::connect(socket.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = socket.accept().unwrap();
        accepted.set_nonblocking(true).unwrap();
        let accepted = Measured::new(TcpStream::from_std(accepted).unwrap(), 1 << 16);
        let (connector, acceptor) = (TlsConnector::from(Arc::new(client)), TlsAcceptor::from(Arc::new(server)));
        let name = "localhost".try_into().unwrap();
        let (client, server) = futures::join!(connector.connect(name, connected), acceptor.accept(accepted));
        let (_client, mut server) = (client.unwrap(), server.unwrap());

        // All that the kernel takes is taken.
        let is_full = |cx: &mut Context<'_>, server: &mut Measured| {
            while let Poll::Ready(written) = Pin::new(&mut *server).poll_write(cx, &[0; 1 << 16]) {
                written.unwrap();
            }
            Poll::Ready(())
        };
        let mut still = 0;
        while still < 3 {
            let before = std::time::Instant::now();
            let written = poll_fn(|cx| is_full(cx, server.get_mut().0));
            written.await;
            still = if before.elapsed() < Duration::from_millis(5) { still + 1 } else { 0 };
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let listener = Arc::new(listener(1, Arc::default()));
        let mut transport = Transport::new(Socket::Tls(Box::new(server)), (None, None), None, listener);
        let ended = poll_fn(|cx| Poll::Ready(Pin::new(&mut transport).poll_shutdown(cx))).await;
        assert!(ended.is_pending(), "{ended:?}");
        let deadline = transport.write_deadline.expect("a deadline");
        let timer = transport.write_timer.as_ref().expect("a timer");
        assert_eq!(timer.deadline(), deadline);
        // As when it has come.
        transport.write_deadline = Some(Instant::now());
        let ended = poll_fn(|cx| Pin::new(&mut transport).poll_shutdown(cx)).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[actix_rt::test]
    async fn a_stream_has_an_answers_time_for_each_piece_and_another_answer_for_all_of_it() {
        for (is_stream, is_left) in [(true, false), (false, true)] {
            let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let client = TcpStream::connect(socket.local_addr().unwrap()).await.unwrap();
            let (accepted, _) = socket.accept().unwrap();
            accepted.set_nonblocking(true).unwrap();
            let socket = Socket::Plain(TcpStream::from_std(accepted).unwrap());
            let mut transport = Transport::new(socket, (None, None), None, Arc::new(listener(1, Arc::default())));
            let exchange = transport.connection().begin(false);
            if is_stream {
                transport.connection().stream();
            }
            // Its client does not read for a while …
            let mut sent = 0;
            while transport.write_deadline.is_none() {
                let wrote = poll_fn(|cx| Poll::Ready(Pin::new(&mut transport).poll_write(cx, &[0; 1 << 16]))).await;
                match wrote {
                    Poll::Ready(wrote) => sent += wrote.unwrap(),
                    Poll::Pending => tokio::task::yield_now().await,
                }
            }
            let mut buffer = vec![0; 1 << 20];
            // … then some of it, so that something of the next piece can be written, though not all …
            loop {
                let wrote = poll_fn(|cx| Poll::Ready(Pin::new(&mut transport).poll_write(cx, &[0; 1 << 10]))).await;
                if let Poll::Ready(wrote) = wrote {
                    sent += wrote.unwrap();
                    break;
                }
                client.readable().await.unwrap();
                sent -= client.try_read(&mut buffer[..1 << 16]).unwrap_or(0);
            }
            assert_eq!(transport.write_deadline.is_some(), is_left, "a stream: {is_stream}");
            // … and then what there is.
            while sent > 0 {
                client.readable().await.unwrap();
                sent -= client.try_read(&mut buffer).unwrap_or(0);
            }
            poll_fn(|cx| Pin::new(&mut transport).poll_flush(cx)).await.unwrap();
            assert_eq!(transport.write_deadline.is_some(), is_left, "a stream: {is_stream}");
            drop(exchange);
            transport.connection().begin(false);
            assert!(!transport.connection.streams.get(), "the next answer is none");
        }
    }
}
