#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

#[path = "../../crates/inference/tests/common/mod.rs"]
mod common;

use super::*;
use medinet_identity::{
    Authority, Identity, IdentityFiles, Issue, new_key_and_csr, write_private, write_public,
};
use medinet_model::InputShape;
use medinet_types::{ModelDigest, Principal, Role, RoundNumber, SiteId, UnixMillis};
use medinet_wire::secure::{EnrolledVoters, sign_vote};
use medinet_wire::vote::{Ballot, Objection, Quorum, SignedVote, Vote};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);
/// A day before the release that `common` makes.
const ENROLLED: UnixMillis = UnixMillis(1_700_000_000_000 - 86_400_000);

struct Federation {
    folder: tempfile::TempDir,
    authority: Authority,
}

impl Federation {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(&folder.path().join("ca"), "Test", 3650 * DAY, ENROLLED).unwrap();
        Self { folder, authority }
    }

    fn enrol(&self, role: Role, name: &str) -> Identity {
        let who = Principal::new(role, SiteId::new(name).unwrap());
        let (key, csr) = new_key_and_csr(&who).unwrap();
        let issue = Issue { csr_pem: &csr, principal: &who, hosts: &[], validity: 30 * DAY };
        let (certificate, _) = self.authority.issue(&issue, ENROLLED).unwrap();
        let path = |ending: &str| self.folder.path().join(format!("{role}-{name}.{ending}"));
        let files = IdentityFiles {
            certificate: path("pem"),
            key: path("key"),
            ca: self.authority.certificate_path(),
            crl: None,
        };
        write_private(&files.key, &key).unwrap();
        write_public(&files.certificate, &certificate).unwrap();
        Identity::load(&files).unwrap()
    }
}

fn vote(model: ModelDigest, ballot: Ballot) -> Vote {
    Vote {
        task: TaskId::new("pneumonia").unwrap(),
        round: RoundNumber(2),
        model,
        version: ModelVersion(1),
        ballot,
    }
}

/// From the aggregator's bundle to the folder from which inference reads: only what enough enrolled sites accept gets there.
#[test]
fn a_release_without_a_quorum_of_enrolled_sites_never_reaches_inference() {
    let federation = Federation::new();
    let (north, south) = (federation.enrol(Role::Site, "north"), federation.enrol(Role::Site, "south"));
    let aggregator = federation.enrol(Role::Aggregator, "centre");
    let stranger = Federation::new().enrol(Role::Site, "west");

    let spec = common::spec(InputShape { channels: 1, height: 28, width: 28 }, &["normal", "pneumonia"]);
    let parameters = common::parameters(&spec, 11);
    let model = parameters.digest(&spec.network);
    let onnx = common::onnx(&spec, &parameters, false);
    let ledger = tempfile::tempdir().unwrap();
    let bundle = common::bundle(ledger.path(), &spec, model, &onnx);

    let site = tempfile::tempdir().unwrap();
    let trust = north.trust().clone();
    let voters = EnrolledVoters(trust.as_ref());
    let demand =
        VoteDemand { quorum: Quorum { min_accepting: 2, min_accept_permille: 667 }, voters: &voters };
    let keep = |votes: Vec<SignedVote>| {
        let bytes = bundle.clone().with_votes(votes)?.encode();
        super::keep(site.path(), &spec.task, common::key(), &demand, false, &bytes)
    };
    let cast = |identity: &Identity, ballot| sign_vote(identity, vote(model, ballot)).unwrap();
    let accepts = || cast(&north, Ballot::Accept);
    let forged = {
        let mut turned = cast(&south, Ballot::Reject(Objection::AurocDrop));
        turned.vote.ballot = Ballot::Accept;
        turned
    };
    let other_version = sign_vote(&south, Vote { version: ModelVersion(2), ..vote(model, Ballot::Accept) });
    let refused = [
        ("none", vec![]),
        ("one", vec![accepts()]),
        ("one twice", vec![accepts(), accepts()]),
        ("a rejection", vec![accepts(), cast(&south, Ballot::Reject(Objection::AurocDrop))]),
        ("a rejection made acceptance", vec![accepts(), forged]),
        ("another version's", vec![accepts(), other_version.unwrap()]),
        ("the aggregator's own", vec![accepts(), cast(&aggregator, Ballot::Accept)]),
        ("another authority's", vec![accepts(), cast(&stranger, Ballot::Accept)]),
    ];
    for (what, votes) in refused {
        let error = keep(votes).unwrap_err();
        assert!(format!("{error:#}").contains("votes"), "{what}: {error:#}");
        assert!(!path(site.path(), &spec.task).exists(), "{what} votes, and the model is in place");
    }
    // Whoever makes the bundle can leave votes out, but not this site's memory of its own.
    let all = || vec![accepts(), cast(&south, Ballot::Accept)];
    let against = Ballot::Reject(Objection::AurocDrop);
    vote::remember(site.path(), &spec.task, model, against).unwrap();
    let error = keep(all()).unwrap_err();
    assert!(error.to_string().contains("this site has voted against it"), "{error:#}");
    assert!(!path(site.path(), &spec.task).exists());
    vote::remember(site.path(), &spec.task, model, Ballot::Accept).unwrap();
    let version = keep(all()).unwrap();
    assert_eq!(version, ModelVersion(1));
    assert!(path(site.path(), &spec.task).exists());
    // What is in place stays when a worse one comes after it.
    let before = std::fs::read(path(site.path(), &spec.task)).unwrap();
    keep(vec![accepts()]).unwrap_err();
    assert_eq!(std::fs::read(path(site.path(), &spec.task)).unwrap(), before);
}
