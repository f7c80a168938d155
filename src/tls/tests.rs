//! What is said of wrong files, what a reload exchanges, and which sessions go on.

use std::{fs, path::Path, sync::Arc, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConnection, pki_types::ServerName, version,
};
use tempfile::TempDir;

use super::{client::Trust, *};
use crate::{
    config::{Config, HttpTlsConfig},
    metrics::Metrics,
    position::Timestamp,
};

const NAME: &str = "ingest.example.com";

/// A folder with a CA, a server's certificate and key, and a client's.
struct Folder {
    folder: TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
}

fn params(name: &str, days: u64) -> CertificateParams {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = std::time::SystemTime::now();
    params.not_before = (now - Duration::from_secs(400 * 24 * 3600)).into();
    params.not_after = (now + Duration::from_secs(days * 24 * 3600 + 60)).into();
    params
}

impl Folder {
    fn new() -> Self {
        let mut of_ca = CertificateParams::default();
        of_ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        of_ca.distinguished_name.push(DnType::CommonName, "a CA");
        let ca = CertifiedIssuer::self_signed(of_ca, KeyPair::generate().unwrap()).unwrap();
        let made = Self { folder: tempfile::tempdir().unwrap(), ca };
        made.write("ca.pem", made.ca.pem());
        made.issue("server", &params(NAME, 90), KeyPair::generate().unwrap());
        made.issue("client", &params("shop", 90), KeyPair::generate().unwrap());
        made
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    fn issue(&self, name: &str, params: &CertificateParams, key: KeyPair) {
        let certificate = params.clone().signed_by(&key, &self.ca).unwrap();
        self.write(&format!("{name}.pem"), certificate.pem());
        self.write(&format!("{name}.der"), certificate.der());
        self.write(&format!("{name}.key"), key.serialize_pem());
    }

    fn config(&self, cert: &str, key: &str, client_ca: &str) -> Config {
        let mut config = Config::default();
        let path = |name: &str| if name.is_empty() { String::new() } else { self.path(name) };
        config.http.tls = HttpTlsConfig { cert: path(cert), key: path(key), client_ca: path(client_ca) };
        config
    }

    fn error(&self, cert: &str, key: &str, client_ca: &str) -> String {
        let error = load(&self.config(cert, key, client_ca)).map(|_| ()).unwrap_err().to_string();
        error.replace(&format!("{}/", self.folder.path().display()), "")
    }

    fn tls(&self, config: &Config) -> Tls {
        Tls::new(load(config).unwrap(), &Arc::new(Metrics::default())).unwrap()
    }

    fn client(&self, shows: bool) -> ClientConfig {
        let trust = Trust::authorities(Path::new(&self.path("ca.pem"))).unwrap();
        let (cert, key) = (self.path("client.pem"), self.path("client.key"));
        let identity = shows.then_some((Path::new(&cert), Path::new(&key)));
        Arc::unwrap_or_clone(client::client(trust, identity).unwrap())
    }
}

/// A handshake in memory, and some bytes each way, with which tickets come.
fn shake(
    client: &Arc<ClientConfig>,
    server: &ServerTls,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let mut client = ClientConnection::new(client.clone(), ServerName::try_from(NAME).unwrap()).unwrap();
    let mut server = ServerConnection::new(server.server()).unwrap();
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut sent = &wire[..];
        while !sent.is_empty() {
            server.read_tls(&mut sent).unwrap();
            server.process_new_packets()?;
        }
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut sent = &wire[..];
        while !sent.is_empty() {
            client.read_tls(&mut sent).unwrap();
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}

/// Each by itself is a row of `tests/e2e/sentences`.
#[test]
fn all_that_is_wrong_with_files_is_said_at_once() {
    let files = Folder::new();
    files.write("empty", " \n");
    files.write("text", "not a certificate");
    fs::create_dir(files.path("folder")).unwrap();
    let error = files.error("empty", "text", "folder");
    assert_eq!(error.lines().count(), 3, "{error}");
}

#[test]
fn keys_of_each_kind_are_taken_and_a_chain_ends_where_its_first_certificate_does() {
    let files = Folder::new();
    for algorithm in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        files.issue("kind", &params(NAME, 30), KeyPair::generate_for(algorithm).unwrap());
        assert!(load(&files.config("kind.pem", "kind.key", "")).is_ok());
    }
    files.issue("intermediate", &params("an intermediate CA", 5), KeyPair::generate().unwrap());
    let chain =
        [files.path("server.pem"), files.path("intermediate.pem")].map(|path| fs::read_to_string(path).unwrap());
    files.write("chain.pem", chain.concat());
    let both = [chain.concat(), fs::read_to_string(files.path("server.key")).unwrap()].concat();
    files.write("both.pem", both);
    for (cert, key) in [("chain.pem", "server.key"), ("both.pem", "both.pem")] {
        let [http, admin] = load(&files.config(cert, key, "")).unwrap();
        let http = http.unwrap();
        assert_eq!((&*http.name, http.identity.cert.len(), admin.is_none()), (NAME, 2, true));
        let days = (http.validity.to.0 - Timestamp::now().0) / (24 * 3600 * 1000);
        assert_eq!(days, 5, "{cert}");
    }
}

#[test]
fn a_certificate_that_ends_is_named_from_fourteen_days_before() {
    let files = Folder::new();
    let [http, _] = load(&files.config("server.pem", "server.key", "")).unwrap();
    let mut http = http.unwrap();
    let at = |text: &str| Timestamp(chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp_millis());
    http.validity = certificate::Validity { from: at("2026-06-01T00:00:00Z"), to: at("2026-12-15T00:00:00Z") };
    let said = |now: &str| warnings(&[Some(http.clone()), None], at(now));
    let begins =
        |rest: &str| vec![format!("http.tls.cert: the certificate of \"{NAME}\", or one of its chain, {rest}")];
    assert_eq!(said("2026-11-30T23:59:59Z"), Vec::<String>::new());
    assert_eq!(said("2026-12-01T00:00:00Z"), begins("ends at 2026-12-15T00:00:00.000Z, in 14 days: renew it"));
    assert_eq!(said("2026-12-14T12:00:00Z"), begins("ends at 2026-12-15T00:00:00.000Z, in 0 days: renew it"));
    assert_eq!(
        said("2026-12-15T00:00:00Z"),
        begins("ended at 2026-12-15T00:00:00.000Z: clients refuse it; renew it now")
    );
    let early =
        begins("holds from 2026-06-01T00:00:00.000Z on: clients refuse it until then; is this machine's clock right?");
    assert_eq!(said("2026-05-31T00:00:00Z"), early);
}

#[test]
fn a_renewal_goes_by_the_content_of_the_files_and_a_wrong_one_changes_nothing() {
    let files = Folder::new();
    let config = files.config("server.pem", "server.key", "");
    let tls = files.tls(&config);
    let http = tls.http.clone().unwrap();
    let before = http.server();
    assert_eq!(tls.renew(&config), Ok(vec![]));
    assert!(Arc::ptr_eq(&before, &http.server()), "the same files change nothing");

    let key = fs::read(files.path("server.key")).unwrap();
    files.issue("server", &params("another.example.com", 10), KeyPair::generate().unwrap());
    let renewed = fs::read(files.path("server.key")).unwrap();
    files.write("server.key", &key);
    let error = tls.renew(&config).unwrap_err();
    assert!(error.contains("http.tls.key: is not the key of the certificate in"), "{error}");
    assert!(Arc::ptr_eq(&before, &http.server()), "the old one stays in force");
    files.write("server.key", &renewed);
    assert_eq!(tls.renew(&config), Ok(vec!["http.tls.cert".to_owned(), "http.tls.key".to_owned()]));
    assert!(!Arc::ptr_eq(&before, &http.server()));
    let status = tls.status();
    assert_eq!(
        (&status["http"]["certificate"], &status["http"]["days_left"]),
        (&"another.example.com".into(), &10.into())
    );
    assert!(
        status["admin"].is_null() && status["http"]["warning"].as_str().is_some_and(|it| it.contains("in 10 days")),
        "{status}"
    );

    let with_ca = files.config("server.pem", "server.key", "ca.pem");
    assert_eq!(tls.renew(&with_ca), Ok(vec!["http.tls.client_ca".to_owned()]));
    assert_eq!(tls.status()["http"]["client_certificates"], true);
    assert_eq!(tls.renew(&config), Ok(vec!["http.tls.client_ca".to_owned()]));
}

#[test]
fn a_session_is_resumed_until_the_next_renewal_and_never_where_clients_show_certificates() {
    let files = Folder::new();
    let config = files.config("server.pem", "server.key", "");
    for version in [&version::TLS12, &version::TLS13] {
        let tls = files.tls(&config);
        let http = tls.http.as_ref().unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(files.ca.der().clone()).unwrap();
        let made = || {
            let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[version]).unwrap();
            Arc::new(builder.with_root_certificates(roots.clone()).with_no_client_auth())
        };
        let client = made();
        let kind = |client: &Arc<ClientConfig>| shake(client, http).unwrap().0.handshake_kind().unwrap();
        assert_eq!([kind(&client), kind(&client)], [HandshakeKind::Full, HandshakeKind::Resumed], "{version:?}");
        files.issue("server", &params(NAME, 91), KeyPair::generate().unwrap());
        assert!(!tls.renew(&config).unwrap().is_empty());
        assert_eq!([kind(&client), kind(&client)], [HandshakeKind::Full, HandshakeKind::Resumed], "{version:?}");
    }
    let tls = files.tls(&files.config("server.pem", "server.key", "ca.pem"));
    let (http, client) = (tls.http.as_ref().unwrap(), Arc::new(files.client(true)));
    for _ in 0..3 {
        let (_, server) = shake(&client, http).unwrap();
        assert_eq!(server.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(&*client_name(&server.peer_certificates().unwrap()[0]), "shop");
    }
}

#[test]
fn where_clients_show_certificates_one_without_or_with_that_of_another_ca_is_refused() {
    let (files, others) = (Folder::new(), Folder::new());
    let tls = files.tls(&files.config("server.pem", "server.key", "ca.pem"));
    let http = tls.http.as_ref().unwrap();
    let refused = |client: ClientConfig| Failure::from(&shake(&Arc::new(client), http).unwrap_err());
    assert_eq!(refused(files.client(false)), Failure::NoCertificate);
    let mut stranger = others.client(true);
    stranger.dangerous().set_certificate_verifier(
        rustls::client::WebPkiServerVerifier::builder_with_provider(
            Arc::new({
                let mut roots = RootCertStore::empty();
                roots.add(files.ca.der().clone()).unwrap();
                roots
            }),
            provider(),
        )
        .build()
        .unwrap(),
    );
    assert_eq!(refused(stranger), Failure::BadCertificate);
    let reasons: Vec<_> = Failure::WORDS.iter().filter(|word| word.contains("certificate")).collect();
    assert_eq!(reasons, [&"no_certificate", &"bad_certificate"]);
}

#[test]
fn the_command_line_takes_the_very_certificate_of_the_configuration_and_no_other() {
    let files = Folder::new();
    let tls = files.tls(&files.config("server.pem", "server.key", ""));
    let http = tls.http.as_ref().unwrap();
    let with = |name: &str| client::client(Trust::exactly(Path::new(&files.path(name))).unwrap(), None).unwrap();
    assert!(shake(&with("server.pem"), http).is_ok());
    let error = shake(&with("client.pem"), http).unwrap_err();
    assert!(matches!(error, rustls::Error::InvalidCertificate(_)), "{error}");
    let error = Trust::authorities(Path::new("/no/such.pem")).map(|_| ()).unwrap_err();
    assert!(error.starts_with("--ca /no/such.pem: is not there"), "{error}");
}
