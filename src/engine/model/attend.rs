//! `softmax(q · kᵀ) · v`: in floats for a float cache, in integers for one of codes.
//!
//! With codes, the queries of all heads that share keys, of a few tokens, go over a block of positions together: their two
//! halves (see [`Kernels::split`]) are tokens to the integer product whose weights are the keys; the weights of the softmax, in
//! two halves again, are tokens to the one whose weights are the values. Only the scores of one block exist at a time. A head of
//! a token takes the same blocks in the same order whatever it is computed together with, so batches and threads change no bit.

use std::ops::Range;

use super::rope::Rotation;
use crate::engine::kv_cache::{BLOCK, Codes, KvCache, Stored};
use crate::engine::ops::rms_norm;
use crate::kernels::contract::{Kernels, Planes, Quads, Softmax, Split, Weights, aligned, plane_stride};

/// Queries that go over the keys together.
pub(super) const QUERIES: usize = 32;

/// Blocks whose mixes are merged in order: all of them in any case, so that it changes no bit when the workers share them.
const PART: usize = 2;

/// One layer's attention for the tokens of a batch.
pub(super) struct Layer<'a> {
    pub(super) cache: &'a KvCache,
    /// The layer whose cache is read.
    pub(super) owner: usize,
    /// Heads that share keys and values.
    pub(super) group: usize,
    pub(super) heads: usize,
    pub(super) d: usize,
    /// Position of each token.
    pub(super) positions: &'a [usize],
    /// How many positions a token sees, its own included.
    pub(super) reach: usize,
    pub(super) k_step: f32,
    pub(super) v_step: f32,
    /// What the queries of a head are normalized with, and turned by.
    pub(super) norm: &'a [f32],
    pub(super) eps: f32,
    pub(super) rotation: &'a Rotation,
}

/// Memory of a worker.
#[derive(Default)]
pub(super) struct Attend {
    /// Queries as they meet the keys, `[items, d]`.
    turned: Vec<f32>,
    /// Halves of the queries, `[2 · queries, plane_stride(d)]`, and their sums.
    q: Vec<i8>,
    q_sums: Vec<i32>,
    /// What a product of query and key is multiplied with.
    scales: Vec<f32>,
    /// Halves of the weights, `[2 · queries, BLOCK]`, and their sums.
    p: Vec<i8>,
    p_sums: Vec<i32>,
    /// Products `[2 · queries, slots]`, then `[2 · queries, d]`.
    sums: Vec<i32>,
    /// Scores of one query: of a block, or of everything in floats.
    scores: Vec<f32>,
    weights: Vec<Weights>,
    softmax: Vec<Softmax>,
    /// Mixes of a part, `[queries, d]`.
    mixes: Vec<f32>,
}

