//! A whole federation on one machine, with the real programs as separate processes: for the demo and the end-to-end
//! tests. Everything lies under one folder and listens on loopback alone.

pub mod federation;
pub mod orthanc;
pub mod process;
mod task;

pub use federation::{
    BrokerKind, Federation, FederationPlan, FleetStatus, Member, Noise, Privacy, SiteDevice, SitePlan,
    Source, Updates,
};
pub use task::TaskKind;
