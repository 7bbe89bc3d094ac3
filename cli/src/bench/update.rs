//! `medinet bench update`: what an update weighs and what it costs to make and to read, beside the same numbers as float32,
//! bare and packed by zstd. All on one thread of this process, in turns.

use super::report::{Better, Figure, Report, Row};
use super::{Output, progress};
use anyhow::{Context as _, Result, ensure};
use cpu_time::ProcessTime;
use medinet_types::{Digest, ModelDigest, RoundNumber};
use medinet_update::{
    CodecPlan, ErrorFeedback, Expected, ModelDelta, Origin, SealedUpdate, apply_model_delta, decode,
    encode_model_delta,
};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use std::hint::black_box;

const PARAMETERS: u32 = 1_000_000;
const RUNS: u32 = 10;
/// As the aggregator's setting is by default.
const DOWNLINK_BITS: u8 = 4;
/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Parameters of the update.
    #[arg(long, default_value_t = PARAMETERS, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub(crate) parameters: u32,
    /// How often each is measured.
    #[arg(long, default_value_t = RUNS, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) runs: u32,
    #[command(flatten)]
    pub(crate) output: Output,
}

impl Default for Args {
    fn default() -> Self {
        Self { parameters: PARAMETERS, runs: RUNS, output: Output::default() }
    }
}

/// CPU seconds of making and reading an update, and its bytes.
#[derive(Default)]
struct Measured {
    encode: Vec<f64>,
    decode: Vec<f64>,
    bytes: usize,
    /// Squared error over squared norm, of what arrives.
    error: f64,
}

fn timed<T>(times: &mut Vec<f64>, work: impl FnOnce() -> T) -> T {
    let start = ProcessTime::now();
    let result = black_box(work());
    times.push(start.elapsed().as_secs_f64());
    result
}

/// A delta with a scale for each block of 10,000 parameters, as layers have: a sum of three uniform values, which is near
/// a Gaussian. Its float32 mantissas are as random as trained ones are.
fn delta(parameters: usize) -> Vec<f32> {
    delta_from(1, parameters)
}

fn delta_from(seed: u64, parameters: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = move || rng.next_u32() as f32 / u32::MAX as f32 - 0.5;
    (0..parameters)
        .map(|index| {
            let scale = 1e-3 / (1 + index / 10_000 % 8) as f32;
            (draw() + draw() + draw()) * scale
        })
        .collect()
}

fn relative_error(sent: &[f32], came: &[f32]) -> f64 {
    let squared = |value: f64| value * value;
    let error: f64 = sent.iter().zip(came).map(|(a, b)| squared(f64::from(*a) - f64::from(*b))).sum();
    error / sent.iter().map(|value| squared(f64::from(*value))).sum::<f64>()
}

/// One round trip through our codec.
fn ours(values: &[f32], plan: &CodecPlan, measured: &mut Measured) -> Result<()> {
    let origin = Origin { base: ModelDigest(Digest::of(b"base")), round: RoundNumber(1) };
    let (delta, mut feedback) = (ModelDelta::new(values.to_vec())?, ErrorFeedback::new(values.len()));
    let sealed = timed(&mut measured.encode, || {
        SealedUpdate::encode(delta, plan, origin, 100, [7; 32], &mut feedback)
    })?;
    let expected = Expected { parameters: values.len(), plan, origin, max_examples: 1000 };
    let decoded = timed(&mut measured.decode, || decode(sealed.as_bytes(), &expected))?;
    measured.bytes = sealed.as_bytes().len();
    measured.error = relative_error(values, decoded.delta());
    Ok(())
}

/// One step of the model on its way down: `values` is how it moved.
fn down(values: &[f32], measured: &mut Measured) -> Result<()> {
    let base = delta_from(2, values.len());
    let new: Vec<f32> = base.iter().zip(values).map(|(base, delta)| base + delta).collect();
    let sent = timed(&mut measured.encode, || encode_model_delta(&base, &new, DOWNLINK_BITS))?;
    let model = timed(&mut measured.decode, || apply_model_delta(&base, &sent.bytes))?;
    ensure!(model == sent.parameters, "a site makes another model than the aggregator");
    let came: Vec<f32> = model.iter().zip(&base).map(|(model, base)| model - base).collect();
    measured.bytes = sent.bytes.len();
    measured.error = relative_error(values, &came);
    Ok(())
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn from_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|value| f32::from_le_bytes([value[0], value[1], value[2], value[3]])).collect()
}

