//! MediNet's MQTT broker: rumqttd's router behind a front door of our own.
//!
//! ```text
//! client --TLS 1.3/1.2, client certificate--> listener -> handshake -> connection --checked packets--> rumqttd's router
//!                                                            |              |
//!                                                       CRL, time      identity from the certificate; topic rules;
//!                                                                      size, rate, inflight, silence, places
//! ```
//!
//! * [`acl`] says who may publish, subscribe and leave a will where: the only place that decides it.
//! * [`packet`] is the only code that looks at a client's bytes.
//! * [`limits`] holds rates and places; [`settings`] the one TOML file.
//! * [`start`] runs it all; nothing else does I/O.
//!
//! MQTT 3.1.1 has no negative PUBACK: a publish that the rules refuse ends the connection (4.8), with a line in the log
//! and a count; a filter that they refuse is answered with 0x80 in the SUBACK and changes nothing else; a last will
//! that they refuse is answered with return code 5. Clients of MQTT 5 and 3.1 are told that the version is not spoken.
//!
//! What a hostile or broken client can reach is its own connection: handshakes are off the accept loop and counted per
//! address; nothing is buffered for a packet that the size limit forbids; who sends too fast is read more slowly; who
//! does not read is disconnected; each site's messages wait in a queue of their own.

pub mod acl;
mod connection;
mod counters;
mod engine;
mod flow;
mod inbound;
pub mod limits;
pub mod mosquitto;
pub mod packet;
mod reader;
mod retained;
mod server;
mod sessions;
pub mod settings;

pub use counters::CounterValues;
pub use engine::EngineGone;
pub use server::{RunningBroker, StartError, start};
pub use settings::BrokerSettings;
