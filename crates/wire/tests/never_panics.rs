//! Every decoder of the protocol on damaged, cut and random bytes: it refuses or accepts, and never panics.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod decoders;

use decoders::{federation, principal};
use medinet_model::{
    Augmentation, ClassBalance, InputShape, Intensity, NetworkManifest, Normalisation, Preprocessing, Resize,
    TaskSpec, TrainingPlan,
};
use medinet_types::{
    DatasetDigest, Digest, ModelDigest, ModelVersion, RecordDigest, RoundNumber, SiteId, TaskId, UnixMillis,
};
use medinet_update::CodecPlan;
use medinet_wire::blob::{BlobManifest, Chunk};
use medinet_wire::envelope::{Header, SignError, Signer, seal};
use medinet_wire::message::{
    Activity, DatasetRegistration, FromAggregatorToAll, FromSite, ModelRef, ModelRelease, PresenceState,
    RefusalReason, RoundKind, RoundPlan, SiteMetrics, SiteStatus, ToSite, UpdateOffer,
};
use medinet_wire::topic::{Lane, Topic};
use medinet_wire::{MAX_MESSAGE_BYTES, encode};
use proptest::prelude::*;

struct NoKey;

impl Signer for NoKey {
    fn certificate_der(&self) -> &[u8] {
        &[0x30, 0x00]
    }

    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, SignError> {
        Ok(vec![7; 64])
    }
}

fn task() -> TaskId {
    TaskId::new("pneumonia").unwrap()
}

fn spec() -> TaskSpec {
    TaskSpec {
        task: task(),
        purpose: "Tells pneumonia from normal chest X-rays".to_owned(),
        network: NetworkManifest::small(
            InputShape { channels: 1, height: 64, width: 64 },
            vec!["normal".to_owned(), "pneumonia".to_owned()],
        ),
        preprocessing: Preprocessing {
            intensity: Intensity::Voi,
            denoise: false,
            spacing_mm: None,
            resize: Resize::Letterbox,
            normalisation: Normalisation::PerImage,
        },
    }
}

fn model() -> ModelRef {
    let digest = ModelDigest(Digest::of(b"model"));
    ModelRef { digest, version: ModelVersion(2), parameters: BlobManifest::of(&[1; 3000]) }
}

fn plan() -> RoundPlan {
    RoundPlan {
        spec: spec(),
        round: RoundNumber(3),
        kind: RoundKind::Train,
        base: model(),
        training: TrainingPlan {
            local_epochs: 1,
            batch_size: 32,
            learning_rate: 0.05,
            momentum: 0.9,
            weight_decay: 1e-4,
            proximal_mu: 0.0,
            augmentation: Augmentation::none(),
            class_balance: ClassBalance::WeightedLoss,
            early_stopping_epochs: 0,
            seed: 1,
        },
        codec: CodecPlan { bits: 4, clip_norm: 5.0, error_feedback: true },
        min_sites: 2,
        max_sites: 3,
        opened_at: UnixMillis(1),
        deadline: UnixMillis(2),
    }
}

