//! The command line: one file per command.

mod answer;
mod ask;
mod bench;
mod cancel;
mod chat;
mod check_config;
mod client;
mod color;
mod debug;
#[cfg(feature = "demo")]
mod demo;
mod doctor;
mod eval;
mod fetch;
mod inspect;
mod log;
mod model;
mod models;
mod options;
mod pack;
mod perplexity;
mod serve;
mod settings;
mod shell;
mod status;
mod thermal;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use self::settings::Settings;
use super::error::Error;

/// Answers prompts with a Gemma 4 mobile-QAT checkpoint, over a Unix socket and MQTT. Nothing leaves the device.
#[derive(Parser)]
#[command(name = "emberd", version, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong arguments, 65 request not taken as it is, 66 session or \
                        request not there, 69 daemon not reachable, 75 busy, 78 wrong configuration, 130 \
                        interrupted.\nConfiguration: /etc/emberd/config.toml, /etc/emberd/conf.d/*.toml, then \
                        EMBERD__SECTION__KEY, then flags."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Load the model and answer requests until SIGTERM
    Serve(Settings),
    /// Check the configuration and print it as it takes effect
    CheckConfig(check_config::CheckConfig),
    /// Ask the running daemon and print its answer as it comes
    Ask(ask::Ask),
    /// Talk with the running daemon
    Chat(chat::Chat),
    /// Take a request back that waits or runs
    Cancel(cancel::Cancel),
    /// Show the running daemon's temperature, threads, queue and speed
    Status(status::Status),
    /// Show them again and again; one plain line each, into a pipe
    Top(status::Top),
    /// Look at this machine: sensors, power, memory, storage, and what is missing
    Doctor(doctor::Doctor),
    /// Say what a checkpoint is, what serving it takes, and whether this machine has that
    Inspect(inspect::Inspect),
    /// Get a checkpoint from where it is published, the text model alone, and pack it
    Fetch(Box<fetch::Fetch>),
    /// Make one file of a checkpoint, to be mapped and used in place
    Pack(pack::Pack),
    /// Read a packed model once and compare it with its checksum
    Verify(pack::Verify),
    /// Models of this machine: list them, choose one, check one, remove one
    #[command(subcommand)]
    Model(models::Models),
    /// Measure how well a checkpoint predicts a text
    Perplexity(perplexity::Perplexity),
    /// Measure speed and memory, and how much of this machine they take
    Bench(bench::Bench),
    /// Count how many cases of a file a checkpoint answers as expected
    Eval(eval::Eval),
    /// Show the daemon at work: its own socket, its own broker, a few prompts
    #[cfg(feature = "demo")]
    Demo(demo::Demo),
    /// Print what a shell needs to complete emberd's commands and flags
    Completions(shell::Completions),
    /// Write the manual pages
    Man(shell::Man),
    /// Run parts of the engine one by one
    #[command(subcommand)]
    Debug(debug::Debug),
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(settings) => serve::run(settings),
        Command::CheckConfig(check) => check_config::run(&check),
        Command::Ask(ask) => ask::run(&ask),
        Command::Chat(chat) => chat::run(&chat),
        Command::Cancel(cancel) => cancel::run(&cancel),
        Command::Status(status) => status::status(&status),
        Command::Top(top) => status::top(&top),
        Command::Doctor(doctor) => doctor::run(&doctor),
        Command::Inspect(inspect) => inspect::run(&inspect),
        Command::Fetch(fetch) => fetch::run(&fetch),
        Command::Pack(pack) => pack::run(&pack),
        Command::Verify(verify) => pack::verify(&verify.file),
        Command::Model(models) => models::run(&models),
        Command::Perplexity(perplexity) => perplexity::run(&perplexity),
        Command::Bench(bench) => bench::run(&bench),
        Command::Eval(eval) => eval::run(&eval),
        #[cfg(feature = "demo")]
        Command::Demo(demo) => demo::run(&demo),
        Command::Completions(completions) => shell::completions(&completions, Cli::command()),
        Command::Man(man) => shell::man(&man, Cli::command()),
        Command::Debug(debug) => debug::run(&debug),
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
    if !matches!(error, Error::Interrupted | Error::Unread) {
        eprintln!("emberd: {error}");
    }
}
