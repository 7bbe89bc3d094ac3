//! Arbitrary inputs in any order: nothing panics, and the contract with the host holds after each.

use crate::plan;
use crate::site::{sealed_update, site_id};
use medinet_rounds::{Coordinator, Effect, Input, Snapshot};
use medinet_types::{BlobDigest, DatasetDigest, Digest, ModelDigest, RoundNumber, TaskId, UnixMillis};
use medinet_wire::blob::{BlobManifest, BlobWant};
use medinet_wire::message::{
    DatasetRegistration, FromAggregatorToAll, FromSite, RoundPlan, SiteMetrics, ToSite, UpdateOffer,
};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Debug, Clone)]
enum Action {
    Start,
    Restart,
    Pass(u32),
    Site(usize, Box<Says>),
    /// Completes what was fetched last, with good or other bytes.
    Arrive {
        good: bool,
    },
    Fail,
    Stray(u8),
}

/// Messages in terms of the open round, so that they reach into it, and free ones.
#[derive(Debug, Clone)]
enum Says {
    Honest,
    Join,
    Measure(Option<SiteMetrics>),
    Free(FromSite),
}

fn metrics() -> impl Strategy<Value = SiteMetrics> {
    let number = prop_oneof![0.0..=1.0f64, any::<f64>()];
    let images = prop_oneof![1..2_000u64, any::<u64>()];
    (images, prop::option::of(number.clone()), number.clone(), number.clone(), number).prop_map(
        |(images, auroc, accuracy, loss, calibration_error)| SiteMetrics {
            images,
            auroc,
            accuracy,
            loss,
            calibration_error,
        },
    )
}

fn manifest() -> impl Strategy<Value = BlobManifest> {
    let honest = prop::collection::vec(any::<u8>(), 1..64).prop_map(|bytes| BlobManifest::of(&bytes));
    let hostile =
        (any::<u8>(), any::<u64>(), any::<u32>(), 0..3usize).prop_map(|(seed, length, chunk, n)| {
            let digest = Digest::of(&[seed]);
            BlobManifest {
                digest: BlobDigest(digest),
                length_bytes: length,
                chunk_bytes: chunk,
                chunk_hashes: vec![digest; n],
            }
        });
    prop_oneof![honest, hostile]
}

fn free() -> impl Strategy<Value = FromSite> {
    let task = prop_oneof![4 => Just("pneumonia"), 1 => Just("other")].prop_map(|t| TaskId::new(t).unwrap());
    let round = prop_oneof![0..4u32, any::<u32>()].prop_map(RoundNumber);
    let join = (task.clone(), round.clone()).prop_map(|(task, round)| FromSite::Join { task, round });
    let decline = (task.clone(), round.clone(), ".{0,600}")
        .prop_map(|(task, round, reason)| FromSite::Decline { task, round, reason });
    let evaluation = (task.clone(), round.clone(), prop::option::of(metrics()))
        .prop_map(|(task, round, metrics)| FromSite::Evaluation { task, round, metrics, vote: None });
    let offer = (task.clone(), round, any::<u8>(), manifest(), any::<u64>(), prop::option::of(metrics()))
        .prop_map(|(task, round, base, update, examples, base_metrics)| {
            let base = ModelDigest(Digest::of(&[base]));
            let privacy = None;
            FromSite::OfferUpdate(UpdateOffer { task, round, base, update, examples, base_metrics, privacy })
        });
    let register = (task, prop::collection::vec(any::<u64>(), 0..4)).prop_map(|(task, images_per_class)| {
        let manifest = DatasetDigest(Digest::of(b"manifest"));
        FromSite::RegisterDataset(DatasetRegistration { task, manifest, images_per_class })
    });
    let want = prop::collection::vec(any::<u32>(), 0..20)
        .prop_map(|chunks| FromSite::Want(BlobWant { blob: BlobDigest(Digest::of(b"blob")), chunks }));
    prop_oneof![join, decline, evaluation, offer, register, want]
}

fn action() -> impl Strategy<Value = Action> {
    let says = prop_oneof![
        4 => Just(Says::Honest),
        2 => Just(Says::Join),
        3 => prop::option::of(metrics()).prop_map(Says::Measure),
        3 => free().prop_map(Says::Free),
    ];
    prop_oneof![
        1 => Just(Action::Start),
        1 => Just(Action::Restart),
        2 => prop_oneof![0..30_000u32, any::<u32>()].prop_map(Action::Pass),
        10 => (0..5usize, says).prop_map(|(n, says)| Action::Site(n, Box::new(says))),
        4 => prop::bool::weighted(0.8).prop_map(|good| Action::Arrive { good }),
        1 => Just(Action::Fail),
        1 => any::<u8>().prop_map(Action::Stray),
    ]
}

/// A host that keeps the contract, with three members and two strangers.
struct Host {
    coordinator: Coordinator,
    now: u64,
    saved: Option<Vec<u8>>,
    blobs: BTreeMap<BlobDigest, Vec<u8>>,
    round: Option<RoundPlan>,
    /// What is being pulled, newest last, with the honest bytes where there are any.
    pulling: Vec<(BlobDigest, Vec<u8>)>,
}

