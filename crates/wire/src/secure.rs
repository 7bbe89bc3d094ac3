//! Rounds with secure aggregation: what is announced, and what is said in a session.
//!
//! ```text
//! site                                        aggregator
//!                                          <- RoundPlan { aggregation: Secure(..) }    announced
//! Ready                                    ->      when it has trained, at its own pace
//!                                          <- Begin { attempt }       to the cohort, formed from those who are ready
//! Advertisement                            ->
//!                                          <- Keys                    in parts, where the cohort is large
//! KeyShares                                ->
//!                                          <- Shares
//! MaskedInput (a manifest; the vector is pulled as a blob) ->
//!                                          <- Survivors
//! Agreement                                ->
//!                                          <- Agreements
//! Unmasking                                ->
//!                                          <- ToSite::Accepted        the sum is open and counts this site
//! Failed, Spent                            ->      what keeps a site from going on
//!                                          <- Abandon                 the attempt is over; Ready again, if the site may
//! ```
//!
//! A round may deal its cohort out into groups ([`SecurePlan::group_sites`]). Then an attempt is one session for each group, all at once, each as
//! above, and the aggregator learns the groups' sums. A site enters one group in an attempt, whatever it is told, since it enters
//! each attempt once.
//!
//! The messages of `medinet_secagg` travel as their own versioned and bounded bytes. All are idempotent: a site repeats its last word until the next
//! message comes, the aggregator answers a repeated word with its own last one.
//!
//! # Two attempts, one input
//!
//! A server that opened attempt 1 among A, said that it had failed and opened attempt 2 among A without u, would hold the
//! difference of two sums: the input of u alone, and fresh rounding noise would hide nothing but a few bits of it. So **of all sessions into which a site
//! has put one update, at most one can ever open.** A site that has sent a masked input in session s enters another session
//! only with a certificate that s can never open: [`Abandonment`]s of s, signed by more than `n + c - q` of the n sites in
//! the key list of s, with q the quorum of s and c the colluding sites assumed. An honest site signs an abandonment or an
//! agreement, never both, so at most `n - (n + c - q + 1 - c) = q - 1` sites can have agreed or ever agree in s; nobody honest reveals a share
//! without q agreements. A site that has signed an agreement is spent for the round: it says so and waits for the next one.

use crate::blob::BlobManifest;
use crate::envelope;
use crate::message::{RoundPlan, SiteMetrics};
use crate::vote::{SignedVote, Vote, VoterTrust};
use medinet_model::ParameterLayout;
use medinet_privacy::PrivacyReport;
use medinet_secagg::{
    Assumptions, MAX_COHORT, SessionId, SessionParameters, SignFailure, Signer, Verifier, Width,
};
use medinet_types::{Digest, FederationId, Role, SiteId, UnixMillis};
use medinet_update::{CodecPlan, NoiseError, PlanError, SecureCodecPlan};
use serde::{Deserialize, Serialize};

/// How the sites' updates become one. A round has one of these, and so a round that asks for secure aggregation has no
/// [`CodecPlan`], without which no `SealedUpdate` can be made: a plain update cannot leave a site in such a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aggregation {
    /// Each site sends a `SealedUpdate`, which is encoded and neither encrypted nor signed; the aggregator reads it.
    Plain(CodecPlan),
    /// Each site's update is masked. The aggregator learns the sum, the number of images and the mean norm; with noise inside the sum only that sum.
    Secure(SecurePlan),
}

