//! Lines of the configuration that cannot be, as `ingestd check` and a start refuse them.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use super::{Differences, Row, files};
use crate::support::program;

/// What the program ends with where the configuration is wrong.
pub const CONFIGURATION: u16 = 78;

/// A key as one is made: it stands in no answer, wherever it was written.
const KEY: &str = "ingestd_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
/// What else may be a secret.
const SECRETS: [&str; 2] = [KEY, "hunter2"];

/// A file of this text is the configuration.
pub fn refused(config: impl Into<String>, code: &'static str, sentence: impl Into<String>) -> Row<String> {
    Row { wrong: config.into(), status: CONFIGURATION, code, sentence: sentence.into() }
}

fn first(rule: &str) -> String {
    format!("entry 0 (from 0): {rule}")
}

fn second(rule: &str) -> String {
    format!("entry 1 (from 0): {rule}")
}

fn hash(digit: char) -> String {
    format!("sha256:{}", String::from(digit).repeat(64))
}

const NAME: &str = "a name must be 1 to 64 of A-Z, a-z, 0-9, \".\", \"_\" and \"-\" (it stands in records and metrics)";
const NAME_IS_KEY: &str = "a name must not be the key itself: say who sends with it, such as \"shop\"";
const HASH: &str =
    "hash must be \"sha256:\" and 64 hexadecimal digits, never the key itself: `ingestd key new NAME` prints the line";
const EXPIRES: &str = "expires must be a time by RFC 3339 with its offset, such as \"2027-01-31T00:00:00Z\"";
const STRING: &str = "must be a string (in quotation marks)";
const TABLE: &str = "is a section: write it as a table";

/// Keys of this section: `http` or `admin`.
fn keys_of(section: &str, name: &str, hash: &str, more: &str) -> String {
    format!("[[{section}.auth.keys]]\nname = {name:?}\nhash = {hash:?}\n{more}\n")
}

/// What is the same of keys, whatever they open.
fn keys(section: &'static str, code: &'static str, makes: &str) -> Vec<Row<String>> {
    let key = |name: &str, hash: &str, more: &str| keys_of(section, name, hash, more);
    let (a, b) = (hash('a'), hash('b'));
    let row = |config: String, sentence: String| refused(config, code, sentence);
    vec![
        row(key("", &a, ""), first(NAME)),
        row(key(&"x".repeat(65), &a, ""), first(NAME)),
        row(key("a b", &a, ""), first(NAME)),
        row(key(KEY, &a, ""), first(NAME_IS_KEY)),
        row(format!("[[{section}.auth.keys]]\nname = 7\nhash = {a:?}\n"), first(&format!("name {STRING}"))),
        row(key("a", KEY, ""), first(HASH)),
        row(key("a", &a[..70], ""), first(HASH)),
        row(key("a", &"c".repeat(64), ""), first(HASH)),
        row(format!("[[{section}.auth.keys]]\nname = \"a\"\nhash = 7\n"), first(HASH)),
        row(key("a", &a, "expire = \"2027-01-31T00:00:00Z\""), first("expire is unknown; did you mean expires?")),
        row(key("a", &a, "expires = \"2027-01-31\""), first(EXPIRES)),
        row(key("a", &a, "expires = 2027-01-31T00:00:00"), first(EXPIRES)),
        row(key("a", &a, "") + &key("a", &b, ""), second("the name \"a\" is used twice: give each key one of its own")),
        row(
            key("a", &a, "") + &key("b", &a, ""),
            second(&format!("\"b\" has the hash of another key: make one for each with `{makes}`")),
        ),
        row(
            format!("[[{section}.auth.keys]]\nname = \"a\"\n"),
            first(&format!("has no hash; `{makes}` prints the lines")),
        ),
        row(
            format!("[[{section}.auth.keys]]\nhash = {a:?}\n"),
            first(&format!("has no name; `{makes}` prints the lines")),
        ),
    ]
}

