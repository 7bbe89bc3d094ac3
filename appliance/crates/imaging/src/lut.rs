//! Modality and VOI transformations (PS3.3 C.11.1, C.11.2) and palettes (C.7.6.3.1.5).

use crate::ImagingError;
use crate::attributes::{bytes, float, floats, items, text};
use dicom_core::Tag;
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;

/// From stored values to modality values, such as Hounsfield units.
#[derive(Debug, Clone, PartialEq)]
pub enum ModalityTransform {
    /// `value * slope + intercept` (C.11.1.1.2); 1 and 0 where the object has none.
    Rescale {
        /// Modality units per stored unit.
        slope: f64,
        /// Modality units at a stored value of 0.
        intercept: f64,
    },
    /// Modality LUT Sequence.
    Table(LookUpTable),
}

impl ModalityTransform {
    /// Leaves values as they are.
    pub const IDENTITY: Self = Self::Rescale { slope: 1.0, intercept: 0.0 };

    /// The modality value of a stored value.
    #[must_use]
    pub fn apply(&self, stored: f32) -> f32 {
        match self {
            Self::Rescale { slope, intercept } => (f64::from(stored) * slope + intercept) as f32,
            Self::Table(table) => f32::from(table.look_up(stored)),
        }
    }

    pub(crate) fn read(item: &InMemDicomObject, signed: bool) -> Option<Self> {
        if let Some(lut) = items(item, tags::MODALITY_LUT_SEQUENCE).first() {
            return LookUpTable::read(lut, signed).map(Self::Table);
        }
        let slope = float(item, tags::RESCALE_SLOPE);
        let intercept = float(item, tags::RESCALE_INTERCEPT);
        if slope.is_none() && intercept.is_none() {
            return None;
        }
        // A slope of zero would erase the image: it stands for "none" in objects of careless converters.
        let slope = slope.filter(|&slope| slope != 0.0).unwrap_or(1.0);
        Some(Self::Rescale { slope, intercept: intercept.unwrap_or(0.0) })
    }
}

/// A table from integers to integers with its ends extended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookUpTable {
    /// The input that the first entry stands for.
    first: i32,
    /// Bits of an entry, 8 to 16.
    bits: u16,
    entries: Vec<u16>,
}

impl LookUpTable {
    /// The entry for an input; inputs beyond an end get that end's entry.
    #[must_use]
    pub fn look_up(&self, input: f32) -> u16 {
        // Not a number casts to 0.
        let index = f64::from(input).round() - f64::from(self.first);
        let index = (index.max(0.0) as usize).min(self.entries.len() - 1);
        self.entries[index]
    }

    /// The entry as a fraction of the largest that its bits can hold.
    #[must_use]
    pub fn fraction(&self, input: f32) -> f32 {
        let full = (1u32 << self.bits) - 1;
        f32::from(self.look_up(input)) / full as f32
    }

    fn read(item: &InMemDicomObject, signed: bool) -> Option<Self> {
        let (descriptor, data) = (floats(item, tags::LUT_DESCRIPTOR), bytes(item, tags::LUT_DATA)?);
        let (count, first, bits) = parse_descriptor(&descriptor, signed)?;
        Some(Self { first, bits, entries: parse_entries(&data, count, bits)? })
    }
}

/// Number of entries, first input and bits per entry (C.11.1.1.1).
fn parse_descriptor(descriptor: &[f64], signed: bool) -> Option<(usize, i32, u16)> {
    let &[count, first, bits] = descriptor else { return None };
    // The VR is US or SS: where it was read as the other one, the 16 bits are the same.
    let count = match count as i64 & 0xffff {
        0 => 65_536,
        count => count as usize,
    };
    let first = first as i64;
    let first = if signed && first > 32_767 { first - 65_536 } else { first } as i32;
    let bits = bits as u16;
    (8..=16).contains(&bits).then_some((count, first, bits))
}

/// Entries are 16-bit words, or bytes where the table has 8 bits and half the length.
fn parse_entries(data: &[u8], count: usize, bits: u16) -> Option<Vec<u16>> {
    if bits == 8 && data.len() < count * 2 {
        return (data.len() >= count).then(|| data[..count].iter().map(|&byte| u16::from(byte)).collect());
    }
    let words = data.get(..count * 2)?.chunks_exact(2);
    Some(words.map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect())
}

/// Expands a segmented palette (C.7.9.2): discrete values, linear ramps and references to earlier segments.
fn expand_segments(data: &[u8], count: usize, bits: u16) -> Option<Vec<u16>> {
    let words: Vec<u16> = if bits == 8 {
        data.iter().map(|&byte| u16::from(byte)).collect()
    } else {
        data.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
    };
    // Bytes before a segment, for references, in units of the words that the data is read in.
    let unit = if bits == 8 { 1 } else { 2 };
    let mut entries = Vec::with_capacity(count);
    let mut position = 0;
    while position + 1 < words.len() && entries.len() < count {
        position += if words[position] == 2 {
            let [_, segments, low, high] = *words.get(position..position + 4)? else { return None };
            let shift = if bits == 8 { 8 } else { 16 };
            let mut target = (usize::from(high) << shift | usize::from(low)) / unit;
            for _ in 0..segments {
                // A reference to a reference is forbidden: it would allow loops.
                target += expand_segment(&words, target, &mut entries)?;
            }
            4
        } else {
            expand_segment(&words, position, &mut entries)?
        };
    }
    entries.truncate(count);
    (entries.len() == count).then_some(entries)
}

