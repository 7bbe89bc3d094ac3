//! What the server can compute from all that it sees, and dealers that lie about their secrets. A child of the site's module,
//! because it looks at secrets that no other code can reach.

#[path = "../tests/common/mod.rs"]
mod common;

use super::*;
use crate::error::Fault;
use crate::mask::MaskKey;
use crate::ring::Width;
use crate::topology::Topology;
use common::{Lost, advertise, agree, index, open, parameters, rng, share, trusting};
use std::collections::BTreeMap;

const COORDINATES: u32 = 2100;
const SHAPE: Topology = Topology { neighbours: 6, threshold: 4, quorum: 6 };
const N: usize = 10;

fn width() -> Width {
    Width::new(11).unwrap()
}

fn expand(key: &MaskKey) -> Vec<u32> {
    let mut vector = RingVector::zeros(width(), COORDINATES as usize);
    apply_masks(&mut vector, &[Mask::new(key, false)]);
    vector.iter().collect()
}

fn ring(values: &[u32]) -> RingVector {
    RingVector::from_values(width(), values.iter().copied())
}

fn add(sum: &mut [u32], other: &[u32], subtract: bool) {
    for (sum, other) in sum.iter_mut().zip(other) {
        *sum =
            if subtract { sum.wrapping_sub(*other) } else { sum.wrapping_add(*other) } & width().max_value();
    }
}

/// The lemma of Bonawitz et al. 2017 (lemma 6.1) on the very transcript: the server and two colluding sites hold every
/// masked input, every self mask that was opened, and every pairwise mask with a colluder or a lost site. For any other inputs
/// of the honest survivors with the same sum there are pairwise masks between them that give the same transcript, byte by
/// byte; for inputs with another sum there are none. The masks themselves are unknown: their keys are agreed by X25519, and of
/// the shares of those keys' seeds the colluders hold fewer than the threshold.
#[test]
fn the_servers_view_is_the_same_for_all_inputs_with_the_same_sum() {
    let parameters = parameters(COORDINATES, 11);
    let (colluders, lost) = ([2u16, 7], 5u16);
    let delivered = share(advertise(&parameters, N, SHAPE, trusting()), |_| true).unwrap();
    let graph = delivered.sites.values().next().unwrap().roster.graph.clone();
    let honest: Vec<u16> = (0..N as u16).filter(|u| !colluders.contains(u) && *u != lost).collect();

    // The secrets, as the sites hold them.
    let mut self_masks = BTreeMap::new();
    let mut pair_masks = BTreeMap::new();
    for (name, state) in &delivered.sites {
        let u = index(name) as u16;
        let key = self_mask_key(state.roster.session, name, &state.self_mask_seed);
        self_masks.insert(u, expand(&key));
        for (&v, agreed) in graph.neighbours(u).iter().zip(&state.neighbours) {
            let mask = expand(&agreed.mask_key);
            // Both ends derive the same mask.
            if let Some(other) = pair_masks.insert((u.min(v), u.max(v)), mask.clone()) {
                assert_eq!(other, mask);
            }
        }
    }
    // Sites that see fewer shares of a mask key's seed than the threshold know nothing about it.
    for &u in &honest {
        let seen = graph.neighbours(u).iter().filter(|v| colluders.contains(v)).count();
        assert!(seen < usize::from(SHAPE.threshold));
    }

    // The transcript of round 2.
    let mut transcript = BTreeMap::new();
    let common::Delivered { deliveries, sites, .. } = delivered;
    for (name, state) in sites.into_iter().filter(|(name, _)| index(name) as u16 != lost) {
        let delivery = deliveries[&name].clone();
        let (message, _) = state.mask(delivery, common::input(&parameters, index(&name))).unwrap();
        transcript.insert(index(&name) as u16, MaskedInput::decode(&message).unwrap().payload.to_vec());
    }

    // y_u for given inputs and given masks between honest survivors; all other masks as they are.
    let masked = |u: u16, input: &[u32], between: &BTreeMap<(u16, u16), Vec<u32>>| {
        let mut y = input.to_vec();
        add(&mut y, &self_masks[&u], false);
        for &v in graph.neighbours(u) {
            let edge = (u.min(v), u.max(v));
            add(&mut y, between.get(&edge).unwrap_or(&pair_masks[&edge]), subtracts(u, v));
        }
        let mut bytes = Vec::new();
        ring(&y).pack_into(&mut bytes);
        bytes
    };
    let inputs: BTreeMap<u16, Vec<u32>> =
        honest.iter().map(|&u| (u, common::input(&parameters, usize::from(u)).iter().collect())).collect();
    for (&u, input) in &inputs {
        assert_eq!(
            masked(u, input, &BTreeMap::new()),
            transcript[&u],
            "the model of the transcript is exact"
        );
    }

    // Masks between honest survivors that explain other inputs: fix all but a spanning tree, solve from its leaves.
    let explain = |wanted: &BTreeMap<u16, Vec<u32>>| {
        let mut tree = vec![(honest[0], honest[0])];
        let mut next = 0;
        while next < tree.len() {
            let u = tree[next].0;
            for v in graph.neighbours(u).iter().filter(|v| honest.contains(v)) {
                if !tree.iter().any(|(seen, _)| seen == v) {
                    tree.push((*v, u));
                }
            }
            next += 1;
        }
        assert_eq!(tree.len(), honest.len(), "honest survivors are connected");
        let mut between = BTreeMap::new();
        // What is still to be moved from a site to its parent in the tree.
        let mut excess: BTreeMap<u16, Vec<u32>> = wanted.clone();
        excess.iter_mut().for_each(|(u, x)| add(x, &inputs[u], true));
        for &(u, parent) in tree[1..].iter().rev() {
            let moved = excess.remove(&u).unwrap();
            let edge = (u.min(parent), u.max(parent));
            let mut mask = pair_masks[&edge].clone();
            add(&mut mask, &moved, !subtracts(u, parent));
            between.insert(edge, mask);
            add(excess.get_mut(&parent).unwrap(), &moved, false);
        }
        between
    };

    let mut other = inputs.clone();
    for (step, &u) in honest.iter().enumerate().skip(1) {
        let shift: Vec<u32> = (0..COORDINATES).map(|c| c.wrapping_mul(31 * step as u32 + 17)).collect();
        add(other.get_mut(&u).unwrap(), &shift, false);
        add(other.get_mut(&honest[0]).unwrap(), &shift, true);
    }
    assert!(honest.iter().all(|u| other[u] != inputs[u]));
    let between = explain(&other);
    for &u in &honest {
        assert_eq!(masked(u, &other[&u], &between), transcript[&u], "site {u}");
    }
    // One more in one coordinate is another sum: the tree's root cannot be explained.
    let mut wrong = other.clone();
    wrong.get_mut(&honest[3]).unwrap()[9] ^= 1;
    let between = explain(&wrong);
    let explained = honest.iter().filter(|u| masked(**u, &wrong[*u], &between) == transcript[*u]).count();
    assert_eq!(explained, honest.len() - 1);
}

