//! Whom a party trusts: authorities and their revocation lists.

use crate::file::{FileError, read_public};
use crate::identity::signed_by;
use crate::principal::{CertificateSummary, millis, parse_certificate};
use crate::tls::provider;
use medinet_types::{Digest, Principal, UnixMillis};
use medinet_wire::envelope::{Verifier, VerifyError};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use rustls::client::WebPkiServerVerifier;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, DistinguishedName, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

/// Certificates whose proof is remembered; more parties than that only cost time.
const MAX_REMEMBERED: usize = 4096;

/// An authority's certificate or revocation list is unusable.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file could not be read, or is not what it should be.
    #[error(transparent)]
    File(#[from] FileError),
    /// A revocation list of somebody else.
    #[error("the revocation list in {} is not signed by an authority in {}: fetch the list of this federation",
        crl.display(), ca.display())]
    OtherAuthority {
        /// The list's file.
        crl: PathBuf,
        /// The authorities' file.
        ca: PathBuf,
    },
    /// An older list than the one in use.
    #[error("expected revocation list number {have} or newer in {}, got {got}: somebody put an old list there",
        path.display())]
    Older {
        /// The list's file.
        path: PathBuf,
        /// The number in use.
        have: String,
        /// The number in the file.
        got: String,
    },
}

/// The verifiers for one state of the revocation lists.
#[derive(Debug)]
pub(crate) struct Verifiers {
    pub(crate) client: Arc<dyn ClientCertVerifier>,
    pub(crate) server: Arc<WebPkiServerVerifier>,
    /// The earliest end of a list; the last moment where there is none.
    lists_end: UnixMillis,
    /// Number of each list by its issuer, big-endian without leading zeros.
    list_numbers: HashMap<Vec<u8>, Vec<u8>>,
    content: Digest,
}

/// A certificate whose proof is remembered.
struct Proven {
    summary: CertificateSummary,
    under: Arc<Verifiers>,
}

#[derive(Default)]
struct Memory {
    proven: HashMap<Digest, Arc<Proven>>,
    order: VecDeque<Digest>,
}

/// The authorities that a party trusts and their revocation lists: proves others, by certificate and signature.
///
/// A certificate is checked by RFC 5280 path validation for client authentication. Where a revocation list is
/// configured, every certificate's status must be known from a list that has not ended. Certificates that were
/// proven once are remembered, until the lists change or their time ends.
pub struct Trust {
    ca_path: PathBuf,
    crl_path: Option<PathBuf>,
    authorities: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
    verifiers: RwLock<Arc<Verifiers>>,
    memory: Mutex<Memory>,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust")
            .field("ca", &self.ca_path)
            .field("crl", &self.crl_path)
            .finish_non_exhaustive()
    }
}

impl Trust {
    /// Loads the authorities in `ca` (PEM, one or more certificates) and the revocation lists in `crl` (PEM, one
    /// list for each authority).
    ///
    /// # Errors
    /// When a file cannot be read, holds something else, or a list is not signed by one of the authorities.
    pub fn load(ca: &Path, crl: Option<&Path>) -> Result<Arc<Self>, TrustError> {
        let expected = "the certificate of an authority in PEM";
        let authorities = CertificateDer::pem_slice_iter(read_public(ca)?.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| FileError::content(ca, expected, error.to_string()))?;
        let mut roots = RootCertStore::empty();
        for authority in &authorities {
            let is_ca = parse_certificate(authority).is_ok_and(|certificate| certificate.is_ca());
            if !is_ca || roots.add(authority.clone()).is_err() {
                return Err(FileError::content(ca, expected, "the certificate of a party, or none").into());
            }
        }
        if roots.is_empty() {
            return Err(FileError::content(ca, expected, "no certificate").into());
        }
        let roots = Arc::new(roots);
        let verifiers = build(ca, &authorities, &roots, crl, None)?;
        Ok(Arc::new(Self {
            ca_path: ca.to_owned(),
            crl_path: crl.map(Path::to_owned),
            authorities,
            roots,
            verifiers: RwLock::new(Arc::new(verifiers)),
            memory: Mutex::default(),
        }))
    }

