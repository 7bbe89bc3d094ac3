//! Certificates and private files of the parties, each in a folder of its own.

use anyhow::{Context as _, Result};
use medinet_identity::{Authority, Host, IdentityFiles, Issue, new_key_and_csr, write_private};
use medinet_types::{Principal, Role, SiteId};
use std::fs::{self, DirBuilder};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

/// A party's revocation list, in its folder.
const CRL: &str = "crl.pem";
const DAY: Duration = Duration::from_secs(86_400);

/// Makes an authority in `folder`.
pub(crate) fn authority(folder: &Path, name: &str) -> Result<Authority> {
    Ok(Authority::create(folder, name, 3650 * DAY, medinet_link::now())?)
}

/// What a server on loopback is called.
pub(crate) fn loopback() -> Result<[Host; 2]> {
    Ok([Host::Dns("localhost".to_owned()), "127.0.0.1".parse()?])
}

/// Makes a party's key and certificate, in its folder below `folder`.
pub(crate) fn enrol(
    authority: &Authority,
    folder: &Path,
    role: Role,
    name: &str,
    hosts: &[Host],
) -> Result<IdentityFiles> {
    let principal = Principal::new(role, SiteId::new(name)?);
    let own = folder.join(name);
    private_folder(&own)?;
    let (key, request) = new_key_and_csr(&principal)?;
    let issue = Issue { csr_pem: &request, principal: &principal, hosts, validity: 365 * DAY };
    let (certificate, _) = authority.issue(&issue, medinet_link::now())?;
    let files = identity_files(folder, name);
    write_private(&files.key, &key)?;
    fs::write(&files.certificate, certificate)?;
    fs::copy(authority.certificate_path(), &files.ca)?;
    fs::copy(authority.crl_path(), own.join(CRL))?;
    Ok(files)
}

/// The files of a party that was enrolled.
pub(crate) fn identity_files(folder: &Path, name: &str) -> IdentityFiles {
    let own = folder.join(name);
    IdentityFiles {
        certificate: own.join("certificate.pem"),
        key: own.join("key.pem"),
        ca: own.join("ca.pem"),
        crl: Some(own.join(CRL)),
    }
}

/// Makes a folder, and those above it, that only this user may enter.
pub(crate) fn private_folder(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make {}", path.display()))
}

/// Writes a new file that only this user may read.
pub(crate) fn private_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    Ok(file.write_all(bytes)?)
}
