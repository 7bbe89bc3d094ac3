//! The settings files of a federation's programs.

use crate::enrolment::{private_bytes, private_folder};
use crate::federation::FEDERATION;
use crate::gateway::{Access, Proof};
use crate::mosquitto;
use crate::plan::{BrokerKind, FederationPlan, Noise, Privacy, SitePlan, Source, Updates};
use crate::task::TaskKind;
use anyhow::{Context as _, Result};
use medinet_types::Digest;
use std::fs;
use std::path::Path;
use toml::Value;

/// What every program of a federation is told.
pub(crate) struct Settings<'a> {
    /// The federation.
    pub(crate) plan: &'a FederationPlan,
    /// Where its broker listens on loopback.
    pub(crate) port: u16,
}

impl Settings<'_> {
    /// Writes every file, into folders that are there and hold the parties' certificates.
    pub(crate) fn write(&self) -> Result<()> {
        fs::write(self.plan.folder.join("task.toml"), toml::to_string(&self.plan.task.spec())?)?;
        self.write_broker()?;
        self.write_aggregator()?;
        self.plan.sites.iter().try_for_each(|site| self.write_site(site))
    }

    fn write_broker(&self) -> Result<()> {
        let folder = self.plan.folder.join("broker");
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
        let file = folder.join("broker.toml");
        write_toml(&file, &settings)?;
        match self.plan.broker {
            BrokerKind::Own => Ok(()),
            BrokerKind::Mosquitto => mosquitto::write(&file, &folder),
        }
    }

    fn write_aggregator(&self) -> Result<()> {
        let sites = i64::try_from(self.plan.sites.len())?;
        let members = self.plan.sites.iter().map(|site| Value::from(site.id.as_str())).collect();
        // A handful of validation images says nothing on a tiny network.
        let least_auroc = if self.plan.task == TaskKind::Tiny { 0.0 } else { 0.5 };
        let training = Value::try_from(self.plan.training(self.plan.local_epochs))?;
        let losses = match self.plan.updates {
            Updates::Plain { .. } | Updates::Groups { .. } => 0,
            Updates::Secure { losses, .. } => i64::from(losses),
        };
        let grace = if self.waits_for_all() { "20 s" } else { "10 min" };
        let task = table([
            ("spec_file", "../task.toml".into()),
            ("members", Value::Array(members)),
            ("rounds", i64::from(self.plan.rounds).into()),
            ("min_sites", (sites - losses).into()),
            ("max_sites", sites.into()),
            ("round_deadline", "2 h".into()),
            ("join_grace", grace.into()),
            ("max_extensions", 3.into()),
            ("max_examples", 1_000_000.into()),
            ("initial_seed", i64::try_from(self.plan.seed)?.into()),
            ("training", training),
            ("aggregation", self.aggregation_table()?),
            (
                "release",
                table([
                    ("min_median_auroc", least_auroc.into()),
                    ("max_regression", (if least_auroc > 0.0 { 0.05 } else { 1.0 }).into()),
                    ("min_reporting_sites", 1.into()),
                    // Not the majority of the members that is the default: some sites may hold too few images to vote.
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

    /// The fewest sites among which one of these hides its update: three, unless the federation's plan says that there may be fewer.
    fn least_sites(&self) -> Result<i64> {
        let sites = i64::try_from(self.plan.sites.len())?;
        Ok(match self.plan.updates {
            Updates::Plain { .. } => sites.min(2),
            Updates::Secure { losses, .. } => (sites - i64::from(losses)).min(3),
            Updates::Groups { sites, .. } => sites.into(),
        })
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
                let (message_deadline, input_deadline) = self.session_deadlines();
                let mut secure = vec![
                    ("bits", i64::from(bits).into()),
                    ("clip_norm", self.plan.task.clip_norm().into()),
                    ("kept_permille", i64::from(kept_permille).into()),
                    ("reference_examples", reference.into()),
                    ("message_deadline", message_deadline.into()),
                    ("input_deadline", input_deadline.into()),
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
                let (message_deadline, input_deadline) = self.session_deadlines();
                let secure = table([
                    ("bits", i64::from(bits).into()),
                    ("clip_norm", self.plan.task.clip_norm().into()),
                    ("reference_examples", i64::try_from(self.most_labels()?)?.into()),
                    ("message_deadline", message_deadline.into()),
                    ("input_deadline", input_deadline.into()),
                    ("groups", groups),
                ]);
                table([("secure", secure)])
            }
        })
    }

    /// Whether tests may kill any member, and rounds sum all sites or none. However little such a round waits, it never closes without a
    /// site: a deadline only says when a session, or a round that cannot go on, is given up for another.
    fn waits_for_all(&self) -> bool {
        let all = matches!(self.plan.updates, Updates::Plain { .. } | Updates::Secure { losses: 0, .. });
        all && self.plan.task == TaskKind::Tiny
    }

    /// Whether sessions go on without sites that are lost.
    fn may_lose(&self) -> bool {
        matches!(self.plan.updates, Updates::Secure { losses: 1.., .. })
    }

    /// How long a session of secure aggregation waits for each short message, and for the masked updates.
    fn session_deadlines(&self) -> (&'static str, &'static str) {
        match self.plan.task {
            TaskKind::Demo if !self.may_lose() => ("2 min", "5 min"),
            TaskKind::Tiny if self.waits_for_all() => ("5 s", "45 s"),
            // Where a site is to be lost, the others are not to wait long for it.
            TaskKind::Demo | TaskKind::Tiny => ("15 s", "45 s"),
        }
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

    fn write_site(&self, site: &SitePlan) -> Result<()> {
        let folder = self.plan.folder.join(site.id.as_str());
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
            Source::Gateway(access) => ("dicomweb", gateway_table(access)?),
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
            ("min_sites", self.least_sites()?.into()),
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
            // Some hold one class alone, and abstain.
            policy.push(("release", table([("min_accepting", 1.into())])));
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
        write_toml(&folder.join("appliance.toml"), &settings)
    }

    fn session_table(&self) -> Value {
        table([
            ("host", "localhost".into()),
            ("port", i64::from(self.port).into()),
            ("max_backoff", "1 s".into()),
        ])
    }
}

/// Bytes for one purpose, the same for the same seed.
pub(crate) fn derived(seed: u64, purpose: &str) -> Digest {
    Digest::of_parts(&[b"medinet lab", &seed.to_le_bytes(), purpose.as_bytes()])
}

fn gateway_table(access: &Access) -> Result<Value> {
    let proof = match &access.proof {
        Proof::Token { file } => {
            ("auth", table([("kind", "bearer".into()), ("token_file", absolute(file)?)]))
        }
        Proof::Certificate { certificate, key } => {
            let files = [("certificate_file", absolute(certificate)?), ("key_file", absolute(key)?)];
            ("client_identity", table(files))
        }
    };
    Ok(table([("base_url", access.url.as_str().into()), ("ca_file", absolute(&access.ca_file)?), proof]))
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
