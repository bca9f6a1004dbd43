//! A board on paper: hours of work, heat and throttling in milliseconds, to try policies on.
//!
//! One heat capacity and one resistance to the air. The firmware lowers the clock from 80 °C on, linearly to its lowest at
//! 85 °C. Prompts are bound by the multipliers, answers by memory. The figures are of the kind that people measured on
//! Raspberry Pis; none was measured by this project, and no board has one time constant only.

use std::time::Duration;

use fastrand::Rng;

use super::decision::{Decision, Effort};
use super::handle::Phase;
use super::policy::{Need, Policy, Settings, Speeds};
use super::sample::{Firmware, Memory, Sample, Temperature, Work};

/// Where the firmware begins to throttle, and where it is at the lowest clock; degrees Celsius.
pub const THROTTLES: f64 = 80.0;
const LOWEST: f64 = 85.0;

/// Length of a step, seconds.
const STEP: f64 = 1.0;

/// CPUs of the boards.
pub const CPUS: usize = 4;

/// A board.
#[derive(Clone, Copy, Debug)]
pub struct Board {
    /// From the processor to the air, kelvin per watt.
    pub resistance: f64,
    /// Joule per kelvin.
    pub capacity: f64,
    /// Watts of a board that does nothing.
    pub idle: f64,
    /// Watts of a CPU that multiplies.
    pub core: f64,
    /// Watts of what runs while any CPU computes.
    pub shared: f64,
    /// Share of `core` that a CPU takes which waits for memory.
    pub stalled: f64,
    /// Lowest clock over the highest.
    pub slowest: f64,
    /// Power of the clock with which the watts of a CPU fall: 1 without lower voltage, above with it.
    pub voltage: f64,
    /// Tokens of a prompt per second and CPU.
    pub prefill: f64,
    /// Tokens of an answer per second on one CPU.
    pub decode: f64,
    /// Tokens of an answer per second that memory allows.
    pub wall: f64,
}

/// What happens around the board.
#[derive(Clone, Copy, Debug)]
pub struct Day {
    /// Air at the beginning and by how much it swings in two hours, degrees Celsius.
    pub ambient: f64,
    /// Half of the swing.
    pub swing: f64,
    /// CPUs that other programs want, now and then.
    pub others: f64,
    /// Tokens of a prompt and of its answer.
    pub request: (f64, f64),
    /// Seconds between an answer and the next prompt.
    pub pause: f64,
    /// Seed of the noise.
    pub seed: u64,
}

/// One second of a run.
#[derive(Clone, Copy, Debug)]
pub struct Second {
    /// True temperature.
    pub temperature: f64,
    /// Clock over the highest.
    pub clock: f64,
    /// Requests answered so far, with the part of the running one.
    pub answered: f64,
    /// What held.
    pub decision: Decision,
}

/// A run.
#[derive(Clone, Debug)]
pub struct Run {
    /// All seconds, in order.
    pub seconds: Vec<Second>,
}

/// Who decides.
pub enum Driver {
    /// The same all the time.
    Constant {
        /// For prompts.
        prefill: Effort,
        /// For answers.
        decode: Effort,
    },
    /// The daemon's policy; it sees what the sensors of a board would show.
    Governor(Box<Policy>),
}

impl Driver {
    /// What a daemon does that knows nothing of heat: all threads, always.
    pub fn all_threads() -> Driver {
        let all = Effort { threads: CPUS, duty: 1.0 };
        Driver::Constant { prefill: all, decode: all }
    }

    /// The daemon's policy with its default settings.
    pub fn governor() -> Driver {
        Driver::governor_at(73.0)
    }

    /// The daemon's policy, with `set_point` in degrees Celsius.
    pub fn governor_at(set_point: f64) -> Driver {
        let need = Need { weights: 800 << 20, position: 6 << 10, context: 4096, reserve: 128 << 20 };
        let settings = Settings { threads: CPUS, chunk: 64, set_point, cautious: 0.4, share: 0.5, need };
        Driver::Governor(Box::new(Policy::new(settings)))
    }
}

impl Board {
    /// A board of the kinds that there are, from bare with a good wall of memory to a Pi 5 under a cooler.
    pub fn random(rng: &mut Rng) -> Board {
        let mut between = |low: f64, high: f64| low + (high - low) * rng.f64();
        let decode = between(1.2, 8.0);
        Board {
            resistance: between(2.5, 11.0),
            capacity: between(12.0, 150.0),
            idle: between(1.5, 3.0),
            core: between(0.7, 1.6),
            shared: between(0.4, 1.2),
            stalled: between(0.4, 0.9),
            slowest: between(0.33, 0.65),
            voltage: between(1.0, 2.0),
            prefill: between(6.0, 45.0),
            wall: decode * between(1.3, 2.6),
            decode,
        }
    }

