//! The sentences as the sources have them: each string of some words, in the files that refuse something, has a row.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{connections, is_in_order, lines, requests};

/// The files, and the codes of the rows that they have; "" for requests.
const CONFIGURATION: [(&str, &[&str]); 14] = [
    ("config/http_key.rs", &["http.auth.keys"]),
    ("config/admin_key.rs", &["admin.auth.keys"]),
    ("config/http_source.rs", &["http.source"]),
    ("config/signature.rs", &["http.source"]),
    ("config/event_type.rs", &["event.types", "event.unknown_type"]),
    ("config/rate.rs", &["http.rate"]),
    ("config/trusted_proxies.rs", &["http.trusted_proxies"]),
    ("config/cors.rs", &["http.cors.origins"]),
    ("config/tls.rs", TLS),
    ("tls/files.rs", TLS),
    ("tls/server.rs", TLS),
    ("schema/files.rs", &["event.types"]),
    ("schema/graph.rs", &["event.types"]),
    ("schema.rs", &["schema"]),
];
const TLS: &[&str] =
    &["http.tls.cert", "http.tls.key", "http.tls.client_ca", "admin.tls.cert", "admin.tls.key", "admin.tls.client_ca"];
/// Folders and files whose sentences are for whoever sends; `schema/words.rs` has some for operators, too.
const REQUESTS: [&str; 8] =
    ["http", "ingest", "event", "event.rs", "ingest.rs", "http.rs", "schema/words.rs", "schema/unique.rs"];

/// Strings of some words that nothing wrong provokes, and why. They are written as they begin.
const OTHERS: &[(&str, &str, &[&str])] = &[
    ("tls/files.rs", "what is looked for", &["BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: "]),
    (
        "http/accept.rs",
        "a word of the log, and a bound that tests/e2e/tls.rs meets",
        &["no TLS handshake", "your address has"],
    ),
    ("http/cors.rs", "fields of heads", &["GET, HEAD", "Retry-After, ", "Origin, "]),
    (
        "http/problem.rs",
        "challenges, which rows have beside their sentence",
        &["Basic realm", "Bearer realm", "Signature realm"],
    ),
    ("http/refusal.rs", "the whole of an answer", &["HTTP/1.1 {code}"]),
    ("ingest/coding/deflate.rs", "a library's word that is passed on to nobody", &["repeated call"]),
    ("ingest/source.rs", "a media type", &["text/plain; "]),
    ("ingest/preferences.rs", "fields of heads", &["handling=strict, return", "handling=lenient, return"]),
    ("ingest/replies.rs", "the beginning of an error", &["{{\"index\""]),
    (
        "ingest",
        "the daemon's own state: it stops, is late, full or broken, or what it asks is so",
        &[
            "the body was not inflated within",
            "inflating a body failed",
            "the body could not be inflated",
            "the queue did not confirm in time",
            "the events were not checked within",
            "checking a body failed",
            "the body could not be checked",
            "keeping dead letters failed",
            "their task ended",
            "too many bytes of requests are being handled",
            "the disk is too full",
            "the queue cannot be reached",
            "no events are accepted at present",
            "too many requests wait for the queue",
            "the producer is being restarted",
            "what is wrong of this request could not be kept",
            "{} (but for what is wrong of it",
            "{reason}; nothing of this request was stored",
            "{reason}; it is not known which events",
            "whose the body is was not looked at within",
            "looking whose a body is failed",
            "whose the body is could not be looked at",
            "writing an answer failed",
            "what became of the events could not be written",
            "; it was not stored",
            "; whether it was stored is not known",
            "larger than the queue takes",
        ],
    ),
    ("ingest", "beside what was wrong, where it is kept", &[" (not quarantined: ", "{kept} kept as dead letters"]),
    ("ingest/coding", "what its library says first", &["it does not go on", "a frame does not hold as much"]),
    ("event/envelope.rs", "of an envelope 64 KiB above the six-fold of an event", &["bytes of envelope"]),
    ("event/readable.rs", "what readers of the log are told", &["it is nested deeper than"]),
];

/// A string in a file.
struct Literal {
    file: String,
    line: usize,
    text: String,
}

impl Literal {
    /// What stands between its placeholders.
    fn parts(&self) -> Vec<String> {
        let (mut parts, mut part, mut chars) = (Vec::new(), String::new(), self.text.chars().peekable());
        while let Some(char) = chars.next() {
            match char {
                // A doubled brace is one.
                '{' | '}' if chars.peek() == Some(&char) => part.extend(chars.next()),
                // A placeholder has no space, but for TOML and JSON that are shown.
                '{' if !matches!(chars.peek(), Some(' ' | '"')) => {
                    parts.push(std::mem::take(&mut part));
                    chars.by_ref().find(|char| *char == '}');
                }
                char => part.push(char),
            }
        }
        parts.push(part);
        parts.into_iter().map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
    }

    fn is_sentence(&self) -> bool {
        let words = self.parts().join(" ");
        words.contains(' ') && words.split(|c: char| !c.is_alphabetic()).filter(|word| word.len() > 1).count() > 2
    }
}

