//! The model that a round starts from: made of the one that this site has and the announced deltas, or pulled whole.
//!
//! Which way is taken follows from the signed announcement and from the digest of what lies on this disk, worked out anew from its bytes. What a way
//! leads to is the base only if its digest is the announced one. Where anything does not fit, the model is pulled whole.

use crate::files;
use crate::round::RoundFolder;
use anyhow::{Context as _, Result, ensure};
use medinet_model::{NetworkManifest, ParameterLayout, decode_parameters, encode_parameters, model_digest};
use medinet_types::{BlobDigest, ModelDigest, UnixMillis};
use medinet_uplink::Uplink;
use medinet_wire::blob::BlobManifest;
use medinet_wire::message::{MAX_MODEL_STEPS, RoundPlan};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// How long deltas are waited for before the model is asked for too. What is announced is served, so this is for an aggregator whose disk has lost a
/// delta, and long enough for a thin link that is merely slow.
const DELTA_PATIENCE: Duration = Duration::from_secs(10 * 60);

/// The newest model of a task that this site has verified, as a file.
#[derive(Debug, Clone)]
pub(crate) struct KeptModel {
    path: PathBuf,
}

impl KeptModel {
    /// That of a round's task.
    pub(crate) fn of(folder: &RoundFolder) -> Self {
        Self { path: folder.kept_model() }
    }

    /// Which model of this network it is; none where there is none, or where it cannot be read.
    pub(crate) fn digest(&self, network: &NetworkManifest) -> Option<ModelDigest> {
        match self.read(network) {
            Ok(parameters) => parameters.map(|parameters| model_digest(network, &parameters)),
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the last model cannot be read: the next one is pulled whole"
                );
                None
            }
        }
    }

    fn read(&self, network: &NetworkManifest) -> Result<Option<Vec<f32>>> {
        let Some(bytes) = files::read(&self.path)? else { return Ok(None) };
        let parameters = decode_parameters(&bytes, ParameterLayout::of(network)?.len());
        parameters.map(Some).with_context(|| format!("in {}", self.path.display()))
    }

    /// Keeps a model, encoded, that has been verified.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn keep(&self, model: &[u8]) -> Result<()> {
        files::replace(&self.path, model)
    }

    /// The round's base, encoded; not verified yet where it came whole.
    ///
    /// # Errors
    /// When the deltas do not lead to it; pull it whole then.
    pub(crate) fn make(&self, plan: &RoundPlan, of: Base) -> Result<Vec<u8>> {
        let round = plan.round;
        match of {
            Base::Whole(base) => {
                tracing::info!(%round, bytes = base.len(), "base model pulled whole");
                Ok(base)
            }
            Base::Deltas(deltas) => {
                let base = self.follow(plan, &deltas)?;
                let bytes = deltas.iter().map(Vec::len).sum::<usize>();
                tracing::info!(%round, deltas = deltas.len(), bytes, "base model made of the last one");
                Ok(base)
            }
        }
    }

    /// The round's base, encoded: from the kept model by the deltas, which are in order and lead to it.
    ///
    /// # Errors
    /// When there is no kept model, a delta is damaged or belongs to another one, or the result is not the announced base.
    fn follow(&self, plan: &RoundPlan, deltas: &[Vec<u8>]) -> Result<Vec<u8>> {
        let network = &plan.spec.network;
        let kept = self.read(network)?.context("the model that the deltas start from is gone")?;
        let base = medinet_update::follow(&kept, deltas.iter().map(Vec::as_slice))?;
        let got = model_digest(network, &base);
        ensure!(got == plan.base.digest, "expected base model {}, the deltas make {got}", plan.base.digest);
        Ok(encode_parameters(&base))
    }
}

/// A base model on its way to this site.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pull {
    /// The deltas that lead to it from the kept model, in order, none when they are the same; `None` to pull it whole.
    deltas: Option<Vec<BlobManifest>>,
    since: UnixMillis,
}

/// What has come of a base model.
#[derive(Debug, PartialEq)]
pub(crate) enum Arrived {
    /// It, whole.
    Whole(BlobDigest),
    /// The deltas that lead to it from the kept model, in order.
    Deltas(Vec<BlobDigest>),
}

