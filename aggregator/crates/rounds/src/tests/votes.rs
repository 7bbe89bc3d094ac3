//! Votes on candidates, and that what the sites reject is not published.

use super::*;
use crate::RejectionReason;
use medinet_fixtures::{credential, sign};
use medinet_types::Digest;
use medinet_wire::secure::EnrolledVoters;
use medinet_wire::vote::{
    Ballot, Candidate, Hindrance, Objection, Quorum, SignedVote, Vote, VoteTally, verify_votes,
};

fn by(n: usize, vote: Vote) -> SignedVote {
    let credential = credential(&site(n));
    let signature = sign(&credential, &vote.signed_bytes());
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
        let tally =
            verify_votes(&release.votes, &candidate, &quorum, &EnrolledVoters(&NamesAuthority)).unwrap();
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
fn a_quorum_is_waited_for_while_late_members_can_make_it_up() {
    let four = |min_accepting| {
        let mut plan = voting(min_accepting);
        plan.members = (0..4).map(site).collect();
        plan.max_sites = 4;
        plan
    };
    let candidate_of_three = |plan| {
        let mut host = Host::start(plan);
        (0..3).for_each(|n| host.deliver(n, 10, 0.1));
        // The join grace.
        host.pass(101);
        assert_eq!(host.coordinator.progress().stage, Stage::Evaluating);
        for n in 0..3 {
            let ballot = if n == 2 { Ballot::Abstain(Hindrance::FewImages) } else { Ballot::Accept };
            let vote = by(n, host.ballot(ballot));
            host.vote(n, Some(vote));
        }
        host.pass(101);
        host
    };
    let mut host = candidate_of_three(four(3));
    assert_eq!(host.coordinator.progress().stage, Stage::Evaluating, "the fourth could still accept");
    let vote = by(3, host.ballot(Ballot::Accept));
    host.vote(3, Some(vote));
    assert!(host.published().is_some());
    // It never comes: the round ends at its deadline.
    let mut host = candidate_of_three(four(3));
    host.pass(1000);
    assert_eq!(host.coordinator.progress().stage, Stage::Finished);
    assert_eq!(host.coordinator.progress().released, None);
    // Nobody is waited for where it would not be enough, or there is enough.
    for min_accepting in [2, 4] {
        assert_eq!(candidate_of_three(four(min_accepting)).coordinator.progress().stage, Stage::Finished);
    }
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

/// A task of three training rounds that has released its first model and asks about its second, and the first one's parameters.
fn second_candidate(go_back: bool) -> (Host, TaskPlan, Vec<f32>) {
    let mut plan = voting(2);
    plan.rounds = 3;
    plan.evaluate_every = Some(1);
    plan.downlink_bits = 4;
    plan.release.go_back = go_back;
    let mut host = candidate(plan.clone());
    all_vote(&mut host, Ballot::Accept);
    let released = host.coordinator.parameters().to_vec();
    (0..3).for_each(|n| host.deliver(n, 10, -0.3));
    assert_eq!(host.coordinator.progress().stage, Stage::Evaluating);
    (host, plan, released)
}

fn all_vote(host: &mut Host, ballot: Ballot) {
    for n in 0..3 {
        let vote = by(n, host.ballot(ballot));
        host.vote(n, Some(vote));
    }
}

#[test]
fn what_the_sites_vote_down_is_nothing_to_train_from() {
    let (mut host, plan, released) = second_candidate(true);
    let rejected = host.round().base.clone();
    all_vote(&mut host, Ballot::Reject(Objection::AurocDrop));
    let back = |record: &RoundRecord| match record {
        RoundRecord::WentBack { from, to, .. } => Some((from.clone(), to.clone())),
        _ => None,
    };
    let (from, to) = host.records.iter().find_map(back).expect("training went back");
    assert_eq!((from, to.version), (rejected.clone(), ModelVersion(1)));
    assert_eq!(host.coordinator.parameters(), released);
    // It is offered, and the candidate no more.
    let round = host.round().clone();
    assert_eq!((&round.base, round.kind), (&to, RoundKind::Train));
    assert!(!host.served.contains(&rejected.parameters.digest));
    assert!(host.served.contains(&to.parameters.digest));
    // The same after a kill, and the next model is a version of its own.
    host.restart(plan);
    assert_eq!((host.coordinator.parameters(), &host.round().base), (released.as_slice(), &to));
    (0..3).for_each(|n| host.deliver(n, 10, 0.1));
    assert_eq!(host.round().base.version, ModelVersion(3));
    all_vote(&mut host, Ballot::Accept);
    let progress = host.coordinator.progress();
    assert_eq!((progress.stage, progress.model.version), (Stage::Finished, ModelVersion(3)));
    assert_eq!(progress.released, Some(progress.model));
}

#[test]
fn a_task_that_ends_with_a_rejected_model_ends_with_its_release() {
    let (mut host, ..) = second_candidate(true);
    all_vote(&mut host, Ballot::Accept);
    (0..3).for_each(|n| host.deliver(n, 10, -0.3));
    all_vote(&mut host, Ballot::Reject(Objection::LowAuroc));
    let progress = host.coordinator.progress();
    assert_eq!((progress.stage, progress.model.version), (Stage::Finished, ModelVersion(2)));
    assert_eq!(progress.released, Some(progress.model));
}

#[test]
fn training_goes_on_where_the_plan_says_so_or_nobody_is_against() {
    let (mut host, ..) = second_candidate(false);
    all_vote(&mut host, Ballot::Reject(Objection::AurocDrop));
    assert_eq!(host.round().base.version, ModelVersion(2));
    let (mut host, ..) = second_candidate(true);
    all_vote(&mut host, Ballot::Abstain(Hindrance::FewImages));
    assert_eq!(host.round().base.version, ModelVersion(2));
}

#[test]
fn a_candidate_that_is_measured_as_worse_is_nothing_to_train_from_either() {
    let mut plan = plan(3);
    plan.rounds = 3;
    plan.evaluate_every = Some(1);
    let mut host = Host::start(plan);
    for (auroc, expected) in [(0.9, 1), (0.85, 2), (0.3, 2)] {
        (0..3).for_each(|n| host.deliver(n, 10, 0.1));
        (0..3).for_each(|n| host.evaluate(n, auroc));
        assert_eq!(host.coordinator.progress().model.version, ModelVersion(expected), "{auroc}");
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