fn bare(values: &[f32], measured: &mut Measured) {
    let bytes = timed(&mut measured.encode, || floats(values));
    black_box(timed(&mut measured.decode, || from_bytes(&bytes)));
    measured.bytes = bytes.len();
}

fn packed(values: &[f32], measured: &mut Measured) -> Result<()> {
    let bytes = timed(&mut measured.encode, || zstd::bulk::compress(&floats(values), ZSTD_LEVEL))?;
    let length = size_of_val(values);
    let read =
        timed(&mut measured.decode, || zstd::bulk::decompress(&bytes, length).map(|b| from_bytes(&b)))?;
    ensure!(read == values, "zstd gives back other numbers");
    measured.bytes = bytes.len();
    Ok(())
}

/// Measures the codec at 8 and 4 bits, and a model's step down at 4.
///
/// # Errors
/// When a codec refuses what it made.
pub(crate) fn run(args: &Args) -> Result<Vec<Report>> {
    progress(format_args!("the codec with {} parameters, {} times", args.parameters, args.runs));
    let values = delta(usize::try_from(args.parameters).context("an update fits into memory")?);
    let norm = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    let plans = [
        ("8 bits", CodecPlan { bits: 8, clip_norm: 2.0 * norm as f32, error_feedback: false }),
        ("4 bits", CodecPlan { bits: 4, clip_norm: 2.0 * norm as f32, error_feedback: false }),
        ("4 bits, error feedback", CodecPlan { bits: 4, clip_norm: 2.0 * norm as f32, error_feedback: true }),
    ];
    let names = plans.iter().map(|(name, _)| *name).chain(["4 bits, model down"]);
    let mut mine: [Measured; 4] = Default::default();
    let (mut float32, mut zstd) = (Measured::default(), Measured::default());
    for _ in 0..args.runs {
        for ((_, plan), measured) in plans.iter().zip(&mut mine) {
            ours(&values, plan, measured)?;
        }
        down(&values, &mut mine[3])?;
        bare(&values, &mut float32);
        packed(&values, &mut zstd)?;
    }
    let report = |peer: &str, theirs: &Measured, notes: Vec<String>| {
        let rows = names.clone().zip(&mine).flat_map(|(name, measured)| rows(name, measured, theirs));
        Report {
            bench: "update",
            title: format!(
                "Update codec, {} parameters, one thread, {} runs in turns",
                args.parameters, args.runs
            ),
            ours: "medinet-update".to_owned(),
            peer: Some(peer.to_owned()),
            rows: rows.collect(),
            notes,
        }
    };
    let note =
        "squared error: of what arrives, over the squared norm of what was sent; float32 loses nothing";
    Ok(vec![
        report("float32", &float32, vec![note.to_owned()]),
        report(&format!("zstd {ZSTD_LEVEL} of float32"), &zstd, Vec::new()),
    ])
}

fn rows(name: &str, ours: &Measured, theirs: &Measured) -> Vec<Row> {
    let row = |quantity: &str, unit, figure: &dyn Fn(&Measured) -> Option<Figure>| {
        Row::new(name, quantity, unit, Better::Lower, figure(ours), figure(theirs))
    };
    let times = |times: &[f64]| Figure::of(times).map(|figure| figure.times(1e3));
    vec![
        row("bytes", "", &|side| Some(Figure::one(side.bytes as f64))),
        row("making it, CPU", "ms", &|side| times(&side.encode)),
        row("reading it, CPU", "ms", &|side| times(&side.decode)),
        row("squared error", "", &|side| Some(Figure::one(side.error))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_bits_are_fewer_bytes() {
        let reports = run(&Args { parameters: 20_000, runs: 2, output: Output::default() }).expect("figures");
        assert_eq!(reports.len(), 2);
        let row = |subject: &str, quantity: &str| {
            let mut rows = reports[0].rows.iter();
            rows.find(|row| row.subject == subject && row.quantity == quantity).expect("a row").clone()
        };
        let ratio = |subject: &str| row(subject, "bytes").ratio.expect("both");
        assert!(ratio("4 bits, model down") >= 8.0, "{}", ratio("4 bits, model down"));
        assert!(ratio("8 bits") > 3.8 && ratio("4 bits") > 7.5, "{} {}", ratio("8 bits"), ratio("4 bits"));
        let error = |subject: &str| row(subject, "squared error").ours.expect("ours").median;
        assert!(
            error("8 bits") < error("4 bits, error feedback")
                && error("4 bits, error feedback") < error("4 bits")
        );
        assert_eq!(row("8 bits", "making it, CPU").ours.expect("ours").count, 2);
    }
}
