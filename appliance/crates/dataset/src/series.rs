//! The images with their labels, grouped into series and thinned out as the settings say.

use crate::labels::{Decision, LabelTable};
use crate::{Dataset, DatasetError};
use medinet_imaging::{FrameGeometry, SeriesSlice, SliceLocation, arrange};
use medinet_types::Digest;
use std::collections::BTreeMap;

/// One image of the data set.
#[derive(Debug, Clone)]
pub(crate) struct ImageRow {
    pub(crate) id: i64,
    pub(crate) instance: Digest,
    pub(crate) content: Digest,
    pub(crate) frame: u32,
    pub(crate) image: Digest,
    pub(crate) patient: String,
    pub(crate) class: Option<u32>,
    /// The slices below and above, as indices into [`Rows::frames`]; the image itself where it has none.
    pub(crate) neighbours: [usize; 2],
    /// This row's index in [`Rows::frames`].
    pub(crate) index: usize,
}

/// A frame of a stored object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FrameRef {
    /// Digest of the object's encoding.
    pub(crate) content: Digest,
    /// Digest of the frame's samples.
    pub(crate) image: Digest,
    pub(crate) frame: u32,
}

/// What the database holds of images.
pub(crate) struct Rows {
    /// The images to use, in canonical order: by instance digest, then frame.
    pub(crate) images: Vec<ImageRow>,
    /// All frames, which neighbours refer to.
    pub(crate) frames: Vec<FrameRef>,
    pub(crate) contradicted: u64,
}

struct Placed {
    row: ImageRow,
    series: String,
    slice: SeriesSlice,
}

/// Reads all images with their labels.
pub(crate) fn load_rows(dataset: &Dataset) -> Result<Rows, DatasetError> {
    let labels = LabelTable::load(&dataset.connection, &dataset.task.network.classes)?;
    let mut contradicted = 0;
    let mut placed = read(dataset, &labels, &mut contradicted)?;
    let frame =
        |Placed { row, .. }: &Placed| FrameRef { content: row.content, image: row.image, frame: row.frame };
    let frames = placed.iter().map(frame).collect();

    let mut series: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, image) in placed.iter().enumerate() {
        series.entry(&image.series).or_default().push(index);
    }
    let mut kept = vec![true; placed.len()];
    let mut neighbours: Vec<[usize; 2]> = (0..placed.len()).map(|index| [index, index]).collect();
    for members in series.values() {
        let slices: Vec<SeriesSlice> = members.iter().map(|&index| placed[index].slice).collect();
        let arranged = arrange(&slices);
        for (position, &index) in members.iter().enumerate() {
            neighbours[index] = arranged.neighbours(position).map(|position| members[position]);
        }
        // A slice sent twice is one image.
        arranged.coinciding.iter().for_each(|&position| kept[members[position]] = false);
        let ordered: Vec<usize> = arranged.order.iter().map(|&position| members[position]).collect();
        thin_out(&ordered, dataset.settings.max_images_per_series as usize, &mut kept);
    }
    for (image, neighbours) in placed.iter_mut().zip(neighbours) {
        image.row.neighbours = neighbours;
    }
    let images =
        placed.into_iter().zip(kept).filter(|(_, kept)| *kept).map(|(placed, _)| placed.row).collect();
    Ok(Rows { images, frames, contradicted })
}

/// Keeps `most` of a series, at the centres of equal parts of it.
fn thin_out(ordered: &[usize], most: usize, kept: &mut [bool]) {
    if most == 0 || ordered.len() <= most {
        return;
    }
    ordered.iter().for_each(|&index| kept[index] = false);
    for part in 0..most {
        kept[ordered[(2 * part + 1) * ordered.len() / (2 * most)]] = true;
    }
}

fn read(dataset: &Dataset, labels: &LabelTable, contradicted: &mut u64) -> Result<Vec<Placed>, DatasetError> {
    let fail = DatasetError::database;
    let mut statement = dataset
        .connection
        .prepare(
            "SELECT i.id, i.instance, o.content, i.frame, i.image, o.patient, o.study, o.accession, o.series,
                    i.pixel_rows, i.pixel_columns, i.instance_number, i.geometry
             FROM images i JOIN objects o ON o.instance = i.instance ORDER BY i.instance, i.frame",
        )
        .map_err(fail("reading images"))?;
    let mut cursor = statement.query([]).map_err(fail("reading images"))?;
    let mut placed = Vec::new();
    while let Some(row) = cursor.next().map_err(fail("reading images"))? {
        let mut parse = || -> rusqlite::Result<Placed> {
            let instance = Digest(row.get(1)?);
            let study: String = row.get(6)?;
            let accession: Option<String> = row.get(7)?;
            let class = match labels.decide(instance, &study, accession.as_deref()) {
                Decision::Class(class) => Some(class),
                Decision::None => None,
                Decision::Contradiction => {
                    *contradicted += 1;
                    None
                }
            };
            let frame: u32 = row.get(3)?;
            let index = placed.len();
            Ok(Placed {
                row: ImageRow {
                    id: row.get(0)?,
                    instance,
                    content: Digest(row.get(2)?),
                    frame,
                    image: Digest(row.get(4)?),
                    patient: row.get(5)?,
                    class,
                    neighbours: [index, index],
                    index,
                },
                series: row.get(8)?,
                slice: SeriesSlice {
                    size: (row.get(9)?, row.get(10)?),
                    location: SliceLocation {
                        geometry: geometry(row.get::<_, Option<Vec<u8>>>(12)?.as_deref()),
                        instance_number: row.get(11)?,
                        frame: frame as usize,
                    },
                },
            })
        };
        let image = parse().map_err(fail("reading images"))?;
        placed.push(image);
    }
    Ok(placed)
}

fn geometry(bytes: Option<&[u8]>) -> FrameGeometry {
    let numbers: Vec<f64> = bytes
        .unwrap_or_default()
        .chunks_exact(8)
        .map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
        .collect();
    let &[px, py, pz, a, b, c, d, e, f] = &numbers[..] else { return FrameGeometry::default() };
    FrameGeometry { spacing_mm: None, position: Some([px, py, pz]), orientation: Some([a, b, c, d, e, f]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_evenly_spaced_images_around_the_middle() {
        let ordered: Vec<usize> = (0..10).collect();
        let keep = |most| {
            let mut kept = vec![true; 10];
            thin_out(&ordered, most, &mut kept);
            (0..10).filter(|&i| kept[i]).collect::<Vec<_>>()
        };
        assert_eq!(keep(1), [5]);
        assert_eq!(keep(2), [2, 7]);
        assert_eq!(keep(0).len(), 10);
        assert_eq!(keep(10).len(), 10);
        assert_eq!(keep(9).len(), 9);
    }
}
