//! `medinet infer` and `medinet ledger`, as a radiologist's workstation and an auditor run them.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

#[path = "../../crates/inference/tests/common/mod.rs"]
mod common;
#[path = "support/slices.rs"]
mod slices;

use common::{bundle, onnx, parameters, spec};
use dicom_core::value::PrimitiveValue;
use dicom_core::{DataElement, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use medinet_identity::{
    Authority, Identity, IdentityFiles, Issue, new_key_and_csr, write_private, write_public,
};
use medinet_imaging::Volume;
use medinet_inference::dangerous;
use medinet_ledger::bundle::spec_digest;
use medinet_ledger::vote::{Ballot, Hindrance, Vote};
use medinet_ledger::{CheckpointSigner as _, Ed25519Signer, ModelBundle};
use medinet_model::{InputShape, Slices, TaskSpec};
use medinet_types::{ModelVersion, Principal, Role, RoundNumber, SiteId, UnixMillis};
use medinet_wire::secure::sign_vote;
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

const BUNDLE: &str = "--model model.bundle --ledger-key ledger.pub --federation chest";
/// On the ledger's word alone: whether votes are asked for is a test of its own.
const RELEASED: &str = "--model model.bundle --ledger-key ledger.pub --federation chest --without-votes";
const INPUT: InputShape = InputShape { channels: 1, height: 28, width: 28 };

fn medinet(dir: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_medinet"))
        .args(line.split_whitespace())
        .current_dir(dir)
        .output()
        .unwrap()
}

/// Exit status, standard output, standard error.
fn outcome(dir: &Path, line: &str) -> (i32, String, String) {
    let output = medinet(dir, line);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn done(dir: &Path, line: &str) -> String {
    let (status, out, error) = outcome(dir, line);
    assert_eq!((status, error.as_str()), (0, ""), "{line}: {out}");
    out
}

fn public_key(seed: u8) -> String {
    let key = Ed25519Signer::from_seed(&[seed; 32]).unwrap().public_key();
    key.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    }) + "\n"
}

/// A folder with `ledger/`, `ledger.pub` and `model.bundle`.
fn site() -> tempfile::TempDir {
    site_of(&spec(INPUT, &["normal", "pneumonia"]))
}

fn site_of(spec: &TaskSpec) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let parameters = parameters(spec, 11);
    let onnx = onnx(spec, &parameters, false);
    let bundle =
        bundle(&folder.path().join("ledger"), spec, parameters.digest(&spec.network), &onnx).encode();
    fs::write(folder.path().join("model.bundle"), bundle).unwrap();
    fs::write(folder.path().join("ledger.pub"), public_key(7)).unwrap();
    folder
}

/// A grey image of 40 by 30 pixels for each frame, of a patient whom nothing may name.
fn write_dicom(path: &Path, frames: u16) {
    let samples: Vec<u16> = (0..u32::from(frames) * 1200).map(|i| (i * i % 4093) as u16).collect();
    let mut object = InMemDicomObject::new_empty();
    let mut put = |tag, vr, value: PrimitiveValue| {
        object.put(DataElement::new(tag, vr, value));
    };
    put(tags::SOP_CLASS_UID, VR::UI, uids::MULTI_FRAME_GRAYSCALE_WORD_SECONDARY_CAPTURE_IMAGE_STORAGE.into());
    put(tags::SOP_INSTANCE_UID, VR::UI, "2.25.4711".into());
    put(tags::PATIENT_NAME, VR::PN, "DOE^JANE".into());
    put(tags::PATIENT_ID, VR::LO, "PID-0815".into());
    put(tags::PATIENT_BIRTH_DATE, VR::DA, "19510203".into());
    put(tags::ROWS, VR::US, 30u16.into());
    put(tags::COLUMNS, VR::US, 40u16.into());
    put(tags::NUMBER_OF_FRAMES, VR::IS, frames.to_string().into());
    put(tags::SAMPLES_PER_PIXEL, VR::US, 1u16.into());
    put(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2".into());
    put(tags::BITS_ALLOCATED, VR::US, 16u16.into());
    put(tags::BITS_STORED, VR::US, 12u16.into());
    put(tags::HIGH_BIT, VR::US, 11u16.into());
    put(tags::PIXEL_REPRESENTATION, VR::US, 0u16.into());
    put(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(samples.into()));
    let meta = FileMetaTableBuilder::new()
        .transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN)
        .media_storage_sop_class_uid(uids::MULTI_FRAME_GRAYSCALE_WORD_SECONDARY_CAPTURE_IMAGE_STORAGE)
        .media_storage_sop_instance_uid("2.25.4711");
    object.with_meta(meta).unwrap().write_to_file(path).unwrap();
}

