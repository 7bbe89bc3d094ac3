//! Votes on candidates, and that what the sites reject is not published.

use super::*;
use crate::RejectionReason;
use medinet_types::{Digest, Principal, Role};
use medinet_wire::envelope::{Verifier, VerifyError};
use medinet_wire::secure::EnrolledVoters;
use medinet_wire::vote::{Ballot, Candidate, Objection, Quorum, SignedVote, Vote, VoteTally, verify_votes};

/// Takes a party's name for its certificate, and a digest with the name for its signature.
pub(crate) struct Authority;

impl Verifier for Authority {
    fn verify(
        &self,
        certificate: &[u8],
        message: &[u8],
        signature: &[u8],
        _: UnixMillis,
    ) -> Result<Principal, VerifyError> {
        let name = std::str::from_utf8(certificate).ok().and_then(|name| name.parse().ok());
        let name: SiteId = name.ok_or_else(|| VerifyError("no certificate".into()))?;
        if signature == signed(certificate, message) {
            Ok(Principal::new(Role::Site, name))
        } else {
            Err(VerifyError("another's signature".into()))
        }
    }
}

fn signed(certificate: &[u8], message: &[u8]) -> Vec<u8> {
    Digest::of_parts(&[b"signature", certificate, message]).as_bytes().to_vec()
}

fn by(n: usize, vote: Vote) -> SignedVote {
    let credential = site(n).as_str().as_bytes().to_vec();
    let signature = signed(&credential, &vote.signed_bytes());
    SignedVote { vote, credential, signature }
}

fn voting(min_accepting: u32) -> TaskPlan {
    let mut plan = plan(3);
    plan.rounds = 1;
    plan.min_sites = 3;
    plan.release.votes = Some(Quorum { min_accepting, min_accept_permille: 667 });
    plan
}

/// A task at its evaluation round.
fn candidate(plan: TaskPlan) -> Host {
    let mut host = Host::start(plan);
    (0..3).for_each(|n| host.deliver(n, 10, 0.1));
    assert_eq!(host.coordinator.progress().stage, Stage::Evaluating);
    host
}

impl Host {
    fn ballot(&self, ballot: Ballot) -> Vote {
        let RoundPlan { spec, round, base, .. } = self.round();
        let task = spec.task.clone();
        Vote { task, round: *round, model: base.digest, version: base.version, ballot }
    }

    fn vote(&mut self, n: usize, vote: Option<SignedVote>) {
        let (task, round) = (self.round().spec.task.clone(), self.round().round);
        let metrics =
            SiteMetrics { images: 10, auroc: Some(0.9), accuracy: 0.9, loss: 0.1, calibration_error: 0.0 };
        // The last site's policy keeps its figures. It votes all the same.
        let metrics = (n < 2).then_some(metrics);
        self.site(n, FromSite::Evaluation { task, round, metrics, vote });
    }

    fn published(&self) -> Option<&crate::Release> {
        self.last.iter().find_map(|effect| match effect {
            Effect::Publish(release) => Some(release),
            _ => None,
        })
    }
}

#[test]
fn what_the_sites_accept_is_published_with_their_votes() {
    let mut host = candidate(voting(3));
    for n in 0..3 {
        let vote = by(n, host.ballot(Ballot::Accept));
        host.vote(n, Some(vote));
    }
    let check = |host: &Host| {
        let release = host.published().expect("it is released");
        let model = &release.verdict.model;
        let (task, at) = (&host.coordinator.spec().task, host.now);
        let candidate = Candidate { task, model: model.digest, version: model.version, at };
        let quorum = Quorum { min_accepting: 3, min_accept_permille: 1000 };
        let tally = verify_votes(&release.votes, &candidate, &quorum, &EnrolledVoters(&Authority)).unwrap();
        assert_eq!(tally, VoteTally { accepting: 3, rejecting: 0, abstaining: 0 });
    };
    check(&host);
    // A kill before the release was carried out costs no vote.
    host.restart(voting(3));
    check(&host);
    let counted = host.records.iter().position(|r| matches!(r, RoundRecord::VotesCounted { .. }));
    let judged = host.records.iter().position(|r| matches!(r, RoundRecord::ModelJudged { .. }));
    assert!(counted.is_some() && counted < judged);
}

#[test]
fn what_the_sites_reject_is_not_published_then_or_later() {
    let reject = Ballot::Reject(Objection::AurocDrop);
    for ballots in [[Ballot::Accept, reject, reject], [reject; 3]] {
        let mut host = candidate(voting(2));
        for (n, ballot) in ballots.into_iter().enumerate() {
            let vote = by(n, host.ballot(ballot));
            host.vote(n, Some(vote));
            assert!(host.published().is_none());
        }
        assert_eq!(host.coordinator.progress().stage, Stage::Finished);
        assert_eq!(host.coordinator.progress().released, None);
        let rejected = |record: &RoundRecord| match record {
            RoundRecord::ModelJudged { verdict, .. } => {
                matches!(verdict.outcome, Outcome::Rejected(RejectionReason::NoQuorum { .. }))
            }
            _ => false,
        };
        assert!(host.records.iter().any(rejected));
        host.restart(voting(2));
        assert!(host.published().is_none());
        host.pass(1000);
        assert!(host.published().is_none());
    }
}

#[test]
fn a_site_that_does_not_vote_is_no_accepting_one() {
    let mut host = candidate(voting(3));
    for n in 0..3 {
        let vote = (n != 1).then(|| by(n, host.ballot(Ballot::Accept)));
        host.vote(n, vote);
    }
    assert_eq!(host.coordinator.progress().released, None);
    assert!(host.published().is_none());
}

#[test]
fn votes_that_are_not_the_sites_or_not_on_this_model_are_refused() {
    type Change = fn(&mut SignedVote);
    let changes: [Change; 6] = [
        |signed| signed.signature[0] ^= 1,
        |signed| signed.vote.ballot = Ballot::Reject(Objection::LowAuroc),
        |signed| *signed = by(1, signed.vote.clone()),
        |signed| *signed = by(0, Vote { version: ModelVersion(9), ..signed.vote.clone() }),
        |signed| *signed = by(0, Vote { model: ModelDigest(Digest::of(b"another")), ..signed.vote.clone() }),
        |signed| *signed = by(0, Vote { round: RoundNumber(1), ..signed.vote.clone() }),
    ];
    for (case, change) in changes.into_iter().enumerate() {
        let mut host = candidate(voting(2));
        let mut vote = by(0, host.ballot(Ballot::Accept));
        change(&mut vote);
        host.vote(0, Some(vote));
        let refused = matches!(host.refusal(0), RefusalReason::Malformed(why) if why.contains("vote"));
        assert!(refused, "case {case}: {:?}", host.last);
    }
}
