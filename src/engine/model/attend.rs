//! `softmax(q · kᵀ) · v`: in floats for a float cache, in integers for one of codes.
//!
//! With codes, the queries of all heads that share keys, of a few tokens, go over a block of positions together: their two
//! halves (see [`Kernels::split`]) are tokens to the integer product whose weights are the keys; the weights of the softmax, in
//! two halves again, are tokens to the one whose weights are the values. Only the scores of one block exist at a time. The softmax is
//! streamed over the blocks of a part ([`PART`]), and parts are merged in order. A head of a token takes the same blocks in the same
//! parts whatever it is computed together with, so batches and threads change no bit.
//!
//! Queries come as they were projected, and are normalized and turned here.

use std::ops::Range;

use super::rope::Rotation;
use crate::engine::kv_cache::{BLOCK, Codes, KvCache, Stored};
use crate::engine::ops::rms_norm;
use crate::kernels::contract::{Kernels, Planes, Quads, Softmax, Split, Weights, aligned, plane_stride};

/// Queries that go over the keys together.
pub(super) const QUERIES: usize = 32;

/// Blocks of a part. Parts are mixed one by one and merged in order even where one worker does all of them, so that sharing them
/// changes no bit.
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
        let heads = parts.start / count * self.group..parts.end.div_ceil(count) * self.group;
        let turned = self.turned(on, heads.clone(), &q[heads.start * self.d..heads.end * self.d], memory);
        for (part, out) in parts.zip(out.chunks_exact_mut(self.part_len())) {
            let first = part / count * self.group;
            let tile = Tile { first: heads.start, tokens: 0..1, heads: first..first + self.group };
            if split != Some(first) {
                self.split(on, &tile, &turned, memory);
                split = Some(first);
            }
            let (mixes, states) = out.split_at_mut(self.group * self.d);
            self.part(on, &tile, part % count, memory, mixes, |i| i * self.d);
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
        self.part(on, tile, 0, memory, out, |i| places[i]);
        let mut totals = memory.softmax.clone();
        let mut mixes = std::mem::take(&mut memory.mixes);
        let parts = codes.blocks(self.positions[tile.tokens.end - 1] + 1).div_ceil(PART);
        if parts > 1 {
            mixes.resize(tile.len() * d, 0.0);
        }
        for part in 1..parts {
            self.part(on, tile, part, memory, &mut mixes, |i| i * d);
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
    fn part(
        &self,
        on: &dyn Kernels,
        tile: &Tile,
        part: usize,
        memory: &mut Attend,
        out: &mut [f32],
        place: impl Fn(usize) -> usize,
    ) {
        let Stored::Int8(codes) = self.stored(tile) else { unreachable!("parts of floats") };
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
    const WINDOW: usize = 512;
    const FULL: usize = 0;
    const SLIDING: usize = 1;

    fn config() -> Config {
        let rope = Rope { theta: 1e4, rotary: D / 2, head_dim: D };
        let layer = |kind, kv_source| LayerConfig {
            kind,
            head_dim: D,
            kv_heads: KV_HEADS,
            rope,
            intermediate: 16,
            kv_source,
            owns_cache: true,
        };
        Config {
            vocab_size: 16,
            ple_vocab_size: 16,
            hidden: 16,
            heads: HEADS,
            layers: vec![layer(Kind::Full, FULL), layer(Kind::Sliding, SLIDING)],
            sliding_window: WINDOW,
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

    /// Codes of keys and values, `[positions, kv_heads, d]`, and a cache that has them.
    struct Filled {
        config: Config,
        codes: [Vec<i8>; 2],
        cache: KvCache,
        positions: usize,
    }

    impl Filled {
        fn new(positions: usize, rng: &mut fastrand::Rng) -> Filled {
            let config = config();
            let mut random = || (0..positions * KV_HEADS * D).map(|_| rng.i8(..)).collect::<Vec<_>>();
            let codes = [random(), random()];
            let mut cache = KvCache::new(&config, KvKind::Int8);
            for (i, (k, v)) in codes[0].chunks(D).zip(codes[1].chunks(D)).enumerate() {
                for layer in [FULL, SLIDING] {
                    cache.put_codes(layer, i % KV_HEADS, i / KV_HEADS, k, v);
                }
            }
            cache.advance(positions);
            Filled { config, codes, cache, positions }
        }

        fn reach(&self, owner: usize) -> usize {
            if owner == SLIDING { WINDOW } else { usize::MAX }
        }

        fn layer<'a>(&'a self, owner: usize, positions: &'a [usize], rotation: &'a Rotation) -> Layer<'a> {
            Layer {
                cache: &self.cache,
                owner,
                group: HEADS / KV_HEADS,
                heads: HEADS,
                d: D,
                positions,
                reach: self.reach(owner),
                k_step: 0.01,
                v_step: 0.02,
                norm: &[1.5; D],
                eps: self.config.eps,
                rotation,
            }
        }

        /// `softmax(q · kᵀ) · v` of the last token's `head` in `f64`.
        fn exact(&self, owner: usize, q: &[f32], head: usize) -> Vec<f64> {
            let row = |codes: &[i8], p: usize| -> Vec<f64> {
                let at = (p * KV_HEADS + head / (HEADS / KV_HEADS)) * D;
                codes[at..at + D].iter().map(|&code| f64::from(code)).collect()
            };
            let score = |p| 0.01 * row(&self.codes[0], p).iter().zip(q).map(|(k, &q)| k * f64::from(q)).sum::<f64>();
            let seen = self.positions.saturating_sub(self.reach(owner))..self.positions;
            let max = seen.clone().map(score).fold(f64::NEG_INFINITY, f64::max);
            let (mut mix, mut total) = (vec![0.0; D], 0.0);
            for p in seen {
                let weight = (score(p) - max).exp();
                total += weight;
                mix.iter_mut().zip(row(&self.codes[1], p)).for_each(|(mix, v)| *mix += weight * v * 0.02);
            }
            mix.iter().map(|mix| mix / total).collect()
        }
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    /// A token's heads one by one, some tokens together, and the parts of a token's positions in any order: the same bits, and those of
    /// a softmax. The last position is the first of a block, of a part, or neither; of the ring, which has five blocks, the last part is
    /// dead in the first case.
    #[test]
    fn shares_of_heads_tokens_and_positions_come_to_the_same() {
        let mut rng = fastrand::Rng::with_seed(3);
        let ring = 5 * BLOCK;
        for (end, full) in [(ring + WINDOW, 5), (ring + PART * BLOCK + 1, 4), (2 * ring, 5), (2 * ring + 77, 6)] {
            let filled = Filled::new(end, &mut rng);
            let positions = [end - 2, end - 1];
            let q: Vec<f32> = (0..2 * HEADS * D).map(|_| rng.f32() * 2.0 - 1.0).collect();
            let rotation = |positions: &[usize]| {
                let mut rotation = Rotation::default();
                rotation.set(&filled.config.layers[0].rope, positions);
                rotation
            };
            let (both, last) = (rotation(&positions), rotation(&positions[1..]));
            for (owner, count) in [(FULL, full), (SLIDING, 3)] {
                for on in kernels::available() {
                    let case = format!("{}, layer {owner}, {end} positions", on.name());
                    let mut memory = Attend::default();
                    let mut together = vec![f32::NAN; q.len()];
                    let layer = filled.layer(owner, &positions, &both);
                    layer.attend(on, 0..2 * HEADS, &q, &mut memory, &mut together);

                    let (one, q) = (filled.layer(owner, &positions[1..], &last), &q[HEADS * D..]);
                    let mut heads = vec![f32::NAN; q.len()];
                    for (head, (q, out)) in q.chunks(D).zip(heads.chunks_mut(D)).enumerate() {
                        one.attend(on, head..head + 1, q, &mut memory, out);
                    }
                    assert_eq!(bits(&heads), bits(&together[HEADS * D..]), "{case}: heads and tokens");

                    assert_eq!(one.parts(), count, "{case}");
                    let (all, len) = (KV_HEADS * count, one.part_len());
                    let mut parts = vec![f32::NAN; all * len];
                    for range in [all - 2..all, count - 1..all - 2, 0..count - 1] {
                        one.attend_parts(
                            on,
                            range.clone(),
                            q,
                            &mut memory,
                            &mut parts[range.start * len..range.end * len],
                        );
                    }
                    let mut merged = vec![f32::NAN; q.len()];
                    merged.chunks_mut(D).enumerate().for_each(|(head, out)| one.merge(on, head, &parts, out));
                    assert_eq!(bits(&merged), bits(&heads), "{case}: parts");

                    let turned = one.turned(on, 0..HEADS, q, &mut memory);
                    for (head, (q, found)) in turned.chunks(D).zip(merged.chunks(D)).enumerate() {
                        let exact = filled.exact(owner, q, head);
                        let worst = found.iter().zip(exact).map(|(f, e)| (f64::from(*f) - e).abs()).fold(0.0, f64::max);
                        assert!(worst < 1e-3, "{case}, head {head}: {worst}");
                    }
                }
            }
        }
    }

    #[test]
    fn floats_have_one_part() {
        let config = config();
        let mut cache = KvCache::new(&config, KvKind::F32);
        let positions = 3 * PART * BLOCK;
        for position in 0..positions {
            (0..KV_HEADS).for_each(|head| cache.put(FULL, head, position, &[0.0; D], &[0.0; D]));
        }
        cache.advance(positions);
        let filled = Filled { config, codes: Default::default(), cache, positions };
        assert_eq!(filled.layer(FULL, &[positions - 1], &Rotation::default()).parts(), 1);
    }
}
