//! A small federation's story, and a disk that can fail.
#![allow(dead_code, reason = "each test file uses its part")]

use medinet_ledger::bundle::spec_digest;
use medinet_ledger::vote::{Ballot, Quorum, SignedVote, Vote, VoterTrust};
use medinet_ledger::writer::LogStorage;
use medinet_ledger::{
    CheckpointSigner as _, Ed25519Signer, LedgerPublicKey, LogFiles, LogWriter, Participant, Record,
    RecordBody, ReportedMetrics, RoundKind, SiteReport, SiteVote,
};
use medinet_model::{
    InputShape, Intensity, NetworkManifest, Normalisation, Preprocessing, Resize, Slices, TaskSpec,
};
use medinet_types::{
    BlobDigest, DatasetDigest, Digest, FederationId, ModelDigest, ModelVersion, RoundNumber, SiteId, TaskId,
    UnixMillis,
};
use std::collections::BTreeMap;
use std::io;

pub(crate) fn task() -> TaskId {
    TaskId::new("pneumonia").unwrap()
}

pub(crate) fn site(name: &str) -> SiteId {
    SiteId::new(name).unwrap()
}

pub(crate) fn model(version: u32) -> ModelDigest {
    ModelDigest(Digest::of(format!("model {version}").as_bytes()))
}

