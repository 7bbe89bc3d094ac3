//! A session of secure aggregation from its first message to the sum, with all sites in this process and the server in another
//! ([`super::secagg_server`]), and what each part takes.
//!
//! Identities are stand-ins that cost nothing, as Flower's functions sign nothing: to each signature and each check of one
//! comes the cost of the identity key that is in use. The randomness is that of a fixed seed: there is nothing to hide.

use super::child::Figures;
use super::secagg_server::{Opened, ServerLink};
use anyhow::{Context as _, Result, ensure};
use cpu_time::ProcessTime;
use medinet_secagg::site::Advertised;
use medinet_secagg::{
    Adversary, AgreementList, Assumptions, KeyList, Message as _, RingVector, SessionParameters,
    ShareDelivery, SignFailure, Signer, SitePolicy, Survivors, Topology, Verifier, Width,
};
use medinet_types::{Digest, FederationId, RoundNumber, SiteId, TaskId};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::{Read, Write};
use std::time::Instant;

/// Who takes part, and with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub(crate) struct Cohort {
    /// Sites at the start.
    #[arg(long)]
    pub(crate) sites: u16,
    /// With how many others each shares masks.
    #[arg(long)]
    pub(crate) neighbours: u16,
    /// How many shares open a secret.
    #[arg(long)]
    pub(crate) threshold: u16,
    /// How many sites must agree on who is left.
    #[arg(long)]
    pub(crate) quorum: u16,
    /// Width of a coordinate in bits.
    #[arg(long)]
    pub(crate) bits: u8,
    /// Coordinates of a vector.
    #[arg(long)]
    pub(crate) coordinates: u32,
    /// Sites that are lost after sharing their keys.
    #[arg(long)]
    pub(crate) lost: u16,
}

struct Identity(SiteId);

fn tag(site: &SiteId, message: &[u8]) -> Vec<u8> {
    Digest::of_parts(&[b"identity key in a measurement", site.as_str().as_bytes(), message]).0.to_vec()
}

impl Signer for Identity {
    fn credential(&self) -> Vec<u8> {
        Vec::new()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignFailure> {
        Ok(tag(&self.0, message))
    }
}

pub(super) struct Authority;

impl Verifier for Authority {
    fn verify(&self, site: &SiteId, credential: &[u8], message: &[u8], signature: &[u8]) -> bool {
        credential.is_empty() && signature == tag(site, message)
    }
}

/// Wall and CPU seconds of some kind of work, one value each time that it is done.
#[derive(Default)]
pub(super) struct Times {
    pub(super) wall: Vec<f64>,
    pub(super) cpu: Vec<f64>,
}

impl Times {
    pub(super) fn of<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (wall, cpu) = (Instant::now(), ProcessTime::now());
        let result = black_box(work());
        self.cpu.push(cpu.elapsed().as_secs_f64());
        self.wall.push(wall.elapsed().as_secs_f64());
        result
    }

    pub(super) fn into_figures(self, name: &str, figures: &mut Figures) {
        figures.insert(format!("{name}.wall"), self.wall);
        figures.insert(format!("{name}.cpu"), self.cpu);
    }
}

impl Cohort {
    pub(super) fn parameters(&self) -> Result<SessionParameters> {
        Ok(SessionParameters {
            federation: FederationId::new("bench")?,
            task: TaskId::new("bench")?,
            round: RoundNumber(1),
            attempt: 1,
            purpose: Digest::of(b"measurement"),
            coordinates: self.coordinates,
            width: Width::new(self.bits)?,
            minimum_sites: 2,
        })
    }

    pub(super) fn topology(&self) -> Topology {
        Topology { neighbours: self.neighbours, threshold: self.threshold, quorum: self.quorum }
    }

    /// Spreads the lost sites over the cohort.
    fn is_lost(&self, site: u16) -> bool {
        let lost_before = |site: u16| u32::from(site) * u32::from(self.lost) / u32::from(self.sites);
        lost_before(site) != lost_before(site + 1)
    }

    /// Bytes of key stream that one mask takes.
    fn mask_bytes(&self) -> Result<f64> {
        Ok(f64::from(self.coordinates) * f64::from(Width::new(self.bits)?.mask_bits()) / 8.0)
    }
}

