//! `kill -9` while the store writes. A child process runs a whole task on a real folder, with sites that answer at
//! once; this process kills it again and again between and within its effects, reopens the folder and checks that what the
//! child had reported as done is there, that the tables agree with each other and with the snapshot, and that in the end
//! the model, the registry and the ledger are those of an undisturbed run, every ledger entry there exactly once.
//!
//! Runs without the test harness, because the child is this same program.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test program without the harness")]

#[path = "support/mod.rs"]
mod support;

use medinet_rounds::{Coordinator, Effect, Input, RoundRecord, Snapshot, Stage};
use medinet_store::{Store, StoreError};
use medinet_types::{BlobDigest, UnixMillis};
use medinet_wire::message::{FromAggregatorToAll, FromSite, RoundPlan};
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use support::{SITES, answer, plan, site, task, update};

const CHILD: &str = "MEDINET_STORE_CRASH_CHILD";
const KILLS: u32 = 60;

fn main() {
    if let Some(folder) = std::env::var_os(CHILD) {
        return Child::open(PathBuf::from(folder)).run();
    }
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    killed_at_random_moments();
    println!("test killed_at_random_moments ... ok");
}

/// What an owned input needs to be kept in a queue.
enum Given {
    Start,
    Restarted,
    FromSite(usize, FromSite),
    Blob(BlobDigest),
}

struct Child {
    folder: PathBuf,
    store: Store,
    coordinator: Coordinator,
    round: Option<RoundPlan>,
    inbox: VecDeque<Given>,
}

impl Child {
    fn open(folder: PathBuf) -> Self {
        let store = Store::open(&folder).unwrap();
        let (coordinator, first) = match store.snapshot(&task()).unwrap() {
            None => (Coordinator::new(plan()).unwrap(), Given::Start),
            Some(snapshot) => (resume(&store, snapshot), Given::Restarted),
        };
        Self { folder, store, coordinator, round: None, inbox: VecDeque::from([first]) }
    }

    fn run(mut self) {
        self.feed_ledger();
        while let Some(given) = self.inbox.pop_front() {
            let now = now();
            let effects = match given {
                Given::Start => self.coordinator.handle(now, Input::Start),
                Given::Restarted => self.coordinator.handle(now, Input::Restarted),
                Given::FromSite(n, message) => {
                    self.coordinator.handle(now, Input::Site { from: site(n), message })
                }
                Given::Blob(blob) => match fs::read(self.blob(blob)) {
                    Ok(bytes) => self.coordinator.handle(now, Input::UpdateArrived { blob, bytes: &bytes }),
                    Err(_) => self.coordinator.handle(now, Input::UpdateFailed { blob }),
                },
            };
            for effect in effects {
                say(effect_name(&effect));
                self.carry_out(effect);
            }
        }
    }

    fn blob(&self, digest: BlobDigest) -> PathBuf {
        self.store.blob_folder().join(digest.to_string())
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::StoreBlob { manifest, bytes } => self.keep(manifest.digest, &bytes),
            Effect::Persist(commit) => {
                let entries: Vec<Vec<u8>> = commit.records.iter().map(entry).collect();
                self.store.commit(&commit, &entries).unwrap();
                say(&format!("durable {}", self.store.history(&task(), u32::MAX).unwrap().len()));
                self.feed_ledger();
            }
            Effect::Broadcast(FromAggregatorToAll::Announce(round)) => {
                // In another order each time.
                let first = now().0 as usize;
                for n in (0..SITES).map(|n| (n + first) % SITES) {
                    self.inbox.push_back(Given::FromSite(n, answer(n, &round)));
                }
                self.round = Some(round);
            }
            Effect::Fetch { site: from, manifest } => {
                let round = self.round.as_ref().expect("announced");
                let n = (0..SITES).find(|n| site(*n) == from).expect("a member");
                let (_, bytes) = update(n, round);
                self.keep(manifest.digest, &bytes);
                self.inbox.push_back(Given::Blob(manifest.digest));
            }
            Effect::LoadUpdate { blob } => self.inbox.push_back(Given::Blob(blob)),
            Effect::Discard { blobs } => {
                for blob in blobs {
                    let _ = fs::remove_file(self.blob(blob));
                }
            }
            Effect::Publish(release) => {
                let (model, task) = (release.verdict.model, task());
                let entry = || format!("release {}", model.version).into_bytes();
                self.store.queue_release_entry(&task, model.version, entry).unwrap();
                self.store.release_bundled(&task, model.version, &model.parameters).unwrap();
                self.feed_ledger();
            }
            Effect::Finished { model, .. } => say(&format!("finished {}", model.digest)),
            Effect::Serve { .. }
            | Effect::StopServing { .. }
            | Effect::Broadcast(_)
            | Effect::Send { .. }
            | Effect::SendAll { .. }
            | Effect::StopFetching { .. }
            | Effect::WakeAt(_) => {}
        }
    }

    fn keep(&self, digest: BlobDigest, bytes: &[u8]) {
        let temporary = self.folder.join("blobs/new.tmp");
        let mut file = File::create(&temporary).unwrap();
        file.write_all(bytes).unwrap();
        file.sync_all().unwrap();
        fs::rename(temporary, self.blob(digest)).unwrap();
        File::open(self.store.blob_folder()).unwrap().sync_all().unwrap();
    }

    /// Appends what is queued to a log of lines, as the ledger would.
    fn feed_ledger(&mut self) {
        let path = self.folder.join("log");
        let mut log = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        let text = fs::read(&path).unwrap();
        let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
        log.set_len(whole as u64).unwrap();
        let size = text[..whole].iter().filter(|b| **b == b'\n').count() as u64;
        let pending = self.store.pending_ledger_entries(size, 1000).unwrap();
        for (expected, queued) in (size..).zip(&pending) {
            assert_eq!(queued.index, expected);
            log.write_all(&queued.entry).unwrap();
            log.write_all(b"\n").unwrap();
        }
        log.sync_all().unwrap();
        self.store.ledger_appended(size + pending.len() as u64).unwrap();
    }
}

