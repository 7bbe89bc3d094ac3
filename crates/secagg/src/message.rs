//! What the parties say to each other, versioned and bounded.
//!
//! A message is a version byte, a kind byte and a postcard body; a masked input's vector follows its body as it is. Decoders
//! take untrusted bytes: they return errors, never panic, and allocate a small multiple of the message's length at most.
//! Who sent a message is for the carrier to prove (a signed envelope); [`crate::server`] takes the proven sender.

use crate::error::{DecodeError, Error, Problem};
use crate::session::SessionId;
use crate::topology::{MAX_COHORT, Topology};
use medinet_types::{Digest, SiteId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The version that this build speaks; the first byte of every message. Since version 2 a mask takes whole words of key stream in rings of 13 to
/// 16 and of 25 to 32 bits ([`Width`](crate::Width)).
pub const VERSION: u8 = 2;
/// The longest signature.
pub const MAX_SIGNATURE_BYTES: usize = 512;
/// The longest credential.
pub const MAX_CREDENTIAL_BYTES: usize = 4096;

/// An X25519 public key (RFC 7748).
pub type PublicKey = [u8; 32];
/// The first 16 bytes of a SHA-256 digest of a share and its place.
pub type ShareCommitment = [u8; 16];

/// A set of sites, by index in the key list; a bit each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberSet {
    bits: Vec<u8>,
}

impl MemberSet {
    /// The empty set of `n` sites.
    #[must_use]
    pub fn none(n: u16) -> Self {
        Self { bits: vec![0; usize::from(n).div_ceil(8)] }
    }

    /// Adds a site.
    pub(crate) fn insert(&mut self, member: u16) {
        self.bits[usize::from(member / 8)] |= 1 << (member % 8);
    }

    /// Whether a site is in it.
    #[must_use]
    pub fn contains(&self, member: u16) -> bool {
        self.bits.get(usize::from(member / 8)).is_some_and(|byte| byte >> (member % 8) & 1 == 1)
    }

    /// The sites in it, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        let bytes = (0u16..).zip(&self.bits);
        bytes.flat_map(|(i, byte)| (0..8).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| i * 8 + bit))
    }

    /// How many sites are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bits.iter().map(|byte| byte.count_ones() as usize).sum()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn is_subset(&self, other: &Self) -> bool {
        self.bits.len() == other.bits.len() && self.bits.iter().zip(&other.bits).all(|(a, b)| a & !b == 0)
    }

    /// Whether it is a set of `n` sites, with no bit past the last.
    pub(crate) fn fits(&self, n: u16) -> bool {
        self.bits.len() == usize::from(n).div_ceil(8) && self.iter().all(|member| member < n)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bits
    }
}

mod sealed {
    /// Keeps [`super::Message`] to the messages of this module.
    pub trait Sealed {}
}

/// A message of the protocol.
pub trait Message: Serialize + DeserializeOwned + sealed::Sealed {
    /// The second byte.
    const KIND: u8;
    /// For errors.
    const NAME: &'static str;

    /// The session that it belongs to.
    fn session(&self) -> SessionId;

    /// Whether what the types cannot bound is within bounds.
    #[doc(hidden)]
    fn is_bounded(&self) -> bool;

    /// The bytes to send.
    #[must_use]
    fn encode(&self) -> Vec<u8> {
        // Messages hold no maps and no sequences of unknown length, so postcard cannot fail.
        postcard::to_extend(self, vec![VERSION, Self::KIND]).expect("messages always encode")
    }

    /// Reads what [`Message::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are not a message of this kind and version, or say more after it.
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let body = body::<Self>(bytes)?;
        let malformed = DecodeError::Malformed { what: Self::NAME };
        match postcard::take_from_bytes::<Self>(body) {
            Ok((message, [])) if message.is_bounded() => Ok(message),
            _ => Err(malformed),
        }
    }
}

fn body<M: Message>(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    match bytes {
        [VERSION, kind, body @ ..] if *kind == M::KIND => Ok(body),
        [VERSION, kind, ..] => Err(DecodeError::Kind { expected: M::NAME, got: *kind }),
        [got, _, ..] => Err(DecodeError::Version { expected: VERSION, got: *got }),
        _ => Err(DecodeError::Malformed { what: M::NAME }),
    }
}

