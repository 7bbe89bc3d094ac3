//! A site's part: one struct per state, consumed by its transition.
//!
//! [`Advertised`] → [`KeysShared`] → [`Masked`] → [`Agreed`] → done. A step out of order does not compile; a message that is
//! refused ends the site's part in the session, and its secrets are overwritten. No state can be cloned or stored: a site
//! that restarts in the middle of a session is one of its dropouts and takes part in the next attempt with new
//! keys. (A stored state could be run twice, and a site that signs twice breaks the agreement.)
//!
//! In order, once:
//!
//! ```
//! use medinet_secagg::{AgreementList, Error, Signer, Survivors, Verifier, site::{Agreed, Masked}};
//! fn reveals_once(state: Agreed, list: AgreementList, trust: &impl Verifier) {
//!     let _ = state.unmask(list.clone(), trust);
//! }
//! fn opens(state: Masked, survivors: Survivors, list: AgreementList, own: &impl Signer, trust: &impl Verifier) -> Result<(), Error> {
//!     let (_, state) = state.agree(survivors, own)?;
//!     let (_, _) = state.unmask(list, trust)?;
//!     Ok(())
//! }
//! ```
//!
//! Shares are revealed once, and not before the site has agreed:
//!
//! ```compile_fail,E0382
//! use medinet_secagg::{AgreementList, Verifier, site::Agreed};
//! fn reveals_twice(state: Agreed, list: AgreementList, trust: &impl Verifier) {
//!     let _ = state.unmask(list.clone(), trust);
//!     let _ = state.unmask(list, trust);
//! }
//! ```
//!
//! ```compile_fail,E0599
//! use medinet_secagg::{AgreementList, Verifier, site::Masked};
//! fn reveals_early(state: Masked, list: AgreementList, trust: &impl Verifier) {
//!     let _ = state.unmask(list, trust);
//! }
//! ```

use crate::error::{Error, Problem};
use crate::mask::{Mask, MaskKey, apply_masks};
use crate::message::{
    Advertisement, Agreement, AgreementList, KeyList, KeyShares, MaskedInput, MemberSet, ShareCommitment,
    ShareDelivery, Survivors, Unmasking, agreement_bytes, same_session,
};
use crate::ring::RingVector;
use crate::roster::{Roster, check_advertisement};
use crate::secret::{
    SecretKind, SecretScalar, ShareCipher, agree, commit_share, mask_agreement_key, pair_mask_key,
    self_mask_commitment, self_mask_key,
};
use crate::session::{SessionParameters, Signer, SitePolicy, Verifier};
use crate::shamir;
use medinet_types::SiteId;
use rand_core::CryptoRng;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// A site's secrets: b_u, the seed of s_u^SK, and both X25519 keys.
struct Secrets {
    self_mask_seed: SecretScalar,
    mask_key_seed: SecretScalar,
    mask_key: StaticSecret,
    cipher_key: StaticSecret,
}

/// Keys are advertised; waits for the [`KeyList`].
pub struct Advertised {
    parameters: SessionParameters,
    policy: SitePolicy,
    own: Advertisement,
    secrets: Secrets,
}

/// Shares are dealt; waits for the [`ShareDelivery`] and takes the input.
pub struct KeysShared {
    parameters: SessionParameters,
    policy: SitePolicy,
    roster: Roster,
    me: u16,
    self_mask_seed: SecretScalar,
    own_share: SecretScalar,
    /// What is agreed with each neighbour, ascending.
    neighbours: Vec<Neighbour>,
}

/// What a site has agreed with a neighbour: how to open what it deals, and the mask between them.
struct Neighbour {
    opens: ShareCipher,
    mask_key: MaskKey,
}

/// The masked input is sent; waits for the [`Survivors`].
pub struct Masked {
    policy: SitePolicy,
    minimum_sites: u16,
    roster: Roster,
    me: u16,
    sharers: MemberSet,
    own_share: SecretScalar,
    /// Both shares of each neighbour in U2, ascending.
    shares: Vec<(u16, [SecretScalar; 2])>,
}

/// The participant sets are signed; waits for the [`AgreementList`].
pub struct Agreed {
    roster: Roster,
    sharers: MemberSet,
    survivors: MemberSet,
    own_share: SecretScalar,
    shares: Vec<(u16, [SecretScalar; 2])>,
}

/// What takes part in the sum, as a site saw it; the site keeps no secret any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// The sites whose inputs are in the sum, ascending.
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
opaque_debug!(Advertised, KeysShared, Masked, Agreed);

