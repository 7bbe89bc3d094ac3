//! JPEG (ISO/IEC 10918-1): sequential and progressive with 8 bits, lossless with 2 to 16 bits.

use super::{DecodedFrame, FrameLayout, StreamError, widen};
use crate::Photometric;
use jpeg_decoder::{ColorTransform, Decoder, PixelFormat};

pub(super) fn decode(stream: &[u8], layout: &FrameLayout) -> Result<DecodedFrame, StreamError> {
    let markers = Markers::read(stream)?;
    if !markers.lossless && markers.precision != 8 {
        return Err(StreamError::Unsupported {
            what: "lossy JPEG with a sample precision of",
            got: format!("{} bits", markers.precision),
        });
    }
    if markers.components != layout.samples {
        return Err(StreamError::disagree("samples per pixel", layout.samples, markers.components));
    }
    let from = if markers.precision > 8 { 2 } else { 1 };
    if from > layout.sample_bytes() {
        return Err(StreamError::disagree("bits per sample", layout.bits_allocated, markers.precision));
    }
    let (height, width) = (markers.height, markers.width);
    if (height, width) != (layout.rows, layout.columns) {
        return Err(StreamError::disagree(
            "rows and columns",
            (layout.rows, layout.columns),
            (height, width),
        ));
    }

    let mut decoder = Decoder::new(stream);
    decoder.set_max_decoding_buffer_size(layout.rows * layout.columns * layout.samples * from);
    let transform = markers.color_transform(layout.photometric);
    decoder.set_color_transform(transform);
    let samples = decoder.decode().map_err(StreamError::broken)?;
    let info = decoder.info().ok_or_else(|| StreamError::broken("no frame header"))?;
    let samples = match (info.pixel_format, markers.precision) {
        // The decoder gives 16-bit samples in the byte order of the machine.
        (PixelFormat::L16, _) => samples
            .chunks_exact(2)
            .flat_map(|pair| u16::from_ne_bytes([pair[0], pair[1]]).to_le_bytes())
            .collect(),
        (PixelFormat::L8 | PixelFormat::RGB24, 2..=8) => samples,
        (format, precision) => {
            return Err(StreamError::Unsupported {
                what: "JPEG of the kind",
                got: format!("{format:?} with {precision} bits"),
            });
        }
    };
    let photometric = match layout.samples {
        3 if transform == ColorTransform::YCbCr => Photometric::Rgb,
        3 if layout.photometric.is_ybr() => Photometric::Rgb,
        _ => layout.photometric,
    };
    Ok(DecodedFrame {
        bytes: widen(samples, from, layout)?,
        precision: Some(markers.precision),
        signed: false,
        photometric,
    })
}

/// What the markers before the first scan say.
struct Markers {
    lossless: bool,
    precision: u16,
    height: usize,
    width: usize,
    components: usize,
    component_ids: Vec<u8>,
    jfif: bool,
    /// The colour transform of Adobe's APP14: 0 none, 1 YCbCr.
    adobe: Option<u8>,
}

impl Markers {
    fn read(stream: &[u8]) -> Result<Self, StreamError> {
        if !stream.starts_with(&[0xff, 0xd8]) {
            return Err(StreamError::broken("it does not begin with SOI"));
        }
        let mut jfif = false;
        let mut adobe = None;
        let mut position = 2;
        loop {
            let short = || StreamError::broken("it ends before the frame header");
            if *stream.get(position).ok_or_else(short)? != 0xff {
                return Err(StreamError::broken("a marker is missing"));
            }
            let marker = *stream.get(position + 1).ok_or_else(short)?;
            if marker == 0xff {
                position += 1;
                continue;
            }
            position += 2;
            if marker == 0x01 || (0xd0..=0xd8).contains(&marker) {
                continue;
            }
            let length = stream.get(position..position + 2).ok_or_else(short)?;
            let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
            let body = stream.get(position + 2..position + length).ok_or_else(short)?;
            match marker {
                0xe0 => jfif |= body.starts_with(b"JFIF\0"),
                0xee if body.starts_with(b"Adobe") => adobe = body.get(11).copied(),
                // SOF0 to SOF15 without DHT, JPG and DAC.
                0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                    let header = body.get(..6).ok_or_else(short)?;
                    let components = usize::from(header[5]);
                    let ids = body.get(6..6 + 3 * components).ok_or_else(short)?;
                    return Ok(Self {
                        lossless: matches!(marker, 0xc3 | 0xc7 | 0xcb | 0xcf),
                        precision: u16::from(header[0]),
                        height: usize::from(u16::from_be_bytes([header[1], header[2]])),
                        width: usize::from(u16::from_be_bytes([header[3], header[4]])),
                        components,
                        component_ids: ids.iter().step_by(3).copied().collect(),
                        jfif,
                        adobe,
                    });
                }
                0xd9 | 0xda => return Err(StreamError::broken("a scan comes before the frame header")),
                _ => {}
            }
            position += length;
        }
    }

    /// Whether the three components are to be converted. The stream's own markers win over the attribute, which
    /// real senders often leave at RGB when they compress.
    fn color_transform(&self, photometric: Photometric) -> ColorTransform {
        if self.components != 3 {
            return ColorTransform::None;
        }
        let ycbcr = match (self.adobe, &self.component_ids[..]) {
            (Some(flag), _) => flag != 0,
            (None, b"RGB") => false,
            (None, _) if self.lossless => photometric.is_ybr(),
            (None, _) => photometric != Photometric::Rgb || self.jfif,
        };
        // The decoder's `None` would leave the colours by line instead of by pixel.
        if ycbcr { ColorTransform::YCbCr } else { ColorTransform::RGB }
    }
}