    /// Tokens a second, with `threads` at `clock`, when `free` CPUs are free.
    pub fn speed(&self, phase: Phase, threads: usize, clock: f64, free: f64) -> f64 {
        let threads = threads as f64;
        // As if every region waited for its slowest worker, so that more threads than CPUs were worse than fewer. The pool is
        // kinder, since workers come back for more: a governor that does well here does better there.
        let useful = if threads <= free { threads } else { free * free / threads };
        match phase {
            Phase::Prefill => self.prefill * clock * useful,
            Phase::Decode => {
                let cores = self.decode * clock * useful;
                // A little below both bounds where they meet.
                cores * self.wall / (cores.powi(4) + self.wall.powi(4)).powf(0.25)
            }
        }
    }

    /// Watts above idle while `threads` compute.
    fn power(&self, phase: Phase, threads: usize, clock: f64) -> f64 {
        let core = self.core * clock.powf(self.voltage);
        let threads = threads as f64;
        let busy = match phase {
            Phase::Prefill => threads,
            Phase::Decode => {
                let busy = threads.min(self.wall / (self.decode * clock));
                busy + self.stalled * (threads - busy)
            }
        };
        self.shared + core * busy
    }

    /// Clock at `temperature`, as the firmware sets it.
    fn clock(&self, temperature: f64) -> f64 {
        let hot = ((temperature - THROTTLES) / (LOWEST - THROTTLES)).clamp(0.0, 1.0);
        1.0 - hot * (1.0 - self.slowest)
    }

    /// What a calibration at the start finds.
    pub fn calibrated(&self, rng: &mut Rng) -> Speeds {
        let mut speeds = Speeds::unknown(CPUS);
        for phase in [Phase::Prefill, Phase::Decode] {
            for threads in 1..=CPUS {
                let noise = 0.99 + 0.02 * rng.f64();
                speeds.learn(phase, threads, noise * self.speed(phase, threads, 1.0, CPUS as f64));
            }
        }
        speeds
    }

    /// Lets `driver` work on this board for so many seconds, beginning at the temperature of an idle one.
    pub fn run(&self, day: &Day, mut driver: Driver, seconds: usize) -> Run {
        let mut rng = Rng::with_seed(day.seed);
        let speeds = self.calibrated(&mut rng);
        let mut temperature = day.ambient + self.idle * self.resistance;
        let mut job = Job { day: *day, left: day.request.0, phase: Some(Phase::Prefill), answered: 0.0, tokens: 0.0 };
        let (mut own, mut others, mut relative) = (0.0, 0.0, None);
        let mut run = Run { seconds: Vec::with_capacity(seconds) };
        for second in 0..seconds {
            let clock = self.clock(temperature);
            let decision = match &mut driver {
                Driver::Constant { prefill, decode } => {
                    Decision { prefill: *prefill, decode: *decode, ..Decision::unlimited(CPUS, 64) }
                }
                Driver::Governor(policy) => {
                    let sample = Sample {
                        // A reading has noise and steps of half a degree.
                        temperature: Temperature::Celsius(
                            ((temperature + 0.6 * (rng.f64() - 0.5)) * 2.0).round() / 2.0,
                        ),
                        firmware: Some(Firmware(if clock < 1.0 { 0b110 } else { 0 })),
                        under_voltage: Some(false),
                        cpus: CPUS,
                        own_load: own,
                        other_load: others,
                        memory: Some(Memory { total: 4 << 30, available: 3 << 30, swap_free: 0, limit: None }),
                        work: Work {
                            tokens: job.tokens as u64,
                            running: true,
                            cache_bytes: 0,
                            relative_speed: relative,
                        },
                        ..Sample::default()
                    };
                    policy.step(Duration::from_secs(second as u64), &sample, &speeds)
                }
            };
            // They come for some minutes and go.
            let here = day.others > 0.0 && (second / 400) % 3 == 1;
            let wanted = if here { day.others } else { 0.0 };
            let (watts, cpus, speed) = job.work(self, &decision, clock, CPUS as f64 - wanted);
            (own, others, relative) = (cpus, wanted, speed.or(relative));
            let watts = self.idle + watts + wanted * self.core * clock.powf(self.voltage);
            let hour = second as f64 / 3600.0;
            let air = day.ambient + day.swing * (std::f64::consts::PI * hour).sin();
            let end = air + watts * self.resistance;
            temperature = end + (temperature - end) * (-STEP / (self.resistance * self.capacity)).exp();
            run.seconds.push(Second { temperature, clock, answered: job.answered, decision });
        }
        run
    }

