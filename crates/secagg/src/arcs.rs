//! A server that cuts arcs out of the ring, and the lemma of docs/threat-model.md, section 5, on random graphs. A child of the site's module, because
//! only there the order on the ring can be seen.

use super::view::common;
use super::*;
use crate::error::Fault;
use crate::graph::permutation;
use crate::topology::{Adversary, Assumptions, Topology};
use common::{Identity, advertise, input, parameters, rng, share, site};
use medinet_types::Digest;
use rand_core::Rng as _;

const N: u16 = 30;
const COORDINATES: u32 = 20;

/// The sites in their order on the ring.
fn ring(roster: &Roster) -> Vec<u16> {
    permutation(&Roster::graph_seed(&roster.digest), roster.len())
}

fn set(n: u16, members: impl IntoIterator<Item = u16>) -> MemberSet {
    let mut set = MemberSet::none(n);
    members.into_iter().for_each(|member| set.insert(member));
    set
}

/// Everyone but half a neighbourhood that lies together on the ring, and everyone but a fifth that is spread over it: the first would leave sites with
/// neighbours on one side only, the second is what honest losses look like.
fn cut_and_spread(roster: &Roster) -> (MemberSet, MemberSet) {
    let (ring, arc) = (ring(roster), usize::from(roster.topology.neighbours / 2));
    let spread = ring.iter().enumerate().filter(|(place, _)| place % 5 != 0).map(|(_, member)| *member);
    (set(N, ring[arc..].iter().copied()), set(N, spread))
}

fn sparse() -> Topology {
    let topology = Topology::choose(N, &Assumptions::default()).unwrap();
    assert_eq!(topology, Topology { neighbours: 20, threshold: 14, quorum: 17 }, "a test of sparse graphs");
    topology
}

#[track_caller]
fn is_cut<T>(result: Result<T, Error>) {
    let Err(error) = result else { panic!("expected a site to refuse a set with an arc cut out") };
    assert_eq!(error.fault(), &Fault::Server, "{error}");
    assert!(matches!(error.problem(), Problem::Neighbours { .. }), "{error:?}");
}

/// U2: the server says that a whole arc has not shared, and delivers the others' shares faithfully.
#[test]
fn a_site_puts_no_input_under_masks_where_an_arc_of_sharers_is_cut_out() {
    let parameters = parameters(COORDINATES, 9);
    let shared = advertise(&parameters, N.into(), sparse(), SitePolicy::default());
    let delivered = share(shared, |_| true).unwrap();
    let mut refused = 0;
    for (i, state) in (0..).zip(delivered.sites.into_values()) {
        let (cut, spread) = cut_and_spread(&state.roster);
        assert!(cut.len() >= usize::from(state.roster.topology.quorum), "the count alone refuses nothing");
        // Some sites see the honest losses instead, so that it is the arc that is refused.
        let sharers = if i % 6 == 0 { spread } else { cut.clone() };
        if !sharers.contains(i) {
            continue;
        }
        let honest = &delivered.deliveries[state.roster.site(i)];
        let dealers = state.roster.graph.neighbours(i);
        let shares = dealers.iter().zip(&honest.shares).filter(|(dealer, _)| sharers.contains(**dealer));
        let shares = shares.map(|(_, share)| share.clone()).collect();
        let is_honest = sharers != cut;
        let delivery = ShareDelivery { session: honest.session, sharers, shares };
        let result = state.mask(delivery, input(&parameters, i.into()));
        if is_honest {
            result.unwrap();
        } else {
            is_cut(result);
            refused += 1;
        }
    }
    assert!(refused >= 10, "{refused}");
}

/// U3: everyone has shared and masked, and the server says that a whole arc's inputs have not come.
#[test]
fn a_site_signs_no_survivors_from_whom_an_arc_is_cut_out() {
    let parameters = parameters(COORDINATES, 9);
    let shared = advertise(&parameters, N.into(), sparse(), SitePolicy::default());
    let collected = common::mask(&parameters, share(shared, |_| true).unwrap(), |_| true).unwrap();
    let session = parameters.id();
    let mut refused = 0;
    for (i, state) in (0..).zip(collected.sites.into_values()) {
        let (cut, spread) = cut_and_spread(&state.roster);
        let survivors = if i % 6 == 0 { spread } else { cut.clone() };
        if !survivors.contains(i) {
            continue;
        }
        let is_honest = survivors != cut;
        let result = state.agree(Survivors { session, survivors }, &Identity(site(i.into())));
        if is_honest {
            result.unwrap();
        } else {
            is_cut(result);
            refused += 1;
        }
    }
    assert!(refused >= 10, "{refused}");
}

