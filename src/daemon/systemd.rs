//! What the service manager is told. Without one, all of it does nothing.

use sd_notify::NotifyState;
use tokio::time::Interval;
use tracing::debug;

/// Tells the service manager; a failure is not worth more than a line in the log.
pub(super) fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "cannot notify the service manager");
    }
}

/// Feeds the watchdog while the engine's heartbeat moves; a bare timer would hide an engine that hangs.
pub(super) struct Watchdog {
    /// Goes on whatever else the caller waits for meanwhile.
    ticks: Option<Interval>,
    last: Option<u64>,
}

impl Watchdog {
    pub(super) fn new() -> Watchdog {
        let ticks = sd_notify::watchdog_enabled().map(|limit| tokio::time::interval(limit / 3));
        Watchdog { ticks, last: None }
    }

    /// Waits until the watchdog is due; for ever without one.
    pub(super) async fn due(&mut self) {
        match &mut self.ticks {
            Some(ticks) => {
                ticks.tick().await;
            }
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
