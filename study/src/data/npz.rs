//! PneumoniaMNIST from its published file: six NumPy arrays in a zip archive.

use super::{Dataset, Images, normalise};
use anyhow::{Context as _, Result, ensure};
use medinet_model::InputShape;
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::Path;
use zip::ZipArchive;

const SIDE: u32 = 28;
/// Far more than any array of the file.
const MAX_BYTES: u64 = 64 << 20;

pub(super) fn pneumonia_mnist(file: &Path) -> Result<Dataset> {
    let cannot = || format!("cannot read {}: expected the published pneumoniamnist.npz", file.display());
    let opened = File::open(file).with_context(cannot)?;
    let mut archive = ZipArchive::new(BufReader::new(opened)).with_context(cannot)?;
    let mut split = |name: &str| split(&mut archive, name).with_context(cannot);
    Ok(Dataset {
        name: "pneumoniamnist",
        training: split("train")?,
        validation: split("val")?,
        test: split("test")?,
    })
}

fn split(archive: &mut ZipArchive<BufReader<File>>, name: &str) -> Result<Images> {
    let (shape, pixels) = array(archive, &format!("{name}_images.npy"))?;
    let (_, labels) = array(archive, &format!("{name}_labels.npy"))?;
    let side = u64::from(SIDE);
    ensure!(
        shape == [labels.len() as u64, side, side],
        "{name}: {} labels for images of shape {shape:?}",
        labels.len()
    );
    ensure!(labels.iter().all(|&label| label < 2), "{name}: a label above 1");
    let size = (SIDE * SIDE) as usize;
    Images::new(
        InputShape { channels: 1, height: SIDE, width: SIDE },
        pixels.chunks_exact(size).flat_map(normalise).collect(),
        labels.iter().map(|&label| usize::from(label)).collect(),
        (0..).take(labels.len()).collect(),
    )
}

/// Shape and content of an array of bytes in row-major order.
fn array(archive: &mut ZipArchive<BufReader<File>>, name: &str) -> Result<(Vec<u64>, Vec<u8>)> {
    let entry = archive.by_name(name)?;
    let array = npyz::NpyFile::new(entry.take(MAX_BYTES))?;
    ensure!(array.header().order() == npyz::Order::C, "{name} is not row-major");
    let shape = array.shape().to_vec();
    Ok((shape, array.into_vec::<u8>()?))
}