impl Advertised {
    /// Round 0: makes fresh keys and signs them (Bonawitz et al. 2017, figure 4, "Round 0"; Bell et al. 2020,
    /// algorithm 2, steps 1 and 2).
    ///
    /// # Errors
    /// When the parameters are out of range or fall short of the site's policy, or the identity key refuses to sign.
    pub fn start(
        parameters: SessionParameters,
        site: SiteId,
        policy: SitePolicy,
        signer: &impl Signer,
        rng: &mut impl CryptoRng,
    ) -> Result<(Advertisement, Self), Error> {
        parameters.check()?;
        let session = parameters.id();
        let self_mask_seed = SecretScalar::random(rng);
        let mask_key_seed = SecretScalar::random(rng);
        let mask_key = mask_agreement_key(session, &mask_key_seed);
        let mut bytes = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *bytes);
        let cipher_key = StaticSecret::from(*bytes);
        let mut own = Advertisement {
            session,
            cipher_key: PublicKey::from(&cipher_key).to_bytes(),
            mask_key: PublicKey::from(&mask_key).to_bytes(),
            self_mask: self_mask_commitment(session, &site, &self_mask_seed),
            credential: signer.credential(),
            signature: Vec::new(),
            site,
        };
        own.signature = signer.sign(&own.signed_bytes()).map_err(|e| Error::environment(e.into()))?;
        let secrets = Secrets { self_mask_seed, mask_key_seed, mask_key, cipher_key };
        Ok((own.clone(), Self { parameters, policy, own, secrets }))
    }

    /// Round 1: checks every key and the session's shape, and deals shares of both secrets to the neighbours
    /// (Bonawitz et al. 2017, figure 4, "Round 1"; Bell et al. 2020, algorithm 2, steps 3 to 5).
    ///
    /// # Errors
    /// When a signature does not hold, the cohort or its shape falls short of the site's policy, or a key is weak.
    pub fn share_keys(
        self,
        list: KeyList,
        verifier: &impl Verifier,
        rng: &mut impl CryptoRng,
    ) -> Result<(KeyShares, KeysShared), Error> {
        let session = self.parameters.id();
        same_session(session, list.session, Error::server)?;
        let fewest = self.policy.minimum_cohort.max(self.parameters.minimum_sites).max(2);
        if list.members.len() < usize::from(fewest) {
            let (what, expected) = ("advertised keys", format!("at least {fewest} sites"));
            return Err(Error::server(Problem::Count { what, expected, got: list.members.len() }));
        }
        if !list.members.windows(2).all(|pair| pair[0].site < pair[1].site) {
            return Err(Error::server(Problem::MemberOrder));
        }
        // Messages are bounded to MAX_COHORT when decoded; a list that was not decoded is bounded here.
        let n = u16::try_from(list.members.len()).unwrap_or(u16::MAX).min(crate::MAX_COHORT);
        if list.members.len() > usize::from(n) {
            let (what, expected) = ("advertised keys", format!("at most {n} sites"));
            return Err(Error::server(Problem::Count { what, expected, got: list.members.len() }));
        }
        list.topology.check(n, &self.policy.assumptions).map_err(Error::server)?;
        for member in &list.members {
            if member.site == self.own.site {
                if *member != self.own {
                    return Err(Error::server(Problem::OwnAdvertisement));
                }
                continue;
            }
            // The server has seen the same signature: passing on one that does not hold is its doing.
            same_session(session, member.session, Error::server)?;
            check_advertisement(member, verifier).map_err(Error::server)?;
        }
        let roster = Roster::new(list);
        let me = roster.index(&self.own.site).ok_or_else(|| Error::server(Problem::OwnAdvertisement))?;
        let (message, own_share, neighbours) = deal(&roster, me, &self.secrets, rng)?;
        let Self { parameters, policy, secrets: Secrets { self_mask_seed, .. }, .. } = self;
        let state = KeysShared { parameters, policy, roster, me, self_mask_seed, own_share, neighbours };
        Ok((message, state))
    }
}

