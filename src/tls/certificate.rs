//! What certificates say: whose they are, and from when until when they hold. Whether they are to be believed is webpki's to say.

use std::fmt::Write as _;

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
pub struct Certificate(CertificateInner<Raw>);

impl Certificate {
    /// # Errors
    /// It is no X.509 certificate.
    pub fn read(der: &CertificateDer<'_>) -> Result<Self, String> {
        CertificateInner::from_der(der).map(Self).map_err(|error| error.to_string())
    }

    pub fn validity(&self) -> Validity {
        let validity = self.0.tbs_certificate().validity();
        let millis = |time: x509_cert::time::Time| {
            Timestamp(i64::try_from(time.to_unix_duration().as_millis()).unwrap_or(i64::MAX))
        };
        Validity { from: millis(validity.not_before), to: millis(validity.not_after) }
    }

    /// Whose it is: the common name; without one the first host, e-mail address or URI; without one the whole subject.
    pub fn name(&self) -> String {
        let subject = self.0.tbs_certificate().subject();
        let common = subject.common_name().ok().flatten().map(|name| name.value().into_owned());
        safe(
            &common
                .filter(|name| !name.is_empty())
                .or_else(|| self.alternative())
                .unwrap_or_else(|| subject.to_string()),
        )
    }

    fn alternative(&self) -> Option<String> {
        let (_, SubjectAltName(names)) = self.0.tbs_certificate().get_extension::<SubjectAltName>().ok()??;
        names.iter().find_map(|name| match name {
            GeneralName::DnsName(name)
            | GeneralName::Rfc822Name(name)
            | GeneralName::UniformResourceIdentifier(name) => Some(name.as_str().to_owned()),
            _ => None,
        })
    }
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

/// The name of a client by the certificate that it showed.
///
/// # Errors
/// It cannot be read.
pub fn client_name(der: &CertificateDer<'_>) -> Result<String, String> {
    Certificate::read(der).map(|certificate| certificate.name())
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
        client_name(certificate.der()).unwrap()
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
        assert_eq!(named(&subject, &[ip]), "O=Example,C=DE");
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
