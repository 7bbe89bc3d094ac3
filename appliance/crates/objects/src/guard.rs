//! The library's decoder behind a check of every header.
//!
//! The library builds a data set from the headers that a [`StatefulDecode`] hands it, and asks the same for the
//! values. [`Guard`] is one that hands a header on only when what it states fits in what is left, so the library's own
//! walk is what gets checked, and nothing can be read in two ways.

use crate::{Limits, ObjectError};
use dicom_core::header::{DataElementHeader, Length, SequenceItemHeader};
use dicom_core::value::PrimitiveValue;
use dicom_core::{Tag, VR};
use dicom_dictionary_std::tags;
use dicom_encoding::text::SpecificCharacterSet;
use dicom_encoding::transfer_syntax::TransferSyntax;
use dicom_parser::stateful::decode::{DynStatefulDecoder, Error, StatefulDecode};
use dicom_transfer_syntax_registry::entries::IMPLICIT_VR_LITTLE_ENDIAN;
use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

/// Item Delimitation Item (PS3.5 7.5.1).
const ITEM_DELIMITER: Tag = Tag(0xFFFE, 0xE00D);
/// An Item's tag in little endian.
const ITEM_LITTLE_ENDIAN: [u8; 4] = [0xFE, 0xFF, 0x00, 0xE0];

/// The bytes that are left, shared between the guard and the decoders.
#[derive(Clone)]
struct Source<'a>(Rc<Cell<&'a [u8]>>);

impl<'a> Source<'a> {
    fn left(&self) -> &'a [u8] {
        self.0.get()
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut left = self.left();
        let read = left.read(buffer)?;
        self.0.set(left);
        Ok(read)
    }
}

type Decoder<'a> = DynStatefulDecoder<Source<'a>>;

/// A sequence or an item that is open.
struct Container {
    /// Where it ends, in bytes from the beginning; `None` at a delimiter.
    end: Option<u64>,
    /// Where it ends at the latest: at its end, or at that of what it stands in.
    limit: u64,
    /// Whether it is in implicit little endian, whatever the data set is in.
    is_unknown: bool,
}

/// A decoder of one data set that refuses to state what cannot be.
pub(crate) struct Guard<'a> {
    source: Source<'a>,
    total: u64,
    decoder: Decoder<'a>,
    /// The decoder within sequences that came as UN.
    implicit: Option<Decoder<'a>>,
    charset: SpecificCharacterSet,
    containers: Vec<Container>,
    limits: &'a Limits,
    count: usize,
    refusal: Option<ObjectError>,
}

impl<'a> Guard<'a> {
    /// A decoder of `data_set`, which is not deflated, in the encoding of `syntax`.
    pub(crate) fn new(
        data_set: &'a [u8],
        syntax: &TransferSyntax,
        limits: &'a Limits,
    ) -> Result<Self, ObjectError> {
        let source = Source(Rc::new(Cell::new(data_set)));
        let charset = SpecificCharacterSet::default();
        let decoder = Decoder::new_with(source.clone(), syntax, charset.clone(), 0)
            .map_err(|_| ObjectError::UnknownTransferSyntax)?;
        Ok(Self {
            source,
            total: data_set.len() as u64,
            decoder,
            implicit: None,
            charset,
            containers: Vec::new(),
            limits,
            count: 0,
            refusal: None,
        })
    }

    /// Why the guard stopped the reading; `None` where it did not.
    pub(crate) fn refusal(&self) -> Option<ObjectError> {
        self.refusal
    }

    fn refuse<T>(&mut self, refusal: ObjectError) -> Result<T, Error> {
        self.refusal = Some(refusal);
        // Only tells the library to stop: the reason is in `refusal`.
        Err(Error::AllocateValueData { len: 0 })
    }

