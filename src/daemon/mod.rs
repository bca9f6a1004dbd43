//! The only module that knows everybody: command line, configuration, start-up and shutdown, systemd, exit codes.

mod calibrate;
pub mod cli;
pub mod config;
pub mod doctor;
mod error;
mod fetch;
mod load;
mod models;
mod pace;
mod packed;
mod prefixes;
pub mod reload;
mod serve;
mod systemd;

pub use config::Config;
pub use error::{Error, exit};
pub use serve::{Reread, serve};
