//! From the section `[model]` to something that the scheduler can drive.

use super::config;
use crate::scheduler::backend::Backend;

/// Loads the model.
///
/// # Errors
///
/// When it cannot be used, naming the file.
pub(super) fn load(model: &config::Model) -> Result<Box<dyn Backend>, String> {
    Err(format!("{}: this build contains no engine", model.path.display()))
}
