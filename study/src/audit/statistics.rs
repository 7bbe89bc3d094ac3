//! What a membership attack's scores amount to: curves, rates with intervals, a test whether chance explains them, and lower
//! bounds on epsilon.

use crate::random;
use anyhow::{Result, ensure};
use medinet_metrics::{Interval, auroc_interval};
use rand_core::Rng as _;
use serde::Serialize;

/// The false-alarm rates at which attacks are measured: what an attacker who must be sure can afford (Carlini et al. 2022, section IV).
pub const FALSE_ALARMS: [f64; 2] = [0.001, 0.01];
/// How often, at most, an attack on a model that keeps no trace of its members is called a leak: over all its tests together.
pub const FAMILY_WISE_ERROR: f64 = 0.05;
/// How sure the lower bounds on epsilon are.
pub(super) const CONFIDENCE: f64 = 0.95;

/// The Clopper-Pearson interval (1934) of a proportion at a two-sided confidence of `confidence`, 0 to 1.
///
/// # Errors
/// When there are no trials, more successes than trials, or the confidence is none.
pub fn clopper_pearson(successes: u64, trials: u64, confidence: f64) -> Result<Interval> {
    ensure!(trials > 0 && successes <= trials, "expected at most {trials} of trials, got {successes}");
    ensure!(confidence > 0.0 && confidence < 1.0, "expected a confidence between 0 and 1, got {confidence}");
    let tail = (1.0 - confidence) / 2.0;
    let (k, n) = (successes as f64, trials as f64);
    // P[X >= k] = I_p(k, n - k + 1) rises with p.
    let low = if successes == 0 { 0.0 } else { root(|p| incomplete_beta(k, n - k + 1.0, p) - tail) };
    let high =
        if successes == trials { 1.0 } else { root(|p| incomplete_beta(k + 1.0, n - k, p) - (1.0 - tail)) };
    Ok(Interval { estimate: k / n, low, high })
}

/// How probable it is that chance puts at least `found` of `members` members above the `rank`-th highest of `others` others, where members and
/// others are exchangeable: the exact test that the attack knows nothing. 0 to 1, ties aside, which can only raise it.
///
/// The threshold is one of the scores, so the number above it is not binomial but negative hypergeometric (Johnson, Kemp, Kotz 2005,
/// *Univariate Discrete Distributions*, chapter 6): with n members, m others and rank r,
/// `P[X = k] = C(k + r - 1, k) C(n - k + m - r, n - k) / C(n + m, n)`. The rank is 1 to `others`.
#[must_use]
pub fn chance_of_finding(found: u64, members: u64, others: u64, rank: u64) -> f64 {
    if found == 0 || rank == 0 || rank > others {
        return 1.0;
    }
    let (n, m, r) = (members as f64, others as f64, rank as f64);
    let ln_choose =
        |a: f64, b: f64| libm::lgamma(a + 1.0) - libm::lgamma(b + 1.0) - libm::lgamma(a - b + 1.0);
    let ln_all = ln_choose(n + m, n);
    // Each term by itself: the first ones can be too small for a number while the sum is close to 1.
    let term = |k: u64| {
        let k = k as f64;
        (ln_choose(k + r - 1.0, k) + ln_choose(n - k + m - r, n - k) - ln_all).exp()
    };
    (found..=members).map(term).sum::<f64>().min(1.0)
}

