//! Section `[spool]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::values::{ConfigError, range};

/// Section `[spool]`: where requests over MQTT are kept until they are answered, and for a while after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spool {
    /// The file.
    pub path: PathBuf,
    /// Most requests in it, answered ones included.
    pub max_requests: u64,
    /// Most bytes of requests and answers.
    pub max_bytes: u64,
    /// Seconds for which answers are kept for clients that ask again.
    pub keep_s: u64,
    /// Times that a request may be running when the daemon dies before it is given up.
    pub attempts: u8,
}

impl Default for Spool {
    fn default() -> Spool {
        Spool {
            path: "/var/lib/emberd/spool.redb".into(),
            max_requests: 10_000,
            max_bytes: 64 << 20,
            keep_s: 86_400,
            attempts: 2,
        }
    }
}

impl Spool {
    /// Checks the ranges.
    ///
    /// # Errors
    ///
    /// Naming the key that is out of its range.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        range("spool.max_requests", self.max_requests, 1..=1_000_000)?;
        range("spool.max_bytes", self.max_bytes, 65_536..=16 << 30)?;
        range("spool.keep_s", self.keep_s, 0..=31_536_000)?;
        range("spool.attempts", self.attempts, 1..=100)
    }
}