/// What a round with secure aggregation agrees on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecurePlan {
    /// The federation, a part of every session's name.
    pub federation: FederationId,
    /// How sites turn deltas into integers.
    pub codec: SecureCodecPlan,
    /// What sessions withstand, each by itself; a site's policy may ask for more, and then it declines.
    pub assumptions: Assumptions,
    /// The cohort is dealt out at random into groups of at least this many sites, 2 to the round's minimum, and each group is
    /// summed by itself, so that a rule over the groups' means can withstand bad sites. `None` makes one sum of all.
    pub group_sites: Option<u32>,
    /// How many attempts a round may take, at least 1. In each, every group has a session.
    pub max_attempts: u32,
    /// How long the aggregator waits in a phase of short messages, in seconds, at least 1.
    pub message_seconds: u32,
    /// How long it waits for masked inputs, in seconds, at least 1.
    pub input_seconds: u32,
}

/// A secure plan that cannot work; whoever wrote it is at fault.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SecurePlanError {
    /// A setting lies outside its range.
    #[error("secure aggregation: {field}: expected {expected}, got {got}")]
    Field {
        /// The setting.
        field: &'static str,
        /// Its range.
        expected: String,
        /// What it holds.
        got: u64,
    },
    /// The codec's plan breaks its rules.
    #[error(transparent)]
    Codec(#[from] PlanError),
    /// The noise inside the sum is out of range, or costs more than the plan says.
    #[error(transparent)]
    Noise(#[from] NoiseError),
    /// The session cannot be set up.
    #[error("secure aggregation: {0}")]
    Session(String),
}

impl Aggregation {
    /// The plan for updates that the aggregator reads (`SealedUpdate`); `None` when the round asks for secure aggregation.
    #[must_use]
    pub fn plain(&self) -> Option<&CodecPlan> {
        match self {
            Self::Plain(codec) => Some(codec),
            Self::Secure(_) => None,
        }
    }

    /// The plan for secure aggregation, where the round asks for it.
    #[must_use]
    pub fn secure(&self) -> Option<&SecurePlan> {
        match self {
            Self::Plain(_) => None,
            Self::Secure(plan) => Some(plan),
        }
    }

    /// The fewest sites whose updates the aggregator sees as one, in rounds of at least `min_sites`: a group, where the cohort
    /// is dealt out into groups, else the cohort. A site's minimum is a minimum for this.
    #[must_use]
    pub fn least_in_sum(&self, min_sites: u32) -> u32 {
        self.secure().map_or(min_sites, |plan| plan.least_in_sum(min_sites))
    }

    /// The most of them, in rounds of at most `max_sites`.
    #[must_use]
    pub fn most_in_sum(&self, max_sites: u32) -> u32 {
        self.secure().map_or(max_sites, |plan| plan.most_in_sum(max_sites))
    }

    /// The largest L2 norm of a site's delta.
    #[must_use]
    pub fn clip_norm(&self) -> f32 {
        match self {
            Self::Plain(codec) => codec.clip_norm,
            Self::Secure(plan) => plan.codec.clip_norm,
        }
    }
}

impl SecurePlan {
    /// Checks every setting, for rounds of `min_sites` to `max_sites` sites and a network of `parameters`.
    ///
    /// No honest site lets a sum of fewer than `min_sites` be opened. With noise, as many of these as may collude are taken to have none: what is
    /// left must be the honest survivors that the plan counts on.
    ///
    /// # Errors
    /// Names the setting, its range and what it holds.
    pub fn check(&self, min_sites: u32, max_sites: u32, parameters: usize) -> Result<(), SecurePlanError> {
        let need = |good: bool, field, expected: String, got: u32| {
            if good { Ok(()) } else { Err(SecurePlanError::Field { field, expected, got: got.into() }) }
        };
        self.codec.check()?;
        need(self.max_attempts >= 1, "max_attempts", "at least 1".into(), self.max_attempts)?;
        need(self.message_seconds >= 1, "message_seconds", "at least 1".into(), self.message_seconds)?;
        need(self.input_seconds >= 1, "input_seconds", "at least 1".into(), self.input_seconds)?;
        need(min_sites >= 2, "min_sites", "at least 2 with secure aggregation".into(), min_sites)?;
        let most = u32::from(MAX_COHORT);
        need(max_sites <= most, "max_sites", format!("at most {most} with secure aggregation"), max_sites)?;
        if let Some(least) = self.group_sites {
            let expected = format!("2 to the round's min_sites ({min_sites})");
            need((2..=min_sites).contains(&least), "aggregation.secure.groups.min_sites", expected, least)?;
        }
        let fixed = u32::from(self.assumptions.colluders);
        let most = self.least_in_sum(min_sites).saturating_sub(2);
        let expected = format!("at most {most}: the fewest sites in a sum less two");
        need(fixed <= most, "aggregation.secure.assumptions.colluders", expected, fixed)?;
        // A size of session that bears less than is assumed would fail attempt after attempt. Losses and colluders are rounded to whole sites, so
        // that a larger session may bear less than a smaller one.
        let (least, most) = (self.least_in_sum(min_sites), self.most_in_sum(max_sites));
        for sites in least..=most {
            let borne = self.assumptions.check(u16::try_from(sites).unwrap_or(u16::MAX));
            borne.map_err(|error| SecurePlanError::Session(format!("for {sites} sites: {error}")))?;
        }
        if let Some(noise) = &self.codec.noise {
            // Of the largest sum's sites, whose colluders may all be among the fewest survivors.
            let (least, most) = (self.least_in_sum(min_sites), self.most_in_sum(max_sites));
            let corrupt = u32::from(self.assumptions.corrupt(u16::try_from(most).unwrap_or(u16::MAX)));
            let most = least.saturating_sub(corrupt);
            let expected = format!(
                "at most {most}: the fewest sites in a sum ({least}) less the {corrupt} that may collude"
            );
            need(noise.honest_survivors <= most, "honest_survivors", expected, noise.honest_survivors)?;
            self.codec.check_noise(parameters)?;
        }
        self.width(max_sites, parameters).map(|_| ())
    }

    /// The fewest sites whose updates make up one sum that the aggregator sees, in rounds of at least `min_sites`.
    #[must_use]
    pub fn least_in_sum(&self, min_sites: u32) -> u32 {
        self.group_sites.map_or(min_sites, |least| least.min(min_sites))
    }

    /// The most sites in one sum, in rounds of at most `max_sites`: as many groups as there can be are made, so none has
    /// twice the least number of sites.
    #[must_use]
    pub fn most_in_sum(&self, max_sites: u32) -> u32 {
        self.group_sites.map_or(max_sites, |least| max_sites.min(least.saturating_mul(2).saturating_sub(1)))
    }

    /// How many groups there are at most among `max_sites` sites.
    #[must_use]
    pub fn most_groups(&self, max_sites: u32) -> u32 {
        self.group_sites.map_or(1, |least| max_sites / least.max(1))
    }

    fn width(&self, max_sites: u32, parameters: usize) -> Result<Width, SecurePlanError> {
        let most = self.most_in_sum(max_sites);
        let width = match self.codec.noisy_ring_bits(parameters, most) {
            Some(bits) => Width::new(bits),
            None => Width::for_sum(self.codec.largest(), u16::try_from(most).unwrap_or(u16::MAX)),
        };
        width.map_err(|e| SecurePlanError::Session(e.to_string()))
    }
}

/// The session of one group in one attempt at a round, as both sides derive it from the announcement. The group is a part of
/// the session's name, and so of every key, share and signature: nothing said in one group has a meaning in another. Without
/// groups there is group 0 only.
///
/// # Errors
/// When the round does not ask for secure aggregation, its plan cannot work, or it has no such group.
pub fn session_parameters(
    plan: &RoundPlan,
    attempt: u32,
    group: u16,
) -> Result<SessionParameters, SecurePlanError> {
    let impossible = |why: String| SecurePlanError::Session(why);
    let secure =
        plan.aggregation.secure().ok_or_else(|| impossible("the round does not ask for it".into()))?;
    let layout = ParameterLayout::of(&plan.spec.network).map_err(|e| impossible(e.to_string()))?;
    secure.check(plan.min_sites, plan.max_sites, layout.len())?;
    let groups = secure.most_groups(plan.max_sites);
    if u32::from(group) >= groups {
        let expected = format!("below {groups}");
        return Err(SecurePlanError::Field { field: "group", expected, got: group.into() });
    }
    let coordinates = u32::try_from(secure.codec.coordinates(layout.len()));
    // The deadline may be extended; everything else is what the round is about.
    let settled = RoundPlan { deadline: plan.opened_at, ..plan.clone() };
    let parameters = SessionParameters {
        federation: secure.federation.clone(),
        task: plan.spec.task.clone(),
        round: plan.round,
        attempt,
        purpose: Digest::of_parts(&[
            b"medinet secure round 2",
            &crate::encode(&settled),
            &group.to_le_bytes(),
        ]),
        coordinates: coordinates.unwrap_or(u32::MAX),
        width: secure.width(plan.max_sites, layout.len())?,
        // `check` bounds it by MAX_COHORT.
        minimum_sites: u16::try_from(secure.least_in_sum(plan.min_sites)).unwrap_or(u16::MAX),
    };
    parameters.check().map_err(|e| impossible(e.to_string()))?;
    Ok(parameters)
}

/// What a site says in a round with secure aggregation; see the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum SiteStep {
    /// It has trained and can take part in a session now.
    Ready {
        /// What it measured of the base model, where its policy lets metrics leave.
        base_metrics: Option<SiteMetrics>,
        /// What it has spent of its privacy budget for the task, this round included; none until a private round was charged.
        privacy: Option<PrivacyReport>,
        /// The newest attempt that it has left or that was over for it; 0 when none.
        left: u32,
        /// Sessions that it has given up: those into which it has put its update, and others whose key list it has seen.
        abandonments: Vec<Abandonment>,
    },
    /// An encoded `medinet_secagg::Advertisement`.
    Advertisement(Vec<u8>),
    /// An encoded `medinet_secagg::KeyShares`.
    KeyShares(Vec<u8>),
    /// The masked vector is ready to be pulled.
    MaskedInput {
        /// The session.
        session: SessionId,
        /// An encoded `medinet_secagg::MaskedInput`.
        input: BlobManifest,
    },
    /// An encoded `medinet_secagg::Agreement`.
    Agreement(Vec<u8>),
    /// An encoded `medinet_secagg::Unmasking`.
    Unmasking(Vec<u8>),
    /// It has left the attempt.
    Failed {
        /// The attempt.
        attempt: u32,
        /// The site that it holds at fault.
        blames: Option<SiteId>,
        /// Why, for the operator; at most 500 characters.
        reason: String,
    },
    /// It has agreed to a sum in an earlier attempt and so takes part in no other of this round.
    Spent,
}

