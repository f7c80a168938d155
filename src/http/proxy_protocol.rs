//! PROXY protocol, version 2: what a proxy says of a connection before anything else on it, TLS too.
//!
//! The specification: <https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>, 2.2. It is read where the peer is one of
//! `http.trusted_proxies`, which need not send it; from anybody else it is refused. Exactly its bytes are taken from the socket.

use std::{
    future::pending,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use actix_web::{http::StatusCode, rt::net::TcpStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};

use super::{LINGER, Listener, RequestId, refusal};
use crate::config::LiveConfig;

/// Whose headers of this kind are taken, and who hears of the others.
pub struct Proxies {
    pub config: LiveConfig,
    /// Called with the reason of each refusal.
    pub on_refusal: Box<dyn Fn(&'static str) + Send + Sync>,
}

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, the version and the command, the family, the length of what follows.
const HEAD: usize = 16;
/// Of what follows: addresses are at most 216 bytes, and what proxies add to them (a certificate's names, an id) some hundreds.
const LONGEST: usize = 4096;
/// How version 1 begins.
const VERSION_1: [&[u8]; 2] = [b"PROXY TCP", b"PROXY UNKNOWN"];
/// How soon a beginning that is not whole is looked at again, and how soon at most while nothing more comes. Proxies send it in one
/// piece.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const LOOK_AGAIN_AT_MOST: Duration = Duration::from_millis(100);
/// What is read and thrown away behind a refused header.
const MOST_LEFT: usize = 64 * 1024;

/// Why a connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It stands where it may not.
    Stranger,
    Version1,
    /// What is wrong with it.
    Malformed(&'static str),
    Late,
}

impl Refused {
    /// In the metric.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::Version1 => "version",
            Self::Malformed(_) => "malformed",
            Self::Late => "late",
        }
    }

    pub fn status(self) -> StatusCode {
        if self == Self::Late { StatusCode::REQUEST_TIMEOUT } else { StatusCode::BAD_REQUEST }
    }

    /// What the client hears, at this listener.
    pub fn sentence(self, listener: &Listener) -> &'static str {
        match self {
            Self::Stranger | Self::Version1 if listener.proxies.is_none() => {
                "this listener takes no PROXY protocol, from nobody: have the proxy send none to it"
            }
            Self::Stranger => {
                "a PROXY protocol header is taken at the very beginning of a connection from one of http.trusted_proxies alone: add \
                 the proxy's address there, or have it send none"
            }
            Self::Version1 => {
                "this is PROXY protocol version 1: have the proxy send version 2 (send-proxy-v2), and name it in http.trusted_proxies"
            }
            Self::Malformed(what) => what,
            Self::Late => {
                "the PROXY protocol header did not arrive in time (http.head_timeout): have the proxy send it before all else"
            }
        }
    }
}

/// Whether what came first on a connection is such a header, where none is taken.
pub fn refused(first: &[u8]) -> Option<Refused> {
    let is_version_1 = || VERSION_1.iter().any(|version| first.starts_with(version));
    match first.first()? {
        b'\r' if first.starts_with(SIGNATURE) => Some(Refused::Stranger),
        b'P' if is_version_1() => Some(Refused::Version1),
        _ => None,
    }
}

/// Whether this is the address of one of `http.trusted_proxies`.
pub fn is_trusted(address: IpAddr, listener: &Listener) -> bool {
    let proxies = listener.proxies.as_ref();
    proxies.is_some_and(|proxies| proxies.config.load().http.trusted_proxies.contains(address.to_canonical()))
}

/// The connection, and whose it is: its peer's, or, where that is a trusted proxy that says so, another's.
///
/// # Errors
/// It was refused, and is closed.
pub async fn client_of(
    mut stream: TcpStream,
    peer: Option<SocketAddr>,
    listener: &Listener,
) -> io::Result<(TcpStream, Option<SocketAddr>)> {
    let (Some(from), Some(proxies)) = (peer, &listener.proxies) else { return Ok((stream, peer)) };
    if !is_trusted(from.ip(), listener) {
        return Ok((stream, peer));
    }
    let mut has_begun = false;
    let refused = match tokio::time::timeout((listener.timeouts)().head, read(&mut stream, &mut has_begun)).await {
        Ok(Ok(client)) => return Ok((stream, client.or(peer))),
        Ok(Err(Failed::Refused(refused))) => refused,
        Ok(Err(Failed::Broken(error))) => return Err(error),
        Err(_) if has_begun => Refused::Late,
        // As with a head, nothing is said where nothing came.
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    };
    let id = RequestId::new();
    (proxies.on_refusal)(refused.reason());
    (listener.on_refusal)(refused.status(), &id);
    let answer = refusal::saying(refused.status(), refused.sentence(listener), &id);
    // The client need not take it. Boxed: the connection's task has its room for all of its life, whoever connects.
    let _ = Box::pin(tokio::time::timeout(LINGER, said(&mut stream, &answer))).await;
    Err(io::ErrorKind::InvalidData.into())
}

