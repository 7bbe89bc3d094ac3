//! Payloads of any size, in chunks that resume by content hash.
//!
//! The sender signs a [`BlobManifest`] inside some message. The receiver pulls: it asks for ranges of chunks
//! with [`BlobWant`], so it sets the pace, and after a lost link or a restart it asks only for what it lacks.
//! A [`Chunk`] needs no signature of its own: its hash stands in the signed manifest.

use medinet_types::{BlobDigest, Digest};
use serde::{Deserialize, Serialize};

/// The chunk size that senders use and the largest that receivers take, in bytes.
pub const MAX_CHUNK_BYTES: u32 = 256 * 1024;

/// The largest blob, in bytes: a limit against hostile manifests, well above any model we ship.
pub const MAX_BLOB_BYTES: u64 = 1 << 30;

/// The most chunks that one [`BlobWant`] may ask for; bounds what is in flight to a site.
pub const MAX_WANTED_CHUNKS: u32 = 16;

/// What a blob consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobManifest {
    /// SHA-256 of the whole content.
    pub digest: BlobDigest,
    /// Length of the content in bytes.
    pub length_bytes: u64,
    /// Length of every chunk but the last, in bytes.
    pub chunk_bytes: u32,
    /// SHA-256 of each chunk, in order.
    pub chunk_hashes: Vec<Digest>,
}

/// A manifest or a chunk that breaks the rules; the peer misbehaved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// The manifest contradicts itself or a limit.
    #[error("blob manifest: expected {expected}, got {got}")]
    Manifest {
        /// What the rule asks for.
        expected: &'static str,
        /// What the manifest says.
        got: u64,
    },
    /// A chunk that the manifest does not have.
    #[error("chunk: expected an index below {chunks}, got {index}")]
    Index {
        /// Chunks in the manifest.
        chunks: usize,
        /// The index received.
        index: u32,
    },
    /// A chunk whose content differs from its hash in the manifest.
    #[error("chunk {index}: content does not match its hash in the signed manifest")]
    Hash {
        /// The chunk's index.
        index: u32,
    },
    /// A chunk of another blob.
    #[error("chunk of blob {got}, expected blob {expected}")]
    OtherBlob {
        /// The blob that is being received.
        expected: BlobDigest,
        /// The blob that the chunk names.
        got: BlobDigest,
    },
}

impl BlobManifest {
    /// The manifest of `content`, in chunks of [`MAX_CHUNK_BYTES`].
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        let chunk_hashes = content.chunks(MAX_CHUNK_BYTES as usize).map(Digest::of).collect();
        Self {
            digest: BlobDigest(Digest::of(content)),
            length_bytes: content.len() as u64,
            chunk_bytes: MAX_CHUNK_BYTES,
            chunk_hashes,
        }
    }

    /// Checks that lengths, chunk count and limits agree. Call it before acting on a manifest from a peer.
    ///
    /// # Errors
    /// Names the rule that is broken and the value that breaks it.
    pub fn check(&self) -> Result<(), BlobError> {
        if !(1..=MAX_BLOB_BYTES).contains(&self.length_bytes) {
            let expected = "a length of 1 byte to 1 GiB";
            return Err(BlobError::Manifest { expected, got: self.length_bytes });
        }
        if !(1024..=MAX_CHUNK_BYTES).contains(&self.chunk_bytes) {
            let expected = "chunks of 1 KiB to 256 KiB";
            return Err(BlobError::Manifest { expected, got: u64::from(self.chunk_bytes) });
        }
        let chunks = self.length_bytes.div_ceil(u64::from(self.chunk_bytes));
        if chunks != self.chunk_hashes.len() as u64 {
            let expected = "one hash per chunk";
            return Err(BlobError::Manifest { expected, got: self.chunk_hashes.len() as u64 });
        }
        Ok(())
    }

    /// Number of chunks.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        // check() bounds the count by MAX_BLOB_BYTES / 1 KiB = 2^20.
        u32::try_from(self.chunk_hashes.len()).unwrap_or(u32::MAX)
    }

    /// Byte range of chunk `index` within the content.
    #[must_use]
    pub fn range(&self, index: u32) -> std::ops::Range<u64> {
        let start = u64::from(index) * u64::from(self.chunk_bytes);
        start..(start + u64::from(self.chunk_bytes)).min(self.length_bytes)
    }

    /// Checks a chunk against this manifest.
    ///
    /// # Errors
    /// When it belongs elsewhere or its content is not what the manifest says.
    pub fn verify(&self, chunk: &Chunk) -> Result<(), BlobError> {
        if chunk.blob != self.digest {
            return Err(BlobError::OtherBlob { expected: self.digest, got: chunk.blob });
        }
        let hash = self
            .chunk_hashes
            .get(chunk.index as usize)
            .ok_or(BlobError::Index { chunks: self.chunk_hashes.len(), index: chunk.index })?;
        if *hash == Digest::of(&chunk.data) { Ok(()) } else { Err(BlobError::Hash { index: chunk.index }) }
    }
}

