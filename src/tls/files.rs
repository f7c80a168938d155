//! The files of a listener's TLS: certificate, key, and the CAs of clients. What is wrong with one is said in one sentence, with the
//! configuration's key, the file, and what to do; what is right and soon will not be, is a warning.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    path::Path,
    sync::Arc,
};

use rustls::{
    Error, InconsistentKeys, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use sha2::{Digest, Sha256};

use super::{
    certificate::{Certificate, Validity},
    provider,
};
use crate::config::{Config, ConfigError, ConfigErrors, TlsFiles};

/// Bundles of all public CAs have some 200 KiB.
const LARGEST: u64 = 1 << 20;

/// What one listener speaks TLS with.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub identity: Arc<CertifiedKey>,
    /// Whose certificates clients have to show.
    pub client_ca: Option<Arc<RootCertStore>>,
    /// Of the chain: from when all of it holds, until the first of it ends.
    pub validity: Validity,
    /// Whose certificate it is.
    pub name: String,
    /// SHA-256 of each file, by its configuration key.
    pub contents: Vec<(String, [u8; 32])>,
}

/// Reads the files of both listeners, in the order of [`Config::tls`].
///
/// # Errors
/// What is wrong, a sentence for each file.
pub fn load(config: &Config) -> Result<[Option<Loaded>; 2], ConfigErrors> {
    let mut errors = Vec::new();
    let loaded =
        config.tls().map(|files| files.and_then(|files| one(&files).map_err(|error| errors.extend(error)).ok()));
    if errors.is_empty() { Ok(loaded) } else { Err(ConfigErrors::new(errors)) }
}

fn one(files: &TlsFiles<'_>) -> Result<Loaded, Vec<ConfigError>> {
    let key_of = |name: &str| format!("{}.tls.{name}", files.section);
    let fault = |name: &str, path: &Path, rule: String| {
        vec![ConfigError { origin: path.display().to_string(), key: key_of(name), value: None, rule }]
    };
    let chain = read(files.cert).and_then(|pem| Ok((digest(&pem), certificates(&pem)?)));
    let key = read(files.key).and_then(|pem| Ok((digest(&pem), private_key(&pem)?)));
    let clients = files
        .client_ca
        .map(|path| read(path).and_then(|pem| Ok((digest(&pem), roots(&pem)?))).map_err(|rule| (path, rule)));
    let (chain, key, clients) = match (chain, key, clients.transpose()) {
        (Ok(chain), Ok(key), Ok(clients)) => (chain, key, clients),
        (chain, key, clients) => {
            let faults = [
                chain.err().map(|rule| fault("cert", files.cert, rule)),
                key.err().map(|rule| fault("key", files.key, rule)),
                clients.err().map(|(path, rule)| fault("client_ca", path, rule)),
            ];
            return Err(faults.into_iter().flatten().flatten().collect());
        }
    };
    let mut contents = vec![(key_of("cert"), chain.0), (key_of("key"), key.0)];
    contents.extend(clients.iter().map(|(content, _)| (key_of("client_ca"), *content)));
    let (name, validity) = described(&chain.1).map_err(|rule| fault("cert", files.cert, rule))?;
    let identity = CertifiedKey::from_der(chain.1, key.1, &provider()).map_err(|error| match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => fault("key", files.key, format!(
            "is not the key of the certificate in {}: give the one that this was made with, and in that file the server's own \
             certificate first",
            files.cert.display()
        )),
        Error::InvalidCertificate(error) => fault("cert", files.cert, format!(
            "has a certificate that TLS cannot be spoken with ({error:?}): have it issued anew, as X.509 version 3"
        )),
        _ => fault("key", files.key, "is no key that TLS is spoken with here: make one of RSA (2048 to 4096 bits), ECDSA (P-256 or \
                                       P-384) or Ed25519".to_owned()),
    })?;
    let client_ca = clients.map(|(_, roots)| Arc::new(roots));
    Ok(Loaded { identity: Arc::new(identity), client_ca, validity, name, contents })
}

fn digest(content: &[u8]) -> [u8; 32] {
    Sha256::digest(content).into()
}

