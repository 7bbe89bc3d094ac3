//! A released model in one blob, with everything that lets a site run it without trusting whoever sent it.
//!
//! The ledger's release record holds the digests of the model, of its ONNX graph and of the task's specification; the
//! signed checkpoint and the inclusion proof show that the record stands on the ledger. So nothing else in the bundle
//! needs a signature, and nothing comes out of it before that chain holds: [`VerifiedModel`] is the only type that
//! gives the graph, and [`ModelBundle::verify`] and [`ModelBundle::verify_voted`] the only ways to one. The second does not
//! take the ledger's word alone: the bundle holds the sites' signed votes, and enough of them must accept this very model.

use crate::checkpoint::{Checkpoint, CheckpointError, LedgerPublicKey, SignedCheckpoint};
use crate::merkle::{ProofError, leaf_hash, verify_inclusion};
use crate::record::{Record, RecordBody, RecordError};
use crate::vote::{Candidate, MAX_VOTES, Quorum, SignedVote, VoteError, VoteTally, VoterTrust, verify_votes};
use medinet_model::TaskSpec;
use medinet_types::{Digest, ModelDigest, ModelVersion, UnixMillis};
use serde::{Deserialize, Serialize};

/// The longest ONNX graph, in bytes: well above any network that a task may describe.
pub const MAX_ONNX_BYTES: u64 = 512 << 20;

/// The longest proof: that of a log of 2^64 entries.
const MAX_PROOF: usize = 64;

const FORMAT: u8 = 3;
const ZSTD_LEVEL: i32 = 3;

/// A model with its proof, not verified yet: it tells nothing of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelBundle {
    header: Header,
    packed_onnx: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    spec: Vec<u8>,
    record: Vec<u8>,
    index: u64,
    proof: Vec<Digest>,
    checkpoint: String,
    votes: Vec<SignedVote>,
}

/// Whose votes a model needs, beside its place on the ledger.
#[derive(Clone, Copy)]
pub struct VoteDemand<'a> {
    /// How many.
    pub quorum: Quorum,
    /// Whose signatures count.
    pub voters: &'a dyn VoterTrust,
}

/// Whom a site trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKeys {
    /// The key that signs the federation's ledger.
    pub ledger: LedgerPublicKey,
}

/// A model whose release is proven to stand on the ledger and whose content is what the ledger says.
#[derive(Debug, Clone, PartialEq)]
pub struct VerifiedModel {
    spec: TaskSpec,
    digest: ModelDigest,
    version: ModelVersion,
    released_at: UnixMillis,
    checkpoint: SignedCheckpoint,
    index: u64,
    onnx: Vec<u8>,
    votes: Option<VoteTally>,
}

