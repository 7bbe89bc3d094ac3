//! Files made to hurt, and what is said of each.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod common;

use common::*;
use dicom_core::VR;
use dicom_dictionary_std::tags;
use medinet_objects::{Limits, ObjectError, read, read_within};
use std::process::Command;

const TOO_LONG: Option<ObjectError> = Some(ObjectError::LengthBeyondEnd);

/// Files that state more than they hold.
fn overlong() -> Vec<(&'static str, Vec<u8>)> {
    let explicit = |rest: Vec<u8>| [named(true), rest].concat();
    let implicit = |rest: Vec<u8>| [named(false), rest].concat();
    let in_item = |length: u32, rest: &[u8]| {
        let rest = [item(length, rest), end_of_item(), end_of_sequence()].concat();
        explicit(long((8, 0x1110), b"SQ", UNDEFINED, &rest))
    };
    // "AI" is no known representation, so four bytes of text become its length: 775 MB.
    let mut text = short((8, 8), b"CS", 64, &[b'.'; 72]);
    text[4..12].copy_from_slice(b"AI\x0c\x001.2.");
    let big_endian =
        b"\0\x08\0\x16UI\0\x041.2\0\0\x08\0\x18UI\0\x041.3\0\0\x10\0\x10UT\0\0\xFF\xFF\xFF\xFE".to_vec();
    let mut files = vec![
        ("80 bytes of which four are text", text),
        ("an SQ", explicit(long((8, 0x1110), b"SQ", 0xFFFF_FFF0, &[0; 8]))),
        ("a short length", explicit(short((0x10, 0x10), b"PN", 7, b"Doe^J "))),
        ("an item", in_item(0x7FFF_FFFF, &[])),
        ("an element in an item", in_item(12, &short((8, 0x1150), b"UI", 6, b"1.2\0"))),
        ("an item in a sequence", {
            let rest = item(20, &long((8, 0x1150), b"UN", 8, &[0; 8]));
            explicit(long((8, 0x1110), b"SQ", 16, &rest))
        }),
        ("implicit", implicit(bare((0x7FE0, 0x10), 0xFFFF_FFFE, &[0; 4]))),
        ("an implicit sequence", implicit(bare((8, 0x1110), 0xFFFF_FFF0, &[0; 8]))),
        ("big endian", big_endian),
        ("an implicit sequence in UN", {
            let inside = bare((8, 0x1150), 0x4000_0000, b"1.2\0");
            explicit(long((9, 0x1001), b"UN", UNDEFINED, &item(UNDEFINED, &inside)))
        }),
    ];
    // Each way that the library takes values; UT, LT and ST through a buffer that it does not try to reserve first.
    for vr in [b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV", b"??"] {
        let stated = if vr == b"??" { 0xF000_0000 } else { 0xFFFF_FFFE };
        let name = std::str::from_utf8(vr).unwrap();
        files.push((name, file(EXPLICIT, &explicit(long((0x11, 0x1001), vr, stated, &[0; 16])))));
    }
    for (name, fragments) in [
        ("an offset table", item(0xFFFF_FFF0, &[0; 8])),
        ("a fragment", [item(0, &[]), item(0x7FFF_FFFE, &[0; 8])].concat()),
        ("a fragment by one byte", [item(0, &[]), item(9, &[0; 8])].concat()),
    ] {
        let data_set = explicit(long((0x7FE0, 0x10), b"OB", UNDEFINED, &fragments));
        files.push((name, file(JPEG, &data_set)));
    }
    files
}

/// Sequences in items in sequences, with lengths or delimiters, explicit or as implicit in UN.
fn nested(levels: usize) -> Vec<Vec<u8>> {
    let mut stated = Vec::new();
    for _ in 0..levels.min(2000) {
        let inner = item(u32::try_from(stated.len()).unwrap(), &stated);
        stated = long((8, 0x1110), b"SQ", u32::try_from(inner.len()).unwrap(), &inner);
    }
    let explicit = [long((8, 0x1110), b"SQ", UNDEFINED, &[]), item(UNDEFINED, &[])].concat().repeat(levels);
    let implicit = [bare((8, 0x1110), UNDEFINED, &[]), item(UNDEFINED, &[])].concat().repeat(levels);
    let close = [end_of_item(), end_of_sequence()].concat();
    let closed = close.repeat(levels);
    let unknown =
        [long((9, 0x1001), b"UN", UNDEFINED, &item(UNDEFINED, &implicit)), closed.clone(), close].concat();
    vec![
        [named(true), stated].concat(),
        [named(true), explicit.clone(), closed.clone()].concat(),
        [named(true), explicit].concat(),
        [named(false), implicit, closed].concat(),
        [named(true), unknown].concat(),
    ]
}

