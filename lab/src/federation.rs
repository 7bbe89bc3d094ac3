//! The processes of a federation: starting, killing and watching them.

use crate::enrolment::{authority, enrol, identity_files, loopback};
use crate::mosquitto;
use crate::orthanc::free_port;
use crate::plan::{BrokerKind, FederationPlan};
use crate::process::Running;
use crate::settings::{Settings, derived};
use anyhow::{Context as _, Result, bail};
use medinet_identity::{Identity, write_private};
use medinet_ledger::{CheckpointSigner as _, Ed25519Signer, LedgerPublicKey};
use medinet_link::{BlobStore, Incoming, Link, LinkEvent, LinkOptions, SessionSettings};
use medinet_model::TrainingPlan;
use medinet_types::{FederationId, Role, SiteId};
use medinet_wire::message::{AggregatorStatus, SiteStatus};
use medinet_wire::topic::{Broadcast, Topic};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The name of every federation here.
pub(crate) const FEDERATION: &str = "chest";

/// A process of the federation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Member {
    /// The broker.
    Broker,
    /// The aggregator.
    Aggregator,
    /// The appliance of the hospital with this index.
    Site(usize),
}

/// What the fleet's topics say.
#[derive(Debug, Clone, Default)]
pub struct FleetStatus {
    /// The aggregator's newest status.
    pub aggregator: Option<AggregatorStatus>,
    /// The sites' newest statuses.
    pub sites: BTreeMap<SiteId, SiteStatus>,
}

/// What a site computes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteDevice {
    /// The device as it names itself.
    pub name: String,
    /// Why it is the CPU although a GPU was wanted.
    pub note: Option<String>,
}

/// A federation on this machine; its processes are killed when it is dropped.
pub struct Federation {
    plan: FederationPlan,
    port: u16,
    ledger_key: LedgerPublicKey,
    processes: BTreeMap<Member, Running>,
}

impl Federation {
    /// Makes certificates and settings; starts nothing.
    ///
    /// # Errors
    /// When the folder exists or cannot be written.
    pub fn prepare(plan: FederationPlan) -> Result<Self> {
        medinet_identity::install_default_provider();
        let folder = &plan.folder;
        if let Some(parent) = folder.parent() {
            fs::create_dir_all(parent)?;
        }
        DirBuilder::new()
            .mode(0o700)
            .create(folder)
            .with_context(|| format!("cannot make {} (remove an earlier one first)", folder.display()))?;
        let authority = authority(&folder.join("ca"), "MediNet lab CA")?;
        enrol(&authority, folder, Role::Broker, "broker", &loopback()?)?;
        enrol(&authority, folder, Role::Aggregator, "aggregator", &[])?;
        enrol(&authority, folder, Role::Operator, "operator", &[])?;
        for site in &plan.sites {
            enrol(&authority, folder, Role::Site, site.id.as_str(), &[])?;
        }
        let seed = derived(plan.seed, "ledger");
        let signer = Ed25519Signer::from_seed(&seed.0).map_err(|error| anyhow::anyhow!("{error}"))?;
        let federation = FederationId::new(FEDERATION)?;
        let public = signer.public_key();
        let ledger_key = LedgerPublicKey::new(&federation, public);
        write_private(&folder.join("aggregator/ledger.key"), &format!("{seed}\n"))?;
        fs::write(folder.join("aggregator/ledger.pub"), format!("{}\n", hex::encode(public)))?;
        let port = free_port()?;
        Settings { plan: &plan, port }.write()?;
        Ok(Self { plan, port, ledger_key, processes: BTreeMap::new() })
    }

    /// How a site trains, were it to do `epochs` passes at once.
    #[must_use]
    pub fn training_plan(&self, epochs: u32) -> TrainingPlan {
        self.plan.training(epochs)
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &FederationPlan {
        &self.plan
    }

    /// The key that the ledger is signed with.
    #[must_use]
    pub fn ledger_key(&self) -> &LedgerPublicKey {
        &self.ledger_key
    }

    /// The aggregator's data.
    #[must_use]
    pub fn aggregator_data(&self) -> PathBuf {
        self.plan.folder.join("aggregator/data")
    }

    /// A site's folder.
    #[must_use]
    pub fn site_folder(&self, index: usize) -> PathBuf {
        self.plan.folder.join(self.plan.sites[index].id.as_str())
    }

    /// A site's settings file.
    #[must_use]
    pub fn site_settings(&self, index: usize) -> PathBuf {
        self.site_folder(index).join("appliance.toml")
    }

    /// The newest released model that a site has proven and kept.
    #[must_use]
    pub fn site_release(&self, index: usize) -> PathBuf {
        let task = self.plan.task.spec().task;
        self.site_folder(index).join("data/models").join(format!("{task}.bundle"))
    }

    /// What a site's newest round was computed on.
    ///
    /// # Errors
    /// When the site has computed nothing yet, or its files cannot be read.
    pub fn site_device(&self, index: usize) -> Result<SiteDevice> {
        let task = self.plan.task.spec().task;
        let rounds = self.site_folder(index).join("data/rounds").join(task.as_str());
        let entries = fs::read_dir(&rounds).with_context(|| format!("cannot list {}", rounds.display()))?;
        let mut results = Vec::new();
        for entry in entries {
            let result = entry?.path().join("result.json");
            if result.exists() {
                results.push(result);
            }
        }
        // Folders of rounds begin with the round's number, padded.
        results.sort();
        let newest = results.last().with_context(|| format!("no result in {}", rounds.display()))?;
        let result: serde_json::Value =
            serde_json::from_slice(&fs::read(newest)?).with_context(|| format!("in {}", newest.display()))?;
        let device = &result["device"];
        let name = device["name"].as_str().with_context(|| format!("no device in {}", newest.display()))?;
        Ok(SiteDevice { name: name.to_owned(), note: device["note"].as_str().map(str::to_owned) })
    }

    /// A member's log.
    #[must_use]
    pub fn log(&self, member: Member) -> PathBuf {
        self.plan.folder.join(format!("{}.log", self.name(member)))
    }

    /// Every member.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        let sites = (0..self.plan.sites.len()).map(Member::Site);
        [Member::Broker, Member::Aggregator].into_iter().chain(sites).collect()
    }

