//! Every decoder of the protocol on damaged, cut and random bytes: it refuses or accepts, and never panics.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod decoders;

use decoders::{federation, principal};
use medinet_model::{
    Augmentation, ClassBalance, InputShape, Intensity, NetworkManifest, Normalisation, Preprocessing, Resize,
    Slices, TaskSpec, TrainingPlan,
};
use medinet_privacy::{
    Delta, DpSgdPlan, Epsilon, Event, NoiseMultiplier, PrivacyLimit, PrivacyReport, SamplingRate,
};
use medinet_types::{
    DatasetDigest, Digest, ModelDigest, ModelVersion, RecordDigest, RoundNumber, SiteId, TaskId, UnixMillis,
};
use medinet_update::{CodecPlan, NoisePlan, SecureCodecPlan};
use medinet_wire::blob::{BlobManifest, Chunk, MAX_BLOB_BYTES, MAX_CHUNK_BYTES};
use medinet_wire::envelope::{Header, SignError, Signer, seal};
use medinet_wire::message::{
    Activity, Aggregation, DatasetRegistration, FromAggregatorToAll, FromSite, MAX_MODEL_STEPS,
    MAX_REASON_CHARS, MAX_STEP_CHUNKS, MakingRound, ModelRef, ModelRelease, ModelStep, PresenceState,
    RefusalReason, RoundKind, RoundPlan, SiteMetrics, SiteStatus, ToSite, UpdateOffer, clean_reason,
};
use medinet_wire::privacy::{PrivacyTotal, PrivateRound};
use medinet_wire::secure::{
    Abandonment, AbandonmentCertificate, AggregatorStep, SecurePlan, SiteStep, session_parameters,
};
use medinet_wire::topic::{Lane, Topic};
use medinet_wire::vote::{Ballot, Objection, SignedVote, Vote};
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
            slices: Slices::Single,
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

fn step(length: usize) -> ModelStep {
    let delta = BlobManifest::of(&vec![4; length]);
    ModelStep { from: ModelDigest(Digest::of(b"earlier model")), delta }
}

fn plan() -> RoundPlan {
    RoundPlan {
        spec: spec(),
        round: RoundNumber(3),
        kind: RoundKind::Train,
        base: model(),
        steps: vec![step(500)],
        made_by: None,
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
            privacy: None,
        },
        privacy_total: None,
        aggregation: Aggregation::Plain(CodecPlan { bits: 4, clip_norm: 5.0, error_feedback: true }),
        min_sites: 2,
        max_sites: 3,
        opened_at: UnixMillis(1),
        deadline: UnixMillis(2),
    }
}

fn secure_plan() -> RoundPlan {
    let codec = SecureCodecPlan {
        bits: 2,
        clip_norm: 5.0,
        error_feedback: false,
        kept_permille: 500,
        reference_examples: 4000,
        noise: None,
    };
    let secure = SecurePlan {
        federation: federation(),
        codec,
        assumptions: medinet_secagg::Assumptions::default(),
        group_sites: None,
        max_attempts: 3,
        message_seconds: 30,
        input_seconds: 300,
    };
    RoundPlan { aggregation: Aggregation::Secure(secure), ..plan() }
}

fn vote() -> SignedVote {
    let model = ModelDigest(Digest([3; 32]));
    let ballot = Ballot::Reject(Objection::AurocDrop);
    let vote = Vote { task: task(), round: RoundNumber(1), model, version: ModelVersion(1), ballot };
    SignedVote { vote, credential: vec![0x30, 0], signature: vec![9; 64] }
}

fn noisy_plan() -> RoundPlan {
    let mut plan = secure_plan();
    let parameters = medinet_model::ParameterLayout::of(&plan.spec.network).unwrap().len();
    let Aggregation::Secure(secure) = &mut plan.aggregation else { unreachable!() };
    secure.codec = SecureCodecPlan { reference_examples: 1, ..secure.codec };
    let variance = secure.codec.noise_variance(NoiseMultiplier::new(1.0).unwrap(), 2, parameters).unwrap();
    let (epsilon, delta) = (Epsilon::new(6.0).unwrap(), Delta::new(1e-5).unwrap());
    secure.codec.noise = Some(NoisePlan { epsilon, delta, variance, honest_survivors: 2 });
    plan.privacy_total = Some(PrivacyTotal { rounds: 2, epsilon: Some(Epsilon::new(9.5).unwrap()), delta });
    plan
}

