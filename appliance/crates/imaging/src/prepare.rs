//! From a decoded image to a network's input. The steps and their order are those of
//! [`medinet_model::Preprocessing`].

use crate::resample::{Plane, Region, median3};
use crate::{DecodedImage, ImagingError, VoiTransform, lut};
use medinet_model::{InputShape, Intensity, Normalisation, Preprocessing, Resize, Slices};

/// Largest side, in pixels, of an image resampled to a spacing; what would be larger keeps its own resolution.
const MAX_RESAMPLED_SIDE: f64 = 8192.0;
/// Percentiles that stand for a window where an image has none.
const FALLBACK_PERCENTILES: (f32, f32) = (0.5, 99.5);
/// Least standard deviation that a per-image normalisation divides by.
const LEAST_STD: f32 = 1e-3;

/// A network's input: float32 in `[channels, height, width]`, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct InputImage {
    /// The shape.
    pub shape: InputShape,
    /// `channels * height * width` values.
    pub values: Vec<f32>,
}

/// An image that did not come from DICOM, such as a PNG or JPEG file or a video frame.
#[derive(Debug, Clone, Copy)]
pub struct Pixels<'a> {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// 1 (grey) or 3 (red, green, blue by pixel).
    pub channels: u16,
    /// The samples, row by row.
    pub samples: Samples<'a>,
}

