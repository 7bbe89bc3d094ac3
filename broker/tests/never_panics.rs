//! The parser of clients' packets on damaged, cut and random bytes: it refuses or accepts, and never panics. The same entry
//! point as the target in `fuzz/`.

mod decoders;

use decoders::{LIMIT, packets};
use medinet_broker::packet::{FixedHeader, QoS, publish};
use proptest::prelude::*;

/// A packet of each kind that has a body, as clients send them.
fn samples() -> Vec<Vec<u8>> {
    let connect = b"\x00\x04MQTT\x04\xee\x00\x1e\x00\x05north\x00\x01t\x00\x02{}\x00\x04user\x00\x02pw";
    let framed = |first: u8, body: &[u8]| [&[first, body.len() as u8], body].concat();
    vec![
        framed(0x10, connect),
        publish("medinet/v1/chest/site/north/status", b"{}", QoS::AtLeastOnce, 7, true).to_vec(),
        publish("a/b", &[7; 300], QoS::AtMostOnce, 0, false).to_vec(),
        framed(0x82, b"\x00\x01\x00\x03a/b\x01\x00\x03c/#\x00"),
        framed(0xa2, b"\x00\x01\x00\x03a/b\x00\x03c/#"),
        framed(0x40, b"\x00\x07"),
    ]
}

#[test]
fn every_flipped_bit_and_every_cut_is_survived() {
    for sample in samples() {
        let header = FixedHeader::parse(&sample, LIMIT).unwrap().unwrap();
        assert_eq!(header.length + header.remaining, sample.len(), "a whole packet");
        for position in 0..sample.len() {
            for bit in 0..8 {
                let mut damaged = sample.clone();
                damaged[position] ^= 1 << bit;
                packets(&damaged);
            }
            packets(&sample[..position]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn damaged_packets_are_survived(
        which: prop::sample::Index,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        tail in prop::collection::vec(any::<u8>(), 0..8),
    ) {
        let samples = samples();
        let mut bytes = samples[which.index(samples.len())].clone();
        for (index, byte) in edits {
            let position = index.index(bytes.len());
            bytes[position] = byte;
        }
        bytes.extend(tail);
        packets(&bytes);
    }

    #[test]
    fn random_bodies_are_survived(
        first in prop::sample::select(vec![0x10u8, 0x30, 0x32, 0x3d, 0x40, 0x62, 0x82, 0xa2]),
        body in prop::collection::vec(any::<u8>(), 0..127),
    ) {
        packets(&[&[first, body.len() as u8], &body[..]].concat());
    }
}
