//! Whether the site takes part in a round: its policy, what was charged before, and what it remembers of the task.

use crate::policy::{Refusal, SitePolicy};
use crate::privacy_budget::{BudgetKeeper, Charge};
use crate::round::RoundFolder;
use crate::round_cost::RoundCost;
use crate::task_memory::HeardRound;
use crate::work::locked;
use anyhow::Result;
use medinet_model::TaskSpec;
use medinet_privacy::Epsilon;
use medinet_types::UnixMillis;
use medinet_wire::message::{RoundKind, RoundPlan};
use medinet_wire::privacy::PrivacyTotal;
use std::sync::Mutex;

/// A round that is announced, and what it is held against.
pub(crate) struct Announced<'a> {
    pub(crate) plan: &'a RoundPlan,
    pub(crate) folder: &'a RoundFolder,
    pub(crate) policy: &'a SitePolicy,
    /// The task that the site approved.
    pub(crate) spec: &'a TaskSpec,
    pub(crate) budget: &'a Mutex<BudgetKeeper>,
}

impl Announced<'_> {
    /// Every reason against the round, none when the site takes part. Changes nothing but what was heard of.
    ///
    /// # Errors
    /// When the disk refuses: then the round cannot begin.
    pub(crate) fn reasons_against(&self, now: UnixMillis) -> Result<Vec<String>> {
        let Self { plan, folder, policy, spec, budget } = self;
        // What has begun is finished, whatever the hour.
        let counts = |refusal: &Refusal| !(matches!(refusal, Refusal::Hours(_)) && folder.has_begun());
        let mut reasons: Vec<String> = policy
            .refusals(plan, now)
            .into_iter()
            .filter(counts)
            .map(|refusal| refusal.to_string())
            .collect();
        if plan.spec != **spec {
            reasons.push("the task's specification differs from the one that this site approved".to_owned());
        }
        let memory = folder.task_memory();
        let heard = HeardRound::of(plan);
        if !policy.base_models.is_empty() && !memory.follows(&policy.base_models, &heard)? {
            reasons.push(Refusal::BaseModel(plan.base.digest).to_string());
        }
        // An old announcement, or one of something else, is no round of this task.
        let of_this_task = now <= plan.deadline && plan.spec == **spec;
        if of_this_task && let Err(error) = memory.hear(&heard) {
            // Without a list nothing hangs on it.
            if !policy.base_models.is_empty() {
                return Err(error);
            }
            tracing::warn!(
                error = format!("{error:#}"),
                "cannot remember the round for policy.base_models, which is empty"
            );
        }
        match plan.kind {
            RoundKind::Train if of_this_task => memory.heard_of_training()?,
            RoundKind::Train => {}
            RoundKind::Evaluate => reasons.extend(memory.measuring_refusal(&folder.name(), heard.made_by)?),
        }
        // Where its noise cannot be charged the policy has said why.
        let Ok(cost) = RoundCost::of(plan) else { return Ok(reasons) };
        if plan.kind == RoundKind::Train && plan.aggregation.secure().is_some() {
            reasons.extend(folder.superseded()?);
            if cost.is_none() {
                let most = policy.secure_aggregation.max_rounds_per_base;
                reasons.extend(memory.base_refusal(&plan.base.digest, plan.round, most)?);
            }
        }
        let budget = locked(budget);
        reasons.extend(policy.refusal_after(plan, cost.as_ref(), &budget).map(|refusal| refusal.to_string()));
        if let Some(cost) = &cost {
            reasons.extend(budget.refusal(cost, folder.path())?);
        }
        // It takes the accountant a while, and changes nothing: only for a round that the site would train in.
        if of_this_task && plan.kind == RoundKind::Train && reasons.is_empty() {
            self.compare_totals(cost.as_ref(), &budget)?;
        }
        Ok(reasons)
    }

    /// Says what the task's private rounds cost together, by the announcement and by this site's own budget. The budget alone decides: whether the
    /// announcement says less than the site has composed of it is what comes back, and is logged.
    ///
    /// # Errors
    /// When the disk refuses.
    fn compare_totals(&self, cost: Option<&RoundCost>, budget: &BudgetKeeper) -> Result<bool> {
        let Self { plan, folder, policy, .. } = self;
        let limit = policy.privacy_limit();
        let Some(total) = plan.privacy_total else {
            let hidden = cost.is_some() || budget.is_charged();
            if hidden {
                tracing::warn!(
                    round = %plan.round,
                    spent = budget.spent(),
                    of = limit.epsilon.get(),
                    "the announcement tells of no private round of the task, and this site knows of one: its own budget decides"
                );
            }
            return Ok(hidden);
        };
        let PrivacyTotal { rounds, epsilon, delta } = total;
        let own = budget.composed(delta, cost, folder.path())?;
        let announced = epsilon.map(Epsilon::get);
        tracing::info!(
            round = %plan.round,
            announced,
            bounded = announced.is_some(),
            private_rounds = rounds,
            own,
            delta = delta.get(),
            spent = budget.spent(),
            of = limit.epsilon.get(),
            own_delta = limit.delta.get(),
            "what the task's private rounds cost: announced for all of them, and by this site's own budget with this one"
        );
        let below = total.is_below(own);
        if below {
            tracing::warn!(
                round = %plan.round,
                announced,
                own,
                "the announcement says that the task's private rounds cost less than this site has composed of those that it took part in: it \
                 leaves rounds out, or this site trained rounds anew. The site's own budget decides"
            );
        }
        Ok(below)
    }

    /// The site takes part. Durable when it returns.
    ///
    /// # Errors
    /// When the disk refuses: then the round cannot begin.
    pub(crate) fn take_part(&self) -> Result<()> {
        match self.plan.kind {
            RoundKind::Train => Ok(()),
            RoundKind::Evaluate => self.folder.task_memory().measures(&self.folder.name()),
        }
    }
}

