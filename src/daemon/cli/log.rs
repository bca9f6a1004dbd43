//! The log.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts the log on standard error: without times under systemd, whose journal has its own.
pub(super) fn start_log(level: &str) {
    let filter = EnvFilter::try_new(level).unwrap_or_default();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // Fails when a log is running already, which then serves.
    let _ = if std::env::var_os("JOURNAL_STREAM").is_some() { log.without_time().try_init() } else { log.try_init() };
}
