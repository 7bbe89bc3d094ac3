//! The reader on untrusted bytes; tests and the target in `fuzz/` both call this. Panics only when it breaks its contract.

use dicom_core::value::Value;
use dicom_object::InMemDicomObject;
use medinet_objects::{Encoding, FileHead, Limits, ObjectError, read_within};

/// Small enough that a breach shows at once.
const LIMITS: Limits = Limits { max_inflated_bytes: 1 << 20, max_depth: 8, max_elements: 20_000 };

/// Elements, items and bytes of values of an object, and its depth.
#[derive(Default)]
struct Size {
    elements: usize,
    bytes: usize,
    depth: usize,
}

fn measure(object: &InMemDicomObject, depth: usize, size: &mut Size) {
    size.depth = size.depth.max(depth);
    for element in object {
        size.elements += 1;
        match element.value() {
            Value::Primitive(value) => size.bytes += value.to_bytes().len(),
            Value::Sequence(sequence) => {
                size.elements += sequence.items().len();
                sequence.items().iter().for_each(|item| measure(item, depth + 1, size));
            }
            Value::PixelSequence(sequence) => {
                size.bytes += 4 * sequence.offset_table().len();
                size.bytes += sequence.fragments().iter().map(Vec::len).sum::<usize>();
            }
        }
    }
}

pub(crate) fn all(file: &[u8]) {
    if let Ok(head) = FileHead::of(file) {
        assert!(file.ends_with(head.data_set), "the data set is what is left");
        let _ = Encoding::of(head.data_set, head.transfer_syntax);
    }
    // A verdict on all there is of it, within the limits or not, and the same each time.
    let whole = medinet_objects::read(file);
    let read = read_within(file, &LIMITS);
    let object = match (read, whole) {
        (Ok(object), Ok(_)) => object,
        (Ok(_), Err(error)) => panic!("refused with wider limits: {error}"),
        (
            Err(
                ObjectError::TooDeep { .. }
                | ObjectError::TooManyElements { .. }
                | ObjectError::InflatedTooLarge { .. },
            ),
            _,
        ) => return,
        (Err(error), whole) => return assert_eq!(whole.err(), Some(error)),
    };
    let mut size = Size::default();
    measure(&object, 0, &mut size);
    assert!(size.depth <= LIMITS.max_depth, "{} levels", size.depth);
    // Text becomes UTF-8, of at most four bytes for each byte; what is deflated has the limit of its own.
    let most = file.len().max(1 << 20);
    assert!(size.bytes <= 4 * most, "{} bytes of values from a file of {}", size.bytes, file.len());
    assert!(size.elements <= LIMITS.max_elements, "{} elements", size.elements);
}
