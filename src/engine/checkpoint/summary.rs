//! What a checkpoint costs: formulas over the architecture, no weights needed. Pure.

use serde::Serialize;

use super::config::{Config, Kind, LayerConfig};
use super::names::Projection;
use crate::kernels::contract::Bits;

/// Tokens of a prefill batch in the estimate of the activations.
const BATCH: u64 = 32;

/// Architecture, widths and costs of a checkpoint. All sizes are bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Number of layers.
    pub layers: usize,
    /// Those of full attention.
    pub full_layers: usize,
    /// Upper layers that read the caches of lower ones.
    pub shared_layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Positions that a sliding layer sees.
    pub sliding_window: usize,
    /// Per-layer embedding dimensions; 0: none.
    pub ple_dim: usize,
    /// Positions that the model was trained for.
    pub max_position_embeddings: usize,
    /// The shapes of layers that occur.
    pub shapes: Vec<LayerShape>,
    /// Widths per module group.
    pub widths: Vec<WidthRun>,
    /// Weights read for one decoded token, without their scales.
    pub weights_per_token: u64,
    /// Channel scales read for one decoded token.
    pub scales_per_token: u64,
    /// Multiply-adds of one decoded token.
    pub macs_per_token: u64,
    /// Multiply-adds of a prompt token in all layers, without the head.
    pub macs_prompt_all_layers: u64,
    /// Multiply-adds of a prompt token in the layers that own a cache.
    pub macs_prompt_owning_layers: u64,
    /// As before, and of the last of them K and V only: what a prompt token needs.
    pub macs_prompt: u64,
    /// Token table, only looked up.
    pub embed_table: u64,
    /// Per-layer embedding table, only looked up.
    pub ple_table: u64,
    /// Scales of both tables.
    pub table_scales: u64,
    /// One row of the per-layer embedding table and its scales: read for every token.
    pub ple_row: u64,
    /// int8 K and V of the full-attention layers, per position.
    pub kv_full_per_token: u64,
    /// int8 K and V of the sliding layers, per position up to the window.
    pub kv_sliding_per_token: u64,
    /// Buffers of a prefill batch and one row of logits: an estimate.
    pub activations: u64,
}

/// Layers of the same shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerShape {
    /// How many there are.
    pub count: usize,
    /// Attention.
    pub kind: Kind,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Heads of K and V.
    pub kv_heads: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Whether they own their cache.
    pub owns_cache: bool,
}

/// Consecutive layers in which a module group has the same widths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WidthRun {
    /// `attention`, `mlp`, `ple gates`, `lm_head`, `embed` or `ple table`.
    pub group: &'static str,
    /// First layer and last; `None` for modules outside the layers.
    pub layers: Option<(usize, usize)>,
    /// The widths that occur, ascending.
    pub bits: Vec<usize>,
}

/// Memory that serving takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Positions that the cache holds.
    pub context: usize,
    /// Weights and scales that every token reads; they have to stay in memory.
    pub weights: u64,
    /// int8 KV cache.
    pub kv: u64,
    /// Buffers.
    pub activations: u64,
    /// Everything together. The tokenizer and the tables' pages come on top.
    pub total: u64,
}

impl Summary {
    /// Summary of `config`, whose modules' names start with `prefix`.
    pub fn new(config: &Config, prefix: &str) -> Summary {
        let first_shared = config.first_shared();
        let outside = |name: &str| config.widths.of(&format!("{prefix}{name}"));
        let mut summary = Summary::of_shape(config);
        for (i, layer) in config.layers.iter().enumerate() {
            for projection in Projection::ALL.into_iter().filter(|p| p.used(config, layer)) {
                let (n, k) = projection.shape(config, layer);
                let macs = (n * k) as u64;
                let bits = outside(&format!("layers.{i}.{}", projection.name()));
                summary.weights_per_token += bytes(n, k, bits);
                summary.scales_per_token += 4 * n as u64;
                summary.macs_prompt_all_layers += macs;
                if i < first_shared {
                    summary.macs_prompt_owning_layers += macs;
                }
                if i + 1 < first_shared || i + 1 == first_shared && matches!(projection, Projection::K | Projection::V)
                {
                    summary.macs_prompt += macs;
                }
            }
        }
        let (h, l, p, v) = (config.hidden, config.layers.len(), config.ple_dim, config.vocab_size);
        let ple_proj = (l * p * h) as u64;
        summary.macs_prompt_all_layers += ple_proj;
        summary.macs_prompt_owning_layers += ple_proj;
        summary.macs_prompt += (first_shared.saturating_sub(1) * p * h) as u64;
        summary.macs_per_token = summary.macs_prompt_all_layers + (v * h) as u64;
        let head = config.widths.of("lm_head");
        summary.weights_per_token += bytes(v, h, head) + 2 * ple_proj;
        summary.scales_per_token += 4 * v as u64;

        let (embed, ple) = (outside("embed_tokens"), outside("embed_tokens_per_layer"));
        summary.embed_table = bytes(v, h, embed);
        summary.ple_table = bytes(config.ple_vocab_size, l * p, ple);
        let ple_scales = if p > 0 { 4 * l as u64 } else { 0 };
        summary.table_scales = 4 * v as u64 + config.ple_vocab_size as u64 * ple_scales;
        summary.ple_row = bytes(1, l * p, ple) + ple_scales;

        summary.widths = layer_widths(config, prefix);
        let mut one = |group, bits: Bits| summary.widths.push(WidthRun { group, layers: None, bits: vec![bits.get()] });
        one("lm_head", head);
        one("embed", embed);
        if p > 0 {
            one("ple table", ple);
        }
        summary
    }

