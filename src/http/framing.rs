//! Where each request of a connection ends, so that the dispatcher gets one at a time.
//!
//! actix answers with what it knows of the request that it decoded *last*: its version, whether it was a HEAD, and what it
//! said of the connection. So no request may be decoded before the one in front of it is answered. Its parser for heads
//! is asked here, too, and bodies are measured by the same rules (RFC 9112, 6 and 7.1): what it will refuse is handed on
//! as it is, so that it does.
//!
//! `Upgrade` is ignored (RFC 9110, 7.8: a server may, and the client goes on with HTTP/1.1). actix would take such a
//! request for the last one of its connection, and a WebSocket's body for all that comes, so both fields are blanked.

use std::{mem::MaybeUninit, ops::Range};

use httparse::{Header, Request, Status};
use smallvec::SmallVec;

/// actix's own bound: one field more is refused.
const MAX_FIELDS: usize = 96;

/// What of a request has come so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// Not yet all of its head.
    #[default]
    Head,
    /// This many bytes are left of its body.
    Body(u64),
    Chunked(Chunk),
    /// All of it.
    Complete,
    /// Whatever comes is the dispatcher's: it refuses the request, or ends the connection.
    Open,
}

impl Framing {
    /// How many of these bytes, which follow those that were admitted before, belong to the request. A head is admitted
    /// as a whole: as long as it is not there, none are, and it is to be shown again with what follows.
    pub fn admit(&mut self, bytes: &mut [u8]) -> usize {
        let mut admitted = 0;
        if *self == Self::Head {
            match read_head(bytes) {
                Some(head) => (admitted, *self) = head,
                None => return 0,
            }
        }
        let rest = &bytes[admitted..];
        admitted
            + match self {
                Self::Head | Self::Complete => 0,
                Self::Open => rest.len(),
                Self::Body(left) => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= taken as u64;
                    if *left == 0 {
                        *self = Self::Complete;
                    }
                    taken
                }
                Self::Chunked(chunk) => {
                    let (taken, then) = chunk.read(rest);
                    if let Some(then) = then {
                        *self = then;
                    }
                    taken
                }
            }
    }
}

/// The length of a head, and what follows it; `None` where it is not whole yet.
fn read_head(bytes: &mut [u8]) -> Option<(usize, Framing)> {
    let mut fields = [const { MaybeUninit::<Header<'_>>::uninit() }; MAX_FIELDS];
    let mut request = Request::new(&mut []);
    let length = match request.parse_with_uninit_headers(bytes, &mut fields) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return None,
        Err(_) => return Some((0, Framing::Open)),
    };
    let (mut declared, mut chunked, mut blank) = (None, false, SmallVec::<[Range<usize>; 4]>::new());
    for field in request.headers.iter() {
        let value = field.value.trim_ascii();
        if field.name.eq_ignore_ascii_case("content-length") {
            declared = std::str::from_utf8(value).ok().and_then(|value| value.parse::<u64>().ok());
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = value.eq_ignore_ascii_case(b"chunked");
        } else if field.name.eq_ignore_ascii_case("upgrade") {
            blank.push(place(bytes, value));
        } else if field.name.eq_ignore_ascii_case("connection") {
            let options = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            blank.extend(options.filter(|option| option.eq_ignore_ascii_case(b"upgrade")).map(|it| place(bytes, it)));
        }
    }
    let body = match declared {
        _ if request.method == Some("CONNECT") => Framing::Open,
        _ if chunked => Framing::Chunked(Chunk::default()),
        None | Some(0) => Framing::Complete,
        Some(length) => Framing::Body(length),
    };
    blank.into_iter().for_each(|place| bytes[place].fill(b' '));
    Some((length, body))
}

/// Where this part of the bytes lies in them.
fn place(bytes: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr().addr() - bytes.as_ptr().addr();
    start..start + part.len()
}

/// Where in a chunked body the next byte stands.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    at: At,
    /// Of the chunk, as far as it is read; then what is left of it.
    size: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    #[default]
    FirstDigit,
    Digit,
    /// What may follow the size, up to its line's end.
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// The beginning of a trailer, or of the body's end.
    Trailer,
    InTrailer,
    TrailerLf,
    EndLf,
}

