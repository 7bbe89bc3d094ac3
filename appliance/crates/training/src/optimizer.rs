//! Stochastic gradient descent on a network's parameter tensors.

use burn::tensor::{Device, Gradients, Tensor, TensorReadError};
use medinet_model::network::{Network, join, split};
use medinet_model::{ModelParameters, TensorRole, TrainingPlan};

/// Momentum (Polyak 1964), decoupled weight decay (Loshchilov & Hutter 2019, algorithm 1) and FedProx's proximal
/// term (Li et al. 2020, eq. 2), applied tensor by tensor on the device.
///
/// Weight decay applies to matrices and kernels only: pulling normalisations towards zero serves nothing.
pub(crate) struct Optimizer {
    momentum: f32,
    weight_decay: f32,
    proximal_mu: f32,
    base: Vec<Tensor<1>>,
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
        let proximal = plan.proximal_mu > 0.0;
        let base = if proximal { split(network.layout(), base.as_slice(), &device) } else { Vec::new() };
        Self {
            momentum: plan.momentum,
            weight_decay: plan.weight_decay,
            proximal_mu: plan.proximal_mu,
            base,
            velocity,
        }
    }

    /// One step along the gradients of `network`'s parameters.
    pub(crate) fn step(&mut self, network: &mut Network, mut gradients: Gradients, learning_rate: f32) {
        let gradients =
            network.parameters().iter().map(|parameter| parameter.grad_remove(&mut gradients)).collect();
        self.step_along(network, gradients, learning_rate);
    }

    /// One step along a gradient for each of `network`'s parameters; those without one stay where they are.
    pub(crate) fn step_along(
        &mut self,
        network: &mut Network,
        gradients: Vec<Option<Tensor<1>>>,
        learning_rate: f32,
    ) {
        let mut parameters = Vec::with_capacity(self.velocity.len());
        for (index, ((parameter, slot), gradient)) in
            network.parameters().iter().zip(network.layout().tensors()).zip(gradients).enumerate()
        {
            let value = parameter.clone().without_autodiff();
            let Some(mut gradient) = gradient else {
                parameters.push(value);
                continue;
            };
            if let Some(base) = self.base.get(index) {
                gradient = gradient + (value.clone() - base.clone()) * self.proximal_mu;
            }
            let velocity = self.velocity[index].clone() * self.momentum + gradient;
            self.velocity[index] = velocity.clone();
            let decays = matches!(slot.role, TensorRole::ConvWeight | TensorRole::LinearWeight);
            let step = if decays && self.weight_decay > 0.0 {
                velocity + value.clone() * self.weight_decay
            } else {
                velocity
            };
            parameters.push(value - step * learning_rate);
        }
        network.set_parameters(parameters);
    }

    /// Reads the velocity back as one flat vector in the layout's order.
    pub(crate) fn read_velocity(&self) -> Result<Vec<f32>, TensorReadError> {
        join(&self.velocity)
    }
}