    /// Temperature at which the board settles in `day`'s hottest hour without other load, all threads at full clock.
    pub fn settles_at(&self, day: &Day) -> f64 {
        day.ambient + day.swing + self.resistance * (self.idle + self.power(Phase::Prefill, CPUS, 1.0))
    }

    /// The constant setting with these threads that answers most while it stays at or below `ceiling`, and what it answers
    /// in `seconds`; `None` when none stays below.
    pub fn constant(&self, day: &Day, threads: (usize, usize), ceiling: f64, seconds: usize) -> Option<Constant> {
        let try_duty = |duty: f64| {
            let (prefill, decode) = (Effort { threads: threads.0, duty }, Effort { threads: threads.1, duty });
            let run = self.run(day, Driver::Constant { prefill, decode }, seconds);
            (run.peak() <= ceiling).then(|| Constant { prefill, decode, answered: run.answered() })
        };
        // The more pause, the cooler: the border is found by halves.
        let mut found = try_duty(1.0);
        if found.is_none() {
            let (mut low, mut high) = (0.0, 1.0);
            for _ in 0..7 {
                let middle = (low + high) / 2.0;
                match try_duty(middle) {
                    Some(fits) => (low, found) = (middle, Some(fits)),
                    None => high = middle,
                }
            }
        }
        found
    }

    /// The best of [`Board::constant`] over all numbers of threads.
    pub fn best_constant(&self, day: &Day, ceiling: f64, seconds: usize) -> Option<Constant> {
        let threads = (1..=CPUS).flat_map(|prefill| (1..=CPUS).map(move |decode| (prefill, decode)));
        let found = threads.filter_map(|threads| self.constant(day, threads, ceiling, seconds));
        found.max_by(|a, b| a.answered.total_cmp(&b.answered))
    }
}

/// A constant setting and what it answers.
#[derive(Clone, Copy, Debug)]
pub struct Constant {
    /// For prompts.
    pub prefill: Effort,
    /// For answers.
    pub decode: Effort,
    /// Requests answered.
    pub answered: f64,
}

/// The requests, one after the other.
struct Job {
    day: Day,
    /// Tokens or, between requests, seconds.
    left: f64,
    phase: Option<Phase>,
    answered: f64,
    tokens: f64,
}

impl Job {
    /// Works for one step; watts above idle, CPUs in use, and the last speed over that of a cool, idle board.
    fn work(&mut self, board: &Board, decision: &Decision, clock: f64, free: f64) -> (f64, f64, Option<f64>) {
        let (mut time, mut energy, mut cpus, mut relative) = (STEP, 0.0, 0.0, None);
        while time > 1e-9 {
            let Some(phase) = self.phase else {
                let waited = time.min(self.left);
                (time, self.left) = (time - waited, self.left - waited);
                if self.left <= 1e-9 {
                    (self.phase, self.left) = (Some(Phase::Prefill), self.day.request.0);
                }
                continue;
            };
            let Effort { threads, duty } = if phase == Phase::Prefill { decision.prefill } else { decision.decode };
            let speed = board.speed(phase, threads, clock, free);
            relative = Some(speed / board.speed(phase, threads, 1.0, CPUS as f64));
            let spent = time.min(self.left / (speed * duty));
            let (prompt, answer) = self.day.request;
            time -= spent;
            self.left -= spent * speed * duty;
            self.tokens += spent * speed * duty;
            // Both parts of a request count by their tokens, which is what a client waits for.
            self.answered += spent * speed * duty / (prompt + answer);
            energy += spent * duty * board.power(phase, threads, clock);
            cpus += spent * duty * (threads as f64).min(free);
            if self.left <= 1e-9 {
                (self.phase, self.left) = match phase {
                    Phase::Prefill => (Some(Phase::Decode), answer),
                    Phase::Decode if self.day.pause > 0.0 => (None, self.day.pause),
                    Phase::Decode => (Some(Phase::Prefill), prompt),
                };
            }
        }
        (energy / STEP, cpus / STEP, relative)
    }
}

impl Run {
    /// Highest temperature.
    pub fn peak(&self) -> f64 {
        self.seconds.iter().map(|second| second.temperature).fold(f64::NEG_INFINITY, f64::max)
    }

    /// Requests answered.
    pub fn answered(&self) -> f64 {
        self.seconds.last().map_or(0.0, |second| second.answered)
    }

    /// Seconds in which the firmware held the clock down.
    pub fn throttled(&self) -> usize {
        self.seconds.iter().filter(|second| second.clock < 1.0).count()
    }

    /// How often `what` of the decisions changed.
    pub fn changes<T: PartialEq>(&self, what: impl Fn(&Decision) -> T) -> usize {
        self.seconds.windows(2).filter(|pair| what(&pair[0].decision) != what(&pair[1].decision)).count()
    }
}
