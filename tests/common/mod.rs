//! What several test programs share.

use std::path::{Path, PathBuf};

/// The folder of reference data, `EMBERD_SHARED` or `../shared`. Without it tests that need it are skipped, but not in CI.
pub(crate) fn shared() -> Option<PathBuf> {
    let dir = std::env::var_os("EMBERD_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    if dir.join("golden").is_dir() {
        return Some(dir);
    }
    assert!(std::env::var_os("CI").is_none(), "{} with the reference data is missing", dir.display());
    println!("skipped: {} with the reference data is missing", dir.display());
    None
}
