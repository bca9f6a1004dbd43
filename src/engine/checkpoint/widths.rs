//! Which module has which width: `quantization_config` of `config.json`.

use regex::{Regex, RegexBuilder};

use super::error::{Problem, quote};
use super::fields::Fields;
use crate::kernels::contract::Bits;

/// Most patterns; a file may list every module of a published model by name, about 400.
const MAX_PATTERNS: usize = 2048;

/// Longest pattern, in bytes.
const MAX_PATTERN: usize = 1024;

/// Largest compiled pattern, in bytes; `\d` takes about 10 kB. It bounds the time that compiling takes as well.
const MAX_COMPILED: usize = 128 << 10;

/// Largest compiled alternation of all patterns, in bytes.
const MAX_COMPILED_ALL: usize = 8 << 20;

/// What a user is told who brings another kind of file.
const WANTED: &str = "\"gemma\", as the …-qat-mobile-transformers checkpoints have it";

/// Widths by module name.
#[derive(Clone, Debug)]
pub struct Widths {
    default: Bits,
    /// All patterns as one alternation of the groups `g0`, `g1`, …
    patterns: Option<Regex>,
    bits: Vec<Bits>,
}

impl Widths {
    /// Every module has the same width.
    pub fn uniform(bits: Bits) -> Widths {
        Widths { default: bits, patterns: None, bits: Vec::new() }
    }

    /// Reads the field `quantization_config` of `config`.
    ///
    /// # Errors
    ///
    /// The checkpoint is not quantized, or in another way than this one; a width is not 2, 4 or 8; a pattern is none.
    pub(super) fn parse(config: Fields<'_>) -> Result<Widths, Problem> {
        let Some(object) = config.object("quantization_config")? else {
            return Err(Problem::at(
                "quantization_config.quant_method",
                WANTED,
                "no quantization_config: the checkpoint is not quantized",
            ));
        };
        let fields = Fields::new(object, "quantization_config.");
        if fields.get("quant_method").and_then(|v| v.as_str()) != Some("gemma") {
            return Err(fields.refuse("quant_method", WANTED));
        }
        if !fields.flag("quantize_embeddings", true)? {
            return Err(fields.refuse("quantize_embeddings", "true"));
        }
        let default = match fields.get("num_bits") {
            None => Bits::Four,
            Some(_) => num_bits(fields)?,
        };
        let mut widths = Widths::uniform(default);
        let Some(map) = fields.object("module_quant_configs")? else { return Ok(widths) };
        if map.len() > MAX_PATTERNS {
            return Err(fields.refuse("module_quant_configs", format!("at most {MAX_PATTERNS} patterns")));
        }
        let mut joined = String::new();
        for (i, (pattern, options)) in map.iter().enumerate() {
            let path = format!("quantization_config.module_quant_configs.{}", quote(pattern));
            let Some(options) = options.as_object() else {
                return Err(Problem::at(path, "an object with num_bits", super::fields::show(Some(options))));
            };
            let path_of_options = format!("{path}.");
            let options = Fields::new(options, &path_of_options);
            widths.bits.push(if options.has("num_bits") { num_bits(options)? } else { default });
            // On its own first: `a)|(b` is an expression only inside the alternation.
            if pattern.len() > MAX_PATTERN || regex(pattern, MAX_COMPILED).is_err() {
                return Err(Problem::at(
                    path,
                    "a regular expression, without look-around",
                    "one that does not compile",
                ));
            }
            let bar = if i == 0 { "" } else { "|" };
            joined.push_str(&format!("{bar}(?P<g{i}>{pattern})"));
        }
        if !map.is_empty() {
            widths.patterns = Some(regex(&joined, MAX_COMPILED_ALL).map_err(|e| {
                Problem::at("quantization_config.module_quant_configs", "regular expressions", quote(&e.to_string()))
            })?);
        }
        Ok(widths)
    }

    /// Width of the module `name`, its tensors' common name: `model.language_model.layers.0.mlp.gate_proj`, `lm_head`.
    ///
    /// The reference (transformers, `integrations/gemma_quant.py`) searches one alternation of all patterns in the full
    /// name, so the leftmost match decides, and the first pattern among those that match there. Patterns anchored to
    /// the name without `model.` are tried after that.
    pub fn of(&self, name: &str) -> Bits {
        let Some(patterns) = &self.patterns else { return self.default };
        let found = patterns.captures(name).or_else(|| patterns.captures(name.strip_prefix("model.")?));
        let Some(found) = found else { return self.default };
        (0..self.bits.len()).find(|i| found.name(&format!("g{i}")).is_some()).map_or(self.default, |i| self.bits[i])
    }
}

fn regex(pattern: &str, limit: usize) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).size_limit(limit).nest_limit(64).build()
}

fn num_bits(fields: Fields<'_>) -> Result<Bits, Problem> {
    let bits = fields.get("num_bits").and_then(|v| v.as_u64()).and_then(|v| u32::try_from(v).ok());
    bits.and_then(Bits::new).ok_or_else(|| fields.refuse("num_bits", "2, 4 or 8"))
}