impl Host {
    fn new() -> Self {
        let coordinator = Coordinator::new(plan(3, 2, 2)).unwrap();
        let mut host = Self {
            coordinator,
            now: 1_000_000,
            saved: None,
            blobs: BTreeMap::new(),
            round: None,
            pulling: Vec::new(),
        };
        host.give(Input::Start);
        host
    }

    fn give(&mut self, input: Input<'_>) {
        let effects = self.coordinator.handle(UnixMillis(self.now), input);
        let persists = effects.iter().filter(|e| matches!(e, Effect::Persist(_))).count();
        assert!(persists <= 1, "one transaction per input");
        let mut committed = persists == 0;
        let mut loads = Vec::new();
        for effect in effects {
            match effect {
                Effect::StoreBlob { manifest, bytes } => {
                    assert!(!committed, "a blob is stored before the commit that names it");
                    self.blobs.insert(manifest.digest, bytes);
                }
                Effect::Persist(commit) => {
                    committed = true;
                    let bytes = commit.snapshot.encode();
                    assert_eq!(Snapshot::decode(&bytes).unwrap(), commit.snapshot);
                    self.saved = Some(bytes);
                }
                Effect::Broadcast(FromAggregatorToAll::Announce(plan)) => self.round = Some(plan),
                Effect::Broadcast(_) => self.round = None,
                Effect::Fetch { manifest, .. } => {
                    assert!(manifest.check().is_ok(), "a hostile manifest is not fetched");
                    self.pulling.push((manifest.digest, self.honest_bytes(manifest.digest)));
                }
                Effect::LoadUpdate { blob } => loads.push(blob),
                Effect::Serve { blob } => {
                    assert!(self.blobs.contains_key(&blob), "what is served is stored");
                }
                Effect::Discard { blobs } => {
                    for blob in blobs {
                        self.blobs.remove(&blob);
                    }
                }
                Effect::Send { message, .. } | Effect::SendAll { message, .. } => {
                    assert!(committed, "an answer comes after the commit");
                    assert!(matches!(message, ToSite::Accepted { .. } | ToSite::Refused { .. }));
                }
                _ => {}
            }
        }
        for blob in loads {
            let bytes = self.blobs.get(&blob).cloned();
            self.give(match &bytes {
                Some(bytes) => Input::UpdateArrived { blob, bytes },
                None => Input::UpdateFailed { blob },
            });
        }
        let tally = self.coordinator.progress().tally;
        assert!(tally.joined <= 3 && tally.delivered <= tally.joined);
    }

    fn honest_bytes(&self, blob: BlobDigest) -> Vec<u8> {
        let Some(round) = &self.round else { return Vec::new() };
        let all = (0..5).map(|n| sealed_update(n, round.base.digest, round));
        all.into_iter().find(|bytes| BlobManifest::of(bytes).digest == blob).unwrap_or_default()
    }

    fn site(&mut self, n: usize, says: Says) {
        let message = match (says, &self.round) {
            (Says::Free(message), _) => message,
            (_, None) => return,
            (Says::Honest, Some(round)) => FromSite::OfferUpdate(UpdateOffer {
                task: round.spec.task.clone(),
                round: round.round,
                base: round.base.digest,
                update: BlobManifest::of(&sealed_update(n, round.base.digest, round)),
                examples: crate::site::examples(n),
                base_metrics: None,
                privacy: None,
            }),
            (Says::Join, Some(round)) => FromSite::Join { task: round.spec.task.clone(), round: round.round },
            (Says::Measure(metrics), Some(round)) => FromSite::Evaluation {
                task: round.spec.task.clone(),
                round: round.round,
                metrics,
                vote: None,
            },
        };
        self.give(Input::Site { from: site_id(n), message });
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Start => self.give(Input::Start),
            Action::Restart => {
                if let Some(saved) = &self.saved {
                    let snapshot = Snapshot::decode(saved).unwrap();
                    let read = |blob| self.blobs.get(&blob).cloned();
                    let resumed = Coordinator::resume(plan(3, 2, 2), snapshot, read);
                    self.coordinator = resumed.unwrap();
                    self.pulling.clear();
                    self.give(Input::Restarted);
                }
            }
            Action::Pass(millis) => {
                self.now += u64::from(millis);
                self.give(Input::Tick);
            }
            Action::Site(n, says) => self.site(n, *says),
            Action::Arrive { good } => {
                if let Some((blob, bytes)) = self.pulling.pop() {
                    let bytes = if good { bytes } else { vec![0xff; 40] };
                    self.blobs.insert(blob, bytes.clone());
                    self.give(Input::UpdateArrived { blob, bytes: &bytes });
                }
            }
            Action::Fail => {
                if let Some((blob, _)) = self.pulling.pop() {
                    self.give(Input::UpdateFailed { blob });
                }
            }
            Action::Stray(seed) => {
                let blob = BlobDigest(Digest::of(&[seed]));
                self.give(Input::UpdateArrived { blob, bytes: &[seed; 30] });
                self.give(Input::UpdateFailed { blob });
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_inputs_panics_or_breaks_the_order_of_effects(actions in prop::collection::vec(action(), 1..80)) {
        let mut host = Host::new();
        for action in actions {
            host.act(action);
        }
    }

    #[test]
    fn any_bytes_decode_as_a_snapshot_or_not_without_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400), version in prop::bool::ANY) {
        if version && !bytes.is_empty() {
            bytes[0] = 4;
        }
        let _ = Snapshot::decode(&bytes);
    }
}
