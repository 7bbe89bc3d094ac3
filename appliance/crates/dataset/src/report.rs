//! Statements about classes in structured reports (PS3.3 C.17.3; PS3.16 TID 1500 and simpler trees).

use crate::dataset::text;
use crate::{CodePattern, SrCode};
use dicom_core::Tag;
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;
use std::collections::{BTreeMap, BTreeSet};

/// Deeper trees are cut off: real ones have fewer than ten levels.
const MAX_DEPTH: usize = 64;

/// What a report says about an image or its study.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Statement {
    pub(crate) target: Target,
    /// Empty where the report states two classes.
    pub(crate) class: String,
    /// Orders reports by their own date and time.
    pub(crate) rank: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    /// A remapped SOP Instance UID.
    Instance(String),
    /// The report's study, where it references no image.
    Study,
}

/// The statements of a report that the code map knows. A CODE item speaks about the images that the nearest container
/// around it references; without such, about all images that the report used as evidence; without those, about the
/// study.
pub(crate) fn statements(report: &InMemDicomObject, codes: &[SrCode]) -> Vec<Statement> {
    // A report that is no longer valid says nothing (PS3.3 C.17.2: COMPLETE or PARTIAL).
    if text(report, tags::COMPLETION_FLAG).as_deref() == Some("PARTIAL") {
        return Vec::new();
    }
    let mut found: BTreeMap<Target, BTreeSet<&str>> = BTreeMap::new();
    let evidence = evidence(report);
    walk(report, codes, &evidence, &mut found, 0);
    let rank = format!(
        "{:0<8}{:0<6}",
        text(report, tags::CONTENT_DATE).unwrap_or_default(),
        text(report, tags::CONTENT_TIME).unwrap_or_default().chars().take(6).collect::<String>()
    );
    found
        .into_iter()
        .map(|(target, classes)| {
            let mut classes = classes.into_iter();
            let class = match (classes.next(), classes.next()) {
                (Some(only), None) => only.to_owned(),
                _ => String::new(),
            };
            Statement { target, class, rank: rank.clone() }
        })
        .collect()
}

fn walk<'c>(
    container: &InMemDicomObject,
    codes: &'c [SrCode],
    around: &BTreeSet<String>,
    found: &mut BTreeMap<Target, BTreeSet<&'c str>>,
    depth: usize,
) {
    if depth > MAX_DEPTH {
        return;
    }
    let items = items(container, tags::CONTENT_SEQUENCE);
    // The root's own tree is its evidence; deeper containers narrow it down.
    let mut own = BTreeSet::new();
    if depth > 0 {
        referenced(container, &mut own, depth);
    }
    let images = if own.is_empty() { around } else { &own };
    for item in items {
        if text(item, tags::VALUE_TYPE).as_deref() == Some("CODE")
            && let Some(code) = codes.iter().find(|code| matches(item, code))
        {
            // Images that the statement itself was inferred from are nearer still.
            let mut inferred = BTreeSet::new();
            referenced(item, &mut inferred, depth + 1);
            let targets = if inferred.is_empty() { images } else { &inferred };
            if targets.is_empty() {
                found.entry(Target::Study).or_default().insert(&code.class);
            }
            for uid in targets {
                found.entry(Target::Instance(uid.clone())).or_default().insert(&code.class);
            }
        }
        walk(item, codes, images, found, depth + 1);
    }
}

/// SOP Instance UIDs of the image items below an item.
fn referenced(item: &InMemDicomObject, uids: &mut BTreeSet<String>, depth: usize) {
    if depth > MAX_DEPTH {
        return;
    }
    for child in items(item, tags::CONTENT_SEQUENCE) {
        if matches!(text(child, tags::VALUE_TYPE).as_deref(), Some("IMAGE")) {
            uids.extend(sop_instances(child));
        }
        referenced(child, uids, depth + 1);
    }
}

/// The images of Current Requested Procedure Evidence Sequence and Pertinent Other Evidence Sequence.
fn evidence(report: &InMemDicomObject) -> BTreeSet<String> {
    [tags::CURRENT_REQUESTED_PROCEDURE_EVIDENCE_SEQUENCE, tags::PERTINENT_OTHER_EVIDENCE_SEQUENCE]
        .into_iter()
        .flat_map(|tag| items(report, tag))
        .flat_map(|study| items(study, tags::REFERENCED_SERIES_SEQUENCE))
        .flat_map(sop_instances)
        .collect()
}

fn sop_instances(item: &InMemDicomObject) -> impl Iterator<Item = String> {
    items(item, tags::REFERENCED_SOP_SEQUENCE)
        .iter()
        .filter_map(|reference| text(reference, tags::REFERENCED_SOP_INSTANCE_UID))
}

fn matches(item: &InMemDicomObject, code: &SrCode) -> bool {
    let holds = |sequence, pattern: &CodePattern| {
        items(item, sequence).first().is_some_and(|found| pattern_matches(found, pattern))
    };
    holds(tags::CONCEPT_CODE_SEQUENCE, &code.value)
        && code.concept.as_ref().is_none_or(|concept| holds(tags::CONCEPT_NAME_CODE_SEQUENCE, concept))
}

fn pattern_matches(code: &InMemDicomObject, pattern: &CodePattern) -> bool {
    let same = |wanted: &Option<String>, tags: &[Tag]| {
        wanted.as_ref().is_none_or(|wanted| {
            tags.iter().any(|&tag| text(code, tag).is_some_and(|found| found.eq_ignore_ascii_case(wanted)))
        })
    };
    same(&pattern.value, &[tags::CODE_VALUE, tags::LONG_CODE_VALUE])
        && same(&pattern.scheme, &[tags::CODING_SCHEME_DESIGNATOR])
        && same(&pattern.meaning, &[tags::CODE_MEANING])
}

fn items(item: &InMemDicomObject, tag: Tag) -> &[InMemDicomObject] {
    item.get(tag).and_then(|element| element.items()).unwrap_or_default()
}
