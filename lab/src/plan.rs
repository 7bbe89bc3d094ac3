//! What a federation on this machine is to be.

use crate::gateway::Access;
use crate::task::TaskKind;
use medinet_model::{ClassBalance, TrainingPlan};
use medinet_privacy::{DpSgdPlan, Epsilon, PrivacyLimit};
use medinet_types::SiteId;
use std::path::PathBuf;

/// What to set up.
#[derive(Debug, Clone)]
pub struct FederationPlan {
    /// Where everything lies; must not exist yet.
    pub folder: PathBuf,
    /// Decides initial parameters, shuffling, and the sites' keys: the same seed gives the same model on CPUs with the same vector
    /// instructions.
    pub seed: u64,
    /// Training rounds.
    pub rounds: u32,
    /// Passes over the data in each round.
    pub local_epochs: u32,
    /// How updates become one.
    pub updates: Updates,
    /// The hospitals.
    pub sites: Vec<SitePlan>,
    /// What is trained.
    pub task: TaskKind,
    /// Which broker.
    pub broker: BrokerKind,
    /// Whether sites train on a GPU where one is there.
    pub gpu: bool,
    /// Differential privacy; none trains without.
    pub privacy: Option<Privacy>,
}

impl FederationPlan {
    /// How a site trains, were it to do `epochs` passes at once.
    pub(crate) fn training(&self, epochs: u32) -> TrainingPlan {
        let plain = self.task.training(epochs, self.seed);
        match &self.privacy {
            Some(Privacy { noise: Noise::Training(plan), .. }) => {
                TrainingPlan { class_balance: ClassBalance::None, privacy: Some(*plan), ..plain }
            }
            // Noise inside the sum is nothing to training.
            Some(Privacy { noise: Noise::Sum { .. }, .. }) | None => plain,
        }
    }
}

/// Private training in every round, and what the sites give for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Privacy {
    /// Where the noise is.
    pub noise: Noise,
    /// The sites' limit for all rounds, at the round's delta.
    pub max_epsilon_total: Epsilon,
}

/// Where a private round has its noise, and what that costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Noise {
    /// In each site's training.
    Training(DpSgdPlan),
    /// Inside the sum; only with secure aggregation.
    Sum {
        /// What a round costs, at most, and at which delta.
        limit: PrivacyLimit,
        /// Standard deviation of the noise that is counted over what one patient can move the sum by.
        noise_multiplier: f64,
        /// How many sites' noise is counted.
        honest_survivors: u32,
    },
}

impl Noise {
    /// What a round costs, at most.
    #[must_use]
    pub fn limit(&self) -> PrivacyLimit {
        match self {
            Self::Training(plan) => PrivacyLimit { epsilon: plan.epsilon, delta: plan.delta },
            Self::Sum { limit, .. } => *limit,
        }
    }
}

/// How updates become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Updates {
    /// The aggregator reads each; bits of a quantized coordinate, 1 to 8; 32 sends float32.
    Plain {
        /// Bits.
        bits: u8,
    },
    /// Secure aggregation; bits of a coordinate before the sum, 1 to 8.
    Secure {
        /// Bits.
        bits: u8,
        /// How many of 1,000 coordinates are sent, 1 to 1000.
        kept_permille: u16,
        /// How many sites a session may lose.
        losses: u16,
    },
    /// Secure aggregation in random groups, and the median of their means.
    Groups {
        /// Bits.
        bits: u8,
        /// The fewest sites of a group.
        sites: u16,
    },
}

/// One hospital.
#[derive(Debug, Clone)]
pub struct SitePlan {
    /// Its name.
    pub id: SiteId,
    /// Where its studies come from.
    pub source: Source,
    /// Its labels by accession number.
    pub labels_csv: PathBuf,
}

/// Where a hospital's studies come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A PACS over DICOMweb with basic authentication.
    Dicomweb {
        /// Root of the service.
        url: String,
        /// User.
        user: String,
        /// File with the password.
        password_file: PathBuf,
    },
    /// A PACS over DICOMweb behind a gateway with TLS, which asks for a token or a certificate.
    Gateway(Access),
    /// A watched folder.
    Folder(PathBuf),
}

/// Which broker stands in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerKind {
    /// MediNet's.
    Own,
    /// Debian's Mosquitto with the files that MediNet's broker writes for it, as in `config/mosquitto`.
    Mosquitto,
}
