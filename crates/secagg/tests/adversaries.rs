//! Messages that are forged, replayed, swapped, inconsistent or cut: each is refused, and the error names who is at fault.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{
    Authority, Collected, Delivered, Identity, Shared, Signed, Sites, advertise, agree, input, mask,
    parameters, rng, share, site, sum, trusting,
};
use medinet_secagg::message::{VERSION, agreement_bytes};
use medinet_secagg::site::{Advertised, KeysShared, Masked};
use medinet_secagg::{
    Advertisement, Agreement, Assumptions, Error, Fault, KeyList, KeyShares, MaskedInput, MemberSet,
    Message as _, Problem, SessionParameters, ShareDelivery, SignFailure, Signer, SitePolicy, Survivors,
    Topology, Unmasking, server,
};
use medinet_types::{RoundNumber, SiteId};

const N: usize = 5;
const SHAPE: Topology = Topology { neighbours: 4, threshold: 3, quorum: 4 };

fn four_rounds() -> SessionParameters {
    parameters(40, 12)
}

fn shared() -> Shared {
    advertise(&four_rounds(), N, SHAPE, trusting())
}

fn delivered() -> Delivered {
    share(shared(), |_| true).unwrap()
}

fn collected() -> Collected {
    mask(&four_rounds(), delivered(), |_| true).unwrap()
}

fn signed() -> Signed {
    agree(collected(), |_| true).unwrap()
}

fn take<S>(sites: &mut Sites<S>, i: usize) -> S {
    sites.remove(&site(i)).unwrap()
}

#[track_caller]
fn blames_server<T>(result: Result<T, Error>, what: fn(&Problem) -> bool) {
    blames(result, &Fault::Server, what);
}

#[track_caller]
fn blames_site<T>(result: Result<T, Error>, i: usize, what: fn(&Problem) -> bool) {
    blames(result, &Fault::Site(site(i)), what);
}

#[track_caller]
fn blames<T>(result: Result<T, Error>, fault: &Fault, what: fn(&Problem) -> bool) {
    let Err(error) = result else { panic!("expected an error that blames {fault:?}") };
    assert_eq!(error.fault(), fault, "{error}");
    assert!(what(error.problem()), "{error:?}");
}

fn other_sessions() -> [SessionParameters; 4] {
    let base = four_rounds();
    [
        SessionParameters { round: RoundNumber(8), ..base.clone() },
        SessionParameters { attempt: 2, ..base.clone() },
        SessionParameters { coordinates: 41, ..base.clone() },
        SessionParameters { purpose: medinet_types::Digest::of(b"other plan"), ..base },
    ]
}

// Round 0, at the server.

#[test]
fn a_forged_or_altered_advertisement_blames_its_sender() {
    let mut server = server::Advertising::new(four_rounds()).unwrap();
    let start = |signer: &Identity| {
        Advertised::start(four_rounds(), site(0), trusting(), signer, &mut rng(0)).unwrap().0
    };
    let forged = start(&Identity(site(1)));
    let is_signature = |p: &Problem| matches!(p, Problem::AdvertisementSignature { .. });
    blames_site(server.receive(&site(0), forged, &Authority), 0, is_signature);
    let good = start(&Identity(site(0)));
    let alterations: [fn(&mut Advertisement); 5] = [
        |a: &mut Advertisement| a.cipher_key[3] ^= 1,
        |a: &mut Advertisement| a.mask_key[3] ^= 1,
        |a: &mut Advertisement| a.self_mask.0[3] ^= 1,
        |a: &mut Advertisement| a.signature[3] ^= 1,
        |a: &mut Advertisement| a.credential[3] ^= 1,
    ];
    for alter in alterations {
        let mut altered = good.clone();
        alter(&mut altered);
        blames_site(server.receive(&site(0), altered, &Authority), 0, is_signature);
    }
    blames_site(server.receive(&site(1), good.clone(), &Authority), 1, |p| {
        matches!(p, Problem::Sender { .. })
    });
    server.receive(&site(0), good.clone(), &Authority).unwrap();
    blames_site(server.receive(&site(0), good, &Authority), 0, |p| matches!(p, Problem::Duplicate { .. }));
    assert_eq!(server.received(), 1);
}

