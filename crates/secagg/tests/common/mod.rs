//! Sites with test identities, and a session driver that loses sites at chosen phases.
#![allow(dead_code, reason = "each test file uses a part")]

use medinet_secagg::server::{self, Aggregate};
use medinet_secagg::site::{Advertised, Agreed, KeysShared, Masked};
use medinet_secagg::{
    Adversary, Assumptions, Error, RingVector, SessionParameters, SignFailure, Signer, SitePolicy, Topology,
    Verifier, Width,
};
use medinet_types::{Digest, FederationId, RoundNumber, SiteId, TaskId};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use std::collections::BTreeMap;

/// A stand-in for the enrolled identity: a keyed hash whose key only this test's sites know. The library sees bytes only.
pub(crate) struct Identity(pub(crate) SiteId);

fn tag(site: &SiteId, message: &[u8]) -> Vec<u8> {
    Digest::of_parts(&[b"test identity key of", site.as_str().as_bytes(), message]).0.to_vec()
}

impl Signer for Identity {
    fn credential(&self) -> Vec<u8> {
        format!("certificate of {}", self.0).into_bytes()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignFailure> {
        Ok(tag(&self.0, message))
    }
}

pub(crate) struct Authority;

impl Verifier for Authority {
    fn verify(&self, site: &SiteId, credential: &[u8], message: &[u8], signature: &[u8]) -> bool {
        credential == format!("certificate of {site}").as_bytes() && signature == tag(site, message)
    }
}

pub(crate) fn site(i: usize) -> SiteId {
    SiteId::new(format!("site-{i:04}")).unwrap()
}

pub(crate) fn parameters(coordinates: u32, bits: u8) -> SessionParameters {
    SessionParameters {
        federation: FederationId::new("test").unwrap(),
        task: TaskId::new("chest").unwrap(),
        round: RoundNumber(7),
        attempt: 1,
        purpose: Digest::of(b"plan"),
        coordinates,
        width: Width::new(bits).unwrap(),
        minimum_sites: 2,
    }
}

/// Nobody colludes: the shape is the test's to choose.
pub(crate) fn trusting() -> SitePolicy {
    let assumptions = Assumptions {
        adversary: Adversary::HonestButCurious,
        corrupt_permille: 0,
        dropout_permille: 0,
        security_bits: 0,
        correctness_bits: 0,
        grinding_bits: 0,
        colluders: 0,
    };
    SitePolicy { minimum_cohort: 2, minimum_survivors: 2, assumptions }
}

pub(crate) fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

pub(crate) fn input(parameters: &SessionParameters, i: usize) -> RingVector {
    let value = move |c: u32| (c ^ 0x5bd1_e995).wrapping_mul(i as u32 * 2 + 1).rotate_left(i as u32 % 31);
    RingVector::from_values(parameters.width, (0..parameters.coordinates).map(value))
}

pub(crate) fn sum(parameters: &SessionParameters, sites: impl Iterator<Item = usize>) -> RingVector {
    let mut total = RingVector::zeros(parameters.width, parameters.coordinates as usize);
    for i in sites {
        let mut packed = Vec::new();
        input(parameters, i).pack_into(&mut packed);
        assert!(total.add_packed(&packed));
    }
    total
}

/// In which phase a site falls silent; the phase's message is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lost {
    Sharing,
    Masking,
    Agreeing,
    Opening,
    Never,
}

pub(crate) const LOSSES: [Lost; 5] =
    [Lost::Sharing, Lost::Masking, Lost::Agreeing, Lost::Opening, Lost::Never];

pub(crate) type Sites<S> = BTreeMap<SiteId, S>;

pub(crate) fn index(site: &SiteId) -> usize {
    site.as_str()[5..].parse().unwrap()
}

pub(crate) struct Shared {
    pub(crate) server: server::Sharing,
    pub(crate) list: medinet_secagg::KeyList,
    pub(crate) sites: Sites<Advertised>,
}

/// Round 0.
pub(crate) fn advertise(
    parameters: &SessionParameters,
    n: usize,
    topology: Topology,
    policy: SitePolicy,
) -> Shared {
    let mut server = server::Advertising::new(parameters.clone()).unwrap();
    let mut sites = Sites::new();
    for i in 0..n {
        let identity = Identity(site(i));
        let (message, state) =
            Advertised::start(parameters.clone(), site(i), policy, &identity, &mut rng(i as u64)).unwrap();
        server.receive(&site(i), message, &Authority).unwrap();
        sites.insert(site(i), state);
    }
    let (list, server) = server.close_with(topology).unwrap();
    Shared { server, list, sites }
}

