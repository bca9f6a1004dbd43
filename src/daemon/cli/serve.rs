//! `emberd serve`.

use super::super::error::Error;
use super::super::load::load;
use super::super::serve::serve;
use super::log::start_log;
use super::settings::Settings;

pub(super) fn run(settings: Settings) -> Result<(), Error> {
    let config = settings.load()?;
    let log = start_log(&config.log.level);
    let reread = move || settings.load().inspect(|config| log.set_level(&config.log.level));
    serve(config, Box::new(reread), load)
}