/// One piece of a blob; sent on a chunk lane, outside an envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// The blob it belongs to.
    pub blob: BlobDigest,
    /// Which piece, from 0.
    pub index: u32,
    /// The bytes.
    pub data: Vec<u8>,
}

/// The receiver asks for chunks of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobWant {
    /// The blob.
    pub blob: BlobDigest,
    /// Indices wanted now, at most [`MAX_WANTED_CHUNKS`].
    pub chunks: Vec<u32>,
}

/// Which chunks of a blob have arrived; a pure value, the bytes are kept elsewhere.
#[derive(Debug, Clone)]
pub struct BlobProgress {
    manifest: BlobManifest,
    have: Vec<bool>,
    missing: u32,
}

impl BlobProgress {
    /// Nothing has arrived yet.
    ///
    /// # Errors
    /// When the manifest breaks the rules.
    pub fn new(manifest: BlobManifest) -> Result<Self, BlobError> {
        manifest.check()?;
        let missing = manifest.chunks();
        let have = vec![false; manifest.chunk_hashes.len()];
        Ok(Self { manifest, have, missing })
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &BlobManifest {
        &self.manifest
    }

    /// Notes a chunk whose content has been verified; false when it had arrived before.
    pub fn note(&mut self, index: u32) -> bool {
        match self.have.get_mut(index as usize) {
            Some(have) if !*have => {
                *have = true;
                self.missing -= 1;
                true
            }
            _ => false,
        }
    }

    /// Chunks still missing.
    #[must_use]
    pub fn missing(&self) -> u32 {
        self.missing
    }

    /// What to ask for next: the first missing chunks, at most [`MAX_WANTED_CHUNKS`]; `None` when complete.
    #[must_use]
    pub fn want(&self) -> Option<BlobWant> {
        let chunks: Vec<u32> = (0u32..)
            .zip(&self.have)
            .filter(|(_, have)| !**have)
            .map(|(index, _)| index)
            .take(MAX_WANTED_CHUNKS as usize)
            .collect();
        (!chunks.is_empty()).then_some(BlobWant { blob: self.manifest.digest, chunks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i * 31 % 251) as u8).collect()
    }

    #[test]
    fn a_transfer_resumes_with_only_what_is_missing() {
        let data = content(MAX_CHUNK_BYTES as usize * 20 + 7);
        let manifest = BlobManifest::of(&data);
        let mut progress = BlobProgress::new(manifest.clone()).unwrap();
        for index in (0..manifest.chunks()).filter(|i| i % 2 == 0) {
            assert!(progress.note(index));
            assert!(!progress.note(index), "a duplicate changes nothing");
        }
        let want = progress.want().unwrap();
        assert!(want.chunks.iter().all(|i| i % 2 == 1));
        for index in want.chunks {
            progress.note(index);
        }
        assert_eq!(progress.want(), None);
        assert_eq!(progress.missing(), 0);
    }

    #[test]
    fn a_changed_or_foreign_chunk_is_refused() {
        let data = content(3000);
        let manifest = BlobManifest::of(&data);
        let mut chunk = Chunk { blob: manifest.digest, index: 0, data: data.clone() };
        manifest.verify(&chunk).unwrap();
        chunk.data[17] ^= 1;
        assert_eq!(manifest.verify(&chunk), Err(BlobError::Hash { index: 0 }));
        chunk.index = 1;
        assert!(matches!(manifest.verify(&chunk), Err(BlobError::Index { .. })));
        let other = BlobManifest::of(&content(2999));
        assert!(matches!(other.verify(&chunk), Err(BlobError::OtherBlob { .. })));
    }

    #[test]
    fn hostile_manifests_are_refused() {
        let good = BlobManifest::of(&content(3000));
        for bad in [
            BlobManifest { length_bytes: 0, chunk_hashes: vec![], ..good.clone() },
            BlobManifest { length_bytes: u64::MAX, ..good.clone() },
            BlobManifest { chunk_bytes: 0, ..good.clone() },
            BlobManifest { chunk_bytes: u32::MAX, ..good.clone() },
            BlobManifest { chunk_hashes: vec![], ..good.clone() },
        ] {
            assert!(BlobProgress::new(bad).is_err());
        }
    }
}
