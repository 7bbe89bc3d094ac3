//! Logs: structured, on standard error, never in the way of the program.
//!
//! A program calls [`init`] once and keeps the [`Telemetry`] that it returns for as long as it runs. Lines are written
//! by a thread of their own behind a bounded queue: when whatever reads them stalls, lines are dropped and counted,
//! and the program goes on. What may not appear in a log (keys, pixels, patient identifiers) is the business of the
//! types that would carry them.

mod panics;
mod writer;

pub use panics::hide_panic_messages;

use serde::{Deserialize, Serialize};
use std::io::IsTerminal as _;
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, reload};
use writer::{Drain, QueueWriter};

/// The environment variable that overrides the configured filter, such as `debug` or `medinet_broker=trace,warn`.
pub const FILTER_VARIABLE: &str = "MEDINET_LOG";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Plain,
    /// One JSON object a line (fields `timestamp`, `level`, `target`, `fields`, `spans`), for machines.
    Json,
}

/// Which log lines are written: `info`, or by target and level, such as `medinet_broker=debug,warn`.
///
/// Checked when settings are read, so that a mistake is found with its line number and before anything starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LogFilter(String);

impl LogFilter {
    /// The filter as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same filter, silent about a crate: its name as it stands in code.
    #[must_use]
    pub fn silencing(self, crate_name: &str) -> Self {
        Self(format!("{},{crate_name}=off", self.0))
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl TryFrom<String> for LogFilter {
    type Error = TelemetryError;

    fn try_from(text: String) -> Result<Self, TelemetryError> {
        filter_of("the settings", &text)?;
        Ok(Self(text))
    }
}

impl From<LogFilter> for String {
    fn from(filter: LogFilter) -> Self {
        filter.0
    }
}

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not one.
    #[error("expected a log filter such as info or medinet_broker=debug,warn in {origin}, got {got:?}")]
    Filter {
        /// Where it came from.
        origin: &'static str,
        /// What came.
        got: String,
        /// Why not.
        source: ParseError,
    },
    /// Logging is set up already in this process; our mistake.
    #[error("logging is set up already in this process")]
    Twice,
    /// The thread that writes could not be started; environment.
    #[error("the thread that writes the log could not be started")]
    Thread(#[source] std::io::Error),
    /// The filter can no longer be changed, because the subscriber is gone; our mistake.
    #[error("the log filter can no longer be changed")]
    Gone,
}

/// Keeps the log going. Dropped, it writes what is still queued.
pub struct Telemetry {
    filter: reload::Handle<EnvFilter, Registry>,
    drain: Drain,
}

fn filter_of(origin: &'static str, text: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder().parse(text).map_err(|source| TelemetryError::Filter {
        origin,
        got: text.chars().take(200).collect(),
        source,
    })
}

/// Sets up logging to standard error for `program`, with `filter` unless the environment variable [`FILTER_VARIABLE`]
/// holds another.
///
/// # Errors
/// When the variable's filter is not one, or logging is set up already.
pub fn init(program: &str, format: LogFormat, filter: &LogFilter) -> Result<Telemetry, TelemetryError> {
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(text) if !text.trim().is_empty() => filter_of("the environment variable MEDINET_LOG", &text)?,
        _ => filter_of("the settings", filter.as_str())?,
    };
    let (writer, drain) = writer::start(std::io::stderr()).map_err(TelemetryError::Thread)?;
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let (filter, handle) = reload::Layer::new(filter);
    tracing_subscriber::registry()
        .with(filter)
        .with(layer(format, colours, writer))
        .try_init()
        .map_err(|_| TelemetryError::Twice)?;
    tracing::info!(program, version = env!("CARGO_PKG_VERSION"), "started");
    Ok(Telemetry { filter: handle, drain })
}

fn layer<S>(format: LogFormat, colours: bool, writer: QueueWriter) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        LogFormat::Plain => layer.with_ansi(colours).boxed(),
        LogFormat::Json => layer.json().with_ansi(false).with_current_span(false).boxed(),
    }
}

impl Telemetry {
    /// Changes the filter while the program runs.
    ///
    /// # Errors
    /// When `filter` is not one; the present one stays then.
    pub fn set_filter(&self, filter: &str) -> Result<(), TelemetryError> {
        let filter = filter_of("the request", filter)?;
        self.filter.reload(filter).map_err(|_| TelemetryError::Gone)
    }

    /// Lines dropped so far because the queue was full.
    #[must_use]
    pub fn dropped_lines(&self) -> u64 {
        self.drain.dropped()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, filter: &str, log: impl FnOnce()) -> String {
        let sink = Shared::default();
        let (writer, drain) = writer::start(sink.clone()).unwrap();
        let subscriber = tracing_subscriber::registry()
            .with(filter_of("the test", filter).unwrap())
            .with(layer(format, false, writer));
        tracing::subscriber::with_default(subscriber, log);
        drop(drain);
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn json_lines_carry_level_message_fields_and_spans() {
        let text = logged(LogFormat::Json, "info", || {
            let _round = tracing::info_span!("round", number = 3).entered();
            tracing::warn!(site = "north", "late");
            tracing::debug!("not shown");
        });
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [line] = &lines[..] else { panic!("{text}") };
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["fields"]["message"], "late");
        assert_eq!(line["fields"]["site"], "north");
        assert_eq!(line["spans"][0]["number"], 3);
    }

    #[test]
    fn plain_lines_hold_no_colours_when_nobody_looks() {
        let text = logged(LogFormat::Plain, "info", || tracing::info!(site = "north", "joined"));
        assert!(
            text.contains("INFO") && text.contains("joined") && text.contains("site=\"north\""),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn a_filter_by_target_shows_only_that_target() {
        let text = logged(LogFormat::Plain, "off,wanted=trace", || {
            tracing::trace!(target: "wanted", "yes");
            tracing::error!(target: "other", "no");
        });
        assert!(text.contains("yes") && !text.contains("no"), "{text}");
    }

    #[test]
    fn a_filter_that_is_none_is_refused_with_its_origin() {
        let error = LogFilter::try_from("medinet=shout".to_owned()).unwrap_err().to_string();
        assert!(error.contains("the settings") && error.contains("shout"), "{error}");
        let default: LogFilter = String::from(LogFilter::default()).try_into().unwrap();
        assert_eq!(default.as_str(), "info");
        let silenced: LogFilter = String::from(default.silencing("noisy")).try_into().unwrap();
        assert_eq!(silenced.as_str(), "info,noisy=off");
    }
}
