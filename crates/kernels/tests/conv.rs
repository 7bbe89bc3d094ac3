//! Convolutions against their definition in double precision, on every kind of vector instructions of this machine.

use medinet_kernels::{
    ConvShape, Cpu, Share, add_backward_weight, add_backward_weight_planes, backward_input, backward_weight,
    backward_weight_planes, forward, forward_planes,
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

/// Calls `run(output, input, weight)` with the indices of each product of the definition.
fn each_product(s: &ConvShape, mut run: impl FnMut(usize, usize, usize)) {
    let out = s.output();
    for n in 0..s.batch {
        for o in 0..s.outputs {
            for (oy, ox) in (0..out.height).flat_map(|y| (0..out.width).map(move |x| (y, x))) {
                let y = ((n * s.outputs + o) * out.height + oy) * out.width + ox;
                for c in 0..s.inputs {
                    for (ky, kx) in (0..s.kernel).flat_map(|y| (0..s.kernel).map(move |x| (y, x))) {
                        let row = (oy * s.stride + ky).wrapping_sub(s.padding);
                        let column = (ox * s.stride + kx).wrapping_sub(s.padding);
                        if row < s.height && column < s.width {
                            let x = ((n * s.inputs + c) * s.height + row) * s.width + column;
                            run(y, x, ((o * s.inputs + c) * s.kernel + ky) * s.kernel + kx);
                        }
                    }
                }
            }
        }
    }
}

/// Output and both gradients, with the sum of the magnitudes of what each value is a sum of.
struct Reference {
    y: Vec<[f64; 2]>,
    dx: Vec<[f64; 2]>,
    dw: Vec<[f64; 2]>,
}

fn reference(s: &ConvShape, x: &[f32], weight: &[f32], dy: &[f32]) -> Reference {
    let mut all = Reference {
        y: vec![[0.0; 2]; dy.len()],
        dx: vec![[0.0; 2]; x.len()],
        dw: vec![[0.0; 2]; weight.len()],
    };
    let add = |sum: &mut [f64; 2], a: f32, b: f32| {
        let product = f64::from(a) * f64::from(b);
        sum[0] += product;
        sum[1] += product.abs();
    };
    each_product(s, |o, i, w| {
        add(&mut all.y[o], x[i], weight[w]);
        add(&mut all.dx[i], dy[o], weight[w]);
        add(&mut all.dw[w], dy[o], x[i]);
    });
    all
}

/// The error of a sum in single precision is a small multiple of its rounding unit times the sum of the magnitudes.
fn close(name: &str, got: &[f32], expected: &[[f64; 2]]) -> Result<(), TestCaseError> {
    prop_assert_eq!(got.len(), expected.len(), "{}", name);
    for (at, (&got, &[value, magnitude])) in got.iter().zip(expected).enumerate() {
        let bound = magnitude * 2e-6 + 1e-30;
        prop_assert!((f64::from(got) - value).abs() <= bound, "{} {}: {} for {}", name, at, got, value);
    }
    Ok(())
}

fn shapes() -> impl Strategy<Value = ConvShape> {
    let channels = || prop_oneof![1usize..5, 14usize..19, 30usize..50];
    let kernels = prop_oneof![Just(1usize), Just(3), Just(5), Just(7)];
    (1usize..5, channels(), 1usize..20, 1usize..20, channels(), kernels, 1usize..4, 0usize..4)
        .prop_filter_map(
            "the kernel fits in",
            |(batch, inputs, height, width, outputs, kernel, stride, padding)| {
                let padding = padding.min(kernel / 2);
                let fits = height + 2 * padding >= kernel && width + 2 * padding >= kernel;
                let shape = ConvShape { batch, inputs, height, width, outputs, kernel, stride, padding };
                fits.then_some(shape)
            },
        )
}

struct Results {
    y: Vec<f32>,
    dx: Vec<f32>,
    dw: Vec<f32>,
}

fn run(cpu: Cpu, s: &ConvShape, x: &[f32], weight: &[f32], dy: &[f32]) -> Results {
    let (input, output) = (s.input(), s.output());
    let (blocked, gradient) = (input.from_planes(x), output.from_planes(dy));
    Results {
        y: output.to_planes(&forward(cpu, &blocked, weight, s)),
        dx: input.to_planes(&backward_input(cpu, &gradient, weight, s)),
        dw: backward_weight(cpu, &blocked, &gradient, s),
    }
}

fn check(s: &ConvShape, seed: u64) -> Result<(), TestCaseError> {
    let x = values(s.batch * s.inputs * s.height * s.width, seed);
    let weight = values(s.weights(), seed + 1);
    let dy = values(s.output().pixels() * s.outputs, seed + 2);
    let expected = reference(s, &x, &weight, &dy);
    for cpu in Cpu::all() {
        let got = run(cpu, s, &x, &weight, &dy);
        close("y", &got.y, &expected.y)?;
        close("dx", &got.dx, &expected.dx)?;
        close("dw", &got.dw, &expected.dw)?;
        let output = s.output();
        close("y of planes", &output.to_planes(&forward_planes(cpu, &x, &weight, s)), &expected.y)?;
        let gradient = output.from_planes(&dy);
        close("dw of planes", &backward_weight_planes(cpu, &x, &gradient, s), &expected.dw)?;
    }
    check_shares(s, &x, &weight, &dy)
}

/// The first image in full and the others by half, added to what is there.
fn check_shares(s: &ConvShape, x: &[f32], weight: &[f32], dy: &[f32]) -> Result<(), TestCaseError> {
    let output = s.output();
    let shares = [(0..1, 1.0), (1..s.batch, 0.5)].map(|(images, factor)| Share { images, factor });
    let first = output.image() * s.outputs;
    let halved: Vec<f32> =
        dy.iter().enumerate().map(|(at, &dy)| if at < first { dy } else { 0.5 * dy }).collect();
    let expected = reference(s, x, weight, &halved).dw;
    let (blocked, gradient) = (s.input().from_planes(x), output.from_planes(dy));
    for cpu in Cpu::all() {
        let [mut sum, mut of_planes] = [0, 1].map(|_| vec![2.0f64; s.weights()]);
        add_backward_weight(cpu, &blocked, &gradient, s, &shares, &mut sum);
        add_backward_weight_planes(cpu, x, &gradient, s, &shares, &mut of_planes);
        for (name, sum) in [("shares", sum), ("shares of planes", of_planes)] {
            let added: Vec<f32> = sum.iter().map(|sum| (sum - 2.0) as f32).collect();
            close(name, &added, &expected)?;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn results_are_those_of_the_definition(s in shapes(), seed in any::<u32>()) {
        check(&s, u64::from(seed))?;
    }

    #[test]
    fn one_thread_and_several_give_the_same_bits(s in shapes(), seed in any::<u32>()) {
        let x = values(s.batch * s.inputs * s.height * s.width, u64::from(seed));
        let weight = values(s.weights(), 1);
        let dy = values(s.output().pixels() * s.outputs, 2);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            let all = pool.install(|| run(Cpu::detect(), &s, &x, &weight, &dy));
            [all.y, all.dx, all.dw].concat().into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let one = with(1);
        prop_assert_eq!(&one, &with(2));
        prop_assert_eq!(&one, &with(5));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Nothing of an image's results follows from the images beside it.
    #[test]
    fn an_image_has_the_same_bits_alone_and_in_a_batch(s in shapes(), seed in any::<u32>()) {
        let x = values(s.batch * s.inputs * s.height * s.width, u64::from(seed));
        let weight = values(s.weights(), 1);
        let dy = values(s.output().pixels() * s.outputs, 2);
        let cpu = Cpu::detect();
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        let shared = |s: &ConvShape, x: &[f32], dy: &[f32], image: usize| {
            let mut sums = [0, 1].map(|_| vec![0.0f64; s.weights()]);
            let shares = [Share { images: image..image + 1, factor: 1.0 }];
            let gradient = s.output().from_planes(dy);
            add_backward_weight(cpu, &s.input().from_planes(x), &gradient, s, &shares, &mut sums[0]);
            add_backward_weight_planes(cpu, x, &gradient, s, &shares, &mut sums[1]);
            sums.map(|sum| sum.into_iter().map(f64::to_bits).collect::<Vec<_>>())
        };
        let batch = run(cpu, &s, &x, &weight, &dy);
        let one = ConvShape { batch: 1, ..s };
        let (from, to) = (x.len() / s.batch, dy.len() / s.batch);
        for image in 0..s.batch {
            let (part_x, part_dy) = (&x[image * from..][..from], &dy[image * to..][..to]);
            let alone = run(cpu, &one, part_x, &weight, part_dy);
            prop_assert_eq!(bits(&alone.y), bits(&batch.y[image * to..][..to]));
            prop_assert_eq!(bits(&alone.dx), bits(&batch.dx[image * from..][..from]));
            prop_assert_eq!(shared(&one, part_x, part_dy, 0), shared(&s, &x, &dy, image));
        }
    }
}

/// Sizes of the networks' layers where strips, pairs of blocks, lanes and phases all have more than one part.
#[test]
fn layers_of_the_networks() {
    let shape = |batch, inputs, side, outputs, kernel, stride| ConvShape {
        batch,
        inputs,
        height: side,
        width: side,
        outputs,
        kernel,
        stride,
        padding: kernel / 2,
    };
    let all = [
        shape(3, 1, 28, 16, 3, 1),
        shape(1, 1, 65, 16, 5, 2),
        shape(2, 3, 63, 64, 7, 2),
        shape(3, 16, 28, 16, 3, 1),
        shape(2, 64, 14, 80, 3, 2),
        shape(2, 64, 14, 128, 1, 2),
        shape(9, 128, 4, 128, 3, 1),
    ];
    for s in &all {
        check(s, 7).unwrap_or_else(|error| panic!("{s:?}: {error}"));
    }
}
