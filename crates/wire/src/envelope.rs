//! Messages signed end to end.
//!
//! The signature (ECDSA P-256, SHA-256) covers a domain tag, the header and the body, so an envelope cannot be
//! moved to another federation or another recipient, and a broker can neither read authority into it nor forge one.
//! The sender's certificate travels along: a receiver needs only the CA's certificate and revocation list.

use crate::codec::{DecodeError, decode, encode};
use medinet_types::{FederationId, Principal, UnixMillis};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

const DOMAIN: &[u8] = b"medinet envelope 1\0";

/// Signs with the identity key that also proves the party in TLS.
pub trait Signer: Send + Sync {
    /// The signer's certificate, DER.
    fn certificate_der(&self) -> &[u8];
    /// Signs `message` (hashed inside); ECDSA P-256 with SHA-256, fixed-length r then s, 64 bytes.
    ///
    /// # Errors
    /// When the key, which may sit in a TPM, refuses.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError>;
}

/// Verifies a signature and says who made it.
pub trait Verifier: Send + Sync {
    /// Checks that `certificate_der` is issued by a trusted CA, valid at `now`, not revoked, and that its key
    /// made `signature` over `message`.
    ///
    /// # Errors
    /// Says which of these does not hold.
    fn verify(
        &self,
        certificate_der: &[u8],
        message: &[u8],
        signature: &[u8],
        now: UnixMillis,
    ) -> Result<Principal, VerifyError>;
}

/// The identity key could not sign; environment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the identity key could not sign: {0}")]
pub struct SignError(pub String);

/// A certificate or signature does not hold; peer misbehaved, or was revoked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the sender is not proven: {0}")]
pub struct VerifyError(pub String);

/// Where a message belongs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The federation.
    pub federation: FederationId,
    /// The recipient; `None` addresses everyone in the federation.
    pub to: Option<Principal>,
    /// When the sender signed, by its clock.
    pub signed_at: UnixMillis,
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    certificate_der: Vec<u8>,
    signed: Vec<u8>,
    signature: Vec<u8>,
}

/// An opened envelope: sender proven, content parsed.
#[derive(Debug, Clone)]
pub struct Opened<M> {
    /// Who signed.
    pub from: Principal,
    /// Where it belongs.
    pub header: Header,
    /// What it says.
    pub message: M,
}

/// An envelope was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Bytes that do not parse.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A signature or certificate that does not hold.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// Meant for another federation.
    #[error("envelope of federation {got}, expected {expected}")]
    Federation {
        /// Ours.
        expected: FederationId,
        /// The envelope's.
        got: FederationId,
    },
    /// Meant for somebody else.
    #[error("envelope for {got}, expected {expected} or everyone")]
    Recipient {
        /// Us.
        expected: Principal,
        /// The envelope's recipient.
        got: Principal,
    },
}

/// Signs `message` under `header`; the bytes go out as they are.
///
/// # Errors
/// When the key refuses to sign.
pub fn seal<M: Serialize>(signer: &dyn Signer, header: &Header, message: &M) -> Result<Vec<u8>, SignError> {
    let signed = encode(&(header, message));
    let signature = signer.sign(&[DOMAIN, &signed].concat())?;
    Ok(encode(&Envelope { certificate_der: signer.certificate_der().to_vec(), signed, signature }))
}

/// Checks and opens an envelope that reached `me` in `federation`.
///
/// # Errors
/// See [`OpenError`]; nothing of the message is looked at before its signature holds.
pub fn open<M: DeserializeOwned>(
    bytes: &[u8],
    verifier: &dyn Verifier,
    federation: &FederationId,
    me: &Principal,
    now: UnixMillis,
) -> Result<Opened<M>, OpenError> {
    let envelope: Envelope = decode(bytes)?;
    let message = [DOMAIN, &envelope.signed].concat();
    let from = verifier.verify(&envelope.certificate_der, &message, &envelope.signature, now)?;
    let (header, message): (Header, M) = decode(&envelope.signed)?;
    if header.federation != *federation {
        return Err(OpenError::Federation { expected: federation.clone(), got: header.federation });
    }
    match &header.to {
        Some(to) if to != me => Err(OpenError::Recipient { expected: me.clone(), got: to.clone() }),
        _ => Ok(Opened { from, header, message }),
    }
}
