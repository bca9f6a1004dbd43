//! `emberd inspect`: what a checkpoint is and what serving it takes.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;

use super::super::error::Error;
use super::model::print;
use crate::engine::checkpoint::Checkpoint;
use crate::engine::checkpoint::inspect::Report;
use crate::engine::checkpoint::summary::Summary;
use crate::governor::Work;
use crate::governor::sensors::Sensors;

#[derive(Args)]
pub(super) struct Inspect {
    /// The model: a directory with config.json and model.safetensors, or a packed file
    #[arg(value_name = "MODEL")]
    dir: PathBuf,
    /// Tokens that prompt and answer share
    #[arg(long, value_name = "N", default_value_t = 4096)]
    context: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(inspect: &Inspect) -> Result<(), Error> {
    let checkpoint = Checkpoint::open(&inspect.dir).map_err(Error::failed)?;
    let most = checkpoint.config.max_position_embeddings;
    if inspect.context > most {
        return Err(Error::Usage(format!("--context {}: this model was made for at most {most}", inspect.context)));
    }
    let sample = Sensors::new(Path::new("/"), 1).read(Instant::now(), Work::default());
    let available = sample.memory.map(|memory| memory.available);
    let report = Report::new(
        Summary::new(&checkpoint.config, checkpoint.prefix),
        checkpoint.file_bytes,
        inspect.context,
        available,
    );
    if inspect.json {
        let json = serde_json::to_string_pretty(&report).map_err(Error::failed)?;
        print(&format!("{json}\n"))
    } else {
        print(&report.to_string())
    }
}