/// What the aggregator says to a site in a round with secure aggregation; see the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AggregatorStep {
    /// A session begins and the site is in its cohort.
    Begin {
        /// The attempt, from 1.
        attempt: u32,
        /// The group that the site was dealt into; 0 in rounds without groups. A site enters one group in an attempt.
        group: u16,
        /// Proof that the sessions into which the site has put its update can never open.
        abandoned: Vec<AbandonmentCertificate>,
    },
    /// A part of an encoded `medinet_secagg::KeyList`.
    Keys {
        /// The session.
        session: SessionId,
        /// Which part, from 0.
        part: u16,
        /// How many there are, at least 1.
        parts: u16,
        /// The part's bytes.
        bytes: Vec<u8>,
    },
    /// An encoded `medinet_secagg::ShareDelivery`.
    Shares(Vec<u8>),
    /// An encoded `medinet_secagg::Survivors`.
    Survivors(Vec<u8>),
    /// An encoded `medinet_secagg::AgreementList`.
    Agreements(Vec<u8>),
    /// The attempt is over without a sum, or goes on without the site.
    Abandon {
        /// The attempt.
        attempt: u32,
    },
}

/// Bytes of a key list in one message, so that lists of any cohort pass every broker.
pub const KEYS_PART_BYTES: usize = 128 * 1024;