fn keys_of_senders() -> Vec<Row<String>> {
    const CODE: &str = "http.auth.keys";
    const LIST: &str = "must be a list of tables: [{ name = \"shop\", hash = \"sha256:…\" }]";
    let a = hash('a');
    let key = |more: &str| keys_of("http", "a", &a, more);
    let many: String =
        (0..10_001).map(|at| format!("[[http.auth.keys]]\nname = \"k{at}\"\nhash = \"sha256:{at:064x}\"\n")).collect();
    let long = format!("types = [\"{}\"]", "x".repeat(129));
    let mut rows = keys("http", CODE, "ingestd key new NAME");
    rows.extend([
        refused(
            key(&format!("key = {KEY:?}")),
            CODE,
            first("key is unknown; a key has name, hash, types, expires, on_invalid, rate"),
        ),
        refused(key("rats = 100"), CODE, first("rats is unknown; did you mean rate?")),
        refused(
            key("types = []"),
            CODE,
            first("\"a\": types must name a type; without types the key may send all"),
        ),
        refused(
            key("types = \"a\""),
            CODE,
            first("types must be a list of strings: [\"login_success\", \"login_failed\"]"),
        ),
        refused(
            key(&long),
            CODE,
            first("\"a\": each of types must have 1 to 128 characters, as types of events do"),
        ),
        refused(key("on_invalid = \"drop\""), CODE, first("on_invalid must be one of reject, quarantine")),
        refused("[http.auth]\nkeys = \"a\"\n", CODE, LIST),
        refused("[http.auth]\nkeys = [\"a\"]\n", CODE, LIST),
        refused("[http]\nauth = true\n", "http.auth", TABLE),
        refused(
            many,
            CODE,
            "there are 10001 keys, and 10000 may be, as each has a series of a metric: remove those that nobody sends with",
        ),
    ]);
    rows
}

fn keys_of_operators() -> Vec<Row<String>> {
    const CODE: &str = "admin.auth.keys";
    const LIST: &str = "must be a list of tables: [{ name = \"ops\", hash = \"sha256:…\", access = \"operate\" }]";
    let a = hash('a');
    let many: String =
        (0..101).map(|at| format!("[[admin.auth.keys]]\nname = \"k{at}\"\nhash = \"sha256:{at:064x}\"\n")).collect();
    let mut rows = keys("admin", CODE, "ingestd key new NAME --admin");
    rows.extend([
        refused(
            keys_of("admin", "a", &a, "rate = 5"),
            CODE,
            first("rate is unknown; a key has name, hash, access, expires"),
        ),
        refused(keys_of("admin", "a", &a, "access = \"write\""), CODE, first("access must be one of read, operate")),
        refused("[admin.auth]\nkeys = 7\n", CODE, LIST),
        refused("[admin]\nauth = true\n", "admin.auth", TABLE),
        refused(many, CODE, "there are 101 keys, and 100 may be: remove those that nobody asks with"),
    ]);
    rows
}

