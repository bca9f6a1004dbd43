//! Beginnings of prompts whose keys and values are kept in files, so that they are there after a restart.
//!
//! ```text
//! "emberdkv"   format, u32   kind, u32     identity of the model, 32 bytes
//! tokens, u32  u32 each      keys and values as KvCache::store writes them
//! SHA-256 of all before it
//! ```
//!
//! Numbers are little-endian. A file is used when each of its bytes is right: it belongs to this model, to these tokens, which
//! stand for text, tokenizer and template, and its checksum is that of its contents. Otherwise it is as if it were not there, and is
//! written anew. In memory there are only the tokens.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tracing::{info, warn};

use super::checkpoint::error::CheckpointError;
use super::checkpoint::output;
use super::checkpoint::source::Source;
use super::kv_cache::{KvCache, KvKind};
use super::prefix::State;

/// Most beginnings.
pub const MAX_PINS: usize = 16;

const MAGIC: &[u8; 8] = b"emberdkv";

/// Changes when the layout does, or when the same tokens give other keys and values.
const FORMAT: u32 = 1;

/// Ends the names of the files.
const EXTENSION: &str = "prefix";

/// Bytes before the tokens, and after everything.
const HEAD: usize = 8 + 4 + 4 + 32 + 4;
const SUM: usize = 32;

/// Tensors up to this size count as a whole for the identity: scales, norms and steps, which are read at the start anyway.
const SMALL: usize = 64 << 10;

/// Longest config.json.
const MAX_CONFIG: usize = 16 << 20;

/// Bytes of the others that count.
const SAMPLE: usize = 64;

/// Tells one model from another: its configuration; its weights by names, types, places, small tensors and the beginnings of large
/// ones, or by the checksum of a packed file; size and time of the files. Reading all of them would take minutes from a card.
///
/// # Errors
///
/// The files cannot be read.
pub fn identity(source: &Source) -> Result<[u8; 32], CheckpointError> {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(env!("CARGO_PKG_VERSION").as_bytes());
    add(source.text("config.json", MAX_CONFIG)?.unwrap_or_default().as_bytes());
    let sum = source.section("sha256");
    sum.iter().for_each(|sum| add(sum));
    let tensors = source.tensors()?;
    let mut names: Vec<&str> = tensors.names().collect();
    names.sort_unstable();
    let mut files: Vec<&Path> = Vec::new();
    for name in names {
        let Some(tensor) = tensors.get(name) else { continue };
        if !files.contains(&tensor.file) {
            let file = fs::metadata(tensor.file).map_err(CheckpointError::io(tensor.file, "look at it"))?;
            add(format!("{} {} {}", file.len(), file.mtime(), file.mtime_nsec()).as_bytes());
            files.push(tensor.file);
        }
        let entry = tensor.entry;
        add(format!("{name} {} {:?} {}", entry.dtype.name(), entry.shape, entry.start).as_bytes());
        if sum.is_none() {
            let counted = if tensor.bytes.len() <= SMALL { tensor.bytes.len() } else { SAMPLE };
            add(&tensor.bytes[..counted]);
        }
    }
    Ok(hash.finalize().into())
}

/// A beginning that is wanted.
#[derive(Debug)]
struct Pin {
    name: String,
    tokens: Vec<u32>,
    file: PathBuf,
    at: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// To be computed.
    Nowhere,
    /// In its file, as far as its head says.
    Disk,
    /// It cannot be written; no more attempts.
    Refused,
}

/// The beginnings and their files.
#[derive(Debug)]
pub struct Pinned {
    dir: PathBuf,
    model: [u8; 32],
    kind: KvKind,
    /// Most bytes of all files.
    limit: u64,
    pins: Vec<Pin>,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("cannot read it: {0}")]
    Io(#[from] io::Error),
    #[error("it is not what this version writes")]
    Format,
    #[error("it was made with another model, or another form of its KV cache")]
    Model,
    #[error("it holds another text, or its tokens by another tokenizer or template")]
    Tokens,
    #[error("it is damaged")]
    Damaged,
}

