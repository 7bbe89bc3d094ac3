//! Signed checkpoints: C2SP tlog-checkpoint in a C2SP signed-note with an Ed25519 signature.
//!
//! ```text
//! medinet/chest
//! 42
//! <root, base64>
//!
//! — medinet/chest <4 bytes of key id and 64 of signature, base64>
//! ```

use crate::merkle::{ProofError, verify_consistency};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use medinet_types::{Digest, FederationId};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use std::fmt;
use std::str::FromStr;

/// The longest note, in bytes: a checkpoint with dozens of witnesses' signatures.
pub const MAX_NOTE_BYTES: usize = 16 * 1024;

/// Signature type of Ed25519 in a signed note.
const ALGORITHM_ED25519: u8 = 1;

/// The first line of a federation's checkpoints, and the name of the key that signs them.
#[must_use]
pub fn origin_of(federation: &FederationId) -> String {
    format!("medinet/{federation}")
}

/// What a log was at some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log.
    pub origin: String,
    /// Number of entries.
    pub size: u64,
    /// Root of the Merkle tree over them.
    pub root: Digest,
}

/// A checkpoint whose signature holds, with the note that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCheckpoint {
    checkpoint: Checkpoint,
    note: String,
}

/// Signs checkpoints; the key may sit anywhere.
pub trait CheckpointSigner {
    /// The Ed25519 public key.
    fn public_key(&self) -> [u8; 32];
    /// The Ed25519 signature (RFC 8032) of `message`.
    ///
    /// # Errors
    /// When the key refuses; environment.
    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SigningError>;
}

/// The ledger key could not sign; environment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the ledger key could not sign: {0}")]
pub struct SigningError(pub String);

/// An Ed25519 key in memory; does not print its secret.
pub struct Ed25519Signer(Ed25519KeyPair);

/// A note that is no checkpoint of the log, or not signed by its key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Longer than any note.
    #[error("expected a note of at most {MAX_NOTE_BYTES} bytes, got {0}")]
    TooLong(usize),
    /// A line is not what the format asks for.
    #[error("checkpoint note: expected {0}")]
    Malformed(&'static str),
    /// Of another log.
    #[error("checkpoint of log {got:?}, expected {expected:?}")]
    Origin {
        /// The log that the key signs.
        expected: String,
        /// The log that the note names.
        got: String,
    },
    /// No signature line is of the trusted key.
    #[error("the checkpoint carries no signature by the key {0:?}")]
    Unsigned(String),
    /// The trusted key's signature does not hold: the note was altered, or signed by somebody else.
    #[error("the signature by {0:?} does not match the checkpoint's text")]
    Signature(String),
    /// Older than what was seen before.
    #[error(
        "expected a log of at least {seen} entries, as seen before, got {got}: the log was cut or an old note replayed"
    )]
    Rollback {
        /// Size seen before.
        seen: u64,
        /// The note's size.
        got: u64,
    },
    /// Not a continuation of what was seen before.
    #[error("not a continuation of the log seen before: {0}")]
    Inconsistent(ProofError),
    /// The text of a public key is none.
    #[error("expected a ledger key <name>+<key id>+<base64>, as `medinet ledger key` prints it")]
    Key,
}

/// The public key that a log's checkpoints are verified with. Its text is a signed-note verifier key,
/// `<origin>+<key id>+<base64>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerPublicKey {
    origin: String,
    key: [u8; 32],
}

fn check_origin(origin: &str) -> Result<(), CheckpointError> {
    let federation = origin.strip_prefix("medinet/").and_then(|name| FederationId::new(name).ok());
    federation.map(|_| ()).ok_or(CheckpointError::Key)
}

impl LedgerPublicKey {
    /// The key of a federation's ledger.
    #[must_use]
    pub fn new(federation: &FederationId, key: [u8; 32]) -> Self {
        Self { origin: origin_of(federation), key }
    }

    /// The log's origin, which is also the key's name.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// First four bytes of SHA-256 over name, newline, algorithm and key (signed-note, "key id").
    fn key_id(&self) -> [u8; 4] {
        let hash = Digest::of(&[self.origin.as_bytes(), b"\n", &[ALGORITHM_ED25519], &self.key].concat()).0;
        [hash[0], hash[1], hash[2], hash[3]]
    }

    /// Checks a note: form, origin, signature.
    ///
    /// # Errors
    /// Says what does not hold.
    pub fn verify(&self, note: &str) -> Result<SignedCheckpoint, CheckpointError> {
        let (text, signatures) = split_note(note)?;
        let checkpoint = Checkpoint::parse(text)?;
        if checkpoint.origin != self.origin {
            return Err(CheckpointError::Origin { expected: self.origin.clone(), got: checkpoint.origin });
        }
        let mut seen = false;
        for line in signatures {
            let (name, key_id, signature) = parse_signature(line)?;
            // Lines of other keys (witnesses) are none of ours: the format says to skip them.
            if name == self.origin && key_id == self.key_id() {
                seen = true;
                if UnparsedPublicKey::new(&ED25519, &self.key).verify(text.as_bytes(), &signature).is_err() {
                    return Err(CheckpointError::Signature(self.origin.clone()));
                }
            }
        }
        if seen {
            Ok(SignedCheckpoint { checkpoint, note: note.to_owned() })
        } else {
            Err(CheckpointError::Unsigned(self.origin.clone()))
        }
    }