impl Layer<'_> {
    /// Mixes of `items`, which count the heads of the tokens one after the other. `q`, as projected, and `out` are `[items, d]`.
    pub(super) fn attend(
        &self,
        on: &dyn Kernels,
        items: Range<usize>,
        q: &[f32],
        memory: &mut Attend,
        out: &mut [f32],
    ) {
        let turned = self.turned(on, items.clone(), q, memory);
        let mut item = items.start;
        while item < items.end {
            let (t, head) = (item / self.heads, item % self.heads);
            let whole = head == 0 && items.end - item >= self.heads;
            // Whole tokens, as many as fill the tile, or what is left of the heads that share keys.
            let tokens = if whole { (QUERIES / self.heads).clamp(1, (items.end - item) / self.heads) } else { 1 };
            let last = if whole { self.heads } else { self.heads.min(head + items.end - item) };
            let mut head = head;
            while head < last {
                let heads = head..last.min((head / self.group + 1) * self.group);
                let tile = Tile { first: items.start, tokens: t..t + tokens, heads: heads.clone() };
                match self.stored(&tile) {
                    Stored::Int8(codes) => self.integers(on, &codes, &tile, &turned, memory, out),
                    Stored::F32 { .. } => self.floats(on, &tile, &turned, &mut memory.scores, out),
                }
                head = heads.end;
            }
            item = t * self.heads + if whole { tokens * self.heads } else { last };
        }
        memory.turned = turned;
    }

    /// Parts in which workers can share the positions of the only token; one where there are no codes.
    pub(super) fn parts(&self) -> usize {
        match self.cache.stored(self.owner, 0, self.sees(0)) {
            Stored::Int8(codes) => codes.blocks(self.positions[0] + 1).div_ceil(PART),
            Stored::F32 { .. } => 1,
        }
    }

    /// Values that are left of a part of the positions: for each of the heads that share keys a mix `[d]`, and then its softmax.
    pub(super) fn part_len(&self) -> usize {
        self.group * (self.d + 2)
    }

    /// What is left of `parts` of the positions of the only token, `[parts, part_len]`. They count the parts of the first heads that
    /// share keys, then those of the next ones. `q`, as projected, is `[heads, d]`.
    pub(super) fn attend_parts(
        &self,
        on: &dyn Kernels,
        parts: Range<usize>,
        q: &[f32],
        memory: &mut Attend,
        out: &mut [f32],
    ) {
        let (count, mut split) = (self.parts(), None);
        let turned = self.turned(on, 0..self.heads, q, memory);
        for (part, out) in parts.zip(out.chunks_exact_mut(self.part_len())) {
            let first = part / count * self.group;
            let tile = Tile { first: 0, tokens: 0..1, heads: first..first + self.group };
            let Stored::Int8(codes) = self.stored(&tile) else { continue };
            if split != Some(first) {
                self.split(on, &tile, &turned, memory);
                split = Some(first);
            }
            let (mixes, states) = out.split_at_mut(self.group * self.d);
            self.part(on, &codes, &tile, part % count, memory, mixes, |i| i * self.d);
            for (state, softmax) in states.chunks_exact_mut(2).zip(&memory.softmax) {
                state.copy_from_slice(&[softmax.max, softmax.total]);
            }
        }
        memory.turned = turned;
    }

    /// The mix `[d]` of `head` of the only token, of what [`Layer::attend_parts`] left of all parts.
    pub(super) fn merge(&self, on: &dyn Kernels, head: usize, parts: &[f32], out: &mut [f32]) {
        let (count, i) = (self.parts(), head % self.group);
        let mut total = Softmax::default();
        out.fill(0.0);
        for part in parts.chunks_exact(self.part_len()).skip(head / self.group * count).take(count) {
            let (mixes, states) = part.split_at(self.group * self.d);
            let state = Softmax { max: states[2 * i], total: states[2 * i + 1] };
            on.merge(&mut total, state, &mixes[i * self.d..][..self.d], out);
        }
        out.iter_mut().for_each(|out| *out *= self.v_step / total.total);
    }

    /// The queries `q` of `items`, normalized and turned; the memory is that of `memory`.
    fn turned(&self, on: &dyn Kernels, items: Range<usize>, q: &[f32], memory: &mut Attend) -> Vec<f32> {
        let mut turned = std::mem::take(&mut memory.turned);
        turned.clear();
        turned.extend_from_slice(q);
        for (item, q) in items.zip(turned.chunks_exact_mut(self.d)) {
            rms_norm(on, q, self.norm, self.eps);
            self.rotation.turn(item / self.heads, q);
        }
        turned
    }

    /// Where the head of token `t` stands in `q` and `out`.
    fn place(&self, tile: &Tile, t: usize, head: usize) -> Range<usize> {
        let at = (t * self.heads + head - tile.first) * self.d;
        at..at + self.d
    }

    /// What token `t` sees.
    fn sees(&self, t: usize) -> Range<usize> {
        let end = self.positions[t] + 1;
        end.saturating_sub(self.reach)..end
    }

    fn stored(&self, tile: &Tile) -> Stored<'_> {
        self.cache.stored(self.owner, tile.heads.start / self.group, self.sees(tile.tokens.start))
    }

    fn integers(
        &self,
        on: &dyn Kernels,
        codes: &Codes<'_>,
        tile: &Tile,
        q: &[f32],
        memory: &mut Attend,
        out: &mut [f32],
    ) {
        let d = self.d;
        let places: Vec<usize> = tile.queries().map(|(t, head)| self.place(tile, t, head).start).collect();
        self.split(on, tile, q, memory);
        self.part(on, codes, tile, 0, memory, out, |i| places[i]);
        let mut totals = memory.softmax.clone();
        let mut mixes = std::mem::take(&mut memory.mixes);
        for part in 1..codes.blocks(self.positions[tile.tokens.end - 1] + 1).div_ceil(PART) {
            mixes.resize(tile.len() * d, 0.0);
            self.part(on, codes, tile, part, memory, &mut mixes, |i| i * d);
            for (i, (total, mix)) in totals.iter_mut().zip(mixes.chunks_exact(d)).enumerate() {
                on.merge(total, memory.softmax[i], mix, &mut out[places[i]..][..d]);
            }
        }
        memory.mixes = mixes;
        for (total, place) in totals.iter().zip(places) {
            let scale = self.v_step / total.total;
            out[place..][..d].iter_mut().for_each(|out| *out *= scale);
        }
    }

    /// The queries of `tile` in halves.
    fn split(&self, on: &dyn Kernels, tile: &Tile, q: &[f32], memory: &mut Attend) {
        let (n, stride) = (tile.len(), plane_stride(self.d, 1));
        memory.q_sums.clear();
        memory.scales.clear();
        let queries = aligned(&mut memory.q, 2 * n * stride);
        for ((t, head), halves) in tile.queries().zip(queries.chunks_exact_mut(2 * stride)) {
            let (high, low) = halves.split_at_mut(stride);
            let Split { step, sums } = on.split(&q[self.place(tile, t, head)], high, low);
            memory.q_sums.extend(sums);
            memory.scales.push(step * self.k_step);
        }
    }

    /// The mixes of the `part`-th [`PART`] blocks, not divided yet by what the softmax of each query comes to. That of query `i`, `[d]`,
    /// begins at `place(i)` of `out`.
    #[allow(clippy::too_many_arguments)]
    fn part(
        &self,
        on: &dyn Kernels,
        codes: &Codes<'_>,
        tile: &Tile,
        part: usize,
        memory: &mut Attend,
        out: &mut [f32],
        place: impl Fn(usize) -> usize,
    ) {
        let (d, n, stride) = (self.d, tile.len(), plane_stride(self.d, 1));
        memory.begin(n);
        (0..n).for_each(|i| out[place(i)..][..d].fill(0.0));
        let end = self.positions[tile.tokens.end - 1] + 1;
        for block in part * PART..codes.blocks(end).min((part + 1) * PART) {
            let live = |t: usize| codes.slots(block, &self.sees(t));
            // Between the first and the last slot that any of the tokens sees.
            let seen = tile.tokens.clone().flat_map(live).filter(|slots| !slots.is_empty());
            let Some(slots) = seen.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)) else { continue };
            // As many as the products take together; what is not live among them weighs nothing.
            let slots = slots.start / Quads::ROWS * Quads::ROWS..slots.end.next_multiple_of(Quads::ROWS);
            let keys = Quads::new(codes.keys(block, slots.clone()), d);
            memory.sums.resize(2 * n * slots.len(), 0);
            let queries = Planes::new(aligned(&mut memory.q, 2 * n * stride), &memory.q_sums, 1, d);
            on.dots_quads(keys, queries, &mut memory.sums);
            memory.weigh(on, tile.queries().map(|(t, _)| live(t)), &slots);
            let values = Quads::new(codes.values(block), BLOCK);
            memory.sums.resize(2 * n * d, 0);
            let weights = Planes::new(aligned(&mut memory.p, 2 * n * BLOCK), &memory.p_sums, 1, BLOCK);
            on.dots_quads(values, weights, &mut memory.sums);
            for i in 0..n {
                let (high, low) = memory.sums[2 * i * d..][..2 * d].split_at(d);
                on.blend(&mut memory.softmax[i], memory.weights[i], [high, low], &mut out[place(i)..][..d]);
            }
        }
    }

    /// The softmax subtracts its maximum; the division comes last.
    fn floats(&self, on: &dyn Kernels, tile: &Tile, q: &[f32], p: &mut Vec<f32>, out: &mut [f32]) {
        let d = self.d;
        for (t, head) in tile.queries() {
            let Stored::F32 { k, v } = self.cache.stored(self.owner, head / self.group, self.sees(t)) else { continue };
            let place = self.place(tile, t, head);
            let (q, out) = (&q[place.clone()], &mut out[place]);
            let (split, len) = (k[0].len() / d, (k[0].len() + k[1].len()) / d);
            p.resize(len, 0.0);
            let (first, second) = p.split_at_mut(split);
            on.scores_f32(q, k[0], first);
            on.scores_f32(q, k[1], second);
            let max = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total = on.exp_sum(p, max);
            out.fill(0.0);
            let (first, second) = p.split_at(split);
            on.mix_f32(first, v[0], out);
            on.mix_f32(second, v[1], out);
            out.iter_mut().for_each(|out| *out *= 1.0 / total);
        }
    }
}

