//! Normalisation and pooling against their definitions in double precision, on every kind of vector instructions.

use medinet_kernels::{
    Cpu, Maps, NormShape, group_norm, group_norm_backward, max_pool, max_pool_backward, max_pooled, mean,
    mean_backward,
};
use proptest::prelude::*;

/// Values without a pattern, between -1 and 1.
fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// What a normalisation takes, in planes.
#[derive(Debug, Clone)]
struct Case {
    s: NormShape,
    x: Vec<f32>,
    scale: Vec<f32>,
    offset: Vec<f32>,
    shortcut: Option<Vec<f32>>,
    dy: Vec<f32>,
}

fn cases() -> impl Strategy<Value = Case> {
    // Groups within a block, of whole blocks, and across the borders of blocks.
    let groups =
        prop_oneof![(1usize..9, 1usize..9), (1usize..3, prop_oneof![Just(16usize), Just(32), Just(24)])];
    (1usize..4, groups, 1usize..9, 1usize..9, any::<bool>(), any::<bool>(), any::<u32>()).prop_map(
        |(batch, (groups, size), height, width, relu, shortcut, seed)| {
            let maps = Maps { batch, channels: groups * size, height, width };
            let count = batch * maps.channels * maps.image();
            let seed = u64::from(seed);
            Case {
                // Far from zero where there is one value in a group: its normalised value has no derivative else.
                s: NormShape { maps, groups, epsilon: 1e-2, relu },
                x: values(count, seed),
                scale: values(maps.channels, seed + 1),
                offset: values(maps.channels, seed + 2),
                shortcut: shortcut.then(|| values(count, seed + 3)),
                dy: values(count, seed + 4),
            }
        },
    )
}

struct Gradient {
    x: Vec<f64>,
    scale: Vec<f64>,
    offset: Vec<f64>,
    shortcut: Vec<f64>,
}

/// Calls `run(channel, indices)` for each map: an image's channel.
fn each_map(maps: &Maps, first: usize, channels: usize, mut run: impl FnMut(usize, std::ops::Range<usize>)) {
    for channel in 0..channels {
        run(channel, (first + channel) * maps.image()..(first + channel + 1) * maps.image());
    }
}

/// The forward pass; and with `dy` the gradient where `y` of the kernels says what was cut off.
fn reference(case: &Case, kernel_y: &[f32]) -> (Vec<f64>, Gradient) {
    let (s, maps) = (&case.s, &case.s.maps);
    let count = case.x.len();
    let mut y = vec![0.0f64; count];
    let mut gradient = Gradient {
        x: vec![0.0; count],
        scale: vec![0.0; maps.channels],
        offset: vec![0.0; maps.channels],
        shortcut: vec![0.0; count],
    };
    let size = maps.channels / s.groups;
    for (n, group) in (0..maps.batch).flat_map(|n| (0..s.groups).map(move |group| (n, group))) {
        let first = n * maps.channels + group * size;
        let all = first * maps.image()..(first + size) * maps.image();
        let values = || case.x[all.clone()].iter().map(|&v| f64::from(v));
        let mean = values().sum::<f64>() / all.len() as f64;
        let variance = values().map(|v| (v - mean) * (v - mean)).sum::<f64>() / all.len() as f64;
        let inverse = 1.0 / (variance + f64::from(s.epsilon)).sqrt();
        let (mut of_scaled, mut of_products) = (0.0, 0.0);
        each_map(maps, first, size, |channel, map| {
            let channel = group * size + channel;
            let (scale, offset) = (f64::from(case.scale[channel]), f64::from(case.offset[channel]));
            for i in map {
                let normalised = (f64::from(case.x[i]) - mean) * inverse;
                y[i] = normalised * scale + offset;
                y[i] += case.shortcut.as_ref().map_or(0.0, |shortcut| f64::from(shortcut[i]));
                let passes = !s.relu || kernel_y[i] > 0.0;
                y[i] = if s.relu { y[i].max(0.0) } else { y[i] };
                let dy = if passes { f64::from(case.dy[i]) } else { 0.0 };
                gradient.shortcut[i] = dy;
                gradient.scale[channel] += dy * normalised;
                gradient.offset[channel] += dy;
                of_scaled += dy * scale / all.len() as f64;
                of_products += dy * scale * normalised / all.len() as f64;
            }
        });
        each_map(maps, first, size, |channel, map| {
            for i in map {
                let normalised = (f64::from(case.x[i]) - mean) * inverse;
                let scaled = gradient.shortcut[i] * f64::from(case.scale[group * size + channel]);
                gradient.x[i] = inverse * (scaled - of_scaled - normalised * of_products);
            }
        });
    }
    (y, gradient)
}

fn close(name: &str, got: &[f32], expected: &[f64], bound: f64) -> Result<(), TestCaseError> {
    prop_assert_eq!(got.len(), expected.len(), "{}", name);
    for (at, (&got, &value)) in got.iter().zip(expected).enumerate() {
        prop_assert!((f64::from(got) - value).abs() <= bound, "{} {}: {} for {}", name, at, got, value);
    }
    Ok(())
}

