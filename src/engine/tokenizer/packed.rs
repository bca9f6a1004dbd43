//! The tables of a tokenizer as a packed model holds them.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::bpe::{Merges, Symbols};
use super::{Added, Tokenizer};
use crate::engine::bytes::Bytes;

/// What is too small for tables.
#[derive(Serialize, Deserialize)]
struct Names {
    /// Control tokens by their spelling.
    control: BTreeMap<String, u32>,
    /// Tokens that are matched in plain text, in the order in which they are tried.
    added: Vec<(String, u32)>,
    /// The tokens `<0x00>` to `<0xFF>`.
    bytes: Vec<u32>,
}

impl Tokenizer {
    /// The tables by name, and the names as JSON: what [`Tokenizer::from_sections`] takes.
    pub fn sections(&self) -> ([(&'static str, &[u8]); 5], String) {
        let names = Names {
            control: self.control.clone().into_iter().collect(),
            added: self.added.iter().map(|added| (added.content.clone(), added.id)).collect(),
            bytes: self.symbols.bytes.to_vec(),
        };
        let tables: [(&str, &[u8]); 5] = [
            ("tokenizer.text", &self.text),
            ("tokenizer.ends", &self.ends),
            ("tokenizer.starts", &self.merges.starts),
            ("tokenizer.rules", &self.merges.rules),
            ("tokenizer.chars", &self.symbols.chars),
        ];
        (tables, serde_json::to_string(&names).unwrap_or_default())
    }

    /// A tokenizer that uses the tables which `section` gives by name, where they lie.
    ///
    /// # Errors
    ///
    /// In words, what is missing or does not fit.
    pub fn from_sections(names: &str, section: impl Fn(&str) -> Option<Bytes>) -> Result<Tokenizer, String> {
        let table = |name: &str| section(name).ok_or_else(|| format!("{name} is missing"));
        let names: Names = serde_json::from_str(names).map_err(|error| format!("tokenizer: {error}"))?;
        let bytes =
            names.bytes.try_into().map_err(|found: Vec<u32>| format!("{} byte tokens, not 256", found.len()))?;
        let ends = table("tokenizer.ends")?;
        let known = |id: &u32| (*id as usize) < ends.words();
        let added = || names.added.iter().map(|(_, id)| id);
        if !names.control.values().chain(added()).chain(&bytes).all(known) {
            return Err("tokenizer: a token that is not in the vocabulary".into());
        }
        if names.added.iter().any(|added| added.0.is_empty()) || names.control.contains_key("") {
            return Err("tokenizer: a token without a name".into());
        }
        let mut added: Vec<Added> = names.added.into_iter().map(|(content, id)| Added { content, id }).collect();
        added.sort_by_key(|added| (added.content.as_bytes()[0], std::cmp::Reverse(added.content.len())));
        let control: HashMap<String, u32> = names.control.into_iter().collect();
        let mut control_ids: Vec<u32> = control.values().copied().collect();
        control_ids.sort_unstable();
        Ok(Tokenizer {
            text: table("tokenizer.text")?,
            ends,
            control,
            control_ids,
            added,
            symbols: Symbols::new(table("tokenizer.chars")?, bytes),
            merges: Merges { starts: table("tokenizer.starts")?, rules: table("tokenizer.rules")? },
        })
    }
}