fn sources() -> Vec<Row<String>> {
    const CODE: &str = "http.source";
    const POINTER: &str = "must be a JSON pointer (RFC 6901): \"/batch\", \"/properties/id\", \"/items/0\", or \"\" for the whole, \
                           with ~1 for a / in a name and ~0 for a ~";
    const LOOKUP: &str = "must be a JSON pointer into an event, such as \"/type\", or { fixed = \"alert\" }";
    const SIGNATURE: &str =
        "signature must be { scheme = \"standard-webhooks\", secret_file = \"/etc/ingestd/webhook-secret\" }";
    const LIST: &str = "must be a list of tables: [{ path = \"/v1/batch\", records = \"/batch\", type = \"/type\" }]";
    const PATH: &str = "a path must begin with / and be as it stands in a request: ASCII, other characters percent-encoded, \
                        without a query, no placeholders in braces";
    let source = |lines: &str| format!("[[http.source]]\npath = \"/a\"\n{lines}\n");
    let of_path = |path: &str| format!("[[http.source]]\npath = {path:?}\n");
    let signed = |signature: &str| source(&format!("signature = {{ {signature} }}"));
    let in_entry = |lines: &str, rule: &str| refused(source(lines), CODE, first(rule));
    vec![
        refused("[http]\nsource = 7\n", CODE, LIST),
        refused("[http]\nsource = [7]\n", CODE, LIST),
        refused(
            "[[http.source]]\ntype = \"/t\"\n",
            CODE,
            first("has no path: the one that its sender posts to, such as \"/v1/batch\""),
        ),
        refused("[[http.source]]\npath = 7\n", CODE, first(&format!("path {STRING}"))),
        in_entry("answer = 7", &format!("answer {STRING}")),
        in_entry("tpye = \"/t\"", "tpye is unknown; did you mean type?"),
        in_entry(
            "token = \"/t\"",
            "token is unknown; a source has path, records, type, id, time, client, signature, key, answer",
        ),
        in_entry("records = \"batch\"", &format!("records {POINTER}")),
        in_entry("key = \"k~2\"", &format!("key {POINTER}")),
        in_entry("type = \"t\"", &format!("type {POINTER}")),
        in_entry("id = 7", &format!("id {LOOKUP}")),
        in_entry("client = { fixd = \"x\" }", &format!("client {LOOKUP}")),
        refused(of_path("a?b"), CODE, format!("\"a?b\": {PATH}")),
        refused(of_path("/{id}"), CODE, format!("\"/{{id}}\": {PATH}")),
        refused(
            of_path("/V1/events/"),
            CODE,
            "\"/V1/events/\": the path is the daemon's own, or as good as that: take another",
        ),
        refused(
            source("") + &of_path("/%61"),
            CODE,
            "\"/%61\": the path is used twice: one source has all that arrives there",
        ),
        refused(
            source("key = \"\""),
            CODE,
            "\"/a\": key must lead to a part of the body, such as \"/api_key\": the whole of it is no key",
        ),
        refused(
            source("type = { fixed = \"\" }"),
            CODE,
            "\"/a\": type is \"\": it must have 1 to 128 characters, none for control",
        ),
        in_entry("signature = \"github\"", SIGNATURE),
        refused(
            signed("scheme = \"md5\", secret_file = \"hunter2\""),
            CODE,
            first("signature.scheme must be one of standard-webhooks, github, stripe"),
        ),
        refused(signed("scheme = \"github\""), CODE, first(&format!("signature has no secret_file: {SIGNATURE}"))),
        refused(signed("secret_file = \"\""), CODE, first("signature.secret_file must be the path of a file")),
        refused(
            signed("secret = \"hunter2\""),
            CODE,
            first("signature.secret is unknown: the secret stands in a file, secret_file"),
        ),
        refused(
            signed("tolerance = 5"),
            CODE,
            first("signature.tolerance is unknown; a signature has scheme, secret_file"),
        ),
    ]
}

fn types() -> Vec<Row<String>> {
    const CODE: &str = "event.types";
    const LIST: &str =
        "must be a list of tables: [{ name = \"login_success\", schema = \"schemas/login_success.json\" }]";
    let named = |name: &str| format!("[[event.types]]\nname = {name:?}\n");
    let many: String = (0..1001).map(|at| named(&format!("t{at}"))).collect();
    let long = "x".repeat(129);
    vec![
        refused("[event]\ntypes = 7\n", CODE, LIST),
        refused("[[event.types]]\nschema = \"a.json\"\n", CODE, first("has no name: the type as events write it")),
        refused("[[event.types]]\nname = 7\n", CODE, first(&format!("name {STRING}"))),
        refused(named("a") + "schema = {}\n", CODE, first("schema must be the path of a file with a JSON Schema")),
        refused(named("a") + "shema = \"b\"\n", CODE, first("shema is unknown; did you mean schema?")),
        refused(named("a") + "required = []\n", CODE, first("required is unknown; a type has name, schema")),
        refused(named(""), CODE, "\"\": a name must have 1 to 128 characters, as types of events do"),
        refused(named(&long), CODE, format!("\"{long}\": a name must have 1 to 128 characters, as types of events do")),
        refused(named("a") + &named("a"), CODE, "\"a\" is there twice: a type has one schema"),
        refused(many, CODE, "there are 1001 types, and 1000 may be: remove those that nobody sends"),
        refused("[event]\nunknown_type = \"drop\"\n", "event.unknown_type", "must be one of accept, reject"),
        refused(
            "[event]\nunknown_type = \"reject\"\n",
            "event.unknown_type",
            "needs a type in [[event.types]]: without one all events would be refused",
        ),
    ]
}

