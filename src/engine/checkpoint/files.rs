//! The files of a checkpoint, mapped read-only: one `model.safetensors`, or shards and their index.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::error::{CheckpointError, Problem, quote};
use super::header::{self, Entry, Header, Metadata};
use crate::engine::bytes::{self, Bytes, Mapping};

/// The one file of a checkpoint that is not sharded.
pub const MODEL_FILE: &str = "model.safetensors";

/// Names the shard of every tensor.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Most shards of a checkpoint.
const MAX_SHARDS: usize = 512;

/// Longest index that is read; a parsed one takes up to ten times its text.
const MAX_INDEX: usize = 8 << 20;

/// A tensor of the checkpoint, in place.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    /// The file that holds it.
    pub file: &'a Path,
    /// Type, shape and place.
    pub entry: &'a Entry,
    /// Its data.
    pub bytes: Bytes,
}

/// All tensors of a checkpoint by name.
#[derive(Clone, Debug)]
pub struct Tensors {
    /// What a missing tensor is missing from: the model file or the index.
    root: PathBuf,
    shards: Vec<Shard>,
    shard_of: HashMap<String, usize>,
}

#[derive(Clone, Debug)]
struct Shard {
    path: PathBuf,
    map: Arc<Mapping>,
    entries: HashMap<String, Entry>,
}

impl Tensors {
    /// Maps the weights in `dir` and reads their headers.
    ///
    /// # Errors
    ///
    /// Neither `model.safetensors` nor an index is there, a shard is missing, or a header is refused.
    pub fn open(dir: &Path) -> Result<Tensors, CheckpointError> {
        let single = dir.join(MODEL_FILE);
        let index = dir.join(INDEX_FILE);
        if single.exists() || !index.exists() {
            return Ok(Tensors::packed(&single)?.1);
        }
        let map = parse_index(&read_text(&index, MAX_INDEX)?).map_err(|p| p.in_file(&index))?;
        let mut tensors = Tensors { root: index, shards: Vec::new(), shard_of: HashMap::new() };
        let mut number_of = HashMap::new();
        for (tensor, file) in map {
            let number = match number_of.get(&file) {
                Some(&number) => number,
                None => {
                    tensors.shards.push(Shard::open(dir.join(&file))?.1);
                    number_of.insert(file, tensors.shards.len() - 1);
                    tensors.shards.len() - 1
                }
            };
            let shard = &tensors.shards[number];
            if !shard.entries.contains_key(&tensor) {
                let expected = format!("in this file, as {INDEX_FILE} says");
                return Err(Problem::at(quote(&tensor), expected, "no such tensor").in_file(&shard.path));
            }
            tensors.shard_of.insert(tensor, number);
        }
        Ok(tensors)
    }

    /// Maps the one file `path` and reads its header; also what it says about itself.
    ///
    /// # Errors
    ///
    /// It cannot be read, or its header is refused.
    pub fn packed(path: &Path) -> Result<(Metadata, Tensors), CheckpointError> {
        let (metadata, shard) = Shard::open(path.to_owned())?;
        let shard_of = shard.entries.keys().map(|name| (name.clone(), 0)).collect();
        Ok((metadata, Tensors { root: path.to_owned(), shards: vec![shard], shard_of }))
    }

    /// The tensor `name`, if the checkpoint has it.
    pub fn get(&self, name: &str) -> Option<Tensor<'_>> {
        let shard = &self.shards[*self.shard_of.get(name)?];
        let entry = shard.entries.get(name)?;
        let bytes = Bytes::mapped(&shard.map, entry.start..entry.start + entry.len);
        Some(Tensor { file: &shard.path, entry, bytes })
    }

    /// The names of all tensors, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.shard_of.keys().map(String::as_str)
    }

    /// The file to name when a tensor is missing.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Bytes of all weight files together.
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.map.len() as u64).sum()
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<(Metadata, Shard), CheckpointError> {
        let file = open_regular(&path)?;
        let len = file.metadata().map_err(CheckpointError::io(&path, "read its size"))?.len();
        if len == 0 {
            return Err(Problem::whole("a safetensors file", "an empty file").in_file(&path));
        }
        let map = bytes::map(file).map_err(CheckpointError::io(&path, "map it"))?;
        let Header { entries, metadata } = header::parse(&map).map_err(|p| p.in_file(&path))?;
        Ok((metadata, Shard { path, map, entries }))
    }
}

/// Opens `path` if it is a regular file; a FIFO would block, and a device has no length.
fn open_regular(path: &Path) -> Result<File, CheckpointError> {
    let kind = fs::metadata(path).map_err(CheckpointError::io(path, "open it"))?;
    if !kind.is_file() {
        return Err(Problem::whole("a regular file", "a directory or a special file").in_file(path));
    }
    File::open(path).map_err(CheckpointError::io(path, "open it"))
}

/// The text of a file of at most `max` bytes.
///
/// # Errors
///
/// The file is missing, not regular, too long or not UTF-8.
pub(super) fn read_text(path: &Path, max: usize) -> Result<String, CheckpointError> {
    let file = open_regular(path)?;
    let mut text = Vec::new();
    file.take(max as u64 + 1).read_to_end(&mut text).map_err(CheckpointError::io(path, "read it"))?;
    if text.len() > max {
        return Err(Problem::whole(format!("at most {max} bytes of text"), "more").in_file(path));
    }
    String::from_utf8(text).map_err(|e| {
        Problem::whole("text in UTF-8", format!("a byte at {} that is not", e.utf8_error().valid_up_to())).in_file(path)
    })
}

/// The pairs of tensor and shard in an index file.
///
/// # Errors
///
/// The JSON is broken, a shard is not a plain file name, or there are too many of them.
pub fn parse_index(json: &str) -> Result<HashMap<String, String>, Problem> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let index: Index = serde_json::from_str(json)
        .map_err(|e| Problem::whole("JSON with a weight_map from tensor to file", quote(&e.to_string())))?;
    let mut shards = HashSet::new();
    for (tensor, file) in &index.weight_map {
        let plain = !file.is_empty() && !file.contains(['/', '\\', '\0']) && !file.starts_with('.');
        if !plain || file.len() > 255 {
            return Err(Problem::at(
                format!("weight_map.{}", quote(tensor)),
                "the plain name of a file in the same directory",
                format!("`{}`", quote(file)),
            ));
        }
        shards.insert(file);
    }
    if shards.len() > MAX_SHARDS {
        return Err(Problem::at("weight_map", format!("at most {MAX_SHARDS} files"), shards.len().to_string()));
    }
    Ok(index.weight_map)
}
