//! One round with secure aggregation at this site, once it has trained: carries out what the protocol decides.

use crate::round::RoundFolder;
use crate::round_cost::RoundCost;
use anyhow::{Context as _, Result};
use medinet_link::now;
use medinet_privacy::PrivacyReport;
use medinet_secure::{Input, Memory, Output, Participant, Setup, Standing};
use medinet_types::{ModelDigest, RoundNumber, TaskId};
use medinet_update::SecureUpdate;
use medinet_uplink::Uplink;
use medinet_wire::message::SiteMetrics;

/// A site in sessions of secure aggregation.
pub(crate) struct SecureRound {
    participant: Participant,
    folder: RoundFolder,
    task: TaskId,
    round: RoundNumber,
    /// The base model, where nothing but masks protects the update.
    unprotected: Option<ModelDigest>,
}

/// Whether the round still needs the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It goes on.
    Open,
    /// The round counts the site.
    Counted,
}

impl SecureRound {
    /// Takes up a round where this site's disk left it. `said` goes with the word that the site is ready: what it measured of the base model and what
    /// it has spent of its privacy budget, where they may leave.
    ///
    /// # Errors
    /// When the round falls short of the site's policy, or what the site remembers of it cannot be read.
    pub(crate) fn open(
        setup: Setup,
        folder: RoundFolder,
        update: SecureUpdate,
        said: (Option<SiteMetrics>, Option<PrivacyReport>),
        uplink: &Uplink,
    ) -> Result<Self> {
        let memory = match folder.memory()? {
            Some(bytes) => Memory::from_bytes(&bytes)?,
            None => Memory::default(),
        };
        // A kill ended the session that it was for.
        if let Some(blob) = folder.held()? {
            uplink.drop_update(blob)?;
        }
        let (task, round) = (setup.plan.spec.task.clone(), setup.plan.round);
        let private = RoundCost::of(&setup.plan).map_err(anyhow::Error::msg)?.is_some();
        let unprotected = (!private).then_some(setup.plan.base.digest);
        let (base_metrics, privacy) = said;
        let participant = Participant::new(setup, update, base_metrics, memory)?.reporting(privacy);
        Ok(Self { participant, folder, task, round, unprotected })
    }

    /// How far the site is.
    pub(crate) fn standing(&self) -> Standing {
        self.participant.standing()
    }

    /// Gives the protocol an input and carries out, in order, what follows.
    ///
    /// # Errors
    /// When something cannot be carried out. What the protocol has decided since may then not be on disk: the caller drops this and
    /// opens the round again, which counts as a restart.
    pub(crate) async fn handle(&mut self, uplink: &Uplink, input: Input) -> Result<Outcome> {
        let outputs = self.participant.handle(now(), input, &mut rand::rng());
        let mut outcome = Outcome::Open;
        for output in outputs {
            match output {
                Output::Persist(memory) => self.folder.keep_memory(&memory)?,
                Output::Hold(masked) => {
                    // From here on it may be in a sum.
                    if let Some(base) = &self.unprotected {
                        self.folder.task_memory().use_base(base, self.round)?;
                    }
                    self.folder.keep_held(masked.manifest().digest)?;
                    uplink.hold_masked(&masked)?;
                }
                Output::Release(blob) => uplink.drop_update(blob)?,
                Output::Send(word) => {
                    let said = uplink.say(self.task.clone(), self.round, word).await;
                    // What is lost is said again.
                    if let Err(error) = said {
                        tracing::debug!(
                            error = &error as &dyn std::error::Error,
                            "cannot reach the aggregator"
                        );
                    }
                }
                Output::Counted => {
                    self.folder.count_feedback().context("the update counts, its residual is lost")?;
                    tracing::info!(round = %self.round, "the sum is open and counts this site");
                    outcome = Outcome::Counted;
                }
                Output::Stopped { reason } => {
                    tracing::error!(
                        round = %self.round,
                        reason,
                        "the aggregator broke the protocol of secure aggregation: this site is silent until the next \
                         round; look into it"
                    );
                }
            }
        }
        Ok(outcome)
    }
}
