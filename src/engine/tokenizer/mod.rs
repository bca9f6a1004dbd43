//! Text to token ids and back: the byte-pair encoding of a checkpoint's `tokenizer.json`.
//!
//! Equals Hugging Face `tokenizers` 0.23 on plain text, with one deliberate difference: here a control token is never
//! found in text. Control tokens enter a prompt only as ids, through [`Segment::Control`].
//!
//! The tables are flat, so that a packed model holds them as they are used, in place. For the 262,144 tokens and 514,906
//! merges of Gemma 4 they take 10.5 MB, of which a text touches little; made from `tokenizer.json` they are in memory, with 79 MB
//! at the peak of loading:
//!
//! ```text
//! text     text of every token, in the order of the ids                       [sum of lengths]
//! ends     where each token's text ends in `text`                             [vocab_size]
//! starts   rules of left token t are `rules[starts[t]..starts[t + 1]]`        [vocab_size + 1]
//! rules    right, rank, merged: grouped by left, sorted by right              12 B a merge
//! chars    character, token: sorted                                           8 B a token of one character
//! ```
//!
//! Ids and positions in them are checked where they are followed: a damaged file gives wrong tokens, never a panic.

mod bpe;
mod file;
mod packed;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::engine::bytes::Bytes;
use bpe::{Merges, Symbols};

/// Largest `tokenizer.json` that is read. The published one has 33 MB.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

/// Why a `tokenizer.json` was refused.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file cannot be read.
    #[error("{}: cannot read the tokenizer: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is larger than [`MAX_FILE_BYTES`].
    #[error("{}: {found} bytes, a tokenizer has at most {MAX_FILE_BYTES}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
    },
    /// Not JSON, or not the shape of a `tokenizer.json`.
    #[error("{}: not a tokenizer.json: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// A tokenizer.json of another kind, or one that contradicts itself.
    #[error("{}: {reason}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field, what was expected and what was found.
        reason: String,
    },
}

/// A piece of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment<'a> {
    /// One control token.
    Control(u32),
    /// Plain text, encoded as one piece: merges may cross from the template's words into the user's.
    Text(std::borrow::Cow<'a, str>),
}

/// A loaded vocabulary. Immutable; encoding needs `&self` only.
pub struct Tokenizer {
    text: Bytes,
    ends: Bytes,
    control: HashMap<String, u32>,
    control_ids: Vec<u32>,
    added: Vec<Added>,
    symbols: Symbols,
    merges: Merges,
}

/// A token that is matched in plain text before the merges run: `special` is false in `added_tokens`.
struct Added {
    content: String,
    id: u32,
}

impl Tokenizer {
    /// Reads a `tokenizer.json` of the Gemma family: BPE with byte fallback, spaces as `▁`.
    ///
    /// # Errors
    ///
    /// The file is missing, too large, not JSON, of another kind, or contradicts itself; each names the file.
    pub fn load(path: &Path) -> Result<Tokenizer, TokenizerError> {
        file::load(path)
    }

    /// Ids run from 0 to this, exclusive.
    pub fn vocab_size(&self) -> usize {
        self.ends.words()
    }

    /// The control token that is spelled `name`, as in `control_id("<turn|>")`.
    pub fn control_id(&self, name: &str) -> Option<u32> {
        self.control.get(name).copied()
    }

    /// The spelling of control token `id`; `None` for ordinary tokens. Searches all control tokens: for messages and tests.
    pub fn control_name(&self, id: u32) -> Option<&str> {
        self.control.iter().find(|(_, other)| **other == id).map(|(name, _)| name.as_str())
    }

    /// Whether `id` is a control token, or no token at all.
    pub fn is_control(&self, id: u32) -> bool {
        id as usize >= self.vocab_size() || self.control_ids.binary_search(&id).is_ok()
    }

    /// All control tokens and their ids, in no order.
    pub fn control_tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        self.control.iter().map(|(name, id)| (name.as_str(), *id))
    }

    /// What `id` adds to the text: `▁` is a space and `<0xNN>` that byte. Nothing for control tokens and unknown ids.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        if self.is_control(id) {
            return &[];
        }
        let end = |id: u32| self.ends.word(id as usize).unwrap_or(0) as usize;
        let start = id.checked_sub(1).map_or(0, end);
        self.text.get(start..end(id)).unwrap_or_default()
    }

    /// `text` as ordinary tokens; no id that comes out is a control token, whatever the text contains.
    pub fn encode_text(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.encode_into(text, &mut ids);
        ids
    }

    /// The ids of a prompt that is made of control tokens and plain text.
    pub fn encode_prompt(&self, segments: &[Segment]) -> Vec<u32> {
        let mut ids = Vec::new();
        for segment in segments {
            match segment {
                Segment::Control(id) => ids.push(*id),
                Segment::Text(text) => self.encode_into(text, &mut ids),
            }
        }
        ids
    }

    /// Cuts `text` at the control tokens that are spelled in it, leftmost first, longest where several start together.
    ///
    /// For text that nobody outside wrote, such as a rendered template whose user text is masked.
    pub fn split_controls<'a>(&self, text: &'a str) -> Vec<Segment<'a>> {
        let mut names: Vec<(&str, u32)> = self.control_tokens().collect();
        names.sort_unstable_by_key(|(name, _)| (name.as_bytes().first().copied(), std::cmp::Reverse(name.len())));
        let mut segments = Vec::new();
        let mut rest = 0;
        for (start, end, id) in find_all(text, &names) {
            if start > rest {
                segments.push(Segment::Text(text[rest..start].into()));
            }
            segments.push(Segment::Control(id));
            rest = end;
        }
        if rest < text.len() {
            segments.push(Segment::Text(text[rest..].into()));
        }
        segments
    }

    fn encode_into(&self, text: &str, ids: &mut Vec<u32>) {
        let names: Vec<(&str, u32)> = self.added.iter().map(|added| (added.content.as_str(), added.id)).collect();
        let mut rest = 0;
        for (start, end, id) in find_all(text, &names) {
            bpe::encode(&text[rest..start], &self.symbols, &self.merges, ids);
            ids.push(id);
            rest = end;
        }
        bpe::encode(&text[rest..], &self.symbols, &self.merges, ids);
    }
}

/// Occurrences of `names` in `text` that do not overlap, as (start, end, id).
///
/// `names` is ordered by first byte, then longest first.
fn find_all<'a>(text: &'a str, names: &'a [(&'a str, u32)]) -> impl Iterator<Item = (usize, usize, u32)> + 'a {
    let mut position = 0;
    std::iter::from_fn(move || {
        let bytes = text.as_bytes();
        while position < bytes.len() {
            let start = position;
            let first = names.partition_point(|(name, _)| name.as_bytes()[0] < bytes[start]);
            let found = names[first..]
                .iter()
                .take_while(|(name, _)| name.as_bytes()[0] == bytes[start])
                .find(|(name, _)| bytes[start..].starts_with(name.as_bytes()));
            if let Some((name, id)) = found {
                position += name.len();
                return Some((start, position, *id));
            }
            position += 1;
        }
        None
    })
}
