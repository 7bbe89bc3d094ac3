//! The primitives that the protocol is made of, against the vectors of their standards.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};
use hkdf::Hkdf;
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};

fn array<const N: usize>(text: &str) -> [u8; N] {
    hex::decode(text).unwrap().try_into().unwrap()
}

/// RFC 7748, section 6.1.
#[test]
fn x25519() {
    let alice = StaticSecret::from(array("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"));
    let bob = StaticSecret::from(array("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"));
    let (alice_public, bob_public) = (PublicKey::from(&alice), PublicKey::from(&bob));
    assert_eq!(
        alice_public.to_bytes(),
        array("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    );
    assert_eq!(
        bob_public.to_bytes(),
        array("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    );
    let shared = array("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
    assert_eq!(alice.diffie_hellman(&bob_public).to_bytes(), shared);
    assert_eq!(bob.diffie_hellman(&alice_public).to_bytes(), shared);
    assert!(!alice.diffie_hellman(&PublicKey::from([0; 32])).was_contributory());
}

/// RFC 5869, appendix A.1.
#[test]
fn hkdf_sha_256() {
    let salt = hex::decode("000102030405060708090a0b0c").unwrap();
    let mut okm = [0; 42];
    let info = hex::decode("f0f1f2f3f4f5f6f7f8f9").unwrap();
    Hkdf::<Sha256>::new(Some(&salt), &[0x0b; 22]).expand(&info, &mut okm).unwrap();
    assert_eq!(
        hex::encode(okm),
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    );
}

/// RFC 8439, section 2.8.2.
#[test]
fn chacha20_poly1305() {
    let key: Vec<u8> = (0x80..=0x9f).collect();
    let cipher = ChaCha20Poly1305::new_from_slice(&key).unwrap();
    let nonce = array::<12>("070000004041424344454647").into();
    let associated = hex::decode("50515253c0c1c2c3c4c5c6c7").unwrap();
    let plain =
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
        sunscreen would be it.";
    let mut text = plain.to_vec();
    let tag = cipher.encrypt_inout_detached(&nonce, &associated, text.as_mut_slice().into()).unwrap();
    assert_eq!(hex::encode(&text[..16]), "d31a8d34648e60db7b86afbc53ef7ec2");
    assert_eq!(hex::encode(tag), "1ae10b594f09e26a7e902ecbd0600691");
    cipher.decrypt_inout_detached(&nonce, &associated, text.as_mut_slice().into(), &tag).unwrap();
    assert_eq!(text, plain);
    text[0] ^= 1;
    assert!(cipher.decrypt_inout_detached(&nonce, &associated, text.as_mut_slice().into(), &tag).is_err());
}
