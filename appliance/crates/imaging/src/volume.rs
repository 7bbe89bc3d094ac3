//! CT and MR series and enhanced multi-frame images as ordered volumes.
//!
//! Slices are ordered by the projection of Image Position (Patient) on the normal of Image Orientation (Patient),
//! which is the only order that the standard defines; Instance Number is the fallback, and said to be one.

use crate::resample::Plane;
use crate::{DecodedImage, FrameGeometry, ImagingError, InputImage, prepare_slice};
use medinet_model::{InputShape, Preprocessing};

/// Directions that differ by more than this (a cosine of about 2.5 degrees) are different stacks.
const LEAST_COSINE: f64 = 0.999;
/// Slices closer than this fraction of the usual distance, or than a hundredth of a millimetre, coincide.
const DUPLICATE_FRACTION: f64 = 0.05;
/// Distances that differ from the usual one by more than this fraction are irregular.
const IRREGULAR_FRACTION: f64 = 0.1;

/// What ordering needs to know of a slice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SliceLocation {
    /// Where the slice lies.
    pub geometry: FrameGeometry,
    /// Instance Number of its object.
    pub instance_number: Option<i64>,
    /// Index of the frame in its object, from 0.
    pub frame: usize,
}

/// What the order of slices rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderingBasis {
    /// Position and orientation in the patient.
    Position,
    /// Instance and frame number: positions are missing or the slices are not parallel. Distances are unknown.
    InstanceNumber,
}

/// A place where the distance between two neighbouring slices is not the usual one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gap {
    /// Index, in the order, of the slice before it.
    pub after: usize,
    /// Distance in millimetres.
    pub distance_mm: f64,
}

/// The order of slices and what is irregular about it.
#[derive(Debug, Clone, PartialEq)]
pub struct SliceOrder {
    /// Indices into the input, from the lowest to the highest; duplicates are left out.
    pub order: Vec<usize>,
    /// What the order rests on.
    pub basis: OrderingBasis,
    /// The usual (median) distance of neighbouring slices in millimetres, where there are two slices with positions.
    pub spacing_mm: Option<f64>,
    /// Distances that differ from the usual one.
    pub gaps: Vec<Gap>,
    /// Indices into the input of slices that lie where another one lies already; the one with the lower instance
    /// number is kept.
    pub duplicates: Vec<usize>,
}

impl SliceOrder {
    /// Whether the slices are evenly spaced by position, without duplicates.
    #[must_use]
    pub fn is_regular(&self) -> bool {
        self.basis == OrderingBasis::Position && self.gaps.is_empty() && self.duplicates.is_empty()
    }
}

/// Orders slices. Equal inputs give equal orders, whatever the order of the input.
#[must_use]
pub fn order_slices(slices: &[SliceLocation]) -> SliceOrder {
    let number = |index: usize| (slices[index].instance_number.unwrap_or(i64::MAX), slices[index].frame);
    match depths(slices) {
        Some(depths) => by_position(&depths, number),
        None => {
            let mut order: Vec<usize> = (0..slices.len()).collect();
            order.sort_by_key(|&index| number(index));
            SliceOrder {
                order,
                basis: OrderingBasis::InstanceNumber,
                spacing_mm: None,
                gaps: Vec::new(),
                duplicates: Vec::new(),
            }
        }
    }
}

/// Each slice's distance along the common normal; `None` when one has no position or lies askew.
fn depths(slices: &[SliceLocation]) -> Option<Vec<f64>> {
    let normal = slices.first()?.geometry.normal()?;
    slices
        .iter()
        .map(|slice| {
            let own = slice.geometry.normal()?;
            let cosine: f64 = own.iter().zip(normal).map(|(a, b)| a * b).sum();
            (cosine > LEAST_COSINE).then(|| slice.geometry.depth_along(normal))?
        })
        .collect()
}

