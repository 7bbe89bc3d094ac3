//! Who is in which group.

use medinet_robust::{RobustError, partition};
use medinet_types::{Digest, RoundNumber, SiteId, TaskId};
use std::collections::BTreeSet;

/// Deals sites out into groups by a secret that no site knows.
///
/// A group's name is a part of its session, so the groups must be drawn before anything fresh of the sites is known that could
/// be the seed. With a secret of the aggregator's no site can foretell with whom it will be when it decides to be ready, and a
/// state machine without randomness still deals the same way twice. It does not bind the aggregator, which could draw until it
/// likes the groups: a site's privacy does not depend on that, since its policy is one for its own group.
#[derive(Clone, Default)]
pub(crate) struct Dealer(Option<[u8; 32]>);

impl std::fmt::Debug for Dealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Dealer(..)")
    }
}

impl Dealer {
    pub(crate) fn with(secret: [u8; 32]) -> Self {
        Self(Some(secret))
    }

    /// The groups of an attempt, each of at least `least` sites; one of all where `least` is `None`.
    pub(crate) fn deal(
        &self,
        task: &TaskId,
        round: RoundNumber,
        attempt: u32,
        cohort: &BTreeSet<SiteId>,
        least: Option<u32>,
    ) -> Result<Vec<BTreeSet<SiteId>>, String> {
        let Some(least) = least else { return Ok(vec![cohort.clone()]) };
        let secret = self.0.as_ref().ok_or("the aggregator has no secret to deal groups by")?;
        let (round, attempt) = (round.0.to_le_bytes(), attempt.to_le_bytes());
        let mut parts: Vec<&[u8]> =
            vec![b"medinet group seed 1", secret, task.as_str().as_bytes(), &round, &attempt];
        parts.extend(cohort.iter().map(|site| site.as_str().as_bytes()));
        let seed = Digest::of_parts(&parts).0;
        // In the order of names, whatever the order of arrival.
        let sites: Vec<&SiteId> = cohort.iter().collect();
        let groups = partition(&seed, sites.len(), usize::try_from(least).unwrap_or(usize::MAX))
            .map_err(|error: RobustError| error.to_string())?;
        Ok(groups.into_iter().map(|group| group.into_iter().map(|n| sites[n].clone()).collect()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::site;

    fn deal(dealer: &Dealer, round: u32, attempt: u32) -> Vec<BTreeSet<SiteId>> {
        let cohort = (0..12).map(site).collect();
        dealer.deal(&TaskId::new("t").unwrap(), RoundNumber(round), attempt, &cohort, Some(3)).unwrap()
    }

    #[test]
    fn groups_follow_from_secret_round_and_attempt() {
        let dealer = Dealer::with([1; 32]);
        let groups = deal(&dealer, 1, 1);
        assert_eq!(groups.len(), 4);
        assert_eq!(groups.iter().flatten().collect::<BTreeSet<_>>().len(), 12);
        assert_eq!(groups, deal(&dealer, 1, 1));
        assert_ne!(groups, deal(&dealer, 1, 2));
        assert_ne!(groups, deal(&dealer, 2, 1));
        assert_ne!(groups, deal(&Dealer::with([2; 32]), 1, 1));
    }

    #[test]
    fn without_a_secret_nobody_is_dealt_out() {
        let cohort: BTreeSet<SiteId> = (0..4).map(site).collect();
        let task = TaskId::new("t").unwrap();
        let deal = |least| Dealer::default().deal(&task, RoundNumber(1), 1, &cohort, least);
        assert!(deal(Some(2)).is_err());
        assert_eq!(deal(None).unwrap(), vec![cohort.clone()]);
    }
}
