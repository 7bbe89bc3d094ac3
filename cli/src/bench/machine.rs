//! On what a figure was measured: without it no figure means anything.

use serde::Serialize;

/// The machine, as far as it tells.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Machine {
    /// The processor's name.
    pub(crate) cpu: String,
    /// Logical processors that this process may use.
    pub(crate) cores: usize,
    /// Memory in bytes; 0 where the system does not tell.
    pub(crate) memory_bytes: u64,
    /// Processes that wanted to run in the last minute, before the first measurement; `None` where the system does not tell.
    pub(crate) load: Option<f64>,
    /// How this program was compiled.
    pub(crate) build: &'static str,
}

impl Machine {
    /// This machine, now.
    pub(crate) fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let kilobytes = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        Self {
            cpu: field(&read("/proc/cpuinfo"), "model name")
                .unwrap_or_else(|| format!("{} processor", std::env::consts::ARCH)),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kilobytes.unwrap_or(0) * 1024,
            load: read("/proc/loadavg").split_whitespace().next().and_then(|load| load.parse().ok()),
            build: if cfg!(debug_assertions) { "development profile" } else { "release profile" },
        }
    }

    /// Whether others are at work here, so that times vary.
    pub(crate) fn is_busy(&self) -> bool {
        self.load.is_some_and(|load| load > 0.3 * self.cores as f64)
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let load = self.load.map_or_else(String::new, |load| format!(", load {load:.1}"));
        let busy = if self.is_busy() { " (busy: trust the ratios more than the times)" } else { "" };
        let gigabytes = self.memory_bytes as f64 / f64::from(1 << 30);
        format!("{}, {} cores, {gigabytes:.0} GiB, {}{load}{busy}", self.cpu, self.cores, self.build)
    }
}

/// The value behind the first `name` and colon.
fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_once(':').map(|(_, value)| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found() {
        assert_eq!(field("a\t: 1\nmodel name\t: X 2.8 GHz\n", "model name").as_deref(), Some("X 2.8 GHz"));
        assert_eq!(field("a : 1\n", "model name"), None);
    }

    #[test]
    fn a_busy_machine_is_told() {
        let mut machine = Machine { load: Some(0.1), cores: 2, ..Machine::here() };
        assert!(!machine.is_busy() && !machine.line().contains("busy"));
        machine.load = Some(1.5);
        assert!(machine.line().contains("load 1.5 (busy"), "{}", machine.line());
    }
}
