//! What the server and the honest sites do about it.

use crate::data::{Dataset, Images};
use crate::federation::{Aggregation, Council, GroupMean, Voting, figures};
use crate::key;
use crate::split::SplitPlan;
use anyhow::{Result, ensure};
use medinet_model::{ModelParameters, NetworkManifest};
use medinet_robust::{Means, NormLimit, Rule, Weiszfeld, partition};
use medinet_training::InMemoryData;
use serde::{Deserialize, Serialize};

/// The rules over groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleKind {
    /// The mean, each group's mean clipped to the groups' median norm.
    ClippedMean,
    /// Coordinate-wise.
    Median,
    /// Coordinate-wise.
    TrimmedMean,
    /// Geometric.
    GeometricMedian,
    /// Krum.
    Krum,
    /// Multi-Krum.
    MultiKrum,
}

/// A defence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Defence {
    /// How deltas are aggregated.
    pub rule: Aggregated,
    /// Whether the sites vote on each round's model.
    pub vote: bool,
}

/// How deltas are aggregated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aggregated {
    /// The mean of all, without a bound on norms.
    Unbounded,
    /// The mean of all, each site's delta clipped, and the mean scaled down where it is longer than honest sites make one: what the product does.
    Bounded,
    /// The mean of all, each site's delta clipped, which is up to the site; the mean is left as long as it is.
    SitesBounded,
    /// A rule over random groups of this many sites, each site's delta clipped.
    Groups {
        /// The least number of sites in a group.
        sites: usize,
        /// The rule.
        rule: RuleKind,
    },
}

impl RuleKind {
    /// All.
    pub const ALL: [Self; 6] = [
        Self::ClippedMean,
        Self::Median,
        Self::TrimmedMean,
        Self::GeometricMedian,
        Self::Krum,
        Self::MultiKrum,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::ClippedMean => "clipped mean",
            Self::Median => "median",
            Self::TrimmedMean => "trimmed mean",
            Self::GeometricMedian => "geometric median",
            Self::Krum => "Krum",
            Self::MultiKrum => "multi-Krum",
        }
    }

    /// The rule over `groups` groups against `feared` bad ones, or as many as it can withstand; none where that is not one,
    /// or where it is the same as the median.
    fn rule(self, groups: usize, feared: usize) -> Option<(Rule, NormLimit)> {
        let most = |needed: usize, each: usize| {
            Some(feared.min(groups.checked_sub(needed)? / each)).filter(|f| *f > 0)
        };
        let rule = match self {
            Self::ClippedMean => return Some((Rule::Mean, NormLimit::MedianTimes(1.0))),
            Self::Median => Rule::Median,
            Self::TrimmedMean => Rule::TrimmedMean { faulty: most(2, 2)? },
            Self::GeometricMedian => Rule::GeometricMedian(Weiszfeld::default()),
            Self::Krum => Rule::Krum { faulty: most(3, 2)? },
            Self::MultiKrum => Rule::MultiKrum { faulty: most(3, 2)? },
        };
        Some((rule, NormLimit::Unlimited))
    }
}

impl Defence {
    /// As tables and the command line name it.
    #[must_use]
    pub fn name(self) -> String {
        let vote = if self.vote { " + vote" } else { "" };
        match self.rule {
            Aggregated::Unbounded => format!("mean, no bound{vote}"),
            Aggregated::Bounded => format!("mean, norm bound{vote}"),
            Aggregated::SitesBounded => format!("mean, norm bound at the sites only{vote}"),
            Aggregated::Groups { sites, rule } => format!("{} of {sites}{vote}", rule.title()),
        }
    }

    /// The aggregation over a federation of `sites`, of which `feared` may be bad.
    ///
    /// # Errors
    /// When the rule cannot be applied to so few groups.
    pub(super) fn aggregation(self, sites: usize, feared: usize) -> Result<GroupRule> {
        let Aggregated::Groups { sites: least, rule } = self.rule else {
            return Ok(GroupRule {
                name: self.name(),
                least: sites,
                rule: Rule::Mean,
                limit: NormLimit::Unlimited,
                keeps_length: self.rule == Aggregated::SitesBounded,
            });
        };
        let found = rule.rule(sites / least.max(1), feared);
        ensure!(found.is_some(), "{} cannot be applied to {sites} sites", self.name());
        let (rule, limit) = found.unwrap_or((Rule::Mean, NormLimit::Unlimited));
        Ok(GroupRule { name: self.name(), least, rule, limit, keeps_length: false })
    }
}

