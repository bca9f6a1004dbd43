//! What the service manager is told and what it passes. Without one, all of it does nothing.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::Interval;
use tracing::debug;

use crate::transport::socket::BindError;

/// Before READY, the service manager hears this often that work goes on, and waits for [`PATIENCE`] from then.
pub(super) const NEWS: Duration = Duration::from_secs(10);

/// Three times [`NEWS`].
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Longest that a model may load, its packing not counted: a card that takes longer is broken.
pub(super) const LOADING: Duration = Duration::from_mins(15);

/// Asks the service manager to wait for `time` from now on, if it would not wait longer anyway.
pub(super) fn patience(time: Duration) -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(time.as_micros().try_into().unwrap_or(u32::MAX))
}

/// Tells the service manager; a failure is not worth more than a line in the log.
pub(super) fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "cannot notify the service manager");
    }
}

/// The socket that the service manager listens on for this process, if it does.
///
/// # Errors
///
/// It passed more than one, or something else went wrong with them.
pub(super) fn passed_socket() -> Result<Option<OwnedFd>, BindError> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let mut numbers = sd_notify::listen_fds().map_err(|error| BindError::Passed(error.to_string()))?;
    let Some(number) = numbers.next() else { return Ok(None) };
    if numbers.next().is_some() {
        return Err(BindError::Passed("more than one socket".into()));
    }
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(None);
    }
    // SAFETY: by the protocol of sd_listen_fds(3) the number is an open file that the service manager made for this process
    // (`listen_fds` compared the process id and set CLOEXEC on it), and nobody else has it: TAKEN lets it be taken once.
    #[allow(unsafe_code)]
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    Ok(Some(socket))
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
