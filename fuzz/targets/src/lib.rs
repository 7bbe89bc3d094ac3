//! What the programs in `fuzz/fuzz_targets` run: a function for each decoder of untrusted bytes.
//!
//! The functions are those of the crates' own tests, in `tests/decoders`. The programs are apart, for they need libFuzzer; this crate
//! is one of the workspace, so that whoever changes a decoder finds out at once which target no longer fits.

#[path = "../../../broker/tests/decoders/mod.rs"]
mod broker;
#[path = "../../../crates/identity/tests/decoders/mod.rs"]
mod identity;
#[path = "../../../appliance/crates/imaging/tests/decoders/mod.rs"]
mod imaging;
#[path = "../../../crates/ledger/tests/decoders/mod.rs"]
mod ledger;
#[path = "../../../crates/model/tests/decoders/mod.rs"]
mod model;
#[path = "../../../appliance/crates/objects/tests/decoders/mod.rs"]
mod objects;
#[path = "../../../appliance/crates/pacs/tests/decoders/mod.rs"]
mod pacs;
#[path = "../../../crates/secagg/tests/decoders/mod.rs"]
mod secagg;
#[path = "../../../crates/update/tests/decoders/mod.rs"]
mod update;
#[path = "../../../crates/wire/tests/decoders/mod.rs"]
mod wire;

/// A target: it panics only when a decoder breaks its contract.
pub type Target = fn(&[u8]);

macro_rules! targets {
    ($($(#[$doc:meta])* $name:ident = $module:ident::$function:ident;)*) => {
        $($(#[$doc])* pub fn $name(bytes: &[u8]) { $module::$function(bytes); })*
        /// Every target, by its name.
        pub const ALL: &[(&str, Target)] = &[$((stringify!($name), $name)),*];
    };
}

targets! {
    /// A client's MQTT packet.
    broker_packet = broker::packets;
    /// A party's certificate.
    identity_certificate = identity::certificates;
    /// A certificate signing request.
    identity_request = identity::requests;
    /// A compressed frame, for every codec. Panics within foreign decoders are caught where they are called.
    image_frame = imaging::frames;
    /// A released model with its proof.
    ledger_bundle = ledger::bundles;
    /// A signed checkpoint and a ledger's public key.
    ledger_checkpoint = ledger::checkpoints;
    /// The files of a log, as an auditor gets them.
    ledger_log = ledger::logs;
    /// A record of the ledger.
    ledger_record = ledger::records;
    /// What an ONNX file says of itself.
    model_onnx = model::graphs;
    /// A model's parameters as a blob.
    model_parameters = model::parameters;
    /// A DICOM object as a peer could send it.
    objects_read = objects::all;
    /// A DIMSE command set.
    pacs_command = pacs::commands;
    /// The content type of a server's answer.
    pacs_content_type = pacs::content_types;
    /// A server's answer to a search, in DICOM JSON.
    pacs_json = pacs::json;
    /// A server's answer in several parts.
    pacs_multipart = pacs::multipart;
    /// The beginning of a file, which says what object it holds.
    pacs_name = pacs::names;
    /// Every message of secure aggregation, and packed vectors.
    secagg_message = secagg::all;
    /// The aggregator's stored sum.
    update_accumulator = update::accumulators;
    /// A site's sealed update, at every kind of plan.
    update_decode = update::updates;
    /// A site's stored error feedback.
    update_feedback = update::feedback;
    /// A model delta on its way to a site.
    update_model_delta = update::model_deltas;
    /// What the aggregator owes the next model.
    update_owed = update::owed;
    /// The opened sum of the sites' masked updates.
    update_sum = update::sums;
    /// A round's plan, as far as a site looks into it before it answers.
    wire_announcement = wire::announcements;
    /// A blob's manifest and a chunk of it.
    wire_blob = wire::blobs;
    /// A signed envelope, its signature believed, so that what it holds is parsed too.
    wire_envelope = wire::envelopes;
    /// Every message of the protocol.
    wire_message = wire::messages;
    /// An MQTT topic.
    wire_topic = wire::topics;
    /// Sites' signed votes, their signatures believed.
    wire_vote = wire::votes;
}
