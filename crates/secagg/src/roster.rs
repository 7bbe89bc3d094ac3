//! An agreed key list: who takes part, under which keys, in which graph.

use crate::error::Problem;
use crate::graph::Graph;
use crate::message::{Advertisement, KeyList, MemberSet};
use crate::secret::Party;
use crate::session::{SessionId, Verifier};
use crate::topology::Topology;
use medinet_types::{Digest, SiteId};

/// U1 with all that follows from it; the same for every site and the server.
pub(crate) struct Roster {
    pub(crate) session: SessionId,
    pub(crate) topology: Topology,
    pub(crate) members: Vec<Advertisement>,
    pub(crate) digest: Digest,
    pub(crate) graph: Graph,
}

impl Roster {
    /// The caller has checked order and topology.
    pub(crate) fn new(list: KeyList) -> Self {
        let digest = list.digest();
        // Key lists are bounded to MAX_COHORT members.
        let graph =
            Graph::new(&Self::graph_seed(&digest), list.members.len() as u16, list.topology.neighbours);
        Self { session: list.session, topology: list.topology, members: list.members, digest, graph }
    }

    /// What the graph follows from.
    pub(crate) fn graph_seed(key_list: &Digest) -> Digest {
        Digest::of_parts(&[b"medinet secagg 1 graph", key_list.as_bytes()])
    }

    pub(crate) fn index(&self, site: &SiteId) -> Option<u16> {
        // Ascending by site; fewer than MAX_COHORT.
        self.members.binary_search_by(|member| member.site.cmp(site)).ok().map(|index| index as u16)
    }

    pub(crate) fn site(&self, member: u16) -> &SiteId {
        &self.members[usize::from(member)].site
    }

    pub(crate) fn cipher_party(&self, member: u16) -> Party<'_> {
        let member = &self.members[usize::from(member)];
        (&member.site, &member.cipher_key)
    }

    pub(crate) fn mask_party(&self, member: u16) -> Party<'_> {
        let member = &self.members[usize::from(member)];
        (&member.site, &member.mask_key)
    }

    pub(crate) fn len(&self) -> u16 {
        self.graph.len()
    }

    /// The neighbours of `member` in `set`, ascending.
    pub(crate) fn neighbours_in<'a>(
        &'a self,
        member: u16,
        set: &'a MemberSet,
    ) -> impl Iterator<Item = u16> + 'a {
        self.graph.neighbours(member).iter().copied().filter(|other| set.contains(*other))
    }

    /// The field point at which a site's shares lie.
    pub(crate) fn point(member: u16) -> u16 {
        member + 1
    }

    /// Whether `survivors` can be unmasked, each and all: every survivor, and every site lost after sharing, keeps as many
    /// surviving neighbours as needed. Names the first that does not.
    pub(crate) fn check_survivors(&self, sharers: &MemberSet, survivors: &MemberSet) -> Result<(), Problem> {
        for member in sharers.iter() {
            let expected = if survivors.contains(member) {
                self.graph.neighbours_needed(self.topology.threshold)
            } else {
                self.topology.threshold.into()
            };
            let got = self.graph.neighbours_in(member, survivors);
            if got < expected {
                return Err(Problem::Neighbours { site: self.site(member).clone(), expected, got });
            }
        }
        Ok(())
    }
}

/// Whether an advertisement is signed by the site that it names.
pub(crate) fn check_advertisement(
    advertisement: &Advertisement,
    verifier: &impl Verifier,
) -> Result<(), Problem> {
    let Advertisement { site, credential, signature, .. } = advertisement;
    if verifier.verify(site, credential, &advertisement.signed_bytes(), signature) {
        return Ok(());
    }
    Err(Problem::AdvertisementSignature { site: site.clone() })
}
