//! Files that the configuration names, and in which something else stands than should: schemas, secrets, certificates and keys.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use serde_json::json;

use super::{
    Row,
    lines::{CONFIGURATION, refused},
};
use crate::support::tls::Certificates;

/// Writes them all.
pub fn write(folder: &Path) {
    let write = |name: &str, content: &[u8]| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("a folder"))
            .and_then(|()| fs::write(path, content))
            .expect("it can be");
    };
    for (name, content) in schemas() {
        write(&name, content.as_bytes());
    }
    std::os::unix::fs::symlink("/etc/hostname", folder.join("schemas/out.json")).expect("it can be made");
    for (name, content) in [
        ("secrets/none", "\n# none\n".to_owned()),
        ("secrets/one", "hunter2\n".to_owned()),
        ("secrets/many", "hunter2\n".repeat(11)),
        ("secrets/standard", "whsec_hunter2!\n".to_owned()),
    ] {
        write(name, content.as_bytes());
    }
    write("secrets/latin", b"hunter2\xe9");
    let made = Certificates::new();
    made.issue_from_to("ended", -40, -30);
    made.issue_from_to("ends", -40, 10);
    made.issue_from_to("begins", 10, 40);
    made.issue("other", 90);
    for name in ["server", "ended", "ends", "begins", "other"] {
        for end in ["pem", "key"] {
            let content = fs::read(made.path(&format!("{name}.{end}"))).expect("it was made");
            write(&format!("{name}.{end}"), &content);
        }
    }
    let whole = fs::read(made.path("server.pem")).expect("it was made");
    write("cut.pem", &whole[..whole.len() / 2]);
    write("server.der", &made.der("server"));
    write("large.pem", &vec![b'#'; (1 << 20) + 1]);
    for (name, content) in PEM {
        write(name, content.as_bytes());
    }
    write("locked.key", b"hunter2");
    let no_rights = fs::Permissions::from_mode(0o000);
    fs::set_permissions(folder.join("locked.key"), no_rights).expect("it is ours");
}

/// Certificates and keys that cannot be read as such.
const PEM: [(&str, &str); 7] = [
    ("empty.pem", " \n"),
    ("text.pem", "neither"),
    ("passphrase.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIFHDBO\n-----END ENCRYPTED PRIVATE KEY-----\n"),
    (
        "old-passphrase.key",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMIIF\n-----END RSA PRIVATE KEY-----\n",
    ),
    ("curve.key", "-----BEGIN PRIVATE KEY-----\nMAMCAQA=\n-----END PRIVATE KEY-----\n"),
    ("no.pem", "-----BEGIN CERTIFICATE-----\nMAMCAQA=\n-----END CERTIFICATE-----\n"),
    // As `openssl x509 -req` of before version 3.4 makes one where no extensions are asked for.
    ("version-1.pem", VERSION_1),
];

const VERSION_1: &str = "-----BEGIN CERTIFICATE-----\n\
    MIIBFTCBvQIUZXYPq6TI4DJ+imkjdk8uto1wZaIwCgYIKoZIzj0EAwIwDTELMAkG\n\
    A1UEAwwCdjEwIBcNMjYxMTI5MjAxMDUxWhgPMjEyNjExMDUyMDEwNTFaMA0xCzAJ\n\
    BgNVBAMMAnYxMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE2uvZlosE3TXpmx3t\n\
    deRyCOKmzGCfkH0Ir93pybk6BbW0SvUaEwOOJZQSeeFxNPQtUVhKl71r4Z6TcEM8\n\
    dxm6IjAKBggqhkjOPQQDAgNHADBEAiAaY6wBBeuJRX4CsZBSbuvi4aJoWtgkCwYQ\n\
    rXq34gMaHAIgQ6vGE2CUSmomEzFdP5BXoXrBITCxfauVBdSSFbipNvU=\n\
    -----END CERTIFICATE-----\n";

