//! What studies have in common: which data, which network, how many sites and rounds.

use crate::data::{CLASSES, Dataset};
use crate::federation::{Aggregation, Channel, ClipRule, Downlink, Federation, LocalTraining, Site};
use crate::split::SplitPlan;
use anyhow::{Result, bail};
use medinet_model::{Augmentation, Body, ClassBalance, InputShape, NetworkManifest, Stem, TrainingPlan};
use medinet_rounds::ServerOptimizer;
use medinet_update::{CodecPlan, SecureCodecPlan};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::str::FromStr;

/// The data sets of the studies, and where they lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// PneumoniaMNIST, 28 px.
    PneumoniaMnist,
    /// The carried subset of Kermany et al. 2018, 28 px.
    Kermany28,
    /// The same, 64 px.
    Kermany64,
}

impl Source {
    /// Reads the set below `repository`, the folder of a checkout.
    ///
    /// # Errors
    /// When a file is not there or cannot be read.
    pub fn read(self, repository: &std::path::Path) -> Result<Dataset> {
        let images: PathBuf = repository.join("demo/images");
        match self {
            Self::PneumoniaMnist => {
                Dataset::pneumonia_mnist(&repository.join("study/data/pneumoniamnist.npz"))
            }
            Self::Kermany28 => Dataset::kermany(&images, 28),
            Self::Kermany64 => Dataset::kermany(&images, 64),
        }
    }

    /// As people call it.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::PneumoniaMnist => "PneumoniaMNIST",
            Self::Kermany28 => "Kermany, 28 px",
            Self::Kermany64 => "Kermany, 64 px",
        }
    }
}

/// A federation but for what a study changes.
#[derive(Debug, Clone, Serialize)]
pub struct Setup {
    /// The network.
    pub network: NetworkManifest,
    /// How each site trains in each round.
    pub plan: TrainingPlan,
    /// Number of sites.
    pub sites: usize,
    /// Concentration of the label skew; none for even shares.
    pub label_skew: Option<f64>,
    /// Rounds.
    pub rounds: u32,
    /// Seed of split, initial model and everything random.
    pub seed: u64,
}

impl Setup {
    /// The studies' network: the small network of the product behind a stem that halves the image, so that a round costs a quarter. `width` is
    /// the first stage's channels, a multiple of 8; 16 is the small network's.
    #[must_use]
    pub fn network(input: InputShape, width: u32) -> NetworkManifest {
        let body = Body::ResNet {
            stem: Stem::Stride2,
            stage_channels: vec![width, 2 * width, 4 * width],
            stage_blocks: vec![1, 1, 1],
            groups: 8,
        };
        NetworkManifest { input, classes: CLASSES.map(str::to_owned).to_vec(), body }
    }

    /// The studies' training plan: one local epoch of batches of 16 a round.
    #[must_use]
    pub fn plan(learning_rate: f32) -> TrainingPlan {
        TrainingPlan {
            local_epochs: 1,
            batch_size: 16,
            learning_rate,
            momentum: 0.9,
            weight_decay: 0.0,
            proximal_mu: 0.0,
            augmentation: Augmentation::none(),
            class_balance: ClassBalance::WeightedLoss,
            early_stopping_epochs: 0,
            privacy: None,
            seed: 1,
        }
    }

    /// The federation of this setup, on one thread, with float32 both ways.
    ///
    /// # Errors
    /// When the data cannot be dealt out so.
    pub fn federation<'a>(
        &self,
        data: &'a Dataset,
        training: &'a dyn LocalTraining,
        aggregation: &'a dyn Aggregation,
    ) -> Result<Federation<'a>> {
        let split = SplitPlan { label_skew: self.label_skew, ..SplitPlan::even(self.sites, self.seed) };
        Ok(Federation {
            network: self.network.clone(),
            sites: split.deal(&data.training)?.into_iter().map(Site::honest).collect(),
            test: &data.test,
            training,
            channel: Channel::float32(),
            clip: ClipRule::Fixed,
            aggregation,
            optimizer: ServerOptimizer::FedAvg,
            voting: None,
            downlink: Downlink::Float32,
            rounds: self.rounds,
            seed: self.seed,
            threads: 1,
        })
    }
}

/// A channel on the command line: `float32`, `plain:BITS[:ef]`, or `secure:BITS:KEPT_PERMILLE[:ef]`. Clip norm 1 and a reference of one image until
/// a study sets them.
impl FromStr for Channel {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (parts, error_feedback) = match parts.as_slice() {
            [rest @ .., "ef"] => (rest, true),
            all => (all, false),
        };
        Ok(match parts {
            ["float32"] if !error_feedback => Self::float32(),
            ["plain", bits] => Self::Plain(CodecPlan { bits: bits.parse()?, clip_norm: 1.0, error_feedback }),
            ["secure", bits, kept] => Self::Secure(SecureCodecPlan {
                bits: bits.parse()?,
                clip_norm: 1.0,
                error_feedback,
                kept_permille: kept.parse()?,
                reference_examples: 1,
                noise: None,
            }),
            _ => bail!("expected float32, plain:BITS[:ef] or secure:BITS:KEPT_PERMILLE[:ef], got {text:?}"),
        })
    }
}
