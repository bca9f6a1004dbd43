//! `config.json`: the architecture, validated. Pure.
//!
//! Three spellings occur: the published one (`text_config` with `global_head_dim`), what transformers writes when it
//! saves a model (`per_layer_config` with the layers that differ), and a text-only model (`gemma4_text` at the top).
//! Defaults of absent fields are transformers' own (`models/gemma4/configuration_gemma4.py`).

use serde_json::{Map, Value};

use super::error::Problem;
use super::fields::{Fields, parse_object, show};
use super::widths::Widths;
use crate::kernels::contract::MAX_K;

/// Most layers.
pub const MAX_LAYERS: usize = 512;

/// Largest vocabulary.
pub const MAX_VOCAB: usize = 1 << 24;

/// Widest attention head.
pub const MAX_HEAD_DIM: usize = 4096;

/// Largest sliding window.
const MAX_WINDOW: usize = 1 << 20;

/// Most values in a row of the per-layer embedding table.
const MAX_PLE_ROW: usize = 1 << 20;

/// Which positions a layer sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The last `sliding_window` positions, its own included.
    Sliding,
    /// All positions up to its own.
    Full,
}

impl Kind {
    fn parse(name: &str) -> Option<Kind> {
        match name {
            "sliding_attention" => Some(Kind::Sliding),
            "full_attention" => Some(Kind::Full),
            _ => None,
        }
    }

    /// The configuration's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Sliding => "sliding_attention",
            Kind::Full => "full_attention",
        }
    }
}

/// Rotary embedding of a layer: pair `j` of dimensions `j` and `j + head_dim / 2` turns by
/// `position · theta^(−2j / head_dim)` for `j < rotary`; the other pairs are left as they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the wavelengths.
    pub theta: f64,
    /// Number of pairs that turn, at most `head_dim / 2`.
    pub rotary: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
}

/// Shape of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerConfig {
    /// Sliding or full attention.
    pub kind: Kind,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Heads of K and V; divides the number of query heads.
    pub kv_heads: usize,
    /// Rotary embedding.
    pub rope: Rope,
    /// Width of the MLP.
    pub intermediate: usize,
    /// The layer whose cache it reads; its own index if it owns one.
    pub kv_source: usize,
    /// Whether it computes and stores K and V.
    pub owns_cache: bool,
}

/// The architecture of the text model.
#[derive(Clone, Debug)]
pub struct Config {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Rows of the per-layer embedding table, at least `vocab_size`.
    pub ple_vocab_size: usize,
    /// Width of the residual stream, H.
    pub hidden: usize,
    /// Query heads of every layer.
    pub heads: usize,
    /// The layers, lowest first.
    pub layers: Vec<LayerConfig>,
    /// Positions that a sliding layer sees.
    pub sliding_window: usize,
    /// Per-layer embedding dimensions of one layer, P; 0 when the model has none.
    pub ple_dim: usize,
    /// Added to the mean square in every norm.
    pub eps: f32,
    /// Cap `c` of the logits, `c · tanh(logit / c)`.
    pub softcap: Option<f32>,
    /// Positions that the model was trained for.
    pub max_position_embeddings: usize,
    /// First token of every prompt.
    pub bos: Option<u32>,
    /// Padding token.
    pub pad: Option<u32>,
    /// Tokens that end an answer, as this file has them; `generation_config.json` overrides them.
    pub eos: Vec<u32>,
    /// Widths of the quantized modules.
    pub widths: Widths,
}