/// A schema each, whose name says what is wrong.
fn schemas() -> Vec<(String, String)> {
    let nested = format!("{}{{}}{}", r#"{"not":"#.repeat(65), "}".repeat(65));
    let references = json!({ "allOf": vec![json!({ "$ref": "#" }); 1001] }).to_string();
    let twice = |at: usize| json!({ "allOf": vec![json!({ "$ref": format!("#/$defs/d{}", at + 1) }); 2] });
    let doubling = (0..40).map(|at| (format!("d{at}"), twice(at))).chain([("d40".to_owned(), json!(true))]);
    let doubling: serde_json::Map<_, _> = doubling.collect();
    let doubling = json!({ "$ref": "#/$defs/d0", "$defs": doubling }).to_string();
    let mut schemas: Vec<(String, String)> = [
        ("empty", ""),
        ("list", "[]"),
        ("type", r#"{"type":"strnig"}"#),
        ("draft", r#"{"$schema":"http://json-schema.org/draft-07/schema#"}"#),
        ("absent", r#"{"$ref":"no.json"}"#),
        ("elsewhere", r#"{"$ref":"file:///etc/passwd"}"#),
        ("link", r#"{"$ref":"out.json"}"#),
        ("nowhere", r##"{"$ref":"#/$defs/a"}"##),
        ("back", r##"{"$ref":"#"}"##),
        ("pattern", r#"{"pattern":"(?=a)b"}"#),
        ("nested", &nested),
        ("references", &references),
        ("doubling", &doubling),
        ("large", &format!("{}{{}}", " ".repeat(1 << 20))),
    ]
    .map(|(name, content)| (format!("schemas/{name}.json"), content.to_owned()))
    .into();
    // Each leads to the next: one file more than may be, and deeper than may be in few files.
    let next = |at: usize| json!({ "$ref": format!("{}.json", at + 1) }).to_string();
    schemas.extend((0..65).map(|at| (format!("schemas/chain/{at}.json"), next(at))));
    schemas.extend((0..3).map(|file| (format!("schemas/deep/{file}.json"), links(file))));
    schemas
}

/// A thousand references, each to the next, and the last to the next file.
fn links(file: usize) -> String {
    let to = |at: usize| match at {
        998 if file < 2 => format!("{}.json#/$defs/d0", file + 1),
        998 => "#/$defs/end".to_owned(),
        at => format!("#/$defs/d{}", at + 1),
    };
    let mut defs: serde_json::Map<_, _> = (0..999).map(|at| (format!("d{at}"), json!({ "$ref": to(at) }))).collect();
    defs.insert("end".to_owned(), json!({ "type": "object" }));
    json!({ "$ref": "#/$defs/d0", "$defs": defs }).to_string()
}

fn of_schemas() -> Vec<Row<String>> {
    const OWN: &str = "only files in the schema's own folder are read, by their names, such as \"common.json\"";
    let row = |path: &str, sentence: &str| {
        let config = format!("[[event.types]]\nname = \"a\"\nschema = {path:?}\n");
        refused(config, "event.types", format!("\"a\": {sentence}"))
    };
    let of = |name: &str, rule: &str| {
        let path = format!("schemas/{name}.json");
        row(&path, &format!("{path}: {rule}"))
    };
    vec![
        row("", "schema must be the path of a file; without one its events may be anything"),
        of("none", "cannot be read (No such file or directory (os error 2)): write it, or set another path"),
        row("schemas", "schemas: is no file: give the path of a file with a JSON Schema"),
        of("empty", "is no JSON: EOF while parsing a value at line 1 column 0"),
        of("list", "is no schema: it must be a JSON object, such as {\"type\": \"object\"}"),
        of("type", "at \"/type\": it is no JSON Schema of 2020-12: {}"),
        of(
            "draft",
            "$schema is \"http://json-schema.org/draft-07/schema\": write it for https://json-schema.org/draft/2020-12/schema, \
             or leave it out",
        ),
        row(
            "schemas/absent.json",
            "schemas/absent.json: schemas/no.json cannot be read (No such file or directory (os error 2)), and a schema refers to \
             it: write it, or take out the reference",
        ),
        of("elsewhere", &format!("the reference to \"file:///etc/passwd\" leads elsewhere: {OWN}")),
        of("link", &format!("schemas/out.json is a link that leads out of the schema's folder: {OWN}")),
        of("nowhere", "a reference cannot be resolved: {}"),
        of(
            "back",
            "a reference leads back to the schema in which it stands, about the same value, of which nothing can be said: take it out",
        ),
        of(
            "pattern",
            "the pattern at \"/pattern\" cannot be used: it must be a regular expression without look-around and \
             back-references, which is matched in a time linear in the text, of at most 1 MiB compiled",
        ),
        of("nested", "is nested deeper than 64 levels: write what is so deep under $defs, and refer to it"),
        of("references", "has 1001 references, and 1000 may be in a file: spread them over several"),
        of(
            "doubling",
            "its references multiply to more than 100000 schemas, which would all be asked about each event: refer to fewer from \
             one to the next",
        ),
        of("large", "is larger than 1048576 bytes: a schema is a short text, is it the right file?"),
        row(
            "schemas/chain/0.json",
            "{}schemas/chain/64.json: is one file too many, as a schema may have 64: refer to fewer",
        ),
        of(
            "deep/0",
            "an event may lead through more than 2000 of its schemas within each other: refer to fewer from one to the next",
        ),
    ]
}

fn of_secrets() -> Vec<Row<String>> {
    let row = |scheme: &str, file: &str, shown: &str, rule: &str| {
        let config =
            format!("[[http.source]]\npath = \"/a\"\nsignature = {{ scheme = {scheme:?}, secret_file = {file:?} }}\n");
        refused(config, "http.source", format!("\"/a\": signature.secret_file {shown}: {rule}"))
    };
    let with_key = "[[http.source]]\npath = \"/a\"\nkey = \"/key\"\nsignature = { scheme = \"github\", secret_file = \"secrets/one\" }\n";
    let of = |name: &str, rule: &str| row("github", &format!("secrets/{name}"), &format!("\"secrets/{name}\""), rule);
    let unreadable = "cannot be read (No such file or directory (os error 2)): write it, let the user read it that the daemon runs \
                      as, or set another path";
    vec![
        of("such", unreadable),
        row(
            "github",
            "hunter2/+9Q==",
            "(which must be the path of a file in a folder that is there, not the secret itself)",
            unreadable,
        ),
        of("none", "holds no secret: write it into a line of its own, as its sender shows it"),
        of("many", "holds 11 secrets, and 10 may be, as each request is tried with all: remove old ones"),
        of("latin", "is not UTF-8: write the secret as its sender shows it"),
        refused(with_key, "http.source", "\"/a\": has a signature, which needs no key: leave out key"),
        row("github", "secrets", "\"secrets\"", "must be a file with one secret a line, of at most 65536 bytes"),
        row(
            "standard-webhooks",
            "secrets/standard",
            "\"secrets/standard\"",
            "has a line that is no secret of standard-webhooks: it must be whsec_ and base64",
        ),
    ]
}

/// The certificate, the key, and what is wrong of which of them.
fn of_certificates() -> Vec<Row<String>> {
    const EXCHANGED: &str = "has a private key and no certificate: are the two exchanged?";
    const BROKEN: &str = "is broken PEM (a line is cut off, or is no base64): copy it again, whole";
    const EMPTY: &str = "is empty: was what writes it interrupted? Write it anew, as PEM";
    const PASSPHRASE: &str = "has a key with a passphrase, which nobody can type here: write it without, by `openssl pkey`, and let \
                              only the daemon's user read it";
    const NO_KEY: &str = "is no key that TLS is spoken with here: make one of RSA (2048 to 4096 bits), ECDSA (P-256 or P-384) or \
                          Ed25519";
    let row = |section: &str, files: [&str; 3], code: &'static str, rule: &str| {
        let keys = ["cert", "key", "client_ca"].into_iter().zip(files).filter(|(_, file)| !file.is_empty());
        let lines: String = keys.map(|(key, file)| format!("{key} = {file:?}\n")).collect();
        refused(format!("[{section}.tls]\n{lines}"), code, rule)
    };
    let cert = |file: &str, rule: &str| row("http", [file, "server.key", ""], "http.tls.cert", rule);
    let key = |file: &str, rule: &str| row("http", ["server.pem", file, ""], "http.tls.key", rule);
    let ca = |file: &str, rule: &str| row("http", ["server.pem", "server.key", file], "http.tls.client_ca", rule);
    let not_there = "is not there (No such file or directory (os error 2)): write it, or set another path";
    let not_of = "is not the key of the certificate in server.pem: give the one that this was made with, and in that file the \
                  server's own certificate first";
    vec![
        cert("no-such.pem", not_there),
        key("no-such.key", not_there),
        ca("no-such.pem", not_there),
        key(
            "locked.key",
            "cannot be read (Permission denied (os error 13)): let the user read it that the daemon runs as",
        ),
        cert(&"x".repeat(300), "cannot be read (File name too long (os error 36)): set another path"),
        cert("schemas", "is no file: give the path of a file of PEM"),
        cert("empty.pem", EMPTY),
        key("empty.pem", EMPTY),
        ca("empty.pem", EMPTY),
        cert("large.pem", "is larger than 1 MiB, as no certificate or key is: is it the right file?"),
        cert(
            "server.der",
            "is binary (DER, or PKCS#12), not PEM: convert it, by `openssl x509 -inform der`, `openssl pkey -inform der` or \
             `openssl pkcs12 -nodes`",
        ),
        cert("text.pem", "has no certificate: PEM has one between BEGIN CERTIFICATE and END CERTIFICATE"),
        key("text.pem", "has no private key: PEM has one between BEGIN PRIVATE KEY and END PRIVATE KEY"),
        cert("cut.pem", BROKEN),
        cert("server.key", EXCHANGED),
        key("server.pem", "has a certificate and no private key: are the two exchanged?"),
        ca("server.key", EXCHANGED),
        key("passphrase.key", PASSPHRASE),
        key("old-passphrase.key", PASSPHRASE),
        key("curve.key", NO_KEY),
        key("other.key", not_of),
        row("admin", ["server.pem", "other.key", ""], "admin.tls.key", not_of),
        cert("no.pem", "has a certificate (number 0 from 0) that cannot be read ({}): have it issued anew"),
        cert(
            "version-1.pem",
            "has a certificate that TLS cannot be spoken with ({}): have it issued anew, as X.509 version 3",
        ),
        ca("no.pem", "has a certificate (number 0 from 0) that is none of a CA's ({}): take it out"),
    ]
}

/// What is no reason not to start, and said all the same.
fn warnings() -> Vec<Row<String>> {
    let row = |config: String, code: &'static str, sentence: &str| Row {
        wrong: config,
        status: 0,
        code,
        sentence: sentence.to_owned(),
    };
    let cert = |name: &str, what: &str| {
        row(
            format!("[http.tls]\ncert = \"{name}.pem\"\nkey = \"{name}.key\"\n"),
            "http.tls.cert",
            &format!("the certificate of {name:?}, or one of its chain, {what}"),
        )
    };
    let hash = format!("sha256:{}", "a".repeat(64));
    let old = |section: &str| {
        format!("[[{section}.auth.keys]]\nname = \"old\"\nhash = {hash:?}\nexpires = 2026-01-31T00:00:00Z\n")
    };
    vec![
        cert("ended", "ended at {}: clients refuse it; renew it now"),
        cert("ends", "ends at {}, in 10 days: renew it"),
        cert("begins", "holds from {} on: clients refuse it until then; is this machine's clock right?"),
        row(
            old("http"),
            "http.auth.keys",
            "\"old\" expired at 2026-01-31T00:00:00Z: requests with it are refused; remove it or give its sender a new one",
        ),
        row(
            old("admin") + "access = \"operate\"\n",
            "admin.auth.keys",
            "\"old\" expired at 2026-01-31T00:00:00Z: requests with it are refused; remove it or give its holder a new one",
        ),
        row(
            format!("[[admin.auth.keys]]\nname = \"ops\"\nhash = {hash:?}\n"),
            "admin.auth.keys",
            "none has access = \"operate\": nobody can replay or purge dead letters of the running daemon, and only SIGHUP reloads it",
        ),
    ]
}

pub fn rows() -> Vec<Row<String>> {
    let rows: Vec<_> = [of_schemas(), of_secrets(), of_certificates()].into_iter().flatten().collect();
    assert!(rows.iter().all(|row| row.status == CONFIGURATION));
    rows.into_iter().chain(warnings()).collect()
}
