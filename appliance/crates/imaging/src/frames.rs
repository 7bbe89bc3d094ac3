//! The stored samples of an image, uncompressed.

use crate::attributes::{int, little_endian, required, text, uint16};
use crate::codec::{Codec, DecodedFrame, FrameLayout, decode_frame, interleave};
use crate::photometric::{expand_422, ybr_to_rgb};
use crate::{ImagingError, Photometric};
use dicom_core::value::{PixelFragmentSequence, PrimitiveValue, Value};
use dicom_dictionary_std::tags;
use dicom_object::{FileDicomObject, InMemDicomObject};
use medinet_objects::EXPLICIT_VR_BIG_ENDIAN;

/// What an image may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Largest decoded size of all frames together, in bytes.
    pub max_bytes: u64,
}

impl Default for DecodeLimits {
    /// 1 GiB: a CT of 2,000 slices of 512 x 512 in 16 bits, on a board with 8 GiB.
    fn default() -> Self {
        Self { max_bytes: 1 << 30 }
    }
}

/// How the bits of a sample are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleFormat {
    /// Unsigned integer.
    Unsigned,
    /// Two's complement, sign-extended to the allocated bits.
    Signed,
    /// IEEE 754, from Float or Double Float Pixel Data.
    Float,
}

/// All frames of an image as native samples.
///
/// Each frame holds `rows * columns * samples_per_pixel` samples, row by row from the top left, colour by pixel,
/// each sample in little endian with `bits_allocated` bits; where `bits_allocated` is 1, each pixel is one byte,
/// 0 or 1. Bits above the stored ones are cleared, or copies of the sign. YBR colours are converted to RGB;
/// palette indices stay as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFrames {
    /// Height in pixels.
    pub rows: u32,
    /// Width in pixels.
    pub columns: u32,
    /// 1 or 3.
    pub samples_per_pixel: u16,
    /// 1, 8, 16, 32, or 64 for doubles.
    pub bits_allocated: u16,
    /// Bits that carry the value, from the lowest.
    pub bits_stored: u16,
    /// How a sample's bits are read.
    pub format: SampleFormat,
    /// What the samples mean.
    pub photometric: Photometric,
    /// One buffer per frame.
    pub frames: Vec<Vec<u8>>,
}

impl StoredFrames {
    /// Bytes of one sample in memory.
    #[must_use]
    pub fn sample_bytes(&self) -> usize {
        usize::from(self.bits_allocated).div_ceil(8)
    }

    /// Bytes of one frame in memory.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        self.rows as usize * self.columns as usize * usize::from(self.samples_per_pixel) * self.sample_bytes()
    }

    /// Sample `index` of a frame as a number.
    #[must_use]
    pub(crate) fn sample(&self, bytes: &[u8]) -> f64 {
        match (self.format, bytes) {
            (SampleFormat::Float, &[a, b, c, d]) => f64::from(f32::from_le_bytes([a, b, c, d])),
            (SampleFormat::Float, &[a, b, c, d, e, f, g, h]) => f64::from_le_bytes([a, b, c, d, e, f, g, h]),
            (SampleFormat::Signed, &[a]) => f64::from(i8::from_le_bytes([a])),
            (SampleFormat::Signed, &[a, b]) => f64::from(i16::from_le_bytes([a, b])),
            (SampleFormat::Signed, &[a, b, c, d]) => f64::from(i32::from_le_bytes([a, b, c, d])),
            (_, &[a]) => f64::from(a),
            (_, &[a, b]) => f64::from(u16::from_le_bytes([a, b])),
            (_, &[a, b, c, d]) => f64::from(u32::from_le_bytes([a, b, c, d])),
            _ => f64::NAN,
        }
    }

    /// All samples of a frame as numbers, without any look-up table.
    ///
    /// # Errors
    /// When there is no such frame.
    pub fn values(&self, frame: usize) -> Result<Vec<f32>, ImagingError> {
        let bytes = self
            .frames
            .get(frame)
            .ok_or(ImagingError::FrameOutOfRange { frame, frames: self.frames.len() })?;
        Ok(bytes.chunks_exact(self.sample_bytes()).map(|sample| self.sample(sample) as f32).collect())
    }

    /// Blanks a rectangle of a frame, given by its left, top, width and height in pixels; what lies outside of the
    /// image is ignored. Grey becomes the darkest shade that the frame holds already (so that no window or
    /// percentile moves), colour becomes black, a palette index becomes 0.
    ///
    /// # Errors
    /// When there is no such frame.
    pub fn blank(
        &mut self,
        frame: usize,
        left: u32,
        top: u32,
        width: u32,
        height: u32,
    ) -> Result<(), ImagingError> {
        let frames = self.frames.len();
        let sample_bytes = self.sample_bytes();
        let pixel_bytes = sample_bytes * usize::from(self.samples_per_pixel);
        let bytes = self.frames.get(frame).ok_or(ImagingError::FrameOutOfRange { frame, frames })?;
        let darkest = bytes.chunks_exact(pixel_bytes).min_by(|a, b| {
            let (a, b) = (self.sample(&a[..sample_bytes]), self.sample(&b[..sample_bytes]));
            if self.photometric == Photometric::Monochrome1 { b.total_cmp(&a) } else { a.total_cmp(&b) }
        });
        let fill = match (self.photometric, darkest) {
            (Photometric::Monochrome1 | Photometric::Monochrome2, Some(pixel)) => pixel.to_vec(),
            _ => vec![0; pixel_bytes],
        };
        let columns = self.columns as usize;
        let right = left.saturating_add(width).min(self.columns) as usize;
        let bottom = top.saturating_add(height).min(self.rows) as usize;
        let left = (left as usize).min(right);
        for row in (top as usize)..bottom {
            let row = &mut self.frames[frame][(row * columns + left) * pixel_bytes..]
                [..(right - left) * pixel_bytes];
            for pixel in row.chunks_exact_mut(pixel_bytes) {
                pixel.copy_from_slice(&fill);
            }
        }
        Ok(())
    }
}

