//! The server's part: one struct per phase, consumed when the phase closes.
//!
//! [`Advertising`] → [`Sharing`] → [`Collecting`] → [`Agreeing`] → [`Opening`] → [`Aggregate`]. Within a phase messages come in any order;
//! one that is refused changes nothing, and its error names who is at fault. The caller owns time: it closes a phase when
//! all have answered or a deadline has passed.
//!
//! **Memory.** One vector, whatever the number of sites: a masked input is added when it comes and not kept. Besides, with n sites, k neighbours each and
//! the threshold t, in bytes, and for 1,000 sites under the default assumptions (k = 328, t = 226, a fifth lost):
//!
//! | what | while | bytes | MB |
//! |---|---|---|---|
//! | the sum of d coordinates | from round 2 | 2 d up to w = 16, else 4 d | 2 for a million |
//! | sealed shares | round 1, until the caller has sent the deliveries | 112 n k | 36.7 |
//! | commitments to the shares | from the end of round 1 | 32 n k + 16 n | 10.5 |
//! | the graph | always | 2 n k | 0.7 |
//! | revealed shares | round 4 | at most 34 n t | 7.7 |
//! | keys of masks | [`Opening::finish`] | 33 for each of n - l + l k masks at most, l sites being lost | 2.2 |
//! | key schedules of AES | [`Opening::finish`] | about 500 for each of 256 masks, twice that without AES instructions | 0.1 |
//!
//! So the peak is in round 1, and does not depend on the vector. The key list is n advertisements, each below 5 kB with its certificate.
//!
//! `from` is the sender whom the carrier has proven, for instance by a signed envelope.

use crate::error::{Error, Problem};
use crate::mask::{Mask, MaskKey, apply_masks_at_server};
use crate::message::{
    Advertisement, Agreement, AgreementList, KeyList, KeyShares, MaskedInput, MemberSet, SealedShares,
    ShareCommitment, ShareDelivery, Survivors, Unmasking, agreement_bytes, same_session,
};
use crate::ring::RingVector;
use crate::roster::{Roster, check_advertisement};
use crate::secret::{
    SecretKind, SecretScalar, commit_share, mask_agreement_key, pair_mask_key, self_mask_commitment,
    self_mask_key,
};
use crate::session::{SessionId, SessionParameters, Verifier};
use crate::shamir;
use crate::site::subtracts;
use crate::topology::{Assumptions, MAX_COHORT, Topology};
use medinet_types::SiteId;
use std::collections::BTreeMap;

/// How many masks are ready to expand at a time: the key schedule of AES-256 is fifteen times its key, and where a fifth of a thousand sites is
/// lost, all of them would be tens of megabytes. So many stay in the second-level cache, and the sum is passed over once for all of them.
const MASKS_AT_ONCE: usize = 256;

/// Round 0: collects keys.
#[derive(Debug)]
pub struct Advertising {
    parameters: SessionParameters,
    session: SessionId,
    members: BTreeMap<SiteId, Advertisement>,
}

/// Round 1: collects sealed shares.
pub struct Sharing {
    parameters: SessionParameters,
    roster: Roster,
    shares: BTreeMap<u16, KeyShares>,
}

/// What is kept of a dealer's [`KeyShares`] once the sealed shares have gone to their recipients: what revealed shares are checked against.
struct Dealt {
    /// Of the share that the dealer keeps.
    own: ShareCommitment,
    /// For each neighbour, ascending, by [`SecretKind`].
    commitments: Vec<[ShareCommitment; 2]>,
}

/// Round 2: adds masked inputs as they come.
pub struct Collecting {
    parameters: SessionParameters,
    roster: Roster,
    dealt: BTreeMap<u16, Dealt>,
    sharers: MemberSet,
    survivors: MemberSet,
    sum: RingVector,
}

/// Round 3: collects signatures over the participant sets.
pub struct Agreeing {
    roster: Roster,
    dealt: BTreeMap<u16, Dealt>,
    sharers: MemberSet,
    survivors: MemberSet,
    sum: RingVector,
    signed: Vec<u8>,
    agreements: BTreeMap<u16, Vec<u8>>,
}

/// Round 4: collects revealed shares.
pub struct Opening {
    roster: Roster,
    dealt: BTreeMap<u16, Dealt>,
    sharers: MemberSet,
    survivors: MemberSet,
    sum: RingVector,
    agreed: MemberSet,
    answered: MemberSet,
    revealed: BTreeMap<u16, Vec<(u16, SecretScalar)>>,
}