impl Config {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    ///
    /// Another family, another quantization, a mixture of experts, or a value that the engine does not support.
    pub fn parse(json: &str) -> Result<Config, Problem> {
        let top = parse_object(json)?;
        let top = Fields::new(&top, "");
        let text = match top.get("model_type").and_then(Value::as_str) {
            Some("gemma4") => match top.object("text_config")? {
                Some(object) => Fields::new(object, "text_config."),
                None => return Err(top.refuse("text_config", "the shape of the text model")),
            },
            Some("gemma4_text") => top,
            _ => return Err(top.refuse("model_type", "\"gemma4\" or \"gemma4_text\"")),
        };
        if text.get("model_type").is_some_and(|v| v != "gemma4_text") {
            return Err(text.refuse("model_type", "\"gemma4_text\""));
        }
        refuse_unsupported(text)?;
        let widths = Widths::parse(if top.has("quantization_config") { top } else { text })?;

        let vocab_size = text.integer("vocab_size", 1..=MAX_VOCAB, None)?;
        let hidden = text.multiple_of_16("hidden_size", MAX_K, None)?;
        let heads = text.integer("num_attention_heads", 1..=1024, None)?;
        let layers = layers(text, heads)?;
        let ple_dim = match text.get("hidden_size_per_layer_input") {
            Some(v) if v.as_u64() == Some(0) => 0,
            _ => {
                text.multiple_of_16("hidden_size_per_layer_input", (MAX_PLE_ROW / layers.len()).min(MAX_K), Some(256))?
            }
        };
        let ple_vocab_size = match ple_dim {
            0 => 0,
            _ => text.integer("vocab_size_per_layer_input", vocab_size..=MAX_VOCAB, Some(262_144.max(vocab_size)))?,
        };
        let softcap = match text.has("final_logit_softcapping") {
            true => Some(text.number("final_logit_softcapping", 1e-3..=1e6, None)? as f32),
            false => None,
        };
        let one_id = |name, default| match text.absent(name) {
            true => Ok(Some(default).filter(|&id| (id as usize) < vocab_size)),
            false => text.token_ids(name, vocab_size).map(|ids| ids.first().copied()),
        };
        let mut eos = top.token_ids("eos_token_id", vocab_size)?;
        if eos.is_empty() {
            eos = match text.absent("eos_token_id") {
                true => vec![1.min(vocab_size as u32 - 1)],
                false => text.token_ids("eos_token_id", vocab_size)?,
            };
        }
        Ok(Config {
            vocab_size,
            ple_vocab_size,
            hidden,
            heads,
            layers,
            sliding_window: text.integer("sliding_window", 1..=MAX_WINDOW, Some(512))?,
            ple_dim,
            eps: text.number("rms_norm_eps", 1e-12..=1e-2, Some(1e-6))? as f32,
            softcap,
            max_position_embeddings: text.integer("max_position_embeddings", 1..=1 << 24, Some(131_072))?,
            bos: one_id("bos_token_id", 2)?,
            pad: one_id("pad_token_id", 0)?,
            eos,
            widths,
        })
    }

    /// Layers below this one own their cache; prompt tokens need no others.
    pub fn first_shared(&self) -> usize {
        self.layers.iter().take_while(|layer| layer.owns_cache).count()
    }
}

/// Members of the family that this engine does not compute.
fn refuse_unsupported(text: Fields<'_>) -> Result<(), Problem> {
    if text.flag("enable_moe_block", false)? {
        return Err(text.refuse("enable_moe_block", "false: mixtures of experts are not supported"));
    }
    if text.get("num_experts").is_some_and(|v| v.as_u64() != Some(0)) {
        return Err(text.refuse("num_experts", "null: mixtures of experts are not supported"));
    }
    for name in ["attention_bias", "attention_k_eq_v"] {
        if text.flag(name, false)? {
            return Err(text.refuse(name, "false: E2B and E4B have their own K and V, without biases"));
        }
    }
    if text.get("use_bidirectional_attention").is_some_and(|v| v != "vision") {
        return Err(text.refuse("use_bidirectional_attention", "null or \"vision\": text is read forwards only"));
    }
    if text.get("hidden_activation").is_some_and(|v| v != "gelu_pytorch_tanh") {
        return Err(text.refuse("hidden_activation", "\"gelu_pytorch_tanh\""));
    }
    Ok(())
}

fn layers(text: Fields<'_>, heads: usize) -> Result<Vec<LayerConfig>, Problem> {
    let count = text.integer("num_hidden_layers", 1..=MAX_LAYERS, None)?;
    let kinds = kinds(text, count)?;
    let shared = text.integer("num_kv_shared_layers", 0..=count, Some(0))?;
    let first_shared = count - shared;
    let head_dim = text.multiple_of_16("head_dim", MAX_HEAD_DIM, Some(256))?;
    let kv_heads = text.integer("num_key_value_heads", 1..=heads, None)?;
    let intermediate = text.multiple_of_16("intermediate_size", MAX_K, None)?;
    let double_wide = text.flag("use_double_wide_mlp", false)?;
    let per_layer = text.object("per_layer_config")?;
    // Ignored by the reference too once `per_layer_config` is there.
    let full_head_dim = match per_layer {
        Some(_) => head_dim,
        None => text.multiple_of_16("global_head_dim", MAX_HEAD_DIM, Some(512))?,
    };
    let overrides = match per_layer {
        Some(object) => overrides(object, count, heads)?,
        None => vec![Override::default(); count],
    };

    let mut layers: Vec<LayerConfig> = Vec::with_capacity(count);
    for (i, (&kind, own)) in kinds.iter().zip(&overrides).enumerate() {
        let owns_cache = i < first_shared;
        let by_kind = if kind == Kind::Full { full_head_dim } else { head_dim };
        let head_dim = own.head_dim.unwrap_or(by_kind);
        let kv_heads = own.kv_heads.unwrap_or(kv_heads);
        let intermediate = if double_wide && !owns_cache { 2 * intermediate } else { intermediate };
        let place = format!("layer {i}");
        for (what, value) in [("num_attention_heads × head_dim", heads * head_dim), ("MLP width", intermediate)] {
            if value > MAX_K {
                return Err(Problem::at(place, format!("{what} of at most {MAX_K}"), value.to_string()));
            }
        }
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a number of KV heads that divides the {heads} heads");
            return Err(Problem::at(place, expected, kv_heads.to_string()));
        }
        let kv_source = match owns_cache {
            true => i,
            false => match kinds[..first_shared].iter().rposition(|&k| k == kind) {
                Some(source) => source,
                None => {
                    let expected = format!("a {} layer below layer {first_shared} whose cache it reads", kind.name());
                    return Err(Problem::at(place, expected, "none"));
                }
            },
        };
        let rope = rope(text, kind, head_dim)?;
        let layer = LayerConfig { kind, head_dim, kv_heads, rope, intermediate, kv_source, owns_cache };
        // The reference has one table of rotations per kind, and so do we.
        if let Some(other) = layers.iter().find(|other| other.kind == kind && other.head_dim != head_dim) {
            let expected = format!("head_dim {}, as all {} layers have", other.head_dim, kind.name());
            return Err(Problem::at(place, expected, head_dim.to_string()));
        }
        if let Some(owner) = layers.get(kv_source)
            && (owner.head_dim, owner.kv_heads) != (head_dim, kv_heads)
        {
            return Err(Problem::at(
                place,
                format!("{} KV heads of {}, as layer {kv_source} stores them", owner.kv_heads, owner.head_dim),
                format!("{kv_heads} of {head_dim}"),
            ));
        }
        layers.push(layer);
    }
    Ok(layers)
}