/// The 95% interval of the share of members above the threshold that `rank` of `others` others lie at or above in the mean, a share
/// `rank / (others + 1)` of them, where `found` of `members` members were above the `rank`-th highest of `others` others. So the
/// threshold is random, as is what is above it.
///
/// At a small share of false alarms u the ROC curve is taken for a line, R(u) = c u. Scores above the threshold then come as two Poisson processes,
/// the count of members before the r-th other is negative binomial, and c is c = (m + 1) / (n + 1) o / (1 - o), with o the
/// chance that a score is a member's. The limits of o invert the negative binomial's tails, as Clopper and Pearson (1934) do the binomial's: they are
/// quantiles of Beta(found, r) below and of Beta(found + 1, r) above. Where the curve is concave, as of an attack that ranks by likelihood, it moves
/// less with the threshold than the line does, and the interval is wide enough; a curve that bends upwards there is covered less often.
///
/// # Errors
/// When there are no members, more found than members, or `rank` is not 1 to `others`.
pub fn share_interval(found: u64, members: u64, others: u64, rank: u64) -> Result<Interval> {
    ensure!(members > 0 && found <= members, "expected at most {members} of members, got {found}");
    ensure!((1..=others).contains(&rank), "expected a rank from 1 to {others}, got {rank}");
    const TAIL: f64 = 0.025;
    let (x, n, r) = (found as f64, members as f64, rank as f64);
    // With c r / (m + 1) the number of others cancels.
    let share = |x: f64, tail: f64| {
        let odds = root(|o| incomplete_beta(x, r, o) - tail);
        (odds / (1.0 - odds).max(f64::MIN_POSITIVE) * r / (n + 1.0)).min(1.0)
    };
    let low = if found == 0 { 0.0 } else { share(x, TAIL) };
    let high = if found == members { 1.0 } else { share(x + 1.0, 1.0 - TAIL) };
    Ok(Interval { estimate: x / n, low, high })
}

/// How probable it is that chance gives members ranks as high as these, where members and others are exchangeable: the rank-sum test (Wilcoxon 1945;
/// Mann and Whitney 1947), one-sided, by the normal distribution with corrections for ties and continuity. `auc` is that of the scores.
fn chance_of_auc(auc: f64, scores: &[f64], members: usize) -> f64 {
    let mut sorted = scores.to_vec();
    sorted.sort_by(f64::total_cmp);
    let all = sorted.len() as f64;
    let tied = sorted.chunk_by(|a, b| a == b).map(|run| (run.len() as f64).powi(3) - run.len() as f64);
    let pairs = members as f64 * (all - members as f64);
    let variance = pairs / 12.0 * (all + 1.0 - tied.sum::<f64>() / (all * (all - 1.0)));
    if variance <= 0.0 {
        // All scores are the same.
        return 1.0;
    }
    let z = (pairs * (auc - 0.5) - 0.5) / variance.sqrt();
    0.5 * libm::erfc(z / std::f64::consts::SQRT_2)
}

/// Where a function that rises from below zero to above it on 0 to 1 is zero.
fn root(function: impl Fn(f64) -> f64) -> f64 {
    let (mut low, mut high) = (0.0f64, 1.0f64);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if function(middle) < 0.0 { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The regularised incomplete beta function I_x(a, b), by its continued fraction (NIST Digital Library of Mathematical
/// Functions, 8.17.22) with the modified Lentz method.
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    if x > (a + 1.0) / (a + b + 2.0) {
        // The fraction converges quickly on this side alone (8.17.4).
        return 1.0 - incomplete_beta(b, a, 1.0 - x);
    }
    let ln_beta = libm::lgamma(a) + libm::lgamma(b) - libm::lgamma(a + b);
    let front = (a * x.ln() + b * (-x).ln_1p() - ln_beta).exp() / a;
    let (mut c, mut d) = (1.0f64, 1.0 - (a + b) * x / (a + 1.0));
    d = 1.0 / if d.abs() < TINY { TINY } else { d };
    let mut fraction = d;
    for m in 1..2000 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut change = 1.0;
        for term in [even, odd] {
            d = 1.0 + term * d;
            d = 1.0 / if d.abs() < TINY { TINY } else { d };
            c = 1.0 + term / c;
            c = if c.abs() < TINY { TINY } else { c };
            change = c * d;
            fraction *= change;
        }
        if (change - 1.0).abs() < 1e-14 {
            break;
        }
    }
    front * fraction
}

/// A point of a receiver operating characteristic.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// Share of others that count as members.
    pub false_alarms: f64,
    /// Share of members that are found.
    pub found: f64,
}

/// How many members an attacker finds who raises few false alarms.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Found {
    /// The largest share of false alarms.
    pub allowed: f64,
    /// The threshold on the score that raises at most these.
    pub threshold: f64,
    /// False alarms at this threshold.
    pub false_alarms: u64,
    /// Members found at it.
    pub members: u64,
    /// Share of members found, with its 95% interval, as [`share_interval`].
    pub share: Interval,
    /// Share of members that chance finds in the mean: `(false_alarms + 1) / (others + 1)` where no scores are equal, a little above `allowed`
    /// where others are many and well above it where they are few.
    pub chance: f64,
    /// How probable as many members are by chance, as [`chance_of_finding`]; not corrected for other tests.
    pub p: f64,
}