    /// Starts a member.
    ///
    /// # Errors
    /// When its program is not there.
    pub fn start(&mut self, member: Member) -> Result<()> {
        let folder = &self.plan.folder;
        let command = match member {
            Member::Broker if self.plan.broker == BrokerKind::Mosquitto => {
                mosquitto::command(&folder.join("broker"))?
            }
            Member::Broker => self.command("medinet-broker", &[], &folder.join("broker/broker.toml"))?,
            Member::Aggregator => {
                self.command("medinet-aggregator", &[], &folder.join("aggregator/aggregator.toml"))?
            }
            Member::Site(index) => self.command("medinet-appliance", &["run"], &self.site_settings(index))?,
        };
        let running = Running::start(&self.name(member), command, &self.log(member))?;
        self.processes.insert(member, running);
        Ok(())
    }

    fn command(&self, name: &str, before: &[&str], settings: &Path) -> Result<Command> {
        let mut command = Command::new(program(name)?);
        command.args(before).arg("--config").arg(settings);
        Ok(command)
    }

    /// Kills a member as a power cut would.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn kill(&mut self, member: Member) -> Result<()> {
        self.processes.remove(&member).map_or(Ok(()), Running::kill)
    }

    /// Fails when a member that was started has ended, naming its log.
    ///
    /// # Errors
    /// As said.
    pub fn check_alive(&mut self) -> Result<()> {
        let mut dead = None;
        for (&member, running) in &mut self.processes {
            if let Some(status) = running.has_ended()? {
                dead = Some((member, status));
            }
        }
        match dead {
            Some((member, status)) => {
                bail!("{} ended with {status}: see {}", self.name(member), self.log(member).display())
            }
            None => Ok(()),
        }
    }

    /// Stops every member.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn stop(&mut self) -> Result<()> {
        // The broker last, so that the others can say goodbye.
        while let Some((_, running)) = self.processes.pop_last() {
            running.stop()?;
        }
        Ok(())
    }

    fn name(&self, member: Member) -> String {
        match member {
            Member::Broker => "broker".to_owned(),
            Member::Aggregator => "aggregator".to_owned(),
            Member::Site(index) => self.plan.sites[index].id.to_string(),
        }
    }

    /// Follows the fleet's topics as an operator until `done` says so; `done` is asked at every status and at least
    /// every half second, and may start and kill members.
    ///
    /// # Errors
    /// When `done` fails or the time is up.
    pub fn follow(
        &mut self,
        timeout: Duration,
        mut done: impl FnMut(&mut Self, &FleetStatus) -> Result<bool>,
    ) -> Result<FleetStatus> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let folder = self.plan.folder.clone();
        let session = SessionSettings {
            host: "localhost".to_owned(),
            port: self.port,
            keep_alive: "20 s".parse()?,
            max_inflight: 16,
            max_backoff: "1 s".parse()?,
        };
        let federation = FederationId::new(FEDERATION)?;
        let identity = Arc::new(Identity::load(&identity_files(&folder, "operator"))?);
        let status = runtime.block_on(async {
            let (link, mut events) = Link::start(LinkOptions {
                session,
                verifier: identity.trust().clone(),
                identity,
                federation,
                blobs: BlobStore::open(folder.join("operator/blobs"))?,
                last_will: None,
            });
            let mut status = FleetStatus::default();
            let deadline = Instant::now() + timeout;
            loop {
                let event = tokio::time::timeout(Duration::from_millis(500), events.recv()).await;
                if let Ok(Some(LinkEvent::Message(Incoming::Status(topic, json)))) = event {
                    match topic {
                        Topic::Broadcast(_, Broadcast::Status) => {
                            status.aggregator = serde_json::from_slice(&json).ok().or(status.aggregator);
                        }
                        Topic::SiteStatus(_, site) => {
                            if let Ok(site_status) = serde_json::from_slice(&json) {
                                status.sites.insert(site, site_status);
                            }
                        }
                        _ => {}
                    }
                }
                if done(self, &status)? {
                    link.close().await;
                    return Ok(status);
                }
                if Instant::now() > deadline {
                    bail!("the federation has not finished after {} s: {status:?}", timeout.as_secs());
                }
            }
        });
        runtime.shutdown_timeout(Duration::from_secs(1));
        status
    }
}

/// A program of MediNet, beside the running one.
///
/// # Errors
/// When it is not there.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().context("a program lies in a folder")?;
    // Tests lie one folder deeper.
    let found =
        [Some(folder), folder.parent()].into_iter().flatten().map(|f| f.join(name)).find(|p| p.exists());
    found.with_context(|| {
        format!("expected the program {name} beside {}: `cargo build --workspace` makes it", own.display())
    })
}
