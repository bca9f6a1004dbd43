//! What the engine may do, decided from one sample after the other. No files, no clock, no threads.

mod heat;
mod memory;
mod speeds;

use std::time::Duration;

pub use self::memory::Need;
pub use self::speeds::Speeds;

use self::heat::Heat;
use super::decision::{Admission, Cause, Decision, Effort, Level};
use super::handle::Phase;
use super::sample::Sample;

/// Heat of what runs whatever the number of threads (caches, memory controller), in threads.
const SHARED_HEAT: f64 = 0.7;

/// Seconds for which a number of threads is kept, unless a limit cuts it.
const DWELL: f64 = 20.0;

/// Longest time before more threads are tried again.
const LONG: f64 = 1800.0;

/// Time constant with which the budget is smoothed before threads and levels follow it, seconds. The pauses follow at once.
const SMOOTH: f64 = 30.0;

/// Slack of the number of threads, where the speeds alone decide and where a budget does.
const SLACK: f64 = 0.01;
const SLACK_LIMITED: f64 = 0.03;

/// Seconds that other programs must have been quiet before their CPUs are used again.
const QUIET: f64 = 4.0;

/// CPUs of others that count as none: the system's own work. Who wants a whole one and competes for it gets half.
const NOISE: f64 = 0.35;

/// Threads while the supply is too weak, and how long it counts as weak after it last was.
const WEAK_THREADS: usize = 2;
const WEAK_FOR: f64 = 3600.0;

/// Threads while the weights come from the disk: it does not get faster by more of them.
const STORM_THREADS: usize = 2;

/// Seconds that a chunk of a prompt may take, so that a decision is not long in coming.
const CHUNK_TIME: f64 = 2.0;

/// Tokens that a chunk has at least, and of which it has a multiple.
const CHUNK_STEP: usize = 16;

/// Seconds after which a level sinks.
const LEVEL_DWELL: f64 = 60.0;

/// What the policy is told once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Threads that the engine has.
    pub threads: usize,
    /// Tokens of the largest chunk of a prompt.
    pub chunk: usize,
    /// Degrees Celsius at which the processor is held.
    pub set_point: f64,
    /// Share of the heat of all threads while the temperature should be known and is not.
    pub cautious: f64,
    /// Share of the threads that are kept whatever other programs want.
    pub share: f64,
    /// Memory.
    pub need: Need,
}

/// The policy and what it remembers.
#[derive(Debug)]
pub struct Policy {
    settings: Settings,
    heat: Heat,
    memory: memory::Watch,
    weak_until: Option<f64>,
    others: Others,
    /// Smoothed share of the heat.
    share: f64,
    last: f64,
    prefill: Threads,
    decode: Threads,
    level: (Level, Cause),
    lower_since: Option<f64>,
}

impl Policy {
    /// A policy that knows nothing of its machine yet.
    pub fn new(settings: Settings) -> Policy {
        Policy {
            heat: Heat::new(settings.set_point, settings.cautious),
            memory: memory::Watch::new(settings.need),
            weak_until: None,
            others: Others::default(),
            share: 1.0,
            last: 0.0,
            prefill: Threads::default(),
            decode: Threads::default(),
            level: (Level::Nominal, Cause::Nothing),
            lower_since: None,
            settings,
        }
    }

    /// Decides from `sample`, taken at `now` since some start, with what is known of the engine's speed. Meant to be called
    /// once a second; more often does no harm.
    pub fn step(&mut self, now: Duration, sample: &Sample, speeds: &Speeds) -> Decision {
        let seconds = now.as_secs_f64();
        let allowed = self.heat.step(now, sample);
        let memory = self.memory.step(now, sample);
        if sample.under_voltage == Some(true) {
            self.weak_until = Some(seconds + WEAK_FOR);
        }
        let weak = self.power_fault(now, sample) == Some(true);

        let all = self.settings.threads.max(1);
        let polite = self.others.leave(seconds, sample, all, self.settings.share);
        let mut most = polite;
        for (holds, cap) in [(weak, WEAK_THREADS), (memory.storm, STORM_THREADS)] {
            most = if holds { most.min(cap) } else { most };
        }
        let part = 1.0 - (-(seconds - self.last).clamp(0.0, SMOOTH) / SMOOTH).exp();
        self.last = seconds;
        self.share += part * (allowed.share - self.share);
        let whole = all as f64 + SHARED_HEAT;
        let budget = Budget { now: allowed.share * whole, mean: self.share * whole };
        let prefill = self.prefill.effort(seconds, Phase::Prefill, speeds, most, budget);
        let decode = self.decode.effort(seconds, Phase::Decode, speeds, most, budget);

        let short = memory.level >= Level::Hot && !memory.storm;
        let admission = match () {
            () if allowed.overheated => Admission::Overheated,
            () if memory.level == Level::Critical => Admission::LowMemory,
            () if memory.positions < self.settings.need.context => Admission::Positions(memory.positions),
            () => Admission::Open,
        };
        let heat = match self.share {
            _ if allowed.overheated => Level::Critical,
            share if share < 0.3 => Level::Hot,
            share if share < 0.97 || allowed.throttled => Level::Warm,
            _ => Level::Nominal,
        };
        let warm_if = |holds: bool| if holds { Level::Warm } else { Level::Nominal };
        let why = if allowed.throttled { Cause::Throttled } else { Cause::Heat };
        let storm = if memory.storm { Cause::PageFaults } else { Cause::Memory };
        let (level, cause) = self.settle(
            seconds,
            [
                (memory.level, storm),
                (heat, if allowed.lost { Cause::SensorLost } else { why }),
                (warm_if(weak), Cause::UnderVoltage),
            ],
        );
        let cause = if level == Level::Nominal && polite < all { Cause::OtherLoad } else { cause };
        let chunk = self.chunk(speeds, prefill, short);
        Decision { level, cause, prefill, decode, chunk, admission, cache_bytes: memory.cache }
    }

