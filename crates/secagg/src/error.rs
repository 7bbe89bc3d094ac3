//! What can go wrong, and who is at fault.

use crate::SessionId;
use medinet_types::SiteId;

/// Who has to act on an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The aggregator broke the protocol, or somebody in its place: do not retry before a person has looked.
    Server,
    /// This site broke the protocol, or somebody in its place: leave it out of the next attempt.
    Site(SiteId),
    /// The caller of this library misused it: a defect of our own program.
    Caller,
    /// Nobody misbehaved: too many sites were lost, a key refused to sign. Try again.
    Environment,
}

/// An error of the protocol. Nothing secret is in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Error {
    fault: Fault,
    problem: Problem,
}

impl Error {
    pub(crate) fn server(problem: Problem) -> Self {
        Self { fault: Fault::Server, problem }
    }

    pub(crate) fn site(site: &SiteId, problem: Problem) -> Self {
        Self { fault: Fault::Site(site.clone()), problem }
    }

    pub(crate) fn caller(problem: Problem) -> Self {
        Self { fault: Fault::Caller, problem }
    }

    pub(crate) fn environment(problem: Problem) -> Self {
        Self { fault: Fault::Environment, problem }
    }

    /// Who is at fault.
    #[must_use]
    pub fn fault(&self) -> &Fault {
        &self.fault
    }

    /// What is wrong.
    #[must_use]
    pub fn problem(&self) -> &Problem {
        &self.problem
    }
}

/// What is wrong: expected, got, and where it helps, what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Bytes that are no message.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Session parameters out of range.
    #[error("session parameters: {field}: expected {expected}, got {got}")]
    Parameters {
        /// The field.
        field: &'static str,
        /// Its range.
        expected: String,
        /// What it holds.
        got: u64,
    },
    /// No neighbourhood gives the wanted guarantees at this cohort size.
    #[error(
        "no threshold satisfies the assumptions for {sites} sites: lower the dropouts or corruptions assumed"
    )]
    NoTopology {
        /// Sites of the cohort.
        sites: u16,
    },
    /// Too few sites for two of them to be honest: the server shows a list of its own choice, or the cohort is too small for what is assumed.
    #[error(
        "{colluders} sites are assumed to collude with the server, so a key list needs at least {expected}, of which two are honest, got {sites}: \
         look at why the server names so few, wait for a larger cohort, or lower `colluders` or `corrupt_permille` of secure_aggregation in the policy"
    )]
    Colluders {
        /// Sites of the cohort.
        sites: u16,
        /// How many of them may collude.
        colluders: u16,
        /// The fewest sites with two honest ones.
        expected: u16,
    },
    /// The proposed graph, threshold or quorum does not give what the site's policy demands.
    #[error("the key list proposes {what} {got}, this site's policy asks for {expected}")]
    Topology {
        /// Which number.
        what: &'static str,
        /// What is needed.
        expected: String,
        /// What was proposed.
        got: u16,
    },
    /// Another session, round or attempt: a replay, or a mix-up.
    #[error("message of session {got}, expected {expected}")]
    Session {
        /// Ours.
        expected: SessionId,
        /// The message's.
        got: SessionId,
    },
    /// Keys whose signature does not hold.
    #[error("the advertisement of {site} is not signed by that site")]
    AdvertisementSignature {
        /// Who is said to have signed.
        site: SiteId,
    },
    /// The message names another sender than the one who sent it.
    #[error("message that claims to come from {claimed} was sent by {sender}")]
    Sender {
        /// Who the message says.
        claimed: SiteId,
        /// Who sent it.
        sender: SiteId,
    },
    /// A sender that is not in the cohort, or not in it any more.
    #[error("{site} is not among the sites of this phase")]
    NotMember {
        /// Who.
        site: SiteId,
    },
    /// A second message of one kind from one site.
    #[error("a second message of this phase from {site}; the first one counts")]
    Duplicate {
        /// Who.
        site: SiteId,
    },
    /// Fewer or more sites than allowed.
    #[error("{what}: expected {expected}, got {got}")]
    Count {
        /// What is counted.
        what: &'static str,
        /// How many were expected.
        expected: String,
        /// How many there are.
        got: usize,
    },
    /// Members out of order, or twice.
    #[error("expected members in ascending order, each once")]
    MemberOrder,
    /// Our own entry is missing from, or changed in, the key list.
    #[error("expected our own advertisement in the key list as we signed it")]
    OwnAdvertisement,
    /// A public key of small order, with which no secret can be agreed.
    #[error("the keys of {site} agree on no secret (a point of small order)")]
    WeakKey {
        /// Whose key.
        site: SiteId,
    },
    /// A sealed share that its recipient cannot open: other keys, other session, other direction, or damage.
    #[error("the share from {site} does not open under the agreed keys")]
    SealedShare {
        /// Who dealt it.
        site: SiteId,
    },
    /// A share that differs from what its dealer committed to.
    #[error("a share dealt by {dealer} is not the one that its dealer committed to")]
    ShareCommitment {
        /// Who dealt it.
        dealer: SiteId,
    },
    /// A share that is no field element.
    #[error("a share from {site} is no element of the field")]
    NotInField {
        /// Who sent it.
        site: SiteId,
    },
    /// A set that contradicts an earlier one.
    #[error("the {what} contradicts what came before: {why}")]
    Set {
        /// Which set.
        what: &'static str,
        /// The contradiction.
        why: &'static str,
    },
    /// A survivor that could not be unmasked, or would stand too alone in the graph.
    #[error("{site} has {got} surviving neighbours, expected at least {expected}")]
    Neighbours {
        /// Whose neighbours.
        site: SiteId,
        /// How many are needed.
        expected: usize,
        /// How many survive.
        got: usize,
    },
    /// An input of another length or ring.
    #[error("input: expected {expected}, got {got}")]
    Input {
        /// Coordinates and width of the session.
        expected: String,
        /// Those of the input.
        got: String,
    },
    /// A signature under the participant sets that does not hold: the sender saw other sets, or forged.
    #[error("the signature of {site} does not cover the participant sets that we know")]
    AgreementSignature {
        /// Who is said to have signed.
        site: SiteId,
    },
    /// Too few shares arrived to remove a mask. The aggregate stays masked and reveals nothing.
    #[error(
        "expected {expected} shares of the secret of {dealer}, got {got}: the round is lost, start another attempt"
    )]
    TooFewShares {
        /// Whose secret.
        dealer: SiteId,
        /// The threshold.
        expected: usize,
        /// How many came.
        got: usize,
    },
    /// The shares are as committed, but the secret is not the one advertised.
    #[error("the shares dealt by {dealer} do not make the secret that it advertised")]
    Secret {
        /// Who dealt them.
        dealer: SiteId,
    },
    /// The identity key could not sign.
    #[error(transparent)]
    Signing(#[from] crate::SignFailure),
}

/// Bytes that are no message of this protocol version; the sender is at fault, or its version is another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Another protocol version.
    #[error(
        "expected secure aggregation version {expected}, got {got}: update the older of the two programs"
    )]
    Version {
        /// Ours.
        expected: u8,
        /// Theirs.
        got: u8,
    },
    /// Another kind of message.
    #[error("expected a {expected}, got a message of kind {got}")]
    Kind {
        /// What was expected.
        expected: &'static str,
        /// The kind byte received.
        got: u8,
    },
    /// Too short, too long, or out of range inside.
    #[error("expected a {what}, got bytes that do not decode")]
    Malformed {
        /// What was expected.
        what: &'static str,
    },
}
