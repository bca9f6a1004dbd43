//! Small files of the kernel.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Most that is read of a file: `/proc/stat` of a large machine is the longest.
const LIMIT: u64 = 64 * 1024;

/// The contents of `path`; `None` when it cannot be read as text.
pub(super) fn text(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(LIMIT).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The number that `path` holds.
pub(super) fn number<T: FromStr>(path: &Path) -> Option<T> {
    text(path)?.trim().parse().ok()
}

/// What lies in `directory`, in the order of names with numbers in their order (`hwmon2` before `hwmon10`).
pub(super) fn entries(directory: &Path) -> Vec<PathBuf> {
    let found = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = found.map(|entry| entry.path()).collect();
    found.sort_by_key(|path| (path.as_os_str().len(), path.clone()));
    found
}

/// The value of `key` in lines of `key value …`, with or without a colon.
pub(super) fn field(text: &str, key: &str) -> Option<u64> {
    let line =
        text.lines().find_map(|line| line.strip_prefix(key).filter(|rest| rest.starts_with([' ', ':', '\t'])))?;
    line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
}
