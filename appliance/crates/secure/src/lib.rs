//! A site's part in rounds with secure aggregation, without I/O: what it says when, what it refuses, what it must remember.
//!
//! A [`Participant`] stands for one site in one round, from the moment it has trained. It takes what the aggregator says and the time, and returns
//! [`Output`]s for its host to carry out in order. What leaves the site are the messages of `medinet_wire::secure`, and of the update
//! itself one thing only: a [`MaskedUpdate`], which nothing but the protocol makes.
//!
//! ```text
//! Ready --Begin--> Advertised --Keys--> Shared --Shares--> Masked --Survivors--> Agreed --Agreements--> Unmasked --Accepted--> counted
//!   ^                   |                 |                  |                     |                       |
//!   \--- Abandon, faults, time over ------+------------------/                     \-- Abandon, restart ---+--> Spent
//! ```
//!
//! # What it refuses
//!
//! * Rounds whose plan falls short of the hospital's policy: cohort, survivors, assumptions ([`Refusal`]).
//! * In a session everything that `medinet_secagg::site` refuses: keys that enrolled identities have not signed, thresholds other than
//!   the announced assumptions ask for, sets that contradict each other.
//! * A second set of keys in one session, and a second session for the same update, unless its attempt is higher, the earlier one is given up here, and, where the site had sent
//!   a masked input in it, a certificate shows that it can never open (`medinet_wire::secure`, "Two attempts, one input").
//!
//! # What survives a kill
//!
//! Secrets do not: a restart is a dropout. [`Memory`] does: the newest attempt that the site has entered, into which sessions the update was put,
//! under which key list, whether the site agreed to their sums, and whether it has stopped because the aggregator broke the protocol.
//! [`Output::Persist`] comes before the message that makes it true is sent, so a site never forgets what it has said. All attempts of a round are
//! made with the same [`SecureUpdate`](medinet_update::SecureUpdate), kept on the site's disk: attempts that do not open reveal nothing about it,
//! and of those that a site has put it into at most one opens.

mod memory;
mod participant;

pub use memory::{Memory, MemoryError};
pub use participant::{Input, MaskedUpdate, Output, Participant, Refusal, Setup, Standing, Word};