/// Random groups, drawn anew in each round, and a rule over their means, which all count the same.
pub(super) struct GroupRule {
    name: String,
    least: usize,
    rule: Rule,
    limit: NormLimit,
    /// Whether a mean that the server has scaled down is as long as it was again.
    keeps_length: bool,
}

impl Aggregation for GroupRule {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn groups(&self, sites: usize, round: u32, seed: u64) -> Vec<Vec<usize>> {
        // Refused only where there are fewer sites than a group takes; then they are one group.
        partition(&key(seed, "groups", &[round.into()]), sites, self.least)
            .unwrap_or_else(|_| vec![(0..sites).collect()])
    }

    fn combine(&self, groups: &[GroupMean]) -> Result<Vec<f32>> {
        if let [only] = groups {
            let mut delta = only.delta.clone();
            if let (true, Some(shortened)) = (self.keeps_length, only.shortened) {
                let factor = shortened.norm / shortened.limit;
                delta.iter_mut().for_each(|value| *value *= factor);
            }
            return Ok(delta);
        }
        let means = Means::equal(groups.iter().map(|group| group.delta.clone()).collect())?;
        Ok(self.rule.combine(means, self.limit)?)
    }
}

/// Sites that measure each candidate on images that they keep for it, and take it when at least half say yes, by the
/// product's defaults. An honest site says no when AUROC or accuracy has fallen too far below the best that it took; dishonest ones always say yes.
pub(super) struct Validators {
    honest: Vec<InMemoryData>,
    dishonest: usize,
}

/// How far AUROC may fall on a site's own images: they are few. As `config/appliance.toml`.
const AUROC_MAY_FALL: f64 = 0.05;
/// The same of accuracy.
const ACCURACY_MAY_FALL: f64 = 0.1;
/// The least AUROC.
const LEAST_AUROC: f64 = 0.5;

impl Validators {
    /// Deals `images` out evenly; the first `dishonest` sites of `sites` do not measure.
    pub(super) fn new(images: &Images, sites: usize, dishonest: usize, seed: u64) -> Result<Self> {
        let dealt = SplitPlan::even(sites, seed).deal(images)?;
        Ok(Self { honest: dealt.iter().skip(dishonest).map(Images::to_training_data).collect(), dishonest })
    }
}

impl Voting for Validators {
    fn council<'a>(&'a self, network: &'a NetworkManifest) -> Box<dyn Council + 'a> {
        Box::new(Sitting { of: self, network, best: vec![(0.0, 0.0); self.honest.len()] })
    }
}

struct Sitting<'a> {
    of: &'a Validators,
    network: &'a NetworkManifest,
    /// Best AUROC and accuracy that each honest site has seen in a model that was taken.
    best: Vec<(f64, f64)>,
}

impl Council for Sitting<'_> {
    fn accepts(&mut self, candidate: &ModelParameters) -> Result<bool> {
        let mut seen = Vec::new();
        for data in &self.of.honest {
            let figures = figures(self.network, candidate, data)?;
            seen.push((figures.auroc.estimate, figures.accuracy.estimate));
        }
        let good = |(seen, best): (&(f64, f64), &(f64, f64))| {
            seen.0 >= LEAST_AUROC && seen.0 >= best.0 - AUROC_MAY_FALL && seen.1 >= best.1 - ACCURACY_MAY_FALL
        };
        let yes = self.of.dishonest + seen.iter().zip(&self.best).filter(|pair| good(*pair)).count();
        let accepted = 2 * yes >= self.of.dishonest + seen.len();
        if accepted {
            for (best, seen) in self.best.iter_mut().zip(seen) {
                *best = (best.0.max(seen.0), best.1.max(seen.1));
            }
        }
        Ok(accepted)
    }
}

/// The set with images for validators: its own, or every eleventh patient's where it has none.
pub(super) fn with_validation(set: &Dataset) -> Dataset {
    let mut set = set.clone();
    if set.validation.is_empty() {
        let mut patients: Vec<u32> = set.training.patients().to_vec();
        patients.sort_unstable();
        patients.dedup();
        let kept = |index: &usize| {
            let place = patients.binary_search(&set.training.patients()[*index]).unwrap_or(0);
            place.is_multiple_of(11)
        };
        let (validation, training): (Vec<usize>, Vec<usize>) = (0..set.training.len()).partition(kept);
        set.validation = set.training.select(&validation);
        set.training = set.training.select(&training);
    }
    set
}
