//! Certificates, settings files and processes of a federation.

use crate::orthanc::free_port;
use crate::process::Running;
use crate::task::TaskKind;
use anyhow::{Context as _, Result, bail};
use medinet_identity::{Authority, Host, Identity, IdentityFiles, Issue, new_key_and_csr, write_private};
use medinet_ledger::{CheckpointSigner as _, Ed25519Signer, LedgerPublicKey};
use medinet_link::{BlobStore, Incoming, Link, LinkEvent, LinkOptions, SessionSettings};
use medinet_model::{ClassBalance, TrainingPlan};
use medinet_privacy::{DpSgdPlan, Epsilon, PrivacyLimit};
use medinet_types::{Digest, FederationId, Principal, Role, SiteId};
use medinet_wire::message::{AggregatorStatus, SiteStatus};
use medinet_wire::topic::{Broadcast, Topic};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use toml::Value;

const FEDERATION: &str = "chest";
const DAY: Duration = Duration::from_secs(86_400);

/// What to set up.
#[derive(Debug, Clone)]
pub struct FederationPlan {
    /// Where everything lies; must not exist yet.
    pub folder: PathBuf,
    /// Decides initial parameters, shuffling, and the sites' keys: the same seed gives the same model on the CPU.
    pub seed: u64,
    /// Training rounds.
    pub rounds: u32,
    /// Passes over the data in each round.
    pub local_epochs: u32,
    /// How updates become one.
    pub updates: Updates,
    /// The hospitals.
    pub sites: Vec<SitePlan>,
    /// What is trained.
    pub task: TaskKind,
    /// Which broker.
    pub broker: BrokerKind,
    /// Whether sites train on a GPU where one is there.
    pub gpu: bool,
    /// Differential privacy; none trains without.
    pub privacy: Option<Privacy>,
}

/// Private training in every round, and what the sites give for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Privacy {
    /// Where the noise is.
    pub noise: Noise,
    /// The sites' limit for all rounds, at the round's delta.
    pub max_epsilon_total: Epsilon,
}

/// Where a private round has its noise, and what that costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Noise {
    /// In each site's training.
    Training(DpSgdPlan),
    /// Inside the sum; only with secure aggregation.
    Sum {
        /// What a round costs, at most, and at which delta.
        limit: PrivacyLimit,
        /// Standard deviation of the noise that is counted over what one patient can move the sum by.
        noise_multiplier: f64,
        /// How many sites' noise is counted.
        honest_survivors: u32,
    },
}

impl Noise {
    /// What a round costs, at most.
    #[must_use]
    pub fn limit(&self) -> PrivacyLimit {
        match self {
            Self::Training(plan) => PrivacyLimit { epsilon: plan.epsilon, delta: plan.delta },
            Self::Sum { limit, .. } => *limit,
        }
    }
}

/// How updates become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Updates {
    /// The aggregator reads each; bits of a quantized coordinate, 1 to 8; 32 sends float32.
    Plain {
        /// Bits.
        bits: u8,
    },
    /// Secure aggregation; bits of a coordinate before the sum, 1 to 8.
    Secure {
        /// Bits.
        bits: u8,
        /// How many of 1,000 coordinates are sent, 1 to 1000.
        kept_permille: u16,
        /// How many sites a session may lose.
        losses: u16,
    },
    /// Secure aggregation in random groups, and the median of their means.
    Groups {
        /// Bits.
        bits: u8,
        /// The fewest sites of a group.
        sites: u16,
    },
}

/// One hospital.
#[derive(Debug, Clone)]
pub struct SitePlan {
    /// Its name.
    pub id: SiteId,
    /// Where its studies come from.
    pub source: Source,
    /// Its labels by accession number.
    pub labels_csv: PathBuf,
}

/// Where a hospital's studies come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A PACS over DICOMweb with basic authentication.
    Dicomweb {
        /// Root of the service.
        url: String,
        /// User.
        user: String,
        /// File with the password.
        password_file: PathBuf,
    },
    /// A watched folder.
    Folder(PathBuf),
}