enum Failed {
    Refused(Refused),
    Broken(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// Whom the header names; `None` where there is none, or it names nobody.
async fn read(stream: &mut TcpStream, has_begun: &mut bool) -> Result<Option<SocketAddr>, Failed> {
    let mut head = [0; HEAD];
    let (mut before, mut pause) = (0, LOOK_AGAIN);
    loop {
        let seen = stream.peek(&mut head).await?;
        let seen = &head[..seen];
        if seen.is_empty() || !(seen.starts_with(SIGNATURE) || SIGNATURE.starts_with(seen)) {
            // It is none. Of its end, and of version 1, the transport says what is to be said.
            return Ok(None);
        }
        *has_begun = true;
        if seen.len() >= SIGNATURE.len() {
            break;
        }
        // Nothing says that more has come, as what is there is not taken.
        if stream.ready(Interest::READABLE).await?.is_read_closed() {
            return Ok(None);
        }
        pause = if seen.len() > before { LOOK_AGAIN } else { (pause * 2).min(LOOK_AGAIN_AT_MOST) };
        before = seen.len();
        tokio::time::sleep(pause).await;
    }
    stream.read_exact(&mut head).await?;
    let length = length(head).map_err(Failed::Refused)?;
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    client(head, &rest).map_err(Failed::Refused)
}

/// Of what follows the head.
fn length(head: [u8; HEAD]) -> Result<usize, Refused> {
    if head[12] >> 4 != 2 {
        return Err(Refused::Malformed(
            "the PROXY protocol header has another version than 2: have the proxy send version 2",
        ));
    }
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if length > LONGEST {
        return Err(Refused::Malformed(
            "the PROXY protocol header is longer than 4096 bytes: have the proxy add less to it",
        ));
    }
    Ok(length)
}

/// What a header says. Behind the addresses stands what is not needed here.
fn client(head: [u8; HEAD], rest: &[u8]) -> Result<Option<SocketAddr>, Refused> {
    const LOCAL: u8 = 0;
    const PROXY: u8 = 1;
    const TCP_4: u8 = 0x11;
    const TCP_6: u8 = 0x21;
    let short =
        Refused::Malformed("the PROXY protocol header is shorter than its addresses: have the proxy send them whole");
    match (head[12] & 0xf, head[13]) {
        // The proxy's own, such as its health checks; and what has no address, such as a socket of its machine.
        (LOCAL, _) => Ok(None),
        (PROXY, TCP_4) => {
            let [a, b, c, d, _, _, _, _, high, low] = *rest.first_chunk().ok_or(short)?;
            (rest.len() >= 12).then_some(()).ok_or(short)?;
            Ok(Some((IpAddr::from([a, b, c, d]), u16::from_be_bytes([high, low])).into()))
        }
        (PROXY, TCP_6) => {
            let (address, ports) = (rest.first_chunk::<16>().ok_or(short)?, rest.get(32..36).ok_or(short)?);
            Ok(Some((IpAddr::from(*address), u16::from_be_bytes([ports[0], ports[1]])).into()))
        }
        (PROXY, _) => Ok(None),
        _ => Err(Refused::Malformed(
            "the PROXY protocol header has a command that is neither LOCAL nor PROXY: have the proxy send one of them",
        )),
    }
}

/// Sends an answer, and waits until the client has it: what it sends meanwhile must not take it away.
async fn said(stream: &mut TcpStream, answer: &[u8]) -> io::Result<()> {
    stream.write_all(answer).await?;
    stream.shutdown().await?;
    let (mut left, mut buffer) = (MOST_LEFT, [0; 4096]);
    while left > 0 {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            read => left = left.saturating_sub(read),
        }
    }
    // Nothing more is read; the caller's deadline ends it.
    pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(command: u8, family: u8, rest: &[u8]) -> ([u8; HEAD], Vec<u8>) {
        let mut head = [0; HEAD];
        head[..12].copy_from_slice(SIGNATURE);
        head[12] = command;
        head[13] = family;
        head[14..].copy_from_slice(&(rest.len() as u16).to_be_bytes());
        (head, rest.to_vec())
    }

    #[test]
    fn whom_a_header_names_is_read_and_the_rest_of_it_is_passed_over() {
        let tcp4 = [&[198, 51, 100, 7, 10, 0, 0, 1], &4711_u16.to_be_bytes()[..], &80_u16.to_be_bytes()[..]].concat();
        let v6: std::net::Ipv6Addr = "2001:db8::7".parse().unwrap();
        let tcp6 = [&v6.octets()[..], &[0; 16], &4711_u16.to_be_bytes(), &[0, 80]].concat();
        let with_more = [&tcp4[..], &[0x20, 0, 3, 1, 2, 3]].concat();
        let unix = [0; 216];
        let malformed = |what| Err(Refused::Malformed(what));
        let short =
            malformed("the PROXY protocol header is shorter than its addresses: have the proxy send them whole");
        for (command, family, rest, expected) in [
            (0x21, 0x11, &tcp4[..], Ok(Some("198.51.100.7:4711"))),
            (0x21, 0x11, &with_more, Ok(Some("198.51.100.7:4711"))),
            (0x21, 0x21, &tcp6, Ok(Some("[2001:db8::7]:4711"))),
            (0x20, 0x00, &[], Ok(None)),
            (0x20, 0x11, &tcp4, Ok(None)),
            (0x20, 0xff, &[], Ok(None)),
            (0x21, 0x00, &[], Ok(None)),
            (0x21, 0x31, &unix, Ok(None)),
            (0x21, 0x12, &tcp4, Ok(None)),
            (0x21, 0x11, &tcp4[..11], short),
            (0x21, 0x11, &[], short),
            (0x21, 0x21, &tcp6[..35], short),
            (
                0x22,
                0x11,
                &tcp4,
                malformed(
                    "the PROXY protocol header has a command that is neither LOCAL nor PROXY: have the proxy send one of them",
                ),
            ),
            (
                0x11,
                0x11,
                &tcp4,
                malformed("the PROXY protocol header has another version than 2: have the proxy send version 2"),
            ),
            (
                0x21,
                0x00,
                &[0; LONGEST + 1],
                malformed("the PROXY protocol header is longer than 4096 bytes: have the proxy add less to it"),
            ),
        ] {
            let (head, rest) = header(command, family, rest);
            let read = length(head).and_then(|length| {
                assert_eq!(length, rest.len());
                client(head, &rest)
            });
            assert_eq!(read, expected.map(|client| client.map(|it| it.parse().unwrap())), "{command:x} {family:x}");
        }
    }

    #[actix_rt::test]
    async fn a_beginning_with_nothing_behind_it_is_waited_for_until_its_sender_ends() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let accepted = listener.accept().unwrap().0;
        accepted.set_nonblocking(true).unwrap();
        let mut server = TcpStream::from_std(accepted).unwrap();
        client.write_all(b"\r\n").await.unwrap();
        let (long, mut has_begun) = (LOOK_AGAIN_AT_MOST * 3, false);
        assert!(tokio::time::timeout(long, read(&mut server, &mut has_begun)).await.is_err() && has_begun);
        client.shutdown().await.unwrap();
        let read = tokio::time::timeout(long * 10, read(&mut server, &mut has_begun)).await;
        assert!(matches!(read, Ok(Ok(None))), "the transport reads what is there, and its end");
    }

    #[test]
    fn a_header_where_none_is_taken_is_known_by_its_beginning() {
        let (head, _) = header(0x21, 0x11, &[]);
        for (first, expected) in [
            (&head[..], Some(Refused::Stranger)),
            (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n", Some(Refused::Version1)),
            (b"PROXY UNKNOWN\r\n", Some(Refused::Version1)),
            (b"PROXY /v1/events HTTP/1.1\r\n", None),
            (b"POST /v1/events HTTP/1.1\r\n", None),
            (b"\r\nGET / HTTP/1.1\r\n", None),
            (&head[..11], None),
            (b"", None),
        ] {
            assert_eq!(refused(first), expected, "{}", String::from_utf8_lossy(first));
        }
    }
}
