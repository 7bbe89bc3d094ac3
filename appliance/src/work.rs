//! A round's job, away from the main loop: the base model, what the round costs, the trainer, and what of its result may leave.

use crate::base_model::{Base, KeptModel};
use crate::consent;
use crate::privacy_budget::BudgetKeeper;
use crate::round::{self, RoundFolder, UNMASKED};
use crate::round_cost::RoundCost;
use crate::settings::ApplianceSettings;
use crate::trainer::{JobResult, Trainer};
use crate::vote::{self, Best};
use anyhow::{Context as _, Result};
use medinet_dataset::{Dataset, Split};
use medinet_link::now;
use medinet_privacy::PrivacyReport;
use medinet_training::published_count;
use medinet_types::{SiteId, UnixMillis};
use medinet_update::{Expected, Origin, SealedUpdate, SecureUpdate};
use medinet_wire::message::{RoundKind, RoundPlan, SiteMetrics};
use medinet_wire::vote::Ballot;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// What a job gives.
pub(crate) enum JobOutcome {
    Update {
        sealed: SealedUpdate,
        examples: u64,
        metrics: Option<SiteMetrics>,
        /// What is spent of the privacy budget, this round included.
        privacy: Option<PrivacyReport>,
    },
    Secure {
        update: SecureUpdate,
        metrics: Option<SiteMetrics>,
        privacy: Option<PrivacyReport>,
    },
    Measured {
        /// What the policy lets out.
        metrics: Option<SiteMetrics>,
        ballot: Ballot,
    },
    /// The announced deltas do not lead to the base model, and why.
    NotReached(anyhow::Error),
    /// The site refuses the round after all, and why.
    Declined(String),
}

/// A round's job, away from the main loop.
pub(crate) struct Work {
    pub(crate) settings: Arc<ApplianceSettings>,
    pub(crate) site: SiteId,
    pub(crate) plan: RoundPlan,
    pub(crate) folder: RoundFolder,
    pub(crate) budget: Arc<Mutex<BudgetKeeper>>,
    pub(crate) progress: Arc<watch::Sender<f32>>,
}

/// The budget. A charge replaces it whole or not at all, so a panic leaves nothing half done.
pub(crate) fn locked(budget: &Mutex<BudgetKeeper>) -> MutexGuard<'_, BudgetKeeper> {
    budget.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Work {
    pub(crate) async fn run(&self, base: Base) -> Result<JobOutcome> {
        let kept = KeptModel::of(&self.folder);
        let base = match tokio::task::block_in_place(|| kept.make(&self.plan, base)) {
            Ok(base) => base,
            Err(error) => return Ok(JobOutcome::NotReached(error)),
        };
        let mut job = self.folder.job(&self.settings, &self.site, &self.plan, &base)?;
        // Verified by now: the next round's deltas may start from it.
        tokio::task::block_in_place(|| kept.keep(&base))?;
        drop(base);
        let cost = RoundCost::of(&self.plan).map_err(anyhow::Error::msg)?;
        let Self { settings, plan, folder, budget, .. } = self;
        let pay = || consent::pay(&settings.policy, plan, cost.as_ref(), budget, folder, now());
        if let Some(reason) = tokio::task::block_in_place(pay)? {
            return Ok(JobOutcome::Declined(reason));
        }
        job.public_patients = tokio::task::block_in_place(|| self.public_patients())?;
        let result = Trainer::run(&job, self.settings.training.threads, &self.progress).await?;
        result.device.log();
        // Before anything of what has got its noise can leave.
        let ended = || match &cost {
            Some(_) => locked(&self.budget).ended(self.folder.path()),
            None => Ok(()),
        };
        let noise_in_sum = cost.is_some_and(|cost| cost.product == UNMASKED);
        if !noise_in_sum {
            ended()?;
        }
        let metrics = self.released_metrics(&result);
        if self.plan.kind == RoundKind::Evaluate {
            return Ok(JobOutcome::Measured { metrics, ballot: self.ballot(&result)? });
        }
        if self.plan.aggregation.secure().is_some() {
            let update = || self.folder.secure_update(&self.settings, &self.plan, &result);
            let update = tokio::task::block_in_place(update)?;
            if noise_in_sum {
                ended()?;
            }
            return Ok(JobOutcome::Secure { update, metrics, privacy: locked(&self.budget).report() });
        }
        let bytes = tokio::task::block_in_place(|| self.folder.update(&self.settings, &self.plan, &result))?;
        let parameters = medinet_model::ParameterLayout::of(&self.plan.spec.network)?.len();
        let expected = Expected {
            parameters,
            plan: self.plan.aggregation.plain().context("the round takes updates under masks only")?,
            origin: Origin { base: self.plan.base.digest, round: self.plan.round },
            max_examples: u64::MAX,
        };
        let sealed = SealedUpdate::parse(bytes, &expected)?;
        let privacy = locked(&self.budget).report();
        Ok(JobOutcome::Update { sealed, examples: result.images, metrics, privacy })
    }

    /// The number of patients that the round's private training counts on: that of the task's first private round, whatever has come in or gone since.
    fn public_patients(&self) -> Result<Option<NonZeroU64>> {
        let private = self.plan.kind == RoundKind::Train && self.plan.training.privacy.is_some();
        if !private || self.folder.has_result() {
            return Ok(None);
        }
        let (settings, spec) = (&self.settings, &self.plan.spec);
        let dataset = Dataset::open(&settings.dataset_dir(spec), spec, &settings.dataset)?;
        let patients = u64::from(dataset.images(Split::Training)?.patients());
        anyhow::ensure!(
            patients > 0,
            "the training split is empty: expected at least one patient with a label"
        );
        let count = fixed_patients(patients, &mut locked(&self.budget), now())?;
        NonZeroU64::new(count)
            .context("the privacy budget's number of patients is 0, expected at least 10")
            .map(Some)
    }

    /// What the site's policy makes of a candidate, by all that was measured, whether or not it may leave. What it accepts and
    /// what it rejects is on disk before anybody hears of it.
    fn ballot(&self, result: &JobResult) -> Result<Ballot> {
        let measured = result.base.as_ref().map(round::metrics_of);
        let (data_dir, task) = (&self.settings.data_dir, &self.plan.spec.task);
        let best = Best::load(data_dir, task)?;
        let ballot = self.settings.policy.vote.ballot(measured.as_ref(), &best);
        if let (Ballot::Accept, Some(measured)) = (ballot, &measured) {
            best.keep(data_dir, task, measured)?;
        }
        vote::remember(data_dir, task, self.plan.base.digest, ballot)?;
        Ok(ballot)
    }

    /// What the policy lets out of a measurement, rounded.
    fn released_metrics(&self, result: &JobResult) -> Option<SiteMetrics> {
        if !self.settings.policy.metrics_may_leave {
            return None;
        }
        result.base.as_ref().map(round::metrics_of).map(round::published)
    }
}

