//! The flags that the commands share.

use std::path::PathBuf;

use clap::Args;

use super::super::config::{Config, ConfigError, Sources};

/// The flags that choose the configuration.
#[derive(Args)]
pub(super) struct Settings {
    /// Read this file instead of those below /etc/emberd
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The model: a directory or a packed file [model.path]
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
    /// Path of the Unix socket [socket.path]
    #[arg(long, value_name = "PATH")]
    socket: Option<String>,
    /// error, warn, info, debug or trace [log.level]
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
}

impl Settings {
    /// The merged configuration.
    pub(super) fn load(&self) -> Result<Config, ConfigError> {
        let flags = [("model.path", &self.model), ("socket.path", &self.socket), ("log.level", &self.log)];
        let flags = flags.into_iter().filter_map(|(key, value)| Some((key, value.clone()?))).collect();
        Config::load(&Sources { file: self.config.clone(), environment: None, flags })
    }
}
