//! Certificates and requests, damaged, cut and random: they are refused or read, and nothing panics. The same entry points as the
//! targets in `fuzz/`.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;
mod decoders;

use common::{Federation, NOW, der, principal};
use decoders::{certificates, requests};
use medinet_identity::{fuzzing, new_key_and_csr, principal_of};
use medinet_types::{Principal, Role};
use proptest::prelude::*;
use std::sync::LazyLock;

fn north() -> Principal {
    principal(Role::Site, "north")
}

static CERTIFICATE: LazyLock<Vec<u8>> =
    LazyLock::new(|| der(&Federation::new(NOW).files(&north()).0.certificate));
static REQUEST: LazyLock<String> =
    LazyLock::new(|| new_key_and_csr(&north()).expect("the system has randomness").1);

#[test]
fn every_flipped_bit_and_every_cut_is_survived() {
    assert_eq!(principal_of(&CERTIFICATE), Ok(north()));
    assert_eq!(fuzzing::request(&REQUEST), Some(north()));
    for position in 0..CERTIFICATE.len() {
        for bit in 0..8 {
            let mut damaged = CERTIFICATE.clone();
            damaged[position] ^= 1 << bit;
            certificates(&damaged);
        }
        certificates(&CERTIFICATE[..position]);
    }
    for cut in 0..REQUEST.len() {
        requests(&REQUEST.as_bytes()[..cut]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damage_is_survived(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        tail in prop::collection::vec(any::<u8>(), 0..8),
    ) {
        let damaged = |bytes: &[u8], among: &[u8]| {
            let mut bytes = bytes.to_vec();
            for (index, byte) in &edits {
                let position = index.index(bytes.len());
                bytes[position] = if among.is_empty() { *byte } else { among[usize::from(*byte) % among.len()] };
            }
            bytes
        };
        certificates(&damaged(&CERTIFICATE, &[]));
        certificates(&[damaged(&CERTIFICATE, &[]), tail].concat());
        // Base64, so that what it stands for is damaged and not the text around it alone.
        requests(&damaged(REQUEST.as_bytes(), b"ABCDEFabcdef0123456789+/"));
    }

    #[test]
    fn random_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        certificates(&bytes);
        requests(&bytes);
    }
}