    /// What follows from the shape alone; the sums over the projections are still 0.
    fn of_shape(config: &Config) -> Summary {
        let kv = |kind| {
            let owners = config.layers.iter().filter(|layer| layer.owns_cache && layer.kind == kind);
            owners.map(|layer| 2 * (layer.kv_heads * layer.head_dim) as u64).sum()
        };
        let widest = |f: fn(&LayerConfig) -> usize| config.layers.iter().map(f).max().unwrap_or(0) as u64;
        let query = config.heads as u64 * widest(|layer| layer.head_dim);
        let ple_row = (config.layers.len() * config.ple_dim) as u64;
        let floats_of_token = 6 * config.hidden as u64 + 3 * query + 3 * widest(|layer| layer.intermediate) + ple_row;
        Summary {
            layers: config.layers.len(),
            full_layers: config.layers.iter().filter(|layer| layer.kind == Kind::Full).count(),
            shared_layers: config.layers.len() - config.first_shared(),
            hidden: config.hidden,
            heads: config.heads,
            vocab_size: config.vocab_size,
            sliding_window: config.sliding_window,
            ple_dim: config.ple_dim,
            max_position_embeddings: config.max_position_embeddings,
            shapes: layer_shapes(config),
            widths: Vec::new(),
            weights_per_token: 0,
            scales_per_token: 0,
            macs_per_token: 0,
            macs_prompt_all_layers: 0,
            macs_prompt_owning_layers: 0,
            macs_prompt: 0,
            embed_table: 0,
            ple_table: 0,
            table_scales: 0,
            ple_row: 0,
            kv_full_per_token: kv(Kind::Full),
            kv_sliding_per_token: kv(Kind::Sliding),
            activations: 4 * (BATCH * floats_of_token + config.vocab_size as u64),
        }
    }

    /// Memory for `context` positions with the int8 cache. What the workers leave of parts of them is not counted: 64 bytes for each
    /// position in E2B.
    pub fn memory(&self, context: usize) -> Memory {
        let weights = self.weights_per_token + self.scales_per_token;
        let kv = context as u64 * self.kv_full_per_token
            + context.min(self.sliding_window) as u64 * self.kv_sliding_per_token;
        Memory { context, weights, kv, activations: self.activations, total: weights + kv + self.activations }
    }
}

fn bytes(n: usize, k: usize, bits: Bits) -> u64 {
    (n * bits.row_bytes(k)) as u64
}

fn layer_shapes(config: &Config) -> Vec<LayerShape> {
    let mut shapes: Vec<LayerShape> = Vec::new();
    for &LayerConfig { kind, head_dim, kv_heads, intermediate, owns_cache, .. } in &config.layers {
        let shape = LayerShape { count: 1, kind, head_dim, kv_heads, intermediate, owns_cache };
        match shapes.iter_mut().find(|known| LayerShape { count: known.count, ..shape } == **known) {
            Some(known) => known.count += 1,
            None => shapes.push(shape),
        }
    }
    shapes
}

fn layer_widths(config: &Config, prefix: &str) -> Vec<WidthRun> {
    use Projection::{Down, Gate, K, O, PleGate, PleProj, Q, Up, V};
    let groups: [(&'static str, &[Projection]); 3] =
        [("attention", &[Q, K, V, O]), ("mlp", &[Gate, Up, Down]), ("ple gates", &[PleGate, PleProj])];
    let mut runs: Vec<WidthRun> = Vec::new();
    for (group, projections) in groups {
        for (i, layer) in config.layers.iter().enumerate() {
            let used = projections.iter().filter(|p| p.used(config, layer));
            let name = |p: &Projection| format!("{prefix}layers.{i}.{}", p.name());
            let mut bits: Vec<usize> = used.map(|p| config.widths.of(&name(p)).get()).collect();
            bits.sort_unstable();
            bits.dedup();
            match runs.last_mut() {
                _ if bits.is_empty() => {}
                Some(WidthRun { group: g, layers: Some((_, end)), bits: b }) if *g == group && *b == bits => *end = i,
                _ => runs.push(WidthRun { group, layers: Some((i, i)), bits }),
            }
        }
    }
    runs
}
