//! What certificates say: whose they are, and from when until when they hold. Whether they are to be believed is webpki's to say.

use std::{fmt::Write as _, net::IpAddr, sync::Arc};

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_cert::{
    certificate::{CertificateInner, Raw},
    der::Decode,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

use crate::position::Timestamp;

/// Bytes of a client's name, at most: common names have up to 64 characters, and host names up to 253.
const LONGEST_NAME: usize = 256;

/// From when until when a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub from: Timestamp,
    pub to: Timestamp,
}

/// What is read of one.
pub struct Certificate<'a> {
    der: &'a CertificateDer<'a>,
    read: CertificateInner<Raw>,
}

impl<'a> Certificate<'a> {
    /// # Errors
    /// It is no X.509 certificate.
    pub fn read(der: &'a CertificateDer<'a>) -> Result<Self, String> {
        CertificateInner::from_der(der).map(|read| Self { der, read }).map_err(|error| error.to_string())
    }

    pub fn validity(&self) -> Validity {
        let validity = self.read.tbs_certificate().validity();
        let millis = |time: x509_cert::time::Time| {
            Timestamp(i64::try_from(time.to_unix_duration().as_millis()).unwrap_or(i64::MAX))
        };
        Validity { from: millis(validity.not_before), to: millis(validity.not_after) }
    }

    /// Whose it is: the common name; without one the first host, e-mail address or URI; without one the whole subject; where that is
    /// empty the first IP address, and without one the certificate's hash. It is never empty.
    pub fn name(&self) -> String {
        let subject = self.read.tbs_certificate().subject();
        let common = subject.common_name().ok().flatten().map(|name| name.value().into_owned());
        safe(
            &common
                .filter(|name| !name.is_empty())
                .or_else(|| self.alternative(host))
                .or_else(|| Some(subject.to_string()).filter(|subject| !subject.is_empty()))
                .or_else(|| self.alternative(ip))
                .unwrap_or_else(|| fingerprint(self.der)),
        )
    }

    fn alternative(&self, of: fn(&GeneralName) -> Option<String>) -> Option<String> {
        let (_, SubjectAltName(names)) = self.read.tbs_certificate().get_extension::<SubjectAltName>().ok()??;
        names.iter().filter_map(of).find(|name| !name.is_empty())
    }
}

fn host(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(name) | GeneralName::Rfc822Name(name) | GeneralName::UniformResourceIdentifier(name) => {
            Some(name.as_str().to_owned())
        }
        _ => None,
    }
}

fn ip(name: &GeneralName) -> Option<String> {
    let GeneralName::IpAddress(address) = name else { return None };
    let address = address.as_bytes();
    let v4 = || <[u8; 4]>::try_from(address).ok().map(IpAddr::from);
    <[u8; 16]>::try_from(address).ok().map(IpAddr::from).or_else(v4).map(|address| address.to_string())
}

/// As `openssl x509 -fingerprint -sha256` prints it, but for its colons.
fn fingerprint(der: &CertificateDer<'_>) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(der)))
}

/// The name without what drives a terminal or breaks a line, each byte of which is written as `%0A`, and bounded: what is longer ends in
/// a part of its hash, so that two that begin alike stay two.
fn safe(name: &str) -> String {
    let mut written = String::with_capacity(name.len());
    let mut bytes = [0; 4];
    for char in name.chars() {
        let text = char.encode_utf8(&mut bytes);
        match char.is_alphanumeric() || (char.is_ascii() && !char.is_control() && char != '%') {
            true => written.push(char),
            false => text.bytes().for_each(|byte| _ = write!(written, "%{byte:02X}")),
        }
    }
    if written.len() > LONGEST_NAME {
        let hash = hex::encode(&Sha256::digest(&written)[..8]);
        let cut = written.floor_char_boundary(LONGEST_NAME - hash.len() - 1);
        written.truncate(cut);
        let _ = write!(written, "~{hash}");
    }
    written
}

/// The name of a client by the certificate that it showed; where that is believed and cannot be read here, its hash.
pub fn client_name(der: &CertificateDer<'_>) -> Arc<str> {
    Certificate::read(der).map_or_else(|_| fingerprint(der), |certificate| certificate.name()).into()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    use super::*;

    fn named(subject: &[(DnType, &str)], names: &[SanType]) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        subject.iter().for_each(|(of, value)| params.distinguished_name.push(of.clone(), *value));
        params.subject_alt_names = names.to_vec();
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        client_name(certificate.der()).to_string()
    }

    #[test]
    fn a_client_is_called_by_its_common_name_or_its_first_other_name_or_its_subject() {
        let [dns, mail, uri] = [
            SanType::DnsName("shop.example.com".try_into().unwrap()),
            SanType::Rfc822Name("shop@example.com".try_into().unwrap()),
            SanType::URI("spiffe://example.com/shop".try_into().unwrap()),
        ];
        let ip = SanType::IpAddress([127, 0, 0, 1].into());
        let both = [dns.clone()];
        assert_eq!(named(&[(DnType::OrganizationName, "Example"), (DnType::CommonName, "shop")], &both), "shop");
        assert_eq!(named(&[(DnType::CommonName, "")], &both), "shop.example.com");
        assert_eq!(named(&[], &[ip.clone(), uri, dns]), "spiffe://example.com/shop");
        assert_eq!(named(&[(DnType::OrganizationName, "Example")], &[mail]), "shop@example.com");
        let subject = [(DnType::CountryName, "DE"), (DnType::OrganizationName, "Example")];
        assert_eq!(named(&subject, std::slice::from_ref(&ip)), "O=Example,C=DE");
        assert_eq!(named(&[], std::slice::from_ref(&ip)), "127.0.0.1");
        let v6 = SanType::IpAddress("2001:db8::7".parse().unwrap());
        assert_eq!(named(&[], &[v6, ip]), "2001:db8::7");
    }

    #[test]
    fn a_client_whose_certificate_has_no_name_or_cannot_be_read_is_called_by_its_hash() {
        let name = named(&[], &[]);
        assert!(name.starts_with("sha256:") && name.len() == 71, "{name}");
        let hash = "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";
        assert_eq!(&*client_name(&CertificateDer::from(b"foo".to_vec())), hash);
    }

    #[test]
    fn a_name_has_nothing_that_drives_a_terminal_and_is_bounded() {
        assert_eq!(safe("Bücher & Söhne, 100%"), "Bücher & Söhne, 100%25");
        assert_eq!(safe("a\n\u{1b}[2J\u{202e}b\u{feff}"), "a%0A%1B[2J%E2%80%AEb%EF%BB%BF");
        let long = "é".repeat(200);
        let (first, second) = (safe(&long), safe(&format!("{long}x")));
        assert!(first.len() <= LONGEST_NAME && second.len() <= LONGEST_NAME && first != second, "{first} {second}");
        assert_eq!(safe(&"x".repeat(LONGEST_NAME)).len(), LONGEST_NAME);
    }
}
