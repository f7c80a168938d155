//! The content codings of a body (RFC 9110, 8.4): which are taken, and bodies that are inflated while they arrive.
//!
//! A body has one coding or none. Its pieces go through a [`Decode`] as they come and are gone with that; only what comes
//! out is kept ([`Inflating`]).

mod brotli;
mod decode;
mod deflate;
mod inflating;
#[cfg(test)]
mod tests;
mod zstd;

use actix_web::http::{
    StatusCode,
    header::{CONTENT_ENCODING, HeaderMap},
};

pub use self::inflating::Inflating;
use self::{
    brotli::Brotli,
    decode::{Decode, Fault},
    deflate::{Deflate, Gzip},
    zstd::Zstd,
};
use crate::http::Problem;

/// What a body went through before it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    Gzip,
    Zstd,
    Deflate,
    Brotli,
}

impl Coding {
    /// What clients are told to choose from.
    pub const ACCEPTED: &str = "gzip, zstd, deflate, br";

    /// What `Content-Encoding` says, in however many fields; `None` where the body is sent as it is. Empty elements of the
    /// list are none (RFC 9110, 5.6.1).
    ///
    /// # Errors
    /// 415 for a coding that is not taken, and for more than one.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, Problem> {
        let elements = headers.get_all(CONTENT_ENCODING).flat_map(|field| field.as_bytes().split(|byte| *byte == b','));
        let mut codings = elements
            .map(<[u8]>::trim_ascii)
            .filter(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"));
        let Some(coding) = codings.next() else { return Ok(None) };
        if codings.next().is_some() {
            let detail =
                format!("more than one Content-Encoding: send the body with one of {}, or as it is", Self::ACCEPTED);
            return Err(Self::unsupported(detail));
        }
        Self::named(coding).map(Some).ok_or_else(|| {
            let detail =
                format!("this Content-Encoding is not taken: send the body with {}, or as it is", Self::ACCEPTED);
            Self::unsupported(detail)
        })
    }

    fn named(coding: &[u8]) -> Option<Self> {
        // RFC 9110, 8.4.1.3: `x-gzip` is the same.
        let names = [
            ("gzip", Self::Gzip),
            ("x-gzip", Self::Gzip),
            ("zstd", Self::Zstd),
            ("deflate", Self::Deflate),
            ("br", Self::Brotli),
        ];
        names.into_iter().find(|(name, _)| coding.eq_ignore_ascii_case(name.as_bytes())).map(|(_, named)| named)
    }

    /// As its RFC calls it, for sentences.
    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Deflate => "deflate",
            Self::Brotli => "brotli",
        }
    }

    fn decoder(self) -> Box<dyn Decode> {
        match self {
            Self::Gzip => Box::new(Gzip::new()),
            Self::Zstd => Box::new(Zstd::new()),
            Self::Deflate => Box::new(Deflate::new()),
            Self::Brotli => Box::new(Brotli::new()),
        }
    }

    fn unsupported(detail: String) -> Problem {
        let problem = Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail);
        Problem { accept_encoding: Some(Self::ACCEPTED), ..problem }
    }

    /// The answer to a body of this coding that cannot be inflated.
    fn refused(self, fault: &Fault) -> Problem {
        let name = self.name();
        match fault {
            Fault::Damaged(why) => {
                Problem::bad_request(format!("the body is damaged or no {name}, nothing was accepted: {why}"))
            }
            Fault::Trailing => Problem::bad_request(format!(
                "behind the end of the body's {name} stream stand bytes that are none, nothing was accepted: send the stream alone"
            )),
            Fault::Cut => Problem::bad_request(format!(
                "the body's {name} stream ends before its end, nothing was accepted: send all of it again"
            )),
            Fault::Unsupported(why) => Self::unsupported(format!("the body's {name} stream {why}")),
        }
    }
}
