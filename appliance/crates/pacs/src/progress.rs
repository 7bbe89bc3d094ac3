//! How far the intake has come, for people and for the parts that wait for data.

use crate::ledger::Totals;
use tokio::sync::watch;

/// Counts over the whole life of the intake ledger. No identifiers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IntakeProgress {
    /// Objects ever seen, from all sources.
    pub discovered: u64,
    /// Objects that the sink has taken, repeats included.
    pub ingested: u64,
    /// Of the ingested, further copies of an instance that was there already; the sink got those once.
    pub repeats: u64,
    /// Objects set aside, each with a reason.
    pub quarantined: u64,
    /// Bytes of the ingested objects, as files.
    pub bytes: u64,
    /// Objects whose file waits for the sink.
    pub waiting: u64,
}

impl IntakeProgress {
    /// Objects that are seen and neither ingested nor quarantined yet.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.discovered.saturating_sub(self.ingested + self.quarantined)
    }
}

impl From<Totals> for IntakeProgress {
    fn from(totals: Totals) -> Self {
        Self {
            discovered: totals.discovered,
            ingested: totals.ingested,
            repeats: totals.repeats,
            quarantined: totals.quarantined,
            bytes: totals.bytes,
            waiting: totals.fetched,
        }
    }
}

/// Where the parts of the intake report what happened, and wake the delivery to the sink.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    progress: watch::Sender<IntakeProgress>,
    /// Of capacity one: a wake-up that is already waiting serves for the next too.
    wake: std::sync::mpsc::SyncSender<()>,
}

impl Reporter {
    pub(crate) fn new(
        progress: watch::Sender<IntakeProgress>,
        wake: std::sync::mpsc::SyncSender<()>,
    ) -> Self {
        Self { progress, wake }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut IntakeProgress)) {
        self.progress.send_modify(change);
    }

    /// A file waits for the sink.
    pub(crate) fn file_waits(&self) {
        self.change(|progress| progress.waiting += 1);
        self.wake();
    }

    /// Wakes the delivery.
    pub(crate) fn wake(&self) {
        // Full: it wakes up anyway. Closed: the intake is stopping, and the file waits for its next run.
        let _ = self.wake.try_send(());
    }
}