    fn decoder(&mut self) -> &mut Decoder<'a> {
        match (self.containers.last(), &mut self.implicit) {
            (Some(Container { is_unknown: true, .. }), Some(implicit)) => implicit,
            _ => &mut self.decoder,
        }
    }

    fn limit(&self) -> u64 {
        self.containers.last().map_or(self.total, |container| container.limit)
    }

    /// Closes what ends here by its stated length. The library does the same before it asks for a header.
    fn close_ended(&mut self) {
        let here = Some(self.position());
        while self.containers.pop_if(|container| container.end == here).is_some() {}
    }

    fn count(&mut self, more: usize) -> Result<(), Error> {
        self.count = self.count.saturating_add(more);
        if self.count > self.limits.max_elements {
            return self.refuse(ObjectError::TooManyElements { limit: self.limits.max_elements });
        }
        Ok(())
    }

    /// Whether what was just read, and a value of `length` behind it, lie within the container.
    fn check(&mut self, length: Length) -> Result<(), Error> {
        let end = self.position() + length.get().map_or(0, u64::from);
        if end > self.limit() { self.refuse(ObjectError::LengthBeyondEnd) } else { Ok(()) }
    }

    fn open(&mut self, length: Length, is_unknown: bool) -> Result<(), Error> {
        // The library calls itself once for each: sequences and items take turns.
        if self.containers.len() >= 2 * self.limits.max_depth {
            return self.refuse(ObjectError::TooDeep { limit: self.limits.max_depth });
        }
        let end = length.get().map(|length| self.position() + u64::from(length));
        let limit = end.unwrap_or(self.limit());
        let is_unknown = is_unknown || self.containers.last().is_some_and(|outer| outer.is_unknown);
        self.containers.push(Container { end, limit, is_unknown });
        Ok(())
    }

    /// Prepares for a sequence that came as UN: such are in implicit little endian in every transfer syntax (PS3.5
    /// 6.2.2). Some writers leave them as they were; what is inside the first item tells.
    fn is_implicit_inside(&mut self) -> Result<bool, Error> {
        let left = self.source.left();
        let explicit = left.get(12..14).is_some_and(|vr| vr.iter().all(u8::is_ascii_uppercase));
        if !left.starts_with(&ITEM_LITTLE_ENDIAN) || explicit {
            return Ok(false);
        }
        let (syntax, charset) = (IMPLICIT_VR_LITTLE_ENDIAN.erased(), self.charset.clone());
        self.implicit = Some(Decoder::new_with(self.source.clone(), &syntax, charset, 0)?);
        Ok(true)
    }

    /// Reads a value of `length` bytes by `read`, which may not take them all: the library leaves the odd bytes of
    /// numbers, and would take them for the next header.
    fn value<T>(
        &mut self,
        length: Length,
        read: impl FnOnce(&mut Decoder<'a>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let left = self.source.left();
        let behind = length.get().and_then(|length| left.get(usize::try_from(length).ok()?..));
        let Some(behind) = behind else { return self.refuse(ObjectError::LengthBeyondEnd) };
        let value = read(self.decoder())?;
        self.source.0.set(behind);
        Ok(value)
    }

    fn primitive(
        &mut self,
        header: &DataElementHeader,
        read: fn(&mut Decoder<'a>, &DataElementHeader) -> Result<PrimitiveValue, Error>,
    ) -> Result<PrimitiveValue, Error> {
        // Each value of a text becomes a string of its own.
        let is_split = crate::is_text(header.vr) && !matches!(header.vr, VR::LT | VR::ST | VR::UR | VR::UT);
        if let Some(length) = header.len.get().filter(|_| is_split) {
            let text = self.source.left().iter().take(usize::try_from(length).unwrap_or(usize::MAX));
            self.count(text.filter(|&&byte| byte == b'\\').count())?;
        }
        let value = self.value(header.len, |decoder| read(decoder, header))?;
        if header.tag == tags::SPECIFIC_CHARACTER_SET
            && let PrimitiveValue::Strs(names) = &value
            && let Some(charset) = names.first().and_then(|name| SpecificCharacterSet::from_code(name))
        {
            self.charset = charset;
        }
        Ok(value)
    }
}

impl<'a> StatefulDecode for Guard<'a> {
    type Reader = &'a [u8];

    fn decode_header(&mut self) -> Result<DataElementHeader, Error> {
        self.close_ended();
        self.count(1)?;
        let header = self.decoder().decode_header()?;
        if header.tag == ITEM_DELIMITER {
            self.containers.pop();
            return Ok(header);
        }
        self.check(header.len)?;
        if header.vr == VR::SQ || header.len.is_undefined() {
            let is_pixels = header.tag == tags::PIXEL_DATA;
            let is_unknown = header.vr == VR::UN && !is_pixels && self.is_implicit_inside()?;
            self.open(header.len, is_unknown)?;
        }
        Ok(header)
    }

    fn decode_item_header(&mut self) -> Result<SequenceItemHeader, Error> {
        self.close_ended();
        self.count(1)?;
        let header = self.decoder().decode_item_header()?;
        match header {
            SequenceItemHeader::Item { len } => {
                self.check(len)?;
                self.open(len, false)?;
            }
            SequenceItemHeader::ItemDelimiter | SequenceItemHeader::SequenceDelimiter => {
                self.containers.pop();
            }
        }
        Ok(header)
    }

    fn read_value(&mut self, header: &DataElementHeader) -> Result<PrimitiveValue, Error> {
        self.primitive(header, |decoder, header| decoder.read_value(header))
    }

    fn read_value_preserved(&mut self, header: &DataElementHeader) -> Result<PrimitiveValue, Error> {
        self.primitive(header, |decoder, header| decoder.read_value_preserved(header))
    }

    fn read_value_bytes(&mut self, header: &DataElementHeader) -> Result<PrimitiveValue, Error> {
        self.primitive(header, |decoder, header| decoder.read_value_bytes(header))
    }

    fn read_to_vec(&mut self, length: u32, vec: &mut Vec<u8>) -> Result<(), Error> {
        self.value(Length(length), |decoder| decoder.read_to_vec(length, vec))
    }

    fn read_u32_to_vec(&mut self, length: u32, vec: &mut Vec<u32>) -> Result<(), Error> {
        self.value(Length(length), |decoder| decoder.read_u32_to_vec(length, vec))
    }

    fn read_to<W: io::Write>(&mut self, length: u32, out: W) -> Result<(), Error> {
        self.value(Length(length), |decoder| decoder.read_to(length, out))
    }

    fn skip_bytes(&mut self, length: u32) -> Result<(), Error> {
        self.value(Length(length), |decoder| decoder.skip_bytes(length))
    }

    fn seek(&mut self, _: u64) -> Result<(), Error>
    where
        Self::Reader: io::Seek,
    {
        self.refuse(ObjectError::Elements)
    }

    /// Bytes taken so far, also those that the library's own count leaves out.
    fn position(&self) -> u64 {
        self.total - self.source.left().len() as u64
    }
}
