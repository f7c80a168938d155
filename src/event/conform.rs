//! What an event has to be by its type (`[[event.types]]`): the same at the door and at a replay.

use super::{Code, Invalid};
use crate::config::{EventConfig, HttpKey, Known, UnknownType};

/// Whether there is anything that events have to be by their types.
pub fn is_any_asked(config: &EventConfig) -> bool {
    config.unknown_type == UnknownType::Reject || config.types.has_schemas()
}

/// The memory that it takes to look, at most.
pub fn weight(event_type: &str, value: &[u8], config: &EventConfig) -> usize {
    match config.types.find(event_type) {
        Known::Schema(schema) => schema.weight(value),
        Known::Anything | Known::No => 0,
    }
}

/// Whether an event of this type may come with this key.
///
/// # Errors
/// Which may. The type itself is not said again.
pub fn permit(key: &HttpKey, event_type: &str) -> Result<(), Invalid> {
    let HttpKey { name, types: Some(types), .. } = key else { return Ok(()) };
    if key.may_send(event_type) {
        return Ok(());
    }
    let message = format!(
        "the key {name:?} may not send events of this type: send it with another key, or have the type added to the key \
         (types in http.auth.keys), which may send {}",
        types.join(", ")
    );
    Err(Invalid::new(Code::ForbiddenType, message))
}

/// Whether an event of this type may have this value: of a CloudEvent its data, of all others the event.
///
/// # Errors
/// Its type is unknown, or the value is not as its schema has it. What it is instead is not said.
pub fn conform(event_type: &str, value: &[u8], config: &EventConfig) -> Result<(), Invalid> {
    match config.types.find(event_type) {
        Known::Schema(schema) => {
            schema.check(value).map_err(|mismatch| Invalid::new(Code::Schema, mismatch.to_string()))
        }
        Known::No if config.unknown_type == UnknownType::Reject => {
            let message = "the type is none that is known here: send one of [[event.types]], or have it added there \
                           (event.unknown_type)";
            Err(Invalid::new(Code::UnknownType, message))
        }
        Known::Anything | Known::No => Ok(()),
    }
}
