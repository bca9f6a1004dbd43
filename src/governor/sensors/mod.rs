//! Reads the machine: thermal zones, hwmon, the firmware's throttle bits, cpufreq, load, memory, pressure.
//!
//! Everything is read below a root directory, `/` in the daemon, so that a test can be any board. A file that is missing or
//! unreadable is a `None` in the [`Sample`], never an error.

mod files;
mod load;
mod memory;
mod power;
mod thermal;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use self::files::{number, text};
use self::load::Load;
use self::power::Power;
use self::thermal::Thermal;
use super::sample::{Sample, Temperature, Work};

/// How often sensors that are missing are looked for again: drivers come late at boot.
const SEARCH: Duration = Duration::from_secs(30);

/// The sensors of a machine.
#[derive(Debug)]
pub struct Sensors {
    root: PathBuf,
    model: Option<String>,
    thermal: Option<Thermal>,
    power: Power,
    load: Load,
    cpus: usize,
    searched: Option<Instant>,
}

/// What was found and where, for reports; paths as the daemon sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The board's name from its device tree.
    pub board: Option<String>,
    /// File and kind of the processor's temperature.
    pub temperature: Option<(PathBuf, String)>,
    /// File of the throttle bits.
    pub throttled: Option<PathBuf>,
    /// File of the under-voltage alarm.
    pub under_voltage: Option<PathBuf>,
    /// Directory of the fan.
    pub fan: Option<PathBuf>,
}

impl Sensors {
    /// The sensors below `root`, for a process that may use `cpus` CPUs.
    pub fn new(root: &Path, cpus: usize) -> Sensors {
        Sensors {
            model: board(root),
            thermal: Thermal::find(root),
            power: Power::find(root),
            load: Load::default(),
            cpus,
            root: root.to_path_buf(),
            searched: None,
        }
    }

    /// What was found.
    pub fn found(&self) -> Found {
        Found {
            board: self.model.clone(),
            temperature: self.thermal.as_ref().map(|t| (t.file.clone(), t.kind.clone())),
            throttled: self.power.throttled.clone(),
            under_voltage: self.power.alarm.clone(),
            fan: self.power.fan.clone(),
        }
    }

    /// Looks at everything once; loads are means since the last call. `work` is the engine's own.
    pub fn read(&mut self, now: Instant, work: Work) -> Sample {
        let temperature = self.temperature(now);
        let root = &self.root;
        let firmware = self.power.firmware();
        let (own_load, other_load) = self.load.read(root, self.cpus);
        let kilohertz = number::<f64>(&root.join("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"));
        Sample {
            temperature,
            firmware,
            under_voltage: self.power.under_voltage(firmware),
            fan: self.power.fan(),
            clock_mhz: kilohertz.map(|kilohertz| kilohertz / 1e3),
            cpus: self.cpus,
            own_load,
            other_load,
            memory: memory::memory(root),
            cpu_pressure: memory::pressure(root, "cpu"),
            memory_pressure: memory::pressure(root, "memory"),
            io_pressure: memory::pressure(root, "io"),
            process: memory::process(root),
            work,
        }
    }

    fn temperature(&mut self, now: Instant) -> Temperature {
        let celsius = self.thermal.as_ref().and_then(Thermal::read);
        let missing = celsius.is_none() || self.power.lacks();
        if missing && self.searched.is_none_or(|last| now.saturating_duration_since(last) >= SEARCH) {
            self.searched = Some(now);
            if celsius.is_none()
                && let Some(found) = Thermal::find(&self.root)
            {
                self.thermal = Some(found);
            }
            self.power = Power::find(&self.root);
        }
        match self.thermal.as_ref().map(|thermal| celsius.or_else(|| thermal.read())) {
            Some(Some(celsius)) => Temperature::Celsius(celsius),
            Some(None) => Temperature::Lost,
            // A Pi has a sensor; a virtual machine or a container elsewhere need not.
            None if self.model.as_ref().is_some_and(|model| model.starts_with("Raspberry Pi")) => Temperature::Lost,
            None => Temperature::None,
        }
    }
}

/// The board's name from its device tree.
pub fn board(root: &Path) -> Option<String> {
    let places = ["proc/device-tree/model", "sys/firmware/devicetree/base/model"];
    let name = places.iter().find_map(|place| text(&root.join(place)))?;
    Some(name.trim_matches(['\0', '\n', ' ']).to_owned()).filter(|name| !name.is_empty())
}