impl Attend {
    /// Room for `n` queries, none of which has seen anything yet.
    fn begin(&mut self, n: usize) {
        self.scores.resize(BLOCK, 0.0);
        self.softmax.clear();
        self.softmax.resize(n, Softmax::default());
    }

    /// `p`: the weights of `slots` of a block for every query; `live` are those that each of them sees.
    fn weigh(&mut self, on: &dyn Kernels, live: impl Iterator<Item = [Range<usize>; 2]>, slots: &Range<usize>) {
        let len = slots.len();
        let p = aligned(&mut self.p, 2 * self.softmax.len() * BLOCK);
        p.fill(0);
        self.p_sums.clear();
        self.weights.clear();
        for (i, live) in live.enumerate() {
            let (high, low) = p[2 * i * BLOCK..][..2 * BLOCK].split_at_mut(BLOCK);
            let (a, b) = self.sums[2 * i * len..][..2 * len].split_at(len);
            let live = live.map(|live| {
                let start = live.start.clamp(slots.start, slots.end);
                start - slots.start..live.end.clamp(start, slots.end) - slots.start
            });
            let (high, low) = (&mut high[slots.clone()], &mut low[slots.clone()]);
            let weights = on.weigh([a, b], self.scales[i], live, &mut self.scores[..len], high, low);
            self.p_sums.extend(weights.sums);
            self.weights.push(weights);
        }
    }
}

