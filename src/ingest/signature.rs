//! Signed requests of a `[[http.source]]`: what their heads say is looked at before anything of the body is read, and the body, as
//! it came, before anything is made of it.
//!
//! - `standard-webhooks` (<https://www.standardwebhooks.com>): `webhook-signature` has `v1,BASE64`, several of them with spaces
//!   between, of `ID.TIMESTAMP.BODY` (`webhook-id`, `webhook-timestamp`).
//! - `github`: `X-Hub-Signature-256` has `sha256=HEX`, of the body.
//! - `stripe`: `Stripe-Signature` has `t=TIMESTAMP,v1=HEX`, perhaps several `v1`, of `TIMESTAMP.BODY`.
//!
//! All are HMAC-SHA256. Where there is a time it may be five minutes away, as the senders' own libraries have it.

use actix_web::http::{StatusCode, header::HeaderMap};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::{
    config::{Scheme, Secrets},
    http::{Challenge, Problem},
    position::Timestamp,
};

/// In seconds, before and after now.
const TOLERANCE: i64 = 300;
/// In one header: of a secret that is being changed there are two.
const MOST: usize = 16;

const ID: &str = "webhook-id";
const TIMESTAMP: &str = "webhook-timestamp";
const STANDARD: &str = "webhook-signature";
const GITHUB: &str = "x-hub-signature-256";
const STRIPE: &str = "stripe-signature";

/// The headers of each scheme.
pub fn headers(scheme: Scheme) -> &'static [&'static str] {
    match scheme {
        Scheme::StandardWebhooks => &[ID, TIMESTAMP, STANDARD],
        Scheme::Github => &[GITHUB],
        Scheme::Stripe => &[STRIPE],
    }
}

/// Why a request is not believed to be its sender's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    Missing(&'static str),
    /// What it must be.
    Malformed(&'static str, &'static str),
    TooOld(&'static str),
    TooNew(&'static str),
    Mismatch(&'static str),
}

impl Refusal {
    /// In the metric.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Missing(_) => "missing",
            Self::Malformed(..) => "malformed",
            Self::TooOld(_) => "too_old",
            Self::TooNew(_) => "too_new",
            Self::Mismatch(_) => "mismatch",
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let minutes = TOLERANCE / 60;
        let detail = match refusal {
            Refusal::Missing(header) => format!(
                "this needs a signature, and the header {header} is missing: have the sender sign what it sends, with the \
                 secret of this source"
            ),
            Refusal::Malformed(header, rule) => format!("the header {header} is malformed: it must {rule}"),
            Refusal::TooOld(header) => format!(
                "the time in the header {header} is more than {minutes} minutes ago: sign it anew when it is sent again, \
                 and set the clocks"
            ),
            Refusal::TooNew(header) => {
                format!("the time in the header {header} is more than {minutes} minutes ahead: set the clocks")
            }
            Refusal::Mismatch(header) => format!(
                "no signature in the header {header} is that of this body: sign the bytes as they are sent, with the secret of \
                 this source"
            ),
        };
        Self { challenge: Some(Challenge::Signature), ..Self::new(StatusCode::UNAUTHORIZED, detail) }
    }
}

/// What a head says that the body is.
#[derive(Debug, PartialEq, Eq)]
pub struct Claim {
    /// What is signed before the body.
    before: Vec<u8>,
    /// One of these has to be right.
    signatures: Vec<Vec<u8>>,
    /// Where they stand.
    header: &'static str,
}

impl Claim {
    /// # Errors
    /// There is none, or it is not of now.
    pub fn of(headers: &HeaderMap, scheme: Scheme, now: Timestamp) -> Result<Self, Refusal> {
        match scheme {
            Scheme::StandardWebhooks => {
                let [id, timestamp, signatures] = [ID, TIMESTAMP, STANDARD].map(|name| only(headers, name));
                let (id, timestamp, signatures) = (id?, timestamp?, signatures?);
                check_time(timestamp, now, TIMESTAMP)?;
                let before = format!("{id}.{timestamp}.").into_bytes();
                let decoded = signatures.split_ascii_whitespace().filter_map(|one| one.strip_prefix("v1,"));
                Self::new(before, decoded.map(|one| BASE64_STANDARD.decode(one).ok()), STANDARD, "have v1, and base64")
            }
            Scheme::Github => {
                let hex = only(headers, GITHUB)?.strip_prefix("sha256=");
                Self::new(Vec::new(), hex.into_iter().map(of_hex), GITHUB, "be sha256= and 64 hexadecimal digits")
            }
            Scheme::Stripe => {
                const RULE: &str =
                    "have t=, a time in seconds, and v1= with 64 hexadecimal digits, with commas between";
                let parts = || only(headers, STRIPE).map(|given| given.split(',').map(str::trim));
                let timestamp = parts()?.find_map(|part| part.strip_prefix("t="));
                let timestamp = timestamp.ok_or(Refusal::Malformed(STRIPE, RULE))?;
                check_time(timestamp, now, STRIPE)?;
                let signatures = parts()?.filter_map(|part| part.strip_prefix("v1=")).map(of_hex);
                Self::new(format!("{timestamp}.").into_bytes(), signatures, STRIPE, RULE)
            }
        }
    }

    fn new(
        before: Vec<u8>,
        signatures: impl Iterator<Item = Option<Vec<u8>>>,
        header: &'static str,
        rule: &'static str,
    ) -> Result<Self, Refusal> {
        // One that cannot be read is none that matches; the others count.
        let signatures: Vec<_> = signatures.take(MOST).flatten().collect();
        if signatures.is_empty() {
            return Err(Refusal::Malformed(header, rule));
        }
        Ok(Self { before, signatures, header })
    }

    /// # Errors
    /// None of the signatures is that of this body by any of the secrets. It takes as long whichever is right.
    pub fn check(&self, body: &[u8], secrets: &Secrets) -> Result<(), Refusal> {
        let mut is_right = subtle::Choice::from(0);
        for secret in secrets.iter() {
            // HMAC takes keys of any length.
            let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else { continue };
            mac.update(&self.before);
            mac.update(body);
            let right = mac.finalize().into_bytes();
            for signature in &self.signatures {
                is_right |= right.ct_eq(signature.as_slice());
            }
        }
        if is_right.into() { Ok(()) } else { Err(Refusal::Mismatch(self.header)) }
    }
}

/// The header, which stands there once.
fn only<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<&'h str, Refusal> {
    let mut given = headers.get_all(name);
    match (given.next(), given.next()) {
        (None, _) => Err(Refusal::Missing(name)),
        (Some(_), Some(_)) => Err(Refusal::Malformed(name, "stand there once")),
        (Some(given), None) => given.to_str().map_err(|_| Refusal::Malformed(name, "be ASCII")),
    }
}

fn check_time(timestamp: &str, now: Timestamp, header: &'static str) -> Result<(), Refusal> {
    let is_number = !timestamp.is_empty() && timestamp.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = timestamp.parse::<i64>().ok().filter(|_| is_number);
    let seconds = seconds.ok_or(Refusal::Malformed(header, "have the time as a number of seconds since 1970"))?;
    let now = now.0.div_euclid(1000);
    match seconds {
        _ if seconds < now - TOLERANCE => Err(Refusal::TooOld(header)),
        _ if seconds > now + TOLERANCE => Err(Refusal::TooNew(header)),
        _ => Ok(()),
    }
}

fn of_hex(text: &str) -> Option<Vec<u8>> {
    hex::decode(text).ok().filter(|bytes| bytes.len() == 32)
}

#[cfg(test)]
mod tests;
