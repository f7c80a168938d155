//! A BSON value as JSON text: what [`super::document`] made of JSON, back again, names in their order.

use mongodb::bson::{RawBsonRef, error::Result};

/// Writes it behind `json`.
///
/// # Errors
/// It is no valid BSON.
pub fn write(json: &mut Vec<u8>, value: RawBsonRef<'_>) -> Result<()> {
    match value {
        RawBsonRef::Document(document) => {
            let mut before = b'{';
            for element in document {
                let (name, value) = element?;
                json.push(before);
                text(json, name.as_str());
                json.push(b':');
                write(json, value)?;
                before = b',';
            }
            if before == b'{' {
                json.push(before);
            }
            json.push(b'}');
        }
        RawBsonRef::Array(array) => {
            let mut before = b'[';
            for element in array {
                json.push(before);
                write(json, element?)?;
                before = b',';
            }
            if before == b'[' {
                json.push(before);
            }
            json.push(b']');
        }
        RawBsonRef::String(string) => text(json, string),
        RawBsonRef::Boolean(flag) => json.extend_from_slice(if flag { b"true" } else { b"false" }),
        RawBsonRef::Int32(number) => json.extend_from_slice(number.to_string().as_bytes()),
        RawBsonRef::Int64(number) => json.extend_from_slice(number.to_string().as_bytes()),
        // JSON has no infinite numbers: these are null.
        RawBsonRef::Double(number) => _ = serde_json::to_writer(json, &number),
        RawBsonRef::Null => json.extend_from_slice(b"null"),
        // Of another program: no JSON becomes one.
        other => text(json, &format!("{other:?}")),
    }
    Ok(())
}

fn text(json: &mut Vec<u8>, text: &str) {
    // A string always serialises, and writing to a Vec does not fail.
    let _ = serde_json::to_writer(json, text);
}

#[cfg(test)]
mod tests {
    use mongodb::bson::RawBson;

    use super::{super::document::exactly, *};

    #[test]
    fn what_was_made_of_json_is_that_json_again() {
        for json in [
            r#"{"z":1,"a":-2.5,"$x":{"a.b":"\"ä\n"},"e":{},"l":[[],{},null,true,false,9223372036854775807,1500.0]}"#,
            "[]",
            r#""text""#,
            "0",
            "null",
        ] {
            let value = RawBson::try_from(exactly(json.as_bytes()).unwrap()).unwrap();
            let mut written = Vec::new();
            write(&mut written, value.as_raw_bson_ref()).unwrap();
            assert_eq!(String::from_utf8(written).unwrap(), json);
        }
    }
}
