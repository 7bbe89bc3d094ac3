//! One function per decoder of untrusted bytes; tests and the targets in `fuzz/` both call them. Each panics only when
//! a decoder breaks its contract.
#![allow(dead_code, reason = "each fuzz target calls one")]

use medinet_types::{
    Digest, FederationId, ModelDigest, ModelVersion, Principal, Role, SiteId, TaskId, UnixMillis,
};
use medinet_wire::blob::{BlobManifest, BlobProgress, BlobWant, Chunk};
use medinet_wire::envelope::{Verifier, VerifyError, open};
use medinet_wire::message::{
    AggregatorStatus, FromAggregatorToAll, FromSite, ModelRelease, RoundPlan, SiteStatus, ToSite,
};
use medinet_wire::secure::{EnrolledVoters, session_parameters};
use medinet_wire::topic::Topic;
use medinet_wire::vote::{Candidate, Quorum, SignedVote, VoteError, verify_votes};
use medinet_wire::{decode, encode};
use serde::{Serialize, de::DeserializeOwned};

fn message<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    if let Ok(message) = decode::<T>(bytes) {
        // What was accepted can be said again.
        assert!(decode::<T>(&encode(&message)).is_ok());
    }
}

pub(crate) fn messages(bytes: &[u8]) {
    message::<FromAggregatorToAll>(bytes);
    message::<RoundPlan>(bytes);
    message::<ModelRelease>(bytes);
    message::<FromSite>(bytes);
    message::<ToSite>(bytes);
    message::<SiteStatus>(bytes);
    message::<AggregatorStatus>(bytes);
    message::<BlobWant>(bytes);
    message::<Chunk>(bytes);
    message::<BlobManifest>(bytes);
}

/// Believes every signature, so that what is behind it is reached.
struct Credulous;

impl Verifier for Credulous {
    fn verify(&self, _: &[u8], _: &[u8], _: &[u8], _: UnixMillis) -> Result<Principal, VerifyError> {
        Ok(principal())
    }
}

pub(crate) fn federation() -> FederationId {
    FederationId::new("chest").expect("a good name")
}

pub(crate) fn principal() -> Principal {
    Principal::new(Role::Site, SiteId::new("north").expect("a good name"))
}

pub(crate) fn envelopes(bytes: &[u8]) {
    let _ = open::<FromAggregatorToAll>(bytes, &Credulous, &federation(), &principal(), UnixMillis(0));
    let _ = open::<ToSite>(bytes, &Credulous, &federation(), &principal(), UnixMillis(0));
    if let Ok(opened) = open::<FromSite>(bytes, &Credulous, &federation(), &principal(), UnixMillis(0)) {
        assert_eq!(opened.header.federation, federation());
    }
}

/// What a site makes of a plan before it says whether it takes part.
pub(crate) fn announcements(bytes: &[u8]) {
    let Ok(FromAggregatorToAll::Announce(plan)) = decode::<FromAggregatorToAll>(bytes) else {
        return;
    };
    let _ = (plan.training.check(), plan.spec.network.check());
    let least = plan.aggregation.least_in_sum(plan.min_sites);
    assert!(least <= plan.min_sites, "a sum of more sites than a round");
    let _ = plan.aggregation.most_in_sum(plan.max_sites);
    let sessions = [(1, 0), (1, 1), (2, 0)]
        .map(|(attempt, group)| session_parameters(&plan, attempt, group).map(|session| session.id()));
    if let [Ok(first), second, third] = &sessions {
        assert!(plan.aggregation.secure().is_some());
        // Nothing that is said in one session has a meaning in another.
        assert!(second.as_ref() != Ok(first) && third.as_ref() != Ok(first));
    }
}

/// Votes as an aggregator or whoever holds a bundle gets them. Every signature is believed to be of the same site.
pub(crate) fn votes(bytes: &[u8]) {
    let Ok(votes) = decode::<Vec<SignedVote>>(bytes) else { return };
    for (index, vote) in votes.iter().enumerate() {
        let again = decode::<SignedVote>(&encode(vote)).expect("what was read can be said again");
        assert_eq!(again.digest(), vote.digest());
        for other in votes[..index].iter().filter(|other| *other != vote).take(4) {
            assert_ne!(other.digest(), vote.digest(), "two votes of one name");
        }
    }
    let quorum = Quorum { min_accepting: 1, min_accept_permille: 0 };
    let other = (TaskId::new("other").expect("a good name"), ModelDigest(Digest([0; 32])), ModelVersion(0));
    let (task, model, version) = match votes.first() {
        Some(SignedVote { vote, .. }) => (vote.task.clone(), vote.model, vote.version),
        None => other,
    };
    let candidate = Candidate { task: &task, model, version, at: UnixMillis(0) };
    match verify_votes(&votes, &candidate, &quorum, &EnrolledVoters(&Credulous)) {
        Ok(tally) => {
            assert_eq!((votes.len(), tally.accepting), (1, 1), "a site votes once");
        }
        Err(VoteError::NoQuorum { tally, unproven, .. }) => {
            assert_eq!((tally.accepting, unproven), (0, 0));
            assert!(votes.len() <= 1);
        }
        Err(_) => {}
    }
}

pub(crate) fn blobs(bytes: &[u8]) {
    let Ok((manifest, chunk)) = decode::<(BlobManifest, Chunk)>(bytes) else {
        return;
    };
    let Ok(mut progress) = BlobProgress::new(manifest.clone()) else {
        return;
    };
    for index in 0..manifest.chunks() {
        let range = manifest.range(index);
        assert!(range.start < range.end && range.end <= manifest.length_bytes);
    }
    if manifest.verify(&chunk).is_ok() {
        progress.note(chunk.index);
    }
    progress.note(u32::MAX);
    assert!(progress.missing() <= manifest.chunks());
    assert_eq!(progress.want().is_none(), progress.missing() == 0);
}

pub(crate) fn topics(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(topic) = text.parse::<Topic>()
    {
        assert_eq!(topic.to_string(), text, "a topic has one spelling");
        assert!(!text.contains(['+', '#']), "no wildcard in a concrete topic");
    }
}

pub(crate) fn all(bytes: &[u8]) {
    messages(bytes);
    envelopes(bytes);
    blobs(bytes);
    topics(bytes);
    announcements(bytes);
    votes(bytes);
}
