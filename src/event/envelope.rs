//! An event in the JSON format of CloudEvents 1.0: an object that holds the attributes and the data.

use std::borrow::Cow;

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use super::{
    Code, Invalid,
    fields::{explain, not_utf8, unreadable},
    json,
    readable::{Glance, closely, shown},
    time, too_large, unescape,
};
use crate::{
    config::{ByteSize, OnUnreadable},
    vector,
};

/// The attribute that says what the data is.
pub(super) const DATA_CONTENT_TYPE: &str = "datacontenttype";
/// The members that are no attributes.
pub(super) const DATA: &str = "data";
const DATA_BASE64: &str = "data_base64";

/// What says that a value is an envelope, or an array of them.
pub const ENVELOPE_TYPE: &str = "application/cloudevents+json";
pub const BATCH_TYPE: &str = "application/cloudevents-batch+json";

/// Attributes of one event at most: each is compared with all others, and frames of their own take room in a record of Kafka.
const MOST_ATTRIBUTES: usize = 128;

/// Some write it without its padding.
pub const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// An event out of its envelope.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// By their own names, as text.
    pub attributes: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// Its bytes, as another binding would carry them; none are no data.
    pub data: Cow<'a, [u8]>,
}

/// Whether a content type says that a value is an envelope, rather than data.
pub fn is_event_format(content_type: &str) -> bool {
    let begins = content_type.trim_start().split_at_checked(ENVELOPE_TYPE.len());
    begins.is_some_and(|(begins, _)| begins.eq_ignore_ascii_case(ENVELOPE_TYPE))
}

/// The largest envelope of an event that may be taken: a byte of it is six of the envelope at most, as an escape.
pub fn longest_envelope(max_event: ByteSize) -> usize {
    /// What it may have besides, such as quotes and white space between its members.
    const FRAME: usize = 64 * 1024;
    max_event.as_usize().saturating_mul(6).saturating_add(FRAME)
}

/// Whether a content type says that data is JSON: `*/json` or `*/*+json`, whatever its parameters.
pub(super) fn is_json_type(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    let Some((_, subtype)) = media_type.split_once('/') else { return false };
    let suffix = subtype.rsplit('+').next().unwrap_or_default();
    suffix.eq_ignore_ascii_case("json")
}

/// Whether it may be the name of an attribute.
pub fn is_attribute_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// Whether it is the version that is read here.
///
/// # Errors
/// It is another one, or none.
pub(super) fn check_spec_version(version: Option<&str>) -> Result<(), Invalid> {
    let message = match version {
        Some("1.0") => return Ok(()),
        Some("0.3") => "attribute \"specversion\" is \"0.3\": CloudEvents are taken in version \"1.0\" alone",
        Some(_) => "attribute \"specversion\" must be \"1.0\": CloudEvents of other versions are not taken",
        None => "attribute \"specversion\" is missing: a CloudEvent must have it, with the value \"1.0\"",
    };
    Err(Invalid::new(Code::InvalidCloudevent, message))
}

/// Whether an event may have so many attributes.
///
/// # Errors
/// It may not.
fn check_number(attributes: usize) -> Result<(), Invalid> {
    if attributes <= MOST_ATTRIBUTES {
        return Ok(());
    }
    let message =
        format!("an event may have {MOST_ATTRIBUTES} attributes, and this one has more: put them into its data");
    Err(Invalid::new(Code::InvalidCloudevent, message))
}

impl<'a> Envelope<'a> {
    /// Opens one that comes in from outside, of a size that [`longest_envelope`] allows.
    ///
    /// # Errors
    /// As [`Envelope::open`], and for its size.
    pub fn open_sent(envelope: &'a [u8], max_event: ByteSize, on_unreadable: OnUnreadable) -> Result<Self, Invalid> {
        if envelope.len() > longest_envelope(max_event) {
            return Err(too_large(envelope.len(), "bytes of envelope", max_event));
        }
        Self::open(envelope, on_unreadable)
    }

    /// Opens the envelope. What each CloudEvent has to have is not looked for here, but for the version, without which it
    /// cannot be told what the rest means.
    ///
    /// # Errors
    /// It is no envelope of that version, with the code for single events.
    pub fn open(envelope: &'a [u8], on_unreadable: OnUnreadable) -> Result<Self, Invalid> {
        let text = vector::text(envelope).map_err(not_utf8)?;
        let mut members = Members::default();
        let mut glance = Glance::default();
        let read = match on_unreadable {
            OnUnreadable::Reject => json::members(text, &mut glance, |name, json| members.take(name, json)),
            OnUnreadable::Accept => json::members(text, &mut (), |name, json| members.take(name, json)),
        };
        if read.is_none() {
            return Err(members.wrong.filter(|_| members.too_many).unwrap_or_else(|| explain(text)));
        }
        if glance.has_doubt() {
            closely(text).map_err(unreadable)?;
        }
        members.close()
    }
}