/// Round 0 among the sites of `present`, with the topology that the server chooses by what sites assume.
pub(crate) fn advertise_some(
    parameters: &SessionParameters,
    present: impl Iterator<Item = usize>,
    policy: SitePolicy,
) -> Result<Shared, Error> {
    let mut server = server::Advertising::new(parameters.clone())?;
    let mut sites = Sites::new();
    for i in present {
        let (message, state) =
            Advertised::start(parameters.clone(), site(i), policy, &Identity(site(i)), &mut rng(i as u64))?;
        server.receive(&site(i), message, &Authority)?;
        sites.insert(site(i), state);
    }
    let (list, server) = server.close(&policy.assumptions)?;
    Ok(Shared { server, list, sites })
}

pub(crate) struct Delivered {
    pub(crate) server: server::Collecting,
    pub(crate) deliveries: BTreeMap<SiteId, medinet_secagg::ShareDelivery>,
    pub(crate) sites: Sites<KeysShared>,
}

/// Round 1.
pub(crate) fn share(from: Shared, alive: impl Fn(usize) -> bool) -> Result<Delivered, Error> {
    let Shared { mut server, list, sites } = from;
    let mut shared = Sites::new();
    for (name, state) in sites.into_iter().filter(|(name, _)| alive(index(name))) {
        let seed = 1_000_000 + index(&name) as u64;
        let (message, state) = state.share_keys(list.clone(), &Authority, &mut rng(seed))?;
        server.receive(&name, message)?;
        shared.insert(name, state);
    }
    let (deliveries, server) = server.close()?;
    Ok(Delivered { server, deliveries: deliveries.into_iter().collect(), sites: shared })
}

pub(crate) struct Collected {
    pub(crate) server: server::Agreeing,
    pub(crate) survivors: medinet_secagg::Survivors,
    pub(crate) sites: Sites<Masked>,
}

/// Round 2.
pub(crate) fn mask(
    parameters: &SessionParameters,
    from: Delivered,
    alive: impl Fn(usize) -> bool,
) -> Result<Collected, Error> {
    let Delivered { mut server, mut deliveries, sites } = from;
    let mut masked = Sites::new();
    for (name, state) in sites.into_iter().filter(|(name, _)| alive(index(name))) {
        // A site that the server left out of U2 gets no delivery.
        let Some(delivery) = deliveries.remove(&name) else { continue };
        let (message, state) = state.mask(delivery, input(parameters, index(&name)))?;
        server.receive(&name, &message)?;
        masked.insert(name, state);
    }
    let (survivors, server) = server.close()?;
    Ok(Collected { server, survivors, sites: masked })
}

pub(crate) struct Signed {
    pub(crate) server: server::Opening,
    pub(crate) list: medinet_secagg::AgreementList,
    pub(crate) sites: Sites<Agreed>,
}

/// Round 3.
pub(crate) fn agree(from: Collected, alive: impl Fn(usize) -> bool) -> Result<Signed, Error> {
    let Collected { mut server, survivors, sites } = from;
    let mut agreed = Sites::new();
    for (name, state) in sites.into_iter().filter(|(name, _)| alive(index(name))) {
        let (message, state) = state.agree(survivors.clone(), &Identity(name.clone()))?;
        server.receive(&name, message, &Authority)?;
        agreed.insert(name, state);
    }
    let (list, server) = server.close()?;
    Ok(Signed { server, list, sites: agreed })
}

/// Round 4.
pub(crate) fn open(from: Signed, alive: impl Fn(usize) -> bool) -> Result<Aggregate, Error> {
    let Signed { mut server, list, sites } = from;
    for (name, state) in sites.into_iter().filter(|(name, _)| alive(index(name))) {
        let (message, _) = state.unmask(list.clone(), &Authority)?;
        server.receive(&name, message)?;
    }
    server.finish()
}

/// A whole session.
pub(crate) fn run(
    parameters: &SessionParameters,
    topology: Topology,
    lost: &[Lost],
) -> Result<Aggregate, Error> {
    let shared = advertise(parameters, lost.len(), topology, trusting());
    let delivered = share(shared, |i| lost[i] > Lost::Sharing)?;
    let collected = mask(parameters, delivered, |i| lost[i] > Lost::Masking)?;
    let signed = agree(collected, |i| lost[i] > Lost::Agreeing)?;
    open(signed, |i| lost[i] > Lost::Opening)
}
