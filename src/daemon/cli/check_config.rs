//! `emberd check-config`.

use super::super::error::Error;
use super::settings::Settings;

/// Prints the merged configuration; whether a password is set, but not which.
pub(super) fn run(settings: &Settings) -> Result<(), Error> {
    let config = settings.load()?;
    let password = if config.mqtt.password()?.is_some() { "set" } else { "none" };
    config.mqtt.encryption()?;
    print!("{}", config.to_toml());
    println!("\n# node: {}, client id: {}, password: {password}", config.mqtt.node(), config.mqtt.client_id());
    Ok(())
}
