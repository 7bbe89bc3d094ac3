//! Decoders of one compressed frame, by transfer syntax.
//!
//! Every decoder first reads the stream's own header and refuses what disagrees with the object's attributes, so
//! that no stream can ask for more memory than the attributes (which were checked against the limit) declare.

mod jpeg;
mod jpeg2000;
mod jpegls;
mod rle;

use crate::{ImagingError, Photometric};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How frames are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    /// Native bytes in fragments (PS3.5 A.4.11).
    EncapsulatedUncompressed,
    /// PackBits per byte plane (PS3.5 annex G).
    Rle,
    /// ISO/IEC 10918-1.
    Jpeg,
    /// ISO/IEC 14495-1.
    JpegLs,
    /// ISO/IEC 15444-1, and 15444-15 where the decoder supports it.
    Jpeg2000,
}

impl Codec {
    /// The codec of a transfer syntax with encapsulated pixel data.
    pub(crate) fn of_transfer_syntax(uid: &str) -> Option<Self> {
        let suffix = uid.trim_end_matches(['\0', ' ']).strip_prefix("1.2.840.10008.1.2.")?;
        match suffix {
            "1.98" => Some(Self::EncapsulatedUncompressed),
            "5" => Some(Self::Rle),
            // Baseline, extended, spectral selection and progressive (retired), lossless, lossless SV1.
            "4.50" | "4.51" | "4.53" | "4.55" | "4.57" | "4.70" => Some(Self::Jpeg),
            "4.80" | "4.81" => Some(Self::JpegLs),
            "4.90" | "4.91" | "4.201" | "4.202" | "4.203" => Some(Self::Jpeg2000),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::EncapsulatedUncompressed => "uncompressed",
            Self::Rle => "RLE",
            Self::Jpeg => "JPEG",
            Self::JpegLs => "JPEG-LS",
            Self::Jpeg2000 => "JPEG 2000",
        }
    }

    /// Whether a fragment that begins so begins a frame; `None` where the codec has no such mark.
    pub(crate) fn starts_frame(self, fragment: &[u8]) -> Option<bool> {
        match self {
            Self::EncapsulatedUncompressed | Self::Rle => None,
            Self::Jpeg | Self::JpegLs => Some(fragment.starts_with(&[0xff, 0xd8])),
            Self::Jpeg2000 => Some(
                fragment.starts_with(&[0xff, 0x4f, 0xff, 0x51])
                    || fragment.starts_with(&[0, 0, 0, 12, b'j', b'P']),
            ),
        }
    }
}

/// What the attributes say about a frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FrameLayout {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) samples: usize,
    /// Bits per sample in memory: 8, 16 or 32.
    pub(crate) bits_allocated: u16,
    pub(crate) photometric: Photometric,
}

impl FrameLayout {
    pub(crate) fn sample_bytes(&self) -> usize {
        usize::from(self.bits_allocated / 8)
    }

    pub(crate) fn frame_bytes(&self) -> usize {
        self.rows * self.columns * self.samples * self.sample_bytes()
    }

    fn sample_count(&self) -> usize {
        self.rows * self.columns * self.samples
    }
}

/// A decoded frame: samples in little endian, colour by pixel, in the width of `bits_allocated`.
pub(crate) struct DecodedFrame {
    pub(crate) bytes: Vec<u8>,
    /// Bits per sample of the stream, where it has a precision of its own.
    pub(crate) precision: Option<u16>,
    /// Whether the stream itself says that its samples are signed (they are sign-extended then).
    pub(crate) signed: bool,
    /// The photometric interpretation of `bytes`.
    pub(crate) photometric: Photometric,
}

/// Decodes one frame.
pub(crate) fn decode_frame(
    codec: Codec,
    stream: &[u8],
    layout: &FrameLayout,
    frame: usize,
) -> Result<DecodedFrame, ImagingError> {
    // jpeg-decoder and the translated OpenJPEG index their tables with values of the stream; a stream made to
    // break them must not take the service down. They own all that they touch, so nothing is left half changed.
    let decoded = catch_unwind(AssertUnwindSafe(|| match codec {
        Codec::EncapsulatedUncompressed => uncompressed(stream, layout),
        Codec::Rle => rle::decode(stream, layout),
        Codec::Jpeg => jpeg::decode(stream, layout),
        Codec::JpegLs => jpegls::decode(stream, layout),
        Codec::Jpeg2000 => jpeg2000::decode(stream, layout),
    }))
    .unwrap_or_else(|_| Err(StreamError::Broken("the decoder gave up on an inconsistent stream".into())))
    .map_err(|error| match error {
        StreamError::Broken(reason) => ImagingError::Codec { codec: codec.name(), frame, reason },
        StreamError::Unsupported { what, got } => ImagingError::Unsupported { what, got },
    })?;
    if decoded.bytes.len() != layout.frame_bytes() {
        return Err(ImagingError::Codec {
            codec: codec.name(),
            frame,
            reason: format!("expected {} bytes, got {}", layout.frame_bytes(), decoded.bytes.len()),
        });
    }
    Ok(decoded)
}

/// What a decoder reports; the frame number is added by [`decode_frame`].
enum StreamError {
    Broken(String),
    Unsupported { what: &'static str, got: String },
}

impl StreamError {
    fn broken(reason: impl ToString) -> Self {
        Self::Broken(reason.to_string())
    }

    fn disagree(what: &str, attributes: impl std::fmt::Debug, stream: impl std::fmt::Debug) -> Self {
        Self::Broken(format!("{what}: the attributes say {attributes:?}, the stream {stream:?}"))
    }
}

fn uncompressed(stream: &[u8], layout: &FrameLayout) -> Result<DecodedFrame, StreamError> {
    let bytes = stream.get(..layout.frame_bytes()).ok_or_else(|| {
        StreamError::Broken(format!("expected {} bytes, got {}", layout.frame_bytes(), stream.len()))
    })?;
    Ok(DecodedFrame {
        bytes: bytes.to_vec(),
        precision: None,
        signed: false,
        photometric: layout.photometric,
    })
}

/// Writes samples of `from` bytes each into samples of the layout's width.
fn widen(samples: Vec<u8>, from: usize, layout: &FrameLayout) -> Result<Vec<u8>, StreamError> {
    let to = layout.sample_bytes();
    if samples.len() != layout.sample_count() * from {
        return Err(StreamError::disagree("samples", layout.sample_count(), samples.len() / from));
    }
    if from == to {
        return Ok(samples);
    }
    if from > to {
        return Err(StreamError::disagree("bits per sample", to * 8, from * 8));
    }
    let mut out = vec![0; layout.frame_bytes()];
    for (wide, narrow) in out.chunks_exact_mut(to).zip(samples.chunks_exact(from)) {
        wide[..from].copy_from_slice(narrow);
    }
    Ok(out)
}

/// Changes colour by plane into colour by pixel.
pub(crate) fn interleave(planar: &[u8], samples: usize, sample_bytes: usize) -> Vec<u8> {
    let plane = planar.len() / samples;
    let mut out = vec![0; planar.len()];
    for (sample, values) in planar.chunks_exact(plane).enumerate() {
        let targets = out.chunks_exact_mut(samples * sample_bytes);
        for (pixel, value) in targets.zip(values.chunks_exact(sample_bytes)) {
            pixel[sample * sample_bytes..][..sample_bytes].copy_from_slice(value);
        }
    }
    out
}
