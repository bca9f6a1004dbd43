//! Where a model lies: a Hugging Face directory, or one packed file.
//!
//! A packed file is a safetensors file with the text model's tensors as they are in the directory, those of a page or more at
//! multiples of [`ALIGN`], and the codes of projections in the layout that [`Layout::of`] names. The directory's texts stand in its metadata under the names of their files, and the tokenizer in tensors of
//! its own, as it is used. `emberd pack` writes it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::error::{CheckpointError, Problem};
use super::files::{self, Tensors};
use super::header::Metadata;
use crate::engine::bytes::Bytes;
#[cfg(doc)]
use crate::kernels::contract::Layout;

/// Where tensors of that size begin in a packed file: the largest page that a Pi's kernel uses.
pub const ALIGN: u64 = 16 << 10;

/// `format` in the metadata of a packed file.
pub const FORMAT: &str = "ember";

/// `version` in the metadata; another one is refused.
pub const VERSION: &str = "2";

/// Starts the names of tensors that are not the model's.
pub const OWN: &str = "ember.";

/// A model on disk.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    packed: Option<(Metadata, Tensors)>,
}

impl Source {
    /// A directory is looked into later; of a packed file the header is read and checked.
    ///
    /// # Errors
    ///
    /// There is nothing at `path`, or a file that is not a packed model of this version.
    pub fn open(path: &Path) -> Result<Source, CheckpointError> {
        let kind = std::fs::metadata(path).map_err(CheckpointError::io(path, "open it"))?;
        if kind.is_dir() {
            return Ok(Source { path: path.to_owned(), packed: None });
        }
        let refuse = |problem: Problem| problem.in_file(path);
        let expected = "a directory with config.json and model.safetensors, or a file that `emberd pack` wrote";
        let (metadata, tensors) = Tensors::packed(path).map_err(|error| match error {
            CheckpointError::Invalid { problem, .. }
                if problem.place.as_ref().is_none_or(|place| place.starts_with("header")) =>
            {
                refuse(Problem::whole(expected, format!("something else or less ({problem})")))
            }
            other => other,
        })?;
        match (metadata.get("format").map(String::as_str), metadata.get("version").map(String::as_str)) {
            (Some(FORMAT), Some(VERSION)) => Ok(Source { path: path.to_owned(), packed: Some((metadata, tensors)) }),
            (Some(FORMAT), version) => {
                let found = version.map_or("none".to_owned(), super::error::quote);
                let expected = format!("{VERSION}, which this emberd reads; pack the checkpoint again");
                Err(refuse(Problem::at("version", expected, found)))
            }
            _ => Err(refuse(Problem::whole(expected, "another safetensors file"))),
        }
    }

    /// The directory or the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is one file.
    pub fn is_packed(&self) -> bool {
        self.packed.is_some()
    }

    /// What messages call the text `name`.
    pub fn place(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The text `name`, as in `config.json`; `None` when the model has none.
    ///
    /// # Errors
    ///
    /// It is there and cannot be read, is no UTF-8, or has more than `max` bytes.
    pub fn text(&self, name: &str, max: usize) -> Result<Option<String>, CheckpointError> {
        let file = self.place(name);
        match &self.packed {
            Some((metadata, _)) => match metadata.get(name) {
                Some(text) if text.len() > max => {
                    Err(Problem::whole(format!("at most {max} bytes"), text.len().to_string()).in_file(&file))
                }
                text => Ok(text.cloned()),
            },
            // A link that leads nowhere is a file that is missing, not one that was never there.
            None => match std::fs::symlink_metadata(&file) {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                _ => files::read_text(&file, max).map(Some),
            },
        }
    }

    /// The data of the packed file's own tensor `name`.
    pub fn section(&self, name: &str) -> Option<Bytes> {
        self.packed.as_ref()?.1.get(&format!("{OWN}{name}")).map(|tensor| tensor.bytes)
    }

    /// The weights.
    ///
    /// # Errors
    ///
    /// As [`Tensors::open`].
    pub fn tensors(&self) -> Result<Tensors, CheckpointError> {
        match &self.packed {
            Some((_, tensors)) => Ok(tensors.clone()),
            None => Tensors::open(&self.path),
        }
    }
}