/// The strings of a file, without comments and without tests, which come last.
fn literals(file: &Path, named: &str) -> Vec<Literal> {
    let source = fs::read_to_string(file).expect("a source");
    let code = source.split("\n#[cfg(test)]\n").next().unwrap_or_default();
    let (mut found, mut rest) = (Vec::new(), code);
    while let Some(at) = rest.find(['"', '\'', '/']) {
        let before = &rest[..at];
        rest = &rest[at..];
        let line = code[..code.len() - rest.len()].matches('\n').count() + 1;
        if rest.starts_with("//") {
            rest = rest.find('\n').map_or("", |end| &rest[end..]);
        } else if rest.starts_with('"') {
            let hashes = before.len() - before.trim_end_matches('#').len();
            let is_raw = before.trim_end_matches('#').ends_with('r');
            let (text, end) = if is_raw { raw(rest, hashes) } else { escaped(rest) };
            found.push(Literal { file: named.to_owned(), line, text });
            rest = &rest[end..];
        } else {
            // A character, a lifetime, or a division.
            let is_character = |length: usize| rest.chars().nth(length) == Some('\'');
            let length = match rest.strip_prefix('\'') {
                Some(inner) if inner.starts_with('\\') => 2 + inner[2..].find('\'').map_or(0, |end| end + 1) + 1,
                Some(_) if is_character(2) => rest.char_indices().nth(3).map_or(rest.len(), |(end, _)| end),
                _ => 1,
            };
            rest = &rest[length..];
        }
    }
    found
}

fn raw(text: &str, hashes: usize) -> (String, usize) {
    let close = format!("\"{}", "#".repeat(hashes));
    let length = text[1..].find(&close).expect("it ends");
    (text[1..=length].to_owned(), 1 + length + close.len())
}

/// With its escapes undone, as far as sentences have some.
fn escaped(text: &str) -> (String, usize) {
    let (mut read, mut chars) = (String::new(), text.char_indices().skip(1).peekable());
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return (read, at + 1),
            '\\' => match chars.next().map(|(_, escape)| escape) {
                // The next line goes on where its text begins.
                Some('\n') => while chars.next_if(|(_, char)| char.is_whitespace()).is_some() {},
                Some('n') => read.push('\n'),
                Some('r') => read.push('\r'),
                Some(char) => read.push(char),
                None => break,
            },
            char => read.push(char),
        }
    }
    panic!("a string has no end: {text:.80}");
}

/// The sources below a folder, or the one file, but for tests and descriptions.
fn files(path: PathBuf) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path];
    }
    let below = fs::read_dir(path).expect("a folder").map(|entry| entry.expect("an entry").path());
    let is_code = |path: &PathBuf| !path.ends_with("tests.rs") && !path.display().to_string().contains("openapi");
    let mut files: Vec<_> = below.filter(is_code).flat_map(files).collect();
    files.sort();
    files
}

#[test]
fn each_sentence_of_the_sources_has_a_row() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let of_configuration: Vec<_> =
        lines::rows().into_iter().map(|row| (row.code, format!("{}: {}", row.code, row.sentence))).collect();
    let of_requests: Vec<_> = requests::rows().into_iter().map(|row| (row.code, row.sentence)).collect();
    let of_connections: Vec<_> = connections::rows().into_iter().map(|row| row.sentence).collect();
    let (mut missing, mut used) = (Vec::new(), BTreeSet::new());
    let mut look = |literal: Literal, sentences: &[&str]| {
        let parts = literal.parts();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        if !literal.is_sentence() || sentences.iter().any(|sentence| is_in_order(&parts, sentence)) {
            return;
        }
        let of_file = OTHERS.iter().filter(|(file, ..)| literal.file.starts_with(file));
        let other = of_file.flat_map(|(.., texts)| *texts).find(|text| literal.text.starts_with(**text));
        match other {
            Some(text) => _ = used.insert((literal.file, *text)),
            None => missing.push(format!("src/{}:{}: {:?}", literal.file, literal.line, literal.text)),
        }
    };
    for (file, codes) in CONFIGURATION {
        let rows = of_configuration.iter().chain(&of_requests).filter(|(code, _)| codes.contains(code));
        let sentences: Vec<&str> = rows.map(|(_, sentence)| sentence.as_str()).collect();
        literals(&src.join(file), file).into_iter().for_each(|literal| look(literal, &sentences));
    }
    let operators = of_configuration.iter().filter(|(code, _)| *code == "event.types");
    let of_requests = of_requests.iter().chain(operators).map(|(_, sentence)| sentence);
    let sentences: Vec<&str> = of_requests.chain(&of_connections).map(String::as_str).collect();
    for file in REQUESTS.into_iter().flat_map(|part| files(src.join(part))) {
        let named = file.strip_prefix(&src).expect("it is below").display().to_string();
        literals(&file, &named).into_iter().for_each(|literal| look(literal, &sentences));
    }
    assert!(missing.is_empty(), "{} sentences without a row:\n{}", missing.len(), missing.join("\n"));
    for (file, why, texts) in OTHERS {
        for text in *texts {
            let is_used = used.iter().any(|(of, begins)| of.starts_with(file) && begins == text);
            assert!(is_used, "src/{file} has no such sentence without a row ({why}): {text:?}");
        }
    }
}
