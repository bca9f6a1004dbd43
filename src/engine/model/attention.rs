//! Attention: grouped heads over the layer's own cache or the one it shares. The scale is 1; there is no soft cap.

use super::activations::Activations;
use super::attend::{Layer, QUERIES};
use crate::engine::checkpoint::Checkpoint;
use crate::engine::checkpoint::config::Kind;
use crate::engine::checkpoint::weights::KvWeights;
use crate::engine::kv_cache::{KvCache, KvKind};
use crate::engine::ops::Compute;
use crate::kernels::contract::plane_stride;
use crate::stats::{Projection, Stage};

/// `k = rope(rmsnorm_head(k_proj(x), k_norm))`, `v = rmsnorm_head(v_proj(x))`, appended to the cache of layer `i`; and, if `queries`,
/// `q = q_proj(x)` for [`attention`] on the way.
pub(super) fn append_kv(
    on: &Compute,
    net: &Checkpoint,
    act: &mut Activations,
    cache: &mut KvCache,
    i: usize,
    queries: bool,
) {
    let (layer, shape, eps) = (&net.weights.layers[i], &net.config.layers[i], net.config.eps);
    let Some(kv) = &layer.kv else { return };
    let _timer = on.stats.time(Stage::QueryKeyValueOutput);
    let Activations { x, q, k, v, quantized, .. } = act;
    if queries {
        let kinds = [Projection::Query, Projection::Key, Projection::Value];
        on.linears(kinds, [&layer.q_proj, &kv.k_proj, &kv.v_proj], x, [q, k, v], quantized);
    } else {
        on.linears([Projection::Key, Projection::Value], [&kv.k_proj, &kv.v_proj], x, [k, v], quantized);
    }
    let rotation = &act.rotations[shape.kind as usize];
    on.rms_norm_then(&mut act.k, &kv.k_norm, eps, |head, i| rotation.turn(i / shape.kv_heads, head));
    on.rms_norm_plain(&mut act.v, shape.head_dim, eps);
    store(on, act, cache, i, kv, shape.head_dim);
}

/// Keys and values `[T, kv_heads, d]` into the cache of layer `i`.
fn store(on: &Compute, act: &mut Activations, cache: &mut KvCache, i: usize, kv: &KvWeights, d: usize) {
    let (int8, kv_heads) = (cache.kind() == KvKind::Int8, act.k.len() / act.positions.len() / d);
    let stride = plane_stride(d, 1);
    act.codes.resize(2 * stride, 0);
    let (k_codes, v_codes) = act.codes.split_at_mut(stride);
    for (row, (k, v)) in act.k.chunks_exact(d).zip(act.v.chunks_exact(d)).enumerate() {
        let (position, head) = (act.positions[row / kv_heads], row % kv_heads);
        if int8 {
            on.kernels.quantize(k, kv.k_step, 1, k_codes);
            on.kernels.quantize(v, kv.v_step, 1, v_codes);
            cache.put_codes(i, head, position, &k_codes[..d], &v_codes[..d]);
        } else {
            cache.put(i, head, position, k, v);
        }
    }
}

/// `x = o_proj(softmax(q · kᵀ) · v)` with `q = rope(rmsnorm_head(q_proj(x), q_norm))`; if `queries`, `q` is projected already.
pub(super) fn attention(
    on: &Compute,
    net: &Checkpoint,
    act: &mut Activations,
    cache: &KvCache,
    i: usize,
    queries: bool,
) {
    let (layer, shape) = (&net.weights.layers[i], &net.config.layers[i]);
    if !queries {
        let _timer = on.stats.time(Stage::QueryKeyValueOutput);
        on.linear(Projection::Query, &layer.q_proj, &act.x, &mut act.q, &mut act.quantized);
    }

    let timer = on.stats.time(Stage::Attention);
    let owner = shape.kv_source;
    let (k_step, v_step) = net.weights.layers[owner].kv.as_ref().map_or((1.0, 1.0), |kv| (kv.k_step, kv.v_step));
    let (heads, d) = (net.config.heads, shape.head_dim);
    let heads_of = Layer {
        cache,
        owner,
        group: heads / shape.kv_heads,
        heads,
        d,
        positions: &act.positions,
        reach: if shape.kind == Kind::Sliding { net.config.sliding_window } else { usize::MAX },
        k_step,
        v_step,
        norm: &layer.q_norm,
        eps: net.config.eps,
        rotation: &act.rotations[shape.kind as usize],
    };
    let (q, mixes) = (&act.q, &mut act.heads);
    mixes.resize(q.len(), 0.0);
    let (one, width) = (act.positions.len() == 1, on.pool.width());
    let parts = if one && width > 1 { heads_of.parts() } else { 1 };
    // With fewer than two for each worker they would wait longer for one another than reading takes.
    if parts > 1 && shape.kv_heads * parts >= 2 * width {
        // Every worker reads some of the keys, instead of all for some of the heads.
        let len = heads_of.part_len();
        let all = shape.kv_heads * parts * len;
        // Never shorter: what comes back would be filled with zeros.
        act.parts.resize(all.max(act.parts.len()), 0.0);
        on.pool.ranges_into(&mut act.parts[..all], len, 1, |worker, parts, out| {
            heads_of.attend_parts(on.kernels, parts, q, &mut act.attend.of(worker), out);
        });
        on.pool.items_into(mixes, d, |_, head, out| heads_of.merge(on.kernels, head, &act.parts, out));
    } else {
        // The heads of one token go to different workers, as many to each; of several tokens, whole tiles do.
        let granule = if one { heads.div_ceil(width) } else { heads * (QUERIES / heads).max(1) };
        on.pool.ranges_into(mixes, d, granule, |worker, items, out| {
            let q = &q[items.start * d..items.end * d];
            heads_of.attend(on.kernels, items, q, &mut act.attend.of(worker), out);
        });
    }
    drop(timer);

    let _timer = on.stats.time(Stage::QueryKeyValueOutput);
    on.linear(Projection::Output, &layer.o_proj, &act.heads, &mut act.x, &mut act.quantized);
}
