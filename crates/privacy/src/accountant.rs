//! The accountant: what a list of events costs in all.

use crate::event::Event;
use crate::units::{Delta, Epsilon, PrivacyLimit};
use crate::{pld, rdp};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The largest epsilon that is certified for noise from tables, whose distance from the ideal costs delta e^epsilon
/// times as much.
const MAX_EPSILON_WITH_DISTANCE: f64 = 30.0;

/// How losses are added up. Both are upper bounds for adding or removing one patient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accounting {
    /// Rényi differential privacy at many orders: fast; loose by some 5 to 20%.
    Renyi,
    /// The better of [`Accounting::Renyi`] and privacy loss distributions.
    #[default]
    Tight,
}

/// Events on the same patients, composed.
///
/// ```
/// use medinet_privacy::{Accounting, Composition, Delta, Event, NoiseMultiplier, SamplingRate};
///
/// let epoch = Event::Gaussian {
///     sampling_rate: SamplingRate::new(0.01)?,
///     noise_multiplier: NoiseMultiplier::new(1.1)?,
///     steps: 100,
/// };
/// let mut spent = Composition::new();
/// spent.add(&epoch);
/// spent.add(&epoch);
/// let epsilon = spent.epsilon(Delta::new(1e-5)?, Accounting::Tight);
/// assert!(epsilon > 0.5 && epsilon < 1.2);
/// # Ok::<(), medinet_privacy::ParameterError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Composition {
    events: Vec<Event>,
    /// Divergences of one run of each event's mechanism at the default orders.
    curves: Vec<Arc<[f64]>>,
}

impl Composition {
    /// Nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an event. Equal mechanisms are kept once, with their counts added.
    pub fn add(&mut self, event: &Event) {
        if event.count() == 0 {
            return;
        }
        match self.events.iter_mut().find(|known| known.with_count(0) == event.with_count(0)) {
            Some(known) => *known = known.with_count(known.count().saturating_add(event.count())),
            None => {
                self.events.push(*event);
                self.curves.push(one_run(event, rdp::default_orders()).into());
            }
        }
    }

    /// This composition with one more event.
    #[must_use]
    pub fn with(&self, event: &Event) -> Self {
        let mut more = self.clone();
        more.add(event);
        more
    }

    /// The distinct mechanisms with their counts.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// An epsilon for which all events together are (epsilon, `delta`)-differentially private; infinite
    /// where none is found.
    #[must_use]
    pub fn epsilon(&self, delta: Delta, accounting: Accounting) -> f64 {
        let usable = delta.get() - self.slack();
        if usable <= 0.0 {
            return if self.events.is_empty() { 0.0 } else { f64::INFINITY };
        }
        let by_renyi = self.default_renyi().epsilon(usable);
        let epsilon = match accounting {
            Accounting::Renyi => by_renyi,
            Accounting::Tight => by_renyi.min(self.tight_epsilon(usable)),
        };
        if self.slack() > 0.0 && epsilon > MAX_EPSILON_WITH_DISTANCE { f64::INFINITY } else { epsilon }
    }

    /// A delta for which all events together are (`epsilon`, delta)-differentially private.
    #[must_use]
    pub fn delta(&self, epsilon: Epsilon, accounting: Accounting) -> f64 {
        let renyi = |composition: &Self, e: f64| composition.default_renyi().delta(e);
        let mut delta = renyi(self, epsilon.get());
        let (gaussians, others) = self.split();
        if accounting == Accounting::Tight && !gaussians.is_empty() {
            let share = |part: f64| {
                let rest =
                    if others.events.is_empty() { 0.0 } else { renyi(&others, epsilon.get() * (1.0 - part)) };
                pld::delta(&gaussians, epsilon.get() * part) + rest
            };
            let parts: &[f64] = if others.events.is_empty() { &[1.0] } else { &[0.25, 0.5, 0.75] };
            delta = parts.iter().map(|part| share(*part)).fold(delta, f64::min);
        }
        if self.slack() > 0.0 && epsilon.get() > MAX_EPSILON_WITH_DISTANCE {
            return 1.0;
        }
        (delta + self.slack()).min(1.0)
    }

    /// Whether all events together stay within the limit.
    #[must_use]
    pub fn within(&self, limit: &PrivacyLimit, accounting: Accounting) -> bool {
        // The fast bound decides most cases.
        let fits = |accounting| self.epsilon(limit.delta, accounting) <= limit.epsilon.get();
        fits(Accounting::Renyi) || (accounting == Accounting::Tight && fits(Accounting::Tight))
    }