/// What the way down owes, which is stored before the commit too.
fn resume(store: &Store, snapshot: Snapshot) -> Coordinator {
    let read = |blob: BlobDigest| fs::read(store.blob_folder().join(blob.to_string())).ok();
    Coordinator::resume(plan(), snapshot, read).expect("what it needs was stored before the commit")
}

fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    UnixMillis(u64::try_from(since.as_millis()).unwrap())
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

fn entry(record: &RoundRecord) -> Vec<u8> {
    match record {
        // Opening times differ from run to run.
        RoundRecord::RoundOpened { plan } => format!("opened {}", plan.round).into_bytes(),
        other => format!("{other:?}").into_bytes(),
    }
}

fn effect_name(effect: &Effect) -> &'static str {
    match effect {
        Effect::StoreBlob { .. } => "store",
        Effect::Persist(_) => "persist",
        Effect::Publish(_) => "publish",
        Effect::Discard { .. } => "discard",
        _ => "send",
    }
}

/// Runs the child until it ends or, with `kill_after`, until it has said so many lines. Returns what it said.
fn run(folder: &Path, kill_after: Option<u32>) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env(CHILD, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = Vec::new();
    if let Some(lines_before) = kill_after {
        said.extend(lines.by_ref().take(lines_before as usize).map_while(Result::ok));
        // Into the middle of whatever follows.
        std::thread::sleep(Duration::from_micros(u64::from(lines_before) * 97 % 2500));
        child.kill().unwrap();
    }
    said.extend(lines.map_while(Result::ok));
    let status = child.wait().unwrap();
    assert!(kill_after.is_some() || status.success(), "the child failed: {said:?}");
    said
}

fn finished(said: &[String]) -> Option<&str> {
    said.iter().find_map(|line| line.strip_prefix("finished "))
}

/// Everything in the folder that does not depend on the order in which sites happened to come.
fn outcome(folder: &Path) -> String {
    let store = Store::open(folder).unwrap();
    let mut models = store.models(&task()).unwrap();
    for model in &mut models {
        model.created_at = UnixMillis(0);
    }
    let mut contributions = store.contributions(&task(), None).unwrap();
    for row in &mut contributions {
        row.at = UnixMillis(0);
    }
    let verdicts: Vec<_> = store.verdicts(&task()).unwrap().into_iter().map(|row| row.verdict).collect();
    let bundles: Vec<_> = store.releases(&task()).unwrap().into_iter().map(|row| row.bundle).collect();
    let log = fs::read_to_string(folder.join("log")).unwrap();
    let mut log: Vec<&str> = log.lines().collect();
    log.sort_unstable();
    format!("{models:#?}{contributions:#?}{verdicts:#?}{bundles:#?}{log:#?}")
}

/// What must hold after any kill.
fn check(folder: &Path, said: &[String]) {
    let store = Store::open(folder).unwrap();
    let reported: usize = said
        .iter()
        .filter_map(|line| line.strip_prefix("durable "))
        .map(|n| n.parse().unwrap())
        .max()
        .unwrap_or(0);
    let Some(snapshot) = store.snapshot(&task()).unwrap() else {
        assert_eq!(reported, 0, "a reported commit is gone");
        return;
    };
    assert!(store.history(&task(), u32::MAX).unwrap().len() >= reported, "a reported commit is gone");
    let models = store.models(&task()).unwrap();
    assert_eq!(models.last().map(|row| &row.model), Some(snapshot.model()));
    assert!(models.iter().zip(0..).all(|(row, version)| row.model.version.0 == version));
    let progress = resume(&store, snapshot).progress();
    if progress.stage == Stage::Training {
        let rows = store.contributions(&task(), Some(progress.round)).unwrap();
        assert_eq!(rows.len(), progress.tally.delivered as usize);
        for row in rows {
            let kept = store.blob_folder().join(row.update.to_string()).exists();
            assert!(kept, "a counted update's bytes were discarded");
        }
    }
    assert!(matches!(Store::open(folder), Err(StoreError::InUse { .. })));
}

fn killed_at_random_moments() {
    let undisturbed = tempfile::tempdir().unwrap();
    let said = run(undisturbed.path(), None);
    let expected = finished(&said).expect("the undisturbed task finishes").to_owned();
    let lines = said.len() as u32;
    let expected_outcome = outcome(undisturbed.path());

    let (mut kills, mut tasks, mut state) = (0, 0, 0x9e37_79b9_u32);
    while kills < KILLS {
        let folder = tempfile::tempdir().unwrap();
        tasks += 1;
        loop {
            // Marsaglia's xorshift: the same moments in every run, as far as the child's lines go.
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            let said = run(folder.path(), Some(state % (lines / 4)));
            kills += 1;
            check(folder.path(), &said);
            if let Some(model) = finished(&said) {
                assert_eq!(model, expected, "task {tasks}, after {kills} kills");
                break;
            }
            assert!(kills < 100 * KILLS, "task {tasks} does not finish");
        }
        // Let it say once more that it is finished, and complete what a kill cut short.
        let said = run(folder.path(), None);
        assert_eq!(finished(&said), Some(expected.as_str()));
        assert_eq!(outcome(folder.path()), expected_outcome, "task {tasks}");
    }
    println!("{kills} kills in {tasks} tasks of {lines} effects each");
}