/// A bundle that must not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Not a bundle, or damaged on the way: fetch it again.
    #[error("expected a model bundle, got {0}")]
    Malformed(&'static str),
    /// Made by another version.
    #[error("expected model bundle format {FORMAT}, got {0}: update this program")]
    Version(u8),
    /// Parts that do not fit each other were put together; our API misused.
    #[error("the parts of the bundle do not belong together: {0}")]
    Parts(&'static str),
    /// The signature of the ledger's checkpoint does not hold: refuse the model.
    #[error("the ledger's signature does not hold: {0}")]
    Checkpoint(CheckpointError),
    /// The release is not on the ledger: refuse the model.
    #[error("the release is not proven to stand on the ledger: {0}")]
    Proof(ProofError),
    /// The record does not decode.
    #[error("the release record does not decode: {0}")]
    Record(RecordError),
    /// The record on the ledger is no release.
    #[error("the record on the ledger is {0:?}, not the release of a model")]
    NotARelease(&'static str),
    /// The specification is not the one that was released.
    #[error("the task's specification is not the one on the ledger")]
    Spec,
    /// The sites have not accepted it: refuse the model.
    #[error("the model is not carried by votes: {0}")]
    Votes(VoteError),
    /// The graph is not the one that was released: refuse the model.
    #[error("the ONNX graph is not the one on the ledger")]
    Onnx,
}

impl ModelBundle {
    /// Puts a bundle together: the specification's exact bytes (see [`encode_spec`]), the ONNX graph, the release record's
    /// entry, its index, the proof that it is in the log of `checkpoint`, and that checkpoint.
    ///
    /// # Errors
    /// When the parts do not verify together.
    pub fn new(
        spec: &TaskSpec,
        onnx: &[u8],
        record: &Record,
        index: u64,
        proof: Vec<Digest>,
        checkpoint: &SignedCheckpoint,
    ) -> Result<Self, BundleError> {
        let entry = record.encode().map_err(BundleError::Record)?;
        let Checkpoint { size, root, .. } = checkpoint.checkpoint();
        verify_inclusion(&leaf_hash(&entry), index, *size, &proof, root).map_err(BundleError::Proof)?;
        let spec = encode_spec(spec);
        let packed_onnx =
            zstd::bulk::compress(onnx, ZSTD_LEVEL).map_err(|_| BundleError::Parts("zstd has no memory"))?;
        let checkpoint = checkpoint.note().to_owned();
        let header = Header { spec, record: entry, index, proof, checkpoint, votes: Vec::new() };
        let bundle = Self { header, packed_onnx };
        let (_, release) = bundle.release()?;
        bundle.open_spec(&release)?;
        if release.onnx != Digest::of(onnx) || release.onnx_bytes != onnx.len() as u64 {
            return Err(BundleError::Onnx);
        }
        Ok(bundle)
    }

    /// The same bundle with the sites' votes on its model.
    ///
    /// # Errors
    /// When there are more than [`MAX_VOTES`], or one is of another model.
    pub fn with_votes(mut self, votes: Vec<SignedVote>) -> Result<Self, BundleError> {
        let (_, release) = self.release()?;
        if let Some(other) = votes.iter().find(|signed| signed.vote.model != release.model) {
            let (expected, got) = (release.model, other.vote.model);
            return Err(BundleError::Votes(VoteError::OtherModel { expected, got }));
        }
        if votes.len() > MAX_VOTES {
            return Err(BundleError::Votes(VoteError::TooMany(votes.len())));
        }
        self.header.votes = votes;
        Ok(self)
    }

    /// The bundle as a blob: a format byte, the header in postcard, the graph in zstd.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Byte strings, numbers and digests: postcard always encodes them.
        let mut bytes = postcard::to_extend(&self.header, vec![FORMAT]).expect("the header always encodes");
        bytes.extend_from_slice(&self.packed_onnx);
        bytes
    }

    /// Reads a blob. Allocates no more than the blob's own length; the graph stays packed until its length is proven.
    ///
    /// # Errors
    /// When the bytes are no bundle.
    pub fn decode(bytes: &[u8]) -> Result<Self, BundleError> {
        let (&format, rest) = bytes.split_first().ok_or(BundleError::Malformed("no bytes"))?;
        if format != FORMAT {
            return Err(BundleError::Version(format));
        }
        let (header, packed_onnx): (Header, _) = postcard::take_from_bytes(rest)
            .map_err(|_| BundleError::Malformed("bytes that do not decode"))?;
        if header.proof.len() > MAX_PROOF {
            return Err(BundleError::Malformed("a proof that is too long"));
        }
        if header.votes.len() > MAX_VOTES {
            return Err(BundleError::Malformed("too many votes"));
        }
        Ok(Self { header, packed_onnx: packed_onnx.to_vec() })
    }

    /// Checks the whole chain from the trusted key to the graph's bytes, and that a quorum of sites has accepted this very model,
    /// by votes that were valid when it was released.
    ///
    /// # Errors
    /// Says which link does not hold, or what is wrong with the votes. Nothing of the bundle is to be used then.
    pub fn verify_voted(
        &self,
        trusted: &TrustedKeys,
        demand: &VoteDemand<'_>,
    ) -> Result<VerifiedModel, BundleError> {
        let mut verified = self.verify(trusted)?;
        let candidate = Candidate {
            task: &verified.spec.task,
            model: verified.digest,
            version: verified.version,
            at: verified.released_at,
        };
        let tally = verify_votes(&self.header.votes, &candidate, &demand.quorum, demand.voters)
            .map_err(BundleError::Votes)?;
        verified.votes = Some(tally);
        Ok(verified)
    }

    /// Checks the whole chain from the trusted key to the graph's bytes. That the sites have accepted the model is the ledger's
    /// word then; where the federation's authority is known, [`Self::verify_voted`] asks the sites themselves.
    ///
    /// # Errors
    /// Says which link does not hold. Nothing of the bundle is to be used then.
    pub fn verify(&self, trusted: &TrustedKeys) -> Result<VerifiedModel, BundleError> {
        let checkpoint = trusted.ledger.verify(&self.header.checkpoint).map_err(BundleError::Checkpoint)?;
        let Checkpoint { size, root, .. } = checkpoint.checkpoint();
        verify_inclusion(&leaf_hash(&self.header.record), self.header.index, *size, &self.header.proof, root)
            .map_err(BundleError::Proof)?;
        let (released_at, release) = self.release()?;
        let spec = self.open_spec(&release)?;
        if release.onnx_bytes > MAX_ONNX_BYTES {
            return Err(BundleError::Onnx);
        }
        // Only now, when the length is proven, is it allocated.
        let length = usize::try_from(release.onnx_bytes).map_err(|_| BundleError::Onnx)?;
        let onnx = zstd::bulk::decompress(&self.packed_onnx, length).map_err(|_| BundleError::Onnx)?;
        if onnx.len() != length || Digest::of(&onnx) != release.onnx {
            return Err(BundleError::Onnx);
        }
        let (digest, version, index) = (release.model, release.version, self.header.index);
        Ok(VerifiedModel { spec, digest, version, released_at, checkpoint, index, onnx, votes: None })
    }

    fn release(&self) -> Result<(UnixMillis, Release), BundleError> {
        let record = Record::decode(&self.header.record).map_err(BundleError::Record)?;
        let kind = record.kind();
        match record.body {
            RecordBody::ModelReleased { task, model, version, spec, onnx, onnx_bytes } => {
                Ok((record.at, Release { task, model, version, spec, onnx, onnx_bytes }))
            }
            _ => Err(BundleError::NotARelease(kind)),
        }
    }

    fn open_spec(&self, release: &Release) -> Result<TaskSpec, BundleError> {
        if Digest::of(&self.header.spec) != release.spec {
            return Err(BundleError::Spec);
        }
        let spec: TaskSpec = postcard::from_bytes(&self.header.spec).map_err(|_| BundleError::Spec)?;
        if spec.task == release.task && spec.check().is_ok() { Ok(spec) } else { Err(BundleError::Spec) }
    }
}

struct Release {
    task: medinet_types::TaskId,
    model: ModelDigest,
    version: ModelVersion,
    spec: Digest,
    onnx: Digest,
    onnx_bytes: u64,
}

/// The specification's bytes, whose digest stands in the records ([`spec_digest`]).
#[must_use]
pub fn encode_spec(spec: &TaskSpec) -> Vec<u8> {
    // Strings, numbers and lists of known length: postcard always encodes them.
    postcard::to_allocvec(spec).expect("a specification always encodes")
}

/// The digest of a specification, for [`RecordBody::TaskStarted`] and [`RecordBody::ModelReleased`].
#[must_use]
pub fn spec_digest(spec: &TaskSpec) -> Digest {
    Digest::of(&encode_spec(spec))
}

impl VerifiedModel {
    /// The task, with the preprocessing that the graph expects.
    #[must_use]
    pub fn spec(&self) -> &TaskSpec {
        &self.spec
    }

    /// The model.
    #[must_use]
    pub fn digest(&self) -> ModelDigest {
        self.digest
    }

    /// Its version within the task.
    #[must_use]
    pub fn version(&self) -> ModelVersion {
        self.version
    }

    /// When it was released, by the ledger.
    #[must_use]
    pub fn released_at(&self) -> UnixMillis {
        self.released_at
    }

    /// The signed checkpoint that covers the release; feed it to [`LedgerPublicKey::advance`] where a site follows the log.
    #[must_use]
    pub fn checkpoint(&self) -> &SignedCheckpoint {
        &self.checkpoint
    }

    /// Index of the release on the ledger.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The sites' votes, where they were asked for and hold.
    #[must_use]
    pub fn votes(&self) -> Option<VoteTally> {
        self.votes
    }

    /// The ONNX graph.
    #[must_use]
    pub fn onnx(&self) -> &[u8] {
        &self.onnx
    }
}
