//! JPEG 2000 (ISO/IEC 15444-1) by OpenJPEG translated to Rust.

use super::{DecodedFrame, FrameLayout, StreamError};
use crate::Photometric;
use jpeg2k::{DecodeParameters, Image};

pub(super) fn decode(stream: &[u8], layout: &FrameLayout) -> Result<DecodedFrame, StreamError> {
    Size::read(stream)?.check(layout)?;
    // A strict decoder refuses the last bytes that some writers leave out; a lenient one fills them in.
    let parameters = DecodeParameters::new().strict(false).ignore_pclr_cmap_cdef();
    let image = Image::from_bytes_with(stream, parameters).map_err(StreamError::broken)?;
    let components = image.components();
    if components.len() != layout.samples {
        return Err(StreamError::disagree("samples per pixel", layout.samples, components.len()));
    }
    let sample_bytes = layout.sample_bytes();
    let pixel_bytes = sample_bytes * layout.samples;
    let mut bytes = vec![0; layout.frame_bytes()];
    for (index, component) in components.iter().enumerate() {
        let size = (component.height() as usize, component.width() as usize);
        if size != (layout.rows, layout.columns) {
            return Err(StreamError::disagree("rows and columns", (layout.rows, layout.columns), size));
        }
        for (pixel, value) in bytes.chunks_exact_mut(pixel_bytes).zip(component.data()) {
            pixel[index * sample_bytes..][..sample_bytes]
                .copy_from_slice(&value.to_le_bytes()[..sample_bytes]);
        }
    }
    let photometric = match layout.photometric {
        // The decoder has undone the component transform.
        Photometric::YbrJpeg2000 => Photometric::Rgb,
        other => other,
    };
    Ok(DecodedFrame {
        bytes,
        precision: components.first().and_then(|c| u16::try_from(c.precision()).ok()),
        signed: components.first().is_some_and(|c| c.is_signed()),
        photometric,
    })
}

/// The SIZ marker segment (15444-1 A.5.1), read before the decoder may allocate.
struct Size {
    rows: u64,
    columns: u64,
    components: usize,
    max_precision: u16,
    tiles: u64,
    subsampled: bool,
}

impl Size {
    fn read(stream: &[u8]) -> Result<Self, StreamError> {
        let start = stream
            .windows(4)
            .take(1 << 16)
            .position(|window| window == [0xff, 0x4f, 0xff, 0x51])
            .ok_or_else(|| StreamError::broken("no codestream"))?;
        let short = || StreamError::broken("the SIZ marker segment is cut short");
        // Length and capabilities come before the reference grid.
        let body = stream.get(start + 8..).ok_or_else(short)?;
        let word = |index: usize| -> Result<u64, StreamError> {
            let bytes = body.get(index * 4..index * 4 + 4).ok_or_else(short)?;
            Ok(u64::from(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])))
        };
        let (xsiz, ysiz, xosiz, yosiz) = (word(0)?, word(1)?, word(2)?, word(3)?);
        let (xtsiz, ytsiz, xtosiz, ytosiz) = (word(4)?, word(5)?, word(6)?, word(7)?);
        let count = body.get(32..34).ok_or_else(short)?;
        let components = usize::from(u16::from_be_bytes([count[0], count[1]]));
        let specs = body.get(34..34 + 3 * components).ok_or_else(short)?;
        if xtsiz == 0 || ytsiz == 0 {
            return Err(StreamError::broken("tiles of size zero"));
        }
        let tiles = xsiz.saturating_sub(xtosiz).div_ceil(xtsiz) * ysiz.saturating_sub(ytosiz).div_ceil(ytsiz);
        Ok(Self {
            rows: ysiz.saturating_sub(yosiz),
            columns: xsiz.saturating_sub(xosiz),
            components,
            max_precision: specs.iter().step_by(3).map(|s| u16::from(s & 0x7f) + 1).max().unwrap_or(0),
            tiles,
            subsampled: specs.chunks_exact(3).any(|s| s[1] != 1 || s[2] != 1),
        })
    }

    fn check(&self, layout: &FrameLayout) -> Result<(), StreamError> {
        let size = (layout.rows as u64, layout.columns as u64);
        if size != (self.rows, self.columns) {
            return Err(StreamError::disagree("rows and columns", size, (self.rows, self.columns)));
        }
        if self.components != layout.samples {
            return Err(StreamError::disagree("samples per pixel", layout.samples, self.components));
        }
        if self.max_precision > layout.bits_allocated || self.max_precision > 31 {
            return Err(StreamError::disagree("bits per sample", layout.bits_allocated, self.max_precision));
        }
        if self.tiles == 0 || self.tiles > 65_535 {
            return Err(StreamError::broken("more tiles than the standard allows"));
        }
        if self.subsampled {
            return Err(StreamError::Unsupported {
                what: "JPEG 2000 with",
                got: "subsampled components".into(),
            });
        }
        Ok(())
    }
}