/// The attributes of the image pixel module (PS3.3 C.7.6.3), checked against each other.
struct PixelModule {
    layout: FrameLayout,
    /// As in the object: 1 for packed bits.
    bits_allocated: u16,
    bits_stored: u16,
    high_bit: u16,
    format: SampleFormat,
    planar: bool,
    frames: usize,
}

impl PixelModule {
    fn read(object: &InMemDicomObject, format: Option<u16>) -> Result<Self, ImagingError> {
        let rows = required(object, tags::ROWS, "Rows")?;
        let columns = required(object, tags::COLUMNS, "Columns")?;
        for (keyword, side) in [("Rows", rows), ("Columns", columns)] {
            if side == 0 {
                return Err(ImagingError::MissingAttribute { keyword });
            }
        }
        let samples = uint16(object, tags::SAMPLES_PER_PIXEL).unwrap_or(1);
        if samples != 1 && samples != 3 {
            return Err(ImagingError::Unsupported { what: "SamplesPerPixel of", got: samples.to_string() });
        }
        let photometric = match text(object, tags::PHOTOMETRIC_INTERPRETATION) {
            Some(name) => Photometric::parse(&name).ok_or(ImagingError::Unsupported {
                what: "PhotometricInterpretation",
                got: name.chars().take(16).collect(),
            })?,
            None if samples == 1 => Photometric::Monochrome2,
            None => return Err(ImagingError::MissingAttribute { keyword: "PhotometricInterpretation" }),
        };
        let photometric = match (samples, photometric) {
            (1, Photometric::Monochrome1 | Photometric::Monochrome2 | Photometric::PaletteColor) => {
                photometric
            }
            // A grey image that still carries the name of the colour image it was made of.
            (1, _) => Photometric::Monochrome2,
            (_, Photometric::Monochrome1 | Photometric::Monochrome2 | Photometric::PaletteColor) => {
                return Err(ImagingError::Inconsistent {
                    what: "SamplesPerPixel",
                    expected: format!("1 for {photometric}"),
                    got: samples.to_string(),
                });
            }
            _ => photometric,
        };
        let bits_allocated = match format {
            Some(bits) => bits,
            None => required(object, tags::BITS_ALLOCATED, "BitsAllocated")?,
        };
        let known = if format.is_some() { &[32, 64][..] } else { &[1, 8, 16, 32][..] };
        if !known.contains(&bits_allocated) || (bits_allocated == 1 && samples != 1) {
            return Err(ImagingError::Unsupported {
                what: "BitsAllocated of",
                got: bits_allocated.to_string(),
            });
        }
        let bits_stored = uint16(object, tags::BITS_STORED)
            .filter(|&b| b != 0 && format.is_none())
            .unwrap_or(bits_allocated);
        if bits_stored > bits_allocated {
            return Err(ImagingError::Inconsistent {
                what: "BitsStored",
                expected: format!("at most BitsAllocated, {bits_allocated}"),
                got: bits_stored.to_string(),
            });
        }
        let high_bit = uint16(object, tags::HIGH_BIT)
            .filter(|&bit| bit < bits_allocated && bit + 1 >= bits_stored)
            .unwrap_or(bits_stored - 1);
        let signed = uint16(object, tags::PIXEL_REPRESENTATION) == Some(1) && bits_allocated > 1;
        let frames = int(object, tags::NUMBER_OF_FRAMES).unwrap_or(1).max(1);
        let frames = usize::try_from(frames).ok().filter(|&count| count <= 1 << 20).ok_or_else(|| {
            ImagingError::Inconsistent {
                what: "NumberOfFrames",
                expected: "at most 1048576".into(),
                got: frames.to_string(),
            }
        })?;
        Ok(Self {
            layout: FrameLayout {
                rows: usize::from(rows),
                columns: usize::from(columns),
                samples: usize::from(samples),
                bits_allocated: bits_allocated.max(8),
                photometric,
            },
            bits_allocated,
            bits_stored,
            high_bit,
            format: match (format, signed) {
                (Some(_), _) => SampleFormat::Float,
                (None, true) => SampleFormat::Signed,
                (None, false) => SampleFormat::Unsigned,
            },
            planar: samples > 1 && uint16(object, tags::PLANAR_CONFIGURATION) == Some(1),
            frames,
        })
    }