#[test]
fn an_advertisement_of_another_session_blames_its_sender() {
    for other in other_sessions() {
        let mut server = server::Advertising::new(four_rounds()).unwrap();
        let (message, _) =
            Advertised::start(other, site(0), trusting(), &Identity(site(0)), &mut rng(0)).unwrap();
        blames_site(server.receive(&site(0), message, &Authority), 0, |p| {
            matches!(p, Problem::Session { .. })
        });
    }
}

#[test]
fn a_key_that_refuses_to_sign_blames_the_environment() {
    struct Locked;
    impl Signer for Locked {
        fn credential(&self) -> Vec<u8> {
            Vec::new()
        }
        fn sign(&self, _: &[u8]) -> Result<Vec<u8>, SignFailure> {
            Err(SignFailure("the TPM is locked".to_owned()))
        }
    }
    let result = Advertised::start(four_rounds(), site(0), trusting(), &Locked, &mut rng(0));
    blames(result.map(|_| ()), &Fault::Environment, |p| matches!(p, Problem::Signing(_)));
    let Collected { survivors, mut sites, .. } = collected();
    let result = take(&mut sites, 0).agree(survivors, &Locked);
    blames(result, &Fault::Environment, |p| matches!(p, Problem::Signing(_)));
}

// Round 0, at a site: the key list.

fn show_list(alter: impl FnOnce(&mut KeyList)) -> Result<(KeyShares, KeysShared), Error> {
    let Shared { mut list, mut sites, .. } = shared();
    alter(&mut list);
    take(&mut sites, 0).share_keys(list, &Authority, &mut rng(9))
}

#[test]
fn a_key_list_with_keys_that_their_site_did_not_sign_blames_the_server() {
    // A server in the middle puts its own keys in place of a site's.
    blames_server(show_list(|l| l.members[2].mask_key = [9; 32]), |p| {
        matches!(p, Problem::AdvertisementSignature { .. })
    });
    blames_server(show_list(|l| l.members[2].signature.clear()), |p| {
        matches!(p, Problem::AdvertisementSignature { .. })
    });
    // Keys of another session, properly signed there: a replay.
    for other in other_sessions() {
        let result = show_list(|list| {
            let identity = Identity(site(2));
            list.members[2] =
                Advertised::start(other, site(2), trusting(), &identity, &mut rng(2)).unwrap().0;
        });
        blames_server(result, |p| matches!(p, Problem::Session { .. }));
    }
}

#[test]
fn a_key_list_that_omits_repeats_reorders_or_changes_sites_blames_the_server() {
    blames_server(show_list(|l| drop(l.members.remove(0))), |p| {
        matches!(p, Problem::Topology { .. } | Problem::OwnAdvertisement)
    });
    blames_server(
        show_list(|l| {
            l.members.remove(0);
            l.topology = Topology { neighbours: 3, threshold: 3, quorum: 3 };
        }),
        |p| matches!(p, Problem::OwnAdvertisement),
    );
    blames_server(show_list(|l| l.members.swap(1, 2)), |p| matches!(p, Problem::MemberOrder));
    blames_server(show_list(|l| l.members[1] = l.members[2].clone()), |p| matches!(p, Problem::MemberOrder));
    blames_server(show_list(|l| l.members[0].mask_key[0] ^= 1), |p| matches!(p, Problem::OwnAdvertisement));
    let (_, _) = show_list(|_| ()).unwrap();
}