/// Some heads, which share keys and values, of some tokens.
struct Tile {
    /// The item with which `q` and `out` begin.
    first: usize,
    tokens: Range<usize>,
    heads: Range<usize>,
}

impl Tile {
    fn len(&self) -> usize {
        self.tokens.len() * self.heads.len()
    }

    fn queries(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let heads = self.heads.clone();
        self.tokens.clone().flat_map(move |t| heads.clone().map(move |head| (t, head)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::checkpoint::config::{Config, Kind, LayerConfig, Rope};
    use crate::engine::checkpoint::widths::Widths;
    use crate::engine::kv_cache::KvKind;
    use crate::kernels;
    use crate::kernels::contract::Bits;

    const HEADS: usize = 4;
    const KV_HEADS: usize = 2;
    const D: usize = 16;
    /// Some parts and a piece of one.
    const POSITIONS: usize = 4 * PART * BLOCK + 77;

    fn config() -> Config {
        let rope = Rope { theta: 1e4, rotary: D / 2, head_dim: D };
        let layer = LayerConfig {
            kind: Kind::Full,
            head_dim: D,
            kv_heads: KV_HEADS,
            rope,
            intermediate: 16,
            kv_source: 0,
            owns_cache: true,
        };
        Config {
            vocab_size: 16,
            ple_vocab_size: 16,
            hidden: 16,
            heads: HEADS,
            layers: vec![layer],
            sliding_window: 16,
            ple_dim: 0,
            eps: 1e-6,
            softcap: None,
            max_position_embeddings: 1 << 20,
            bos: None,
            pad: None,
            eos: Vec::new(),
            widths: Widths::uniform(Bits::Four),
        }
    }

    /// `softmax(q · kᵀ) · v` of `head`, in `f64`; `codes` are the keys and values `[positions, kv_heads, d]` without their steps.
    fn exact(layer: &Layer<'_>, codes: &[Vec<i8>; 2], q: &[f32], head: usize, positions: usize) -> Vec<f64> {
        let row = |codes: &[i8], p: usize| -> Vec<f64> {
            let at = (p * KV_HEADS + head / layer.group) * D;
            codes[at..at + D].iter().map(|&code| f64::from(code)).collect()
        };
        let score = |p| {
            let dot: f64 = row(&codes[0], p).iter().zip(q).map(|(k, &q)| k * f64::from(q)).sum();
            dot * f64::from(layer.k_step)
        };
        let scores: Vec<f64> = (0..positions).map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (mut mix, mut total) = (vec![0.0; D], 0.0);
        for (p, score) in scores.into_iter().enumerate() {
            let weight = (score - max).exp();
            total += weight;
            mix.iter_mut().zip(row(&codes[1], p)).for_each(|(mix, v)| *mix += weight * v * f64::from(layer.v_step));
        }
        mix.iter().map(|mix| mix / total).collect()
    }

    /// A token's heads one by one, some tokens together, and the parts of a token's positions in any order: the same bits, and those of
    /// a softmax.
    #[test]
    fn shares_of_heads_tokens_and_positions_come_to_the_same() {
        let (config, mut rng) = (config(), fastrand::Rng::with_seed(3));
        let codes: [Vec<i8>; 2] = std::array::from_fn(|_| (0..POSITIONS * KV_HEADS * D).map(|_| rng.i8(..)).collect());
        let mut cache = KvCache::new(&config, KvKind::Int8);
        for (i, (k, v)) in codes[0].chunks(D).zip(codes[1].chunks(D)).enumerate() {
            cache.put_codes(0, i % KV_HEADS, i / KV_HEADS, k, v);
        }
        cache.advance(POSITIONS);
        let positions = [POSITIONS - 2, POSITIONS - 1];
        let q: Vec<f32> = (0..2 * HEADS * D).map(|_| rng.f32() * 2.0 - 1.0).collect();
        let norm = vec![1.5; D];
        for on in kernels::available() {
            let rotation = |positions: &[usize]| {
                let mut rotation = Rotation::default();
                rotation.set(&config.layers[0].rope, positions);
                rotation
            };
            let (both, last) = (rotation(&positions), rotation(&positions[1..]));
            let layer = |positions, rotation| Layer {
                cache: &cache,
                owner: 0,
                group: HEADS / KV_HEADS,
                heads: HEADS,
                d: D,
                positions,
                reach: usize::MAX,
                k_step: 0.01,
                v_step: 0.02,
                norm: &norm,
                eps: config.eps,
                rotation,
            };
            let mut memory = Attend::default();
            let mut together = vec![f32::NAN; q.len()];
            layer(&positions, &both).attend(on, 0..2 * HEADS, &q, &mut memory, &mut together);

            let (one, q) = (layer(&positions[1..], &last), &q[HEADS * D..]);
            let mut heads = vec![f32::NAN; q.len()];
            for (head, (q, out)) in q.chunks(D).zip(heads.chunks_mut(D)).enumerate() {
                one.attend(on, head..head + 1, q, &mut memory, out);
            }
            assert!(heads == together[HEADS * D..], "{}: heads and tokens", on.name());

            assert_eq!(one.parts(), 5);
            let all = KV_HEADS * one.parts();
            let (len, mut parts) = (one.part_len(), vec![f32::NAN; all * one.part_len()]);
            for range in [7..all, 3..7, 0..3] {
                one.attend_parts(on, range.clone(), q, &mut memory, &mut parts[range.start * len..range.end * len]);
            }
            let mut merged = vec![f32::NAN; q.len()];
            merged.chunks_mut(D).enumerate().for_each(|(head, out)| one.merge(on, head, &parts, out));
            assert!(merged == heads, "{}: parts", on.name());

            let turned = one.turned(on, 0..HEADS, q, &mut memory);
            for (head, (q, found)) in turned.chunks(D).zip(merged.chunks(D)).enumerate() {
                let exact = exact(&one, &codes, q, head, POSITIONS);
                let worst = found.iter().zip(exact).map(|(f, e)| (f64::from(*f) - e).abs()).fold(0.0, f64::max);
                assert!(worst < 1e-3, "{} head {head}: {worst}", on.name());
            }
        }
    }
}
