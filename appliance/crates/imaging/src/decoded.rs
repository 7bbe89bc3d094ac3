//! A decoded image: its frames and all that turns their samples into what a radiologist sees.

use crate::attributes::int;
use crate::frames::{DecodeLimits, SampleFormat, StoredFrames, stored_frames_within};
use crate::geometry::{FrameAttributes, FrameGeometry};
use crate::lut::{ModalityTransform, Palette, VoiTransform};
use crate::{ImagingError, Photometric};
use dicom_dictionary_std::tags;
use dicom_object::{FileDicomObject, InMemDicomObject};

/// All frames of an image with the transformations that belong to each.
#[derive(Debug, Clone)]
pub struct DecodedImage {
    stored: StoredFrames,
    frames: Vec<FrameTransforms>,
    padding: Option<PaddingRange>,
    instance_number: Option<i64>,
}

/// What belongs to one frame.
#[derive(Debug, Clone)]
pub struct FrameTransforms {
    /// To modality values.
    pub modality: ModalityTransform,
    /// To display intensities; the first one is the sender's choice. Empty where the object has none.
    pub voi: Vec<VoiTransform>,
    /// Where the frame lies.
    pub geometry: FrameGeometry,
}

/// Stored values that fill the image where nothing was measured (PS3.3 C.7.5.1.1.2), both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PaddingRange {
    /// Lowest stored value.
    pub low: i64,
    /// Highest stored value.
    pub high: i64,
}

impl PaddingRange {
    fn read(object: &InMemDicomObject, stored: &StoredFrames) -> Option<Self> {
        let value = |tag| {
            let value = int(object, tag)?;
            // The VR is US or SS by the pixel representation, and often the wrong one of the two.
            Some(match stored.format {
                SampleFormat::Signed if value > 32_767 && stored.bits_allocated == 16 => value - 65_536,
                SampleFormat::Unsigned if value < 0 && stored.bits_allocated == 16 => value + 65_536,
                _ => value,
            })
        };
        let first = value(tags::PIXEL_PADDING_VALUE)?;
        let other = value(tags::PIXEL_PADDING_RANGE_LIMIT).unwrap_or(first);
        Some(Self { low: first.min(other), high: first.max(other) })
    }

    fn contains(self, stored: f32) -> bool {
        (self.low as f32..=self.high as f32).contains(&stored)
    }
}

/// Decodes an image within the default limits.
///
/// # Errors
/// When the object has no pixel data, is malformed, or uses what no decoder here supports.
pub fn decode(object: &FileDicomObject<InMemDicomObject>) -> Result<DecodedImage, ImagingError> {
    decode_within(object, &DecodeLimits::default())
}

/// Decodes an image within limits.
///
/// # Errors
/// As [`decode`].
pub fn decode_within(
    object: &FileDicomObject<InMemDicomObject>,
    limits: &DecodeLimits,
) -> Result<DecodedImage, ImagingError> {
    let mut stored = stored_frames_within(object, limits)?;
    let signed = stored.format == SampleFormat::Signed;
    if stored.photometric == Photometric::PaletteColor {
        apply_palette(object, &mut stored, limits)?;
    }
    let grey = stored.samples_per_pixel == 1;
    let frames = (0..stored.frames.len())
        .map(|index| {
            let attributes = FrameAttributes::of(object, index);
            let modality = attributes
                .candidates(tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE)
                .find_map(|item| ModalityTransform::read(item, signed))
                .filter(|_| grey)
                .unwrap_or(ModalityTransform::IDENTITY);
            // Modality values may be negative although the stored ones are not.
            let negative =
                signed || matches!(modality, ModalityTransform::Rescale { intercept, .. } if intercept < 0.0);
            let voi = attributes
                .candidates(tags::FRAME_VOILUT_SEQUENCE)
                .map(|item| VoiTransform::read(item, negative))
                .find(|found| !found.is_empty())
                .filter(|_| grey)
                .unwrap_or_default();
            FrameTransforms { modality, voi, geometry: attributes.geometry() }
        })
        .collect();
    let padding = PaddingRange::read(object, &stored).filter(|_| grey);
    Ok(DecodedImage { stored, frames, padding, instance_number: int(object, tags::INSTANCE_NUMBER) })
}

