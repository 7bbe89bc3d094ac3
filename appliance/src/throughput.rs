//! `medinet-appliance lab throughput`: images per second in training, data and optimizer included. `medinet bench
//! training` holds it against PyTorch on the same network (`bench/torch_twin.py`), in turns: then it takes requests as
//! lines of JSON from standard input, as `cli/src/bench/child.rs` describes.

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use cpu_time::ProcessTime;
use medinet_model::{Augmentation, ClassBalance, InputShape, ModelParameters, NetworkManifest, TrainingPlan};
use medinet_privacy::{Delta, DpSgdPlan, Epsilon, NoiseMultiplier, SamplingRate};
use medinet_training::{Checkpoints, ComputeDevice, DeviceChoice, InMemoryData, Trainer, TrainingJob};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Steps before those that count: the first allocate, and tune kernels on a GPU.
const WARM_UP: u32 = 2;

/// What is trained.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// The network.
    #[arg(long, value_enum, default_value_t = Network::Resnet18)]
    network: Network,
    /// Height and width of the input, in pixels.
    #[arg(long, default_value_t = 28, value_parser = clap::value_parser!(u32).range(28..=512))]
    side: u32,
    /// Images in a step.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    /// Steps to measure.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    steps: u32,
    /// Trains privately (DP-SGD), every patient in each step.
    #[arg(long, conflicts_with_all = ["generic", "gpu"])]
    private: bool,
    /// Images of each patient in private training; the last patient has what is left of the batch.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    images_per_patient: u32,
    /// Uses burn's own layers in place of those made for the CPU.
    #[arg(long)]
    generic: bool,
    /// Uses the first GPU adapter.
    #[arg(long)]
    gpu: bool,
    /// Takes requests from standard input.
    #[arg(long)]
    controlled: bool,
}

/// The networks of `medinet_model`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Network {
    Small,
    Resnet18,
}

