//! Stochastic gradient descent on a network's parameter tensors.

use burn::tensor::{Device, Gradients, Tensor, TensorReadError};
use medinet_model::network::{Descent, Network, join, split};
use medinet_model::{ModelParameters, TrainingPlan};

/// What gradient descent keeps between its steps, on the device.
pub(crate) struct Optimizer {
    momentum: f32,
    weight_decay: f32,
    proximal_mu: f32,
    /// Where the proximal term pulls to; none where the plan has no such term.
    base: Option<Vec<Tensor<1>>>,
    velocity: Vec<Tensor<1>>,
}

impl Optimizer {
    /// An optimizer at rest, or with the velocity of a checkpoint.
    pub(crate) fn new(
        plan: &TrainingPlan,
        network: &Network,
        base: &ModelParameters,
        velocity: Option<&[f32]>,
    ) -> Self {
        let device: Device = network.device().clone().without_autodiff();
        let at_rest = vec![0.0; network.layout().len()];
        let velocity = split(network.layout(), velocity.unwrap_or(&at_rest), &device);
        let base = (plan.proximal_mu > 0.0).then(|| split(network.layout(), base.as_slice(), &device));
        Self {
            momentum: plan.momentum,
            weight_decay: plan.weight_decay,
            proximal_mu: plan.proximal_mu,
            base,
            velocity,
        }
    }

    /// One step along the gradients of `network`'s parameters.
    pub(crate) fn step(&mut self, network: &mut Network, gradients: Gradients, learning_rate: f32) {
        let Self { momentum, weight_decay, proximal_mu, .. } = *self;
        let step = Descent { momentum, weight_decay, proximal_mu, learning_rate };
        network.descend(gradients, &mut self.velocity, self.base.as_deref(), &step);
    }

    /// One step along a gradient for each of `network`'s parameters.
    pub(crate) fn step_along(
        &mut self,
        network: &mut Network,
        gradients: Vec<Option<Tensor<1>>>,
        learning_rate: f32,
    ) {
        let Self { momentum, weight_decay, proximal_mu, .. } = *self;
        let step = Descent { momentum, weight_decay, proximal_mu, learning_rate };
        network.descend_along(gradients, &mut self.velocity, self.base.as_deref(), &step);
    }

    /// Reads the velocity back as one flat vector in the layout's order.
    pub(crate) fn read_velocity(&self) -> Result<Vec<f32>, TensorReadError> {
        join(&self.velocity)
    }
}
