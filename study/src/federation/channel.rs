//! How updates go up and models come down: the product's codecs, and what they cost in bytes.

use super::parts::{GroupMean, LocalUpdate};
use crate::key;
use anyhow::{Context as _, Result, bail};
use medinet_model::{ModelParameters, NetworkManifest};
use medinet_secagg::Width;
use medinet_types::RoundNumber;
use medinet_update::{
    Accumulator, CodecPlan, ErrorFeedback, Expected, ModelDelta, Origin, SealedUpdate, SecureCodecPlan,
    SecureExpected, SecureMean, SecureUpdate, decode, decode_sum,
};
use serde::{Deserialize, Serialize};

/// How a site's delta reaches the server.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Channel {
    /// Each update is seen by the server. 32 bits are float32.
    Plain(CodecPlan),
    /// Only the sum of a group is.
    Secure(SecureCodecPlan),
}

/// An update on its way.
pub(super) enum Sent {
    Plain(SealedUpdate, u64),
    Secure(SecureUpdate),
}

/// What a group's update is encoded for.
#[derive(Clone, Copy)]
pub(super) struct Letter {
    pub(super) origin: Origin,
    pub(super) examples: u64,
    pub(super) seed: [u8; 32],
}

impl Channel {
    /// float32 without compression, clipped at 10^6.
    #[must_use]
    pub fn float32() -> Self {
        Self::Plain(CodecPlan { bits: 32, clip_norm: 1e6, error_feedback: false })
    }

    /// The clip norm that the round announces.
    #[must_use]
    pub fn clip_norm(&self) -> f32 {
        match self {
            Self::Plain(plan) => plan.clip_norm,
            Self::Secure(plan) => plan.clip_norm,
        }
    }

    /// The same channel with another clip norm.
    #[must_use]
    pub fn with_clip_norm(self, clip_norm: f32) -> Self {
        match self {
            Self::Plain(plan) => Self::Plain(CodecPlan { clip_norm, ..plan }),
            Self::Secure(plan) => Self::Secure(SecureCodecPlan { clip_norm, ..plan }),
        }
    }

    /// The same channel with another number of images at which a site has full weight, where it matters.
    #[must_use]
    pub fn with_reference(self, reference_examples: u32) -> Self {
        match self {
            Self::Plain(_) => self,
            Self::Secure(plan) => Self::Secure(SecureCodecPlan { reference_examples, ..plan }),
        }
    }

    pub(super) fn encode(
        &self,
        delta: Vec<f32>,
        letter: Letter,
        feedback: &mut ErrorFeedback,
    ) -> Result<Sent> {
        let delta = ModelDelta::new(delta)?;
        let Letter { origin, examples, seed } = letter;
        Ok(match self {
            Self::Plain(plan) => {
                Sent::Plain(SealedUpdate::encode(delta, plan, origin, examples, seed, feedback)?, examples)
            }
            Self::Secure(plan) => {
                Sent::Secure(SecureUpdate::encode(delta, plan, origin, examples, seed, feedback)?)
            }
        })
    }

    /// What a site sends that leaves the codec ([`super::Behaviour::leaves_codec`]): the grid's ends and a count of 1 where only the sum is seen,
    /// and what it should send where there are no such codes.
    pub(super) fn corner(
        &self,
        delta: Vec<f32>,
        letter: Letter,
        feedback: &mut ErrorFeedback,
    ) -> Result<Sent> {
        let Self::Secure(plan @ SecureCodecPlan { noise: None, .. }) = self else {
            return self.encode(delta, letter, feedback);
        };
        let (parameters, Letter { origin, seed, .. }) = (delta.len(), letter);
        let encoded = |examples| {
            let (delta, mut nothing) = (ModelDelta::new(delta.clone())?, ErrorFeedback::new(parameters));
            SecureUpdate::encode(delta, plan, origin, examples, seed, &mut nothing)
        };
        // As a site of full weight, whose codes say most of the direction; and count and norm of one with one image.
        let (full, least) = (encoded(u64::MAX)?, encoded(1)?);
        let mut bytes = least.to_site_bytes();
        let header = bytes.len() - least.coordinates();
        let ends = full.values().take(plan.kept(parameters));
        for (byte, code) in bytes[header..].iter_mut().zip(ends) {
            *byte = if 2 * code > plan.largest() { plan.largest() as u8 } else { 0 };
        }
        Ok(Sent::Secure(SecureUpdate::from_site_bytes(&bytes, plan, parameters)?))
    }

    /// What the server learns of one group's updates to `base`, the model of a network: each is encoded, and they are summed and opened, as in a
    /// round of a federation without error feedback.
    ///
    /// # Errors
    /// When the codec refuses an update.
    pub fn aggregate(
        &self,
        updates: Vec<LocalUpdate>,
        (network, base): (&NetworkManifest, &ModelParameters),
        round: u32,
        seed: u64,
    ) -> Result<GroupMean> {
        let parameters = base.as_slice().len();
        let origin = Origin { base: base.digest(network), round: RoundNumber(round) };
        let mut sent = Vec::new();
        for (site, update) in updates.into_iter().enumerate() {
            let seed = key(seed, "rounding", &[site as u64, round.into()]);
            let letter = Letter { origin, examples: update.examples, seed };
            sent.push(self.encode(update.delta, letter, &mut ErrorFeedback::new(parameters))?);
        }
        let sent: Vec<&Sent> = sent.iter().collect();
        self.open((0..sent.len()).collect(), &sent, origin, parameters)
    }

