//! Association negotiation (PS3.8 7.1, 9.3): who may come in, and which objects in which encodings. No I/O.

use crate::settings::CStoreSettings;
use dicom_encoding::TransferSyntaxIndex as _;
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;
use dicom_ul::pdu::{
    AssociationAC, AssociationRJ, AssociationRJResult, AssociationRJServiceProviderPresentationReason,
    AssociationRJServiceUserReason, AssociationRJSource, AssociationRQ, PresentationContextResult,
    PresentationContextResultReason, UserVariableItem,
};
use dicom_ul::{IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME};
use std::collections::HashMap;

const APPLICATION_CONTEXT: &str = "1.2.840.10008.3.1.1.1";
const IMPLICIT_LITTLE_ENDIAN: &str = "1.2.840.10008.1.2";
pub(super) const VERIFICATION: &str = "1.2.840.10008.1.1";
/// The root of the storage SOP classes (PS3.4 annex B.5, PS3.6 annex A).
const STORAGE_ROOT: &str = "1.2.840.10008.5.1.4.1.1.";
/// The least that a PDU must be able to hold for any work to get done.
const MIN_PEER_PDU: u32 = 1024;
/// The largest PDU that we send; our answers are short.
const MAX_PEER_PDU: u32 = 64 << 10;

/// What was agreed for one presentation context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) abstract_syntax: String,
    pub(super) transfer_syntax: String,
}

/// What was agreed with a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Agreement {
    pub(super) contexts: HashMap<u8, Context>,
    /// The longest PDU that the peer takes.
    pub(super) peer_pdu_bytes: u32,
}

fn trimmed(uid: &str) -> &str {
    uid.trim_matches(['\0', ' '])
}

/// Whether objects of this class are taken.
fn is_storage(abstract_syntax: &str) -> bool {
    abstract_syntax.starts_with(STORAGE_ROOT)
}

/// Whether pixels in this encoding can be decoded here.
pub(super) fn is_decodable(transfer_syntax: &str) -> bool {
    let syntax = TransferSyntaxRegistry.get(trimmed(transfer_syntax));
    syntax.is_some_and(|syntax| syntax.is_codec_free() || syntax.can_decode_all())
}

fn refuse(reason: AssociationRJServiceUserReason) -> AssociationRJ {
    AssociationRJ { result: AssociationRJResult::Permanent, source: AssociationRJSource::ServiceUser(reason) }
}

/// The answer to a peer that comes while all associations are taken.
pub(super) fn come_back_later() -> AssociationRJ {
    let reason = AssociationRJServiceProviderPresentationReason::LocalLimitExceeded;
    AssociationRJ {
        result: AssociationRJResult::Transient,
        source: AssociationRJSource::ServiceProviderPresentation(reason),
    }
}

