//! Federations of real processes: five programs, mutual TLS, real studies.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod fixture;
mod groups;
mod kills;
mod privacy;
mod same_model;
mod secure;