/// Lower bounds on the epsilon of whatever made the model, at 95% confidence: the threshold was chosen on one half of the
/// patients and measured on the other.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct EpsilonBound {
    /// The delta of the claim that is tested.
    pub delta: f64,
    /// By the two error rates (Kairouz, Oh, Viswanath 2015; Jagielski, Ullman, Oprea 2020; Nasr et al. 2021), as
    /// [`epsilon_of_rates`]. It takes patients for independent trials, which is exact for one patient in many trainings and an
    /// approximation for many patients in one.
    pub by_rates: f64,
    /// By the number of right guesses in one training (Steinke, Nasr, Jagielski 2023): valid without that assumption, and weaker. None where membership
    /// was not decided by fair coins.
    pub one_run: Option<f64>,
    /// Guesses on the measuring half.
    pub guesses: u64,
    /// Those of them that are right.
    pub right: u64,
}

/// An attack's figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AttackFigures {
    /// Members among the units that were scored.
    pub members: u64,
    /// Others.
    pub others: u64,
    /// Area under the ROC curve: the chance that a member scores above an other (DeLong's 95% interval).
    pub auc: Interval,
    /// How probable as high an area is by chance: the rank-sum test, one-sided, not corrected for other tests.
    pub auc_p: f64,
    /// How probable the least of these probabilities, over [`FALSE_ALARMS`] and the area, is by chance: the least times their number (Bonferroni). An
    /// attack shows a leak where this is at most [`FAMILY_WISE_ERROR`].
    pub p: f64,
    /// Members found at each of [`FALSE_ALARMS`].
    pub found: Vec<Found>,
    /// Lower bounds on epsilon.
    pub epsilon: EpsilonBound,
    /// The ROC curve, thinned for drawing.
    pub roc: Vec<Point>,
}

/// Whether membership was decided by a fair coin for each unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assignment {
    /// It was: one-run bounds hold.
    FairCoins,
    /// It was given.
    Given,
}

impl AttackFigures {
    /// The figures of scores, higher for members.
    ///
    /// # Errors
    /// When scores are not finite, or there are no members or no others.
    pub fn of(
        scores: &[f64],
        member: &[bool],
        assignment: Assignment,
        delta: f64,
        seed: u64,
    ) -> Result<Self> {
        ensure!(scores.len() == member.len(), "expected {} memberships, got {}", scores.len(), member.len());
        let auc = auroc_interval(scores, member)?;
        let mut others: Vec<f64> = of(scores, member, false);
        others.sort_by(|a, b| b.total_cmp(a));
        let members = of(scores, member, true);
        let found = FALSE_ALARMS.map(|allowed| found(&members, &others, allowed)).into_iter();
        let found = found.collect::<Result<Vec<_>>>()?;
        let auc_p = chance_of_auc(auc.estimate, scores, members.len());
        Ok(Self {
            members: members.len() as u64,
            others: others.len() as u64,
            auc,
            auc_p,
            p: family_wise(auc_p, &found),
            found,
            epsilon: epsilon(scores, member, assignment, delta, seed)?,
            roc: thinned(&curve(scores, member)),
        })
    }

    /// Whether chance does not explain the figures: at most [`FAMILY_WISE_ERROR`] of attacks that know nothing would say so.
    #[must_use]
    pub fn shows_leak(&self) -> bool {
        self.p <= FAMILY_WISE_ERROR
    }
}

/// The least probability of an attack's tests, corrected for their number (Bonferroni; Holm's 1979 procedure rejects a first one just then).
fn family_wise(auc_p: f64, found: &[Found]) -> f64 {
    let least = found.iter().map(|found| found.p).fold(auc_p, f64::min);
    (least * (found.len() + 1) as f64).min(1.0)
}

fn of(scores: &[f64], member: &[bool], wanted: bool) -> Vec<f64> {
    scores.iter().zip(member).filter(|(_, member)| **member == wanted).map(|(score, _)| *score).collect()
}

