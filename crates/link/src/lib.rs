//! A party's end of the bus: an MQTT session over mutual TLS, messages signed end to end, blobs that resume.
//!
//! The only crate that uses rumqttc. Both the appliance's uplink and the aggregator stand on it; it speaks plain
//! MQTT 3.1.1, so any broker with client certificates and per-topic rules will do.
//!
//! * `session` keeps one connection alive, resubscribes and republishes retained topics after each reconnect.
//! * `blobs` keeps content-addressed blobs and half-received ones on disk.
//! * `transfer` decides what to ask for and what to send next; no I/O.
//! * [`Link`] ties them to envelopes: nothing unsigned, foreign or misaddressed gets past it.

mod blobs;
mod endpoint;
mod session;
mod transfer;

pub use blobs::{BlobStore, BlobStoreError};
pub use endpoint::{Incoming, Link, LinkError, LinkEvent, LinkOptions};
pub use session::{SessionSettings, Traffic};

/// Now, by the system clock. Programs call it at their edges and hand the value inwards.
#[must_use]
pub fn now() -> medinet_types::UnixMillis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let millis = since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
    medinet_types::UnixMillis(millis)
}
