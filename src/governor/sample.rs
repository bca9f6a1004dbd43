//! What the sensors found, as plain data.

use serde::Serialize;

/// The temperature of the processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Temperature {
    /// This machine shows none, and is none that is known to have one.
    #[default]
    None,
    /// There is or has to be a sensor, but nothing sensible comes from it.
    Lost,
    /// Degrees Celsius.
    Celsius(f64),
}

impl Temperature {
    /// Degrees Celsius, if known.
    pub fn celsius(self) -> Option<f64> {
        match self {
            Temperature::Celsius(degrees) => Some(degrees),
            Temperature::None | Temperature::Lost => None,
        }
    }
}

/// The bits of the Raspberry Pi firmware's `get_throttled`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Firmware(pub u32);

impl Firmware {
    /// The supply is below 4.63 V now.
    pub fn under_voltage(self) -> bool {
        self.0 & 1 != 0
    }

    /// The clock is held down now: capped, throttled, or at the soft temperature limit.
    pub fn throttled(self) -> bool {
        self.0 & 0b1110 != 0
    }

    /// The supply was below 4.63 V since boot.
    pub fn under_voltage_seen(self) -> bool {
        self.0 & 1 << 16 != 0
    }

    /// The clock was held down since boot.
    pub fn throttled_seen(self) -> bool {
        self.0 & 0b1110 << 16 != 0
    }
}

/// A fan that the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Fan {
    /// Turns a minute, where they are measured.
    pub rpm: Option<u32>,
    /// What it is told, 0 to 255.
    pub pwm: Option<u32>,
}

/// Stalls, as `/proc/pressure` has them: percent of the last ten seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// Some task waited.
    pub some: f64,
    /// All tasks waited.
    pub full: f64,
}

/// Memory of the machine or of the control group, whichever has less to give; bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// All there is.
    pub total: u64,
    /// What programs can have without swapping. The weights in the page cache count as available.
    pub available: u64,
    /// Swap that is left.
    pub swap_free: u64,
    /// Limit of the control group, where it has one.
    pub limit: Option<u64>,
}

/// This process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Page faults that had to be read from a disk, since the start.
    pub major_faults: u64,
    /// Resident bytes.
    pub resident: u64,
    /// Resident bytes of mapped files: the weights, as far as they are in memory.
    pub resident_file: u64,
    /// Bytes that are locked in memory.
    pub locked: u64,
}

/// What the engine did since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Work {
    /// Tokens computed, of prompts and answers.
    pub tokens: u64,
    /// Whether a request is running.
    pub running: bool,
    /// Bytes that the engine keeps for keys and values.
    pub cache_bytes: u64,
    /// Latest speed over the best known one with as many threads; `None` while there is nothing to compare.
    pub relative_speed: Option<f64>,
}

/// One look at the machine. What it does not show is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// Of the processor.
    pub temperature: Temperature,
    /// Throttling, as the firmware tells it.
    pub firmware: Option<Firmware>,
    /// Whether the supply is too low now, by the firmware or the kernel's alarm.
    pub under_voltage: Option<bool>,
    /// The first fan.
    pub fan: Option<Fan>,
    /// Clock of the first CPU as cpufreq has it, which does not see the firmware's throttling; MHz.
    pub clock_mhz: Option<f64>,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// CPUs that this process kept busy since the last sample.
    pub own_load: f64,
    /// CPUs that everybody else kept busy since the last sample.
    pub other_load: f64,
    /// Memory.
    pub memory: Option<Memory>,
    /// Waiting for a CPU.
    pub cpu_pressure: Option<Pressure>,
    /// Waiting for memory.
    pub memory_pressure: Option<Pressure>,
    /// Waiting for a disk.
    pub io_pressure: Option<Pressure>,
    /// This process.
    pub process: Process,
    /// The engine.
    pub work: Work,
}
