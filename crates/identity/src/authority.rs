//! The certificate authority of a federation: a folder with key, certificate, register and revocation list.

use crate::csr::{RequestError, naming, read_request};
use crate::file::{FileError, read_private, read_public, write_private, write_public};
use crate::issued::{Issued, Register, Serial};
use crate::principal::{Host, parse_certificate};
use medinet_types::{Principal, Role, UnixMillis};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData as _, RevocationReason, RevokedCertParams, SanType, SerialNumber,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use time::OffsetDateTime;

const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca.key";
const REGISTER: &str = "issued.json";
const CRL: &str = "crl.pem";
const LOCK: &str = ".lock";

/// How long a revocation list may be relied on when nothing else is said: 90 days. A list past its end leaves every
/// certificate unproven, so it is renewed at each issue and revocation, and by [`Authority::renew_crl`].
pub const DEFAULT_CRL_VALIDITY: Duration = Duration::from_secs(90 * 86_400);

/// How far a certificate's and a list's start lie before the authority's clock, so that a party whose clock is a
/// little behind can use them at once.
const BACKDATED: Duration = Duration::from_secs(600);

/// A certificate authority could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The folder holds an authority already.
    #[error("expected a folder without a certificate authority, got one in {}: open it, or choose another folder",
        .0.display())]
    Exists(PathBuf),
    /// The authority's name is unusable.
    #[error("expected an authority name of 1 to 64 printable characters, got {0:?}")]
    Name(String),
    /// The request is not one.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The request is for somebody else than the operator approved.
    #[error(
        "expected a request of {approved}, as approved, got one of {requested}: ask the sender which it is"
    )]
    OtherPrincipal {
        /// What the operator approved.
        approved: Principal,
        /// Who asks.
        requested: Principal,
    },
    /// The name is in use under another role.
    #[error(
        "expected a name that no other role uses, got {requested} while {holder} holds a certificate: brokers know a \
         party by its name alone, so choose another name"
    )]
    NameTaken {
        /// Who asks.
        requested: Principal,
        /// Who has the name.
        holder: Principal,
    },
    /// Server names where none belong, or none where they do.
    #[error("expected {expected}, got {got} for {principal}")]
    Hosts {
        /// The rule.
        expected: &'static str,
        /// How many there are.
        got: usize,
        /// Whose certificate it would be.
        principal: Principal,
    },
    /// The validity is zero, or ends after the authority's own, or cannot be written in a certificate.
    #[error("expected a validity that ends within the authority's own, got {} days", .0.as_secs() / 86_400)]
    Validity(Duration),
    /// No such certificate.
    #[error(
        "expected a certificate in the register, got {0}, which has none that is valid: see `medinet ca list`"
    )]
    Unknown(String),
    /// The key in the folder is not the certificate's.
    #[error("the key in {} does not belong to the certificate beside it: restore both from one backup", .0.display())]
    KeyMismatch(PathBuf),
    /// The system's random source failed; environment.
    #[error("the system's random source failed")]
    Random,
    /// A certificate could not be made.
    #[error("the certificate could not be made")]
    Encode(#[from] rcgen::Error),
}

/// What to put in a certificate, as the operator approved it.
#[derive(Debug, Clone)]
pub struct Issue<'a> {
    /// The request, PEM.
    pub csr_pem: &'a str,
    /// Whom the operator approved; the request must be of the same.
    pub principal: &'a Principal,
    /// Under which names and addresses a broker is reached; empty for every other role.
    pub hosts: &'a [Host],
    /// How long the certificate is valid from now.
    pub validity: Duration,
}

/// What to revoke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// One certificate.
    Serial(Serial),
    /// Every certificate of a party that is still valid.
    Principal(Principal),
}

/// A certificate authority in a folder: `ca.pem`, `ca.key` (mode 0600), `issued.json` (the register) and `crl.pem`,
/// which is always there. Several processes may use one folder: each change is made under a lock.
pub struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    not_after: UnixMillis,
    crl_validity: Duration,
}

fn moment(at: UnixMillis) -> Result<OffsetDateTime, AuthorityError> {
    let seconds = i64::try_from(at.0 / 1000).map_err(|_| rcgen::Error::Time)?;
    Ok(OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| rcgen::Error::Time)?)
}

fn before(at: UnixMillis) -> UnixMillis {
    UnixMillis(at.0.saturating_sub(u64::try_from(BACKDATED.as_millis()).unwrap_or(0)))
}

fn new_serial() -> Result<Serial, AuthorityError> {
    let mut bytes = [0u8; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| AuthorityError::Random)?;
    Ok(Serial::from_random(bytes))
}

