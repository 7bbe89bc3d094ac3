//! The Merkle tree of RFC 9162, section 2.1: hashing, inclusion proofs, consistency proofs.

use alloc::vec::Vec;
// thiserror's derive names `std` as soon as any crate of the build has its `std` feature on; `core` has all that it uses.
#[cfg(not(feature = "std"))]
#[allow(unused_imports, reason = "not named when thiserror is built without `std`")]
use core as std;
use medinet_types::{Digest, RecordDigest};
use sha2::{Digest as _, Sha256};

/// Hash of a leaf: SHA-256 over a zero byte and the entry (RFC 9162, section 2.1.1).
#[must_use]
pub fn leaf_hash(entry: &[u8]) -> RecordDigest {
    RecordDigest(Digest(Sha256::new().chain_update([0]).chain_update(entry).finalize().into()))
}

/// Hash of an inner node: SHA-256 over a one byte and both children.
fn node_hash(left: &Digest, right: &Digest) -> Digest {
    Digest(Sha256::new().chain_update([1]).chain_update(left.0).chain_update(right.0).finalize().into())
}

/// An append-only tree that keeps the hash of every complete subtree: 64 bytes an entry, and each proof costs only
/// look-ups.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MerkleTree {
    /// `levels[h][i]` is the root of leaves `i << h .. (i + 1) << h`.
    levels: Vec<Vec<Digest>>,
}

/// A proof that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The numbers themselves cannot be.
    #[error("expected {0}")]
    Range(&'static str),
    /// The proof has too many or too few hashes for these numbers.
    #[error("the proof does not have the number of hashes that these sizes need")]
    Length,
    /// The proof leads to another root: what it is about is not in this log.
    #[error("the proof leads to another root: the log does not contain this")]
    Root,
}

impl MerkleTree {
    /// The empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The tree of these leaf hashes.
    #[must_use]
    pub fn from_leaves(leaves: &[RecordDigest]) -> Self {
        let mut tree = Self::new();
        for leaf in leaves {
            tree.push(*leaf);
        }
        tree
    }

    /// Appends a leaf.
    pub fn push(&mut self, leaf: RecordDigest) {
        let mut hash = leaf.0;
        let mut height = 0;
        loop {
            if self.levels.len() == height {
                self.levels.push(Vec::new());
            }
            let level = &mut self.levels[height];
            level.push(hash);
            match level.as_slice() {
                [.., left, right] if level.len().is_multiple_of(2) => hash = node_hash(left, right),
                _ => return,
            }
            height += 1;
        }
    }

    /// Number of leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.levels.first().map_or(0, |leaves| leaves.len() as u64)
    }

    /// The leaf hash of entry `index`.
    #[must_use]
    pub fn leaf(&self, index: u64) -> Option<RecordDigest> {
        self.levels.first()?.get(usize::try_from(index).ok()?).copied().map(RecordDigest)
    }

    /// All leaf hashes.
    pub fn leaves(&self) -> impl Iterator<Item = RecordDigest> {
        self.levels.first().into_iter().flatten().copied().map(RecordDigest)
    }

    /// The root of the whole tree.
    #[must_use]
    pub fn root(&self) -> Digest {
        self.range(0, self.leaf_count())
    }

    /// The root that the tree had at `size` leaves; `None` when it never had that many.
    #[must_use]
    pub fn root_at(&self, size: u64) -> Option<Digest> {
        Some(self.range(0, usize::try_from(size).ok().filter(|&size| size <= self.leaf_count())?))
    }

    /// The inclusion proof of entry `index` in the tree of the first `size` entries (RFC 9162, section 2.1.3.1);
    /// `None` unless `index < size` and the tree has that many.
    #[must_use]
    pub fn inclusion_proof(&self, index: u64, size: u64) -> Option<Vec<Digest>> {
        let size = usize::try_from(size).ok().filter(|&size| size <= self.leaf_count())?;
        let index = usize::try_from(index).ok().filter(|&index| index < size)?;
        let mut proof = Vec::new();
        let (mut start, mut end) = (0, size);
        while end - start > 1 {
            let middle = start + split(end - start);
            if index < middle {
                proof.push(self.range(middle, end));
                end = middle;
            } else {
                proof.push(self.range(start, middle));
                start = middle;
            }
        }
        proof.reverse();
        Some(proof)
    }

    /// The proof that the tree of the first `old` entries is a prefix of that of the first `new` (RFC 9162, section
    /// 2.1.4.1); `None` unless `old <= new` and the tree has that many. Empty when `old` is 0 or `new`.
    #[must_use]
    pub fn consistency_proof(&self, old: u64, new: u64) -> Option<Vec<Digest>> {
        let new = usize::try_from(new).ok().filter(|&new| new <= self.leaf_count())?;
        let old = usize::try_from(old).ok().filter(|&old| old <= new)?;
        let mut proof = Vec::new();
        if old == 0 || old == new {
            return Some(proof);
        }
        let (mut start, mut end) = (0, new);
        // SUBPROOF: whether the subtree's root is still the old tree's root, which the verifier knows.
        let mut known = true;
        while old != end {
            let middle = start + split(end - start);
            if old <= middle {
                proof.push(self.range(middle, end));
                end = middle;
            } else {
                proof.push(self.range(start, middle));
                start = middle;
                known = false;
            }
        }
        if !known {
            proof.push(self.range(start, end));
        }
        proof.reverse();
        Some(proof)
    }

    fn leaf_count(&self) -> usize {
        self.levels.first().map_or(0, Vec::len)
    }

    /// `MTH(D[start:end])`; `start` is a multiple of the largest power of two below the length, as in every subtree.
    fn range(&self, start: usize, end: usize) -> Digest {
        let length = end - start;
        if length == 0 {
            return Digest::of(b"");
        }
        if length.is_power_of_two() {
            let height = length.ilog2() as usize;
            return self.levels[height][start >> height];
        }
        let middle = start + split(length);
        node_hash(&self.range(start, middle), &self.range(middle, end))
    }
}

