//! A checkpoint as one file that is mapped and used in place: [`pack`] writes it, [`verify`] checks it.
//!
//! [`super::checkpoint::source`] has the format. The order of the tensors is that of their use: first what is read at the
//! start, then the weights of every token, layer by layer, then the tokenizer, and last the tables, of which a token needs a
//! row each. The last 32 bytes are the SHA-256 of all bytes before them.

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::bytes::Bytes;
use super::checkpoint::error::{CheckpointError, Problem};
use super::checkpoint::header::Dtype;
use super::checkpoint::source::{ALIGN, FORMAT, OWN, Source, VERSION};
use super::checkpoint::{Checkpoint, names, output};
use super::pinned;
use super::template::{self, ChatTemplate, TemplateError};
use super::tokenizer::{Tokenizer, TokenizerError};
use crate::kernels::contract::{GROUP, Layout};

/// Name of the checksum's tensor, after [`OWN`].
const CHECKSUM: &str = "sha256";

/// Name of the tokenizer's metadata.
const TOKENIZER: &str = "tokenizer";

/// Texts of a directory that a packed file carries.
const TEXTS: [&str; 4] = ["config.json", "generation_config.json", template::TEMPLATE, template::CONFIG];

/// Longest of them.
const MAX_TEXT: usize = 4 << 20;

/// Bytes that are hashed and handed on at a time.
const PIECE: usize = 1 << 20;

/// Bytes that reach the file system at once, at multiples of as many: a huge page. What is written so stays in the page cache in one
/// piece where kernel and file system can do that (ext4 since 6.16), and one entry of a page table maps it. On two virtual cores of a
/// Zen 5 such a file was read by a quarter faster than one in pages of 4 KiB, and decoding gained a tenth.
const BLOCK: usize = 2 << 20;

/// Bytes after which writing waits for the disk. Without that a slow one would take them all at once, in the end, while who
/// watches the progress hears nothing; and they would fill the memory meanwhile.
const SYNC: u64 = 16 << 20;

/// Small tensors begin at multiples of a cache line, the others at pages.
const LINE: u64 = 64;

/// Why a checkpoint cannot be packed or a packed file not be used.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The checkpoint or the packed file.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The vocabulary.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The file system is too full.
    #[error("{}: the packed model takes {needed} MB, and its file system has {free} MB free", path.display())]
    Space {
        /// The file that was to be written.
        path: PathBuf,
        /// What it takes.
        needed: u64,
        /// What there is.
        free: u64,
    },
    /// The file cannot be written or read.
    #[error("{}: cannot {action} it: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The packed file is not what was written.
    #[error("{}: damaged: its SHA-256 is {found}, and it says {expected}; pack the checkpoint again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it says.
        expected: String,
        /// What it is.
        found: String,
    },
}

/// The tokenizer of `source`.
///
/// # Errors
///
/// It is missing or refused.
pub fn tokenizer(source: &Source) -> Result<Tokenizer, PackError> {
    if !source.is_packed() {
        return Ok(Tokenizer::load(&source.place("tokenizer.json"))?);
    }
    let names = source.text(TOKENIZER, usize::MAX)?.unwrap_or_default();
    let refused = |found| Problem::whole("the tables of a tokenizer", found).in_file(source.path());
    let section = |name: &str| source.section(name).inspect(Bytes::map_in_small_pages);
    Ok(Tokenizer::from_sections(&names, section).map_err(refused)?)
}

/// The chat template of `source`.
///
/// # Errors
///
/// It is refused.
pub fn chat_template(source: &Source) -> Result<ChatTemplate, PackError> {
    if !source.is_packed() {
        return Ok(ChatTemplate::load(source.path())?);
    }
    let text = |name| source.text(name, MAX_TEXT);
    Ok(ChatTemplate::from_texts(source.path(), text(template::TEMPLATE)?, text(template::CONFIG)?)?)
}

/// Hexadecimal digits of a [`fingerprint`].
pub const FINGERPRINT: usize = 16;

