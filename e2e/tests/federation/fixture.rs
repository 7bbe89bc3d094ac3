//! Studies, federations of them, and the model that one ends with.

use anyhow::{Context as _, Result, ensure};
use medinet_lab::{
    BrokerKind, Federation, FederationPlan, FleetStatus, Member, Privacy, SitePlan, Source, TaskKind, Updates,
};
use medinet_ledger::directory::read_log;
use medinet_ledger::{ModelBundle, TrustedKeys, verify_log};
use medinet_types::{ModelDigest, SiteId};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Hospitals of every federation here.
pub(crate) const SITES: usize = 3;
/// Longer than any of them takes, many kills included, on a slow machine.
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

/// The hospitals' studies, made once: folders `site-1` and so on, each with `labels.csv`.
pub(crate) fn studies() -> &'static Path {
    static STUDIES: OnceLock<PathBuf> = OnceLock::new();
    STUDIES.get_or_init(|| {
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
    })
}

/// A federation whose hospitals read watched folders, with its own copy of the studies in them.
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
    let sites = (1..=SITES)
        .map(|number| {
            let from = studies().join(format!("site-{number}"));
            let watched = folder.join(format!("watched-{number}"));
            fs::create_dir(&watched).unwrap();
            for entry in fs::read_dir(&from).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|extension| extension == "dcm") {
                    fs::copy(&path, watched.join(path.file_name().unwrap())).unwrap();
                }
            }
            SitePlan {
                id: SiteId::new(format!("hospital-{number}")).unwrap(),
                source: Source::Folder(watched),
                labels_csv: from.join("labels.csv"),
            }
        })
        .collect();
    Federation::prepare(FederationPlan {
        folder: folder.join("federation"),
        seed: 11,
        rounds,
        local_epochs: 1,
        updates,
        sites,
        task: TaskKind::Tiny,
        broker,
        gpu: false,
        privacy,
    })
    .unwrap()
}

/// Starts every member and follows them until each hospital holds the released model; `meddle` is called all the time.
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
        let finished = status.aggregator.as_ref().is_some_and(|aggregator| aggregator.finished);
        if finished {
            let since = *finished_at.get_or_insert_with(Instant::now);
            ensure!(since.elapsed() < RELEASE, "the rounds are over, and a hospital has no released model");
        }
        Ok(finished && (0..SITES).all(|site| federation.site_release(site).exists()))
    })?;
    federation.check_alive()?;
    federation.stop()
}

/// The model that every hospital has proven and kept, after the ledger's files have been verified; all must hold the
/// same.
pub(crate) fn released(federation: &Federation) -> Result<ModelDigest> {
    let report =
        verify_log(&read_log(&federation.aggregator_data().join("ledger"))?, federation.ledger_key(), None);
    ensure!(report.is_verified(), "{report}");
    for site in 0..SITES {
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
    let digests = (0..SITES)
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

/// The model of a federation that nobody disturbs; computed once.
pub(crate) fn undisturbed() -> ModelDigest {
    static DIGEST: OnceLock<ModelDigest> = OnceLock::new();
    *DIGEST.get_or_init(|| {
        let mut federation = federation("undisturbed", BrokerKind::Own, ROUNDS, PLAIN);
        run(&mut federation, |federation, _| federation.check_alive()).unwrap();
        released(&federation).unwrap()
    })
}

/// What these federations send where nothing else is tested.
pub(crate) const PLAIN: Updates = Updates::Plain { bits: 8 };

/// Rounds of every federation here: enough that fifty kills fall within them.
pub(crate) const ROUNDS: u32 = 24;

/// All processes of a federation.
pub(crate) fn members() -> Vec<Member> {
    [Member::Broker, Member::Aggregator].into_iter().chain((0..SITES).map(Member::Site)).collect()
}
