//! What a site must not forget about a round.

use medinet_secagg::{Assumptions, KeyList, Message, SessionId, Verifier};
use medinet_types::SiteId;
use medinet_wire::secure::{AbandonmentCertificate, abandonment_bytes, abandonments_needed};
use serde::{Deserialize, Serialize};

/// 2: whether the site has stopped is remembered.
const VERSION: u8 = 2;

/// Into which sessions of one round a site has put its update, and whether it takes part in any further one. The host keeps it beside the update,
/// and gives it back after a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// The newest attempt for which keys were advertised, 0 when none. A site has one set of keys in a session: it does not
    /// enter it again after a restart.
    pub(crate) entered: u32,
    /// Whether the aggregator broke the protocol in this round.
    pub(crate) stopped: bool,
    pub(crate) sessions: Vec<Committed>,
}

/// A session that holds the site's masked input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Committed {
    pub(crate) attempt: u32,
    /// The key list, encoded.
    key_list: Vec<u8>,
    /// Whether the site has signed the participant sets. It then never abandons the session.
    pub(crate) agreed: bool,
}

/// Bytes that are no memory of a round; the disk is at fault. Sit the round out: without it the site cannot know
/// whether its update is in a session already.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected what this site remembers of a secure round, got bytes that do not decode: sit the round out"
)]
pub struct MemoryError;

impl Memory {
    /// For the site's own disk.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_extend(&(self.entered, self.stopped, &self.sessions), vec![VERSION])
            .expect("a list of plain structs always encodes")
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// When the bytes are damaged or of another version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MemoryError> {
        let [VERSION, body @ ..] = bytes else { return Err(MemoryError) };
        match postcard::take_from_bytes::<(u32, bool, Vec<Committed>)>(body) {
            Ok(((entered, stopped, sessions), []))
                if sessions.iter().all(|session| session.list().is_some()) =>
            {
                Ok(Self { entered, stopped, sessions })
            }
            _ => Err(MemoryError),
        }
    }

    /// Whether the site has agreed to a sum, and so enters no other session.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.sessions.iter().any(|session| session.agreed)
    }

    /// Whether the aggregator broke the protocol, so that the site says nothing more in this round.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Whether the site's update is in any session.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        !self.sessions.is_empty()
    }

    pub(crate) fn commit(&mut self, attempt: u32, list: &KeyList) {
        self.sessions.push(Committed { attempt, key_list: list.encode(), agreed: false });
    }

    pub(crate) fn agree(&mut self, attempt: u32) {
        self.sessions.iter_mut().filter(|s| s.attempt == attempt).for_each(|session| session.agreed = true);
    }

    /// Whether every session with the site's update is shown never to open.
    pub(crate) fn all_dead(
        &self,
        certificates: &[AbandonmentCertificate],
        assumptions: &Assumptions,
        verifier: &impl Verifier,
    ) -> bool {
        self.sessions.iter().all(|session| {
            !session.agreed && certificates.iter().any(|c| session.is_dead(c, assumptions, verifier))
        })
    }
}

impl Committed {
    pub(crate) fn list(&self) -> Option<KeyList> {
        KeyList::decode(&self.key_list).ok()
    }

    /// Whether more than n + c - q members have signed that they will never agree. What does not verify is not counted.
    fn is_dead(
        &self,
        certificate: &AbandonmentCertificate,
        assumptions: &Assumptions,
        verifier: &impl Verifier,
    ) -> bool {
        let Some(list) = self.list() else { return false };
        let digest = list.digest();
        if certificate.session != list.session || certificate.key_list != digest {
            return false;
        }
        let Ok(sites) = u16::try_from(list.members.len()) else { return false };
        let bytes = abandonment_bytes(list.session, &digest);
        let mut counted = vec![false; list.members.len()];
        for (member, signature) in &certificate.abandonments {
            let index = usize::from(*member);
            let Some(signer) = list.members.get(index) else { continue };
            if !counted[index] && verifier.verify(&signer.site, &signer.credential, &bytes, signature) {
                counted[index] = true;
            }
        }
        let needed = abandonments_needed(sites, assumptions.corrupt(sites), list.topology.quorum);
        counted.into_iter().filter(|counted| *counted).count() >= usize::from(needed)
    }
}

/// A session that the site has given up, and its place in it.
#[derive(Debug, Clone)]
pub(crate) struct GivenUp {
    pub(crate) session: SessionId,
    pub(crate) key_list: medinet_types::Digest,
    pub(crate) sites: u16,
    pub(crate) member: u16,
    pub(crate) committed: bool,
}

impl GivenUp {
    pub(crate) fn of(list: &KeyList, site: &SiteId, committed: bool) -> Option<Self> {
        let member = list.members.iter().position(|member| member.site == *site)?;
        Some(Self {
            session: list.session,
            key_list: list.digest(),
            sites: u16::try_from(list.members.len()).ok()?,
            member: u16::try_from(member).ok()?,
            committed,
        })
    }
}
