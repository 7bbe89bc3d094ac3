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
    ServerConfig, SignatureScheme, SupportedProtocolVersion,
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

/// The protocol versions that are spoken.
const VERSIONS: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

pub(crate) fn client_config(trust: &Arc<Trust>, own: Arc<SingleCertAndKey>) -> Arc<ClientConfig> {
    client_config_of(trust, own, VERSIONS)
}

fn client_config_of(
    trust: &Arc<Trust>,
    own: Arc<SingleCertAndKey>,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .expect("ring serves TLS 1.3 and 1.2")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(BrokerVerifier(trust.clone())))
        .with_client_cert_resolver(own);
    config.resumption = Resumption::disabled();
    // RFC 7627: without it TLS 1.2 does not bind the session to the certificates.
    config.require_ems = true;
    Arc::new(config)
}

pub(crate) fn server_config(trust: &Arc<Trust>, own: Arc<SingleCertAndKey>) -> Arc<ServerConfig> {
    let verifier = PartyVerifier { trust: trust.clone(), hints: trust.subjects() };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .expect("ring serves TLS 1.3 and 1.2")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(own);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.require_ems = true;
    Arc::new(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Authority, Identity, IdentityFiles, Issue, Target, new_key_and_csr, write_private, write_public,
    };
    use medinet_types::{Principal, SiteId, UnixMillis};
    use rustls::{ClientConnection, ProtocolVersion, ServerConnection};
    use std::time::{Duration, SystemTime};

    fn shake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Result<ProtocolVersion, Error> {
        let mut client = ClientConnection::new(client.clone(), "localhost".try_into().unwrap()).unwrap();
        let mut server = ServerConnection::new(server.clone()).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut &wire[..]).unwrap();
            server.process_new_packets()?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut &wire[..]).unwrap();
            client.process_new_packets()?;
        }
        Ok(server.protocol_version().unwrap())
    }

    #[test]
    fn tls_1_2_is_spoken_with_the_same_checks() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let now = UnixMillis(0).after(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap());
        let year = Duration::from_secs(365 * 86_400);
        let authority = Authority::create(&path("ca"), "Test", 2 * year, now).unwrap();
        let enrol = |role: Role, hosts: &[crate::Host]| {
            let principal = Principal::new(role, SiteId::new(role.as_str()).unwrap());
            let (key, csr_pem) = new_key_and_csr(&principal).unwrap();
            let issue = Issue { csr_pem: &csr_pem, principal: &principal, hosts, validity: year };
            let (certificate, _) = authority.issue(&issue, now).unwrap();
            let files = IdentityFiles {
                certificate: path(&format!("{role}.pem")),
                key: path(&format!("{role}.key")),
                ca: authority.certificate_path(),
                crl: Some(authority.crl_path()),
            };
            write_private(&files.key, &key).unwrap();
            write_public(&files.certificate, &certificate).unwrap();
            (principal, Identity::load(&files).unwrap())
        };
        let (_, broker) = enrol(Role::Broker, &["localhost".parse().unwrap()]);
        let (site_principal, site) = enrol(Role::Site, &[]);
        let (client, server) = (site.client_config_of(&[&TLS12]), broker.server_config());
        assert_eq!(shake(&client, &server), Ok(ProtocolVersion::TLSv1_2));
        authority.revoke(&Target::Principal(site_principal), now).unwrap();
        broker.trust().reload_crl().unwrap();
        assert_eq!(shake(&client, &server), Err(Error::InvalidCertificate(CertificateError::Revoked)));
    }

    impl Identity {
        fn client_config_of(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
            client_config_of(self.trust(), self.tls.clone(), versions)
        }
    }
}
