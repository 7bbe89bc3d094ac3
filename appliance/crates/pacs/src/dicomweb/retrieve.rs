//! WADO-RS (PS3.18 10.4): objects as they are stored, metadata, frames.

use super::client::{Answer, Dangerous, MAX_JSON_BYTES};
use super::json::{JsonDataSet, data_sets};
use super::multipart::{Event, Multipart, MultipartError, media_type, parameter};
use crate::error::DicomWebError;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// `transfer-syntax=*` asks for each object as it is stored. Without it servers transcode, and fail on some files.
const STORED_OBJECTS: &str = "multipart/related; type=\"application/dicom\"; transfer-syntax=*";
/// The same for frames.
const STORED_FRAMES: &str = "multipart/related; type=\"application/octet-stream\"; transfer-syntax=*";

/// A whole part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its content type, where it has one.
    pub content_type: Option<String>,
    /// Its content.
    pub bytes: Bytes,
}

/// An answer of several parts, or of one, as it comes.
pub struct PartStream {
    answer: Answer,
    /// None where the answer is a single part.
    multipart: Option<Multipart>,
    events: VecDeque<Event>,
    ended: bool,
}

fn bad(error: MultipartError) -> DicomWebError {
    let got = match error {
        MultipartError::NoBoundary => "none",
        MultipartError::Headers => "other bytes",
        MultipartError::Truncated => "a body that ends before it",
    };
    let expected = match error {
        MultipartError::NoBoundary => "a content type with a boundary of 1 to 70 characters",
        MultipartError::Headers => "part headers of at most 16 KiB of text",
        MultipartError::Truncated => "a closing boundary at the end",
    };
    DicomWebError::Answer { expected, got: got.to_owned() }
}

impl PartStream {
    fn new(answer: Answer) -> Result<Self, DicomWebError> {
        let content_type = answer.content_type();
        let mut events = VecDeque::new();
        let multipart = if media_type(&content_type).starts_with("multipart/") {
            let boundary =
                parameter(&content_type, "boundary").ok_or_else(|| bad(MultipartError::NoBoundary))?;
            Some(Multipart::new(&boundary).map_err(bad)?)
        } else {
            if media_type(&content_type).starts_with("text/") {
                return Err(DicomWebError::Answer { expected: "an object", got: "a text".to_owned() });
            }
            events.push_back(Event::Begin { content_type: Some(content_type) });
            None
        };
        Ok(Self { answer, multipart, events, ended: false })
    }

    /// What comes next; none at the end of the answer.
    ///
    /// # Errors
    /// When the connection breaks, or the answer is not as RFC 2046 says.
    pub async fn next(&mut self) -> Result<Option<Event>, DicomWebError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            if self.ended {
                return Ok(None);
            }
            let piece = self.answer.piece().await?;
            match (&mut self.multipart, piece) {
                (Some(multipart), Some(piece)) => {
                    let events = &mut self.events;
                    multipart.push(&piece, |event| events.push_back(event)).map_err(bad)?;
                }
                (Some(multipart), None) => {
                    self.ended = true;
                    multipart.finish().map_err(bad)?;
                }
                (None, Some(piece)) => self.events.push_back(Event::Data(piece)),
                (None, None) => {
                    self.ended = true;
                    self.events.push_back(Event::End);
                }
            }
        }
    }

    /// All parts, each of at most `max_part_bytes`.
    ///
    /// # Errors
    /// As [`PartStream::next`], and when a part is larger.
    pub async fn collect(mut self, max_part_bytes: u64) -> Result<Vec<Part>, DicomWebError> {
        let mut parts = Vec::new();
        let mut open: Option<(Option<String>, BytesMut)> = None;
        while let Some(event) = self.next().await? {
            match (event, &mut open) {
                (Event::Begin { content_type }, _) => open = Some((content_type, BytesMut::new())),
                (Event::Data(piece), Some((_, bytes))) => {
                    if bytes.len() as u64 + piece.len() as u64 > max_part_bytes {
                        return Err(DicomWebError::AnswerTooLarge { limit_bytes: max_part_bytes });
                    }
                    bytes.extend_from_slice(&piece);
                }
                (Event::Data(_), None) => {}
                (Event::End, open) => {
                    parts.extend(
                        open.take().map(|(content_type, bytes)| Part { content_type, bytes: bytes.freeze() }),
                    );
                }
            }
        }
        Ok(parts)
    }
}

impl Dangerous<'_> {
    /// All objects of a series, as they are stored.
    ///
    /// # Errors
    /// When the PACS cannot be asked, or its answer is not what PS3.18 says.
    pub async fn retrieve_series(&self, study: &str, series: &str) -> Result<PartStream, DicomWebError> {
        let url = self.client.url(&["studies", study, "series", series], &[]);
        PartStream::new(self.client.get(url, STORED_OBJECTS).await?)
    }

    /// All objects of a study, as they are stored.
    ///
    /// # Errors
    /// As [`Dangerous::retrieve_series`].
    pub async fn retrieve_study(&self, study: &str) -> Result<PartStream, DicomWebError> {
        PartStream::new(self.client.get(self.client.url(&["studies", study], &[]), STORED_OBJECTS).await?)
    }

    /// One object, as it is stored.
    ///
    /// # Errors
    /// As [`Dangerous::retrieve_series`].
    pub async fn retrieve_instance(
        &self,
        study: &str,
        series: &str,
        sop_instance: &str,
    ) -> Result<PartStream, DicomWebError> {
        let path = ["studies", study, "series", series, "instances", sop_instance];
        PartStream::new(self.client.get(self.client.url(&path, &[]), STORED_OBJECTS).await?)
    }

    /// Frames of an object, numbered from 1, as they are stored.
    ///
    /// # Errors
    /// As [`Dangerous::retrieve_series`].
    pub async fn retrieve_frames(
        &self,
        study: &str,
        series: &str,
        sop_instance: &str,
        frames: &[u32],
    ) -> Result<PartStream, DicomWebError> {
        let list = frames.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let path = ["studies", study, "series", series, "instances", sop_instance, "frames", &list];
        PartStream::new(self.client.get(self.client.url(&path, &[]), STORED_FRAMES).await?)
    }

    /// The attributes of all objects of a series, without pixels.
    ///
    /// # Errors
    /// As [`Dangerous::retrieve_series`].
    pub async fn series_metadata(
        &self,
        study: &str,
        series: &str,
    ) -> Result<Vec<JsonDataSet>, DicomWebError> {
        let url = self.client.url(&["studies", study, "series", series, "metadata"], &[]);
        data_sets(&self.client.get(url, "application/dicom+json").await?.body(MAX_JSON_BYTES).await?)
    }
}