/// Which broker stands in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerKind {
    /// MediNet's.
    Own,
    /// Debian's Mosquitto with the sample rules of `config/mosquitto`.
    Mosquitto,
}

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
        let port = free_port()?;
        let now = medinet_link::now();
        let authority = Authority::create(&folder.join("ca"), "MediNet lab CA", 3650 * DAY, now)?;
        let hosts = [Host::Dns("localhost".to_owned()), "127.0.0.1".parse()?];
        enrol(&authority, folder, Role::Broker, "broker", &hosts)?;
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
        fs::write(folder.join("task.toml"), toml::to_string(&plan.task.spec())?)?;
        let this = Self { plan, port, ledger_key, processes: BTreeMap::new() };
        this.write_broker()?;
        this.write_aggregator()?;
        for index in 0..this.plan.sites.len() {
            this.write_site(index)?;
        }
        Ok(this)
    }

    /// How a site trains, were it to do `epochs` passes at once.
    #[must_use]
    pub fn training_plan(&self, epochs: u32) -> TrainingPlan {
        let plain = self.plan.task.training(epochs, self.plan.seed);
        match &self.plan.privacy {
            Some(Privacy { noise: Noise::Training(plan), .. }) => {
                TrainingPlan { class_balance: ClassBalance::None, privacy: Some(*plan), ..plain }
            }
            // Noise inside the sum is nothing to training.
            Some(Privacy { noise: Noise::Sum { .. }, .. }) | None => plain,
        }
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
                let mut command = Command::new("/usr/sbin/mosquitto");
                command.arg("-c").arg(folder.join("broker/mosquitto.conf"));
                command
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

    fn write_broker(&self) -> Result<()> {
        let folder = self.plan.folder.join("broker");
        if self.plan.broker == BrokerKind::Mosquitto {
            return self.write_mosquitto(&folder);
        }
        let sites = self.plan.sites.iter().map(|site| Value::from(site.id.as_str())).collect();
        let federation = table([
            ("id", FEDERATION.into()),
            ("sites", Value::Array(sites)),
            ("aggregator", "aggregator".into()),
            ("operators", Value::Array(vec!["operator".into()])),
        ]);
        let settings = table([
            ("listen", format!("127.0.0.1:{}", self.port).into()),
            ("identity", identity_table()),
            ("federation", Value::Array(vec![federation])),
        ]);
        write_toml(&folder.join("broker.toml"), &settings)
    }

    fn write_mosquitto(&self, folder: &Path) -> Result<()> {
        let here = |name: &str| folder.join(name).display().to_string();
        // The same rules as config/mosquitto/acl, for this federation's name.
        let root = format!("medinet/v1/{FEDERATION}");
        let acl = format!(
            "user aggregator\ntopic write {root}/agg/#\ntopic write {root}/site/+/down/#\ntopic read {root}/site/+/up/#\n\
             topic read {root}/site/+/status\n\nuser operator\ntopic read {root}/agg/#\ntopic read {root}/site/+/status\n\n\
             pattern write {root}/site/%u/up/#\npattern write {root}/site/%u/status\npattern read {root}/site/%u/down/#\n\
             pattern read {root}/agg/#\n"
        );
        fs::write(folder.join("acl"), acl)?;
        let configuration = format!(
            "per_listener_settings false\nlistener {} 127.0.0.1\nallow_anonymous false\ncafile {}\ncertfile {}\n\
             keyfile {}\ncrlfile {}\nrequire_certificate true\nuse_identity_as_username true\nacl_file {}\n\
             persistence false\nmax_packet_size 400000\nuser root\n",
            self.port,
            here("ca.pem"),
            here("certificate.pem"),
            here("key.pem"),
            here("crl.pem"),
            here("acl"),
        );
        Ok(fs::write(folder.join("mosquitto.conf"), configuration)?)
    }

    fn write_aggregator(&self) -> Result<()> {
        let sites = i64::try_from(self.plan.sites.len())?;
        let members = self.plan.sites.iter().map(|site| Value::from(site.id.as_str())).collect();
        // A handful of validation images says nothing on a tiny network.
        let least_auroc = if self.plan.task == TaskKind::Tiny { 0.0 } else { 0.5 };
        let training = Value::try_from(self.training_plan(self.plan.local_epochs))?;
        let losses = match self.plan.updates {
            Updates::Plain { .. } | Updates::Groups { .. } => 0,
            Updates::Secure { losses, .. } => i64::from(losses),
        };
        let task = table([
            ("spec_file", "../task.toml".into()),
            ("members", Value::Array(members)),
            ("rounds", i64::from(self.plan.rounds).into()),
            ("min_sites", (sites - losses).into()),
            ("max_sites", sites.into()),
            ("round_deadline", "2 h".into()),
            ("join_grace", "10 min".into()),
            ("max_extensions", 3.into()),
            ("max_examples", 1_000_000.into()),
            ("initial_seed", i64::try_from(self.plan.seed)?.into()),
            ("training", training),
            ("aggregation", self.aggregation_table()?),
            (
                "release",
                table([
                    ("min_mean_auroc", least_auroc.into()),
                    ("max_regression", (if least_auroc > 0.0 { 0.05 } else { 1.0 }).into()),
                    ("min_reporting_sites", 1.into()),
                    ("votes", table([("min_accepting", 1.into()), ("min_accept_permille", 500.into())])),
                ]),
            ),
        ]);
        let settings = table([
            ("federation", FEDERATION.into()),
            ("data_dir", "data".into()),
            ("log", "info".into()),
            ("identity", identity_table()),
            ("broker", self.session_table()),
            ("ledger", table([("key_file", "ledger.key".into())])),
            ("task", Value::Array(vec![task])),
        ]);
        write_toml(&self.plan.folder.join("aggregator/aggregator.toml"), &settings)
    }

    fn aggregation_table(&self) -> Result<Value> {
        Ok(match self.plan.updates {
            Updates::Plain { bits } => {
                let codec = table([
                    ("bits", i64::from(bits).into()),
                    ("clip_norm", 20.0.into()),
                    ("error_feedback", (bits < 32).into()),
                ]);
                table([("plain", codec)])
            }
            Updates::Secure { bits, kept_permille, losses } => {
                let sites = i64::try_from(self.plan.sites.len())?;
                // Rounded down to whole sites by whoever reads it.
                let dropouts = (i64::from(losses) * 1000 + sites - 1) / sites;
                let assumptions = table([("dropout_permille", dropouts.into())]);
                let noise = self.plan.privacy.and_then(|privacy| match privacy.noise {
                    Noise::Training(_) => None,
                    Noise::Sum { limit, noise_multiplier, honest_survivors } => Some(table([
                        ("epsilon", limit.epsilon.get().into()),
                        ("delta", limit.delta.get().into()),
                        ("noise_multiplier", noise_multiplier.into()),
                        ("honest_survivors", i64::from(honest_survivors).into()),
                    ])),
                });
                // With noise all sites weigh the same.
                let reference = if noise.is_some() { 1 } else { i64::try_from(self.most_labels()?)? };
                let mut secure = vec![
                    ("bits", i64::from(bits).into()),
                    ("clip_norm", self.plan.task.clip_norm().into()),
                    ("kept_permille", i64::from(kept_permille).into()),
                    ("reference_examples", reference.into()),
                    // Where a site is to be lost, the others are not to wait long for it.
                    ("message_deadline", if losses > 0 { "15 s" } else { "2 min" }.into()),
                    ("input_deadline", if losses > 0 { "45 s" } else { "5 min" }.into()),
                    ("assumptions", assumptions),
                ];
                secure.extend(noise.map(|noise| ("noise", noise)));
                table([("secure", table(secure))])
            }
            Updates::Groups { bits, sites } => {
                let groups = table([
                    ("min_sites", i64::from(sites).into()),
                    ("rule", "median".into()),
                    ("faulty", 1.into()),
                    ("norm_limit", table([("median-times", 2.0.into())])),
                ]);
                let secure = table([
                    ("bits", i64::from(bits).into()),
                    ("clip_norm", self.plan.task.clip_norm().into()),
                    ("reference_examples", i64::try_from(self.most_labels()?)?.into()),
                    ("message_deadline", "2 min".into()),
                    ("input_deadline", "5 min".into()),
                    ("groups", groups),
                ]);
                table([("secure", secure)])
            }
        })
    }

    /// Labels of the hospital that has most.
    fn most_labels(&self) -> Result<usize> {
        let mut most = 1;
        for site in &self.plan.sites {
            let labels = fs::read_to_string(&site.labels_csv)
                .with_context(|| format!("cannot read {}", site.labels_csv.display()))?;
            most = most.max(labels.lines().count().saturating_sub(1));
        }
        Ok(most)
    }

    fn write_site(&self, index: usize) -> Result<()> {
        let site = &self.plan.sites[index];
        let folder = self.site_folder(index);
        private_folder(&folder.join("data/deident"))?;
        let name = site.id.as_str();
        // Placed before the first start, so that the same seed gives the same pseudonyms and so the same split.
        private_bytes(
            &folder.join("data/deident/site.key"),
            &derived(self.plan.seed, &format!("{name} pseudonyms")).0,
        )?;
        private_bytes(
            &folder.join("data/sealing.key"),
            &derived(self.plan.seed, &format!("{name} sealing")).0,
        )?;
        let source = match &site.source {
            Source::Dicomweb { url, user, password_file } => {
                let auth = table([
                    ("kind", "basic".into()),
                    ("user", user.as_str().into()),
                    ("password_file", absolute(password_file)?),
                ]);
                ("dicomweb", table([("base_url", url.as_str().into()), ("auth", auth)]))
            }
            Source::Folder(path) => ("folder", table([("path", absolute(path)?)])),
        };
        let task = self.plan.task.spec().task;
        let device = if self.plan.gpu { "auto" } else { "cpu" };
        let dataset = table([
            ("validation_fraction", 0.15.into()),
            ("test_fraction", 0.0.into()),
            ("labels_csv", Value::Array(vec![absolute(&site.labels_csv)?])),
        ]);
        let mut policy = vec![
            ("tasks", Value::Array(vec![task.as_str().into()])),
            ("min_sites", i64::try_from(self.plan.sites.len().min(2))?.into()),
            ("max_local_epochs", 20.into()),
            ("max_update_norm", 50.0.into()),
            ("metrics_may_leave", true.into()),
            ("plain_updates_may_leave", matches!(self.plan.updates, Updates::Plain { .. }).into()),
        ];
        // A handful of validation images says nothing on a tiny network.
        if self.plan.task == TaskKind::Tiny {
            let vote = table([
                ("min_auroc", 0.0.into()),
                ("max_auroc_drop", 1.0.into()),
                ("max_accuracy_drop", 1.0.into()),
                ("min_validation_images", 1.into()),
            ]);
            policy.push(("vote", vote));
        }
        if let Some(Privacy { noise, max_epsilon_total }) = &self.plan.privacy {
            let limit = noise.limit();
            policy.extend([
                ("require_differential_privacy", true.into()),
                ("max_epsilon_per_round", limit.epsilon.get().into()),
                ("max_epsilon_total", max_epsilon_total.get().into()),
                ("delta", limit.delta.get().into()),
            ]);
        }
        let settings = table([
            ("federation", FEDERATION.into()),
            ("data_dir", "data".into()),
            ("log", "info".into()),
            ("ledger_key_file", "../aggregator/ledger.pub".into()),
            ("task_file", "../task.toml".into()),
            ("identity", identity_table()),
            ("broker", self.session_table()),
            ("pacs", table([source])),
            ("dataset", dataset),
            ("policy", table(policy)),
            ("training", table([("device", device.into()), ("threads", 1.into())])),
        ]);
        write_toml(&self.site_settings(index), &settings)
    }

    fn session_table(&self) -> Value {
        table([
            ("host", "localhost".into()),
            ("port", i64::from(self.port).into()),
            ("max_backoff", "1 s".into()),
        ])
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

fn derived(seed: u64, purpose: &str) -> Digest {
    Digest::of_parts(&[b"medinet lab", &seed.to_le_bytes(), purpose.as_bytes()])
}

fn enrol(authority: &Authority, folder: &Path, role: Role, name: &str, hosts: &[Host]) -> Result<()> {
    let principal = Principal::new(role, SiteId::new(name)?);
    let own = folder.join(name);
    private_folder(&own)?;
    let (key, request) = new_key_and_csr(&principal)?;
    let issue = Issue { csr_pem: &request, principal: &principal, hosts, validity: 365 * DAY };
    let (certificate, _) = authority.issue(&issue, medinet_link::now())?;
    write_private(&own.join("key.pem"), &key)?;
    fs::write(own.join("certificate.pem"), certificate)?;
    fs::copy(authority.certificate_path(), own.join("ca.pem"))?;
    fs::copy(authority.crl_path(), own.join("crl.pem"))?;
    Ok(())
}

fn identity_files(folder: &Path, name: &str) -> IdentityFiles {
    let own = folder.join(name);
    IdentityFiles {
        certificate: own.join("certificate.pem"),
        key: own.join("key.pem"),
        ca: own.join("ca.pem"),
        crl: Some(own.join("crl.pem")),
    }
}

fn identity_table() -> Value {
    table([
        ("certificate", "certificate.pem".into()),
        ("key", "key.pem".into()),
        ("ca", "ca.pem".into()),
        ("crl", "crl.pem".into()),
    ])
}

fn table<'a>(entries: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    Value::Table(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

fn write_toml(path: &Path, settings: &Value) -> Result<()> {
    fs::write(path, toml::to_string(settings)?).with_context(|| format!("cannot write {}", path.display()))
}

fn absolute(path: &Path) -> Result<Value> {
    let path = fs::canonicalize(path).with_context(|| format!("{} is not there", path.display()))?;
    Ok(path.display().to_string().into())
}

fn private_folder(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make {}", path.display()))
}

fn private_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    Ok(file.write_all(bytes)?)
}
