//! Names and shapes of the text model's modules.

use super::config::{Config, LayerConfig};

/// Prefix of the text model in the published checkpoints, which hold other modalities too.
pub const NESTED: &str = "model.language_model.";

/// Prefix in a checkpoint of the text model alone.
pub const TEXT_ONLY: &str = "model.";

/// The quantized projections of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projection {
    /// H → heads · head_dim.
    Q,
    /// H → KV heads · head_dim; used by layers that own a cache.
    K,
    /// As K.
    V,
    /// heads · head_dim → H.
    O,
    /// H → MLP width.
    Gate,
    /// H → MLP width.
    Up,
    /// MLP width → H.
    Down,
    /// H → P.
    PleGate,
    /// P → H.
    PleProj,
}

impl Projection {
    /// All of them, in the order in which a layer runs them.
    pub const ALL: [Projection; 9] = [
        Projection::Q,
        Projection::K,
        Projection::V,
        Projection::O,
        Projection::Gate,
        Projection::Up,
        Projection::Down,
        Projection::PleGate,
        Projection::PleProj,
    ];

    /// Module name inside the layer.
    pub const fn name(self) -> &'static str {
        match self {
            Projection::Q => "self_attn.q_proj",
            Projection::K => "self_attn.k_proj",
            Projection::V => "self_attn.v_proj",
            Projection::O => "self_attn.o_proj",
            Projection::Gate => "mlp.gate_proj",
            Projection::Up => "mlp.up_proj",
            Projection::Down => "mlp.down_proj",
            Projection::PleGate => "per_layer_input_gate",
            Projection::PleProj => "per_layer_projection",
        }
    }

    /// Output and input width, `(n, k)`.
    pub fn shape(self, config: &Config, layer: &LayerConfig) -> (usize, usize) {
        let h = config.hidden;
        match self {
            Projection::Q => (config.heads * layer.head_dim, h),
            Projection::K | Projection::V => (layer.kv_heads * layer.head_dim, h),
            Projection::O => (h, config.heads * layer.head_dim),
            Projection::Gate | Projection::Up => (layer.intermediate, h),
            Projection::Down => (h, layer.intermediate),
            Projection::PleGate => (config.ple_dim, h),
            Projection::PleProj => (h, config.ple_dim),
        }
    }

    /// Whether `layer` runs it. Files hold K and V of the other layers as well.
    pub fn used(self, config: &Config, layer: &LayerConfig) -> bool {
        match self {
            Projection::K | Projection::V => layer.owns_cache,
            Projection::PleGate | Projection::PleProj => config.ple_dim > 0,
            _ => true,
        }
    }
}

/// Whether the tensor `name` is the text model's and not another modality's.
pub fn is_text(prefix: &str, name: &str) -> bool {
    const MODULES: [&str; 6] = [
        "embed_tokens.",
        "embed_tokens_per_layer.",
        "layers.",
        "norm.",
        "per_layer_model_projection.",
        "per_layer_projection_norm.",
    ];
    let below = |rest: &str| MODULES.iter().any(|module| rest.starts_with(module));
    name.starts_with("lm_head.") || name.strip_prefix(prefix).is_some_and(below)
}

/// Whether the text model uses the tensor `name`. The published files have keys and values for layers that share another
/// layer's cache, too; nothing reads them.
pub fn is_used(config: &Config, prefix: &str, name: &str) -> bool {
    let layers = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix("layers."));
    let Some(rest) = layers else { return is_text(prefix, name) };
    let Some((layer, part)) = rest.split_once('.') else { return false };
    let layer = layer.parse().ok().and_then(|i: usize| config.layers.get(i));
    layer.is_some_and(|layer| {
        layer.owns_cache || !(part.starts_with("self_attn.k_") || part.starts_with("self_attn.v_"))
    })
}

/// The prefix of the text model's modules, in a checkpoint where `has` knows the tensors.
pub fn prefix(has: impl Fn(&str) -> bool) -> &'static str {
    if has(&format!("{TEXT_ONLY}embed_tokens.embedding_quantized")) { TEXT_ONLY } else { NESTED }
}