fn samples() -> Vec<Vec<u8>> {
    let metrics =
        SiteMetrics { images: 10, auroc: Some(0.9), accuracy: 0.8, loss: 0.5, calibration_error: 0.1 };
    let release = ModelRelease { spec: spec(), model: model(), bundle: BlobManifest::of(&[2; 5000]) };
    let from_site = [
        FromSite::RegisterDataset(DatasetRegistration {
            task: task(),
            manifest: DatasetDigest(Digest::of(b"set")),
            images_per_class: vec![10, 20],
        }),
        FromSite::Join { task: task(), round: RoundNumber(1) },
        FromSite::Decline { task: task(), round: RoundNumber(1), reason: "night only".to_owned() },
        FromSite::OfferUpdate(UpdateOffer {
            task: task(),
            round: RoundNumber(1),
            base: ModelDigest(Digest::of(b"base")),
            update: BlobManifest::of(&[3; 4000]),
            examples: 100,
            base_metrics: Some(metrics),
        }),
        FromSite::Evaluation { task: task(), round: RoundNumber(1), metrics: None },
    ];
    let to_site = [
        ToSite::Accepted { task: task(), round: RoundNumber(1) },
        ToSite::Refused { task: task(), round: RoundNumber(1), reason: RefusalReason::Full },
        ToSite::DatasetRegistered {
            manifest: DatasetDigest(Digest::of(b"set")),
            record: RecordDigest(Digest::of(b"record")),
        },
    ];
    let status = SiteStatus {
        state: PresenceState::Online,
        version: "0.1.0".to_owned(),
        activity: Activity::Training,
        round: RoundNumber(1),
        progress: 0.5,
        instances: 10,
        quarantined: 1,
        sent_bytes: 1,
        received_bytes: 2,
        at: UnixMillis(3),
    };
    let content = [5; 2000];
    let manifest = BlobManifest::of(&content);
    let chunk = Chunk { blob: manifest.digest, index: 0, data: content.to_vec() };
    let header = Header { federation: federation(), to: Some(principal()), signed_at: UnixMillis(1) };
    let mut samples = vec![
        encode(&FromAggregatorToAll::Announce(plan())),
        encode(&FromAggregatorToAll::Release(release)),
        encode(&FromAggregatorToAll::Checkpoint("medinet/chest\n1\n".to_owned())),
        encode(&status),
        encode(&(&manifest, &chunk)),
        encode(&chunk),
        Topic::Up(federation(), SiteId::new("north").unwrap(), Lane::Chunk).to_string().into_bytes(),
        seal(&NoKey, &header, &FromAggregatorToAll::Announce(plan())).unwrap(),
    ];
    samples.extend(from_site.iter().map(encode));
    samples.extend(to_site.iter().map(encode));
    samples.extend(from_site.iter().map(|message| seal(&NoKey, &header, message).unwrap()));
    samples
}

#[test]
fn every_cut_and_every_flip_of_a_message_is_survived() {
    for sample in samples() {
        decoders::all(&sample);
        for cut in 0..sample.len().min(400) {
            decoders::all(&sample[..cut]);
        }
        for position in 0..sample.len().min(300) {
            for bit in 0..8 {
                let mut altered = sample.clone();
                altered[position] ^= 1 << bit;
                decoders::all(&altered);
            }
        }
    }
}

#[test]
fn longer_messages_than_any_are_refused_unread() {
    decoders::all(&vec![1; MAX_MESSAGE_BYTES + 1]);
    assert!(medinet_wire::decode::<Vec<u8>>(&vec![1; MAX_MESSAGE_BYTES + 1]).is_err());
}

/// A list that claims to be huge, in a message of a few bytes: refused without allocating what it claims. A decoder that
/// believed the length would ask for 2^62 bytes and abort this test.
#[test]
fn a_claimed_length_is_not_believed() {
    let mut bytes = vec![medinet_wire::PROTOCOL_VERSION];
    bytes.extend([0xff; 8]);
    bytes.extend([0x3f, 1, 2, 3]);
    assert!(medinet_wire::decode::<Vec<u8>>(&bytes).is_err());
    assert!(medinet_wire::decode::<Vec<Digest>>(&bytes).is_err());
    assert!(medinet_wire::decode::<String>(&bytes).is_err());
    decoders::all(&bytes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn damaged_messages_are_survived(
        which: prop::sample::Index,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        tail in prop::collection::vec(any::<u8>(), 0..16),
    ) {
        let samples = samples();
        let mut bytes = samples[which.index(samples.len())].clone();
        for (index, byte) in edits {
            let position = index.index(bytes.len());
            bytes[position] = byte;
        }
        bytes.extend(tail);
        decoders::all(&bytes);
    }

    #[test]
    fn random_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        decoders::all(&bytes);
        decoders::all(&[&[medinet_wire::PROTOCOL_VERSION], bytes.as_slice()].concat());
    }
}
