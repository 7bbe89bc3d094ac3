//! Medical image processing: decoding of DICOM pixel data, look-up tables and windows, preprocessing, volumes and
//! augmentation.
//!
//! The same code serves training and inference, so that a model sees the same numbers in both. Nothing here does
//! I/O: objects, buffers and random sources are arguments.
//!
//! DICOM is cited by its 2024 edition.

mod arrange;
mod attributes;
mod augment;
mod codec;
mod decoded;
mod error;
mod frames;
mod geometry;
mod lut;
mod photometric;
mod prepare;
mod replace;
mod resample;
mod volume;

pub use arrange::{Arrangement, SeriesSlice, arrange};
pub use augment::augment;
pub use decoded::{DecodedImage, FrameTransforms, PaddingRange, decode, decode_within};
pub use error::ImagingError;
pub use frames::{DecodeLimits, SampleFormat, StoredFrames, stored_frames, stored_frames_within};
pub use geometry::{FrameGeometry, PixelSpacing};
pub use lut::{LookUpTable, ModalityTransform, VoiTransform, WindowFunction};
pub use photometric::Photometric;
pub use prepare::{InputImage, Pixels, Samples, prepare, prepare_pixels, prepare_slice};
pub use replace::replace_pixels;
pub use volume::{Gap, OrderingBasis, Patch, SliceLocation, SliceOrder, Volume, VoxelGrid, order_slices};