    /// Bytes that one site of a group of `sites` sends up: the update as sealed, or packed to the exact width of the ring.
    ///
    /// # Errors
    /// When a group of this size has no ring.
    pub(super) fn bytes(&self, sent: &Sent, sites: usize, parameters: usize) -> Result<u64> {
        Ok(match (self, sent) {
            (Self::Secure(plan), Sent::Secure(update)) => {
                ring(plan, sites, parameters)?.packed_bytes(update.coordinates()) as u64
            }
            (_, Sent::Plain(update, _)) => update.as_bytes().len() as u64,
            (Self::Plain(_), Sent::Secure(_)) => bail!("an update of another channel"),
        })
    }

    /// Opens what a group has sent, as the server does.
    pub(super) fn open(
        &self,
        sites: Vec<usize>,
        group: &[&Sent],
        origin: Origin,
        parameters: usize,
    ) -> Result<GroupMean> {
        match self {
            Self::Plain(plan) => {
                let mut sum = Accumulator::new(parameters);
                for sent in group {
                    let Sent::Plain(update, examples) = sent else { bail!("an update of another channel") };
                    let expected = Expected { parameters, plan, origin, max_examples: *examples };
                    sum.add(&decode(update.as_bytes(), &expected)?)?;
                }
                let (delta, examples) = (sum.mean()?, sum.examples());
                Ok(GroupMean { sites, delta, examples, norm: None, shortened: None })
            }
            Self::Secure(plan) => {
                let width = ring(plan, group.len(), parameters)?;
                let mut sum = vec![0u32; plan.coordinates(parameters)];
                for sent in group {
                    let Sent::Secure(update) = sent else { bail!("an update of another channel") };
                    for (sum, value) in sum.iter_mut().zip(update.values()) {
                        // In Z/2^w, as under masks: were the ring too narrow for the group, it would show.
                        *sum = sum.wrapping_add(value) & width.max_value();
                    }
                }
                let contributors = u32::try_from(group.len()).context("too many sites")?;
                let ring_bits = width.bits();
                let expected = SecureExpected { parameters, plan, origin, contributors, ring_bits };
                let SecureMean { delta, examples, norm, shortened } = decode_sum(sum, &expected)?;
                Ok(GroupMean { sites, delta, examples, norm, shortened })
            }
        }
    }
}

fn ring(plan: &SecureCodecPlan, sites: usize, parameters: usize) -> Result<Width> {
    let sites = u16::try_from(sites).context("more sites than a session takes")?;
    Ok(match plan.noisy_ring_bits(parameters, sites.into()) {
        Some(bits) => Width::new(bits)?,
        None => Width::for_sum(plan.largest(), sites)?,
    })
}

/// Where a round's clip norm comes from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClipRule {
    /// The channel's own, in every round.
    Fixed,
    /// The channel's own in the first round, then what follows from the mean norm that the last sums held (`medinet_update::secure`, equation
    /// 2). Plain channels, whose grids fit themselves, keep theirs.
    Tracking {
        /// The limit that no report moves.
        largest: f32,
    },
    /// As tracking, from the lower median of the groups' mean norms instead of the mean over all sites: a few groups that
    /// overstate theirs do not move it.
    TrackingMedian {
        /// The limit that no report moves.
        largest: f32,
    },
}

impl ClipRule {
    /// The next round's clip norm.
    pub(super) fn next(self, channel: &Channel, means: &[GroupMean]) -> f32 {
        let Channel::Secure(plan) = channel else { return channel.clip_norm() };
        let largest = match self {
            Self::Fixed => return channel.clip_norm(),
            Self::Tracking { largest } => largest,
            Self::TrackingMedian { largest } => {
                let mut norms: Vec<f32> = means.iter().filter_map(|mean| mean.norm).collect();
                norms.sort_by(f32::total_cmp);
                let median = norms.get(norms.len().saturating_sub(1) / 2).copied();
                return plan.next_clip_norm(median.unwrap_or(0.0), largest);
            }
        };
        let (mut norms, mut sites) = (0.0f64, 0.0f64);
        for mean in means {
            norms += f64::from(mean.norm.unwrap_or(0.0)) * mean.sites.len() as f64;
            sites += mean.sites.len() as f64;
        }
        plan.next_clip_norm((norms / sites.max(1.0)) as f32, largest)
    }
}

/// How the new model reaches the sites.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Downlink {
    /// As float32.
    Float32,
    /// As a quantized delta to the last one.
    Delta {
        /// Bits per parameter, 1 to 8.
        bits: u8,
    },
}