/// Members above the lowest threshold that at most `allowed` of the others are above; `others` from high to low.
fn found(members: &[f64], others: &[f64], allowed: f64) -> Result<Found> {
    // Down, and a hair up: 0.01 of 300 is 3.
    let most = (allowed * others.len() as f64 + 1e-9).floor() as usize;
    let threshold = others.get(most).copied().unwrap_or(f64::NEG_INFINITY);
    let above = |scores: &[f64]| scores.iter().filter(|score| **score > threshold).count() as u64;
    let found = above(members);
    // The threshold is the score of the other of this rank, so it is random too.
    let (n, m, rank) = (members.len() as u64, others.len() as u64, most as u64 + 1);
    Ok(Found {
        allowed,
        threshold,
        false_alarms: above(others),
        members: found,
        share: share_interval(found, n, m, rank)?,
        chance: rank as f64 / (m + 1) as f64,
        p: chance_of_finding(found, n, m, rank),
    })
}

/// All points of the ROC curve from (0, 0) to (1, 1); equal scores make one step.
fn curve(scores: &[f64], member: &[bool]) -> Vec<Point> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let members = member.iter().filter(|member| **member).count() as f64;
    let others = member.len() as f64 - members;
    let (mut hits, mut alarms) = (0.0, 0.0);
    let mut points = vec![Point { false_alarms: 0.0, found: 0.0 }];
    for (place, &index) in order.iter().enumerate() {
        if member[index] {
            hits += 1.0
        } else {
            alarms += 1.0
        }
        let next = order.get(place + 1).map(|next| scores[*next]);
        if next != Some(scores[index]) {
            points.push(Point { false_alarms: alarms / others, found: hits / members });
        }
    }
    points
}

/// At most some 200 points, evenly on a logarithmic axis: nothing that a drawing shows is lost.
fn thinned(points: &[Point]) -> Vec<Point> {
    let mut kept: Vec<Point> = Vec::new();
    let far = |a: f64, b: f64| (a.max(1e-5).ln() - b.max(1e-5).ln()).abs() > 0.08;
    for (place, point) in points.iter().enumerate() {
        let last = kept.last();
        if place + 1 == points.len()
            || last.is_none_or(|l| far(l.false_alarms, point.false_alarms) || far(l.found, point.found))
        {
            kept.push(*point);
        }
    }
    kept
}

/// What error rates say of epsilon: if a mechanism is (epsilon, delta)-differentially private, every test of membership has
/// `found <= e^epsilon false_alarms + delta` and `1 - false_alarms <= e^epsilon (1 - found) + delta` (Kairouz, Oh, Viswanath 2015, theorem 2.1).
/// The least epsilon of at least 0 that the first allows for a test that finds at least `found` and alarms falsely at most at `false_alarms`;
/// the second is the same with the guesses exchanged.
#[must_use]
pub fn epsilon_of_rates(found: f64, false_alarms: f64, delta: f64) -> f64 {
    if found <= delta {
        return 0.0;
    }
    ((found - delta) / false_alarms.max(f64::MIN_POSITIVE)).ln().max(0.0)
}

/// What is guessed: members above a threshold, or others below it.
#[derive(Clone, Copy)]
struct Test {
    threshold: f64,
    says_member: bool,
}

impl Test {
    /// Right and wrong guesses, and how many could be right and wrong.
    fn counts(self, scores: &[f64], member: &[bool]) -> (u64, u64, u64, u64) {
        let (mut right, mut wrong, mut mine, mut rest) = (0, 0, 0, 0);
        for (score, member) in scores.iter().zip(member) {
            let guessed = if self.says_member { *score > self.threshold } else { *score < self.threshold };
            let is = *member == self.says_member;
            if is {
                mine += 1
            } else {
                rest += 1
            }
            right += u64::from(guessed && is);
            wrong += u64::from(guessed && !is);
        }
        (right, wrong, mine, rest)
    }

    /// The bound by rates, each at 97.5%, so that both hold at 95%.
    fn bound(self, scores: &[f64], member: &[bool], delta: f64) -> Result<f64> {
        let (right, wrong, mine, rest) = self.counts(scores, member);
        let found = clopper_pearson(right, mine, CONFIDENCE)?.low;
        let false_alarms = clopper_pearson(wrong, rest, CONFIDENCE)?.high;
        Ok(epsilon_of_rates(found, false_alarms, delta))
    }
}

