//! Studies, federations of them, and the model that one ends with.

use anyhow::{Context as _, Result, ensure};
use medinet_lab::{
    BrokerKind, Federation, FederationPlan, FleetStatus, Member, Privacy, SitePlan, Source, TaskKind, Updates,
};
use medinet_ledger::directory::read_log;
use medinet_ledger::{ModelBundle, Record, RecordBody, TrustedKeys, verify_log};
use medinet_types::{ModelDigest, SiteId};
use medinet_wire::message::TaskStage;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Hospitals whose studies there are, and of every federation where nothing else is said.
pub(crate) const SITES: usize = 3;

/// Updates that the aggregator reads.
pub(crate) const PLAIN: Updates = Updates::Plain { bits: 8 };
/// Rounds with them: enough that fifty kills fall within them.
pub(crate) const ROUNDS: u32 = 32;

/// Secure aggregation as in the demo: a round sums the updates of all hospitals, or none.
pub(crate) const SECURE: Updates = Updates::Secure { bits: 2, kept_permille: 495, losses: 0 };
/// Rounds with it: enough that a dozen kills fall within them.
pub(crate) const SECURE_ROUNDS: u32 = 12;

/// Longer than any federation takes, many kills included, on a slow machine.
const LONGEST: Duration = Duration::from_secs(1200);
/// How long the hospitals may take to fetch and prove the released model.
const RELEASE: Duration = Duration::from_secs(120);

/// A fresh folder for one test.
pub(crate) fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// The studies of hospital 1, 2 or 3, made once: a folder of DICOM files with `labels.csv`.
pub(crate) fn studies(hospital: usize) -> PathBuf {
    static STUDIES: OnceLock<PathBuf> = OnceLock::new();
    let all = STUDIES.get_or_init(|| {
        let out = folder("studies");
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let venv = std::env::var_os("MEDINET_VENV").map_or_else(|| repository.join(".venv"), PathBuf::from);
        let made = Command::new(venv.join("bin/python"))
            .arg(repository.join("demo/make_studies.py"))
            .arg("--out")
            .arg(&out)
            .args(["--sites", &SITES.to_string(), "--seed", "3", "--share", "0.1"])
            .output()
            .expect("`cargo xtask setup` makes the Python environment");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        out
    });
    all.join(format!("site-{hospital}"))
}

/// The DICOM files in a folder of [`studies`].
pub(crate) fn dicom_files(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "dcm")).collect()
}

/// A hospital that takes the studies of `source`; number 1 is the first.
pub(crate) fn hospital(number: usize, source: Source, labels_csv: PathBuf) -> SitePlan {
    SitePlan { id: SiteId::new(format!("hospital-{number}")).unwrap(), source, labels_csv }
}

/// A hospital that watches a folder below `folder`, with its own copy of the studies of hospital `like` in it.
pub(crate) fn watching(folder: &Path, number: usize, like: usize) -> SitePlan {
    let watched = folder.join(format!("watched-{number}"));
    fs::create_dir(&watched).unwrap();
    for path in dicom_files(&studies(like)) {
        fs::copy(&path, watched.join(path.file_name().unwrap())).unwrap();
    }
    hospital(number, Source::Folder(watched), studies(like).join("labels.csv"))
}

/// What is the same in every federation here.
pub(crate) fn plan(folder: &Path, sites: Vec<SitePlan>, rounds: u32, updates: Updates) -> FederationPlan {
    FederationPlan {
        folder: folder.join("federation"),
        seed: 11,
        rounds,
        local_epochs: 1,
        updates,
        sites,
        task: TaskKind::Tiny,
        broker: BrokerKind::Own,
        gpu: false,
        privacy: None,
    }
}

/// A federation of three hospitals that watch folders.
pub(crate) fn federation(name: &str, broker: BrokerKind, rounds: u32, updates: Updates) -> Federation {
    federation_with(name, broker, rounds, updates, None)
}

/// As [`federation`], with differential privacy where it is asked for.
pub(crate) fn federation_with(
    name: &str,
    broker: BrokerKind,
    rounds: u32,
    updates: Updates,
    privacy: Option<Privacy>,
) -> Federation {
    let folder = folder(name);
    let sites = (1..=SITES).map(|number| watching(&folder, number, number)).collect();
    Federation::prepare(FederationPlan { broker, privacy, ..plan(&folder, sites, rounds, updates) }).unwrap()
}

/// Starts every member and follows them until each hospital holds the released model; `meddle` is called at every status
/// and at least every half second. Fails when a member ends by itself or the task pauses.
pub(crate) fn run(
    federation: &mut Federation,
    mut meddle: impl FnMut(&mut Federation, &FleetStatus) -> Result<()>,
) -> Result<()> {
    for member in federation.members() {
        federation.start(member)?;
    }
    let mut finished_at = None;
    federation.follow(LONGEST, |federation, status| {
        meddle(federation, status)?;
        federation.check_alive()?;
        let Some(aggregator) = &status.aggregator else { return Ok(false) };
        ensure!(aggregator.stage != TaskStage::Paused, "the task has paused");
        if aggregator.finished {
            let since = *finished_at.get_or_insert_with(Instant::now);
            ensure!(since.elapsed() < RELEASE, "the rounds are over, and a hospital has no released model");
        }
        Ok(aggregator.finished && sites(federation).all(|site| federation.site_release(site).exists()))
    })?;
    federation.check_alive()?;
    federation.stop()
}

