//! The federations that are attacked, and those that shadow them: the product's own training, codec and server's step.

use crate::data::{Dataset, Images};
use crate::federation::{
    Aggregation as _, Channel, ClipRule, Figures, LocalTask, LocalTraining as _, LocalUpdate, Mean, Run, Sgd,
};
use crate::key;
use crate::setup::Setup;
use anyhow::{Context as _, Result, ensure};
use medinet_model::{ClassBalance, ModelParameters, NetworkManifest, TrainingPlan};
use medinet_privacy::{Delta, DpSgdPlan, Epsilon, PrivacyLimit, SamplingRate};
use medinet_training::published_count;
use medinet_update::SecureCodecPlan;
use serde::Serialize;

/// Bits of a coordinate and coordinates of 1,000 that a site sends in a secure round: the product's defaults.
pub const SECURE_BITS: u8 = 2;
/// See [`SECURE_BITS`].
pub const KEPT_PERMILLE: u16 = 495;
/// Clip norm of the first round; later ones follow from the sites' norms, up to [`LARGEST_CLIP_NORM`].
const FIRST_CLIP_NORM: f32 = 2.0;
const LARGEST_CLIP_NORM: f32 = 16.0;

/// How the model that is attacked was trained.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// As the product does unless told otherwise: without noise.
    Plain,
    /// With DP-SGD at each site, of this epsilon over all rounds at [`Recipe::delta`].
    Private {
        /// Epsilon.
        epsilon: f64,
    },
    /// By somebody else: a released model that was given.
    Released,
    /// As plain on a few images, for so long that the model knows them by heart: an attack that does not catch this one is no attack.
    Control,
}

impl Variant {
    /// As people call it.
    #[must_use]
    pub fn title(self) -> String {
        match self {
            Self::Plain => "plain training".to_owned(),
            Self::Private { epsilon } => format!("private training, epsilon {epsilon}"),
            Self::Released => "the released model".to_owned(),
            Self::Control => "control: overfitted on purpose".to_owned(),
        }
    }
}

/// What all federations of an audit have in common.
#[derive(Debug, Clone, Serialize)]
pub struct Recipe {
    /// The network.
    pub network: NetworkManifest,
    /// Sites of the federation.
    pub sites: usize,
    /// Rounds.
    pub rounds: u32,
    /// Passes over a site's images in a round, where training is plain.
    pub local_epochs: u32,
    /// Learning rate at the start of plain training.
    pub learning_rate: f32,
    /// Learning rate at the start of private training.
    pub private_learning_rate: f32,
    /// Largest norm of a patient's gradient in private training.
    pub private_clip_norm: f64,
    /// Patients that a private step takes in the mean.
    pub private_batch: f64,
    /// Delta of private training.
    pub delta: f64,
}

impl Recipe {
    /// The training of a variant, for sites of about `patients` patients.
    ///
    /// # Errors
    /// When no noise gives the epsilon that is asked for.
    pub fn training(&self, variant: Variant, patients: usize) -> Result<Sgd> {
        let mut plan = Setup::plan(self.learning_rate);
        plan.local_epochs = self.local_epochs;
        match variant {
            Variant::Plain | Variant::Released => (),
            Variant::Control => plan.local_epochs = 4 * self.local_epochs,
            Variant::Private { epsilon } => plan = self.private(epsilon, patients)?,
        }
        Ok(Sgd { plan, decay_rounds: self.rounds })
    }

    /// DP-SGD whose steps over all rounds cost `epsilon`; each round's plan says what that round costs alone.
    fn private(&self, epsilon: f64, patients: usize) -> Result<TrainingPlan> {
        let declared = published_count(patients as u64) as f64;
        let rate = (self.private_batch / declared).clamp(1e-6, 1.0);
        let sampling_rate = SamplingRate::new(rate).context("the sampling rate of private training")?;
        let steps = (f64::from(self.local_epochs) / rate).ceil().max(1.0) as u64;
        let limit = PrivacyLimit {
            epsilon: Epsilon::new(epsilon).context("the epsilon of private training")?,
            delta: Delta::new(self.delta).context("the delta of private training")?,
        };
        let clip_norm = self.private_clip_norm;
        let all = DpSgdPlan::for_target(&limit, clip_norm, sampling_rate, steps * u64::from(self.rounds))
            .context("no noise gives this epsilon")?;
        // A round costs at most what all cost together.
        let privacy = DpSgdPlan { steps, ..all };
        let plan = Setup::plan(self.private_learning_rate);
        Ok(TrainingPlan {
            local_epochs: 1,
            class_balance: ClassBalance::None,
            privacy: Some(privacy),
            ..plan
        })
    }

