//! What is wrong with a checkpoint, in words that name the place, what was expected and what was found.

use std::fmt;
use std::path::{Path, PathBuf};

/// Longest piece of a file's own text that an error repeats.
const QUOTE_LIMIT: usize = 120;

/// One thing that is wrong inside a file; the pure parsers return it without knowing the file's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The tensor or field, `None` when the whole file is meant.
    pub place: Option<String>,
    /// What a valid file has there.
    pub expected: String,
    /// What this one has.
    pub found: String,
}

impl Problem {
    /// A problem with the tensor or field `place`.
    pub fn at(place: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Problem {
        Problem { place: Some(place.into()), expected: expected.into(), found: found.into() }
    }

    /// A problem with the file as a whole.
    pub fn whole(expected: impl Into<String>, found: impl Into<String>) -> Problem {
        Problem { place: None, expected: expected.into(), found: found.into() }
    }

    /// This problem as an error of `file`.
    pub fn in_file(self, file: &Path) -> CheckpointError {
        CheckpointError::Invalid { file: file.to_owned(), problem: self }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        write!(f, "expected {}, found {}", self.expected, self.found)
    }
}

/// Why a checkpoint cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file could not be read or written.
    #[error("{}: cannot {action}: {source}", .file.display())]
    Io {
        /// The file or directory.
        file: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file was read, and what it holds is refused.
    #[error("{}: {problem}", .file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// What is wrong in it.
        problem: Problem,
    },
}

impl CheckpointError {
    pub(in crate::engine) fn io(file: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> CheckpointError {
        move |source| CheckpointError::Io { file: file.to_owned(), action, source }
    }
}

/// `text` from a file as part of a message: control characters escaped, at most [`QUOTE_LIMIT`] characters.
pub(super) fn quote(text: &str) -> String {
    let mut short: String = text.chars().take(QUOTE_LIMIT).flat_map(char::escape_debug).collect();
    if text.chars().nth(QUOTE_LIMIT).is_some() {
        short.push('…');
    }
    short
}
