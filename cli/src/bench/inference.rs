//! `medinet bench inference`: tract, as `medinet infer` runs it, beside Python's onnxruntime. The same ONNX file and the
//! same image, one thread, one image at a time.

use super::child::{Child, Figures, Request};
use super::peers::{Missing, Peer};
use super::report::{Better, Figure, Report, Row};
use super::{Output, child, in_turns, progress};
use crate::common::{ledger_key, now};
use anyhow::{Context as _, Result, bail, ensure};
use cpu_time::ProcessTime;
use medinet_inference::Model;
use medinet_ledger::bundle::spec_digest;
use medinet_ledger::{
    Checkpoint, CheckpointSigner as _, Ed25519Signer, MerkleTree, ModelBundle, Record, RecordBody,
    TrustedKeys, leaf_hash, origin_of,
};
use medinet_model::onnx::{OnnxOptions, task_spec, to_onnx};
use medinet_model::{
    InputShape, Intensity, ModelParameters, NetworkManifest, Normalisation, Preprocessing, Resize, Slices,
    TaskSpec,
};
use medinet_types::{Digest, FederationId, ModelDigest, ModelVersion, TaskId};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

const RUNS: u32 = 100;
/// The sides take turns this often.
const TURNS: u32 = 10;
/// Runs before those that count, so that caches and allocators are warm.
const WARM_UP: u32 = 3;
/// The federation that releases what is measured here; nobody else trusts its key.
const FEDERATION: &str = "bench";
/// The secret seed of that federation's ledger key. It proves nothing to anybody, so that it may stand here.
const LEDGER_SEED: [u8; 32] = *b"medinet bench: nobody trusts it.";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// An ONNX file that MediNet exported; without it, the small network at 28 and 64 pixels and ResNet-18 at 28 and 224,
    /// with their initial parameters.
    #[arg(long, value_name = "FILE")]
    pub(crate) model: Option<PathBuf>,
    /// Images on each side.
    #[arg(long, default_value_t = RUNS, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) runs: u32,
    #[command(flatten)]
    pub(crate) output: Output,
}

impl Default for Args {
    fn default() -> Self {
        Self { model: None, runs: RUNS, output: Output::default() }
    }
}

/// What our side is started with.
#[derive(clap::Args)]
pub(crate) struct ChildArgs {
    /// The model's bundle.
    #[arg(long)]
    bundle: PathBuf,
    /// The ledger's public key.
    #[arg(long)]
    ledger_key: PathBuf,
    /// The image's values, float32, little endian.
    #[arg(long)]
    input: PathBuf,
}

/// A model to be measured.
struct Subject {
    name: String,
    spec: TaskSpec,
    model: ModelDigest,
    onnx: Vec<u8>,
}

fn made(name: &str, side: u32) -> Result<Subject> {
    let input = InputShape { channels: 1, height: side, width: side };
    let classes = vec!["normal".to_owned(), "pneumonia".to_owned()];
    let network = match name {
        "small" => NetworkManifest::small(input, classes),
        _ => NetworkManifest::resnet18(input, classes),
    };
    let preprocessing = Preprocessing {
        slices: Slices::Single,
        intensity: Intensity::Voi,
        denoise: false,
        spacing_mm: None,
        resize: Resize::Letterbox,
        normalisation: Normalisation::PerImage,
    };
    let spec =
        TaskSpec { task: TaskId::new("bench")?, purpose: "measurements".into(), network, preprocessing };
    let parameters = ModelParameters::initial(&spec.network, 1)?;
    let onnx = to_onnx(&spec, &parameters, OnnxOptions::default())?;
    let model = parameters.digest(&spec.network);
    Ok(Subject { name: format!("{name}, {side} px"), spec, model, onnx })
}

fn read(path: &Path) -> Result<Subject> {
    let onnx = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let spec = task_spec(&onnx).with_context(|| format!("{} cannot be measured", path.display()))?;
    spec.network.check()?;
    let name = path.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
    Ok(Subject { name, spec, model: ModelDigest(Digest::of(&onnx)), onnx })
}

