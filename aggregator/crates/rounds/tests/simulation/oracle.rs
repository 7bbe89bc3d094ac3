//! What must be true, computed without the coordinator.

use crate::site::{PARAMETERS, examples, sealed_update, site_id};
use medinet_model::model_digest;
use medinet_rounds::{Outcome, RoundRecord, TaskPlan};
use medinet_types::{ModelDigest, ModelVersion, RoundNumber, SiteId};
use medinet_update::{Expected, Origin, decode, encode_model_delta};
use medinet_wire::message::{RoundKind, RoundPlan};
use medinet_wire::vote::VoteTally;
use std::collections::{BTreeMap, BTreeSet};

/// FedAvg over integers of 128 bits, in the order given.
pub(crate) fn exact_fedavg(base: &[f32], plan: &RoundPlan, sites: &BTreeSet<usize>) -> Vec<f32> {
    let mut sums = vec![0i128; PARAMETERS];
    let mut total = 0u64;
    for &n in sites {
        let bytes = sealed_update(n, plan.base.digest, plan);
        let expected = Expected {
            parameters: PARAMETERS,
            plan: plan.aggregation.plain().unwrap(),
            origin: Origin { base: plan.base.digest, round: plan.round },
            max_examples: u64::MAX,
        };
        let update = decode(&bytes, &expected).unwrap();
        for (sum, delta) in sums.iter_mut().zip(update.delta()) {
            let fixed = (f64::from(*delta) * f64::from(36).exp2()).round_ties_even() as i128;
            *sum += fixed * i128::from(examples(n));
        }
        total += examples(n);
    }
    let scale = f64::from(-36).exp2() / total as f64;
    sums.iter().zip(base).map(|(sum, base)| base + (*sum as f64 * scale) as f32).collect()
}

/// The model that all have once the step has gone down.
fn sent_down(plan: &TaskPlan, held: &[f32], stepped: &[f32], owed: &mut Vec<f32>) -> Vec<f32> {
    if plan.downlink_bits == 32 {
        return stepped.to_vec();
    }
    let wanted: Vec<f32> = stepped.iter().zip(&*owed).map(|(stepped, owed)| stepped + owed).collect();
    let sent = encode_model_delta(held, &wanted, plan.downlink_bits).unwrap();
    *owed = wanted.iter().zip(&sent.parameters).map(|(wanted, sent)| wanted - sent).collect();
    sent.parameters
}

/// A task's models.
pub(crate) struct Models {
    /// By version.
    pub(crate) made: Vec<ModelDigest>,
    /// The one that training would go on from.
    pub(crate) current: ModelDigest,
}

/// The median, by counting.
fn middle(values: Vec<f64>) -> Option<f64> {
    let rank = |v: f64, n: usize| {
        let (below, equal) =
            (values.iter().filter(|x| **x < v).count(), values.iter().filter(|x| **x == v).count());
        (below..below + equal).contains(&n)
    };
    let nth = |n: usize| values.iter().copied().find(|v| rank(*v, n));
    let n = values.len();
    if n % 2 == 1 { nth(n / 2) } else { Some((nth((n / 2).checked_sub(1)?)? + nth(n / 2)?) / 2.0) }
}

