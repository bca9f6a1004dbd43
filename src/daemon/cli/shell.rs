//! `emberd completions` and `emberd man`: what a package installs beside the binary.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;

use super::super::error::Error;
use super::model::print;

#[derive(Args)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Args)]
pub(super) struct Man {
    /// Directory to write to, one page for every command
    #[arg(value_name = "DIR")]
    out: PathBuf,
}

pub(super) fn completions(args: &Completions, mut command: Command) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "emberd", &mut script);
    print(&String::from_utf8_lossy(&script))
}

pub(super) fn man(args: &Man, mut command: Command) -> Result<(), Error> {
    let failed = |error| Error::Failed(format!("{}: {error}", args.out.display()));
    std::fs::create_dir_all(&args.out).map_err(failed)?;
    // Gives every command its full name, as in `emberd-debug-logits`.
    command.build();
    pages(&command, &args.out).map_err(failed)
}

fn pages(command: &Command, out: &Path) -> io::Result<()> {
    // clap adds its `help` to every command; that needs no page.
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
        pages(inner, out)?;
    }
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let version = concat!("emberd ", env!("CARGO_PKG_VERSION"));
    let page = clap_mangen::Man::new(command.clone()).title(name.to_uppercase()).source(version).manual("emberd");
    let mut text = Vec::new();
    page.render(&mut text)?;
    std::fs::write(out.join(format!("{name}.1")), text)
}