/// Expands the discrete or linear segment at `position`; gives its length.
fn expand_segment(words: &[u16], position: usize, entries: &mut Vec<u16>) -> Option<usize> {
    // Each of at most 65,535 segments has at most 65,535 entries: stop long before memory does.
    if entries.len() > 1 << 17 {
        return None;
    }
    let length = usize::from(*words.get(position + 1)?);
    match *words.get(position)? {
        0 => {
            entries.extend_from_slice(words.get(position + 2..position + 2 + length)?);
            Some(2 + length)
        }
        1 => {
            let end = f64::from(*words.get(position + 2)?);
            let start = f64::from(*entries.last()?);
            let step = (end - start) / length as f64;
            entries.extend((1..=length).map(|index| (start + step * index as f64).round() as u16));
            Some(3)
        }
        _ => None,
    }
}

/// The shape of a window (C.11.2.1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowFunction {
    /// LINEAR: the default, with the half-pixel offsets of C.11.2.1.2.1.
    Linear,
    /// LINEAR_EXACT (C.11.2.1.3.2).
    LinearExact,
    /// SIGMOID (C.11.2.1.3.1).
    Sigmoid,
}

/// From modality values to display intensities.
#[derive(Debug, Clone, PartialEq)]
pub enum VoiTransform {
    /// A window.
    Window {
        /// Window Center, modality units.
        center: f64,
        /// Window Width, modality units.
        width: f64,
        /// VOI LUT Function.
        function: WindowFunction,
    },
    /// VOI LUT Sequence.
    Table(LookUpTable),
}

impl VoiTransform {
    /// The display intensity of a modality value, 0 (black) to 1 (white).
    #[must_use]
    pub fn apply(&self, modality: f32) -> f32 {
        match *self {
            Self::Table(ref table) => table.fraction(modality),
            Self::Window { center, width, function } => {
                window(f64::from(modality), center, width, function) as f32
            }
        }
    }

    /// The transformations that an item holds: VOI LUTs first, then windows.
    pub(crate) fn read(item: &InMemDicomObject, signed: bool) -> Vec<Self> {
        let mut out: Vec<Self> = items(item, tags::VOILUT_SEQUENCE)
            .iter()
            .filter_map(|lut| LookUpTable::read(lut, signed))
            .map(Self::Table)
            .collect();
        let function = match text(item, tags::VOILUT_FUNCTION).as_deref() {
            Some("LINEAR_EXACT") => WindowFunction::LinearExact,
            Some("SIGMOID") => WindowFunction::Sigmoid,
            _ => WindowFunction::Linear,
        };
        let centers = floats(item, tags::WINDOW_CENTER);
        let widths = floats(item, tags::WINDOW_WIDTH);
        let least = if function == WindowFunction::Linear { 1.0 } else { f64::MIN_POSITIVE };
        out.extend(
            centers
                .into_iter()
                .zip(widths)
                .filter(|(center, width)| center.is_finite() && width.is_finite() && *width >= least)
                .map(|(center, width)| Self::Window { center, width, function }),
        );
        out
    }
}

/// The equations of C.11.2.1.2.1 and C.11.2.1.3 with an output range of 0 to 1.
pub(crate) fn window(x: f64, center: f64, width: f64, function: WindowFunction) -> f64 {
    match function {
        WindowFunction::Linear if width <= 1.0 => f64::from(u8::from(x > center - 0.5)),
        WindowFunction::Linear => ((x - (center - 0.5)) / (width - 1.0) + 0.5).clamp(0.0, 1.0),
        WindowFunction::LinearExact => ((x - center) / width + 0.5).clamp(0.0, 1.0),
        WindowFunction::Sigmoid => 1.0 / (1.0 + (-4.0 * (x - center) / width).exp()),
    }
}

/// Red, green and blue for each index of a PALETTE COLOR image.
pub(crate) struct Palette {
    channels: [LookUpTable; 3],
}

