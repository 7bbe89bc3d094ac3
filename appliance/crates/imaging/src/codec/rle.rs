//! RLE Lossless (PS3.5 annex G): one PackBits segment per byte plane, most significant byte first.

use super::{DecodedFrame, FrameLayout, StreamError};

const HEADER_BYTES: usize = 64;

pub(super) fn decode(stream: &[u8], layout: &FrameLayout) -> Result<DecodedFrame, StreamError> {
    let header = stream
        .get(..HEADER_BYTES)
        .ok_or_else(|| StreamError::broken("the header of 64 bytes is cut short"))?;
    let word = |index: usize| {
        let bytes = &header[index * 4..index * 4 + 4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize
    };
    let sample_bytes = layout.sample_bytes();
    let segments = layout.samples * sample_bytes;
    if word(0) != segments {
        return Err(StreamError::disagree("segments", segments, word(0)));
    }
    let pixels = layout.rows * layout.columns;
    let mut bytes = vec![0; layout.frame_bytes()];
    let mut plane = Vec::with_capacity(pixels);
    for segment in 0..segments {
        let start = word(segment + 1);
        let end = if segment + 1 < segments { word(segment + 2) } else { stream.len() };
        let packed = stream
            .get(start..end)
            .filter(|_| start >= HEADER_BYTES)
            .ok_or_else(|| StreamError::broken(format!("segment {segment} lies outside the frame")))?;
        plane.clear();
        unpack(packed, pixels, &mut plane);
        if plane.len() < pixels {
            return Err(StreamError::broken(format!(
                "segment {segment} holds {} of {pixels} pixels",
                plane.len()
            )));
        }
        let sample = segment / sample_bytes;
        // The first segment of a sample is its most significant byte.
        let byte = sample_bytes - 1 - segment % sample_bytes;
        let offset = sample * sample_bytes + byte;
        for (pixel, &value) in bytes.chunks_exact_mut(segments).zip(&plane) {
            pixel[offset] = value;
        }
    }
    Ok(DecodedFrame { bytes, precision: None, signed: false, photometric: layout.photometric })
}

/// Appends at most `limit` bytes; stops early where the input ends in the middle of a run.
fn unpack(packed: &[u8], limit: usize, out: &mut Vec<u8>) {
    let mut rest = packed;
    while out.len() < limit {
        let Some((&control, tail)) = rest.split_first() else { return };
        let room = limit - out.len();
        match control as i8 {
            // A no-operation that some writers use as padding.
            -128 => rest = tail,
            literal if literal >= 0 => {
                let count = (literal as usize + 1).min(tail.len());
                out.extend_from_slice(&tail[..count.min(room)]);
                rest = &tail[count..];
            }
            run => {
                let Some((&value, tail)) = tail.split_first() else { return };
                let count = 1 + usize::from(run.unsigned_abs());
                out.resize(out.len() + count.min(room), value);
                rest = tail;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacks_the_packbits_example_of_apple_technical_note_1023() {
        let packed =
            [0xfe, 0xaa, 0x02, 0x80, 0x00, 0x2a, 0xfd, 0xaa, 0x03, 0x80, 0x00, 0x2a, 0x22, 0xf7, 0xaa];
        let expected = [
            0xaa, 0xaa, 0xaa, 0x80, 0x00, 0x2a, 0xaa, 0xaa, 0xaa, 0xaa, 0x80, 0x00, 0x2a, 0x22, 0xaa, 0xaa,
            0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa,
        ];
        let mut out = Vec::new();
        unpack(&packed, 1000, &mut out);
        assert_eq!(out, expected);
    }
}
