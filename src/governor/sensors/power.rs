//! The supply, the firmware's throttling and the fan.

use std::path::{Path, PathBuf};

use super::super::sample::{Fan, Firmware};
use super::files::{entries, number, text};

/// Files of what was found.
#[derive(Debug, Default)]
pub(super) struct Power {
    /// `get_throttled`, hexadecimal without a prefix.
    pub(super) throttled: Option<PathBuf>,
    /// The under-voltage alarm of the driver `rpi_volt`.
    pub(super) alarm: Option<PathBuf>,
    /// The hwmon device of the fan.
    pub(super) fan: Option<PathBuf>,
}

impl Power {
    pub(super) fn find(root: &Path) -> Power {
        // The device's name differs between boards and kernels: soc:firmware, soc@107c000000:firmware, and others.
        let driver = entries(&root.join("sys/bus/platform/drivers/raspberrypi-firmware"));
        let throttled = driver.into_iter().map(|device| device.join("get_throttled")).find(|file| file.is_file());
        let hwmon: Vec<(String, PathBuf)> = entries(&root.join("sys/class/hwmon"))
            .into_iter()
            .filter_map(|device| Some((text(&device.join("name"))?.trim().to_owned(), device)))
            .collect();
        let named = |name: &str| hwmon.iter().find(|(own, _)| own == name).map(|(_, device)| device.clone());
        let turns = |(_, device): &&(String, PathBuf)| device.join("fan1_input").exists();
        Power {
            throttled,
            alarm: named("rpi_volt").map(|device| device.join("in0_lcrit_alarm")).filter(|file| file.exists()),
            fan: named("pwmfan").or_else(|| hwmon.iter().find(turns).map(|(_, device)| device.clone())),
        }
    }

    /// Whether something was not found, or is not there any more.
    pub(super) fn lacks(&self) -> bool {
        [&self.throttled, &self.alarm, &self.fan]
            .into_iter()
            .any(|file| !file.as_ref().is_some_and(|file| file.exists()))
    }

    pub(super) fn firmware(&self) -> Option<Firmware> {
        let bits = text(self.throttled.as_ref()?)?;
        let bits = bits.trim();
        u32::from_str_radix(bits.strip_prefix("0x").unwrap_or(bits), 16).ok().map(Firmware)
    }

    /// By the firmware or by the alarm, whichever sees it.
    pub(super) fn under_voltage(&self, firmware: Option<Firmware>) -> Option<bool> {
        let alarm = self.alarm.as_ref().and_then(|file| number::<u32>(file)).map(|alarm| alarm != 0);
        match (firmware.map(Firmware::under_voltage), alarm) {
            (None, None) => None,
            (a, b) => Some(a == Some(true) || b == Some(true)),
        }
    }

    pub(super) fn fan(&self) -> Option<Fan> {
        let device = self.fan.as_ref()?;
        Some(Fan { rpm: number(&device.join("fan1_input")), pwm: number(&device.join("pwm1")) })
    }
}
