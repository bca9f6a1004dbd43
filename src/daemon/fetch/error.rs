//! Why a checkpoint cannot be had, in words that say what to do.

use std::io;
use std::path::PathBuf;

use hyper::StatusCode;

use crate::engine::checkpoint::CheckpointError;

/// Why a checkpoint cannot be had.
#[derive(Debug, thiserror::Error)]
pub(in crate::daemon) enum FetchError {
    /// The connection failed or broke: worth another attempt.
    #[error("{url}: {reason}")]
    Lost {
        /// What was asked for.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The server is not one that can be used.
    #[error("{url}: {reason}")]
    Server {
        /// What was asked for.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// 401 or 403.
    #[error(
        "{url}: {status}: the repository does not exist or is not open to everybody; accept its terms in a browser, make a token \
         there that may read, and name the file that holds it with --token-file"
    )]
    Denied {
        /// What was asked for.
        url: String,
        /// The server's answer.
        status: StatusCode,
    },
    /// 404 for a file without which there is no model.
    #[error("{url}: the server has no such file; are repository, revision and --base-url right?")]
    Missing {
        /// What was asked for.
        url: String,
    },
    /// Another file than at the beginning.
    #[error("{url}: changed on the server, or the server no longer sends parts of it; run the command again")]
    Changed {
        /// What was asked for.
        url: String,
    },
    /// A checksum is wrong.
    #[error("{name}: its SHA-256 is {found}, expected {expected}; it was deleted, run the command again")]
    Checksum {
        /// The file.
        name: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The file system is too full.
    #[error(
        "{}: fetching and packing take {needed} MB more, and its file system has {free} MB free; --work-dir may name another one",
        path.display()
    )]
    Space {
        /// Where it was to be.
        path: PathBuf,
        /// What it takes.
        needed: u64,
        /// What there is.
        free: u64,
    },
    /// The system refused something.
    #[error("{}: cannot {action} it: {source}; what is there stays, and the command goes on with it when it runs again", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A file that came is not what it should be.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}
