//! Each status, code and sentence that a wrong key, signature, key in a body, type, schema or rate gets at this listener.

use super::{
    keys::{JSON, LOGIN, OLD, SHOP, all, basic, bearer, hash, locked},
    rates::{PLAIN, events, key, with_keys},
    signatures::{SECRET, github, now, standard, stripe},
    types::{retype, typed},
    *,
};

const HOW: &str = "send it as Authorization: Bearer KEY, as the password of Authorization: Basic, or as X-Api-Key: KEY";
const UNKNOWN: &str = "the key is none of http.auth.keys: send it whole and as it was given to you; if it was withdrawn, ask for a \
                       new one where you have it from";
const SEVERAL: &str =
    "this request has different keys in Authorization and X-Api-Key, or several in one of them: send one";
const EXPIRED: &str = "the key \"old\" expired at 2026-01-31T00:00:00Z: ask for a new one where you have it from";

/// Keys and secrets have these words, and so has what is wrong. No answer repeats them.
const SECRETS: [&str; 3] = ["ingestd_", "whsec_", "hunter2"];

/// The challenges of a 401.
const NO_KEY: &str = "Bearer realm=\"ingestd\"";
const WRONG_KEY: &str = "Bearer realm=\"ingestd\", error=\"invalid_token\"";
const BASIC: &str = "Basic realm=\"ingestd\", charset=\"UTF-8\"";
const SIGNATURE: &str = "Signature realm=\"ingestd\"";

/// With sources of each kind.
fn all_kinds() -> HttpConfig {
    let mut http = locked();
    let more = json!([
        { "path": "/standard", "type": "/type", "signature": { "scheme": "standard-webhooks", "secret_file": "standard" } },
        { "path": "/github", "type": "/type", "signature": { "scheme": "github", "secret_file": "text" } },
        { "path": "/stripe", "type": "/type", "signature": { "scheme": "stripe", "secret_file": "text" } },
        { "path": "/batch", "records": "/batch", "type": "/event", "key": "/api_key" },
    ]);
    http.source.extend(serde_json::from_value::<Vec<_>>(more).unwrap());
    http
}

