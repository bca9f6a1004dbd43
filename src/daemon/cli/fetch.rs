//! `emberd fetch`: a checkpoint from where it is published, packed, beside the other models.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use tokio::runtime;

use super::super::error::Error;
use super::super::fetch::{self, Event, Order};
use super::super::models::Models;
use super::model::{print, read};
use super::pack::{advance, bytes_bar};
use super::settings::Settings;
use crate::engine::checkpoint::output;
use crate::engine::pack;

/// Longest file of a token, and of checksums.
const MAX_TOKEN: u64 = 4096;
const MAX_CHECKSUMS: u64 = 1 << 20;

#[derive(Args)]
#[command(
    after_help = "What was cut off is gone on with by the same command. Where the server sends parts of files, only the \
                        text model's tensors are fetched; --whole fetches everything and compares it with the SHA-256 that the \
                        server or --checksums has. The packed model is the same either way: --expect compares it with the \
                        checksum that `emberd verify` says where it was made."
)]
pub(super) struct Fetch {
    /// Repository, OWNER/NAME
    #[arg(value_name = "REPOSITORY", default_value = fetch::REPOSITORY, value_parser = repository)]
    repository: String,
    /// Branch, tag or commit
    #[arg(long, value_name = "REVISION", default_value = "main", value_parser = revision)]
    revision: String,
    /// Name of the model in `emberd model list`; the repository's when absent
    #[arg(long, value_name = "NAME", value_parser = plain)]
    name: Option<String>,
    /// Write the packed model to this file instead of the directory of models
    #[arg(long, value_name = "FILE", conflicts_with = "name")]
    to: Option<PathBuf>,
    /// Replace a model of this name
    #[arg(long)]
    force: bool,
    /// A server that keeps files as Hugging Face does
    #[arg(long, value_name = "URL", default_value = fetch::BASE)]
    base_url: String,
    /// File with a token for repositories that want one; it is sent to the server at --base-url only
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM file of the certificate authorities to trust; the system's when absent
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Bytes a second at most, such as 500k or 2M
    #[arg(long, value_name = "RATE", value_parser = rate)]
    limit_rate: Option<u64>,
    /// Fetch whole files, images and sounds included, so that their checksums can be compared
    #[arg(long)]
    whole: bool,
    /// File of checksums as sha256sum writes it; those of weights need --whole
    #[arg(long, value_name = "FILE")]
    checksums: Option<PathBuf>,
    /// SHA-256 that the packed model has to have
    #[arg(long, value_name = "SHA256", value_parser = sha256)]
    expect: Option<String>,
    /// Directory for what is fetched until it is packed; beside the model when absent
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(args: &Fetch) -> Result<(), Error> {
    let name = args.name.as_deref().or(args.repository.split('/').next_back()).unwrap_or_default();
    let to = match &args.to {
        Some(to) => to.clone(),
        None => Models::new(&args.settings.load()?.model.path).packed(name),
    };
    if to.exists() && !args.force {
        return Err(Error::Failed(format!("{}: is there already; --force replaces it", to.display())));
    }
    let order = Order {
        base: args.base_url.trim_end_matches('/').to_owned(),
        repository: args.repository.clone(),
        revision: args.revision.clone(),
        token: args.token_file.as_deref().map(token).transpose()?,
        ca: args.ca_file.clone(),
        rate: args.limit_rate,
        whole: args.whole,
        checksums: args.checksums.as_deref().map(checksums).transpose()?.unwrap_or_default(),
    };
    if !args.whole && order.checksums.keys().any(|name| name.ends_with(".safetensors")) {
        let reason = "a checksum of weights can be compared with the whole file only: add --whole, or take --expect";
        return Err(Error::Usage(reason.to_owned()));
    }
    let file_name = to.file_name().ok_or_else(|| Error::Usage(format!("{}: expected a file", to.display())))?;
    let hidden = format!(".{}.fetch", file_name.to_string_lossy());
    let dir = args.work_dir.clone().unwrap_or_else(|| to.with_file_name("")).join(hidden);
    // Held until the end: two at once would write into the same files.
    let _lock = private(&dir)?;

    let bar = bytes_bar();
    let mut tell = |event: Event<'_>| match event {
        Event::Bytes { done, total } => advance(&bar, done, total),
        Event::File { name, bytes, checked } => {
            bar.suspend(|| eprintln!("{name}: {:.1} MB, {checked}", bytes as f64 / 1e6));
        }
        Event::Again { reason, wait } => {
            bar.suspend(|| eprintln!("emberd: {reason}; trying again in {:.1} s", wait.as_secs_f64()));
        }
    };
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::System("cannot start", error))?;
    let fetched = runtime.block_on(fetch::fetch(&order, &dir, &mut tell));
    bar.finish_and_clear();
    fetched.map_err(Error::failed)?;

    // Packed where nobody else writes, and then moved: the file system may be another one, for which the directory is made.
    let packed = dir.join(file_name);
    let bar = bytes_bar();
    let size = pack::pack(&dir, &packed, &mut |done, total| advance(&bar, done, total));
    let sum = size.and_then(|size| Ok((size, pack::verify(&packed, &mut |done, total| advance(&bar, done, total))?)));
    bar.finish_and_clear();
    let (size, sum) = sum.map_err(Error::failed)?;
    if let Some(expected) = args.expect.as_ref().filter(|expected| **expected != sum) {
        remove(&dir)?;
        let found = format!("{}: packed, its SHA-256 is {sum}, expected {expected}; it was deleted", to.display());
        return Err(Error::Failed(found));
    }
    publish(&packed, &to).map_err(|error| Error::Failed(format!("{}: cannot write it: {error}", to.display())))?;
    remove(&dir)?;
    let next = if args.to.is_some() { String::new() } else { format!("; `emberd model use {name}` lets it answer") };
    print(&format!("{}: {:.1} MB, SHA-256 {sum}{next}\n", to.display(), size as f64 / 1e6))
}

