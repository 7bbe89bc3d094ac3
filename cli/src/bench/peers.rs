//! The programs that ours are held against, and where they are found.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A foreign peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Microsoft's ONNX runtime.
    Onnxruntime,
    /// PyTorch.
    Torch,
    /// Opacus, private training in PyTorch.
    Opacus,
    /// The framework Flower.
    Flower,
}

/// A peer that is not here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    /// What is missing and which command installs it.
    pub(crate) reason: String,
}

/// A file that tells a checkout.
const MARK: &str = "bench/torch_twin.py";

impl Peer {
    /// Its name as people know it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Onnxruntime => "onnxruntime",
            Self::Torch => "PyTorch",
            Self::Opacus => "Opacus",
            Self::Flower => "Flower",
        }
    }

    /// The Python module.
    fn module(self) -> &'static str {
        match self {
            Self::Onnxruntime => "onnxruntime",
            Self::Torch => "torch",
            Self::Opacus => "opacus",
            Self::Flower => "flwr",
        }
    }

    /// The script that speaks the children's protocol, in `bench/` of the repository.
    fn script(self) -> &'static str {
        match self {
            Self::Onnxruntime => "onnxruntime_twin.py",
            Self::Torch | Self::Opacus => "torch_twin.py",
            Self::Flower => "flower_secagg.py",
        }
    }

    fn setup(self) -> &'static str {
        match self {
            Self::Onnxruntime => "cargo xtask setup",
            Self::Torch | Self::Opacus | Self::Flower => "cargo xtask setup --bench",
        }
    }

    /// The command that runs the peer's script, to which its arguments are still to be added.
    ///
    /// # Errors
    /// When the script or its Python packages are not here.
    pub(crate) fn command(self) -> Result<Command, Missing> {
        let repository = repository().ok_or_else(|| Missing {
            reason: format!(
                "{} is not compared with: its script lies in bench/ of a checkout, run this inside one",
                self.name()
            ),
        })?;
        let found = environments(&repository).into_iter().map(|venv| venv.join("bin/python"));
        let python = found.into_iter().find(|python| has_module(python, self.module()));
        let python = python.ok_or_else(|| Missing {
            reason: format!("{} is not installed: `{}` does it", self.name(), self.setup()),
        })?;
        let mut command = Command::new(python);
        command.arg(repository.join("bench").join(self.script()));
        Ok(command)
    }
}

/// The checkout around the working folder or around this program.
fn repository() -> Option<PathBuf> {
    let starts = [std::env::current_dir().ok(), std::env::current_exe().ok()];
    let mut folders = starts.iter().flatten().flat_map(|start| start.ancestors());
    folders.find(|folder| folder.join(MARK).is_file()).map(Path::to_owned)
}

/// The private Python environments, that of the tests first.
fn environments(repository: &Path) -> [PathBuf; 2] {
    let venv = |variable: &str, default: &str| {
        std::env::var_os(variable).map_or_else(|| repository.join(default), PathBuf::from)
    };
    [venv("MEDINET_VENV", ".venv"), venv("MEDINET_BENCH_VENV", ".venv-bench")]
}

fn has_module(python: &Path, module: &str) -> bool {
    // Looked up and not imported: that would take seconds for the large ones.
    let script =
        format!("import importlib.util, sys; sys.exit(importlib.util.find_spec({module:?}) is None)");
    let mut command = Command::new(python);
    command.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_has_its_script() {
        let repository = repository().expect("tests run inside a checkout");
        for peer in [Peer::Onnxruntime, Peer::Torch, Peer::Opacus, Peer::Flower] {
            assert!(repository.join("bench").join(peer.script()).is_file(), "{peer:?}");
        }
    }

    #[test]
    fn a_python_that_is_not_there_has_nothing() {
        assert!(!has_module(Path::new("/no/such/python"), "sys"));
    }
}
