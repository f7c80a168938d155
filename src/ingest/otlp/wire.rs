//! The protobuf of a request for logs, taken apart before anything of it is decoded.
//!
//! An empty message is two bytes on the wire and hundreds in memory. So log records are found one by one, where they stand,
//! and what each will be in memory is known before `prost` makes it.

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, EntityRef, InstrumentationScope, KeyValue},
    logs::v1::LogRecord,
    resource::v1::Resource,
};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

/// Of `ExportLogsServiceRequest`.
pub const RESOURCE_LOGS: u32 = 1;
/// Of `ResourceLogs`.
pub const RESOURCE: u32 = 1;
pub const SCOPE_LOGS: u32 = 2;
/// Of `ScopeLogs`.
pub const SCOPE: u32 = 1;
pub const LOG_RECORDS: u32 = 2;
/// Of `ResourceLogs` and of `ScopeLogs`.
pub const SCHEMA_URL: u32 = 3;

/// The contents of one field of a message, in their order. After an error there are no more.
pub fn below(message: &[u8], tag: u32) -> impl Iterator<Item = Result<&[u8], DecodeError>> {
    Fields(message).filter_map(move |field| match field {
        Ok((found, content)) => content.filter(|_| found == tag).map(Ok),
        Err(error) => Some(Err(error)),
    })
}

/// `ResourceLogs` without its `ScopeLogs`.
#[derive(Clone, PartialEq, Message)]
pub struct ResourceHead {
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    #[prost(string, tag = "3")]
    pub schema_url: String,
}

/// `ScopeLogs` without its log records.
#[derive(Clone, PartialEq, Message)]
pub struct ScopeHead {
    #[prost(message, optional, tag = "1")]
    pub scope: Option<InstrumentationScope>,
    #[prost(string, tag = "3")]
    pub schema_url: String,
}

/// How many log records there are, at most one more than `most`.
pub fn count(body: &[u8], most: usize) -> Result<usize, DecodeError> {
    let mut records = 0;
    for logs in below(body, RESOURCE_LOGS) {
        for logs in below(logs?, SCOPE_LOGS) {
            for record in below(logs?, LOG_RECORDS) {
                record?;
                records += 1;
                if records > most {
                    return Ok(records);
                }
            }
        }
    }
    Ok(records)
}

/// The fields of a message: their numbers, and the contents of those that are length-delimited.
struct Fields<'b>(&'b [u8]);

impl<'b> Fields<'b> {
    fn read(&mut self) -> Result<(u32, Option<&'b [u8]>), DecodeError> {
        let (tag, wire_type) = decode_key(&mut self.0)?;
        let mut content = self.0;
        // It fails where there is less than that.
        skip_field(wire_type, tag, &mut self.0, DecodeContext::default())?;
        if wire_type != WireType::LengthDelimited {
            return Ok((tag, None));
        }
        let length = decode_varint(&mut content)?;
        Ok((tag, content.get(..length as usize)))
    }
}

impl<'b> Iterator for Fields<'b> {
    type Item = Result<(u32, Option<&'b [u8]>), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// Messages that can hold more in memory than they are on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    LogRecord,
    Resource,
    Scope,
    KeyValue,
    AnyValue,
    ArrayValue,
    KeyValueList,
    EntityRef,
    Text,
}

impl Kind {
    /// What a field is, and its size in memory, in a list twice, since that grows by doubling.
    fn below(self, tag: u32) -> Option<(Self, usize)> {
        Some(match (self, tag) {
            (Self::LogRecord, 5) | (Self::KeyValue, 2) => (Self::AnyValue, 0),
            (Self::LogRecord, 6) | (Self::Resource, 1) | (Self::Scope, 3) | (Self::KeyValueList, 1) => {
                (Self::KeyValue, 2 * size_of::<KeyValue>())
            }
            (Self::AnyValue, 5) => (Self::ArrayValue, 0),
            (Self::AnyValue, 6) => (Self::KeyValueList, 0),
            (Self::ArrayValue, 1) => (Self::AnyValue, 2 * size_of::<AnyValue>()),
            (Self::Resource, 3) => (Self::EntityRef, 2 * size_of::<EntityRef>()),
            (Self::EntityRef, 3 | 4) => (Self::Text, 2 * size_of::<String>()),
            _ => return None,
        })
    }