impl Pinned {
    /// Files in `dir`, of at most `limit` bytes together, for a model of that identity and kind of cache. Nothing is pinned yet.
    pub fn new(dir: &Path, model: [u8; 32], kind: KvKind, limit: u64) -> Pinned {
        Pinned { dir: dir.to_owned(), model, kind, limit, pins: Vec::new() }
    }

    /// Wants the beginning `tokens`, under a `name` that is a file's. Says why its file is not used, if there is one.
    pub fn add(&mut self, name: &str, tokens: Vec<u32>) {
        let file = self.dir.join(name).with_added_extension(EXTENSION);
        let mut pin = Pin { name: name.to_owned(), tokens, file, at: Place::Nowhere };
        match self.head(&pin, &mut Sha256::new()) {
            Ok(_) => pin.at = Place::Disk,
            Err(Unusable::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(why) => refused(&pin, &why),
        }
        self.pins.push(pin);
    }

    /// Removes files of beginnings that are not wanted any more, and what a crash left half written.
    pub fn tidy(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let ours = name.ends_with(&format!(".{EXTENSION}")) || name.contains(&format!(".{EXTENSION}.partial-"));
            if ours && !self.pins.iter().any(|pin| pin.file == path) {
                match fs::remove_file(&path) {
                    Ok(()) => info!(file = %path.display(), "no longer pinned: removed"),
                    Err(error) => {
                        warn!(file = %path.display(), %error, "cannot remove a prefix that is no longer pinned")
                    }
                }
            }
        }
    }

    /// The longest beginning of `prompt` that is on disk, if it has more than `known` tokens and not all of them. `empty` makes
    /// a cache for it.
    pub(super) fn find(&mut self, prompt: &[u32], known: usize, empty: impl Fn() -> KvCache) -> Option<State> {
        loop {
            let fits = |pin: &&Pin| {
                let len = pin.tokens.len();
                pin.at == Place::Disk && len > known && len < prompt.len() && prompt.starts_with(&pin.tokens)
            };
            let best = self.pins.iter().filter(fits).max_by_key(|pin| pin.tokens.len())?;
            let name = best.name.clone();
            match self.fetch(best, empty()) {
                Ok(state) => return Some(state),
                Err(why) => refused(best, &why),
            }
            self.pins.iter_mut().filter(|pin| pin.name == name).for_each(|pin| pin.at = Place::Nowhere);
        }
    }

    /// The tokens of a beginning that has to be computed and written.
    pub(super) fn missing(&self) -> Option<&[u32]> {
        self.pins.iter().find(|pin| pin.at == Place::Nowhere).map(|pin| &pin.tokens[..])
    }

    /// Writes `state`, which is that of [`Pinned::missing`], to its file. A failure is logged, and not tried again.
    pub(super) fn store(&mut self, state: &State) {
        let Some(at) = self.pins.iter().position(|pin| pin.at == Place::Nowhere && pin.tokens == state.tokens()) else {
            return;
        };
        let pin = &self.pins[at];
        let (file, bytes) = (pin.file.display(), self.bytes(pin.tokens.len(), state.cache()));
        let written = self.room(at, bytes).and_then(|()| self.write(pin, state));
        let place = match written {
            Ok(()) => {
                info!(%file, tokens = pin.tokens.len(), bytes, "prefix kept: prompts that begin so are not computed again");
                Place::Disk
            }
            Err(error) => {
                warn!(%file, %error, "a prefix cannot be kept; prompts that begin so are computed after every restart");
                Place::Refused
            }
        };
        self.pins[at].at = place;
    }

    /// Bytes of a file.
    fn bytes(&self, tokens: usize, cache: &KvCache) -> u64 {
        (HEAD + 4 * tokens + cache.stored_bytes(tokens) + SUM) as u64
    }

