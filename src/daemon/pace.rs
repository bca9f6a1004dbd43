//! Lets the engine compute as the governor decided: threads, chunks and pauses, changed between chunks and tokens.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::engine::runner::Knobs;
use crate::governor::{Decision, Effort, Handle, Phase};

/// Sleeps are cut into such pieces, after which a cancelled request ends and a new decision counts.
const PIECE: Duration = Duration::from_millis(100);

/// Longest pause: the watchdog and a client want to see progress.
const LONGEST: Duration = Duration::from_secs(20);

/// Between the governor and the engine.
pub(super) struct Pace {
    governor: Handle,
    knobs: Knobs,
    /// Whether decisions are obeyed; speeds are told in any case.
    obey: bool,
    /// Threads there are.
    threads: usize,
    held: Decision,
    since: Instant,
}

impl Pace {
    pub(super) fn new(governor: Handle, knobs: Knobs, threads: usize, obey: bool) -> Pace {
        Pace { held: governor.decision(), governor, knobs, obey, threads, since: Instant::now() }
    }

    /// A request starts to be computed.
    pub(super) fn begin(&mut self) {
        self.take();
        self.since = Instant::now();
    }

    /// A chunk or a token is done; pauses as long as it has to, calling `alive` now and then.
    pub(super) fn done(
        &mut self,
        phase: Phase,
        tokens: usize,
        alive: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let took = self.since.elapsed();
        self.governor.computed(phase, self.effort(phase).threads.clamp(1, self.threads), tokens, took);
        self.take();
        let mut result = ControlFlow::Continue(());
        let mut slept = Duration::ZERO;
        while self.obey && result.is_continue() {
            let left = pause(took, self.effort(phase).duty).saturating_sub(slept);
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(PIECE));
            slept += left.min(PIECE);
            result = alive();
            self.take();
        }
        self.since = Instant::now();
        result
    }

    /// What comes next is not measured: no token went through the layers since the last call.
    pub(super) fn skip(&mut self) {
        self.since = Instant::now();
    }

    fn effort(&self, phase: Phase) -> Effort {
        match phase {
            Phase::Prefill => self.held.prefill,
            Phase::Decode => self.held.decode,
        }
    }

    fn take(&mut self) {
        if self.obey {
            self.held = self.governor.decision();
            self.knobs.set(self.held.prefill.threads, self.held.decode.threads, self.held.chunk);
        }
    }
}

/// Time of doing nothing after `took` of work, so that work is a share `duty` of the whole.
fn pause(took: Duration, duty: f64) -> Duration {
    if duty >= 1.0 { Duration::ZERO } else { took.mul_f64(1.0 / duty.max(0.01) - 1.0).min(LONGEST) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::governor::Sample;

    #[test]
    fn a_pause_makes_work_the_share_it_should_be() {
        let took = Duration::from_millis(60);
        assert_eq!(pause(took, 1.0), Duration::ZERO);
        assert_eq!(pause(took, 0.75), Duration::from_millis(20));
        assert_eq!(pause(took, 0.0), took * 99);
        assert_eq!(pause(Duration::from_secs(9), 0.1), LONGEST);
    }

    #[test]
    fn a_pause_ends_when_the_request_does_or_the_decision_changes() {
        let effort = Effort { threads: 1, duty: 0.01 };
        let slow = Decision { decode: effort, ..Decision::unlimited(1, 64) };
        let handle = Handle::new(slow);
        let mut pace = Pace::new(handle.clone(), Knobs::default(), 1, true);
        pace.begin();
        std::thread::sleep(Duration::from_millis(300));
        let began = Instant::now();
        assert!(pace.done(Phase::Decode, 1, &mut || ControlFlow::Break(())).is_break());
        let mut calls = 0;
        std::thread::sleep(Duration::from_millis(300));
        let ended = pace.done(Phase::Decode, 1, &mut || {
            calls += 1;
            handle.publish(&Sample::default(), Decision::unlimited(1, 64), None);
            ControlFlow::Continue(())
        });
        assert!(ended.is_continue() && calls == 1);
        assert!(began.elapsed() < Duration::from_secs(15), "of nearly a minute");
        assert_eq!(handle.work().tokens, 2);
    }
}
