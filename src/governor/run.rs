//! The thread that samples and decides, once a second.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::decision::{Admission, Decision, Level};
use super::handle::Handle;
use super::policy::{Policy, Settings};
use super::sample::Sample;
use super::sensors::Sensors;

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// The thread `governor`; it ends when this is dropped.
#[derive(Debug)]
pub struct Governor {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Governor {
    /// Starts to publish decisions to `handle`. The first one is there when this returns.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started.
    pub fn start(settings: Settings, mut sensors: Sensors, handle: Handle) -> std::io::Result<Governor> {
        let start = Instant::now();
        let mut policy = Policy::new(settings);
        let mut shown = handle.decision();
        let mut look = move || {
            let now = Instant::now();
            let sample = sensors.read(now, handle.work());
            let since = now.saturating_duration_since(start);
            let decision = policy.step(since, &sample, &handle.speeds());
            handle.publish(&sample, decision, policy.power_fault(since, &sample));
            tell(&shown, &decision, &sample);
            shown = decision;
        };
        look();
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new().name("governor".into()).spawn(move || {
            while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                look();
            }
        })?;
        Ok(Governor { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Governor {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Its panic was printed where it happened, and the daemon ends.
            let _ = thread.join();
        }
    }
}

/// A line in the log for every change that a person may want to know of. Threads and pauses follow from the level; they
/// change more often and are in the reports.
fn tell(old: &Decision, new: &Decision, sample: &Sample) {
    // How many positions fit changes all the time.
    let kind = |admission: Admission| std::mem::discriminant(&admission);
    if (old.level, old.cause, kind(old.admission)) == (new.level, new.cause, kind(new.admission)) {
        return;
    }
    let (level, threads, duty) = (new.level, new.prefill.threads.min(new.decode.threads), new.prefill.duty);
    let celsius = sample.temperature.celsius().map(|celsius| celsius.round());
    let available_mb = sample.memory.map(|memory| memory.available >> 20);
    let others = (sample.other_load * 10.0).round() / 10.0;
    let admission = new.admission;
    if level > Level::Nominal && level >= old.level {
        warn!(%level, cause = %new.cause, ?admission, ?celsius, ?available_mb, others, threads, duty, "governor");
    } else {
        info!(%level, cause = %new.cause, ?admission, ?celsius, ?available_mb, others, threads, duty, "governor");
    }
}
