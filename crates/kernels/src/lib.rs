//! Layers of convolutional networks on the CPU, forward and backward, on plain slices.
//!
//! All of them work on [`Maps`]: feature maps in blocks of 16 channels. A convolution is a product of packed weights and
//! panels of gathered pixels; the panels never hold more than the cache does. Vector instructions are chosen when the
//! program runs ([`Cpu`]). Work is cut by shape and summed in a fixed order, so that results are the same bits on any number
//! of threads.
//!
//! The functions expect slices of the lengths that their shapes say, and panic where they are not.

#![allow(
    clippy::needless_range_loop,
    reason = "plain loops over registers; closures may stay outside the vector code"
)]

pub mod buffers;
mod conv;
mod conv_weight;
mod cpu;
mod descent;
mod layout;
mod norm;
mod patches;
mod pool;
mod product;
mod shape;
mod weights;

pub use conv::{backward_input, forward, forward_planes};
pub use conv_weight::{
    Share, add_backward_weight, add_backward_weight_planes, backward_weight, backward_weight_planes,
};
pub use cpu::Cpu;
pub use descent::{Descent, descend};
pub use layout::{BLOCK, Maps, Pixel};
pub use norm::{
    NormGradient, NormShape, Statistics, group_norm, group_norm_backward, group_norm_backward_images,
};
pub use pool::{max_pool, max_pool_backward, max_pooled, mean, mean_backward};
pub use shape::ConvShape;
