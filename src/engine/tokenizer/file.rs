//! `tokenizer.json`: parsed, checked, turned into tables.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Value, json};

use super::bpe::{Merge, Merges, Symbols};
use super::{Added, MAX_FILE_BYTES, Tokenizer, TokenizerError};

/// Ids above this are refused: tables have an entry for every id.
const MAX_VOCAB: u32 = 1 << 22;

#[derive(Deserialize)]
struct File<'a> {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(borrow)]
    model: Model<'a>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model<'a> {
    #[serde(default, rename = "type")]
    kind: Value,
    #[serde(default)]
    dropout: Value,
    #[serde(default)]
    continuing_subword_prefix: Value,
    #[serde(default)]
    end_of_word_suffix: Value,
    #[serde(default)]
    byte_fallback: Value,
    #[serde(default)]
    ignore_merges: Value,
    #[serde(borrow)]
    vocab: Vocab<'a>,
    #[serde(borrow)]
    merges: Vec<Pair<'a>>,
}

/// `{"token": id}` in the order of the file.
struct Vocab<'a>(Vec<(Cow<'a, str>, u32)>);

/// `["left", "right"]`, or `"left right"` as older files have it.
struct Pair<'a>(Cow<'a, str>, Cow<'a, str>);

/// A string that borrows from the file unless it holds escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Vocab<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Vocab<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object from token to id")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some((Text(token), id)) = map.next_entry()? {
                    entries.push((token, id));
                }
                Ok(Vocab(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Pair<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sides;
        impl<'de> Visitor<'de> for Sides {
            type Value = Pair<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a merge: [\"left\", \"right\"] or \"left right\"")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                let (left, right) = text.split_once(' ').ok_or_else(|| E::custom("a merge without a space"))?;
                Ok(Pair(left.to_owned().into(), right.to_owned().into()))
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                let (left, right) = text.split_once(' ').ok_or_else(|| E::custom("a merge without a space"))?;
                Ok(Pair(left.into(), right.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut side = || seq.next_element::<Text>()?.ok_or_else(|| A::Error::custom("a merge has two sides"));
                let pair = Pair(side()?.0, side()?.0);
                match seq.next_element::<Text>()? {
                    None => Ok(pair),
                    Some(_) => Err(A::Error::custom("a merge has two sides")),
                }
            }
        }
        deserializer.deserialize_any(Sides)
    }
}

pub(super) fn load(path: &Path) -> Result<Tokenizer, TokenizerError> {
    let read = |source| TokenizerError::Read { path: path.to_owned(), source };
    // A FIFO would block at `open`.
    let kind = std::fs::metadata(path).map_err(read)?;
    if !kind.is_file() {
        return Err(read(std::io::Error::other("not a regular file")));
    }
    let mut file = std::fs::File::open(path).map_err(read)?;
    let found = kind.len();
    if found > MAX_FILE_BYTES {
        return Err(TokenizerError::TooLarge { path: path.to_owned(), found });
    }
    let mut data = Vec::with_capacity(found as usize);
    (&mut file).take(MAX_FILE_BYTES).read_to_end(&mut data).map_err(read)?;
    let file: File =
        serde_json::from_slice(&data).map_err(|source| TokenizerError::Json { path: path.to_owned(), source })?;
    check_kind(&file)
        .and_then(|()| tables(file))
        .map_err(|reason| TokenizerError::Unsupported { path: path.to_owned(), reason })
}

/// The pipeline is the one that `bpe` and `token_bytes` implement; anything else would give wrong ids silently.
fn check_kind(file: &File) -> Result<(), String> {
    let expect = |field: &str, found: &Value, allowed: &[Value]| {
        if allowed.contains(found) {
            return Ok(());
        }
        let allowed = allowed.iter().map(Value::to_string).collect::<Vec<_>>().join(" or ");
        let found: String = found.to_string().chars().take(200).collect();
        Err(format!("{field} is {found}, expected {allowed}: not a tokenizer of the Gemma family"))
    };
    let space = json!({"String": " "});
    let normalizer = json!({"type": "Replace", "pattern": space, "content": "▁"});
    // No space is left after the normalizer, so this one never splits.
    let split = json!({"type": "Split", "pattern": space, "behavior": "MergedWithPrevious", "invert": false});
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    ]});
    let model = &file.model;
    expect("model.type", &model.kind, &[json!("BPE")])?;
    expect("model.byte_fallback", &model.byte_fallback, &[json!(true)])?;
    expect("model.ignore_merges", &model.ignore_merges, &[json!(false), Value::Null])?;
    expect("model.dropout", &model.dropout, &[Value::Null])?;
    expect("model.continuing_subword_prefix", &model.continuing_subword_prefix, &[Value::Null, json!("")])?;
    expect("model.end_of_word_suffix", &model.end_of_word_suffix, &[Value::Null, json!("")])?;
    expect("normalizer", &file.normalizer, &[normalizer])?;
    expect("pre_tokenizer", &file.pre_tokenizer, &[Value::Null, split])?;
    expect("decoder", &file.decoder, &[decoder])
}

