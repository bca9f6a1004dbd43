//! Sections `[[prefix]]`.

use std::collections::HashSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::values::{ConfigError, demand, range, some_text, text};
use crate::engine::pinned::MAX_PINS;

/// A section `[[prefix]]`: instructions and tools with which many requests begin, and whose keys and values are kept on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prefix {
    /// Name of the file, and in the log.
    #[serde(deserialize_with = "text")]
    pub name: String,
    /// The instructions.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_text")]
    pub system: Option<String>,
    /// File with the instructions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_file: Option<PathBuf>,
    /// File with the tools, a JSON array as in requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools_file: Option<PathBuf>,
    /// Whether it is for requests that let the model think.
    #[serde(default)]
    pub enable_thinking: bool,
}

/// Checks all of them.
///
/// # Errors
///
/// Naming the first key that is wrong.
pub(super) fn check(prefixes: &[Prefix]) -> Result<(), ConfigError> {
    range("prefix", prefixes.len(), 0..=MAX_PINS)?;
    let mut names = HashSet::new();
    for (at, prefix) in prefixes.iter().enumerate() {
        let key = |field: &str| format!("prefix[{at}].{field}");
        let name = &prefix.name;
        let known = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let good = (1..=64).contains(&name.len()) && name.chars().all(known) && !name.starts_with('.');
        let words = || "1 to 64 letters, digits, '.', '_', '-', of no other prefix".into();
        demand(key("name"), good && names.insert(name), words, name)?;
        let twice = prefix.system.is_some() && prefix.system_file.is_some();
        demand(key("system_file"), !twice, || "nothing, since there is `system`".into(), &"a file")?;
        let some = prefix.system.is_some() || prefix.system_file.is_some() || prefix.tools_file.is_some();
        demand(key("system"), some, || "instructions, here or in system_file, or a tools_file".into(), &"none")?;
    }
    Ok(())
}
