//! The model. [`Model::forward`] is the page to read: one call per box of the diagram.
//!
//! State is four nouns: shapes and mapped weights (the [`Checkpoint`]), [`Activations`] of one batch, [`KvCache`].
//! Formulas and their source: Hugging Face transformers, `models/gemma4/modeling_gemma4.py`.

mod activations;
mod attend;
mod attention;
mod mlp;
mod per_layer;
mod rope;

pub use activations::{Activations, Keep};

use crate::engine::checkpoint::Checkpoint;
use crate::engine::kv_cache::KvCache;
use crate::engine::ops::Compute;
use crate::stats::{Projection, Stage};

/// A loaded checkpoint, ready to run.
pub struct Model {
    /// Shapes and weights.
    pub net: Checkpoint,
    /// The last layer that owns a cache.
    last_owner: usize,
}

impl Model {
    /// The model of a validated checkpoint.
    pub fn new(net: Checkpoint) -> Model {
        let last_owner = net.config.layers.iter().rposition(|layer| layer.owns_cache).unwrap_or(0);
        Model { net, last_owner }
    }

    /// Runs `tokens` (at most [`MAX_BATCH`](crate::engine::ops::MAX_BATCH)) at the positions that follow `cache`, which
    /// grows by them. Returns the logits of the kept tokens after the soft cap, `[kept, vocab]`.
    pub fn forward<'a>(
        &self,
        on: &Compute,
        cache: &mut KvCache,
        act: &'a mut Activations,
        tokens: &[u32],
        keep: Keep,
    ) -> &'a [f32] {
        let (net, eps) = (&self.net, self.net.config.eps);
        act.begin(&net.config, tokens, cache.len());
        embed(net, act); // h [T, H] = embed[token] · √H
        per_layer::inputs(on, net, act, 0..self.last_owner); // ple [L, T, P]
        for (i, layer) in net.weights.layers.iter().enumerate() {
            on.rms_norm_of(&act.h, &mut act.x, &layer.input_norm, eps);
            // Of the last owner only the kept tokens have queries: with the keys, where all are kept.
            let owner = net.config.layers[i].owns_cache;
            let queries = owner && (i != self.last_owner || keep.of(tokens.len()) == tokens.len());
            if owner {
                attention::append_kv(on, net, act, cache, i, queries); // k, v [T, kv_heads, d] -> cache
            }
            if i == self.last_owner {
                act.keep(keep); // h, x [T, H] -> [kept, H]
                if keep == Keep::None {
                    break;
                }
                per_layer::inputs(on, net, act, i..net.config.layers.len());
            }
            attention::attention(on, net, act, cache, i, queries); // x -> [T, H]
            on.add_rms_norm(&mut act.h, &act.x, &layer.post_attention_norm, eps);

            on.rms_norm_of(&act.h, &mut act.x, &layer.pre_feedforward_norm, eps);
            mlp::mlp(on, net, act, i); // x -> [T, H]
            on.add_rms_norm(&mut act.h, &act.x, &layer.post_feedforward_norm, eps);

            per_layer::branch(on, net, act, i); // h += rmsnorm(proj(gelu(gate(h)) ⊙ ple[i]))
            on.scale(&mut act.h, net.config.hidden, layer.layer_scalar);
        }
        cache.advance(tokens.len());
        logits(on, net, act)
    }
}

/// `h = embed[token] · √H`.
fn embed(net: &Checkpoint, act: &mut Activations) {
    let hidden = net.config.hidden;
    let scale = (hidden as f32).sqrt();
    act.h.resize(act.tokens.len() * hidden, 0.0);
    for (&token, h) in act.tokens.iter().zip(act.h.chunks_exact_mut(hidden)) {
        net.weights.embed.row(token as usize, 0..hidden, h);
        h.iter_mut().for_each(|h| *h *= scale);
    }
}

/// `cap · tanh(lm_head(rmsnorm(h, norm)) / cap)` of the kept tokens.
fn logits<'a>(on: &Compute, net: &Checkpoint, act: &'a mut Activations) -> &'a [f32] {
    if act.h.is_empty() {
        act.logits.clear();
        return &act.logits;
    }
    let _timer = on.stats.time(Stage::Head);
    on.rms_norm(&mut act.h, &net.weights.norm, net.config.eps);
    let cap = |logits: &mut [f32]| net.config.softcap.into_iter().for_each(|cap| on.kernels.soft_cap(logits, cap));
    on.linear_then(Projection::Head, &net.weights.lm_head, &act.h, &mut act.logits, &mut act.quantized, cap);
    &act.logits
}
