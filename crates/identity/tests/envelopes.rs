//! Signed messages: who is believed, and who is not.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod common;

use common::{DAY, Federation, NOW, days_before, der, principal};
use medinet_identity::{Identity, IdentityFiles, Target, Trust, write_public};
use medinet_types::{FederationId, Principal, Role, UnixMillis};
use medinet_wire::envelope::{Header, OpenError, Signer as _, Verifier as _, VerifyError, open, seal};
use rcgen::string::Ia5String;
use rcgen::{DistinguishedName, DnType, ExtendedKeyUsagePurpose, SanType};
use std::sync::Arc;

fn north() -> Principal {
    principal(Role::Site, "north")
}

/// What a receiver in `federation` says to a message signed by `identity` at `now`.
fn heard(federation: &Federation, identity: &Identity, now: UnixMillis) -> Result<Principal, VerifyError> {
    let trust = trust(federation);
    let signature = identity.sign(b"message").unwrap();
    trust.verify(identity.certificate_der(), b"message", &signature, now)
}

fn trust(federation: &Federation) -> Arc<Trust> {
    Trust::load(&federation.authority.certificate_path(), Some(&federation.authority.crl_path())).unwrap()
}

#[track_caller]
fn refused(result: Result<Principal, VerifyError>, why: &str) {
    let error = result.expect_err("expected a refusal").to_string();
    assert!(error.contains(why), "expected {why:?} in {error:?}");
}

#[test]
fn a_party_with_a_valid_certificate_is_believed() {
    let federation = Federation::new(NOW);
    for role in [Role::Site, Role::Aggregator, Role::Broker, Role::Operator] {
        let who = principal(role, &format!("the-{role}"));
        let identity = federation.identity(&who);
        assert_eq!(identity.principal(), &who);
        assert_eq!(heard(&federation, &identity, NOW), Ok(who));
    }
}

#[test]
fn an_envelope_goes_from_one_party_to_another() {
    let federation = Federation::new(NOW);
    let (site, aggregator) = (federation.identity(&north()), principal(Role::Aggregator, "aggregator"));
    let chest = FederationId::new("chest").unwrap();
    let header = Header { federation: chest.clone(), to: Some(aggregator.clone()), signed_at: NOW };
    let bytes = seal(&site, &header, &"ready".to_owned()).unwrap();
    let trust = trust(&federation);
    let opened = open::<String>(&bytes, &*trust, &chest, &aggregator, NOW).unwrap();
    assert_eq!((opened.from, opened.message.as_str()), (north(), "ready"));

    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        let opened = open::<String>(&changed, &*trust, &chest, &aggregator, NOW);
        assert!(opened.is_err(), "byte {at} of {} was changed and nobody noticed", bytes.len());
        assert!(open::<String>(&bytes[..at], &*trust, &chest, &aggregator, NOW).is_err());
    }
    let other = open::<String>(&bytes, &*trust, &chest, &principal(Role::Site, "south"), NOW);
    assert!(matches!(other, Err(OpenError::Recipient { .. })));
}

#[test]
fn a_certificate_counts_only_in_its_time() {
    let federation = Federation::new(days_before(NOW, 60));
    let (files, entry) = federation.files_at(&north(), days_before(NOW, 60), 30 * DAY);
    let ended = Identity::load(&files).unwrap();
    refused(heard(&federation, &ended, NOW), "has ended");
    assert!(ended.check_time(NOW).unwrap_err().to_string().contains("enrol again"));
    let last = UnixMillis(entry.not_after.0);
    assert_eq!(heard(&federation, &ended, last), Ok(north()));
    ended.check_time(last).unwrap();
    refused(heard(&federation, &ended, last.after(std::time::Duration::from_secs(1))), "has ended");

    let early = days_before(NOW, 61);
    refused(heard(&federation, &ended, early), "not valid yet");
    assert!(ended.check_time(early).unwrap_err().to_string().contains("clock"));
}

#[test]
fn what_was_proven_before_is_not_believed_after_its_end() {
    let federation = Federation::new(NOW);
    let identity = federation.identity(&north());
    let trust = trust(&federation);
    assert_eq!(trust.prove(identity.certificate_der(), NOW), Ok(north()));
    assert_eq!(trust.prove(identity.certificate_der(), NOW), Ok(north()), "remembered");
    refused(trust.prove(identity.certificate_der(), NOW.after(31 * DAY)), "has ended");
    refused(trust.prove(identity.certificate_der(), days_before(NOW, 1)), "not valid yet");
    assert_eq!(trust.prove(identity.certificate_der(), NOW), Ok(north()));
}