impl Authority {
    /// Makes a new authority in `dir`, which is created where needed: a P-256 key, a self-signed certificate
    /// (CA, certificate and list signing) of `name` valid for `validity` from `now`, and an empty revocation list.
    ///
    /// # Errors
    /// When the folder holds an authority already, or cannot be written.
    pub fn create(
        dir: &Path,
        name: &str,
        validity: Duration,
        now: UnixMillis,
    ) -> Result<Self, AuthorityError> {
        if name.is_empty() || name.chars().count() > 64 || name.chars().any(char::is_control) {
            return Err(AuthorityError::Name(name.chars().take(80).collect()));
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(FileError::io("create folder", dir))?;
        let _lock = lock(dir)?;
        if [CERTIFICATE, KEY, REGISTER].iter().any(|file| dir.join(file).exists()) {
            return Err(AuthorityError::Exists(dir.to_owned()));
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "MediNet");
        params.distinguished_name.push(DnType::CommonName, name);
        // No intermediate authorities: what this key signs is a party.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(SerialNumber::from_slice(new_serial()?.as_bytes()));
        params.not_before = moment(before(now))?;
        params.not_after = end(now, validity)?;
        let certificate_pem = params.self_signed(&key)?.pem();
        write_private(&dir.join(KEY), &zeroize::Zeroizing::new(key.serialize_pem()))?;
        write_public(&dir.join(CERTIFICATE), &certificate_pem)?;
        let authority = Self {
            dir: dir.to_owned(),
            issuer: Issuer::new(params, key),
            certificate_pem,
            not_after: now.after(validity),
            crl_validity: DEFAULT_CRL_VALIDITY,
        };
        let mut register = Register::new();
        authority.write_crl(&mut register, now)?;
        Ok(authority)
    }

    /// Opens the authority in `dir`.
    ///
    /// # Errors
    /// When a file is missing or unreadable, the key is readable by others, or key and certificate do not match.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        let certificate_path = dir.join(CERTIFICATE);
        let certificate_pem = read_public(&certificate_path)?;
        let unreadable =
            || FileError::content(&certificate_path, "the authority's certificate", "something else");
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|_| unreadable())?;
        let certificate = parse_certificate(&der).map_err(|_| unreadable())?;
        let not_after = crate::principal::millis(certificate.validity().not_after.timestamp());
        let key_path = dir.join(KEY);
        let key =
            KeyPair::from_pkcs8_pem_and_sign_algo(&read_private(&key_path)?, &PKCS_ECDSA_P256_SHA256)
                .map_err(|_| FileError::content(&key_path, "a P-256 key in PKCS #8 PEM", "something else"))?;
        if certificate.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
            return Err(AuthorityError::KeyMismatch(key_path));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Register::read(&dir.join(REGISTER))?;
        Ok(Self {
            dir: dir.to_owned(),
            issuer,
            certificate_pem: certificate_pem.clone(),
            not_after,
            crl_validity: DEFAULT_CRL_VALIDITY,
        })
    }

    /// Sets how long the revocation lists that this value writes may be relied on.
    #[must_use]
    pub fn with_crl_validity(mut self, validity: Duration) -> Self {
        self.crl_validity = validity;
        self
    }

    /// The authority's certificate, PEM: what every party trusts.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Where the newest revocation list stands.
    #[must_use]
    pub fn crl_path(&self) -> PathBuf {
        self.dir.join(CRL)
    }

    /// Where the authority's certificate stands.
    #[must_use]
    pub fn certificate_path(&self) -> PathBuf {
        self.dir.join(CERTIFICATE)
    }

    /// Signs a request: the certificate (PEM) and its entry in the register. A party may have several valid
    /// certificates, so that it can renew before the old one ends.
    ///
    /// # Errors
    /// When the request's own signature does not hold, is of somebody else than the operator approved, or the
    /// certificate would break a rule; nothing is registered then.
    pub fn issue(&self, issue: &Issue<'_>, now: UnixMillis) -> Result<(String, Issued), AuthorityError> {
        let principal = issue.principal;
        let (requested, public_key) = read_request(issue.csr_pem)?;
        if requested != *principal {
            return Err(AuthorityError::OtherPrincipal { approved: principal.clone(), requested });
        }
        let is_broker = principal.role == Role::Broker;
        if is_broker == issue.hosts.is_empty() {
            let expected = if is_broker {
                "at least one DNS name or IP address under which the broker is reached"
            } else {
                "no DNS name or IP address: only a broker is a server"
            };
            let got = issue.hosts.len();
            return Err(AuthorityError::Hosts { expected, got, principal: principal.clone() });
        }
        let not_after = now.after(issue.validity);
        if issue.validity < Duration::from_secs(1) || not_after > self.not_after {
            return Err(AuthorityError::Validity(issue.validity));
        }
        let serial = new_serial()?;
        let mut params = naming(principal)?;
        for host in issue.hosts {
            params.subject_alt_names.push(match host {
                Host::Dns(name) => SanType::DnsName(Ia5String::try_from(name.as_str())?),
                Host::Ip(address) => SanType::IpAddress(*address),
            });
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if is_broker {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
        params.not_before = moment(before(now))?;
        params.not_after = end(now, issue.validity)?;
        let pem = params.signed_by(&public_key, &self.issuer)?.pem();
        let entry = Issued {
            serial,
            principal: principal.clone(),
            hosts: issue.hosts.to_vec(),
            issued_at: now,
            not_after,
            revoked_at: None,
        };

        let _lock = lock(&self.dir)?;
        let mut register = Register::read(&self.dir.join(REGISTER))?;
        let taken = |other: &&Issued| {
            other.is_active(now) && other.principal.name == principal.name && other.principal != *principal
        };
        if let Some(other) = register.certificates.iter().find(taken) {
            let holder = other.principal.clone();
            return Err(AuthorityError::NameTaken { requested: principal.clone(), holder });
        }
        register.certificates.push(entry.clone());
        // Registered first: a certificate that exists can always be revoked.
        self.write_crl(&mut register, now)?;
        Ok((pem, entry))
    }

    /// Revokes certificates and renews the revocation list; returns the entries concerned. Revoking a certificate
    /// again changes nothing but the list's dates.
    ///
    /// # Errors
    /// When no certificate matches, or a file cannot be written.
    pub fn revoke(&self, target: &Target, now: UnixMillis) -> Result<Vec<Issued>, AuthorityError> {
        let _lock = lock(&self.dir)?;
        let mut register = Register::read(&self.dir.join(REGISTER))?;
        let mut revoked = Vec::new();
        for entry in &mut register.certificates {
            let meant = match target {
                Target::Serial(serial) => entry.serial == *serial,
                Target::Principal(principal) => entry.principal == *principal && entry.is_active(now),
            };
            if meant {
                entry.revoked_at.get_or_insert(now);
                revoked.push(entry.clone());
            }
        }
        if revoked.is_empty() {
            return Err(AuthorityError::Unknown(match target {
                Target::Serial(serial) => serial.to_string(),
                Target::Principal(principal) => principal.to_string(),
            }));
        }
        self.write_crl(&mut register, now)?;
        Ok(revoked)
    }

    /// Writes a new revocation list with the same content, so that it can be relied on for longer.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn renew_crl(&self, now: UnixMillis) -> Result<(), AuthorityError> {
        let _lock = lock(&self.dir)?;
        let mut register = Register::read(&self.dir.join(REGISTER))?;
        self.write_crl(&mut register, now)
    }

    /// Every certificate issued, oldest first.
    ///
    /// # Errors
    /// When the register cannot be read.
    pub fn issued(&self) -> Result<Vec<Issued>, AuthorityError> {
        Ok(Register::read(&self.dir.join(REGISTER))?.certificates)
    }

    /// Writes the register with the next list number, then the list; a crash in between is mended by the next call.
    fn write_crl(&self, register: &mut Register, now: UnixMillis) -> Result<(), AuthorityError> {
        register.crl_number += 1;
        let mut revoked_certs = Vec::new();
        for entry in &register.certificates {
            // A certificate stays on the list after its own end: a verifier's clock may be behind.
            if let Some(revoked_at) = entry.revoked_at {
                revoked_certs.push(RevokedCertParams {
                    serial_number: SerialNumber::from_slice(entry.serial.as_bytes()),
                    revocation_time: moment(revoked_at)?,
                    reason_code: Some(RevocationReason::CessationOfOperation),
                    invalidity_date: None,
                });
            }
        }
        let list = CertificateRevocationListParams {
            this_update: moment(before(now))?,
            next_update: end(now, self.crl_validity)?,
            crl_number: SerialNumber::from(register.crl_number),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let pem = list.signed_by(&self.issuer)?.pem()?;
        register.write(&self.dir.join(REGISTER))?;
        Ok(write_public(&self.dir.join(CRL), &pem)?)
    }
}

fn end(now: UnixMillis, validity: Duration) -> Result<OffsetDateTime, AuthorityError> {
    moment(now.after(validity)).map_err(|_| AuthorityError::Validity(validity))
}

/// Held while the register changes; released when dropped, also when the process dies.
fn lock(dir: &Path) -> Result<File, AuthorityError> {
    let path = dir.join(LOCK);
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(FileError::io("open", &path))?;
    file.lock().map_err(FileError::io("lock", &path))?;
    Ok(file)
}
