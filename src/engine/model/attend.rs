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
        let mut turned = std::mem::take(&mut memory.turned);
        turned.clear();
        turned.extend_from_slice(q);
        for (item, q) in items.clone().zip(turned.chunks_exact_mut(self.d)) {
            rms_norm(on, q, self.norm, self.eps);
            self.rotation.turn(item / self.heads, q);
        }
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
        let (d, n, stride) = (self.d, tile.len(), plane_stride(self.d, 1));
        memory.begin(n);
        for (i, (t, head)) in tile.queries().enumerate() {
            let place = self.place(tile, t, head);
            let queries = aligned(&mut memory.q, 2 * n * stride);
            let (high, low) = queries[2 * i * stride..][..2 * stride].split_at_mut(stride);
            let Split { step, sums } = on.split(&q[place.clone()], high, low);
            memory.q_sums.extend(sums);
            memory.scales.push(step * self.k_step);
            out[place].fill(0.0);
        }
        let end = self.positions[tile.tokens.end - 1] + 1;
        for block in 0..codes.blocks(end) {
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
            for (i, (t, head)) in tile.queries().enumerate() {
                let (high, low) = memory.sums[2 * i * d..][..2 * d].split_at(d);
                let out = &mut out[self.place(tile, t, head)];
                on.blend(&mut memory.softmax[i], memory.weights[i], [high, low], out);
            }
        }
        for (softmax, (t, head)) in memory.softmax.iter().zip(tile.queries()) {
            let scale = self.v_step / softmax.total;
            out[self.place(tile, t, head)].iter_mut().for_each(|out| *out *= scale);
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
    /// Room for `n` queries, none of which is there yet.
    fn begin(&mut self, n: usize) {
        self.q_sums.clear();
        self.scales.clear();
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
