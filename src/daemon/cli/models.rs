//! `emberd model`: which models there are, and which of them answers.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::{Args, Subcommand};
use serde_json::json;

use super::super::config::Config;
use super::super::error::Error;
use super::super::load::load;
use super::super::models::{Model, Models as Store};
use super::model::print;
use super::pack;
use super::settings::Settings;
use crate::engine::checkpoint::Checkpoint;
use crate::engine::checkpoint::source::Source;
use crate::governor::{Decision, Handle};
use crate::scheduler::backend::{GenerateError, Input, Sampling};

#[derive(Subcommand)]
pub(super) enum Models {
    /// List the models, that in use with a star
    List(List),
    /// Try a model and let the daemon answer with it from now on; back to the old one when that fails
    Use(Use),
    /// Read a model from its first to its last byte and compare it with its checksum
    Verify(Named),
    /// Delete a model that is not in use
    Remove(Named),
}

#[derive(Args)]
pub(super) struct List {
    #[command(flatten)]
    settings: Settings,
    /// Print one JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct Named {
    /// Its name in `emberd model list`
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Args)]
pub(super) struct Use {
    #[command(flatten)]
    named: Named,
    /// The service that is restarted, if it runs or has failed
    #[arg(long, value_name = "UNIT", default_value = "emberd.service")]
    service: String,
    /// Restart nothing
    #[arg(long)]
    no_restart: bool,
}

pub(super) fn run(command: &Models) -> Result<(), Error> {
    match command {
        Models::List(list) => self::list(list),
        Models::Use(choice) => switch(choice),
        Models::Verify(named) => {
            let (_, store) = open(&named.settings)?;
            verify(&store.find(&named.name).map_err(Error::failed)?)
        }
        Models::Remove(named) => {
            let (_, store) = open(&named.settings)?;
            let path = store.remove(&named.name).map_err(Error::failed)?;
            print(&format!("{}: removed\n", path.display()))
        }
    }
}

fn open(settings: &Settings) -> Result<(Config, Store), Error> {
    let config = settings.load()?;
    let store = Store::new(&config.model.path);
    Ok((config, store))
}

fn list(list: &List) -> Result<(), Error> {
    let (_, store) = open(&list.settings)?;
    let models = store.list().map_err(Error::failed)?;
    // Headers and small tables are read, weights are not.
    let sized = models.iter().map(|model| (model, Checkpoint::open(&model.path).map(|found| found.file_bytes)));
    if list.json {
        let entry = |(model, found): (&Model, Result<u64, _>)| {
            json!({
                "name": model.name, "path": model.path, "used": model.used, "packaged": model.packaged,
                "bytes": found.as_ref().ok(), "error": found.as_ref().err().map(ToString::to_string),
            })
        };
        let json = serde_json::to_string_pretty(&sized.map(entry).collect::<Vec<_>>()).map_err(Error::failed)?;
        return print(&format!("{json}\n"));
    }
    for (model, found) in sized {
        let (star, name, path) = (if model.used { '*' } else { ' ' }, &model.name, model.path.display());
        let line = match found {
            Ok(bytes) => format!("{star} {name:<24} {:>9.1} MB  {path}\n", bytes as f64 / 1e6),
            Err(error) => format!("{star} {name:<24} unusable: {error}\n"),
        };
        print(&line)?;
    }
    Ok(())
}

/// A directory of Hugging Face has no checksum: there the tensors are looked at.
fn verify(model: &Model) -> Result<(), Error> {
    if Source::open(&model.path).map_err(Error::failed)?.is_packed() {
        return pack::verify(&model.path);
    }
    Checkpoint::open(&model.path).map_err(Error::failed)?;
    print(&format!(
        "{}: every tensor is there and in its form; a directory carries no checksum of its bytes, a packed file does\n",
        model.path.display()
    ))
}

fn switch(choice: &Use) -> Result<(), Error> {
    let (config, store) = open(&choice.named.settings)?;
    let model = store.find(&choice.named.name).map_err(Error::failed)?;
    verify(&model)?;
    attempt(&config, &model.path).map_err(|reason| Error::Failed(format!("{}: not used: {reason}", model.name)))?;
    let old = store.point_to(&model.path).map_err(Error::failed)?;
    if choice.no_restart {
        return print(&format!("{}: in use from the daemon's next start on\n", model.name));
    }
    match restart(&choice.service) {
        Ok(true) => print(&format!("{}: in use\n", model.name)),
        Ok(false) => {
            print(&format!("{}: in use from the daemon's next start on; {} does not run\n", model.name, choice.service))
        }
        Err(reason) => {
            store.go_back(old.as_deref()).map_err(Error::failed)?;
            let back = old.as_deref().map_or_else(|| "no model".to_owned(), |old| old.display().to_string());
            let and_then = match restart(&choice.service) {
                Ok(_) => format!("back to {back}"),
                Err(again) => format!("back to {back}, with which it does not start either: {again}"),
            };
            Err(Error::Failed(format!(
                "{}: {} does not start with it ({reason}); {and_then}",
                model.name, choice.service
            )))
        }
    }
}

/// Loads the model as the daemon would, in this process, and lets it write a token.
fn attempt(config: &Config, path: &Path) -> Result<(), String> {
    let mut config = config.clone();
    config.model.path = PathBuf::from(path);
    // Neither measures nor keeps anything: the daemon does, when it is alone.
    (config.governor.calibrate, config.governor.lock_weights) = (false, false);
    config.governor.speeds_file = None;
    let mut backend = load(&config, &Handle::new(Decision::unlimited(1, 1)))?;
    let prompt = backend.encode(&Input::Raw("1".into())).map_err(|error| error.to_string())?;
    let one = Sampling { max_tokens: Some(1), temperature: Some(0.0), ..Sampling::default() };
    match backend.generate(&prompt, &one, &mut |_| ControlFlow::Continue(())) {
        Ok(_) => Ok(()),
        Err(GenerateError::Input(error)) => Err(error.to_string()),
        Err(GenerateError::Engine(reason)) => Err(reason),
    }
}

/// Restarts `service` if it runs or has failed, and waits until it is ready; whether it did.
fn restart(service: &str) -> Result<bool, String> {
    let state = Command::new("systemctl").args(["is-active", service]).stderr(Stdio::null()).output();
    let state = match state {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        // No service manager, so no service.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(format!("systemctl: {error}")),
    };
    if !["active", "activating", "reloading", "deactivating", "failed"].contains(&state.as_str()) {
        return Ok(false);
    }
    // What failed often enough may not be started otherwise; who has not failed makes this an error that means nothing.
    let _ = Command::new("systemctl").args(["reset-failed", service]).stderr(Stdio::null()).status();
    let status = Command::new("systemctl").args(["restart", service]).status();
    match status.map_err(|error| format!("systemctl: {error}"))? {
        status if status.success() => Ok(true),
        status => Err(format!("systemctl restart: {status}; `journalctl -u {service}` has the reason")),
    }
}
