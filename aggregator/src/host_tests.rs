//! A whole task through the real store, ledger, blobs and link (to a broker that is not there, so that nothing
//! answers), with and without kills between any two messages.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use super::*;
use medinet_fixtures::{task_spec, training_plan};
use medinet_identity::{
    Authority, Identity, IdentityFiles, Issue, new_key_and_csr, write_private, write_public,
};
use medinet_ledger::bundle::TrustedKeys;
use medinet_ledger::directory::read_log;
use medinet_ledger::{CheckpointSigner as _, Ed25519Signer, LedgerPublicKey, ModelBundle, verify_log};
use medinet_link::{LinkOptions, SessionSettings};
use medinet_privacy::{Delta, Epsilon, PrivacyLimit};
use medinet_rounds::{GroupRule, InitialModel, ReleaseRule, ServerOptimizer};
use medinet_store::HistoryRow;
use medinet_types::{DatasetDigest, FederationId, HumanDuration, Principal, Role};
use medinet_update::{CodecPlan, ErrorFeedback, ModelDelta, Origin, SealedUpdate};
use medinet_wire::message::{Aggregation, RoundPlan, SiteDecline, SiteMetrics, SitePrivacy, UpdateOffer};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::mpsc;

const DAY: Duration = Duration::from_secs(86_400);
const SEED: [u8; 32] = [7; 32];

fn site(n: usize) -> SiteId {
    SiteId::new(format!("site-{n}")).unwrap()
}

fn task() -> TaskId {
    TaskId::new("pneumonia").unwrap()
}

fn federation() -> FederationId {
    FederationId::new("chest").unwrap()
}

fn plan() -> TaskPlan {
    TaskPlan {
        spec: task_spec(),
        members: [site(0), site(1)].into(),
        rounds: 1,
        min_sites: 2,
        max_sites: 2,
        round_deadline: Duration::from_secs(3600),
        join_grace: Duration::from_secs(60),
        max_extensions: 1,
        max_repeats: 0,
        training: training_plan(),
        final_learning_rate: 1.0,
        max_clip_norm: None,
        groups: GroupRule::default(),
        aggregation: Aggregation::Plain(CodecPlan { bits: 8, clip_norm: 10.0, error_feedback: false }),
        max_examples: 10_000,
        initial: InitialModel::Seed(7),
        optimizer: ServerOptimizer::FedAvg,
        downlink_bits: 4,
        evaluate_every: None,
        release: ReleaseRule {
            min_median_auroc: 0.5,
            max_regression: 0.1,
            min_reporting_sites: 1,
            votes: None,
            go_back: true,
        },
    }
}

fn identity(folder: &Path) -> Arc<Identity> {
    let now = medinet_link::now();
    let authority = Authority::create(&folder.join("ca"), "Test", 10 * DAY, now).unwrap();
    let principal = Principal::new(Role::Aggregator, SiteId::new("aggregator").unwrap());
    let (key, csr_pem) = new_key_and_csr(&principal).unwrap();
    let issue = Issue { csr_pem: &csr_pem, principal: &principal, hosts: &[], validity: DAY };
    let (certificate, _) = authority.issue(&issue, now).unwrap();
    let files = IdentityFiles {
        certificate: folder.join("certificate.pem"),
        key: folder.join("key.pem"),
        ca: authority.certificate_path(),
        crl: None,
    };
    write_private(&files.key, &key).unwrap();
    write_public(&files.certificate, &certificate).unwrap();
    Arc::new(Identity::load(&files).unwrap())
}

/// A machine whose aggregator can be killed and started again.
struct Machine {
    folder: tempfile::TempDir,
    identity: Arc<Identity>,
    running: Option<(Host, mpsc::Receiver<LinkEvent>)>,
    kills: bool,
    /// What sites say of their budgets.
    privacy: Option<PrivacyReport>,
}

impl Machine {
    async fn start(kills: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identity = identity(folder.path());
        let mut machine = Self { folder, identity, running: None, kills, privacy: None };
        machine.boot().await;
        machine
    }

    async fn boot(&mut self) {
        let mut store = Store::open(self.folder.path().join("data")).unwrap();
        let blobs = BlobStore::open(store.blob_folder()).unwrap();
        let signer = Ed25519Signer::from_seed(&SEED).unwrap();
        let mut ledger = Ledger::open(&self.ledger(), &federation(), signer).unwrap();
        ledger.append_waiting(&mut store).unwrap();
        let trust: Arc<dyn Verifier> = self.identity.trust().clone();
        let tasks = open_tasks(vec![plan()], &store, &blobs, &trust).unwrap();
        // Port 1 of this machine: refused at once.
        let session = SessionSettings {
            host: "127.0.0.1".into(),
            port: 1,
            keep_alive: HumanDuration(Duration::from_secs(20)),
            max_inflight: 16,
            max_backoff: HumanDuration(DAY),
        };
        let (link, events) = Link::start(LinkOptions {
            session,
            identity: Arc::clone(&self.identity),
            verifier: self.identity.trust().clone(),
            federation: federation(),
            blobs,
            last_will: None,
        });
        let mut host = Host::new(link, store, ledger, self.folder.path().join("models"), tasks).unwrap();
        host.begin().await.unwrap();
        self.running = Some((host, events));
    }

