//! The one accumulator of a round, and whose updates are in it.

use medinet_types::SiteId;
use medinet_update::{Accumulator, Expected, Origin, decode};
use medinet_wire::message::{RefusalReason, RoundPlan};
use std::collections::BTreeSet;

/// Sum of the updates that have been added since the program started.
#[derive(Debug, Default)]
pub(crate) struct Sum {
    /// Made with the first update, so that a round that waits costs nothing.
    accumulator: Option<Accumulator>,
    sites: BTreeSet<SiteId>,
}

/// Whose update, what it claims, and what the round and the plan allow.
pub(crate) struct Claim<'a> {
    pub(crate) site: &'a SiteId,
    pub(crate) round: &'a RoundPlan,
    /// Training images that the site's signed offer names.
    pub(crate) examples: u64,
    /// Parameters of the network.
    pub(crate) parameters: usize,
}

impl Sum {
    /// An upper bound on any honest update's length: float32 that does not compress, block steps and header.
    pub(crate) fn max_update_bytes(parameters: usize) -> u64 {
        parameters as u64 * 5 + 4096
    }

    pub(crate) fn has(&self, site: &SiteId) -> bool {
        self.sites.contains(site)
    }

    /// Checks an update against the round and its offer, and adds it; on an error the sum is as it was.
    pub(crate) fn add(&mut self, claim: &Claim<'_>, bytes: &[u8]) -> Result<(), RefusalReason> {
        let malformed = |error: String| RefusalReason::Malformed(error);
        let Some(codec) = claim.round.aggregation.plain() else {
            return Err(malformed("this round takes updates under masks only".into()));
        };
        let base = claim.round.base.digest;
        let expected = Expected {
            parameters: claim.parameters,
            plan: codec,
            origin: Origin { base, round: claim.round.round },
            max_examples: claim.examples,
        };
        let update = decode(bytes, &expected).map_err(|e| malformed(e.to_string()))?;
        if update.examples() != claim.examples {
            let (offer, got) = (claim.examples, update.examples());
            return Err(malformed(format!("the offer names {offer} examples, the update {got}")));
        }
        let accumulator = self.accumulator.get_or_insert_with(|| Accumulator::new(claim.parameters));
        accumulator.add(&update).map_err(|e| malformed(e.to_string()))?;
        self.sites.insert(claim.site.clone());
        Ok(())
    }

    /// The example-weighted mean delta; zeros when nothing was added.
    pub(crate) fn mean(&self, parameters: usize) -> Vec<f32> {
        let mean = self.accumulator.as_ref().and_then(|accumulator| accumulator.mean().ok());
        mean.unwrap_or_else(|| vec![0.0; parameters])
    }
}
