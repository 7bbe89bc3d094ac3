//! Where the pixels of a frame lie in the patient (PS3.3 C.7.6.2, C.7.6.16.2).

use crate::attributes::{floats, items};
use dicom_core::Tag;
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;

/// Position and spacing of one frame, as far as the object states them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FrameGeometry {
    /// Millimetres between the centres of neighbouring rows and of neighbouring columns.
    pub spacing_mm: Option<PixelSpacing>,
    /// Image Position (Patient): the centre of the first pixel in millimetres.
    pub position: Option<[f64; 3]>,
    /// Image Orientation (Patient): unit vectors along a row and along a column.
    pub orientation: Option<[f64; 6]>,
}

/// Distance of pixel centres in millimetres.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PixelSpacing {
    /// Between rows: vertical.
    pub row: f64,
    /// Between columns: horizontal.
    pub column: f64,
    /// Whether the distances hold at the detector and not in the patient (Imager Pixel Spacing).
    pub at_detector: bool,
}

impl FrameGeometry {
    /// The slice's normal: the cross product of row and column direction.
    #[must_use]
    pub fn normal(&self) -> Option<[f64; 3]> {
        let [rx, ry, rz, cx, cy, cz] = self.orientation?;
        let normal = [ry * cz - rz * cy, rz * cx - rx * cz, rx * cy - ry * cx];
        let length = normal.iter().map(|v| v * v).sum::<f64>().sqrt();
        (length > 1e-3).then(|| normal.map(|v| v / length))
    }

    /// Distance of the slice from the origin along its normal, in millimetres.
    #[must_use]
    pub fn depth_along(&self, normal: [f64; 3]) -> Option<f64> {
        let position = self.position?;
        Some(position.iter().zip(normal).map(|(p, n)| p * n).sum())
    }
}

/// Looks attributes up as multi-frame objects keep them: the frame's functional group, then the shared one, then
/// the object itself.
pub(crate) struct FrameAttributes<'a> {
    object: &'a InMemDicomObject,
    shared: Option<&'a InMemDicomObject>,
    frame: Option<&'a InMemDicomObject>,
}

impl<'a> FrameAttributes<'a> {
    pub(crate) fn of(object: &'a InMemDicomObject, frame: usize) -> Self {
        Self {
            object,
            shared: items(object, tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE).first(),
            frame: items(object, tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE).get(frame),
        }
    }

    /// The items that may hold an attribute of the functional group `macro_tag`, the most specific first.
    pub(crate) fn candidates(&self, macro_tag: Tag) -> impl Iterator<Item = &'a InMemDicomObject> {
        let group =
            move |groups: Option<&'a InMemDicomObject>| groups.and_then(|g| items(g, macro_tag).first());
        [group(self.frame), group(self.shared), Some(self.object)].into_iter().flatten()
    }

    fn numbers<const N: usize>(&self, macro_tag: Tag, tag: Tag) -> Option<[f64; N]> {
        self.candidates(macro_tag).find_map(|item| {
            let values: [f64; N] = floats(item, tag).try_into().ok()?;
            values.iter().all(|value| value.is_finite()).then_some(values)
        })
    }

    pub(crate) fn geometry(&self) -> FrameGeometry {
        let usable = |[row, column]: [f64; 2], at_detector| {
            (row > 0.0 && column > 0.0).then_some(PixelSpacing { row, column, at_detector })
        };
        let measures = tags::PIXEL_MEASURES_SEQUENCE;
        let spacing_mm = self
            .numbers(measures, tags::PIXEL_SPACING)
            .and_then(|values| usable(values, false))
            .or_else(|| self.numbers(measures, tags::IMAGER_PIXEL_SPACING).and_then(|v| usable(v, true)))
            .or_else(|| {
                self.numbers(measures, tags::NOMINAL_SCANNED_PIXEL_SPACING).and_then(|v| usable(v, true))
            });
        FrameGeometry {
            spacing_mm,
            position: self.numbers(tags::PLANE_POSITION_SEQUENCE, tags::IMAGE_POSITION_PATIENT),
            orientation: self.numbers(tags::PLANE_ORIENTATION_SEQUENCE, tags::IMAGE_ORIENTATION_PATIENT),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_normal_of_an_axial_slice_points_to_the_head() {
        let axial = FrameGeometry {
            orientation: Some([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
            position: Some([-100.0, -100.0, 42.5]),
            ..FrameGeometry::default()
        };
        let normal = axial.normal().unwrap();
        assert_eq!(normal, [0.0, 0.0, 1.0]);
        assert_eq!(axial.depth_along(normal), Some(42.5));
        let broken = FrameGeometry { orientation: Some([0.0; 6]), ..axial };
        assert_eq!(broken.normal(), None);
    }
}
