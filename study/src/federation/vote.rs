//! Whether the sites take a round's model.

use anyhow::Result;
use medinet_model::{ModelParameters, NetworkManifest};

/// Sites that measure each candidate before it becomes everybody's model.
pub trait Voting: Sync {
    /// Begins a run: nothing has been measured yet.
    fn council<'a>(&'a self, network: &'a NetworkManifest) -> Box<dyn Council + 'a>;
}

/// A run's votes.
pub trait Council {
    /// Whether the candidate becomes the model; if not, the old one stays. The first one asked about is the initial
    /// model, whose answer does not count.
    ///
    /// # Errors
    /// When the candidate cannot be measured.
    fn accepts(&mut self, candidate: &ModelParameters) -> Result<bool>;
}
