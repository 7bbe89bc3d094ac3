//! A federation in a temporary folder.
#![allow(dead_code, unreachable_pub, reason = "each test program uses another part")]

use medinet_identity::{
    Authority, Host, Identity, IdentityFiles, Issue, Issued, new_key_and_csr, write_private, write_public,
};
use medinet_types::{Principal, Role, SiteId, UnixMillis};
use rcgen::{CertificateParams, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

pub const DAY: Duration = Duration::from_secs(86_400);

/// The moment at which the tests that do not use the system's clock take place: 2026-01-01.
pub const NOW: UnixMillis = UnixMillis(1_767_225_600_000);

/// The system's clock, for what TLS checks.
pub fn today() -> UnixMillis {
    UnixMillis(0).after(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap())
}

pub fn days_before(now: UnixMillis, days: u64) -> UnixMillis {
    UnixMillis(now.0 - days * 86_400_000)
}

pub fn principal(role: Role, name: &str) -> Principal {
    Principal::new(role, SiteId::new(name).unwrap())
}

pub fn localhost() -> Vec<Host> {
    vec!["localhost".parse().unwrap(), "127.0.0.1".parse().unwrap()]
}

pub struct Federation {
    pub folder: tempfile::TempDir,
    pub authority: Authority,
    pub now: UnixMillis,
}

impl Federation {
    /// An authority made at `now`, valid for ten years.
    pub fn new(now: UnixMillis) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(&folder.path().join("ca"), "Test", 3650 * DAY, now).unwrap();
        Self { folder, authority, now }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Key and certificate of a party, issued at `at` for `validity`, with the federation's own CA and list.
    pub fn files_at(&self, who: &Principal, at: UnixMillis, validity: Duration) -> (IdentityFiles, Issued) {
        let (key, csr) = new_key_and_csr(who).unwrap();
        let hosts = if who.role == Role::Broker { localhost() } else { vec![] };
        let issue = Issue { csr_pem: &csr, principal: who, hosts: &hosts, validity };
        let (certificate, entry) = self.authority.issue(&issue, at).unwrap();
        (self.write(&format!("{}-{}", entry.principal.role, entry.serial), &key, &certificate), entry)
    }

    pub fn files(&self, who: &Principal) -> (IdentityFiles, Issued) {
        self.files_at(who, self.now, 30 * DAY)
    }

    pub fn identity(&self, who: &Principal) -> Identity {
        Identity::load(&self.files(who).0).unwrap()
    }

    fn write(&self, stem: &str, key: &str, certificate: &str) -> IdentityFiles {
        let files = IdentityFiles {
            certificate: self.path(&format!("{stem}.pem")),
            key: self.path(&format!("{stem}.key")),
            ca: self.authority.certificate_path(),
            crl: Some(self.authority.crl_path()),
        };
        write_private(&files.key, key).unwrap();
        write_public(&files.certificate, certificate).unwrap();
        files
    }

    /// A party with a certificate that our own authority would never issue, but whose signature holds.
    pub fn forged(&self, stem: &str, change: impl FnOnce(&mut CertificateParams)) -> IdentityFiles {
        let ca_key = std::fs::read_to_string(self.path("ca/ca.key")).unwrap();
        let ca_key = KeyPair::from_pem(&ca_key).unwrap();
        let issuer = Issuer::from_ca_cert_pem(self.authority.certificate_pem(), ca_key).unwrap();
        let mut params = CertificateParams::default();
        change(&mut params);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        self.write(stem, &key.serialize_pem(), &certificate.pem())
    }
}

pub fn der(path: &Path) -> Vec<u8> {
    use rustls_pki_types::{CertificateDer, pem::PemObject as _};
    CertificateDer::from_pem_file(path).unwrap().to_vec()
}