    /// Reads the revocation lists again; true when they changed. TLS configurations made from this trust, and
    /// every later check, follow at once. Connections that stand are not touched: check their certificates again
    /// with [`Trust::prove`].
    ///
    /// # Errors
    /// When the file is unusable, or older than the lists in use; those stay in use then.
    pub fn reload_crl(&self) -> Result<bool, TrustError> {
        let before = self.verifiers();
        let after =
            build(&self.ca_path, &self.authorities, &self.roots, self.crl_path.as_deref(), Some(&before))?;
        if after.content == before.content {
            return Ok(false);
        }
        *self.verifiers.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(after);
        // What was proven under the old lists is proven again when it comes.
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = Memory::default();
        Ok(true)
    }

    /// Until when the revocation lists can be relied on; `None` where none is configured. Past it nobody is proven.
    #[must_use]
    pub fn crl_end(&self) -> Option<UnixMillis> {
        self.crl_path.as_ref().map(|_| self.verifiers().lists_end)
    }

    /// Checks that `certificate_der` is issued by a trusted authority, valid at `now` and not revoked, and says
    /// whose it is.
    ///
    /// # Errors
    /// Says which of these does not hold.
    pub fn prove(&self, certificate_der: &[u8], now: UnixMillis) -> Result<Principal, VerifyError> {
        self.proven(certificate_der, now).map(|proven| proven.summary.principal.clone())
    }

    pub(crate) fn verifiers(&self) -> Arc<Verifiers> {
        self.verifiers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn subjects(&self) -> Vec<DistinguishedName> {
        self.roots.subjects()
    }

    pub(crate) fn signed(&self, certificate: &[u8]) -> bool {
        self.authorities.iter().any(|authority| signed_by(certificate, authority))
    }

    fn proven(&self, certificate_der: &[u8], now: UnixMillis) -> Result<Arc<Proven>, VerifyError> {
        let verifiers = self.verifiers();
        let digest = Digest::of(certificate_der);
        let known = self.memory.lock().unwrap_or_else(PoisonError::into_inner).proven.get(&digest).cloned();
        if let Some(known) = known {
            let summary = &known.summary;
            let in_time = (summary.not_before..=summary.not_after.min(verifiers.lists_end)).contains(&now);
            if in_time && Arc::ptr_eq(&known.under, &verifiers) {
                return Ok(known);
            }
        }
        let summary =
            CertificateSummary::of(certificate_der).map_err(|error| VerifyError(error.to_string()))?;
        let at = UnixTime::since_unix_epoch(Duration::from_millis(now.0));
        verifiers
            .client
            .verify_client_cert(&CertificateDer::from(certificate_der), &[], at)
            .map_err(|error| VerifyError(explain(&error, &summary.principal)))?;
        let proven = Arc::new(Proven { summary, under: verifiers });
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.proven.insert(digest, proven.clone()).is_none() {
            memory.order.push_back(digest);
            if memory.order.len() > MAX_REMEMBERED
                && let Some(oldest) = memory.order.pop_front()
            {
                memory.proven.remove(&oldest);
            }
        }
        Ok(proven)
    }
}

impl Verifier for Trust {
    fn verify(
        &self,
        certificate_der: &[u8],
        message: &[u8],
        signature: &[u8],
        now: UnixMillis,
    ) -> Result<Principal, VerifyError> {
        let proven = self.proven(certificate_der, now)?;
        let principal = &proven.summary.principal;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, proven.summary.public_key)
            .verify(message, signature)
            .map_err(|_| VerifyError(format!("the signature is not made by the key of {principal}")))?;
        Ok(principal.clone())
    }
}

