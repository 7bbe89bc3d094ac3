//! Native samples on their way back into an object.

use crate::attributes::{bytes as attribute_bytes, int};
use crate::{ImagingError, SampleFormat, StoredFrames};
use dicom_core::header::Header as _;
use dicom_core::value::PrimitiveValue;
use dicom_core::{DataElement, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileDicomObject, InMemDicomObject};

/// Writes frames back into an object as native Pixel Data, with all attributes of the image pixel module and the
/// transfer syntax (Explicit VR Little Endian) in agreement. What described the old samples goes: offset tables,
/// smallest and largest values, and overlays kept in unused bits.
///
/// # Errors
/// When the frames' sizes do not fit the attributes in `frames`.
pub fn replace_pixels(
    object: &mut FileDicomObject<InMemDicomObject>,
    frames: StoredFrames,
) -> Result<(), ImagingError> {
    let expected = frames.frame_bytes();
    if let Some(bad) = frames.frames.iter().find(|frame| frame.len() != expected) {
        return Err(ImagingError::Truncated { expected: expected as u64, got: bad.len() as u64 });
    }
    let too_wide = |keyword: &'static str, side: u32| ImagingError::Inconsistent {
        what: keyword,
        expected: "at most 65535".into(),
        got: side.to_string(),
    };
    let rows = u16::try_from(frames.rows).map_err(|_| too_wide("Rows", frames.rows))?;
    let columns = u16::try_from(frames.columns).map_err(|_| too_wide("Columns", frames.columns))?;
    let was_lossy = matches!(
        object.meta().transfer_syntax().trim_end_matches('\0'),
        uids::JPEG_BASELINE8_BIT | uids::JPEG_EXTENDED12_BIT | uids::JPEGLS_NEAR_LOSSLESS
    );
    let had_frames = attribute_bytes(object, tags::NUMBER_OF_FRAMES).is_some();

    for tag in [
        tags::PIXEL_DATA,
        tags::FLOAT_PIXEL_DATA,
        tags::DOUBLE_FLOAT_PIXEL_DATA,
        tags::EXTENDED_OFFSET_TABLE,
        tags::EXTENDED_OFFSET_TABLE_LENGTHS,
        tags::SMALLEST_IMAGE_PIXEL_VALUE,
        tags::LARGEST_IMAGE_PIXEL_VALUE,
    ] {
        object.remove_element(tag);
    }
    remove_overlays_in_unused_bits(object);

    let samples = frames.samples_per_pixel;
    let mut put = |tag, vr, value: PrimitiveValue| {
        object.put_element(DataElement::new(tag, vr, value));
    };
    put(tags::ROWS, VR::US, rows.into());
    put(tags::COLUMNS, VR::US, columns.into());
    put(tags::SAMPLES_PER_PIXEL, VR::US, samples.into());
    put(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, frames.photometric.as_str().into());
    if samples > 1 {
        put(tags::PLANAR_CONFIGURATION, VR::US, 0u16.into());
    }
    if had_frames || frames.frames.len() > 1 {
        put(tags::NUMBER_OF_FRAMES, VR::IS, frames.frames.len().to_string().into());
    }
    put(tags::BITS_ALLOCATED, VR::US, frames.bits_allocated.into());
    if was_lossy {
        // PS3.3 C.7.6.1.1.5: once lossy, always declared lossy.
        put(tags::LOSSY_IMAGE_COMPRESSION, VR::CS, "01".into());
    }
    match frames.format {
        SampleFormat::Float => {
            for tag in [tags::BITS_STORED, tags::HIGH_BIT, tags::PIXEL_REPRESENTATION] {
                object.remove_element(tag);
            }
            put_float_frames(object, &frames);
        }
        format => {
            put(tags::BITS_STORED, VR::US, frames.bits_stored.into());
            put(tags::HIGH_BIT, VR::US, (frames.bits_stored.max(1) - 1).into());
            put(tags::PIXEL_REPRESENTATION, VR::US, u16::from(format == SampleFormat::Signed).into());
            put_integer_frames(object, frames);
        }
    }
    if samples == 1 {
        object.remove_element(tags::PLANAR_CONFIGURATION);
    }
    object.update_meta(|meta| meta.transfer_syntax = uids::EXPLICIT_VR_LITTLE_ENDIAN.into());
    Ok(())
}

fn put_integer_frames(object: &mut FileDicomObject<InMemDicomObject>, frames: StoredFrames) {
    let mut data: Vec<u8> = if frames.bits_allocated == 1 {
        let bits: Vec<u8> = frames.frames.concat();
        bits.chunks(8)
            .map(|pixels| pixels.iter().enumerate().fold(0, |byte, (i, &pixel)| byte | (pixel & 1) << i))
            .collect()
    } else {
        frames.frames.concat()
    };
    if data.len() % 2 == 1 {
        data.push(0);
    }
    // PS3.5 A.2: OB or OW up to 8 bits, OW above.
    let element = if frames.bits_allocated > 8 {
        let words: Vec<u16> =
            data.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        DataElement::new(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(words.into()))
    } else {
        DataElement::new(tags::PIXEL_DATA, VR::OB, PrimitiveValue::U8(data.into()))
    };
    object.put_element(element);
}

fn put_float_frames(object: &mut FileDicomObject<InMemDicomObject>, frames: &StoredFrames) {
    let element = if frames.bits_allocated == 64 {
        let values: Vec<f64> = frames
            .frames
            .iter()
            .flat_map(|f| f.chunks_exact(8))
            .map(|sample| frames.sample(sample))
            .collect();
        DataElement::new(tags::DOUBLE_FLOAT_PIXEL_DATA, VR::OD, PrimitiveValue::F64(values.into()))
    } else {
        let values: Vec<f32> = frames
            .frames
            .iter()
            .flat_map(|f| f.chunks_exact(4))
            .map(|sample| frames.sample(sample) as f32)
            .collect();
        DataElement::new(tags::FLOAT_PIXEL_DATA, VR::OF, PrimitiveValue::F32(values.into()))
    };
    object.put_element(element);
}

/// Overlays without data of their own live in bits of the pixels that are cleared now (retired, PS3.3 2004 C.9.2).
fn remove_overlays_in_unused_bits(object: &mut FileDicomObject<InMemDicomObject>) {
    for group in (0x6000..=0x601e).step_by(2) {
        let position = int(object, dicom_core::Tag(group, 0x0102)).unwrap_or(0);
        if position != 0 {
            object.retain(|element| element.tag().group() != group);
        }
    }
}
