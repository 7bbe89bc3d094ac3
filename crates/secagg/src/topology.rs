//! How many neighbours, which threshold, which quorum.
//!
//! Bell et al. 2020 (ACM CCS, ePrint 2020/704), section 3.3 and theorem 3.10, ask three things of a random Harary graph on n
//! sites of degree k with threshold t, c of the sites being corrupt and d lost:
//! (a) no site has t or more corrupt neighbours; (b) the honest survivors stay connected; (c) every site keeps t surviving
//! neighbours. Each is a tail of a hypergeometric distribution, computed here and not bounded. Against a
//! server that chooses whom to lose, (b) is replaced by a condition that holds for every choice
//! (docs/threat-model.md, equation 7).

use crate::error::{Error, Problem};
use serde::{Deserialize, Serialize};

/// The largest cohort of one session.
pub const MAX_COHORT: u16 = 4096;

/// Against whom a topology must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Adversary {
    /// The server follows the protocol, and losses do not depend on the graph (Bell et al. 2020, section 3).
    HonestButCurious,
    /// The server chooses, knowing the graph, whom to declare lost.
    Malicious,
}

/// What a topology must withstand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assumptions {
    /// The server's behaviour.
    pub adversary: Adversary,
    /// Sites in a thousand of the key list that may collude with the server; rounded down to whole sites, but of four sites or more at least one. 0
    /// assumes none. The list is the server's to choose: against one that lists all colluders beside few others, only [`Self::colluders`] helps.
    pub corrupt_permille: u16,
    /// Sites in a thousand that may be lost between key exchange and unmasking, without failing the round.
    pub dropout_permille: u16,
    /// sigma: the graph is insecure with probability at most 2^-sigma.
    pub security_bits: u8,
    /// eta: a round with no more losses than assumed fails with probability at most 2^-eta.
    pub correctness_bits: u8,
    /// How many graphs the server can try, as a power of two, by choosing colluders' keys after it has seen all others;
    /// added to sigma on a sparse graph. 0 where no site colludes.
    pub grinding_bits: u8,
    /// Sites that may collude with the server in any one session, however short its key list is; 0, the default, to 4,094. The larger of this and
    /// the share counts. A list without two sites besides these is refused.
    #[serde(default)]
    pub colluders: u16,
}

impl Default for Assumptions {
    /// A malicious server, a tenth of the sites colluding with it and no fixed number, a fifth lost, sigma 40 after 40 bits of grinding, eta 20.
    fn default() -> Self {
        Self {
            adversary: Adversary::Malicious,
            corrupt_permille: 100,
            dropout_permille: 200,
            security_bits: 40,
            correctness_bits: 20,
            grinding_bits: 40,
            colluders: 0,
        }
    }
}

/// The shape of a session: chosen by the server, checked by every site, covered by every signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// k: with how many others each site shares masks and secrets; n - 1 is everyone.
    pub neighbours: u16,
    /// t: how many shares open a secret. Each site also keeps a share of its own.
    pub threshold: u16,
    /// q: how many sites must have signed the same participant sets before a site reveals shares.
    pub quorum: u16,
}

impl Assumptions {
    /// c: the most sites that collude, of `n` in a key list: the larger of the share and the fixed number, at most `n`. Where the share is not 0, one
    /// of four or more may: a tenth of nine would be none. Of three, one colluder leaves two, who hide each other from it whatever is assumed, as
    /// long as no sum of fewer than three opens (docs/threat-model.md, section 5).
    #[must_use]
    pub fn corrupt(&self, n: u16) -> u16 {
        let least = u16::from(n >= 4 && self.corrupt_permille > 0);
        share_of(n, self.corrupt_permille).max(least).max(self.colluders).min(n)
    }

    /// Checks that `n` sites hold two besides those that may collude. Of one alone the sum is its input; and with `n >= c + 2` the quorum is at least
    /// c + 2, so that every sum that opens holds two honest inputs.
    pub(crate) fn check_cohort(&self, n: u16) -> Result<(), Problem> {
        // A list of n sites can hold no more than n colluders, but it falls short by all that are assumed.
        let colluders = self.corrupt(n).max(self.colluders);
        let expected = colluders.saturating_add(2);
        if n >= expected {
            return Ok(());
        }
        Err(Problem::Colluders { sites: n, colluders, expected })
    }

