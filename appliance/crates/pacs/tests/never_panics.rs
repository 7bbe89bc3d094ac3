//! Everything that reads a peer's bytes, on damaged, cut and random ones: it refuses or accepts, and never panics. The same
//! entry points as the targets in `fuzz/`.

mod decoders;

use decoders::all;
use medinet_pacs::fuzzing;
use proptest::prelude::*;

/// A C-STORE request as dcmtk's storescu sends it.
fn command() -> Vec<u8> {
    let elements = [
        (0x0002u16, &b"1.2.840.10008.5.1.4.1.1.2\0"[..]),
        (0x0100, &[1, 0]),
        (0x0110, &[7, 0]),
        (0x0700, &[0, 0]),
        (0x0800, &[1, 0]),
        (0x1000, b"1.2.3\0"),
    ];
    let element = |(number, value): (u16, &[u8])| {
        [&[0, 0][..], &number.to_le_bytes(), &(value.len() as u32).to_le_bytes(), value].concat()
    };
    elements.into_iter().flat_map(element).collect()
}

/// A file's beginning: preamble, file meta information and the first elements of the data set.
fn file() -> Vec<u8> {
    let rest = b"DICM\x02\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0\x08\0\x16\0UI\x04\x001.2\0\x08\0\x18\0UI\x06\x001.2.3\0";
    [&[0; 128][..], rest].concat()
}

const JSON: &[u8] =
    br#"[{"0020000D": {"vr": "UI", "Value": ["1.2"]}, "00080061": {"vr": "CS", "Value": ["CT\\MR"]},
    "00201208": {"vr": "IS", "Value": [42]}, "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]},
    "00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.3"]}}, null]}}]"#;
const MULTIPART: &[u8] =
    b"\x07--b\r\nContent-Type: application/dicom\r\n\r\nabc\r\n--b  \r\n\r\nd\r\n--bc\r\n--b--\r\n";
const CONTENT_TYPE: &[u8] =
    b"multipart/related;type=\"application/dicom; transfer-syntax=1.2\";Boundary=\"a;\\\"b c\"";

fn samples() -> [Vec<u8>; 5] {
    [command(), file(), JSON.to_vec(), MULTIPART.to_vec(), CONTENT_TYPE.to_vec()]
}

#[test]
fn every_flipped_bit_and_every_cut_is_survived() {
    assert!(fuzzing::answer(&command()).is_some());
    assert_eq!(fuzzing::sop_instance_uid(&file()).as_deref(), Some("1.2.3"));
    assert_eq!(fuzzing::data_sets(JSON).map(|sets| sets.len()), Some(1));
    for sample in samples() {
        for position in 0..sample.len() {
            for bit in 0..8 {
                let mut damaged = sample.clone();
                damaged[position] ^= 1 << bit;
                all(&damaged);
            }
            all(&sample[..position]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn damage_is_survived(
        which in 0usize..5,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        repeat: Option<(prop::sample::Index, prop::sample::Index)>,
    ) {
        let mut bytes = samples()[which].clone();
        for (index, byte) in edits {
            let position = index.index(bytes.len());
            bytes[position] = byte;
        }
        if let Some((from, to)) = repeat {
            let from = from.index(bytes.len());
            let again = bytes[from..bytes.len().min(from + 40)].to_vec();
            let at = to.index(bytes.len());
            bytes.splice(at..at, again).for_each(drop);
        }
        all(&bytes);
    }

    #[test]
    fn random_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        all(&bytes);
    }
}