    /// What a site does with a newer checkpoint of a log that it follows: `seen` is the newest it accepted before, `proof`
    /// the consistency proof from there. A site that keeps to this notices a log that is cut, rewritten or shown
    /// differently to different sites.
    ///
    /// # Errors
    /// When the note does not hold, is older than `seen`, or does not continue it; keep `seen` then and raise an alarm.
    pub fn advance(
        &self,
        seen: Option<&Checkpoint>,
        note: &str,
        proof: &[Digest],
    ) -> Result<SignedCheckpoint, CheckpointError> {
        let newer = self.verify(note)?;
        if let Some(seen) = seen {
            let got = newer.checkpoint.size;
            if got < seen.size {
                return Err(CheckpointError::Rollback { seen: seen.size, got });
            }
            verify_consistency(seen.size, &seen.root, got, &newer.checkpoint.root, proof)
                .map_err(CheckpointError::Inconsistent)?;
        }
        Ok(newer)
    }
}

impl fmt::Display for LedgerPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = u32::from_be_bytes(self.key_id());
        let key = BASE64.encode([&[ALGORITHM_ED25519], self.key.as_slice()].concat());
        write!(f, "{}+{id:08x}+{key}", self.origin)
    }
}

impl FromStr for LedgerPublicKey {
    type Err = CheckpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.splitn(3, '+');
        let (Some(origin), Some(_), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(CheckpointError::Key);
        };
        check_origin(origin)?;
        let key = BASE64.decode(key).map_err(|_| CheckpointError::Key)?;
        let (&[ALGORITHM_ED25519], key) = key.split_at_checked(1).ok_or(CheckpointError::Key)? else {
            return Err(CheckpointError::Key);
        };
        let key = <[u8; 32]>::try_from(key).map_err(|_| CheckpointError::Key)?;
        let parsed = Self { origin: origin.to_owned(), key };
        // The key id is a checksum: a mistyped name or key is noticed here.
        if parsed.to_string() == text { Ok(parsed) } else { Err(CheckpointError::Key) }
    }
}

impl Checkpoint {
    /// The text that is signed.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, BASE64.encode(self.root.0))
    }

    /// Reads the signed text: three lines. Extension lines, which the format allows, are not ours and refused.
    fn parse(text: &str) -> Result<Self, CheckpointError> {
        let mut lines = text.split_terminator('\n');
        let origin = lines.next().filter(|line| check_origin(line).is_ok());
        let origin = origin.ok_or(CheckpointError::Malformed("an origin line medinet/<federation>"))?;
        let size = lines.next().and_then(|line| line.parse().ok().filter(|n: &u64| n.to_string() == line));
        let size = size.ok_or(CheckpointError::Malformed("a size line, a decimal number"))?;
        let root =
            lines.next().and_then(|line| BASE64.decode(line).ok()).and_then(|root| root.try_into().ok());
        let root = root.ok_or(CheckpointError::Malformed("a root line of 32 bytes in base64"))?;
        let checkpoint = Self { origin: origin.to_owned(), size, root: Digest(root) };
        if checkpoint.text() == text {
            Ok(checkpoint)
        } else {
            Err(CheckpointError::Malformed("nothing but origin, size and root before the empty line"))
        }
    }

    /// Signs the checkpoint.
    ///
    /// # Errors
    /// When the key refuses.
    pub fn sign(self, signer: &dyn CheckpointSigner) -> Result<SignedCheckpoint, SigningError> {
        let key = LedgerPublicKey { origin: self.origin.clone(), key: signer.public_key() };
        let text = self.text();
        let signature = signer.sign(text.as_bytes())?;
        let line = BASE64.encode([key.key_id().as_slice(), &signature].concat());
        let note = format!("{text}\n\u{2014} {} {line}\n", self.origin);
        Ok(SignedCheckpoint { checkpoint: self, note })
    }
}

impl SignedCheckpoint {
    /// What was signed.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The note, as it is stored and sent.
    #[must_use]
    pub fn note(&self) -> &str {
        &self.note
    }
}

impl Ed25519Signer {
    /// The key with this secret seed (RFC 8032, section 5.1.5).
    ///
    /// # Errors
    /// Never for 32 bytes, as far as is known; the library's refusal is passed on.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, SigningError> {
        Ed25519KeyPair::from_seed_unchecked(seed).map(Self).map_err(|error| SigningError(error.to_string()))
    }
}

impl fmt::Debug for Ed25519Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ed25519Signer")
    }
}

impl CheckpointSigner for Ed25519Signer {
    fn public_key(&self) -> [u8; 32] {
        // ring's Ed25519 public keys are 32 bytes (RFC 8032).
        self.0.public_key().as_ref().try_into().expect("an Ed25519 public key has 32 bytes")
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SigningError> {
        let signature = self.0.sign(message);
        signature.as_ref().try_into().map_err(|_| SigningError("not 64 bytes".to_owned()))
    }
}

/// Cuts a note into the signed text, its last newline included, and the signature lines.
fn split_note(note: &str) -> Result<(&str, Vec<&str>), CheckpointError> {
    if note.len() > MAX_NOTE_BYTES {
        return Err(CheckpointError::TooLong(note.len()));
    }
    let cut = note.rfind("\n\n").ok_or(CheckpointError::Malformed("an empty line before the signatures"))?;
    let (text, rest) = (&note[..=cut], &note[cut + 2..]);
    let lines = rest.strip_suffix('\n').ok_or(CheckpointError::Malformed("a newline at the end"))?;
    Ok((text, lines.split('\n').collect()))
}

fn parse_signature(line: &str) -> Result<(&str, [u8; 4], Vec<u8>), CheckpointError> {
    let parse = || {
        let (name, encoded) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
        let bytes = BASE64.decode(encoded).ok()?;
        let (key_id, signature) = bytes.split_first_chunk::<4>()?;
        (!name.is_empty() && !signature.is_empty()).then(|| (name, *key_id, signature.to_vec()))
    };
    parse().ok_or(CheckpointError::Malformed("signature lines: dash, key name, base64"))
}