fn apply_palette(
    object: &InMemDicomObject,
    stored: &mut StoredFrames,
    limits: &DecodeLimits,
) -> Result<(), ImagingError> {
    let palette = Palette::read(object, stored.format == SampleFormat::Signed)?;
    let bits = palette.bits();
    let pixels = stored.rows as u64 * u64::from(stored.columns) * stored.frames.len() as u64;
    let declared = pixels * 3 * u64::from(bits / 8);
    if declared > limits.max_bytes {
        return Err(ImagingError::TooLarge { declared, limit: limits.max_bytes });
    }
    let sample_bytes = stored.sample_bytes();
    for index in 0..stored.frames.len() {
        let indices = std::mem::take(&mut stored.frames[index]);
        let colors =
            indices.chunks_exact(sample_bytes).map(|sample| palette.color(stored.sample(sample) as f32));
        stored.frames[index] = if bits == 8 {
            colors.flat_map(|color| color.map(|channel| channel as u8)).collect()
        } else {
            colors.flat_map(|[r, g, b]| [r, g, b].into_iter().flat_map(u16::to_le_bytes)).collect()
        };
    }
    stored.samples_per_pixel = 3;
    stored.bits_allocated = bits;
    stored.bits_stored = bits;
    stored.format = SampleFormat::Unsigned;
    stored.photometric = Photometric::Rgb;
    Ok(())
}

impl DecodedImage {
    /// Height in pixels.
    #[must_use]
    pub fn rows(&self) -> u32 {
        self.stored.rows
    }

    /// Width in pixels.
    #[must_use]
    pub fn columns(&self) -> u32 {
        self.stored.columns
    }

    /// 1 for grey, 3 for colour (palettes are resolved).
    #[must_use]
    pub fn channels(&self) -> u16 {
        self.stored.samples_per_pixel
    }

    /// Number of frames, at least 1.
    #[must_use]
    pub fn frame_count(&self) -> usize {
        self.stored.frames.len()
    }

    /// Whether low values are white (MONOCHROME1).
    #[must_use]
    pub fn inverted(&self) -> bool {
        self.stored.photometric == Photometric::Monochrome1
    }

    /// The native samples.
    #[must_use]
    pub fn stored(&self) -> &StoredFrames {
        &self.stored
    }

    /// Stored values that stand for "not measured".
    #[must_use]
    pub fn padding(&self) -> Option<PaddingRange> {
        self.padding
    }

    /// Instance Number, for ordering where no position is given.
    #[must_use]
    pub fn instance_number(&self) -> Option<i64> {
        self.instance_number
    }

    /// The transformations of a frame.
    ///
    /// # Errors
    /// When there is no such frame.
    pub fn transforms(&self, frame: usize) -> Result<&FrameTransforms, ImagingError> {
        self.frames.get(frame).ok_or(ImagingError::FrameOutOfRange { frame, frames: self.frames.len() })
    }

    /// The frame's modality values, row by row; colour by pixel. Padding is mapped like any other value.
    ///
    /// # Errors
    /// When there is no such frame.
    pub fn modality_values(&self, frame: usize) -> Result<Vec<f32>, ImagingError> {
        let modality = &self.transforms(frame)?.modality;
        let mut values = self.stored.values(frame)?;
        if *modality != ModalityTransform::IDENTITY {
            values.iter_mut().for_each(|value| *value = modality.apply(*value));
        }
        Ok(values)
    }

    /// The frame's modality values with `NaN` where nothing was measured.
    pub(crate) fn measured_values(&self, frame: usize) -> Result<Vec<f32>, ImagingError> {
        let modality = &self.transforms(frame)?.modality;
        let mut values = self.stored.values(frame)?;
        for value in &mut values {
            let missing = !value.is_finite() || self.padding.is_some_and(|padding| padding.contains(*value));
            *value = if missing { f32::NAN } else { modality.apply(*value) };
        }
        // An image that is all padding by its own attribute was given a wrong attribute.
        if values.iter().all(|value| value.is_nan()) {
            return self.modality_values(frame);
        }
        Ok(values)
    }
}