#[test]
fn a_site_insists_on_its_own_minimum_cohort_threshold_and_quorum() {
    let with = |policy: SitePolicy, topology: Topology| {
        let Shared { list, mut sites, .. } = advertise(&four_rounds(), N, topology, policy);
        take(&mut sites, 0).share_keys(list, &Authority, &mut rng(9)).map(|_| ())
    };
    with(trusting(), SHAPE).unwrap();
    let large = SitePolicy { minimum_cohort: N as u16 + 1, ..trusting() };
    blames_server(with(large, SHAPE), |p| matches!(p, Problem::Count { .. }));
    let assumptions = Assumptions { corrupt_permille: 400, ..trusting().assumptions };
    let wary = SitePolicy { assumptions, ..trusting() };
    // Two of five collude: a threshold of 2 would give them every secret, a quorum of 3 two different sums.
    with(wary, SHAPE).unwrap();
    for lax in [Topology { threshold: 2, ..SHAPE }, Topology { quorum: 3, ..SHAPE }] {
        blames_server(with(wary, lax), |p| matches!(p, Problem::Topology { .. }));
    }
    for absurd in [
        Topology { neighbours: 0, ..SHAPE },
        Topology { neighbours: 5, ..SHAPE },
        Topology { threshold: 6, ..SHAPE },
        Topology { quorum: 6, ..SHAPE },
    ] {
        blames_server(show_list(|l| l.topology = absurd), |p| matches!(p, Problem::Topology { .. }));
    }
}

#[test]
fn a_key_of_small_order_blames_its_site() {
    // The site signs it itself: the server could not.
    let result = show_list(|list| {
        let member = &mut list.members[2];
        member.cipher_key = [0; 32];
        member.signature = Identity(site(2)).sign(&member.signed_bytes()).unwrap();
    });
    blames_site(result, 2, |p| matches!(p, Problem::WeakKey { .. }));
}

// Round 1.

#[test]
fn key_shares_of_strangers_other_sessions_or_counts_blame_their_sender() {
    let Shared { mut server, list, mut sites } = shared();
    let (good, _) = take(&mut sites, 1).share_keys(list.clone(), &Authority, &mut rng(1)).unwrap();
    blames_site(server.receive(&site(77), good.clone()), 77, |p| matches!(p, Problem::NotMember { .. }));
    let mut short = good.clone();
    short.shares.pop();
    blames_site(server.receive(&site(1), short), 1, |p| matches!(p, Problem::Count { .. }));
    let other = KeyShares { session: other_sessions()[1].id(), ..good.clone() };
    blames_site(server.receive(&site(1), other), 1, |p| matches!(p, Problem::Session { .. }));
    server.receive(&site(1), good.clone()).unwrap();
    blames_site(server.receive(&site(1), good), 1, |p| matches!(p, Problem::Duplicate { .. }));
    assert_eq!(server.missing().len(), N - 1);
}

fn deliver(i: usize, alter: impl FnOnce(&mut ShareDelivery)) -> Result<(Vec<u8>, Masked), Error> {
    let Delivered { mut deliveries, mut sites, .. } = delivered();
    let mut delivery = deliveries.remove(&site(i)).unwrap();
    alter(&mut delivery);
    take(&mut sites, i).mask(delivery, input(&four_rounds(), i))
}

#[test]
fn damaged_swapped_or_reflected_shares_do_not_open() {
    let is_sealed = |p: &Problem| matches!(p, Problem::SealedShare { .. });
    blames_site(deliver(0, |d| d.shares[1].sealed[0][0] ^= 1), 2, is_sealed);
    blames_site(deliver(0, |d| d.shares[1].tag[0] ^= 1), 2, is_sealed);
    blames_site(deliver(0, |d| d.shares.swap(1, 2)), 2, is_sealed);
    // A share for site 1 shown to site 0, and site 0's own share for site 1 reflected to it.
    let mut deliveries = delivered().deliveries;
    let for_one = deliveries.remove(&site(1)).unwrap();
    blames_site(deliver(0, |d| d.shares[1] = for_one.shares[1].clone()), 2, is_sealed);
    blames_site(deliver(0, |d| d.shares[0] = for_one.shares[0].clone()), 1, is_sealed);
    deliver(0, |_| ()).unwrap();
}

