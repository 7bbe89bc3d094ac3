//! Cohorts into random groups.

use crate::RobustError;
use medinet_types::Digest;
use rand_chacha::ChaCha12Rng;
use rand_core::{Rng, SeedableRng as _};

/// Deals the sites `0..sites` out at random into as many groups of at least `least` sites as there can be; sizes differ by
/// one at most. Groups and the sites in them are in ascending order, so the result is a function of the seed and of the set
/// of sites in the caller's order: sort by name, not by arrival.
///
/// `least` is the minimum cohort of secure aggregation: nobody may see the sum of fewer. Larger groups hide more of each
/// site and leave fewer groups to compare: of `a` bad sites each spoils at most one group, so a rule that withstands `a` of
/// `sites / least` groups withstands any `a` sites.
///
/// The seed has to be one that no site could choose or foretell when it decided to take part, or bad sites gather in few
/// groups, which they own then; and the server has to be bound to it, or it picks the groups. A digest over the signed
/// commitments of all participants and the ledger's last checkpoint does both. Draw anew in each round.
///
/// ```
/// let groups = medinet_robust::partition(&[7; 32], 10, 3)?;
/// assert_eq!(groups.iter().map(Vec::len).sum::<usize>(), 10);
/// assert!(groups.len() == 3 && groups.iter().all(|group| group.len() >= 3));
/// # Ok::<(), medinet_robust::RobustError>(())
/// ```
///
/// # Errors
/// When `least` is 0, or there are fewer sites than `least`.
pub fn partition(seed: &[u8; 32], sites: usize, least: usize) -> Result<Vec<Vec<usize>>, RobustError> {
    if least == 0 {
        let setting = "sites in a group";
        return Err(RobustError::Setting { setting, expected: "at least 1", got: 0.0 });
    }
    if sites < least {
        return Err(RobustError::TooFewSites { least, got: sites });
    }
    let mut random = ChaCha12Rng::from_seed(Digest::of_parts(&[b"medinet groups 1", seed]).0);
    let mut order: Vec<usize> = (0..sites).collect();
    for last in (1..sites).rev() {
        order.swap(last, below(&mut random, last + 1));
    }
    let count = sites / least;
    let (size, longer) = (sites / count, sites % count);
    let mut rest = order.as_slice();
    let mut groups: Vec<Vec<usize>> = (0..count)
        .map(|index| {
            let (group, left) = rest.split_at(size + usize::from(index < longer));
            rest = left;
            let mut group = group.to_vec();
            group.sort_unstable();
            group
        })
        .collect();
    groups.sort();
    Ok(groups)
}

/// Uniform below `bound`, without the bias of a remainder (Lemire 2019, by rejection).
fn below(random: &mut impl Rng, bound: usize) -> usize {
    let bound = bound as u64;
    let threshold = bound.wrapping_neg() % bound;
    loop {
        let product = u128::from(random.next_u64()) * u128::from(bound);
        if product as u64 >= threshold {
            // Below `bound`, which came from a usize.
            return (product >> 64) as usize;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_sites_are_refused() {
        assert_eq!(partition(&[0; 32], 2, 3), Err(RobustError::TooFewSites { least: 3, got: 2 }));
        assert!(matches!(partition(&[0; 32], 2, 0), Err(RobustError::Setting { .. })));
        assert_eq!(partition(&[0; 32], 3, 3).unwrap(), [[0, 1, 2]]);
        assert_eq!(partition(&[0; 32], 5, 3).unwrap().len(), 1);
    }

    #[test]
    fn every_pair_meets_equally_often() {
        // 10 sites in 5 pairs: two given ones meet with probability 1/9. 9,000 draws: 1,000 times, deviation 30.
        let mut met = [[0u32; 10]; 10];
        for draw in 0u32..9000 {
            let mut seed = [0; 32];
            seed[..4].copy_from_slice(&draw.to_le_bytes());
            for pair in partition(&seed, 10, 2).unwrap() {
                met[pair[0]][pair[1]] += 1;
            }
        }
        for a in 0..10 {
            assert!((a + 1..10).all(|b| (860..1140).contains(&met[a][b])), "{met:?}");
        }
    }

    #[test]
    fn the_partition_is_a_function_of_the_seed() {
        // Pinned: sites and server must draw the same groups, in all versions.
        assert_eq!(partition(&[1; 32], 7, 2).unwrap(), [vec![0, 5], vec![1, 6], vec![2, 3, 4]]);
        assert_ne!(partition(&[1; 32], 7, 2).unwrap(), partition(&[2; 32], 7, 2).unwrap());
    }
}