    fn check_size(&self, limits: &DecodeLimits) -> Result<(), ImagingError> {
        let declared = self.layout.frame_bytes() as u64 * self.frames as u64;
        if declared > limits.max_bytes {
            return Err(ImagingError::TooLarge { declared, limit: limits.max_bytes });
        }
        Ok(())
    }
}

/// Decodes all frames to native samples within the default limits.
///
/// # Errors
/// When the object has no pixel data, is malformed, or uses what no decoder here supports.
pub fn stored_frames(object: &FileDicomObject<InMemDicomObject>) -> Result<StoredFrames, ImagingError> {
    stored_frames_within(object, &DecodeLimits::default())
}

/// Decodes all frames to native samples within limits.
///
/// # Errors
/// As [`stored_frames`].
pub fn stored_frames_within(
    object: &FileDicomObject<InMemDicomObject>,
    limits: &DecodeLimits,
) -> Result<StoredFrames, ImagingError> {
    let (element, float_bits) = [
        (tags::PIXEL_DATA, None),
        (tags::FLOAT_PIXEL_DATA, Some(32)),
        (tags::DOUBLE_FLOAT_PIXEL_DATA, Some(64)),
    ]
    .into_iter()
    .find_map(|(tag, bits)| object.get(tag).map(|element| (element, bits)))
    .ok_or(ImagingError::NoPixelData)?;
    let module = PixelModule::read(object, float_bits)?;
    module.check_size(limits)?;
    let (frames, photometric) = match element.value() {
        Value::Primitive(primitive) => {
            let big_endian = object.meta().transfer_syntax().trim_end_matches('\0') == EXPLICIT_VR_BIG_ENDIAN;
            native(&module, primitive, big_endian)?
        }
        Value::PixelSequence(sequence) => encapsulated(&module, object, sequence)?,
        Value::Sequence(_) => return Err(ImagingError::NoPixelData),
    };
    Ok(StoredFrames {
        rows: module.layout.rows as u32,
        columns: module.layout.columns as u32,
        samples_per_pixel: module.layout.samples as u16,
        bits_allocated: module.bits_allocated,
        bits_stored: module.bits_stored,
        format: module.format,
        photometric,
        frames,
    })
}

