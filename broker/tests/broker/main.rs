//! The broker against real clients, foreign ones, and hostile ones.

#![allow(clippy::unwrap_used, missing_docs)]

mod clients;
mod fixture;
mod hostile;
mod mosquitto;
mod program;
mod raw;
mod rules;
mod sessions;
mod tls;
