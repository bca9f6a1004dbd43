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
pub mod summary;
pub mod synth;
pub mod weights;
pub mod widths;

use std::path::Path;

pub use config::{Config, Kind, LayerConfig, Rope};
pub use error::{CheckpointError, Problem};
pub use generation::GenerationDefaults;
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
    /// Opens the Hugging Face directory `dir`: `config.json`, `generation_config.json` if there is one, and
    /// `model.safetensors` or the shards that `model.safetensors.index.json` lists.
    ///
    /// # Errors
    ///
    /// A file is missing or broken, or a tensor that the text model uses is not as `config.json` says.
    pub fn open(dir: &Path) -> Result<Checkpoint, CheckpointError> {
        let kind = std::fs::metadata(dir).map_err(CheckpointError::io(dir, "open it"))?;
        if !kind.is_dir() {
            return Err(Problem::whole("a directory with config.json and model.safetensors", "a file").in_file(dir));
        }
        let file = dir.join("config.json");
        let config = Config::parse(&files::read_json(&file, fields::MAX_JSON)?).map_err(|p| p.in_file(&file))?;
        let file = dir.join("generation_config.json");
        // A link that leads nowhere is a file that is missing, not one that was never there.
        let generation = match std::fs::symlink_metadata(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => GenerationDefaults::without_file(&config),
            _ => GenerationDefaults::parse(&files::read_json(&file, fields::MAX_JSON)?, &config)
                .map_err(|p| p.in_file(&file))?,
        };
        let tensors = files::Tensors::open(dir)?;
        let prefix = load::prefix(&tensors);
        let weights = load::weights(&config, &tensors, prefix)?;
        Ok(Checkpoint { config, generation, weights, prefix, file_bytes: tensors.file_bytes() })
    }
}
