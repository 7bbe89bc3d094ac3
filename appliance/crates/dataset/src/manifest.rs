//! What a data set holds, as digests: the list stays at the site, its digest goes on the ledger.

use crate::Split;
use medinet_model::ClassLabel;
use medinet_types::{DatasetDigest, Digest, TaskId};

/// Counts leave the site rounded down to multiples of this.
const PUBLISHED_STEP: u64 = 10;

/// The labelled images of a data set in canonical order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetManifest {
    task: TaskId,
    classes: Vec<ClassLabel>,
    /// By instance digest, then frame.
    entries: Vec<ManifestEntry>,
}

/// One labelled image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ManifestEntry {
    /// SHA-256 of the remapped SOP Instance UID.
    pub instance: Digest,
    /// Index of the frame in the object, from 0.
    pub frame: u32,
    /// SHA-256 of the frame's size, format and stored samples.
    pub image: Digest,
    /// Index of the class.
    pub class: u32,
    /// The part of the data.
    pub split: Split,
}

impl DatasetManifest {
    pub(crate) fn new(task: TaskId, classes: Vec<ClassLabel>, mut entries: Vec<ManifestEntry>) -> Self {
        entries.sort_unstable();
        Self { task, classes, entries }
    }

    /// The entries in canonical order.
    #[must_use]
    pub fn entries(&self) -> &[ManifestEntry] {
        &self.entries
    }

    /// SHA-256 over the canonical encoding: a version line, the task, the classes, and 73 bytes per entry (instance,
    /// frame in little endian, image, class in little endian, split), each part preceded by its length. It depends on
    /// the content alone, not on the order in which images and labels came.
    #[must_use]
    pub fn digest(&self) -> DatasetDigest {
        let mut list = Vec::with_capacity(self.entries.len() * 73);
        for entry in &self.entries {
            list.extend_from_slice(entry.instance.as_bytes());
            list.extend_from_slice(&entry.frame.to_le_bytes());
            list.extend_from_slice(entry.image.as_bytes());
            list.extend_from_slice(&entry.class.to_le_bytes());
            list.push(entry.split as u8);
        }
        let mut parts: Vec<&[u8]> = vec![b"medinet data-set manifest 1", self.task.as_str().as_bytes()];
        parts.extend(self.classes.iter().map(|class| class.as_bytes()));
        parts.push(&list);
        DatasetDigest(Digest::of_parts(&parts))
    }

    /// Images per class over all parts, in the order of the task's classes. Stays at the site.
    #[must_use]
    pub fn images_per_class(&self) -> Vec<u64> {
        self.count(|_| true)
    }

    /// Images per class of one part. Stays at the site.
    #[must_use]
    pub fn images_per_class_of(&self, split: Split) -> Vec<u64> {
        self.count(|entry| entry.split == split)
    }

    /// Images per class over all parts, rounded down to tens, as a registration tells them.
    #[must_use]
    pub fn published_images_per_class(&self) -> Vec<u64> {
        self.images_per_class().into_iter().map(|count| count - count % PUBLISHED_STEP).collect()
    }

    fn count(&self, keep: impl Fn(&ManifestEntry) -> bool) -> Vec<u64> {
        let mut counts = vec![0; self.classes.len()];
        for entry in self.entries.iter().filter(|entry| keep(entry)) {
            counts[entry.class as usize] += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(entries: Vec<ManifestEntry>) -> DatasetManifest {
        DatasetManifest::new(TaskId::new("t").unwrap(), vec!["a".into(), "b".into()], entries)
    }

    fn entry(name: &str, class: u32) -> ManifestEntry {
        ManifestEntry {
            instance: Digest::of(name.as_bytes()),
            frame: 0,
            image: Digest::of(b"pixels"),
            class,
            split: Split::Training,
        }
    }

    #[test]
    fn order_does_not_matter_and_content_does() {
        let (one, two) = (entry("1", 0), entry("2", 1));
        let digest = manifest(vec![one, two]).digest();
        assert_eq!(manifest(vec![two, one]).digest(), digest);
        for changed in [
            ManifestEntry { class: 0, ..two },
            ManifestEntry { frame: 1, ..two },
            ManifestEntry { split: Split::Test, ..two },
            ManifestEntry { image: Digest::of(b"others"), ..two },
        ] {
            assert_ne!(manifest(vec![one, changed]).digest(), digest);
        }
        assert_ne!(manifest(vec![one]).digest(), digest);
    }

    #[test]
    fn published_counts_hide_single_arrivals() {
        let of = |count: u32| manifest((0..count).map(|i| entry(&i.to_string(), 1)).collect());
        assert_eq!(of(19).images_per_class(), [0, 19]);
        assert_eq!(of(19).published_images_per_class(), [0, 10]);
        assert_eq!(of(10).published_images_per_class(), of(19).published_images_per_class());
    }
}
