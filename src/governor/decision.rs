//! What the policy decides, as plain data.

use std::fmt;

use serde::Serialize;

/// How far the machine is from what it can bear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing limits the engine.
    #[default]
    Nominal,
    /// It computes less than it could, or gives memory back.
    Warm,
    /// It computes much less than it could, or refuses long prompts.
    Hot,
    /// New requests are refused.
    Critical,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Nominal => "nominal",
            Level::Warm => "warm",
            Level::Hot => "hot",
            Level::Critical => "critical",
        })
    }
}

/// What limits the engine most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Nothing.
    #[default]
    Nothing,
    /// Other programs want the CPUs.
    OtherLoad,
    /// The processor nears its set point.
    Heat,
    /// The firmware holds the clock down.
    Throttled,
    /// The temperature is not known, though it should be.
    SensorLost,
    /// The supply is too weak.
    UnderVoltage,
    /// Memory runs short.
    Memory,
    /// The weights are read from the disk again and again.
    PageFaults,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::Nothing => "nothing limits the engine",
            Cause::OtherLoad => "other programs want the CPUs",
            Cause::Heat => "the processor nears its set point",
            Cause::Throttled => "the firmware holds the clock down",
            Cause::SensorLost => "the temperature sensor gives nothing sensible",
            Cause::UnderVoltage => "the power supply is too weak",
            Cause::Memory => "memory runs short",
            Cause::PageFaults => "the weights do not stay in memory",
        })
    }
}

/// How hard one phase computes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Effort {
    /// Threads.
    pub threads: usize,
    /// Share of the time in which they compute, above 0 and at most 1; the rest is a pause after every chunk or token.
    pub duty: f64,
}

/// Which requests are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Admission {
    /// All.
    #[default]
    Open,
    /// Those that need at most so many positions.
    Positions(usize),
    /// None: the processor is too hot.
    Overheated,
    /// None: memory is about to run out.
    LowMemory,
}

/// What the engine may do until the next decision.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Decision {
    /// How bad it is.
    pub level: Level,
    /// What limits the engine most.
    pub cause: Cause,
    /// For prompts.
    pub prefill: Effort,
    /// For answers.
    pub decode: Effort,
    /// Prompt tokens that go through the layers together.
    pub chunk: usize,
    /// Which requests are taken.
    pub admission: Admission,
    /// Bytes that may be kept between requests to make later ones faster.
    pub cache_bytes: u64,
}

impl Decision {
    /// Everything that a machine with `threads` threads can do.
    pub fn unlimited(threads: usize, chunk: usize) -> Decision {
        let all = Effort { threads, duty: 1.0 };
        Decision {
            level: Level::Nominal,
            cause: Cause::Nothing,
            prefill: all,
            decode: all,
            chunk,
            admission: Admission::Open,
            cache_bytes: u64::MAX,
        }
    }
}
