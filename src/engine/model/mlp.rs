//! The gated feed-forward branch.

use super::activations::Activations;
use crate::engine::checkpoint::Checkpoint;
use crate::engine::ops::Compute;
use crate::stats::{Projection, Stage};

/// `x = down_proj(gelu(gate_proj(x)) ⊙ up_proj(x))`.
pub(super) fn mlp(on: &Compute, net: &Checkpoint, act: &mut Activations, i: usize) {
    let _timer = on.stats.time(Stage::Mlp);
    let layer = &net.weights.layers[i];
    on.gated([&layer.gate_proj, &layer.up_proj], &act.x, &mut act.gate, &mut act.up, &mut act.quantized);
    on.linear(Projection::Down, &layer.down_proj, &act.gate, &mut act.x, &mut act.quantized);
}