    /// Checks that a session of `n` sites can bear these assumptions: that [`Topology::choose`] finds one. The complete graph asks the least of
    /// thresholds, so it decides.
    ///
    /// # Errors
    /// When n is below 2 or above [`MAX_COHORT`], fewer than two sites are left besides those that may collude, or no topology holds; the caller
    /// is at fault.
    pub fn check(&self, n: u16) -> Result<(), Error> {
        if !(2..=MAX_COHORT).contains(&n) {
            let expected = format!("2 to {MAX_COHORT}");
            return Err(Error::caller(Problem::Parameters { field: "sites", expected, got: n.into() }));
        }
        self.check_cohort(n).map_err(Error::caller)?;
        let left = n - self.dropouts(n);
        let threshold = (self.corrupt(n) + 1).max(2);
        if threshold.max(self.least_quorum(n)) <= left {
            return Ok(());
        }
        Err(Error::caller(Problem::NoTopology { sites: n }))
    }

    /// d: the most sites that are lost, of `n`.
    #[must_use]
    pub fn dropouts(&self, n: u16) -> u16 {
        share_of(n, self.dropout_permille)
    }

    /// The least quorum at which no two different sets of one key list can both gather one: an honest site enters one list and signs once, a
    /// colluding site signs anything, so 2q - n > c. Lists without a common honest site can each gather one.
    #[must_use]
    pub fn least_quorum(&self, n: u16) -> u16 {
        (n + self.corrupt(n)) / 2 + 1
    }

    /// ln of the probability that a bad event may have in all, at one of `n` sites.
    fn ln_security(&self, n: u16) -> f64 {
        -(f64::from(self.security_bits) + f64::from(self.grinding_bits) + 1.0) * std::f64::consts::LN_2
            - f64::from(n).ln()
    }

    /// The least secure threshold at degree `k` of `n`; `None` when the graph itself is not secure.
    fn least_threshold(&self, n: u16, k: u16) -> Option<u16> {
        let corrupt = self.corrupt(n);
        if k == n - 1 {
            // Everyone holds a share of everyone: t - 1 colluders must not suffice, and 1 would be no sharing.
            return Some((corrupt + 1).max(2));
        }
        // (a): the number of colluding neighbours passes `most` with at most the allowed probability. An honest site's neighbours are drawn from
        // the others.
        let others = n - 1;
        let corrupt = corrupt.min(others);
        let most = upper_quantile(others, corrupt, k, self.ln_security(n));
        match self.adversary {
            Adversary::HonestButCurious => self.stays_connected(n, k).then_some((most + 1).max(2)),
            Adversary::Malicious => {
                // (b'): t > ceil(k/2) + the colluders among the k/2 sites on one side; two sides each.
                let side =
                    upper_quantile(others, corrupt, k / 2, self.ln_security(n) - std::f64::consts::LN_2);
                Some((most + 1).max(k.div_ceil(2) + side + 1).max(2))
            }
        }
    }

    /// (b): two gaps of k/2 successive sites, all corrupt or lost, cut a ring; union over the places of both gaps.
    fn stays_connected(&self, n: u16, k: u16) -> bool {
        let bad = self.corrupt(n) + self.dropouts(n);
        if k > bad {
            return true;
        }
        let (n, k, bad) = (f64::from(n), f64::from(k), f64::from(bad));
        let pairs = (n * (n - k - 1.0) / 2.0).ln();
        let all_bad = ln_factorial(bad) + ln_factorial(n - k) - ln_factorial(n) - ln_factorial(bad - k);
        let bits = f64::from(self.security_bits) + f64::from(self.grinding_bits) + 1.0;
        pairs + all_bad < -bits * std::f64::consts::LN_2
    }

    /// (c): the largest threshold that survives the losses.
    fn largest_threshold(&self, n: u16, k: u16) -> u16 {
        let survivors = n - self.dropouts(n);
        if k == n - 1 {
            return survivors;
        }
        let ln_p = -f64::from(self.correctness_bits) * std::f64::consts::LN_2 - f64::from(n).ln();
        // A survivor is not its own neighbour; a lost site has one survivor more to draw from.
        lower_quantile(n - 1, survivors.saturating_sub(1), k, ln_p)
    }
}

