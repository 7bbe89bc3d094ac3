//! What the server can compute from all that it sees, and dealers that lie about their secrets. A child of the site's module,
//! because it looks at secrets that no other code can reach.

#[path = "../tests/common/mod.rs"]
pub(super) mod common;

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

const COLLUDERS: [u16; 2] = [2, 7];
const LOST: u16 = 5;

/// A session in which one site is lost after sharing and two collude, as the sites hold it; the server and the colluders see all masked inputs, and know every
/// pairwise mask with a colluder or with the lost site, whose mask key is opened.
struct Session {
    graph: crate::graph::Graph,
    /// The honest survivors.
    honest: Vec<u16>,
    inputs: BTreeMap<u16, Vec<u32>>,
    self_masks: BTreeMap<u16, Vec<u32>>,
    /// By both sites, the lower first.
    pair_masks: BTreeMap<(u16, u16), Vec<u32>>,
    /// The payloads of round 2.
    transcript: BTreeMap<u16, Vec<u8>>,
    signed: common::Signed,
}

/// Masks that the adversary does not know, in place of those that were used.
#[derive(Default)]
struct Other {
    between: BTreeMap<(u16, u16), Vec<u32>>,
    own: BTreeMap<u16, Vec<u32>>,
}

impl Session {
    fn new() -> Self {
        let parameters = parameters(COORDINATES, 11);
        let delivered = share(advertise(&parameters, N, SHAPE, trusting()), |_| true).unwrap();
        let graph = delivered.sites.values().next().unwrap().roster.graph.clone();
        let honest: Vec<u16> = (0..N as u16).filter(|u| !COLLUDERS.contains(u) && *u != LOST).collect();
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
            let seen = graph.neighbours(u).iter().filter(|v| COLLUDERS.contains(v)).count();
            assert!(seen < usize::from(SHAPE.threshold));
        }
        let mut transcript = BTreeMap::new();
        let mut masked = common::Sites::new();
        let common::Delivered { mut server, mut deliveries, sites } = delivered;
        for (name, state) in sites.into_iter().filter(|(name, _)| index(name) as u16 != LOST) {
            let delivery = deliveries.remove(&name).unwrap();
            let (message, state) = state.mask(delivery, common::input(&parameters, index(&name))).unwrap();
            server.receive(&name, &message).unwrap();
            transcript.insert(index(&name) as u16, MaskedInput::decode(&message).unwrap().payload.to_vec());
            masked.insert(name, state);
        }
        let (survivors, server) = server.close().unwrap();
        let signed = agree(common::Collected { server, survivors, sites: masked }, |_| true).unwrap();
        let input = |u: u16| common::input(&parameters, usize::from(u)).iter().collect();
        let inputs = honest.iter().map(|&u| (u, input(u))).collect();
        let session = Self { graph, honest, inputs, self_masks, pair_masks, transcript, signed };
        for (&u, input) in &session.inputs {
            let payload = session.masked(u, input, &Other::default());
            assert_eq!(payload, session.transcript[&u], "the model of the transcript is exact");
        }
        session
    }

    /// y_u for given inputs and given masks; all others as they are.
    fn masked(&self, u: u16, input: &[u32], other: &Other) -> Vec<u8> {
        let mut y = input.to_vec();
        add(&mut y, other.own.get(&u).unwrap_or(&self.self_masks[&u]), false);
        for &v in self.graph.neighbours(u) {
            let edge = (u.min(v), u.max(v));
            add(&mut y, other.between.get(&edge).unwrap_or(&self.pair_masks[&edge]), subtracts(u, v));
        }
        let mut bytes = Vec::new();
        ring(&y).pack_into(&mut bytes);
        bytes
    }

    /// Inputs of the same sum that differ at every honest survivor.
    fn others_of_the_same_sum(&self) -> BTreeMap<u16, Vec<u32>> {
        let mut other = self.inputs.clone();
        for (step, u) in self.honest.iter().enumerate().skip(1) {
            let shift: Vec<u32> = (0..COORDINATES).map(|c| c.wrapping_mul(31 * step as u32 + 17)).collect();
            add(other.get_mut(u).unwrap(), &shift, false);
            add(other.get_mut(&self.honest[0]).unwrap(), &shift, true);
        }
        assert!(self.honest.iter().all(|u| other[u] != self.inputs[u]));
        other
    }

    /// Masks between honest survivors that explain other inputs at all of them but `root`: fix all but a spanning tree, solve from its leaves. Returns also what
    /// is left over at the root: how much larger the sum wanted is.
    fn explain(&self, wanted: &BTreeMap<u16, Vec<u32>>, root: u16) -> (Other, Vec<u32>) {
        let mut tree = vec![(root, root)];
        let mut next = 0;
        while next < tree.len() {
            let u = tree[next].0;
            for v in self.graph.neighbours(u).iter().filter(|v| self.honest.contains(v)) {
                if !tree.iter().any(|(seen, _)| seen == v) {
                    tree.push((*v, u));
                }
            }
            next += 1;
        }
        assert_eq!(tree.len(), self.honest.len(), "honest survivors are connected");
        let mut other = Other::default();
        // What is still to be moved from a site to its parent in the tree.
        let mut excess: BTreeMap<u16, Vec<u32>> = wanted.clone();
        excess.iter_mut().for_each(|(u, x)| add(x, &self.inputs[u], true));
        for &(u, parent) in tree[1..].iter().rev() {
            let moved = excess.remove(&u).unwrap();
            let edge = (u.min(parent), u.max(parent));
            let mut mask = self.pair_masks[&edge].clone();
            add(&mut mask, &moved, !subtracts(u, parent));
            other.between.insert(edge, mask);
            add(excess.get_mut(&parent).unwrap(), &moved, false);
        }
        (other, excess.remove(&root).unwrap())
    }

    fn explained(&self, wanted: &BTreeMap<u16, Vec<u32>>, other: &Other) -> usize {
        self.honest.iter().filter(|u| self.masked(**u, &wanted[*u], other) == self.transcript[*u]).count()
    }
}

