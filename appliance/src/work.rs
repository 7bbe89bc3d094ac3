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
use medinet_link::now;
use medinet_types::SiteId;
use medinet_update::{Expected, Origin, SealedUpdate, SecureUpdate};
use medinet_wire::message::{RoundKind, RoundPlan, SiteMetrics};
use medinet_wire::vote::Ballot;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// What a job gives.
pub(crate) enum JobOutcome {
    Update {
        sealed: SealedUpdate,
        examples: u64,
        metrics: Option<SiteMetrics>,
    },
    Secure {
        update: SecureUpdate,
        metrics: Option<SiteMetrics>,
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
        let job = self.folder.job(&self.settings, &self.site, &self.plan, &base)?;
        // Verified by now: the next round's deltas may start from it.
        tokio::task::block_in_place(|| kept.keep(&base))?;
        drop(base);
        let cost = RoundCost::of(&self.plan).map_err(anyhow::Error::msg)?;
        let Self { settings, plan, folder, budget, .. } = self;
        let pay = || consent::pay(&settings.policy, plan, cost.as_ref(), budget, folder, now());
        if let Some(reason) = tokio::task::block_in_place(pay)? {
            return Ok(JobOutcome::Declined(reason));
        }
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
            return Ok(JobOutcome::Secure { update, metrics });
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
        Ok(JobOutcome::Update { sealed, examples: result.images, metrics })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::{plan, policy};
    use crate::trainer::{RESULT, TRAINED, UsedDevice};
    use medinet_model::{ModelParameters, encode_parameters, model_digest};
    use medinet_privacy::{DpSgdPlan, SamplingRate};
    use medinet_types::{RoundNumber, UnixMillis};

    const SAMPLE: &str = include_str!("../../config/appliance.toml");

    /// The job of a round at a site whose trainer has done its part, so that what comes out is what the site makes of it.
    struct Site {
        data: tempfile::TempDir,
        settings: Arc<ApplianceSettings>,
        budget: Arc<Mutex<BudgetKeeper>>,
    }

    impl Site {
        fn new() -> Self {
            let data = tempfile::tempdir().unwrap();
            let beside = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/appliance.toml");
            let mut settings: ApplianceSettings = medinet_settings::parse(SAMPLE, beside).unwrap();
            settings.data_dir = data.path().to_owned();
            settings.policy = policy();
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
            let result = JobResult { base: None, trained: None, images: 20, device };
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