/// The sum over Z/2^w of the contributors' inputs: all that the server learns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aggregate {
    /// The sum.
    pub sum: RingVector,
    /// Whose inputs are in it, ascending.
    pub contributors: Vec<SiteId>,
}

macro_rules! opaque_debug {
    ($($state:ident),*) => {$(
        impl std::fmt::Debug for $state {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($state), "(..)"))
            }
        }
    )*};
}
opaque_debug!(Sharing, Collecting, Agreeing, Opening);

/// The index of a sender who takes part in this phase.
fn member_in(roster: &Roster, phase: &MemberSet, from: &SiteId) -> Result<u16, Error> {
    let member = roster.index(from).filter(|member| phase.contains(*member));
    member.ok_or_else(|| Error::site(from, Problem::NotMember { site: from.clone() }))
}

fn duplicate(from: &SiteId) -> Error {
    Error::site(from, Problem::Duplicate { site: from.clone() })
}

fn enough(what: &'static str, fewest: u16, got: usize) -> Result<(), Error> {
    if got >= usize::from(fewest) {
        return Ok(());
    }
    Err(Error::environment(Problem::Count { what, expected: format!("at least {fewest}"), got }))
}

/// The sites of a set that have not answered.
fn missing(roster: &Roster, phase: &MemberSet, answered: impl Fn(u16) -> bool) -> Vec<SiteId> {
    phase.iter().filter(|member| !answered(*member)).map(|member| roster.site(member).clone()).collect()
}

impl Advertising {
    /// Opens a session.
    ///
    /// # Errors
    /// When the parameters are out of range; the caller is at fault.
    pub fn new(parameters: SessionParameters) -> Result<Self, Error> {
        parameters.check()?;
        let session = parameters.id();
        Ok(Self { parameters, session, members: BTreeMap::new() })
    }

    /// Takes a site's keys.
    ///
    /// # Errors
    /// Blames `from`, and leaves the phase as it was.
    pub fn receive(
        &mut self,
        from: &SiteId,
        advertisement: Advertisement,
        verifier: &impl Verifier,
    ) -> Result<(), Error> {
        let blame = |problem| Error::site(from, problem);
        same_session(self.session, advertisement.session, blame)?;
        if advertisement.site != *from {
            let (claimed, sender) = (advertisement.site, from.clone());
            return Err(Error::site(from, Problem::Sender { claimed, sender }));
        }
        check_advertisement(&advertisement, verifier).map_err(blame)?;
        if self.members.contains_key(from) {
            return Err(duplicate(from));
        }
        if self.members.len() >= usize::from(MAX_COHORT) {
            let (what, expected) = ("sites of a session", format!("at most {MAX_COHORT}"));
            return Err(Error::environment(Problem::Count { what, expected, got: self.members.len() + 1 }));
        }
        self.members.insert(from.clone(), advertisement);
        Ok(())
    }

    /// How many sites have advertised.
    #[must_use]
    pub fn received(&self) -> usize {
        self.members.len()
    }

    /// Closes the phase with the sparsest topology that holds under `assumptions`. The list goes to every site in it.
    ///
    /// # Errors
    /// When fewer sites than the session needs have advertised, or no two besides those that may collude (environment), or no topology holds
    /// (caller).
    pub fn close(self, assumptions: &Assumptions) -> Result<(KeyList, Sharing), Error> {
        enough("sites that advertised keys", self.parameters.minimum_sites, self.members.len())?;
        // Bounded to MAX_COHORT by `receive`.
        let n = self.members.len() as u16;
        assumptions.check_cohort(n).map_err(Error::environment)?;
        let topology = Topology::choose(n, assumptions)?;
        self.close_with(topology)
    }

    /// As [`Advertising::close`], with a topology of the caller's.
    ///
    /// # Errors
    /// When fewer sites than the session needs have advertised, or the topology does not exist.
    pub fn close_with(self, topology: Topology) -> Result<(KeyList, Sharing), Error> {
        enough("sites that advertised keys", self.parameters.minimum_sites, self.members.len())?;
        let n = self.members.len() as u16;
        topology.exists(n).map_err(Error::caller)?;
        let list = KeyList { session: self.session, topology, members: self.members.into_values().collect() };
        let roster = Roster::new(list.clone());
        Ok((list, Sharing { parameters: self.parameters, roster, shares: BTreeMap::new() }))
    }
}

impl Sharing {
    fn everyone(&self) -> MemberSet {
        let mut all = MemberSet::none(self.roster.len());
        (0..self.roster.len()).for_each(|member| all.insert(member));
        all
    }

