//! A site's masking and the server's adding at one million coordinates: `cargo bench -p medinet-secagg`. What a whole session
//! costs, and how close it is to the cipher's speed, the example `cost` prints.
#![allow(clippy::unwrap_used, reason = "a panic is how a benchmark fails")]
#![allow(missing_docs, reason = "criterion_group! makes a public function")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{advertise, input, parameters, share, trusting};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use medinet_secagg::{RingVector, Topology};
use std::hint::black_box;

const NEIGHBOURS: u16 = 21;

fn secagg(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("1M coordinates, 21 neighbours");
    group.sample_size(10);
    for bits in [8, 11, 12, 16, 20] {
        let parameters = parameters(1_000_000, bits);
        let topology = Topology { neighbours: NEIGHBOURS, threshold: 12, quorum: 12 };
        group.throughput(Throughput::Bytes(parameters.payload_bytes() as u64 * u64::from(NEIGHBOURS + 1)));
        // States cannot be cloned: each iteration masks in a session of its own.
        let fresh = || {
            let mut session = share(advertise(&parameters, 22, topology, trusting()), |_| true).unwrap();
            let (name, state) = session.sites.pop_first().unwrap();
            (state, session.deliveries.remove(&name).unwrap(), input(&parameters, 1))
        };
        group.bench_function(format!("mask {bits} bits"), |b| {
            b.iter_batched(
                fresh,
                |(state, delivery, input)| state.mask(delivery, input),
                BatchSize::LargeInput,
            )
        });
        let mut packed = Vec::new();
        input(&parameters, 1).pack_into(&mut packed);
        let mut sum = RingVector::zeros(parameters.width, 1_000_000);
        group.throughput(Throughput::Bytes(packed.len() as u64));
        group.bench_function(format!("add {bits} bits"), |b| b.iter(|| sum.add_packed(black_box(&packed))));
    }
    group.finish();
}

criterion_group!(benches, secagg);
criterion_main!(benches);