/// Messages of secure aggregation travel inside these: a new version of theirs needs a new one here.
#[test]
fn the_protocols_version_stands_for_that_of_secure_aggregation_too() {
    assert_eq!((medinet_wire::PROTOCOL_VERSION, medinet_secagg::message::VERSION), (6, 2));
}

#[test]
fn the_total_of_private_rounds_arrives_as_it_was_announced() {
    let noisy = noisy_plan();
    let unbounded = noisy.privacy_total.map(|total| PrivacyTotal { epsilon: None, ..total });
    for plan in [plan(), RoundPlan { privacy_total: unbounded, ..noisy.clone() }, noisy] {
        let announced = FromAggregatorToAll::Announce(plan);
        let arrived = medinet_wire::decode::<FromAggregatorToAll>(&encode(&announced)).unwrap();
        assert_eq!(arrived, announced);
    }
}

#[test]
fn what_a_round_costs_follows_from_its_announcement() {
    let noisy = noisy_plan();
    let round = noisy.private_round().unwrap().unwrap();
    assert!(matches!(round.event, Event::DistributedGaussian { rounds: 1, .. }));
    let training = DpSgdPlan {
        epsilon: Epsilon::new(8.0).unwrap(),
        delta: Delta::new(1e-6).unwrap(),
        noise_multiplier: NoiseMultiplier::new(1.5).unwrap(),
        clip_norm: 1.0,
        sampling_rate: SamplingRate::new(0.05).unwrap(),
        steps: 20,
    };
    for mut plan in [plan(), secure_plan(), noisy] {
        let inside = plan.aggregation.secure().is_some_and(|secure| secure.codec.noise.is_some());
        assert_eq!(plan.private_round().unwrap().is_some(), inside);
        plan.training.privacy = Some(training);
        match plan.private_round() {
            Err(error) => assert!(inside && error.to_string().contains("got both")),
            Ok(round) => {
                assert!(!inside);
                assert_eq!(round, Some(PrivateRound { event: training.event(), delta: training.delta }));
            }
        }
        // Nothing is trained.
        plan.kind = RoundKind::Evaluate;
        assert_eq!(plan.private_round().unwrap(), None);
    }
}

#[test]
fn with_noise_the_ring_is_wide_and_the_survivors_must_carry_it() {
    let (plain, noisy) =
        (session_parameters(&secure_plan(), 1, 0).unwrap(), session_parameters(&noisy_plan(), 1, 0).unwrap());
    // Neither count (12 bits) nor norm (7 bits), at 2 bits a digit.
    assert_eq!(noisy.coordinates + 6 + 4, plain.coordinates);
    assert!((10..=16).contains(&noisy.width.bits()), "{}", noisy.width.bits());
    let refused = |change: fn(&mut RoundPlan)| {
        let mut plan = noisy_plan();
        change(&mut plan);
        session_parameters(&plan, 1, 0).unwrap_err().to_string()
    };
    assert!(refused(|plan| plan.max_sites = 10).contains("honest_survivors: expected at most 1"));
    assert!(
        refused(|plan| {
            let Aggregation::Secure(secure) = &mut plan.aggregation else { unreachable!() };
            secure.codec.noise.as_mut().unwrap().epsilon = Epsilon::new(1.0).unwrap();
        })
        .contains("expected an epsilon of at least")
    );
}