#[test]
fn shares_sealed_under_another_key_list_do_not_open() {
    // The server shows site 1 another cohort than site 0, under the same session.
    let Shared { mut server, list, mut sites } = shared();
    let policy = trusting();
    let identity = Identity(site(9));
    let stranger = Advertised::start(four_rounds(), site(9), policy, &identity, &mut rng(9)).unwrap().0;
    let mut other = list.clone();
    other.members[4] = stranger;
    let mut states = Vec::new();
    for i in 0..N {
        let shown = if i == 1 { other.clone() } else { list.clone() };
        if i == 4 {
            server.receive(&site(4), states_message(&mut sites, 4, shown, &mut states)).unwrap();
            continue;
        }
        let message = states_message(&mut sites, i, shown, &mut states);
        server.receive(&site(i), message).unwrap();
    }
    let (deliveries, _) = server.close().unwrap();
    let delivery = deliveries.into_iter().next().unwrap().1;
    let result = states.remove(0).mask(delivery, input(&four_rounds(), 0));
    blames_site(result, 1, |p| matches!(p, Problem::SealedShare { .. }));
}

fn states_message(
    sites: &mut Sites<Advertised>,
    i: usize,
    list: KeyList,
    states: &mut Vec<KeysShared>,
) -> KeyShares {
    let (message, state) = take(sites, i).share_keys(list, &Authority, &mut rng(100 + i as u64)).unwrap();
    states.push(state);
    message
}

#[test]
fn a_share_that_is_not_the_committed_one_blames_its_dealer() {
    blames_site(deliver(0, |d| d.shares[1].commitments[0][0] ^= 1), 2, |p| {
        matches!(p, Problem::ShareCommitment { .. })
    });
    blames_site(deliver(0, |d| d.shares[1].commitments.swap(0, 1)), 2, |p| {
        matches!(p, Problem::ShareCommitment { .. })
    });
}

#[test]
fn a_delivery_that_contradicts_itself_or_the_policy_blames_the_server() {
    let set = |members: &[u16]| {
        // Built as the wire builds it: one byte of five bits.
        let byte = members.iter().fold(0u8, |bits, m| bits | 1 << m);
        postcard::from_bytes::<MemberSet>(&[1, byte]).unwrap()
    };
    blames_server(deliver(0, |d| d.shares.truncate(3)), |p| matches!(p, Problem::Count { .. }));
    blames_server(deliver(0, |d| d.sharers = set(&[1, 2, 3, 4])), |p| matches!(p, Problem::Set { .. }));
    blames_server(deliver(0, |d| d.sharers = set(&[0, 1, 2, 3, 4, 5])), |p| matches!(p, Problem::Set { .. }));
    blames_server(deliver(0, |d| d.sharers = MemberSet::none(16)), |p| matches!(p, Problem::Set { .. }));
    blames_server(deliver(0, |d| d.sharers = set(&[0, 1])), |p| matches!(p, Problem::Count { .. }));
    blames_server(deliver(0, |d| d.session = other_sessions()[0].id()), |p| {
        matches!(p, Problem::Session { .. })
    });
}

#[test]
fn an_input_of_another_ring_blames_the_caller() {
    let Delivered { mut deliveries, mut sites, .. } = delivered();
    for (i, other) in [parameters(41, 12), parameters(40, 13)].iter().enumerate() {
        let delivery = deliveries.remove(&site(i)).unwrap();
        let result = take(&mut sites, i).mask(delivery, input(other, i));
        blames(result, &Fault::Caller, |p| matches!(p, Problem::Input { .. }));
    }
}

// Round 2.

