//! Real files of many kinds, broken ones among them: what the library alone opens is opened, with the same content.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a step that fails fails the test, and a reader wants the counts"
)]

mod real;

use dicom_core::VR;
use dicom_core::header::Header as _;
use dicom_core::value::Value;
use dicom_object::InMemDicomObject;
use real::RealFiles;
use std::path::PathBuf;

/// Of all 276 files, those that open; the library alone opens 247 of them.
const OPEN: usize = 269;
/// Of pydicom's 167 at least, for the others are 109.
const CARRIED_OPEN: usize = 160;

#[track_caller]
fn assert_same(theirs: &InMemDicomObject, ours: &InMemDicomObject, file: &str) {
    assert_eq!(theirs.iter().count(), ours.iter().count(), "{file}");
    for (theirs, ours) in theirs.iter().zip(ours) {
        let tag = theirs.tag();
        assert_eq!(tag, ours.tag(), "{file}");
        match (theirs.value(), ours.value()) {
            // What came without a representation may have got one.
            _ if theirs.vr() == VR::UN && ours.vr() != VR::UN => {}
            (Value::Sequence(theirs), Value::Sequence(ours)) => {
                assert_eq!(theirs.items().len(), ours.items().len(), "{file} {tag}");
                for (theirs, ours) in theirs.items().iter().zip(ours.items()) {
                    assert_same(theirs, ours, file);
                }
            }
            // Not a number is not itself: compared as text.
            (theirs, ours) => {
                assert!(theirs == ours || format!("{theirs:?}") == format!("{ours:?}"), "{file} {tag}");
            }
        }
    }
}

/// Reads each file with and without the limits, and compares; gives how many open.
fn compare(files: &[PathBuf]) -> usize {
    let mut opened = 0;
    for path in files {
        let file = path.display().to_string();
        let bytes = std::fs::read(path).unwrap();
        let ours = medinet_objects::read(&bytes);
        opened += usize::from(ours.is_ok());
        match (dicom_object::from_reader(&bytes[..]), ours) {
            (Ok(theirs), Ok(ours)) => {
                assert_same(&theirs, &ours, &file);
                let syntaxes = [theirs.meta(), ours.meta()]
                    .map(|meta| meta.transfer_syntax().trim_end_matches('\0').to_owned());
                assert_eq!(syntaxes[0], syntaxes[1], "{file}");
            }
            (Ok(_), Err(error)) => panic!("{file}: {error}"),
            (Err(_), Ok(_)) => {}
            (Err(_), Err(error)) => println!("{file}: {error}"),
        }
    }
    println!("{opened} of {} open", files.len());
    opened
}

#[test]
fn every_file_that_opened_before_still_opens() {
    let files = RealFiles::find();
    let carried = compare(&files.carried);
    assert!(carried >= CARRIED_OPEN, "{carried}");
    let all = carried + compare(&files.beside);
    assert!(files.beside.is_empty() || all >= OPEN, "{all}");
}