/// Makes `dir` for this user alone, and locks it.
fn private(dir: &Path) -> Result<File, Error> {
    let failed = |error| Error::Failed(format!("{}: cannot use it: {error}", dir.display()));
    let made = fs::DirBuilder::new().mode(0o700).recursive(false).create(dir);
    if let Err(error) = made.or_else(|error| if dir.is_dir() { Ok(()) } else { Err(error) }) {
        return Err(failed(error));
    }
    let found = fs::symlink_metadata(dir).map_err(failed)?;
    // Files that somebody else can exchange would be written through.
    if !found.is_dir() || found.uid() != nix::unistd::geteuid().as_raw() {
        return Err(Error::Failed(format!("{}: belongs to another user; remove it", dir.display())));
    }
    let lock = File::create(dir.join("lock")).map_err(failed)?;
    lock.try_lock().map_err(|_| Error::Failed(format!("{}: another fetch is at work there", dir.display())))?;
    Ok(lock)
}

/// Moves the packed model to its place; by a copy, where that is another file system.
fn publish(packed: &Path, to: &Path) -> std::io::Result<()> {
    match fs::rename(packed, to) {
        Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
            output::atomically(to, |out| std::io::copy(&mut File::open(packed)?, out).map(drop))?;
        }
        result => {
            result?;
            output::sync_entry(to)?;
        }
    }
    // For the daemon to read, whatever the umask.
    fs::set_permissions(to, fs::Permissions::from_mode(0o644))
}

fn remove(dir: &Path) -> Result<(), Error> {
    fs::remove_dir_all(dir).map_err(|error| Error::Failed(format!("{}: cannot remove it: {error}", dir.display())))
}

/// The token in a file of one line that others cannot read.
fn token(path: &Path) -> Result<String, Error> {
    let refused = |reason: &str| Error::Failed(format!("{}: {reason}", path.display()));
    let text = String::from_utf8(read(path, MAX_TOKEN)?).map_err(|_| refused("expected a token in ASCII"))?;
    let mode = fs::metadata(path).map_err(|error| refused(&error.to_string()))?.mode();
    if mode & 0o007 != 0 {
        return Err(refused("everybody may read it; chmod 600"));
    }
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(refused("expected one token without spaces"));
    }
    Ok(token.to_owned())
}

/// Checksums by file name.
fn checksums(path: &Path) -> Result<HashMap<String, String>, Error> {
    let text = String::from_utf8_lossy(&read(path, MAX_CHECKSUMS)?).into_owned();
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            let parts = line.split_once(' ').and_then(|(sum, name)| Some((sha256(sum).ok()?, name)));
            let (sum, name) = parts.ok_or_else(|| {
                Error::Failed(format!("{}, line {}: expected SHA-256 and name", path.display(), number + 1))
            })?;
            Ok((name.trim_start_matches([' ', '*']).trim_start_matches("./").to_owned(), sum))
        })
        .collect()
}

fn plain(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let plain = !text.is_empty() && text.len() <= 128 && text.chars().all(good) && !text.starts_with('.');
    if plain { Ok(text.to_owned()) } else { Err("expected letters, digits, '.', '_' and '-'".to_owned()) }
}

fn repository(text: &str) -> Result<String, String> {
    match text.split('/').map(plain).collect::<Result<Vec<_>, _>>() {
        Ok(parts) if parts.len() == 2 => Ok(text.to_owned()),
        _ => Err("expected OWNER/NAME".to_owned()),
    }
}

fn revision(text: &str) -> Result<String, String> {
    text.split('/').map(plain).collect::<Result<Vec<_>, _>>()?;
    Ok(text.to_owned())
}

fn sha256(text: &str) -> Result<String, String> {
    let good = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if good { Ok(text.to_ascii_lowercase()) } else { Err("expected 64 hexadecimal digits".to_owned()) }
}

fn rate(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1_000),
        None => match text.strip_suffix('M') {
            Some(digits) => (digits, 1_000_000),
            None => (text, 1),
        },
    };
    let rate = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).filter(|rate| *rate >= 1_000);
    rate.ok_or_else(|| "expected bytes a second, 1k or more, such as 500k or 2M".to_owned())
}
