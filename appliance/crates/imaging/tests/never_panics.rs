//! Every codec on damaged, cut and random streams: it refuses or decodes, and never panics. The same entry point as the target in
//! `fuzz/`, and the seeds of that.

mod decoders;

use decoders::{decoded, frames};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

static SEEDS: LazyLock<BTreeMap<String, Vec<u8>>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../fuzz/seeds/image_frame");
    let files = std::fs::read_dir(folder).expect("the seeds lie in the repository");
    files
        .map(|file| file.expect("an entry").path())
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, std::fs::read(path).expect("a readable file"))
        })
        .collect()
});

#[test]
fn every_codec_has_a_seed_that_it_decodes() {
    let names: Vec<&str> = SEEDS.keys().map(String::as_str).collect();
    let expected =
        ["jpeg-2000", "jpeg-baseline", "jpeg-baseline-colour", "jpeg-lossless", "jpeg-ls", "native", "rle"];
    assert_eq!(names, expected);
    for (name, seed) in &*SEEDS {
        let image = decoded(seed).unwrap_or_else(|| panic!("{name} is refused"));
        let values = image.modality_values(0).expect("a frame");
        assert!(values.iter().any(|value| *value != values[0]), "{name} shows nothing");
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_survived() {
    for seed in SEEDS.values() {
        for position in 0..seed.len() {
            for bit in 0..8 {
                let mut damaged = seed.clone();
                damaged[position] ^= 1 << bit;
                frames(&damaged);
            }
            frames(&seed[..position]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn damaged_streams_are_survived(
        which: prop::sample::Index,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        repeat: Option<(prop::sample::Index, prop::sample::Index)>,
    ) {
        let seeds: Vec<&Vec<u8>> = SEEDS.values().collect();
        let mut bytes = which.get(&seeds).to_vec();
        for (index, byte) in edits {
            let position = index.index(bytes.len());
            bytes[position] = byte;
        }
        if let Some((from, to)) = repeat {
            let from = from.index(bytes.len());
            let again = bytes[from..bytes.len().min(from + 30)].to_vec();
            let at = to.index(bytes.len());
            bytes.splice(at..at, again).for_each(drop);
        }
        frames(&bytes);
    }

    #[test]
    fn random_streams_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        frames(&bytes);
    }
}
