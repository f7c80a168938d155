//! What clients are answered: a summary of a request's events.

use std::io::Write;

use actix_web::{
    HttpRequest, HttpResponse,
    http::{
        StatusCode,
        header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER},
    },
};

use super::{
    aside::{Turn, aside},
    check::{Checked, EventError, EventId, Unavailable, Warning},
    in_flight::Reservation,
    preferences::{POSITIONS, PREFERENCE_APPLIED},
};
use crate::{
    event::Code,
    http::{Problem, request_id},
    log::Failed,
    position::Position,
};

/// After a failure of the queue that passes: a broker's election or restart takes seconds.
pub const RETRY_AFTER_QUEUE: u32 = 5;

/// 200 where all events are accepted or kept as dead letters (also none of none, and whatever is said of them), 207 where some
/// are, 400 where none is, 403 where none may be with the request's key.
///
/// The answer counts as the request's `share` until the client has it: a client may take its time with that.
pub async fn summary(request: &HttpRequest, checked: Checked, share: Reservation) -> HttpResponse {
    let is_done = checked.rejected().next().is_none() && checked.unavailable.is_empty();
    // Without anything durable there is no answer to each event.
    let is_none = checked.accepted.is_empty() && checked.unavailable.is_empty() && checked.quarantined() == 0;
    let status = match (is_done, is_none) {
        (true, _) => StatusCode::OK,
        (false, false) => StatusCode::MULTI_STATUS,
        (false, true) => refused_as(&checked),
    };
    let mut builder = HttpResponse::build(status);
    builder.insert_header((CONTENT_TYPE, HeaderValue::from_static("application/json")));
    // Where none is stored nothing stands anywhere.
    let checked = Checked { positions: checked.positions.filter(|_| status.is_success()), ..checked };
    if checked.positions.is_some() {
        builder.insert_header((PREFERENCE_APPLIED, POSITIONS));
    }
    if !checked.unavailable.is_empty() {
        builder.insert_header((RETRY_AFTER, HeaderValue::from(RETRY_AFTER_QUEUE)));
    }
    if checked.accepted.len() + checked.errors.len() + checked.warnings.len() < MANY_ENTRIES {
        return builder.body(share.hold(summary_json(&checked)));
    }
    aside(Turn::now(), move || share.hold(summary_json(&checked))).await.map_or_else(
        |error| {
            let request_id = request_id::of(request.headers());
            tracing::error!(request_id, %error, "writing an answer failed");
            let detail = "what became of the events could not be written: some may be stored";
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail).into_response()
        },
        |json| builder.body(json),
    )
}

/// The status where none of the events is accepted.
pub fn refused_as(checked: &Checked) -> StatusCode {
    let is_forbidden = checked.errors.iter().all(|error| error.invalid.code == Code::ForbiddenType);
    if is_forbidden { StatusCode::FORBIDDEN } else { StatusCode::BAD_REQUEST }
}

/// An answer with so many takes milliseconds to write, and what it is made of some to forget.
const MANY_ENTRIES: usize = 2_000;

/// Frames of the entries of an answer, with their separators, numbers and codes.
const ID: usize = 40;
const ERROR: usize = 80;
/// The longest entry of an event that may be sent again; taken from the share before it is known which ones these are.
pub const UNAVAILABLE: usize = ERROR + Failed::LONGEST_REASON + MAY_BE_STORED.len();

/// The longest entry of a position; an answer has one of each event at most.
pub const POSITION: usize = Position::LONGEST + "\"\",".len();

const NOT_STORED: &str = "; it was not stored: send it again";
const MAY_BE_STORED: &str = "; whether it was stored is not known: sent again, it may stand there twice";

/// The most bytes that an answer to these events has. (An event that the queue finds too large gets a sentence instead of
/// its id, but then its own bytes are counted, which are far more.)
pub fn longest_answer(checked: &Checked) -> usize {
    let id = |id: &EventId| match id {
        EventId::Assigned(_) => ID,
        EventId::InBody(id) => ID + (id.end - id.start) as usize,
        // A character may be escaped with six.
        EventId::Unescaped(id) => ID + 6 * id.len(),
    };
    let ids: usize = checked.accepted.iter().map(|accepted| id(&accepted.id)).sum();
    let errors: usize = checked.errors.iter().map(|error| ERROR + 2 * error.invalid.message.len()).sum();
    let warnings: usize = checked.warnings.iter().map(|warning| ERROR + 2 * warning.message.len()).sum();
    let positions = checked.positions.as_ref().map_or(0, Vec::len) * POSITION;
    128 + ids + errors + warnings + checked.unavailable.len() * UNAVAILABLE + positions
}