/// What stands in an envelope, the last of members of one name.
#[derive(Default)]
struct Members<'a> {
    attributes: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    data: Option<&'a str>,
    data_base64: Option<&'a str>,
    /// The first that is wrong.
    wrong: Option<Invalid>,
    /// What is wrong is their number, and nothing more is read.
    too_many: bool,
}

impl<'a> Members<'a> {
    /// Takes the next one; whether to go on.
    fn take(&mut self, name: &'a str, json: &'a str) -> Option<()> {
        // Where its escapes are no characters, it is for others to say so.
        let name = unescape(name).ok()?;
        match &*name {
            DATA => self.data = Some(json),
            DATA_BASE64 => self.data_base64 = Some(json).filter(|json| *json != "null"),
            _ => {
                let wrong = self.attribute(name, json).err();
                self.wrong = self.wrong.take().or(wrong);
            }
        }
        (!self.too_many).then_some(())
    }

    fn attribute(&mut self, name: Cow<'a, str>, json: &'a str) -> Result<(), Invalid> {
        if !is_attribute_name(&name) {
            let message = format!(
                "{:?} cannot be the name of an attribute: those have lower-case letters and digits alone; what is no \
                 attribute belongs into \"data\"",
                shown(name.as_bytes())
            );
            return Err(Invalid::new(Code::InvalidCloudevent, message));
        }
        let place = self.attributes.iter().position(|(known, _)| *known == name);
        let Some(value) = value_of(&name, json)? else {
            // As good as absent.
            if let Some(place) = place {
                self.attributes.remove(place);
            }
            return Ok(());
        };
        match place {
            Some(place) => self.attributes[place].1 = value,
            None => {
                self.too_many = self.attributes.len() == MOST_ATTRIBUTES;
                check_number(self.attributes.len() + 1)?;
                self.attributes.push((name, value));
            }
        }
        Ok(())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    fn close(mut self) -> Result<Envelope<'a>, Invalid> {
        let invalid = |message: &str| Invalid::new(Code::InvalidCloudevent, message);
        let version = self.get("specversion");
        // Of another version, the rest may be right by its rules.
        if version.is_some() || self.wrong.is_none() {
            check_spec_version(version)?;
        }
        if let Some(wrong) = self.wrong.take() {
            return Err(wrong);
        }
        let content_type = self.get(DATA_CONTENT_TYPE);
        if content_type.is_some_and(is_event_format) {
            return Err(invalid(
                "attribute \"datacontenttype\" says that the data is a CloudEvent, which cannot be told from the event \
                 itself: send the inner one, or give its data another type",
            ));
        }
        let data: Cow<'a, [u8]> = match (self.data, self.data_base64) {
            (Some(_), Some(_)) => {
                return Err(invalid(
                    "both \"data\" and \"data_base64\" stand in it: an event has one of them, or none",
                ));
            }
            (None, None) => Cow::Borrowed(&[][..]),
            (None, Some(json)) => Cow::Owned(decode(json)?),
            (Some(json), None) => match content_type {
                None => {
                    // What it means here it would not mean in another binding, unless it is said there.
                    self.attributes.push((DATA_CONTENT_TYPE.into(), "application/json".into()));
                    Cow::Borrowed(json.as_bytes())
                }
                Some(content_type) if !is_json_type(content_type) && json.starts_with('"') => {
                    bytes(text("data", json)?)
                }
                Some(_) => Cow::Borrowed(json.as_bytes()),
            },
        };
        Ok(Envelope { attributes: self.attributes, data })
    }
}

/// An attribute's text; `None` for null.
fn value_of<'a>(name: &str, json: &'a str) -> Result<Option<Cow<'a, str>>, Invalid> {
    let is_integer = |json: &str| {
        let digits = json.strip_prefix('-').unwrap_or(json);
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    let of_the_standard = match name {
        "type" => Some(Code::InvalidType),
        "id" => Some(Code::InvalidId),
        "specversion" | "source" | "subject" | "dataschema" | DATA_CONTENT_TYPE => Some(Code::InvalidCloudevent),
        _ => None,
    };
    match (json.as_bytes().first(), of_the_standard) {
        (Some(b'n'), _) => Ok(None),
        (Some(b'"'), _) => text(name, json).map(Some),
        (_, Some(code)) => Err(Invalid::new(code, format!("attribute {name:?} must be a string"))),
        // What is no time is told by those who read times.
        (_, None) if name == "time" => Ok(Some(time::text_of(json))),
        (Some(b't' | b'f'), None) => Ok(Some(json.into())),
        (_, None) if is_integer(json) => Ok(Some(json.into())),
        _ => {
            let name = shown(name.as_bytes());
            let message = format!("attribute {name:?} must be a string, an integer or a boolean");
            Err(Invalid::new(Code::InvalidCloudevent, message))
        }
    }
}

