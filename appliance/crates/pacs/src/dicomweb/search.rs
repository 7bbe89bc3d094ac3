//! QIDO-RS (PS3.18 10.6): searching, page by page, trusting nothing that can be checked.

use super::client::{Dangerous, DicomWebClient, MAX_JSON_BYTES};
use super::json::{JsonDataSet, data_sets};
use crate::error::DicomWebError;
use crate::identify::uid;
use dicom_core::Tag;
use dicom_dictionary_std::tags;
use reqwest::StatusCode;
use std::collections::HashSet;

/// The most matches of one search that are taken, so that a server that never ends cannot fill the memory.
const MAX_MATCHES: usize = 1_000_000;

/// One match of a search: a study, series or instance, named by its UID.
#[derive(Debug, Clone)]
pub struct Match {
    uid: String,
    /// The attributes that came with it.
    pub attributes: JsonDataSet,
}

impl Match {
    /// The UID of the study, series or instance.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.uid
    }
}

/// What came of a search: the matches, each once, and how many more came that could not be told apart.
#[derive(Debug, Default)]
pub struct Matches {
    /// The matches.
    pub matches: Vec<Match>,
    /// Matches without a usable UID; they cannot be asked for.
    pub nameless: u64,
    /// Pages that were asked for.
    pub pages: u32,
}

impl DicomWebClient {
    /// All matches under `path`, page by page, each once, named by `key`.
    ///
    /// A page with fewer matches than asked for is the last only if as many came as `expected`: some servers give
    /// less than asked for and say nothing. Where nothing is expected, the last page is an empty one, or one that
    /// repeats.
    async fn search(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        key: Tag,
        expected: Option<u64>,
    ) -> Result<Matches, DicomWebError> {
        let page_size = self.page_size();
        let limit = page_size.to_string();
        let mut found = Matches::default();
        let mut seen = HashSet::new();
        let mut offset = 0u64;
        loop {
            let offset_text = offset.to_string();
            let mut pairs: Vec<(&str, &str)> =
                query.iter().map(|(name, value)| (*name, value.as_str())).collect();
            pairs.push(("limit", &limit));
            if offset > 0 {
                pairs.push(("offset", &offset_text));
            }
            let answer = self.get(self.url(path, &pairs), "application/dicom+json").await?;
            found.pages += 1;
            if answer.status == StatusCode::NO_CONTENT {
                return Ok(found);
            }
            let page = data_sets(&answer.body(MAX_JSON_BYTES).await?)?;
            let came = page.len() as u64;
            let before = found.matches.len();
            for attributes in page {
                match attributes.text(key).as_deref().and_then(uid).map(str::to_owned) {
                    Some(uid) if seen.insert(uid.clone()) => found.matches.push(Match { uid, attributes }),
                    Some(_) => {}
                    None => found.nameless += 1,
                }
            }
            offset += came;
            let nothing_new = found.matches.len() == before;
            let short = came < u64::from(page_size);
            let all = expected.is_some_and(|expected| seen.len() as u64 + found.nameless >= expected);
            if came == 0 || nothing_new || (short && all) {
                return Ok(found);
            }
            if found.matches.len() > MAX_MATCHES {
                return Err(DicomWebError::Answer {
                    expected: "at most 1,000,000 matches",
                    got: "more; narrow the query".to_owned(),
                });
            }
        }
    }
}

fn fields(tags: &[&str]) -> Vec<(&'static str, String)> {
    // One parameter per field: a list in one is read by some servers as a single, unknown name.
    tags.iter().map(|tag| ("includefield", (*tag).to_owned())).collect()
}

impl Dangerous<'_> {
    /// Studies that match `filters` (keyword and value, as in PS3.18 8.3.4). Many servers ignore filters that they
    /// do not know, so the caller checks the matches again.
    ///
    /// # Errors
    /// When the PACS cannot be asked, or its answer is not what PS3.18 says.
    pub async fn search_studies(&self, filters: &[(&'static str, String)]) -> Result<Matches, DicomWebError> {
        let mut query = filters.to_vec();
        query.extend(fields(&["StudyDate", "ModalitiesInStudy", "NumberOfStudyRelatedInstances"]));
        self.client.search(&["studies"], &query, tags::STUDY_INSTANCE_UID, None).await
    }

    /// The series of a study.
    ///
    /// # Errors
    /// As [`Dangerous::search_studies`].
    pub async fn search_series(&self, study: &str) -> Result<Matches, DicomWebError> {
        let query = fields(&["Modality", "NumberOfSeriesRelatedInstances"]);
        self.client.search(&["studies", study, "series"], &query, tags::SERIES_INSTANCE_UID, None).await
    }

    /// The instances of a series, of which `expected` are thought to exist.
    ///
    /// # Errors
    /// As [`Dangerous::search_studies`].
    pub async fn search_instances(
        &self,
        study: &str,
        series: &str,
        expected: Option<u64>,
    ) -> Result<Matches, DicomWebError> {
        let query = fields(&["SOPClassUID"]);
        let path = ["studies", study, "series", series, "instances"];
        self.client.search(&path, &query, tags::SOP_INSTANCE_UID, expected).await
    }
}
