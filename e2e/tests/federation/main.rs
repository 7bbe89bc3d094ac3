//! Federations of real processes: broker, aggregator and appliances, mutual TLS, real studies.
//!
//! The programs are those beside the test: `cargo build --workspace` makes them where only this crate is tested. Each federation
//! lies in a folder below `target/tmp`, with a log of each process, and stays there until the test is run again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests")]

mod dicomweb;
mod fixture;
mod groups;
mod kills;
mod privacy;
mod same_model;
mod secure;