/// Samples of [`Pixels`].
#[derive(Debug, Clone, Copy)]
pub enum Samples<'a> {
    /// 0 to 255.
    U8(&'a [u8]),
    /// 0 to 65,535.
    U16(&'a [u16]),
    /// Modality values of any range; for colour 0 to 1.
    F32(&'a [f32]),
}

/// Prepares one frame for a task that takes frames alone.
///
/// # Errors
/// When there is no such frame, the task takes it with its neighbours, or the settings ask for the impossible.
pub fn prepare(
    image: &DecodedImage,
    frame: usize,
    preprocessing: &Preprocessing,
    shape: InputShape,
) -> Result<InputImage, ImagingError> {
    check_alone(preprocessing, shape)?;
    let source = Source::of_frame(image, frame)?;
    Ok(finish(intensities(&[source], preprocessing.intensity), preprocessing, shape))
}

/// Prepares one slice of a series as the task asks: alone, or (2.5D) with the slices below and above it, which
/// [`arrange`](crate::arrange()) names, as the three channels of one input. Percentiles are then taken over the three together.
/// Where one of them is in colour, and so has three channels already, the slice is taken alone.
///
/// # Errors
/// When there is no such frame, the three differ in size, or the settings ask for the impossible.
pub fn prepare_slice(
    own: (&DecodedImage, usize),
    [below, above]: [(&DecodedImage, usize); 2],
    preprocessing: &Preprocessing,
    shape: InputShape,
) -> Result<InputImage, ImagingError> {
    check(preprocessing, shape)?;
    let grey = [below, own, above].iter().all(|(image, _)| image.channels() == 1);
    let taken = match preprocessing.slices {
        Slices::Neighbours if grey => vec![below, own, above],
        Slices::Neighbours | Slices::Single => vec![own],
    };
    let sources: Vec<Source> =
        taken.into_iter().map(|(image, frame)| Source::of_frame(image, frame)).collect::<Result<_, _>>()?;
    let size = |source: &Source| (source.width, source.height);
    if sources.iter().any(|source| size(source) != size(&sources[0])) {
        return Err(ImagingError::Volume { reason: "neighbouring slices differ in rows or columns".into() });
    }
    Ok(finish(intensities(&sources, preprocessing.intensity), preprocessing, shape))
}

/// Prepares an image that is not DICOM, for a task that takes images alone. `Voi` means the full range of integer samples, and
/// percentiles of others.
///
/// # Errors
/// When the number of samples does not fit the size, the task takes images with their neighbours, or the settings ask for the
/// impossible.
pub fn prepare_pixels(
    pixels: Pixels<'_>,
    preprocessing: &Preprocessing,
    shape: InputShape,
) -> Result<InputImage, ImagingError> {
    check_alone(preprocessing, shape)?;
    let source = Source::of_pixels(pixels)?;
    Ok(finish(intensities(&[source], preprocessing.intensity), preprocessing, shape))
}

/// Modality values with what is needed to turn them into intensities.
struct Source {
    width: usize,
    height: usize,
    channels: usize,
    /// By pixel; `NaN` where nothing was measured.
    values: Vec<f32>,
    /// The image's own transformation to 0 to 1.
    own: Option<VoiTransform>,
    inverted: bool,
    /// Millimetres between rows and between columns.
    spacing: Option<(f64, f64)>,
}

impl Source {
    fn of_frame(image: &DecodedImage, frame: usize) -> Result<Self, ImagingError> {
        let transforms = image.transforms(frame)?;
        let channels = usize::from(image.channels());
        // Colours have no window: their own range is that of their bits.
        let own = if channels == 3 {
            let bits = image.stored().bits_stored.min(16);
            Some(full_range(f64::from((1u32 << bits) - 1)))
        } else {
            transforms.voi.first().cloned()
        };
        Ok(Self {
            width: image.columns() as usize,
            height: image.rows() as usize,
            channels,
            values: image.measured_values(frame)?,
            own,
            inverted: image.inverted(),
            spacing: transforms.geometry.spacing_mm.map(|spacing| (spacing.row, spacing.column)),
        })
    }

    fn of_pixels(pixels: Pixels<'_>) -> Result<Self, ImagingError> {
        let Pixels { width, height, channels, samples } = pixels;
        let (values, own): (Vec<f32>, _) = match samples {
            Samples::U8(values) => (values.iter().map(|&v| f32::from(v)).collect(), Some(full_range(255.0))),
            Samples::U16(values) => {
                (values.iter().map(|&v| f32::from(v)).collect(), Some(full_range(65_535.0)))
            }
            Samples::F32(values) => (values.to_vec(), (channels == 3).then(|| full_range(1.0))),
        };
        let expected = u64::from(width) * u64::from(height) * u64::from(channels);
        if !matches!(channels, 1 | 3) || values.len() as u64 != expected || expected == 0 {
            return Err(ImagingError::Preprocessing {
                setting: "pixels",
                expected: "width x height x channels samples, 1 or 3 channels",
                got: format!("{} samples for {width} x {height} x {channels}", values.len()),
            });
        }
        Ok(Self {
            width: width as usize,
            height: height as usize,
            channels: usize::from(channels),
            values,
            own,
            inverted: false,
            spacing: None,
        })
    }
}

fn full_range(highest: f64) -> VoiTransform {
    VoiTransform::Window { center: highest / 2.0, width: highest, function: lut::WindowFunction::LinearExact }
}

/// Planes of display intensities, 0 to 1.
struct Intensities {
    planes: Vec<Plane>,
    spacing: Option<(f64, f64)>,
}

/// Maps modality values to 0 to 1 and undoes MONOCHROME1. Unmeasured pixels become black.
fn intensities(sources: &[Source], intensity: Intensity) -> Intensities {
    let joint = |low, high| {
        let (low, high) = percentiles(sources, low, high);
        Mapping::Range { low, high }
    };
    let shared = match intensity {
        Intensity::Voi if sources.iter().all(|source| source.own.is_some()) => None,
        Intensity::Voi => Some(joint(FALLBACK_PERCENTILES.0, FALLBACK_PERCENTILES.1)),
        Intensity::Window { center, width } => Some(Mapping::Voi(VoiTransform::Window {
            center: f64::from(center),
            width: f64::from(width),
            function: lut::WindowFunction::Linear,
        })),
        Intensity::Percentile { low, high } => Some(joint(low, high)),
    };
    let mut planes = Vec::new();
    for source in sources {
        let own = source.own.clone().map(Mapping::Voi);
        let mapping = shared.as_ref().or(own.as_ref());
        for channel in 0..source.channels {
            let values = source
                .values
                .iter()
                .skip(channel)
                .step_by(source.channels)
                .map(|&value| {
                    if value.is_nan() {
                        return 0.0;
                    }
                    let shade = mapping.map_or(0.0, |mapping| mapping.apply(value));
                    if source.inverted { 1.0 - shade } else { shade }
                })
                .collect();
            planes.push(Plane { width: source.width, height: source.height, values });
        }
    }
    Intensities { planes, spacing: sources.first().and_then(|source| source.spacing) }
}

enum Mapping {
    Voi(VoiTransform),
    Range { low: f32, high: f32 },
}

impl Mapping {
    fn apply(&self, value: f32) -> f32 {
        match self {
            Self::Voi(voi) => voi.apply(value).clamp(0.0, 1.0),
            Self::Range { low, high } if high > low => ((value - low) / (high - low)).clamp(0.0, 1.0),
            Self::Range { .. } => 0.0,
        }
    }
}

/// Two percentiles of all measured values, interpolated linearly between order statistics.
fn percentiles(sources: &[Source], low: f32, high: f32) -> (f32, f32) {
    let mut values: Vec<f32> =
        sources.iter().flat_map(|source| source.values.iter().copied()).filter(|v| v.is_finite()).collect();
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let mut at = |percent: f32| {
        let rank = f64::from(percent) / 100.0 * (values.len() - 1) as f64;
        let below = rank.floor() as usize;
        let (_, &mut first, rest) = values.select_nth_unstable_by(below, f32::total_cmp);
        let next = rest.iter().copied().min_by(f32::total_cmp).unwrap_or(first);
        (f64::from(first) + (f64::from(next) - f64::from(first)) * (rank - below as f64)) as f32
    };
    (at(low), at(high))
}

/// Denoise, spacing, resize, channels, normalisation.
fn finish(intensities: Intensities, preprocessing: &Preprocessing, shape: InputShape) -> InputImage {
    let Intensities { mut planes, spacing } = intensities;
    if shape.channels == 1 && planes.len() == 3 {
        planes = vec![luminance(&planes)];
    }
    if preprocessing.denoise {
        planes.iter_mut().for_each(|plane| *plane = median3(plane));
    }
    if let (Some(target), Some(spacing)) = (preprocessing.spacing_mm, spacing) {
        planes.iter_mut().for_each(|plane| *plane = to_spacing(plane, spacing, f64::from(target)));
    }
    let (height, width) = (shape.height as usize, shape.width as usize);
    let resized: Vec<Plane> =
        planes.iter().map(|plane| resize(plane, preprocessing.resize, width, height)).collect();
    let mut values = Vec::with_capacity(shape.channels as usize * height * width);
    for channel in 0..shape.channels as usize {
        values.extend_from_slice(&resized[channel.min(resized.len() - 1)].values);
    }
    normalise(&mut values, preprocessing.normalisation);
    InputImage { shape, values }
}

/// Rec. ITU-R BT.601 luma, as Y of YBR_FULL.
fn luminance(planes: &[Plane]) -> Plane {
    let values = planes[0].values.iter().zip(&planes[1].values).zip(&planes[2].values);
    Plane {
        width: planes[0].width,
        height: planes[0].height,
        values: values.map(|((r, g), b)| 0.299 * r + 0.587 * g + 0.114 * b).collect(),
    }
}

fn to_spacing(plane: &Plane, (row, column): (f64, f64), target: f64) -> Plane {
    let height = (plane.height as f64 * row / target).round().max(1.0);
    let width = (plane.width as f64 * column / target).round().max(1.0);
    if height > MAX_RESAMPLED_SIDE || width > MAX_RESAMPLED_SIDE {
        return plane.clone();
    }
    plane.resample(plane.whole(), width as usize, height as usize)
}

fn resize(plane: &Plane, how: Resize, width: usize, height: usize) -> Plane {
    let (from_width, from_height) = (plane.width as f64, plane.height as f64);
    let (horizontal, vertical) = (width as f64 / from_width, height as f64 / from_height);
    match how {
        Resize::Stretch => plane.resample(plane.whole(), width, height),
        Resize::CenterCrop => {
            let scale = horizontal.max(vertical);
            let region_width = (width as f64 / scale).min(from_width);
            let region_height = (height as f64 / scale).min(from_height);
            let region = Region {
                left: (from_width - region_width) / 2.0,
                top: (from_height - region_height) / 2.0,
                width: region_width,
                height: region_height,
            };
            plane.resample(region, width, height)
        }
        Resize::Letterbox => {
            let scale = horizontal.min(vertical);
            let inner_width = ((from_width * scale).round() as usize).clamp(1, width);
            let inner_height = ((from_height * scale).round() as usize).clamp(1, height);
            let inner = plane.resample(plane.whole(), inner_width, inner_height);
            let (left, top) = ((width - inner_width) / 2, (height - inner_height) / 2);
            let mut values = vec![0.0; width * height];
            for (y, row) in inner.values.chunks_exact(inner_width).enumerate() {
                values[(top + y) * width + left..][..inner_width].copy_from_slice(row);
            }
            Plane { width, height, values }
        }
    }
}

fn normalise(values: &mut [f32], how: Normalisation) {
    let (mean, std) = match how {
        Normalisation::Fixed { mean, std } => (mean, std),
        Normalisation::PerImage => {
            // Sums in double precision: a large image in single precision would lose its last digits.
            let count = values.len() as f64;
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
            let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / count;
            (mean as f32, (variance.sqrt() as f32).max(LEAST_STD))
        }
        Normalisation::Equalised => return equalise(values),
    };
    values.iter_mut().for_each(|value| *value = (*value - mean) / std);
}

/// Replaces each value by its rank as a point of the uniform distribution with mean 0 and variance 1; equal values
/// share the mean of their ranks.
fn equalise(values: &mut [f32]) {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|&a, &b| values[a].total_cmp(&values[b]));
    let spread = 12f64.sqrt() / values.len() as f64;
    let middle = (values.len() as f64 - 1.0) / 2.0;
    let mut ranked = vec![0.0; values.len()];
    let mut first = 0;
    for run in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = first as f64 + (run.len() as f64 - 1.0) / 2.0;
        run.iter().for_each(|&place| ranked[place] = ((rank - middle) * spread) as f32);
        first += run.len();
    }
    values.copy_from_slice(&ranked);
}

