//! The reply to a write command. `ok: 1` says only that the command was run: whether its statements took effect stands
//! in `writeErrors`, and whether that is durable in `writeConcernError`.

use mongodb::bson::{Bson, Document};

use super::Failure;

/// Error codes of the server.
pub mod code {
    pub const UNAUTHORIZED: i32 = 13;
    pub const INDEX_OPTIONS_CONFLICT: i32 = 85;
    pub const DUPLICATE_KEY: i32 = 11000;

    /// BadValue, FailedToParse, TypeMismatch, Overflow (nested too deeply), InvalidBSON, DollarPrefixedFieldName,
    /// EmptyFieldName, DottedFieldName, DocumentValidationFailure, CannotIndexParallelArrays, BSONObjectTooLarge, what
    /// geospatial and text indexes do not take, and keys and documents that are too large.
    const OF_THE_DOCUMENT: [i32; 18] =
        [2, 9, 14, 15, 22, 52, 56, 57, 121, 171, 10334, 13026, 16755, 17260, 17261, 17280, 17419, 17420];

    /// Whether the statement's own document is at fault, so that trying again is in vain. All else may pass: a full
    /// disk, an election, a missing right.
    pub fn is_of_the_document(code: i32) -> bool {
        OF_THE_DOCUMENT.contains(&code)
    }
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
        let message = |document: &Document| document.get_str("errmsg").unwrap_or("no message").to_owned();
        let errors = reply.get_array("writeErrors").map_or(&[][..], Vec::as_slice);
        Self {
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
        self.concern.map_or(Ok(()), |why| Err(Failure::unavailable(&format!("a write is not durable yet: {why}"))))
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
}
