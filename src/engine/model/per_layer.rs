//! Per-layer embeddings (PLE): a small vector per token and layer, half looked up, half projected from the embedding.

use std::ops::Range;

use super::activations::Activations;
use crate::engine::checkpoint::Checkpoint;
use crate::engine::ops::Compute;
use crate::stats::{Projection, Stage};

/// Computes the inputs of `layers` for the batch's tokens:
/// `ple = (rmsnorm_P(per_layer_model_projection(h) / √H) + ple_table[token] · √P) / √2`, `[T, layers, P]`.
pub(super) fn inputs(on: &Compute, net: &Checkpoint, act: &mut Activations, layers: Range<usize>) {
    let Some(weights) = &net.weights.ple else { return };
    let _timer = on.stats.time(Stage::PerLayer);
    let (p, hidden) = (net.config.ple_dim, net.config.hidden);
    if layers.start == 0 {
        act.embedded.clone_from(&act.h);
    }
    act.ple_layers = layers.clone();
    let rows = layers.start * p..layers.end * p;
    if rows.is_empty() {
        return;
    }
    on.linear_bf16(&weights.model_proj, rows.clone(), &act.embedded, &mut act.ple);
    let scale = 1.0 / (hidden as f32).sqrt();
    act.ple.iter_mut().for_each(|x| *x *= scale);
    on.rms_norm(&mut act.ple, &weights.proj_norm, net.config.eps);
    act.ple_row.resize(net.config.layers.len() * p, 0.0);
    let (sqrt_p, half) = ((p as f32).sqrt(), std::f32::consts::FRAC_1_SQRT_2);
    for (&token, ple) in act.tokens.iter().zip(act.ple.chunks_exact_mut(rows.len())) {
        weights.table.row(token as usize, &mut act.ple_row);
        for (x, looked_up) in ple.iter_mut().zip(&act.ple_row[rows.clone()]) {
            *x = (*x + looked_up * sqrt_p) * half;
        }
    }
}

/// `x = rmsnorm(per_layer_projection(gelu(per_layer_input_gate(h)) ⊙ ple[i]))`; `false` where the model has none.
pub(super) fn branch(on: &Compute, net: &Checkpoint, act: &mut Activations, i: usize) -> bool {
    let Some(layer) = &net.weights.layers[i].ple else { return false };
    let _timer = on.stats.time(Stage::PerLayer);
    let p = layer.gate.n;
    on.linear(Projection::PerLayerGate, &layer.gate, &act.h, &mut act.gate, &mut act.quantized);
    let (width, from) = (act.ple_layers.len() * p, (i - act.ple_layers.start) * p);
    act.up.clear();
    act.ple.chunks_exact(width).for_each(|ple| act.up.extend_from_slice(&ple[from..from + p]));
    on.gelu_mul(&mut act.gate, &act.up);
    on.linear(Projection::PerLayerProjection, &layer.proj, &act.gate, &mut act.x, &mut act.quantized);
    on.rms_norm(&mut act.x, &layer.post_norm, net.config.eps);
    true
}
