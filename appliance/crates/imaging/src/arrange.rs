//! Which slices of a series stand beside each other in an input.
//!
//! Training and inference both ask here: a network that was trained with a slice's neighbours must get the same ones later.

use crate::volume::{OrderingBasis, SliceLocation, SliceOrder, order_slices};

/// What arranging needs to know of a slice or frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SeriesSlice {
    /// Where it lies.
    pub location: SliceLocation,
    /// Rows and columns.
    pub size: (u32, u32),
}

/// How the slices of one series lie to each other. Indices are those of the slices that were given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrangement {
    /// From the lowest slice to the highest; what lies where another slice lies is left out.
    pub order: Vec<usize>,
    /// Whether the slices are parallel, of one size and all with a position. Only then do they have neighbours.
    pub is_stack: bool,
    /// Slices of a stack that lie where another one lies already: not trained on, and without neighbours.
    pub coinciding: Vec<usize>,
    neighbours: Vec<[usize; 2]>,
}

impl Arrangement {
    /// The slices below and above slice `index`: the slice itself at an end of the stack, and in a series that is none.
    ///
    /// # Panics
    /// When there is no such slice.
    #[must_use]
    pub fn neighbours(&self, index: usize) -> [usize; 2] {
        self.neighbours[index]
    }
}

/// Arranges all slices of one series, whatever the order that they are given in.
#[must_use]
pub fn arrange(slices: &[SeriesSlice]) -> Arrangement {
    let locations: Vec<SliceLocation> = slices.iter().map(|slice| slice.location).collect();
    let SliceOrder { order, basis, duplicates, .. } = order_slices(&locations);
    let same_size = order.windows(2).all(|pair| slices[pair[0]].size == slices[pair[1]].size);
    let is_stack = basis == OrderingBasis::Position && same_size;
    let mut neighbours: Vec<[usize; 2]> = (0..slices.len()).map(|index| [index, index]).collect();
    if is_stack {
        for (position, &index) in order.iter().enumerate() {
            let above = (position + 1).min(order.len() - 1);
            neighbours[index] = [order[position.saturating_sub(1)], order[above]];
        }
    }
    let coinciding = if is_stack { duplicates } else { Vec::new() };
    Arrangement { order, is_stack, coinciding, neighbours }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FrameGeometry;

    fn slice(depth: Option<f64>, instance: i64) -> SeriesSlice {
        let geometry = FrameGeometry {
            spacing_mm: None,
            position: depth.map(|z| [0.0, 0.0, z]),
            orientation: Some([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
        };
        let location = SliceLocation { geometry, instance_number: Some(instance), frame: 0 };
        SeriesSlice { location, size: (4, 4) }
    }

    #[test]
    fn a_stack_pairs_slices_by_position_and_its_ends_with_themselves() {
        let found = arrange(&[slice(Some(5.0), 1), slice(Some(0.0), 2), slice(Some(2.5), 3)]);
        assert!(found.is_stack && found.coinciding.is_empty());
        assert_eq!(found.order, [1, 2, 0]);
        assert_eq!([0, 1, 2].map(|index| found.neighbours(index)), [[2, 0], [1, 2], [1, 0]]);
    }

    #[test]
    fn what_coincides_is_left_out_and_nobodys_neighbour() {
        let found = arrange(&[slice(Some(0.0), 1), slice(Some(5.0), 9), slice(Some(5.0), 2)]);
        assert_eq!((&found.order[..], &found.coinciding[..]), (&[0, 2][..], &[1][..]));
        assert_eq!([0, 1, 2].map(|index| found.neighbours(index)), [[0, 2], [1, 1], [0, 2]]);
    }

    #[test]
    fn a_series_without_positions_or_of_several_sizes_is_no_stack() {
        let mut other = slice(Some(5.0), 2);
        other.size = (4, 5);
        for slices in [[slice(Some(0.0), 1), other], [slice(Some(0.0), 1), slice(None, 2)]] {
            let found = arrange(&slices);
            assert!(!found.is_stack && found.coinciding.is_empty());
            assert_eq!([found.neighbours(0), found.neighbours(1)], [[0, 0], [1, 1]]);
        }
        assert_eq!(arrange(&[]).order, Vec::<usize>::new());
    }
}
