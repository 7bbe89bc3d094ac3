//! Differential privacy.

mod accountant;
mod budget;
mod calibrate;
mod distributed;
mod dpsgd;
mod event;
mod gaussian;
pub mod noise;
mod numeric;
mod pld;
mod rdp;
mod units;

pub use accountant::{Accounting, Composition, RenyiCurve};
pub use budget::{
    BudgetCheckpoint, BudgetEntry, BudgetError, BudgetRecord, Price, PrivacyBudget, PrivacyReport, Reservation, RestoreError,
};
pub use calibrate::{CalibrationError, noise_multiplier_for, runs_within};
pub use distributed::{DistributedGaussian, DistributedPlan, Protected, SiteNoise};
pub use dpsgd::{DpSgdPlan, GradientSum, PatientGroups, PlanError, SamplingThreshold, SumError, clip_factor};
pub use event::Event;
pub use units::{Delta, Epsilon, NoiseMultiplier, ParameterError, PrivacyLimit, SamplingRate};