    fn ledger(&self) -> PathBuf {
        self.folder.path().join("ledger")
    }

    fn host(&mut self) -> &mut Host {
        &mut self.running.as_mut().unwrap().0
    }

    async fn maybe_kill(&mut self) {
        if self.kills {
            self.running = None;
            self.boot().await;
        }
    }

    async fn tell(&mut self, n: usize, message: FromSite) {
        let event = LinkEvent::Message(Incoming::FromSite(site(n), message, Digest::of(b"envelope")));
        self.host().on_event(event).await.unwrap();
        self.maybe_kill().await;
    }

    async fn register(&mut self, n: usize) {
        let manifest = DatasetDigest(Digest::of(&[n as u8]));
        let registration = DatasetRegistration { task: task(), manifest, images_per_class: vec![120, 340] };
        self.tell(n, FromSite::RegisterDataset(registration)).await;
    }

    fn round(&mut self) -> RoundPlan {
        match &self.host().tasks[0].announced {
            Some(FromAggregatorToAll::Announce(plan)) => plan.clone(),
            other => panic!("expected an open round, got {other:?}"),
        }
    }

    async fn join(&mut self, n: usize) {
        let round = self.round().round;
        self.tell(n, FromSite::Join { task: task(), round }).await;
    }

    /// Offers an update whose chunks have all come in an earlier run, and waits until the link says so.
    async fn deliver(&mut self, n: usize, value: f32) {
        let round = self.round();
        let origin = Origin { base: round.base.digest, round: round.round };
        let length = self.host().tasks[0].coordinator.parameters().len();
        let (delta, mut feedback) =
            (ModelDelta::new(vec![value; length]).unwrap(), ErrorFeedback::new(length));
        let codec = round.aggregation.plain().unwrap();
        let update = SealedUpdate::encode(delta, codec, origin, 100, [1; 32], &mut feedback).unwrap();
        self.host().link().blobs().put(update.as_bytes()).unwrap();
        let offer = UpdateOffer {
            task: task(),
            round: round.round,
            base: round.base.digest,
            update: BlobManifest::of(update.as_bytes()),
            examples: 100,
            base_metrics: None,
            privacy: self.privacy,
        };
        let message = Incoming::FromSite(site(n), FromSite::OfferUpdate(offer), Digest::of(b"envelope"));
        let (host, events) = self.running.as_mut().unwrap();
        host.on_event(LinkEvent::Message(message)).await.unwrap();
        loop {
            let event = events.recv().await.unwrap();
            let fetched = matches!(event, LinkEvent::Fetched(_));
            host.on_event(event).await.unwrap();
            if fetched {
                break;
            }
        }
        self.maybe_kill().await;
    }

    async fn measure(&mut self, n: usize) {
        let round = self.round().round;
        let metrics =
            SiteMetrics { images: 50, auroc: Some(0.9), accuracy: 0.8, loss: 0.4, calibration_error: 0.1 };
        self.tell(n, FromSite::Evaluation { task: task(), round, metrics: Some(metrics), vote: None }).await;
    }

    fn kinds(&self) -> Vec<(&'static str, u64)> {
        let key = Ed25519Signer::from_seed(&SEED).unwrap().public_key();
        let key = LedgerPublicKey::new(&federation(), key);
        let report = verify_log(&read_log(&self.ledger()).unwrap(), &key, None);
        assert!(report.is_verified(), "{report}");
        assert_eq!(report.unsigned_tail, 0);
        report.kinds.into_iter().collect()
    }
}