#[test]
fn a_released_model_runs_on_a_dicom_file() {
    let folder = site();
    let dir = folder.path();
    write_dicom(&dir.join("one.dcm"), 1);
    write_dicom(&dir.join("two.dcm"), 2);

    // The same through the libraries: what is printed is what the model says.
    let spec = spec(INPUT, &["normal", "pneumonia"]);
    let parameters = parameters(&spec, 11);
    let model = dangerous().from_onnx(&spec, &onnx(&spec, &parameters, false)).unwrap();
    let image = medinet_imaging::decode(&dicom_object::open_file(dir.join("two.dcm")).unwrap()).unwrap();
    let expected: Vec<_> = (0..2)
        .map(|frame| {
            let input =
                medinet_imaging::prepare(&image, frame, model.preprocessing(), model.input_shape()).unwrap();
            model.predict(&input.values).unwrap()
        })
        .collect();

    let report = done(dir, &format!("infer one.dcm two.dcm {RELEASED}"));
    let lines: Vec<&str> = report.lines().collect();
    assert_eq!(lines.len(), 6, "{report}");
    assert_eq!(lines[0], "model pneumonia version 1: Tells pneumonia from normal chest X-rays");
    assert_eq!(lines[1], format!("  digest {}", parameters.digest(&spec.network)));
    assert_eq!(lines[2], "  released 2023-11-14, record 6 of the ledger medinet/chest (verified)");
    assert!(lines[3].starts_with("one.dcm: "), "{report}");
    for (index, prediction) in expected.iter().enumerate() {
        let [normal, pneumonia] = prediction.probabilities[..] else { panic!("two classes") };
        let class = model.classes()[prediction.class].as_str();
        let hint = if normal.max(pneumonia) < 0.65 { "; uncertain: no class reaches 0.65" } else { "" };
        assert_eq!(
            lines[4 + index],
            format!(
                "two.dcm frame {} of 2: {class} (normal {normal:.4}, pneumonia {pneumonia:.4}){hint}",
                index + 1
            )
        );
    }

    let json: Value = serde_json::from_str(&done(dir, &format!("infer two.dcm --json {RELEASED}"))).unwrap();
    assert_eq!(json["model"]["ledger"]["index"], 6);
    assert_eq!(json["model"]["digest"], parameters.digest(&spec.network).to_string());
    assert_eq!(json["errors"], Value::Array(vec![]));
    assert_eq!(json["images"].as_array().unwrap().len(), 2);
    let probability = json["images"][1]["probabilities"]["pneumonia"].as_f64().unwrap();
    assert!((probability - f64::from(expected[1].probabilities[1])).abs() < 1e-6);
    assert_eq!(json["images"][1]["frame"], 2);
    assert_eq!(json["images"][1]["uncertain"], expected[1].confidence() < 0.65);

    for text in [report, json.to_string()] {
        for identifier in ["DOE", "JANE", "PID-0815", "1951", "2.25.4711"] {
            assert!(!text.contains(identifier), "{identifier} in {text}");
        }
    }
}

