//! W3C Trace Context: the `traceparent` of a request, and its `tracestate`, as headers of each record that it makes.
//!
//! What the recommendation says is done: a `traceparent` that is malformed or stands several times is none, and without one
//! there is no `tracestate`. They say where the request comes from. What an event says of itself is the attribute
//! `ce_traceparent` (CloudEvents' extension for distributed tracing), and another header.

use actix_web::http::header::{HeaderMap, HeaderName};
use smallvec::SmallVec;

use super::{attributes::Attributes, check::Checked, checking::too_much, in_flight::Reservation};
use crate::{
    http::Problem,
    log::{NewHeaders, Span},
};

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
static TRACEPARENT_FIELD: HeaderName = HeaderName::from_static(TRACEPARENT);
static TRACESTATE_FIELD: HeaderName = HeaderName::from_static(TRACESTATE);

/// Characters of a `tracestate` that are carried on (3.3.1.5).
const LONGEST_STATE: usize = 512;
/// Members of it (3.3.1.1).
const MOST_MEMBERS: usize = 32;
/// Where it is too long, members with more characters than that go first (3.3.1.5).
const LONG_MEMBER: usize = 128;

/// What the records of a request carry further. Few requests have it.
pub type Further = Box<Attributes<'static>>;

/// The trace that a request with this head is a part of, as headers.
pub fn of(head: &HeaderMap) -> Option<Further> {
    let mut given = head.get_all(&TRACEPARENT_FIELD);
    let parent = traceparent(given.next()?.as_bytes())?;
    if given.next().is_some() {
        return None;
    }
    let mut further = Attributes::default();
    further.set(TRACEPARENT, parent);
    if let Some(state) = tracestate(head) {
        further.set(TRACESTATE, state);
    }
    Some(Box::new(further))
}

/// A `traceparent` of version 00, or what is known of one of a later version, as one of version 00 (3.2.4 and 4.3).
fn traceparent(value: &[u8]) -> Option<String> {
    const LENGTH: usize = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".len();
    let (known, rest) = value.split_at_checked(LENGTH)?;
    let is_hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_id = |part: &[u8]| is_hex(part) && part.iter().any(|digit| *digit != b'0');
    let (version, ids, flags) = (&known[..2], &known[2..53], &known[53..]);
    let has_dashes = [known[2], known[35], known[52]] == *b"---";
    let is_valid = is_hex(version) && has_dashes && is_id(&known[3..35]) && is_id(&known[36..52]) && is_hex(flags);
    if !is_valid || version == b"ff" {
        return None;
    }
    if version == b"00" {
        return rest.is_empty().then(|| String::from_utf8_lossy(known).into_owned());
    }
    // What a later version has behind is unknown, and of its flags all but the lowest: sampled.
    let is_sampled = matches!(flags[1], b'1' | b'3' | b'5' | b'7' | b'9' | b'b' | b'd' | b'f');
    let ids = String::from_utf8_lossy(ids);
    (rest.is_empty() || rest[0] == b'-').then(|| format!("00{ids}{}", if is_sampled { "01" } else { "00" }))
}

/// The members of all fields of that name, in their order, as far as they are carried on. `None` where there are none, or
/// where they are no such list (then it is discarded).
fn tracestate(head: &HeaderMap) -> Option<String> {
    let mut list = String::new();
    for field in head.get_all(&TRACESTATE_FIELD) {
        if !list.is_empty() {
            list.push(',');
        }
        list.push_str(field.to_str().ok()?);
    }
    let members = list.split(',').map(|member| member.trim_matches([' ', '\t'])).filter(|member| !member.is_empty());
    let mut members: SmallVec<[&str; MOST_MEMBERS]> = members.take(MOST_MEMBERS + 1).collect();
    if members.is_empty() || members.len() > MOST_MEMBERS || !members.iter().all(|member| is_member(member)) {
        return None;
    }
    let size = |members: &[&str]| members.iter().map(|member| member.len() + 1).sum::<usize>() - 1;
    while !members.is_empty() && size(&members) > LONGEST_STATE {
        let long = members.iter().rposition(|member| member.len() > LONG_MEMBER);
        members.remove(long.unwrap_or(members.len() - 1));
    }
    (!members.is_empty()).then(|| members.join(","))
}

/// `key=value` (3.3.1.3). A key may begin with a digit, as the recommendation's second level has it.
fn is_member(member: &str) -> bool {
    let Some((key, value)) = member.split_once('=') else { return false };
    let is_value = value.bytes().all(|byte| matches!(byte, 0x20..=0x7e) && byte != b',' && byte != b'=');
    let is_key = match key.split_once('@') {
        None => is_name(key, 256, true),
        Some((tenant, system)) => is_name(tenant, 241, true) && is_name(system, 14, false),
    };
    is_key && is_value && (1..=256).contains(&value.len())
}