    /// Whether `bytes` more fit beside the files of the others.
    fn room(&self, at: usize, bytes: u64) -> io::Result<()> {
        let others = self.pins.iter().enumerate().filter(|(other, pin)| *other != at && pin.at == Place::Disk);
        let others: u64 = others.filter_map(|(_, pin)| Some(fs::metadata(&pin.file).ok()?.len())).sum();
        if others + bytes <= self.limit {
            return Ok(());
        }
        let mb = |bytes: u64| bytes.div_ceil(1 << 20);
        let (needs, used, limit) = (mb(bytes), mb(others), mb(self.limit));
        Err(io::Error::other(format!(
            "it takes {needs} MB, others {used} MB, and {limit} MB are allowed (`disk_mb` in the section [cache])"
        )))
    }

    fn start(&self, tokens: &[u32]) -> Vec<u8> {
        let kind: u32 = match self.kind {
            KvKind::F32 => 0,
            KvKind::Int8 => 1,
        };
        let mut head = MAGIC.to_vec();
        head.extend(FORMAT.to_le_bytes());
        head.extend(kind.to_le_bytes());
        head.extend(self.model);
        head.extend((tokens.len() as u32).to_le_bytes());
        head.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
        head
    }

    fn write(&self, pin: &Pin, state: &State) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        output::privately(&pin.file, |out| {
            let mut out = Hashed { out, hash: Sha256::new() };
            out.write_all(&self.start(&pin.tokens))?;
            state.cache().store(&mut out)?;
            let sum = out.hash.finalize();
            out.out.write_all(&sum)
        })
    }

    /// Reads and compares what comes before keys and values; `hash` gets it, and the file what follows.
    fn head(&self, pin: &Pin, hash: &mut Sha256) -> Result<File, Unusable> {
        // A FIFO would block when it is opened.
        if !fs::symlink_metadata(&pin.file)?.is_file() {
            return Err(Unusable::Format);
        }
        let mut file = File::open(&pin.file)?;
        let expected = self.start(&pin.tokens);
        let mut found = vec![0; HEAD];
        file.read_exact(&mut found).map_err(|_| Unusable::Format)?;
        let same = |range: std::ops::Range<usize>| found[range.clone()] == expected[range];
        match () {
            () if !same(0..12) => return Err(Unusable::Format),
            () if !same(12..HEAD - 4) => return Err(Unusable::Model),
            () if !same(HEAD - 4..HEAD) => return Err(Unusable::Tokens),
            () => {}
        }
        found.resize(expected.len(), 0);
        file.read_exact(&mut found[HEAD..]).map_err(|_| Unusable::Damaged)?;
        if found != expected {
            return Err(Unusable::Tokens);
        }
        hash.update(&found);
        Ok(file)
    }

    fn fetch(&self, pin: &Pin, mut cache: KvCache) -> Result<State, Unusable> {
        let mut hash = Sha256::new();
        let file = self.head(pin, &mut hash)?;
        let len = cache.stored_bytes(pin.tokens.len());
        let mut rest = Vec::with_capacity(len + SUM);
        // One byte more, to see that nothing follows.
        file.take((len + SUM) as u64 + 1).read_to_end(&mut rest)?;
        if rest.len() != len + SUM {
            return Err(Unusable::Damaged);
        }
        let (stored, sum) = rest.split_at(len);
        if hash.chain_update(stored).finalize()[..] != *sum {
            return Err(Unusable::Damaged);
        }
        cache.fetch(pin.tokens.len(), stored);
        Ok(State::of(pin.tokens.clone(), cache))
    }
}

fn refused(pin: &Pin, why: &Unusable) {
    warn!(prefix = pin.name, file = %pin.file.display(), %why, "a kept prefix is not used; it is computed and written again");
}

/// Writes and hashes.
struct Hashed<'a, W> {
    out: &'a mut W,
    hash: Sha256,
}

impl<W: Write> Write for Hashed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