/// Releases a model on a ledger of one record: nothing else runs here, in measurements neither.
fn release(subject: &Subject) -> Result<(ModelBundle, [u8; 32])> {
    let signer = Ed25519Signer::from_seed(&LEDGER_SEED)?;
    let body = RecordBody::ModelReleased {
        task: subject.spec.task.clone(),
        model: subject.model,
        version: ModelVersion(1),
        spec: spec_digest(&subject.spec),
        onnx: Digest::of(&subject.onnx),
        onnx_bytes: subject.onnx.len() as u64,
    };
    let record = Record { at: now()?, body };
    let tree = MerkleTree::from_leaves(&[leaf_hash(&record.encode()?)]);
    let origin = origin_of(&FederationId::new(FEDERATION)?);
    let checkpoint = Checkpoint { origin, size: 1, root: tree.root() }.sign(&signer)?;
    let bundle = ModelBundle::new(&subject.spec, &subject.onnx, &record, 0, Vec::new(), &checkpoint)?;
    Ok((bundle, signer.public_key()))
}

/// Values from -2 to 2 that are the same in every run (xorshift, Marsaglia 2003).
fn image(values: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 22) as f32 - 2.0
    };
    std::iter::repeat_with(next).take(values).collect()
}

/// A folder of this run's files, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("medinet-bench-{}", std::process::id()));
        crate::common::private_folder(&path)?;
        Ok(Self(path))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left in a temporary folder harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Measures every model.
///
/// # Errors
/// When a model cannot be read, or a side fails.
pub(crate) fn run(args: &Args) -> Result<Vec<Report>> {
    let subjects = match &args.model {
        Some(path) => vec![read(path)?],
        None => vec![made("small", 28)?, made("small", 64)?, made("resnet18", 28)?, made("resnet18", 224)?],
    };
    let peer = Peer::Onnxruntime;
    // Asked once, and not before each model.
    let missing: Option<Missing> = peer.command().err();
    let folder = Folder::new()?;
    let (mut rows, mut peer_runtime) = (Vec::new(), None);
    for subject in &subjects {
        progress(format_args!("{}: {} images on each side", subject.name, args.runs));
        let files = Files::write(&folder, subject)?;
        let ours = Side::start("our side", &mut files.ours()?)?;
        let theirs = match peer.command() {
            Ok(command) if missing.is_none() => {
                Some(Side::start(peer.name(), &mut files.theirs(command, subject))?)
            }
            _ => None,
        };
        if let Some(side) = &theirs {
            peer_runtime = Some(side.child.runtime().to_owned());
        }
        rows.extend(measure(&subject.name, args.runs, ours, theirs)?);
    }
    let mut notes = vec![
        "loading, ours: the bundle is read and the graph optimised; verifying its proof on the ledger stands apart".to_owned(),
        "above the bare process: the peak less what was resident before loading (Python with onnxruntime, or this program)".to_owned(),
    ];
    notes.extend(missing.map(|missing| missing.reason));
    Ok(vec![Report {
        bench: "inference",
        title: format!("Inference, one thread, one image at a time, {} images in turns", args.runs),
        ours: "tract".to_owned(),
        peer: peer_runtime,
        rows,
        notes,
    }])
}

struct Files {
    onnx: PathBuf,
    bundle: PathBuf,
    key: PathBuf,
    input: PathBuf,
}

impl Files {
    fn write(folder: &Folder, subject: &Subject) -> Result<Self> {
        let (bundle, key) = release(subject)?;
        let InputShape { channels, height, width } = subject.spec.network.input;
        let input: Vec<u8> =
            image((channels * height * width) as usize).iter().flat_map(|v| v.to_le_bytes()).collect();
        Ok(Self {
            onnx: folder.write("model.onnx", &subject.onnx)?,
            bundle: folder.write("model.bundle", &bundle.encode())?,
            key: folder.write("ledger.pub", hex::encode(key).as_bytes())?,
            input: folder.write("image.f32", &input)?,
        })
    }

