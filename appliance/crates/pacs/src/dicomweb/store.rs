//! STOW-RS (PS3.18 10.5): storing objects, believing only what the answer names.

use super::client::{DicomWebClient, MAX_JSON_BYTES, Request};
use super::json::{JsonDataSet, data_sets};
use crate::error::DicomWebError;
use crate::identify::identify;
use bytes::{Bytes, BytesMut};
use dicom_dictionary_std::tags;
use reqwest::{Method, StatusCode};
use std::collections::{HashMap, HashSet};

/// The most bytes that go in one request, unless a single object is larger.
const MAX_REQUEST_BYTES: usize = 16 << 20;
/// The most objects that go in one request.
const MAX_REQUEST_OBJECTS: usize = 20;

/// What became of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreOutcome {
    /// The PACS says that it has it.
    Stored,
    /// The PACS does not have it.
    Failed(StoreFailure),
}

/// Why an object was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreFailure {
    /// The bytes are no object with a SOPInstanceUID; they were not sent.
    #[error("the file is no DICOM object with a SOPInstanceUID")]
    NotAnObject,
    /// The PACS gives this failure reason (PS3.18 annex I.2.2), 0 where it gives none.
    #[error("the PACS refused the object with failure reason {0:#06x}")]
    Refused(u16),
    /// The PACS answered with this HTTP status and no word on the object.
    #[error("the PACS refused the object (HTTP {0})")]
    Status(u16),
    /// The answer does not mention the object: it says success, and nothing was stored.
    #[error("the PACS did not say that it stored the object")]
    NotMentioned,
}

fn store_answers(status: StatusCode) -> bool {
    // PS3.18 table 10.5.3-1; bodies of 4xx name what was stored all the same.
    matches!(status.as_u16(), 400 | 409 | 413 | 415 | 422)
}

impl DicomWebClient {
    /// Stores DICOM files (PS3.10), several in one request where they are small. One outcome for each, in order.
    ///
    /// An object that the PACS has already counts as stored. Sending again is harmless, so a request whose answer
    /// got lost is repeated.
    ///
    /// # Errors
    /// When the PACS cannot be reached, or refuses the credentials.
    pub async fn store(&self, files: &[Bytes]) -> Result<Vec<StoreOutcome>, DicomWebError> {
        let mut outcomes = vec![StoreOutcome::Failed(StoreFailure::NotAnObject); files.len()];
        let named = files.iter().enumerate();
        let named: Vec<(usize, String)> =
            named.filter_map(|(index, file)| Some((index, identify(file).ok()?))).collect();
        let mut rest = named.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |(index, _): &&(usize, String)| {
                bytes += files[*index].len();
                bytes <= MAX_REQUEST_BYTES
            };
            let count = rest.iter().take(MAX_REQUEST_OBJECTS).take_while(fits).count().max(1);
            let (batch, after) = rest.split_at(count);
            rest = after;
            let answers = self.store_batch(files, batch).await?;
            for ((index, _), outcome) in batch.iter().zip(answers) {
                outcomes[*index] = outcome;
            }
        }
        Ok(outcomes)
    }

    async fn store_batch(
        &self,
        files: &[Bytes],
        batch: &[(usize, String)],
    ) -> Result<Vec<StoreOutcome>, DicomWebError> {
        let together = self.store_request(files, batch).await?;
        let failed = together.iter().filter(|outcome| **outcome != StoreOutcome::Stored).count();
        if batch.len() == 1 || failed == 0 {
            return Ok(together);
        }
        // One bad part makes some servers refuse or forget others: each that is not confirmed goes once more, alone.
        let mut outcomes = Vec::with_capacity(batch.len());
        for (object, outcome) in batch.iter().zip(together) {
            outcomes.push(match outcome {
                StoreOutcome::Stored => outcome,
                StoreOutcome::Failed(_) => self.store_request(files, std::slice::from_ref(object)).await?[0],
            });
        }
        Ok(outcomes)
    }

    async fn store_request(
        &self,
        files: &[Bytes],
        batch: &[(usize, String)],
    ) -> Result<Vec<StoreOutcome>, DicomWebError> {
        // 128 random bits are in no file.
        let boundary = format!("medinet-{}", hex::encode(rand::random::<[u8; 16]>()));
        let mut body = BytesMut::new();
        for (index, _) in batch {
            body.extend_from_slice(
                format!("--{boundary}\r\nContent-Type: application/dicom\r\n\r\n").as_bytes(),
            );
            body.extend_from_slice(&files[*index]);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
        let content_type = format!("multipart/related; type=\"application/dicom\"; boundary={boundary}");
        let request = Request {
            method: Method::POST,
            url: self.url(&["studies"], &[]),
            accept: "application/dicom+json",
            body: Some((content_type, body.freeze())),
        };
        let answer = match self.send(&request, store_answers).await {
            Ok(answer) => answer,
            // The server broke on one of the parts; which one shows when each goes alone.
            Err(error @ (DicomWebError::Server { .. } | DicomWebError::Refused { .. })) => {
                let status = match error {
                    DicomWebError::Server { status } | DicomWebError::Refused { status } => status,
                    _ => 0,
                };
                return Ok(vec![StoreOutcome::Failed(StoreFailure::Status(status)); batch.len()]);
            }
            Err(error) => return Err(error),
        };
        let status = answer.status;
        let sets = data_sets(&answer.body(MAX_JSON_BYTES).await?);
        Ok(outcomes(status, sets.as_deref().unwrap_or_default(), batch))
    }
}