#[test]
fn a_remembered_certificate_still_needs_a_good_signature() {
    let federation = Federation::new(NOW);
    let (north_id, south_id) =
        (federation.identity(&north()), federation.identity(&principal(Role::Site, "south")));
    let trust = trust(&federation);
    let signature = north_id.sign(b"message").unwrap();
    let cert = north_id.certificate_der();
    assert_eq!(trust.verify(cert, b"message", &signature, NOW), Ok(north()));
    refused(trust.verify(cert, b"other", &signature, NOW), "not made by the key");
    refused(
        trust.verify(south_id.certificate_der(), b"message", &signature, NOW),
        "not made by the key of site:south",
    );
    for at in 0..signature.len() {
        let mut tampered = signature.clone();
        tampered[at] ^= 1;
        refused(trust.verify(cert, b"message", &tampered, NOW), "not made by the key");
        refused(trust.verify(cert, b"message", &signature[..at], NOW), "not made by the key");
    }
}

#[test]
fn a_revoked_party_is_not_believed_once_the_list_is_reloaded() {
    let federation = Federation::new(NOW);
    let (files, entry) = federation.files(&north());
    let identity = Identity::load(&files).unwrap();
    let south = federation.identity(&principal(Role::Site, "south"));
    let trust = trust(&federation);
    assert_eq!(trust.prove(identity.certificate_der(), NOW), Ok(north()));
    assert!(!trust.reload_crl().unwrap(), "nothing changed");

    federation.authority.revoke(&Target::Serial(entry.serial), NOW).unwrap();
    assert_eq!(trust.prove(identity.certificate_der(), NOW), Ok(north()), "not reloaded yet");
    assert!(trust.reload_crl().unwrap());
    refused(trust.prove(identity.certificate_der(), NOW), "is revoked");
    assert!(trust.prove(south.certificate_der(), NOW).is_ok(), "others are not touched");

    // A renewed certificate of the same party is another one.
    let renewed = federation.identity(&north());
    trust.reload_crl().unwrap();
    assert_eq!(trust.prove(renewed.certificate_der(), NOW), Ok(north()));
}

#[test]
fn nobody_is_believed_on_a_list_that_has_ended() {
    let federation = Federation::new(NOW);
    let (files, _) = federation.files_at(&north(), NOW, 365 * DAY);
    let identity = Identity::load(&files).unwrap();
    let trust = identity.trust();
    let end = trust.crl_end().unwrap();
    assert_eq!(trust.prove(identity.certificate_der(), NOW), Ok(north()));
    assert_eq!(trust.prove(identity.certificate_der(), end), Ok(north()));
    refused(trust.prove(identity.certificate_der(), end.after(DAY)), "list here has ended");
    federation.authority.renew_crl(end).unwrap();
    assert!(trust.reload_crl().unwrap());
    assert_eq!(trust.prove(identity.certificate_der(), end.after(DAY)), Ok(north()));
}

#[test]
fn an_older_or_foreign_or_broken_list_is_refused_and_the_present_one_stays() {
    let federation = Federation::new(NOW);
    let (files, entry) = federation.files(&north());
    let crl = federation.path("copy.pem");
    let list = || std::fs::read_to_string(federation.authority.crl_path()).unwrap();
    let before = list();
    federation.authority.revoke(&Target::Serial(entry.serial), NOW).unwrap();
    write_public(&crl, &list()).unwrap();
    let identity = Identity::load(&IdentityFiles { crl: Some(crl.clone()), ..files }).unwrap();
    let trust = identity.trust();
    let foreign = std::fs::read_to_string(Federation::new(NOW).authority.crl_path()).unwrap();
    let (half, both) = (before[..before.len() / 2].to_owned(), before.clone() + &list());
    for (content, why) in [
        (before.as_str(), "or newer"),
        (foreign.as_str(), "not signed by an authority"),
        (half.as_str(), "revocation lists"),
        (both.as_str(), ""),
        ("", "got none"),
    ] {
        write_public(&crl, content).unwrap();
        let error = trust.reload_crl().unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("copy.pem"), "expected {why:?} in {error:?}");
        refused(trust.prove(identity.certificate_der(), NOW), "is revoked");
    }
}