macro_rules! message {
    ($name:ident, $kind:literal, $text:literal, |$self:ident| $bounded:expr) => {
        impl sealed::Sealed for $name {}
        impl Message for $name {
            const KIND: u8 = $kind;
            const NAME: &'static str = $text;
            fn session(&self) -> SessionId {
                self.session
            }
            fn is_bounded(&self) -> bool {
                let $self = self;
                $bounded
            }
        }
    };
}

/// Round 0, site to server: fresh public keys, signed by the enrolled identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advertisement {
    /// The session.
    pub session: SessionId,
    /// Who advertises.
    pub site: SiteId,
    /// c_u^PK, under which shares are sealed.
    pub cipher_key: PublicKey,
    /// s_u^PK, from which pairwise masks are made.
    pub mask_key: PublicKey,
    /// A commitment to the self mask's seed b_u.
    pub self_mask: Digest,
    /// What proves the signer's key.
    pub credential: Vec<u8>,
    /// The identity's signature over all of the above but the credential.
    pub signature: Vec<u8>,
}

impl Advertisement {
    /// What the identity signs.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        let site = self.site.as_str().as_bytes();
        let mut bytes = b"medinet secagg 1 advertisement\0".to_vec();
        bytes.extend(self.session.as_bytes());
        // A site's name is at most 63 bytes.
        bytes.push(site.len() as u8);
        bytes.extend(site);
        bytes.extend(self.cipher_key);
        bytes.extend(self.mask_key);
        bytes.extend(self.self_mask.as_bytes());
        bytes
    }
}

fn advertisement_is_bounded(advertisement: &Advertisement) -> bool {
    advertisement.credential.len() <= MAX_CREDENTIAL_BYTES
        && advertisement.signature.len() <= MAX_SIGNATURE_BYTES
}
message!(Advertisement, 0, "advertisement", |it| advertisement_is_bounded(it));

/// Round 0, server to sites: all keys, ascending by site, and the session's shape. A site's index here is its name below.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyList {
    /// The session.
    pub session: SessionId,
    /// Neighbours, threshold and quorum.
    pub topology: Topology,
    /// The advertisements.
    pub members: Vec<Advertisement>,
}
message!(KeyList, 1, "key list", |it| {
    it.members.len() <= usize::from(MAX_COHORT) && it.members.iter().all(advertisement_is_bounded)
});

impl KeyList {
    /// The digest that the graph and all later keys and signatures depend on. Signatures and credentials are not part of
    /// it: a signature can be written in two ways and still hold.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let shape = [self.topology.neighbours, self.topology.threshold, self.topology.quorum];
        let shape: Vec<u8> = shape.iter().flat_map(|n| n.to_le_bytes()).collect();
        let members: Vec<Vec<u8>> = self.members.iter().map(Advertisement::signed_bytes).collect();
        let mut parts: Vec<&[u8]> = vec![b"medinet secagg 1 key list", self.session.as_bytes(), &shape];
        parts.extend(members.iter().map(Vec::as_slice));
        Digest::of_parts(&parts)
    }
}

/// A neighbour's shares of a site's two secrets, sealed for that neighbour alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedShares {
    /// ChaCha20-Poly1305 ciphertext of the shares of b_u and of s_u^SK's seed.
    pub sealed: [[u8; 32]; 2],
    /// Its tag.
    pub tag: [u8; 16],
    /// Commitments to both shares.
    pub commitments: [ShareCommitment; 2],
}

/// Round 1, site to server: sealed shares, one per neighbour, ascending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyShares {
    /// The session.
    pub session: SessionId,
    /// For each neighbour.
    pub shares: Vec<SealedShares>,
    /// A commitment to the share of b_u that the site keeps.
    pub own: ShareCommitment,
}
message!(KeyShares, 2, "key shares message", |it| it.shares.len() <= usize::from(MAX_COHORT));

/// Round 1, server to a site: who has shared (U2), and the shares for this site, ascending by dealer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareDelivery {
    /// The session.
    pub session: SessionId,
    /// U2.
    pub sharers: MemberSet,
    /// From each neighbour in U2.
    pub shares: Vec<SealedShares>,
}
message!(ShareDelivery, 3, "share delivery", |it| it.shares.len() <= usize::from(MAX_COHORT));

