//! What the rest of the daemon holds of the governor.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::decision::{Admission, Cause, Decision, Level};
use super::policy::{Need, Speeds};
use super::sample::{Sample, Work};

/// What the engine does with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Reads a prompt.
    Prefill,
    /// Writes an answer.
    Decode,
}

/// The governor at one moment, for reports: `stats` over MQTT, `/v1/status`, `emberd top`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Snapshot {
    /// How bad it is.
    pub level: Level,
    /// What limits the engine most; its `Display` is a sentence for people.
    pub reason: Cause,
    /// Of the processor, degrees Celsius.
    pub temperature_c: Option<f64>,
    /// Whether the firmware holds the clock down; `None` where it does not say.
    pub throttled: Option<bool>,
    /// Whether the supply is too weak, now or within the last hour; `None` where nobody says.
    pub under_voltage: Option<bool>,
    /// Turns of the fan a minute.
    pub fan_rpm: Option<u32>,
    /// Threads for prompts.
    pub prefill_threads: usize,
    /// Threads for answers.
    pub decode_threads: usize,
    /// Share of the time in which they compute, the smaller one of both phases.
    pub duty: f64,
    /// Latest speed of reading a prompt, tokens per second without pauses; 0 before the first.
    pub prefill_tokens_per_s: f64,
    /// Latest speed of writing an answer, tokens per second without pauses; 0 before the first.
    pub decode_tokens_per_s: f64,
    /// Tokens computed since the start, of prompts and answers.
    pub tokens: u64,
    /// Which requests are taken.
    pub admission: Admission,
    /// Bytes that programs can have without swapping.
    pub memory_available: Option<u64>,
    /// Resident bytes of this process.
    pub resident: u64,
    /// CPUs that other programs keep busy.
    pub other_load: f64,
}

/// The latest decision, shared; clones are the same one. Reading it takes some ten nanoseconds.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    decision: Decision,
    sample: Sample,
    power_fault: Option<bool>,
    prefill_per_s: f64,
    decode_per_s: f64,
    work: Work,
    need: Option<Need>,
    speeds: Speeds,
}

/// A measurement so far off what is known has another reason than the number of threads: it is not learned from.
const BELIEVED: std::ops::RangeInclusive<f64> = 0.7..=1.5;

/// Tokens of a prompt from which a chunk counts as a measurement.
pub const TYPICAL_CHUNK: usize = 32;

/// Share of the newest measurement in the speeds that are shown.
const NEWEST: f64 = 0.2;

impl Handle {
    /// A handle whose decision is `first` until another one is published.
    pub fn new(first: Decision) -> Handle {
        Handle(Arc::new(Mutex::new(State {
            decision: first,
            sample: Sample::default(),
            power_fault: None,
            prefill_per_s: 0.0,
            decode_per_s: 0.0,
            work: Work::default(),
            need: None,
            speeds: Speeds::default(),
        })))
    }

    /// What holds now.
    pub fn decision(&self) -> Decision {
        self.state().decision
    }

    /// Everything that reports want to know.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state();
        let (decision, sample) = (&state.decision, &state.sample);
        Snapshot {
            level: decision.level,
            reason: decision.cause,
            temperature_c: sample.temperature.celsius(),
            throttled: sample.firmware.map(|bits| bits.throttled()),
            under_voltage: state.power_fault,
            fan_rpm: sample.fan.and_then(|fan| fan.rpm),
            prefill_threads: decision.prefill.threads,
            decode_threads: decision.decode.threads,
            duty: decision.prefill.duty.min(decision.decode.duty),
            prefill_tokens_per_s: state.prefill_per_s,
            decode_tokens_per_s: state.decode_per_s,
            tokens: state.work.tokens,
            admission: decision.admission,
            memory_available: sample.memory.map(|memory| memory.available),
            resident: sample.process.resident,
            other_load: sample.other_load,
        }
    }

    /// Makes `decision`, taken from `sample`, the one that holds. `power_fault` is whether the supply was too weak of late.
    pub fn publish(&self, sample: &Sample, decision: Decision, power_fault: Option<bool>) {
        let mut state = self.state();
        state.sample = *sample;
        state.decision = decision;
        state.power_fault = power_fault;
    }

    /// Tells what the loaded model needs, what is known of its speed, and what holds until a governor decides.
    pub fn loaded(&self, need: Need, speeds: Speeds, first: Decision) {
        let mut state = self.state();
        state.decision = first;
        state.need = Some(need);
        state.speeds = speeds;
    }

    /// What the loaded model needs, if one was described.
    pub fn need(&self) -> Option<Need> {
        self.state().need
    }

    /// What is known of the engine's speed.
    pub fn speeds(&self) -> Speeds {
        self.state().speeds.clone()
    }

    /// Says that the engine computed `tokens` with `threads` in `time`, pauses not counted.
    pub fn computed(&self, phase: Phase, threads: usize, tokens: usize, time: Duration) {
        let mut state = self.state();
        state.work.tokens += tokens as u64;
        if time.is_zero() || tokens == 0 {
            return;
        }
        let speed = tokens as f64 / time.as_secs_f64();
        let shown = match phase {
            Phase::Prefill => &mut state.prefill_per_s,
            Phase::Decode => &mut state.decode_per_s,
        };
        *shown = if *shown == 0.0 { speed } else { *shown + NEWEST * (speed - *shown) };
        // Short chunks pay for their beginning and end.
        let typical = phase == Phase::Decode || tokens >= TYPICAL_CHUNK;
        let relative = state.speeds.known(phase, threads).filter(|_| typical).map(|known| speed / known);
        if let Some(relative) = relative {
            let old = state.work.relative_speed.unwrap_or(relative);
            state.work.relative_speed = Some(old + NEWEST * (relative - old));
        }
        // A machine that is held back or shared says nothing of threads.
        let undisturbed = state.decision.cause == Cause::Nothing && state.sample.other_load < 0.3;
        if typical && undisturbed && relative.is_none_or(|relative| BELIEVED.contains(&relative)) {
            state.speeds.learn(phase, threads, speed);
        }
    }

    /// Says whether a request is running, and how many bytes the engine keeps for keys and values.
    pub fn running(&self, running: bool, cache_bytes: usize) {
        let mut state = self.state();
        state.work.running = running;
        state.work.cache_bytes = cache_bytes as u64;
    }

    /// What the engine did since the start.
    pub fn work(&self) -> Work {
        self.state().work
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain data, which is never half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
