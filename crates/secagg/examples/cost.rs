//! What secure aggregation costs: `cargo run --release -p medinet-secagg --example cost [-- quick]`.
//!
//! One line per figure, in seconds of one thread (with `--features rayon` the server's unmasking uses all). A session is run in
//! full for 100 sites; for 1,000 sites the server's part is, with the sites played one after another.
//! Identities are stand-ins that take no time: add the signatures of the identity key that is in use.
#![allow(clippy::print_stdout, reason = "printing figures is its purpose")]
#![allow(clippy::unwrap_used, reason = "a panic is how a measurement fails")]

#[path = "../tests/common/mod.rs"]
mod common;

use aes::Aes256;
use aes::cipher::{BlockCipherEncrypt, KeyInit, array::Array};
use common::{Authority, Identity, advertise, parameters, rng, trusting};
use medinet_secagg::{RingVector, SessionParameters, Topology};
use std::hint::black_box;
use std::time::Instant;

fn seconds<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let result = black_box(work());
    (start.elapsed().as_secs_f64(), result)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn fastest(times: &[f64]) -> f64 {
    times.iter().copied().fold(f64::INFINITY, f64::min)
}

/// Bytes per second of the cipher alone at its best: from and to chunks at cache lines of the first-level cache.
fn cipher_speed() -> f64 {
    const BYTES: usize = 16 * 1024;
    let cipher = Aes256::new(&Array::from([7; 32]));
    let mut buffer = vec![0u8; 2 * BYTES + 64];
    let skip = buffer.as_ptr().align_offset(64);
    let (counters, stream) = buffer[skip..skip + 2 * BYTES].split_at_mut(BYTES);
    let (counters, stream) = (Array::slice_as_chunks(counters).0, Array::slice_as_chunks_mut(stream).0);
    let mut fill = || (0..256).for_each(|_| cipher.encrypt_blocks_b2b(counters, stream).unwrap());
    let times: Vec<f64> = (0..100).map(|_| seconds(&mut fill).0).collect();
    (256 * BYTES) as f64 / fastest(&times)
}

fn input(parameters: &SessionParameters) -> RingVector {
    RingVector::from_values(parameters.width, (0..parameters.coordinates).map(|c| c & 15))
}

/// Peak resident memory of this process in MB, where the system tells.
fn peak_memory_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kb| kb / 1024.0)
}

fn session(n: usize, topology: Topology, bits: u8, dropped: usize, measured: usize, cipher: f64) {
    let parameters = parameters(1_000_000, bits);
    println!(
        "\n{n} sites, {} neighbours, threshold {}, 1,000,000 coordinates of {bits} bits, {dropped} lost after sharing",
        topology.neighbours, topology.threshold
    );
    let common::Shared { mut server, list, sites } = advertise(&parameters, n, topology, trusting());
    let mut share_times = Vec::new();
    let mut shared = Vec::new();
    for (name, state) in sites {
        let list = list.clone();
        let mut rng = rng(1_000_000 + common::index(&name) as u64);
        let (time, result) = seconds(|| state.share_keys(list, &Authority, &mut rng).unwrap());
        share_times.push(time);
        server.receive(&name, result.0).unwrap();
        shared.push((name, result.1));
    }
    let (deliveries, mut server) = server.close().unwrap();
    let (mut mask_times, mut add_times, mut upload) = (Vec::new(), Vec::new(), 0);
    let mut masked = Vec::new();
    // Spread over the cohort, so that lost sites have surviving neighbours.
    let is_lost = |i: usize| dropped > 0 && i % (n / dropped) == n / dropped / 2;
    for (i, ((name, state), (_, delivery))) in shared.into_iter().zip(deliveries).enumerate() {
        if is_lost(i) {
            continue;
        }
        let input = input(&parameters);
        let (time, (message, state)) = seconds(|| state.mask(delivery, input).unwrap());
        if mask_times.len() < measured {
            mask_times.push(time);
        }
        upload = message.len();
        let (time, result) = seconds(|| server.receive(&name, &message));
        result.unwrap();
        add_times.push(time);
        masked.push((name, state));
    }
    let (survivors, mut server) = server.close().unwrap();
    let mut agreed = Vec::new();
    for (name, state) in masked {
        let (message, state) = state.agree(survivors.clone(), &Identity(name.clone())).unwrap();
        server.receive(&name, message, &Authority).unwrap();
        agreed.push((name, state));
    }
    let (list, mut server) = server.close().unwrap();
    let mut receive_time = 0.0;
    for (name, state) in agreed {
        let message = state.unmask(list.clone(), &Authority).unwrap().0;
        receive_time += seconds(|| server.receive(&name, message).unwrap()).0;
    }
    let (finish_time, aggregate) = seconds(|| server.finish().unwrap());
    let expected = aggregate.contributors.len() as u32;
    let mask = parameters.width.max_value();
    assert!(aggregate.sum.iter().enumerate().all(|(c, v)| v == ((c as u32 & 15) * expected) & mask));

    // The machine may have been busier when the speed was taken first.
    let cipher = cipher.max(cipher_speed());
    let bytes = f64::from(parameters.coordinates) * f64::from(parameters.width.mask_bits()) / 8.0;
    let own_limit = f64::from(topology.neighbours + 1) * bytes / cipher;
    let best = fastest(&mask_times);
    let mask_time = median(mask_times);
    println!("site: share keys      {:9.5} s", median(share_times));
    println!(
        "site: mask            {mask_time:9.5} s   (fastest {best:.5} s; cipher alone {own_limit:.5} s: {:.0}% of the limit)",
        100.0 * own_limit / best
    );
    println!("site: upload          {upload:9} bytes");
    let survivors = aggregate.contributors.len();
    let lost = n - survivors;
    // At most: some neighbours of a lost site may be lost too.
    let masks = survivors + lost * usize::from(topology.neighbours);
    let limit = masks as f64 * bytes / cipher;
    let add_time: f64 = add_times.iter().sum();
    println!("server: add inputs    {add_time:9.5} s   ({:.5} s each)", median(add_times));
    println!("server: check shares  {receive_time:9.5} s");
    println!(
        "server: unmask        {finish_time:9.5} s   (cipher alone {limit:.5} s for {masks} masks: {:.0}% of the limit)",
        100.0 * limit / finish_time
    );
    if let Some(peak) = peak_memory_mb() {
        println!("peak memory so far    {peak:9.1} MB, server and all sites' states together");
    }
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "quick");
    let cipher = cipher_speed();
    println!("AES-256, this processor, one thread: {:.2} GB/s", cipher * 1e-9);
    let flower = Topology { neighbours: 21, threshold: 12, quorum: 51 };
    for bits in [16, 15, 12, 11] {
        for dropped in [0, 10] {
            session(100, flower, bits, dropped, 100, cipher);
        }
    }
    session(100, Topology { neighbours: 99, threshold: 67, quorum: 56 }, 16, 10, 100, cipher);
    if !quick {
        session(1000, Topology { neighbours: 60, threshold: 34, quorum: 551 }, 16, 100, 20, cipher);
    }
}