/// `{"accepted":1,"rejected":1,"ids":["…"],"errors":[{"index":1,"code":"missing_type","message":"…"}],"warnings":[…]}`,
/// `positions` behind `ids` where they were asked for, `errors` and `warnings` only where there are some, and so is `quarantined` behind `rejected`. Written as it goes: a tree
/// of it would cost several allocations an event.
pub(super) fn summary_json(checked: &Checked) -> Vec<u8> {
    let mut json = Vec::with_capacity(longest_answer(checked));
    let (accepted, rejected) = (checked.accepted.len(), checked.rejected().count());
    // Writing to a Vec does not fail, here and below.
    let _ = write!(json, r#"{{"accepted":{accepted},"rejected":{rejected},"#);
    let quarantined = checked.quarantined();
    if quarantined > 0 {
        let _ = write!(json, r#""quarantined":{quarantined},"#);
    }
    json.extend_from_slice(br#""ids":["#);
    for (at, accepted) in checked.accepted.iter().enumerate() {
        if at > 0 {
            json.push(b',');
        }
        match &accepted.id {
            EventId::Assigned(id) => {
                let mut text = uuid::Uuid::encode_buffer();
                quote(&mut json, id.hyphenated().encode_lower(&mut text).as_bytes());
            }
            // It was part of a JSON string without escapes, so it is one again.
            EventId::InBody(id) => quote(&mut json, id.of(&checked.body)),
            EventId::Unescaped(id) => string(&mut json, id),
        }
    }
    json.push(b']');
    if let Some(positions) = &checked.positions {
        json.extend_from_slice(br#","positions":["#);
        for (at, position) in positions.iter().enumerate() {
            let _ = write!(json, r#"{}"{position}""#, if at > 0 { "," } else { "" });
        }
        json.push(b']');
    }
    write_errors(&mut json, checked);
    let mut before: &[u8] = br#","warnings":["#;
    for Warning { index, code, message } in &checked.warnings {
        json.extend_from_slice(before);
        write_remark(&mut json, *index, *code, message);
        before = b",";
    }
    if !checked.warnings.is_empty() {
        json.push(b']');
    }
    json.push(b'}');
    json
}

/// What is said of an event.
fn write_remark(json: &mut Vec<u8>, index: usize, code: Code, message: &str) {
    let _ = write!(json, r#"{{"index":{index},"code":"{}","message":"#, code.as_str());
    string(json, message);
    json.push(b'}');
}

/// Wrong events and those that may be sent again, in the order of the request.
fn write_errors(json: &mut Vec<u8>, checked: &Checked) {
    let (mut errors, mut unavailable) = (checked.errors.iter().peekable(), checked.unavailable.iter().peekable());
    let mut before: &[u8] = br#","errors":["#;
    loop {
        let next = unavailable.peek().map_or(usize::MAX, |event| event.index);
        if let Some(EventError { index, invalid, .. }) = errors.next_if(|error| error.index < next) {
            json.extend_from_slice(before);
            write_remark(json, *index, invalid.code, &invalid.message);
        } else if let Some(Unavailable { index, may_be_stored, reason }) = unavailable.next() {
            json.extend_from_slice(before);
            let _ = write!(json, r#"{{"index":{index},"code":"unavailable","retry":true,"message":"#);
            string(json, &format!("{reason}{}", if *may_be_stored { MAY_BE_STORED } else { NOT_STORED }));
            json.push(b'}');
        } else {
            break;
        }
        before = b",";
    }
    if before == b"," {
        json.push(b']');
    }
}

/// Which events may be sent again, in one sentence that is bounded: `3, 5-9 are not stored, …: reason`. `None` where there are
/// none.
pub fn to_send_again(checked: &Checked) -> Option<String> {
    /// Of places that are named.
    const MOST: usize = 20;
    let first = checked.unavailable.first()?;
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for Unavailable { index, .. } in &checked.unavailable {
        let is_last = runs.len() > MOST;
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ if is_last => break,
            _ => runs.push((*index, *index)),
        }
    }
    let more = if runs.len() > MOST { " …" } else { "" };
    let runs = runs.iter().take(MOST);
    let runs: Vec<_> =
        runs.map(|(from, to)| if from == to { from.to_string() } else { format!("{from}-{to}") }).collect();
    let may_be_stored = checked.unavailable.iter().any(|event| event.may_be_stored);
    let tail = if may_be_stored { MAY_BE_STORED } else { NOT_STORED };
    Some(format!("{}{more} ({} in all): {}{tail}", runs.join(", "), checked.unavailable.len(), first.reason))
}

fn quote(json: &mut Vec<u8>, text: &[u8]) {
    json.push(b'"');
    json.extend_from_slice(text);
    json.push(b'"');
}

fn string(json: &mut Vec<u8>, text: &str) {
    // A string always serialises.
    let _ = serde_json::to_writer(json, text);
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;
    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        config::ByteSize,
        event::{Code, Invalid},
        ingest::{check::Accepted, in_flight::InFlight},
        position::{Offset, Partition},
    };

    const WRONG: (usize, bool) = (1, false);
    const KEPT: (usize, bool) = (1, true);
    const AWAY: (usize, bool) = (2, false);

    /// Events by their index: those accepted, those wrong (and whether they are kept), those that failed (and whether they may
    /// be stored).
    fn checked(accepted: &[usize], wrong: &[(usize, bool)], failed: &[(usize, bool)]) -> Checked {
        let invalid = || Invalid::new(Code::MissingType, "no \"type\"");
        let error = |(index, is_quarantined)| EventError {
            index,
            invalid: invalid(),
            value: None,
            headers: None,
            is_quarantined,
        };
        let accept = |index: usize| Accepted { index, id: EventId::Unescaped(index.to_string()) };
        let fail = |(index, may_be_stored)| Unavailable { index, may_be_stored, reason: "no broker".into() };
        Checked {
            body: Bytes::new(),
            accepted: accepted.iter().copied().map(accept).collect(),
            errors: wrong.iter().copied().map(error).collect(),
            unavailable: failed.iter().copied().map(fail).collect(),
            ..Checked::default()
        }
    }

    #[actix::test]
    async fn the_status_is_200_when_nothing_is_left_to_do_and_400_when_nothing_was_done() {
        for (accepted, wrong, failed, status) in [
            (&[][..], &[][..], &[][..], 200),
            (&[0], &[], &[], 200),
            (&[0], &[WRONG], &[], 207),
            (&[], &[WRONG], &[], 400),
            (&[0], &[KEPT], &[], 200),
            (&[], &[KEPT], &[], 200),
            (&[], &[KEPT, (3, false)], &[], 207),
            (&[0], &[], &[AWAY], 207),
            (&[0], &[KEPT], &[AWAY], 207),
            (&[], &[KEPT], &[AWAY], 207),
        ] {
            let share = Reservation::new(&InFlight::default(), ByteSize(1 << 20));
            let request = TestRequest::default().to_http_request();
            let reply = summary(&request, checked(accepted, wrong, failed), share).await;
            assert_eq!(reply.status().as_u16(), status, "{accepted:?} {wrong:?} {failed:?}");
            assert_eq!(reply.headers().contains_key(RETRY_AFTER), !failed.is_empty());
        }
    }

    #[test]
    fn each_event_is_named_in_the_order_of_the_request_and_only_wrong_ones_are_rejected() {
        let checked = checked(&[3], &[(1, false), (4, true)], &[(0, false), (2, true), (5, false)]);
        let json = summary_json(&checked);
        assert!(json.len() <= longest_answer(&checked), "{}", String::from_utf8_lossy(&json));
        let json: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!((&json["accepted"], &json["rejected"], &json["quarantined"]), (&json!(1), &json!(1), &json!(1)));
        assert_eq!(json["ids"], json!(["3"]));
        let errors = json["errors"].as_array().unwrap();
        let told: Vec<_> =
            errors.iter().map(|it| (it["index"].as_u64().unwrap(), it["code"].as_str().unwrap())).collect();
        let (away, wrong) = ("unavailable", "missing_type");
        assert_eq!(told, [(0, away), (1, wrong), (2, away), (4, wrong), (5, away)]);
        for error in errors {
            let is_away = error["code"] == away;
            assert_eq!(error.get("retry"), is_away.then_some(&json!(true)), "{error}");
            assert_eq!(error["message"].as_str().unwrap().starts_with("no broker; "), is_away, "{error}");
        }
        assert!(errors[0]["message"].as_str().unwrap().contains("was not stored"));
        assert!(errors[2]["message"].as_str().unwrap().contains("twice"));
    }

    #[test]
    fn what_is_not_there_is_not_named() {
        let json = |checked: &Checked| String::from_utf8(summary_json(checked)).unwrap();
        assert_eq!(json(&checked(&[], &[], &[])), r#"{"accepted":0,"rejected":0,"ids":[]}"#);
        assert_eq!(json(&checked(&[0, 1], &[], &[])), r#"{"accepted":2,"rejected":0,"ids":["0","1"]}"#);
        let at = |partition, offset| Position { partition: Partition(partition), offset: Offset(offset) };
        let mut placed = checked(&[0, 1], &[], &[]);
        placed.positions = Some(vec![at(0, 17), at(i32::MAX, i64::MAX as u64)]);
        let json_of_placed = json(&placed);
        let positions = r#""positions":["0:17","2147483647:9223372036854775807"]"#;
        assert_eq!(json_of_placed, format!(r#"{{"accepted":2,"rejected":0,"ids":["0","1"],{positions}}}"#));
        assert!(json_of_placed.len() <= longest_answer(&placed));
        let one = r#"{"accepted":0,"rejected":0,"quarantined":1,"ids":[],"errors":[{"index":1,"code":"missing_type","#;
        assert!(json(&checked(&[], &[KEPT], &[])).starts_with(one));
    }
}
