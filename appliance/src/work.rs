//! A round's job, away from the main loop: the base model, what the round costs, the trainer, and what of its result may leave.

use crate::base_model::{Base, KeptModel};
use crate::privacy_budget::{BudgetKeeper, Charge};
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
        if let Some(cost) = &cost {
            let (folder, round) = (self.folder.path(), self.plan.round);
            let charge = || locked(&self.budget).charge(round, cost, folder, now());
            if let Charge::Refused(reason) = tokio::task::block_in_place(charge)? {
                return Ok(JobOutcome::Declined(reason));
            }
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

    /// What the policy lets out of a measurement.
    fn released_metrics(&self, result: &JobResult) -> Option<SiteMetrics> {
        if !self.settings.policy.metrics_may_leave {
            return None;
        }
        result.base.as_ref().map(round::metrics_of)
    }
}