pub(crate) fn spec() -> TaskSpec {
    let input = InputShape { channels: 1, height: 64, width: 64 };
    TaskSpec {
        task: task(),
        purpose: "Tells pneumonia from normal chest X-rays".to_owned(),
        network: NetworkManifest::small(input, vec!["normal".to_owned(), "pneumonia".to_owned()]),
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

pub(crate) fn onnx() -> Vec<u8> {
    (0..5000u32).map(|i| (i * i % 251) as u8).collect()
}

pub(crate) fn metrics() -> ReportedMetrics {
    ReportedMetrics { images: 80, auroc: Some(0.93), accuracy: 0.88, loss: 0.31, calibration_error: 0.04 }
}

pub(crate) fn started() -> RecordBody {
    RecordBody::TaskStarted { task: task(), spec: spec_digest(&spec()), model: model(0) }
}

pub(crate) fn registered(name: &str) -> RecordBody {
    RecordBody::DatasetRegistered {
        task: task(),
        site: site(name),
        manifest: DatasetDigest(Digest::of(name.as_bytes())),
        images_per_class: vec![120, 80],
        envelope: Digest::of(b"envelope"),
    }
}

pub(crate) fn opened(round: u32, kind: RoundKind, version: u32) -> RecordBody {
    RecordBody::RoundOpened {
        task: task(),
        round: RoundNumber(round),
        kind,
        base: model(version),
        version: ModelVersion(version),
        plan: Digest::of(b"plan"),
        min_sites: 2,
        max_sites: 3,
    }
}

pub(crate) fn closed(round: u32, base: u32, sites: &[&str]) -> RecordBody {
    closed_as(round, base, base + 1, sites)
}

pub(crate) fn closed_as(round: u32, base: u32, version: u32, sites: &[&str]) -> RecordBody {
    let of = |name: &&str| Participant { site: site(name), update: BlobDigest(Digest::of(name.as_bytes())) };
    RecordBody::RoundClosed {
        task: task(),
        round: RoundNumber(round),
        base: model(base),
        result: model(version),
        version: ModelVersion(version),
        participants: sites.iter().map(of).collect(),
        examples: 340,
    }
}

pub(crate) fn evaluated(round: u32, version: u32, accepted: bool) -> RecordBody {
    let report = |name: &str, metrics| SiteReport { site: site(name), metrics };
    RecordBody::ModelEvaluated {
        task: task(),
        round: RoundNumber(round),
        model: model(version),
        reports: vec![report("east", Some(metrics())), report("north", None)],
        accepted,
    }
}

pub(crate) fn released(version: u32) -> RecordBody {
    RecordBody::ModelReleased {
        task: task(),
        model: model(version),
        version: ModelVersion(version),
        spec: spec_digest(&spec()),
        onnx: Digest::of(&onnx()),
        onnx_bytes: onnx().len() as u64,
    }
}

/// Registration, three training rounds, evaluation, release.
pub(crate) fn story() -> Vec<Record> {
    let mut bodies = vec![started(), registered("north"), registered("east"), registered("west")];
    for round in 1..=3 {
        bodies.push(opened(round, RoundKind::Train, round - 1));
        bodies.push(closed(round, round - 1, &["east", "north", "west"]));
    }
    bodies.extend([opened(4, RoundKind::Evaluate, 3), evaluated(4, 3, true), released(3)]);
    (1_700_000_000_000..).map(UnixMillis).zip(bodies).map(|(at, body)| Record { at, body }).collect()
}

/// A site's vote on the model of version 3, as the story's evaluation round has it.
pub(crate) fn vote(name: &str, ballot: Ballot) -> SignedVote {
    let vote =
        Vote { task: task(), round: RoundNumber(4), model: model(3), version: ModelVersion(3), ballot };
    signed(name, vote)
}

pub(crate) fn signed(name: &str, vote: Vote) -> SignedVote {
    let signature = signature(name.as_bytes(), &vote.signed_bytes());
    SignedVote { vote, credential: name.as_bytes().to_vec(), signature }
}

/// Nothing that anybody could not make, but different for each name and message.
fn signature(name: &[u8], message: &[u8]) -> Vec<u8> {
    Digest::of_parts(&[b"test signature", name, message]).as_bytes().to_vec()
}

/// Who is enrolled: east, north and west.
pub(crate) struct Enrolled;

impl VoterTrust for Enrolled {
    fn voter(&self, credential: &[u8], message: &[u8], given: &[u8], _: UnixMillis) -> Option<SiteId> {
        let name = std::str::from_utf8(credential).ok()?;
        let enrolled = ["east", "north", "west"].contains(&name);
        (enrolled && given == signature(credential, message)).then(|| site(name))
    }
}

pub(crate) fn votes_counted(quorum: Option<Quorum>, ballots: &[(&str, Ballot)]) -> RecordBody {
    let of = |(name, ballot): &(&str, Ballot)| SiteVote {
        site: site(name),
        ballot: *ballot,
        vote: vote(name, *ballot).digest(),
    };
    let votes = ballots.iter().map(of).collect();
    RecordBody::VotesCounted { task: task(), round: RoundNumber(4), model: model(3), quorum, votes }
}

pub(crate) fn signer() -> Ed25519Signer {
    Ed25519Signer::from_seed(&[42; 32]).unwrap()
}

pub(crate) fn federation() -> FederationId {
    FederationId::new("chest").unwrap()
}

pub(crate) fn key() -> LedgerPublicKey {
    LedgerPublicKey::new(&federation(), signer().public_key())
}

/// Files in memory. With a budget, the write that exceeds it is torn and it and all later ones fail, as when the power goes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) budget: Option<usize>,
}

impl Disk {
    fn spend(&mut self, wanted: usize) -> usize {
        match &mut self.budget {
            None => wanted,
            Some(left) => {
                let granted = wanted.min(*left);
                *left -= granted;
                granted
            }
        }
    }

    fn gone() -> io::Error {
        io::Error::other("power cut")
    }

    pub(crate) fn log_files(&self) -> LogFiles {
        let file = |name: &str| self.files.get(name).cloned().unwrap_or_default();
        let history = self.files.iter().filter_map(|(name, bytes)| {
            name.strip_prefix("checkpoints/").map(|name| (name.to_owned(), bytes.clone()))
        });
        LogFiles {
            entries: file("entries.log"),
            leaves: file("leaves"),
            checkpoint: file("checkpoint"),
            history: history.collect(),
        }
    }
}

impl LogStorage for Disk {
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        Ok(self.files.get(name).cloned().unwrap_or_default())
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let granted = self.spend(bytes.len());
        self.files.entry(name.to_owned()).or_default().extend_from_slice(&bytes[..granted]);
        if granted == bytes.len() { Ok(()) } else { Err(Self::gone()) }
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        if self.spend(1) == 0 {
            return Err(Self::gone());
        }
        self.files.entry(name.to_owned()).or_default().truncate(length as usize);
        Ok(())
    }

    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        if self.spend(bytes.len()) < bytes.len() {
            return Err(Self::gone());
        }
        self.files.insert(name.to_owned(), bytes.to_vec());
        Ok(())
    }
}

/// The story on a disk, signed after each third record and at the end.
pub(crate) fn written() -> LogWriter<Disk> {
    let mut log = LogWriter::open(Disk::default(), key()).unwrap();
    for (index, record) in story().iter().enumerate() {
        log.append(record).unwrap();
        if index % 3 == 2 {
            log.sign(&signer()).unwrap();
        }
    }
    log.sign(&signer()).unwrap();
    log
}
