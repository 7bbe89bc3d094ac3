//! What a certificate says about its holder.

use medinet_types::{Principal, Role, SiteId, UnixMillis};
use rustls_pki_types::DnsName;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

const URN_PREFIX: &str = "urn:medinet:";

/// The longest certificate that is looked at, in bytes; ours have about 600.
const MAX_CERTIFICATE_BYTES: usize = 16 * 1024;

/// A certificate or request does not name a principal; peer misbehaved, or the CA is not MediNet's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrincipalError {
    /// Not a certificate.
    #[error("expected one X.509 certificate of at most 16 KiB in DER, got bytes that are none")]
    NotACertificate,
    /// Not exactly one common name.
    #[error("expected one common name in the certificate's subject, got {got}")]
    CommonNames {
        /// How many there are.
        got: usize,
    },
    /// Not exactly one MediNet URI.
    #[error("expected one alternative name urn:medinet:<role>:<name> in the certificate, got {got}")]
    Uris {
        /// How many there are.
        got: usize,
    },
    /// The URI does not name a principal.
    #[error("expected an alternative name urn:medinet:<role>:<name>, got {got:?}")]
    BadUri {
        /// What stands there, shortened.
        got: String,
    },
    /// Common name and URI disagree.
    #[error("expected the common name {expected:?} as in the certificate's alternative name, got {got:?}")]
    CommonName {
        /// The URI's name.
        expected: String,
        /// The common name, shortened.
        got: String,
    },
    /// The public key is of another kind.
    #[error("expected an ECDSA P-256 public key in the certificate, got another kind")]
    Key,
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

/// The URI that names `principal` in certificates.
pub(crate) fn urn(principal: &Principal) -> String {
    format!("{URN_PREFIX}{}:{}", principal.role, principal.name)
}

/// The principal named by the subject's common names and the URIs among the alternative names.
pub(crate) fn principal_from(common_names: &[&str], uris: &[&str]) -> Result<Principal, PrincipalError> {
    let ours: Vec<&str> = uris.iter().filter_map(|uri| uri.strip_prefix(URN_PREFIX)).collect();
    let [named] = ours[..] else { return Err(PrincipalError::Uris { got: ours.len() }) };
    let bad = || PrincipalError::BadUri { got: shortened(&format!("{URN_PREFIX}{named}")) };
    let (role, name) = named.split_once(':').ok_or_else(bad)?;
    let role = role.parse::<Role>().map_err(|_| bad())?;
    let name = SiteId::new(name).map_err(|_| bad())?;
    let [common_name] = common_names[..] else {
        return Err(PrincipalError::CommonNames { got: common_names.len() });
    };
    if common_name != name.as_str() {
        return Err(PrincipalError::CommonName { expected: name.into(), got: shortened(common_name) });
    }
    Ok(Principal::new(role, name))
}

/// What MediNet needs of a certificate. Reading it proves nothing: see [`Trust`](crate::Trust) for that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateSummary {
    /// Whose it is.
    pub principal: Principal,
    /// Valid from; certificates count whole seconds.
    pub not_before: UnixMillis,
    /// Valid until, inclusive.
    pub not_after: UnixMillis,
    /// The P-256 public key: an uncompressed point (SEC 1, 2.3.3), 65 bytes.
    pub public_key: [u8; 65],
}

pub(crate) fn parse_certificate(der: &[u8]) -> Result<X509Certificate<'_>, PrincipalError> {
    if der.len() > MAX_CERTIFICATE_BYTES {
        return Err(PrincipalError::NotACertificate);
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(PrincipalError::NotACertificate),
    }
}

/// Seconds since 1970 as they stand in a certificate; times before that are taken as its start.
pub(crate) fn millis(timestamp: i64) -> UnixMillis {
    UnixMillis(u64::try_from(timestamp).unwrap_or(0).saturating_mul(1000))
}

impl CertificateSummary {
    /// Reads a certificate, DER.
    ///
    /// # Errors
    /// When it is no certificate, does not name one principal, or holds another kind of key.
    pub fn of(certificate_der: &[u8]) -> Result<Self, PrincipalError> {
        let certificate = parse_certificate(certificate_der)?;
        let mut uris = Vec::new();
        if let Some(names) =
            certificate.subject_alternative_name().map_err(|_| PrincipalError::NotACertificate)?
        {
            for name in &names.value.general_names {
                if let GeneralName::URI(uri) = name {
                    uris.push(*uri);
                }
            }
        }
        let common_names = certificate
            .subject()
            .iter_common_name()
            .map(|name| name.as_str())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| PrincipalError::NotACertificate)?;
        let principal = principal_from(&common_names, &uris)?;
        let public_key = p256_point(&certificate)?;
        let validity = certificate.validity();
        Ok(Self {
            principal,
            not_before: millis(validity.not_before.timestamp()),
            not_after: UnixMillis(millis(validity.not_after.timestamp()).0.saturating_add(999)),
            public_key,
        })
    }
}