impl Topology {
    /// The sparsest topology for `n` sites that holds under `assumptions`: the least even k below n - 1, else the complete graph;
    /// t as far from both failures as they allow on the complete graph, and the least secure one on a sparse one.
    ///
    /// # Errors
    /// When n is below 2 or above [`MAX_COHORT`], fewer than two sites are left besides those that may collude, or no topology holds; the caller
    /// is at fault.
    pub fn choose(n: u16, assumptions: &Assumptions) -> Result<Self, Error> {
        assumptions.check(n)?;
        let quorum = assumptions.least_quorum(n);
        let sparse = (2..n - 1).step_by(2).find_map(|k| {
            let threshold = assumptions.least_threshold(n, k)?;
            let fits = threshold <= assumptions.largest_threshold(n, k);
            fits.then_some(Self { neighbours: k, threshold, quorum })
        });
        let complete = || {
            let (least, most) =
                (assumptions.least_threshold(n, n - 1)?, assumptions.largest_threshold(n, n - 1));
            // Above two thirds more shares gain nothing: the quorum already decides.
            let threshold = least.max((n * 2).div_ceil(3).min(most)).max(2);
            (least <= most).then_some(Self { neighbours: n - 1, threshold, quorum })
        };
        let enough = |topology: &Self| topology.quorum <= n - assumptions.dropouts(n);
        let chosen = sparse.or_else(complete).filter(enough);
        chosen.ok_or_else(|| Error::caller(Problem::NoTopology { sites: n }))
    }

    /// Checks that there is such a graph, threshold and quorum for `n` sites.
    pub(crate) fn exists(&self, n: u16) -> Result<(), Problem> {
        let k = self.neighbours;
        if !(1..n).contains(&k) || !(u32::from(k) * u32::from(n)).is_multiple_of(2) {
            return refuse(
                "a number of neighbours of",
                format!("1 to {} and an even sum of degrees", n - 1),
                k,
            );
        }
        if !(2..=k + 1).contains(&self.threshold) {
            return refuse("a threshold of", format!("2 to {}", k + 1), self.threshold);
        }
        if !(1..=n).contains(&self.quorum) {
            return refuse("a quorum of", format!("1 to {n}"), self.quorum);
        }
        Ok(())
    }

    /// Checks that this topology exists for `n` sites and is secure under `assumptions`.
    pub(crate) fn check(&self, n: u16, assumptions: &Assumptions) -> Result<(), Problem> {
        self.exists(n)?;
        assumptions.check_cohort(n)?;
        let Some(least) = assumptions.least_threshold(n, self.neighbours) else {
            let expected = "a graph that stays connected".to_owned();
            return refuse("a number of neighbours of", expected, self.neighbours);
        };
        if self.threshold < least {
            return refuse("a threshold of", format!("at least {least}"), self.threshold);
        }
        let quorum = assumptions.least_quorum(n);
        if self.quorum < quorum {
            return refuse("a quorum of", format!("at least {quorum}"), self.quorum);
        }
        Ok(())
    }
}

fn refuse(what: &'static str, expected: String, got: u16) -> Result<(), Problem> {
    Err(Problem::Topology { what, expected, got })
}

fn share_of(n: u16, permille: u16) -> u16 {
    (u32::from(n) * u32::from(permille.min(1000)) / 1000) as u16
}

/// ln x!, exact by summation up to the size of a cohort.
fn ln_factorial(x: f64) -> f64 {
    // Stirling's series with four terms is exact to the last bit above 20.
    if x < 20.0 {
        return (2..=x as u32).map(|i| f64::from(i).ln()).sum();
    }
    let inverse = 1.0 / x;
    let square = inverse * inverse;
    let series = inverse * (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0)));
    x * x.ln() - x + 0.5 * (std::f64::consts::TAU * x).ln() + series
}

/// ln P[X = i] where X counts the marked among `draws` of `n`, `marked` of which are marked.
fn ln_probability(n: u16, marked: u16, draws: u16, i: u16) -> f64 {
    if i > marked || i > draws || draws - i > n - marked {
        return f64::NEG_INFINITY;
    }
    let choose =
        |a: u16, b: u16| ln_factorial(a.into()) - ln_factorial(b.into()) - ln_factorial((a - b).into());
    choose(marked, i) + choose(n - marked, draws - i) - choose(n, draws)
}

/// ln(e^a + e^b).
fn ln_add(a: f64, b: f64) -> f64 {
    let (high, low) = if a > b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}

/// The least m with `ln P[X > m]` <= `ln_p`.
fn upper_quantile(n: u16, marked: u16, draws: u16, ln_p: f64) -> u16 {
    let mut tail = f64::NEG_INFINITY;
    for i in (1..=draws.min(marked)).rev() {
        tail = ln_add(tail, ln_probability(n, marked, draws, i));
        if tail > ln_p {
            return i;
        }
    }
    0
}