/// The largest power of two below `length`, which is at least 2.
fn split(length: usize) -> usize {
    1 << (length - 1).ilog2()
}

/// Checks that `leaf` is entry `index` of the log that has `root` at `size` entries (RFC 9162, section 2.1.3.2).
///
/// # Errors
/// When it is not, or the proof is no proof.
pub fn verify_inclusion(
    leaf: &RecordDigest,
    index: u64,
    size: u64,
    proof: &[Digest],
    root: &Digest,
) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::Range("an index below the log's size"));
    }
    let (mut node, mut last) = (index, size - 1);
    let mut hash = leaf.0;
    for sibling in proof {
        if last == 0 {
            return Err(ProofError::Length);
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    match (last, hash == *root) {
        (0, true) => Ok(()),
        (0, false) => Err(ProofError::Root),
        _ => Err(ProofError::Length),
    }
}

/// Checks that the log with `old_root` at `old_size` entries is a prefix of that with `new_root` at `new_size` (RFC 9162,
/// section 2.1.4.2).
///
/// # Errors
/// When it is not, or the proof is no proof.
pub fn verify_consistency(
    old_size: u64,
    old_root: &Digest,
    new_size: u64,
    new_root: &Digest,
    proof: &[Digest],
) -> Result<(), ProofError> {
    if old_size > new_size {
        return Err(ProofError::Range("a log that did not become shorter"));
    }
    if old_size == 0 || old_size == new_size {
        let old_is_right = if old_size == 0 { *old_root == Digest::of(b"") } else { old_root == new_root };
        return match (proof.is_empty(), old_is_right) {
            (false, _) => Err(ProofError::Length),
            (true, false) => Err(ProofError::Root),
            (true, true) => Ok(()),
        };
    }
    let mut hashes = proof.iter();
    let first = if old_size.is_power_of_two() { Some(old_root) } else { hashes.next() };
    let first = *first.ok_or(ProofError::Length)?;
    let (mut node, mut last) = (old_size - 1, new_size - 1);
    while node & 1 == 1 {
        node >>= 1;
        last >>= 1;
    }
    let (mut old_hash, mut new_hash) = (first, first);
    for sibling in hashes {
        if last == 0 {
            return Err(ProofError::Length);
        }
        if node & 1 == 1 || node == last {
            old_hash = node_hash(sibling, &old_hash);
            new_hash = node_hash(sibling, &new_hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            new_hash = node_hash(&new_hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    match (last, old_hash == *old_root && new_hash == *new_root) {
        (0, true) => Ok(()),
        (0, false) => Err(ProofError::Root),
        _ => Err(ProofError::Length),
    }
}
