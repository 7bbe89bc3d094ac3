//! Who votes how, and what must be true of every model that is published.

use crate::site::site_id;
use medinet_fixtures::{NamesAuthority, credential, sign};
use medinet_rounds::{Outcome, Release, RoundRecord, TaskPlan};
use medinet_types::{ModelDigest, UnixMillis};
use medinet_wire::message::RoundPlan;
use medinet_wire::secure::EnrolledVoters;
use medinet_wire::vote::{Ballot, Candidate, Hindrance, Objection, SignedVote, Vote, verify_votes};

/// A site's ballot on a model: the same whenever it is asked.
fn ballot(n: usize, model: ModelDigest) -> Ballot {
    match model.0.as_bytes()[(n * 7) % 32] % 8 {
        0..=4 => Ballot::Accept,
        5 => Ballot::Abstain(Hindrance::FewImages),
        _ => Ballot::Reject(Objection::AurocDrop),
    }
}

pub(crate) fn vote(n: usize, plan: &RoundPlan) -> SignedVote {
    let base = &plan.base;
    let vote = Vote {
        task: plan.spec.task.clone(),
        round: plan.round,
        model: base.digest,
        version: base.version,
        ballot: ballot(n, base.digest),
    };
    let credential = credential(&site_id(n));
    let signature = sign(&credential, &vote.signed_bytes());
    SignedVote { vote, credential, signature }
}

/// Only what was judged good is published, and where the task asks for votes it comes with a quorum that proves itself.
pub(crate) fn published(plan: &TaskPlan, records: &[RoundRecord], release: &Release) -> Result<(), String> {
    let model = &release.verdict.model;
    let judged = records.iter().rev().find_map(|record| match record {
        RoundRecord::ModelJudged { verdict, .. } if verdict.model == *model => Some(&verdict.outcome),
        _ => None,
    });
    if judged != Some(&Outcome::Released) {
        return Err(format!("version {} is published, judged {judged:?}", model.version));
    }
    let Some(quorum) = plan.release.votes else { return Ok(()) };
    let (task, at) = (&plan.spec.task, UnixMillis(0));
    let candidate = Candidate { task, model: model.digest, version: model.version, at };
    verify_votes(&release.votes, &candidate, &quorum, &EnrolledVoters(&NamesAuthority))
        .map_err(|error| format!("version {} is published: {error}", model.version))?;
    Ok(())
}