/// For what has no series around it.
fn check_alone(preprocessing: &Preprocessing, shape: InputShape) -> Result<(), ImagingError> {
    match preprocessing.slices {
        Slices::Single => check(preprocessing, shape),
        Slices::Neighbours => Err(ImagingError::NeedsSeries),
    }
}

fn check(preprocessing: &Preprocessing, shape: InputShape) -> Result<(), ImagingError> {
    let refuse = |setting, expected, got: String| Err(ImagingError::Preprocessing { setting, expected, got });
    if !matches!(shape.channels, 1 | 3) {
        return refuse("input.channels", "1 or 3", shape.channels.to_string());
    }
    if preprocessing.slices == Slices::Neighbours && shape.channels != 3 {
        return refuse("input.channels", "3 for neighbouring slices", shape.channels.to_string());
    }
    if !(1..=4096).contains(&shape.height) || !(1..=4096).contains(&shape.width) {
        return refuse("input", "1 to 4096 pixels a side", format!("{} x {}", shape.width, shape.height));
    }
    match preprocessing.intensity {
        Intensity::Window { center, width } if !(center.is_finite() && width.is_finite() && width > 0.0) => {
            return refuse(
                "intensity.window",
                "a finite centre and a width above 0",
                format!("{center}, {width}"),
            );
        }
        Intensity::Percentile { low, high } if !(0.0 <= low && low < high && high <= 100.0) => {
            return refuse("intensity.percentile", "0 <= low < high <= 100", format!("{low}, {high}"));
        }
        _ => {}
    }
    if let Some(spacing) = preprocessing.spacing_mm
        && !(spacing.is_finite() && spacing > 0.0)
    {
        return refuse("spacing_mm", "a finite number above 0", spacing.to_string());
    }
    if let Normalisation::Fixed { mean, std } = preprocessing.normalisation
        && !(mean.is_finite() && std.is_finite() && std > 0.0)
    {
        return refuse("normalisation.fixed", "a finite mean and a std above 0", format!("{mean}, {std}"));
    }
    Ok(())
}
