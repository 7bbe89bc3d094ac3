//! Bytes of anybody's making, behind the de-identifier's door: held back with a reason, or read as what they mean.

use dicom_core::{DataElement, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use medinet_deident::{DeidentSettings, Deidentified, Deidentifier, Identified, Origin, QuarantineReason};
use medinet_objects::ObjectError;

struct Site {
    deidentifier: Deidentifier,
    _folder: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let deidentifier = Deidentifier::open(DeidentSettings::default(), folder.path()).expect("opens");
        Self { deidentifier, _folder: folder }
    }

    fn apply(&self, bytes: Vec<u8>) -> Result<Deidentified, QuarantineReason> {
        let object = Identified::new(bytes, Origin::CStore);
        self.deidentifier.apply(object).map_err(|quarantine| quarantine.reason)
    }
}

fn file() -> Vec<u8> {
    let object = InMemDicomObject::from_element_iter([
        DataElement::new(tags::SOP_CLASS_UID, VR::UI, uids::BASIC_TEXT_SR_STORAGE),
        DataElement::new(tags::SOP_INSTANCE_UID, VR::UI, "1.2.3.4"),
        DataElement::new(tags::STUDY_INSTANCE_UID, VR::UI, "1.2.3"),
        DataElement::new(tags::PATIENT_ID, VR::LO, "MRN-12345"),
        DataElement::new(tags::PATIENT_NAME, VR::PN, "Mueller^Juergen"),
    ]);
    let meta = FileMetaTableBuilder::new().transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN);
    let mut bytes = Vec::new();
    object.with_meta(meta).expect("has UIDs").write_all(&mut bytes).expect("encodes");
    bytes
}

#[test]
fn eighty_bytes_do_not_get_gigabytes() {
    // An element of a name's letters: read as a representation and a length, they state 775 MB.
    let mut bytes = vec![b'.'; 80];
    bytes[..12].copy_from_slice(b"\x08\0\x08\0AI\x0c\x001.2.");
    let reason = Site::new().apply(bytes).expect_err("held back");
    assert_eq!(reason, QuarantineReason::Unreadable(ObjectError::LengthBeyondEnd));
    assert_eq!(reason.code(), "unreadable");
}

#[test]
fn nesting_without_end_is_held_back() {
    let level = b"\x08\0\x10\x11SQ\0\0\xFF\xFF\xFF\xFF\xFE\xFF\0\xE0\xFF\xFF\xFF\xFF";
    let reason = Site::new().apply(level.repeat(10_000)).expect_err("held back");
    assert!(matches!(reason, QuarantineReason::TooDeep(_)), "{reason}");
    assert_eq!(reason.code(), "too-deep");
}

#[test]
fn a_wrong_group_length_does_not_lose_the_object() {
    let mut bytes = file();
    let site = Site::new();
    let cleaned = site.apply(bytes.clone()).expect("is sound").to_bytes().expect("encodes");
    bytes[140] = bytes[140].wrapping_add(30); // (0002,0000), behind preamble, magic and header
    let again = site.apply(bytes).expect("is read").to_bytes().expect("encodes");
    assert_eq!(cleaned, again);
}

#[test]
fn a_reason_tells_nothing_of_the_content() {
    let (whole, site) = (file(), Site::new());
    for cut in 0..whole.len() {
        if let Err(reason) = site.apply(whole[..cut].to_vec()) {
            let reason = reason.to_string();
            assert!(!reason.contains("Mueller") && !reason.contains("MRN"), "{reason}");
        }
    }
}
