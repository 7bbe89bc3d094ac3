//! `medinet-study audit`: the arguments, and where the report goes.

use anyhow::{Context as _, Result};
use medinet_study::audit::{self, AuditStudy, Outcome, Released, folder_of_images};
use medinet_study::setup::Source;
use medinet_types::FederationId;
use std::io::Write as _;
use std::path::{Path, PathBuf};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Membership inference against a model, and inversion of updates.
    Privacy(Privacy),
}

/// All but where the checkout is; `medinet audit privacy` has the same.
#[derive(clap::Args)]
pub(crate) struct Privacy {
    /// Folder for audit.html and audit.json.
    #[arg(long)]
    out: PathBuf,
    /// Half a minute's worth, to see that everything works.
    #[arg(long)]
    quick: bool,
    /// Trainings and inversions at a time, each on one thread; set RAYON_NUM_THREADS=1 with it.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// The data set.
    #[arg(long, value_enum)]
    data: Option<Source>,
    /// Sites of the federation that is attacked; 3 without it.
    #[arg(long)]
    sites: Option<usize>,
    /// Its rounds, with --model those of the shadow models; 12 without it.
    #[arg(long)]
    rounds: Option<u32>,
    /// Passes over a site's images in a round, with --model those of the shadow models; 1 without it.
    #[arg(long)]
    local_epochs: Option<u32>,
    /// Channels of the network's first stage, a multiple of 8; 16 without it.
    #[arg(long)]
    width: Option<u32>,
    /// Shadow models of each variant, at least 2; 16 without it.
    #[arg(long)]
    shadows: Option<usize>,
    /// Queries of each image, 1 to 5; 3 without it.
    #[arg(long)]
    queries: Option<usize>,
    /// Compares with private training of this epsilon over all rounds; 8 without it, and 0 leaves it out.
    #[arg(long)]
    private: Vec<f64>,
    /// Leaves out the control, a model that leaks for certain.
    #[arg(long)]
    no_control: bool,
    /// Leaves out membership inference.
    #[arg(long)]
    no_membership: bool,
    /// Leaves out inversion of updates.
    #[arg(long)]
    no_inversion: bool,
    /// Most images; all without it.
    #[arg(long)]
    head: Option<usize>,
    /// Seed; 1 without it.
    #[arg(long)]
    seed: Option<u64>,
    /// Attacks this released model: its bundle. Needs --ledger-key, --federation, --members and --others.
    #[arg(long, requires_all = ["ledger_key", "federation", "members", "others"])]
    model: Option<PathBuf>,
    /// The public key of the federation's ledger.
    #[arg(long, requires = "model")]
    ledger_key: Option<PathBuf>,
    /// The federation's name.
    #[arg(long, requires = "model")]
    federation: Option<FederationId>,
    /// Folder with a folder for each class, with DICOM files of patients whom the model was trained on.
    #[arg(long, requires = "model")]
    members: Option<PathBuf>,
    /// The same of patients whom it was not trained on, from the same time and place.
    #[arg(long, requires = "model")]
    others: Option<PathBuf>,
}

impl Privacy {
    fn study(&self) -> AuditStudy {
        let base = if self.quick { AuditStudy::quick() } else { AuditStudy::full() };
        let private = match self.private.as_slice() {
            [] => base.private.clone(),
            given => given.iter().copied().filter(|epsilon| *epsilon != 0.0).collect(),
        };
        AuditStudy {
            source: self.data.unwrap_or(base.source),
            sites: self.sites.unwrap_or(base.sites),
            rounds: self.rounds.unwrap_or(base.rounds),
            local_epochs: self.local_epochs.unwrap_or(base.local_epochs),
            width: self.width.unwrap_or(base.width),
            shadows: self.shadows.unwrap_or(base.shadows),
            queries: self.queries.unwrap_or(base.queries),
            private,
            control: base.control && !self.no_control,
            membership: !self.no_membership,
            inversion: base.inversion.filter(|_| !self.no_inversion),
            head: self.head.or(base.head),
            seed: self.seed.unwrap_or(base.seed),
        }
    }
}

pub(crate) fn run(repository: &Path, command: &Command) -> Result<()> {
    let Command::Privacy(arguments) = command;
    let out = &arguments.out;
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let watch = |said: &str| {
        // There is nobody to tell when standard error itself fails.
        let _ = writeln!(std::io::stderr(), "{said}");
    };
    let study = arguments.study();
    let outcome = match released(arguments)? {
        Some((released, members, others)) => {
            study.run_on_released(&released, &members, &others, arguments.threads, &watch)?
        }
        None => study.run(repository, arguments.threads, &watch)?,
    };
    write(out, &outcome)?;
    Ok(write!(std::io::stdout().lock(), "{}", audit::text(&outcome))?)
}

type Given = (Released, medinet_study::Images, medinet_study::Images);

fn released(arguments: &Privacy) -> Result<Option<Given>> {
    let Privacy {
        model: Some(model),
        ledger_key: Some(key),
        federation: Some(federation),
        members: Some(members),
        others: Some(others),
        ..
    } = arguments
    else {
        return Ok(None);
    };
    let released = Released::open(model, key, federation)?;
    let members = folder_of_images(members, released.spec())?;
    let others = folder_of_images(others, released.spec())?;
    Ok(Some((released, members, others)))
}

fn write(out: &Path, outcome: &Outcome) -> Result<()> {
    let put = |name: &str, bytes: Vec<u8>| {
        let path = out.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    };
    put("audit.json", serde_json::to_vec_pretty(outcome)?)?;
    put("audit.html", audit::html(outcome)?.into_bytes())
}