/// Reads a whole task's records and says what is wrong with them.
pub(crate) fn audit(plan: &TaskPlan, initial: &[f32], records: &[RoundRecord]) -> Result<Models, String> {
    let number: BTreeMap<SiteId, usize> = (0..plan.members.len() + 8).map(|n| (site_id(n), n)).collect();
    let mut parameters = initial.to_vec();
    let mut owed = vec![0.0f32; PARAMETERS];
    let mut models = Vec::new();
    let mut current = model_digest(&plan.spec.network, initial);
    let mut all = BTreeMap::from([(current, parameters.clone())]);
    let (mut released, mut back_to) = (None, None);
    let mut measured_of_release: BTreeMap<SiteId, f64> = BTreeMap::new();
    let mut open: Option<RoundPlan> = None;
    let mut counted: BTreeSet<usize> = BTreeSet::new();
    let mut measured: BTreeSet<usize> = BTreeSet::new();
    let mut last_round = RoundNumber(0);
    let mut finished = 0;
    for record in records {
        let round_now = open.as_ref().map(|round| round.round);
        let same = |round: RoundNumber| {
            (round_now == Some(round)).then_some(()).ok_or(format!("round {round} is not open: {record:?}"))
        };
        match record {
            RoundRecord::TaskStarted { model } => {
                if !models.is_empty() {
                    return Err("started twice".into());
                }
                if model.digest != current {
                    return Err("began with another model than the plan's".into());
                }
                models.push(model.digest);
            }
            RoundRecord::RoundOpened { plan: opened } => {
                if let Some(due) = back_to {
                    return Err(format!("a round opened where training should have gone back: {due:?}"));
                }
                if open.is_some() || opened.round.0 != last_round.0 + 1 {
                    return Err(format!("round {} opened after {last_round}", opened.round));
                }
                if opened.base.digest != current {
                    return Err("a round opened on another model than the current one".into());
                }
                last_round = opened.round;
                open = Some((**opened).clone());
                counted.clear();
                measured.clear();
            }
            RoundRecord::UpdateAccepted { round, site, examples: claimed, .. } => {
                same(*round)?;
                let n = number[site];
                if !plan.members.contains(site) || *claimed != examples(n) {
                    return Err(format!("{site} should not count"));
                }
                if !counted.insert(n) {
                    return Err(format!("{site} counts twice in round {round}"));
                }
            }
            RoundRecord::UpdateLost { round, site, .. } => {
                same(*round)?;
                if !counted.remove(&number[site]) {
                    return Err(format!("{site} lost what did not count"));
                }
            }
            RoundRecord::Evaluated { round, site, .. } => {
                same(*round)?;
                if !measured.insert(number[site]) {
                    return Err(format!("{site} measured twice in round {round}"));
                }
            }
            RoundRecord::ModelAggregated { round, base, model, contributions, examples: _ } => {
                same(*round)?;
                let round = open.take().expect("checked");
                let sites: BTreeSet<usize> = contributions.iter().map(|c| number[&c.site]).collect();
                if sites != counted || sites.len() != contributions.len() {
                    return Err(format!(
                        "round {}: {sites:?} in the model, {counted:?} accepted",
                        round.round
                    ));
                }
                if !(round.min_sites..=round.max_sites).contains(&(sites.len() as u32)) {
                    return Err(format!("round {} closed with {} sites", round.round, sites.len()));
                }
                let stepped = exact_fedavg(&parameters, &round, &sites);
                parameters = sent_down(plan, &parameters, &stepped, &mut owed);
                if *base != round.base.digest
                    || model.version != ModelVersion(models.len() as u32)
                    || model.digest != model_digest(&plan.spec.network, &parameters)
                    || round.kind != RoundKind::Train
                {
                    return Err(format!("round {}: not the mean of its updates", round.round));
                }
                models.push(model.digest);
                current = model.digest;
                all.insert(current, parameters.clone());
            }
            RoundRecord::ModelJudged { round, verdict, measurements } => {
                same(*round)?;
                let judged = open.take().expect("checked");
                if judged.kind != RoundKind::Evaluate || verdict.model.digest != current {
                    return Err("judged what was not to be judged".into());
                }
                if measurements.len() != measured.len() || measured.len() < judged.min_sites as usize {
                    return Err(format!("{} measurements, {measured:?} recorded", measurements.len()));
                }
                let VoteTally { accepting, rejecting, .. } = verdict.votes;
                let least = plan.release.votes.map_or(0, |quorum| u32::from(quorum.min_accept_permille));
                let aurocs: BTreeMap<SiteId, f64> = measurements
                    .iter()
                    .filter_map(|measured| Some((measured.site.clone(), measured.metrics?.auroc?)))
                    .collect();
                let drops =
                    aurocs.iter().filter_map(|(site, now)| Some(measured_of_release.get(site)? - now));
                let worse = middle(drops.collect()).is_some_and(|drop| drop > plan.release.max_regression);
                let against = accepting * 1000 < (accepting + rejecting) * least || worse;
                if verdict.outcome == Outcome::Released {
                    if against {
                        return Err(format!("released against the sites: {verdict:?}"));
                    }
                    released = Some(current);
                    measured_of_release = aurocs;
                } else if against && plan.release.go_back {
                    back_to = released.filter(|to| *to != current).map(|to| (*round, to));
                }
            }
            RoundRecord::WentBack { round, from, to } => {
                if back_to.take() != Some((*round, to.digest)) || from.digest != current {
                    return Err(format!("went back without reason or elsewhere: {record:?}"));
                }
                current = to.digest;
                parameters.clone_from(&all[&current]);
                owed.fill(0.0);
            }
            RoundRecord::SiteJoined { round, .. }
            | RoundRecord::SiteDeclined { round, .. }
            | RoundRecord::ContributionRefused { round, .. }
            | RoundRecord::VotesCounted { round, .. }
            | RoundRecord::RoundExtended { round, .. }
            | RoundRecord::TaskPaused { round, .. }
            | RoundRecord::TaskResumed { round } => same(*round)?,
            RoundRecord::TaskFinished { .. } => {
                if let Some(due) = back_to {
                    return Err(format!("finished where training should have gone back: {due:?}"));
                }
                finished += 1;
            }
            RoundRecord::SessionBegan { .. }
            | RoundRecord::SessionFailed { .. }
            | RoundRecord::GroupSummed { .. }
            | RoundRecord::MeanShortened { .. }
            | RoundRecord::InputCounted { .. }
            | RoundRecord::RoundAbandoned { .. } => return Err("a plain round has no session".into()),
        }
    }
    if finished != 1 || open.is_some() || models.len() != plan.rounds as usize + 1 {
        return Err(format!("{finished} ends, {} models, open: {}", models.len(), open.is_some()));
    }
    Ok(Models { made: models, current })
}
