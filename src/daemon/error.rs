//! What a command can fail with, and the exit code that it gives.

use super::config::ConfigError;
use crate::transport::socket::BindError;

/// Exit codes, from sysexits(3) where it has a fitting one.
pub mod exit {
    /// Nothing went wrong.
    pub const DONE: u8 = 0;
    /// Any other failure.
    pub const INTERNAL: u8 = 1;
    /// Wrong arguments.
    pub const USAGE: u8 = 2;
    /// The daemon does not take the request as it is.
    pub const DATA: u8 = 65;
    /// What is named is not there: a session, a request.
    pub const GONE: u8 = 66;
    /// The daemon cannot be reached.
    pub const UNAVAILABLE: u8 = 69;
    /// The queue is full, the session is in use, no answer came in time, or the daemon is about to end: try again later.
    pub const TEMPORARY: u8 = 75;
    /// The configuration is wrong; starting again does not help.
    pub const CONFIG: u8 = 78;
    /// Ended by Ctrl-C, as shells report it.
    pub const INTERRUPTED: u8 = 130;
}

/// Failure of a command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The model that the configuration names cannot be used.
    #[error("model: {0}")]
    Model(String),
    /// There is no socket.
    #[error(transparent)]
    Socket(#[from] BindError),
    /// Wrong arguments.
    #[error("{0}")]
    Usage(String),
    /// The daemon cannot be reached.
    #[error("{0}")]
    Unavailable(String),
    /// The daemon is busy.
    #[error("{0}")]
    Busy(String),
    /// A request of this session waits or runs.
    #[error("{0}")]
    SessionBusy(String),
    /// The daemon does not take the request as it is.
    #[error("{0}")]
    BadRequest(String),
    /// The daemon does not know the session or the request that is named.
    #[error("{0}")]
    Gone(String),
    /// The daemon failed over the request, or answered what is no answer.
    #[error("{0}")]
    Refused(String),
    /// A file or a model that a command names cannot be used.
    #[error("{0}")]
    Failed(String),
    /// Nobody reads standard output any more.
    #[error("nobody reads the output")]
    Unread,
    /// A second signal, or Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// The operating system refused something.
    #[error("{0}: {1}")]
    System(&'static str, std::io::Error),
    /// The engine thread ended without being asked to.
    #[error("the engine thread ended unexpectedly")]
    EngineDied,
}

impl Error {
    /// A command's failure, told by `cause`.
    pub(super) fn failed(cause: impl std::fmt::Display) -> Error {
        Error::Failed(cause.to_string())
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Error::Config(_) | Error::Model(_) => exit::CONFIG,
            Error::Socket(BindError::NotASocket(_) | BindError::NoGroup { .. } | BindError::Passed(_)) => exit::CONFIG,
            Error::Socket(BindError::InUse(_) | BindError::Io { .. }) => exit::INTERNAL,
            Error::Usage(_) => exit::USAGE,
            Error::Unavailable(_) => exit::UNAVAILABLE,
            Error::Busy(_) | Error::SessionBusy(_) => exit::TEMPORARY,
            Error::BadRequest(_) => exit::DATA,
            Error::Gone(_) => exit::GONE,
            Error::Unread => exit::DONE,
            Error::Interrupted => exit::INTERRUPTED,
            Error::Refused(_) | Error::Failed(_) | Error::System(..) | Error::EngineDied => exit::INTERNAL,
        }
    }
}
