//! TLS handshakes: who gets through, and who does not.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod common;

use common::{DAY, Federation, days_before, localhost, principal, today};
use medinet_identity::{Identity, IdentityFiles, Target, principal_of, provider};
use medinet_types::{Principal, Role, UnixMillis};
use rcgen::string::Ia5String;
use rcgen::{DistinguishedName, DnType, ExtendedKeyUsagePurpose, SanType};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, ServerConfig, ServerConnection,
};
use rustls_pki_types::ServerName;
use std::io::{Read as _, Write as _};
use std::sync::Arc;

/// How a handshake over a pair of buffers went.
struct Outcome {
    client: Result<(), rustls::Error>,
    server: Result<(), rustls::Error>,
    /// Who the server takes the client for.
    seen: Option<Principal>,
    version: Option<ProtocolVersion>,
    kind: Option<HandshakeKind>,
}

fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>, name: &str) -> Outcome {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let (mut at_client, mut at_server) = (Ok(()), Ok(()));
    client.writer().write_all(b"ping").unwrap();
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut rest = &wire[..];
        while !rest.is_empty() && at_server.is_ok() {
            server.read_tls(&mut rest).unwrap();
            at_server = server.process_new_packets().map(|_| ());
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest = &wire[..];
        while !rest.is_empty() && at_client.is_ok() {
            client.read_tls(&mut rest).unwrap();
            at_client = client.process_new_packets().map(|_| ());
        }
    }
    let mut arrived = Vec::new();
    let _ = server.reader().read_to_end(&mut arrived);
    let seen = (at_server.is_ok() && arrived == b"ping")
        .then(|| principal_of(&server.peer_certificates().unwrap()[0]).unwrap());
    Outcome {
        client: at_client,
        server: at_server,
        seen,
        version: server.protocol_version(),
        kind: server.handshake_kind(),
    }
}

struct Parties {
    federation: Federation,
    broker: Identity,
    now: UnixMillis,
}

fn parties() -> Parties {
    let now = today();
    let federation = Federation::new(days_before(now, 60));
    federation.authority.renew_crl(now).unwrap();
    let (files, _) = federation.files_at(&principal(Role::Broker, "hub"), now, 30 * DAY);
    let broker = Identity::load(&files).unwrap();
    Parties { federation, broker, now }
}

impl Parties {
    fn site(&self) -> Identity {
        let (files, _) = self.federation.files_at(&principal(Role::Site, "north"), self.now, 30 * DAY);
        Identity::load(&files).unwrap()
    }
}

#[track_caller]
fn refused(result: &Result<(), rustls::Error>, why: &str) {
    let error = result.as_ref().expect_err("expected a refusal");
    let text = format!("{error} {error:?}");
    assert!(text.contains(why), "expected {why:?} in {text:?}");
}

#[test]
fn a_party_and_the_broker_prove_themselves_to_each_other() {
    let parties = parties();
    let site = parties.site();
    for name in ["localhost", "127.0.0.1"] {
        let outcome = shake(site.client_config(), parties.broker.server_config(), name);
        outcome.client.unwrap();
        outcome.server.unwrap();
        assert_eq!(outcome.seen, Some(principal(Role::Site, "north")));
        assert_eq!(outcome.version, Some(ProtocolVersion::TLSv1_3));
    }
}

#[test]
fn sessions_are_never_resumed() {
    let parties = parties();
    let (client, server) = (parties.site().client_config(), parties.broker.server_config());
    for _ in 0..2 {
        let outcome = shake(client.clone(), server.clone(), "localhost");
        assert_eq!(outcome.kind, Some(HandshakeKind::Full));
        assert!(outcome.seen.is_some());
    }
}

#[test]
fn a_revoked_party_is_refused_from_the_reload_on() {
    let parties = parties();
    let (files, entry) = parties.federation.files_at(&principal(Role::Site, "south"), parties.now, DAY);
    let south = Identity::load(&files).unwrap();
    let (client, server) = (south.client_config(), parties.broker.server_config());
    assert!(shake(client.clone(), server.clone(), "localhost").seen.is_some());
    parties.federation.authority.revoke(&Target::Serial(entry.serial), parties.now).unwrap();
    assert!(parties.broker.trust().reload_crl().unwrap());
    let outcome = shake(client, server.clone(), "localhost");
    refused(&outcome.server, "Revoked");
    assert_eq!(outcome.seen, None);
    assert!(outcome.client.is_err(), "the client is told");
    assert!(shake(parties.site().client_config(), server, "localhost").seen.is_some());
}

#[test]
fn a_revoked_broker_is_refused() {
    let parties = parties();
    let site = parties.site();
    parties
        .federation
        .authority
        .revoke(&Target::Principal(principal(Role::Broker, "hub")), parties.now)
        .unwrap();
    site.trust().reload_crl().unwrap();
    refused(&shake(site.client_config(), parties.broker.server_config(), "localhost").client, "Revoked");
}

