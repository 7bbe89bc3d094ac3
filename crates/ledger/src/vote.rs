//! Sites' votes on a candidate: each measures it on images of its own and signs what it makes of it.
//!
//! A signed vote proves itself to whoever knows the federation's authority, so nobody between the sites and the user of a model
//! has to be believed about it: neither broker nor aggregator, nor whoever hands over a bundle.
//!
//! What a set of votes cannot show is which are missing. Whoever puts it together can leave out those that reject; so a
//! [`Quorum`] counts accepting sites first of all, and only the aggregator, which has all votes, can say anything by their share.

use alloc::vec::Vec;
// thiserror's derive names `std` as soon as any crate of the build has its `std` feature on; `core` has all that it uses.
use alloc::collections::BTreeSet;
#[cfg(not(feature = "std"))]
#[allow(unused_imports, reason = "not named when thiserror is built without `std`")]
use core as std;
use medinet_types::{Digest, ModelDigest, ModelVersion, RoundNumber, SiteId, TaskId, UnixMillis};
use serde::{Deserialize, Serialize};

/// The most votes that are looked at.
pub const MAX_VOTES: usize = 4096;
/// The longest credential, in bytes: a certificate.
pub const MAX_CREDENTIAL_BYTES: usize = 4096;
/// The longest signature, in bytes.
pub const MAX_SIGNATURE_BYTES: usize = 512;

/// What a site makes of a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ballot {
    /// It may be used here.
    Accept,
    /// It may not.
    Reject(Objection),
    /// The site cannot say.
    Abstain(Hindrance),
}

/// Why a site rejects a candidate. The class of the reason leaves the site, the figures only where its policy lets them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objection {
    /// Its AUROC is below the least that the site takes.
    LowAuroc,
    /// Its AUROC is further below the best that the site has accepted than the site allows.
    AurocDrop,
    /// The same of its accuracy.
    AccuracyDrop,
}

/// Why a site abstains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hindrance {
    /// It has too few validation images to judge by.
    FewImages,
    /// Its validation images are of one class, so that there is no AUROC.
    OneClass,
}

/// What a site signs: its ballot on one model, in one round, of one task. It is of no use for any other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// The task.
    pub task: TaskId,
    /// The evaluation round.
    pub round: RoundNumber,
    /// The candidate.
    pub model: ModelDigest,
    /// Its version.
    pub version: ModelVersion,
    /// What the site makes of it.
    pub ballot: Ballot,
}

/// A vote and the proof of whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedVote {
    /// The vote.
    pub vote: Vote,
    /// What proves the signer's key: its certificate (DER), at most [`MAX_CREDENTIAL_BYTES`].
    pub credential: Vec<u8>,
    /// The identity's signature over [`Vote::signed_bytes`], at most [`MAX_SIGNATURE_BYTES`].
    pub signature: Vec<u8>,
}

impl Vote {
    /// The bytes under the signature: a domain of its own, so that a vote is nothing else and nothing else is a vote.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        let mut bytes = b"medinet vote 1\0".to_vec();
        // Names, numbers and a digest: postcard always encodes them.
        bytes.extend(postcard::to_allocvec(self).expect("a vote always encodes"));
        bytes
    }
}

impl SignedVote {
    /// Names the vote with its proof, as on the ledger.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of_parts(&[
            b"medinet signed vote 1",
            &self.vote.signed_bytes(),
            &self.credential,
            &self.signature,
        ])
    }

    /// Whether credential and signature are no longer than they may be.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        self.credential.len() <= MAX_CREDENTIAL_BYTES && self.signature.len() <= MAX_SIGNATURE_BYTES
    }
}

/// How many votes a model needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quorum {
    /// The least number of sites that accept, at least 1.
    pub min_accepting: u32,
    /// Of 1,000 sites that accept or reject, how many must accept at least, 0 to 1000.
    pub min_accept_permille: u16,
}

/// Votes, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VoteTally {
    /// Sites that accept.
    pub accepting: u32,
    /// Sites that reject.
    pub rejecting: u32,
    /// Sites that abstain.
    pub abstaining: u32,
}

impl VoteTally {
    /// Counts ballots, one a site.
    #[must_use]
    pub fn of(ballots: impl IntoIterator<Item = Ballot>) -> Self {
        let mut tally = Self::default();
        for ballot in ballots {
            match ballot {
                Ballot::Accept => tally.accepting += 1,
                Ballot::Reject(_) => tally.rejecting += 1,
                Ballot::Abstain(_) => tally.abstaining += 1,
            }
        }
        tally
    }
}

impl Quorum {
    /// Whether the votes are enough. Who abstains counts for neither side.
    #[must_use]
    pub fn accepts(&self, votes: VoteTally) -> bool {
        votes.accepting >= self.min_accepting.max(1) && !self.is_against(votes)
    }

