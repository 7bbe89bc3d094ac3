//! Times of the networks' convolutions: `cargo bench -p medinet-kernels`.
#![allow(missing_docs, reason = "criterion's macros")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use medinet_kernels::{ConvShape, Cpu, backward_input, backward_weight, buffers, forward};
use std::hint::black_box;

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect()
}

fn convolutions(criterion: &mut Criterion) {
    // Batch, inputs, side, outputs, kernel, stride.
    let cases = [
        ("small, stage 1", [32, 16, 28, 16, 3, 1]),
        ("small, stage 3", [32, 64, 7, 64, 3, 1]),
        ("resnet18, stage 1", [32, 64, 28, 64, 3, 1]),
        ("resnet18, stage 2, first", [32, 64, 28, 128, 3, 2]),
        ("resnet18, stage 4", [32, 512, 4, 512, 3, 1]),
        ("resnet18 at 224, stage 1", [4, 64, 56, 64, 3, 1]),
    ];
    let cpu = Cpu::detect();
    for (name, [batch, inputs, side, outputs, kernel, stride]) in cases {
        let padding = kernel / 2;
        let s = ConvShape { batch, inputs, height: side, width: side, outputs, kernel, stride, padding };
        let (x, weight, dy) = (values(s.input().values()), values(s.weights()), values(s.output().values()));
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10).throughput(Throughput::Elements(s.products() as u64));
        group.bench_function("forward", |b| {
            b.iter(|| buffers::give(black_box(forward(cpu, &x, &weight, &s))));
        });
        group.bench_function("backward, input", |b| {
            b.iter(|| buffers::give(black_box(backward_input(cpu, &dy, &weight, &s))));
        });
        group.bench_function("backward, weight", |b| {
            b.iter(|| buffers::give(black_box(backward_weight(cpu, &x, &dy, &s))));
        });
        group.finish();
    }
}

criterion_group!(layers, convolutions);
criterion_main!(layers);
