//! The log.

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// The running log.
pub(super) struct Log(reload::Handle<EnvFilter, Registry>);

impl Log {
    /// Changes what is logged; `level` was checked with the configuration.
    pub(super) fn set_level(&self, level: &str) {
        // Fails when the log is gone, at the end of the process.
        let _ = self.0.reload(filter(level));
    }
}

/// Starts the log on standard error: without times under systemd, whose journal has its own.
pub(super) fn start_log(level: &str) -> Log {
    let (filter, handle) = reload::Layer::new(filter(level));
    let format = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let format = if journal { format.without_time().boxed() } else { format.boxed() };
    // Fails when a log is running already, which then serves.
    let _ = tracing_subscriber::registry().with(filter).with(format).try_init();
    Log(handle)
}

fn filter(level: &str) -> EnvFilter {
    EnvFilter::try_new(level).unwrap_or_default()
}