fn rates() -> Vec<Row<String>> {
    const RULE: &str = "must be the events of a second (or a minute, \"60/m\") and how many may come at once, such as \"1000/s burst \
                        5000\" or { events_per_second = 1000, burst = 5000 }, or \"none\"";
    let wrong = [
        ("\"fast\"", RULE),
        ("\"10/h\"", RULE),
        ("\"10/s burst\"", RULE),
        ("10.5", RULE),
        ("0", "its events must be from 1 to 10000000; \"none\" is no limit"),
        ("{ events_per_second = 5, burst = 0 }", "its burst must be from 1 to 10000000; \"none\" is no limit"),
        ("\"1/m burst 5000\"", "its burst must be at most 1440: what the rate brings in a day"),
        ("{ burst = 5 }", "has no events_per_second: write { events_per_second = 1000, burst = 5000 }"),
        ("{ events_per_secnd = 5 }", "events_per_secnd is unknown; did you mean events_per_second?"),
        ("{ limit = 5 }", "limit is unknown; a rate has events_per_second, burst"),
    ];
    let of_addresses = wrong.iter().map(|(rate, rule)| refused(format!("[http]\nrate = {rate}\n"), "http.rate", *rule));
    let of_key = |(rate, rule): &(&str, &str)| {
        let config = keys_of("http", "a", &hash('a'), &format!("rate = {rate}"));
        refused(config, "http.auth.keys", first(&format!("rate {rule}")))
    };
    of_addresses.chain(wrong.iter().map(of_key)).collect()
}

fn proxies_and_pages() -> Vec<Row<String>> {
    const PROXIES: &str = "http.trusted_proxies";
    const ORIGINS: &str = "http.cors.origins";
    const NO_ADDRESS: &str =
        "is no address and no network: write those of the proxies, such as 10.0.0.7, 10.0.0.0/8 or 2001:db8::/32";
    const EVERYBODY: &str = "is everybody, and anybody could say where they come from: name the proxies' own addresses";
    const NO_ORIGIN: &str = "is no origin: write SCHEME://HOST[:PORT] as browsers send it, such as https://app.example.com; \"*\" \
                             is all of them, \"null\" the pages of files";
    const LIST: &str = "must be a list of strings: [\"a\", \"b\"], or \"a,b\"";
    let proxy = |text: &str, rule: &str| {
        refused(format!("[http]\ntrusted_proxies = [{text:?}]\n"), PROXIES, format!("{text:?} {rule}"))
    };
    let origin = |text: &str, rule: &str| {
        refused(format!("[http.cors]\norigins = [{text:?}]\n"), ORIGINS, format!("{text:?} {rule}"))
    };
    let many = vec!["\"10.0.0.7\""; 1025].join(", ");
    vec![
        proxy("proxy.example", NO_ADDRESS),
        proxy("10.0.0.1:80", NO_ADDRESS),
        proxy("0.0.0.0/0", EVERYBODY),
        proxy("::ffff:0.0.0.0/96", EVERYBODY),
        proxy("10.0.0.1/8", "has more than its network: write 10.0.0.0/8, or the address without /8"),
        refused("[http]\ntrusted_proxies = 7\n", PROXIES, LIST),
        refused(
            format!("[http]\ntrusted_proxies = [{many}]\n"),
            PROXIES,
            "has 1025 entries, and 1024 may be: write networks in their place",
        ),
        origin("app.example.com", NO_ORIGIN),
        origin("file:///index.html", NO_ORIGIN),
        origin("capacitor://local host", NO_ORIGIN),
        origin(
            "https://*.example.com",
            "is no origin: \"*\" stands alone for all of them; else name each, there are no patterns",
        ),
        origin("https://bücher.example", "is not how browsers send it: write its host in ASCII (xn--…)"),
        origin(
            "https://app.example.com/",
            "has more than an origin (no path, no slash at its end): write https://app.example.com",
        ),
        origin(
            "https://me@app.example.com",
            "has more than an origin (no user, no password): write SCHEME://HOST[:PORT]",
        ),
        origin("https://app.example.com:443", "is not how browsers send it: write https://app.example.com"),
        refused("[http.cors]\norigins = [7]\n", ORIGINS, LIST),
        refused(
            "[http.cors]\nmax_age = \"1500ms\"\n",
            "http.cors.max_age",
            "must be whole seconds: browsers are told a number of them",
        ),
    ]
}

