//! Files as peers could send them, byte by byte.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails the test")]

pub(crate) const IMPLICIT: &str = "1.2.840.10008.1.2";
pub(crate) const EXPLICIT: &str = "1.2.840.10008.1.2.1";
pub(crate) const JPEG: &str = "1.2.840.10008.1.2.4.50";
pub(crate) const UNDEFINED: u32 = u32::MAX;

/// A little-endian element with a length of 16 bits (PS3.5 table 7.1-2); the length is what is told.
pub(crate) fn short(tag: (u16, u16), vr: &[u8; 2], length: u16, value: &[u8]) -> Vec<u8> {
    let tag = [tag.0.to_le_bytes(), tag.1.to_le_bytes()].concat();
    [&tag, &vr[..], &length.to_le_bytes(), value].concat()
}

/// One with a length of 32 bits (PS3.5 table 7.1-1).
pub(crate) fn long(tag: (u16, u16), vr: &[u8; 2], length: u32, value: &[u8]) -> Vec<u8> {
    let tag = [tag.0.to_le_bytes(), tag.1.to_le_bytes()].concat();
    [&tag, &vr[..], &[0, 0], &length.to_le_bytes(), value].concat()
}

/// One in implicit little endian (PS3.5 table 7.1-3), also an item or a delimiter.
pub(crate) fn bare(tag: (u16, u16), length: u32, value: &[u8]) -> Vec<u8> {
    [&tag.0.to_le_bytes(), &tag.1.to_le_bytes(), &length.to_le_bytes()[..], value].concat()
}

pub(crate) fn item(length: u32, value: &[u8]) -> Vec<u8> {
    bare((0xFFFE, 0xE000), length, value)
}

pub(crate) fn end_of_item() -> Vec<u8> {
    bare((0xFFFE, 0xE00D), 0, &[])
}

pub(crate) fn end_of_sequence() -> Vec<u8> {
    bare((0xFFFE, 0xE0DD), 0, &[])
}

/// SOPClassUID and SOPInstanceUID.
pub(crate) fn named(explicit: bool) -> Vec<u8> {
    let class = b"1.2.840.10008.5.1.4.1.1.7\0";
    let instance = b"1.2.3\0";
    if explicit {
        [short((8, 0x16), b"UI", 26, class), short((8, 0x18), b"UI", 6, instance)].concat()
    } else {
        [bare((8, 0x16), 26, class), bare((8, 0x18), 6, instance)].concat()
    }
}

/// A Part 10 file of a transfer syntax and what follows the file meta information.
pub(crate) fn file(syntax: &str, data_set: &[u8]) -> Vec<u8> {
    let mut uid = syntax.as_bytes().to_vec();
    if uid.len() % 2 == 1 {
        uid.push(0);
    }
    let meta = [
        short((2, 2), b"UI", 26, b"1.2.840.10008.5.1.4.1.1.7\0"),
        short((2, 3), b"UI", 6, b"1.2.3\0"),
        short((2, 0x10), b"UI", u16::try_from(uid.len()).unwrap(), &uid),
        short((2, 0x12), b"UI", 4, b"1.2\0"),
    ]
    .concat();
    let length = u32::try_from(meta.len()).unwrap().to_le_bytes();
    [&[0; 128][..], b"DICM", &short((2, 0), b"UL", 4, &length), &meta, data_set].concat()
}

/// Sound files of each kind: explicit and implicit, nested with and without lengths, encapsulated, deflated, big endian.
pub(crate) fn sound() -> Vec<Vec<u8>> {
    let inner = short((8, 0x1150), b"UI", 4, b"1.2\0");
    let undefined = [item(UNDEFINED, &inner), end_of_item(), end_of_sequence()].concat();
    let stated = item(u32::try_from(inner.len()).unwrap(), &inner);
    let stated_length = u32::try_from(stated.len()).unwrap();
    let explicit = [
        named(true),
        long((8, 0x1110), b"SQ", UNDEFINED, &undefined),
        long((8, 0x1115), b"SQ", stated_length, &stated),
        short((0x10, 0x10), b"PN", 6, b"Doe^J "),
        short((0x20, 0x37), b"DS", 12, b"1\\0\\0\\0\\1\\0 "),
        short((0x28, 0x10), b"US", 2, &[2, 0]),
        long((0x7FE0, 0x10), b"OW", 8, &[1, 2, 3, 4, 5, 6, 7, 8]),
    ]
    .concat();
    let implicit = [
        named(false),
        bare((8, 0x1110), UNDEFINED, &[item(UNDEFINED, &[]), end_of_item(), end_of_sequence()].concat()),
        bare((0x28, 0x10), 2, &[2, 0]),
        bare((0x7FE0, 0x10), 4, &[1, 2, 3, 4]),
    ]
    .concat();
    let fragments = [item(4, &[0; 4]), item(6, b"\xFF\xD8abcd"), end_of_sequence()].concat();
    let encapsulated = [named(true), long((0x7FE0, 0x10), b"OB", UNDEFINED, &fragments)].concat();
    let big_endian = b"\0\x08\0\x16UI\0\x041.2\0\0\x08\0\x18UI\0\x041.3\0\0\x28\0\x10US\0\x02\x01\0".to_vec();
    // One stored block (RFC 1951 3.2.4).
    let size = u16::try_from(explicit.len()).unwrap();
    let deflated = [&[1][..], &size.to_le_bytes(), &(!size).to_le_bytes(), &explicit].concat();
    vec![
        file(EXPLICIT, &explicit),
        explicit,
        file(IMPLICIT, &implicit),
        implicit,
        file(JPEG, &encapsulated),
        file(medinet_objects::EXPLICIT_VR_BIG_ENDIAN, &big_endian),
        big_endian,
        file(medinet_objects::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, &deflated),
    ]
}