/// What is wrong with a certificate, for people.
fn explain(error: &rustls::Error, principal: &Principal) -> String {
    use CertificateError as E;
    let what = match error {
        rustls::Error::InvalidCertificate(error) => match error {
            E::Expired | E::ExpiredContext { .. } => "has ended: it must enrol again",
            E::NotValidYet | E::NotValidYetContext { .. } => "is not valid yet: one of the clocks is wrong",
            E::Revoked => "is revoked",
            E::UnknownIssuer | E::BadSignature => "is not signed by an authority that is trusted here",
            E::UnknownRevocationStatus => "is of an authority whose revocation list is missing here",
            E::ExpiredRevocationList | E::ExpiredRevocationListContext { .. } => {
                "cannot be checked: the revocation list here has ended, fetch the newest"
            }
            E::InvalidPurpose | E::InvalidPurposeContext { .. } => "is not meant for this purpose",
            other => return format!("the certificate of {principal} is refused: {other}"),
        },
        other => return format!("the certificate of {principal} is refused: {other}"),
    };
    format!("the certificate of {principal} {what}")
}

fn build(
    ca: &Path,
    authorities: &[CertificateDer<'static>],
    roots: &Arc<RootCertStore>,
    crl: Option<&Path>,
    before: Option<&Verifiers>,
) -> Result<Verifiers, TrustError> {
    let mut lists = Vec::new();
    let mut lists_end = UnixMillis(u64::MAX);
    let mut list_numbers = HashMap::new();
    let mut content = Digest::of(b"");
    if let Some(path) = crl {
        let text = read_public(path)?;
        content = Digest::of(text.as_bytes());
        let expected = "revocation lists in PEM, each with a number and an end";
        lists = CertificateRevocationListDer::pem_slice_iter(text.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| FileError::content(path, expected, error.to_string()))?;
        if lists.is_empty() {
            return Err(FileError::content(path, expected, "none").into());
        }
        for list in &lists {
            let malformed = || FileError::content(path, expected, "something else");
            let Ok(([], parsed)) = CertificateRevocationList::from_der(list) else {
                return Err(malformed().into());
            };
            let signed = authorities.iter().any(|authority| {
                parse_certificate(authority).is_ok_and(|authority| {
                    authority.subject().as_raw() == parsed.issuer().as_raw()
                        && parsed.verify_signature(authority.public_key()).is_ok()
                })
            });
            if !signed {
                return Err(TrustError::OtherAuthority { crl: path.to_owned(), ca: ca.to_owned() });
            }
            let (Some(number), Some(next)) = (parsed.crl_number(), parsed.next_update()) else {
                return Err(malformed().into());
            };
            lists_end = lists_end.min(UnixMillis(millis(next.timestamp()).0.saturating_add(999)));
            let issuer = parsed.issuer().as_raw().to_vec();
            let number = number.to_bytes_be();
            // Numbers without leading zeros order by length, then byte by byte.
            let older = before
                .and_then(|before| before.list_numbers.get(&issuer))
                .filter(|have| (number.len(), &number) < (have.len(), have));
            if let Some(have) = older {
                let (have, got) = (decimal(have), decimal(&number));
                return Err(TrustError::Older { path: path.to_owned(), have, got });
            }
            if list_numbers.insert(issuer, number).is_some() {
                return Err(
                    FileError::content(path, "one revocation list for each authority", "two of one").into()
                );
            }
        }
    }
    let unusable = |path: &Path, error: &dyn std::fmt::Display| {
        FileError::content(path, "authorities and revocation lists that agree", error.to_string())
    };
    let client = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
        .with_crls(lists.clone())
        .enforce_revocation_expiration()
        .build()
        .map_err(|error| unusable(crl.unwrap_or(ca), &error))?;
    let server = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider())
        .with_crls(lists)
        .enforce_revocation_expiration()
        .build()
        .map_err(|error| unusable(crl.unwrap_or(ca), &error))?;
    Ok(Verifiers { client, server, lists_end, list_numbers, content })
}

/// A list's number for people: decimal where it fits 64 bits, as all of ours do.
fn decimal(number: &[u8]) -> String {
    if number.len() > 8 {
        return format!("of {} bytes", number.len());
    }
    number.iter().fold(0u64, |value, byte| (value << 8) | u64::from(*byte)).to_string()
}