/// All results of the kernels, in planes: output, and the gradients.
fn run(cpu: Cpu, case: &Case) -> [Vec<f32>; 5] {
    let maps = &case.s.maps;
    let [x, dy] = [&case.x, &case.dy].map(|planes| maps.from_planes(planes));
    let shortcut = case.shortcut.as_ref().map(|planes| maps.from_planes(planes));
    let (y, statistics) = group_norm(cpu, &x, &case.scale, &case.offset, shortcut.as_deref(), &case.s);
    let wants = shortcut.is_some();
    let gradient = group_norm_backward(cpu, &x, &case.scale, &y, &dy, &statistics, wants, &case.s);
    let shortcut = gradient.shortcut.map_or_else(Vec::new, |values| maps.to_planes(&values));
    [maps.to_planes(&y), maps.to_planes(&gradient.x), gradient.scale, gradient.offset, shortcut]
}

proptest! {
    #[test]
    fn normalisation_is_that_of_the_definition(case in cases()) {
        for cpu in Cpu::all() {
            let [y, dx, scale, offset, shortcut] = run(cpu, &case);
            let (expected, gradient) = reference(&case, &y);
            close("y", &y, &expected, 2e-5)?;
            // The inverse deviation is at most 10 here, and sums run over at most 192 values.
            close("dx", &dx, &gradient.x, 1e-3)?;
            close("scale", &scale, &gradient.scale, 1e-3)?;
            close("offset", &offset, &gradient.offset, 1e-4)?;
            if case.shortcut.is_some() {
                close("shortcut", &shortcut, &gradient.shortcut, 0.0)?;
            }
        }
    }

    #[test]
    fn one_thread_and_several_normalise_to_the_same_bits(case in cases()) {
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            let all = pool.install(|| run(Cpu::detect(), &case));
            all.map(|values| values.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        };
        let one = with(1);
        prop_assert_eq!(&one, &with(2));
        prop_assert_eq!(&one, &with(5));
    }

    #[test]
    fn pooling_takes_the_largest_and_gives_its_gradient_back(
        batch in 1usize..4, channels in 1usize..20, height in 1usize..12, width in 1usize..12, seed in any::<u32>(),
    ) {
        let maps = Maps { batch, channels, height, width };
        let to = max_pooled(&maps);
        // Few different values, so that windows have several largest ones.
        let planes: Vec<f32> =
            values(batch * channels * maps.image(), u64::from(seed)).iter().map(|v| (v * 3.0).round()).collect();
        let dy = values(batch * channels * to.image(), u64::from(seed) + 1);
        let (mut expected, mut gradient) = (Vec::new(), vec![0.0f64; planes.len()]);
        for (map, plane) in planes.chunks_exact(maps.image()).enumerate() {
            for (row, column) in (0..to.height).flat_map(|r| (0..to.width).map(move |c| (r, c))) {
                let window = (0..9).filter_map(|i| {
                    let (y, x) = ((row * 2 + i / 3).checked_sub(1)?, (column * 2 + i % 3).checked_sub(1)?);
                    (y < height && x < width).then_some(y * width + x)
                });
                let at = window.reduce(|a, b| if plane[b] > plane[a] { b } else { a }).expect("not empty");
                gradient[map * maps.image() + at] += f64::from(dy[expected.len()]);
                expected.push(f64::from(plane[at]));
            }
        }
        let (x, gradient_y) = (maps.from_planes(&planes), to.from_planes(&dy));
        for cpu in Cpu::all() {
            let y = max_pool(cpu, &x, &maps);
            close("y", &to.to_planes(&y), &expected, 0.0)?;
            let dx = max_pool_backward(cpu, &x, &y, &gradient_y, &maps);
            close("dx", &maps.to_planes(&dx), &gradient, 1e-5)?;
        }
    }

    #[test]
    fn means_and_planes_are_those_of_the_definition(
        batch in 1usize..4, channels in 1usize..40, height in 1usize..6, width in 1usize..6, seed in any::<u32>(),
    ) {
        let maps = Maps { batch, channels, height, width };
        let planes = values(batch * channels * maps.image(), u64::from(seed));
        let blocked = maps.from_planes(&planes);
        prop_assert_eq!(&maps.to_planes(&blocked), &planes);
        let means = planes.chunks_exact(maps.image()).map(|map| {
            map.iter().map(|&v| f64::from(v)).sum::<f64>() / map.len() as f64
        });
        close("mean", &mean(&blocked, &maps), &means.collect::<Vec<_>>(), 1e-6)?;
        let dy = values(batch * channels, 3);
        let dx = maps.to_planes(&mean_backward(&dy, &maps));
        let expected: Vec<f64> =
            (0..planes.len()).map(|i| f64::from(dy[i / maps.image()]) / maps.image() as f64).collect();
        close("dx", &dx, &expected, 1e-7)?;
    }
}