/// Shares of both secrets for all neighbours, sealed; our own share of b_u; and what is agreed with each neighbour.
fn deal(
    roster: &Roster,
    me: u16,
    secrets: &Secrets,
    rng: &mut impl CryptoRng,
) -> Result<(KeyShares, SecretScalar, Vec<Neighbour>), Error> {
    let session = roster.session;
    let neighbours = roster.graph.neighbours(me);
    let threshold = usize::from(roster.topology.threshold);
    let points = || neighbours.iter().chain([&me]).map(|member| Roster::point(*member));
    let mut self_mask = shamir::share(&secrets.self_mask_seed, threshold, points(), rng);
    let mask_key = shamir::share(&secrets.mask_key_seed, threshold, points(), rng);
    let own_share = self_mask.pop().expect("one share for each neighbour and one for this site");
    let commit = |to: u16, kind, share: &SecretScalar| -> ShareCommitment {
        commit_share(session, roster.site(me), roster.site(to), kind, share.as_bytes())
    };
    let mut shares = Vec::with_capacity(neighbours.len());
    let mut agreed = Vec::with_capacity(neighbours.len());
    for ((&to, self_mask), mask_key) in neighbours.iter().zip(&self_mask).zip(&mask_key) {
        let (own, their) = (roster.cipher_party(me), roster.cipher_party(to));
        let secret = agree(&secrets.cipher_key, their.1).ok_or_else(|| weak_key(roster, to))?;
        let cipher = ShareCipher::new(session, &roster.digest, &secret, own, their);
        let opens = ShareCipher::new(session, &roster.digest, &secret, their, own);
        let (own, their) = (roster.mask_party(me), roster.mask_party(to));
        let key = pair_mask_key(session, &secrets.mask_key, own, their);
        agreed.push(Neighbour { opens, mask_key: key.ok_or_else(|| weak_key(roster, to))? });
        let commitments =
            [commit(to, SecretKind::SelfMask, self_mask), commit(to, SecretKind::MaskAgreement, mask_key)];
        shares.push(cipher.seal([self_mask, mask_key], commitments));
    }
    let own = commit(me, SecretKind::SelfMask, &own_share);
    Ok((KeyShares { session, shares, own }, own_share, agreed))
}

fn weak_key(roster: &Roster, member: u16) -> Error {
    let site = roster.site(member);
    Error::site(site, Problem::WeakKey { site: site.clone() })
}

impl KeysShared {
    /// Round 2: opens the neighbours' shares and masks the input: y_u = x_u + PRG(b_u) + sum of PRG(s_{u,v}) over neighbours v in U2,
    /// subtracted for v before u (Bonawitz et al. 2017, figure 4, "Round 2"; Bell et al. 2020, algorithm 2, steps 6 and
    /// 7). Returns an encoded [`MaskedInput`].
    ///
    /// The input is masked in place, so that no copy of it is left.
    ///
    /// # Errors
    /// When the input has another length or width than the session, a share does not open or is not the committed one, or
    /// too few sites have shared.
    pub fn mask(self, delivery: ShareDelivery, mut input: RingVector) -> Result<(Vec<u8>, Masked), Error> {
        let Self { parameters, policy, roster, me, self_mask_seed, own_share, neighbours } = self;
        let session = roster.session;
        same_session(session, delivery.session, Error::server)?;
        if input.len() != parameters.len() || input.width() != parameters.width {
            return Err(Error::caller(Problem::Input {
                expected: format!(
                    "{} coordinates of {} bits",
                    parameters.coordinates,
                    parameters.width.bits()
                ),
                got: format!("{} coordinates of {} bits", input.len(), input.width().bits()),
            }));
        }
        let sharers = delivery.sharers;
        check_set("set of sharers", &roster, me, &sharers)?;
        let fewest = policy.minimum_survivors.max(parameters.minimum_sites).max(roster.topology.quorum);
        check_count("sites that shared keys", fewest, sharers.len())?;
        // Also with everyone in U2 surviving, the sum must be removable of masks.
        roster.check_survivors(&sharers, &sharers).map_err(Error::server)?;
        let dealers: Vec<u16> = roster.neighbours_in(me, &sharers).collect();
        if delivery.shares.len() != dealers.len() {
            let (what, expected) = ("delivered shares", dealers.len().to_string());
            return Err(Error::server(Problem::Count { what, expected, got: delivery.shares.len() }));
        }
        let mut shares = Vec::with_capacity(dealers.len());
        let mut masks = Vec::with_capacity(dealers.len() + 1);
        let own_key = self_mask_key(session, roster.site(me), &self_mask_seed);
        masks.push(Mask::new(&own_key, false));
        for (&dealer, sealed) in dealers.iter().zip(&delivery.shares) {
            let place = roster.graph.neighbours(me).binary_search(&dealer);
            let agreed = &neighbours[place.expect("a dealer is a neighbour")];
            let (site, own) = (roster.site(dealer), roster.site(me));
            let opened = agreed
                .opens
                .open(sealed)
                .ok_or_else(|| Error::site(site, Problem::SealedShare { site: site.clone() }))?;
            for (kind, (share, commitment)) in [SecretKind::SelfMask, SecretKind::MaskAgreement]
                .into_iter()
                .zip(opened.iter().zip(sealed.commitments))
            {
                if commit_share(session, site, own, kind, share.as_bytes()) != commitment {
                    return Err(Error::site(site, Problem::ShareCommitment { dealer: site.clone() }));
                }
            }
            shares.push((dealer, opened));
            masks.push(Mask::new(&agreed.mask_key, subtracts(me, dealer)));
        }
        // Its secrets are of no more use, whatever becomes of the message.
        drop((self_mask_seed, neighbours));
        apply_masks(&mut input, &masks);
        let mut message = MaskedInput::header(session);
        message.reserve_exact(parameters.payload_bytes());
        input.pack_into(&mut message);
        let minimum_sites = parameters.minimum_sites;
        Ok((message, Masked { policy, minimum_sites, roster, me, sharers, own_share, shares }))
    }
}

