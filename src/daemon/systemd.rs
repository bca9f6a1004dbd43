//! What the service manager is told. Without one, all of it does nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::debug;

/// Tells the service manager; a failure is not worth more than a line in the log.
pub(super) fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "cannot notify the service manager");
    }
}

/// Feeds the watchdog while the engine's heartbeat moves; a bare timer would hide an engine that hangs.
pub(super) struct Watchdog {
    period: Option<Duration>,
    last: Option<u64>,
}

impl Watchdog {
    pub(super) fn new() -> Watchdog {
        Watchdog { period: sd_notify::watchdog_enabled().map(|limit| limit / 3), last: None }
    }

    /// Waits until the watchdog is due; for ever without one.
    pub(super) async fn due(&self) {
        match self.period {
            Some(period) => tokio::time::sleep(period).await,
            None => std::future::pending().await,
        }
    }

    pub(super) fn feed(&mut self, heartbeat: u64) {
        if self.last != Some(heartbeat) {
            self.last = Some(heartbeat);
            tell(&[NotifyState::Watchdog]);
        }
    }
}