/// A request, and its answer: status, challenges, what counts it, sentence.
type Row = (&'static str, String, String, u16, &'static [&'static str], &'static str, String);

/// Wrong keys, at each kind of path.
fn keys() -> Vec<Row> {
    let malformed = |fields: String, what: &str| (fields, 401, WRONG_KEY, "malformed", format!("{what}: {HOW}"));
    let unknown = |fields: String| (fields, 401, WRONG_KEY, "unknown", UNKNOWN.to_owned());
    let several = |fields: String| (fields, 400, "", "malformed", SEVERAL.to_owned());
    let wrong = [
        (String::new(), 401, NO_KEY, "missing", format!("this needs a key: {HOW}")),
        unknown(bearer("ingestd_wrong")),
        unknown(basic("shop:ingestd_wrong")),
        unknown(basic(&format!("{SHOP}:wrong"))),
        unknown(format!("X-Api-Key: {SHOP}x\r\n")),
        unknown(format!("X-Api-Key: {}\r\n", hash(SHOP))),
        unknown(format!("X-Api-Key: {}\r\n", "x".repeat(20_000))),
        (bearer(OLD), 401, WRONG_KEY, "expired", EXPIRED.to_owned()),
        malformed(bearer(""), "the key is empty"),
        malformed(basic(&format!("{SHOP}:")), "the key is empty"),
        malformed(format!("Authorization: Token {SHOP}\r\n"), "Authorization has neither the scheme Bearer nor Basic"),
        malformed("Authorization: Basic ***\r\n".to_owned(), "what follows Basic is no base64"),
        malformed(basic(SHOP), "what follows Basic is no USER:PASSWORD in base64"),
        several(format!("{}X-Api-Key: {LOGIN}\r\n", bearer(SHOP))),
        several(format!("{}{}", bearer(SHOP), bearer(OLD))),
    ];
    let paths = [("/v1/events", JSON), ("/hook", ""), ("/v1/logs", ""), ("/v1/logs", JSON)];
    let at_each = |(fields, status, challenge, reason, sentence): (String, u16, &'static str, &'static str, String)| {
        paths.map(|(path, more)| {
            let challenges: &[&str] = match challenge {
                NO_KEY => &[NO_KEY, BASIC],
                WRONG_KEY => &[WRONG_KEY, BASIC],
                _ => &[],
            };
            let body = r#"{"type":"a"}"#.to_owned();
            (path, format!("{fields}{more}"), body, status, challenges, reason, sentence.clone())
        })
    };
    wrong.into_iter().flat_map(at_each).collect()
}

/// Wrong keys in bodies. Those in the head count first.
fn keys_in_bodies() -> Vec<Row> {
    let none = format!("this needs a key, and there is no string at \"/api_key\" of the body: send it there, or {HOW}");
    let with = |key: &str| format!(r#"{{"api_key":"{key}","batch":[]}}"#);
    let missing = |body: &str| (String::new(), body.to_owned(), NO_KEY, "missing", none.clone());
    let unknown = |fields: String, body| (fields, body, WRONG_KEY, "unknown", UNKNOWN.to_owned());
    let rows = [
        missing(r#"{"batch":[]}"#),
        missing(r#"{"api_key":7,"batch":[]}"#),
        missing("{"),
        missing(""),
        unknown(String::new(), with("ingestd_hunter2")),
        unknown("X-Api-Key: wrong\r\n".to_owned(), with(SHOP)),
        unknown(basic(&format!("{SHOP}:wrong")), String::new()),
        (String::new(), with(OLD), WRONG_KEY, "expired", EXPIRED.to_owned()),
    ];
    let row = |(fields, body, challenge, reason, sentence)| {
        let challenges: &[&str] = if challenge == NO_KEY { &[NO_KEY, BASIC] } else { &[WRONG_KEY, BASIC] };
        ("/batch", fields, body, 401, challenges, reason, sentence)
    };
    rows.into_iter().map(row).collect()
}

fn signatures() -> Vec<Row> {
    const BODY: &str = r#"{"type":"a"}"#;
    let missing = |header: &str| {
        format!(
            "this needs a signature, and the header {header} is missing: have the sender sign what it sends, with the secret of \
             this source"
        )
    };
    let malformed = |header: &str, rule: &str| format!("the header {header} is malformed: it must {rule}");
    let old = "more than 5 minutes ago: sign it anew when it is sent again, and set the clocks";
    let (body, other) = (BODY.as_bytes(), &b"hunter2"[..]);
    let rows: Vec<(&'static str, String, &'static str, String)> = vec![
        ("/standard", String::new(), "missing", missing("webhook-id")),
        ("/github", bearer(SHOP), "missing", missing("x-hub-signature-256")),
        ("/stripe", String::new(), "missing", missing("stripe-signature")),
        (
            "/standard",
            standard(now(), body).replace("v1,", "v2,"),
            "malformed",
            malformed("webhook-signature", "have v1, and base64"),
        ),
        (
            "/github",
            "X-Hub-Signature-256: sha256=xyz\r\n".to_owned(),
            "malformed",
            malformed("x-hub-signature-256", "be sha256= and 64 hexadecimal digits"),
        ),
        (
            "/stripe",
            "Stripe-Signature: v1=00\r\n".to_owned(),
            "malformed",
            malformed(
                "stripe-signature",
                "have t=, a time in seconds, and v1= with 64 hexadecimal digits, with commas between",
            ),
        ),
        (
            "/standard",
            standard(now() - 400, body),
            "too_old",
            format!("the time in the header webhook-timestamp is {old}"),
        ),
        (
            "/stripe",
            stripe(now() + 400, body),
            "too_new",
            "the time in the header stripe-signature is more than 5 minutes ahead: set the clocks".to_owned(),
        ),
        (
            "/github",
            github(other),
            "mismatch",
            "no signature in the header x-hub-signature-256 is that of this body: sign the bytes as they are sent, with the \
             secret of this source"
                .to_owned(),
        ),
    ];
    let row = |(path, fields, reason, sentence)| {
        let challenges: &[&str] = &[SIGNATURE];
        (path, fields, BODY.to_owned(), 401, challenges, reason, sentence)
    };
    rows.into_iter().map(row).collect()
}

/// What a request is told, in the words of its path.
fn told(reply: &Reply, status: u16) -> String {
    let code = if status == 401 { 16 } else { 3 };
    match reply.header("content-type") {
        Some("application/json") => {
            assert_eq!((reply.status, &reply.json()["code"]), (status, &json!(code)), "{}", reply.body);
            reply.json()["message"].as_str().unwrap().to_owned()
        }
        _ => reply.problem(status),
    }
}

#[actix::test]
async fn each_refusal_is_a_sentence_that_says_what_where_and_what_to_do() {
    let files = [
        ("typed.json", r#"{"properties":{"user":{"type":"string"}}}"#),
        ("standard", SECRET),
        ("text", "It's a Secret to Everybody"),
    ];
    let known = |unknown: &str| {
        let types = json!([{ "name": "typed", "schema": "typed.json" }, { "name": "login_success" }]);
        json!({ "types": types, "unknown_type": unknown })
    };
    let (daemon, folder) = typed(all_kinds(), &files, known("reject"));
    daemon.quarantine(Letters::Kept);
    for (metric, rows) in [
        ("ingestd_auth_refusals_total", [keys(), keys_in_bodies()].concat()),
        ("ingestd_signature_refusals_total", signatures()),
    ] {
        for (path, fields, body, status, challenges, reason, sentence) in rows {
            let count = || daemon.metric(&format!("{metric}{{reason=\"{reason}\"}}"));
            let before = count().parse().unwrap_or(0);
            let reply = daemon.post_at(path, &fields, body.as_bytes()).await;
            assert_eq!(told(&reply, status), sentence, "{path} {fields} {body}");
            assert_eq!(all(&reply, "www-authenticate"), challenges, "{path} {fields}");
            assert_eq!(count(), (before + 1).to_string(), "{path} {fields} {body}");
            assert!(SECRETS.iter().all(|word| !reply.body.contains(word)), "{}", reply.body);
        }
    }
    assert!(daemon.letters().is_empty() && daemon.log.lock().unwrap().records.is_empty());

    retype(&daemon, folder.path(), known("reject"));
    for (by, body, status, code, sentence) in [
        (
            LOGIN,
            r#"{"type":"typed"}"#,
            403,
            "forbidden_type",
            "the key \"login\" may not send events of this type: send it with another key, or have the type added to the key \
             (types in http.auth.keys), which may send login_success, login_failed",
        ),
        (
            SHOP,
            r#"{"type":"hunter2"}"#,
            400,
            "unknown_type",
            "the type is none that is known here: send one of [[event.types]], or have it added there (event.unknown_type)",
        ),
        (
            SHOP,
            r#"{"type":"typed","user":["hunter2"]}"#,
            400,
            "schema",
            r#"at "/user": must be of type string ("/properties/user/type" of the schema)"#,
        ),
    ] {
        let count = || daemon.metric(&format!("ingestd_events_rejected_total{{reason=\"{code}\"}}"));
        let before = count().parse().unwrap_or(0);
        let reply = daemon.post_at("/v1/events", &bearer(by), body.as_bytes()).await;
        assert_eq!((reply.status, reply.errors()), (status, vec![(0, code.to_owned())]), "{}", reply.body);
        assert_eq!(
            (reply.json()["errors"][0]["message"].as_str(), count()),
            (Some(sentence), (before + 1).to_string())
        );
        assert!(SECRETS.iter().all(|word| !reply.body.contains(word)), "{}", reply.body);
    }
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;

    // Each with a bucket that is full, and with one that is not.
    let address = "the rate of your address (http.rate)";
    let of_key = "the rate of the key \"shop\" (rate in http.auth.keys)";
    for (by, whose, burst, rate) in [(PLAIN, address, 20, "1/m burst 20"), (rates::SHOP, of_key, 5, "1/m burst 5")] {
        let daemon = Daemon::start(Queue::Stores, with_keys("1/m burst 20", "1/m burst 5"));
        let post = async |count: usize| daemon.post_at("/v1/events", &key(by), &events(count)).await;
        let more = burst + 1;
        assert_eq!(
            post(more).await.problem(413),
            format!(
                "this request has {more} events, and {whose} lets {burst} come at once ({rate}): send them in smaller requests"
            )
        );
        let reply = post(burst).await;
        let (seconds, left) = (reply.header("retry-after").unwrap(), burst - 1);
        assert_eq!(
            reply.problem(429),
            format!(
                "{whose} is used up ({rate}, {left} events may come now): nothing of this request was stored, send it again in \
                 {seconds} s"
            )
        );
    }
}
