//! Who shares masks and secrets with whom.
//!
//! The graph of Bell et al. 2020 (algorithm "GenerateGraph"): a Harary graph, that is a ring on which every site is joined to
//! the k/2 next sites on either side, after a random permutation of the sites. For k = n - 1 it is complete and the protocol is
//! that of Bonawitz et al. 2017. The permutation follows from a seed that every site computes itself from the agreed keys.

use crate::message::MemberSet;
use medinet_types::Digest;
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

/// The neighbours of every site, by index in the key list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Graph {
    neighbours: Vec<Vec<u16>>,
    degree: u16,
}

impl Graph {
    /// The graph of degree `degree` on `n` sites. The caller has checked that it exists: 1 to n - 1, and `degree * n` even.
    pub(crate) fn new(seed: &Digest, n: u16, degree: u16) -> Self {
        let ring = permutation(seed, n);
        let mut neighbours = vec![Vec::with_capacity(degree.into()); n.into()];
        let n = usize::from(n);
        for (position, &site) in ring.iter().enumerate() {
            let list = &mut neighbours[usize::from(site)];
            if usize::from(degree) == n - 1 {
                list.extend(ring.iter().filter(|other| **other != site));
            } else {
                for step in 1..=usize::from(degree) / 2 {
                    list.push(ring[(position + step) % n]);
                    list.push(ring[(position + n - step) % n]);
                }
                if degree % 2 == 1 {
                    list.push(ring[(position + n / 2) % n]);
                }
            }
            list.sort_unstable();
        }
        Self { neighbours, degree }
    }

    /// The neighbours of a site, ascending.
    pub(crate) fn neighbours(&self, site: u16) -> &[u16] {
        &self.neighbours[usize::from(site)]
    }

    pub(crate) fn len(&self) -> u16 {
        // Built from a u16 number of sites.
        self.neighbours.len() as u16
    }

    pub(crate) fn degree(&self) -> u16 {
        self.degree
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.degree + 1 == self.len()
    }

    /// How many neighbours of `site` are in `set`.
    pub(crate) fn neighbours_in(&self, site: u16, set: &MemberSet) -> usize {
        self.neighbours(site).iter().filter(|other| set.contains(**other)).count()
    }

    /// How many neighbours of each survivor must survive, so that its mask can be removed and, on a sparse graph, so that
    /// no choice of survivors cuts honest sites off from one another (docs/threat-model.md, section 5).
    pub(crate) fn neighbours_needed(&self, threshold: u16) -> usize {
        usize::from(threshold) - usize::from(self.is_complete())
    }
}

/// The sites in their order on the ring: Fisher and Yates' shuffle, driven by ChaCha20 with rejection, so that every implementation gets the same.
pub(crate) fn permutation(seed: &Digest, n: u16) -> Vec<u16> {
    let mut rng = ChaCha20Rng::from_seed(seed.0);
    let mut ring: Vec<u16> = (0..n).collect();
    for last in (1..ring.len()).rev() {
        ring.swap(last, below(&mut rng, last as u32 + 1) as usize);
    }
    ring
}

/// Uniform in 0..bound.
fn below(rng: &mut ChaCha20Rng, bound: u32) -> u32 {
    let limit = u32::MAX - u32::MAX % bound;
    loop {
        let draw = rng.next_u32();
        if draw < limit {
            return draw % bound;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graphs_are_regular_and_symmetric() {
        for (n, degree) in
            [(2, 1), (3, 2), (4, 3), (5, 2), (6, 3), (10, 4), (100, 21), (100, 99), (101, 20), (1000, 60)]
        {
            let graph = Graph::new(&Digest::of(b"seed"), n, degree);
            for site in 0..n {
                let list = graph.neighbours(site);
                assert_eq!(list.len(), usize::from(degree), "n = {n}, k = {degree}");
                assert!(list.windows(2).all(|w| w[0] < w[1]) && !list.contains(&site));
                assert!(list.iter().all(|other| graph.neighbours(*other).contains(&site)));
            }
        }
    }

    #[test]
    fn the_seed_decides() {
        let graph = |seed: &[u8]| Graph::new(&Digest::of(seed), 50, 10);
        assert_eq!(graph(b"a"), graph(b"a"));
        assert_ne!(graph(b"a"), graph(b"b"));
    }

    #[test]
    fn every_pair_is_equally_likely_to_be_joined() {
        let (n, degree, graphs) = (20u16, 6u16, 4000u16);
        let mut joined = vec![0u32; usize::from(n)];
        for seed in 0..graphs {
            let graph = Graph::new(&Digest::of(&seed.to_le_bytes()), n, degree);
            graph.neighbours(3).iter().for_each(|other| joined[usize::from(*other)] += 1);
        }
        // 4000 draws of probability 6/19: 1263 +- 6 * 29.
        joined.remove(3);
        assert!(joined.iter().all(|count| (1090..1440).contains(count)), "{joined:?}");
    }
}
