//! One function per decoder of a peer's bytes; tests and the targets in `fuzz/` both call them. Each panics only when a decoder
//! breaks its contract.
#![allow(dead_code, reason = "each fuzz target calls one")]

use dicom_core::Tag;
use medinet_pacs::dicomweb::JsonDataSet;
use medinet_pacs::dicomweb::multipart::{Event, Multipart, MultipartError, media_type, parameter};
use medinet_pacs::fuzzing;

/// Spaces behind a boundary beyond which it may be taken for content, by what has come so far.
const MANY_SPACES: usize = 256;

type Parts = Vec<(Option<String>, Vec<u8>)>;

/// Reads a body that comes in pieces of `size` bytes, parted by `b`.
fn parts(body: &[u8], size: usize) -> Result<Parts, MultipartError> {
    let mut multipart = Multipart::new("b")?;
    let mut parts = Vec::new();
    let mut open = None;
    for piece in body.chunks(size.max(1)) {
        multipart.push(piece, |event| match event {
            Event::Begin { content_type } => {
                assert!(open.replace((content_type, Vec::new())).is_none(), "a part within a part");
            }
            Event::Data(bytes) => {
                open.as_mut().expect("content comes within a part").1.extend_from_slice(&bytes);
            }
            Event::End => parts.push(open.take().expect("a part that ends has begun")),
        })?;
    }
    multipart.finish()?;
    Ok(parts)
}

/// The first byte says how large the pieces are in which the rest comes.
pub(crate) fn multipart(bytes: &[u8]) {
    let Some((&size, body)) = bytes.split_first() else { return };
    let (whole, pieces) = (parts(body, body.len()), parts(body, size.into()));
    for parts in [&whole, &pieces].into_iter().flatten() {
        let data: usize = parts.iter().map(|(_, data)| data.len()).sum();
        assert!(data <= body.len(), "more content than came");
    }
    let spaces = body.split(|byte| !matches!(byte, b' ' | b'\t')).map(<[u8]>::len).max();
    let limited = [&whole, &pieces].iter().any(|read| **read == Err(MultipartError::Headers));
    if !limited && spaces.unwrap_or(0) <= MANY_SPACES {
        assert_eq!(whole, pieces, "the same however it comes");
    }
}

pub(crate) fn content_types(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for name in ["boundary", "type"] {
        if let Some(value) = parameter(text, name) {
            assert!(value.len() < text.len());
        }
    }
    assert!(!media_type(text).contains(';'));
}

fn data_set(set: &JsonDataSet, depth: usize) {
    for tag in [Tag(0x0020, 0x000D), Tag(0x0008, 0x0061), Tag(0x0010, 0x0010), Tag(0x0020, 0x1208)] {
        let texts = set.texts(tag);
        assert_eq!(set.text(tag).as_ref(), texts.iter().find(|text| !text.is_empty()));
        let _ = set.number(tag);
    }
    assert!(format!("{set:?}").len() < 60, "no value is shown");
    if depth < 4 {
        set.items(Tag(0x0008, 0x1199)).iter().for_each(|item| data_set(item, depth + 1));
    }
    let _ = set.to_object();
}

pub(crate) fn json(bytes: &[u8]) {
    for set in fuzzing::data_sets(bytes).unwrap_or_default() {
        data_set(&set, 0);
    }
}

pub(crate) fn commands(bytes: &[u8]) {
    if let Some(answer) = fuzzing::answer(bytes) {
        assert!(answer.len() % 2 == 0 && answer.len() < 512, "{} bytes", answer.len());
        assert_eq!(fuzzing::answer(&answer), None, "an answer asks for nothing");
    }
}

/// Which object a file holds, read before it is kept.
pub(crate) fn names(bytes: &[u8]) {
    if let Some(uid) = fuzzing::sop_instance_uid(bytes) {
        assert!((1..=128).contains(&uid.len()) && !uid.contains(char::is_control), "{uid:?}");
    }
}

pub(crate) fn all(bytes: &[u8]) {
    multipart(bytes);
    content_types(bytes);
    json(bytes);
    commands(bytes);
    names(bytes);
}