/// Tells the files of the directory `source` from what they were before, and from another model's, without reading all of
/// them: what [`pinned::identity`] has of the weights, and size and time of the other files.
///
/// # Errors
///
/// A file cannot be looked at.
pub fn fingerprint(source: &Source) -> Result<String, PackError> {
    let mut hash = Sha256::new();
    hash.update(pinned::identity(source)?);
    hash.update(VERSION);
    for name in TEXTS.iter().chain(&["tokenizer.json"]) {
        let place = source.place(name);
        match std::fs::metadata(&place) {
            Ok(file) => hash.update(format!("{name} {} {} {}\n", file.len(), file.mtime(), file.mtime_nsec())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error(&place, "look at")(error)),
        }
    }
    Ok(hex(&hash.finalize())[..FINGERPRINT].to_owned())
}

/// A tensor of the file.
struct Planned {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    data: Bytes,
    /// How it is written; it is read in rows.
    layout: Layout,
}

impl Planned {
    /// Gives `write` all of it, about [`PIECE`] bytes at a time.
    fn pieces(&self, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let (Layout::Groups, &[_, row]) = (self.layout, self.shape.as_slice()) else {
            return self.data.chunks(PIECE).try_for_each(write);
        };
        let mut groups = vec![0; (PIECE / (GROUP * row)).max(1) * GROUP * row];
        self.data.chunks(groups.len()).try_for_each(|rows| {
            let groups = &mut groups[..rows.len()];
            Layout::group(rows, row, groups);
            write(groups)
        })
    }
}

/// Packs the checkpoint in the directory `from` into the file `to`, which appears complete or not at all; the same checkpoint
/// gives the same bytes. `progress` hears how many bytes of how many are done; the latest may not be in the file yet. Returns
/// the size.
///
/// # Errors
///
/// The checkpoint is refused, it is packed already, or the file cannot be written.
pub fn pack(from: &Path, to: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<u64, PackError> {
    let source = Source::open(from)?;
    if source.is_packed() {
        return Err(Problem::whole("the directory of a checkpoint", "a packed model").in_file(from).into());
    }
    let checkpoint = Checkpoint::load(&source)?;
    let tokenizer = tokenizer(&source)?;
    chat_template(&source)?;

    let mut metadata = Map::new();
    metadata.insert("format".into(), FORMAT.into());
    metadata.insert("version".into(), VERSION.into());
    for name in TEXTS {
        if let Some(text) = source.text(name, MAX_TEXT)? {
            metadata.insert(name.into(), text.into());
        }
    }
    let (tables, names) = tokenizer.sections();
    metadata.insert(TOKENIZER.into(), names.into());

    let tensors = weights(&source, &checkpoint)?;
    let tables = tables.into_iter().map(|(name, data)| Planned {
        name: format!("{OWN}{name}"),
        dtype: "U8",
        shape: vec![data.len()],
        data: data.to_vec().into(),
        layout: Layout::Rows,
    });
    let (hot, lookups): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|tensor| rank(&tensor.name).0 < TABLES);
    let plan = aligned(hot.into_iter().chain(tables).chain(lookups));

    let mut head = Vec::new();
    let entries = plan.iter().map(|t| (t.name.as_str(), t.dtype, t.shape.as_slice(), t.data.len() as u64));
    let checksum = format!("{OWN}{CHECKSUM}");
    let entries = entries.chain([(checksum.as_str(), "U8", [32].as_slice(), 32)]);
    output::header(Value::Object(metadata), ALIGN, entries, &mut head).map_err(io_error(to, "write"))?;
    let total = head.len() as u64 + plan.iter().map(|t| t.data.len() as u64).sum::<u64>() + 32;
    check_space(to, total)?;

    output::atomically(to, |out| {
        let (mut hash, mut done, mut synced) = (Sha256::new(), 0, 0);
        let mut blocks = output::Blocks::new(out, BLOCK);
        let mut write = |piece: &[u8]| {
            hash.update(piece);
            blocks.write(piece)?;
            done += piece.len() as u64;
            if done - synced >= SYNC {
                blocks.out.flush()?;
                blocks.out.get_ref().sync_data()?;
                synced = done;
            }
            progress(done, total);
            Ok(())
        };
        write(&head)?;
        plan.iter().try_for_each(|tensor| tensor.pieces(&mut write))?;
        blocks.write(&hash.finalize())?;
        blocks.finish()?;
        progress(total, total);
        Ok(())
    })
    .map_err(io_error(to, "write"))?;
    Ok(total)
}

