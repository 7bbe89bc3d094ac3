//! A reader of `multipart/related` answers (RFC 2046 5.1, RFC 2387) that takes bytes as they come and keeps none.
//!
//! No I/O: bytes go in, events come out. Memory is bounded by the header limit plus what was put in last, whatever
//! the peer sends.

use bytes::{Bytes, BytesMut};
use memchr::memmem;

/// The longest header block of a part, in bytes.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// The longest run of spaces after a boundary, in bytes (RFC 2046 calls it transport padding).
const MAX_PADDING_BYTES: usize = 256;

/// The longest boundary, in bytes (RFC 2046 5.1.1).
const MAX_BOUNDARY_BYTES: usize = 70;

/// A piece of a multipart body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A part begins; its `Content-Type`, where it has one.
    Begin {
        /// The value of the part's `Content-Type` header.
        content_type: Option<String>,
    },
    /// Bytes of the part.
    Data(Bytes),
    /// The part is complete.
    End,
}

/// The bytes are no multipart body; the peer's mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MultipartError {
    /// The answer's content type names no usable boundary.
    #[error("a content type with a boundary of 1 to 70 characters")]
    NoBoundary,
    /// A part's headers go on for too long or hold bytes that are no text.
    #[error("part headers of at most 16 KiB of text")]
    Headers,
    /// The body ended before the closing boundary.
    #[error("a closing boundary at the end")]
    Truncated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first boundary.
    Preamble,
    /// Just after a boundary: its end of line, or two hyphens, are to come.
    AfterBoundary {
        in_part: bool,
    },
    Headers,
    Body,
    Done,
}

/// Takes a multipart body apart as it comes.
#[derive(Debug)]
pub struct Multipart {
    /// CR LF, two hyphens, and the boundary.
    delimiter: Vec<u8>,
    buffer: BytesMut,
    state: State,
}

impl Multipart {
    /// A reader for parts that are parted by `boundary`.
    ///
    /// # Errors
    /// When the boundary is empty or longer than RFC 2046 allows.
    pub fn new(boundary: &str) -> Result<Self, MultipartError> {
        if !(1..=MAX_BOUNDARY_BYTES).contains(&boundary.len()) {
            return Err(MultipartError::NoBoundary);
        }
        let delimiter = [b"\r\n--", boundary.as_bytes()].concat();
        // The first boundary need not follow a line end; giving it one leaves one rule for all.
        let buffer = BytesMut::from(&b"\r\n"[..]);
        Ok(Self { delimiter, buffer, state: State::Preamble })
    }

    /// Takes bytes in; `on_event` gets what they complete.
    ///
    /// # Errors
    /// When the bytes are no multipart body.
    pub fn push(&mut self, bytes: &[u8], mut on_event: impl FnMut(Event)) -> Result<(), MultipartError> {
        self.buffer.extend_from_slice(bytes);
        while self.step(&mut on_event)? {}
        Ok(())
    }

    /// The body has ended.
    ///
    /// # Errors
    /// When the closing boundary has not come.
    pub fn finish(&self) -> Result<(), MultipartError> {
        if self.state == State::Done { Ok(()) } else { Err(MultipartError::Truncated) }
    }

    /// Does what the buffered bytes allow; false when more are needed.
    fn step(&mut self, on_event: &mut impl FnMut(Event)) -> Result<bool, MultipartError> {
        match self.state {
            State::Preamble => Ok(self.skip_to_boundary(None)),
            State::Body => Ok(self.skip_to_boundary(Some(on_event))),
            State::AfterBoundary { in_part } => Ok(self.after_boundary(in_part, on_event)),
            State::Headers => self.headers(on_event),
            State::Done => {
                self.buffer.clear();
                Ok(false)
            }
        }
    }

    /// Passes bytes on up to the next delimiter.
    fn skip_to_boundary(&mut self, on_event: Option<&mut dyn FnMut(Event)>) -> bool {
        let found = memmem::find(&self.buffer, &self.delimiter);
        // Without a delimiter all but a possible beginning of one is content.
        let content = found.unwrap_or_else(|| self.buffer.len().saturating_sub(self.delimiter.len() - 1));
        let in_part = on_event.is_some();
        if content > 0 {
            let content = self.buffer.split_to(content).freeze();
            if let Some(on_event) = on_event {
                on_event(Event::Data(content));
            }
        }
        if found.is_some() {
            self.state = State::AfterBoundary { in_part };
        }
        found.is_some()
    }