fn native(
    module: &PixelModule,
    primitive: &PrimitiveValue,
    big_endian: bool,
) -> Result<(Vec<Vec<u8>>, Photometric), ImagingError> {
    let mut data = little_endian(primitive);
    if big_endian {
        correct_big_endian(&mut data, primitive, module.bits_allocated);
    }
    let layout = &module.layout;
    let pixels = layout.rows * layout.columns;
    let expect = |expected: usize| match data.len() {
        got if got < expected => Err(ImagingError::Truncated { expected: expected as u64, got: got as u64 }),
        _ => Ok(()),
    };
    if module.bits_allocated == 1 {
        expect((pixels * module.frames).div_ceil(8))?;
        // Frames follow each other without padding, the lowest bit first (PS3.5 8.1.1).
        let bit = |index: usize| data[index / 8] >> (index % 8) & 1;
        let frames = (0..module.frames).map(|f| (f * pixels..(f + 1) * pixels).map(bit).collect()).collect();
        return Ok((frames, layout.photometric));
    }
    let full = layout.frame_bytes();
    if layout.photometric == Photometric::YbrFull422 && module.bits_allocated == 8 {
        let half = pixels * 2;
        // Some writers name 4:2:2 and store all samples.
        if data.len() < full * module.frames {
            expect(half * module.frames)?;
            let frames = data
                .chunks_exact(half)
                .take(module.frames)
                .map(|packed| {
                    let mut frame = expand_422(packed);
                    frame.resize(full, 128);
                    ybr_to_rgb(&mut frame);
                    frame
                })
                .collect();
            return Ok((frames, Photometric::Rgb));
        }
    }
    expect(full * module.frames)?;
    let mut photometric = layout.photometric;
    let frames = data
        .chunks_exact(full)
        .take(module.frames)
        .map(|bytes| {
            let mut frame = if module.planar {
                interleave(bytes, layout.samples, layout.sample_bytes())
            } else {
                bytes.to_vec()
            };
            let shift = module.high_bit + 1 - module.bits_stored;
            clean_bits(&mut frame, layout.bits_allocated, shift, module.bits_stored, module.format);
            photometric = to_rgb(&mut frame, layout);
            frame
        })
        .collect();
    Ok((frames, photometric))
}

/// Undoes what reading big-endian pixel data as 16-bit words or as bytes leaves wrong.
fn correct_big_endian(data: &mut [u8], primitive: &PrimitiveValue, bits_allocated: u16) {
    let word_bytes = match primitive {
        PrimitiveValue::U16(_) | PrimitiveValue::I16(_) => 2,
        PrimitiveValue::U8(_) => 1,
        _ => return,
    };
    let sample_bytes = usize::from(bits_allocated / 8);
    if sample_bytes > word_bytes {
        for sample in data.chunks_exact_mut(sample_bytes) {
            // Words are in order already, their sequence is not.
            for index in 0..sample_bytes / word_bytes / 2 {
                let other = sample_bytes - word_bytes * (index + 1);
                for byte in 0..word_bytes {
                    sample.swap(index * word_bytes + byte, other + byte);
                }
            }
        }
    }
}

fn encapsulated(
    module: &PixelModule,
    object: &FileDicomObject<InMemDicomObject>,
    sequence: &PixelFragmentSequence<Vec<u8>>,
) -> Result<(Vec<Vec<u8>>, Photometric), ImagingError> {
    let uid = object.meta().transfer_syntax().trim_end_matches(['\0', ' ']);
    let codec = Codec::of_transfer_syntax(uid)
        .ok_or_else(|| ImagingError::UnsupportedTransferSyntax { uid: uid.chars().take(64).collect() })?;
    // Only JPEG 2000 has samples of one bit (PS3.5 8.2.4).
    let single_bits = module.bits_allocated == 1 && codec != Codec::Jpeg2000;
    if single_bits || module.format == SampleFormat::Float {
        return Err(ImagingError::Unsupported {
            what: "compression of pixels with",
            got: format!("{} bits", module.bits_allocated),
        });
    }
    let streams = frame_streams(codec, sequence, module.frames)?;
    let mut photometric = module.layout.photometric;
    let mut frames = Vec::with_capacity(streams.len());
    for (index, stream) in streams.iter().enumerate() {
        let decoded = decode_frame(codec, stream, &module.layout, index)?;
        let (frame, found) = finish(decoded, codec, module);
        photometric = found;
        frames.push(frame);
    }
    Ok((frames, photometric))
}

