//! The reply to a write command. `ok: 1` says only that the command was run: whether its statements took effect stands
//! in `writeErrors`, and whether that is durable in `writeConcernError`.

use std::{borrow::Cow, time::Duration};

use mongodb::bson::{Bson, Document};

use super::Failure;
use crate::backoff::jitter;

/// Error codes of the server.
pub mod code {
    pub const UNAUTHORIZED: i32 = 13;
    pub const NAMESPACE_NOT_FOUND: i32 = 26;
    pub const INDEX_OPTIONS_CONFLICT: i32 = 85;
    pub const INDEX_KEY_SPECS_CONFLICT: i32 = 86;
    pub const DUPLICATE_KEY: i32 = 11000;

    /// BadValue, FailedToParse, TypeMismatch, Overflow (nested too deeply), InvalidBSON, DollarPrefixedFieldName,
    /// EmptyFieldName, DottedFieldName, DocumentValidationFailure, CannotIndexParallelArrays, BSONObjectTooLarge, some of
    /// what indexes do not take, and keys and documents that are too large.
    const OF_THE_DOCUMENT: [i32; 18] =
        [2, 9, 14, 15, 22, 52, 56, 57, 121, 171, 10334, 13026, 16755, 17260, 17261, 17280, 17419, 17420];

    /// HostUnreachable, HostNotFound, Unauthorized, LockTimeout, MaxTimeMSExpired, StaleShardVersion, WriteConcernFailed,
    /// NetworkTimeout, ShutdownInProgress, LockFailed, WriteConflict, ReadConcernMajorityNotAvailableYet, ExceededMemoryLimit,
    /// StaleEpoch, CommandNotSupportedOnView, PrimarySteppedDown, NotImplemented, StaleDbVersion, ExceededTimeLimit,
    /// ClientDisconnect, TenantMigrationConflict, SocketException, NotWritablePrimary, Interrupted (three), StaleConfig,
    /// NotPrimary (two), OutOfDiskSpace; NetworkInterfaceExceededTimeLimit, ElectionInProgress,
    /// TransactionExceededLifetimeLimitSeconds, InterruptedDueToStorageChange, TemporarilyUnavailable (the cache is too
    /// full); and the quotas of two hosted services.
    const PASSING: [i32; 39] = [
        6, 7, 13, 24, 50, 63, 64, 89, 91, 107, 112, 134, 146, 150, 166, 189, 238, 249, 262, 279, 325, 9001, 10107,
        10058, 11600, 11601, 11602, 13388, 13435, 13436, 14031, 202, 216, 290, 355, 365, 8000, 16500, 16501,
    ];

    /// Whether the statement's own document is at fault, so that trying again is in vain.
    pub fn is_of_the_document(code: i32) -> bool {
        OF_THE_DOCUMENT.contains(&code)
    }

    /// Whether the server or the collection is at fault, for as long as it lasts: a full disk, an election, a missing right.
    /// Of codes that are in neither list (each kind of index has some of its own) it has to be found out.
    pub fn is_passing(code: i32) -> bool {
        PASSING.contains(&code)
    }
}

/// Before the second attempt: waits where one failed for a reason that is in neither list, and may pass.
pub async fn before_the_second_attempt(may_pass: bool) {
    if may_pass {
        tokio::time::sleep(Duration::from_millis(300).mul_f64(jitter())).await;
    }
}

/// The longest text of the server that is passed on, in bytes. It may quote the whole document.
const LONGEST: usize = 240;

/// The beginning of what the server says.
pub fn shortened(text: &str) -> Cow<'_, str> {
    if text.len() <= LONGEST {
        return text.into();
    }
    let end = (0..=LONGEST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    format!("{} …", &text[..end]).into()
}

/// The server's answer to a command that it does not run.
pub struct Refusal {
    pub code: i32,
    pub message: String,
}

/// Why one statement took no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementError {
    /// Of the statement in its command.
    pub index: usize,
    pub code: i32,
    pub message: String,
    /// Of a duplicate key: it is taken in an index that an operator made, not in that of `_id`.
    pub in_another_index: bool,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct WriteReply {
    /// Documents that were stored or found, over all statements.
    pub effects: i32,
    pub errors: Vec<StatementError>,
    /// Why what took effect is not known to be durable.
    pub concern: Option<String>,
}

impl WriteReply {
    pub fn read(reply: &Document) -> Self {
        let number = |document: &Document, field| match document.get(field) {
            Some(Bson::Int32(number)) => *number,
            Some(Bson::Int64(number)) => i32::try_from(*number).unwrap_or(-1),
            _ => -1,
        };
        let message = |document: &Document| shortened(document.get_str("errmsg").unwrap_or("no message")).into_owned();
        let errors = reply.get_array("writeErrors").map_or(&[][..], Vec::as_slice);
        Self {
            effects: number(reply, "n").max(0),
            errors: errors
                .iter()
                .filter_map(Bson::as_document)
                .map(|error| StatementError {
                    index: usize::try_from(number(error, "index")).unwrap_or(usize::MAX),
                    code: number(error, "code"),
                    message: message(error),
                    in_another_index: error.get_document("keyPattern").is_ok_and(|key| !key.contains_key("_id")),
                })
                .collect(),
            concern: reply.get_document("writeConcernError").ok().map(message),
        }
    }

    /// Everything took effect and is durable.
    pub fn ok(self) -> Result<(), Failure> {
        self.errors.first().map_or(Ok(()), |error| Err(Failure::unavailable(&error.message)))?;
        self.concern_ok()
    }

    /// What took effect is durable.
    pub fn concern_ok(self) -> Result<(), Failure> {
        self.concern.map_or(Ok(()), |why| Err(Failure::unavailable(format!("a write is not durable yet: {why}"))))
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    #[test]
    fn a_reply_with_ok_may_hold_errors() {
        let reply = WriteReply::read(&doc! {
            "ok": 1.0, "n": 1,
            "writeErrors": [
                { "index": 1, "code": 11000, "errmsg": "E11000 duplicate key", "keyPattern": { "_id": 1 } },
                { "index": 2, "code": 11000, "errmsg": "E11000 duplicate key", "keyPattern": { "event_id": 1 } },
            ],
            "writeConcernError": { "code": 64, "errmsg": "waiting for replication timed out" },
        });
        assert_eq!((reply.errors[0].index, reply.errors[0].code), (1, code::DUPLICATE_KEY));
        assert_eq!([0, 1].map(|error| reply.errors[error].in_another_index), [false, true]);
        assert!(reply.clone().concern_ok().is_err() && reply.ok().is_err());
        assert!(WriteReply::read(&doc! { "ok": 1.0, "n": 1 }).ok().is_ok());
    }

    #[test]
    fn what_the_server_quotes_of_an_event_is_cut() {
        let quoted = format!("point not in interval :: caused by :: {{ event: {{ p: \"{}\" }} }}", "ä".repeat(4000));
        let reply = WriteReply::read(&doc! { "writeErrors": [{ "index": 0, "code": 13027, "errmsg": &quoted }] });
        let message = &reply.errors[0].message;
        assert!(message.starts_with("point not in interval") && message.ends_with('…'), "{message}");
        assert!(message.len() <= LONGEST + 4, "{message}");
        assert_eq!(shortened("short"), "short");
    }

    #[test]
    fn no_code_is_both_the_documents_and_passing() {
        assert!((0..200_000).all(|code| !(code::is_of_the_document(code) && code::is_passing(code))));
    }
}
