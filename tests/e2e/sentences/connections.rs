//! Connections that come to nothing: certificates that are not believed, and what is no TLS. What a client hears is an alert, which
//! its library words; why it was is in the metric.

use serde_json::Value;

use super::{Differences, Row};
use crate::support::{PATIENCE, daemon::Setup, eventually, tls::Certificates};

/// What `curl` does at a listener that asks for certificates.
pub struct Connection {
    /// What it shows: a certificate of the CA that the daemon believes, or of another one.
    shows: Option<(Signed, &'static str)>,
    believes: Signed,
    more: &'static [&'static str],
    scheme: &'static str,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Signed {
    ByOurs,
    ByAnother,
}

const USUAL: Connection =
    Connection { shows: Some((Signed::ByOurs, "shop")), believes: Signed::ByOurs, more: &[], scheme: "https" };

/// With the exit status of curl, or the status of an answer; the words are those of OpenSSL.
pub fn rows() -> Vec<Row<Connection>> {
    let row = |wrong: Connection, status: u16, code: &'static str, sentence: &str| Row {
        wrong,
        status,
        code,
        sentence: sentence.to_owned(),
    };
    vec![
        row(Connection { shows: None, ..USUAL }, 56, "no_certificate", "{}alert certificate required{}"),
        row(
            Connection { shows: Some((Signed::ByAnother, "shop")), ..USUAL },
            56,
            "bad_certificate",
            "{}alert unknown ca{}",
        ),
        row(
            Connection { shows: Some((Signed::ByOurs, "ended")), ..USUAL },
            56,
            "bad_certificate",
            "{}alert certificate expired{}",
        ),
        row(
            Connection { believes: Signed::ByAnother, ..USUAL },
            60,
            "refused_by_client",
            "{}unable to get local issuer certificate{}",
        ),
        // What OpenSSL would not even try by itself.
        row(
            Connection { more: &["--tlsv1.0", "--tls-max", "1.1", "--ciphers", "DEFAULT:@SECLEVEL=0"], ..USUAL },
            35,
            "incompatible",
            "{}alert handshake failure{}",
        ),
        row(Connection { shows: None, scheme: "http", ..USUAL }, 400, "plain_http", super::heads::PLAIN_HTTP),
    ]
}

#[test]
fn each_connection_that_is_refused_is_told_why_and_counted_as_that() {
    let (ours, others) = (Certificates::new(), Certificates::new());
    ours.issue_from_to("ended", -40, -30);
    let of = |signed: Signed| if signed == Signed::ByOurs { &ours } else { &others };
    let set = |setup: Setup, section: &str| {
        let files = [("cert", "server.pem"), ("key", "server.key"), ("client_ca", "ca.pem")];
        files.into_iter().fold(setup, |setup, (key, file)| setup.set(&format!("{section}.tls.{key}"), ours.text(file)))
    };
    let daemon = set(Setup::new("connections"), "http").start();
    let mut differences = Differences::default();
    for row in rows() {
        let Connection { shows, believes, more, scheme } = row.wrong;
        let mut arguments: Vec<String> = more.iter().map(|argument| (*argument).to_owned()).collect();
        if let Some((signed, name)) = shows {
            let [cert, key] = ["pem", "key"].map(|end| of(signed).text(&format!("{name}.{end}")));
            arguments.extend(["--cert".to_owned(), cert, "--key".to_owned(), key]);
        }
        arguments.extend(["--json".to_owned(), "{\"type\":\"a\"}".to_owned()]);
        arguments.push(format!("{scheme}://{}/v1/events", daemon.http_address()));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let count = || {
            let label = format!("listener=\"http\",reason=\"{}\"", row.code);
            daemon.try_metric("ingestd_tls_handshakes_failed_total", &label).unwrap_or_default()
        };
        let before = count();
        let (exit, said) = of(believes).curl(&arguments);
        let status = u16::try_from(exit).expect("a status");
        let problem: Value = serde_json::from_str(&said).unwrap_or_default();
        let answered = problem["status"].as_u64().and_then(|status| status.try_into().ok());
        let sentence = problem["detail"].as_str().unwrap_or(&said);
        differences.compare(&row, &arguments.join(" "), (answered.unwrap_or(status), row.code, sentence.trim()));
        // Where it is the client that goes, this comes later.
        eventually("it is counted once, by its reason", PATIENCE, || (count() == before + 1.0).then_some(()));
    }
    assert_eq!(daemon.metric("ingestd_events_accepted_total"), Some(0.0));
    differences.assert_none();
    daemon.terminate();
}
