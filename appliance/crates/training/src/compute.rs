//! Where training computes: the CPU or a GPU, chosen at run time in one binary.
//!
//! Shaders go to the driver through WGSL, not as SPIR-V of burn's own compiler, on which Mesa 22.3's lavapipe crashes.

use burn::tensor::{Device, DeviceKind as BurnKind, DeviceType, Tensor};
use serde::{Deserialize, Serialize};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The device that a site's configuration asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum DeviceChoice {
    /// The first hardware GPU that works, else the CPU.
    #[default]
    Auto,
    /// The CPU; the only device whose results are the same bit by bit from run to run.
    Cpu,
    /// A GPU adapter by its index in [`ComputeDevice::adapters`], software adapters among them.
    Gpu {
        /// Index, from 0.
        index: usize,
    },
}

/// What a GPU needs to be found, for the machine's operator.
const INSTALL: &str = "install the adapter's Vulkan driver (on Debian libvulkan1 with mesa-vulkan-drivers, or the \
                       vendor's own) and let this account open /dev/dri";

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// The CPU, through burn's flex backend.
    Cpu,
    /// A GPU through burn's wgpu backend: over Vulkan, or over OpenGL where the machine has no Vulkan driver.
    Gpu,
}

/// The device that was asked for cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There is no such adapter.
    #[error(
        "GPU {index} was configured (the first is 0) and this machine has {found} GPU adapters; {INSTALL}, or configure the CPU \
         (device = \"cpu\")"
    )]
    NoAdapter {
        /// Index that was configured.
        index: usize,
        /// Adapters found.
        found: usize,
    },
    /// The adapter is there and a first computation on it failed.
    #[error(
        "GPU adapter {name}: a first computation on it failed; update its driver, or configure the CPU (device = \"cpu\")"
    )]
    Broken {
        /// The adapter as it names itself.
        name: String,
    },
}

/// An opened device.
#[derive(Debug, Clone)]
pub struct ComputeDevice {
    device: Device,
    kind: DeviceKind,
    name: String,
    note: Option<String>,
}

impl ComputeDevice {
    /// The CPU, with the threads of rayon's global pool, in which everything on it is computed.
    #[must_use]
    pub fn cpu() -> Self {
        let name = match rayon::current_num_threads() {
            1 => "CPU (1 thread)".to_owned(),
            threads => format!("CPU ({threads} threads)"),
        };
        Self { device: Device::flex(), kind: DeviceKind::Cpu, name, note: None }
    }

    /// Opens what the configuration asks for and computes once on it.
    ///
    /// [`DeviceChoice::Auto`] passes over software adapters, which are slower than the CPU backend, and
    /// falls back to the CPU, saying why in [`Self::note`].
    ///
    /// # Errors
    /// When a GPU was asked for by index and is absent or does not work.
    pub fn open(choice: DeviceChoice) -> Result<Self, DeviceError> {
        match choice {
            DeviceChoice::Cpu => Ok(Self::cpu()),
            DeviceChoice::Gpu { index } => {
                let adapters = enumerate();
                let found = adapters.len();
                let device =
                    adapters.into_iter().nth(index).ok_or(DeviceError::NoAdapter { index, found })?;
                Self::gpu(device)
            }
            DeviceChoice::Auto => {
                let mut note = format!("no hardware GPU found, so the CPU computes; to use one, {INSTALL}");
                for device in enumerate().into_iter().filter(|device| !is_software(device)) {
                    match Self::gpu(device) {
                        Ok(opened) => return Ok(opened),
                        Err(error) => note = format!("{error}; until then the CPU computes"),
                    }
                }
                Ok(Self { note: Some(note), ..Self::cpu() })
            }
        }
    }

    fn gpu(device: Device) -> Result<Self, DeviceError> {
        // burn reports a driver that does not come up by panicking inside the first operation.
        let probe = || {
            let name = device.identity().map_or_else(|| format!("{device:?}"), |identity| identity.name);
            let two = Tensor::<1>::from_floats([1.0], &device) + Tensor::<1>::from_floats([1.0], &device);
            (name, two.try_into_vec_as::<f32>().is_ok_and(|sum| sum == [2.0]))
        };
        match catch_unwind(AssertUnwindSafe(probe)) {
            Ok((name, true)) => Ok(Self { device, kind: DeviceKind::Gpu, name, note: None }),
            Ok((name, false)) => Err(DeviceError::Broken { name }),
            Err(_) => Err(DeviceError::Broken { name: format!("{device:?}") }),
        }
    }

    /// Names of the machine's GPU adapters, software adapters among them, in the order of
    /// [`DeviceChoice::Gpu`]'s index. Opens each.
    #[must_use]
    pub fn adapters() -> Vec<String> {
        let name = |device: Device| match Self::gpu(device) {
            Ok(opened) => opened.name,
            Err(error) => error.to_string(),
        };
        enumerate().into_iter().map(name).collect()
    }

    /// CPU or GPU.
    #[must_use]
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// The device as it names itself, for logs and reports.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Why [`DeviceChoice::Auto`] took the CPU; none where it got a GPU or a device was named.
    #[must_use]
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// burn's handle, without autodiff.
    #[must_use]
    pub fn burn(&self) -> &Device {
        &self.device
    }
}

fn enumerate() -> Vec<Device> {
    // A loader without any driver can fail instead of listing nothing.
    catch_unwind(|| Device::enumerate(DeviceType::Wgpu).into_vec()).unwrap_or_default()
}

fn is_software(device: &Device) -> bool {
    *device == Device::wgpu(BurnKind::Cpu)
}
