//! A model that is a directory is packed once, into the service's state directory, and served from there: its tokenizer is
//! used in place then, and its tensors lie at pages of their own.
//!
//! A copy is called `NAME-FINGERPRINT.ember`, so that one of another model, of changed files or of another version is another
//! file. It appears complete or not at all.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use sd_notify::NotifyState;
use tracing::{info, warn};

use super::config::{Model, state_directory};
use super::systemd::{LOADING, NEWS, PATIENCE, patience, tell};
use crate::engine::checkpoint::source::Source;
use crate::engine::pack::{self, PackError};

/// What is served instead of the directory that `model` names: a copy, packed now unless it is there. The path itself, where
/// there is nothing to pack, or no place for it.
///
/// # Errors
///
/// The model is refused, or its copy cannot be written.
pub(super) fn place(model: &Model) -> Result<PathBuf, String> {
    if !model.pack || !model.path.is_dir() {
        return Ok(model.path.clone());
    }
    let Some(state) = state_directory() else {
        info!("no state directory: the model's directory is served as it is, not packed");
        return Ok(model.path.clone());
    };
    let source = Source::open(&model.path).map_err(|error| error.to_string())?;
    let fingerprint = pack::fingerprint(&source).map_err(|error| error.to_string())?;
    let dir = state.join("packed");
    let name = name(&model.path);
    let copy = dir.join(format!("{name}-{fingerprint}.ember"));
    // One that was written by another build may be of another format.
    if Source::open(&copy).is_ok_and(|source| source.is_packed()) {
        return Ok(copy);
    }
    let refused = |error: &dyn std::fmt::Display| format!("{}: cannot pack the model there: {error}", dir.display());
    let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(&dir);
    made.map_err(|error| refused(&error))?;
    // What is left of this model, and of attempts that were cut off, would only take the room.
    remove(&dir, |file| of_model(file, &name) || file.contains(".partial-")).map_err(|error| refused(&error))?;
    info!(model = %model.path.display(), to = %copy.display(), "packing the model, once");
    let began = Instant::now();
    let (mut told, mut tenths) = (Instant::now(), 0);
    let packed = pack::pack(&model.path, &copy, &mut |done, total| {
        let percent = done * 100 / total.max(1);
        if percent / 10 > tenths {
            tenths = percent / 10;
            info!(percent, "packing the model");
        }
        if told.elapsed() >= NEWS || done == total {
            told = Instant::now();
            tell(&[NotifyState::Status(&format!("packing the model, {percent} %")), patience(PATIENCE)]);
        }
    });
    let bytes = packed.map_err(|error| match error {
        PackError::Space { .. } => format!("{error}; make room, or set `pack = false` in the section [model]"),
        _ => error.to_string(),
    })?;
    // Loading begins only now.
    tell(&[NotifyState::Status("loading the model"), patience(LOADING)]);
    info!(mb = bytes >> 20, seconds = began.elapsed().as_secs(), "packed");
    Ok(copy)
}

/// Removes the copies of other models, now that the one at `used` is loaded: one is kept.
pub(super) fn tidy(used: &Path) {
    let Some(dir) = state_directory().map(|state| state.join("packed")) else { return };
    if used.parent() != Some(&dir) {
        return;
    }
    let used = used.file_name().unwrap_or_default().to_string_lossy();
    if let Err(error) = remove(&dir, |file| file != used && file.ends_with(".ember")) {
        warn!(dir = %dir.display(), %error, "cannot remove packed copies of other models");
    }
}

/// The name of the directory that `path` leads to.
fn name(path: &Path) -> String {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    real.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Whether `file` is a copy of the model `name`, whatever its fingerprint.
fn of_model(file: &str, name: &str) -> bool {
    let rest = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
    let rest = rest.and_then(|rest| rest.strip_suffix(".ember"));
    rest.is_some_and(|rest| rest.len() == pack::FINGERPRINT && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Removes the files of `dir` whose names `chosen` takes.
fn remove(dir: &Path, chosen: impl Fn(&str) -> bool) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if chosen(&entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_of_one_model() {
        let sum = "0123456789abcdef";
        assert!(of_model(&format!("a-{sum}.ember"), "a") && of_model(&format!("a-b-{sum}.ember"), "a-b"));
        let no_sum = "a-0123456789abcdeg.ember".to_owned();
        for other in
            [format!("a-b-{sum}.ember"), format!("ab-{sum}.ember"), "a-12.ember".into(), format!("a-{sum}"), no_sum]
        {
            assert!(!of_model(&other, "a"), "{other}");
        }
    }
}
