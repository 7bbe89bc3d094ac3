//! JPEG-LS (ISO/IEC 14495-1) by CharLS.

use super::{DecodedFrame, FrameLayout, StreamError, interleave, widen};
use charls::CharLS;
use std::borrow::Cow;

pub(super) fn decode(stream: &[u8], layout: &FrameLayout) -> Result<DecodedFrame, StreamError> {
    let info = CharLS::default().get_frame_info(stream).map_err(StreamError::broken)?;
    let size = (info.height as usize, info.width as usize);
    if size != (layout.rows, layout.columns) {
        return Err(StreamError::disagree("rows and columns", (layout.rows, layout.columns), size));
    }
    if usize::try_from(info.component_count) != Ok(layout.samples) {
        return Err(StreamError::disagree("samples per pixel", layout.samples, info.component_count));
    }
    let precision = u16::try_from(info.bits_per_sample)
        .ok()
        .filter(|bits| (2..=16).contains(bits) && *bits <= layout.bits_allocated)
        .ok_or_else(|| {
            StreamError::disagree("bits per sample", layout.bits_allocated, info.bits_per_sample)
        })?;
    let samples = CharLS::default().decode(&with_end(stream)).map_err(StreamError::broken)?;
    let from = if precision > 8 { 2 } else { 1 };
    let mut bytes = widen(samples, from, layout)?;
    if layout.samples > 1 && interleave_mode(stream) == Some(0) {
        bytes = interleave(&bytes, layout.samples, layout.sample_bytes());
    }
    Ok(DecodedFrame { bytes, precision: Some(precision), signed: false, photometric: layout.photometric })
}

/// The stream with its end-of-image marker. Where a stream is cut short, CharLS searches for seconds for bits that
/// are not there; with the marker it stops at once.
fn with_end(stream: &[u8]) -> Cow<'_, [u8]> {
    const END: [u8; 2] = [0xff, 0xd9];
    let padding = stream.iter().rev().take_while(|&&byte| byte == 0).count();
    if stream[..stream.len() - padding].ends_with(&END) {
        return Cow::Borrowed(stream);
    }
    let mut whole = stream.to_vec();
    whole.extend_from_slice(&END);
    Cow::Owned(whole)
}

/// The interleave mode of the first scan: 0 by plane, 1 by line, 2 by sample (14495-1 C.2.3).
fn interleave_mode(stream: &[u8]) -> Option<u8> {
    let mut position = 2;
    loop {
        let marker = stream.get(position..position + 2)?;
        if marker[0] != 0xff {
            return None;
        }
        if marker[1] == 0xff {
            position += 1;
            continue;
        }
        let length = stream.get(position + 2..position + 4)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        if marker[1] == 0xda {
            // Components, then two bytes each, then NEAR and ILV.
            let components = usize::from(*stream.get(position + 4)?);
            return stream.get(position + 4 + 1 + 2 * components + 1).copied();
        }
        position += 2 + length;
    }
}
