//! Decoders of this crate on damaged, cut, extended and random bytes: they refuse or accept, and never panic.
//! The same entry point as the target in `fuzz/`.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;
mod decoders;

use common::{Authority, Collected, Delivered, Shared, Signed, parameters, share, site, trusting};
use decoders::all;
use medinet_secagg::message::VERSION;
use medinet_secagg::{DecodeError, KeyList, Message as _, Topology};
use proptest::prelude::*;
use std::sync::LazyLock;

/// One message of each kind.
static MESSAGES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let parameters = parameters(20, 7);
    let topology = Topology { neighbours: 3, threshold: 2, quorum: 3 };
    let shared = common::advertise(&parameters, 4, topology, trusting());
    let Shared { list, .. } = &shared;
    let mut messages = vec![list.members[0].encode(), list.encode()];
    let Delivered { mut server, mut deliveries, sites } = share(shared, |_| true).unwrap();
    messages.push(deliveries[&site(0)].encode());
    let key_shares = medinet_secagg::KeyShares {
        session: parameters.id(),
        shares: deliveries[&site(0)].shares.clone(),
        own: [3; 16],
    };
    messages.push(key_shares.encode());
    let mut masked = common::Sites::new();
    for (name, state) in sites {
        let delivery = deliveries.remove(&name).unwrap();
        let (message, state) = state.mask(delivery, common::input(&parameters, 1)).unwrap();
        server.receive(&name, &message).unwrap();
        messages.push(message);
        masked.insert(name, state);
    }
    let (survivors, server) = server.close().unwrap();
    messages.push(survivors.encode());
    let Signed { list, mut sites, .. } =
        common::agree(Collected { server, survivors, sites: masked }, |_| true).unwrap();
    messages.push(list.encode());
    let agreement =
        medinet_secagg::Agreement { session: parameters.id(), signature: list.agreements[0].1.clone() };
    messages.push(agreement.encode());
    messages.push(sites.remove(&site(0)).unwrap().unmask(list, &Authority).unwrap().0.encode());
    messages
});

#[test]
fn every_flipped_bit_and_every_cut_is_survived() {
    for message in MESSAGES.iter() {
        for position in 0..message.len().min(200) {
            for bit in 0..8 {
                let mut damaged = message.clone();
                damaged[position] ^= 1 << bit;
                all(&damaged);
            }
        }
        for cut in (0..message.len()).step_by(7) {
            all(&message[..cut]);
        }
    }
}

#[test]
fn a_claimed_length_allocates_nothing_of_it() {
    // A key list that claims 2^63 members, and one that claims a credential of 2^40 bytes.
    for claim in
        [&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f][..], &[0x80, 0x80, 0x80, 0x80, 0x80, 0x20]]
    {
        for kind in 0..=8 {
            let mut message = vec![VERSION, kind];
            message.extend([7; 32]);
            message.extend(claim);
            all(&message);
            if kind == KeyList::KIND {
                // It is read up to the claim.
                assert!(matches!(KeyList::decode(&message), Err(DecodeError::Malformed { .. })));
            }
            message.extend([3, 3, 3]);
            message.extend(claim);
            all(&message);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_messages_are_survived(
        which in any::<prop::sample::Index>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        tail in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let mut message = MESSAGES[which.index(MESSAGES.len())].clone();
        for (index, byte) in edits {
            let position = index.index(message.len());
            message[position] = byte;
        }
        message.extend(tail);
        all(&message);
    }

    #[test]
    fn random_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..400), kind in 0u8..10) {
        all(&bytes);
        all(&[&[VERSION, kind], bytes.as_slice()].concat());
    }
}