fn by_position(depths: &[f64], number: impl Fn(usize) -> (i64, usize)) -> SliceOrder {
    let mut sorted: Vec<usize> = (0..depths.len()).collect();
    sorted.sort_by(|&a, &b| depths[a].total_cmp(&depths[b]).then(number(a).cmp(&number(b))));
    let usual = median_distance(&sorted, depths);
    let same = usual.map_or(0.01, |usual| (usual * DUPLICATE_FRACTION).max(0.01));
    let mut order: Vec<usize> = Vec::with_capacity(sorted.len());
    let mut duplicates = Vec::new();
    for index in sorted {
        match order.last_mut() {
            Some(last) if depths[index] - depths[*last] < same => {
                if number(index) < number(*last) {
                    duplicates.push(std::mem::replace(last, index));
                } else {
                    duplicates.push(index);
                }
            }
            _ => order.push(index),
        }
    }
    let spacing_mm = median_distance(&order, depths);
    let gaps = spacing_mm.map_or_else(Vec::new, |usual| {
        order
            .windows(2)
            .enumerate()
            .map(|(after, pair)| Gap { after, distance_mm: depths[pair[1]] - depths[pair[0]] })
            .filter(|gap| (gap.distance_mm - usual).abs() > usual * IRREGULAR_FRACTION)
            .collect()
    });
    SliceOrder { order, basis: OrderingBasis::Position, spacing_mm, gaps, duplicates }
}

/// Median of the distances that are not zero.
fn median_distance(order: &[usize], depths: &[f64]) -> Option<f64> {
    let mut distances: Vec<f64> =
        order.windows(2).map(|pair| depths[pair[1]] - depths[pair[0]]).filter(|&d| d > 0.01).collect();
    distances.sort_by(f64::total_cmp);
    (!distances.is_empty()).then(|| distances[distances.len() / 2])
}

/// An ordered stack of slices.
#[derive(Debug, Clone)]
pub struct Volume {
    images: Vec<DecodedImage>,
    /// Image and frame of each slice, from the lowest.
    slices: Vec<(usize, usize)>,
    order: SliceOrder,
}

impl Volume {
    /// Builds a volume from the objects of one series: single slices, or enhanced multi-frame images.
    ///
    /// # Errors
    /// When there is no image, or the images differ in rows, columns or colour.
    pub fn new(images: Vec<DecodedImage>) -> Result<Self, ImagingError> {
        let first = images
            .first()
            .ok_or_else(|| ImagingError::Volume { reason: "expected at least one image".into() })?;
        let size = (first.rows(), first.columns(), first.channels());
        if images.iter().any(|image| (image.rows(), image.columns(), image.channels()) != size) {
            return Err(ImagingError::Volume {
                reason: "the images of the series differ in rows, columns or colour".into(),
            });
        }
        let mut slices = Vec::new();
        let mut locations = Vec::new();
        for (index, image) in images.iter().enumerate() {
            for frame in 0..image.frame_count() {
                slices.push((index, frame));
                locations.push(SliceLocation {
                    geometry: image.transforms(frame)?.geometry,
                    instance_number: image.instance_number(),
                    frame,
                });
            }
        }
        let order = order_slices(&locations);
        let slices = order.order.iter().map(|&index| slices[index]).collect();
        Ok(Self { images, slices, order })
    }

