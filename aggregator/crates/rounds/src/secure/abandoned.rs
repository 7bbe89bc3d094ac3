//! Sessions that sites have given up, and proof that they can never open.

use medinet_secagg::{Assumptions, SessionId, Verifier as _};
use medinet_types::{Digest, SiteId};
use medinet_wire::secure::{
    Abandonment, AbandonmentCertificate, EnrolledSites, abandonment_bytes, abandonments_needed,
};
use std::collections::BTreeMap;

/// A session as some of its sites saw it: its name, its key list, and how many are in that.
type Seen = (SessionId, Digest, u16);

/// The most sessions of which words are kept from one site. Honest sites have one for each attempt.
const MAX_SESSIONS_PER_SITE: usize = 64;

/// Signed abandonments, by session and site. Kept for as long as the round is open, in memory: sites repeat them.
#[derive(Debug, Default)]
pub(crate) struct Abandonments(BTreeMap<Seen, BTreeMap<SiteId, Word>>);

#[derive(Debug)]
struct Word {
    member: u16,
    signature: Vec<u8>,
    /// Whether the site needs proof before it enters another session.
    committed: bool,
}

impl Abandonments {
    /// Takes a site's word; one whose signature does not hold is nobody's.
    pub(crate) fn add(&mut self, trust: &EnrolledSites<'_>, from: &SiteId, abandonment: Abandonment) {
        let Abandonment { session, key_list, sites, member, committed, credential, signature } = abandonment;
        let seen = (session, key_list, sites);
        let known = self.0.get(&seen).is_some_and(|by| by.contains_key(from));
        let held = self.0.values().filter(|by| by.contains_key(from)).count();
        let bytes = abandonment_bytes(session, &key_list);
        if !known
            && held < MAX_SESSIONS_PER_SITE
            && member < sites
            && trust.verify(from, &credential, &bytes, &signature)
        {
            self.0.entry(seen).or_default().insert(from.clone(), Word { member, signature, committed });
        }
    }

    /// Whether each session into which the site has put its update is shown to be dead.
    pub(crate) fn may_enter(&self, site: &SiteId, assumptions: &Assumptions) -> bool {
        let committed = |by: &BTreeMap<SiteId, Word>| by.get(site).is_some_and(|word| word.committed);
        let mut sessions = self.0.iter().filter(|(_, by)| committed(by));
        sessions.all(|(seen, by)| dead(seen, by.len(), assumptions))
    }

    /// Proof that the sessions into which the site has put its update are dead.
    pub(crate) fn certificates(
        &self,
        site: &SiteId,
        assumptions: &Assumptions,
    ) -> Vec<AbandonmentCertificate> {
        let needed = |by: &BTreeMap<SiteId, Word>| by.get(site).is_some_and(|word| word.committed);
        let dead = self.0.iter().filter(|(seen, by)| needed(by) && dead(seen, by.len(), assumptions));
        let certificate = |((session, key_list, _), by): (&Seen, &BTreeMap<SiteId, Word>)| {
            let abandonments = by.values().map(|word| (word.member, word.signature.clone())).collect();
            AbandonmentCertificate { session: *session, key_list: *key_list, abandonments }
        };
        dead.map(certificate).collect()
    }
}

/// By the least quorum that the session can have had, as its key list is not known any more after a restart; sites count
/// with the real one.
fn dead((_, _, sites): &Seen, abandonments: usize, assumptions: &Assumptions) -> bool {
    let needed = abandonments_needed(*sites, assumptions.corrupt(*sites), assumptions.least_quorum(*sites));
    abandonments >= usize::from(needed)
}