#[test]
fn cut_padded_replayed_or_doubled_inputs_blame_their_sender_and_leave_the_sum() {
    let parameters = four_rounds();
    let Delivered { mut server, mut deliveries, mut sites } = delivered();
    let mut messages = Vec::new();
    let mut states = Sites::new();
    for i in 0..N {
        let delivery = deliveries.remove(&site(i)).unwrap();
        let (message, state) = take(&mut sites, i).mask(delivery, input(&parameters, i)).unwrap();
        messages.push(message);
        states.insert(site(i), state);
    }
    let good = &messages[0];
    for cut in [0, 1, 2, 20, good.len() - 1] {
        let result = server.receive(&site(0), &good[..cut]);
        blames_site(result, 0, |p| matches!(p, Problem::Decode(_) | Problem::Input { .. }));
    }
    let mut long = good.clone();
    long.push(0);
    blames_site(server.receive(&site(0), &long), 0, |p| matches!(p, Problem::Input { .. }));
    let mut other = good.clone();
    other[2] ^= 1;
    blames_site(server.receive(&site(0), &other), 0, |p| matches!(p, Problem::Session { .. }));
    blames_site(server.receive(&site(50), good), 50, |p| matches!(p, Problem::NotMember { .. }));
    for (i, message) in messages.iter().enumerate() {
        server.receive(&site(i), message).unwrap();
    }
    blames_site(server.receive(&site(0), good), 0, |p| matches!(p, Problem::Duplicate { .. }));
    let (survivors, server) = server.close().unwrap();
    let signed = agree(Collected { server, survivors, sites: states }, |_| true).unwrap();
    assert_eq!(common::open(signed, |_| true).unwrap().sum, sum(&parameters, 0..N));
}

// Round 3: the sets.

fn survivors_of(members: &[u16]) -> Survivors {
    let byte = members.iter().fold(0u8, |bits, m| bits | 1 << m);
    let survivors = postcard::from_bytes(&[1, byte]).unwrap();
    Survivors { session: four_rounds().id(), survivors }
}

fn show_survivors(members: &[u16]) -> Result<(), Error> {
    take(&mut collected().sites, 0).agree(survivors_of(members), &Identity(site(0))).map(|_| ())
}

#[test]
fn a_lie_about_the_survivors_blames_the_server() {
    show_survivors(&[0, 1, 2, 3]).unwrap();
    blames_server(show_survivors(&[1, 2, 3, 4]), |p| matches!(p, Problem::Set { .. }));
    blames_server(show_survivors(&[0, 1, 2, 3, 4, 5]), |p| matches!(p, Problem::Set { .. }));
    blames_server(show_survivors(&[0, 1]), |p| matches!(p, Problem::Count { .. }));
    let mut replayed = survivors_of(&[0, 1, 2, 3]);
    replayed.session = other_sessions()[1].id();
    let result = take(&mut collected().sites, 0).agree(replayed, &Identity(site(0)));
    blames_server(result, |p| matches!(p, Problem::Session { .. }));
    // Somebody in the sum who had not shared: site 4 is lost in round 1.
    let delivered = share(shared(), |i| i != 4).unwrap();
    let mut collected = mask(&four_rounds(), delivered, |_| true).unwrap();
    let result = take(&mut collected.sites, 0).agree(survivors_of(&[0, 1, 2, 3, 4]), &Identity(site(0)));
    blames_server(result, |p| matches!(p, Problem::Set { .. }));
}

#[test]
fn a_site_insists_on_its_own_minimum_of_survivors() {
    let policy = SitePolicy { minimum_survivors: 5, ..trusting() };
    let shared = advertise(&four_rounds(), N, SHAPE, policy);
    let mut collected = mask(&four_rounds(), share(shared, |_| true).unwrap(), |_| true).unwrap();
    let result = take(&mut collected.sites, 0).agree(survivors_of(&[0, 1, 2, 3]), &Identity(site(0)));
    blames_server(result, |p| matches!(p, Problem::Count { .. }));
}

#[test]
fn an_agreement_on_other_sets_blames_its_sender_at_the_server() {
    let Collected { mut server, survivors, mut sites } = collected();
    let (other, _) = take(&mut sites, 1).agree(survivors_of(&[0, 1, 2, 3]), &Identity(site(1))).unwrap();
    let is_signature = |p: &Problem| matches!(p, Problem::AgreementSignature { .. });
    blames_site(server.receive(&site(1), other, &Authority), 1, is_signature);
    let (good, _) = take(&mut sites, 0).agree(survivors, &Identity(site(0))).unwrap();
    blames_site(server.receive(&site(2), good.clone(), &Authority), 2, is_signature);
    server.receive(&site(0), good.clone(), &Authority).unwrap();
    blames_site(server.receive(&site(0), good, &Authority), 0, |p| matches!(p, Problem::Duplicate { .. }));
}