/// Reads all of the packed file `path` and compares it with its checksum, which is returned in hexadecimal.
///
/// # Errors
///
/// It cannot be read, is no packed model, or is not as it was written.
pub fn verify(path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<String, PackError> {
    let source = Source::open(path)?;
    let expected = source.section(CHECKSUM).filter(|sum| sum.len() == 32);
    let missing = || Problem::whole("a packed model with a checksum", "none").in_file(path);
    let expected = hex(&expected.ok_or_else(missing)?);
    let mut file = std::fs::File::open(path).map_err(io_error(path, "read"))?;
    let total = file.metadata().map_err(io_error(path, "read"))?.len();
    let (mut hash, mut left, mut piece) = (Sha256::new(), total.saturating_sub(32), vec![0; PIECE]);
    while left > 0 {
        let piece = &mut piece[..left.min(PIECE as u64) as usize];
        io::Read::read_exact(&mut file, piece).map_err(io_error(path, "read"))?;
        hash.update(&*piece);
        left -= piece.len() as u64;
        progress(total - left, total);
    }
    let found = hex(&hash.finalize());
    if found != expected {
        return Err(PackError::Damaged { path: path.to_owned(), expected, found });
    }
    Ok(found)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> PackError {
    move |source| PackError::Io { path: path.to_owned(), action, source }
}

/// The tensors that the text model uses, in the order of the file.
fn weights(source: &Source, checkpoint: &Checkpoint) -> Result<Vec<Planned>, PackError> {
    let tensors = source.tensors()?;
    let mut used: Vec<&str> =
        tensors.names().filter(|name| names::is_used(&checkpoint.config, checkpoint.prefix, name)).collect();
    used.sort_unstable_by_key(|name| (rank(name), *name));
    let planned = used.into_iter().filter_map(|name| {
        let tensor = tensors.get(name)?;
        let (dtype, shape) = (tensor.entry.dtype.name(), tensor.entry.shape.clone());
        // Codes of projections: the kernels read them by groups. Those of embeddings have another name.
        let layout = match (tensor.entry.dtype, shape.as_slice()) {
            (Dtype::U8 | Dtype::I8, &[rows, bytes]) if name.ends_with(".weight") => Layout::of(rows, bytes),
            _ => Layout::Rows,
        };
        Some(Planned { name: name.to_owned(), dtype, shape, data: tensor.bytes, layout })
    });
    Ok(planned.collect())
}

/// The rank of tables that are only looked up.
const TABLES: usize = 3;

/// Which part of the file `name` belongs to, and its layer there.
fn rank(name: &str) -> (usize, usize) {
    let layer = name.split("layers.").nth(1).and_then(|rest| rest.split('.').next()?.parse().ok());
    let part = match layer {
        _ if name.contains("embed_tokens") => TABLES,
        None if name.ends_with(".weight") && !name.contains("norm") => 2,
        Some(_)
            if name.ends_with("_proj.weight")
                || name.ends_with("gate.weight")
                || name.ends_with("projection.weight") =>
        {
            1
        }
        _ => 0,
    };
    (part, layer.unwrap_or(0))
}

/// `tensors` with padding between them, so that each begins where it should.
fn aligned(tensors: impl Iterator<Item = Planned>) -> Vec<Planned> {
    let (mut plan, mut at, mut pads) = (Vec::new(), 0, 0);
    for tensor in tensors {
        let len = tensor.data.len() as u64;
        let align = if len < ALIGN { LINE } else { ALIGN };
        let gap = (u64::next_multiple_of(at, align) - at) as usize;
        if gap > 0 {
            let (name, data) = (format!("{OWN}padding.{pads}"), vec![0; gap].into());
            plan.push(Planned { name, dtype: "U8", shape: vec![gap], data, layout: Layout::Rows });
            pads += 1;
        }
        at += gap as u64 + len;
        plan.push(tensor);
    }
    plan
}

/// Whether `needed` bytes fit where `path` is to be.
fn check_space(path: &Path, needed: u64) -> Result<(), PackError> {
    let free = output::free_space(path).map_err(io_error(path, "write"))?;
    if needed <= free {
        return Ok(());
    }
    let mega = |bytes: u64| bytes / 1_000_000;
    Err(PackError::Space { path: path.to_owned(), needed: mega(needed) + 1, free: mega(free) })
}
