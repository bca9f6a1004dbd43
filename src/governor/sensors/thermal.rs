//! The temperature of the processor.

use std::path::{Path, PathBuf};

use super::files::{entries, number, text};

/// Kinds of sensors that sit in a processor, as `type` of a thermal zone or `name` of a hwmon device has them.
const PROCESSOR: [&str; 9] = [
    "cpu-thermal",
    "cpu_thermal",
    "bcm2835_thermal",
    "soc-thermal",
    "soc_thermal",
    "cpu0-thermal",
    "x86_pkg_temp",
    "coretemp",
    "k10temp",
];

/// Beyond these a sensor is broken, in degrees Celsius.
const SENSIBLE: std::ops::RangeInclusive<f64> = -40.0..=125.0;

/// A sensor of the processor's temperature.
#[derive(Debug)]
pub(super) struct Thermal {
    /// Millidegrees.
    pub(super) file: PathBuf,
    /// Its type.
    pub(super) kind: String,
}

impl Thermal {
    /// The first sensor that sits in the processor. Others (a disk, a radio, ACPI's constant) say nothing about it.
    pub(super) fn find(root: &Path) -> Option<Thermal> {
        let zones =
            entries(&root.join("sys/class/thermal")).into_iter().map(|zone| (zone.join("type"), zone.join("temp")));
        let hwmon = entries(&root.join("sys/class/hwmon")).into_iter();
        let hwmon = hwmon.map(|device| (device.join("name"), device.join("temp1_input")));
        zones.chain(hwmon).find_map(|(kind, file)| {
            let kind = text(&kind)?.trim().to_owned();
            (PROCESSOR.contains(&kind.as_str()) && file.exists()).then_some(Thermal { file, kind })
        })
    }

    /// Degrees Celsius; `None` when the file is gone or what it says cannot be.
    pub(super) fn read(&self) -> Option<f64> {
        number::<f64>(&self.file).map(|milli| milli / 1e3).filter(|celsius| SENSIBLE.contains(celsius))
    }
}
