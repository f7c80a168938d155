//! Certificates that are made for a test, and clients that speak TLS by them.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tempfile::TempDir;

use super::{PATIENCE, raw::connect, scratch};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A folder with a CA (`ca.pem`) and what it signs: `NAME.pem` and `NAME.key`.
pub struct Certificates {
    folder: TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
}

pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

impl Certificates {
    /// With `server`, for 127.0.0.1 and 90 days, and `shop`, a client's.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let folder = tempfile::Builder::new().prefix("tls").tempdir_in(scratch()).expect("target can be written to");
        // Another one has another name, as CAs have.
        let name = folder.path().file_name().expect("a name").to_string_lossy().into_owned();
        params.distinguished_name.push(DnType::CommonName, format!("the CA of {name}"));
        let ca = KeyPair::generate().and_then(|key| CertifiedIssuer::self_signed(params, key)).expect("a CA");
        let made = Self { folder, ca };
        fs::write(made.path("ca.pem"), made.ca.pem()).expect("it can be written");
        made.issue("server", 90);
        made.issue("shop", 90);
        made
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Makes one of this common name, or makes it anew.
    pub fn issue(&self, name: &str, days: u32) {
        self.issue_from_to(name, -400, days.into());
    }

    /// The same, which holds from so many days from now on, until so many.
    pub fn issue_from_to(&self, name: &str, from: i64, to: i64) {
        let key = KeyPair::generate().expect("a key");
        let made = self.signed(name, [from, to], &key);
        // The key first: for a moment they do not go together, as when others renew them.
        for (end, content) in [("key", key.serialize_pem()), ("pem", made)] {
            let (new, last) = (self.path(&format!("{name}.{end}.new")), self.path(&format!("{name}.{end}")));
            fs::write(&new, content).and_then(|()| fs::rename(new, last)).expect("it can be written");
        }
    }

    fn signed(&self, name: &str, days: [i64; 2], key: &KeyPair) -> String {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        params.distinguished_name.push(DnType::CommonName, name);
        // A minute more, so that days are whole ones for as long as a test takes.
        let now = SystemTime::now() + Duration::from_secs(60);
        let [from, to] = days.map(|days| {
            let distance = DAY * u32::try_from(days.unsigned_abs()).expect("some years");
            if days < 0 { now - distance } else { now + distance }
        });
        (params.not_before, params.not_after) = (from.into(), to.into());
        params.signed_by(key, &self.ca).expect("it is signed").pem()
    }

    /// Has OpenSSL make a key of this kind, and signs a certificate of it.
    pub fn issue_with(&self, name: &str, arguments: &[&str]) {
        let output = Command::new("openssl").args(arguments).output().expect("openssl is installed");
        assert!(output.status.success(), "{output:?}");
        let pem = String::from_utf8(output.stdout).expect("PEM");
        fs::write(self.path(&format!("{name}.key")), &pem).expect("it can be written");
        let convert = ["pkey", "-in", &self.text(&format!("{name}.key"))];
        let output = Command::new("openssl").args(convert).output().expect("openssl is installed");
        let key = KeyPair::from_pem(&String::from_utf8(output.stdout).expect("PEM")).expect("a key");
        fs::write(self.path(&format!("{name}.pem")), self.signed(name, [-400, 90], &key)).expect("it can be written");
    }

    /// The DER of a certificate.
    pub fn der(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path(&format!("{name}.pem"))).expect("a certificate")
    }

    /// A client's side that believes the CA, and shows a certificate where it has one.
    pub fn client(&self, shows: Option<&str>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der().clone()).expect("a CA");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().expect("versions").with_root_certificates(roots);
        Arc::new(match shows {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).expect("a key");
                builder.with_client_auth_cert(vec![self.der(name)], key).expect("they go together")
            }
        })
    }

    /// `curl` that believes the CA, with these arguments; its exit status, and what it printed.
    pub fn curl(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = Command::new("curl");
        command
            .args(["--silent", "--show-error", "--max-time", "60", "--cacert"])
            .arg(self.path("ca.pem"))
            .args(arguments);
        let output = command.stdin(Stdio::null()).output().expect("curl is installed");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().expect("no signal"), String::from_utf8_lossy(&text).into_owned())
    }
}

/// A TLS connection to a daemon; an error is that of its handshake.
pub fn shake(address: &str, client: &Arc<ClientConfig>) -> std::io::Result<TlsStream> {
    shake_on(connect(address), client)
}

pub fn shake_on(socket: TcpStream, client: &Arc<ClientConfig>) -> std::io::Result<TlsStream> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let name = ServerName::try_from("127.0.0.1").expect("an address");
    let mut stream = StreamOwned::new(ClientConnection::new(client.clone(), name).expect("a client"), socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// Sends a request, and reads its answer: the status and all of it.
pub fn ask(stream: &mut TlsStream, request: &[u8]) -> std::io::Result<(u16, String)> {
    stream.write_all(request)?;
    stream.flush()?;
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let whole = String::from_utf8_lossy(&text);
        if let Some((head, body)) = whole.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            if body.len() >= length.unwrap_or(0) {
                let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
                return Ok((status, whole.into_owned()));
            }
        }
        match stream.read(&mut buffer)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => text.extend_from_slice(&buffer[..read]),
        }
    }
}

/// A request that brings an event.
pub fn post(event: &str) -> Vec<u8> {
    let length = event.len();
    format!("POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{event}").into_bytes()
}
