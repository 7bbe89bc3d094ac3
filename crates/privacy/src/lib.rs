//! Differential privacy for patients: what a round costs, the noise that pays for it, and the budget that it is
//! charged to.
//!
//! # What is claimed
//!
//! A mechanism M is (epsilon, delta)-differentially private when for all neighbouring data sets A and A' and all sets
//! of outputs S P(M(A) in S) <= e^epsilon P(M(A') in S) + delta. **Neighbours** differ by one patient of one site,
//! added or removed with all of their images. M is everything that leaves the site for one task: all rounds,
//! composed.
//!
//! # Where to check it
//!
//! | what | where | source |
//! |---|---|---|
//! | Rényi divergence of the Poisson-subsampled Gaussian, integer and fractional orders | `rdp` | Mironov, Talwar, Zhang 2019, section 3.3, theorem 5 |
//! | divergence to (epsilon, delta) | `rdp` | Canonne, Kamath, Steinke 2020, proposition 12; Balle et al. 2020, theorem 21 |
//! | Gaussian mechanism, exact | `gaussian` | Balle, Wang 2018, theorem 8 |
//! | privacy loss distributions: dominating pairs, grid, composition, error terms | `pld` | Zhu, Dong, Wang 2022; Doroshenko et al. 2022; Koskela et al. 2020 |
//! | discrete Gaussian and Laplace, exact | [`noise`] | Canonne, Kamath, Steinke 2020, algorithms 1 to 3 |
//! | Gaussian noise in floating point | [`noise::GaussianNoise`] | Mironov 2012; Prest 2017 |
//! | noise inside secure aggregation: rounding, sums of discrete Gaussians, dropouts | [`DistributedPlan`] | Kairouz, Liu, Steinke 2021 |
//! | private training: sampling, clipping, noise, normalisation; exact sums | [`DpSgdPlan`]; [`GradientSum`] | Abadi et al. 2016; Casacuberta et al. 2022 |
//! | the budget: reserve, settle, restore | [`PrivacyBudget`] | |
//!
//! `docs/privacy.md` says what the claim means for a hospital and what it rests on.
//!
//! # Rules of the house
//!
//! Bounds err upward: where a number is approximated, the error is on the side of a larger epsilon, and no failed
//! computation (a NaN, a grid that does not fit) passes for privacy. Nothing here reads a clock, a file or the
//! system's randomness; every generator is an argument and has to be cryptographic (`CryptoRng`), seeded with secret
//! entropy and never used twice.
//!
//! # A site's round
//!
//! ```
//! use medinet_privacy::*;
//! use medinet_types::{RoundNumber, UnixMillis};
//!
//! // The site's policy, once per task.
//! let limit = PrivacyLimit { epsilon: Epsilon::new(8.0)?, delta: Delta::new(1e-5)? };
//! let mut budget =
//!     PrivacyBudget::open("north".parse()?, "pneumonia".parse()?, limit, Accounting::Tight, UnixMillis(0));
//!
//! // The round's plan, as announced.
//! let share = PrivacyLimit { epsilon: Epsilon::new(2.0)?, delta: Delta::new(1e-5)? };
//! let plan = DpSgdPlan::for_target(&share, 1.0, SamplingRate::new(0.05)?, 100)?;
//! plan.check()?;
//!
//! // Charged before anything runs; `budget.encode()` goes to the disk here.
//! let reservation = budget.reserve(RoundNumber(1), &plan.event(), UnixMillis(1))?;
//!
//! // ... each step: PatientGroups::sample, gradients per patient, clip_factor, their weighted sum, GaussianNoise::add_to, divide by
//! // plan.expected_patients(...).
//!
//! budget.settle(reservation, plan.steps, UnixMillis(2))?;
//! assert!(budget.spent() <= 2.0 && budget.left() >= 6.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

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
    BudgetCheckpoint, BudgetEntry, BudgetError, BudgetRecord, Price, PrivacyBudget, PrivacyReport,
    Reservation, RestoreError,
};
pub use calibrate::{CalibrationError, noise_multiplier_for, runs_within};
pub use distributed::{DistributedGaussian, DistributedPlan, Protected, SiteNoise};
pub use dpsgd::{DpSgdPlan, GradientSum, PatientGroups, PlanError, SamplingThreshold, SumError, clip_factor};
pub use event::Event;
pub use units::{Delta, Epsilon, NoiseMultiplier, ParameterError, PrivacyLimit, SamplingRate};
