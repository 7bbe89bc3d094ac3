//! Clean Pixel Data (PS3.15 E.3.1): every picture is decoded, looked at and written back uncompressed.
//!
//! Attributes say when text is likely (ultrasound, secondary capture, screen shots, `BurnedInAnnotation`), but they are
//! often wrong or absent, so the picture itself is searched whatever they say. What is found is blanked in
//! all frames. Held back is what cannot be decoded, what says that it holds text where none is found,
//! and what would be mostly blank.

use crate::clean::text_of;
use crate::detect::{GreyImage, find_text};
use crate::quarantine::QuarantineReason;
use crate::report::{PixelReport, Region, Suspicion};
use crate::settings::DeidentSettings;
use dicom_core::{DataElement, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileDicomObject, InMemDicomObject};
use medinet_imaging::{ImagingError, StoredFrames, replace_pixels, stored_frames};

/// Modalities whose pictures habitually carry text (PS3.3 C.7.3.1.1.1).
const TEXT_MODALITIES: [&str; 16] =
    ["US", "SC", "OT", "XC", "ES", "GM", "SM", "IVUS", "OP", "OPT", "OCT", "HC", "DG", "DOC", "ECG", "RF"];

/// What an object's attributes say about its pixels, read before they are cleaned.
pub(crate) struct Traits {
    pub(crate) has_pixels: bool,
    suspicions: Vec<Suspicion>,
    segmentation: bool,
    /// The rectangle around all ultrasound regions (PS3.3 C.8.5.5), where there are any.
    ultrasound: Option<Region>,
    received_transfer_syntax: String,
}

impl Traits {
    pub(crate) fn of(object: &FileDicomObject<InMemDicomObject>) -> Self {
        let class = text_of(object, tags::SOP_CLASS_UID).unwrap_or_default();
        let modality = text_of(object, tags::MODALITY).unwrap_or_default();
        let image_type: Vec<String> =
            object.get(tags::IMAGE_TYPE).map(crate::clean::texts).unwrap_or_default();
        let secondary = image_type.get(1).is_some_and(|value| value == "SECONDARY");
        let screen = image_type.iter().any(|value| value.contains("SCREEN") || value.contains("CAPTURE"));
        let converted = text_of(object, tags::CONVERSION_TYPE).is_some()
            || text_of(object, tags::SECONDARY_CAPTURE_DEVICE_MANUFACTURER).is_some();
        let text_class = class.starts_with("1.2.840.10008.5.1.4.1.1.7") // Secondary Capture
            || class.starts_with("1.2.840.10008.5.1.4.1.1.6") // Ultrasound
            || class.starts_with("1.2.840.10008.5.1.4.1.1.3") // Ultrasound Multi-frame
                && !class.starts_with("1.2.840.10008.5.1.4.1.1.30")
            || class.starts_with("1.2.840.10008.5.1.4.1.1.77.1"); // Visible Light
        let annotated = text_of(object, tags::BURNED_IN_ANNOTATION).as_deref() == Some("YES");
        let suspicions = [
            (annotated, Suspicion::Annotated),
            (text_class || TEXT_MODALITIES.contains(&modality.as_str()), Suspicion::Modality),
            (secondary || screen || converted, Suspicion::Capture),
        ];
        Self {
            has_pixels: [tags::PIXEL_DATA, tags::FLOAT_PIXEL_DATA, tags::DOUBLE_FLOAT_PIXEL_DATA]
                .iter()
                .any(|&tag| object.get(tag).is_some()),
            suspicions: suspicions.into_iter().filter_map(|(on, why)| on.then_some(why)).collect(),
            segmentation: class == uids::SEGMENTATION_STORAGE,
            ultrasound: ultrasound_regions(object),
            received_transfer_syntax: object.meta().transfer_syntax().trim_matches(['\0', ' ']).to_owned(),
        }
    }
}

fn ultrasound_regions(object: &InMemDicomObject) -> Option<Region> {
    let items = object.get(tags::SEQUENCE_OF_ULTRASOUND_REGIONS)?.items()?;
    let mut bounds: Option<(u32, u32, u32, u32)> = None;
    for item in items {
        let side = |tag: Tag| item.get(tag).and_then(|element| element.to_int::<u32>().ok());
        let region = (
            side(tags::REGION_LOCATION_MIN_X0)?,
            side(tags::REGION_LOCATION_MIN_Y0)?,
            side(tags::REGION_LOCATION_MAX_X1)?,
            side(tags::REGION_LOCATION_MAX_Y1)?,
        );
        bounds = Some(bounds.map_or(region, |(x0, y0, x1, y1)| {
            (x0.min(region.0), y0.min(region.1), x1.max(region.2), y1.max(region.3))
        }));
    }
    let (x0, y0, x1, y1) = bounds?;
    (x1 > x0 && y1 > y0).then(|| Region { x: x0, y: y0, width: x1 - x0 + 1, height: y1 - y0 + 1 })
}