    /// The Rényi divergences of all events together at the given orders, each above 1.
    #[must_use]
    pub fn renyi(&self, orders: &[f64]) -> RenyiCurve {
        let curves: Vec<Vec<f64>> = self.events.iter().map(|event| one_run(event, orders)).collect();
        self.sum(orders, &curves)
    }

    fn default_renyi(&self) -> RenyiCurve {
        self.sum(rdp::default_orders(), &self.curves)
    }

    fn sum<C: AsRef<[f64]>>(&self, orders: &[f64], curves: &[C]) -> RenyiCurve {
        let mut divergences = vec![0.0; orders.len()];
        for (event, curve) in self.events.iter().zip(curves) {
            for (total, one) in divergences.iter_mut().zip(curve.as_ref()) {
                *total += event.count() as f64 * one;
            }
        }
        RenyiCurve { orders: orders.to_vec(), divergences }
    }

    /// Delta that is lost to imperfect sampling: mechanisms at statistical distance eta from ideal ones that are
    /// (epsilon, delta)-private are (epsilon, delta + (1 + e^epsilon) eta)-private. Taken for epsilon up to
    /// [`MAX_EPSILON_WITH_DISTANCE`].
    fn slack(&self) -> f64 {
        let distance = |event: &Event| match event {
            Event::Gaussian { .. } => 0.0,
            Event::DistributedGaussian { mechanism, rounds } => *rounds as f64 * mechanism.distance(),
        };
        (1.0 + MAX_EPSILON_WITH_DISTANCE.exp()) * self.events.iter().map(distance).sum::<f64>()
    }

    /// The events that have a privacy loss distribution, and those that only have divergences.
    fn split(&self) -> (Vec<(f64, f64, u64)>, Self) {
        let (mut gaussians, mut others) = (Vec::new(), Self::new());
        for event in &self.events {
            match event {
                Event::Gaussian { sampling_rate, noise_multiplier, steps } => {
                    gaussians.push((sampling_rate.get(), noise_multiplier.get(), *steps));
                }
                Event::DistributedGaussian { .. } => others.add(event),
            }
        }
        (gaussians, others)
    }

    fn tight_epsilon(&self, delta: f64) -> f64 {
        let (gaussians, others) = self.split();
        if gaussians.is_empty() {
            return f64::INFINITY;
        }
        if others.events.is_empty() {
            return pld::epsilon(&gaussians, delta);
        }
        // Basic composition of the two kinds, with the best of several ways to divide delta (Dwork and Roth 2014,
        // theorem 3.16).
        let curve = others.default_renyi();
        let of_part =
            |part: f64| pld::epsilon(&gaussians, delta * part) + curve.epsilon(delta * (1.0 - part));
        [0.1, 0.5, 0.9].into_iter().map(of_part).fold(f64::INFINITY, f64::min)
    }
}

/// Rényi divergences of one run of an event's mechanism, one per order.
fn one_run(event: &Event, orders: &[f64]) -> Vec<f64> {
    match event {
        Event::Gaussian { sampling_rate, noise_multiplier, .. } => {
            rdp::sampled_gaussian(sampling_rate.get(), noise_multiplier.get(), orders)
        }
        Event::DistributedGaussian { mechanism, .. } => {
            orders.iter().map(|order| mechanism.divergence(*order)).collect()
        }
    }
}

/// Rényi divergences, one per order.
#[derive(Debug, Clone, PartialEq)]
pub struct RenyiCurve {
    orders: Vec<f64>,
    divergences: Vec<f64>,
}

impl RenyiCurve {
    /// The orders.
    #[must_use]
    pub fn orders(&self) -> &[f64] {
        &self.orders
    }

    /// The divergence at each order.
    #[must_use]
    pub fn divergences(&self) -> &[f64] {
        &self.divergences
    }

    /// The smallest epsilon that the curve gives at a delta above 0.
    #[must_use]
    pub fn epsilon(&self, delta: f64) -> f64 {
        rdp::epsilon(&self.orders, &self.divergences, delta)
    }

    /// The smallest delta that the curve gives at an epsilon.
    #[must_use]
    pub fn delta(&self, epsilon: f64) -> f64 {
        rdp::delta(&self.orders, &self.divergences, epsilon)
    }
}
