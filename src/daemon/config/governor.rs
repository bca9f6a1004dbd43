//! Section `[governor]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::values::{ConfigError, range, state_directory};

/// Section `[governor]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Governor {
    /// Whether heat, power, memory and other programs are watched; the engine does all it can otherwise.
    pub enabled: bool,
    /// Degrees Celsius at which the processor is held.
    pub set_point_c: f64,
    /// Share of the heat of all threads while the temperature should be known and is not.
    pub duty_without_sensor: f64,
    /// Share of the CPUs that is kept when other programs want all of them.
    pub share: f64,
    /// Megabytes that shall stay free for the rest of the system.
    pub reserve_mb: u64,
    /// Whether the weights that every token reads are locked into memory, when they fit.
    pub lock_weights: bool,
    /// Whether the speed with 1, 2, … threads is measured at the first start.
    pub calibrate: bool,
    /// File that keeps the measured speeds; `speeds.json` in `$STATE_DIRECTORY` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speeds_file: Option<PathBuf>,
}

impl Default for Governor {
    fn default() -> Governor {
        Governor {
            enabled: true,
            set_point_c: 73.0,
            duty_without_sensor: 0.4,
            share: 0.5,
            reserve_mb: 64,
            lock_weights: false,
            calibrate: true,
            speeds_file: None,
        }
    }
}

impl Governor {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        range("governor.set_point_c", self.set_point_c, 40.0..=79.0)?;
        range("governor.duty_without_sensor", self.duty_without_sensor, 0.05..=1.0)?;
        range("governor.share", self.share, 0.0..=1.0)?;
        range("governor.reserve_mb", self.reserve_mb, 0..=1 << 20)
    }

    /// Where the measured speeds are kept, if anywhere.
    pub fn speeds_file(&self) -> Option<PathBuf> {
        self.speeds_file.clone().or_else(|| Some(state_directory()?.join("speeds.json")))
    }
}
