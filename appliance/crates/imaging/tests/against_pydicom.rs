//! Compares decoding, modality and VOI transformations with pydicom on real files.
//!
//! pydicom and its decoders (libjpeg, OpenJPEG, CharLS by other authors) come from the virtual environment named
//! by `MEDINET_VENV` (default `.venv` in the repository), made from `requirements-test.txt`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests fail the test, and a reader wants the counts"
)]

use dicom_encoding::transfer_syntax::TransferSyntaxIndex;
use dicom_object::{DefaultDicomObject, FileMetaTableBuilder, InMemDicomObject};
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;
use medinet_imaging::{DecodedImage, SampleFormat, decode};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "../../objects/tests/real/mod.rs"]
mod real;

/// Of the files that pydicom decodes, how many this crate decodes to the same stored values, and how many to within one level.
struct Least {
    identical: u64,
    within_one: u64,
}

/// Measured on all 276 files, of which pydicom decodes 185.
const ALL: Least = Least { identical: 164, within_one: 173 };
/// Of those that pydicom carries it decodes 89: at least so many of them, for 96 of the others make up the rest.
const CARRIED: Least = Least { identical: 66, within_one: 75 };

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..")
}

fn python() -> PathBuf {
    std::env::var_os("MEDINET_VENV")
        .map_or_else(|| repository().join(".venv"), PathBuf::from)
        .join("bin/python")
}

fn write_floats(path: &Path, values: impl Iterator<Item = f32>) {
    fs::write(path, values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>()).unwrap();
}

/// Opens a file; where the file meta information holds characters that the reader refuses, only its transfer
/// syntax is taken.
fn open(path: &Path) -> Result<DefaultDicomObject, String> {
    let error = match dicom_object::open_file(path) {
        Ok(object) => return Ok(object),
        Err(error) => error.to_string(),
    };
    let data = fs::read(path).map_err(|error| error.to_string())?;
    let group_length = data.get(140..144).filter(|_| data[128..].starts_with(b"DICM\x02\0\0\0UL\x04\0"));
    let end = 144 + u32::from_le_bytes(group_length.ok_or(error.clone())?.try_into().unwrap()) as usize;
    let marker = b"\x02\0\x10\0UI";
    let at = data[..end].windows(6).position(|window| window == marker).ok_or(error.clone())? + 6;
    let length = usize::from(u16::from_le_bytes([data[at], data[at + 1]]));
    let uid = String::from_utf8_lossy(&data[at + 2..at + 2 + length]).trim_end_matches('\0').to_owned();
    let syntax = TransferSyntaxRegistry.get(&uid).ok_or(error.clone())?;
    let dataset = InMemDicomObject::read_dataset_with_ts(&data[end..], syntax).map_err(|_| error)?;
    let meta = FileMetaTableBuilder::new()
        .transfer_syntax(uid)
        .media_storage_sop_class_uid("1.2.840.10008.5.1.4.1.1.2")
        .media_storage_sop_instance_uid("1.2.3")
        .build()
        .unwrap();
    Ok(dataset.with_exact_meta(meta))
}

/// Writes what the script compares: stored, modality and display values of all frames.
fn write_image(folder: &Path, image: &DecodedImage) -> serde_json::Value {
    let frames = 0..image.frame_count();
    fs::write(folder.join("stored"), image.stored().frames.concat()).unwrap();
    write_floats(
        &folder.join("modality"),
        frames.clone().flat_map(|frame| image.modality_values(frame).unwrap()),
    );
    let voi = image.transforms(0).unwrap().voi.first();
    if let Some(voi) = voi {
        write_floats(
            &folder.join("voi"),
            image.modality_values(0).unwrap().into_iter().map(|value| voi.apply(value)),
        );
    }
    serde_json::json!({
        "rows": image.rows(), "columns": image.columns(), "channels": image.channels(),
        "frames": image.frame_count(), "inverted": image.inverted(), "voi": voi.is_some(),
        "kind": match image.stored().format {
            SampleFormat::Unsigned => "u",
            SampleFormat::Signed => "i",
            SampleFormat::Float => "f",
        },
        "bytes": image.stored().sample_bytes(),
    })
}

fn compare(paths: &[PathBuf], least: &Least) {
    let folder = tempfile::tempdir().unwrap();
    let mut list = Vec::new();
    for (index, path) in paths.iter().enumerate() {
        let mut entry = serde_json::json!({ "path": path, "index": index });
        match open(path) {
            Err(error) => entry["unopened"] = error.into(),
            Ok(object) => match decode(&object) {
                Err(error) => entry["error"] = error.to_string().into(),
                Ok(image) => {
                    let own = folder.path().join(index.to_string());
                    fs::create_dir(&own).unwrap();
                    entry["image"] = write_image(&own, &image);
                }
            },
        }
        list.push(entry);
    }
    fs::write(folder.path().join("list.json"), serde_json::to_vec(&list).unwrap()).unwrap();

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compare_with_pydicom.py");
    let output =
        Command::new(python()).arg(script).arg(folder.path()).output().expect("the virtual environment");
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let counts: BTreeMap<String, u64> =
        serde_json::from_slice(&fs::read(folder.path().join("counts.json")).unwrap()).unwrap();
    assert!(counts["identical"] >= least.identical, "{counts:?}");
    assert!(counts["within_one"] >= least.within_one, "{counts:?}");
    assert_eq!(counts["modality_wrong"], 0, "{counts:?}");
    assert_eq!(counts["voi_wrong"], 0, "{counts:?}");
}

#[test]
fn decodes_as_pydicom_does() {
    let files = real::RealFiles::find();
    let least = if files.beside.is_empty() { CARRIED } else { ALL };
    let paths: Vec<PathBuf> = files.all().cloned().collect();
    compare(&paths, &least);
}