/// Round 2, site to server: the masked input, y_u, packed to w bits per coordinate.
///
/// The encoding is the version, the kind, the session and the payload to the end.
#[derive(Clone, PartialEq, Eq)]
pub struct MaskedInput<'a> {
    /// The session.
    pub session: SessionId,
    /// The packed vector.
    pub payload: &'a [u8],
}

impl<'a> MaskedInput<'a> {
    pub(crate) const KIND: u8 = 4;
    const NAME: &'static str = "masked input";

    /// The bytes before the payload.
    pub(crate) fn header(session: SessionId) -> Vec<u8> {
        let mut bytes = vec![VERSION, Self::KIND];
        bytes.extend(session.as_bytes());
        bytes
    }

    /// Reads a masked input without copying its payload.
    ///
    /// # Errors
    /// When the bytes are not a masked input of this version.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        match bytes {
            [VERSION, Self::KIND, body @ ..] => {
                let malformed = DecodeError::Malformed { what: Self::NAME };
                let (session, payload) = postcard::take_from_bytes(body).map_err(|_| malformed)?;
                Ok(Self { session, payload })
            }
            [VERSION, kind, ..] => Err(DecodeError::Kind { expected: Self::NAME, got: *kind }),
            [got, _, ..] => Err(DecodeError::Version { expected: VERSION, got: *got }),
            _ => Err(DecodeError::Malformed { what: Self::NAME }),
        }
    }
}

/// Round 2, server to sites: whose inputs are in the sum (U3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survivors {
    /// The session.
    pub session: SessionId,
    /// U3.
    pub survivors: MemberSet,
}
message!(Survivors, 5, "survivor list", |_it| true);

/// Round 3, site to server: a signature over the key list and both sets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreement {
    /// The session.
    pub session: SessionId,
    /// The identity's signature over [`agreement_bytes`].
    pub signature: Vec<u8>,
}
message!(Agreement, 6, "agreement", |it| it.signature.len() <= MAX_SIGNATURE_BYTES);

/// What a site signs to agree on the participants: a signature over other sets is worth nothing here.
#[must_use]
pub fn agreement_bytes(
    session: SessionId,
    key_list: &Digest,
    sharers: &MemberSet,
    survivors: &MemberSet,
) -> Vec<u8> {
    let mut bytes = b"medinet secagg 1 agreement\0".to_vec();
    bytes.extend(session.as_bytes());
    bytes.extend(key_list.as_bytes());
    for set in [sharers, survivors] {
        bytes.extend((set.as_bytes().len() as u64).to_le_bytes());
        bytes.extend(set.as_bytes());
    }
    bytes
}

/// Round 3, server to sites: at least a quorum of agreements, ascending by site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgreementList {
    /// The session.
    pub session: SessionId,
    /// Index and signature.
    pub agreements: Vec<(u16, Vec<u8>)>,
}
message!(AgreementList, 7, "agreement list", |it| {
    it.agreements.len() <= usize::from(MAX_COHORT)
        && it.agreements.iter().all(|(_, signature)| signature.len() <= MAX_SIGNATURE_BYTES)
});

/// Round 4, site to server: one share of one secret of each neighbour in U2, ascending, and before them the site's own share
/// of b_u. Which secret follows from the agreed U3, so a message cannot hold both.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmasking {
    /// The session.
    pub session: SessionId,
    /// The shares, 32 bytes each.
    pub shares: Vec<[u8; 32]>,
}
message!(Unmasking, 8, "unmasking message", |it| it.shares.len() <= usize::from(MAX_COHORT));

impl std::fmt::Debug for Unmasking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Unmasking({} shares)", self.shares.len())
    }
}

/// Refuses a message of another session, and blames its sender with `blame`.
pub(crate) fn same_session(
    expected: SessionId,
    got: SessionId,
    blame: impl FnOnce(Problem) -> Error,
) -> Result<(), Error> {
    if expected == got { Ok(()) } else { Err(blame(Problem::Session { expected, got })) }
}