/// Accepts or rejects an association request.
pub(super) fn negotiate(
    settings: &CStoreSettings,
    request: AssociationRQ,
) -> Result<(AssociationAC, Agreement), AssociationRJ> {
    if trimmed(&request.application_context_name) != APPLICATION_CONTEXT {
        return Err(refuse(AssociationRJServiceUserReason::ApplicationContextNameNotSupported));
    }
    // PS3.8 9.3.2: bit 0 stands for version 1; other bits are not looked at.
    if request.protocol_version & 1 == 0 {
        return Err(refuse(AssociationRJServiceUserReason::NoReasonGiven));
    }
    if trimmed(&request.called_ae_title) != settings.ae_title {
        return Err(refuse(AssociationRJServiceUserReason::CalledAETitleNotRecognized));
    }
    let calling = trimmed(&request.calling_ae_title);
    if !settings.allowed_calling_ae_titles.iter().any(|title| title == calling) {
        return Err(refuse(AssociationRJServiceUserReason::CallingAETitleNotRecognized));
    }
    let mut contexts = HashMap::new();
    let mut results = Vec::new();
    for proposed in &request.presentation_contexts {
        let abstract_syntax = trimmed(&proposed.abstract_syntax);
        let chosen = if abstract_syntax == VERIFICATION || is_storage(abstract_syntax) {
            // The peer's own order: its first is how it has the object stored.
            let chosen =
                proposed.transfer_syntaxes.iter().map(|uid| trimmed(uid)).find(|uid| is_decodable(uid));
            chosen.ok_or(PresentationContextResultReason::TransferSyntaxesNotSupported)
        } else {
            Err(PresentationContextResultReason::AbstractSyntaxNotSupported)
        };
        let (reason, transfer_syntax) = match chosen {
            Ok(uid) => (PresentationContextResultReason::Acceptance, uid.to_owned()),
            // Not looked at by the peer, but its place must be filled (PS3.8 table 9-18).
            Err(reason) => (reason, IMPLICIT_LITTLE_ENDIAN.to_owned()),
        };
        if reason == PresentationContextResultReason::Acceptance {
            let abstract_syntax = abstract_syntax.to_owned();
            contexts
                .insert(proposed.id, Context { abstract_syntax, transfer_syntax: transfer_syntax.clone() });
        }
        results.push(PresentationContextResult { id: proposed.id, reason, transfer_syntax });
    }
    let peer_pdu_bytes = request.user_variables.iter().find_map(|item| match item {
        // 0 means no limit (PS3.8 D.1).
        UserVariableItem::MaxLength(0) => Some(MAX_PEER_PDU),
        UserVariableItem::MaxLength(length) => Some(*length),
        _ => None,
    });
    let accepted = AssociationAC {
        protocol_version: 1,
        calling_ae_title: request.calling_ae_title,
        called_ae_title: request.called_ae_title,
        application_context_name: APPLICATION_CONTEXT.to_owned(),
        presentation_contexts: results,
        user_variables: vec![
            UserVariableItem::MaxLength(u32::try_from(settings.max_pdu_bytes.0).unwrap_or(MAX_PEER_PDU)),
            UserVariableItem::ImplementationClassUID(IMPLEMENTATION_CLASS_UID.to_owned()),
            UserVariableItem::ImplementationVersionName(IMPLEMENTATION_VERSION_NAME.to_owned()),
        ],
    };
    let peer_pdu_bytes = peer_pdu_bytes.unwrap_or(16 << 10).clamp(MIN_PEER_PDU, MAX_PEER_PDU);
    Ok((accepted, Agreement { contexts, peer_pdu_bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dicom_ul::pdu::PresentationContextProposed;

    const CT: &str = "1.2.840.10008.5.1.4.1.1.2";

    fn settings() -> CStoreSettings {
        CStoreSettings::new("127.0.0.1:0".parse().unwrap(), "MEDINET", vec!["PACS".into(), "CT 1".into()])
    }

    fn request(calling: &str, called: &str, contexts: &[(u8, &str, &[&str])]) -> AssociationRQ {
        let context = |(id, class, syntaxes): &(u8, &str, &[&str])| PresentationContextProposed {
            id: *id,
            abstract_syntax: (*class).to_owned(),
            transfer_syntaxes: syntaxes.iter().map(|uid| (*uid).to_owned()).collect(),
        };
        AssociationRQ {
            protocol_version: 1,
            calling_ae_title: calling.to_owned(),
            called_ae_title: called.to_owned(),
            application_context_name: APPLICATION_CONTEXT.to_owned(),
            presentation_contexts: contexts.iter().map(context).collect(),
            user_variables: vec![UserVariableItem::MaxLength(0)],
        }
    }

    #[test]
    fn only_listed_peers_that_call_us_by_name_come_in() {
        let settings = settings();
        let reason = |calling: &str, called: &str| {
            negotiate(&settings, request(calling, called, &[])).err().map(|rejection| rejection.source)
        };
        assert_eq!(reason("PACS", "MEDINET"), None);
        assert_eq!(reason("CT 1", "MEDINET"), None);
        let user = |reason| Some(AssociationRJSource::ServiceUser(reason));
        for calling in ["", "pacs", "PACS2", "*", "MEDINET"] {
            assert_eq!(
                reason(calling, "MEDINET"),
                user(AssociationRJServiceUserReason::CallingAETitleNotRecognized)
            );
        }
        assert_eq!(reason("PACS", "OTHER"), user(AssociationRJServiceUserReason::CalledAETitleNotRecognized));
    }

    #[test]
    fn each_context_gets_the_first_encoding_that_can_be_decoded() {
        let mpeg2 = "1.2.840.10008.1.2.4.100";
        let contexts: &[(u8, &str, &[&str])] = &[
            (1, VERIFICATION, &[IMPLICIT_LITTLE_ENDIAN]),
            (3, CT, &[mpeg2, "1.2.840.10008.1.2.4.90", IMPLICIT_LITTLE_ENDIAN]),
            (5, CT, &[mpeg2]),
            (7, "1.2.840.10008.5.1.4.1.2.2.1", &[IMPLICIT_LITTLE_ENDIAN]),
        ];
        let (accepted, agreement) = negotiate(&settings(), request("PACS", "MEDINET", contexts)).unwrap();
        let reasons: Vec<_> =
            accepted.presentation_contexts.iter().map(|context| context.reason.clone()).collect();
        use PresentationContextResultReason as Reason;
        assert_eq!(
            reasons,
            [
                Reason::Acceptance,
                Reason::Acceptance,
                Reason::TransferSyntaxesNotSupported,
                Reason::AbstractSyntaxNotSupported
            ]
        );
        assert_eq!(agreement.contexts.len(), 2);
        assert_eq!(agreement.contexts[&3].transfer_syntax, "1.2.840.10008.1.2.4.90");
        assert_eq!(agreement.peer_pdu_bytes, MAX_PEER_PDU);
    }

    #[test]
    fn the_encodings_that_pacs_send_are_decodable() {
        for suffix in
            ["", ".1", ".2", ".1.99", ".5", ".4.50", ".4.57", ".4.70", ".4.80", ".4.81", ".4.90", ".4.91"]
        {
            assert!(is_decodable(&format!("1.2.840.10008.1.2{suffix}")), "{suffix}");
        }
        assert!(!is_decodable("1.2.3"));
    }
}