fn is_name(name: &str, longest: usize, may_begin_with_a_digit: bool) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_lowercase();
    let Some((first, rest)) = name.as_bytes().split_first() else { return false };
    let begins = is_letter(*first) || (may_begin_with_a_digit && first.is_ascii_digit());
    let goes_on = rest.iter().all(|byte| is_letter(*byte) || byte.is_ascii_digit() || b"_-*/".contains(byte));
    begins && goes_on && name.len() <= longest
}

/// Puts these headers behind those that each record has, and that each letter of what is wrong will have. All that have no others
/// share them.
///
/// # Errors
/// There is no room for them, at present or at all: nothing of the request is accepted.
pub fn carry(checked: &mut Checked, further: &Attributes<'_>, share: &mut Reservation) -> Result<(), Problem> {
    let letters = checked.errors.iter().filter(|error| error.value.is_some()).map(|error| error.headers);
    let others = checked.records.iter().map(|record| record.headers).chain(letters).flatten();
    let size = further.size();
    // Those that share their headers go on to do so.
    let mut last = None;
    let differ = others.filter(|headers| last.replace(*headers) != Some(*headers));
    let more: usize = size + differ.map(|headers| headers.bytes.size() + size).sum::<usize>();
    let aside = &mut checked.aside;
    let needed = aside.len().saturating_add(more);
    if u32::try_from(needed).is_err() {
        return Err(too_much());
    }
    // What it has is counted already.
    share.grow(needed.saturating_sub(aside.capacity()))?;
    aside.reserve_exact(more);
    let alone = further.write(aside);
    let letters = checked.errors.iter_mut().filter(|error| error.value.is_some()).map(|error| &mut error.headers);
    let mut last = None;
    for headers in checked.records.iter_mut().map(|record| &mut record.headers).chain(letters) {
        let own = *headers;
        *headers = Some(match (own, last) {
            (None, _) => alone,
            (Some(own), Some((before, made))) if own == before => made,
            (Some(NewHeaders { count, bytes: Span { start, end } }), _) => {
                let begin = aside.len() as u32;
                aside.extend_from_within(start as usize..end as usize);
                let NewHeaders { count: behind, bytes } = further.write(aside);
                NewHeaders { count: count + behind, bytes: Span { start: begin, end: bytes.end } }
            }
        });
        last = own.zip(*headers).or(last);
    }
    Ok(())
}

/// The same, where there is something to carry, of what came out of the check.
///
/// # Errors
/// As [`carry`], and what was wrong before.
pub fn carried(
    checked: Result<Checked, Problem>,
    further: Option<&Attributes<'_>>,
    share: &mut Reservation,
) -> Result<Checked, Problem> {
    let Some(further) = further else { return checked };
    let mut checked = checked?;
    carry(&mut checked, further, share)?;
    Ok(checked)
}

