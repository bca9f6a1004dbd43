//! `emberd check-config`.

use clap::Args;

use super::super::error::Error;
use super::model::print;
use super::settings::Settings;

#[derive(Args)]
pub(super) struct CheckConfig {
    #[command(flatten)]
    settings: Settings,
    /// Print nothing but what is wrong
    #[arg(long, short)]
    quiet: bool,
}

/// Prints the merged configuration; whether a password is set, but not which.
pub(super) fn run(check: &CheckConfig) -> Result<(), Error> {
    let config = check.settings.load()?;
    let password = if config.mqtt.password()?.is_some() { "set" } else { "none" };
    config.mqtt.encryption()?;
    if check.quiet {
        return Ok(());
    }
    let (node, client) = (config.mqtt.node(), config.mqtt.client_id());
    print(&format!("{}\n# node: {node}, client id: {client}, password: {password}\n", config.to_toml()))
}
