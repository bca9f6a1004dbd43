//! Requests and answers over MQTT 5; `wire` has the topics and payloads.
//!
//! # What is acknowledged when
//!
//! A request of QoS 1 is acknowledged when it is in the [spool](crate::spool), so whatever happens then, it is answered:
//! after a crash by the next start. One that is refused is acknowledged when the broker has the refusal, and what needs no
//! answer at once. The answer goes to the spool before it goes out, and is kept there after the broker has it: the same request again (same client,
//! id and body) gets the same answer and is not run again.
//!
//! The receive maximum is larger than the number of requests that can be open, so the broker never runs out of
//! permission to deliver the message that `busy` or a cancellation answers to.

mod backoff;
pub mod chunks;
mod discovery;
mod door;
mod link;
mod open;
mod options;
mod outbox;
mod presence;
mod reply;
mod stats;
mod tls;

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{error, info, warn};

use self::backoff::Backoff;
use self::door::{Door, End, Inbox, SpoolNews};
use self::link::Link;
use super::waiting::stopped;
use crate::scheduler::Scheduler;
use crate::spool::Spool;

pub use self::open::Envelope;
pub use self::options::{Client, Options, Rules};
pub use self::tls::{Tls, TlsError};

/// Failures of the same kind are logged once in this time.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Serves requests until `stop` turns true; then sends what is left, for a few seconds at most, and says farewell.
/// `connected` tells whether the broker can be reached.
pub async fn run(
    options: Options,
    scheduler: Scheduler,
    mut stop: watch::Receiver<bool>,
    connected: watch::Sender<bool>,
) {
    let mut backoff = Backoff::new();
    let mut log = LogLimit::default();
    let inbox = Inbox::default();
    let told = inbox.clone();
    let spool = Spool::start(options.spool.clone(), options.spool_limits, move |held| told.tell(SpoolNews::Held(held)));
    let mut door = Door::new(options.clone(), scheduler, spool, inbox.clone());
    for number in 0.. {
        let mut link = Link::open(&options, number);
        let mut since = None;
        let end = door.serve(&mut link, &mut stop, |up| {
            since = Some(Instant::now());
            let _ = connected.send(up);
        });
        let lost = match end.await {
            End::Stopped => return link.closed().await,
            End::Lost(lost) => lost,
        };
        drop(link);
        connected.send_if_modified(|up| std::mem::replace(up, false));
        door.disconnected();
        if lost.taken_over {
            backoff.give_way();
        }
        // A connection that somebody else ended by taking the id over was no success, however long it lasted.
        let lasted = since.filter(|_| !lost.taken_over).map_or(Duration::ZERO, |since| since.elapsed());
        let pause = backoff.pause(lasted, fastrand::f64());
        if let Some(suppressed) = log.allow(since.is_some()) {
            let (host, reason, seconds) = (&options.host, &lost.reason, pause.as_secs_f32());
            if lost.taken_over {
                error!(
                    host,
                    client_id = options.client_id,
                    "another client uses this client id; give each daemon its own"
                );
            }
            warn!(host, reason, suppressed, "no connection to the MQTT broker; next attempt in {seconds:.1} s");
        }
        let over = tokio::time::sleep(pause);
        tokio::pin!(over);
        loop {
            door.tend(None);
            tokio::select! {
                () = &mut over => break,
                () = inbox.notified() => {}
                () = stopped(&mut stop) => {
                    info!("shutting down without a connection to the MQTT broker");
                    return;
                }
            }
        }
    }
}

/// Keeps the same complaint from filling the log.
#[derive(Default)]
struct LogLimit {
    last: Option<Instant>,
    suppressed: u32,
}

impl LogLimit {
    /// The number of complaints that were suppressed, when this one may be logged: after a connection that had been up,
    /// and else once in a while.
    fn allow(&mut self, was_up: bool) -> Option<u32> {
        if !was_up && self.last.is_some_and(|last| last.elapsed() < LOG_EVERY) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(Instant::now());
        Some(std::mem::take(&mut self.suppressed))
    }
}