/// The largest m with `ln P[X < m]` <= `ln_p`.
fn lower_quantile(n: u16, marked: u16, draws: u16, ln_p: f64) -> u16 {
    let mut tail = f64::NEG_INFINITY;
    for i in 0..draws {
        tail = ln_add(tail, ln_probability(n, marked, draws, i));
        if tail > ln_p {
            return i;
        }
    }
    draws
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn curious(corrupt_permille: u16, dropout_permille: u16) -> Assumptions {
        Assumptions {
            adversary: Adversary::HonestButCurious,
            corrupt_permille,
            dropout_permille,
            security_bits: 40,
            correctness_bits: 20,
            grinding_bits: 0,
            colluders: 0,
        }
    }

    #[test]
    fn what_a_session_can_bear_is_what_a_topology_is_found_for() {
        for (corrupt_permille, dropout_permille, colluders) in [
            (100, 200, 0),
            (100, 400, 0),
            (100, 450, 0),
            (100, 500, 0),
            (333, 300, 0),
            (0, 900, 0),
            (100, 200, 3),
        ] {
            for adversary in [Adversary::Malicious, Adversary::HonestButCurious] {
                let assumptions = Assumptions {
                    adversary,
                    corrupt_permille,
                    dropout_permille,
                    colluders,
                    ..Assumptions::default()
                };
                for n in (1..=60).chain([100, 333, 1000]) {
                    let (check, found) = (assumptions.check(n), Topology::choose(n, &assumptions));
                    assert_eq!(
                        check.is_ok(),
                        found.is_ok(),
                        "{n} sites: {assumptions:?}, {check:?}, {found:?}"
                    );
                }
            }
        }
        // Whole sites: four bear it and five do not.
        let rounded = Assumptions { dropout_permille: 400, ..Assumptions::default() };
        assert!(rounded.check(4).is_ok() && rounded.check(5).is_err() && rounded.check(6).is_ok());
    }

    /// The values that the paper's authors' own search gives at sigma 40, eta 20 and an honest-but-curious server: n, corrupt, lost, degree,
    /// largest acceptable threshold. From fcp/secagg/server/graph_parameter_finder_test.cc of google/federated-compute, Copyright 2020 Google LLC,
    /// Apache-2.0. Left out: 10 sites, 5% corrupt, 33% lost, where that search raises the threshold to 2 after having checked correctness at 1.
    /// Theirs draws a site's neighbours from all sites, ours from the others: in one of ten cases that is two neighbours more.
    #[test]
    fn degrees_are_those_of_the_authors() {
        for (n, corrupt, lost, degree, threshold, more) in [
            (100, 450, 450, 92, 46, 0),
            (1000, 450, 450, 822, 417, 2),
            (10, 330, 330, 8, 4, 0),
            (100, 330, 330, 68, 34, 0),
            (1000, 330, 330, 286, 150, 0),
            (100, 50, 330, 28, 6, 0),
            (1000, 50, 330, 72, 24, 0),
            (10, 330, 50, 4, 4, 0),
            (100, 330, 50, 34, 29, 0),
            (1000, 330, 50, 78, 60, 0),
        ] {
            let topology = Topology::choose(n, &curious(corrupt, lost));
            // A quorum against double signing is ours, not theirs, and does not exist where too many are lost.
            let assumptions = curious(corrupt, lost);
            let k = (2..n - 1)
                .step_by(2)
                .find(|&k| {
                    assumptions
                        .least_threshold(n, k)
                        .is_some_and(|t| t <= assumptions.largest_threshold(n, k))
                })
                .unwrap();
            assert_eq!(k, degree + more, "n {n}, corrupt {corrupt}, lost {lost}");
            assert!(assumptions.least_threshold(n, k).unwrap() <= threshold + more);
            if let Ok(topology) = topology {
                assert_eq!(topology.neighbours, degree + more);
                assert!(topology.check(n, &assumptions).is_ok());
            }
        }
    }

    /// Monte Carlo against the tails: the bound is met, and is not idle.
    #[test]
    fn tails_agree_with_counting() {
        // P[X >= 4], X ~ Hypergeometric(20, 6 marked, 8 draws), by exact binomials.
        let choose = |n: u64, k: u64| (0..k).fold(1u64, |c, i| c * (n - i) / (i + 1));
        let tail: u64 = (4..=6).map(|i| choose(6, i) * choose(14, 8 - i)).sum();
        let p = tail as f64 / choose(20, 8) as f64;
        assert_eq!(upper_quantile(20, 6, 8, p.ln() + 1e-9), 3);
        assert_eq!(upper_quantile(20, 6, 8, p.ln() - 1e-9), 4);
        let lower: u64 = (0..=1).map(|i| choose(6, i) * choose(14, 8 - i)).sum();
        let p = lower as f64 / choose(20, 8) as f64;
        assert_eq!(lower_quantile(20, 6, 8, p.ln() + 1e-9), 2);
        assert_eq!(lower_quantile(20, 6, 8, p.ln() - 1e-9), 1);
        let direct: f64 = (2..=300).map(|i| f64::from(i).ln()).sum();
        assert!((ln_factorial(300.0) - direct).abs() < 1e-10);
    }

    #[test]
    fn small_federations_lose_a_site_and_go_on() {
        let assumptions = Assumptions { dropout_permille: 334, ..Assumptions::default() };
        let three = Topology::choose(3, &assumptions).unwrap();
        assert_eq!(three, Topology { neighbours: 2, threshold: 2, quorum: 2 });
        assert_eq!(Topology::choose(2, &Assumptions::default()).unwrap().threshold, 2);
        for n in 2..=200 {
            let topology = Topology::choose(n, &Assumptions::default()).unwrap();
            assert!(topology.check(n, &Assumptions::default()).is_ok(), "{n}: {topology:?}");
        }
    }

    /// One of four to nine sites may collude where any may, one of five may still be lost, and a sum of fewer than three never gathers a quorum.
    #[test]
    fn small_federations_assume_a_colluder() {
        let default = Assumptions::default();
        let none = Assumptions { corrupt_permille: 0, ..default };
        assert_eq!([2, 3, 4, 9, 10, 20].map(|n| default.corrupt(n)), [0, 0, 1, 1, 1, 2]);
        assert_eq!([2, 4, 9, 100].map(|n| none.corrupt(n)), [0; 4]);
        // k, t and q at 20% lost.
        let expected = [(4, 3, 3, 3), (5, 4, 4, 4), (6, 5, 4, 4), (7, 6, 5, 5), (8, 6, 5, 5), (9, 6, 5, 6)];
        for (n, neighbours, threshold, quorum) in expected {
            let topology = Topology::choose(n, &default).unwrap();
            assert_eq!(topology, Topology { neighbours, threshold, quorum }, "{n} sites");
            // One that assumes nobody is refused by a site that assumes somebody.
            assert!(Topology::choose(n, &none).unwrap().check(n, &default).is_err(), "{n} sites");
            assert!(n < 5 || topology.quorum < n, "{n} sites: one may be lost");
        }
        let everybody = Assumptions { corrupt_permille: 1000, dropout_permille: 1000, ..default };
        assert!((2..=50).all(|n| Topology::choose(n, &everybody).is_err()));
    }

    /// The tables of docs/threat-model.md, section 5.
    #[test]
    fn the_table() {
        use Adversary::{HonestButCurious, Malicious};
        let table = [
            (HonestButCurious, 0, 0, 100, [(4, 2), (6, 2), (12, 2), (16, 2), (18, 2), (20, 2)]),
            (HonestButCurious, 50, 0, 100, [(4, 2), (6, 2), (16, 6), (28, 14), (36, 19), (40, 21)]),
            (Malicious, 0, 0, 100, [(4, 3), (8, 5), (22, 12), (30, 16), (36, 19), (40, 21)]),
            (Malicious, 50, 0, 100, [(6, 5), (10, 7), (32, 22), (76, 54), (102, 72), (118, 83)]),
            (Malicious, 50, 40, 100, [(6, 5), (10, 7), (32, 22), (76, 54), (134, 99), (158, 116)]),
            (Malicious, 100, 40, 100, [(6, 5), (14, 11), (42, 32), (114, 88), (180, 138), (210, 160)]),
            // The default.
            (Malicious, 100, 40, 200, [(8, 6), (20, 14), (62, 42), (166, 114), (328, 226), (432, 296)]),
        ];
        for (adversary, corrupt_permille, grinding_bits, dropout_permille, row) in table {
            for (n, expected) in [10, 30, 100, 300, 1000, 3000].into_iter().zip(row) {
                let rest = Assumptions::default();
                let assumptions =
                    Assumptions { adversary, corrupt_permille, dropout_permille, grinding_bits, ..rest };
                let topology = Topology::choose(n, &assumptions).unwrap();
                assert_eq!((topology.neighbours, topology.threshold), expected, "{assumptions:?}, {n} sites");
                assert!(topology.check(n, &assumptions).is_ok());
            }
        }
    }

    #[test]
    fn an_impossible_wish_is_refused() {
        let half = Assumptions { corrupt_permille: 500, dropout_permille: 500, ..Assumptions::default() };
        assert!(Topology::choose(100, &half).is_err());
        assert!(Topology::choose(1, &Assumptions::default()).is_err());
        assert!(Topology::choose(MAX_COHORT + 1, &Assumptions::default()).is_err());
    }

    #[test]
    fn a_lax_topology_is_refused() {
        let assumptions = Assumptions::default();
        let good = Topology::choose(100, &assumptions).unwrap();
        assert!(Topology { threshold: good.threshold - 1, ..good }.check(100, &assumptions).is_err());
        assert!(Topology { quorum: good.quorum - 1, ..good }.check(100, &assumptions).is_err());
        assert!(Topology { neighbours: 0, ..good }.check(100, &assumptions).is_err());
        assert!(Topology { neighbours: 100, ..good }.check(100, &assumptions).is_err());
        assert!(Topology { threshold: 102, ..good }.check(100, &assumptions).is_err());
        assert!(Topology { neighbours: 21, threshold: 22, quorum: 60 }.check(101, &assumptions).is_err());
    }

    /// A fixed number holds however short the list is, and a share of more sites still counts.
    #[test]
    fn a_fixed_number_of_colluders_is_the_least_that_counts() {
        let fixed = |colluders| Assumptions { colluders, ..Assumptions::default() };
        assert_eq!([2, 3, 4, 10, 30, 1000].map(|n| fixed(2).corrupt(n)), [2, 2, 2, 2, 3, 100]);
        assert_eq!([3, 30].map(|n| Assumptions { corrupt_permille: 0, ..fixed(2) }.corrupt(n)), [2, 2]);
        // Of three sites, two of which may collude, one is left; four is the least.
        assert_eq!(
            Topology { neighbours: 2, threshold: 3, quorum: 3 }.check(3, &fixed(2)),
            Err(Problem::Colluders { sites: 3, colluders: 2, expected: 4 })
        );
        let four = Topology::choose(4, &fixed(2)).unwrap();
        assert_eq!(four, Topology { neighbours: 3, threshold: 3, quorum: 4 });
        assert!(four.check(4, &fixed(2)).is_ok());
        let three = Topology::choose(3, &fixed(1)).unwrap();
        assert_eq!(three, Topology { neighbours: 2, threshold: 2, quorum: 3 });
        // One of five may be lost all the same.
        let five = Topology::choose(5, &fixed(2)).unwrap();
        assert_eq!((five, fixed(2).dropouts(5)), (Topology { neighbours: 4, threshold: 4, quorum: 4 }, 1));
        // All of the least must stay, so none may be lost there.
        let no_losses = Assumptions { dropout_permille: 0, ..fixed(5) };
        for n in 2..=100 {
            assert_eq!(Topology::choose(n, &no_losses).is_ok(), n >= 7, "{n} sites");
        }
        let absurd = fixed(u16::MAX);
        let error = Topology::choose(MAX_COHORT, &absurd).unwrap_err();
        assert!(matches!(error.problem(), Problem::Colluders { sites: MAX_COHORT, .. }), "{error}");
    }

    proptest! {
        /// Whatever the server proposes: in what a site accepts, colluders alone open no secret of the complete graph, and a quorum, and so every sum that
        /// opens, holds two sites more than may collude.
        #[test]
        fn what_is_accepted_leaves_two_honest_sites_in_every_quorum(
            n in 2u16..80,
            colluders in 0u16..30,
            corrupt_permille in prop::sample::select(vec![0u16, 50, 100, 333, 700, 1000]),
            (neighbours, threshold, quorum) in (1u16..80, 1u16..82, 1u16..82),
            complete in any::<bool>(),
        ) {
            let assumptions = Assumptions { colluders, corrupt_permille, ..Assumptions::default() };
            let neighbours = if complete { n - 1 } else { neighbours };
            let proposed = Topology { neighbours, threshold, quorum };
            let chosen = Topology::choose(n, &assumptions).ok();
            for topology in [Some(proposed), chosen].into_iter().flatten() {
                if topology.check(n, &assumptions).is_ok() {
                    let c = colluders.max(assumptions.corrupt(n));
                    prop_assert!(topology.quorum >= c + 2, "{:?} of {}, {} collude", topology, n, c);
                    prop_assert!(topology.neighbours < n - 1 || topology.threshold > c);
                }
            }
        }
    }
}
