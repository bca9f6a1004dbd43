//! Attention: grouped heads over the layer's own cache or the one it shares. The scale is 1; there is no soft cap.

use super::activations::Activations;
use crate::engine::checkpoint::Checkpoint;
use crate::engine::checkpoint::config::Kind;
use crate::engine::kv_cache::{KvCache, Window};
use crate::engine::ops::Compute;
use crate::kernels::contract::Kernels;
use crate::stats::{Projection, Stage};

/// `k = rope(rmsnorm_head(k_proj(x), k_norm))`, `v = rmsnorm_head(v_proj(x))`, appended to the cache of layer `i`.
pub(super) fn append_kv(on: &Compute, net: &Checkpoint, act: &mut Activations, cache: &mut KvCache, i: usize) {
    let (layer, shape, eps) = (&net.weights.layers[i], &net.config.layers[i], net.config.eps);
    let Some(kv) = &layer.kv else { return };
    let _timer = on.stats.time(Stage::QueryKeyValueOutput);
    let (kinds, weights) = ([Projection::Key, Projection::Value], [&kv.k_proj, &kv.v_proj]);
    on.linear_pair(kinds, weights, &act.x, [&mut act.k, &mut act.v], &mut act.quantized);
    let mut k = std::mem::take(&mut act.k);
    let rotation = act.rotation(shape.kind);
    on.rms_norm_then(&mut k, &kv.k_norm, eps, |head, i| rotation.turn(i / shape.kv_heads, head));
    act.k = k;
    on.rms_norm_plain(&mut act.v, shape.head_dim, eps);
    let row = shape.kv_heads * shape.head_dim;
    for ((&position, k), v) in act.positions.iter().zip(act.k.chunks_exact(row)).zip(act.v.chunks_exact(row)) {
        cache.put(i, position, k, v, kv.k_step, kv.v_step);
    }
}

/// `x = o_proj(softmax(q · kᵀ) · v)` with `q = rope(rmsnorm_head(q_proj(x), q_norm))`.
pub(super) fn attention(on: &Compute, net: &Checkpoint, act: &mut Activations, cache: &KvCache, i: usize) {
    let (layer, shape) = (&net.weights.layers[i], &net.config.layers[i]);
    let timer = on.stats.time(Stage::QueryKeyValueOutput);
    on.linear(Projection::Query, &layer.q_proj, &act.x, &mut act.q, &mut act.quantized);
    let (mut q, rotation) = (std::mem::take(&mut act.q), act.rotation(shape.kind));
    on.rms_norm_then(&mut q, &layer.q_norm, net.config.eps, |head, i| rotation.turn(i / net.config.heads, head));
    drop(timer);

    let timer = on.stats.time(Stage::Attention);
    let owner = shape.kv_source;
    let (k_step, v_step) = net.weights.layers[owner].kv.as_ref().map_or((1.0, 1.0), |kv| (kv.k_step, kv.v_step));
    let (heads, group, d) = (net.config.heads, net.config.heads / shape.kv_heads, shape.head_dim);
    let reach = if shape.kind == Kind::Sliding { net.config.sliding_window } else { usize::MAX };
    act.heads.resize(q.len(), 0.0);
    on.pool.items_into(&mut act.heads, d, |worker, item, out| {
        let (t, head) = (item / heads, item % heads);
        let end = act.positions[t] + 1;
        let window = cache.window(owner, head / group, end.saturating_sub(reach)..end);
        attend(on.kernels, &q[item * d..][..d], window, k_step, v_step, &mut act.scores.of(worker), out);
    });
    act.q = q;
    drop(timer);

    let _timer = on.stats.time(Stage::QueryKeyValueOutput);
    on.linear(Projection::Output, &layer.o_proj, &act.heads, &mut act.x, &mut act.quantized);
}

/// `out = softmax(q · kᵀ) · v` for one head. The softmax subtracts its maximum; the division comes last.
fn attend(
    on: &dyn Kernels,
    q: &[f32],
    window: Window<'_>,
    k_step: f32,
    v_step: f32,
    p: &mut Vec<f32>,
    out: &mut [f32],
) {
    let d = q.len();
    let positions = |a: usize, b: usize| (a / d, (a + b) / d);
    let (split, len) = match window {
        Window::F32 { k: [a, b], .. } => positions(a.len(), b.len()),
        Window::Int8 { k: [a, b], .. } => positions(a.len(), b.len()),
    };
    p.resize(len, 0.0);
    let (first, second) = p.split_at_mut(split);
    match window {
        Window::F32 { k: [a, b], .. } => {
            on.scores_f32(q, a, first);
            on.scores_f32(q, b, second);
        }
        Window::Int8 { k: [a, b], .. } => {
            on.scores_i8(q, a, first);
            on.scores_i8(q, b, second);
            p.iter_mut().for_each(|s| *s *= k_step);
        }
    }
    let max = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total = on.exp_sum(p, max);
    out.fill(0.0);
    let (first, second) = p.split_at(split);
    let scale = match window {
        Window::F32 { v: [a, b], .. } => {
            on.mix_f32(first, a, out);
            on.mix_f32(second, b, out);
            1.0 / total
        }
        Window::Int8 { v: [a, b], .. } => {
            on.mix_i8(first, a, out);
            on.mix_i8(second, b, out);
            v_step / total
        }
    };
    out.iter_mut().for_each(|o| *o *= scale);
}