// Rounds 3 and 4: both kinds of share.

#[test]
fn a_server_that_asks_for_both_shares_of_a_site_is_refused() {
    // It tells sites 0 and 1 that everyone is in the sum, and the others that site 4 is lost. With what 0 and 1 know of
    // site 4's self mask and what 2 and 3 know of its mask key, and one colluder, it would open site 4's input.
    let Collected { mut sites, .. } = collected();
    let everyone = survivors_of(&[0, 1, 2, 3, 4]);
    let without = survivors_of(&[0, 1, 2, 3]);
    let mut agreements = Vec::new();
    let mut states = Vec::new();
    for i in 0..4usize {
        let shown = if i < 2 { &everyone } else { &without };
        let (message, state) = take(&mut sites, i).agree(shown.clone(), &Identity(site(i))).unwrap();
        agreements.push((i as u16, message.signature));
        states.push(state);
    }
    // No site reveals anything: no list holds a quorum for what it has signed.
    let list = |agreements: Vec<(u16, Vec<u8>)>| medinet_secagg::AgreementList {
        session: four_rounds().id(),
        agreements,
    };
    let is_signature = |p: &Problem| matches!(p, Problem::AgreementSignature { .. });
    let mut states = states.into_iter();
    let mut next = || states.next().unwrap();
    blames_server(next().unmask(list(agreements.clone()), &Authority), is_signature);
    blames_server(next().unmask(list(agreements[..2].to_vec()), &Authority), |p| {
        matches!(p, Problem::Count { .. })
    });
    let repeated = vec![agreements[2].clone(); 4];
    blames_server(next().unmask(list(repeated), &Authority), |p| matches!(p, Problem::MemberOrder));
    blames_server(next().unmask(list(agreements), &Authority), is_signature);
}

#[test]
fn forged_agreements_are_refused() {
    let Signed { list, mut sites, .. } = signed();
    let mut forged = list.clone();
    forged.agreements[2].1[0] ^= 1;
    blames_server(take(&mut sites, 0).unmask(forged, &Authority), |p| {
        matches!(p, Problem::AgreementSignature { .. })
    });
    let mut swapped = list.clone();
    let other = swapped.agreements[1].1.clone();
    swapped.agreements[2].1 = other;
    blames_server(take(&mut sites, 1).unmask(swapped, &Authority), |p| {
        matches!(p, Problem::AgreementSignature { .. })
    });
    let mut stranger = list.clone();
    stranger.agreements[3].0 = 900;
    blames_server(take(&mut sites, 2).unmask(stranger, &Authority), |p| matches!(p, Problem::Set { .. }));
    let mut replayed = list.clone();
    replayed.session = other_sessions()[1].id();
    blames_server(take(&mut sites, 3).unmask(replayed, &Authority), |p| matches!(p, Problem::Session { .. }));
    take(&mut sites, 4).unmask(list, &Authority).unwrap();
}

#[test]
fn an_agreement_of_another_session_does_not_count() {
    let parameters = four_rounds();
    let collected = collected();
    let key_list = shared().list.digest();
    let sets = &collected.survivors.survivors;
    for other in other_sessions() {
        let bytes = agreement_bytes(other.id(), &key_list, sets, sets);
        assert_ne!(bytes, agreement_bytes(parameters.id(), &key_list, sets, sets));
    }
    let mut server = collected.server;
    let old =
        Identity(site(0)).sign(&agreement_bytes(other_sessions()[1].id(), &key_list, sets, sets)).unwrap();
    let message = Agreement { session: parameters.id(), signature: old };
    blames_site(server.receive(&site(0), message, &Authority), 0, |p| {
        matches!(p, Problem::AgreementSignature { .. })
    });
}