#[test]
fn a_model_of_neighbouring_slices_runs_on_a_whole_series() {
    let single = spec(InputShape { channels: 3, ..INPUT }, &["normal", "pneumonia"]);
    let mut spec = single.clone();
    spec.preprocessing.slices = Slices::Neighbours;
    assert_ne!(spec_digest(&spec), spec_digest(&single), "the ledger tells the two tasks apart");
    let folder = site_of(&spec);
    let dir = folder.path();
    fs::create_dir(dir.join("series")).unwrap();
    let files = [("c.dcm", 0.0), ("a.dcm", 10.0), ("b.dcm", 5.0)];
    for (number, (name, depth)) in (1..).zip(files) {
        let depths = &[Some(depth)];
        let object = slices::Object { number, series: 1, instance: 10 - number, depths, rows: 30 };
        slices::write(&dir.join("series").join(name), &object);
    }

    let decoded = files.map(|(name, _)| {
        let object = dicom_object::open_file(dir.join("series").join(name)).unwrap();
        medinet_imaging::decode(&object).unwrap()
    });
    let volume = Volume::new(decoded.to_vec()).unwrap();
    let model = dangerous().from_onnx(&spec, &onnx(&spec, &parameters(&spec, 11), false)).unwrap();
    let expected: Vec<f32> = volume
        .inputs(model.preprocessing(), model.input_shape())
        .map(|input| model.predict(&input.unwrap().values).unwrap().probabilities[1])
        .collect();
    let printed: Value =
        serde_json::from_str(&done(dir, &format!("infer series --json {RELEASED}"))).unwrap();
    let images = printed["images"].as_array().unwrap();
    assert_eq!(images.len(), 3);
    // In the order of names, which here is from the highest slice to the lowest.
    for ((image, expected), name) in images.iter().zip(expected.iter().rev()).zip(["a", "b", "c"]) {
        assert_eq!(image["file"], format!("series/{name}.dcm"));
        let probability = image["probabilities"]["pneumonia"].as_f64().unwrap();
        assert!(
            (probability - f64::from(*expected)).abs() < 1e-6,
            "{name}: {probability}, expected {expected}"
        );
    }

    let (status, out, error) = outcome(dir, &format!("infer series/b.dcm {RELEASED}"));
    assert_eq!((status, out.lines().count()), (1, 3), "{out}");
    assert!(error.contains("series/b.dcm: the model takes each slice with its neighbours"), "{error}");
    assert!(error.contains("give the folder that holds the whole series"), "{error}");

    // A model of single slices reads the same folder, and a slice by itself.
    let folder = site_of(&single);
    fs::rename(dir.join("series"), folder.path().join("series")).unwrap();
    let whole = done(folder.path(), &format!("infer series {RELEASED}"));
    let alone = done(folder.path(), &format!("infer series/b.dcm {RELEASED}"));
    assert_eq!(whole.lines().count(), 6, "{whole}");
    assert_eq!(whole.lines().nth(4), alone.lines().nth(3));
}

/// The flag with which `unshare` takes the network away here: as an ordinary user in a user namespace, or as root.
fn network_taken_away() -> &'static str {
    let works = |flag: &&str| {
        Command::new("unshare").args([*flag, "true"]).output().is_ok_and(|output| output.status.success())
    };
    ["-rn", "-n"].into_iter().find(|flag| works(flag)).expect(
        "`unshare -rn` (where users may have namespaces) or `unshare -n` (as root) works: without one of them the test \
         of inference without a network cannot run",
    )
}

#[test]
fn a_released_model_runs_with_the_network_unplugged() {
    let folder = site();
    let dir = folder.path();
    write_dicom(&dir.join("two.dcm"), 2);
    let line = format!("infer two.dcm {RELEASED}");
    let plugged_in = done(dir, &line);
    // What the program can reach is listed first.
    let script = "cat /proc/net/dev >&2 && exec \"$0\" \"$@\"";
    let output = Command::new("unshare")
        .args([network_taken_away(), "sh", "-c", script, env!("CARGO_BIN_EXE_medinet")])
        .args(line.split_whitespace())
        .current_dir(dir)
        .output()
        .unwrap();
    let listed = String::from_utf8(output.stderr).unwrap();
    let interfaces: Vec<&str> =
        listed.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()).collect();
    assert_eq!(interfaces, ["lo"], "{listed}");
    assert!(output.status.success(), "{listed}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), plugged_in);
}

