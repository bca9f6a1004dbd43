//! Pauses between attempts to reach the broker.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(60);

/// A connection that lasted this long counts as a success.
const STABLE: Duration = Duration::from_secs(30);

/// Doubling pauses with jitter, so that a restarted broker does not meet all its clients at once.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) fn new() -> Backoff {
        Backoff(FIRST)
    }

    /// The pause after a connection that lasted for `connected`; `random` is in 0..1.
    pub(super) fn pause(&mut self, connected: Duration, random: f64) -> Duration {
        if connected >= STABLE {
            self.0 = FIRST;
        }
        let pause = self.0.mul_f64(0.5 + 0.5 * random);
        self.0 = (self.0 * 2).min(LONGEST);
        pause
    }

    /// The longest pause, at once: somebody else uses this client id, and fighting over it helps nobody.
    pub(super) fn give_way(&mut self) {
        self.0 = LONGEST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_fall_back_after_stability() {
        let mut backoff = Backoff::new();
        let seconds: Vec<f64> = (0..9).map(|_| backoff.pause(Duration::ZERO, 1.0).as_secs_f64()).collect();
        assert_eq!(seconds, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]);
        assert_eq!(backoff.pause(STABLE, 0.0), FIRST / 2);
        backoff.give_way();
        assert_eq!(backoff.pause(Duration::ZERO, 0.0), LONGEST / 2);
    }
}
