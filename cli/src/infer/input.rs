//! From files to a network's inputs, the same way as in training.
//!
//! A task may take each slice with its neighbours in the series. Training sees whole series; here a folder stands for them, and so
//! does a multi-frame file. One slice out of a series would get other inputs than the network was trained on, so it is refused.

use dicom_dictionary_std::tags;
use medinet_imaging::{
    DecodedImage, ImagingError, InputImage, SeriesSlice, SliceLocation, arrange, prepare, prepare_slice,
};
use medinet_inference::InferenceError;
use medinet_model::{InputShape, Preprocessing, Slices};
use medinet_objects::ObjectError;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// A file that gave no result, or not for each frame. No text here holds anything of a file's content.
#[derive(Debug)]
pub(crate) enum FileError {
    Unreadable(std::io::Error),
    EmptyFolder,
    Object(ObjectError),
    Image(ImagingError),
    Inference(InferenceError),
    /// One slice by itself, for a network that takes neighbours.
    OneSlice,
    /// Another file of the folder may hold a neighbour.
    Incomplete,
    /// Frames of which training takes only one at each position.
    Coinciding {
        count: usize,
        frames: usize,
    },
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "cannot be read: {error}"),
            Self::EmptyFolder => {
                f.write_str("expected a folder with DICOM files, found no file right in it; name the folder of one series")
            }
            Self::Object(error) => error.fmt(f),
            Self::Image(error) => error.fmt(f),
            Self::Inference(error) => error.fmt(f),
            Self::OneSlice => f.write_str(
                "the model takes each slice with its neighbours, and this file is one slice of a series; give the folder that \
                 holds the whole series",
            ),
            Self::Incomplete => f.write_str(
                "the model takes each slice with its neighbours, and another file of this folder cannot be read; give the \
                 folder again when all can be",
            ),
            Self::Coinciding { count, frames } => write!(
                f,
                "{count} of {frames} frames lie where another slice of the series lies; the model was trained on one at each \
                 position, so these are left out"
            ),
        }
    }
}

/// Files that are read together.
#[derive(Debug)]
pub(crate) struct Group {
    files: Vec<PathBuf>,
    /// Whether they are all of their series, as far as they are in series.
    whole: bool,
}

/// What became of a file.
#[derive(Debug)]
pub(crate) struct FileOutcome<T> {
    pub(crate) file: PathBuf,
    pub(crate) frames: usize,
    /// By frame, from 0.
    pub(crate) results: Vec<(usize, T)>,
    pub(crate) error: Option<FileError>,
}

impl<T> FileOutcome<T> {
    pub(crate) fn failed(file: &Path, error: FileError) -> Self {
        Self { file: file.to_owned(), frames: 0, results: Vec::new(), error: Some(error) }
    }

    /// Takes the result of a frame. A file whose frame fails gives none at all, for what fails is common to its frames.
    fn take(&mut self, frame: usize, result: Result<T, FileError>) {
        match result {
            _ if self.error.is_some() => {}
            Ok(result) => self.results.push((frame, result)),
            Err(error) => {
                self.results.clear();
                self.error = Some(error);
            }
        }
    }
}

/// What is done with an input.
pub(crate) type Use<'a, T> = dyn FnMut(&InputImage) -> Result<T, InferenceError> + 'a;

