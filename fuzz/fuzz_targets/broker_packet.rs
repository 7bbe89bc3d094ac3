//! A client's MQTT packet.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| medinet_fuzz_targets::broker_packet(bytes));
