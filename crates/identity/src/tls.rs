//! TLS configurations: the broker's and its clients'.
//!
//! Sessions are never resumed: a resumed session skips the certificate, and so the revocation list.

use crate::principal::principal_of;
use crate::trust::Trust;
use medinet_types::Role;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::{Arc, LazyLock};

static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));

/// The cryptography that all MediNet TLS uses: ring.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}

/// Makes ring the process's default, for libraries that look for one; a second call changes nothing. MediNet's own
/// configurations do not depend on it.
pub fn install_default_provider() {
    // Fails only when a default is set already, which is as good.
    let _ = PROVIDER.as_ref().clone().install_default();
}

/// The peer is proven, but not who it should be.
#[derive(Debug, thiserror::Error)]
#[error("expected the server to be a broker, got {0}")]
struct WrongRole(medinet_types::Principal);

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// Takes a server that our authority proves, under the name that was dialled, and that is a broker.
#[derive(Debug)]
struct BrokerVerifier(Arc<Trust>);

impl ServerCertVerifier for BrokerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verifiers = self.0.verifiers();
        let verified = verifiers.server.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        let principal = principal_of(end_entity).map_err(refused)?;
        if principal.role == Role::Broker { Ok(verified) } else { Err(refused(WrongRole(principal))) }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verifiers().server.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verifiers().server.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

/// Takes a client that our authority proves and that is some principal; what it may do is for topic rules to say.
#[derive(Debug)]
struct PartyVerifier {
    trust: Arc<Trust>,
    hints: Vec<DistinguishedName>,
}

impl ClientCertVerifier for PartyVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.trust.verifiers().client.verify_client_cert(end_entity, intermediates, now)?;
        principal_of(end_entity).map_err(refused)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.trust.verifiers().client.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.trust.verifiers().client.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

pub(crate) fn client_config(trust: &Arc<Trust>, own: Arc<SingleCertAndKey>) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .expect("ring serves TLS 1.3 and 1.2")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(BrokerVerifier(trust.clone())))
        .with_client_cert_resolver(own);
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

pub(crate) fn server_config(trust: &Arc<Trust>, own: Arc<SingleCertAndKey>) -> Arc<ServerConfig> {
    let verifier = PartyVerifier { trust: trust.clone(), hints: trust.subjects() };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .expect("ring serves TLS 1.3 and 1.2")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(own);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Arc::new(config)
}
