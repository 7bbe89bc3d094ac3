//! Throughput of the codec at one million parameters: `cargo bench -p medinet-update`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a panic is how a benchmark fails")]
#![allow(missing_docs, reason = "criterion_group! makes a public function")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use medinet_types::{Digest, ModelDigest, RoundNumber};
use medinet_update::{
    Accumulator, CodecPlan, ErrorFeedback, Expected, ModelDelta, Origin, SealedUpdate, SecureCodecPlan,
    SecureExpected, SecureUpdate, decode, decode_sum, encode_model_delta,
};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use std::hint::black_box;

const PARAMETERS: usize = 1_000_000;

fn vector(seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = || rng.next_u32() as f32 / u32::MAX as f32 - 0.5;
    (0..PARAMETERS).map(|_| (draw() + draw() + draw()) * 1e-3).collect()
}

fn codec(criterion: &mut Criterion) {
    let values = vector(1);
    let origin = Origin { base: ModelDigest(Digest::of(b"base")), round: RoundNumber(1) };
    let mut group = criterion.benchmark_group("1M parameters");
    group.throughput(Throughput::Elements(PARAMETERS as u64)).sample_size(10);
    for (bits, error_feedback) in [(4, true), (4, false), (8, false), (32, false)] {
        let plan = CodecPlan { bits, clip_norm: 10.0, error_feedback };
        let name = format!("{bits} bits{}", if error_feedback { " with error feedback" } else { "" });
        let encode = |(delta, mut feedback): (ModelDelta, ErrorFeedback)| {
            SealedUpdate::encode(delta, &plan, origin, 100, [7; 32], &mut feedback).unwrap()
        };
        let input = || (ModelDelta::new(values.clone()).unwrap(), ErrorFeedback::new(PARAMETERS));
        let sealed = encode(input());
        println!("{name}: {} bytes", sealed.as_bytes().len());
        group.bench_function(format!("encode {name}"), |b| {
            b.iter_batched(input, encode, BatchSize::LargeInput)
        });
        let expected = Expected { parameters: PARAMETERS, plan: &plan, origin, max_examples: 1000 };
        group.bench_function(format!("decode {name}"), |b| {
            b.iter(|| decode(black_box(sealed.as_bytes()), &expected).unwrap());
        });
        let decoded = decode(sealed.as_bytes(), &expected).unwrap();
        let mut sum = Accumulator::new(PARAMETERS);
        if bits == 32 {
            group.bench_function("add to the mean", |b| b.iter(|| sum.add(black_box(&decoded)).unwrap()));
        }
    }
    let base = vector(2);
    let new: Vec<f32> = base.iter().zip(&values).map(|(b, d)| b + d / 10.0).collect();
    println!("downlink 4 bits: {} bytes", encode_model_delta(&base, &new, 4).unwrap().bytes.len());
    group
        .bench_function("encode downlink 4 bits", |b| b.iter(|| encode_model_delta(&base, &new, 4).unwrap()));
    group.finish();
}

/// The codec for secure aggregation, whose rotation spreads over the whole vector: one site's update and the mean of a sum.
fn secure(criterion: &mut Criterion) {
    let values = vector(1);
    let origin = Origin { base: ModelDigest(Digest::of(b"base")), round: RoundNumber(1) };
    let plan = SecureCodecPlan {
        bits: 2,
        clip_norm: 1.0,
        error_feedback: false,
        kept_permille: 500,
        reference_examples: 100,
        noise: None,
    };
    let encode = |delta: ModelDelta| {
        let mut feedback = ErrorFeedback::new(0);
        SecureUpdate::encode(delta, &plan, origin, 100, [7; 32], &mut feedback).unwrap()
    };
    let input = || ModelDelta::new(values.clone()).unwrap();
    let sum: Vec<u32> = encode(input()).values().collect();
    let expected =
        SecureExpected { parameters: PARAMETERS, plan: &plan, origin, contributors: 1, ring_bits: 32 };
    let mut group = criterion.benchmark_group("1M parameters");
    group.throughput(Throughput::Elements(PARAMETERS as u64)).sample_size(10);
    group.bench_function("encode secure 2 bits, 1/2 kept", |b| {
        b.iter_batched(input, encode, BatchSize::LargeInput)
    });
    group.bench_function("decode secure 2 bits, 1/2 kept", |b| {
        b.iter(|| decode_sum(black_box(sum.clone()), &expected).unwrap())
    });
    group.finish();
}

criterion_group!(benches, codec, secure);
criterion_main!(benches);