    /// Number of slices.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.slices.len()
    }

    /// The order and what is irregular about it; its indices count the frames of the images in the given order.
    #[must_use]
    pub fn order(&self) -> &SliceOrder {
        &self.order
    }

    /// The image and the frame that hold slice `index`, counted from the lowest.
    ///
    /// # Errors
    /// When there is no such slice.
    pub fn slice(&self, index: usize) -> Result<(&DecodedImage, usize), ImagingError> {
        let &(image, frame) = self
            .slices
            .get(index)
            .ok_or(ImagingError::FrameOutOfRange { frame: index, frames: self.slices.len() })?;
        Ok((&self.images[image], frame))
    }

    /// Each slice as an input, from the lowest: alone, or with its neighbours where the task asks for them.
    pub fn inputs<'a>(
        &'a self,
        preprocessing: &'a Preprocessing,
        shape: InputShape,
    ) -> impl Iterator<Item = Result<InputImage, ImagingError>> + 'a {
        let has_neighbours = self.order.basis == OrderingBasis::Position;
        (0..self.depth()).map(move |index| {
            let [below, above] = match has_neighbours {
                true => [index.saturating_sub(1), (index + 1).min(self.depth() - 1)],
                false => [index, index],
            };
            let neighbours = [self.slice(below)?, self.slice(above)?];
            prepare_slice(self.slice(index)?, neighbours, preprocessing, shape)
        })
    }

    /// The modality values on a regular grid of the given spacing in millimetres (depth, row, column).
    ///
    /// # Errors
    /// When the slices have no positions or pixel spacing, are in colour, a spacing is not above zero, or the grid
    /// would have more than 2^28 voxels.
    pub fn resampled(&self, spacing_mm: [f64; 3]) -> Result<VoxelGrid, ImagingError> {
        let fail = |reason: &str| ImagingError::Volume { reason: reason.into() };
        if spacing_mm.iter().any(|s| !(s.is_finite() && *s > 0.0)) {
            return Err(fail("expected a spacing above 0 millimetres"));
        }
        let (first, frame) = self.slice(0)?;
        if first.channels() != 1 {
            return Err(fail("expected grey slices, got colour"));
        }
        let geometry = first.transforms(frame)?.geometry;
        let (Some(pixel), Some(distance)) = (geometry.spacing_mm, self.order.spacing_mm) else {
            return Err(fail(
                "pixel spacing or slice positions are missing, so that no grid in millimetres exists",
            ));
        };
        let normal = geometry.normal().ok_or_else(|| fail("the orientation is missing"))?;
        let mut depths = Vec::with_capacity(self.depth());
        for index in 0..self.depth() {
            let (image, frame) = self.slice(index)?;
            depths.push(
                image
                    .transforms(frame)?
                    .geometry
                    .depth_along(normal)
                    .ok_or_else(|| fail("a slice has no position"))?,
            );
        }
        let extent = depths[depths.len() - 1] - depths[0] + distance;
        let cells = |length: f64, step: f64| ((length / step).round().max(1.0)) as usize;
        let depth = cells(extent, spacing_mm[0]);
        let height = cells(f64::from(first.rows()) * pixel.row, spacing_mm[1]);
        let width = cells(f64::from(first.columns()) * pixel.column, spacing_mm[2]);
        if depth.saturating_mul(height).saturating_mul(width) > 1 << 28 {
            return Err(fail("the grid would have more than 2^28 voxels; ask for a coarser spacing"));
        }
        let plane = |index: usize| -> Result<Plane, ImagingError> {
            let (image, frame) = self.slice(index)?;
            let plane = Plane {
                width: image.columns() as usize,
                height: image.rows() as usize,
                values: image.modality_values(frame)?,
            };
            Ok(plane.resample(plane.whole(), width, height))
        };
        let mut values = Vec::with_capacity(depth * height * width);
        let mut cached: Vec<(usize, Plane)> = Vec::new();
        for cell in 0..depth {
            let at = depths[0] - distance / 2.0 + (cell as f64 + 0.5) * spacing_mm[0];
            let upper = depths.partition_point(|&d| d < at).min(depths.len() - 1);
            let lower = if depths[upper] >= at { upper.saturating_sub(1) } else { upper };
            for needed in [lower, upper] {
                if !cached.iter().any(|(index, _)| *index == needed) {
                    cached.retain(|(index, _)| *index == lower);
                    cached.push((needed, plane(needed)?));
                }
            }
            let find = |wanted| cached.iter().find(|(index, _)| *index == wanted).map(|(_, plane)| plane);
            let (Some(below), Some(above)) = (find(lower), find(upper)) else {
                return Err(fail("a slice is missing"));
            };
            let span = depths[upper] - depths[lower];
            let share = if span > 0.0 { ((at - depths[lower]) / span).clamp(0.0, 1.0) as f32 } else { 0.0 };
            values.extend(below.values.iter().zip(&above.values).map(|(a, b)| a + (b - a) * share));
        }
        Ok(VoxelGrid { depth, height, width, values })
    }
}

/// Modality values on a regular grid.
#[derive(Debug, Clone, PartialEq)]
pub struct VoxelGrid {
    /// Slices.
    pub depth: usize,
    /// Rows of a slice.
    pub height: usize,
    /// Columns of a slice.
    pub width: usize,
    /// `depth * height * width` values.
    pub values: Vec<f32>,
}

/// A block of a grid.
#[derive(Debug, Clone, PartialEq)]
pub struct Patch {
    /// First slice, row and column.
    pub origin: [usize; 3],
    /// Slices, rows and columns.
    pub size: [usize; 3],
    /// The block's values.
    pub values: Vec<f32>,
}