    /// Decides whether a delimiter was one: it ends its line, or closes the body with two hyphens.
    fn after_boundary(&mut self, in_part: bool, on_event: &mut impl FnMut(Event)) -> bool {
        let rest = &self.buffer[self.delimiter.len()..];
        let padding = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        let after = &rest[padding..];
        let end_part = |on_event: &mut dyn FnMut(Event)| {
            if in_part {
                on_event(Event::End);
            }
        };
        if rest.starts_with(b"--") {
            end_part(on_event);
            self.state = State::Done;
            return true;
        }
        if padding <= MAX_PADDING_BYTES && after.starts_with(b"\r\n") {
            end_part(on_event);
            // The line end stays: a part without headers has its empty line right here.
            let _ = self.buffer.split_to(self.delimiter.len() + padding);
            self.state = State::Headers;
            return true;
        }
        let may_become_one =
            rest == b"-" || (padding <= MAX_PADDING_BYTES && (after.is_empty() || after == b"\r"));
        if may_become_one {
            return false;
        }
        // The boundary's text with something else behind it: content that looks alike.
        let content = self.buffer.split_to(2).freeze();
        if in_part {
            on_event(Event::Data(content));
        }
        self.state = if in_part { State::Body } else { State::Preamble };
        true
    }

    fn headers(&mut self, on_event: &mut impl FnMut(Event)) -> Result<bool, MultipartError> {
        let Some(end) = memmem::find(&self.buffer, b"\r\n\r\n") else {
            // The empty line may still come right at the limit, three bytes of it here already.
            return if self.buffer.len() > MAX_HEADER_BYTES + 3 {
                Err(MultipartError::Headers)
            } else {
                Ok(false)
            };
        };
        if end > MAX_HEADER_BYTES {
            return Err(MultipartError::Headers);
        }
        let block = self.buffer.split_to(end + 4);
        let text = std::str::from_utf8(&block).map_err(|_| MultipartError::Headers)?;
        let content_type = text.split("\r\n").find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.trim().eq_ignore_ascii_case("content-type").then(|| value.trim().to_owned())
        });
        on_event(Event::Begin { content_type });
        self.state = State::Body;
        Ok(true)
    }
}

/// One parameter of a content type, such as `boundary` (RFC 9110 8.3.1), unquoted.
#[must_use]
pub fn parameter(content_type: &str, name: &str) -> Option<String> {
    let mut rest = content_type.split_once(';')?.1;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ';']);
        let (found, value) = rest.split_once('=')?;
        let (text, after) = if let Some(quoted) = value.strip_prefix('"') {
            let mut text = String::new();
            let mut characters = quoted.char_indices();
            let end = loop {
                match characters.next()? {
                    (at, '"') => break at + 1,
                    (_, '\\') => text.push(characters.next()?.1),
                    (_, other) => text.push(other),
                }
            };
            (text, &quoted[end..])
        } else {
            let end = value.find(';').unwrap_or(value.len());
            (value[..end].trim().to_owned(), &value[end..])
        };
        if found.trim().eq_ignore_ascii_case(name) {
            return Some(text);
        }
        rest = after;
    }
}