fn tables(file: File) -> Result<Tokenizer, String> {
    let File { added_tokens, model, .. } = file;
    let Vocab(vocab) = model.vocab;
    let mut ids: HashMap<&str, u32> = HashMap::with_capacity(vocab.len() + added_tokens.len());
    let listed = vocab.iter().map(|(token, id)| (&**token, *id));
    for (token, id) in listed.chain(added_tokens.iter().map(|added| (&*added.content, added.id))) {
        if token.is_empty() || id >= MAX_VOCAB {
            return Err(format!(
                "token {token:?} has id {id}: expected a token that is not empty, an id below {MAX_VOCAB}"
            ));
        }
        if ids.insert(token, id).is_some_and(|other| other != id) {
            return Err(format!("token {token:?} has more than one id, {id} is one of them"));
        }
    }
    let vocab_size = ids.values().max().map_or(0, |id| *id as usize + 1);
    let mut names: Vec<&str> = vec![""; vocab_size];
    for (token, id) in &ids {
        let name = &mut names[*id as usize];
        if !name.is_empty() {
            return Err(format!("tokens {name:?} and {token:?} have the same id {id}"));
        }
        *name = token;
    }

    let mut control = HashMap::new();
    let mut added: Vec<Added> = Vec::new();
    for token in &added_tokens {
        if token.special || !is_text(&token.content) {
            control.insert(token.content.clone(), token.id);
        } else if token.single_word || token.lstrip || token.rstrip {
            return Err(format!("added token {:?}: single_word, lstrip and rstrip are not supported", token.content));
        } else if !token.content.contains([' ', '▁']) {
            // Runs of ▁ are left to the merges, which give the same tokens for runs of spaces.
            added.push(Added { content: token.content.clone(), id: token.id });
        }
    }
    for (token, id) in ids.iter().filter(|(token, _)| is_unused(token)) {
        control.insert((*token).to_owned(), *id);
    }
    added.sort_unstable_by_key(|added| (added.content.as_bytes()[0], std::cmp::Reverse(added.content.len())));
    let mut control_ids: Vec<u32> = control.values().copied().collect();
    control_ids.sort_unstable();
    let is_control = |id: u32| control_ids.binary_search(&id).is_ok();

    let mut merges = Vec::with_capacity(model.merges.len());
    let mut joined = String::new();
    for (rank, Pair(left, right)) in model.merges.iter().enumerate() {
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        let get = |token: &str| {
            let missing = || format!("merge {rank} is {left:?} + {right:?}: {token:?} is not in the vocabulary");
            ids.get(token).copied().ok_or_else(missing)
        };
        let merge = Merge { left: get(left)?, right: get(right)?, merged: get(&joined)? };
        if ![merge.left, merge.right, merge.merged].into_iter().any(is_control) {
            merges.push((rank as u32, merge));
        }
    }

    let mut fallback = [0; 256];
    for byte in 0..=255 {
        let name = format!("<0x{byte:02X}>");
        let id = ids.get(&*name).filter(|id| !is_control(**id));
        fallback[byte as usize] = *id.ok_or_else(|| format!("byte fallback token {name} is missing"))?;
    }
    let (mut text, mut ends, mut chars) = (Vec::new(), Vec::with_capacity(vocab_size), Vec::new());
    for (id, name) in names.iter().enumerate() {
        let mut spelling = name.chars();
        if let (Some(char), None, false) = (spelling.next(), spelling.next(), is_control(id as u32)) {
            chars.push([char as u32, id as u32]);
        }
        match byte_of(name) {
            Some(byte) => text.push(byte),
            None => text.extend_from_slice(name.replace('▁', " ").as_bytes()),
        }
        ends.push(text.len() as u32);
    }
    chars.sort_unstable();
    Ok(Tokenizer {
        text: text.into(),
        ends: ends.into_iter().collect(),
        control,
        control_ids,
        added,
        symbols: Symbols::new(chars.into_iter().flatten().collect(), fallback),
        merges: Merges::new(merges, vocab_size),
    })
}

/// Whether an added token that isn't special stands for text: white space, or a mark-up tag such as `<h1>`, `</td>`.
///
/// Published files of this family list tags and runs of line breaks this way, next to names that only look alike
/// (`<mask>`, `[multimodal]`, `<unused7>`); a list of what is let in is the safe side.
fn is_text(content: &str) -> bool {
    let tag = || {
        let name = content.strip_prefix('<')?.strip_suffix('>')?;
        let name = name.strip_prefix('/').unwrap_or(name);
        let rest = name.strip_prefix(|c: char| c.is_ascii_lowercase())?;
        let reserved = ["pad", "eos", "bos", "unk", "mask"].contains(&name) || is_unused(content);
        (!reserved && rest.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())).then_some(())
    };
    content.chars().all(|c| c.is_whitespace() || c == '▁') || tag().is_some()
}

/// `<unused0>`, `<unused1>`, …: reserved entries of the vocabulary, never text.
fn is_unused(token: &str) -> bool {
    let digits = token.strip_prefix("<unused").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// The byte that a `<0xNN>` token stands for.
fn byte_of(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}