/// Whether `site` subtracts the mask that it shares with `other`; the other then adds it.
pub(crate) fn subtracts(site: u16, other: u16) -> bool {
    other < site
}

fn check_set(what: &'static str, roster: &Roster, me: u16, set: &MemberSet) -> Result<(), Error> {
    let contradiction = |why| Err(Error::server(Problem::Set { what, why }));
    if !set.fits(roster.len()) {
        return contradiction("it is not a set of the sites in the key list");
    }
    if !set.contains(me) {
        return contradiction("it lacks this site, which has done its part");
    }
    Ok(())
}

fn check_count(what: &'static str, fewest: u16, got: usize) -> Result<(), Error> {
    if got >= usize::from(fewest) {
        return Ok(());
    }
    Err(Error::server(Problem::Count { what, expected: format!("at least {fewest}"), got }))
}

impl Masked {
    /// Round 3: checks whose inputs are in the sum, and signs keys and sets (Bonawitz et al. 2017, figure 4, "Round 3,
    /// consistency check"). A site signs one pair of sets in a session, and no other.
    ///
    /// # Errors
    /// When the sets contradict each other, are too small, or leave a site that could not be unmasked or would stand alone; or
    /// the identity key refuses to sign.
    pub fn agree(self, survivors: Survivors, signer: &impl Signer) -> Result<(Agreement, Agreed), Error> {
        let Self { policy, minimum_sites, roster, me, sharers, own_share, shares } = self;
        same_session(roster.session, survivors.session, Error::server)?;
        let survivors = survivors.survivors;
        check_set("set of survivors", &roster, me, &survivors)?;
        if !survivors.is_subset(&sharers) {
            let (what, why) = ("set of survivors", "it holds a site that did not share its keys");
            return Err(Error::server(Problem::Set { what, why }));
        }
        let fewest = policy.minimum_survivors.max(minimum_sites).max(roster.topology.quorum);
        check_count("sites whose inputs are in the sum", fewest, survivors.len())?;
        roster.check_survivors(&sharers, &survivors).map_err(Error::server)?;
        let bytes = agreement_bytes(roster.session, &roster.digest, &sharers, &survivors);
        let signature = signer.sign(&bytes).map_err(|e| Error::environment(e.into()))?;
        let message = Agreement { session: roster.session, signature };
        Ok((message, Agreed { roster, sharers, survivors, own_share, shares }))
    }
}

impl Agreed {
    /// Round 4: when a quorum has signed the same sets, reveals for each neighbour the share of the self mask's seed if its
    /// input is in the sum, else of the mask key's seed; never both (Bonawitz et al. 2017, figure 4, "Round 4"; Bell et al. 2020,
    /// algorithm 2, step 9).
    ///
    /// # Errors
    /// When a signature does not hold for the sets that this site signed, or there is no quorum.
    pub fn unmask(self, list: AgreementList, verifier: &impl Verifier) -> Result<(Unmasking, Done), Error> {
        let Self { roster, sharers, survivors, own_share, shares } = self;
        same_session(roster.session, list.session, Error::server)?;
        if !list.agreements.windows(2).all(|pair| pair[0].0 < pair[1].0) {
            return Err(Error::server(Problem::MemberOrder));
        }
        check_count("sites that agreed on the sum", roster.topology.quorum, list.agreements.len())?;
        let bytes = agreement_bytes(roster.session, &roster.digest, &sharers, &survivors);
        for (member, signature) in &list.agreements {
            if !survivors.contains(*member) {
                let (what, why) = ("list of agreements", "it holds a site whose input is not in the sum");
                return Err(Error::server(Problem::Set { what, why }));
            }
            let signer = &roster.members[usize::from(*member)];
            if !verifier.verify(&signer.site, &signer.credential, &bytes, signature) {
                let site = signer.site.clone();
                return Err(Error::server(Problem::AgreementSignature { site }));
            }
        }
        let revealed = shares.iter().map(|(dealer, [self_mask, mask_key])| {
            *(if survivors.contains(*dealer) { self_mask } else { mask_key }).as_bytes()
        });
        let shares = [*own_share.as_bytes()].into_iter().chain(revealed).collect();
        let contributors = survivors.iter().map(|member| roster.site(member).clone()).collect();
        Ok((Unmasking { session: roster.session, shares }, Done { contributors }))
    }
}

#[cfg(test)]
#[path = "arcs.rs"]
mod arcs;
#[cfg(test)]
#[path = "view.rs"]
mod view;
