//! How short memory is, and what is given up for it.

use std::time::Duration;

use super::super::decision::Level;
use super::super::sample::{Pressure, Sample};

/// Major faults a second, and a token, from which the weights count as evicted. A token that finds them in memory has none.
const STORM_PER_S: f64 = 40.0;
const STORM_PER_TOKEN: f64 = 16.0;

/// Seconds for which a storm lasts at least after its last fault, and a level after its last reason.
const CALM: f64 = 10.0;
const DWELL: f64 = 20.0;

/// What is known of the model's need.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Need {
    /// Bytes that every token reads: they have to stay in memory.
    pub weights: u64,
    /// Bytes of keys and values per position.
    pub position: u64,
    /// Positions of the largest request.
    pub context: usize,
    /// Bytes that shall stay free for the rest of the system.
    pub reserve: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct State {
    /// Nominal; Warm: caches go; Hot: prompts in small chunks, no long ones; Critical: no new requests.
    pub(super) level: Level,
    /// Whether weights are read from the disk again and again.
    pub(super) storm: bool,
    /// Positions that fit.
    pub(super) positions: usize,
    /// Bytes that may be kept between requests.
    pub(super) cache: u64,
}

#[derive(Debug)]
pub(super) struct Watch {
    need: Need,
    level: Level,
    lower_for: f64,
    faults: f64,
    per_token: f64,
    calm_for: f64,
    last: Option<(Duration, u64, u64)>,
}

impl Watch {
    pub(super) fn new(need: Need) -> Watch {
        Watch {
            need,
            level: Level::Nominal,
            lower_for: 0.0,
            faults: 0.0,
            per_token: 0.0,
            calm_for: f64::INFINITY,
            last: None,
        }
    }

    pub(super) fn step(&mut self, now: Duration, sample: &Sample) -> State {
        let seconds = self.count_faults(now, sample);
        let storming = self.faults >= STORM_PER_S && self.per_token >= STORM_PER_TOKEN;
        self.calm_for = if storming { 0.0 } else { self.calm_for + seconds };
        let storm = self.calm_for < CALM;

        let Need { weights, position, context, reserve } = self.need;
        let pressure = sample.memory_pressure.unwrap_or_default();
        // The page cache that holds the weights counts as available, but it is not to be had: a token needs all of it.
        let unlocked = weights.saturating_sub(sample.process.locked);
        let spare = sample.memory.map(|memory| memory.available.saturating_sub(unlocked));
        let now_level = level(spare, reserve, pressure).max(if storm { Level::Warm } else { Level::Nominal });
        if now_level >= self.level {
            (self.level, self.lower_for) = (now_level, 0.0);
        } else {
            self.lower_for += seconds;
            if self.lower_for >= DWELL {
                (self.level, self.lower_for) = (now_level, 0.0);
            }
        }

        // What an earlier request left allocated is there to be used.
        let kept = sample.work.cache_bytes;
        let fit =
            spare.map_or(u64::MAX, |spare| spare.saturating_sub(reserve / 2).saturating_add(kept) / position.max(1));
        let mut positions = usize::try_from(fit).unwrap_or(usize::MAX).min(context);
        if self.level >= Level::Hot {
            positions = positions.min(context / 4);
        }
        let cache = match self.level {
            Level::Nominal => spare.map_or(u64::MAX, |spare| spare.saturating_add(kept).saturating_sub(2 * reserve)),
            _ => 0,
        };
        State { level: self.level, storm, positions, cache }
    }

    /// Seconds since the last call.
    fn count_faults(&mut self, now: Duration, sample: &Sample) -> f64 {
        let (faults, tokens) = (sample.process.major_faults, sample.work.tokens);
        let Some((then, old_faults, old_tokens)) = self.last.replace((now, faults, tokens)) else { return 0.0 };
        let seconds = now.saturating_sub(then).as_secs_f64();
        if seconds <= 0.0 {
            return 0.0;
        }
        let (faults, tokens) = (faults.saturating_sub(old_faults) as f64, tokens.saturating_sub(old_tokens) as f64);
        let part = 1.0 - (-seconds / 3.0).exp();
        self.faults += part * (faults / seconds - self.faults);
        self.per_token += part * (faults / tokens.max(1.0) - self.per_token);
        seconds
    }
}

fn level(spare: Option<u64>, reserve: u64, pressure: Pressure) -> Level {
    let short = |part: u64| spare.is_some_and(|spare| spare < part);
    if short(reserve / 4) || pressure.full > 40.0 {
        Level::Critical
    } else if short(reserve) || pressure.full > 10.0 {
        Level::Hot
    } else if short(2 * reserve) || pressure.some > 10.0 {
        Level::Warm
    } else {
        Level::Nominal
    }
}