/// Every revealed share belongs to the one secret of its dealer that may be opened.
#[test]
fn revealed_shares_are_of_the_secret_that_may_be_opened() {
    let parameters = parameters(10, 8);
    let lost =
        [Lost::Never, Lost::Never, Lost::Masking, Lost::Never, Lost::Agreeing, Lost::Never, Lost::Never];
    let topology = Topology { neighbours: 6, threshold: 4, quorum: 4 };
    let delivered = share(advertise(&parameters, lost.len(), topology, trusting()), |_| true).unwrap();
    let collected = common::mask(&parameters, delivered, |i| lost[i] > Lost::Masking).unwrap();
    let known: BTreeMap<SiteId, Vec<(u16, [SecretScalar; 2])>> =
        collected.sites.iter().map(|(name, state)| (name.clone(), state.shares.clone())).collect();
    let signed = agree(collected, |i| lost[i] > Lost::Agreeing).unwrap();
    for (name, state) in signed.sites {
        let (message, _) = state.unmask(signed.list.clone(), &common::Authority).unwrap();
        for ((dealer, [self_mask, mask_key]), revealed) in known[&name].iter().zip(&message.shares[1..]) {
            let (open, shut) = if *dealer == 2 { (mask_key, self_mask) } else { (self_mask, mask_key) };
            assert_eq!(revealed, open.as_bytes());
            assert!(!message.shares.contains(shut.as_bytes()));
        }
    }
}

#[test]
fn a_dealer_of_another_secret_than_it_advertised_is_blamed() {
    let parameters = parameters(10, 8);
    let topology = Topology { neighbours: 4, threshold: 3, quorum: 3 };
    for lost in [Lost::Never, Lost::Masking] {
        let mut shared = advertise(&parameters, 5, topology, trusting());
        let liar = common::site(3);
        let secrets = &mut shared.sites.get_mut(&liar).unwrap().secrets;
        secrets.self_mask_seed = SecretScalar::random(&mut rng(1));
        secrets.mask_key_seed = SecretScalar::random(&mut rng(2));
        let delivered = share(shared, |_| true).unwrap();
        let collected = common::mask(&parameters, delivered, |i| i != 3 || lost > Lost::Masking).unwrap();
        let error = open(agree(collected, |_| true).unwrap(), |_| true).unwrap_err();
        assert_eq!(error.fault(), &Fault::Site(liar.clone()));
        assert!(matches!(error.problem(), Problem::Secret { .. }));
    }
}

#[test]
fn states_print_nothing_of_what_they_hold() {
    let parameters = parameters(10, 8);
    let shared = advertise(&parameters, 3, Topology { neighbours: 2, threshold: 2, quorum: 2 }, trusting());
    assert_eq!(format!("{:?}", shared.sites[&common::site(0)]), "Advertised(..)");
    assert_eq!(format!("{:?}", shared.server), "Sharing(..)");
    assert_eq!(format!("{:?}", common::input(&parameters, 1)), "RingVector(10 coordinates of 8 bits)");
}