/// Decodes the pixels of a cleaned data set, blanks text in them and writes them back uncompressed.
pub(crate) fn clean(
    object: &mut FileDicomObject<InMemDicomObject>,
    traits: &Traits,
    settings: &DeidentSettings,
) -> Result<PixelReport, QuarantineReason> {
    let mut frames = stored_frames(object).map_err(|error| undecodable(&error))?;
    let mut report = PixelReport {
        frames: u32::try_from(frames.frames.len()).unwrap_or(u32::MAX),
        suspicions: traits.suspicions.clone(),
        blanked: Vec::new(),
        received_transfer_syntax: traits.received_transfer_syntax.clone(),
    };
    if traits.segmentation {
        // Masks that software drew: nothing is written in them, and vessels look like letters.
        report.frames = 0;
    } else {
        let palette = Palette::of(object);
        for frame in 0..frames.frames.len() {
            for view in views(&frames, frame, palette.as_ref())? {
                for region in find_text(&view) {
                    add_region(&mut report.blanked, region);
                }
            }
        }
        let percent = covered_percent(&report.blanked, frames.columns, frames.rows);
        if let Some(inside) = traits.ultrasound {
            for strip in outside(inside, frames.columns, frames.rows) {
                report.blanked.push(strip);
            }
        } else if percent > settings.max_blanked_percent {
            return Err(QuarantineReason::MostlyText(percent));
        }
    }
    if report.blanked.is_empty() && traits.suspicions.contains(&Suspicion::Annotated) {
        return Err(QuarantineReason::BurnedInTextNotFound);
    }
    for frame in 0..frames.frames.len() {
        for region in &report.blanked {
            frames
                .blank(frame, region.x, region.y, region.width, region.height)
                .map_err(|_| QuarantineReason::Internal("a frame went missing"))?;
        }
    }
    replace_pixels(object, frames)
        .map_err(|_| QuarantineReason::Internal("the pixels could not be written back"))?;
    if !report.blanked.is_empty() {
        object.put_element(DataElement::new(tags::BURNED_IN_ANNOTATION, VR::CS, "NO"));
    }
    Ok(report)
}

fn undecodable(error: &ImagingError) -> QuarantineReason {
    QuarantineReason::PixelsUndecodable(match error {
        ImagingError::MissingAttribute { .. } | ImagingError::Inconsistent { .. } => {
            "its image attributes are wrong"
        }
        ImagingError::Truncated { .. } => "its pixel data is cut short",
        ImagingError::TooLarge { .. } => "it is too large",
        ImagingError::UnsupportedTransferSyntax { .. } => "no decoder for its transfer syntax",
        ImagingError::Unsupported { .. } => "an unsupported kind of image",
        _ => "its stream is broken",
    })
}

/// Brightness of each palette entry.
struct Palette {
    first: i64,
    brightness: Vec<f32>,
}

impl Palette {
    fn of(object: &InMemDicomObject) -> Option<Self> {
        let descriptor = object
            .get(tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR)?
            .value()
            .to_multi_int::<i64>()
            .ok()?;
        let [entries, first, _] = descriptor.as_slice() else { return None };
        let entries = if *entries == 0 { 65_536 } else { usize::try_from(*entries).ok()? };
        let channel = |tag| -> Option<Vec<f32>> {
            let bytes = object.get(tag)?.value().to_bytes().ok()?.into_owned();
            if bytes.len() >= entries * 2 {
                let words =
                    bytes.chunks_exact(2).map(|pair| f32::from(u16::from_le_bytes([pair[0], pair[1]])));
                Some(words.take(entries).collect())
            } else {
                Some(bytes.iter().map(|&byte| f32::from(byte)).collect())
            }
        };
        let red = channel(tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DATA)?;
        let green = channel(tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DATA)?;
        let blue = channel(tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DATA)?;
        let brightness = red.iter().zip(&green).zip(&blue).map(|((r, g), b)| r + g + b).collect();
        Some(Self { first: *first, brightness })
    }

    fn look_up(&self, index: f32) -> f32 {
        let last = self.brightness.len().saturating_sub(1);
        let at = usize::try_from(index as i64 - self.first).unwrap_or(0).min(last);
        self.brightness.get(at).copied().unwrap_or(0.0)
    }
}

