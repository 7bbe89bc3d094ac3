//! A compressed frame as a peer could send it; tests and the target in `fuzz/` both call this. Panics only when a decoder breaks its
//! contract.
#![allow(dead_code, reason = "the fuzz target calls one")]

use dicom_core::value::{PixelFragmentSequence, PrimitiveValue};
use dicom_core::{DataElement, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use medinet_imaging::{DecodeLimits, DecodedImage, decode_within};

const SYNTAXES: [&str; 7] = [
    uids::RLE_LOSSLESS,
    uids::JPEG_BASELINE8_BIT,
    uids::JPEG_LOSSLESS_SV1,
    uids::JPEGLS_LOSSLESS,
    uids::JPEG2000_LOSSLESS,
    uids::HTJ2K_LOSSLESS,
    uids::ENCAPSULATED_UNCOMPRESSED_EXPLICIT_VR_LITTLE_ENDIAN,
];
const BITS: [u16; 4] = [8, 16, 32, 12];
const PHOTOMETRIC: [&str; 8] =
    ["MONOCHROME2", "MONOCHROME1", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "PALETTE COLOR"];
/// The largest that five bytes can ask for.
const LIMITS: DecodeLimits = DecodeLimits { max_bytes: 255 * 255 * 3 * 4 };

/// The object that the first five bytes describe (syntax, rows, columns, allocated bits, photometric interpretation), with the
/// rest as its only frame.
pub(crate) fn decoded(bytes: &[u8]) -> Option<DecodedImage> {
    let (&[syntax, rows, columns, bits, photometric], stream) = bytes.split_first_chunk::<5>()?;
    let mut object = InMemDicomObject::new_empty();
    let mut put = |tag: Tag, vr: VR, value: PrimitiveValue| object.put(DataElement::new(tag, vr, value));
    let photometric = PHOTOMETRIC[usize::from(photometric) % PHOTOMETRIC.len()];
    let samples: u16 = if photometric.starts_with("MONO") || photometric.starts_with("PAL") { 1 } else { 3 };
    let bits = BITS[usize::from(bits) % BITS.len()];
    put(tags::ROWS, VR::US, u16::from(rows).into());
    put(tags::COLUMNS, VR::US, u16::from(columns).into());
    put(tags::SAMPLES_PER_PIXEL, VR::US, samples.into());
    put(tags::BITS_ALLOCATED, VR::US, bits.into());
    put(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, photometric.into());
    let frame = PixelFragmentSequence::new_fragments(vec![stream.to_vec()]);
    object.put(DataElement::new(tags::PIXEL_DATA, VR::OB, frame));
    let meta = FileMetaTableBuilder::new()
        .transfer_syntax(SYNTAXES[usize::from(syntax) % SYNTAXES.len()])
        .media_storage_sop_class_uid(uids::SECONDARY_CAPTURE_IMAGE_STORAGE)
        .media_storage_sop_instance_uid("2.25.1")
        .build()
        .expect("all that a file's head needs");
    let image = decode_within(&object.with_exact_meta(meta), &LIMITS).ok()?;
    assert_eq!((image.rows(), image.columns(), image.channels()), (rows.into(), columns.into(), samples));
    Some(image)
}

pub(crate) fn frames(bytes: &[u8]) {
    if let Some(image) = decoded(bytes) {
        let stored = image.stored();
        assert_eq!(stored.frames.len(), 1, "one fragment is one frame");
        assert_eq!(stored.frames[0].len(), stored.frame_bytes());
        let values = image.modality_values(0).expect("there is a frame");
        let size = image.rows() * image.columns() * u32::from(image.channels());
        assert_eq!(values.len(), size as usize);
    }
}