    /// Takes a site's sealed shares.
    ///
    /// # Errors
    /// Blames `from`, and leaves the phase as it was.
    pub fn receive(&mut self, from: &SiteId, shares: KeyShares) -> Result<(), Error> {
        let member = member_in(&self.roster, &self.everyone(), from)?;
        same_session(self.roster.session, shares.session, |problem| Error::site(from, problem))?;
        let degree = usize::from(self.roster.graph.degree());
        if shares.shares.len() != degree {
            let (what, expected) = ("sealed shares", format!("{degree}, one for each neighbour"));
            return Err(Error::site(from, Problem::Count { what, expected, got: shares.shares.len() }));
        }
        if self.shares.contains_key(&member) {
            return Err(duplicate(from));
        }
        self.shares.insert(member, shares);
        Ok(())
    }

    /// Who has not answered.
    #[must_use]
    pub fn missing(&self) -> Vec<SiteId> {
        missing(&self.roster, &self.everyone(), |member| self.shares.contains_key(&member))
    }

    /// Closes the phase: U2 are the sites that have shared and have enough neighbours that have too. Each gets its own delivery.
    ///
    /// # Errors
    /// When too few are left; the environment is at fault, and nothing about any input has been sent.
    pub fn close(self) -> Result<(Vec<(SiteId, ShareDelivery)>, Collecting), Error> {
        let Self { parameters, roster, mut shares } = self;
        let needed = roster.graph.neighbours_needed(roster.topology.threshold);
        let sharers = loop {
            let mut sharers = MemberSet::none(roster.len());
            shares.keys().for_each(|member| sharers.insert(*member));
            let before = shares.len();
            shares.retain(|member, _| roster.graph.neighbours_in(*member, &sharers) >= needed);
            if shares.len() == before {
                break sharers;
            }
        };
        let fewest = parameters.minimum_sites.max(roster.topology.quorum);
        enough("sites that shared their keys", fewest, shares.len())?;
        let mut delivered: BTreeMap<u16, Vec<SealedShares>> = BTreeMap::new();
        for recipient in sharers.iter() {
            let dealers = roster.graph.neighbours_in(recipient, &sharers);
            delivered.insert(recipient, Vec::with_capacity(dealers));
        }
        // Dealer by dealer, ascending, so that each recipient's shares are in order, and what has been handed on is freed at once.
        let mut dealt = BTreeMap::new();
        while let Some((dealer, KeyShares { own, shares, .. })) = shares.pop_first() {
            let commitments = shares.iter().map(|sealed| sealed.commitments).collect();
            dealt.insert(dealer, Dealt { own, commitments });
            for (recipient, sealed) in roster.graph.neighbours(dealer).iter().zip(shares) {
                if let Some(shares) = delivered.get_mut(recipient) {
                    shares.push(sealed);
                }
            }
        }
        let session = roster.session;
        let deliver = |(recipient, shares)| {
            (roster.site(recipient).clone(), ShareDelivery { session, sharers: sharers.clone(), shares })
        };
        let deliveries = delivered.into_iter().map(deliver).collect();
        let survivors = MemberSet::none(roster.len());
        let sum = RingVector::zeros(parameters.width, parameters.len());
        Ok((deliveries, Collecting { parameters, roster, dealt, sharers, survivors, sum }))
    }
}

impl Collecting {
    /// Adds a site's masked input to the sum; `message` is an encoded [`MaskedInput`].
    ///
    /// # Errors
    /// Blames `from`, and leaves the sum as it was.
    pub fn receive(&mut self, from: &SiteId, message: &[u8]) -> Result<(), Error> {
        let blame = |problem| Error::site(from, problem);
        let member = member_in(&self.roster, &self.sharers, from)?;
        let input = MaskedInput::decode(message).map_err(|e| blame(e.into()))?;
        same_session(self.roster.session, input.session, blame)?;
        if self.survivors.contains(member) {
            return Err(duplicate(from));
        }
        if !self.sum.add_packed(input.payload) {
            let expected = format!("{} bytes with zeros after the last bit", self.parameters.payload_bytes());
            let got = format!("{} bytes", input.payload.len());
            return Err(blame(Problem::Input { expected, got }));
        }
        self.survivors.insert(member);
        Ok(())
    }

    /// Who has not answered.
    #[must_use]
    pub fn missing(&self) -> Vec<SiteId> {
        missing(&self.roster, &self.sharers, |member| self.survivors.contains(member))
    }

