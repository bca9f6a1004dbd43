//! A checkpoint on disk: parsed, checked, mapped and used in place.
//!
//! [`Checkpoint::open`] either returns weights of which every shape and every scale was checked, or an error that names
//! the file, the tensor, what was expected and what was found. Nothing after it looks at a file again.

pub mod config;
pub mod error;
mod fields;
pub mod files;
pub mod generation;
pub mod header;
pub mod inspect;
mod load;
pub mod names;
pub mod output;
pub mod source;
pub mod summary;
pub mod synth;
pub mod weights;
pub mod widths;

use std::path::Path;

pub use config::{Config, Kind, LayerConfig, Rope};
pub use error::{CheckpointError, Problem};
pub use generation::GenerationDefaults;
use source::Source;
pub use weights::{Bf16Matrix, KvWeights, LayerPle, LayerWeights, Linear, Ple, Table, Weights};

/// A checked checkpoint.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The architecture.
    pub config: Config,
    /// Where answers end and how tokens are drawn.
    pub generation: GenerationDefaults,
    /// The weights, in place.
    pub weights: Weights,
    /// Prefix of the text model's module names.
    pub prefix: &'static str,
    /// Bytes of the weight files, other modalities included.
    pub file_bytes: u64,
}

impl Checkpoint {
    /// Opens the model at `path`: a Hugging Face directory with `config.json`, `generation_config.json` if there is one, and
    /// `model.safetensors` or the shards that `model.safetensors.index.json` lists; or a packed file.
    ///
    /// # Errors
    ///
    /// A file is missing or broken, or a tensor that the text model uses is not as `config.json` says.
    pub fn open(path: &Path) -> Result<Checkpoint, CheckpointError> {
        Checkpoint::load(&Source::open(path)?)
    }

    /// As [`Checkpoint::open`], of a source that is open.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn load(source: &Source) -> Result<Checkpoint, CheckpointError> {
        let file = source.place("config.json");
        let text = match source.text("config.json", fields::MAX_JSON)? {
            Some(text) => text,
            None => files::read_text(&file, 0)?,
        };
        let config = Config::parse(&text).map_err(|p| p.in_file(&file))?;
        let generation = match source.text("generation_config.json", fields::MAX_JSON)? {
            None => GenerationDefaults::without_file(&config),
            Some(text) => GenerationDefaults::parse(&text, &config)
                .map_err(|p| p.in_file(&source.place("generation_config.json")))?,
        };
        let tensors = source.tensors()?;
        let prefix = names::prefix(|name| tensors.get(name).is_some());
        let weights = load::weights(&config, &tensors, prefix, source.is_packed())?;
        Ok(Checkpoint { config, generation, weights, prefix, file_bytes: tensors.file_bytes() })
    }
}
