//! The shapes that have names, and any other.

use serde_json::{Map, Value, json};

use crate::engine::checkpoint::config::Kind;

/// Names for [`Shape::named`].
pub const SHAPES: [&str; 4] = ["tiny-e2b", "tiny-e4b", "e2b", "e4b"];

/// A member of the dense family. Field names are those of `config.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Whether layers without a cache have an MLP of twice that.
    pub use_double_wide_mlp: bool,
    /// Attention of every layer; the last has to be full.
    pub layer_types: Vec<Kind>,
    /// Upper layers without a cache.
    pub num_kv_shared_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Heads of K and V.
    pub num_key_value_heads: usize,
    /// Dimensions of a head in sliding layers.
    pub head_dim: usize,
    /// Dimensions of a head in full layers.
    pub global_head_dim: usize,
    /// Per-layer embedding dimensions; 0: none.
    pub hidden_size_per_layer_input: usize,
    /// Positions that a sliding layer sees.
    pub sliding_window: usize,
    /// Widths by regular expression over module names, the first match decides; 4 bits otherwise.
    pub bits: Vec<(String, u32)>,
}

impl Shape {
    /// One of [`SHAPES`]: the published models, and small ones with all their features.
    pub fn named(name: &str) -> Option<Shape> {
        let shape = match name {
            "tiny-e2b" => Shape {
                vocab_size: 512,
                hidden_size: 128,
                intermediate_size: 256,
                use_double_wide_mlp: true,
                layer_types: every(5, 10),
                num_kv_shared_layers: 5,
                num_attention_heads: 4,
                num_key_value_heads: 1,
                head_dim: 32,
                global_head_dim: 64,
                hidden_size_per_layer_input: 32,
                sliding_window: 16,
                bits: bits("[0-4]", 2, 4),
            },
            "tiny-e4b" => Shape {
                vocab_size: 768,
                hidden_size: 160,
                intermediate_size: 320,
                use_double_wide_mlp: false,
                layer_types: every(5, 12),
                num_kv_shared_layers: 4,
                num_attention_heads: 4,
                num_key_value_heads: 2,
                head_dim: 32,
                global_head_dim: 64,
                hidden_size_per_layer_input: 32,
                sliding_window: 16,
                bits: bits(r"\d+", 4, 2),
            },
            "e2b" => Shape {
                vocab_size: 262_144,
                hidden_size: 1536,
                intermediate_size: 6144,
                use_double_wide_mlp: true,
                layer_types: every(5, 35),
                num_kv_shared_layers: 20,
                num_attention_heads: 8,
                num_key_value_heads: 1,
                head_dim: 256,
                global_head_dim: 512,
                hidden_size_per_layer_input: 256,
                sliding_window: 512,
                bits: bits(r"(?:\d|1[0-4])", 2, 4),
            },
            "e4b" => Shape {
                vocab_size: 262_144,
                hidden_size: 2560,
                intermediate_size: 10_240,
                use_double_wide_mlp: false,
                layer_types: every(6, 42),
                num_kv_shared_layers: 18,
                num_attention_heads: 8,
                num_key_value_heads: 2,
                head_dim: 256,
                global_head_dim: 512,
                hidden_size_per_layer_input: 256,
                sliding_window: 512,
                bits: bits(r"\d+", 4, 2),
            },
            _ => return None,
        };
        Some(shape)
    }

    /// `config.json` of the shape, as the published ones are written.
    pub fn config_json(&self) -> Value {
        let widths: Map<String, Value> =
            self.bits.iter().map(|(pattern, bits)| (pattern.clone(), json!({"num_bits": bits}))).collect();
        let layer_types: Vec<&str> = self.layer_types.iter().map(|kind| kind.name()).collect();
        json!({
            "architectures": ["Gemma4ForConditionalGeneration"],
            "model_type": "gemma4",
            "dtype": "bfloat16",
            "tie_word_embeddings": false,
            "eos_token_id": [1, 106],
            "text_config": {
                "model_type": "gemma4_text",
                "vocab_size": self.vocab_size,
                "vocab_size_per_layer_input": self.vocab_size,
                "hidden_size": self.hidden_size,
                "intermediate_size": self.intermediate_size,
                "use_double_wide_mlp": self.use_double_wide_mlp,
                "num_hidden_layers": self.layer_types.len(),
                "layer_types": layer_types,
                "num_kv_shared_layers": self.num_kv_shared_layers,
                "num_attention_heads": self.num_attention_heads,
                "num_key_value_heads": self.num_key_value_heads,
                "head_dim": self.head_dim,
                "global_head_dim": self.global_head_dim,
                "hidden_size_per_layer_input": self.hidden_size_per_layer_input,
                "sliding_window": self.sliding_window,
                "hidden_activation": "gelu_pytorch_tanh",
                "rms_norm_eps": 1e-6,
                "final_logit_softcapping": 30.0,
                "attention_bias": false,
                "attention_k_eq_v": false,
                "enable_moe_block": false,
                "max_position_embeddings": 131_072,
                "bos_token_id": 2,
                "eos_token_id": 1,
                "pad_token_id": 0,
                "rope_parameters": {
                    "full_attention": {
                        "rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.25,
                    },
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                },
            },
            "quantization_config": {
                "quant_method": "gemma",
                "num_bits": 4,
                "quantize_embeddings": true,
                "module_quant_configs": widths,
                "modules_to_not_convert": ["per_layer_model_projection"],
            },
        })
    }
}

/// Every `n`-th of `count` layers and the last are full.
fn every(n: usize, count: usize) -> Vec<Kind> {
    let full = |i: usize| i % n == n - 1 || i == count - 1;
    (0..count).map(|i| if full(i) { Kind::Full } else { Kind::Sliding }).collect()
}

/// The published widths: 4-bit MLPs in the layers of a pattern, `upper` bits in the others, `ple` for the PLE table.
fn bits(lower_layers: &str, upper: u32, ple: u32) -> Vec<(String, u32)> {
    let layer = r"language_model\.layers\.";
    vec![
        ("^lm_head$".into(), 2),
        (r"language_model\.embed_tokens$".into(), 2),
        (r"language_model\.embed_tokens_per_layer$".into(), ple),
        (format!(r"{layer}{lower_layers}\.mlp\."), 4),
        (format!(r"{layer}\d+\.mlp\."), upper),
        (format!(r"{layer}\d+\.per_layer_input_gate$"), 8),
        (format!(r"{layer}\d+\.per_layer_projection$"), 8),
        (format!(r"{layer}\d+\.self_attn\."), 4),
    ]
}
