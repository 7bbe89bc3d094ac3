//! Every decoder has its target, every target its program; and each survives its seeds, damaged ones and random bytes.

use medinet_fuzz_targets::ALL;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn names() -> BTreeSet<String> {
    ALL.iter().map(|(name, _)| (*name).to_owned()).collect()
}

/// The `tests/decoders` of all crates.
fn decoders(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name");
        if path.ends_with("tests/decoders") {
            found.push(path.join("mod.rs"));
        } else if path.is_dir()
            && name != "target"
            && name != "fuzz"
            && !name.to_string_lossy().starts_with('.')
        {
            decoders(&path, found);
        }
    }
}

#[test]
fn every_decoder_has_a_target() {
    let targets = read(&fuzz().join("targets/src/lib.rs"));
    let root = fuzz().join("..");
    let mut found = Vec::new();
    decoders(&root, &mut found);
    assert!(found.len() >= 10, "{found:?}");
    for path in found {
        let inside = path.strip_prefix(&root).expect("below the root").display().to_string();
        let declared = format!("#[path = \"../../../{inside}\"]\nmod ");
        let (_, rest) =
            targets.split_once(&declared).unwrap_or_else(|| panic!("{inside} is not among the targets"));
        let module = rest.split_once(';').expect("a declaration").0;
        let text = read(&path);
        let functions: Vec<&str> = text
            .split("pub(crate) fn ")
            .skip(1)
            .filter_map(|function| function.split_once('('))
            .filter(|(_, rest)| {
                rest.split_once(": &[u8]) {").is_some_and(|(name, _)| !name.contains([':', ')']))
            })
            .map(|(name, _)| name)
            .collect();
        assert!(!functions.is_empty(), "{inside}");
        // Where there are several, `all` calls them for the tests.
        for function in functions.iter().filter(|name| **name != "all" || functions.len() == 1) {
            let line = format!(" = {module}::{function};");
            assert!(targets.contains(&line), "{inside}: {function} has no target");
        }
    }
}

#[test]
fn every_target_has_its_program() {
    let manifest: toml::Table = read(&fuzz().join("Cargo.toml")).parse().expect("a manifest");
    let programs: BTreeSet<String> = manifest["bin"]
        .as_array()
        .expect("programs")
        .iter()
        .map(|program| {
            let name = program["name"].as_str().expect("a name");
            assert_eq!(program["path"].as_str(), Some(format!("fuzz_targets/{name}.rs").as_str()));
            name.to_owned()
        })
        .collect();
    assert_eq!(programs, names());
    // With other dependencies there would be something of theirs that this crate does not see.
    let dependencies: Vec<&String> =
        manifest["dependencies"].as_table().expect("dependencies").keys().collect();
    assert_eq!(dependencies, ["libfuzzer-sys", "medinet-fuzz-targets"]);

    let sources = fs::read_dir(fuzz().join("fuzz_targets")).expect("the programs");
    let sources: BTreeSet<String> = sources
        .map(|entry| entry.expect("an entry").path())
        .map(|path| {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            let call = format!("|bytes: &[u8]| medinet_fuzz_targets::{name}(bytes)");
            assert!(read(&path).contains(&call), "{}: expected {call}", path.display());
            name
        })
        .collect();
    assert_eq!(sources, names());
}

/// The seeds of each target that has some.
fn seeds() -> Vec<(usize, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(fuzz().join("seeds")).expect("the seeds") {
        let folder = entry.expect("an entry").path();
        if !folder.is_dir() {
            continue;
        }
        let name = folder.file_name().expect("a name").to_string_lossy();
        let target = ALL.iter().position(|(target, _)| *target == name);
        let target = target.unwrap_or_else(|| panic!("{}: no such target", folder.display()));
        for seed in fs::read_dir(&folder).expect("seeds") {
            found.push((target, fs::read(seed.expect("an entry").path()).expect("a readable seed")));
        }
    }
    found
}

#[test]
fn every_target_survives_its_seeds() {
    let seeds = seeds();
    assert!(seeds.len() >= 19, "{} seeds", seeds.len());
    for (target, seed) in &seeds {
        ALL[*target].1(seed);
        for cut in 0..seed.len() {
            ALL[*target].1(&seed[..cut]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_target_survives_random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for (_, target) in ALL {
            target(&bytes);
            target(&[&[1], bytes.as_slice()].concat());
        }
    }
}