/// Hospitals, by their place in the plan.
fn sites(federation: &Federation) -> std::ops::Range<usize> {
    0..federation.plan().sites.len()
}

/// The model that every hospital has proven and kept, after the ledger's files have been verified; all must hold the
/// same.
pub(crate) fn released(federation: &Federation) -> Result<ModelDigest> {
    let report =
        verify_log(&read_log(&federation.aggregator_data().join("ledger"))?, federation.ledger_key(), None);
    ensure!(report.is_verified(), "{report}");
    for site in sites(federation) {
        let followed = federation.site_folder(site).join("data/ledger/checkpoint");
        let note =
            fs::read_to_string(&followed).context("the checkpoint that a site has followed the ledger to")?;
        let size = federation.ledger_key().verify(&note)?.checkpoint().size;
        ensure!(size > 0 && size <= report.entries, "a site has followed the ledger to {size} entries");
        ensure!(!followed.with_file_name("ALARM").exists(), "a site does not trust the ledger");
        let device = federation.site_device(site)?;
        ensure!(
            device.name == "CPU (1 thread)" && device.note.is_none(),
            "{device:?}, not what was configured"
        );
        let log = fs::read_to_string(federation.log(Member::Site(site)))?;
        ensure!(log.contains(&device.name), "the operator was not told of {device:?}");
    }
    let trusted = TrustedKeys { ledger: federation.ledger_key().clone() };
    let digests = sites(federation)
        .map(|site| {
            let bundle = fs::read(federation.site_release(site)).context("a released model")?;
            Ok(ModelBundle::decode(&bundle)?.verify(&trusted)?.digest())
        })
        .collect::<Result<Vec<_>>>()?;
    ensure!(
        digests.windows(2).all(|pair| pair[0] == pair[1]),
        "the hospitals hold different models: {digests:?}"
    );
    Ok(digests[0])
}

/// The ledger's records, verified.
pub(crate) fn records(federation: &Federation) -> Vec<RecordBody> {
    let log = read_log(&federation.aggregator_data().join("ledger")).unwrap();
    assert!(verify_log(&log, federation.ledger_key(), None).is_verified());
    log.iter().map(|entry| Record::decode(entry).unwrap().body).collect()
}

/// A round of training that ended with a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trained {
    /// Its number: one that is given up leaves a gap.
    pub(crate) round: u32,
    /// The model.
    pub(crate) model: ModelDigest,
    /// Whose updates made it.
    pub(crate) sites: Vec<SiteId>,
}

/// The rounds of training that ended with a model, in their order on the ledger.
pub(crate) fn trained(federation: &Federation) -> Vec<Trained> {
    let trained = records(federation).into_iter().filter_map(|record| match record {
        RecordBody::RoundClosed { round, result, participants, .. } => {
            let sites = participants.into_iter().map(|participant| participant.site).collect();
            Some(Trained { round: round.0, model: result, sites })
        }
        _ => None,
    });
    trained.collect()
}

/// What a federation ends with when nobody disturbs it.
pub(crate) struct Undisturbed {
    /// Its rounds.
    pub(crate) rounds: Vec<Trained>,
    /// The model that every hospital holds.
    pub(crate) model: ModelDigest,
}

impl Undisturbed {
    fn run(name: &str, rounds: u32, updates: Updates) -> Self {
        let mut federation = federation(name, BrokerKind::Own, rounds, updates);
        run(&mut federation, |_, _| Ok(())).unwrap();
        let model = released(&federation).unwrap();
        let trained = trained(&federation);
        assert!(trained.iter().map(|round| round.round).eq(1..=rounds), "{trained:?}");
        assert!(trained.iter().all(|round| round.sites.len() == SITES), "{trained:?}");
        Self { rounds: trained, model }
    }

    /// The one with [`PLAIN`] updates; made once.
    pub(crate) fn plain() -> &'static Self {
        static PLAIN_RUN: OnceLock<Undisturbed> = OnceLock::new();
        PLAIN_RUN.get_or_init(|| Self::run("undisturbed", ROUNDS, PLAIN))
    }

    /// The one with [`SECURE`] updates; made once.
    pub(crate) fn secure() -> &'static Self {
        static SECURE_RUN: OnceLock<Undisturbed> = OnceLock::new();
        SECURE_RUN.get_or_init(|| Self::run("undisturbed-secure", SECURE_ROUNDS, SECURE))
    }
}
