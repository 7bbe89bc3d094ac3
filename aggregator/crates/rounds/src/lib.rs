//! A task's rounds as a state machine without I/O: what the aggregator does about each message, each arrived
//! update and each passing of a deadline, and what it must remember so that a kill at any moment changes nothing.
//!
//! A [`Coordinator`] takes an [`Input`] and the time and returns [`Effect`]s for its host to carry out one after the
//! other. It owns no socket, file, clock or randomness, so thousands of disturbed federations run in one test.
//!
//! ```text
//! Unstarted --Start--> Training --enough updates--> Training ... --> Evaluating --verdict--> Finished
//!                       |  ^ \--deadline, too few--> (extended, then) Paused --Start--> Training
//!                       kill, restart
//!                       v  |
//!                      Rebuilding (kept updates are summed again)
//! ```
//!
//! A training round whose plan asks for secure aggregation takes another way to the same end: sites say that they are ready, sessions of
//! `medinet_secagg` are held among them until one gives a sum, and the sum's mean moves the model. See [`Coordinator::trusting`], without which no
//! site's signature holds inside a session. After the planned number of sessions without a sum the round ends without a model
//! ([`PauseReason::NoSum`]) and another is opened on the same model, [`TaskPlan::max_repeats`] times in a row; then the operator's start opens it.
//!
//! ```text
//! Training --ready--> Aggregating --sum--> Training ...
//!     ^                   |
//!     \-- failed, kill ---/  at most max_attempts times, then Paused --Start--> Training, a new round
//! ```
//!
//! With groups ([`GroupRule`]) an attempt is a session for each of several random groups, and a rule over the groups' means, which
//! withstands some bad ones, moves the model. See [`Coordinator::dealing`], without which nobody is dealt out.
//!
//! # What survives a kill, and how
//!
//! * [`Effect::Persist`] is one transaction: the whole state and the ledger records that belong to the change. Effects
//!   before it (storing a blob named by its content) may happen twice without harm; effects after it (answers,
//!   announcements) are lost in a kill and are said again, because sites repeat what is unanswered and
//!   [`Input::Restarted`] repeats what is announced. If an effect fails, the host stops and resumes from its store.
//! * An update counts from the moment the `Persist` that names it is durable, and only then is the site told so.
//!   The sum itself is not stored: it is 8 bytes per parameter, and writing it once per update would cost some twenty times the
//!   bytes of a 4-bit update. Instead the accepted update stays in the blob store, where the transfer put it anyway, until its round
//!   closes; after a restart each is loaded and added again ([`Effect::LoadUpdate`]), one in memory at a time.
//!   The sum is exact, so the order does not matter and the model comes out the same bit by bit.
//! * What a site must do for this to hold: repeat a contribution until `Accepted` or `Refused` comes; keep an update until a later
//!   round is announced; and when the same round is announced with a later deadline (extended, continued after a pause,
//!   or reopened because a disk lost an update), repeat its contribution, even one that was answered. Who counts is
//!   told so at once, by one message; who does not, has another chance.
//! * In memory are the base model, what the way down owes it, and one accumulator, however many sites take part; with groups, one for
//!   each group.

mod cohort;
mod coordinator;
mod downlink;
mod effect;
mod evaluate;
mod groups;
mod optimizer;
mod phase;
mod plan;
mod privacy;
mod record;
mod secure;
mod snapshot;
mod sum;
#[cfg(test)]
mod tests;
mod train;

pub use cohort::Tally;
pub use coordinator::{Coordinator, Progress, Stage};
pub use effect::{Commit, Effect, Input, Release};
pub use groups::GroupRule;
pub use medinet_robust::{NormLimit, Rule, Weiszfeld};
pub use optimizer::ServerOptimizer;
pub use plan::{InitialModel, ReleaseRule, TaskPlan, TaskPlanError};
pub use record::{Contribution, Measured, Outcome, PauseReason, RejectionReason, RoundRecord, Verdict};
pub use snapshot::{ResumeError, Snapshot, SnapshotError};