    /// Whether those that decide are against the model, however few they are. A quorum may also be missed because sites are away or abstain.
    #[must_use]
    pub fn is_against(&self, votes: VoteTally) -> bool {
        let cast = u64::from(votes.accepting) + u64::from(votes.rejecting);
        u64::from(votes.accepting) * 1000 < cast * u64::from(self.min_accept_permille)
    }
}

/// Knows whose signatures count: the sites that the federation's authority has enrolled.
pub trait VoterTrust {
    /// The site whose enrolled key made `signature` over `message`, by `credential`; `None` when no site's did, or not at the
    /// time `at`.
    fn voter(&self, credential: &[u8], message: &[u8], signature: &[u8], at: UnixMillis) -> Option<SiteId>;
}

/// Votes that do not carry a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VoteError {
    /// More than can be looked at, or longer than a vote may be: whoever sent them is at fault.
    #[error("expected at most {MAX_VOTES} votes of bounded length, got {0} votes")]
    TooMany(usize),
    /// A vote on something else: whoever put it there is at fault.
    #[error("expected votes on model {expected}, got one on model {got}")]
    OtherModel {
        /// The model.
        expected: ModelDigest,
        /// The vote's.
        got: ModelDigest,
    },
    /// A vote on the model as another task's or version's, or of another round than the others.
    #[error("expected votes of one round of the task on this version, got another one's")]
    OtherRound,
    /// A site votes once.
    #[error("expected one vote of each site, got two of site {0}")]
    Twice(SiteId),
    /// Too few.
    #[error(
        "expected at least {} accepting sites and {} of 1,000 of those that decide, got {} accepting, {} rejecting and \
         {unproven} votes without proof: the sites have not released this model",
        quorum.min_accepting, quorum.min_accept_permille, tally.accepting, tally.rejecting
    )]
    NoQuorum {
        /// What is asked for.
        quorum: Quorum,
        /// What came.
        tally: VoteTally,
        /// Votes whose signature or certificate does not hold; they count for nothing.
        unproven: u32,
    },
}

/// What the votes are to be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// The task.
    pub task: &'a TaskId,
    /// The model.
    pub model: ModelDigest,
    /// Its version.
    pub version: ModelVersion,
    /// When certificates must have been valid: when the model was judged or released.
    pub at: UnixMillis,
}

/// Checks that enough sites have accepted this very model. What is about something else, or there twice, refuses all of it, for
/// no honest party puts it there; what proves nothing counts for nothing, as a site's certificate may be revoked since.
///
/// # Errors
/// Says what is wrong with the votes.
pub fn verify_votes(
    votes: &[SignedVote],
    candidate: &Candidate<'_>,
    quorum: &Quorum,
    trust: &dyn VoterTrust,
) -> Result<VoteTally, VoteError> {
    if votes.len() > MAX_VOTES || votes.iter().any(|vote| !vote.is_bounded()) {
        return Err(VoteError::TooMany(votes.len()));
    }
    let round = votes.first().map(|signed| signed.vote.round);
    let (mut voters, mut ballots, mut unproven) = (BTreeSet::new(), Vec::new(), 0);
    for SignedVote { vote, credential, signature } in votes {
        if vote.model != candidate.model {
            return Err(VoteError::OtherModel { expected: candidate.model, got: vote.model });
        }
        if vote.task != *candidate.task || vote.version != candidate.version || Some(vote.round) != round {
            return Err(VoteError::OtherRound);
        }
        match trust.voter(credential, &vote.signed_bytes(), signature, candidate.at) {
            Some(site) if voters.contains(&site) => return Err(VoteError::Twice(site)),
            Some(site) => {
                voters.insert(site);
                ballots.push(vote.ballot);
            }
            None => unproven += 1,
        }
    }
    let tally = VoteTally::of(ballots);
    if quorum.accepts(tally) {
        Ok(tally)
    } else {
        Err(VoteError::NoQuorum { quorum: *quorum, tally, unproven })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_abstains_counts_for_neither_side() {
        let quorum = Quorum { min_accepting: 2, min_accept_permille: 667 };
        let votes = |accepting, rejecting, abstaining| VoteTally { accepting, rejecting, abstaining };
        assert!(quorum.accepts(votes(2, 0, 9)));
        assert!(!quorum.accepts(votes(2, 1, 0)), "666 of 1,000");
        assert!(quorum.accepts(votes(3, 1, 0)));
        assert!(!quorum.accepts(votes(1, 0, 5)));
        // Nobody is not a quorum, whatever the setting says.
        assert!(!Quorum { min_accepting: 0, min_accept_permille: 0 }.accepts(votes(0, 0, 3)));
        let ballots = [
            Ballot::Accept,
            Ballot::Reject(Objection::AurocDrop),
            Ballot::Abstain(Hindrance::FewImages),
            Ballot::Accept,
        ];
        assert_eq!(VoteTally::of(ballots), votes(2, 1, 1));
    }
}