/// Every step of a secure round, from either side.
fn secure_samples() -> Vec<Vec<u8>> {
    let session = session_parameters(&secure_plan(), 1, 0).unwrap().id();
    let (key_list, signature) = (Digest::of(b"keys"), vec![9; 64]);
    let abandonment = Abandonment {
        session,
        key_list,
        sites: 5,
        member: 2,
        committed: true,
        credential: vec![0x30, 0],
        signature: signature.clone(),
    };
    let certificate = AbandonmentCertificate { session, key_list, abandonments: vec![(2, signature)] };
    let site = [
        SiteStep::Ready {
            base_metrics: None,
            privacy: Some(privacy()),
            left: 1,
            abandonments: vec![abandonment],
        },
        SiteStep::Advertisement(vec![1; 200]),
        SiteStep::KeyShares(vec![1; 200]),
        SiteStep::MaskedInput { session, input: BlobManifest::of(&[3; 4000]) },
        SiteStep::Agreement(vec![1; 90]),
        SiteStep::Unmasking(vec![1; 90]),
        SiteStep::Failed { attempt: 1, blames: None, reason: "no".to_owned() },
        SiteStep::Spent,
    ];
    let aggregator = [
        AggregatorStep::Begin { attempt: 2, group: 0, abandoned: vec![certificate] },
        AggregatorStep::Keys { session, part: 0, parts: 1, bytes: vec![1; 300] },
        AggregatorStep::Shares(vec![1; 90]),
        AggregatorStep::Survivors(vec![1; 90]),
        AggregatorStep::Agreements(vec![1; 90]),
        AggregatorStep::Abandon { attempt: 1 },
    ];
    let round = RoundNumber(3);
    let site = site.into_iter().map(|step| encode(&FromSite::Secure { task: task(), round, step }));
    let aggregator = aggregator.into_iter().map(|step| encode(&ToSite::Secure { task: task(), round, step }));
    let announced = [secure_plan(), noisy_plan()].map(|plan| encode(&FromAggregatorToAll::Announce(plan)));
    site.chain(aggregator).chain(announced).collect()
}

#[test]
fn both_sides_derive_one_session_and_anything_else_another() {
    let plan = secure_plan();
    let first = session_parameters(&plan, 1, 0).unwrap();
    let later = RoundPlan { deadline: UnixMillis(99), ..plan.clone() };
    assert_eq!(first, session_parameters(&later, 1, 0).unwrap(), "an extension changes nothing");
    assert_ne!(first.id(), session_parameters(&plan, 2, 0).unwrap().id());
    let mut other = plan.clone();
    other.training.seed = 2;
    assert_ne!(first.id(), session_parameters(&other, 1, 0).unwrap().id());
    let mut other = plan.clone();
    other.steps.clear();
    assert_ne!(first.id(), session_parameters(&other, 1, 0).unwrap().id());
    // Codes of at most 3 of at most 3 sites: 9 takes 4 bits.
    assert_eq!((first.width.bits(), first.minimum_sites), (4, 2));
    assert!(session_parameters(&self::plan(), 1, 0).is_err(), "a plain round has no session");
    for change in [
        (|p: &mut RoundPlan| p.min_sites = 1) as fn(&mut RoundPlan),
        |p| p.max_sites = 5000,
        |p| {
            let Aggregation::Secure(secure) = &mut p.aggregation else { unreachable!() };
            secure.codec.bits = 9;
        },
        |p| {
            let Aggregation::Secure(secure) = &mut p.aggregation else { unreachable!() };
            secure.max_attempts = 0;
        },
    ] {
        let mut bad = plan.clone();
        change(&mut bad);
        assert!(session_parameters(&bad, 1, 0).is_err());
    }
}

#[test]
fn each_group_has_a_session_of_its_own() {
    let mut plan = secure_plan();
    (plan.min_sites, plan.max_sites) = (4, 10);
    let change = |plan: &RoundPlan, group_sites| {
        let mut plan = plan.clone();
        let Aggregation::Secure(secure) = &mut plan.aggregation else { unreachable!() };
        secure.group_sites = group_sites;
        plan
    };
    let one = session_parameters(&plan, 1, 0).unwrap();
    assert!(session_parameters(&plan, 1, 1).is_err(), "there is one group");
    let grouped = change(&plan, Some(3));
    let sessions = [0, 1, 2].map(|group| session_parameters(&grouped, 1, group).unwrap());
    assert!(session_parameters(&grouped, 1, 3).is_err(), "of ten sites three groups of three");
    let ids: std::collections::BTreeSet<_> = sessions.iter().chain([&one]).map(|s| s.id()).collect();
    assert_eq!(ids.len(), 4);
    // Codes of at most 3 of at most 5 sites: 15 takes 4 bits, 30 of ten sites 5.
    assert_eq!((one.width.bits(), sessions[0].width.bits()), (5, 4));
    assert_eq!((one.minimum_sites, sessions[0].minimum_sites), (4, 3));
    for bad in [Some(1), Some(5)] {
        assert!(session_parameters(&change(&plan, bad), 1, 0).is_err(), "{bad:?}");
    }
}

