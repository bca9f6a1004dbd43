//! What the sections have in common: errors, ranges, and strings that were written as such.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::transport::mqtt::TlsError;

/// The first directory that the service manager keeps for this service, if there is one.
pub(in crate::daemon) fn state_directory() -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("STATE_DIRECTORY")?).next().filter(|dir| dir.is_absolute())
}

/// What is wrong with the configuration, and where.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A layer cannot be read or has an unknown key or a value of the wrong type.
    #[error("configuration, {layer}: {reason}")]
    Layer {
        /// The file, or which other layer.
        layer: String,
        /// What is wrong there.
        reason: String,
    },
    /// A value is outside its range.
    #[error("configuration, {key}: expected {expected}, found {found}")]
    Range {
        /// `section.key`.
        key: String,
        /// The range in words.
        expected: String,
        /// The value.
        found: String,
    },
    /// A preset is wrong.
    #[error("configuration, mqtt.presets.{name}: {reason}")]
    Preset {
        /// Its name.
        name: String,
        /// The field and what is wrong with it.
        reason: String,
    },
    /// A file of the encryption cannot be used.
    #[error("TLS of the MQTT connection, {0}")]
    Tls(#[from] TlsError),
    /// The password cannot be read.
    #[error("password of the MQTT connection, {}: {reason}", .path.display())]
    Password {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// A string that was written as one: config-rs would also take a number, and `mode = 0o660` would become "432".
pub(super) fn text<'de, D: Deserializer<'de>>(value: D) -> Result<String, D::Error> {
    match Value::deserialize(value)? {
        Value::String(text) => Ok(text),
        other => Err(serde::de::Error::custom(format_args!("invalid type: {other}, expected a string in quotes"))),
    }
}

pub(super) fn some_text<'de, D: Deserializer<'de>>(value: D) -> Result<Option<String>, D::Error> {
    text(value).map(Some)
}

pub(super) fn range<T: PartialOrd + Display>(
    key: impl Into<String>,
    value: T,
    range: RangeInclusive<T>,
) -> Result<(), ConfigError> {
    demand(key, range.contains(&value), || format!("{} to {}", range.start(), range.end()), &value)
}

pub(super) fn demand(
    key: impl Into<String>,
    holds: bool,
    expected: impl Fn() -> String,
    found: &dyn Display,
) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    Err(ConfigError::Range {
        key: key.into(),
        expected: expected(),
        found: format!("{found:?}", found = found.to_string()),
    })
}
