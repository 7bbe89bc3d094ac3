//! Where objects go: the de-identifier behind a trait, and its verdicts.

use medinet_deident::Identified;
use std::fmt;

/// The name of one SOP instance for everything outside the hospital's own records: a keyed hash of its
/// SOPInstanceUID. The key is random, made once per site, and stays in the intake ledger, so the name says nothing
/// about the object to anyone else. The same instance has the same name for as long as the ledger lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey([u8; 16]);

impl ObjectKey {
    pub(crate) fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The name's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One object on its way to the sink.
#[derive(Debug)]
pub struct Delivery {
    /// The object's name, by which a repeat is recognised.
    pub key: ObjectKey,
    /// The object, sealed.
    pub object: Identified,
}

/// What became of an object that the sink took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// It is stored, durably.
    Stored,
    /// It was stored before, by a delivery whose acknowledgement got lost.
    AlreadyStored,
}

/// Why the sink did not take an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The object itself is at fault: it is set aside and not offered again.
    #[error("{reason}")]
    Quarantine {
        /// A short, stable name for counting and filtering.
        code: &'static str,
        /// The reason for a person to read. Nothing of it may come from the object.
        reason: String,
    },
    /// The sink cannot work at present (a full disk, a locked database): the object stays and is offered again.
    #[error("the sink cannot take objects at present: {reason}")]
    Unavailable {
        /// Why, and what to do.
        reason: String,
    },
}

/// Takes objects in. Called from one thread at a time, and free to block.
///
/// The intake marks an object as ingested after `accept` returned `Ok`. When the process dies between the two, the
/// same object is offered again after the restart; so that the effect happens once, an implementation makes what it
/// stores durable before it returns, and stores nothing for a key (or an instance) that it has already.
pub trait Sink: Send + 'static {
    /// Takes one object in, durably.
    ///
    /// # Errors
    /// When the object is refused for good, or cannot be taken now.
    fn accept(&mut self, delivery: Delivery) -> Result<Accepted, Rejected>;
}

impl<F> Sink for F
where
    F: FnMut(Delivery) -> Result<Accepted, Rejected> + Send + 'static,
{
    fn accept(&mut self, delivery: Delivery) -> Result<Accepted, Rejected> {
        self(delivery)
    }
}