/// Reads a store response (PS3.18 annex I.2): what it names as stored is stored, and nothing else.
fn outcomes(status: StatusCode, sets: &[JsonDataSet], batch: &[(usize, String)]) -> Vec<StoreOutcome> {
    let mut stored = HashSet::new();
    let mut failed = HashMap::new();
    for set in sets {
        let referenced = set.items(tags::REFERENCED_SOP_SEQUENCE);
        stored.extend(referenced.iter().filter_map(|item| item.text(tags::REFERENCED_SOP_INSTANCE_UID)));
        for item in set.items(tags::FAILED_SOP_SEQUENCE) {
            let reason = item.number(tags::FAILURE_REASON).and_then(|reason| u16::try_from(reason).ok());
            if let Some(uid) = item.text(tags::REFERENCED_SOP_INSTANCE_UID) {
                failed.insert(uid, reason.unwrap_or(0));
            }
        }
    }
    let outcome = |uid: &String| match failed.get(uid) {
        // Failed in one list and stored in the other happens where an object was sent twice: it is there.
        _ if stored.contains(uid) => StoreOutcome::Stored,
        Some(&reason) => StoreOutcome::Failed(StoreFailure::Refused(reason)),
        None if !status.is_success() => StoreOutcome::Failed(StoreFailure::Status(status.as_u16())),
        None => StoreOutcome::Failed(StoreFailure::NotMentioned),
    };
    batch.iter().map(|(_, uid)| outcome(uid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_answer_names_is_stored() {
        let answer = br#"{"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1"]}},
              {"00081155": {"vr": "UI", "Value": ["4"]}}]},
            "00081198": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["2"]},
              "00081197": {"vr": "US", "Value": [272]}}, {"00081155": {"vr": "UI", "Value": ["4"]}}]}}"#;
        let sets = data_sets(answer).unwrap();
        let batch: Vec<(usize, String)> =
            ["1", "2", "3", "4"].iter().map(|uid| (0, (*uid).to_owned())).collect();
        let got = outcomes(StatusCode::OK, &sets, &batch);
        assert_eq!(
            got,
            [
                StoreOutcome::Stored,
                StoreOutcome::Failed(StoreFailure::Refused(0x0110)),
                StoreOutcome::Failed(StoreFailure::NotMentioned),
                StoreOutcome::Stored,
            ]
        );
        let got = outcomes(StatusCode::PAYLOAD_TOO_LARGE, &[], &batch[..1]);
        assert_eq!(got, [StoreOutcome::Failed(StoreFailure::Status(413))]);
    }
}
