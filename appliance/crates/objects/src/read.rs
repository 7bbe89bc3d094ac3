//! From bytes to an object.

use crate::guard::Guard;
use crate::head::{Encoding, FileHead};
use crate::unknown::name_unknowns;
use crate::{EXPLICIT_VR_BIG_ENDIAN, ObjectError};
use dicom_dictionary_std::uids;
use dicom_encoding::transfer_syntax::{Codec, TransferSyntax, TransferSyntaxIndex as _};
use dicom_object::{DefaultDicomObject, FileMetaTableBuilder, InMemDicomObject};
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;
use std::io::Read as _;

/// How much an object may ask for beyond its own bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest data set after inflation (PS3.5 A.5), in bytes. What is not deflated is limited by what the caller
    /// holds in memory already.
    pub max_inflated_bytes: u64,
    /// Deepest nesting of sequences.
    pub max_depth: usize,
    /// Most elements, items and separated values together. An element costs a hundred bytes of memory and more, an
    /// item with an element in it more than a thousand, however few bytes of the file they take.
    pub max_elements: usize,
}

impl Default for Limits {
    /// 256 MiB; 32 levels (structured reports of the standard's templates stay below 20); 1,048,576 elements: an
    /// enhanced image of 10,000 frames stays below.
    fn default() -> Self {
        Self { max_inflated_bytes: 256 << 20, max_depth: 32, max_elements: 1 << 20 }
    }
}

/// Reads an object within the default limits; see [`read_within`].
///
/// # Errors
/// As [`read_within`].
pub fn read(file: &[u8]) -> Result<DefaultDicomObject, ObjectError> {
    read_within(file, &Limits::default())
}

/// Reads an object: a Part 10 file, with or without preamble and file meta information, or a bare data set in an
/// uncompressed encoding (PS3.5 A.1 to A.3). Attributes that came as UN have the representation of the dictionary.
///
/// The file meta information of the result is made anew: the transfer syntax in which the pixel data are, and which
/// object it is.
///
/// # Errors
/// [`ObjectError`] says what is wrong, and repeats nothing of the content.
pub fn read_within(file: &[u8], limits: &Limits) -> Result<DefaultDicomObject, ObjectError> {
    let head = FileHead::of(file)?;
    let declared = match head.transfer_syntax {
        Some(uid) => Some(TransferSyntaxRegistry.get(uid).ok_or(ObjectError::UnknownTransferSyntax)?),
        None => None,
    };
    let inflated;
    let data_set = match declared.map(TransferSyntax::codec) {
        Some(Codec::Dataset(Some(adapter))) => {
            inflated = inflate(&mut *adapter.adapt_reader(Box::new(head.data_set)), limits)?;
            &inflated[..]
        }
        Some(Codec::Dataset(None)) => return Err(ObjectError::UnknownTransferSyntax),
        _ => head.data_set,
    };
    let syntax = encoding(data_set, declared, head.begins_as_file)?;
    // The pixel data of a compressed object are in the syntax that it declares, however its headers are written.
    let result = declared.filter(|declared| !matches!(declared.codec(), Codec::None)).unwrap_or(syntax);

    let mut guard = Guard::new(data_set, syntax, limits)?;
    let read = InMemDicomObject::read_dataset(&mut guard);
    if let Some(refusal) = guard.refusal() {
        return Err(refusal);
    }
    let object = name_unknowns(read.map_err(|_| ObjectError::Elements)?);

    let mut meta = FileMetaTableBuilder::new().transfer_syntax(result.uid());
    if let Some(uid) = head.sop_class {
        meta = meta.media_storage_sop_class_uid(uid);
    }
    if let Some(uid) = head.sop_instance {
        meta = meta.media_storage_sop_instance_uid(uid);
    }
    object.with_meta(meta).map_err(|_| ObjectError::Nameless)
}

/// The syntax in which the headers are written.
fn encoding(
    data_set: &[u8],
    declared: Option<&'static TransferSyntax>,
    begins_as_file: bool,
) -> Result<&'static TransferSyntax, ObjectError> {
    // What has file meta information is DICOM, also where that names no syntax.
    let named = declared.map(TransferSyntax::uid).or(begins_as_file.then_some(""));
    let uid = match (Encoding::of(data_set, named), declared) {
        (Some(Encoding { big_endian: true, .. }), _) => EXPLICIT_VR_BIG_ENDIAN,
        (Some(Encoding { explicit: true, .. }), _) => uids::EXPLICIT_VR_LITTLE_ENDIAN,
        (Some(Encoding { explicit: false, .. }), _) => uids::IMPLICIT_VR_LITTLE_ENDIAN,
        // Too short to tell.
        (None, Some(declared)) => return Ok(declared),
        (None, None) => return Err(ObjectError::NotDicom),
    };
    TransferSyntaxRegistry.get(uid).ok_or(ObjectError::UnknownTransferSyntax)
}

fn inflate(reader: &mut dyn std::io::Read, limits: &Limits) -> Result<Vec<u8>, ObjectError> {
    let limit = limits.max_inflated_bytes;
    let mut data_set = Vec::new();
    let read = reader.take(limit.saturating_add(1)).read_to_end(&mut data_set);
    if data_set.len() as u64 > limit {
        return Err(ObjectError::InflatedTooLarge { limit });
    }
    read.map_err(|_| ObjectError::Deflate)?;
    Ok(data_set)
}
