//! Checkpoints that open, and damaged ones that are refused in words.

use std::path::PathBuf;

use emberd::engine::checkpoint::Checkpoint;

/// Golden checkpoints, or `None` where the test data is not installed (an error under CI).
fn golden(name: &str) -> Option<PathBuf> {
    let shared = std::env::var_os("EMBERD_SHARED")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared")), PathBuf::from);
    let dir = shared.join("golden").join(name);
    if dir.is_dir() {
        return Some(dir);
    }
    assert!(std::env::var_os("CI").is_none(), "{} is missing", dir.display());
    eprintln!("skipped: {} is missing", dir.display());
    None
}

#[test]
fn golden_checkpoints_open() {
    for name in ["tiny-e2b", "tiny-e4b"] {
        let Some(dir) = golden(name) else { return };
        let checkpoint = Checkpoint::open(&dir).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(checkpoint.weights.layers.len(), checkpoint.config.layers.len());
    }
}