/// A site's word that it will never agree to a sum in a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abandonment {
    /// The session.
    pub session: SessionId,
    /// Digest of its key list, as the site saw it.
    pub key_list: Digest,
    /// How many sites are in the list.
    pub sites: u16,
    /// The site's index in the list.
    pub member: u16,
    /// Whether the site has sent a masked input in it, and so needs proof before it enters another.
    pub committed: bool,
    /// What proves the signer's key: its certificate.
    pub credential: Vec<u8>,
    /// The identity's signature over [`abandonment_bytes`].
    pub signature: Vec<u8>,
}

/// Enough abandonments of one session to show that it can never open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbandonmentCertificate {
    /// The session.
    pub session: SessionId,
    /// Digest of its key list.
    pub key_list: Digest,
    /// Index in the key list and signature.
    pub abandonments: Vec<(u16, Vec<u8>)>,
}

/// What a site signs to abandon a session.
#[must_use]
pub fn abandonment_bytes(session: SessionId, key_list: &Digest) -> Vec<u8> {
    let mut bytes = b"medinet secure 1 abandonment\0".to_vec();
    bytes.extend(crate::encode(&session));
    bytes.extend(key_list.as_bytes());
    bytes
}

/// How many of `sites` must have abandoned a session of quorum `quorum` so that it can never open, with `corrupt` of them
/// lying: n + c - q + 1.
#[must_use]
pub fn abandonments_needed(sites: u16, corrupt: u16, quorum: u16) -> u16 {
    sites.saturating_add(corrupt).saturating_sub(quorum).saturating_add(1)
}