#[test]
fn what_an_appliance_takes_in_is_read_here_too() {
    let folder = site();
    let dir = folder.path();
    write_dicom(&dir.join("good.dcm"), 1);
    let good = fs::read(dir.join("good.dcm")).unwrap();
    // Behind preamble, magic and the header of (0002,0000).
    let group_length = u32::from_le_bytes(good[140..144].try_into().unwrap()) as usize;
    fs::write(dir.join("bare.dcm"), &good[144 + group_length..]).unwrap();
    fs::write(dir.join("headless.dcm"), &good[132..]).unwrap();
    let mut miscounted = good;
    miscounted[140] = miscounted[140].wrapping_add(30);
    fs::write(dir.join("miscounted.dcm"), &miscounted).unwrap();
    let out = done(dir, &format!("infer good.dcm bare.dcm headless.dcm miscounted.dcm {RELEASED}"));
    let results: Vec<&str> =
        out.lines().filter_map(|line| line.split_once(".dcm: ")).map(|(_, result)| result).collect();
    assert_eq!(results.len(), 4, "{out}");
    assert!(results.iter().all(|result| *result == results[0]), "{out}");
}

/// A clinic that knows the federation's authority asks the sites themselves, and not only the ledger.
#[test]
fn a_model_that_sites_have_not_accepted_does_not_run_where_votes_are_asked_for() {
    let folder = site();
    let dir = folder.path();
    write_dicom(&dir.join("one.dcm"), 1);
    // A day before the release.
    let enrolled = UnixMillis(1_700_000_000_000 - 86_400_000);
    let day = Duration::from_secs(86_400);
    let authority = Authority::create(&dir.join("ca"), "Test", 3650 * day, enrolled).unwrap();
    let identity = |name: &str| {
        let who = Principal::new(Role::Site, SiteId::new(name).unwrap());
        let (key, csr) = new_key_and_csr(&who).unwrap();
        let issue = Issue { csr_pem: &csr, principal: &who, hosts: &[], validity: 30 * day };
        let (certificate, _) = authority.issue(&issue, enrolled).unwrap();
        let path = |ending: &str| dir.join(format!("{name}.{ending}"));
        let files = IdentityFiles {
            certificate: path("pem"),
            key: path("key"),
            ca: authority.certificate_path(),
            crl: None,
        };
        write_private(&files.key, &key).unwrap();
        write_public(&files.certificate, &certificate).unwrap();
        Identity::load(&files).unwrap()
    };
    let bundle = ModelBundle::decode(&fs::read(dir.join("model.bundle")).unwrap()).unwrap();
    let spec = spec(INPUT, &["normal", "pneumonia"]);
    let model = parameters(&spec, 11).digest(&spec.network);
    let (northern, southern) = (identity("north"), identity("south"));
    let vote = |site: &Identity, ballot| {
        let (task, round, version) = (spec.task.clone(), RoundNumber(2), ModelVersion(1));
        sign_vote(site, Vote { task, round, model, version, ballot }).unwrap()
    };
    let carried_by = |votes| {
        fs::write(dir.join("model.bundle"), bundle.clone().with_votes(votes).unwrap().encode()).unwrap();
    };
    let ca = authority.certificate_path();
    let voted = format!("infer one.dcm {BUNDLE} --ca {}", ca.display());
    let asked = |accepting: u32| format!("{voted} --min-accepting {accepting}");
    let north = vote(&northern, Ballot::Accept);

    let (status, out, error) = outcome(dir, &asked(1));
    assert_eq!((status, out.as_str()), (2, ""), "no votes at all: {error}");
    carried_by(vec![north.clone()]);
    let report = done(dir, &asked(1));
    assert!(report.contains("votes of sites: 1 accept, 0 reject, 0 abstain (verified)"), "{report}");
    let (status, _, error) = outcome(dir, &asked(2));
    assert_eq!(status, 2, "one is not two");
    assert!(error.contains("at least 2 accepting sites"), "{error}");
    assert_eq!(
        outcome(dir, &voted),
        (2, String::new(), error),
        "two are asked for where nobody says how many"
    );
    let mut forged = vote(&southern, Ballot::Abstain(Hindrance::FewImages));
    forged.vote.ballot = Ballot::Accept;
    carried_by(vec![north.clone(), forged]);
    assert_eq!(outcome(dir, &asked(2)).0, 2, "a ballot that was turned");
    carried_by(vec![north, vote(&southern, Ballot::Accept)]);
    done(dir, &asked(2));
    done(dir, &voted);
    // Nobody goes without votes by leaving something out.
    let (status, _, error) = outcome(dir, &format!("infer one.dcm {BUNDLE}"));
    assert!(status == 2 && error.contains("--ca"), "{status}: {error}");
    assert_eq!(outcome(dir, &format!("{voted} --without-votes")).0, 2);
}

