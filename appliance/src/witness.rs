//! Following the federation's ledger: a log that is cut, rewritten or shown differently to this site is noticed here.
//!
//! The site keeps the newest checkpoint that it has accepted and takes a newer one only with proof that it continues it (RFC 9162,
//! section 2.1.4). After a contradiction it takes part in nothing until a person has looked: the alarm is a file, which only a person removes.

use crate::files;
use anyhow::{Context as _, Result};
use medinet_ledger::{Checkpoint, CheckpointError, LedgerPublicKey};
use medinet_types::{Digest, UnixMillis};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a question waits before it is put again.
const ASK_AGAIN: Duration = Duration::from_secs(8);
/// Questions in a row, over all connections, after which an aggregator that does not prove its ledger is no longer followed: five minutes of
/// connection. Whoever hides a log from a site might else just not answer.
const MOST_UNANSWERED: u32 = 38;

/// What others hear of an alarm; the alarm itself names files of this machine.
const CONTRADICTION: &str =
    "the ledger contradicts what this site has seen of it; the site's own operator has to look";
const SILENCE: &str = "the aggregator has not answered this site's questions for proof of its ledger for five minutes; \
                       this site takes part again when it does";

/// What the site knows of the ledger.
pub(crate) struct Witness {
    folder: PathBuf,
    key: LedgerPublicKey,
    seen: Option<Checkpoint>,
    /// Entries of the newest checkpoint that was announced.
    announced: u64,
    /// Whether to ask whatever was announced: whoever hides a cut log announces nothing newer.
    ask: bool,
    asked_at: UnixMillis,
    /// Questions since the last answer that held.
    unanswered: u32,
    alarm: Option<String>,
}

impl Witness {
    /// Takes up what the disk remembers.
    ///
    /// # Errors
    /// When the kept checkpoint cannot be read or is not this federation's.
    pub(crate) fn open(data_dir: &Path, key: LedgerPublicKey) -> Result<Self> {
        let folder = data_dir.join("ledger");
        files::private_folder(&folder)?;
        let text = |name: &str| -> Result<Option<String>> {
            files::read(&folder.join(name))?
                .map(|bytes| String::from_utf8(bytes).with_context(|| format!("{name} is no text")))
                .transpose()
        };
        let seen = match text("checkpoint")? {
            Some(note) => {
                let path = folder.join("checkpoint");
                let signed = key.verify(&note).with_context(|| {
                    format!("{}: remove it if the federation has a new ledger", path.display())
                })?;
                Some(signed.checkpoint().clone())
            }
            None => None,
        };
        let alarm = text("ALARM")?;
        let asked_at = UnixMillis(0);
        Ok(Self { folder, key, seen, announced: 0, ask: false, asked_at, unanswered: 0, alarm })
    }

