//! `emberd serve`.

use super::super::error::Error;
use super::super::load::load;
use super::super::serve::serve;
use super::log::start_log;
use super::settings::Settings;

pub(super) fn run(settings: &Settings) -> Result<(), Error> {
    let config = settings.load()?;
    start_log(&config.log.level);
    serve(config, load)
}