/// The bytes of what has come.
pub(crate) enum Base {
    /// It, encoded.
    Whole(Vec<u8>),
    /// The deltas that lead to it from the kept model, in order.
    Deltas(Vec<Vec<u8>>),
}

impl Arrived {
    /// Reads it; `None` when some of it cannot be read any more.
    pub(crate) fn read(&self, uplink: &Uplink) -> Option<Base> {
        let read = |blob: &BlobDigest| uplink.fetched(*blob).ok().flatten();
        match self {
            Self::Whole(blob) => read(blob).map(Base::Whole),
            Self::Deltas(blobs) => blobs.iter().map(read).collect::<Option<_>>().map(Base::Deltas),
        }
    }
}

impl Pull {
    /// Pulls it whole.
    pub(crate) fn whole(now: UnixMillis) -> Self {
        Self { deltas: None, since: now }
    }

    /// Pulls what a site lacks that has the model of this digest, if any.
    pub(crate) fn from(kept: Option<ModelDigest>, plan: &RoundPlan, now: UnixMillis) -> Self {
        Self { deltas: kept.and_then(|kept| deltas_from(kept, plan)), since: now }
    }

    /// What is to be asked for, missing or not.
    pub(crate) fn wanted<'a>(&'a self, plan: &'a RoundPlan, now: UnixMillis) -> Vec<&'a BlobManifest> {
        let whole = &plan.base.parameters;
        match &self.deltas {
            None => vec![whole],
            Some(deltas) if now.since(self.since) >= DELTA_PATIENCE => deltas.iter().chain([whole]).collect(),
            Some(deltas) => deltas.iter().collect(),
        }
    }

    /// What can be made of the blobs that are here; none when some are still missing.
    pub(crate) fn arrived(&self, plan: &RoundPlan, has: impl Fn(BlobDigest) -> bool) -> Option<Arrived> {
        let whole = plan.base.parameters.digest;
        match &self.deltas {
            Some(deltas) if deltas.iter().all(|delta| has(delta.digest)) => {
                Some(Arrived::Deltas(deltas.iter().map(|delta| delta.digest).collect()))
            }
            _ => has(whole).then_some(Arrived::Whole(whole)),
        }
    }
}

/// The announced deltas from a model to the round's base; `None` when there is no such way, or pulling the base is no longer.
fn deltas_from(kept: ModelDigest, plan: &RoundPlan) -> Option<Vec<BlobManifest>> {
    if kept == plan.base.digest {
        return Some(vec![]);
    }
    if plan.steps.len() > MAX_MODEL_STEPS {
        return None;
    }
    let first = plan.steps.iter().rposition(|step| step.from == kept)?;
    let deltas: Vec<BlobManifest> = plan.steps[first..].iter().map(|step| step.delta.clone()).collect();
    // They are in memory together, so the network's own size bounds them too, whatever the announcement says.
    let float32 = 4 * ParameterLayout::of(&plan.spec.network).ok()?.len() as u64;
    let longest = plan.base.parameters.length_bytes.min(float32);
    let mut bytes = 0u64;
    for delta in &deltas {
        delta.check().ok()?;
        bytes = bytes.saturating_add(delta.length_bytes);
    }
    (bytes < longest).then_some(deltas)
}

