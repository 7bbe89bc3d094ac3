//! TLS towards the PACS: the site's own authority, and a client certificate where one is asked for.

use crate::error::DicomWebError;
use crate::settings::{ClientIdentity, DicomWebSettings};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;
use std::sync::Arc;

fn refused(reason: String) -> DicomWebError {
    DicomWebError::Settings { reason }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, DicomWebError> {
    let unreadable = |error: rustls_pki_types::pem::Error| {
        refused(format!("expected PEM certificates in {}: {error}", path.display()))
    };
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(unreadable)?
        .collect::<Result<_, _>>()
        .map_err(unreadable)?;
    if found.is_empty() {
        return Err(refused(format!("expected PEM certificates in {}, found none", path.display())));
    }
    Ok(found)
}

/// The TLS settings of one PACS; TLS 1.2 and 1.3, no other authority than the one that the site names.
pub(super) fn config(settings: &DicomWebSettings) -> Result<ClientConfig, DicomWebError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &settings.ca_file {
        let (added, _) = roots.add_parsable_certificates(certificates(path)?);
        if added == 0 {
            return Err(refused(format!("no certificate in {} can be used as an authority", path.display())));
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| refused(format!("TLS cannot be set up: {error}")))?
        .with_root_certificates(roots);
    let Some(ClientIdentity { certificate_file, key_file }) = &settings.client_identity else {
        return Ok(builder.with_no_client_auth());
    };
    let key = PrivateKeyDer::from_pem_file(key_file)
        .map_err(|error| refused(format!("expected a PEM private key in {}: {error}", key_file.display())))?;
    builder
        .with_client_auth_cert(certificates(certificate_file)?, key)
        .map_err(|error| refused(format!("the client certificate and its key do not serve: {error}")))
}
