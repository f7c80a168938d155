//! From an accepted socket to a connection: its place among those of its address, and its TLS handshake.
//!
//! A handshake is under the deadline of a head, counts as a connection from its beginning, and has at most [`HANDSHAKE_LIMIT`] bytes.
//! Who speaks HTTP where TLS is spoken hears so.

use std::{io, net::SocketAddr, sync::Arc};

use actix_http::error::DispatchError;
use actix_web::http::StatusCode;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use rustls::Error as TlsError;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    LINGER, Listener, RequestId, addresses,
    connection::Transport,
    proxy_protocol, refusal,
    socket::{Measured, Socket},
};
use crate::tls::{Failure, ServerTls, client_name};

/// Bytes of a client's side of a handshake: as many as of a head. A client's certificates are some KiB.
const HANDSHAKE_LIMIT: usize = 32 * 1024;
/// The first byte of TLS (RFC 8446, 5.1: the content type "handshake"), and of no HTTP.
const TLS_HANDSHAKE: u8 = 0x16;
/// Of a request without TLS, as far as it is read, so that its client can read the answer.
const PLAIN_LIMIT: usize = 64 * 1024;

const PLAIN_HTTP: &str = "this port speaks TLS, and this is HTTP without it: use https://";
const TOO_MANY: &str = "your address has as many connections as it may have at a time (http.max_connections_per_address): use \
                        those, or close some";

/// Makes a connection of a socket.
///
/// # Errors
/// It was refused. Nobody needs to be told: its client was.
pub async fn accept(
    stream: TcpStream,
    slots: Arc<Semaphore>,
    listener: Arc<Listener>,
) -> Result<(Transport, Option<SocketAddr>), DispatchError> {
    // A connection that is gone already is noticed at its first read.
    let (_, peer) = (stream.set_nodelay(true), stream.peer_addr().ok());
    let slot = slots.try_acquire_owned().ok();
    let (stream, peer) = proxy_protocol::client_of(stream, peer, &listener).await.map_err(DispatchError::Io)?;
    // A proxy's connections are those of many clients, of which each request says one.
    let counted = peer.filter(|peer| !proxy_protocol::is_trusted(peer.ip(), &listener));
    let place = match counted.map(|peer| listener.addresses.enter(addresses::of(peer), (listener.most_of_an_address)()))
    {
        Some(None) => {
            (listener.on_too_many)();
            if listener.tls.is_none() {
                say_at_once(&stream, &listener);
            }
            return Err(DispatchError::Io(io::ErrorKind::ConnectionRefused.into()));
        }
        place => place.flatten(),
    };
    let (socket, client) = match &listener.tls {
        None => (Socket::Plain(stream), None),
        // Boxed: the connection's task has its room for all of its life, without TLS, too.
        Some(tls) => Box::pin(shaken(stream, peer, tls, &listener)).await.map_err(DispatchError::Io)?,
    };
    Ok((Transport::new(socket, (slot, place), client, listener), peer))
}

/// 503 as far as the kernel takes it; nothing is waited for, since whoever has too many connections would be waited for as often.
fn say_at_once(stream: &TcpStream, listener: &Listener) {
    let id = RequestId::new();
    (listener.on_refusal)(StatusCode::SERVICE_UNAVAILABLE, &id);
    let answer = refusal::saying(StatusCode::SERVICE_UNAVAILABLE, TOO_MANY, &id);
    // Past tokio, which does not know yet that the socket can be written to. The answer need not be taken.
    let _ = send(stream, &answer, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    // What was sent and not read would have the answer thrown away, and so would what comes later, but for what was read by then.
    let _ = shutdown(stream, Shutdown::Write);
    let _ = recv(stream, &mut [0; 4096], RecvFlags::DONTWAIT);
}

/// A socket that speaks TLS, and the name in the certificate that its client showed.
type Shaken = (Socket, Option<Arc<str>>);

async fn shaken(
    stream: TcpStream,
    peer: Option<SocketAddr>,
    tls: &ServerTls,
    listener: &Listener,
) -> io::Result<Shaken> {
    let shaken = timeout((listener.timeouts)().head, shake(stream, tls, listener)).await;
    let shaken = shaken.unwrap_or_else(|_| Err((Failure::Timeout, io::ErrorKind::TimedOut.into())));
    match shaken {
        Ok(shaken) => {
            tls.done();
            Ok(shaken)
        }
        Err((failure, error)) => {
            tls.failed(failure);
            let (peer, listener) = (peer.map(tracing::field::display), listener.name);
            tracing::debug!(listener, peer, reason = failure.as_str(), %error, "no TLS handshake");
            Err(error)
        }
    }
}

async fn shake(mut stream: TcpStream, tls: &ServerTls, listener: &Listener) -> Result<Shaken, (Failure, io::Error)> {
    let closed = |error| (Failure::Closed, error);
    let mut first = [0; 16];
    match stream.peek(&mut first).await.map_err(closed)? {
        0 => return Err(closed(io::ErrorKind::UnexpectedEof.into())),
        _ if first[0] == TLS_HANDSHAKE => {}
        seen => {
            let proxy = proxy_protocol::refused(&first[..seen]);
            if let (Some(refused), Some(proxies)) = (proxy, &listener.proxies) {
                (proxies.on_refusal)(refused.reason());
            }
            answer_plain(&mut stream, listener, proxy.map_or(PLAIN_HTTP, |refused| refused.sentence(listener))).await;
            return Err((Failure::PlainHttp, io::ErrorKind::InvalidData.into()));
        }
    }
    let accepted = TlsAcceptor::from(tls.server()).accept(Measured::new(stream, HANDSHAKE_LIMIT)).await;
    let mut stream = accepted.map_err(|error| (failure(&error), error))?;
    let (socket, session) = stream.get_mut();
    socket.unmeasured();
    let client = session.peer_certificates().and_then(|chain| chain.first()).map(client_name);
    Ok((Socket::Tls(Box::new(stream)), client))
}

fn failure(error: &io::Error) -> Failure {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        Some(error) => error.into(),
        None if error.kind() == io::ErrorKind::FileTooLarge => Failure::TooLarge,
        None => Failure::Closed,
    }
}

/// Says in HTTP what is wrong, such as that TLS is spoken here, and reads on for as long as a client may need to read that.
async fn answer_plain(stream: &mut TcpStream, listener: &Listener, sentence: &'static str) {
    let id = RequestId::new();
    (listener.on_refusal)(StatusCode::BAD_REQUEST, &id);
    let answered = async {
        stream.write_all(&refusal::saying(StatusCode::BAD_REQUEST, sentence, &id)).await?;
        stream.shutdown().await?;
        let (mut buffer, mut taken) = ([0; 2048], 0);
        while taken < PLAIN_LIMIT {
            match stream.read(&mut buffer).await? {
                0 => break,
                read => taken += read,
            }
        }
        io::Result::Ok(())
    };
    // The client need not take it.
    let _ = timeout(LINGER, answered).await;
}
