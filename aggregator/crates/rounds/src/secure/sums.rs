//! The sums of a round's groups, from the first that opens to the model.

use super::SecureRound;
use super::session::Opened;
use crate::cohort::Standing;
use crate::downlink::NextModel;
use crate::groups::{GroupMean, median_norm};
use crate::phase::{Phase, Turn};
use crate::record::{Contribution, PauseReason, RoundRecord};
use crate::train::adopt;
use medinet_types::SiteId;
use medinet_update::{Origin, SecureExpected, SecureMean, Shortened, decode_sum};
use medinet_wire::blob::BlobManifest;
use std::collections::BTreeMap;

/// The sum of one group, opened.
#[derive(Debug)]
pub(super) struct GroupSum {
    pub(super) mean: SecureMean,
    /// Whose inputs are in it, and as what they came.
    pub(super) contributors: BTreeMap<SiteId, BlobManifest>,
}

impl SecureRound {
    /// Groups without whose sums the rule cannot be applied.
    pub(super) fn least_groups(&self, turn: &Turn<'_>) -> usize {
        match self.secure().group_sites {
            // A plan's check refuses a rule that needs infinitely many.
            Some(_) => turn.plan.groups.least_groups().unwrap_or(usize::MAX),
            None => 1,
        }
    }

    /// Whether there are sums of enough groups, and of enough sites in all.
    pub(super) fn enough_to_close(&self, turn: &Turn<'_>) -> bool {
        let sites: usize = self.sums.iter().map(|sum| sum.contributors.len()).sum();
        self.sums.len() >= self.least_groups(turn) && sites >= self.saved.open.plan.min_sites as usize
    }

    /// Whether an attempt among so many sites could lead to a model.
    pub(super) fn enough_to_begin(&self, turn: &Turn<'_>, candidates: usize) -> Result<(), String> {
        let plan = &self.saved.open.plan;
        let summed: usize = self.sums.iter().map(|sum| sum.contributors.len()).sum();
        let needed = plan.min_sites as usize;
        if summed + candidates < needed {
            return Err(format!(
                "{candidates} sites can enter an attempt, {summed} are in a sum, and {needed} are needed"
            ));
        }
        let Some(least) = self.secure().group_sites else { return Ok(()) };
        let (groups, needed) = (candidates / least.max(1) as usize, self.least_groups(turn));
        if groups == 0 || self.sums.len() + groups < needed {
            return Err(format!(
                "{candidates} sites can enter an attempt, in {groups} groups of at least {least}; with the sums of {} groups, and \
                 {needed} are needed",
                self.sums.len()
            ));
        }
        Ok(())
    }

    /// Keeps a group's sum until the round closes. Whoever is in it enters no other session, durably, before anything follows.
    pub(super) fn keep(&mut self, turn: &mut Turn<'_>, group: u16, opened: Opened) -> Result<(), String> {
        let plan = &self.saved.open.plan;
        let Opened { sum, contributors } = opened;
        let expected = SecureExpected {
            parameters: turn.parameters.len(),
            plan: &self.secure().codec,
            origin: Origin { base: plan.base.digest, round: plan.round },
            contributors: u32::try_from(contributors.len()).unwrap_or(u32::MAX),
            ring_bits: sum.width().bits(),
        };
        let mean = decode_sum(sum.iter(), &expected).map_err(|error| error.to_string())?;
        let (round, attempt, examples) = (plan.round, self.saved.attempt, mean.examples);
        let grouped = self.secure().group_sites.map(|_| group);
        if let Some(group) = grouped {
            let sites = contributors.keys().cloned().collect();
            turn.out.record(RoundRecord::GroupSummed { round, attempt, group, sites, examples });
        }
        if let Some(Shortened { norm, limit }) = mean.shortened {
            turn.out.record(RoundRecord::MeanShortened { round, attempt, group: grouped, norm, limit });
        }
        self.saved.spent.extend(contributors.keys().cloned());
        self.saved.sums += 1;
        turn.out.changed = true;
        self.sums.push(GroupSum { mean, contributors });
        Ok(())
    }

    /// The sums become the next model, as a plain round's mean does.
    pub(super) fn close(mut self: Box<Self>, turn: &mut Turn<'_>) -> Phase {
        let (mut groups, mut norms, mut contributors) = (Vec::new(), Vec::new(), BTreeMap::new());
        for sum in std::mem::take(&mut self.sums) {
            norms.extend(sum.mean.norm);
            groups.push(GroupMean { delta: sum.mean.delta, examples: sum.mean.examples });
            contributors.extend(sum.contributors);
        }
        let examples = groups.iter().map(|group| group.examples).sum();
        let delta = match (self.secure().group_sites, groups.pop()) {
            (None, Some(only)) => Ok(only.delta),
            (_, last) => {
                groups.extend(last);
                turn.plan.groups.combine(groups).map_err(|error| error.to_string())
            }
        };
        let delta = match delta {
            Ok(delta) => delta,
            Err(why) => return self.abandon(turn, why),
        };
        let Some(next) = NextModel::of(turn, &delta) else {
            let reason = PauseReason::Diverged { round: self.number() };
            return self.end_without_model(turn, reason);
        };
        // Without norms in the sums the plan's own stays.
        let following = |norm, most| self.secure().codec.next_clip_norm(norm, most);
        turn.task.clip_norm =
            median_norm(norms).zip(turn.plan.max_clip_norm).map(|(norm, most)| following(norm, most));
        let counted = |site: &SiteId| contributors.contains_key(site);
        let open = &mut self.saved.open;
        open.sites.retain(|site, standing| !matches!(standing, Standing::Delivered(_)) || counted(site));
        let (round, mut contributions) = (open.number(), Vec::new());
        for (site, input) in &contributors {
            let (base_metrics, privacy) = match open.sites.get(site) {
                Some(Standing::Delivered(ready)) => (ready.base_metrics, ready.privacy),
                _ => (None, None),
            };
            turn.out.record(RoundRecord::InputCounted {
                round,
                site: site.clone(),
                input: input.digest,
                input_bytes: input.length_bytes,
                base_metrics,
                privacy,
            });
            turn.task.note_privacy(site, round, privacy);
            contributions.push(Contribution { site: site.clone(), examples: None, update: input.digest });
            open.accept(&mut turn.out, site);
        }
        turn.task.auroc = self.auroc().or(turn.task.auroc);
        adopt(turn, &self.saved.open, next, contributions, examples);
        Phase::next(turn)
    }
}