/// The task's number of patients for private training, of a site that has so many now. Any number that does not follow the data keeps the promise: a
/// patient moves the clipped sum by at most the clip norm, whatever it is divided by afterwards. One that is far off changes how long a step is.
fn fixed_patients(patients: u64, budget: &mut BudgetKeeper, at: UnixMillis) -> Result<u64> {
    let fixed = budget.fix_public_patients(published_count(patients), at)?;
    if patients > fixed.saturating_mul(2) || patients.saturating_mul(2) < fixed {
        tracing::warn!(
            patients,
            fixed,
            "private training divides by a number of patients that was fixed at the task's first private round and is far from today's: it protects \
             as before, and learns in steps that are too long or too short; a task of another name counts anew"
        );
    }
    Ok(fixed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::SitePolicy;
    use crate::policy::tests::{noisy, plan, policy};
    use crate::trainer::{RESULT, TRAINED, UsedDevice};
    use medinet_model::{ModelParameters, encode_parameters, model_digest};
    use medinet_privacy::{DpSgdPlan, SamplingRate};
    use medinet_training::Evaluation;
    use medinet_types::RoundNumber;
    use medinet_wire::message::Aggregation;
    use medinet_wire::vote::Objection;

    const SAMPLE: &str = include_str!("../../config/appliance.toml");

    /// The job of a round at a site whose trainer has done its part, so that what comes out is what the site makes of it.
    struct Site {
        data: tempfile::TempDir,
        settings: Arc<ApplianceSettings>,
        budget: Arc<Mutex<BudgetKeeper>>,
    }

    /// What the trainer measured of the base model, to be seen in what leaves.
    const MEASURED: Evaluation =
        Evaluation { images: 137, auroc: Some(0.91), accuracy: 0.8, log_loss: 0.4, calibration_error: 0.1 };

    /// The kinds of round in which a site has measured the base model: a plain one, one under masks, and the measuring of a candidate.
    fn kinds() -> [RoundPlan; 3] {
        let mut masked = noisy(6.0);
        let Aggregation::Secure(secure) = &mut masked.aggregation else { unreachable!() };
        secure.codec.noise = None;
        [plan(), masked, RoundPlan { kind: RoundKind::Evaluate, ..plan() }]
    }

    impl Site {
        fn new() -> Self {
            Self::with(policy())
        }

        fn with(policy: SitePolicy) -> Self {
            let data = tempfile::tempdir().unwrap();
            let beside = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/appliance.toml");
            let mut settings: ApplianceSettings = medinet_settings::parse(SAMPLE, beside).unwrap();
            settings.data_dir = data.path().to_owned();
            settings.policy = policy;
            let (site, task) = (SiteId::new("north").unwrap(), plan().spec.task);
            let limit = settings.policy.privacy_limit();
            let budget = BudgetKeeper::open(data.path(), &site, &task, limit, UnixMillis(1)).unwrap();
            Self { data, settings: Arc::new(settings), budget: Arc::new(Mutex::new(budget)) }
        }

        async fn run(&self, mut plan: RoundPlan, round: u32) -> JobOutcome {
            let network = plan.spec.network.clone();
            let base = ModelParameters::initial(&network, 1).unwrap().into_vec();
            plan.round = RoundNumber(round);
            plan.base.digest = model_digest(&network, &base);
            let folder = RoundFolder::open(self.data.path(), &plan).unwrap();
            let trained: Vec<f32> = base.iter().map(|value| value + 0.01).collect();
            let device = UsedDevice { name: "test".to_owned(), note: None };
            let result = JobResult { base: Some(MEASURED), trained: None, images: 20, device };
            std::fs::write(folder.path().join(TRAINED), encode_parameters(&trained)).unwrap();
            std::fs::write(folder.path().join(RESULT), serde_json::to_vec(&result).unwrap()).unwrap();
            let work = Work {
                settings: Arc::clone(&self.settings),
                site: SiteId::new("north").unwrap(),
                plan,
                folder,
                budget: Arc::clone(&self.budget),
                progress: Arc::new(watch::channel(0.0).0),
            };
            work.run(Base::Whole(encode_parameters(&base))).await.unwrap()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_figures_leave_where_the_policy_keeps_them_and_the_vote_is_cast_all_the_same() {
        for may_leave in [true, false] {
            let site = Site::with(SitePolicy { metrics_may_leave: may_leave, ..policy() });
            for (round, plan) in (1..).zip(kinds()) {
                let kind = (plan.kind, plan.aggregation.secure().is_some());
                let metrics = match site.run(plan, round).await {
                    JobOutcome::Update { metrics, .. } if kind == (RoundKind::Train, false) => metrics,
                    JobOutcome::Secure { metrics, .. } if kind == (RoundKind::Train, true) => metrics,
                    JobOutcome::Measured { metrics, ballot } if kind.0 == RoundKind::Evaluate => {
                        assert_eq!(ballot, Ballot::Accept);
                        metrics
                    }
                    _ => panic!("another outcome of a round of kind {kind:?}"),
                };
                // 137 images leave as 130.
                assert_eq!(metrics.map(|metrics| metrics.images), may_leave.then_some(130), "{kind:?}");
            }
        }
        // It is by the figures that stay that a site votes.
        let mut strict = SitePolicy { metrics_may_leave: false, ..policy() };
        strict.vote.min_auroc = 0.95;
        let [.., evaluation] = kinds();
        match Site::with(strict).run(evaluation, 1).await {
            JobOutcome::Measured { metrics: None, ballot } => {
                assert_eq!(ballot, Ballot::Reject(Objection::LowAuroc));
            }
            _ => panic!("figures left, or none were measured"),
        }
    }

    #[test]
    fn private_training_counts_on_the_patients_of_the_first_private_round() {
        let site = Site::new();
        let counted = |patients| fixed_patients(patients, &mut locked(&site.budget), UnixMillis(2)).unwrap();
        assert_eq!([99, 101, 1000, 9].map(counted), [90; 4]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_update_says_what_is_spent_once_something_is() {
        let site = Site::new();
        let said = async |plan, round| match site.run(plan, round).await {
            JobOutcome::Update { privacy, .. } | JobOutcome::Secure { privacy, .. } => privacy,
            _ => panic!("no update left"),
        };
        assert_eq!(said(plan(), 1).await, None);
        let report = said(noisy(6.0), 2).await.unwrap();
        let cost = RoundCost::of(&noisy(6.0)).unwrap().unwrap().alone(&policy().privacy_limit());
        // The round without noise before it is on record too.
        assert!(report.unbounded && report.rounds == 1 && (report.spent.get() / cost - 1.0).abs() < 1e-9);
        assert_eq!(report.limit, policy().privacy_limit());
        let next = said(noisy(6.0), 3).await.unwrap();
        assert!(next.rounds == 2 && next.spent > report.spent);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_update_without_noise_leaves_after_a_private_one() {
        let site = Site::new();
        assert!(matches!(site.run(plan(), 1).await, JobOutcome::Update { .. }));
        assert_eq!(locked(&site.budget).report(), None);
        let limit = medinet_privacy::PrivacyLimit {
            epsilon: policy().max_epsilon_per_round,
            ..policy().privacy_limit()
        };
        let mut private = plan();
        private.training.local_epochs = 1;
        let rate = SamplingRate::new(0.05).unwrap();
        private.training.privacy = Some(DpSgdPlan::for_target(&limit, 1.0, rate, 20).unwrap());
        assert!(matches!(site.run(private, 2).await, JobOutcome::Update { .. }));
        match site.run(plan(), 3).await {
            JobOutcome::Declined(reason) => assert!(reason.contains("bound nothing any more"), "{reason}"),
            _ => panic!("an update left"),
        }
    }
}