/// The graph is the measurement's choice: nobody colludes.
fn policy() -> SitePolicy {
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

/// Runs the sites of a session whose server is at the other end of `server`. `share-keys` and `mask` are a site's, one value for each
/// site; `upload` are bytes; `cipher` is the cipher's own speed in bytes a second; `mask.limit` and `unmask.limit` are CPU seconds that the
/// cipher alone would take. What the server measures of itself is added.
///
/// # Errors
/// When the session fails or its sum is wrong.
pub(super) fn run(cohort: &Cohort, server: &mut ServerLink<impl Read, impl Write>) -> Result<Figures> {
    let parameters = cohort.parameters()?;
    let cipher = cipher_speed();
    let (mut share_keys, mut mask) = (Times::default(), Times::default());
    let rng = |number: u64| ChaCha20Rng::seed_from_u64(number);

    let mut sites = Vec::new();
    for number in 0..cohort.sites {
        let name = SiteId::new(format!("site-{number:04}"))?;
        let identity = Identity(name.clone());
        let (message, state) = Advertised::start(
            parameters.clone(),
            name.clone(),
            policy(),
            &identity,
            &mut rng(number.into()),
        )?;
        server.send(&name, &message.encode())?;
        sites.push((number, name, state));
    }
    let list: KeyList = server.close_to_all()?;

    let mut shared = BTreeMap::new();
    for (number, name, state) in sites {
        let (list, mut rng) = (list.clone(), rng(1_000_000 + u64::from(number)));
        let (message, state) = share_keys.of(|| state.share_keys(list, &Authority, &mut rng))?;
        server.send(&name, &message.encode())?;
        if !cohort.is_lost(number) {
            shared.insert(name, state);
        }
    }

    let (mut masked, mut upload) = (Vec::new(), 0);
    for (name, delivery) in server.close()? {
        let name = name.context("a delivery is to one site")?;
        let Some(state) = shared.remove(&name) else { continue };
        let delivery = ShareDelivery::decode(&delivery)?;
        let input = RingVector::from_values(parameters.width, (0..parameters.coordinates).map(|c| c & 15));
        let (message, state) = mask.of(|| state.mask(delivery, input))?;
        server.send(&name, &message)?;
        upload = message.len();
        masked.push((name, state));
    }
    let survivors: Survivors = server.close_to_all()?;

    let mut agreed = Vec::new();
    for (name, state) in masked {
        let (message, state) = state.agree(survivors.clone(), &Identity(name.clone()))?;
        server.send(&name, &message.encode())?;
        agreed.push((name, state));
    }
    let list: AgreementList = server.close_to_all()?;
    for (name, state) in agreed {
        let (message, _) = state.unmask(list.clone(), &Authority)?;
        server.send(&name, &message.encode())?;
    }
    let Opened { sum: packed, mut figures } = server.open()?;

    let mut sum = RingVector::zeros(parameters.width, parameters.coordinates as usize);
    ensure!(sum.add_packed(&packed), "the sum has another length than the inputs");
    let (expected, most) = (u32::from(cohort.sites - cohort.lost), parameters.width.max_value());
    let right = (0..).zip(sum.iter()).all(|(c, value): (u32, u32)| value == ((c & 15) * expected) & most);
    ensure!(right, "the sum is not that of the inputs");

    // The machine may have been busier when the speed was taken first.
    let cipher = cipher.max(cipher_speed());
    // At most: neighbours of a lost site may be lost too.
    let masks = expected + u32::from(cohort.lost) * u32::from(cohort.neighbours);
    figures.insert("upload".into(), vec![upload as f64]);
    figures.insert("cipher".into(), vec![cipher]);
    figures
        .insert("mask.limit".into(), vec![f64::from(cohort.neighbours + 1) * cohort.mask_bytes()? / cipher]);
    figures.insert("unmask.limit".into(), vec![f64::from(masks) * cohort.mask_bytes()? / cipher]);
    share_keys.into_figures("share-keys", &mut figures);
    mask.into_figures("mask", &mut figures);
    Ok(figures)
}

/// Bytes per second of AES-256 alone on one thread at its best: from and to buffers that stay in the first-level cache.
fn cipher_speed() -> f64 {
    const BYTES: u32 = 8 * 1024;
    const TIMES: u32 = 512;
    let seconds = |_| {
        let start = Instant::now();
        medinet_secagg::key_stream_alone(BYTES as usize, TIMES);
        start.elapsed().as_secs_f64()
    };
    f64::from(TIMES * BYTES) / (0..100).map(seconds).fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::super::secagg_server;
    use super::*;

    /// With the server in a thread.
    fn run(cohort: &Cohort) -> Result<Figures> {
        let (mut requests, to_server) = std::io::pipe()?;
        let (from_server, mut replies) = std::io::pipe()?;
        std::thread::scope(|scope| {
            let server = scope.spawn(move || secagg_server::serve(cohort, &mut requests, &mut replies));
            let figures = super::run(cohort, &mut ServerLink::new(from_server, to_server));
            let served = server.join().expect("the server does not panic");
            assert_eq!(figures.is_ok(), served.is_ok());
            figures
        })
    }

    const SMALL: Cohort =
        Cohort { sites: 12, neighbours: 6, threshold: 4, quorum: 7, bits: 8, coordinates: 1000, lost: 2 };

    #[test]
    fn as_many_sites_are_lost_as_was_said() {
        for (sites, lost) in [(100, 0), (100, 10), (1000, 100), (12, 5), (7, 6)] {
            let cohort = Cohort { sites, lost, ..SMALL };
            assert_eq!((0..sites).filter(|site| cohort.is_lost(*site)).count(), usize::from(lost));
        }
    }

    #[test]
    fn a_session_is_timed_step_by_step() {
        let figures = run(&SMALL).expect("a sum");
        assert_eq!((figures["share-keys.wall"].len(), figures["mask.cpu"].len()), (12, 10));
        assert!(figures["upload"][0] >= 1000.0 && figures["upload"][0] < 1200.0);
        assert!(figures["cipher"][0] > 1e6);
        assert!(figures["server.wall"][0] >= figures["unmask.wall"][0]);
        #[cfg(target_os = "linux")]
        assert!(figures["server.memory"][0] >= figures["server.memory.before"][0]);
    }

    #[test]
    fn one_that_cannot_be_unmasked_fails() {
        let error = run(&Cohort { lost: 10, ..SMALL }).expect_err("too few are left");
        assert!(error.to_string().starts_with("the server: "), "{error:#}");
    }
}