    /// Whether the supply was too weak at `now` or in the hour before; `None` when nobody says.
    pub fn power_fault(&self, now: Duration, sample: &Sample) -> Option<bool> {
        let weak = self.weak_until.is_some_and(|until| now.as_secs_f64() < until);
        sample.under_voltage.map(|now| now || weak).or(weak.then_some(true))
    }

    /// The worst of what was found; it rises at once and sinks after a while.
    fn settle(&mut self, now: f64, found: [(Level, Cause); 3]) -> (Level, Cause) {
        let (mut level, mut cause) = (Level::Nominal, Cause::Nothing);
        for (other, why) in found {
            if other > level {
                (level, cause) = (other, why);
            }
        }
        // Critical says that requests are refused: it ends when they are taken again.
        if level < Level::Critical {
            self.level.0 = self.level.0.min(Level::Hot);
        }
        let holds = level == self.level.0 && level > Level::Nominal;
        let lower_long = level < self.level.0 && now - *self.lower_since.get_or_insert(now) >= LEVEL_DWELL;
        if level > self.level.0 || holds || lower_long {
            (self.level, self.lower_since) = ((level, cause), None);
        }
        self.level
    }

    fn chunk(&self, speeds: &Speeds, effort: Effort, short: bool) -> usize {
        if short {
            return CHUNK_STEP.min(self.settings.chunk);
        }
        let known = speeds.known(Phase::Prefill, effort.threads);
        let fits = known.map_or(usize::MAX, |speed| (speed * CHUNK_TIME) as usize);
        (fits / CHUNK_STEP * CHUNK_STEP).clamp(CHUNK_STEP.min(self.settings.chunk), self.settings.chunk)
    }
}

/// What other programs want of the CPUs.
#[derive(Debug, Default)]
struct Others {
    /// CPUs that are left to them.
    left: usize,
    quiet_since: Option<f64>,
}

impl Others {
    /// Threads that remain: at least `share` of `all`.
    fn leave(&mut self, now: f64, sample: &Sample, all: usize, share: f64) -> usize {
        // A program that competes gets less than it wants: half a CPU seen is a whole one wanted.
        let wanted = (sample.other_load - NOISE).max(0.0).ceil() as usize;
        // CPUs that the engine does not use anyway are theirs already.
        let wanted = wanted.saturating_sub(sample.cpus.saturating_sub(all));
        if wanted >= self.left || now - *self.quiet_since.get_or_insert(now) >= QUIET {
            (self.left, self.quiet_since) = (wanted, None);
        }
        let least = ((share * all as f64).ceil() as usize).clamp(1, all);
        all.saturating_sub(self.left).max(least)
    }
}

/// Heat that may be made, in threads that compute all the time.
#[derive(Clone, Copy, Debug)]
struct Budget {
    now: f64,
    mean: f64,
}

/// The number of threads of a phase.
#[derive(Debug, Default)]
struct Threads {
    now: usize,
    since: f64,
    /// Seconds before more threads are tried: doubled whenever they turned out to be too many.
    patience: f64,
}

impl Threads {
    /// Threads, at most `most`, and duty that make the most of `budget`.
    fn effort(&mut self, now: f64, phase: Phase, speeds: &Speeds, most: usize, budget: Budget) -> Effort {
        let duty = |threads: usize, budget: f64| (budget / (threads as f64 + SHARED_HEAT)).min(1.0);
        let slack = if duty(most, budget.mean) < 1.0 { SLACK_LIMITED } else { SLACK };
        let worth = |threads: usize| duty(threads, budget.mean);
        let kept = now - self.since;
        let mut target = self.now.min(most);
        if self.now == 0 || kept >= DWELL {
            target = speeds.choose(phase, most, worth, self.now, slack);
        }
        // Between two numbers, of which one is too few for the budget and the next one too many, it would go on for ever.
        if self.now > 0 && target > self.now && slack == SLACK_LIMITED && kept < self.patience {
            target = self.now;
        }
        let target = target.clamp(1, most.max(1));
        if target != self.now {
            if target < self.now && target < most {
                self.patience = if kept < LONG { (2.0 * self.patience).clamp(DWELL, LONG) } else { DWELL };
            }
            (self.now, self.since) = (target, now);
        }
        Effort { threads: self.now, duty: duty(self.now, budget.now) }
    }
}