impl Chunk {
    /// How many of these bytes belong to the body, and how the request goes on where no more chunks come: it is complete,
    /// or these are no chunks.
    fn read(&mut self, bytes: &[u8]) -> (usize, Option<Framing>) {
        let refused = (bytes.len(), Some(Framing::Open));
        let mut next = 0;
        while let Some(byte) = bytes.get(next).copied() {
            if self.at == At::Data {
                let taken = usize::try_from(self.size).unwrap_or(usize::MAX).min(bytes.len() - next);
                (next, self.size) = (next + taken, self.size - taken as u64);
                if self.size == 0 {
                    self.at = At::DataCr;
                }
                continue;
            }
            next += 1;
            self.at = match (self.at, byte) {
                (At::FirstDigit | At::Digit, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                    let digit = char::from(byte).to_digit(16).unwrap_or_default();
                    match self.size.checked_mul(16) {
                        Some(size) => self.size = size + u64::from(digit),
                        None => return refused,
                    }
                    At::Digit
                }
                (At::Digit | At::Extension, b'\r') => At::SizeLf,
                (At::Digit, b'\t' | b' ' | b';') => At::Extension,
                (At::Extension, b'\t' | b' '..=b'\x7e' | b'\x80'..) => At::Extension,
                (At::SizeLf, b'\n') if self.size > 0 => At::Data,
                (At::SizeLf | At::TrailerLf, b'\n') => At::Trailer,
                (At::DataCr, b'\r') => At::DataLf,
                (At::DataLf, b'\n') => At::FirstDigit,
                (At::Trailer, b'\r') => At::EndLf,
                (At::InTrailer, b'\r') => At::TrailerLf,
                (At::Trailer | At::InTrailer, _) => At::InTrailer,
                (At::EndLf, b'\n') => return (next, Some(Framing::Complete)),
                _ => return refused,
            };
        }
        (bytes.len(), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All requests of the text, however it is cut into reads; what is left over is appended.
    fn requests(sent: &str, step: usize) -> Vec<String> {
        let (mut requests, mut request, mut ahead) = (Vec::new(), Vec::new(), Vec::new());
        let mut framing = Framing::default();
        for read in sent.as_bytes().chunks(step) {
            ahead.extend_from_slice(read);
            loop {
                let admitted = framing.admit(&mut ahead);
                request.extend(ahead.drain(..admitted));
                if framing != Framing::Complete {
                    break;
                }
                requests.push(String::from_utf8(std::mem::take(&mut request)).unwrap());
                framing = Framing::Head;
            }
        }
        request.append(&mut ahead);
        if !request.is_empty() {
            requests.push(String::from_utf8(request).unwrap());
        }
        requests
    }

    #[test]
    fn each_request_ends_where_its_body_does_however_it_arrives() {
        let sent = [
            "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "\r\nPOST / HTTP/1.1\r\nHost: x\r\ncontent-length:5 \r\n\r\nGET /",
            "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n5;x=\"y\"\r\nGET /\r\n0A \r\n0123456789\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\n\r\n00\r\nA: b\r\nC: d\r\n\r\n",
            "HEAD / HTTP/1.0\n\n",
            "DELETE / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n\r\n\r",
            "GET / HTTP/1.1\r\nHo",
        ];
        for step in [1, 2, 3, 7, 50, 100, 1_000] {
            assert_eq!(requests(&sent.concat(), step), sent, "in reads of {step}");
        }
    }

    #[test]
    fn what_is_no_request_and_what_has_no_end_is_handed_on_at_once() {
        for sent in [
            "\0",
            "\u{16}\u{3}\u{1}",
            "PRI * HTTP/2.0\r\n",
            "GET /\r\n",
            "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\nanything",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcdeX",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1FFFFFFFFFFFFFFFF",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\n",
            "GET / HTTP/1.1\r\nX : y\r\n",
        ] {
            let mut framing = Framing::default();
            let admitted = framing.admit(&mut sent.as_bytes().to_vec());
            assert_eq!((framing, admitted), (Framing::Open, sent.len()), "{sent:?}");
        }
    }

    #[test]
    fn an_upgrade_is_blanked_and_nothing_else_is() {
        let head = |fields: &str| format!("POST / HTTP/1.1\r\nHost: upgrade\r\n{fields}Content-Length: 2\r\n\r\n{{}}");
        for (sent, handed_on) in [
            ("Connection: Upgrade\r\nUpgrade: websocket\r\n", "Connection:        \r\nUpgrade:          \r\n"),
            (
                "connection: keep-alive,UPGRADE , HTTP2-Settings\r\nupgrade:h2c, websocket\r\n",
                "connection: keep-alive,        , HTTP2-Settings\r\nupgrade:              \r\n",
            ),
            ("Connection: close\r\nConnection: upgrade\r\n", "Connection: close\r\nConnection:        \r\n"),
            ("Upgrade-Insecure-Requests: 1\r\nConnection: no-upgrade\r\n", ""),
        ] {
            let handed_on = if handed_on.is_empty() { sent } else { handed_on };
            let mut bytes = head(sent).into_bytes();
            let mut framing = Framing::default();
            assert_eq!(framing.admit(&mut bytes), bytes.len());
            assert_eq!((framing, String::from_utf8(bytes).unwrap()), (Framing::Complete, head(handed_on)));
        }
    }
}