#[test]
fn exactly_one_kind_of_share_leaves_a_site_for_every_other() {
    let delivered = delivered();
    let mut collected = mask(&four_rounds(), delivered, |i| i != 4).unwrap();
    let all = survivors_of(&[0, 1, 2, 3]);
    assert_eq!(collected.survivors, all);
    let state = take(&mut collected.sites, 0);
    let rest = Collected { sites: collected.sites, ..collected };
    let (own, state) = state.agree(all, &Identity(site(0))).unwrap();
    let mut server = rest.server;
    server.receive(&site(0), own, &Authority).unwrap();
    let signed = agree(Collected { server, ..rest }, |_| true).unwrap();
    let (message, done) = state.unmask(signed.list, &Authority).unwrap();
    // Its own, and one for each of four neighbours: 32 bytes each, where both kinds would take 64.
    assert_eq!(message.shares.len(), 1 + 4);
    assert_eq!(done.contributors, [0, 1, 2, 3].map(site));
}

// Round 4, at the server.

#[test]
fn wrong_shares_blame_the_site_that_returns_them() {
    let parameters = four_rounds();
    let Signed { mut server, list, sites } = signed();
    let mut messages: Vec<(SiteId, Unmasking)> = Vec::new();
    for (name, state) in sites {
        messages.push((name, state.unmask(list.clone(), &Authority).unwrap().0));
    }
    let (name, good) = messages[0].clone();
    for at in 0..good.shares.len() {
        let mut wrong = good.clone();
        wrong.shares[at][0] ^= 1;
        blames_site(server.receive(&name, wrong), 0, |p| matches!(p, Problem::ShareCommitment { .. }));
    }
    let mut swapped = good.clone();
    swapped.shares.swap(1, 2);
    blames_site(server.receive(&name, swapped), 0, |p| matches!(p, Problem::ShareCommitment { .. }));
    let mut short = good.clone();
    short.shares.pop();
    blames_site(server.receive(&name, short), 0, |p| matches!(p, Problem::Count { .. }));
    blames_site(server.receive(&site(1), good.clone()), 1, |p| matches!(p, Problem::ShareCommitment { .. }));
    let replayed = Unmasking { session: other_sessions()[0].id(), ..good };
    blames_site(server.receive(&name, replayed), 0, |p| matches!(p, Problem::Session { .. }));
    assert!(!server.is_ready());
    for (name, message) in messages {
        server.receive(&name, message.clone()).unwrap();
        blames_site(server.receive(&name, message), common::index(&name), |p| {
            matches!(p, Problem::Duplicate { .. })
        });
    }
    assert!(server.is_ready() && server.missing().is_empty());
    assert_eq!(server.finish().unwrap().sum, sum(&parameters, 0..N));
}

#[test]
fn too_few_shares_reveal_nothing_and_blame_the_environment() {
    let Signed { mut server, list, sites } = signed();
    for (name, state) in sites.into_iter().take(2) {
        server.receive(&name, state.unmask(list.clone(), &Authority).unwrap().0).unwrap();
    }
    assert!(!server.is_ready());
    blames(server.finish(), &Fault::Environment, |p| matches!(p, Problem::TooFewShares { .. }));
}

// On the wire.

#[test]
fn messages_of_other_versions_and_kinds_and_cut_ones_are_refused() {
    let Shared { list, .. } = shared();
    let bytes = list.encode();
    assert_eq!(KeyList::decode(&bytes).unwrap(), list);
    for cut in 0..bytes.len() {
        assert!(KeyList::decode(&bytes[..cut]).is_err());
    }
    let mut other = bytes.clone();
    other[0] ^= 1;
    assert!(KeyList::decode(&other).unwrap_err().to_string().contains("version"));
    other[0] = VERSION;
    other[1] = 3;
    assert!(KeyList::decode(&other).unwrap_err().to_string().contains("kind"));
    other = bytes;
    other.push(0);
    assert!(KeyList::decode(&other).is_err());
    assert!(MaskedInput::decode(&[VERSION, 4, 0]).is_err());
}