async fn whole_task(kills: bool) {
    let mut machine = Machine::start(kills).await;
    machine.join(0).await;
    assert_eq!(machine.host().tasks[0].progress().tally.joined, 0, "without a data set nobody takes part");
    for n in [0, 1, 0] {
        machine.register(n).await;
    }
    for n in [0, 1] {
        machine.join(n).await;
    }
    machine.deliver(0, 0.5).await;
    machine.deliver(1, 0.25).await;
    assert_eq!(machine.host().tasks[0].progress().stage, Stage::Evaluating);
    for n in [0, 1] {
        machine.measure(n).await;
    }
    let status = status::of(&machine.host().tasks, PresenceState::Online, UnixMillis(0));
    assert!(status.finished);
    assert_eq!((status.round.0, status.auroc), (0, Some(0.9)));

    assert_eq!(
        machine.kinds(),
        [
            ("data set registered", 2),
            ("model evaluated", 1),
            ("model released", 1),
            ("round closed", 1),
            ("round opened", 2),
            ("task started", 1),
        ]
    );

    // What the sites are told to fetch is what the ledger says, and what stands in the folder.
    let Some(FromAggregatorToAll::Release(release)) = machine.host().tasks[0].released.clone() else {
        panic!("expected a release");
    };
    let bytes = machine.host().link().blobs().get(release.bundle.digest).unwrap().unwrap();
    let key = Ed25519Signer::from_seed(&SEED).unwrap().public_key();
    let trusted = TrustedKeys { ledger: LedgerPublicKey::new(&federation(), key) };
    let model = ModelBundle::decode(&bytes).unwrap().verify(&trusted).unwrap();
    assert_eq!(model.digest(), release.model.digest);
    assert_eq!(model.spec(), &release.spec);
    let file = std::fs::read(machine.folder.path().join("models/pneumonia-v1.onnx")).unwrap();
    assert_eq!(file, model.onnx());

    // Updates are gone; models, the bundle and what the way down needs stay.
    let blobs = std::fs::read_dir(machine.host().link().blobs().folder()).unwrap();
    let left: BTreeSet<_> = blobs.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let needed = machine.host().tasks[0].coordinator.blobs();
    assert!(!needed.is_subset(&machine.host().kept.iter().copied().collect()), "a delta and what it lost");
    let kept: BTreeSet<_> = machine.host().kept.iter().chain(&needed).map(ToString::to_string).collect();
    assert_eq!(left, kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_ends_with_a_release_that_the_ledger_proves() {
    whole_task(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_between_any_two_messages_change_nothing() {
    whole_task(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_reads_why_sites_decline_and_what_they_have_spent() {
    let mut machine = Machine::start(false).await;
    for n in [0, 1] {
        machine.register(n).await;
    }
    let round = machine.round().round;
    let reason = "the round costs epsilon 3 at delta 1e-5, this site gives at most 1 for one".to_owned();
    machine.tell(0, FromSite::Decline { task: task(), round, reason: reason.clone() }).await;
    let status = status::of(&machine.host().tasks, PresenceState::Online, UnixMillis(0));
    assert_eq!(status.declines, [SiteDecline { site: site(0), round, reason: reason.clone() }]);
    // What is retained at the broker is JSON.
    let json: serde_json::Value = serde_json::from_slice(&status::json(&status)).unwrap();
    assert_eq!(json["declines"][0]["reason"], reason);
    // With its own limit raised it takes part.
    let limit = PrivacyLimit { epsilon: Epsilon::new(8.0).unwrap(), delta: Delta::new(1e-5).unwrap() };
    let report = PrivacyReport { spent: Epsilon::new(3.0).unwrap(), limit, unbounded: false, rounds: 1 };
    machine.privacy = Some(report);
    machine.deliver(0, 0.5).await;
    let status = status::of(&machine.host().tasks, PresenceState::Online, UnixMillis(0));
    assert_eq!(status.privacy, [SitePrivacy { site: site(0), round, report }]);
    let history = machine.host().store.history(&task(), 100).unwrap();
    let on_record = |row: &HistoryRow| matches!(&row.record, RoundRecord::UpdateAccepted { privacy: Some(said), .. } if *said == report);
    assert!(history.iter().any(on_record), "{history:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_update_takes_a_model_along() {
    let mut machine = Machine::start(false).await;
    for n in [0, 1] {
        machine.register(n).await;
        machine.join(n).await;
    }
    // The "update" is the base model itself: whole at once, no update, and to be discarded.
    let round = machine.round();
    let offer = UpdateOffer {
        task: task(),
        round: round.round,
        base: round.base.digest,
        update: round.base.parameters.clone(),
        examples: 1,
        base_metrics: None,
        privacy: None,
    };
    machine.tell(0, FromSite::OfferUpdate(offer)).await;
    let (host, events) = machine.running.as_mut().unwrap();
    loop {
        let event = events.recv().await.unwrap();
        let fetched = matches!(event, LinkEvent::Fetched(_));
        host.on_event(event).await.unwrap();
        if fetched {
            break;
        }
    }
    assert_eq!(machine.host().tasks[0].progress().tally.failed, 1);
    assert!(machine.host().link().blobs().has(round.base.parameters.digest));
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_false_data_sets_leave_no_trace() {
    let mut machine = Machine::start(false).await;
    let before = machine.kinds();
    machine.register(5).await;
    let manifest = DatasetDigest(Digest::of(b"x"));
    for images_per_class in [vec![120], vec![123, 40], vec![]] {
        let registration = DatasetRegistration { task: task(), manifest, images_per_class };
        machine.tell(0, FromSite::RegisterDataset(registration)).await;
    }
    assert_eq!(machine.kinds(), before);
    assert!(machine.host().store.sites().unwrap().iter().all(|row| row.site != site(5)));
}
