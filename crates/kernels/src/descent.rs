//! The optimizer's step, in one pass over memory.

use crate::cpu::{Cpu, Kernel};
use pulp::Simd;
use rayon::prelude::*;

/// Values of a task: enough to be worth one.
const CHUNK: usize = 1 << 16;

/// A step of stochastic gradient descent: momentum (Polyak 1964), decoupled weight decay (Loshchilov & Hutter 2019, algorithm
/// 1) and FedProx's proximal term (Li et al. 2020, eq. 2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Descent {
    /// Share of the velocity that stays.
    pub momentum: f32,
    /// Share of the value that is taken away, times the learning rate.
    pub weight_decay: f32,
    /// Pull towards the base, per distance from it.
    pub proximal_mu: f32,
    /// Length of the step.
    pub learning_rate: f32,
}

/// Takes the step: `gradient += proximal_mu * (value - base)` where there is a base, `velocity = momentum * velocity +
/// gradient`, `value -= learning_rate * (velocity + weight_decay * value)`.
///
/// # Panics
/// When the slices are not of one length.
pub fn descend(
    cpu: Cpu,
    value: &mut [f32],
    velocity: &mut [f32],
    gradient: &[f32],
    base: Option<&[f32]>,
    step: &Descent,
) {
    assert!(
        velocity.len() == value.len() && gradient.len() == value.len(),
        "one velocity and gradient per value"
    );
    let chunks = value.par_chunks_mut(CHUNK).zip(velocity.par_chunks_mut(CHUNK)).enumerate();
    chunks.for_each(|(at, (value, velocity))| {
        let part = at * CHUNK..at * CHUNK + value.len();
        let (gradient, base) = (&gradient[part.clone()], base.map(|base| &base[part]));
        cpu.run(Step { value, velocity, gradient, base, step });
    });
}

struct Step<'a> {
    value: &'a mut [f32],
    velocity: &'a mut [f32],
    gradient: &'a [f32],
    base: Option<&'a [f32]>,
    step: &'a Descent,
}

impl Kernel for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, _: S) {
        let Descent { momentum, weight_decay, proximal_mu, learning_rate } = *self.step;
        let values = self.value.iter_mut().zip(self.velocity).zip(self.gradient);
        match self.base {
            Some(base) => {
                for (((value, velocity), gradient), base) in values.zip(base) {
                    let gradient = gradient + (*value - base) * proximal_mu;
                    *velocity = *velocity * momentum + gradient;
                    *value -= (*velocity + *value * weight_decay) * learning_rate;
                }
            }
            None => {
                for ((value, velocity), gradient) in values {
                    *velocity = *velocity * momentum + gradient;
                    *value -= (*velocity + *value * weight_decay) * learning_rate;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_those_of_the_formula() {
        let step = Descent { momentum: 0.9, weight_decay: 0.01, proximal_mu: 0.5, learning_rate: 0.1 };
        let start: Vec<f32> = (0..CHUNK + 77).map(|i| (i % 13) as f32 - 6.0).collect();
        for base in [None, Some(vec![1.0f32; start.len()])] {
            for cpu in Cpu::all() {
                let (mut value, mut velocity) = (start.clone(), vec![2.0; start.len()]);
                let gradient = vec![0.25; start.len()];
                descend(cpu, &mut value, &mut velocity, &gradient, base.as_deref(), &step);
                for (i, start) in start.iter().enumerate() {
                    let pull = base.as_ref().map_or(0.0, |base| (start - base[i]) * 0.5);
                    let expected = 2.0 * 0.9 + 0.25 + pull;
                    assert!((velocity[i] - expected).abs() < 1e-6);
                    let expected = start - (expected + start * 0.01) * 0.1;
                    assert!((value[i] - expected).abs() < 1e-6, "{} {expected}", value[i]);
                }
            }
        }
    }
}