#[test]
fn without_a_list_nothing_is_taken_as_revoked() {
    let federation = Federation::new(NOW);
    let (files, entry) = federation.files(&north());
    federation.authority.revoke(&Target::Serial(entry.serial), NOW).unwrap();
    let identity = Identity::load(&IdentityFiles { crl: None, ..files }).unwrap();
    assert_eq!(identity.trust().prove(identity.certificate_der(), NOW), Ok(north()));
    assert_eq!(identity.trust().crl_end(), None);
}

#[test]
fn a_party_of_another_authority_is_not_believed() {
    let (ours, theirs) = (Federation::new(NOW), Federation::new(NOW));
    refused(heard(&ours, &theirs.identity(&north()), NOW), "not signed by an authority");
}

#[test]
fn two_authorities_can_be_trusted_while_one_replaces_the_other() {
    let (old, new) = (Federation::new(NOW), Federation::new(NOW));
    let join = |a: std::path::PathBuf, b: std::path::PathBuf| {
        std::fs::read_to_string(a).unwrap() + &std::fs::read_to_string(b).unwrap()
    };
    let ca = old.path("both.pem");
    write_public(&ca, &join(old.authority.certificate_path(), new.authority.certificate_path())).unwrap();
    let trust = Trust::load(&ca, None).unwrap();
    for federation in [&old, &new] {
        assert_eq!(trust.prove(federation.identity(&north()).certificate_der(), NOW), Ok(north()));
    }
}

/// Names of a certificate that differ from what our authority writes.
fn named(params: &mut rcgen::CertificateParams, common_names: &[&str], uris: &[&str]) {
    params.distinguished_name = DistinguishedName::new();
    for name in common_names {
        params.distinguished_name.push(DnType::CommonName, *name);
    }
    params.subject_alt_names =
        uris.iter().map(|uri| SanType::URI(Ia5String::try_from(*uri).unwrap())).collect();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
}

#[test]
fn a_certificate_that_does_not_name_one_principal_is_not_believed() {
    let federation = Federation::new(NOW);
    let trust = trust(&federation);
    for (case, common_names, uris, why) in [
        ("mismatch", &["south"][..], &["urn:medinet:site:north"][..], "common name"),
        ("none", &[], &["urn:medinet:site:north"], "one common name"),
        ("no-uri", &["north"], &[], "urn:medinet"),
        ("web", &["north"], &["https://north"], "urn:medinet"),
        ("two", &["north"], &["urn:medinet:site:north", "urn:medinet:aggregator:north"], "got 2"),
        ("role", &["north"], &["urn:medinet:king:north"], "urn:medinet:king:north"),
    ] {
        let files = federation.forged(case, |params| named(params, common_names, uris));
        refused(trust.prove(&der(&files.certificate), NOW), why);
        let loaded = Identity::load(&files).unwrap_err();
        assert!(loaded.to_string().contains("cannot be used"), "{case}: {loaded}");
    }
    let good = federation.forged("good", |params| named(params, &["north"], &["urn:medinet:site:north"]));
    assert_eq!(trust.prove(&der(&good.certificate), NOW), Ok(north()), "the forge itself works");
}

#[test]
fn a_certificate_for_another_purpose_is_not_believed() {
    let federation = Federation::new(NOW);
    let files = federation.forged("server", |params| {
        named(params, &["north"], &["urn:medinet:site:north"]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    refused(trust(&federation).prove(&der(&files.certificate), NOW), "not meant for this purpose");
}

#[test]
fn bytes_that_are_no_certificate_are_not_believed() {
    let federation = Federation::new(NOW);
    let trust = trust(&federation);
    let good = der(&federation.files(&north()).0.certificate);
    for length in 0..good.len() {
        assert!(trust.prove(&good[..length], NOW).is_err(), "the first {length} bytes");
    }
    for at in 0..good.len() {
        let mut changed = good.clone();
        changed[at] ^= 1;
        assert!(trust.prove(&changed, NOW).is_err(), "byte {at} of {} was changed", good.len());
    }
    let ca = der(&federation.authority.certificate_path());
    assert!(trust.prove(&ca, NOW).is_err(), "an authority is not a party");
    assert!(trust.prove(&[good.clone(), good].concat(), NOW).is_err(), "two in one");
}