#[test]
fn what_states_more_than_there_is_is_refused() {
    for (name, file) in overlong() {
        assert_eq!(read(&file).err(), TOO_LONG, "{name}");
    }
    let meta = [&[0; 128][..], b"DICM", &long((2, 2), b"UN", 0xFFFF_FFF0, &[0; 8])].concat();
    assert_eq!(read(&meta).err(), Some(ObjectError::Meta));
}

#[test]
fn deep_nesting_is_refused_and_reasonable_nesting_read() {
    let limit = Limits::default().max_depth;
    for levels in [limit + 1, 10_000] {
        for file in nested(levels) {
            assert_eq!(read(&file).err(), Some(ObjectError::TooDeep { limit }), "{levels}");
        }
    }
    for (index, file) in nested(limit - 1).iter().enumerate() {
        // The third is without its delimiters.
        assert_eq!(read(file).is_ok(), index != 2, "{index}");
    }
}

#[test]
fn many_small_parts_are_refused() {
    let limits = Limits { max_elements: 100, ..Limits::default() };
    let too_many = Some(ObjectError::TooManyElements { limit: 100 });
    let items = [item(0, &[]).repeat(200), end_of_sequence()].concat();
    let values = [b'\\'; 200];
    for rest in [
        long((8, 0x1110), b"SQ", UNDEFINED, &items),
        short((8, 8), b"CS", 200, &values),
        (0..200u16).flat_map(|element| short((0x11, 0x1000 + element), b"LO", 0, &[])).collect(),
        end_of_item().repeat(200),
    ] {
        let file = [named(true), rest].concat();
        assert_eq!(read_within(&file, &limits).err(), too_many);
        assert!(read(&file).is_ok());
    }
}

#[test]
fn inflation_is_bounded() {
    // 257 stored blocks (RFC 1951 3.2.4) of one element: 16 MiB, and a stream that breaks off.
    let block = [&[0, 0xFF, 0xFF, 0, 0][..], &[0; 0xFFFF]].concat();
    let element = [named(true), long((0x42, 0x11), b"OB", 257 * 0xFFFF, &[])].concat();
    let size = u16::try_from(element.len()).unwrap();
    let head = [&[0][..], &size.to_le_bytes(), &(!size).to_le_bytes(), &element].concat();
    let last = [1, 0, 0, 0xFF, 0xFF];
    let deflated = [&head[..], &block.repeat(257), &last].concat();
    let syntax = medinet_objects::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN;
    let whole = file(syntax, &deflated);
    assert!(read(&whole).is_ok());
    let limits = Limits { max_inflated_bytes: 1 << 20, ..Limits::default() };
    let refused = Some(ObjectError::InflatedTooLarge { limit: 1 << 20 });
    assert_eq!(read_within(&whole, &limits).err(), refused);
    assert_eq!(read(&file(syntax, &deflated[..1000])).err(), Some(ObjectError::Deflate));
    assert_eq!(read(&file(syntax, b"\xFF\xFF\xFF\xFF no deflate")).err(), Some(ObjectError::Deflate));
}

#[test]
fn odd_lengths_do_not_shift_what_follows() {
    let rest = [
        short((0x10, 0x10), b"PN", 5, b"Doe^J"),
        short((0x28, 0x10), b"US", 3, &[2, 0, 9]),
        short((0x28, 0x11), b"US", 2, &[7, 0]),
        long((0x7FE0, 0x10), b"OW", 5, &[1, 2, 3, 4, 5]),
    ]
    .concat();
    let object = read(&[named(true), rest].concat()).unwrap();
    assert_eq!(object.element(tags::PATIENT_NAME).unwrap().to_str().unwrap(), "Doe^J");
    assert_eq!(object.element(tags::ROWS).unwrap().to_int::<u16>().unwrap(), 2);
    assert_eq!(object.element(tags::COLUMNS).unwrap().to_int::<u16>().unwrap(), 7);
    // The same inside of an item of stated length, which ends where it says.
    let inside = short((0x28, 0x10), b"US", 3, &[2, 0, 9]);
    let sequence = long((8, 0x1110), b"SQ", 19, &item(11, &inside));
    let object = read(&[named(true), sequence, short((0x28, 0x11), b"US", 2, &[7, 0])].concat()).unwrap();
    assert_eq!(object.element(tags::COLUMNS).unwrap().to_int::<u16>().unwrap(), 7);
}

#[test]
fn nothing_at_all_has_its_length_too() {
    assert_eq!(read(&[]).err(), Some(ObjectError::NotDicom));
    assert_eq!(read(&file(EXPLICIT, &[])).unwrap().iter().count(), 0);
    let empty = [
        named(true),
        long((8, 0x1110), b"SQ", 0, &[]),
        long((8, 0x1115), b"SQ", 8, &item(0, &[])),
        long((8, 0x1140), b"SQ", UNDEFINED, &end_of_sequence()),
        short((0x10, 0x10), b"PN", 0, &[]),
        long((0x7FE0, 0x10), b"OB", UNDEFINED, &[item(0, &[]), item(0, &[]), end_of_sequence()].concat()),
    ]
    .concat();
    let object = read(&file(JPEG, &empty)).unwrap();
    assert_eq!(object.iter().count(), 7);
    assert_eq!(object.element(tags::REFERENCED_SERIES_SEQUENCE).unwrap().items().unwrap().len(), 1);
}