/// Which keys of TLS go together; the files are [`files`].
fn tls() -> Vec<Row<String>> {
    const PASTED: &str = "is the content of a file, or a key: give the path of a file of PEM";
    let pem = "-----BEGIN PRIVATE KEY-----\\nMIGhunter2\\n-----END PRIVATE KEY-----\\n";
    let of = |section: &str, lines: &str| format!("[{section}.tls]\n{lines}\n");
    let beside_cert = "must be set beside cert: the file of the certificate's private key (PEM)";
    let beside_key = "must be set beside key: the file of the certificate with its chain (PEM)";
    let needs = "needs TLS: set cert and key beside it, or no client is asked for a certificate";
    vec![
        refused(of("http", "cert = \"a.pem\""), "http.tls.key", beside_cert),
        refused(of("http", "key = \"a.key\""), "http.tls.cert", beside_key),
        refused(of("http", "client_ca = \"ca.pem\""), "http.tls.client_ca", needs),
        refused(of("admin", "cert = \"a.pem\""), "admin.tls.key", beside_cert),
        refused(of("admin", "key = \"a.key\""), "admin.tls.cert", beside_key),
        refused(of("admin", "client_ca = \"ca.pem\""), "admin.tls.client_ca", needs),
        refused(of("http", &format!("cert = \"a.pem\"\nkey = \"{pem}\"")), "http.tls.key", PASTED),
        refused(of("http", &format!("cert = {KEY:?}\nkey = \"a.key\"")), "http.tls.cert", PASTED),
        refused(of("http", "crt = \"a.pem\""), "http.tls.crt", "unknown key; did you mean http.tls.cert?"),
    ]
}

/// All of them, the files of [`files`] among them.
pub fn rows() -> Vec<Row<String>> {
    let without_files =
        [keys_of_senders(), keys_of_operators(), sources(), types(), rates(), proxies_and_pages(), tls()];
    without_files.into_iter().flatten().chain(files::rows()).collect()
}

/// What the program says, in the folder with its configuration.
fn run(folder: &Path, arguments: &[&str]) -> (u16, String, String) {
    let mut command = Command::new("timeout");
    command.arg("60").arg(program()).args(arguments).args(["--config", "config.toml"]).current_dir(folder);
    let output = command.output().expect("coreutils are installed");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    let status = output.status.code().and_then(|code| code.try_into().ok()).expect("it ends by itself");
    (status, text(output.stdout), text(output.stderr))
}

#[test]
fn each_wrong_line_and_file_is_one_sentence_of_its_key_and_shows_no_secret() {
    let folder = tempfile::tempdir().expect("a folder");
    files::write(folder.path());
    let mut differences = Differences::default();
    for row in rows() {
        // Root reads whatever it likes.
        if row.sentence.contains("Permission denied") && fs::read(folder.path().join("locked.key")).is_ok() {
            continue;
        }
        let shown: String = row.wrong.chars().take(300).collect();
        fs::write(folder.path().join("config.toml"), &row.wrong).expect("it can be written");
        let (status, out, error) = run(folder.path(), &["check", "--json"]);
        if status == 0 {
            let warned = error.lines().find_map(|line| line.strip_prefix("warning: ")?.split_once(": "));
            let (key, sentence) = warned.unwrap_or_default();
            differences.compare(&row, &shown, (status, if key == row.code { row.code } else { "" }, sentence));
            continue;
        }
        let report: Value = serde_json::from_str(&out).unwrap_or_default();
        let errors = report["errors"].as_array().cloned().unwrap_or_default();
        let text = |of: &Value| of.as_str().unwrap_or_default().to_owned();
        let said = |one: &Value| (text(&one["key"]), text(&one["rule"]));
        let (key, sentence) = errors.first().map(said).unwrap_or_default();
        differences.compare(&row, &shown, (status, &key, &sentence));
        if errors.len() != 1 {
            differences.add(format!("{shown}\n  more than one error: {out} {error}"));
        }
        // A start says the same, and ends as that.
        let (started, _, log) = run(folder.path(), &[]);
        let line = format!("{key}: {sentence}");
        let is_line = |of: &str| of == line || (of.starts_with(&format!("{key} = ")) && of.ends_with(&sentence));
        let lines = log.lines().filter_map(|line| line.split_once(": "));
        if started != row.status || lines.map(|(_, said)| said).filter(|said| is_line(said)).count() != 1 {
            differences.add(format!("{shown}\n  a start ends with {started}, and says {log}"));
        }
        if let Some(secret) =
            SECRETS.iter().find(|secret| [&out, &error, &log].iter().any(|said| said.contains(**secret)))
        {
            differences.add(format!("{shown}\n  says {secret} again: {out} {error} {log}"));
        }
    }
    differences.assert_none();
}