impl Network {
    fn manifest(self, side: u32) -> NetworkManifest {
        let input = InputShape { channels: 1, height: side, width: side };
        let classes = vec!["normal".to_owned(), "pneumonia".to_owned()];
        match self {
            Self::Small => NetworkManifest::small(input, classes),
            Self::Resnet18 => NetworkManifest::resnet18(input, classes),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    task: String,
    count: u32,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reply {
    Runtime(String),
    /// Wall seconds of each step, CPU seconds of all.
    Figures {
        wall: Vec<f64>,
        cpu: [f64; 1],
    },
    Error(String),
}

/// Runs the measurement.
///
/// # Errors
/// When the device is not there, the training fails, or a request is none.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.controlled {
        return train(arguments, std::io::stdin().lock(), &mut std::io::stdout().lock());
    }
    let request = format!("{{\"task\":\"run\",\"count\":{}}}\n", arguments.steps);
    let mut replies = Vec::new();
    train(arguments, request.as_bytes(), &mut replies)?;
    let line = summary(arguments, &replies)?;
    Ok(writeln!(std::io::stdout().lock(), "{line}")?)
}

/// One line for people.
fn summary(arguments: &Arguments, replies: &[u8]) -> Result<String> {
    let replies: Vec<Reply> =
        replies.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let [Reply::Runtime(runtime), Reply::Figures { wall, cpu }] = &replies[..] else {
        bail!("expected one measurement, got {replies:?}")
    };
    let mut each = wall.clone();
    each.sort_by(f64::total_cmp);
    let threads = std::env::var("RAYON_NUM_THREADS").unwrap_or_else(|_| "all".into());
    let Arguments { network, side, batch, steps, .. } = arguments;
    Ok(format!(
        "{runtime}, {network:?} {side} px batch {batch} threads {threads}: {:.1} images/s (median step), {:.1} (best step), {:.1} images per CPU second",
        f64::from(*batch) / each[each.len() / 2],
        f64::from(*batch) / each[0],
        f64::from(batch * steps) / cpu[0],
    ))
}

/// A folder for the checkpoints that the trainer insists on.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        static MADE: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = MADE.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("medinet-throughput-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left in a temporary folder harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn train(arguments: &Arguments, requests: impl BufRead, replies: &mut dyn Write) -> Result<()> {
    let Arguments { side, batch, steps, .. } = *arguments;
    let network = arguments.network.manifest(side);
    // A private step takes patients at random; with a rate of 1 it takes all, so that each step has as many images as a plain one.
    let images = (if arguments.private { batch } else { batch * (steps + WARM_UP) }) as usize;
    let values = images * (side * side) as usize;
    let inputs = (0..values).map(|i| (i.wrapping_mul(2_654_435_761) % 1000) as f32 / 500.0 - 1.0).collect();
    let data = InMemoryData::new(network.input, inputs, (0..images).map(|i| i % 2).collect())
        .with_patients((0..images as u64).map(|i| i / u64::from(arguments.images_per_patient)).collect());
    let privacy = DpSgdPlan {
        // Nobody's images: they may cost what they want.
        epsilon: Epsilon::new(1e6)?,
        delta: Delta::new(1e-5)?,
        noise_multiplier: NoiseMultiplier::new(1.0)?,
        clip_norm: 1.0,
        sampling_rate: SamplingRate::new(1.0)?,
        steps: u64::from(steps + WARM_UP),
    };
    let nothing = InMemoryData::new(network.input, Vec::new(), Vec::new());
    let plan = TrainingPlan {
        local_epochs: 1,
        batch_size: batch,
        learning_rate: 0.01,
        momentum: 0.9,
        weight_decay: 1e-4,
        proximal_mu: 0.0,
        augmentation: Augmentation::none(),
        class_balance: ClassBalance::None,
        early_stopping_epochs: 0,
        seed: 1,
        privacy: arguments.private.then_some(privacy),
    };
    let base = ModelParameters::initial(&network, 1)?;
    let job = TrainingJob { network, base, plan, site_seed: 1 };
    let device = if arguments.gpu {
        ComputeDevice::open(DeviceChoice::Gpu { index: 0 })?
    } else {
        ComputeDevice::cpu()
    };
    let how = match (arguments.generic, arguments.private) {
        (true, _) => ", its own layers",
        (_, true) => ", private",
        _ => "",
    };
    let runtime = format!("burn on {}{how}", device.name());
    let folder = Folder::new()?;
    let trainer = Trainer::new(device, Checkpoints::new(folder.path()));
    let trainer = if arguments.generic { trainer.with_generic_layers() } else { trainer };
    let mut session = Session::new(runtime, steps, requests, replies);
    trainer.train(&job, &data, &nothing, &mut |_| session.step())?;
    session.failed.map_or(Ok(()), Err)
}

/// Lets the training go on as far as it is asked to, and says what each part took.
struct Session<'a, R> {
    runtime: String,
    requests: R,
    replies: &'a mut dyn Write,
    warm_up: u32,
    /// Steps that may still be asked for.
    left: u32,
    /// Steps of the request that are still to come.
    wanted: u32,
    wall: Vec<f64>,
    cpu: ProcessTime,
    last: Instant,
    failed: Option<anyhow::Error>,
}

impl<'a, R: BufRead> Session<'a, R> {
    fn new(runtime: String, steps: u32, requests: R, replies: &'a mut dyn Write) -> Self {
        Self {
            runtime,
            requests,
            replies,
            warm_up: WARM_UP,
            left: steps,
            wanted: 0,
            wall: Vec::new(),
            cpu: ProcessTime::now(),
            last: Instant::now(),
            failed: None,
        }
    }