    /// Closes the phase. The list goes to every site whose input came.
    ///
    /// # Errors
    /// When too few are left, or one that is left or lost could not be unmasked; the environment is at fault, and the
    /// masked sum, which reveals nothing, is overwritten.
    pub fn close(self) -> Result<(Survivors, Agreeing), Error> {
        let Self { parameters, roster, dealt, sharers, survivors, sum } = self;
        let fewest = parameters.minimum_sites.max(roster.topology.quorum);
        enough("sites whose masked input came", fewest, survivors.len())?;
        roster.check_survivors(&sharers, &survivors).map_err(Error::environment)?;
        let message = Survivors { session: roster.session, survivors: survivors.clone() };
        let signed = agreement_bytes(roster.session, &roster.digest, &sharers, &survivors);
        let agreements = BTreeMap::new();
        Ok((message, Agreeing { roster, dealt, sharers, survivors, sum, signed, agreements }))
    }
}

impl Agreeing {
    /// Takes a site's signature over the participant sets.
    ///
    /// # Errors
    /// Blames `from`, and leaves the phase as it was.
    pub fn receive(
        &mut self,
        from: &SiteId,
        agreement: Agreement,
        verifier: &impl Verifier,
    ) -> Result<(), Error> {
        let member = member_in(&self.roster, &self.survivors, from)?;
        same_session(self.roster.session, agreement.session, |problem| Error::site(from, problem))?;
        let credential = &self.roster.members[usize::from(member)].credential;
        if !verifier.verify(from, credential, &self.signed, &agreement.signature) {
            return Err(Error::site(from, Problem::AgreementSignature { site: from.clone() }));
        }
        if self.agreements.contains_key(&member) {
            return Err(duplicate(from));
        }
        self.agreements.insert(member, agreement.signature);
        Ok(())
    }

    /// Who has not answered.
    #[must_use]
    pub fn missing(&self) -> Vec<SiteId> {
        missing(&self.roster, &self.survivors, |member| self.agreements.contains_key(&member))
    }

    /// Closes the phase. The list goes to every site that has agreed ([`Opening::missing`] names them).
    ///
    /// # Errors
    /// When there is no quorum; the environment is at fault, and nothing has been revealed.
    pub fn close(self) -> Result<(AgreementList, Opening), Error> {
        let Self { roster, dealt, sharers, survivors, sum, agreements, .. } = self;
        enough("sites that agreed on the sum", roster.topology.quorum, agreements.len())?;
        let mut agreed = MemberSet::none(roster.len());
        agreements.keys().for_each(|member| agreed.insert(*member));
        // A quorum proves it; more signatures would only cost the sites time.
        let quorum = agreements.into_iter().take(roster.topology.quorum.into()).collect();
        let list = AgreementList { session: roster.session, agreements: quorum };
        let (answered, revealed) = (MemberSet::none(roster.len()), BTreeMap::new());
        Ok((list, Opening { roster, dealt, sharers, survivors, sum, agreed, answered, revealed }))
    }
}

impl Opening {
    /// Which secret of `dealer` is opened.
    fn kind(&self, dealer: u16) -> SecretKind {
        if self.survivors.contains(dealer) { SecretKind::SelfMask } else { SecretKind::MaskAgreement }
    }

    /// Takes a site's revealed shares, each checked against its dealer's commitment.
    ///
    /// # Errors
    /// Blames `from`, and leaves the phase as it was.
    pub fn receive(&mut self, from: &SiteId, message: Unmasking) -> Result<(), Error> {
        let member = member_in(&self.roster, &self.agreed, from)?;
        let blame = |problem| Error::site(from, problem);
        let roster = &self.roster;
        same_session(roster.session, message.session, blame)?;
        if self.answered.contains(member) {
            return Err(duplicate(from));
        }
        let dealers: Vec<u16> =
            [member].into_iter().chain(roster.neighbours_in(member, &self.sharers)).collect();
        if message.shares.len() != dealers.len() {
            let (what, expected) = ("revealed shares", dealers.len().to_string());
            return Err(blame(Problem::Count { what, expected, got: message.shares.len() }));
        }
        let mut checked = Vec::with_capacity(dealers.len());
        for (&dealer, share) in dealers.iter().zip(message.shares) {
            let kind = self.kind(dealer);
            let promised = &self.dealt[&dealer];
            let commitment = if dealer == member {
                promised.own
            } else {
                let place = roster.graph.neighbours(dealer).binary_search(&member);
                let place = place.expect("neighbourhood is symmetric");
                promised.commitments[place][kind as usize]
            };
            let site = roster.site(dealer);
            if commit_share(roster.session, site, from, kind, &share) != commitment {
                return Err(blame(Problem::ShareCommitment { dealer: site.clone() }));
            }
            let share = SecretScalar::from_bytes(share);
            checked.push((dealer, share.ok_or_else(|| blame(Problem::NotInField { site: from.clone() }))?));
        }
        let threshold = usize::from(roster.topology.threshold);
        let point = Roster::point(member);
        for (dealer, share) in checked {
            // As many as are kept, so that growing leaves no copies behind.
            let shares = self.revealed.entry(dealer).or_insert_with(|| Vec::with_capacity(threshold));
            if shares.len() < threshold {
                shares.push((point, share));
            }
        }
        self.answered.insert(member);
        Ok(())
    }