    fn ours(&self) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe().context("this program's own file is gone")?);
        command.args(["bench", "inference-child", "--bundle"]).arg(&self.bundle);
        command.arg("--ledger-key").arg(&self.key).arg("--input").arg(&self.input);
        Ok(command)
    }

    fn theirs(&self, mut command: Command, subject: &Subject) -> Command {
        let InputShape { channels, height, width } = subject.spec.network.input;
        command.arg(&self.onnx).arg(&self.input).args([channels, height, width].map(|n| n.to_string()));
        command
    }
}

/// One runtime with one model.
struct Side {
    child: Child,
    bare_memory: Option<f64>,
    load: Figures,
    logits: Vec<f64>,
    wall: Vec<f64>,
    cpu: Vec<f64>,
}

impl Side {
    fn start(name: &str, command: &mut Command) -> Result<Self> {
        let mut child = Child::start(name, command)?;
        let bare_memory = child.resident_memory();
        let load = child.ask(&Request::new("load", 1))?;
        let mut first = child.ask(&Request::new("run", WARM_UP))?;
        let logits = first.remove("logits").with_context(|| format!("{name} gave no logits"))?;
        Ok(Self { child, bare_memory, load, logits, wall: Vec::new(), cpu: Vec::new() })
    }

    fn take_turn(&mut self, count: u32) -> Result<()> {
        let mut figures = self.child.ask(&Request::new("run", count))?;
        self.wall.append(figures.get_mut("wall").context("a run has wall times")?);
        // Of the whole turn: one image is too short for some clocks.
        let cpu = figures.get("cpu").and_then(|cpu| cpu.first()).context("a run has a CPU time")?;
        self.cpu.push(cpu / f64::from(count));
        Ok(())
    }

    fn loading(&self, name: &str) -> Option<Figure> {
        Figure::of(self.load.get(name)?).map(|figure| figure.times(1e3))
    }
}

fn measure(name: &str, runs: u32, mut ours: Side, mut theirs: Option<Side>) -> Result<Vec<Row>> {
    for (turn, count) in in_turns(runs, TURNS).into_iter().enumerate() {
        let sides: [Option<&mut Side>; 2] = match (turn % 2, theirs.as_mut()) {
            (0, theirs) => [Some(&mut ours), theirs],
            (_, theirs) => [theirs, Some(&mut ours)],
        };
        for side in sides.into_iter().flatten() {
            side.take_turn(count)?;
        }
    }
    let row = |quantity: &str, unit, figure: &dyn Fn(&Side) -> Option<Figure>| {
        Row::new(name, quantity, unit, Better::Lower, figure(&ours), theirs.as_ref().and_then(figure))
    };
    let megabytes = |bytes: Option<f64>| bytes.map(|bytes| Figure::one(bytes * 1e-6));
    let mut rows = vec![
        row("latency", "ms", &|side| Figure::of(&side.wall).map(|figure| figure.times(1e3))),
        row("CPU time per image", "ms", &|side| Figure::of(&side.cpu).map(|figure| figure.times(1e3))),
        row("loading", "ms", &|side| side.loading("load")),
        row("verifying the proof", "ms", &|side| side.loading("verify")),
        row("peak memory", "MB", &|side| megabytes(side.child.peak_memory())),
        row("peak memory above the bare process", "MB", &|side| {
            megabytes(side.child.peak_memory().zip(side.bare_memory).map(|(peak, bare)| peak - bare))
        }),
    ];
    if let Some(theirs) = &theirs {
        ensure!(
            ours.logits.len() == theirs.logits.len(),
            "{name}: the sides give different numbers of logits"
        );
        let differences = ours.logits.iter().zip(&theirs.logits).map(|(a, b)| (a - b).abs());
        let largest = Figure::one(differences.fold(0.0, f64::max));
        rows.push(Row::new(name, "largest difference of a logit", "", Better::Lower, Some(largest), None));
    }
    Ok(rows)
}