    /// After each step of the training.
    fn step(&mut self) -> ControlFlow<()> {
        let now = Instant::now();
        match self.after_step(now) {
            Ok(flow) => flow,
            Err(error) => {
                self.failed = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    fn after_step(&mut self, now: Instant) -> Result<ControlFlow<()>> {
        if self.warm_up > 0 {
            self.warm_up -= 1;
            if self.warm_up > 0 {
                return Ok(ControlFlow::Continue(()));
            }
            let runtime = std::mem::take(&mut self.runtime);
            self.say(&Reply::Runtime(runtime))?;
            return self.next_request();
        }
        self.wall.push((now - self.last).as_secs_f64());
        self.wanted -= 1;
        if self.wanted > 0 {
            self.last = now;
            return Ok(ControlFlow::Continue(()));
        }
        let cpu = [self.cpu.elapsed().as_secs_f64()];
        let wall = std::mem::take(&mut self.wall);
        self.say(&Reply::Figures { wall, cpu })?;
        self.next_request()
    }

    /// Waits until more steps are asked for; the training stands still meanwhile.
    fn next_request(&mut self) -> Result<ControlFlow<()>> {
        loop {
            let mut line = String::new();
            if self.requests.read_line(&mut line).context("cannot read the request")? == 0 {
                return Ok(ControlFlow::Break(()));
            }
            let Request { task, count } =
                serde_json::from_str(&line).with_context(|| format!("expected a request, got {line:?}"))?;
            let error = match task.as_str() {
                "run" if (1..=self.left).contains(&count) => {
                    (self.wanted, self.left) = (count, self.left - count);
                    (self.cpu, self.last) = (ProcessTime::now(), Instant::now());
                    return Ok(ControlFlow::Continue(()));
                }
                "run" => format!("expected 1 to {} steps, which are left, got {count}", self.left),
                other => format!("no such task: {other:?}"),
            };
            self.say(&Reply::Error(error))?;
        }
    }

    fn say(&mut self, reply: &Reply) -> Result<()> {
        let mut line = serde_json::to_string(reply)?;
        line.push('\n');
        self.replies.write_all(line.as_bytes())?;
        Ok(self.replies.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments() -> Arguments {
        Arguments {
            network: Network::Small,
            side: 28,
            batch: 2,
            steps: 3,
            private: false,
            images_per_patient: 1,
            generic: false,
            gpu: false,
            controlled: true,
        }
    }

    fn answers(requests: &str) -> (Result<()>, Vec<Reply>) {
        answers_to(&arguments(), requests)
    }

    fn answers_to(arguments: &Arguments, requests: &str) -> (Result<()>, Vec<Reply>) {
        let mut replies = Vec::new();
        let ended = train(arguments, requests.as_bytes(), &mut replies);
        let text = String::from_utf8(replies).expect("JSON is text");
        (ended, text.lines().map(|line| serde_json::from_str(line).expect("a reply")).collect())
    }

    #[test]
    fn the_trainer_goes_as_far_as_it_is_asked_to() {
        let (ended, replies) = answers(
            "{\"task\":\"run\",\"count\":2}\n{\"task\":\"walk\",\"count\":1}\n{\"task\":\"run\",\"count\":2}\n{\"task\":\"run\",\"count\":1}\n",
        );
        ended.expect("all answered");
        let [
            Reply::Runtime(_),
            Reply::Figures { wall, cpu },
            Reply::Error(walk),
            Reply::Error(more),
            Reply::Figures { wall: last, .. },
        ] = &replies[..]
        else {
            panic!("{replies:?}")
        };
        assert!(wall.len() == 2 && wall.iter().all(|seconds| *seconds > 0.0) && cpu[0] > 0.0);
        assert!(walk.contains("no such task") && more.contains("expected 1 to 1 steps"), "{walk} {more}");
        assert_eq!(last.len(), 1);
    }

    #[test]
    fn private_training_is_measured_too() {
        let arguments = Arguments { private: true, images_per_patient: 2, batch: 5, ..arguments() };
        let (ended, replies) = answers_to(&arguments, "{\"task\":\"run\",\"count\":3}\n");
        ended.expect("all answered");
        let [Reply::Runtime(runtime), Reply::Figures { wall, .. }] = &replies[..] else {
            panic!("{replies:?}")
        };
        assert!(runtime.ends_with("private") && wall.len() == 3, "{runtime} {wall:?}");
    }

    #[test]
    fn it_ends_with_its_requests() {
        let (ended, replies) = answers("");
        ended.expect("nothing was asked");
        assert_eq!(replies.len(), 1);
        let (ended, _) = answers("train!\n");
        assert!(format!("{:#}", ended.expect_err("no request")).contains("expected a request"));
    }

    #[test]
    fn the_line_for_people_has_all_three_rates() {
        let replies =
            b"{\"runtime\":\"burn on cpu\"}\n{\"figures\":{\"wall\":[0.5,0.25,1.0],\"cpu\":[2.0]}}\n";
        let line = summary(&arguments(), replies).expect("one measurement");
        assert!(
            line.contains("4.0 images/s (median step), 8.0 (best step), 3.0 images per CPU second"),
            "{line}"
        );
    }
}
