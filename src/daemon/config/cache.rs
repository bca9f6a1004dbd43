//! Section `[cache]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::values::{ConfigError, range};

/// Section `[cache]`: what is kept of requests so that later ones that begin alike are answered sooner. Answers are the same
/// with and without it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    /// Most megabytes for the beginnings of earlier prompts, besides what the latest request leaves in place; 0 keeps none.
    pub memory_mb: u64,
    /// Directory for the prefixes of the configuration.
    pub prefix_dir: PathBuf,
    /// Most megabytes of the files in it.
    pub disk_mb: u64,
}

impl Default for Cache {
    fn default() -> Cache {
        Cache { memory_mb: 32, prefix_dir: "/var/lib/emberd/prefixes".into(), disk_mb: 256 }
    }
}

impl Cache {
    /// Checks the ranges.
    ///
    /// # Errors
    ///
    /// Naming the key that is out of its range.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        range("cache.memory_mb", self.memory_mb, 0..=1 << 20)?;
        range("cache.disk_mb", self.disk_mb, 0..=1 << 20)
    }
}
