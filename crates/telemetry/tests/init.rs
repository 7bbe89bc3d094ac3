//! Setting up logging for a whole process; alone in its test program, because it can be done only once.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use medinet_telemetry::{LogFilter, LogFormat, TelemetryError, init};

#[test]
fn logging_is_set_up_once_and_its_filter_changes_while_the_program_runs() {
    let filter = |text: &str| LogFilter::try_from(text.to_owned());
    assert!(matches!(filter("medinet=shout"), Err(TelemetryError::Filter { .. })));

    let telemetry = init("test", LogFormat::Json, &filter("warn").unwrap()).unwrap();
    assert!(matches!(init("test", LogFormat::Plain, &LogFilter::default()), Err(TelemetryError::Twice)));

    assert!(!tracing::enabled!(tracing::Level::INFO));
    telemetry.set_filter("debug").unwrap();
    assert!(tracing::enabled!(tracing::Level::DEBUG));
    assert!(telemetry.set_filter("medinet=shout").unwrap_err().to_string().contains("the request"));
    assert!(tracing::enabled!(tracing::Level::DEBUG), "the present filter stays");
    assert_eq!(telemetry.dropped_lines(), 0);
}