fn text<'a>(name: &str, json: &'a str) -> Result<Cow<'a, str>, Invalid> {
    unescape(json).map_err(|error| {
        let name = shown(name.as_bytes());
        Invalid::new(Code::InvalidJson, format!("the string in {name:?} cannot be read: {error}"))
    })
}

fn bytes(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

fn decode(json: &str) -> Result<Vec<u8>, Invalid> {
    let invalid = |why: String| Invalid::new(Code::InvalidCloudevent, format!("\"data_base64\" is no base64: {why}"));
    if !json.starts_with('"') {
        return Err(invalid("it is no string".to_owned()));
    }
    BASE64.decode(text(DATA_BASE64, json)?.as_bytes()).map_err(|error| invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An envelope of this version with these further members.
    fn envelope(members: &str) -> String {
        format!(r#"{{"specversion":"1.0"{members}}}"#)
    }

    fn opened(json: &str) -> (Vec<(String, String)>, Vec<u8>) {
        let opened = Envelope::open(json.as_bytes(), OnUnreadable::Reject).expect(json);
        let owned = |(name, value): (Cow<'_, str>, Cow<'_, str>)| (name.into_owned(), value.into_owned());
        (opened.attributes.into_iter().map(owned).collect(), opened.data.into_owned())
    }

    #[test]
    fn data_is_the_bytes_that_another_binding_would_carry() {
        for (members, content_type, data) in [
            (r#","data": {"n":1.50,"u":"\u00e9"} "#, Some("application/json"), &br#"{"n":1.50,"u":"\u00e9"}"#[..]),
            (r#","data":"I'm just a string""#, Some("application/json"), br#""I'm just a string""#),
            (r#","data":null"#, Some("application/json"), b"null"),
            (
                r#","datacontenttype":"text/JSON; charset=utf-8","data":"\u00e9""#,
                Some("text/JSON; charset=utf-8"),
                br#""\u00e9""#,
            ),
            (r#","datacontenttype":"application/geo+json","data":[1]"#, Some("application/geo+json"), b"[1]"),
            (
                r#","datacontenttype":"application/xml","data":"<much wow=\"xml\"/>""#,
                Some("application/xml"),
                br#"<much wow="xml"/>"#,
            ),
            (r#","datacontenttype":"text/plain","data":"\u00e9\n""#, Some("text/plain"), "é\n".as_bytes()),
            (r#","datacontenttype":"text/plain","data":"""#, Some("text/plain"), b""),
            (r#","datacontenttype":"text/plain","data":{"a":1}"#, Some("text/plain"), br#"{"a":1}"#),
            (r#","data_base64":"eyAieHl6IjogMTIzIH0=""#, None, br#"{ "xyz": 123 }"#),
            (r#","data_base64":"/w","datacontenttype":"image/png""#, Some("image/png"), b"\xff"),
            (r#","data_base64":null"#, None, b""),
            (r#","datacontenttype":"application/json""#, Some("application/json"), b""),
            ("", None, b""),
        ] {
            let (attributes, bytes) = opened(&envelope(members));
            let given = attributes.iter().find(|(name, _)| name == DATA_CONTENT_TYPE).map(|(_, value)| value.as_str());
            assert_eq!((given, bytes.as_slice()), (content_type, data), "{members}");
        }
    }

    #[test]
    fn attributes_are_strings_integers_and_booleans_and_null_is_as_good_as_absent() {
        let members = r#","id":"\u00e9\"","subject":null,"n":-5,"yes":true,"no":false,"t\u0065xt":"","time":[1]"#;
        let expected = [
            ("specversion", "1.0"),
            ("id", "é\""),
            ("n", "-5"),
            ("yes", "true"),
            ("no", "false"),
            ("text", ""),
            // Left to those who read times.
            ("time", "[1]"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        assert_eq!(opened(&envelope(members)), (expected, Vec::new()));
    }

    #[test]
    fn what_is_no_envelope_says_what_is_wrong() {
        let many: String = (0..MOST_ATTRIBUTES).map(|n| format!(",\"a{n}\":1")).collect();
        let one_less: String = (1..MOST_ATTRIBUTES).map(|n| format!(",\"a{n}\":1")).collect();
        assert_eq!(opened(&envelope(&one_less)).0.len(), MOST_ATTRIBUTES);
        for (json, code, words) in [
            ("{".to_owned(), Code::InvalidJson, "EOF"),
            ("{} {}".to_owned(), Code::InvalidJson, "trailing"),
            ("[1]".to_owned(), Code::NotAnObject, "object"),
            ("{}".to_owned(), Code::InvalidCloudevent, "\"specversion\" is missing"),
            (
                r#"{"specversion":"0.3","Extra":{}}"#.to_owned(),
                Code::InvalidCloudevent,
                "is \"0.3\": CloudEvents are taken in",
            ),
            (r#"{"specversion":"1"}"#.to_owned(), Code::InvalidCloudevent, "must be \"1.0\""),
            (r#"{"specversion":1.0}"#.to_owned(), Code::InvalidCloudevent, "\"specversion\" must be a string"),
            (envelope(r#","id":7"#), Code::InvalidId, "\"id\" must be a string"),
            (envelope(r#","type":{}"#), Code::InvalidType, "\"type\" must be a string"),
            (envelope(r#","source":true"#), Code::InvalidCloudevent, "\"source\" must be a string"),
            (envelope(r#","dataschema":1"#), Code::InvalidCloudevent, "\"dataschema\" must be a string"),
            (envelope(r#","ext":1.5"#), Code::InvalidCloudevent, "\"ext\" must be a string, an integer or a boolean"),
            (envelope(r#","ext":1e3"#), Code::InvalidCloudevent, "\"ext\" must be"),
            (envelope(r#","ext":{"a":1}"#), Code::InvalidCloudevent, "\"ext\" must be"),
            (envelope(r#","Upper":"x""#), Code::InvalidCloudevent, "\"Upper\" cannot be the name of an attribute"),
            (envelope(r#","with_line":"x""#), Code::InvalidCloudevent, "\"with_line\" cannot"),
            (envelope(r#","":"x""#), Code::InvalidCloudevent, "\"\" cannot"),
            (envelope(r#","data":1,"data_base64":"""#), Code::InvalidCloudevent, "both \"data\" and \"data_base64\""),
            (envelope(r#","data_base64":"?""#), Code::InvalidCloudevent, "\"data_base64\" is no base64"),
            (envelope(r#","data_base64":[]"#), Code::InvalidCloudevent, "it is no string"),
            (
                envelope(r#","datacontenttype":"application/CloudEvents+json","data":{}"#),
                Code::InvalidCloudevent,
                "says that the data is a CloudEvent",
            ),
            (envelope(&many), Code::InvalidCloudevent, "may have 128 attributes"),
            (envelope(&(many + ",{")), Code::InvalidCloudevent, "may have 128 attributes"),
            (envelope(r#","id":"a","id":"b""#), Code::InvalidJson, "\"id\" stands twice"),
            (envelope(r#","data":{"a":1e400}"#), Code::InvalidJson, "1e400"),
            (envelope(r#","x\ud800":1"#), Code::InvalidJson, "escape"),
        ] {
            let invalid = Envelope::open(json.as_bytes(), OnUnreadable::Reject).unwrap_err();
            assert!(invalid.code == code && invalid.message.contains(words), "{json}: {invalid}");
            assert!(invalid.message.len() < 200, "{invalid}");
        }
    }

    #[test]
    fn where_repeated_names_are_taken_the_last_counts() {
        let json = envelope(r#","id":"a","x":1,"id":"b","x":null,"data":1,"data":{"a":1,"a":2}"#);
        let opened = Envelope::open(json.as_bytes(), OnUnreadable::Accept).unwrap();
        let names: Vec<_> = opened.attributes.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(names, [("specversion", "1.0"), ("id", "b"), (DATA_CONTENT_TYPE, "application/json")]);
        assert_eq!(&*opened.data, br#"{"a":1,"a":2}"#);
    }

    #[test]
    fn a_content_type_is_told_whatever_its_case_and_parameters() {
        for (content_type, json, envelope) in [
            ("application/json", true, false),
            (" Application/Geo+JSON ; charset=utf-8", true, false),
            ("application/cloudevents+json", true, true),
            ("Application/CloudEvents+JSON; charset=UTF-8", true, true),
            ("application/cloudevents-batch+json", true, false),
            ("application/jsonl", false, false),
            ("application/x+json+gzip", false, false),
            ("json", false, false),
            ("", false, false),
        ] {
            assert_eq!((is_json_type(content_type), is_event_format(content_type)), (json, envelope), "{content_type}");
        }
    }
}