impl Group {
    /// The group that a name on the command line stands for: a file, or the files right in a folder in order of their names.
    pub(crate) fn named(path: &Path) -> Result<Self, FileError> {
        if !path.is_dir() {
            return Ok(Self { files: vec![path.to_owned()], whole: false });
        }
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path).map_err(FileError::Unreadable)? {
            let path = entry.map_err(FileError::Unreadable)?.path();
            if !path.is_dir() {
                files.push(path);
            }
        }
        files.sort();
        if files.is_empty() { Err(FileError::EmptyFolder) } else { Ok(Self { files, whole: true }) }
    }

    /// Prepares every frame as the task asks and gives it to `make`.
    pub(crate) fn run<T>(
        &self,
        preprocessing: &Preprocessing,
        shape: InputShape,
        make: &mut Use<'_, T>,
    ) -> Vec<FileOutcome<T>> {
        match preprocessing.slices {
            Slices::Single => self.files.iter().map(|file| alone(file, preprocessing, shape, make)).collect(),
            Slices::Neighbours => self.in_series(preprocessing, shape, make),
        }
    }

    fn in_series<T>(
        &self,
        preprocessing: &Preprocessing,
        shape: InputShape,
        make: &mut Use<'_, T>,
    ) -> Vec<FileOutcome<T>> {
        let mut outcomes = Vec::new();
        let mut images = Vec::new();
        let mut series: BTreeMap<String, Vec<Member>> = BTreeMap::new();
        let mut incomplete = false;
        for file in &self.files {
            match Opened::read(file) {
                Ok(Opened { series: None, .. }) if self.whole => {
                    let error = ImagingError::MissingAttribute { keyword: "SeriesInstanceUID" };
                    outcomes.push(FileOutcome::failed(file, FileError::Image(error)));
                }
                Ok(Opened { image, series: of, is_part }) => {
                    let frames = image.frame_count();
                    let member =
                        |frame| Member { outcome: outcomes.len(), image: images.len(), frame, is_part };
                    series.entry(of.unwrap_or_default()).or_default().extend((0..frames).map(member));
                    let (file, results) = (file.clone(), Vec::new());
                    outcomes.push(FileOutcome { file, frames, results, error: None });
                    images.push(image);
                }
                Err(error) => {
                    incomplete |= matches!(error, FileError::Unreadable(_));
                    outcomes.push(FileOutcome::failed(file, error));
                }
            }
        }
        if incomplete {
            outcomes.iter_mut().filter(|outcome| outcome.error.is_none()).for_each(|outcome| {
                outcome.error = Some(FileError::Incomplete);
            });
            return outcomes;
        }
        for members in series.values() {
            self.one_series(members, &images, &mut outcomes, &mut |own, neighbours| {
                let input = prepare_slice(own, neighbours, preprocessing, shape).map_err(FileError::Image)?;
                make(&input).map_err(FileError::Inference)
            });
        }
        outcomes
    }

    fn one_series<T>(
        &self,
        members: &[Member],
        images: &[DecodedImage],
        outcomes: &mut [FileOutcome<T>],
        make: &mut MakeOf<'_, T>,
    ) {
        let slices: Vec<SeriesSlice> = members.iter().map(|member| member.place(images)).collect();
        let arranged = arrange(&slices);
        // What is no stack has no neighbours, whatever else its series holds.
        let is_part = members.iter().any(|member| member.is_part) || arranged.order.len() < 2;
        if !self.whole && arranged.is_stack && is_part {
            members.iter().for_each(|m| outcomes[m.outcome].take(m.frame, Err(FileError::OneSlice)));
            return;
        }
        let slice = |index: usize| (&images[members[index].image], members[index].frame);
        for (index, member) in members.iter().enumerate() {
            if !arranged.coinciding.contains(&index) {
                let result = make(slice(index), arranged.neighbours(index).map(slice));
                outcomes[member.outcome].take(member.frame, result);
            }
        }
        let mut left_out: BTreeMap<usize, usize> = BTreeMap::new();
        for &index in &arranged.coinciding {
            *left_out.entry(members[index].outcome).or_default() += 1;
        }
        for (outcome, count) in left_out {
            let FileOutcome { frames, error, .. } = &mut outcomes[outcome];
            error.get_or_insert(FileError::Coinciding { count, frames: *frames });
        }
    }
}

type Slice<'a> = (&'a DecodedImage, usize);

/// Makes something of a slice and its two neighbours.
type MakeOf<'a, T> = dyn FnMut(Slice<'_>, [Slice<'_>; 2]) -> Result<T, FileError> + 'a;

/// A frame of a series: indices of its file's outcome, of its image, and in it.
#[derive(Debug, Clone, Copy)]
struct Member {
    outcome: usize,
    image: usize,
    frame: usize,
    is_part: bool,
}

impl Member {
    fn place(&self, images: &[DecodedImage]) -> SeriesSlice {
        let image = &images[self.image];
        let geometry = image.transforms(self.frame).map(|frame| frame.geometry).unwrap_or_default();
        let location =
            SliceLocation { geometry, instance_number: image.instance_number(), frame: self.frame };
        SeriesSlice { location, size: (image.rows(), image.columns()) }
    }
}

struct Opened {
    image: DecodedImage,
    series: Option<String>,
    /// Whether the object says that it is one of several that hold one multi-frame image (PS3.3 C.7.6.16.2.2.4).
    is_part: bool,
}

impl Opened {
    fn read(file: &Path) -> Result<Self, FileError> {
        let bytes = std::fs::read(file).map_err(FileError::Unreadable)?;
        let object = medinet_objects::read(&bytes).map_err(FileError::Object)?;
        let image = medinet_imaging::decode(&object).map_err(FileError::Image)?;
        let series = object.get(tags::SERIES_INSTANCE_UID).and_then(|element| element.to_str().ok());
        let series = series.map(|uid| uid.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned());
        let is_part = object.get(tags::CONCATENATION_UID).is_some();
        Ok(Self { image, series: series.filter(|uid| !uid.is_empty()), is_part })
    }
}

/// Every frame of a file by itself.
fn alone<T>(
    file: &Path,
    preprocessing: &Preprocessing,
    shape: InputShape,
    make: &mut Use<'_, T>,
) -> FileOutcome<T> {
    let image = match Opened::read(file) {
        Ok(Opened { image, .. }) => image,
        Err(error) => return FileOutcome::failed(file, error),
    };
    let frames = image.frame_count();
    let mut outcome = FileOutcome { file: file.to_owned(), frames, results: Vec::new(), error: None };
    for frame in 0..frames {
        let input = prepare(&image, frame, preprocessing, shape).map_err(FileError::Image);
        outcome.take(frame, input.and_then(|input| make(&input).map_err(FileError::Inference)));
        if outcome.error.is_some() {
            break;
        }
    }
    outcome
}

#[cfg(test)]
#[path = "input_tests.rs"]
mod tests;
