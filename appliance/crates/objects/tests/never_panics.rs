//! The reader on damaged, cut, extended and random bytes: it refuses or accepts, and never panics or makes more of the
//! bytes than they are. The same entry point as the target in `fuzz/`.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;
mod decoders;
mod real;

use decoders::all;
use proptest::prelude::*;
use std::sync::LazyLock;

/// What is damaged: sound files of each kind, and the real ones up to 64 KiB.
static FILES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let real = real::RealFiles::find();
    let real = real.all().map(|path| std::fs::read(path).unwrap());
    common::sound().into_iter().chain(real.filter(|file| file.len() <= 64 << 10)).collect()
});

#[test]
fn every_flipped_bit_and_every_cut_is_survived() {
    for file in common::sound() {
        // The preamble says nothing.
        let first = if file.get(128..132) == Some(b"DICM") { 128 } else { 0 };
        for position in first..file.len() {
            for bit in 0..8 {
                let mut damaged = file.clone();
                damaged[position] ^= 1 << bit;
                all(&damaged);
            }
            all(&file[..position]);
        }
    }
}

#[derive(Debug, Clone)]
enum Damage {
    Byte(u8),
    /// A length of four bytes, or a part of one.
    Length(u32),
    Cut,
    /// Bytes of the file once more.
    Repeat(prop::sample::Index),
    Insert(Vec<u8>),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        any::<u8>().prop_map(Damage::Byte),
        prop_oneof![Just(u32::MAX), Just(u32::MAX - 1), Just(i32::MAX as u32), 0..64u32, any::<u32>()]
            .prop_map(Damage::Length),
        Just(Damage::Cut),
        any::<prop::sample::Index>().prop_map(Damage::Repeat),
        prop::collection::vec(any::<u8>(), 0..24).prop_map(Damage::Insert),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_are_read_or_refused(
        which: prop::sample::Index,
        damages in prop::collection::vec((any::<prop::sample::Index>(), damage()), 1..4),
    ) {
        let mut file = which.get(&FILES[..]).clone();
        for (at, damage) in damages {
            if file.is_empty() {
                break;
            }
            let at = at.index(file.len());
            match damage {
                Damage::Byte(byte) => file[at] = byte,
                Damage::Length(length) => {
                    file.iter_mut().skip(at).zip(length.to_le_bytes()).for_each(|(old, new)| *old = new);
                }
                Damage::Cut => file.truncate(at),
                Damage::Repeat(from) => {
                    let from = from.index(file.len());
                    let again = file[from..file.len().min(from + 200)].to_vec();
                    file.splice(at..at, again).for_each(drop);
                }
                Damage::Insert(bytes) => file.splice(at..at, bytes).for_each(drop),
            }
        }
        all(&file);
    }

    #[test]
    fn random_bytes_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        syntax in prop::sample::select(vec![common::EXPLICIT, common::IMPLICIT, common::JPEG]),
    ) {
        all(&bytes);
        all(&common::file(syntax, &bytes));
        all(&[common::named(true), bytes].concat());
    }
}
