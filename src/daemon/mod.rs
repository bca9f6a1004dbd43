//! The only module that knows everybody: command line, configuration, start-up and shutdown, systemd, exit codes.

pub mod cli;
pub mod config;
mod error;
mod load;
mod serve;
mod systemd;

pub use config::Config;
pub use error::{Error, exit};
pub use serve::serve;
