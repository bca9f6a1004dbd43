//! `emberd pack` and `emberd verify`: one file of a checkpoint.

use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::super::error::Error;
use super::model::print;
use crate::engine::pack;

#[derive(Args)]
pub(super) struct Pack {
    /// Directory with config.json, model.safetensors (or its shards), tokenizer.json and chat_template.jinja
    #[arg(value_name = "DIR")]
    from: PathBuf,
    /// File to write, customarily NAME.ember
    #[arg(value_name = "FILE")]
    to: PathBuf,
    /// Replace FILE if it is there
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
pub(super) struct Verify {
    /// File that `emberd pack` wrote
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
}

pub(super) fn run(args: &Pack) -> Result<(), Error> {
    if args.to.exists() && !args.force {
        return Err(Error::Failed(format!("{}: is there already; --force replaces it", args.to.display())));
    }
    let bar = bytes_bar();
    let size = pack::pack(&args.from, &args.to, &mut |done, total| advance(&bar, done, total));
    bar.finish_and_clear();
    print(&format!("{}: {:.1} MB\n", args.to.display(), size.map_err(Error::failed)? as f64 / 1e6))
}

pub(super) fn verify(file: &Path) -> Result<(), Error> {
    let bar = bytes_bar();
    let found = pack::verify(file, &mut |done, total| advance(&bar, done, total));
    bar.finish_and_clear();
    print(&format!("{}: as it was written, SHA-256 {}\n", file.display(), found.map_err(Error::failed)?))
}

/// Shows bytes on standard error when that is a terminal.
pub(super) fn bytes_bar() -> ProgressBar {
    const TEMPLATE: &str = "{bytes} of {total_bytes} {wide_bar} {bytes_per_sec}, {eta}";
    let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

pub(super) fn advance(bar: &ProgressBar, done: u64, total: u64) {
    bar.set_length(total);
    bar.set_position(done);
}
