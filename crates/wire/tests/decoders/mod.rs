//! One function per decoder of untrusted bytes; tests and the targets in `fuzz/` both call them. Each panics only when
//! a decoder breaks its contract.
#![allow(dead_code, reason = "each fuzz target calls one")]

use medinet_types::{FederationId, Principal, Role, SiteId, UnixMillis};
use medinet_wire::blob::{BlobManifest, BlobProgress, BlobWant, Chunk};
use medinet_wire::envelope::{Verifier, VerifyError, open};
use medinet_wire::message::{
    AggregatorStatus, FromAggregatorToAll, FromSite, ModelRelease, RoundPlan, SiteStatus, ToSite,
};
use medinet_wire::topic::Topic;
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
}
