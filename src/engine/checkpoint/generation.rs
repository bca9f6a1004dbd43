//! `generation_config.json`: where an answer ends and how tokens are drawn. Pure.

use super::config::Config;
use super::error::Problem;
use super::fields::{Fields, parse_object};

/// Sampling defaults of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationDefaults {
    /// Every token that ends an answer.
    pub eos: Vec<u32>,
    /// Whether tokens are drawn; otherwise the most probable is taken.
    pub do_sample: bool,
    /// Divides the logits.
    pub temperature: f32,
    /// Candidates that are kept; 0: all.
    pub top_k: usize,
    /// Probability mass that is kept.
    pub top_p: f32,
    /// Least probability that is kept, as a part of the largest; 0: any.
    pub min_p: f32,
    /// Divides the logits of tokens that occurred; 1: none.
    pub repetition_penalty: f32,
}

impl GenerationDefaults {
    /// For a checkpoint without the file: the published temperature 1, top-k 64, top-p 0.95.
    pub fn without_file(config: &Config) -> GenerationDefaults {
        GenerationDefaults {
            eos: config.eos.clone(),
            do_sample: true,
            temperature: 1.0,
            top_k: 64,
            top_p: 0.95,
            min_p: 0.0,
            repetition_penalty: 1.0,
        }
    }

    /// Reads the text of a `generation_config.json`. Absent fields have the defaults that transformers gives them;
    /// `eos_token_id` falls back to that of `config`.
    ///
    /// # Errors
    ///
    /// The JSON is broken, or a value is out of bounds.
    pub fn parse(json: &str, config: &Config) -> Result<GenerationDefaults, Problem> {
        let object = parse_object(json)?;
        let fields = Fields::new(&object, "");
        let number = |name, range, default| fields.number(name, range, Some(default)).map(|v| v as f32);
        let mut eos = fields.token_ids("eos_token_id", config.vocab_size)?;
        if eos.is_empty() {
            eos.clone_from(&config.eos);
        }
        Ok(GenerationDefaults {
            eos,
            do_sample: fields.flag("do_sample", false)?,
            temperature: number("temperature", 0.0..=100.0, 1.0)?,
            top_k: fields.integer("top_k", 0..=super::config::MAX_VOCAB, Some(50))?,
            top_p: number("top_p", 0.0..=1.0, 1.0)?,
            min_p: number("min_p", 0.0..=1.0, 0.0)?,
            repetition_penalty: number("repetition_penalty", 0.01..=100.0, 1.0)?,
        })
    }
}
