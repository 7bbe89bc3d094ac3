//! Which vector instructions the kernels use.

use pulp::{Arch, Simd, WithSimd};

/// The vector instructions that kernels are run with. Within one of them results are the same bits from run to run and
/// for any number of threads; from one to another the last bits differ, since wider registers sum in another order and
/// not every processor has fused multiplication.
#[derive(Debug, Clone, Copy)]
pub struct Cpu(Arch);

impl Cpu {
    /// The best that this machine has.
    #[must_use]
    pub fn detect() -> Self {
        Self(Arch::new())
    }

    /// Everything that this machine has, from the slowest; the first is plain code that runs anywhere.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self(Arch::Scalar)];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(pulp::x86::V3::try_new().map(|v3| Self(Arch::V3(v3))));
            all.extend(pulp::x86::V4::try_new().map(|v4| Self(Arch::V4(v4))));
        }
        #[cfg(target_arch = "aarch64")]
        all.push(Self(Arch::new()));
        all
    }

    /// Runs a kernel.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        self.0.dispatch(Dispatch(kernel))
    }
}

/// A piece of work that is compiled once for each kind of vector instructions.
pub(crate) trait Kernel {
    type Output;

    /// `V` registers hold one [`Pixel`](crate::Pixel). To be inlined always: only so are the instructions there.
    fn run<S: Simd, const V: usize>(self, simd: S) -> Self::Output;
}

struct Dispatch<K>(K);

impl<K: Kernel> WithSimd for Dispatch<K> {
    type Output = K::Output;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> K::Output {
        match S::F32_LANES {
            16 => self.0.run::<S, 1>(simd),
            8 => self.0.run::<S, 2>(simd),
            4 => self.0.run::<S, 4>(simd),
            _ => self.0.run::<S, 16>(simd),
        }
    }
}

/// A pixel in registers.
#[inline(always)]
pub(crate) fn load<S: Simd, const V: usize>(simd: S, pixel: &[f32; 16]) -> [S::f32s; V] {
    let (vectors, _) = S::as_simd_f32s(pixel);
    let mut values = [simd.splat_f32s(0.0); V];
    values.copy_from_slice(vectors);
    values
}

/// The inverse of [`load`].
#[inline(always)]
pub(crate) fn store<S: Simd, const V: usize>(_: S, pixel: &mut [f32; 16], values: [S::f32s; V]) {
    let (vectors, _) = S::as_mut_simd_f32s(pixel);
    for v in 0..V {
        vectors[v] = values[v];
    }
}
