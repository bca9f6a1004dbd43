//! Flags of the commands that run a model themselves, and what these commands share.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use super::super::error::Error;
use crate::engine::checkpoint::source::Source;
use crate::engine::generate::Engine;
use crate::engine::kv_cache::KvKind;
use crate::engine::pack;
use crate::engine::runner::{Options, Runner};
use crate::engine::tokenizer::Tokenizer;

/// Form of the KV cache.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Kv {
    /// On the checkpoint's own int8 grids
    Int8,
    /// Not quantized
    F32,
}

/// A model and how to run it.
#[derive(Args)]
pub(super) struct RunModel {
    /// The model: a directory with config.json and model.safetensors, or a packed file
    #[arg(long, value_name = "MODEL")]
    pub(super) model: PathBuf,
    /// Form of the KV cache
    #[arg(long, value_enum, default_value = "int8")]
    kv: Kv,
    /// Threads that compute; 0 is one per CPU
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=256))]
    threads: u16,
    /// Instruction set: scalar, neon, neondot, avx2 or avx512vnni; the best one that the CPU has when absent
    #[arg(long, value_name = "NAME", env = "EMBERD_KERNELS")]
    kernels: Option<String>,
    /// Tokens that go through the layers together, 1 to 128
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=128))]
    batch: u16,
}

impl RunModel {
    pub(super) fn batch(&self) -> usize {
        self.batch.into()
    }

    /// The form of the KV cache, by its name.
    pub(super) fn kv(&self) -> &'static str {
        match self.kv {
            Kv::Int8 => "int8",
            Kv::F32 => "f32",
        }
    }

    /// Loads the model for `context` positions; 0 takes as many as it was made for.
    pub(super) fn load(&self, context: usize) -> Result<Runner, Error> {
        Runner::load(&self.model, &self.options(context)).map_err(Error::failed)
    }

    /// Loads the vocabulary alone.
    pub(super) fn tokenizer(&self) -> Result<Tokenizer, Error> {
        tokenizer(&self.model)
    }

    /// Loads the model with its tokenizer and its template.
    pub(super) fn engine(&self, context: usize) -> Result<Engine, Error> {
        Engine::load(&self.model, &self.options(context)).map_err(Error::failed)
    }

    fn options(&self, context: usize) -> Options {
        let kv = match self.kv {
            Kv::Int8 => KvKind::Int8,
            Kv::F32 => KvKind::F32,
        };
        let kernels = self.kernels.clone().filter(|name| !name.is_empty() && name != "auto");
        Options { kv, context, threads: self.threads.into(), kernels, batch: self.batch() }
    }
}

/// A progress bar over `total` tokens on standard error; it hides itself when that is no terminal.
pub(super) fn progress(total: usize) -> ProgressBar {
    bar(total, "{bar:40} {pos}/{len} tokens, {per_sec}, {eta} left {msg}")
}

/// As [`progress`], with a template of indicatif's.
pub(super) fn bar(total: usize, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template);
    let bar = ProgressBar::new(total as u64);
    if let Ok(style) = style { bar.with_style(style) } else { bar }
}

/// Reads the file `path`, at most `limit` bytes.
pub(super) fn read(path: &std::path::Path, limit: u64) -> Result<Vec<u8>, Error> {
    let failed = |error| Error::Failed(format!("{}: {error}", path.display()));
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > limit {
        return Err(Error::Failed(format!("{}: {size} bytes, at most {limit} are read", path.display())));
    }
    std::fs::read(path).map_err(failed)
}

/// Prints to standard output. When nobody reads it any more (`| head`), the command is over and well.
pub(super) fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Error::Unread),
        result => result.map_err(|error| Error::System("cannot write to standard output", error)),
    }
}

/// The vocabulary of the model at `path`.
pub(super) fn tokenizer(path: &Path) -> Result<Tokenizer, Error> {
    let source = Source::open(path).map_err(Error::failed)?;
    pack::tokenizer(&source).map_err(Error::failed)
}