/// Kinds of the layers. As in the reference, every sixth is full when the file does not say, and the last always is.
fn kinds(text: Fields<'_>, count: usize) -> Result<Vec<Kind>, Problem> {
    let mut kinds: Vec<Kind> = match text.get("layer_types") {
        None => (1..=count).map(|i| if i.is_multiple_of(6) { Kind::Full } else { Kind::Sliding }).collect(),
        Some(Value::Array(list)) if list.len() == count => {
            let kinds = list.iter().enumerate().map(|(i, value)| {
                value.as_str().and_then(Kind::parse).ok_or_else(|| {
                    let place = format!("layer_types[{i}]");
                    Problem::at(place, "\"sliding_attention\" or \"full_attention\"", show(Some(value)))
                })
            });
            kinds.collect::<Result<_, _>>()?
        }
        Some(_) => return Err(text.refuse("layer_types", format!("a list of {count}, one for each layer"))),
    };
    kinds[count - 1] = Kind::Full;
    Ok(kinds)
}

#[derive(Clone, Default)]
struct Override {
    head_dim: Option<usize>,
    kv_heads: Option<usize>,
}

/// `per_layer_config`: from a layer's number, as text and perhaps with leading zeros, to the fields that differ there.
fn overrides(object: &Map<String, Value>, count: usize, heads: usize) -> Result<Vec<Override>, Problem> {
    let mut overrides = vec![Override::default(); count];
    for (key, value) in object {
        let path = format!("per_layer_config.{}", super::error::quote(key));
        let Some(own) = key.parse().ok().and_then(|i: usize| overrides.get_mut(i)) else {
            return Err(Problem::at(path, format!("the number of a layer below {count}"), "another key"));
        };
        let Some(value) = value.as_object() else {
            return Err(Problem::at(path, "an object", show(Some(value))));
        };
        let path = format!("{path}.");
        let fields = Fields::new(value, &path);
        for (name, _) in value {
            match name.as_str() {
                "head_dim" => own.head_dim = Some(fields.multiple_of_16(name, MAX_HEAD_DIM, None)?),
                "num_key_value_heads" => own.kv_heads = Some(fields.integer(name, 1..=heads, None)?),
                _ => return Err(fields.refuse(name, "only head_dim and num_key_value_heads to differ between layers")),
            }
        }
    }
    Ok(overrides)
}

fn rope(text: Fields<'_>, kind: Kind, head_dim: usize) -> Result<Rope, Problem> {
    let Some(all) = text.object("rope_parameters")? else {
        return Ok(match kind {
            Kind::Sliding => Rope { theta: 1e4, rotary: head_dim / 2, head_dim },
            Kind::Full => Rope { theta: 1e6, rotary: head_dim / 8, head_dim },
        });
    };
    let Some(object) = Fields::new(all, "rope_parameters.").object(kind.name())? else {
        return Err(Problem::at(format!("rope_parameters.{}", kind.name()), "an object", "nothing"));
    };
    let path = format!("rope_parameters.{}.", kind.name());
    let fields = Fields::new(object, &path);
    let theta = fields.number("rope_theta", 1.0..=1e12, None)?;
    let rotary = match fields.get("rope_type").and_then(Value::as_str) {
        Some("default") => head_dim / 2,
        Some("proportional") => {
            fields.number("factor", 1.0..=1.0, Some(1.0))?;
            let fraction = fields.number("partial_rotary_factor", 0.0..=1.0, Some(1.0))?;
            ((fraction * head_dim as f64) / 2.0).floor() as usize
        }
        _ => return Err(fields.refuse("rope_type", "\"default\" or \"proportional\"")),
    };
    Ok(Rope { theta, rotary, head_dim })
}