#[test]
fn files_that_are_no_image_do_not_stop_the_others() {
    let folder = site();
    let dir = folder.path();
    write_dicom(&dir.join("good.dcm"), 1);
    fs::write(dir.join("text.dcm"), "DOE^JANE is no DICOM file").unwrap();
    let bytes = fs::read(dir.join("good.dcm")).unwrap();
    fs::write(dir.join("short.dcm"), &bytes[..bytes.len() - 500]).unwrap();
    let line = format!("infer text.dcm missing.dcm short.dcm good.dcm {RELEASED}");
    let (status, out, error) = outcome(dir, &line);
    assert_eq!(status, 1);
    assert!(out.contains("\ngood.dcm: "), "{out}");
    assert_eq!(out.lines().count(), 4, "{out}");
    assert!(
        error.starts_with("error: 3 of 4 files gave no result:\n  text.dcm: expected a DICOM file"),
        "{error}"
    );
    assert!(
        error.contains("\n  missing.dcm: cannot be read: ") && error.contains("\n  short.dcm: "),
        "{error}"
    );
    assert!(!error.contains("DOE"), "{error}");

    let (status, out, _) = outcome(dir, &format!("infer text.dcm good.dcm --json {RELEASED}"));
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, &json["errors"][0]["file"]), (1, &Value::from("text.dcm")));
    assert_eq!(json["images"].as_array().unwrap().len(), 1);
}

#[test]
fn a_model_that_is_not_proven_does_not_run() {
    let folder = site();
    let dir = folder.path();
    write_dicom(&dir.join("one.dcm"), 1);
    let refused = |line: &str, because: &str| {
        let (status, out, error) = outcome(dir, line);
        assert_eq!((status, out.as_str()), (2, ""), "{line}: {error}");
        assert!(error.starts_with("error: the model in ") && error.contains(because), "{line}: {error}");
    };

    let bytes = fs::read(dir.join("model.bundle")).unwrap();
    let mut flipped = bytes.clone();
    let last = flipped.len() - 1000;
    flipped[last] ^= 1;
    fs::write(dir.join("flipped.bundle"), flipped).unwrap();
    let line = "infer one.dcm --without-votes --ledger-key ledger.pub --federation chest --model";
    refused(&format!("{line} flipped.bundle"), "because: the ONNX graph is not the one on the ledger");
    fs::write(dir.join("cut.bundle"), &bytes[..bytes.len() / 2]).unwrap();
    refused(&format!("{line} cut.bundle"), "because: the ONNX graph is not the one on the ledger");
    fs::write(dir.join("other.bundle"), "not a bundle").unwrap();
    refused(&format!("{line} other.bundle"), "because: expected model bundle format 3");

    fs::write(dir.join("wrong.pub"), public_key(8)).unwrap();
    let line = "infer one.dcm --without-votes --model model.bundle --ledger-key";
    refused(&format!("{line} wrong.pub --federation chest"), "because: the ledger's signature does not hold");
    refused(
        &format!("{line} ledger.pub --federation heart"),
        "because: the ledger's signature does not hold",
    );

    // Not refused, but not there: another status.
    let (status, _, error) = outcome(dir, &format!("{line} missing.pub --federation chest"));
    assert_eq!(status, 1, "{error}");
    fs::write(dir.join("broken.pub"), "abc").unwrap();
    let (status, _, error) = outcome(dir, &format!("{line} broken.pub --federation chest"));
    assert!(status == 1 && error.contains("64 hexadecimal digits"), "{error}");
}