/// The lemma of Bonawitz et al. 2017 (lemma 6.1) on the very transcript: the server and two colluding sites hold every
/// masked input, every self mask that was opened, and every pairwise mask with a colluder or a lost site. For any other inputs
/// of the honest survivors with the same sum there are pairwise masks between them that give the same transcript, byte by
/// byte; for inputs with another sum there are none. The masks themselves are unknown: their keys are agreed by X25519, and of
/// the shares of those keys' seeds the colluders hold fewer than the threshold.
#[test]
fn the_servers_view_is_the_same_for_all_inputs_with_the_same_sum() {
    let session = Session::new();
    let all = session.honest.len();
    let other = session.others_of_the_same_sum();
    let (masks, _) = session.explain(&other, session.honest[0]);
    assert_eq!(session.explained(&other, &masks), all);
    // One more in one coordinate is another sum: the tree's root cannot be explained.
    let mut wrong = other.clone();
    wrong.get_mut(&session.honest[3]).unwrap()[9] ^= 1;
    let (masks, _) = session.explain(&wrong, session.honest[0]);
    assert_eq!(session.explained(&wrong, &masks), all - 1);
}

/// A session that fails in round 4, after the lost site's mask key and the self masks of some survivors have opened, and not those of others. Then the
/// view fits inputs of *any* sum: what is wanted besides goes into a self mask of which fewer shares than the threshold are known.
#[test]
fn a_half_opened_session_tells_not_even_the_sum() {
    let mut session = Session::new();
    let threshold = usize::from(SHAPE.threshold);
    // Colluders tell all they have; honest sites answer one after another until something has opened.
    let mut told: Vec<u16> = COLLUDERS.to_vec();
    let shares = |told: &[u16], v: u16| {
        session.graph.neighbours(v).iter().chain([&v]).filter(|u| told.contains(u)).count()
    };
    for u in session.honest.iter().copied() {
        let opened = session.honest.iter().filter(|v| shares(&told, **v) >= threshold).count();
        if opened >= 2 && shares(&told, LOST) >= threshold {
            break;
        }
        told.push(u);
    }
    let (opened, shut): (Vec<u16>, Vec<u16>) =
        session.honest.iter().copied().partition(|v| shares(&told, *v) >= threshold);
    assert!(shares(&told, LOST) >= threshold && opened.len() >= 2 && !shut.is_empty(), "{opened:?} {shut:?}");

    // The server has in fact too few, and what it has is refused an end.
    let common::Signed { mut server, list, sites } =
        std::mem::replace(&mut session.signed, Session::new().signed);
    for (name, state) in sites.into_iter().filter(|(name, _)| told.contains(&(index(name) as u16))) {
        server.receive(&name, state.unmask(list.clone(), &common::Authority).unwrap().0).unwrap();
    }
    assert!(!server.is_ready());
    let error = server.finish().unwrap_err();
    assert!(matches!(error.problem(), Problem::TooFewShares { .. }), "{error}");

    let same = session.others_of_the_same_sum();
    let mut another = same.clone();
    for (step, input) in (1..).zip(another.values_mut()) {
        let shift: Vec<u32> = (0..COORDINATES).map(|c| c.wrapping_mul(77 * step) ^ step).collect();
        add(input, &shift, false);
    }
    for root in shut {
        for wanted in [&session.inputs, &same, &another] {
            let (mut masks, rest) = session.explain(wanted, root);
            let mut own = session.self_masks[&root].clone();
            add(&mut own, &rest, true);
            masks.own.insert(root, own);
            assert_eq!(session.explained(wanted, &masks), session.honest.len(), "closed at {root}");
        }
    }
    // Were all self masks open, as they are after a session that ends, another sum would not fit.
    let (masks, _) = session.explain(&another, session.honest[0]);
    assert_eq!(session.explained(&another, &masks), session.honest.len() - 1);
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
