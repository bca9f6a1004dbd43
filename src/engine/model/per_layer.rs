//! Per-layer embeddings (PLE): a small vector per token and layer, half looked up, half projected from the embedding.

use std::ops::Range;

use super::activations::Activations;
use crate::engine::checkpoint::Checkpoint;
use crate::engine::ops::{Compute, rms_norm};
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
    let (sqrt_p, half) = ((p as f32).sqrt(), std::f32::consts::FRAC_1_SQRT_2);
    let (tokens, eps) = (&act.tokens, net.config.eps);
    on.pool.ranges_into(&mut act.ple, rows.len(), 1, |_, batch, ple| {
        let mut looked_up = vec![0.0; rows.len()];
        for (&token, ple) in tokens[batch].iter().zip(ple.chunks_exact_mut(rows.len())) {
            weights.table.row(token as usize, rows.clone(), &mut looked_up);
            for (ple, looked_up) in ple.chunks_exact_mut(p).zip(looked_up.chunks_exact(p)) {
                ple.iter_mut().for_each(|x| *x *= scale);
                rms_norm(on.kernels, ple, &weights.proj_norm, eps);
                ple.iter_mut().zip(looked_up).for_each(|(x, looked_up)| *x = (*x + looked_up * sqrt_p) * half);
            }
        }
    });
}

/// `h += rmsnorm(per_layer_projection(gelu(per_layer_input_gate(h)) ⊙ ple[i]))`, where the model has that.
pub(super) fn branch(on: &Compute, net: &Checkpoint, act: &mut Activations, i: usize) {
    let Some(layer) = &net.weights.layers[i].ple else { return };
    let _timer = on.stats.time(Stage::PerLayer);
    let p = layer.gate.n;
    // In `up`, which is seldom used: a `gate` cut this short would be filled with zeros again in the next layer.
    let gate = &mut act.up;
    on.linear(Projection::PerLayerGate, &layer.gate, &act.h, gate, &mut act.quantized);
    let (width, from) = (act.ple_layers.len() * p, (i - act.ple_layers.start) * p);
    on.gelu_mul(gate, p, |t| &act.ple[t * width + from..][..p]);
    on.linear(Projection::PerLayerProjection, &layer.proj, gate, &mut act.x, &mut act.quantized);
    on.add_rms_norm(&mut act.h, &act.x, &layer.post_norm, net.config.eps);
}
