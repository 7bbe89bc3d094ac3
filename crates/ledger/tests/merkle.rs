//! The Merkle tree against published vectors and, for every small size, against the definition.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use medinet_ledger::{MerkleTree, ProofError, leaf_hash, verify_consistency, verify_inclusion};
use medinet_types::{Digest, RecordDigest};
use sha2::{Digest as _, Sha256};

fn digest(text: &str) -> Digest {
    text.parse().unwrap()
}

/// The eight entries of the Certificate Transparency reference tests.
fn entries() -> Vec<Vec<u8>> {
    let range = |from: u8, to: u8| (from..=to).collect::<Vec<u8>>();
    vec![
        vec![],
        vec![0],
        vec![0x10],
        range(0x20, 0x21),
        range(0x30, 0x31),
        range(0x40, 0x43),
        range(0x50, 0x57),
        range(0x60, 0x6f),
    ]
}

fn tree(size: usize) -> MerkleTree {
    MerkleTree::from_leaves(&entries()[..size].iter().map(|e| leaf_hash(e)).collect::<Vec<_>>())
}

/// Roots, inclusion and consistency proofs of the reference tests of Certificate Transparency (RFC 6962), as in
/// merkletree_test.cc of google/certificate-transparency and the testdata of transparency-dev/merkle (Apache-2.0).
#[test]
fn published_vectors() {
    let roots = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    for (size, root) in roots.iter().enumerate() {
        assert_eq!(tree(size).root(), digest(root), "size {size}");
        assert_eq!(tree(8).root_at(size as u64), Some(digest(root)), "size {size} of 8");
    }
    let inclusion = [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ];
    assert_eq!(tree(8).inclusion_proof(0, 8).unwrap(), inclusion.map(digest));
    let consistency = [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ];
    assert_eq!(tree(8).consistency_proof(6, 8).unwrap(), consistency.map(digest));
}

/// MTH of RFC 9162, section 2.1.1, as it is written there.
fn definition(leaves: &[RecordDigest]) -> Digest {
    match leaves {
        [] => Digest::of(b""),
        [leaf] => leaf.0,
        _ => {
            let mut k = 1;
            while 2 * k < leaves.len() {
                k *= 2;
            }
            let (left, right) = (definition(&leaves[..k]), definition(&leaves[k..]));
            Digest(
                Sha256::new().chain_update([1]).chain_update(left.0).chain_update(right.0).finalize().into(),
            )
        }
    }
}

fn leaves(count: usize) -> Vec<RecordDigest> {
    (0..count).map(|i| leaf_hash(&i.to_le_bytes())).collect()
}

#[test]
fn every_proof_of_every_small_tree_holds_and_no_other() {
    let leaves = leaves(33);
    let tree = MerkleTree::from_leaves(&leaves);
    for size in 0..=33usize {
        let root = definition(&leaves[..size]);
        assert_eq!(tree.root_at(size as u64), Some(root));
        for index in 0..size {
            let proof = tree.inclusion_proof(index as u64, size as u64).unwrap();
            let check = |leaf: &RecordDigest, index: usize, size: usize, proof: &[Digest], root: &Digest| {
                verify_inclusion(leaf, index as u64, size as u64, proof, root)
            };
            check(&leaves[index], index, size, &proof, &root).unwrap();
            let other = (index + 1) % 33;
            assert!(check(&leaves[other], index, size, &proof, &root).is_err(), "another leaf");
            assert!(check(&leaves[index], index, size, &proof, &Digest::of(b"x")).is_err(), "another root");
            for wrong in (0..=33).filter(|&wrong| wrong != index) {
                assert!(check(&leaves[index], wrong, size, &proof, &root).is_err(), "another index");
            }
            let longer = [proof.as_slice(), &[root]].concat();
            assert!(check(&leaves[index], index, size, &longer, &root).is_err(), "a longer proof");
            if let Some((_, shorter)) = proof.split_last() {
                assert!(check(&leaves[index], index, size, shorter, &root).is_err(), "a shorter proof");
            }
            for position in 0..proof.len() {
                let mut altered = proof.clone();
                altered[position].0[7] ^= 1;
                assert_eq!(check(&leaves[index], index, size, &altered, &root), Err(ProofError::Root));
            }
        }
        for old in 0..=size {
            let old_root = definition(&leaves[..old]);
            let proof = tree.consistency_proof(old as u64, size as u64).unwrap();
            let check = |old_root: &Digest, new_root: &Digest, proof: &[Digest]| {
                verify_consistency(old as u64, old_root, size as u64, new_root, proof)
            };
            check(&old_root, &root, &proof).unwrap();
            assert!(check(&Digest::of(b"x"), &root, &proof).is_err(), "another past");
            if old > 0 {
                assert!(check(&old_root, &Digest::of(b"x"), &proof).is_err(), "another present");
            }
            assert!(
                check(&old_root, &root, &[proof.as_slice(), &[root]].concat()).is_err(),
                "a longer proof"
            );
            if let Some((_, shorter)) = proof.split_last() {
                assert!(check(&old_root, &root, shorter).is_err(), "a shorter proof");
            }
            for position in 0..proof.len() {
                let mut altered = proof.clone();
                altered[position].0[31] ^= 0x80;
                assert!(check(&old_root, &root, &altered).is_err());
            }
        }
    }
    assert_eq!(tree.inclusion_proof(5, 5), None);
    assert_eq!(tree.inclusion_proof(0, 34), None);
    assert_eq!(tree.consistency_proof(6, 5), None);
    assert_eq!(tree.root_at(34), None);
    assert!(verify_consistency(6, &tree.root(), 5, &tree.root(), &[]).is_err());
    let many = vec![Digest::of(b""); 200];
    assert!(verify_inclusion(&leaves[0], u64::MAX - 1, u64::MAX, &many, &tree.root()).is_err());
    assert!(verify_consistency(u64::MAX - 1, &tree.root(), u64::MAX, &tree.root(), &many).is_err());
}