    /// Why the site takes part in no round, if so, in words for others.
    pub(crate) fn refusal(&self) -> Option<&'static str> {
        match self.alarm {
            Some(_) => Some(CONTRADICTION),
            None => (self.unanswered > MOST_UNANSWERED).then_some(SILENCE),
        }
    }

    /// What a person has to settle before the site takes part in anything, if there is something.
    pub(crate) fn alarm(&self) -> Option<&str> {
        self.alarm.as_deref()
    }

    /// There is a new connection: the log is asked for once, whatever is announced.
    pub(crate) fn connected(&mut self) {
        self.ask = true;
        self.asked_at = UnixMillis(0);
    }

    /// Hears an announced checkpoint. One that is older than what was seen says nothing: messages may come late.
    ///
    /// # Errors
    /// When an alarm cannot be written.
    pub(crate) fn announced(&mut self, note: &str) -> Result<()> {
        match self.key.verify(note) {
            Ok(signed) => {
                let newest = signed.checkpoint();
                match &self.seen {
                    Some(seen) if seen.size == newest.size && seen.root != newest.root => {
                        let text = format!(
                            "two checkpoints of {} entries: root {} was seen here, root {} is announced",
                            seen.size, seen.root, newest.root
                        );
                        return self.raise(text, note);
                    }
                    _ => self.announced = self.announced.max(newest.size),
                }
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "an announced checkpoint does not hold"
                );
            }
        }
        Ok(())
    }

    /// The size of the checkpoint to ask for proof from, when it is time to ask.
    pub(crate) fn question(&mut self, now: UnixMillis) -> Option<u64> {
        let seen = self.seen.as_ref().map_or(0, |seen| seen.size);
        let wanted = self.ask || self.announced > seen;
        let due = wanted && self.alarm.is_none() && now.since(self.asked_at) >= ASK_AGAIN;
        due.then(|| {
            self.asked_at = now;
            self.unanswered = self.unanswered.saturating_add(1);
            seen
        })
    }

    /// Hears the answer to a question.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn answered(&mut self, note: &str, seen: u64, proof: &[Digest]) -> Result<()> {
        if seen != self.seen.as_ref().map_or(0, |seen| seen.size) {
            // To an earlier question.
            return Ok(());
        }
        match self.key.advance(self.seen.as_ref(), note, proof) {
            Ok(signed) => {
                (self.ask, self.unanswered) = (false, 0);
                files::replace(&self.folder.join("checkpoint"), note.as_bytes())?;
                self.seen = Some(signed.checkpoint().clone());
                self.asked_at = UnixMillis(0);
                Ok(())
            }
            Err(error @ (CheckpointError::Rollback { .. } | CheckpointError::Inconsistent(_))) => {
                self.raise(error.to_string(), note)
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the checkpoint that was asked for does not hold"
                );
                Ok(())
            }
        }
    }

    /// Keeps the two checkpoints that contradict each other: whoever signed both is convicted by them.
    fn raise(&mut self, text: String, note: &str) -> Result<()> {
        let alarm = format!(
            "the ledger contradicts itself: {text}. This site takes part in nothing. Compare {} and {} with other \
             sites. When it is settled: stop the appliance, remove the file ALARM and, if the other log is the right one, the file \
             checkpoint, and start it",
            self.folder.join("checkpoint").display(),
            self.folder.join("contradiction").display()
        );
        tracing::error!(alarm, "the ledger cannot be trusted");
        self.alarm = Some(alarm.clone());
        files::replace(&self.folder.join("contradiction"), note.as_bytes())?;
        files::replace(&self.folder.join("ALARM"), alarm.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use medinet_ledger::{CheckpointSigner as _, Ed25519Signer, MerkleTree, leaf_hash};
    use medinet_types::FederationId;

    struct Log {
        signer: Ed25519Signer,
        tree: MerkleTree,
    }

    impl Log {
        fn new(entries: &[&str]) -> Self {
            let signer = Ed25519Signer::from_seed(&[7; 32]).unwrap();
            let leaves: Vec<_> = entries.iter().map(|entry| leaf_hash(entry.as_bytes())).collect();
            Self { signer, tree: MerkleTree::from_leaves(&leaves) }
        }

        fn key(&self) -> LedgerPublicKey {
            LedgerPublicKey::new(&FederationId::new("chest").unwrap(), self.signer.public_key())
        }

        fn note(&self) -> String {
            let (origin, size, root) = (self.key().origin().to_owned(), self.tree.size(), self.tree.root());
            Checkpoint { origin, size, root }.sign(&self.signer).unwrap().note().to_owned()
        }

        fn answer(&self, witness: &mut Witness, seen: u64) {
            let proof = self.tree.consistency_proof(seen, self.tree.size()).unwrap_or_default();
            witness.answered(&self.note(), seen, &proof).unwrap();
        }
    }

    #[test]
    fn a_log_that_grows_is_followed_across_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::new(&["a", "b"]);
        let mut witness = Witness::open(folder.path(), log.key()).unwrap();
        assert_eq!(witness.question(UnixMillis(100_000)), None);
        witness.announced(&log.note()).unwrap();
        assert_eq!(witness.question(UnixMillis(100_000)), Some(0));
        assert_eq!(witness.question(UnixMillis(101_000)), None);
        log.answer(&mut witness, 0);
        assert_eq!(witness.question(UnixMillis(200_000)), None);

        let mut witness = Witness::open(folder.path(), log.key()).unwrap();
        let log = Log::new(&["a", "b", "c", "d", "e"]);
        witness.announced(&log.note()).unwrap();
        assert_eq!(witness.question(UnixMillis(200_000)), Some(2));
        log.answer(&mut witness, 2);
        // One that comes late.
        witness.announced(&Log::new(&["a", "b"]).note()).unwrap();
        assert_eq!(witness.question(UnixMillis(300_000)), None);
        assert_eq!(witness.alarm(), None);
        assert_eq!(witness.seen.as_ref().unwrap().size, 5);
    }

    #[test]
    fn a_log_that_is_rewritten_cut_or_forked_raises_an_alarm_that_stays() {
        let honest = Log::new(&["a", "b", "c"]);
        for other in [Log::new(&["a", "x", "c", "d"]), Log::new(&["a", "b"]), Log::new(&["a", "b", "x"])] {
            let folder = tempfile::tempdir().unwrap();
            let mut witness = Witness::open(folder.path(), honest.key()).unwrap();
            honest.answer(&mut witness, 0);
            witness.announced(&other.note()).unwrap();
            other.answer(&mut witness, 3);
            let alarm = witness.alarm().expect("a contradiction").to_owned();
            assert_eq!(Witness::open(folder.path(), honest.key()).unwrap().alarm(), Some(alarm.as_str()));
            let kept = std::fs::read_to_string(folder.path().join("ledger/checkpoint")).unwrap();
            let contradiction = std::fs::read_to_string(folder.path().join("ledger/contradiction")).unwrap();
            assert_eq!((kept, contradiction), (honest.note(), other.note()));
        }
    }

    #[test]
    fn a_cut_log_is_asked_for_though_nothing_newer_is_announced() {
        let folder = tempfile::tempdir().unwrap();
        let (whole, cut) = (Log::new(&["a", "b", "c"]), Log::new(&["a", "b"]));
        let mut witness = Witness::open(folder.path(), whole.key()).unwrap();
        whole.answer(&mut witness, 0);
        witness.announced(&cut.note()).unwrap();
        assert_eq!(witness.question(UnixMillis(100_000)), None);
        witness.connected();
        assert_eq!(witness.question(UnixMillis(100_000)), Some(3));
        cut.answer(&mut witness, 3);
        assert!(witness.alarm().is_some());
        assert_eq!(witness.question(UnixMillis(200_000)), None);
    }

    #[test]
    fn an_aggregator_that_proves_nothing_is_not_followed_until_it_does() {
        let folder = tempfile::tempdir().unwrap();
        let (log, longer) = (Log::new(&["a"]), Log::new(&["a", "b"]));
        let mut witness = Witness::open(folder.path(), log.key()).unwrap();
        log.answer(&mut witness, 0);
        let mut time = 100_000;
        for _ in 0..MOST_UNANSWERED {
            // A new connection at each question does not begin the count anew.
            witness.connected();
            assert_eq!(witness.question(UnixMillis(time)), Some(1));
            assert_eq!(witness.refusal(), None);
            time += 10_000;
        }
        assert_eq!(witness.question(UnixMillis(time)), Some(1));
        assert_eq!(witness.refusal(), Some(SILENCE));
        longer.answer(&mut witness, 1);
        assert_eq!(witness.refusal(), None);
    }

    #[test]
    fn what_another_key_signed_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::new(&["a"]);
        let mut witness = Witness::open(folder.path(), log.key()).unwrap();
        let mut other = Log::new(&["a", "b"]);
        other.signer = Ed25519Signer::from_seed(&[8; 32]).unwrap();
        witness.announced(&other.note()).unwrap();
        other.answer(&mut witness, 0);
        assert!(witness.seen.is_none() && witness.alarm().is_none() && witness.announced == 0);
    }
}