impl Palette {
    pub(crate) fn read(object: &InMemDicomObject, signed: bool) -> Result<Self, ImagingError> {
        let channel = |keyword, descriptor: Tag, data: Tag, segmented: Tag| {
            let missing = || ImagingError::MissingAttribute { keyword };
            let (count, first, bits) =
                parse_descriptor(&floats(object, descriptor), signed).ok_or_else(missing)?;
            let entries = match bytes(object, data) {
                Some(data) => parse_entries(&data, count, bits).ok_or_else(missing)?,
                None => {
                    let segments = bytes(object, segmented).ok_or_else(missing)?;
                    expand_segments(&segments, count, bits).ok_or_else(missing)?
                }
            };
            Ok(LookUpTable { first, bits, entries })
        };
        Ok(Self {
            channels: [
                channel(
                    "RedPaletteColorLookupTableData",
                    tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
                    tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DATA,
                    tags::SEGMENTED_RED_PALETTE_COLOR_LOOKUP_TABLE_DATA,
                )?,
                channel(
                    "GreenPaletteColorLookupTableData",
                    tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
                    tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DATA,
                    tags::SEGMENTED_GREEN_PALETTE_COLOR_LOOKUP_TABLE_DATA,
                )?,
                channel(
                    "BluePaletteColorLookupTableData",
                    tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
                    tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DATA,
                    tags::SEGMENTED_BLUE_PALETTE_COLOR_LOOKUP_TABLE_DATA,
                )?,
            ],
        })
    }

    /// Bits of a colour's channels.
    pub(crate) fn bits(&self) -> u16 {
        if self.channels.iter().any(|table| table.bits > 8) { 16 } else { 8 }
    }

    pub(crate) fn color(&self, index: f32) -> [u16; 3] {
        [0, 1, 2].map(|channel| self.channels[channel].look_up(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of C.11.2.1.2.1 for an 8-bit output: the input just at, below and above each end.
    #[test]
    fn linear_windows_follow_the_standard() {
        let at = |x, center, width| window(x, center, width, WindowFunction::Linear);
        // Center 2048, width 4096: the full range of 12 bits maps 0 to 0 and 4095 to 1.
        assert_eq!(at(0.0, 2048.0, 4096.0), 0.0);
        assert_eq!(at(4095.0, 2048.0, 4096.0), 1.0);
        // Center 2048, width 1: a threshold; 2047 is black and 2048 white.
        assert_eq!(at(2047.0, 2048.0, 1.0), 0.0);
        assert_eq!(at(2048.0, 2048.0, 1.0), 1.0);
        // Center 0, width 100: -50 is black and 49 white.
        assert_eq!(at(-50.0, 0.0, 100.0), 0.0);
        assert_eq!(at(49.0, 0.0, 100.0), 1.0);
        assert!(at(-49.0, 0.0, 100.0) > 0.0 && at(48.0, 0.0, 100.0) < 1.0);
        // Center 0, width 1: -1 is black and 0 white.
        assert_eq!((at(-1.0, 0.0, 1.0), at(0.0, 0.0, 1.0)), (0.0, 1.0));
    }

    #[test]
    fn exact_and_sigmoid_windows_follow_the_standard() {
        let exact = |x, center, width| window(x, center, width, WindowFunction::LinearExact);
        assert_eq!((exact(0.0, 2048.0, 4096.0), exact(4096.0, 2048.0, 4096.0)), (0.0, 1.0));
        assert_eq!((exact(-50.0, 0.0, 100.0), exact(50.0, 0.0, 100.0)), (0.0, 1.0));
        let sigmoid = |x| window(x, 10.0, 40.0, WindowFunction::Sigmoid);
        assert_eq!(sigmoid(10.0), 0.5);
        assert!((sigmoid(30.0) - 1.0 / (1.0 + (-2.0f64).exp())).abs() < 1e-12);
    }

    #[test]
    fn tables_extend_their_ends() {
        let table = LookUpTable { first: -2, bits: 8, entries: vec![10, 20, 30] };
        let inputs = [-1e9, -2.0, -1.0, 0.0, 1.0, f32::NAN];
        assert_eq!(inputs.map(|x| table.look_up(x)), [10, 10, 20, 30, 30, 10]);
        assert_eq!(table.fraction(0.0), 30.0 / 255.0);
    }

    #[test]
    fn segmented_palettes_follow_c_7_9_2() {
        // Discrete 3 values, a ramp of 4 to 100, and a reference to both at byte 0.
        let words = [0u16, 3, 10, 20, 60, 1, 4, 100, 2, 2, 0, 0];
        let data: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let once = [10, 20, 60, 70, 80, 90, 100];
        assert_eq!(expand_segments(&data, 14, 16).unwrap(), [once, once].concat());
        assert_eq!(expand_segments(&data, 15, 16), None, "shorter than declared");
        let looping: Vec<u8> = [2u16, 1, 0, 0].iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(expand_segments(&looping, 4, 16), None);
    }

    #[test]
    fn descriptors_of_either_vr_are_read() {
        assert_eq!(parse_descriptor(&[0.0, 65_535.0, 16.0], true), Some((65_536, -1, 16)));
        assert_eq!(parse_descriptor(&[256.0, 65_535.0, 8.0], false), Some((256, 65_535, 8)));
        assert_eq!(parse_descriptor(&[256.0, 0.0, 32.0], false), None);
        assert_eq!(parse_descriptor(&[256.0], false), None);
    }
}
