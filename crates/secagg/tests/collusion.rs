//! A server that chooses the cohort: colluders of its own beside few honest sites.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{Authority, Identity, advertise, input, parameters, rng, site, trusting};
use medinet_secagg::{
    Adversary, Assumptions, Error, Fault, MemberSet, Problem, ShareDelivery, SitePolicy, Survivors, Topology,
};
use rand_core::Rng as _;

fn policy(colluders: u16, corrupt_permille: u16) -> SitePolicy {
    let adversary = Adversary::Malicious;
    let assumptions =
        Assumptions { adversary, colluders, corrupt_permille, grinding_bits: 0, ..Assumptions::default() };
    SitePolicy { minimum_cohort: 3, minimum_survivors: 3, assumptions }
}

/// In a federation of twenty a tenth is two. A list of three has none by the share alone: the server and two colluders on it would take away what
/// they know, and have the third one's input. A fixed number of two is two there as well.
#[test]
fn colluders_that_are_shown_as_the_whole_cohort_are_refused() {
    let parameters = parameters(20, 8);
    let enter = |policy: SitePolicy, n: usize, topology: Topology| {
        let mut shared = advertise(&parameters, n, topology, trusting());
        let own = advertise(&parameters, n, topology, policy).sites.remove(&site(0)).unwrap();
        shared.sites.clear();
        own.share_keys(shared.list, &Authority, &mut rng(9)).map(|_| ())
    };
    let three = Topology { neighbours: 2, threshold: 2, quorum: 2 };
    enter(policy(0, 100), 3, three).unwrap();
    for topology in [three, Topology { threshold: 3, quorum: 3, ..three }] {
        let error = enter(policy(2, 100), 3, topology).unwrap_err();
        assert_eq!(error.fault(), &Fault::Server);
        assert_eq!(error.problem(), &Problem::Colluders { sites: 3, colluders: 2, expected: 4 });
        let text = error.to_string();
        assert!(text.contains("at least 4") && text.contains("server") && text.contains("policy"), "{text}");
    }
    // Four sites hide two honest ones, if all four must agree and three hold a secret.
    let four = Topology { neighbours: 3, threshold: 3, quorum: 4 };
    enter(policy(2, 100), 4, four).unwrap();
    for lax in [Topology { threshold: 2, ..four }, Topology { quorum: 3, ..four }] {
        assert!(matches!(enter(policy(2, 100), 4, lax).unwrap_err().problem(), Problem::Topology { .. }));
    }
}

/// One site against a server that proposes what it likes: a list of any length, any shape, any sets. `None` where the others, who trust it, already refuse.
fn signs(policy: SitePolicy, n: u16, topology: Topology, lost: [u64; 2]) -> Option<Result<usize, Error>> {
    let parameters = parameters(4, 8);
    let others = advertise(&parameters, n.into(), topology, trusting());
    let list = others.list.clone();
    let own = advertise(&parameters, n.into(), topology, policy).sites.remove(&site(0))?;
    // Both have the same keys: they are drawn from the same seeds.
    let others = common::share(others, |i| i == 0 || lost[0] >> i & 1 == 0).ok()?;
    let sharers = others.deliveries.get(&site(0))?.sharers.clone();
    let stays = |i: &u16| *i == 0 || lost[1] >> i & 1 == 0;
    let bits = sharers.iter().filter(stays).fold(vec![0u8; usize::from(n).div_ceil(8)], |mut bits, i| {
        bits[usize::from(i / 8)] |= 1 << (i % 8);
        bits
    });
    // As the wire builds it.
    let bytes: Vec<u8> = [bits.len() as u8].into_iter().chain(bits).collect();
    let survivors: MemberSet = postcard::from_bytes(&bytes).unwrap();
    let ShareDelivery { session, .. } = others.deliveries[&site(0)];
    let run = || -> Result<usize, Error> {
        let (_, own) = own.share_keys(list, &Authority, &mut rng(1_000_000))?;
        let (_, own) = own.mask(others.deliveries[&site(0)].clone(), input(&parameters, 0))?;
        let count = survivors.len();
        own.agree(Survivors { session, survivors }, &Identity(site(0)))?;
        Ok(count)
    };
    Some(run())
}

/// A site signs no set, and so helps to open no sum, that has not two sites more than it takes to collude.
#[test]
fn every_sum_that_a_site_signs_has_two_honest_sites() {
    let mut rng = rng(5);
    let mut below = |bound: u64| rng.next_u64() % bound;
    let (mut signed, mut least, mut too_few, mut refused) = (0, 0, 0, 0);
    for _ in 0..600 {
        let n = 2 + below(8) as u16;
        let colluders = below(5) as u16;
        let corrupt_permille = [0, 100, 400][below(3) as usize];
        // Of the shapes that a site which trusts everybody enters; the least ones more often than the others.
        let quorum = (n / 2 + 1 + below(3) as u16).min(n);
        let threshold = (2 + below(4) as u16).min(n);
        let topology = Topology { neighbours: n - 1, threshold, quorum };
        let site =
            SitePolicy { minimum_cohort: 2, minimum_survivors: 2, ..policy(colluders, corrupt_permille) };
        let lost = [below(1 << 10) & below(1 << 10) & below(1 << 10), below(1 << 10) & below(1 << 10)];
        let assumed = site.assumptions.corrupt(n).max(colluders);
        match signs(site, n, topology, lost) {
            Some(Ok(survivors)) => {
                signed += 1;
                least += u32::from(survivors == usize::from(assumed) + 2);
                assert!(
                    survivors >= usize::from(assumed) + 2,
                    "{survivors} of {n} sites in a sum where {assumed} may collude, {topology:?}"
                );
            }
            Some(Err(error)) if matches!(error.problem(), Problem::Colluders { .. }) => too_few += 1,
            Some(Err(error)) => {
                assert_eq!(error.fault(), &Fault::Server, "{error}");
                refused += 1;
            }
            None => {}
        }
    }
    println!(
        "{signed} sums signed, {least} of them with two honest sites at worst; {too_few} lists too short, {refused} refused otherwise"
    );
    assert!(signed > 50 && least > 5 && too_few > 50 && refused > 50);
}