/// What stands beside a body that cannot be split, and what it carries further.
pub fn beside(mut own: Attributes<'static>, head: &HeaderMap) -> Attributes<'static> {
    if let Some(further) = of(head) {
        own.extend(*further);
    }
    own
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;
    use bytes::Bytes;

    use super::*;
    use crate::{
        config::{ByteSize, EventConfig, HttpConfig},
        event::EventFields,
        ingest::{cloudevents, in_flight::InFlight, shape::Shape},
        log::record::Headers,
        position::Timestamp,
    };

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn head(fields: &[(&str, &str)]) -> HeaderMap {
        let mut head = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            head.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        head
    }

    #[test]
    fn a_traceparent_is_taken_by_the_rules_of_the_recommendation() {
        let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let of = |version: &str, flags: &str| format!("{version}-{trace}-{parent}-{flags}");
        let zeros = |digits| "0".repeat(digits);
        for (sent, taken) in [
            (PARENT.to_owned(), Some(PARENT.to_owned())),
            (of("00", "00"), Some(of("00", "00"))),
            (of("00", "ff"), Some(of("00", "ff"))),
            // Later ones as far as they are known.
            (of("01", "03"), Some(of("00", "01"))),
            (of("cc", "02"), Some(of("00", "00"))),
            (of("fe", "1d-what-will-be"), Some(of("00", "01"))),
            (of("01", "01."), None),
            (of("01", "0"), None),
            (of("ff", "01"), None),
            (of("00", "01-more"), None),
            (of("00", "01 "), None),
            (of("00", "0g"), None),
            (of("00", "0A"), None),
            (of("0", "01"), None),
            (of("0G", "01"), None),
            (PARENT.to_uppercase(), None),
            (PARENT.replace('-', "_"), None),
            (format!("00-{}-{parent}-01", zeros(32)), None),
            (format!("00-{trace}-{}-01", zeros(16)), None),
            (format!("00-{}é-{parent}-01", &trace[2..]), None),
            (String::new(), None),
            (zeros(55), None),
        ] {
            assert_eq!(traceparent(sent.as_bytes()), taken, "{sent}");
        }
    }

    fn carried_of(fields: &[(&str, &str)]) -> Vec<(String, String)> {
        let further = of(&head(fields)).map(|it| *it).unwrap_or_default();
        let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
        further.headers().map(|(name, value)| (name.to_owned(), text(value))).collect()
    }

    #[test]
    fn a_request_has_one_traceparent_or_none_and_a_tracestate_with_it_alone() {
        let state = ("tracestate", "congo=t61rcWkgMzE");
        assert_eq!(carried_of(&[]), []);
        assert_eq!(carried_of(&[state]), []);
        assert_eq!(carried_of(&[("traceparent", "x"), state]), []);
        assert_eq!(carried_of(&[("traceparent", PARENT), ("traceparent", PARENT), state]), []);
        let parent = ("traceparent".to_owned(), PARENT.to_owned());
        assert_eq!(carried_of(&[("traceparent", PARENT)]), std::slice::from_ref(&parent));
        let both = carried_of(&[("Traceparent", PARENT), state]);
        assert_eq!(both, [parent.clone(), (state.0.to_owned(), state.1.to_owned())]);
        assert_eq!(carried_of(&[("traceparent", PARENT), ("tracestate", "A=1")]), [parent]);
    }

    #[test]
    fn a_tracestate_is_one_list_of_members_that_are_dropped_whole_where_it_is_too_long() {
        let state = |fields: &[&str]| {
            let fields: Vec<_> = fields.iter().map(|field| ("tracestate", *field)).collect();
            tracestate(&head(&fields))
        };
        let (many, more) = (vec!["a=1"; MOST_MEMBERS].join(","), vec!["a=1"; MOST_MEMBERS + 1].join(","));
        let (k256, v256) = (format!("{}=1", "a".repeat(256)), format!("a={}", "1".repeat(256)));
        for (fields, taken) in [
            (&["rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"][..], Some("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE")),
            (&["a=1", "b=2"], Some("a=1,b=2")),
            (&[" a=1 ,\t, b=2 c!"], Some("a=1,b=2 c!")),
            (&["0tenant@sys=1,a_-*/9=~"], Some("0tenant@sys=1,a_-*/9=~")),
            (&[&many], Some(&many)),
            (&[&k256], Some(&k256)),
            (&[&v256], Some(&v256)),
            (&[&more], None),
            (&[&format!("a{k256}")], None),
            (&[&format!("{v256}1")], None),
            (&["", " , "], None),
            (&["a"], None),
            (&["a="], None),
            (&["=1"], None),
            (&["0a=1"], Some("0a=1")),
            (&["_a=1"], None),
            (&["A=1"], None),
            (&["a=1=2"], None),
            (&["a=é"], None),
            (&["a@0b=1"], None),
            (&["a@b@c=1"], None),
            (&["a=1,b"], None),
        ] {
            assert_eq!(state(fields).as_deref(), taken, "{fields:?}");
        }
        let member = |key: &str, length: usize| format!("{key}={}", "v".repeat(length - key.len() - 1));
        let (long, exact) = (member("l", 129), member("s", 128));
        let fits = [&exact[..], &exact, &exact, &member("e", 125)].join(",");
        assert_eq!((fits.len(), state(&[&fits])), (LONGEST_STATE, Some(fits.clone())));
        // A long member goes first wherever it stands, then the last.
        assert_eq!(
            state(&[&[&long, "a=1", &exact, &exact, &exact].join(",")]),
            Some(["a=1", &exact, &exact, &exact].join(","))
        );
        assert_eq!(state(&[&format!("{fits},z=1")]), Some(fits));
    }

    /// Value and headers of each record, and the headers of each letter.
    type Made = (Vec<(String, Vec<(String, String)>)>, Vec<Vec<(String, String)>>);

    fn made(body: &str, fields: &[(&str, &str)]) -> (Made, Checked) {
        let head = head(fields);
        let (http, event) = (HttpConfig::default(), EventConfig::default());
        let mut share = Reservation::new(&InFlight::default(), ByteSize(u64::MAX));
        let (format, in_headers) = cloudevents::format_of(&head).unwrap();
        let body = Bytes::copy_from_slice(body.as_bytes());
        let shape = Shape::Events(format, in_headers);
        let checked = shape.check(body, &http, &EventFields::from(&event), Timestamp(0).into(), &mut share);
        let checked = carried(checked, of(&head).as_deref(), &mut share).unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let headers = |headers: Option<NewHeaders>| -> Vec<(String, String)> {
            let headers = headers.map_or(Headers::NONE, |it| Headers::new(it.count, it.bytes.of(&checked.aside)));
            headers.iter().map(|(name, value)| (name.to_owned(), text(value.unwrap()))).collect()
        };
        let records = checked.records.iter();
        let records =
            records.map(|it| (text(it.value.of(&checked.body, &checked.aside)), headers(it.headers))).collect();
        let letters = checked.errors.iter().map(|error| headers(error.headers)).collect();
        ((records, letters), checked)
    }

    #[test]
    fn each_record_and_each_letter_carries_it_behind_its_own_headers() {
        let fields = [("traceparent", PARENT), ("tracestate", "a=1")];
        let of_trace = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let plain = r#"[{"type":"a"},7,{"type":"b","client_id":"\u0063"}]"#;
        let ((records, letters), checked) = made(plain, &fields);
        assert_eq!(
            records.iter().map(|(value, _)| value.as_str()).collect::<Vec<_>>(),
            [r#"{"type":"a"}"#, r#"{"type":"b","client_id":"\u0063"}"#]
        );
        assert!(records.iter().all(|(_, headers)| *headers == of_trace) && letters == [of_trace.to_vec()]);
        assert_eq!(checked.records[0].headers, checked.records[1].headers, "they share the bytes");
        assert_eq!(
            checked.records[1].key.unwrap().of(&checked.body, &checked.aside),
            b"c",
            "and nothing else has moved"
        );

        let own = r#"{"specversion":"1.0","id":"i","source":"s","type":"t","traceparent":"its own","data":7}"#;
        let batch = format!(r#"[{own},{{"specversion":"1.0"}}]"#);
        let of_batch = ("content-type", "application/cloudevents-batch+json");
        let ((records, letters), _) = made(&batch, &[&fields[..], &[of_batch]].concat());
        let names: Vec<_> = records[0].1.iter().map(|(name, _)| name.as_str()).collect();
        let expected = [
            "ce_id",
            "ce_source",
            "ce_specversion",
            "ce_traceparent",
            "ce_type",
            "content-type",
            "traceparent",
            "tracestate",
        ];
        assert_eq!(names, expected);
        assert_eq!((&*records[0].1[3].1, &*records[0].1[6].1), ("its own", PARENT));
        assert_eq!(letters[0][0], ("content-type".to_owned(), "application/cloudevents+json".to_owned()));
        assert_eq!(letters[0][1..], of_trace);
    }

    #[test]
    fn records_that_share_their_headers_go_on_to_share_them() {
        let hash = format!("sha256:{}", "0".repeat(64));
        let key: crate::config::HttpKey =
            serde_json::from_value(serde_json::json!({ "name": "shop", "hash": hash })).unwrap();
        let arrival = crate::ingest::arrival::Arrival { received: Timestamp(0), key: Some(&key), conforming: None };
        let (http, fields) = (HttpConfig::default(), EventFields::from(&EventConfig::default()));
        let mut share = Reservation::new(&InFlight::default(), ByteSize(u64::MAX));
        let (format, in_headers) = cloudevents::format_of(&head(&[])).unwrap();
        let body = Bytes::from(format!("[{}]", vec![r#"{"type":"a"}"#; 1_000].join(",")));
        let checked = Shape::Events(format, in_headers).check(body, &http, &fields, arrival, &mut share);
        let checked = carried(checked, of(&head(&[("traceparent", PARENT)])).as_deref(), &mut share).unwrap();
        let first = checked.records[0].headers.unwrap();
        assert_eq!(first.count, 2);
        assert!(checked.records.iter().all(|record| record.headers == Some(first)));
        assert!(checked.aside.len() < 1_000, "{} bytes for 1,000 records", checked.aside.len());
    }

    #[test]
    fn a_request_without_one_is_as_it_was() {
        for fields in [&[][..], &[("traceparent", "malformed")], &[("tracestate", "a=1")]] {
            let ((records, _), checked) = made(r#"[{"type":"a"},{"type":"b"}]"#, fields);
            assert!(records.iter().all(|(_, headers)| headers.is_empty()));
            assert!(checked.records.iter().all(|record| record.headers.is_none()));
            assert_eq!(checked.aside.capacity(), 0, "{fields:?}");
        }
    }

    #[test]
    fn what_is_carried_is_counted_and_there_may_be_no_room() {
        let in_flight = InFlight::default();
        let mut share = Reservation::new(&in_flight, ByteSize(1 << 20));
        let mut checked = Checked::unsplittable(
            Bytes::from_static(b"x"),
            crate::event::Invalid::new(crate::event::Code::TooLarge, ""),
            &Attributes::default(),
        );
        let further = of(&head(&[("traceparent", PARENT)])).unwrap();
        carry(&mut checked, &further, &mut share).unwrap();
        assert_eq!(in_flight.all.get(), checked.aside.capacity() as i64);
        let mut other = Reservation::new(&in_flight, ByteSize(16));
        assert_eq!(carry(&mut checked, &further, &mut other).unwrap_err().status, 503);
    }
}
