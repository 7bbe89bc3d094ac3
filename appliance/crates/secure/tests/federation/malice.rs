//! One site that breaks the protocol in one way.

use medinet_secagg::{Advertisement, Agreement, KeyShares, Message, Unmasking};
use medinet_types::SiteId;
use medinet_wire::blob::BlobManifest;
use medinet_wire::secure::SiteStep;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Malice {
    ForgedAdvertisement,
    BorrowedName,
    NoKeyShares,
    WrongKeyShares,
    ShortInput,
    SecondInput,
    GarbageInput,
    ForgedAgreement,
    WrongShares,
    FewShares,
    BlamesOthers,
    FalseAbandonment,
    Undecodable,
}

impl Malice {
    pub(crate) const ALL: [Self; 13] = [
        Self::ForgedAdvertisement,
        Self::BorrowedName,
        Self::NoKeyShares,
        Self::WrongKeyShares,
        Self::ShortInput,
        Self::SecondInput,
        Self::GarbageInput,
        Self::ForgedAgreement,
        Self::WrongShares,
        Self::FewShares,
        Self::BlamesOthers,
        Self::FalseAbandonment,
        Self::Undecodable,
    ];

    /// What it holds in place of a masked input.
    pub(crate) fn input(&self, masked: &[u8]) -> Vec<u8> {
        match self {
            Self::ShortInput => masked[..masked.len() - 1].to_vec(),
            Self::GarbageInput => vec![7; masked.len()],
            _ => masked.to_vec(),
        }
    }

    /// What it says in place of a word; `held` are the inputs that it offers.
    pub(crate) fn step(&mut self, step: SiteStep, held: &[Vec<u8>]) -> Vec<SiteStep> {
        let other = || SiteId::new("site-000").unwrap();
        let step = match (*self, step) {
            (Self::ForgedAdvertisement, SiteStep::Advertisement(bytes)) => {
                let mut message = Advertisement::decode(&bytes).unwrap();
                message.mask_key[0] ^= 1;
                SiteStep::Advertisement(message.encode())
            }
            (Self::BorrowedName, SiteStep::Advertisement(bytes)) => {
                let mut message = Advertisement::decode(&bytes).unwrap();
                message.site = other();
                SiteStep::Advertisement(message.encode())
            }
            (Self::NoKeyShares, SiteStep::KeyShares(bytes)) => {
                let mut message = KeyShares::decode(&bytes).unwrap();
                message.shares.clear();
                SiteStep::KeyShares(message.encode())
            }
            (Self::WrongKeyShares, SiteStep::KeyShares(bytes)) => {
                let mut message = KeyShares::decode(&bytes).unwrap();
                for share in &mut message.shares {
                    share.sealed[0][0] ^= 1;
                }
                SiteStep::KeyShares(message.encode())
            }
            (Self::ShortInput | Self::GarbageInput, SiteStep::MaskedInput { session, .. }) => {
                let Some(bytes) = held.last() else { return Vec::new() };
                SiteStep::MaskedInput { session, input: BlobManifest::of(bytes) }
            }
            (Self::SecondInput, SiteStep::MaskedInput { session, input }) => {
                let another = SiteStep::MaskedInput { session, input: BlobManifest::of(&[1; 50]) };
                return vec![SiteStep::MaskedInput { session, input }, another];
            }
            (Self::ForgedAgreement, SiteStep::Agreement(bytes)) => {
                let mut message = Agreement::decode(&bytes).unwrap();
                message.signature[0] ^= 1;
                SiteStep::Agreement(message.encode())
            }
            (Self::WrongShares, SiteStep::Unmasking(bytes)) => {
                let mut message = Unmasking::decode(&bytes).unwrap();
                message.shares.iter_mut().for_each(|share| share[0] ^= 1);
                SiteStep::Unmasking(message.encode())
            }
            (Self::FewShares, SiteStep::Unmasking(bytes)) => {
                let mut message = Unmasking::decode(&bytes).unwrap();
                message.shares.pop();
                SiteStep::Unmasking(message.encode())
            }
            (Self::BlamesOthers, SiteStep::KeyShares(bytes)) => {
                let reason = "a share does not open".to_owned();
                let blame = SiteStep::Failed { attempt: 1, blames: Some(other()), reason };
                return vec![blame, SiteStep::KeyShares(bytes)];
            }
            (Self::FalseAbandonment, SiteStep::Ready { base_metrics, privacy, left, mut abandonments }) => {
                for abandonment in &mut abandonments {
                    abandonment.signature[0] ^= 1;
                    abandonment.member ^= 1;
                }
                SiteStep::Ready { base_metrics, privacy, left, abandonments }
            }
            (Self::Undecodable, SiteStep::KeyShares(_)) => SiteStep::KeyShares(vec![1, 2, 0xff, 0xff]),
            (_, step) => step,
        };
        vec![step]
    }
}