/// The content of a file of PEM.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error: std::io::Error| match error.kind() {
        ErrorKind::PermissionDenied => {
            format!("cannot be read ({error}): let the user read it that the daemon runs as")
        }
        ErrorKind::NotFound => format!("is not there ({error}): write it, or set another path"),
        _ => format!("cannot be read ({error}): set another path"),
    };
    let file = File::open(path).map_err(unreadable)?;
    // A pipe would be waited for, and read once.
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err("is no file: give the path of a file of PEM".to_owned());
    }
    let mut content = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut content).map_err(unreadable)?;
    match content.first() {
        _ if content.len() as u64 > LARGEST => {
            Err("is larger than 1 MiB, as no certificate or key is: is it the right file?".to_owned())
        }
        _ if content.trim_ascii().is_empty() => {
            Err("is empty: was what writes it interrupted? Write it anew, as PEM".to_owned())
        }
        // The tag of a sequence, with which DER and PKCS#12 begin, and no PEM does.
        Some(0x30) => Err("is binary (DER, or PKCS#12), not PEM: convert it, by `openssl x509 -inform der`, `openssl pkey -inform der` or \
                           `openssl pkcs12 -nodes`"
            .to_owned()),
        _ => Ok(content),
    }
}

fn is_there(pem: &[u8], words: &str) -> bool {
    memchr::memmem::find(pem, words.as_bytes()).is_some()
}

/// The certificates of a file; one at least.
///
/// # Errors
/// What is wrong with the file.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Err(_) => Err("is broken PEM (a line is cut off, or is no base64): copy it again, whole".to_owned()),
        Ok(certificates) if certificates.is_empty() => Err(match is_there(pem, "PRIVATE KEY-----") {
            true => "has a private key and no certificate: are the two exchanged?".to_owned(),
            false => "has no certificate: PEM has one between BEGIN CERTIFICATE and END CERTIFICATE".to_owned(),
        }),
        Ok(certificates) => Ok(certificates),
    }
}

/// The first private key of a file.
///
/// # Errors
/// What is wrong with the file. Nothing of it is said again.
pub fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    if is_there(pem, "BEGIN ENCRYPTED PRIVATE KEY") || is_there(pem, "Proc-Type: 4,ENCRYPTED") {
        return Err("has a key with a passphrase, which nobody can type here: write it without, by `openssl pkey`, and let only \
                    the daemon's user read it"
            .to_owned());
    }
    match PrivateKeyDer::pem_slice_iter(pem).next() {
        Some(Ok(key)) => Ok(key),
        Some(Err(_)) => Err("is broken PEM (a line is cut off, or is no base64): copy it again, whole".to_owned()),
        None => Err(match is_there(pem, "BEGIN CERTIFICATE") {
            true => "has a certificate and no private key: are the two exchanged?".to_owned(),
            false => "has no private key: PEM has one between BEGIN PRIVATE KEY and END PRIVATE KEY".to_owned(),
        }),
    }
}

/// The CAs of a file.
///
/// # Errors
/// What is wrong with the file.
pub fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in certificates(pem)?.into_iter().enumerate() {
        roots.add(certificate).map_err(|error| {
            format!("has a certificate (number {index} from 0) that is none of a CA's ({error}): take it out")
        })?;
    }
    Ok(roots)
}

/// Whose certificate it is, and when all of the chain holds.
fn described(chain: &[CertificateDer<'_>]) -> Result<(String, Validity), String> {
    let mut described: Option<(String, Validity)> = None;
    for (index, certificate) in chain.iter().enumerate() {
        let certificate = Certificate::read(certificate).map_err(|error| {
            format!("has a certificate (number {index} from 0) that cannot be read ({error}): have it issued anew")
        })?;
        let Validity { from, to } = certificate.validity();
        described = Some(match described {
            None => (certificate.name(), Validity { from, to }),
            Some((name, before)) => (name, Validity { from: before.from.max(from), to: before.to.min(to) }),
        });
    }
    described.ok_or_else(|| "has no certificate".to_owned())
}

/// Reads a file that the command line names.
///
/// # Errors
/// What is wrong with it.
pub fn read_for(flag: &str, path: &Path) -> Result<Vec<u8>, String> {
    read(path).map_err(|rule| format!("{flag} {}: {rule}", path.display()))
}