/// The type keeps plain updates out of secure rounds: there is no codec plan to make one by.
#[test]
fn a_secure_round_has_no_plan_for_sealed_updates() {
    assert!(secure_plan().aggregation.plain().is_none());
    assert!(plan().aggregation.secure().is_none());
}

fn privacy() -> PrivacyReport {
    let limit = PrivacyLimit { epsilon: Epsilon::new(8.0).unwrap(), delta: Delta::new(1e-5).unwrap() };
    PrivacyReport { spent: Epsilon::new(1.5).unwrap(), limit, unbounded: false, rounds: 2 }
}

#[test]
fn reasons_are_one_short_line() {
    assert_eq!(clean_reason("night\nonly\u{7}, \u{202E}ylno\u{200B} \u{e9}"), "nightonly, ylno \u{e9}");
    assert_eq!(
        clean_reason("ni\u{AD}ght\u{61C} \u{180E}on\u{FFF9}l\u{FE0F}y\u{E0041}\u{E01EF}"),
        "night only"
    );
    assert_eq!(clean_reason(&"x\n".repeat(900)).len(), MAX_REASON_CHARS);
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
            privacy: Some(privacy()),
        }),
        FromSite::Evaluation { task: task(), round: RoundNumber(1), metrics: None, vote: Some(vote()) },
        FromSite::WantCheckpoint { seen: 7 },
    ];
    let to_site = [
        ToSite::Accepted { task: task(), round: RoundNumber(1) },
        ToSite::Refused { task: task(), round: RoundNumber(1), reason: RefusalReason::Full },
        ToSite::DatasetRegistered {
            manifest: DatasetDigest(Digest::of(b"set")),
            record: RecordDigest(Digest::of(b"record")),
        },
        ToSite::Checkpoint {
            note: "medinet/chest\n1\n".to_owned(),
            seen: 1,
            proof: vec![Digest::of(b"node")],
        },
    ];
    let status = SiteStatus {
        state: PresenceState::Online,
        version: "0.1.0".to_owned(),
        activity: Activity::Training,
        declined: Some("night only".to_owned()),
        round: RoundNumber(1),
        progress: 0.5,
        instances: 10,
        quarantined: 1,
        sent_bytes: 1,
        received_bytes: 2,
        privacy: Some(privacy()),
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
        encode(&vec![vote()]),
        encode(&vec![vote(), vote()]),
        encode(&chunk),
        Topic::Up(federation(), SiteId::new("north").unwrap(), Lane::Chunk).to_string().into_bytes(),
        seal(&NoKey, &header, &FromAggregatorToAll::Announce(plan())).unwrap(),
    ];
    samples.extend(secure_samples());
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
fn the_longest_list_of_steps_fits_into_an_announcement_of_the_largest_model() {
    let chunks = |count: usize| vec![Digest::of(b"chunk"); count];
    let mut plan = secure_plan();
    plan.base.parameters.length_bytes = MAX_BLOB_BYTES;
    plan.base.parameters.chunk_hashes = chunks((MAX_BLOB_BYTES / u64::from(MAX_CHUNK_BYTES)) as usize);
    plan.steps = vec![step(1); MAX_MODEL_STEPS];
    for step in &mut plan.steps {
        step.delta.length_bytes = u64::MAX;
        step.delta.chunk_hashes = chunks(MAX_STEP_CHUNKS / MAX_MODEL_STEPS);
    }
    let site = SiteId::new("a-hospital-with-a-name-of-some-length").unwrap();
    plan.made_by = Some(MakingRound { round: RoundNumber(u32::MAX), sites: vec![site; 2000] });
    let bytes = encode(&FromAggregatorToAll::Announce(plan));
    assert!(bytes.len() + 4096 < MAX_MESSAGE_BYTES, "{} bytes", bytes.len());
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
