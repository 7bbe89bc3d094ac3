//! Pulling from a PACS: search, compare with the ledger, fetch what is missing.
//!
//! One pass searches the studies (all dates at first, where that takes few pages, and every so often; else those near
//! and after the newest seen),
//! lists each study whose number of instances has changed, and fetches every object that is listed and not fetched.
//! Each step is written to the ledger before the next, and the cursor moves last, so a kill at any point repeats
//! work at most.

use crate::dicomweb::multipart::Event;
use crate::dicomweb::{DicomWebClient, Match, PartStream};
use crate::error::{DicomWebError, IntakeError};
use crate::identify::identify;
use crate::ledger::{Discovered, Ledger, Pending, PendingSeries, Scan};
use crate::progress::Reporter;
use crate::settings::{DicomWebSettings, StudyDate};
use crate::spool::{Incoming, Spool, Stored, sha256};
use dicom_dictionary_std::tags;
use medinet_types::UnixMillis;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

/// How often an object on which the PACS fails is asked for, over all passes, before it is set aside.
const MAX_FETCHES: u32 = 3;
/// After so many failures on objects in a row the PACS itself is taken to be sick, and the pass ends.
const SICK_AFTER: u32 = 12;
/// As long as looking through all dates takes no more pages than this, each pass does: it finds old studies that
/// arrive late at once.
const CHEAP_PAGES: u32 = 20;
/// How much of an object's beginning is kept to read its UIDs from.
const HEAD_BYTES: usize = 256 << 10;
/// How many objects from earlier passes are looked up at a time.
const PENDING_BATCH: u32 = 1000;

/// Pulls from one PACS.
#[derive(Clone)]
pub(crate) struct Puller {
    shared: Arc<Shared>,
}

struct Shared {
    client: DicomWebClient,
    settings: DicomWebSettings,
    ledger: Ledger,
    spool: Spool,
    reporter: Reporter,
    max_object_bytes: u64,
    failures_in_a_row: AtomicU32,
}

/// What came of receiving one object.
enum Received {
    Whole(Box<Incoming>),
    TooLarge,
}

