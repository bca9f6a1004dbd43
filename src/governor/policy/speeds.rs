//! How fast the engine is with how many threads, learned.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::super::handle::Phase;

/// Of the best speed, what a smaller number of threads must reach to be preferred.
const ENOUGH: f64 = 0.97;

/// Share of a new measurement in what is known.
const NEWEST: f64 = 0.1;

/// Tokens per second by phase and number of threads, on a cool and otherwise idle machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Speeds {
    /// Prompts with 1, 2, … threads; 0 where nothing is known.
    prefill: Vec<f64>,
    /// Answers with 1, 2, … threads.
    decode: Vec<f64>,
}

impl Speeds {
    /// Nothing is known yet.
    pub fn unknown(threads: usize) -> Speeds {
        Speeds { prefill: vec![0.0; threads.max(1)], decode: vec![0.0; threads.max(1)] }
    }

    /// Most threads that it speaks of.
    pub fn threads(&self) -> usize {
        self.prefill.len().min(self.decode.len())
    }

    /// Whether every number is sensible and there is one for every number of threads in both phases.
    pub fn complete(&self) -> bool {
        let sensible =
            |speeds: &[f64]| !speeds.is_empty() && speeds.iter().all(|speed| speed.is_finite() && *speed > 0.0);
        self.prefill.len() == self.decode.len() && sensible(&self.prefill) && sensible(&self.decode)
    }

    /// Takes a measurement in: the first as it is, later ones by a tenth.
    pub fn learn(&mut self, phase: Phase, threads: usize, speed: f64) {
        let speeds = match phase {
            Phase::Prefill => &mut self.prefill,
            Phase::Decode => &mut self.decode,
        };
        if let Some(known) = speeds.get_mut(threads.wrapping_sub(1))
            && speed.is_finite()
            && speed > 0.0
        {
            *known = if *known == 0.0 { speed } else { *known + NEWEST * (speed - *known) };
        }
    }

    /// What was measured with `threads`.
    pub fn known(&self, phase: Phase, threads: usize) -> Option<f64> {
        self.of(phase).get(threads.wrapping_sub(1)).copied().filter(|speed| *speed > 0.0)
    }

    /// What to expect of `threads`: what was measured, or in proportion to the nearest number below it, or above.
    pub fn expected(&self, phase: Phase, threads: usize) -> f64 {
        let scaled = |other: usize| Some(self.known(phase, other)? * threads as f64 / other as f64);
        let below = (1..=threads).rev().find_map(scaled);
        below.or_else(|| (threads..=self.threads()).find_map(scaled)).unwrap_or(threads as f64)
    }

    fn of(&self, phase: Phase) -> &[f64] {
        match phase {
            Phase::Prefill => &self.prefill,
            Phase::Decode => &self.decode,
        }
    }

    /// The number of threads, at most `most`, for `phase`: the fewest that are within 3 % of the best, when `worth` says
    /// what share of a number's speed is to be had. `now` stays while it is within `slack` more.
    pub(super) fn choose(
        &self,
        phase: Phase,
        most: usize,
        worth: impl Fn(usize) -> f64,
        now: usize,
        slack: f64,
    ) -> usize {
        let value = |threads: usize| self.expected(phase, threads) * worth(threads);
        let most = most.max(1);
        let best = (1..=most).map(value).fold(0.0, f64::max);
        let target = (1..=most).find(|&threads| value(threads) >= ENOUGH * best).unwrap_or(most);
        let close = match now.cmp(&target) {
            Ordering::Less => now > 0 && value(now) >= (ENOUGH - slack) * best,
            Ordering::Equal => true,
            // More threads than needed are heat for nothing, unless the smaller number only just passes.
            Ordering::Greater => now <= most && value(target) < value(now).min((ENOUGH + slack) * best),
        };
        if close { now } else { target }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(decode: [f64; 4]) -> Speeds {
        let mut speeds = Speeds::unknown(4);
        for (at, speed) in decode.into_iter().enumerate() {
            speeds.learn(Phase::Decode, at + 1, speed);
            speeds.learn(Phase::Prefill, at + 1, 30.0 * (at + 1) as f64);
        }
        speeds
    }

    #[test]
    fn decode_takes_the_fewest_threads_within_three_percent() {
        let whole = |_| 1.0;
        let choose = |decode, now| measured(decode).choose(Phase::Decode, 4, whole, now, 0.01);
        assert_eq!(choose([7.0, 12.0, 12.2, 12.1], 4), 2);
        assert_eq!(choose([7.0, 11.0, 12.2, 12.1], 4), 3);
        // More threads are slower.
        assert_eq!(choose([7.0, 6.0, 5.0, 4.0], 4), 1);
        // On the border it stays where it is.
        assert_eq!(choose([7.0, 11.87, 12.2, 12.1], 3), 3);
        assert_eq!(choose([7.0, 11.75, 12.2, 12.1], 2), 2);
        assert_eq!(measured([7.0, 12.0, 12.2, 12.1]).choose(Phase::Prefill, 4, whole, 1, 0.01), 4);
        assert_eq!(measured([7.0, 12.0, 12.2, 12.1]).choose(Phase::Prefill, 2, whole, 4, 0.01), 2);
    }

    #[test]
    fn what_is_not_known_is_expected_in_proportion() {
        let mut speeds = Speeds::unknown(4);
        assert_eq!(speeds.expected(Phase::Decode, 3), 3.0);
        speeds.learn(Phase::Decode, 2, 8.0);
        assert_eq!((speeds.expected(Phase::Decode, 4), speeds.expected(Phase::Decode, 1)), (16.0, 4.0));
        assert!(!speeds.complete());
        speeds.learn(Phase::Decode, 2, 18.0);
        assert_eq!(speeds.known(Phase::Decode, 2), Some(9.0));
        for nonsense in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            speeds.learn(Phase::Decode, 2, nonsense);
        }
        speeds.learn(Phase::Decode, 0, 1.0);
        speeds.learn(Phase::Decode, 5, 1.0);
        assert_eq!(speeds.known(Phase::Decode, 2), Some(9.0));
    }
}
