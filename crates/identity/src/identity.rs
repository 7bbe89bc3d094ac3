//! A party's own certificate and key.

use crate::file::{FileError, read_private, read_public};
use crate::principal::{CertificateSummary, PrincipalError, parse_certificate};
use crate::tls;
use crate::trust::{Trust, TrustError};
use medinet_types::{Principal, UnixMillis};
use medinet_wire::envelope::{SignError, Signer};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use zeroize::Zeroize as _;

/// Where a party's identity stands. In a settings file the paths are relative to that file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityFiles {
    /// The party's certificate, PEM.
    #[serde(deserialize_with = "medinet_settings::resolved")]
    pub certificate: PathBuf,
    /// Its key, PKCS #8 PEM, readable by the owner alone.
    #[serde(deserialize_with = "medinet_settings::resolved")]
    pub key: PathBuf,
    /// The certificates of the authorities that are trusted, PEM.
    #[serde(deserialize_with = "medinet_settings::resolved")]
    pub ca: PathBuf,
    /// Their revocation lists, PEM; without it nothing is ever taken as revoked.
    #[serde(default, deserialize_with = "medinet_settings::resolved_option")]
    pub crl: Option<PathBuf>,
}

/// An identity could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be read, or is not what it should be.
    #[error(transparent)]
    File(#[from] FileError),
    /// The authority's certificate or revocation list is unusable.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The certificate does not name a principal.
    #[error("the certificate in {} cannot be used", path.display())]
    Principal {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        source: PrincipalError,
    },
    /// Key and certificate are of two different pairs.
    #[error(
        "the key in {} does not belong to the certificate in {}: install the certificate that was made from this \
         key's request",
        key.display(), certificate.display()
    )]
    KeyMismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// Signed by an authority that is not trusted.
    #[error(
        "the certificate of {principal} in {} is not signed by an authority in {}: install the CA certificate that \
         came with it",
        certificate.display(), ca.display()
    )]
    OtherAuthority {
        /// Whose certificate it is.
        principal: Principal,
        /// The certificate's file.
        certificate: PathBuf,
        /// The authorities' file.
        ca: PathBuf,
    },
    /// The certificate is outside its time.
    #[error("the certificate of {principal} {what}: {hint}")]
    Time {
        /// Whose certificate it is.
        principal: Principal,
        /// In which way.
        what: &'static str,
        /// What to do.
        hint: &'static str,
    },
}

/// A party's own certificate and key, and whom it trusts. Signs envelopes ([`Signer`]) and makes TLS configurations.
pub struct Identity {
    summary: CertificateSummary,
    certificate: CertificateDer<'static>,
    signing: EcdsaKeyPair,
    random: SystemRandom,
    pub(crate) tls: Arc<SingleCertAndKey>,
    trust: Arc<Trust>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("principal", &self.summary.principal).finish_non_exhaustive()
    }
}

impl Identity {
    /// Loads an identity and checks that its parts belong together. Whether the certificate is valid now is for
    /// [`Identity::check_time`], so that an appliance can start, and be renewed, after its certificate has ended.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn load(files: &IdentityFiles) -> Result<Self, IdentityError> {
        let trust = Trust::load(&files.ca, files.crl.as_deref())?;
        let path = &files.certificate;
        let expected = "a certificate in PEM";
        let chain = CertificateDer::pem_slice_iter(read_public(path)?.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| FileError::content(path, expected, error.to_string()))?;
        let certificate = chain.first().cloned().ok_or_else(|| FileError::content(path, expected, "none"))?;
        let summary = CertificateSummary::of(&certificate)
            .map_err(|source| IdentityError::Principal { path: path.clone(), source })?;

        let expected = "a P-256 key in PKCS #8 PEM (BEGIN PRIVATE KEY)";
        let unusable = |got: &str| FileError::content(&files.key, expected, got);
        let pem = read_private(&files.key)?;
        let mut pkcs8 =
            PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| unusable("something else"))?;
        let random = SystemRandom::new();
        let loaded =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.secret_pkcs8_der(), &random)
                .map_err(|_| unusable("another kind of key"))
                .and_then(|signing| {
                    let key = PrivateKeyDer::Pkcs8(pkcs8.clone_key());
                    let tls = rustls::crypto::ring::sign::any_ecdsa_type(&key)
                        .map_err(|_| unusable("another kind of key"))?;
                    Ok((signing, tls))
                });
        pkcs8.zeroize();
        let (signing, tls_key) = loaded?;
        if signing.public_key().as_ref() != summary.public_key {
            return Err(IdentityError::KeyMismatch { key: files.key.clone(), certificate: path.clone() });
        }
        if !trust.signed(&certificate) {
            return Err(IdentityError::OtherAuthority {
                principal: summary.principal,
                certificate: path.clone(),
                ca: files.ca.clone(),
            });
        }
        let tls = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, tls_key)));
        Ok(Self { summary, certificate, signing, random, tls, trust })
    }

    /// Who this is.
    #[must_use]
    pub fn principal(&self) -> &Principal {
        &self.summary.principal
    }

    /// Until when the certificate is valid.
    #[must_use]
    pub fn not_after(&self) -> UnixMillis {
        self.summary.not_after
    }

    /// Whom this party trusts; the TLS configurations follow when its revocation list is reloaded.
    #[must_use]
    pub fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    /// Checks that the certificate is valid at `now`.
    ///
    /// # Errors
    /// Says whether it has ended or not begun.
    pub fn check_time(&self, now: UnixMillis) -> Result<(), IdentityError> {
        let (what, hint) = if now > self.summary.not_after {
            ("has ended", "enrol again")
        } else if now < self.summary.not_before {
            ("is not valid yet", "set this machine's clock")
        } else {
            return Ok(());
        };
        Err(IdentityError::Time { principal: self.summary.principal.clone(), what, hint })
    }

    /// The client side of TLS 1.3 and 1.2: presents this identity; takes a server only when a trusted authority
    /// proves it under the name that is dialled, it is not revoked, and it is a broker.
    #[must_use]
    pub fn client_config(&self) -> Arc<ClientConfig> {
        tls::client_config(&self.trust, self.tls.clone())
    }

    /// The server side of TLS 1.3 and 1.2: presents this identity; requires a client certificate that a trusted
    /// authority proves, that is not revoked, and that names a principal (see [`principal_of`](crate::principal_of)
    /// on the first peer certificate).
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        tls::server_config(&self.trust, self.tls.clone())
    }
}

impl Signer for Identity {
    fn certificate_der(&self) -> &[u8] {
        &self.certificate
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        self.signing
            .sign(&self.random, message)
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| SignError("the system's random source failed".into()))
    }
}

/// Whether `certificate` is signed by `authority`; nothing else about either is looked at.
pub(crate) fn signed_by(certificate: &[u8], authority: &[u8]) -> bool {
    match (parse_certificate(certificate), parse_certificate(authority)) {
        (Ok(certificate), Ok(authority)) => {
            certificate.issuer().as_raw() == authority.subject().as_raw()
                && certificate.verify_signature(Some(authority.public_key())).is_ok()
        }
        _ => false,
    }
}