    /// Who has not answered.
    #[must_use]
    pub fn missing(&self) -> Vec<SiteId> {
        missing(&self.roster, &self.agreed, |member| self.answered.contains(member))
    }

    /// Whether enough has come to unmask; more would change nothing.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.sharers.iter().all(|dealer| self.check_shares(dealer).is_ok())
    }

    fn check_shares(&self, dealer: u16) -> Result<(), Error> {
        let expected = usize::from(self.roster.topology.threshold);
        let got = self.revealed.get(&dealer).map_or(0, Vec::len);
        if got >= expected {
            return Ok(());
        }
        let dealer = self.roster.site(dealer).clone();
        Err(Error::environment(Problem::TooFewShares { dealer, expected, got }))
    }

    /// Keys of the masks that the opened secret of `dealer` explains, and whether to subtract each, so that they are removed.
    fn masks(&self, dealer: u16) -> Result<Vec<(MaskKey, bool)>, Error> {
        let Roster { session, .. } = self.roster;
        let (roster, site) = (&self.roster, self.roster.site(dealer));
        let wrong = || Error::site(site, Problem::Secret { dealer: site.clone() });
        let seed = shamir::reconstruct(&self.revealed[&dealer]);
        let advertised = &roster.members[usize::from(dealer)];
        if self.kind(dealer) == SecretKind::SelfMask {
            if self_mask_commitment(session, site, &seed) != advertised.self_mask {
                return Err(wrong());
            }
            return Ok(vec![(self_mask_key(session, site, &seed), true)]);
        }
        let key = mask_agreement_key(session, &seed);
        if x25519_dalek::PublicKey::from(&key).to_bytes() != advertised.mask_key {
            return Err(wrong());
        }
        let masks = roster.neighbours_in(dealer, &self.survivors).map(|survivor| {
            let mask_key =
                pair_mask_key(session, &key, roster.mask_party(dealer), roster.mask_party(survivor));
            // The survivor has refused weak keys, and it checked this very pair.
            Ok((mask_key.ok_or_else(wrong)?, !subtracts(survivor, dealer)))
        });
        masks.collect()
    }

    /// Opens the secrets, removes the masks, and returns the sum (Bonawitz et al. 2017, figure 4, "Round 4", last step;
    /// Bell et al. 2020, algorithm 2, step 10).
    ///
    /// # Errors
    /// When too few shares have come (environment), or a site dealt shares of another secret than it advertised (that
    /// site). The masked sum, which reveals nothing, is overwritten.
    pub fn finish(mut self) -> Result<Aggregate, Error> {
        self.sharers.iter().try_for_each(|dealer| self.check_shares(dealer))?;
        let dealers: Vec<u16> = self.sharers.iter().collect();
        #[cfg(not(feature = "rayon"))]
        let masks: Result<Vec<_>, Error> = dealers.iter().map(|dealer| self.masks(*dealer)).collect();
        #[cfg(feature = "rayon")]
        let masks: Result<Vec<_>, Error> = {
            use rayon::prelude::*;
            dealers.par_iter().map(|dealer| self.masks(*dealer)).collect()
        };
        let masks = masks?;
        // The shares have done their part.
        drop(std::mem::take(&mut self.revealed));
        let mut keys = masks.iter().flatten();
        loop {
            let batch = keys.by_ref().take(MASKS_AT_ONCE).map(|(key, subtract)| Mask::new(key, *subtract));
            let batch: Vec<Mask> = batch.collect();
            if batch.is_empty() {
                break;
            }
            apply_masks_at_server(&mut self.sum, &batch);
        }
        let contributors = self.survivors.iter().map(|member| self.roster.site(member).clone()).collect();
        Ok(Aggregate { sum: self.sum, contributors })
    }
}