    /// Bytes of memory that a message of this kind will be at most, and the JSON that is made of it, in which a byte may become
    /// six. What is nested deeper than `prost` follows, or is no protobuf, is not counted: it is not decoded either.
    pub fn weight(self, content: &[u8]) -> usize {
        size_of::<LogRecord>() + 7 * content.len() + self.nested(content, 0)
    }

    fn nested(self, content: &[u8], depth: usize) -> usize {
        /// `prost`'s limit.
        const DEEPEST: usize = 100;
        if depth > DEEPEST {
            return 0;
        }
        let fields = Fields(content).flatten().filter_map(|(tag, content)| Some((self.below(tag)?, content?)));
        fields.map(|((kind, size), content)| size + kind.nested(content, depth + 1)).sum()
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::{
        collector::logs::v1::ExportLogsServiceRequest,
        common::v1::{ArrayValue, any_value::Value},
        logs::v1::{ResourceLogs, ScopeLogs},
    };

    use super::*;

    fn request(records: usize) -> Vec<u8> {
        let logs = ScopeLogs { log_records: vec![LogRecord::default(); records], ..ScopeLogs::default() };
        let logs = ResourceLogs { scope_logs: vec![logs.clone(), logs], ..ResourceLogs::default() };
        ExportLogsServiceRequest { resource_logs: vec![ResourceLogs::default(), logs] }.encode_to_vec()
    }

    #[test]
    fn log_records_are_counted_without_being_decoded() {
        assert_eq!(count(&request(3), 10), Ok(6));
        assert_eq!(count(&request(1000), 10), Ok(11));
        assert_eq!(count(b"", 10), Ok(0));
        assert!(count(b"\x0a\x05\x12", 10).is_err());
        assert!(count(b"{\"resourceLogs\":[]}", 10).is_err());
    }

    #[test]
    fn a_message_that_stands_several_times_is_merged_as_prost_merges_it() {
        let attribute = |key: &str| KeyValue { key: key.to_owned(), ..KeyValue::default() };
        let part = |key: &str, dropped| ResourceLogs {
            schema_url: key.to_owned(),
            resource: Some(Resource {
                attributes: vec![attribute(key)],
                dropped_attributes_count: dropped,
                ..Resource::default()
            }),
            ..ResourceLogs::default()
        };
        let scopes = ResourceLogs { scope_logs: vec![ScopeLogs::default(); 3], ..ResourceLogs::default() };
        let bytes = [part("a", 1), scopes, part("b", 0)].map(|logs| logs.encode_to_vec()).concat();
        let expected = ResourceLogs::decode(&bytes[..]).unwrap();
        let ResourceHead { resource, schema_url } = ResourceHead::decode(&bytes[..]).unwrap();
        assert_eq!((resource.as_ref(), &schema_url), (expected.resource.as_ref(), &expected.schema_url));
        assert_eq!(resource.unwrap().attributes.len(), 2);
    }

    #[test]
    fn what_becomes_large_in_memory_is_weighed_before_it_is_made() {
        let empty = vec![KeyValue::default(); 100_000];
        let attributes = LogRecord { attributes: empty.clone(), ..LogRecord::default() };
        let values = ArrayValue { values: vec![AnyValue::default(); 100_000] };
        let body =
            LogRecord { body: Some(AnyValue { value: Some(Value::ArrayValue(values)) }), ..LogRecord::default() };
        for (record, least) in [(attributes, size_of::<KeyValue>()), (body, size_of::<AnyValue>())] {
            let bytes = record.encode_to_vec();
            assert!(bytes.len() < 210_000);
            assert!(Kind::LogRecord.weight(&bytes) >= 100_000 * least, "{}", Kind::LogRecord.weight(&bytes));
        }
        let resource = Resource { attributes: empty, ..Resource::default() }.encode_to_vec();
        assert!(Kind::Resource.weight(&resource) >= 100_000 * size_of::<KeyValue>());
        let ordinary = LogRecord { severity_text: "INFO".repeat(1000), ..LogRecord::default() }.encode_to_vec();
        assert!(Kind::LogRecord.weight(&ordinary) < 8 * ordinary.len());
    }
}