impl VoxelGrid {
    /// Blocks of `size` at every `stride` that cover the whole grid: the last ones along an axis are moved back to
    /// its end. Nothing when the grid is smaller than a block, or a stride is zero.
    pub fn patches(&self, size: [usize; 3], stride: [usize; 3]) -> impl Iterator<Item = Patch> + '_ {
        let whole = [self.depth, self.height, self.width];
        let starts = [0, 1, 2].map(|axis| starts(whole[axis], size[axis], stride[axis]));
        let [depths, rows, columns] = starts;
        let mut origins = Vec::with_capacity(depths.len() * rows.len() * columns.len());
        for &z in &depths {
            for &y in &rows {
                origins.extend(columns.iter().map(|&x| [z, y, x]));
            }
        }
        origins.into_iter().map(move |origin| self.patch(origin, size))
    }

    fn patch(&self, origin: [usize; 3], size: [usize; 3]) -> Patch {
        let mut values = Vec::with_capacity(size.iter().product());
        for z in origin[0]..origin[0] + size[0] {
            for y in origin[1]..origin[1] + size[1] {
                let row = (z * self.height + y) * self.width + origin[2];
                values.extend_from_slice(&self.values[row..row + size[2]]);
            }
        }
        Patch { origin, size, values }
    }
}

fn starts(whole: usize, size: usize, stride: usize) -> Vec<usize> {
    if size == 0 || stride == 0 || size > whole {
        return Vec::new();
    }
    let last = whole - size;
    let mut out: Vec<usize> = (0..=last).step_by(stride).collect();
    if out.last() != Some(&last) {
        out.push(last);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn axial(z: f64, instance: i64) -> SliceLocation {
        SliceLocation {
            geometry: FrameGeometry {
                spacing_mm: None,
                position: Some([-100.0, -100.0, z]),
                orientation: Some([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
            },
            instance_number: Some(instance),
            frame: 0,
        }
    }

    proptest! {
        #[test]
        fn position_decides_whatever_the_arrival_and_instance_numbers(
            shuffle in Just((0..20usize).collect::<Vec<_>>()).prop_shuffle(), step in 0.5f64..10.0,
        ) {
            let slices: Vec<_> = shuffle.iter().map(|&k| axial(k as f64 * step, -(k as i64))).collect();
            let found = order_slices(&slices);
            let depths: Vec<usize> = found.order.iter().map(|&index| shuffle[index]).collect();
            prop_assert_eq!(depths, (0..20).collect::<Vec<_>>());
            prop_assert!(found.is_regular());
            prop_assert!((found.spacing_mm.unwrap() - step).abs() < 1e-9);
        }
    }

    #[test]
    fn gaps_and_duplicates_are_reported() {
        let slices =
            [axial(0.0, 1), axial(5.0, 2), axial(5.0, 9), axial(10.0, 3), axial(20.0, 4), axial(25.0, 5)];
        let found = order_slices(&slices);
        assert_eq!(found.order, [0, 1, 3, 4, 5]);
        assert_eq!(found.duplicates, [2]);
        assert_eq!(found.gaps, [Gap { after: 2, distance_mm: 10.0 }]);
        assert!(!found.is_regular());
    }

    #[test]
    fn slices_without_positions_fall_back_to_instance_numbers() {
        let mut slices = [axial(0.0, 3), axial(5.0, 1), axial(10.0, 2)];
        slices[1].geometry.position = None;
        let found = order_slices(&slices);
        assert_eq!((found.basis, &found.order[..]), (OrderingBasis::InstanceNumber, &[1, 2, 0][..]));
        let mut askew = [axial(0.0, 2), axial(5.0, 1)];
        askew[1].geometry.orientation = Some([0.0, 1.0, 0.0, 0.0, 0.0, -1.0]);
        assert_eq!(order_slices(&askew).basis, OrderingBasis::InstanceNumber);
        assert_eq!(order_slices(&[]).order, Vec::<usize>::new());
    }

    #[test]
    fn patches_cover_the_grid_and_stay_inside() {
        let grid = VoxelGrid { depth: 5, height: 4, width: 7, values: (0..140).map(|v| v as f32).collect() };
        let patches: Vec<_> = grid.patches([2, 4, 3], [2, 1, 3]).collect();
        let mut seen = [false; 140];
        for patch in &patches {
            assert_eq!(patch.values.len(), 24);
            patch.values.iter().for_each(|&v| seen[v as usize] = true);
            let [z, y, x] = patch.origin;
            assert_eq!(patch.values[0], ((z * 4 + y) * 7 + x) as f32);
        }
        assert!(seen.iter().all(|&s| s));
        assert_eq!(patches.len(), 3 * 3);
        assert_eq!(grid.patches([6, 1, 1], [1, 1, 1]).count(), 0);
        assert_eq!(grid.patches([1, 1, 1], [0, 1, 1]).count(), 0);
    }
}