/// A roster of sites that exist by name only; the graph follows from `seed`.
fn roster(n: u16, topology: Topology, seed: u64) -> Roster {
    let session = parameters(1, 1).id();
    let member = |i: u16| Advertisement {
        session,
        site: site(i.into()),
        cipher_key: Digest::of(&seed.to_le_bytes()).0,
        mask_key: [0; 32],
        self_mask: Digest::of(b""),
        credential: Vec::new(),
        signature: Vec::new(),
    };
    Roster::new(KeyList { session, topology, members: (0..n).map(member).collect() })
}

/// Whether the honest sites of `set` can all reach each other along edges between them.
fn honest_are_connected(roster: &Roster, set: &MemberSet, colludes: &[bool]) -> bool {
    let honest: Vec<u16> = set.iter().filter(|member| !colludes[usize::from(*member)]).collect();
    let Some(first) = honest.first() else { return true };
    let mut reached = vec![false; colludes.len()];
    let mut next = vec![*first];
    reached[usize::from(*first)] = true;
    while let Some(member) = next.pop() {
        for other in roster.neighbours_in(member, set) {
            let index = usize::from(other);
            if !colludes[index] && !reached[index] {
                reached[index] = true;
                next.push(other);
            }
        }
    }
    honest.iter().all(|member| reached[usize::from(*member)])
}

/// Everyone but the honest sites of two arcs of the ring: colluders in them stay, to be counted as neighbours of those beside them.
fn without_two_arcs(roster: &Roster, colludes: &[bool], arcs: [(usize, usize); 2]) -> MemberSet {
    let ring = ring(roster);
    let in_an_arc = |place: usize| {
        arcs.iter().any(|(start, length)| (place + ring.len() - start % ring.len()) % ring.len() < *length)
    };
    let stays = |(place, member): &(usize, u16)| !in_an_arc(*place) || colludes[usize::from(*member)];
    set(roster.len(), ring.iter().copied().enumerate().filter(stays).map(|(_, member)| member))
}

/// The lemma: survivors that a site accepts leave the honest ones among them connected, whatever topology it has accepted, whoever colludes and whomever
/// the server drops. Under a threshold of half the neighbours arcs that cut the ring would pass: this test would see them.
#[test]
fn accepted_survivors_leave_honest_sites_connected() {
    let mut rng = rng(4);
    let mut below = |bound: u16| (rng.next_u64() % u64::from(bound)) as u16;
    let (mut sparse, mut accepted, mut refused, mut cut_under_half) = (0, 0, 0, 0);
    for seed in 0..600 {
        let n = 20 + below(180);
        let assumptions = Assumptions {
            adversary: Adversary::Malicious,
            corrupt_permille: [0, 20, 50, 100][usize::from(below(4))],
            colluders: below(3),
            grinding_bits: [0, 40][usize::from(below(2))],
            ..Assumptions::default()
        };
        // A topology of the server's, odd degrees and bare thresholds among them, that the site accepts.
        let neighbours = 4 + below(n / 2);
        let mut topology = Topology { neighbours, threshold: 2, quorum: n };
        while topology.check(n, &assumptions).is_err() && topology.threshold <= neighbours {
            topology.threshold += 1;
        }
        if topology.check(n, &assumptions).is_err() || topology.threshold > neighbours {
            continue;
        }
        sparse += 1;
        let half = Topology { threshold: neighbours / 2, ..topology };
        let (real, lax) = (roster(n, topology, seed), roster(n, half, seed));
        let lax = Roster { graph: real.graph.clone(), digest: real.digest, ..lax };
        let mut colludes = vec![false; n.into()];
        let mut left = assumptions.corrupt(n);
        while left > 0 {
            let member = usize::from(below(n));
            left -= u16::from(!std::mem::replace(&mut colludes[member], true));
        }
        for trial in 0..12 {
            let survivors = if trial % 4 == 3 {
                let permille = 500 + below(500);
                set(n, (0..n).filter(|_| below(1000) < permille))
            } else {
                let arc = |length: u16| (usize::from(length), usize::from((neighbours / 2 + 1).max(2)));
                let (first, second) = (arc(below(n)), arc(below(n)));
                // Just long enough to cut, one more, or one less.
                let length = (first.1 - 2) + usize::from(below(3));
                without_two_arcs(&real, &colludes, [(first.0, length), (second.0, length)])
            };
            let connected = honest_are_connected(&real, &survivors, &colludes);
            if real.check_survivors(&survivors, &survivors).is_ok() {
                accepted += 1;
                assert!(connected, "{n} sites, {topology:?}, {assumptions:?}, seed {seed}, trial {trial}");
            } else {
                refused += 1;
            }
            cut_under_half += u32::from(!connected && lax.check_survivors(&survivors, &survivors).is_ok());
        }
    }
    println!(
        "{sparse} graphs, {accepted} sets accepted, {refused} refused; {cut_under_half} cut the honest sites apart under a lax threshold"
    );
    assert!(sparse > 50 && accepted > 50 && refused > 50 && cut_under_half > 10);
}
