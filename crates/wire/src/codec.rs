//! Version byte and postcard body.

use crate::PROTOCOL_VERSION;
use serde::{Serialize, de::DeserializeOwned};

/// The longest message, chunks included: below the packet limit of every broker that we name.
pub const MAX_MESSAGE_BYTES: usize = 320 * 1024;

/// Bytes that are no message of this protocol version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Nothing there.
    #[error("expected a version byte and a message, got no bytes")]
    Empty,
    /// The peer speaks another version: peer incompatible.
    #[error("expected protocol version {PROTOCOL_VERSION}, got {got}: update the older of the two programs")]
    Version {
        /// The version byte received.
        got: u8,
    },
    /// Longer than any message may be: peer misbehaved.
    #[error("expected at most {MAX_MESSAGE_BYTES} bytes, got {got}")]
    TooLong {
        /// Length received.
        got: usize,
    },
    /// The body does not parse: peer misbehaved.
    #[error("expected a {what}, got bytes that do not decode")]
    Malformed {
        /// The type that was expected.
        what: &'static str,
    },
    /// Bytes follow the body: peer misbehaved.
    #[error("expected nothing after a {what}, got {extra} bytes")]
    Trailing {
        /// The type that was decoded.
        what: &'static str,
        /// How many bytes are left.
        extra: usize,
    },
}

/// Encodes a message behind the version byte.
#[must_use]
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    // Wire types hold no maps with unencodable keys and no sequences of unknown length, so postcard cannot fail.
    postcard::to_extend(message, vec![PROTOCOL_VERSION]).expect("wire types always encode")
}

/// Decodes a message, refusing other versions, trailing bytes and oversized input.
///
/// # Errors
/// See [`DecodeError`]; each variant says who is at fault.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let what = std::any::type_name::<T>().rsplit("::").next().unwrap_or("message");
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(DecodeError::TooLong { got: bytes.len() });
    }
    let (&version, body) = bytes.split_first().ok_or(DecodeError::Empty)?;
    if version != PROTOCOL_VERSION {
        return Err(DecodeError::Version { got: version });
    }
    let (value, rest) = postcard::take_from_bytes(body).map_err(|_| DecodeError::Malformed { what })?;
    if rest.is_empty() { Ok(value) } else { Err(DecodeError::Trailing { what, extra: rest.len() }) }
}