#[test]
fn a_party_whose_certificate_has_ended_or_not_begun_is_refused() {
    let parties = parties();
    let who = principal(Role::Site, "late");
    let (ended, _) = parties.federation.files_at(&who, days_before(parties.now, 40), 30 * DAY);
    let (early, _) = parties.federation.files_at(&who, parties.now.after(2 * DAY), 30 * DAY);
    parties.federation.authority.renew_crl(parties.now).unwrap();
    parties.broker.trust().reload_crl().unwrap();
    for (files, why) in [(ended, "Expired"), (early, "NotValidYet")] {
        let late = Identity::load(&files).unwrap();
        let outcome = shake(late.client_config(), parties.broker.server_config(), "localhost");
        refused(&outcome.server, why);
        assert_eq!(outcome.seen, None);
    }
}

#[test]
fn a_broker_whose_certificate_has_ended_is_refused() {
    let parties = parties();
    let hub = principal(Role::Broker, "hub");
    let (ended, _) = parties.federation.files_at(&hub, days_before(parties.now, 40), 30 * DAY);
    parties.federation.authority.renew_crl(parties.now).unwrap();
    let ended = Identity::load(&ended).unwrap();
    refused(&shake(parties.site().client_config(), ended.server_config(), "localhost").client, "Expired");
}

#[test]
fn neither_side_takes_a_party_of_another_authority() {
    let (ours, theirs) = (parties(), parties());
    let outcome = shake(theirs.site().client_config(), ours.broker.server_config(), "localhost");
    // Both authorities have the same name, so that only the signature tells them apart.
    refused(&outcome.client, "BadSignature");

    // A client that would take any server still does not get in.
    let (files, _) = theirs.federation.files_at(&principal(Role::Site, "north"), theirs.now, DAY);
    let stranger = Identity::load(&files).unwrap();
    let lenient = trusting_of(&stranger, &ours);
    let outcome = shake(lenient, ours.broker.server_config(), "localhost");
    outcome.client.expect_err("the client is told");
    refused(&outcome.server, "BadSignature");
}

/// A client that checks the server by `parties`' authority, and shows `identity`.
fn trusting_of(identity: &Identity, parties: &Parties) -> Arc<ClientConfig> {
    let mut config = (*parties.site().client_config()).clone();
    config.client_auth_cert_resolver = identity.client_config().client_auth_cert_resolver.clone();
    Arc::new(config)
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let parties = parties();
    let mut config = (*parties.site().client_config()).clone();
    let none = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.client_auth_cert_resolver = none.client_auth_cert_resolver.clone();
    let outcome = shake(Arc::new(config), parties.broker.server_config(), "localhost");
    refused(&outcome.server, "NoCertificatesPresented");
}

#[test]
fn a_server_under_another_name_is_refused() {
    let parties = parties();
    let outcome = shake(parties.site().client_config(), parties.broker.server_config(), "example.org");
    refused(&outcome.client, "example.org");
}

/// A server with every right of a certificate except that of being a broker.
fn impostor(parties: &Parties, uri: &'static str, common_name: &'static str) -> Identity {
    let files: IdentityFiles = parties.federation.forged(common_name, |params| {
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.subject_alt_names = vec![
            SanType::URI(Ia5String::try_from(uri).unwrap()),
            SanType::DnsName(Ia5String::try_from(localhost()[0].to_string()).unwrap()),
        ];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    });
    Identity::load(&files).unwrap()
}

#[test]
fn a_server_that_is_no_broker_is_refused() {
    let parties = parties();
    let impostor = impostor(&parties, "urn:medinet:site:impostor", "impostor");
    let outcome = shake(parties.site().client_config(), impostor.server_config(), "localhost");
    refused(&outcome.client, "WrongRole");
    // The same certificate with the right role is taken: the role alone makes the difference.
    let right = self::impostor(&parties, "urn:medinet:broker:right", "right");
    assert!(shake(parties.site().client_config(), right.server_config(), "localhost").seen.is_some());
}

#[test]
fn a_broker_without_the_servers_purpose_is_refused() {
    let parties = parties();
    let site = parties.site();
    // A site's own certificate has no server name and no server purpose.
    let outcome = shake(parties.site().client_config(), site.server_config(), "localhost");
    assert!(outcome.client.is_err());
    assert_eq!(outcome.seen, None);
}

#[test]
fn nobody_gets_in_on_a_list_that_has_ended() {
    let now = today();
    let federation = Federation::new(days_before(now, 200));
    let hub = principal(Role::Broker, "hub");
    let (broker, _) = federation.files_at(&hub, days_before(now, 100), 365 * DAY);
    let (site, _) = federation.files_at(&principal(Role::Site, "north"), days_before(now, 100), 365 * DAY);
    let (broker, site) = (Identity::load(&broker).unwrap(), Identity::load(&site).unwrap());
    assert!(broker.trust().crl_end().unwrap() < UnixMillis(now.0));
    let outcome = shake(site.client_config(), broker.server_config(), "localhost");
    refused(&outcome.client, "ExpiredRevocationList");
    federation.authority.renew_crl(now).unwrap();
    for party in [&broker, &site] {
        party.trust().reload_crl().unwrap();
    }
    assert!(shake(site.client_config(), broker.server_config(), "localhost").seen.is_some());
}
