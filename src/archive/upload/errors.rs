//! Why the store cannot be used, and how that is said.

use object_store::Error;

use super::{
    local,
    settings::{Given, Provider, Settings},
};
use crate::config::Config;

/// Why a store cannot be an archive.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("the store overwrites objects in spite of If-None-Match: use a store with conditional writes")]
    Overwrites,
    #[error(
        "of {puts} create-only PUTs of one key at the same time, {what} (round {round} of {rounds}): the store looks whether an object is there and writes it later, so that two workers overwrite each other's objects. Use a store whose conditional writes are atomic (docs/stores.md)"
    )]
    Race { puts: usize, round: usize, rounds: usize, what: String },
    #[error("there is no right to {to}: {error}")]
    Right { to: String, error: Error },
    #[error(transparent)]
    Store(#[from] Error),
}

/// A failure that may pass.
pub fn failed(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Generic { store: "archive", source: source.into() }
}

/// The store's refusal, with what it refuses.
pub(super) fn without_right(to: &str, error: Error) -> Error {
    let path = format!("(no right to {to})");
    Error::PermissionDenied { path, source: Box::new(error) }
}

/// What waiting alone does not mend.
pub fn is_lasting(error: &Error) -> bool {
    is_denied(error)
        || matches!(error, Error::NotFound { .. } | Error::NotSupported { .. } | Error::NotImplemented { .. })
}

/// A right is missing. Of a LIST, the store's client says so in the text alone.
pub(super) fn is_denied(error: &Error) -> bool {
    matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. })
        || status(error).is_some_and(|status| status.starts_with("401") || status.starts_with("403"))
}

/// One sentence for the operator.
pub fn explain(error: &Error, config: &Config) -> String {
    let place = place(config);
    let said = || format!("{}{}", one_line(&error.to_string()), root_cause(error));
    match error {
        Error::NotFound { .. } => {
            format!("the bucket or folder of {place} does not exist: create it, or correct archive.url")
        }
        error if is_denied(error) => {
            format!(
                "{place} is refused to us: check that the bucket exists, the keys in archive.options, and the bucket's policy{} ({})",
                rights(config),
                one_line(&error.to_string())
            )
        }
        error => match (status(error), config.archive.is_local()) {
            (Some(status), _) => format!("{place} answers {status}{}: {}", advice(error), said()),
            (None, true) => format!("the archive in {place} cannot be written or read: {}", said()),
            (None, false) => format!("{place} cannot be reached: {}", said()),
        },
    }
}

fn rights(config: &Config) -> &'static str {
    match Provider::of(&config.archive.url) {
        Some(Provider::S3) => {
            ", which must allow s3:GetObject and s3:PutObject on the objects and s3:ListBucket on the bucket"
        }
        _ => "",
    }
}

/// The status of an answer that the store's client makes nothing more of.
fn status(error: &Error) -> Option<String> {
    // Its type is private.
    const BEFORE: &str = "non-2xx status code: ";
    let text = error.to_string();
    let (_, status) = text.split_once(BEFORE)?;
    status.split(':').next().map(|status| one_line(status.trim()))
}

/// What may mend it.
fn advice(error: &Error) -> &'static str {
    let text = error.to_string().to_lowercase();
    if text.contains("checksum") || text.contains("content-md5") {
        " (archive.options.checksum_algorithm is sha256, crc64nvme or none: take another one)"
    } else if text.contains("if-none-match") || text.contains("notimplemented") {
        " (an archive needs a store with conditional PUTs, If-None-Match: *)"
    } else {
        ""
    }
}

/// What the operating system or the server said in the first place, where the error's own text leaves it out.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let (cause, whole) = (one_line(&cause.to_string()), error.to_string());
    if whole.contains(&cause) { String::new() } else { format!(": {cause}") }
}

/// Stores answer with pages; their first words say enough.
fn one_line(text: &str) -> String {
    const LONGEST: usize = 300;
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(LONGEST) {
        line.truncate(end);
        line.push('…');
    }
    line
}

/// One sentence for the operator on why a store cannot be used as an archive.
pub fn explain_probe(error: &ProbeError, config: &Config) -> String {
    match error {
        ProbeError::Store(error) => explain(error, config),
        ProbeError::Right { to, error } => {
            format!("{} gives no right to {to} ({})", place(config), one_line(&error.to_string()))
        }
        error @ (ProbeError::Overwrites | ProbeError::Race { .. }) => format!("{}: {error}", place(config)),
    }
}

/// Where the archive is, for people: `file:` says little, and neither does the name of a bucket that may be anywhere.
pub fn place(config: &Config) -> String {
    if config.archive.is_local() {
        return local::folder(config).display().to_string();
    }
    let settings = Settings::of(&config.archive);
    match settings.as_ref().and_then(Settings::endpoint) {
        Some(Given { value, by, from_environment: true }) => format!("{} at {value} ({by})", config.archive.url),
        Some(Given { value, .. }) => format!("{} at {value}", config.archive.url),
        None => config.archive.url.clone(),
    }
}
