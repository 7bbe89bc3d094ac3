//! The intake against real peers: Orthanc and tiny-pacs over DICOMweb, nginx in front, dcmtk over DIMSE.
//!
//! Needs orthanc, orthanc-dicomweb, dcmtk, nginx-light and openssl, and Python's pydicom and tiny-pacs in the virtual
//! environment that `MEDINET_VENV` names; `cargo xtask test` installs them. Real DICOM files come with pydicom, and from the
//! folder that `MEDINET_REAL_DICOM` names (CONTRIBUTING.md).

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests fail and tell as tests do")]

mod cstore;
mod dicomweb;
mod folder;
mod kill;
mod pull;
mod support;