#[test]
fn a_cut_at_any_byte_leaves_an_object_or_a_reason() {
    for whole in sound() {
        let elements = read(&whole).unwrap().iter().count();
        for cut in 0..whole.len() {
            match read(&whole[..cut]) {
                Ok(object) => assert!(object.iter().count() <= elements, "{cut}"),
                Err(error) => assert!(!error.to_string().contains("Doe"), "{cut}"),
            }
        }
    }
}

#[test]
fn private_sequences_that_came_as_unknown_are_sequences() {
    let inside = [bare((9, 0x1002), 4, b"1234"), bare((0x10, 0x10), 6, b"Doe^J ")].concat();
    let implicit = [item(UNDEFINED, &inside), end_of_item(), end_of_sequence()].concat();
    let left_explicit = [item(14, &short((0x10, 0x10), b"PN", 6, b"Doe^J ")), end_of_sequence()].concat();
    for inner in [implicit, left_explicit] {
        let rest =
            [long((9, 0x1001), b"UN", UNDEFINED, &inner), short((0x28, 0x11), b"US", 2, &[7, 0])].concat();
        let object = read(&file(EXPLICIT, &[named(true), rest].concat())).unwrap();
        let items = object.element(dicom_core::Tag(9, 0x1001)).unwrap().items().unwrap();
        let name = items[0].element(tags::PATIENT_NAME).unwrap();
        assert_eq!((name.vr(), name.to_str().unwrap().trim()), (VR::PN, "Doe^J"));
        assert_eq!(object.element(tags::COLUMNS).unwrap().to_int::<u16>().unwrap(), 7);
    }
}

#[test]
fn a_transfer_syntax_that_is_not_true_is_not_followed() {
    let (explicit, implicit) = (&sound()[1], &sound()[3]);
    for (data_set, syntax, true_one) in [
        (explicit, IMPLICIT, EXPLICIT),
        (explicit, medinet_objects::EXPLICIT_VR_BIG_ENDIAN, EXPLICIT),
        (implicit, EXPLICIT, IMPLICIT),
    ] {
        let object = read(&file(syntax, data_set)).unwrap();
        assert_eq!(object.meta().transfer_syntax().trim_end_matches('\0'), true_one);
        assert_eq!(object.element(tags::ROWS).unwrap().to_int::<u16>().unwrap(), 2);
    }
    // Compressed pixel data stay what they are said to be.
    let object = read(&file(JPEG, implicit)).unwrap();
    assert_eq!(object.meta().transfer_syntax().trim_end_matches('\0'), JPEG);
    assert_eq!(read(&file("1.2.3.4", explicit)).err(), Some(ObjectError::UnknownTransferSyntax));
}

#[test]
fn what_is_no_dicom_is_told_without_its_content() {
    for (bytes, error) in [
        (&b"Mueller^Juergen is no DICOM file at all"[..], ObjectError::NotDicom),
        (&[0; 300], ObjectError::NotDicom),
        (b"\x02\x00\x10\x00UI\xff\xff", ObjectError::Meta),
        (b"\x08\0\x18\0SQ\0\0\0\0\0\0", ObjectError::Nameless),
    ] {
        let found = read(bytes).err().unwrap();
        assert_eq!(found, error);
        assert!(!found.to_string().contains("Mueller"), "{found}");
    }
}

/// Address space for the child process below: the program and its threads, and little more. The first of the files
/// alone would ask for three times as much.
const CHILD_KIB: u32 = 256 << 10;

#[test]
fn a_process_with_little_memory_reads_them_all() {
    let output = Command::new("sh")
        .args(["-c", &format!("ulimit -v {CHILD_KIB} && exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--test-threads", "1", "hostile_files_in_little_memory"])
        .env("MALLOC_ARENA_MAX", "2")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{:?}", output.status);
}

#[test]
#[ignore = "run by a_process_with_little_memory_reads_them_all, with a limit"]
fn hostile_files_in_little_memory() {
    for (name, file) in overlong() {
        assert_eq!(read(&file).err(), TOO_LONG, "{name}");
    }
    assert!(nested(10_000).iter().all(|file| read(file).is_err()));
    for file in sound() {
        assert!(read(&file).is_ok());
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged.iter_mut().skip(at).take(4).for_each(|byte| *byte = 0xFE);
            let _ = read(&damaged);
        }
    }
}