impl Puller {
    pub(crate) fn new(
        settings: &DicomWebSettings,
        ledger: Ledger,
        spool: Spool,
        reporter: Reporter,
        max_object_bytes: u64,
    ) -> Result<Self, DicomWebError> {
        let shared = Shared {
            client: DicomWebClient::new(settings)?,
            settings: settings.clone(),
            ledger,
            spool,
            reporter,
            max_object_bytes,
            failures_in_a_row: AtomicU32::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// One pass over everything that is new.
    pub(crate) async fn pass(&self, now: UnixMillis) -> Result<(), IntakeError> {
        let Shared { ledger, settings, .. } = &*self.shared;
        self.shared.failures_in_a_row.store(0, Ordering::Relaxed);
        let search = self.search_name();
        let scan = ledger.scan(&search)?;
        let due = is_due(&scan, now, settings.full_scan_interval.get());
        let full = due || scan.full_scan_pages <= CHEAP_PAGES;
        if due {
            // A PACS that was sick or is repaired gets another chance on what it failed to give.
            let again = ledger.retry_failed_fetches()?;
            self.shared
                .reporter
                .change(|progress| progress.quarantined = progress.quarantined.saturating_sub(again));
        }
        self.fetch_pending().await?;
        let (studies, pages) = self.search_studies(&scan, full).await?;
        let mut tasks = JoinSet::new();
        let mut newest = StudyDate::from_dicom(&scan.newest_study_date);
        let today = StudyDate::from_unix(now);
        let mut studies = studies.into_iter();
        loop {
            while tasks.len() < settings.max_concurrent.max(1) as usize {
                let Some(study) = studies.next() else { break };
                // A date in the future is a typing error; as the cursor it would hide what comes in between.
                let date =
                    study.attributes.text(tags::STUDY_DATE).and_then(|date| StudyDate::from_dicom(&date));
                newest = newest.max(date.map(|date| date.min(today)));
                let puller = self.clone();
                tasks.spawn(async move { puller.study(&study).await });
            }
            match tasks.join_next().await {
                // A set that is dropped ends its tasks; what they had not written down is found again.
                Some(result) => result.map_err(|_| IntakeError::Broken { part: "puller" })??,
                None => break,
            }
        }
        // What the PACS failed on is asked for again now, so that each pass ends with a verdict on each object.
        for _ in 1..MAX_FETCHES {
            self.fetch_pending().await?;
        }
        let newest_study_date = newest.map(StudyDate::to_dicom).unwrap_or_default();
        let scan = if full {
            Scan { newest_study_date, last_full_scan_ms: now.0, full_scan_pages: pages }
        } else {
            Scan { newest_study_date, ..scan }
        };
        ledger.scanned(&search, &scan)?;
        Ok(())
    }

    /// Names the address and the query; another address or query is another search, which begins anew.
    fn search_name(&self) -> String {
        let DicomWebSettings { base_url, query, .. } = &self.shared.settings;
        let date = |date: Option<StudyDate>| date.map(StudyDate::to_dicom).unwrap_or_default();
        let text = format!(
            "{}\n{}\n{}\n{}",
            base_url.expose(),
            query.modalities.join(","),
            date(query.study_date_from),
            date(query.study_date_to)
        );
        hex::encode(&sha256(text.as_bytes())[..16])
    }

    /// The studies to look into (what the PACS gives, checked again), and the pages that it took.
    async fn search_studies(&self, scan: &Scan, full: bool) -> Result<(Vec<Match>, u32), IntakeError> {
        let Shared { settings, client, .. } = &*self.shared;
        let query = &settings.query;
        let newest = StudyDate::from_dicom(&scan.newest_study_date).filter(|_| !full);
        let near = newest.map(|newest| newest.before(settings.late_arrivals.get()));
        let from = query.study_date_from.max(near);
        let mut filters = Vec::new();
        if from.is_some() || query.study_date_to.is_some() {
            let text = |date: Option<StudyDate>| date.map(StudyDate::to_dicom).unwrap_or_default();
            filters.push(("StudyDate", format!("{}-{}", text(from), text(query.study_date_to))));
        }
        let searches: Vec<Vec<(&'static str, String)>> = if query.modalities.is_empty() {
            vec![filters]
        } else {
            // One search per code: lists of codes are understood by few servers.
            let with = |code: &String| [filters.clone(), vec![("ModalitiesInStudy", code.clone())]].concat();
            query.modalities.iter().map(with).collect()
        };
        let mut studies: HashMap<String, Match> = HashMap::new();
        let (mut nameless, mut pages) = (0, 0u32);
        for filters in searches {
            let found = client.dangerous().search_studies(&filters).await?;
            nameless += found.nameless;
            pages = pages.saturating_add(found.pages);
            studies.extend(found.matches.into_iter().map(|study| (study.uid().to_owned(), study)));
        }
        if nameless > 0 {
            tracing::warn!(
                count = nameless,
                "the PACS lists studies without a StudyInstanceUID; they cannot be asked for"
            );
        }
        let came = studies.len();
        let mut studies: Vec<Match> = studies.into_values().filter(|study| self.wanted(study)).collect();
        if studies.len() < came {
            let left_out = came - studies.len();
            tracing::info!(left_out, "studies that the PACS gave and that the query does not ask for");
        }
        // The oldest first, as they came to the hospital.
        studies.sort_by_cached_key(|study| (study.attributes.text(tags::STUDY_DATE), study.uid().to_owned()));
        Ok((studies, pages))
    }

    /// Whether a study is one that the settings ask for. One without a usable date is not, where dates are asked for.
    fn wanted(&self, study: &Match) -> bool {
        let query = &self.shared.settings.query;
        if query.study_date_from.is_some() || query.study_date_to.is_some() {
            let date = study.attributes.text(tags::STUDY_DATE).and_then(|date| StudyDate::from_dicom(&date));
            let Some(date) = date else { return false };
            if query.study_date_from.is_some_and(|from| date < from)
                || query.study_date_to.is_some_and(|to| date > to)
            {
                return false;
            }
        }
        let modalities = study.attributes.texts(tags::MODALITIES_IN_STUDY);
        query.modalities.is_empty()
            || modalities.is_empty()
            || modalities.iter().any(|m| query.modalities.contains(m))
    }

    /// Lists one study, if it may have changed, and fetches what is new in it.
    async fn study(&self, study: &Match) -> Result<(), IntakeError> {
        let Shared { ledger, client, settings, reporter, .. } = &*self.shared;
        let instances = study.attributes.number(tags::NUMBER_OF_STUDY_RELATED_INSTANCES);
        let looks = instances.map(|count| format!("{count} {}", settings.query.modalities.join(",")));
        if looks.is_none() || ledger.listed_as(study.uid())? != looks {
            let mut listed_as = looks.unwrap_or_default();
            let mut objects = Vec::new();
            let found = client.dangerous().search_series(study.uid()).await?;
            for series in found.matches {
                let wanted = &settings.query.modalities;
                let modality = series.attributes.text(tags::MODALITY);
                if !wanted.is_empty() && modality.is_some_and(|modality| !wanted.contains(&modality)) {
                    continue;
                }
                let expected = series.attributes.number(tags::NUMBER_OF_SERIES_RELATED_INSTANCES);
                let found = client.dangerous().search_instances(study.uid(), series.uid(), expected).await?;
                if expected.is_some_and(|expected| (found.matches.len() as u64) < expected) {
                    // Not all were listed: look again in the next pass.
                    listed_as.clear();
                }
                objects.extend(found.matches.iter().map(|instance| Discovered {
                    study: study.uid().to_owned(),
                    series: series.uid().to_owned(),
                    sop_instance: instance.uid().to_owned(),
                }));
            }
            let new = ledger.list_study(study.uid(), &listed_as, &objects)?;
            reporter.change(|progress| progress.discovered += new);
        }
        for series in ledger.pending_of_study(study.uid())? {
            self.series(series).await?;
        }
        Ok(())
    }

    /// Fetches what is listed and was not fetched, from this pass or an earlier one.
    async fn fetch_pending(&self) -> Result<(), IntakeError> {
        let mut after = 0;
        loop {
            let batch = self.shared.ledger.pending(after, PENDING_BATCH)?;
            let last = batch.iter().flat_map(|series| &series.objects).map(|object| object.id).max();
            let Some(last) = last else { return Ok(()) };
            after = last;
            let mut tasks = JoinSet::new();
            let mut batch = batch.into_iter();
            loop {
                while tasks.len() < self.shared.settings.max_concurrent.max(1) as usize {
                    let Some(series) = batch.next() else { break };
                    let puller = self.clone();
                    tasks.spawn(async move { puller.series(series).await });
                }
                match tasks.join_next().await {
                    Some(result) => result.map_err(|_| IntakeError::Broken { part: "puller" })??,
                    None => break,
                }
            }
        }
    }

    /// Fetches objects of one series: in one answer where most of the series is wanted, and singly what is left.
    async fn series(&self, series: PendingSeries) -> Result<(), IntakeError> {
        let known = self.shared.ledger.known_in_series(&series.study, &series.series)?;
        let mut wanted: HashMap<String, i64> =
            series.objects.iter().map(|object| (object.sop_instance.clone(), object.id)).collect();
        if wanted.len() >= 2 && wanted.len() * 2 >= known {
            self.shared.spool.room().await;
            match self.whole_series(&series, &mut wanted).await {
                Ok(()) => {}
                Err(IntakeError::DicomWeb(error)) if singly_may_help(&error) => {
                    tracing::debug!(cause = error.code(), "a series could not be fetched as a whole");
                }
                Err(error) => return Err(error),
            }
        }
        for object in series.objects.iter().filter(|object| wanted.contains_key(&object.sop_instance)) {
            self.shared.spool.room().await;
            self.instance(&series, object).await?;
        }
        Ok(())
    }

    /// Takes from the answer to a series what is wanted; what remains in `wanted` did not come.
    async fn whole_series(
        &self,
        series: &PendingSeries,
        wanted: &mut HashMap<String, i64>,
    ) -> Result<(), IntakeError> {
        let mut parts = self.shared.client.dangerous().retrieve_series(&series.study, &series.series).await?;
        let mut head = Vec::new();
        while let Some(received) = self.receive(&mut parts, &mut head).await? {
            self.shared.failures_in_a_row.store(0, Ordering::Relaxed);
            let Received::Whole(file) = received else { continue };
            let Ok(sop_instance) = identify(&head) else { continue };
            if let Some(id) = wanted.remove(&sop_instance) {
                self.keep(id, *file).await?;
            }
            self.shared.spool.room().await;
        }
        Ok(())
    }

    /// Fetches one object, or writes down why not.
    async fn instance(&self, series: &PendingSeries, object: &Pending) -> Result<(), IntakeError> {
        let Shared { ledger, client, reporter, .. } = &*self.shared;
        let fetched = async {
            let reader = client.dangerous();
            let mut parts =
                reader.retrieve_instance(&series.study, &series.series, &object.sop_instance).await?;
            self.receive(&mut parts, &mut Vec::new()).await
        };
        let (code, reason, final_word) = match fetched.await {
            Ok(Some(Received::Whole(file))) => {
                self.shared.failures_in_a_row.store(0, Ordering::Relaxed);
                return self.keep(object.id, *file).await;
            }
            Ok(Some(Received::TooLarge)) => {
                ("too-large", format!("larger than {} bytes", self.shared.max_object_bytes), true)
            }
            Ok(None) => ("bad-answer", "the PACS answered without an object".to_owned(), true),
            Err(error) if error.concerns_one_object() => {
                let passing = matches!(error, DicomWebError::Server { .. });
                (error.code(), error.to_string(), !passing)
            }
            // It breaks off in the middle of this object, after it has begun to answer: that may be the object.
            Err(DicomWebError::Connection { what: "reading the answer", .. }) => {
                ("retrieve-failed", "the PACS breaks off while it sends the object".to_owned(), false)
            }
            Err(error) => return Err(error.into()),
        };
        let failures = self.shared.failures_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
        if !final_word && ledger.attempt_failed(object.id)? < MAX_FETCHES {
            if failures >= SICK_AFTER {
                return Err(DicomWebError::Server { status: 500 }.into());
            }
            return Ok(());
        }
        ledger.quarantined(object.id, code, &reason, &object.sop_instance, crate::intake::now())?;
        reporter.change(|progress| progress.quarantined += 1);
        tracing::info!(code, "an object could not be fetched and was set aside");
        Ok(())
    }

    /// Receives the next object of an answer into the spool, and its beginning into `head`.
    async fn receive(
        &self,
        parts: &mut PartStream,
        head: &mut Vec<u8>,
    ) -> Result<Option<Received>, DicomWebError> {
        let mut file = None;
        let mut too_large = false;
        while let Some(event) = parts.next().await? {
            match event {
                Event::Begin { .. } => {
                    head.clear();
                    file = Some(self.shared.spool.begin().await?);
                }
                Event::Data(piece) => {
                    let Some(open) = &mut file else { continue };
                    if open.len() + piece.len() as u64 > self.shared.max_object_bytes {
                        too_large = true;
                        file = None;
                        continue;
                    }
                    let missing = HEAD_BYTES.saturating_sub(head.len()).min(piece.len());
                    head.extend_from_slice(&piece[..missing]);
                    open.write(&piece).await?;
                }
                Event::End if too_large => return Ok(Some(Received::TooLarge)),
                Event::End => return Ok(file.map(|file| Received::Whole(Box::new(file)))),
            }
        }
        Ok(None)
    }

    async fn keep(&self, id: i64, file: Incoming) -> Result<(), IntakeError> {
        // No sync to the disk: after a power cut the file's hash shows the damage, and the PACS still has the object.
        let Stored { location, sha256, bytes } =
            file.finish(&format!("w{id}"), false).await.map_err(DicomWebError::from)?;
        self.shared.ledger.fetched(id, &location, &sha256, bytes)?;
        self.shared.reporter.file_waits();
        Ok(())
    }
}

/// Whether all dates have to be looked through again, whatever it takes.
fn is_due(scan: &Scan, now: UnixMillis, interval: Duration) -> bool {
    scan.last_full_scan_ms == 0 || now.since(UnixMillis(scan.last_full_scan_ms)) >= interval
}

fn singly_may_help(error: &DicomWebError) -> bool {
    error.concerns_one_object()
        || matches!(error, DicomWebError::Connection { what: "reading the answer", .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_dates_are_looked_through_at_first_and_every_so_often() {
        let interval = Duration::from_secs(60);
        assert!(is_due(&Scan::default(), UnixMillis(1), interval));
        let scan = Scan { last_full_scan_ms: 1_000_000, ..Scan::default() };
        assert!(!is_due(&scan, UnixMillis(1_059_999), interval));
        assert!(is_due(&scan, UnixMillis(1_060_000), interval));
        assert!(!is_due(&scan, UnixMillis(5), interval), "a clock that was set back is no reason");
    }
}
