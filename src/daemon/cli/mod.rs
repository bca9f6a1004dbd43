//! The command line: one file per command.

mod ask;
mod check_config;
mod serve;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use super::config::{Config, ConfigError, Sources};
use super::error::Error;

/// Answers prompts with a Gemma 4 mobile-QAT checkpoint, over a Unix socket and MQTT. Nothing leaves the device.
#[derive(Parser)]
#[command(name = "emberd", version, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 wrong arguments, 69 daemon not reachable, 75 busy, 78 wrong \
                        configuration.\nConfiguration: /etc/emberd/config.toml, /etc/emberd/conf.d/*.toml, then \
                        EMBERD__SECTION__KEY, then flags.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Load the model and answer requests until SIGTERM
    Serve(Settings),
    /// Check the configuration and print it as it takes effect
    CheckConfig(Settings),
    /// Ask the running daemon and print its answer as it comes
    Ask(ask::Ask),
}

/// The flags that choose the configuration.
#[derive(Args)]
struct Settings {
    /// Read this file instead of those below /etc/emberd
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the checkpoint [model.path]
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
    fn load(&self) -> Result<Config, ConfigError> {
        let flags = [("model.path", &self.model), ("socket.path", &self.socket), ("log.level", &self.log)];
        let flags = flags.into_iter().filter_map(|(key, value)| Some((key, value.clone()?))).collect();
        Config::load(&Sources { file: self.config.clone(), environment: None, flags })
    }
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(settings) => serve::run(&settings),
        Command::CheckConfig(settings) => check_config::run(&settings),
        Command::Ask(ask) => ask::run(&ask),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::from(error.code())
        }
    }
}

fn report(error: &Error) {
    if !matches!(error, Error::Interrupted) {
        eprintln!("emberd: {error}");
    }
}

/// Starts the log on standard error: without times under systemd, whose journal has its own.
fn start_log(level: &str) {
    let filter = EnvFilter::try_new(level).unwrap_or_default();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // Fails when a log is running already, which then serves.
    let _ = if std::env::var_os("JOURNAL_STREAM").is_some() { log.without_time().try_init() } else { log.try_init() };
}
