//! A DICOMweb client (PS3.18): QIDO-RS, WADO-RS and STOW-RS, made to bear what real servers do.
//!
//! Written on a plain HTTP client because what hospitals need (an authority of their own, client certificates,
//! time-outs, an `Accept` per request, answers in one part or several) decides whether it works at all.

mod client;
mod json;
pub mod multipart;
mod retrieve;
mod retry;
mod search;
mod store;
mod tls;

pub use client::{Dangerous, DicomWebClient};
pub use json::JsonDataSet;
pub(crate) use json::data_sets;
pub use retrieve::{Part, PartStream};
pub use search::{Match, Matches};
pub use store::{StoreFailure, StoreOutcome};