fn epsilon(
    scores: &[f64],
    member: &[bool],
    assignment: Assignment,
    delta: f64,
    seed: u64,
) -> Result<EpsilonBound> {
    let none = EpsilonBound {
        delta,
        by_rates: 0.0,
        one_run: (assignment == Assignment::FairCoins).then_some(0.0),
        guesses: 0,
        right: 0,
    };
    let mut random = random(seed, "audit halves", &[]);
    let chooses: Vec<bool> = scores.iter().map(|_| random.next_u32() & 1 == 0).collect();
    let half = |wanted: bool| -> (Vec<f64>, Vec<bool>) {
        let of = chooses.iter().zip(scores.iter().zip(member)).filter(|(half, _)| **half == wanted);
        of.map(|(_, (score, member))| (*score, *member)).unzip()
    };
    let ((scores, member), (other_scores, other_member)) = (half(true), half(false));
    let both = |member: &[bool]| member.contains(&true) && member.contains(&false);
    if !both(&member) || !both(&other_member) {
        return Ok(none);
    }
    let mut sorted = scores.clone();
    sorted.sort_by(f64::total_cmp);
    // A hundred thresholds, denser at both ends, where the sure guesses are.
    let mut places: Vec<usize> = (0..50)
        .map(|step| (10.0f64.powf(-f64::from(step) / 12.0) * 0.5 * sorted.len() as f64) as usize)
        .flat_map(|place| [place, sorted.len() - 1 - place.min(sorted.len() - 1)])
        .collect();
    places.sort_unstable();
    places.dedup();
    let mut best: Option<(f64, Test)> = None;
    for place in places {
        for says_member in [true, false] {
            let test = Test { threshold: sorted[place.min(sorted.len() - 1)], says_member };
            let bound = test.bound(&scores, &member, delta)?;
            if best.is_none_or(|(most, _)| bound > most) {
                best = Some((bound, test));
            }
        }
    }
    let Some((_, test)) = best else { return Ok(none) };
    let (right, wrong, ..) = test.counts(&other_scores, &other_member);
    let one_run = |_| one_run_epsilon(other_scores.len() as u64, right + wrong, right, delta);
    Ok(EpsilonBound {
        delta,
        by_rates: test.bound(&other_scores, &other_member, delta)?,
        one_run: none.one_run.map(one_run),
        guesses: right + wrong,
        right,
    })
}

/// The lower bound on epsilon at 95% confidence from one training in which each of `units` was a member by a fair coin, of `guesses` guesses
/// that were made, of which `right` are right (Steinke, Nasr, Jagielski 2023, theorem 5.2 and its algorithm in appendix D).
#[must_use]
pub fn one_run_epsilon(units: u64, guesses: u64, right: u64, delta: f64) -> f64 {
    let excluded = |epsilon: f64| one_run_p(units, guesses, right, epsilon, delta) < 1.0 - CONFIDENCE;
    if guesses == 0 || !excluded(0.0) {
        return 0.0;
    }
    let (mut low, mut high) = (0.0f64, 20.0f64);
    for _ in 0..40 {
        let middle = 0.5 * (low + high);
        if excluded(middle) { low = middle } else { high = middle }
    }
    low
}

