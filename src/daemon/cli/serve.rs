//! `emberd serve`.

use super::super::{Error, load, serve};
use super::{Settings, start_log};

pub(super) fn run(settings: &Settings) -> Result<(), Error> {
    let config = settings.load()?;
    start_log(&config.log.level);
    serve(config, load::load)
}