/// Charges a round before any of it starts, or puts on record that it trains without noise; gives why not where the site does not do that after
/// all.
///
/// # Errors
/// When the disk refuses: then the round must not start.
pub(crate) fn pay(
    policy: &SitePolicy,
    plan: &RoundPlan,
    cost: Option<&RoundCost>,
    budget: &Mutex<BudgetKeeper>,
    folder: &RoundFolder,
    now: UnixMillis,
) -> Result<Option<String>> {
    let mut budget = locked(budget);
    if let Some(refusal) = policy.refusal_after(plan, cost, &budget) {
        return Ok(Some(refusal.to_string()));
    }
    match cost {
        Some(cost) => match budget.charge(plan.round, cost, folder.path(), now)? {
            Charge::Paid => Ok(None),
            Charge::Refused(reason) => Ok(Some(reason)),
        },
        None => {
            if plan.kind == RoundKind::Train {
                budget.note_unprotected(plan.round, now)?;
            }
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::{noisy, plan, policy};
    use medinet_privacy::{Composition, DpSgdPlan, PrivacyLimit, PrivacyReport, SamplingRate};
    use medinet_types::{Digest, ModelDigest, RoundNumber, SiteId};
    use medinet_wire::message::{Aggregation, MakingRound};

    const NOW: UnixMillis = UnixMillis(500);

    struct Site {
        data: tempfile::TempDir,
        policy: SitePolicy,
        budget: Mutex<BudgetKeeper>,
    }

    impl Site {
        fn new(policy: SitePolicy) -> Self {
            let data = tempfile::tempdir().unwrap();
            let budget = Self::open(&data, &policy);
            Self { data, policy, budget }
        }

        fn open(data: &tempfile::TempDir, policy: &SitePolicy) -> Mutex<BudgetKeeper> {
            let (site, task) = (SiteId::new("north").unwrap(), plan().spec.task);
            let limit = policy.privacy_limit();
            Mutex::new(BudgetKeeper::open(data.path(), &site, &task, limit, UnixMillis(1)).unwrap())
        }

        fn restart(&mut self) {
            self.budget = Self::open(&self.data, &self.policy);
        }

        fn reasons(&self, plan: &RoundPlan) -> Vec<String> {
            self.as_announced(plan, &plan.spec)
        }

        /// At a site that approved this specification.
        fn as_announced(&self, plan: &RoundPlan, spec: &TaskSpec) -> Vec<String> {
            let folder = RoundFolder::open(self.data.path(), plan).unwrap();
            let (policy, budget) = (&self.policy, &self.budget);
            let announced = Announced { plan, folder: &folder, policy, spec, budget };
            let reasons = announced.reasons_against(NOW).unwrap();
            if reasons.is_empty() {
                announced.take_part().unwrap();
            }
            reasons
        }

        /// Why the round's work stops before anything is trained.
        fn unpaid(&self, plan: &RoundPlan) -> Option<String> {
            let folder = RoundFolder::open(self.data.path(), plan).unwrap();
            let cost = RoundCost::of(plan).unwrap();
            pay(&self.policy, plan, cost.as_ref(), &self.budget, &folder, NOW).unwrap()
        }

        /// Takes part in a round up to where its training would begin.
        fn trains(&self, plan: &RoundPlan) {
            assert_eq!(self.reasons(plan), Vec::<String>::new());
            assert_eq!(self.unpaid(plan), None);
        }

        /// The announcement is declined with this, and so is the work of one that was accepted before.
        fn declines(&self, plan: &RoundPlan, with: &str) {
            let reasons = self.reasons(plan);
            assert!(reasons.len() == 1 && reasons[0].contains(with), "{with}: {reasons:?}");
            assert_eq!(self.unpaid(plan), Some(reasons[0].clone()));
        }

        fn report(&self) -> Option<PrivacyReport> {
            locked(&self.budget).report()
        }
    }

    fn epsilon(value: f64) -> Epsilon {
        Epsilon::new(value).unwrap()
    }

    fn plain(round: u32) -> RoundPlan {
        RoundPlan { round: RoundNumber(round), ..plan() }
    }

    fn private(round: u32, sampling_rate: f64, steps: u64) -> RoundPlan {
        let target = PrivacyLimit { epsilon: epsilon(1.0), delta: policy().delta };
        let rate = SamplingRate::new(sampling_rate).unwrap();
        let mut plan = plain(round);
        plan.training.local_epochs = 1;
        plan.training.privacy = Some(DpSgdPlan::for_target(&target, 1.0, rate, steps).unwrap());
        plan
    }

    fn evaluation(round: u32) -> RoundPlan {
        RoundPlan { kind: RoundKind::Evaluate, ..plain(round) }
    }

    #[test]
    fn a_budget_that_is_spent_is_not_got_around_by_a_round_without_noise() {
        let mut site = Site::new(SitePolicy { max_epsilon_total: epsilon(1.2), ..policy() });
        site.trains(&private(1, 0.05, 20));
        site.declines(&private(2, 0.05, 20), "privacy budget of task pneumonia");
        for _ in 0..2 {
            site.declines(&plain(3), "trains without differential privacy, and this site has spent epsilon");
            // Neither under masks.
            let mut masked = noisy(6.0);
            let Aggregation::Secure(secure) = &mut masked.aggregation else { unreachable!() };
            secure.codec.noise = None;
            site.declines(&masked, "trains without differential privacy");
            site.restart();
        }
        // What was spent still bounds all that has left.
        assert!(!site.report().unwrap().unbounded);
        // The candidate of the rounds before is measured all the same.
        assert_eq!(site.reasons(&evaluation(4)), Vec::<String>::new());
    }

    #[test]
    fn a_round_without_noise_after_a_private_one_is_the_sites_own_decision() {
        let mut site = Site::new(policy());
        site.trains(&private(1, 0.05, 20));
        site.declines(&plain(2), "which would bound nothing any more");
        let spent = site.report().unwrap().spent;
        site.policy.plain_training_after_private = true;
        site.trains(&plain(2));
        site.restart();
        let report = site.report().unwrap();
        assert!(report.unbounded && report.spent == spent);
        // Declined again, and what has left stays unbounded.
        site.policy.plain_training_after_private = false;
        site.declines(&plain(3), "which would bound nothing any more");
        site.trains(&private(4, 0.05, 20));
        assert!(site.report().unwrap().unbounded && site.report().unwrap().spent > spent);
    }

    #[test]
    fn tasks_without_noise_go_on_as_before() {
        let mut site = Site::new(policy());
        for round in 1..4 {
            site.trains(&plain(round));
            site.restart();
        }
        assert_eq!(site.report(), None);
        // Noise that comes late protects its own rounds, and the report does not claim more.
        site.trains(&private(4, 0.05, 20));
        assert!(site.report().unwrap().unbounded);
        site.declines(&plain(5), "which would bound nothing any more");
    }

    #[test]
    fn noise_is_not_chosen_by_what_came_out_of_earlier_rounds() {
        let mut site = Site::new(policy());
        let first = private(1, 0.05, 20);
        site.trains(&first);
        // A round may be shorter, or clip otherwise.
        let mut shorter = RoundPlan { round: RoundNumber(2), ..first.clone() };
        let privacy = shorter.training.privacy.as_mut().unwrap();
        (privacy.steps, privacy.clip_norm) = (10, 0.5);
        site.trains(&shorter);
        let other = private(3, 0.04, 20);
        site.declines(&other, "the task's private rounds before it had noise multiplier");
        let inside = RoundPlan { round: RoundNumber(3), ..noisy(6.0) };
        site.declines(&inside, "inside the sum, the task's private rounds");
        site.policy.privacy_parameters_may_change = true;
        site.trains(&other);
        site.restart();
        // From here on what was allowed last is what is expected.
        site.policy.privacy_parameters_may_change = false;
        site.trains(&RoundPlan { round: RoundNumber(4), ..other });
        site.declines(&RoundPlan { round: RoundNumber(5), ..first }, "at sampling rate 0.05 in training");
    }

    #[test]
    fn an_announcement_that_says_less_than_was_charged_here_is_seen_and_decides_nothing() {
        let site = Site::new(policy());
        let below = |plan: &RoundPlan| {
            let folder = RoundFolder::open(site.data.path(), plan).unwrap();
            let (policy, budget) = (&site.policy, &site.budget);
            let announced = Announced { plan, folder: &folder, policy, spec: &plan.spec, budget };
            let cost = RoundCost::of(plan).unwrap();
            announced.compare_totals(cost.as_ref(), &locked(budget)).unwrap()
        };
        let event = private(1, 0.05, 20).training.privacy.unwrap().event();
        let total = |rounds: u32| {
            let all = Composition::new().with(&event.with_count(20 * u64::from(rounds)));
            Some(PrivacyTotal::of(rounds, &all, policy().delta))
        };
        let says = |privacy_total, plan: RoundPlan| RoundPlan { privacy_total, ..plan };
        let private = |round, privacy_total| says(privacy_total, private(round, 0.05, 20));
        // Nothing to tell of, and nothing told of a private round.
        assert!(!below(&plain(1)));
        assert!(below(&private(1, None)));
        let first = private(1, total(1));
        assert!(!below(&first));
        site.trains(&first);
        assert!(!below(&first), "paid for, and not counted twice");
        // One that the site was not in may be announced too, and one that nothing bounds says no number.
        for told in [total(2), total(3), total(2).map(|total| PrivacyTotal { epsilon: None, ..total })] {
            assert!(!below(&private(2, told)), "{told:?}");
        }
        assert!(below(&private(2, total(1))));
        assert!(!below(&says(total(1), evaluation(2))) && below(&says(None, evaluation(2))));
        // The site takes part by its own budget, and pays the same.
        site.trains(&private(2, total(1)));
        let spent = site.report().unwrap().spent.get();
        assert!((spent / total(2).unwrap().epsilon.unwrap().get() - 1.0).abs() < 1e-9, "{spent}");
    }

    #[test]
    fn one_candidate_is_measured_after_each_time_that_training_was_heard_of() {
        let mut site = Site::new(SitePolicy { require_differential_privacy: true, ..policy() });
        let none = Vec::<String>::new();
        // One that is declined for another reason is not measured, and another one may be.
        let late = RoundPlan { deadline: UnixMillis(1), ..evaluation(2) };
        assert_eq!(site.reasons(&late).len(), 1);
        assert_eq!(site.reasons(&evaluation(3)), none);
        site.restart();
        // The same, with a later deadline too, and no other.
        assert_eq!(site.reasons(&RoundPlan { deadline: UnixMillis(9000), ..evaluation(3) }), none);
        let other_base = RoundPlan { opened_at: UnixMillis(1), ..evaluation(3) };
        let mut vouching = evaluation(4);
        vouching.made_by = Some(MakingRound { round: RoundNumber(u32::MAX), sites: vec![] });
        for asked in [evaluation(4), other_base, evaluation(2), vouching] {
            let reasons = site.reasons(&asked);
            assert!(reasons.len() == 1 && reasons[0].contains("has measured a candidate"), "{reasons:?}");
        }
        // An announcement from before, played back, is no round of training; nor is one of another specification.
        let over = RoundPlan { deadline: UnixMillis(1), ..plain(1) };
        let mut other = plain(4);
        other.spec.network.classes.reverse();
        let own = site.as_announced(&other, &plain(4).spec);
        assert!(own.iter().any(|reason| reason.contains("specification")), "{own:?}");
        assert!(!site.reasons(&over).is_empty());
        assert_eq!(site.reasons(&evaluation(6)).len(), 1);
        // A round of training counts whether or not the site takes part.
        assert_eq!(site.reasons(&plain(5)).len(), 1);
        assert_eq!(site.reasons(&evaluation(6)), none);
        assert_eq!(site.reasons(&evaluation(7)).len(), 1);
    }

    #[test]
    fn a_list_of_base_models_is_for_the_first_and_what_the_federation_makes_of_it_follows() {
        let model = |number: u8| ModelDigest(Digest([number; 32]));
        let mut site = Site::new(SitePolicy { base_models: vec![model(1)], ..policy() });
        let round = |kind, number, base, made_by: Option<u32>| {
            let mut plan = RoundPlan { kind, ..plain(number) };
            plan.base.digest = model(base);
            plan.made_by = made_by.map(|round| MakingRound { round: RoundNumber(round), sites: vec![] });
            plan
        };
        let train = |number, base, made_by| round(RoundKind::Train, number, base, made_by);
        let none = Vec::<String>::new();
        // Another model to begin with.
        let reasons = site.reasons(&train(1, 9, None));
        assert!(reasons.len() == 1 && reasons[0].contains("policy.base_models"), "{reasons:?}");
        // Three rounds, each on what the one before has made, then its candidate, and a release that training goes back to.
        assert_eq!(site.reasons(&train(1, 1, None)), none);
        site.restart();
        assert_eq!(site.reasons(&train(2, 2, Some(1))), none);
        assert_eq!(site.reasons(&train(3, 3, Some(2))), none);
        assert_eq!(site.reasons(&round(RoundKind::Evaluate, 4, 4, Some(3))), none);
        assert_eq!(site.reasons(&train(5, 2, Some(1))), none);
        // A round that the site declines for another reason is heard of all the same.
        site.policy.max_local_epochs = 1;
        assert_eq!(site.reasons(&train(6, 5, Some(5))).len(), 1);
        site.policy.max_local_epochs = policy().max_local_epochs;
        assert_eq!(site.reasons(&train(7, 6, Some(6))), none);
        // The eighth came and went while the site was away: what it made has come from somewhere.
        let jump = train(9, 8, Some(8));
        for _ in 0..2 {
            let reasons = site.reasons(&jump);
            assert!(reasons.len() == 1 && reasons[0].contains("on the ledger"), "{reasons:?}");
        }
        assert_eq!(site.reasons(&train(10, 9, Some(9))).len(), 1);
        // Whoever has looked names it, and the task goes on from there.
        site.policy.base_models.push(model(8));
        assert_eq!(site.reasons(&jump), none);
        assert_eq!(site.reasons(&train(10, 9, Some(9))), none);
        // A round has made one model, whether it was trained on or measured.
        for made_by in [1, 3, 9] {
            assert_eq!(site.reasons(&train(11, 11, Some(made_by))).len(), 1, "round {made_by}");
        }
        // What a name was taken back from is refused with all that came of it, and what came of another name is not.
        site.policy.base_models = vec![model(8)];
        assert_eq!(site.reasons(&train(12, 6, Some(6))).len(), 1);
        assert_eq!(site.reasons(&train(12, 9, Some(9))), none);
        // Without a list nothing is asked; rounds are remembered all the same, for a list that is written later.
        site.policy.base_models.clear();
        assert_eq!(site.reasons(&train(13, 13, None)), none);
        site.policy.base_models = vec![model(13)];
        assert_eq!(site.reasons(&train(14, 14, Some(13))), none);
    }

    #[test]
    fn what_has_begun_is_finished_whatever_the_hour() {
        let mut site = Site::new(policy());
        // NOW is just after midnight, and the round over within the second.
        site.policy.training_hours = vec!["22:00-23:00".to_owned().try_into().unwrap()];
        let plan = plain(1);
        let reasons = site.reasons(&plan);
        assert!(reasons.len() == 1 && reasons[0].contains("22:00-23:00"), "{reasons:?}");
        let folder = RoundFolder::open(site.data.path(), &plan).unwrap();
        std::fs::create_dir(folder.path().join(crate::trainer::CHECKPOINTS)).unwrap();
        assert_eq!(site.reasons(&plan), Vec::<String>::new());
    }

    #[test]
    fn updates_on_one_base_model_are_summed_a_few_times_only_unless_they_are_private() {
        let site = Site::new(policy());
        let most = site.policy.secure_aggregation.max_rounds_per_base;
        let masked = |round| {
            let mut plan = RoundPlan { round: RoundNumber(round), ..noisy(6.0) };
            let Aggregation::Secure(secure) = &mut plan.aggregation else { unreachable!() };
            secure.codec.noise = None;
            plan
        };
        for round in 1..=most {
            let plan = masked(round);
            assert_eq!(site.reasons(&plan), Vec::<String>::new());
            let folder = RoundFolder::open(site.data.path(), &plan).unwrap();
            folder.task_memory().use_base(&plan.base.digest, plan.round).unwrap();
            // Announced again while it is open.
            assert_eq!(site.reasons(&plan), Vec::<String>::new());
        }
        let reasons = site.reasons(&masked(most + 1));
        assert!(
            reasons.len() == 1 && reasons[0].contains(&format!("was under masks in {most} rounds")),
            "{reasons:?}"
        );
        let mut next = masked(most + 1);
        next.base.digest = medinet_types::ModelDigest(medinet_types::Digest([2; 32]));
        assert_eq!(site.reasons(&next), Vec::<String>::new());
        // Noise inside the sum is charged for each; the aggregator reads plain updates anyway.
        site.trains(&plain(most + 2));
        let site = Site::new(policy());
        let plan = noisy(6.0);
        let folder = RoundFolder::open(site.data.path(), &plan).unwrap();
        for round in 1..=most {
            folder.task_memory().use_base(&plan.base.digest, RoundNumber(round)).unwrap();
        }
        site.trains(&RoundPlan { round: RoundNumber(most + 1), ..plan });
    }
}