/// Everything that a round's announcement offers on the way to its base.
pub(crate) fn offered(plan: &RoundPlan) -> BTreeSet<BlobDigest> {
    plan.steps.iter().map(|step| step.delta.digest).chain([plan.base.parameters.digest]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::plan;
    use medinet_types::ModelVersion;
    use medinet_update::encode_model_delta;
    use medinet_wire::message::{ModelRef, ModelStep};
    use std::collections::BTreeMap;

    const NOW: UnixMillis = UnixMillis(1_000_000);

    /// A task's models, each but the first with the delta to it, and a site's disk and blobs.
    struct Task {
        data: tempfile::TempDir,
        models: Vec<Vec<f32>>,
        deltas: Vec<Vec<u8>>,
        blobs: BTreeMap<BlobDigest, Vec<u8>>,
    }

    impl Task {
        fn of(rounds: usize) -> Self {
            let parameters = ParameterLayout::of(&plan().spec.network).unwrap().len();
            let value = |i: usize, round: usize| ((i * 7 + round * 13) as f32 * 0.37).sin() * 0.01;
            let mut models = vec![(0..parameters).map(|i| value(i, 0)).collect::<Vec<f32>>()];
            let mut deltas = vec![];
            for round in 1..=rounds {
                let newest = models.last().unwrap();
                let stepped: Vec<f32> = newest.iter().enumerate().map(|(i, v)| v + value(i, round)).collect();
                let encoded = encode_model_delta(newest, &stepped, 4).unwrap();
                models.push(encoded.parameters);
                deltas.push(encoded.bytes);
            }
            Self { data: tempfile::tempdir().unwrap(), models, deltas, blobs: BTreeMap::new() }
        }

        fn digest(&self, model: usize) -> ModelDigest {
            model_digest(&plan().spec.network, &self.models[model])
        }

        /// The announcement of the newest model with this many steps to it.
        fn plan(&self, steps: usize) -> RoundPlan {
            let newest = self.models.len() - 1;
            let step = |model: usize| ModelStep {
                from: self.digest(model),
                delta: BlobManifest::of(&self.deltas[model]),
            };
            RoundPlan {
                base: ModelRef {
                    digest: self.digest(newest),
                    version: ModelVersion(0),
                    parameters: BlobManifest::of(&encode_parameters(&self.models[newest])),
                },
                steps: (newest - steps..newest).map(step).collect(),
                ..plan()
            }
        }

        fn kept(&self, plan: &RoundPlan) -> KeptModel {
            KeptModel::of(&RoundFolder::open(self.data.path(), plan).unwrap())
        }

        /// Pulls what is wanted and gives what the site then does: the base's bytes, and how many were pulled for it.
        fn pull(&mut self, plan: &RoundPlan, pull: &Pull) -> (Result<Vec<u8>>, u64) {
            let newest = self.models.last().unwrap();
            let served = self.deltas.iter().cloned().chain([encode_parameters(newest)]);
            let served: BTreeMap<_, _> =
                served.map(|bytes| (BlobManifest::of(&bytes).digest, bytes)).collect();
            let mut bytes = 0;
            for manifest in pull.wanted(plan, NOW) {
                bytes += manifest.length_bytes;
                self.blobs.insert(manifest.digest, served[&manifest.digest].clone());
            }
            let arrived = pull.arrived(plan, |blob| self.blobs.contains_key(&blob)).unwrap();
            let base = match arrived {
                Arrived::Whole(blob) => Ok(self.blobs[&blob].clone()),
                Arrived::Deltas(deltas) => {
                    let deltas: Vec<_> = deltas.iter().map(|delta| self.blobs[delta].clone()).collect();
                    self.kept(plan).follow(plan, &deltas)
                }
            };
            (base, bytes)
        }

        fn keep(&self, model: usize) -> KeptModel {
            let kept = self.kept(&plan());
            kept.keep(&encode_parameters(&self.models[model])).unwrap();
            kept
        }

        fn pull_from_kept(&mut self, plan: &RoundPlan) -> (Result<Vec<u8>>, u64) {
            let kept = self.kept(plan).digest(&plan.spec.network);
            let pull = Pull::from(kept, plan, NOW);
            self.pull(plan, &pull)
        }

        fn newest(&self) -> Vec<u8> {
            encode_parameters(self.models.last().unwrap())
        }
    }

    #[test]
    fn a_site_that_follows_pulls_one_delta_an_eighth_of_float32() {
        let mut task = Task::of(3);
        task.keep(2);
        let (base, bytes) = task.pull_from_kept(&task.plan(3));
        assert_eq!(base.unwrap(), task.newest());
        assert_eq!(bytes, task.deltas[2].len() as u64);
        assert!(bytes * 8 <= 4 * task.models[0].len() as u64, "{bytes}");
    }

    #[test]
    fn a_site_that_missed_two_rounds_pulls_three_deltas() {
        let mut task = Task::of(4);
        task.keep(1);
        let (base, bytes) = task.pull_from_kept(&task.plan(4));
        assert_eq!(base.unwrap(), task.newest());
        assert_eq!(bytes, task.deltas[1..].iter().map(|delta| delta.len() as u64).sum::<u64>());
    }

    #[test]
    fn a_site_that_has_the_base_pulls_nothing() {
        let mut task = Task::of(2);
        task.keep(2);
        let (base, bytes) = task.pull_from_kept(&task.plan(2));
        assert_eq!((base.unwrap(), bytes), (task.newest(), 0));
    }

    #[test]
    fn whoever_is_not_reached_pulls_the_whole_model() {
        let mut task = Task::of(3);
        let whole = task.newest();
        let pulls_whole = |task: &mut Task, steps: usize| {
            let (base, bytes) = task.pull_from_kept(&task.plan(steps));
            assert_eq!((base.unwrap(), bytes), (whole.clone(), whole.len() as u64));
        };
        // A fresh site.
        pulls_whole(&mut task, 3);
        // One whose model is older than the oldest step, one whose file is damaged, and one that has a model of its own.
        let kept = task.keep(0);
        pulls_whole(&mut task, 2);
        kept.keep(b"\x01 no parameters").unwrap();
        pulls_whole(&mut task, 3);
        let mut damaged = encode_parameters(&task.models[2]);
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        kept.keep(&damaged).unwrap();
        pulls_whole(&mut task, 3);
        kept.keep(&encode_parameters(&vec![0.5; task.models[0].len()])).unwrap();
        pulls_whole(&mut task, 3);
    }

    #[test]
    fn announcements_that_break_the_rules_are_followed_by_none() {
        let task = Task::of(3);
        let good = task.plan(3);
        assert_eq!(deltas_from(task.digest(1), &good).map(|deltas| deltas.len()), Some(2));
        let mut many = good.clone();
        while many.steps.len() <= MAX_MODEL_STEPS {
            many.steps.insert(0, many.steps[0].clone());
        }
        let mut long = good.clone();
        long.steps[2].delta.length_bytes = u64::MAX;
        let mut longer_than_the_model = good.clone();
        longer_than_the_model.steps[2].delta = BlobManifest::of(&vec![0; 4 * task.models[0].len()]);
        let mut no_chunks = good.clone();
        no_chunks.steps[2].delta.chunk_hashes.clear();
        for bad in [many, long, longer_than_the_model, no_chunks] {
            assert_eq!(deltas_from(task.digest(1), &bad), None);
        }
    }

    #[test]
    fn a_delta_that_is_damaged_or_makes_another_model_is_refused_and_the_whole_model_serves() {
        let mut task = Task::of(3);
        let kept = task.keep(1);
        let plan = task.plan(3);
        let good = task.deltas.clone();
        let refused = |deltas: &[Vec<u8>]| kept.follow(&plan, deltas).unwrap_err().to_string();
        assert_eq!(kept.follow(&plan, &good[1..]).unwrap(), task.newest());
        // Bytes that the aggregator signed, and which are yet no delta, or not this one.
        let mut damaged = good[2].clone();
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        refused(&[good[1].clone(), damaged]);
        refused(&[good[1].clone(), vec![]]);
        refused(&[good[2].clone()]);
        // They fit, and lead elsewhere.
        let wrong = refused(&good[1..2]);
        assert!(wrong.contains("expected base model"), "{wrong}");
        let (base, _) = task.pull(&plan, &Pull::whole(NOW));
        assert_eq!(base.unwrap(), task.newest());
    }

    #[test]
    fn deltas_that_do_not_come_are_not_waited_for_for_ever() {
        let task = Task::of(3);
        let plan = task.plan(3);
        let pull = Pull::from(Some(task.digest(2)), &plan, NOW);
        assert_eq!(pull.wanted(&plan, NOW), [&plan.steps[2].delta]);
        let later = NOW.after(DELTA_PATIENCE);
        assert_eq!(pull.wanted(&plan, later), [&plan.steps[2].delta, &plan.base.parameters]);
        let (delta, whole) = (plan.steps[2].delta.digest, plan.base.parameters.digest);
        assert_eq!(pull.arrived(&plan, |_| false), None);
        assert_eq!(pull.arrived(&plan, |blob| blob == delta), Some(Arrived::Deltas(vec![delta])));
        assert_eq!(pull.arrived(&plan, |blob| blob == whole), Some(Arrived::Whole(whole)));
        assert_eq!(Pull::whole(NOW).arrived(&plan, |blob| blob == delta), None);
    }
}