/// The grey pictures in which a frame's text would show: one for grey, the lightest and darkest channel for colour
/// (yellow on black shows in one, red on white in the other); and each with its full range of values and, where
/// a few extreme pixels squeeze the rest, without them.
fn views(
    frames: &StoredFrames,
    frame: usize,
    palette: Option<&Palette>,
) -> Result<Vec<GreyImage>, QuarantineReason> {
    let values = frames.values(frame).map_err(|_| QuarantineReason::Internal("a frame went missing"))?;
    let (width, height) = (frames.columns as usize, frames.rows as usize);
    let planes: Vec<Vec<f32>> = match (frames.samples_per_pixel, palette) {
        (1, Some(palette)) => vec![values.iter().map(|&index| palette.look_up(index)).collect()],
        (1, None) => vec![values],
        (samples, _) => {
            let pixels = || values.chunks_exact(usize::from(samples));
            vec![
                pixels().map(|pixel| pixel.iter().copied().fold(f32::MIN, f32::max)).collect(),
                pixels().map(|pixel| pixel.iter().copied().fold(f32::MAX, f32::min)).collect(),
            ]
        }
    };
    Ok(planes.iter().flat_map(|plane| GreyImage::scaled(width, height, plane)).collect())
}

/// Adds a rectangle, unless one that is there covers it; drops those that it covers. Rectangles that merely touch stay
/// apart: the box around both would blank what lies in neither.
fn add_region(regions: &mut Vec<Region>, new: Region) {
    let covers = |a: &Region, b: &Region| {
        a.x <= b.x && a.y <= b.y && a.x + a.width >= b.x + b.width && a.y + a.height >= b.y + b.height
    };
    if !regions.iter().any(|old| covers(old, &new)) {
        regions.retain(|old| !covers(&new, old));
        regions.push(new);
    }
}

/// The part of a picture that rectangles cover, in percent.
fn covered_percent(regions: &[Region], columns: u32, rows: u32) -> u32 {
    let mut covered = 0u64;
    let mut row = vec![false; columns as usize];
    for y in 0..rows {
        row.fill(false);
        for region in regions.iter().filter(|r| r.y <= y && y < r.y + r.height) {
            let end = (region.x + region.width).min(columns) as usize;
            row[(region.x as usize).min(end)..end].fill(true);
        }
        covered += row.iter().filter(|&&on| on).count() as u64;
    }
    u32::try_from(covered * 100 / (u64::from(columns) * u64::from(rows)).max(1)).unwrap_or(100)
}

/// The strips of a picture around `inside`.
fn outside(inside: Region, columns: u32, rows: u32) -> Vec<Region> {
    let right = (inside.x + inside.width).min(columns);
    let bottom = (inside.y + inside.height).min(rows);
    let strips = [
        Region { x: 0, y: 0, width: columns, height: inside.y.min(rows) },
        Region { x: 0, y: bottom, width: columns, height: rows - bottom },
        Region { x: 0, y: 0, width: inside.x.min(columns), height: rows },
        Region { x: right, y: 0, width: columns - right, height: rows },
    ];
    strips.into_iter().filter(|strip| strip.width > 0 && strip.height > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covered_rectangles_go_and_areas_count_once() {
        let region = |x, y, width, height| Region { x, y, width, height };
        let mut regions = Vec::new();
        add_region(&mut regions, region(2, 2, 2, 2));
        add_region(&mut regions, region(0, 0, 5, 5));
        add_region(&mut regions, region(1, 1, 2, 2));
        add_region(&mut regions, region(4, 4, 4, 4));
        assert_eq!(regions, [region(0, 0, 5, 5), region(4, 4, 4, 4)]);
        assert_eq!(covered_percent(&regions, 10, 10), 40);
        assert_eq!(covered_percent(&[region(8, 8, 9, 9)], 10, 10), 4);
    }

    #[test]
    fn strips_cover_all_but_the_inside() {
        let inside = Region { x: 2, y: 3, width: 4, height: 5 };
        let strips = outside(inside, 10, 12);
        for (x, y) in (0..10).flat_map(|x| (0..12).map(move |y| (x, y))) {
            let within = |r: &Region| x >= r.x && x < r.x + r.width && y >= r.y && y < r.y + r.height;
            assert_eq!(strips.iter().any(within), !within(&inside), "{x},{y}");
        }
        assert!(outside(Region { x: 0, y: 0, width: 50, height: 50 }, 10, 12).is_empty());
    }
}