/// Our side: takes requests from standard input.
///
/// # Errors
/// When a file cannot be read; what goes wrong later is answered.
pub(crate) fn serve(args: &ChildArgs, out: &mut dyn Write) -> Result<()> {
    let input: Vec<f32> = std::fs::read(&args.input)
        .with_context(|| format!("cannot read {}", args.input.display()))?
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        .collect();
    let mut model = None;
    child::serve("tract", std::io::stdin().lock(), out, &mut |request| match request.task.as_str() {
        "load" => {
            let (loaded, figures) = load(args)?;
            model = Some(loaded);
            Ok(figures)
        }
        "run" => predict(model.as_ref().context("no model is loaded")?, &input, request.count),
        other => bail!("no such task: {other:?}"),
    })
}

fn load(args: &ChildArgs) -> Result<(Model, Figures)> {
    let ledger = ledger_key(&args.ledger_key, &FederationId::new(FEDERATION)?)?;
    let start = Instant::now();
    let bytes =
        std::fs::read(&args.bundle).with_context(|| format!("cannot read {}", args.bundle.display()))?;
    let bundle = ModelBundle::decode(&bytes)?;
    drop(bytes);
    let read = start.elapsed();
    let start = Instant::now();
    let verified = bundle.verify(&TrustedKeys { ledger })?;
    drop(bundle);
    let verify = start.elapsed();
    let start = Instant::now();
    let model = Model::load(&verified)?;
    let load = read + start.elapsed();
    let figures = [("verify", verify), ("load", load)];
    Ok((model, figures.map(|(name, time)| (name.to_owned(), vec![time.as_secs_f64()])).into()))
}

fn predict(model: &Model, input: &[f32], count: u32) -> Result<Figures> {
    let (mut wall, mut logits) = (Vec::with_capacity(count as usize), Vec::new());
    let cpu = ProcessTime::now();
    for _ in 0..count {
        let start = Instant::now();
        logits = model.logits(input)?;
        wall.push(start.elapsed().as_secs_f64());
    }
    let cpu = cpu.elapsed().as_secs_f64();
    let logits = logits.into_iter().map(f64::from).collect();
    let figures = [("wall", wall), ("cpu", vec![cpu]), ("logits", logits)];
    Ok(figures.map(|(name, values)| (name.to_owned(), values)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_released_first() {
        let subject = made("small", 28).expect("a network");
        let (bundle, key) = release(&subject).expect("a bundle");
        let federation = FederationId::new(FEDERATION).expect("a name");
        let ledger = medinet_ledger::LedgerPublicKey::new(&federation, key);
        let verified = bundle.verify(&TrustedKeys { ledger }).expect("its own key");
        assert_eq!((verified.spec(), verified.onnx()), (&subject.spec, subject.onnx.as_slice()));
    }

    #[test]
    fn a_file_that_says_nothing_of_its_task_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("other.onnx");
        std::fs::write(&path, b"\x08\x08").expect("a file");
        let error = read(&path).err().expect("no task");
        assert!(format!("{error:#}").contains("medinet.task_spec"), "{error:#}");
        let subject = made("small", 64).expect("a network");
        std::fs::write(&path, &subject.onnx).expect("a file");
        let read = read(&path).expect("our own");
        assert_eq!((read.name.as_str(), &read.spec), ("other.onnx", &subject.spec));
    }

    #[test]
    fn each_run_is_timed() {
        let subject = made("small", 28).expect("a network");
        let folder = Folder::new().expect("a folder");
        let files = Files::write(&folder, &subject).expect("files");
        let args = ChildArgs { bundle: files.bundle, ledger_key: files.key, input: files.input };
        let (model, loading) = load(&args).expect("a model");
        assert!(loading["load"][0] > 0.0 && loading["verify"][0] > 0.0);
        let figures = predict(&model, &image(28 * 28), 4).expect("logits");
        assert_eq!((figures["wall"].len(), figures["cpu"].len(), figures["logits"].len()), (4, 1, 2));
    }
}
