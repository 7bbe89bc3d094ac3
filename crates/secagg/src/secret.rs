//! Secrets and the keys derived from them. All are overwritten when dropped; none can be printed. What stays on the stack all the same is in
//! docs/threat-model.md, section 6.

use crate::SessionId;
use crate::mask::MaskKey;
use crate::message::{PublicKey, SealedShares, ShareCommitment};
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit, Tag};
use curve25519_dalek::scalar::Scalar;
use hkdf::Hkdf;
use medinet_types::{Digest, SiteId};
use rand_core::CryptoRng;
use sha2::Sha256;
use x25519_dalek::{SharedSecret, StaticSecret};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A secret element of Z/l.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct SecretScalar(Scalar);

impl SecretScalar {
    pub(crate) fn new(scalar: Scalar) -> Self {
        Self(scalar)
    }

    /// Uniform up to 2^-259: 512 bits reduced modulo l.
    pub(crate) fn random(rng: &mut impl CryptoRng) -> Self {
        let mut wide = Zeroizing::new([0; 64]);
        rng.fill_bytes(&mut *wide);
        Self(Scalar::from_bytes_mod_order_wide(&wide))
    }

    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Option<Self> {
        Option::from(Scalar::from_canonical_bytes(bytes)).map(Self)
    }

    pub(crate) fn scalar(&self) -> &Scalar {
        &self.0
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

/// HKDF-SHA-256 (RFC 5869) to 32 bytes: the salt is the session, `info` a label and length-prefixed parts, so that
/// keys of different sessions, purposes, parties or directions are independent.
fn derive(session: SessionId, secret: &[u8], label: &str, parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut info = Vec::with_capacity(192);
    for part in [label.as_bytes()].iter().chain(parts) {
        info.extend((part.len() as u64).to_le_bytes());
        info.extend(*part);
    }
    let mut key = Zeroizing::new([0; 32]);
    let (mut extracted, hkdf) = Hkdf::<Sha256>::extract(Some(session.as_bytes()), secret);
    extracted.as_mut_slice().zeroize();
    hkdf.expand(&info, &mut *key).expect("32 bytes are below HKDF's limit of 8160");
    key
}

/// The X25519 key behind the pairwise masks, s_u^SK of Bonawitz et al. 2017: derived from the element of the field
/// that is shared, so that the shared secret is one share long.
pub(crate) fn mask_agreement_key(session: SessionId, seed: &SecretScalar) -> StaticSecret {
    StaticSecret::from(*derive(session, seed.as_bytes(), "medinet secagg 1 mask agreement key", &[]))
}

/// The key of the self mask, PRG(b_u).
pub(crate) fn self_mask_key(session: SessionId, site: &SiteId, seed: &SecretScalar) -> MaskKey {
    derive(session, seed.as_bytes(), "medinet secagg 1 self mask", &[site.as_str().as_bytes()])
}

/// What a site advertises about its self mask's seed, so that the server can tell a wrong reconstruction.
pub(crate) fn self_mask_commitment(session: SessionId, site: &SiteId, seed: &SecretScalar) -> Digest {
    let label = b"medinet secagg 1 self mask commitment".as_slice();
    Digest::of_parts(&[label, session.as_bytes(), site.as_str().as_bytes(), seed.as_bytes()])
}

/// A party of a key agreement: its name and public key.
pub(crate) type Party<'a> = (&'a SiteId, &'a PublicKey);

/// The secret of two keys, unless the other key is a point of small order, which would make it known to all
/// (RFC 7748, section 6.1).
pub(crate) fn agree(own: &StaticSecret, their: &PublicKey) -> Option<SharedSecret> {
    let secret = own.diffie_hellman(&x25519_dalek::PublicKey::from(*their));
    secret.was_contributory().then_some(secret)
}

/// The key of the mask between two sites, PRG(s_{u,v}); the same for both, whoever computes it.
pub(crate) fn pair_mask_key(
    session: SessionId,
    own: &StaticSecret,
    own_party: Party<'_>,
    their: Party<'_>,
) -> Option<MaskKey> {
    let secret = agree(own, their.1)?;
    let (first, second) = if own_party.0 < their.0 { (own_party, their) } else { (their, own_party) };
    let parts = [first.0.as_str().as_bytes(), second.0.as_str().as_bytes(), first.1, second.1];
    Some(derive(session, secret.as_bytes(), "medinet secagg 1 pair mask", &parts))
}

/// Seals and opens the shares that travel between two sites in one direction.
pub(crate) struct ShareCipher {
    cipher: ChaCha20Poly1305,
    associated: [u8; 32],
}

impl ShareCipher {
    /// `from` deals to `to`, who have agreed on `secret`. `key_list` is the digest of the agreed key list: a site that
    /// was shown another list derives other keys.
    pub(crate) fn new(
        session: SessionId,
        key_list: &Digest,
        secret: &SharedSecret,
        from: Party<'_>,
        to: Party<'_>,
    ) -> Self {
        let (from_name, to_name) = (from.0.as_str().as_bytes(), to.0.as_str().as_bytes());
        let parts = [from_name, to_name, from.1, to.1, key_list.as_bytes()];
        let key = derive(session, secret.as_bytes(), "medinet secagg 1 share encryption", &parts);
        let cipher = ChaCha20Poly1305::new((&*key).into());
        let label = b"medinet secagg 1 shares".as_slice();
        let associated =
            Digest::of_parts(&[label, session.as_bytes(), key_list.as_bytes(), from_name, to_name]);
        Self { cipher, associated: associated.0 }
    }

    /// Seals both shares. The key seals one message only, so the nonce is zero.
    pub(crate) fn seal(&self, shares: [&SecretScalar; 2], commitments: [ShareCommitment; 2]) -> SealedShares {
        let mut text = [0; 64];
        text[..32].copy_from_slice(shares[0].as_bytes());
        text[32..].copy_from_slice(shares[1].as_bytes());
        let tag = self
            .cipher
            .encrypt_inout_detached(&Default::default(), &self.associated, text.as_mut_slice().into())
            .expect("64 bytes are below ChaCha20-Poly1305's limit");
        let (low, high) = text.split_at(32);
        let half = |bytes: &[u8]| {
            let mut half = [0; 32];
            half.copy_from_slice(bytes);
            half
        };
        SealedShares { sealed: [half(low), half(high)], tag: tag.into(), commitments }
    }

    /// Opens both shares; `None` when the tag does not hold or a share is no field element.
    pub(crate) fn open(&self, sealed: &SealedShares) -> Option<[SecretScalar; 2]> {
        let mut text = Zeroizing::new([0; 64]);
        text[..32].copy_from_slice(&sealed.sealed[0]);
        text[32..].copy_from_slice(&sealed.sealed[1]);
        let tag = Tag::from(sealed.tag);
        self.cipher
            .decrypt_inout_detached(&Default::default(), &self.associated, text.as_mut_slice().into(), &tag)
            .ok()?;
        let scalar = |at: usize| {
            let mut bytes = Zeroizing::new([0; 32]);
            bytes.copy_from_slice(&text[at..at + 32]);
            SecretScalar::from_bytes(*bytes)
        };
        Some([scalar(0)?, scalar(32)?])
    }
}

/// Which of a site's two secrets a share belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SecretKind {
    /// The seed of the self mask, b_u: revealed for a site whose input is in the sum.
    SelfMask = 0,
    /// The seed of the mask agreement key, s_u^SK: revealed for a site whose input is not.
    MaskAgreement = 1,
}

/// Binds a dealer to a share, so that the server can tell a site that returns a wrong one from a dealer that dealt it.
/// A share is uniform in 252 bits, so its hash tells nothing about it.
pub(crate) fn commit_share(
    session: SessionId,
    dealer: &SiteId,
    recipient: &SiteId,
    kind: SecretKind,
    share: &[u8; 32],
) -> ShareCommitment {
    let label = b"medinet secagg 1 share commitment".as_slice();
    let (dealer, recipient) = (dealer.as_str().as_bytes(), recipient.as_str().as_bytes());
    let digest = Digest::of_parts(&[label, session.as_bytes(), dealer, recipient, &[kind as u8], share]);
    let mut commitment = [0; 16];
    commitment.copy_from_slice(&digest.0[..16]);
    commitment
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::RingVector;

    /// Compiles only while the dependencies' features `zeroize` are on.
    #[test]
    fn what_holds_a_key_is_overwritten() {
        fn overwritten<T: ZeroizeOnDrop>() {}
        overwritten::<SecretScalar>();
        overwritten::<MaskKey>();
        overwritten::<StaticSecret>();
        overwritten::<SharedSecret>();
        overwritten::<ChaCha20Poly1305>();
        overwritten::<aes::Aes256>();
        // Of which HMAC and so HKDF are made.
        overwritten::<Sha256>();
        overwritten::<RingVector>();
    }

    /// Against Python's hmac: extract, then expand with the label and the parts, each after its length.
    #[test]
    fn keys_are_those_of_rfc_5869() {
        let session: SessionId = postcard::from_bytes(&[7; 32]).unwrap();
        let key = derive(session, &[11; 32], "medinet secagg 1 self mask", &[b"north"]);
        assert_eq!(hex::encode(*key), "4ba5009f7fab6dff0c49b6b294606a57b7c4696ed0c3440457719eecec9067ef");
    }
}
