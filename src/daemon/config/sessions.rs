//! Section `[sessions]`.

use serde::{Deserialize, Serialize};

use super::values::{ConfigError, range};

/// Section `[sessions]`: conversations that are continued without being sent again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sessions {
    /// Most sessions.
    pub max: usize,
    /// Most bytes of all their messages.
    pub max_bytes: usize,
    /// Seconds after which an idle one is forgotten.
    pub idle_s: u64,
}

impl Default for Sessions {
    fn default() -> Sessions {
        Sessions { max: 64, max_bytes: 4 << 20, idle_s: 3600 }
    }
}

impl Sessions {
    /// Checks the ranges.
    ///
    /// # Errors
    ///
    /// Naming the key that is out of its range.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        range("sessions.max", self.max, 0..=10_000)?;
        range("sessions.max_bytes", self.max_bytes, 0..=1 << 30)?;
        range("sessions.idle_s", self.idle_s, 1..=31_536_000)
    }
}