/// How probable at most so many right guesses are under (epsilon, delta).
fn one_run_p(units: u64, guesses: u64, right: u64, epsilon: f64, delta: f64) -> f64 {
    let q = 1.0 / (1.0 + (-epsilon).exp());
    let (r, n) = (guesses as f64, guesses);
    let ln_all = libm::lgamma(r + 1.0);
    let probability = |k: u64| {
        let k = k as f64;
        (ln_all - libm::lgamma(k + 1.0) - libm::lgamma(r - k + 1.0) + k * q.ln() + (r - k) * (-q).ln_1p())
            .exp()
    };
    let beta: f64 = (right..=n).map(probability).sum();
    let (mut alpha, mut sum) = (0.0f64, 0.0f64);
    for i in 1..=right {
        sum += probability(right - i);
        alpha = alpha.max(sum / i as f64);
    }
    (beta + 2.0 * alpha * delta * units as f64).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_intervals_match_known_ones() {
        // scipy.stats.binomtest(k, n).proportion_ci(method="exact"); the last one from exact binomial sums.
        for (k, n, low, high) in [
            (8, 10, 0.443_904_539_147_3, 0.974_789_274_190_9),
            (0, 20, 0.0, 0.168_433_479_134_2),
            (20, 20, 0.831_566_520_865_8, 1.0),
            (50, 100, 0.398_321_129_503_3, 0.601_678_870_496_7),
            (3, 2400, 0.000_257_854_271_5, 0.003_648_643_575_7),
        ] {
            let got = clopper_pearson(k, n, 0.95).unwrap();
            assert!((got.low - low).abs() < 1e-7 && (got.high - high).abs() < 1e-7, "{k} of {n}: {got:?}");
        }
        assert!(clopper_pearson(3, 2, 0.95).is_err());
        assert!(clopper_pearson(0, 0, 0.95).is_err());
        assert!(clopper_pearson(1, 2, 1.0).is_err());
    }

    #[test]
    fn the_curve_counts_ties_once_and_the_shares_are_those_above() {
        let scores = [3.0, 2.0, 2.0, 1.0, 0.0];
        let member = [true, true, false, false, true];
        let points = curve(&scores, &member);
        let flat: Vec<(f64, f64)> = points.iter().map(|p| (p.false_alarms, p.found)).collect();
        let third = 1.0 / 3.0;
        assert_eq!(flat, [(0.0, 0.0), (0.0, third), (0.5, 2.0 * third), (1.0, 2.0 * third), (1.0, 1.0)]);
        // 300 others from 0 to 299; members at 298.5, which three others are not below... and at -1.
        let others: Vec<f64> = (0..300).rev().map(f64::from).collect();
        let at = found(&[298.5, 296.5, -1.0], &others, 0.01).unwrap();
        assert_eq!((at.threshold, at.false_alarms, at.members), (296.0, 3, 2));
        let none = found(&[298.5, 296.5, -1.0], &others, 0.001).unwrap();
        assert_eq!((none.threshold, none.false_alarms, none.members), (299.0, 0, 0));
    }

    fn uniforms(purpose: &str) -> impl FnMut() -> f64 {
        let mut random = random(7, purpose, &[]);
        move || (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// `members` and `others` from high to low: others uniform on 0 to 1, members as `member` makes them of uniform numbers.
    fn drawn(
        uniform: &mut impl FnMut() -> f64,
        (members, others): (usize, usize),
        member: impl Fn(f64) -> f64,
    ) -> (Vec<f64>, Vec<f64>) {
        let mut all = (
            (0..members).map(|_| member(uniform())).collect::<Vec<_>>(),
            (0..others).map(|_| uniform()).collect::<Vec<_>>(),
        );
        all.0.sort_by(|a, b| b.total_cmp(a));
        all.1.sort_by(|a, b| b.total_cmp(a));
        all
    }

    /// The corrected probability of an attack's scores, as [`AttackFigures::p`].
    fn p_of((members, others): &(Vec<f64>, Vec<f64>)) -> f64 {
        let scores = [members.as_slice(), others.as_slice()].concat();
        let member: Vec<bool> = (0..scores.len()).map(|index| index < members.len()).collect();
        let auc = medinet_metrics::auroc(&scores, &member).unwrap();
        let found = FALSE_ALARMS.map(|allowed| found(members, others, allowed).unwrap());
        family_wise(chance_of_auc(auc, &scores, members.len()), &found)
    }

    #[test]
    fn the_chance_of_finding_members_is_negative_hypergeometric() {
        // Two members, two others, six orders: both members above the highest other in one, at least one in three.
        assert!((chance_of_finding(2, 2, 2, 1) - 1.0 / 6.0).abs() < 1e-12);
        assert!((chance_of_finding(1, 2, 2, 1) - 0.5).abs() < 1e-12);
        assert!((chance_of_finding(1, 2, 2, 2) - 5.0 / 6.0).abs() < 1e-12);
        assert_eq!(chance_of_finding(0, 2, 2, 1), 1.0);
        // From exact sums of integers.
        for (found, members, others, rank, p) in [
            (3, 10, 20, 4, 3.064_292_029_809e-1),
            (22, 157, 143, 2, 3.766_770_709_092e-6),
            (2, 140, 500, 6, 4.748_545_604_180e-1),
            (40, 2354, 2354, 24, 2.078_815_826_121e-2),
            (54, 2354, 2354, 24, 2.426_668_271_782e-4),
        ] {
            let got = chance_of_finding(found, members, others, rank);
            assert!((got / p - 1.0).abs() < 1e-6, "{found} of {members}, {rank} of {others}: {got}");
        }
        // Terms below the smallest number do not hide the rest of the sum.
        assert!(chance_of_finding(1, 100_000, 50, 40) > 0.999_999);
    }

    #[test]
    fn the_rank_sum_test_knows_ties() {
        // Normal approximation by hand: U = 6 of 6, variance 6 / 12 (6 - 0) = 3, z = (6 - 3 - 0.5) / sqrt(3).
        let p = chance_of_auc(1.0, &[5.0, 4.0, 3.0, 2.0, 1.0], 3);
        assert!((p - 0.5 * libm::erfc(2.5 / 6.0f64.sqrt())).abs() < 1e-12);
        // Two pairs of equal scores: variance 6 / 12 (6 - 12 / 20).
        let p = chance_of_auc(1.0, &[5.0, 4.0, 4.0, 1.0, 1.0], 3);
        assert!((p - 0.5 * libm::erfc(2.5 / 5.4f64.sqrt())).abs() < 1e-12);
        assert_eq!(chance_of_auc(0.5, &[1.0; 5], 3), 1.0);
    }

    #[test]
    fn an_attack_that_knows_nothing_is_called_a_leak_at_most_once_in_twenty() {
        let mut uniform = uniforms("exchangeable");
        for (members, others, draws) in [(2354, 2354, 400), (140, 500, 600), (157, 143, 600)] {
            let mut leaks = || p_of(&drawn(&mut uniform, (members, others), |u| u)) <= FAMILY_WISE_ERROR;
            let leaks = (0..draws).filter(|_| leaks()).count();
            // Twice the deviation of a share of 5% above it.
            let most = 0.05 * f64::from(draws) + 2.0 * (0.05 * 0.95 * f64::from(draws)).sqrt();
            assert!(leaks as f64 <= most, "{members} and {others}: {leaks} of {draws}");
        }
    }

    #[test]
    fn a_leak_of_two_per_cent_is_found() {
        // 54 of 2,354 is 2.3%, above the 24th of as many others: 1% false alarms.
        assert!(3.0 * chance_of_finding(54, 2354, 2354, 24) < 0.01);
        let mut uniform = uniforms("planted");
        // 1.3% of the members score above all others, the rest as others: 2.3% are found at 1%.
        let planted = |u: f64| if u < 0.013 { 2.0 + u } else { (u - 0.013) / 0.987 };
        let found =
            (0..60).filter(|_| p_of(&drawn(&mut uniform, (2354, 2354), planted)) <= FAMILY_WISE_ERROR);
        let found = found.count();
        assert!(found >= 54, "{found} of 60");
    }

    #[test]
    fn intervals_of_shares_cover_the_truth_with_a_random_threshold() {
        type Curve = (&'static str, fn(f64) -> f64, fn(f64) -> f64);
        // A member's score of a uniform number, and the ROC curve that follows.
        let curves: [Curve; 4] = [
            ("chance", |u| u, |rate| rate),
            ("line", |u| 1.0 - u / 4.0, |rate| 4.0 * rate),
            ("root", |u| 1.0 - u * u, f64::sqrt),
            ("step", |u| if u < 0.05 { 2.0 } else { (u - 0.05) / 0.95 }, |rate| 0.05 + 0.95 * rate),
        ];
        let mut uniform = uniforms("coverage");
        for (name, member, curve) in curves {
            for (members, others, allowed) in [(1000, 1000, 0.01), (140, 500, 0.01), (157, 143, 0.01)] {
                let draws = 600;
                let covered = (0..draws).filter(|_| {
                    let (members, others) = drawn(&mut uniform, (members, others), member);
                    let found = found(&members, &others, allowed).unwrap();
                    let truth = curve(found.chance);
                    found.share.low <= truth && truth <= found.share.high
                });
                let covered = covered.count() as f64 / f64::from(draws);
                // Two deviations of 600 draws below 95%.
                assert!(covered >= 0.932, "{name}, {members} and {others}: {covered}");
            }
        }
        // Nothing and all of them have one-sided limits; what cannot be is refused.
        assert_eq!(share_interval(0, 100, 100, 1).unwrap().low, 0.0);
        assert_eq!(share_interval(100, 100, 100, 1).unwrap().high, 1.0);
        assert!(share_interval(101, 100, 100, 1).is_err());
        assert!(share_interval(1, 100, 100, 0).is_err());
        assert!(share_interval(1, 100, 100, 101).is_err());
    }

    #[test]
    fn epsilon_follows_from_rates() {
        assert!((epsilon_of_rates(0.5, 0.05, 0.0) - 10.0f64.ln()).abs() < 1e-12);
        assert!((epsilon_of_rates(0.5, 0.05, 0.1) - 8.0f64.ln()).abs() < 1e-12);
        assert_eq!(epsilon_of_rates(0.05, 0.05, 0.0), 0.0);
        assert_eq!(epsilon_of_rates(0.01, 0.0, 0.02), 0.0);
    }

    #[test]
    fn one_run_bounds_are_those_of_coins() {
        // All of 100 guesses right under pure epsilon: q^100 = 0.05, q = 0.97049, epsilon = ln(q / (1 - q)).
        let q = 0.05f64.powf(0.01);
        let expected = (q / (1.0 - q)).ln();
        assert!((one_run_epsilon(1000, 100, 100, 0.0) - expected).abs() < 1e-6);
        // Half right says nothing; a delta takes some away.
        assert_eq!(one_run_epsilon(1000, 100, 50, 0.0), 0.0);
        assert!(one_run_epsilon(1000, 100, 90, 1e-5) < one_run_epsilon(1000, 100, 90, 0.0));
        assert!(one_run_epsilon(1000, 100, 90, 1e-5) > 1.0);
        assert_eq!(one_run_epsilon(1000, 0, 0, 0.0), 0.0);
    }

    #[test]
    fn bounds_hold_for_a_mechanism_whose_epsilon_is_known() {
        // Randomised response: the score tells membership with odds e^2.
        let epsilon = 2.0f64;
        let mut random = random(5, "test", &[]);
        let mut uniform = || (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let member: Vec<bool> = (0..8000).map(|_| uniform() < 0.5).collect();
        let truth = epsilon.exp() / (1.0 + epsilon.exp());
        let scores: Vec<f64> = member
            .iter()
            .map(|member| {
                let says = if uniform() < truth { *member } else { !member };
                f64::from(u8::from(says)) + 1e-6 * uniform()
            })
            .collect();
        let figures = AttackFigures::of(&scores, &member, Assignment::FairCoins, 0.0, 1).unwrap();
        let bound = figures.epsilon;
        assert!(bound.by_rates > 1.2 && bound.by_rates <= epsilon, "{bound:?}");
        let one_run = bound.one_run.unwrap();
        assert!(one_run > 1.2 && one_run <= epsilon, "{bound:?}");
        assert!(bound.right > 50 && bound.right < bound.guesses);
        // Membership that was given allows no one-run bound; scores without a signal allow none at all.
        let given = AttackFigures::of(&scores, &member, Assignment::Given, 0.0, 1).unwrap();
        assert_eq!((given.epsilon.by_rates, given.epsilon.one_run), (bound.by_rates, None));
        let noise: Vec<f64> = member.iter().map(|_| uniform()).collect();
        let figures = AttackFigures::of(&noise, &member, Assignment::FairCoins, 1e-5, 1).unwrap();
        assert!(figures.auc.low < 0.5 && figures.auc.high > 0.5, "{:?}", figures.auc);
        assert!(figures.epsilon.by_rates < 0.2 && figures.epsilon.one_run.unwrap() < 0.2);
        assert!(figures.roc.len() < 400);
    }
}
