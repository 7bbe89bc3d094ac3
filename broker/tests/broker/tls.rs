//! Who gets through the handshake, and what a stalled one costs the others.

use crate::fixture::{Fixture, PATIENCE, Parties, now};
use crate::raw::{ConnectOptions, Raw, connect_packet};
use medinet_identity::{Identity, provider};
use medinet_types::HumanDuration;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A client that trusts the broker's authority and presents what the test gives it.
async fn refused_by_tls(fixture: &Fixture, certificate_of: Option<&medinet_identity::IdentityFiles>) {
    let mut roots = RootCertStore::empty();
    let ca = fixture.parties.authority.certificate_pem();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match certificate_of {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let certificate = CertificateDer::from_pem_file(&files.certificate).unwrap();
            let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
            builder.with_client_auth_cert(vec![certificate], key).unwrap()
        }
    };
    let tcp = TcpStream::connect(fixture.broker.local_addr()).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    // In TLS 1.3 the client is done before the server has judged its certificate: the refusal comes with the first
    // read.
    let Ok(mut stream) = connector.connect("127.0.0.1".try_into().unwrap(), tcp).await else { return };
    let _ = stream.write_all(&connect_packet(&ConnectOptions { clean: true, ..Default::default() })).await;
    let read = tokio::time::timeout(PATIENCE, stream.read_u8()).await.expect("neither refused nor answered");
    assert!(read.is_err(), "the broker answered");
}

#[tokio::test]
async fn a_certificate_is_required() {
    let fixture = Fixture::new();
    refused_by_tls(&fixture, None).await;
    fixture.client("site:north").await.ping().await;
    fixture.until(|counted| counted.handshakes_failed == 1).await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let fixture = Fixture::new();
    let others = Parties::new();
    refused_by_tls(&fixture, Some(&others.files("site:north"))).await;
    fixture.until(|counted| counted.handshakes_failed == 1).await;
}

#[tokio::test]
async fn a_certificate_that_has_ended_is_refused() {
    let fixture = Fixture::new();
    let files = fixture.parties.files_valid("site:north", Duration::from_secs(1));
    let ended = Identity::load(&files).unwrap().not_after();
    while now() <= ended {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    refused_by_tls(&fixture, Some(&files)).await;
}

#[tokio::test]
async fn plain_tcp_is_refused() {
    let fixture = Fixture::new();
    let mut tcp = TcpStream::connect(fixture.broker.local_addr()).await.unwrap();
    tcp.write_all(&connect_packet(&ConnectOptions { clean: true, ..Default::default() })).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut answer)).await.expect("not closed");
    assert_ne!(answer.first(), Some(&0x20), "a CONNACK");
}

#[tokio::test]
async fn revocation_ends_the_connection_and_refuses_the_next() {
    let fixture = Fixture::new();
    let mut north = fixture.client("site:north").await;
    let mut south = fixture.client("site:south").await;
    let mut operator = fixture.client("operator:ops").await;
    let files = fixture.parties.files("site:north");
    north.ping().await;
    fixture.parties.revoke("site:north");
    north.closed().await;
    assert_eq!(fixture.broker.counters().revoked, 1);
    refused_by_tls(&fixture, Some(&files)).await;
    south.ping().await;
    operator.ping().await;
}

#[tokio::test]
async fn a_certificate_that_ends_while_connected_ends_the_connection() {
    let fixture = Fixture::new();
    fixture.parties.files_valid("site:north", Duration::from_secs(4));
    let mut north = fixture.client("site:north").await;
    north.closed().await;
    assert_eq!(fixture.broker.counters().revoked, 1);
}

#[tokio::test]
async fn a_broken_revocation_list_changes_nothing() {
    let fixture = Fixture::new();
    let mut north = fixture.client("site:north").await;
    let list = fixture.parties.authority.crl_path();
    let good = std::fs::read(&list).unwrap();
    std::fs::write(&list, "no list").unwrap();
    // Longer than the broker's look at the file takes.
    tokio::time::sleep(Duration::from_millis(400)).await;
    north.ping().await;
    std::fs::write(&list, good).unwrap();
    fixture.parties.revoke("site:north");
    north.closed().await;
}

#[tokio::test]
async fn a_renewed_broker_certificate_is_taken_into_use() {
    let fixture = Fixture::new();
    let served = |fixture: &Fixture| {
        let identity = fixture.parties.identity("site:north");
        let address = fixture.broker.local_addr();
        async move {
            let raw = Raw::open(address, &identity).await.unwrap();
            raw.stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
        }
    };
    let before = served(&fixture).await;
    let old = fixture.parties.path().join("broker-broker");
    std::fs::rename(&old, fixture.parties.path().join("old")).unwrap();
    fixture.parties.files("broker:broker");
    let renewed = async {
        while served(&fixture).await == before {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, renewed).await.unwrap();
    fixture.client("site:south").await.ping().await;
}

#[tokio::test]
async fn stalled_handshakes_delay_nobody() {
    let fixture = Fixture::new();
    let mut stalled = Vec::new();
    for _ in 0..20 {
        stalled.push(TcpStream::connect(fixture.broker.local_addr()).await.unwrap());
    }
    for principal in ["site:north", "site:south", "aggregator:hub"] {
        fixture.client(principal).await.ping().await;
    }
    // They stall all the while: none has been closed.
    for tcp in &stalled {
        let outcome = tcp.try_read(&mut [0]);
        assert_eq!(outcome.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}

#[tokio::test]
async fn stalled_handshakes_end() {
    let fixture = Fixture::with(|settings| {
        settings.connections.handshake_timeout = HumanDuration(Duration::from_millis(300));
    });
    let mut stalled = Vec::new();
    for _ in 0..20 {
        stalled.push(TcpStream::connect(fixture.broker.local_addr()).await.unwrap());
    }
    for mut tcp in stalled {
        let outcome = tokio::time::timeout(PATIENCE, tcp.read_u8()).await.expect("not closed");
        assert!(outcome.is_err());
    }
    fixture.until(|counted| counted.handshakes_failed == 20).await;
}

#[tokio::test]
async fn one_address_has_only_so_many_handshakes_at_a_time() {
    let fixture = Fixture::with(|settings| settings.connections.max_handshakes_per_address = 3);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(TcpStream::connect(fixture.broker.local_addr()).await.unwrap());
    }
    let mut crowded = TcpStream::connect(fixture.broker.local_addr()).await.unwrap();
    let outcome = tokio::time::timeout(PATIENCE, crowded.read_u8()).await.expect("not closed");
    assert!(outcome.is_err());
    assert_eq!(fixture.broker.counters().handshakes_crowded, 1);
    drop(held);
    // Another address was never concerned; this one is served again once its handshakes are over.
    let served = async {
        while Raw::open(fixture.broker.local_addr(), &fixture.parties.identity("site:north")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, served).await.unwrap();
}

#[test]
fn only_a_broker_may_be_one() {
    let parties = Parties::new();
    let mut settings = crate::fixture::settings(&parties);
    settings.identity = parties.files("site:north");
    let error = medinet_broker::start(settings).err().unwrap();
    assert!(
        error.to_string().contains("expected the certificate of a broker, got that of site:north"),
        "{error}"
    );
}

#[test]
fn impossible_settings_are_refused_before_anything_starts() {
    let parties = Parties::new();
    let mut settings = crate::fixture::settings(&parties);
    settings.connections.max_inflight = 0;
    let error = medinet_broker::start(settings).err().unwrap();
    assert_eq!(error.to_string(), "settings: connections.max_inflight: expected 1 to 1000, got 0");
}
