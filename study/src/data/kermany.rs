//! The carried subset of Kermany et al. 2018: JPEG files in folders by split and class, named by patient.

use super::{CLASSES, Dataset, Images, normalise};
use anyhow::{Context as _, Result, ensure};
use image::imageops::FilterType;
use medinet_model::InputShape;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(super) fn read(folder: &Path, side: u32) -> Result<Dataset> {
    ensure!((28..=224).contains(&side), "expected images of 28 to 224 pixels, got {side}");
    // Over both splits, so that a number means one patient.
    let mut patients = BTreeMap::new();
    let training = split(&folder.join("train"), side, &mut patients)?;
    let test = split(&folder.join("test"), side, &mut patients)?;
    Ok(Dataset { name: "kermany", validation: training.select(&[]), training, test })
}

fn split(folder: &Path, side: u32, patients: &mut BTreeMap<String, u32>) -> Result<Images> {
    let (mut values, mut classes, mut of) = (Vec::new(), Vec::new(), Vec::new());
    for (class, name) in CLASSES.iter().enumerate() {
        for path in pictures(&folder.join(name))? {
            let number =
                patient(&path).with_context(|| format!("{}: the name says no patient", path.display()))?;
            let picture =
                image::open(&path).with_context(|| format!("cannot read {}", path.display()))?.to_luma8();
            // The triangle filter is as wide as the reduction: every pixel of the picture counts.
            let small = image::imageops::resize(&picture, side, side, FilterType::Triangle);
            values.extend(normalise(small.as_raw()));
            classes.push(class);
            let next = u32::try_from(patients.len()).context("too many patients")?;
            of.push(*patients.entry(number).or_insert(next));
        }
    }
    Images::new(InputShape { channels: 1, height: side, width: side }, values, classes, of)
}

fn pictures(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut paths = list.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jpeg"));
    paths.sort();
    Ok(paths)
}

/// What the set's file names say of the patient: `person773`, `IM-0115`, `NORMAL2-IM-0862`.
fn patient(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let (prefix, rest) =
        ["NORMAL2-IM-", "IM-", "person"].iter().find_map(|p| Some((*p, name.strip_prefix(p)?)))?;
    let digits = rest.find(|character: char| !character.is_ascii_digit()).unwrap_or(rest.len());
    (digits > 0).then(|| format!("{prefix}{}", &rest[..digits]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_say_the_patient() {
        for (name, expected) in [
            ("person96_bacteria_466.jpeg", Some("person96")),
            ("IM-0011-0001-0001.jpeg", Some("IM-0011")),
            ("NORMAL2-IM-0862-0001.jpeg", Some("NORMAL2-IM-0862")),
            ("picture.jpeg", None),
            ("IM-x.jpeg", None),
        ] {
            assert_eq!(patient(Path::new(name)).as_deref(), expected);
        }
    }
}