/// Cleans the samples of a decoded stream and converts their colours.
fn finish(decoded: DecodedFrame, codec: Codec, module: &PixelModule) -> (Vec<u8>, Photometric) {
    let mut frame = decoded.bytes;
    if codec == Codec::EncapsulatedUncompressed && module.planar {
        frame = interleave(&frame, module.layout.samples, module.layout.sample_bytes());
    }
    match decoded.precision {
        None => {
            let shift = module.high_bit + 1 - module.bits_stored;
            clean_bits(&mut frame, module.layout.bits_allocated, shift, module.bits_stored, module.format);
        }
        // The stream's own precision is what was compressed; BitsStored is often left at the source's value.
        Some(precision) if !decoded.signed => {
            let bits = if codec == Codec::Jpeg2000 { precision } else { precision.max(module.bits_stored) };
            clean_bits(&mut frame, module.layout.bits_allocated, 0, bits, module.format);
        }
        Some(_) => {}
    }
    let layout = FrameLayout { photometric: decoded.photometric, ..module.layout };
    let photometric = to_rgb(&mut frame, &layout);
    (frame, photometric)
}

/// Converts 8-bit YBR to RGB; other depths stay as they are.
fn to_rgb(frame: &mut [u8], layout: &FrameLayout) -> Photometric {
    if layout.photometric.is_ybr() && layout.bits_allocated == 8 {
        ybr_to_rgb(frame);
        return Photometric::Rgb;
    }
    layout.photometric
}

/// The compressed bytes of each frame (PS3.5 A.4).
fn frame_streams(
    codec: Codec,
    sequence: &PixelFragmentSequence<Vec<u8>>,
    frames: usize,
) -> Result<Vec<Vec<u8>>, ImagingError> {
    let fragments = sequence.fragments();
    if fragments.len() < frames {
        return Err(ImagingError::Inconsistent {
            what: "fragments",
            expected: format!("at least one for each of {frames} frames"),
            got: fragments.len().to_string(),
        });
    }
    if fragments.len() == frames {
        return Ok(fragments.iter().map(|fragment| fragment.to_vec()).collect());
    }
    if frames == 1 {
        return Ok(vec![fragments.concat()]);
    }
    let starts: Vec<usize> = if sequence.offset_table().len() == frames {
        // Offsets count from the first byte of the first fragment's item tag.
        let mut position = 0u64;
        let positions: Vec<u64> = fragments
            .iter()
            .map(|fragment| {
                let at = position;
                position += 8 + fragment.len() as u64;
                at
            })
            .collect();
        sequence
            .offset_table()
            .iter()
            .filter_map(|&offset| positions.binary_search(&u64::from(offset)).ok())
            .collect()
    } else {
        (0..fragments.len()).filter(|&i| codec.starts_frame(&fragments[i]) == Some(true)).collect()
    };
    let ordered = starts.first() == Some(&0) && starts.windows(2).all(|pair| pair[0] < pair[1]);
    if starts.len() != frames || !ordered {
        return Err(ImagingError::Inconsistent {
            what: "frames that can be told apart in the fragments",
            expected: frames.to_string(),
            got: starts.len().to_string(),
        });
    }
    let ends = starts.iter().skip(1).copied().chain([fragments.len()]);
    Ok(starts.iter().zip(ends).map(|(&start, end)| fragments[start..end].concat()).collect())
}

/// Moves the stored bits to the bottom, and clears those above or fills them with the sign.
fn clean_bits(frame: &mut [u8], bits_allocated: u16, shift: u16, bits_stored: u16, format: SampleFormat) {
    if format == SampleFormat::Float || (shift == 0 && bits_stored >= bits_allocated) {
        return;
    }
    let unused = u32::from(32 - bits_stored.min(32));
    let clean = |raw: u32| {
        let top = (raw >> shift) << unused;
        if format == SampleFormat::Signed { ((top as i32) >> unused) as u32 } else { top >> unused }
    };
    match bits_allocated {
        8 => frame.iter_mut().for_each(|byte| *byte = clean(u32::from(*byte)) as u8),
        16 => frame.chunks_exact_mut(2).for_each(|sample| {
            let value = clean(u32::from(u16::from_le_bytes([sample[0], sample[1]])));
            sample.copy_from_slice(&(value as u16).to_le_bytes());
        }),
        _ => frame.chunks_exact_mut(4).for_each(|sample| {
            let value = clean(u32::from_le_bytes([sample[0], sample[1], sample[2], sample[3]]));
            sample.copy_from_slice(&value.to_le_bytes());
        }),
    }
}