/// The media type of a content type, in lower case and without parameters.
#[must_use]
pub fn media_type(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Parts = Vec<(Option<String>, Vec<u8>)>;

    /// Reads a body that comes in pieces of `size` bytes.
    fn read(body: &[u8], size: usize) -> Result<Parts, MultipartError> {
        let mut multipart = Multipart::new("b")?;
        let mut parts = Vec::new();
        let mut open = None;
        for piece in body.chunks(size.max(1)) {
            multipart.push(piece, |event| match event {
                Event::Begin { content_type } => open = Some((content_type, Vec::new())),
                Event::Data(bytes) => open.as_mut().unwrap().1.extend_from_slice(&bytes),
                Event::End => parts.push(open.take().unwrap()),
            })?;
            assert!(multipart.buffer.len() <= MAX_HEADER_BYTES + MAX_PADDING_BYTES + size + 80);
        }
        multipart.finish()?;
        Ok(parts)
    }

    fn write(parts: &[Vec<u8>]) -> Vec<u8> {
        let mut body = Vec::new();
        for part in parts {
            body.extend_from_slice(b"--b\r\nContent-Type: application/dicom\r\nX: y\r\n\r\n");
            body.extend_from_slice(part);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"--b--");
        body
    }

    #[test]
    fn bodies_as_servers_send_them() {
        let dicom = Some("application/dicom".to_owned());
        for (body, expected) in [
            (
                &b"--b\r\nContent-Type: application/dicom\r\n\r\nabc\r\n--b--\r\n"[..],
                vec![(dicom.clone(), &b"abc"[..])],
            ),
            (b"\r\n--b\r\ncontent-type:application/dicom\r\n\r\nabc\r\n--b--", vec![(dicom.clone(), b"abc")]),
            (b"preamble\r\n--b  \r\n\r\nabc\r\n--b\r\n\r\n\r\n--b--", vec![(None, b"abc"), (None, b"")]),
            (
                b"--b\r\n\r\n\r\n--bc\r\n--b\r\r\n-b\r\n--b--epilogue",
                vec![(None, b"\r\n--bc\r\n--b\r\r\n-b")],
            ),
            (b"--b--", vec![]),
        ] {
            for size in [1, 2, 3, 7, 1000] {
                let parts = read(body, size).unwrap();
                let parts: Vec<_> =
                    parts.iter().map(|(kind, data)| (kind.clone(), data.as_slice())).collect();
                assert_eq!(parts, expected, "{:?} in pieces of {size}", String::from_utf8_lossy(body));
            }
        }
    }

    #[test]
    fn bodies_that_are_none_are_refused() {
        for body in [&b""[..], b"--b", b"--b\r\n\r\nabc", b"--b\r\n\r\nabc\r\n--b", b"no boundary at all"] {
            assert_eq!(read(body, 5), Err(MultipartError::Truncated));
        }
        let endless = [&b"--b\r\n"[..], &vec![b'a'; 40_000]].concat();
        assert_eq!(read(&endless, 1000), Err(MultipartError::Headers));
        assert_eq!(read(b"--b\r\n\xff\xfe: x\r\n\r\nabc\r\n--b--", 5), Err(MultipartError::Headers));
        assert!(Multipart::new("").is_err() && Multipart::new(&"x".repeat(71)).is_err());
    }

    #[test]
    fn limits_hold_however_the_bytes_come() {
        let padded = |spaces: usize| [b"--b", &vec![b' '; spaces][..], b"\r\n\r\nabc\r\n--b--"].concat();
        // The block begins with the boundary's line end.
        let headed = |length: usize| {
            let value = vec![b'a'; length - 2 - "X: ".len()];
            [b"--b\r\nX: ", &value[..], b"\r\n\r\nabc\r\n--b--"].concat()
        };
        for size in [1, 2, 3, 5, 1000, 100_000] {
            assert_eq!(read(&padded(MAX_PADDING_BYTES), size), Ok(vec![(None, b"abc".to_vec())]), "{size}");
            // No boundary then, but text before the closing one.
            assert_eq!(read(&padded(MAX_PADDING_BYTES + 1), size), Ok(vec![]), "{size}");
            assert_eq!(read(&headed(MAX_HEADER_BYTES), size), Ok(vec![(None, b"abc".to_vec())]), "{size}");
            assert_eq!(read(&headed(MAX_HEADER_BYTES + 1), size), Err(MultipartError::Headers), "{size}");
        }
    }

    #[test]
    fn boundaries_quoted_or_not() {
        for (content_type, boundary) in [
            ("multipart/related; boundary=abc", Some("abc")),
            (
                "multipart/related;type=\"application/dicom; transfer-syntax=1.2\";Boundary=\"a;b c\"",
                Some("a;b c"),
            ),
            ("multipart/related; boundary=\"a\\\"b\"", Some("a\"b")),
            ("multipart/related; boundary=abc ; start=x", Some("abc")),
            ("multipart/related; type=\"application/dicom\"", None),
            ("multipart/related; boundary=\"abc", None),
            ("multipart/related", None),
            ("multipart/related;;;", None),
        ] {
            assert_eq!(parameter(content_type, "boundary").as_deref(), boundary, "{content_type}");
        }
        assert_eq!(media_type("Multipart/Related; x=y"), "multipart/related");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_whatever_the_pieces(
            parts in proptest::collection::vec(proptest::collection::vec(prop_oneof![
                3 => any::<u8>(), 1 => Just(b'\r'), 1 => Just(b'\n'), 2 => Just(b'-'), 1 => Just(b'b')
            ], 0..60), 0..5),
            size in 1usize..80,
        ) {
            // Content that holds a whole delimiter line cannot be told from one; no writer chooses such a boundary.
            let holds_boundary = |part: &Vec<u8>| memmem::find(part, b"\r\n--b").is_some();
            prop_assume!(!parts.iter().any(holds_boundary));
            let read = read(&write(&parts), size).unwrap();
            let data: Vec<Vec<u8>> = read.into_iter().map(|(_, data)| data).collect();
            prop_assert_eq!(data, parts);
        }

        #[test]
        fn no_bytes_make_it_panic_or_grow(
            body in proptest::collection::vec(prop_oneof![
                any::<u8>(), Just(b'\r'), Just(b'\n'), Just(b'-'), Just(b'b'), Just(b' ')
            ], 0..400),
            size in 1usize..40,
        ) {
            let _ = read(&body, size);
        }

        #[test]
        fn no_content_type_makes_it_panic(text in "\\PC{0,80}") {
            let _ = parameter(&text, "boundary");
            let _ = parameter(&format!("a;{text}"), "boundary");
            let _ = media_type(&text);
        }
    }
}