/// The identity that signs envelopes, for signatures inside sessions.
#[derive(Clone, Copy)]
pub struct EnrolledSigner<'a>(pub &'a dyn envelope::Signer);

impl Signer for EnrolledSigner<'_> {
    fn credential(&self) -> Vec<u8> {
        self.0.certificate_der().to_vec()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignFailure> {
        self.0.sign(message).map_err(|envelope::SignError(why)| SignFailure(why))
    }
}

/// The federation's authority, for signatures inside sessions: a credential is a site's certificate.
#[derive(Clone, Copy)]
pub struct EnrolledSites<'a> {
    /// Knows the authority and the revocation lists.
    pub trust: &'a dyn envelope::Verifier,
    /// When certificates must be valid.
    pub now: UnixMillis,
}

/// A site's vote is signed by its enrolled identity, as a message is.
///
/// # Errors
/// When the key refuses.
pub fn sign_vote(signer: &dyn envelope::Signer, vote: Vote) -> Result<SignedVote, envelope::SignError> {
    let signature = signer.sign(&vote.signed_bytes())?;
    Ok(SignedVote { vote, credential: signer.certificate_der().to_vec(), signature })
}

/// The federation's authority, for votes: who is enrolled as a site votes.
#[derive(Clone, Copy)]
pub struct EnrolledVoters<'a>(pub &'a dyn envelope::Verifier);

impl VoterTrust for EnrolledVoters<'_> {
    fn voter(&self, credential: &[u8], message: &[u8], signature: &[u8], at: UnixMillis) -> Option<SiteId> {
        let principal = self.0.verify(credential, message, signature, at).ok()?;
        (principal.role == Role::Site).then_some(principal.name)
    }
}

impl Verifier for EnrolledSites<'_> {
    fn verify(&self, site: &SiteId, credential: &[u8], message: &[u8], signature: &[u8]) -> bool {
        let principal = self.trust.verify(credential, message, signature, self.now);
        principal.is_ok_and(|principal| principal.role == Role::Site && principal.name == *site)
    }
}