    /// Trains a federation on `images` and gives its last model, which stands for the promoted one. Each site's update goes through the codec for
    /// secure aggregation.
    ///
    /// # Errors
    /// When the images cannot be dealt out, or a training fails.
    pub fn train(
        &self,
        variant: Variant,
        images: Images,
        test: &Images,
        seed: u64,
        threads: usize,
    ) -> Result<Run> {
        let sites = if variant == Variant::Control { 1 } else { self.sites };
        let data =
            Dataset { name: "audit", validation: images.select(&[]), training: images, test: test.clone() };
        let patients: std::collections::BTreeSet<u32> = data.training.patients().iter().copied().collect();
        let training = self.training(variant, patients.len() / sites)?;
        let setup = Setup {
            network: self.network.clone(),
            plan: training.plan.clone(),
            sites,
            label_skew: None,
            rounds: self.rounds,
            seed,
        };
        let mut federation = setup.federation(&data, &training, &Mean)?;
        let reference = federation.sites.iter().map(|site| site.images.len()).max().unwrap_or(1);
        federation.channel = secure(FIRST_CLIP_NORM, reference)?;
        if matches!(variant, Variant::Control | Variant::Released) {
            federation.channel = Channel::float32();
        }
        federation.clip = ClipRule::Tracking { largest: LARGEST_CLIP_NORM };
        federation.threads = threads;
        federation.run(&mut |_| {})
    }

    /// The figures of a model on the test images.
    ///
    /// # Errors
    /// When they cannot be computed.
    pub fn figures(&self, model: &ModelParameters, test: &Images) -> Result<Figures> {
        crate::federation::figures(&self.network, model, &test.to_training_data())
    }

    /// What plain local training at each of some sites gives in round `round` on `base`: the product's real updates.
    ///
    /// # Errors
    /// When a training fails.
    pub fn updates(
        &self,
        sites: &[Images],
        base: &ModelParameters,
        round: u32,
        seed: u64,
    ) -> Result<Vec<LocalUpdate>> {
        let training = self.training(Variant::Plain, 1)?;
        sites
            .iter()
            .enumerate()
            .map(|(site, images)| {
                let [a, b, c, d, e, f, g, h, ..] = key(seed, "audit site", &[site as u64, round.into()]);
                training.train(&LocalTask {
                    site,
                    round,
                    network: &self.network,
                    base,
                    images,
                    data: &images.to_training_data(),
                    site_seed: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
                })
            })
            .collect()
    }

    /// What the aggregator learns of updates in a secure round: the mean that it decodes from their sum. The clip norm has followed the sites' norms.
    ///
    /// # Errors
    /// When the codec refuses an update.
    pub fn seen_by_aggregator(
        &self,
        updates: Vec<LocalUpdate>,
        base: &ModelParameters,
        round: u32,
        seed: u64,
    ) -> Result<Vec<f32>> {
        ensure!(!updates.is_empty(), "expected at least one update");
        let reference = updates.iter().map(|update| update.examples).max().unwrap_or(1);
        let channel = secure(1.0, usize::try_from(reference)?)?;
        let norms: f64 = updates.iter().map(|update| norm(&update.delta)).sum();
        let Channel::Secure(plan) = channel else { return Ok(Vec::new()) };
        let clip_norm = plan.next_clip_norm((norms / updates.len() as f64) as f32, LARGEST_CLIP_NORM);
        let channel = channel.with_clip_norm(clip_norm);
        let group = channel.aggregate(updates, (&self.network, base), round, seed)?;
        Mean.combine(&[group])
    }
}

/// The codec of a secure round.
fn secure(clip_norm: f32, reference: usize) -> Result<Channel> {
    Ok(Channel::Secure(SecureCodecPlan {
        bits: SECURE_BITS,
        clip_norm,
        error_feedback: false,
        kept_permille: KEPT_PERMILLE,
        reference_examples: u32::try_from(reference).context("a site of too many images")?,
        noise: None,
    }))
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}
