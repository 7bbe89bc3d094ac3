//! Photometric interpretations (PS3.3 C.7.6.3.1.2) and the conversion of YBR colours to RGB.

use std::fmt;

/// What the samples of a pixel mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Photometric {
    /// Grey, the lowest value is white.
    Monochrome1,
    /// Grey, the lowest value is black.
    Monochrome2,
    /// An index into the object's palette.
    PaletteColor,
    /// Red, green, blue.
    Rgb,
    /// Luminance and two colour differences, full range; also the names of the standard for the same colours
    /// with fewer samples.
    YbrFull,
    /// The same with half the horizontal resolution of the colour differences.
    YbrFull422,
    /// The same with the wavelet transforms of JPEG 2000, which a decoder undoes.
    YbrJpeg2000,
}

impl Photometric {
    /// Reads the attribute's text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.trim().to_ascii_uppercase().as_str() {
            "MONOCHROME1" => Some(Self::Monochrome1),
            "MONOCHROME2" | "MONOCHROME" => Some(Self::Monochrome2),
            "PALETTE COLOR" => Some(Self::PaletteColor),
            "RGB" => Some(Self::Rgb),
            "YBR_FULL" => Some(Self::YbrFull),
            "YBR_FULL_422" => Some(Self::YbrFull422),
            "YBR_RCT" | "YBR_ICT" => Some(Self::YbrJpeg2000),
            _ => None,
        }
    }

    /// The attribute's text.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Monochrome1 => "MONOCHROME1",
            Self::Monochrome2 => "MONOCHROME2",
            Self::PaletteColor => "PALETTE COLOR",
            Self::Rgb => "RGB",
            Self::YbrFull => "YBR_FULL",
            Self::YbrFull422 => "YBR_FULL_422",
            Self::YbrJpeg2000 => "YBR_RCT",
        }
    }

    /// Whether the samples are luminance and colour differences.
    #[must_use]
    pub fn is_ybr(self) -> bool {
        matches!(self, Self::YbrFull | Self::YbrFull422)
    }
}

impl fmt::Display for Photometric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Converts pixels of three 8-bit samples from YBR_FULL to RGB in place (PS3.3 C.7.6.3.1.2, inverted).
pub(crate) fn ybr_to_rgb(pixels: &mut [u8]) {
    for pixel in pixels.chunks_exact_mut(3) {
        let y = f32::from(pixel[0]);
        let cb = f32::from(pixel[1]) - 128.0;
        let cr = f32::from(pixel[2]) - 128.0;
        pixel[0] = level(y + 1.402 * cr);
        pixel[1] = level(y - 0.344_136 * cb - 0.714_136 * cr);
        pixel[2] = level(y + 1.772 * cb);
    }
}

fn level(value: f32) -> u8 {
    // The cast saturates at 0 and 255.
    (value + 0.5).floor() as u8
}

/// Repeats the shared colour differences of YBR_FULL_422 (two luminances, then Cb and Cr) for each pixel.
pub(crate) fn expand_422(packed: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(packed.len() / 2 * 3);
    for pair in packed.chunks_exact(4) {
        out.extend_from_slice(&[pair[0], pair[2], pair[3], pair[1], pair[2], pair[3]]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ybr_primaries_come_back_as_rgb() {
        // The forward equation of C.7.6.3.1.2 applied to pure red, green, blue, black and white.
        let mut pixels = [76, 85, 255, 150, 44, 21, 29, 255, 107, 0, 128, 128, 255, 128, 128];
        ybr_to_rgb(&mut pixels);
        let expected = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0], [255, 255, 255]];
        for (got, expected) in pixels.chunks_exact(3).zip(expected) {
            for (got, expected) in got.iter().zip(expected) {
                assert!((i32::from(*got) - expected).abs() <= 1, "{got} {expected}");
            }
        }
    }

    #[test]
    fn names_read_back() {
        for text in ["MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422"] {
            assert_eq!(Photometric::parse(&format!("{text} ")).unwrap().as_str(), text);
        }
        assert_eq!(Photometric::parse("HSV"), None);
    }
}