fn p256_point(certificate: &X509Certificate<'_>) -> Result<[u8; 65], PrincipalError> {
    use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
    let info = certificate.public_key();
    let curve = info.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    if info.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY || curve != Some(OID_EC_P256) {
        return Err(PrincipalError::Key);
    }
    <[u8; 65]>::try_from(info.subject_public_key.data.as_ref())
        .ok()
        .filter(|point| point[0] == 0x04)
        .ok_or(PrincipalError::Key)
}

/// Who holds `certificate_der`, by its URI alternative name; the common name must agree. Proves nothing by itself:
/// call it on certificates that TLS or [`Trust`](crate::Trust) has verified.
///
/// # Errors
/// When the certificate does not name one principal.
pub fn principal_of(certificate_der: &[u8]) -> Result<Principal, PrincipalError> {
    CertificateSummary::of(certificate_der).map(|summary| summary.principal)
}

/// A name or an address under which a server is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Host {
    /// A DNS name, without wildcard.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

/// The text is neither a DNS name nor an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a DNS name such as broker.example.org or an IP address, got {got:?}")]
pub struct ParseHostError {
    got: String,
}

impl FromStr for Host {
    type Err = ParseHostError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Ip(address));
        }
        // A name of digits and dots alone is an address that failed to parse, never a host.
        let numeric = text.chars().all(|c| c.is_ascii_digit() || c == '.');
        match DnsName::try_from(text) {
            Ok(_) if !numeric => Ok(Self::Dns(text.to_ascii_lowercase())),
            _ => Err(ParseHostError { got: shortened(text) }),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

impl TryFrom<String> for Host {
    type Error = ParseHostError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Host> for String {
    fn from(host: Host) -> Self {
        host.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_name_must_agree_with_the_uri() {
        let north = principal_from(&["north"], &["urn:medinet:site:north"]).unwrap();
        assert_eq!(north, Principal::new(Role::Site, SiteId::new("north").unwrap()));
        assert!(matches!(
            principal_from(&["south"], &["urn:medinet:site:north"]),
            Err(PrincipalError::CommonName { .. })
        ));
        assert!(matches!(
            principal_from(&["north", "south"], &["urn:medinet:site:north"]),
            Err(PrincipalError::CommonNames { got: 2 })
        ));
        assert!(matches!(
            principal_from(&[], &["urn:medinet:site:north"]),
            Err(PrincipalError::CommonNames { got: 0 })
        ));
    }

    #[test]
    fn only_one_well_formed_uri_names_a_principal() {
        let two = ["urn:medinet:site:north", "urn:medinet:aggregator:north"];
        assert_eq!(principal_from(&["north"], &two), Err(PrincipalError::Uris { got: 2 }));
        assert_eq!(principal_from(&["north"], &["https://north"]), Err(PrincipalError::Uris { got: 0 }));
        for uri in
            ["urn:medinet:site", "urn:medinet:king:north", "urn:medinet:site:No", "urn:medinet:site:a:b"]
        {
            assert!(
                matches!(principal_from(&["north"], &[uri]), Err(PrincipalError::BadUri { .. })),
                "{uri}"
            );
        }
    }

    #[test]
    fn hosts_are_names_or_addresses_without_wildcards() {
        assert_eq!("Broker.Example.org".parse(), Ok(Host::Dns("broker.example.org".into())));
        assert_eq!("127.0.0.1".parse(), Ok(Host::Ip([127, 0, 0, 1].into())));
        assert!(matches!("::1".parse(), Ok(Host::Ip(IpAddr::V6(_)))));
        for text in ["", "*.example.org", "a b", "256.0.0.1", "http://x", "-a", "a..b"] {
            assert!(text.parse::<Host>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_certificate_are_refused() {
        for bytes in [&b""[..], b"0", &[0x30, 0x82, 0xff, 0xff], &vec![0x30; 20_000]] {
            assert_eq!(CertificateSummary::of(bytes), Err(PrincipalError::NotACertificate));
        }
    }
}
