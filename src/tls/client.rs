//! TLS of the command line, which asks the admin listener: whom it believes, what it shows, and how ureq speaks it.

use std::{
    fmt,
    io::{self, Read as _, Write as _},
    path::Path,
    sync::Arc,
};

use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};

use super::{files, provider};

/// Whose certificate is believed.
pub enum Trust {
    /// One of these CAs.
    Authorities(RootCertStore),
    /// This very certificate, whatever names stand in it: it was read where the daemon reads it.
    Exactly(CertificateDer<'static>),
    /// One of the CAs of the system.
    System,
}

impl Trust {
    /// # Errors
    /// What is wrong with the file of `--ca`.
    pub fn authorities(path: &Path) -> Result<Self, String> {
        let pem = files::read_for("--ca", path)?;
        files::roots(&pem).map(Self::Authorities).map_err(|rule| format!("--ca {}: {rule}", path.display()))
    }

    /// # Errors
    /// What is wrong with the file.
    pub fn exactly(path: &Path) -> Result<Self, String> {
        let pem = files::read_for("admin.tls.cert", path)?;
        let mut chain =
            files::certificates(&pem).map_err(|rule| format!("admin.tls.cert {}: {rule}", path.display()))?;
        Ok(Self::Exactly(chain.swap_remove(0)))
    }
}

/// What the command line speaks TLS by; `identity` is the certificate that it shows, and its key.
///
/// # Errors
/// What is wrong with a file.
pub fn client(trust: Trust, identity: Option<(&Path, &Path)>) -> Result<Arc<ClientConfig>, String> {
    let said = |error: Error| format!("TLS cannot be spoken: {error}");
    let builder =
        ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().map_err(said)?;
    let builder = match trust {
        Trust::Authorities(roots) => builder.with_root_certificates(roots),
        Trust::Exactly(certificate) => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Pinned { certificate, provider: provider() }))
        }
        Trust::System => {
            let system = rustls_platform_verifier::Verifier::new(provider()).map_err(said)?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(system))
        }
    };
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let of = |flag: &str, path: &Path, rule: String| format!("{flag} {}: {rule}", path.display());
            let chain =
                files::certificates(&files::read_for("--cert", cert)?).map_err(|rule| of("--cert", cert, rule))?;
            let private =
                files::private_key(&files::read_for("--cert-key", key)?).map_err(|rule| of("--cert-key", key, rule))?;
            let shown = builder.with_client_auth_cert(chain, private);
            shown.map_err(|error| of("--cert-key", key, format!("does not go with --cert ({error})")))?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Takes one certificate and no other, and asks for the proof that its key is there.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *end_entity == self.certificate {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// TLS for ureq, where a URL asks for it: with ureq's own, one certificate cannot be taken for what it is.
pub struct TlsConnector(pub Arc<ClientConfig>);

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsConnector")
    }
}

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = Either<In, TlsTransport>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, ureq::Error> {
        let Some(transport) = chained else { return Ok(None) };
        if !details.needs_tls() || transport.is_tls() {
            return Ok(Some(Either::A(transport)));
        }
        let host = details.uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let name =
            ServerName::try_from(host).map_err(|_| ureq::Error::Tls("the host is neither a name nor an address"))?;
        let said = |error: Error| ureq::Error::Io(io::Error::new(io::ErrorKind::InvalidData, error));
        let mut session = ClientConnection::new(self.0.clone(), name).map_err(said)?;
        let mut socket = TransportAdapter::new(transport.boxed(), details.current_time.clone());
        socket.set_timeout(details.timeout);
        session.complete_io(&mut socket)?;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Either::B(TlsTransport { buffers, stream: StreamOwned::new(session, socket) })))
    }
}

pub struct TlsTransport {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsTransport")
    }
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.get_mut().set_timeout(timeout);
        self.stream.write_all(&self.buffers.output()[..amount])?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.get_mut().set_timeout(timeout);
        let amount = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.get_mut().get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}
