//! A whole federation on one machine, with the real programs as separate processes: for the demo and the end-to-end
//! tests. Everything lies under one folder and listens on loopback alone.
//!
//! A [`FederationPlan`] says what there is to be; [`Federation::prepare`] enrols the parties and writes the settings file of each
//! program; [`Federation::start`] and [`Federation::kill`] are for one [`Member`] at a time, and [`Federation::follow`] hears what the
//! members say of themselves. Hospitals take their studies from a folder, from an [`orthanc`], or from one behind a [`gateway`].

mod enrolment;
pub mod federation;
pub mod gateway;
mod mosquitto;
pub mod orthanc;
mod plan;
pub mod process;
mod settings;
mod task;

pub use federation::{Federation, FleetStatus, Member, SiteDevice};
pub use plan::{BrokerKind, FederationPlan, Noise, Privacy, SitePlan, Source, Updates};
pub use task::TaskKind;