#[test]
fn a_ledger_verifies_until_one_byte_is_flipped() {
    let folder = site();
    let dir = folder.path();
    let line = "ledger verify ledger --key ledger.pub --federation chest";
    let report = done(dir, line);
    assert!(report.starts_with("log medinet/chest of 7 entries, root "), "{report}");
    assert!(report.contains("1 model released") && report.contains(", state "), "{report}");
    assert!(report.ends_with("\nverified\n"), "{report}");

    let entries = dir.join("ledger/entries.log");
    let whole = fs::read(&entries).unwrap();
    for position in [4 + 20, whole.len() - 1] {
        let mut altered = whole.clone();
        altered[position] ^= 1;
        fs::write(&entries, altered).unwrap();
        let (status, out, error) = outcome(dir, line);
        let entry = if position == whole.len() - 1 { 6 } else { 0 };
        assert_eq!(status, 1, "{out}{error}");
        assert!(out.contains(&format!("ALTERED: entries.log: entry {entry} ")), "{out}");
        assert!(out.ends_with("NOT VERIFIED\n") && error.contains("was altered"), "{out}{error}");
    }
    fs::write(&entries, &whole).unwrap();
    done(dir, line);

    fs::write(dir.join("wrong.pub"), public_key(8)).unwrap();
    let (status, out, _) = outcome(dir, "ledger verify ledger --key wrong.pub --federation chest");
    assert!(status == 1 && out.ends_with("NOT VERIFIED\n"), "{out}");
    let (status, _, error) = outcome(dir, "ledger verify nowhere --key ledger.pub --federation chest");
    assert!(status == 1 && error.contains("expected a ledger"), "{error}");
}

#[test]
fn a_checkpoint_kept_from_before_shows_a_rewritten_past() {
    let folder = site();
    let dir = folder.path();
    fs::copy(dir.join("ledger/checkpoint"), dir.join("kept")).unwrap();
    let line = "ledger verify ledger --key ledger.pub --federation chest --older kept";
    assert!(done(dir, line).ends_with("verified\ncontinues the checkpoint at 7 entries in --older\n"));

    // Whoever holds the ledger's key can sign another past; only the kept checkpoint tells.
    fs::remove_dir_all(dir.join("ledger")).unwrap();
    let mut other = spec(INPUT, &["normal", "pneumonia"]);
    other.purpose.push('!');
    let parameters = parameters(&other, 12);
    let graph = onnx(&other, &parameters, false);
    bundle(&dir.join("ledger"), &other, parameters.digest(&other.network), &graph);
    done(dir, "ledger verify ledger --key ledger.pub --federation chest");
    let (status, out, _) = outcome(dir, line);
    assert_eq!(status, 1);
    assert!(out.contains("ALTERED: the checkpoint seen before, at 7 entries, does not match"), "{out}");
}

#[test]
fn a_ledger_is_listed_and_its_key_printed() {
    let folder = site();
    let dir = folder.path();
    let list = done(dir, "ledger show ledger");
    assert_eq!(list.lines().count(), 7, "{list}");
    assert!(list.starts_with("     0  2023-11-14  task started: pneumonia, model "), "{list}");
    assert!(list.lines().last().unwrap().contains("model released: pneumonia, version 1, model "), "{list}");

    let key = done(dir, "ledger key --key ledger.pub --federation chest");
    assert!(key.starts_with("medinet/chest+"), "{key}");
    // What is printed is itself a key file.
    fs::write(dir.join("verifier.pub"), key).unwrap();
    done(dir, "ledger verify ledger --key verifier.pub --federation chest");
    let (status, _, error) = outcome(dir, "ledger verify ledger --key verifier.pub --federation heart");
    assert!(status == 1 && error.contains("check --federation"), "{error}");

    fs::write(dir.join("ledger/entries.log"), [9, 0, 0, 0, 1]).unwrap();
    let (status, _, error) = outcome(dir, "ledger show ledger");
    assert!(status == 1 && error.contains("entry 0 is cut short"), "{error}");
}
