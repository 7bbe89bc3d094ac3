//! Reading of DICOM files as they come.

use crate::quarantine::QuarantineReason;
use dicom_dictionary_std::uids;
use dicom_encoding::transfer_syntax::TransferSyntaxIndex as _;
use dicom_object::file::{OddLengthStrategy, OpenFileOptions};
use dicom_object::{FileDicomObject, FileMetaTableBuilder, InMemDicomObject};
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;

/// Reads a Part 10 file, or a bare data set in one of the two uncompressed little-endian encodings.
pub(crate) fn read_object(bytes: &[u8]) -> Result<FileDicomObject<InMemDicomObject>, QuarantineReason> {
    if bytes.len() < 8 {
        return Err(QuarantineReason::Unreadable("it is too short"));
    }
    let magic = bytes.get(128..132) == Some(b"DICM") || bytes.starts_with(b"DICM");
    let meta_first = bytes.starts_with(&[0x02, 0x00]);
    if magic || meta_first {
        return OpenFileOptions::new()
            .odd_length_strategy(OddLengthStrategy::Accept)
            .from_reader(bytes)
            .map_err(|_| QuarantineReason::Unreadable("its elements do not parse"));
    }
    read_bare(bytes)
}

fn read_bare(bytes: &[u8]) -> Result<FileDicomObject<InMemDicomObject>, QuarantineReason> {
    let explicit = bytes[4..6].iter().all(u8::is_ascii_uppercase);
    let uid = if explicit { uids::EXPLICIT_VR_LITTLE_ENDIAN } else { uids::IMPLICIT_VR_LITTLE_ENDIAN };
    if !(bytes[0] == 8 && bytes[1] == 0) {
        return Err(QuarantineReason::Unreadable("it starts neither as a file nor as a data set"));
    }
    let syntax =
        TransferSyntaxRegistry.get(uid).ok_or(QuarantineReason::Internal("no uncompressed syntax"))?;
    let data_set = InMemDicomObject::read_dataset_with_ts(bytes, syntax)
        .map_err(|_| QuarantineReason::Unreadable("its elements do not parse"))?;
    data_set
        .with_meta(FileMetaTableBuilder::new().transfer_syntax(uid))
        .map_err(|_| QuarantineReason::Unreadable("it names no SOP class or instance"))
}
