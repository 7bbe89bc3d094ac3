//! How long samplers and accountants take: `cargo bench -p medinet-privacy`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use medinet_privacy::noise::{ExactGaussian, GaussianNoise, TableGaussian, Variance};
use medinet_privacy::{Accounting, Composition, Delta, Event, NoiseMultiplier, SamplingRate};
use rand_chacha::ChaCha12Rng;
use rand_core::SeedableRng;
use std::hint::black_box;

const SAMPLES: usize = 100_000;

fn samplers(c: &mut Criterion) {
    let mut group = c.benchmark_group("samples");
    group.throughput(Throughput::Elements(SAMPLES as u64)).sample_size(10);
    let mut rng = ChaCha12Rng::from_seed([1; 32]);
    let mut integers = vec![0i64; SAMPLES];
    for deviation in [2u64, 8, 64, 500] {
        let variance = Variance::new(deviation * deviation, 1).expect("in range");
        let exact = ExactGaussian::new(variance);
        group.bench_function(format!("rejection, sigma {deviation}"), |b| {
            b.iter(|| exact.add_to(&mut integers, &mut rng))
        });
        if let Ok(table) = TableGaussian::new(variance) {
            group.bench_function(format!("table, sigma {deviation}"), |b| {
                b.iter(|| table.add_to(&mut integers, &mut rng))
            });
        }
    }
    let noise = GaussianNoise::new(1.1).expect("in range");
    let mut floats = vec![0.0f32; SAMPLES];
    group.bench_function("gradient noise", |b| b.iter(|| noise.fill(&mut floats, &mut rng)));
    group.finish();
}

fn accountants(c: &mut Criterion) {
    let mut group = c.benchmark_group("epsilon");
    group.sample_size(10);
    for (name, q, sigma, steps) in
        [("MNIST, 60 epochs", 256.0 / 60_000.0, 1.1, 14_063), ("100,000 steps", 0.001, 1.0, 100_000)]
    {
        let event = Event::Gaussian {
            sampling_rate: SamplingRate::new(q).expect("in range"),
            noise_multiplier: NoiseMultiplier::new(sigma).expect("in range"),
            steps,
        };
        for accounting in [Accounting::Renyi, Accounting::Tight] {
            group.bench_function(format!("{accounting:?}, {name}"), |b| {
                b.iter(|| {
                    let mut spent = Composition::new();
                    spent.add(&event);
                    spent.epsilon(Delta::new(black_box(1e-5)).expect("in range"), accounting)
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, samplers, accountants);
criterion_main!(benches);
