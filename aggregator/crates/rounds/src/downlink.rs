//! How a new model goes down to the sites: as a quantized delta to the one that they have, and whole for those who have none.
//!
//! The model that a round makes *is* its base plus the decoded delta ([`medinet_update::Owed`]): this one is named, recorded, announced, trained
//! from, measured and released, and every site that follows has the same bits. What quantization lost is owed to the next round's model. It is a
//! blob that the snapshot names, stored before the commit as the model is, so that a restart goes on to the same bits.
//!
//! Announcements list the newest deltas for as long as together they are shorter than the model; a site that has none of their bases pulls the
//! model. What is listed is served and kept as long as the announcement is open.

use crate::effect::{Effect, Outbox};
use crate::phase::Turn;
use medinet_types::BlobDigest;
use medinet_update::Owed;
use medinet_wire::blob::BlobManifest;
use medinet_wire::message::{MAX_MODEL_STEPS, MAX_STEP_CHUNKS, ModelRef, ModelStep};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The setting that has every model go down whole.
const WHOLE: u8 = 32;

/// Whether the setting is one: 1 to 8 bits, or whole models.
pub(crate) fn is_downlink(bits: u8) -> bool {
    (1..=8).contains(&bits) || bits == WHOLE
}

/// What is persisted of the way down.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Downlink {
    /// The blob with what the deltas so far have lost; none where the newest model went down whole.
    owed: Option<BlobDigest>,
    /// The steps to the newest model that are announced with it, oldest first.
    steps: Vec<ModelStep>,
}

/// A round's result on its way to be the newest model.
pub(crate) struct NextModel {
    pub(crate) parameters: Vec<f32>,
    /// The delta that makes it of the base, unless it goes down whole.
    delta: Option<Vec<u8>>,
    owed: Option<Owed>,
}

impl NextModel {
    /// The server's step on the newest model, as far as the way down lets through; `None` when a value is not finite.
    ///
    /// The optimizer sees the models that sites train from and the means of their deltas, whatever is owed: what it keeps between rounds, of a
    /// method that keeps something, does not know of the quantization.
    pub(crate) fn of(turn: &Turn<'_>, mean: &[f32]) -> Option<Self> {
        let held = &*turn.parameters;
        let stepped = turn.plan.optimizer.step(held, mean);
        let owed = turn.owed.clone();
        let next = if turn.plan.downlink_bits == WHOLE {
            let parameters = match owed {
                Some(owed) => owed.repay(&stepped).ok()?,
                None => stepped,
            };
            Self { parameters, delta: None, owed: None }
        } else {
            let mut owed = owed.unwrap_or_else(|| Owed::nothing(held.len()));
            // The lengths are the network's and the bits the plan's, so what can fail is the numbers.
            let encoded = owed.advance(held, &stepped, turn.plan.downlink_bits).ok()?;
            Self { parameters: encoded.parameters, delta: Some(encoded.bytes), owed: Some(owed) }
        };
        next.parameters.iter().all(|value| value.is_finite()).then_some(next)
    }

    /// Keeps what the way down needs of the new model, `model`, which follows on `base`. Gives its parameters.
    pub(crate) fn adopt(self, turn: &mut Turn<'_>, base: &ModelRef, model: &ModelRef) -> Vec<f32> {
        let Self { parameters, delta, owed } = self;
        let (before, out) = (turn.task.downlink.blobs(), &mut turn.out);
        let downlink = &mut turn.task.downlink;
        downlink.owed = owed.as_ref().map(|owed| store(out, owed.to_bytes()).digest);
        // A round may, by chance or design, end in the model it began with: all ways that led there still do.
        if model.digest != base.digest {
            downlink.step(out, base, model, delta);
        }
        drop_blobs(out, before.difference(&downlink.blobs()));
        *turn.owed = owed;
        parameters
    }
}

impl Downlink {
    /// The steps that an announcement of the newest model lists.
    pub(crate) fn steps(&self) -> &[ModelStep] {
        &self.steps
    }

    /// What is needed to go on after a restart, beside the newest model.
    pub(crate) fn owed(&self) -> Option<BlobDigest> {
        self.owed
    }

    /// All blobs of the way down but the models.
    pub(crate) fn blobs(&self) -> BTreeSet<BlobDigest> {
        self.steps.iter().map(|step| step.delta.digest).chain(self.owed).collect()
    }

    /// Training goes on from an earlier model. The ways that lead to it stay; whoever has a later one pulls it whole. What the deltas have
    /// lost since is of models that were rejected, and is not repaid.
    pub(crate) fn go_back(&mut self, out: &mut Outbox, to: &ModelRef) {
        let before = self.blobs();
        self.owed = None;
        let kept = self.steps.iter().position(|step| step.from == to.digest).unwrap_or(0);
        self.steps.truncate(kept);
        drop_blobs(out, before.difference(&self.blobs()));
    }

    fn step(&mut self, out: &mut Outbox, base: &ModelRef, model: &ModelRef, delta: Option<Vec<u8>>) {
        let Some(delta) = delta else {
            self.steps.clear();
            return;
        };
        let manifest = BlobManifest::of(&delta);
        self.steps.push(ModelStep { from: base.digest, delta: manifest.clone() });
        let bytes = |steps: &[ModelStep]| steps.iter().map(|step| step.delta.length_bytes).sum::<u64>();
        let chunks =
            |steps: &[ModelStep]| steps.iter().map(|step| step.delta.chunk_hashes.len()).sum::<usize>();
        // From further back the model is the shorter way.
        while bytes(&self.steps) >= model.parameters.length_bytes
            || chunks(&self.steps) > MAX_STEP_CHUNKS
            || self.steps.len() > MAX_MODEL_STEPS
        {
            self.steps.remove(0);
        }
        // The delta to a network of a few parameters may be longer than these.
        if !self.steps.is_empty() {
            out.before.push(Effect::StoreBlob { manifest, bytes: delta });
        }
    }
}

fn drop_blobs<'a>(out: &mut Outbox, gone: impl Iterator<Item = &'a BlobDigest>) {
    let gone: Vec<BlobDigest> = gone.copied().collect();
    for &blob in &gone {
        out.then(Effect::StopServing { blob });
    }
    if !gone.is_empty() {
        out.then(Effect::Discard { blobs: gone });
    }
}

fn store(out: &mut Outbox, bytes: Vec<u8>) -> BlobManifest {
    let manifest = BlobManifest::of(&bytes);
    out.before.push(Effect::StoreBlob { manifest: manifest.clone(), bytes });
    manifest
}

#[cfg(test)]
#[path = "downlink_tests.rs"]
mod tests;
