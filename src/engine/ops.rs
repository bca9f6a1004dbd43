//! The model's operations: rows or tokens split over the pool, sums left to the kernels, `f32` in between.

use crate::engine::checkpoint::weights::{Bf16Matrix, Linear};
use std::ops::Range;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::kernels::contract::{GROUP, Kernels, Planes, aligned, plane_stride, plane_stride_apart};
use crate::kernels::math::round_clip;
use crate::parallel::Pool;
use crate::stats::{Projection, Stats};

/// Most tokens that go through the layers together.
pub const MAX_BATCH: usize = 128;

/// Output rows that are not split over workers: what the kernels take together. With one token and long rows, fewer:
/// [`WORTH`].
const GRANULE: usize = 16;

/// With one token a worker takes at least so many bytes of weights at a time, in 4 to [`GRANULE`] rows: some four hundred
/// nanoseconds. The less the last rows take, the less the other workers wait.
const WORTH: usize = 8 << 10;

/// Rows of the widest tile of the kernels.
const WIDE: usize = 32;

/// Sums that a worker holds at a time: rows enough for the widest tile of the kernels.
const TILE: usize = WIDE * MAX_BATCH;

/// Most output rows in a tile: with one token, enough that the call of a kernel costs nothing beside its work.
const MAX_ROWS: usize = 128;

/// What computes: an instruction set, threads, and the count of what they did.
pub struct Compute {
    /// The instruction set in use.
    pub kernels: &'static dyn Kernels,
    /// The threads in use.
    pub pool: Pool,
    /// What ran so far.
    pub stats: Stats,
}

/// Activations of a batch as int8 planes; kept between calls for its memory.
#[derive(Default)]
pub struct Quantized {
    q: Vec<i8>,
    sums: Vec<i32>,
}

impl Compute {
    /// `y[t] = round_clip(W · round_clip(x[t], s_in), s_out)`; `x` is `[tokens, k]`, `y` becomes `[tokens, n]`.
    pub fn linear(&self, kind: Projection, w: &Linear, x: &[f32], y: &mut Vec<f32>, quantized: &mut Quantized) {
        self.linear_then(kind, w, x, y, quantized, |_| ());
    }

    /// As [`Compute::linear`], and then `after` of every part of `y`, some rows of all tokens, while that is in the nearest cache.
    pub fn linear_then(
        &self,
        kind: Projection,
        w: &Linear,
        x: &[f32],
        y: &mut Vec<f32>,
        quantized: &mut Quantized,
        after: impl Fn(&mut [f32]) + Sync,
    ) {
        let tokens = x.len() / w.k;
        self.stats.projected(kind, tokens);
        y.resize(tokens * w.n, 0.0);
        let codes = w.codes();
        if w.input_step == 0.0 {
            return self.tiles(w.n, self.granule(w, tokens), tokens, y, |rows, _, _, acc| {
                self.kernels.dots_f32(codes.slice(rows.clone()), x, acc);
                for (acc, scale) in acc.iter_mut().zip(w.scales[rows].iter().cycle()) {
                    *acc = round_clip(*acc * scale, w.output_step);
                }
                after(acc);
            });
        }
        let planes = self.quantize(w, x, quantized);
        self.tiles(w.n, self.granule(w, tokens), tokens, y, |rows, sums, _, acc| {
            project(self.kernels, w, planes, rows, sums, acc);
            after(acc);
        });
    }

    /// `y[t] = gelu(gate · x[t]) ⊙ (up · x[t])`, in one go over both when they round `x` in the same way; `spare` is memory for
    /// the case that they do not.
    pub fn gated(
        &self,
        [gate, up]: [&Linear; 2],
        x: &[f32],
        y: &mut Vec<f32>,
        spare: &mut Vec<f32>,
        quantized: &mut Quantized,
    ) {
        let kinds = [Projection::Gate, Projection::Up];
        if gate.n != up.n || !rounds_alike(gate, up) {
            self.linear(kinds[0], gate, x, y, quantized);
            self.linear(kinds[1], up, x, spare, quantized);
            let n = gate.n;
            return self.gelu_mul(y, n, |t| &spare[t * n..][..n]);
        }
        let planes = self.quantize(gate, x, quantized);
        let tokens = planes.tokens();
        kinds.into_iter().for_each(|kind| self.stats.projected(kind, tokens));
        y.resize(tokens * gate.n, 0.0);
        self.tiles(gate.n, self.wide(gate.n, tokens), tokens, y, |rows, sums, other, acc| {
            for (w, out) in [(gate, &mut *acc), (up, &mut *other)] {
                project(self.kernels, w, planes, rows.clone(), sums, out);
            }
            self.kernels.gelu_mul(acc, other);
        });
    }

    /// Projections of the same `x`: it is rounded once, and they are one region, when all of them round it in the same way; otherwise
    /// they come one by one.
    pub fn linears<const N: usize>(
        &self,
        kinds: [Projection; N],
        w: [&Linear; N],
        x: &[f32],
        y: [&mut Vec<f32>; N],
        quantized: &mut Quantized,
    ) {
        if !w.iter().all(|other| rounds_alike(w[0], other)) {
            for ((kind, w), y) in kinds.into_iter().zip(w).zip(y) {
                self.linear(kind, w, x, y, quantized);
            }
            return;
        }
        let planes = self.quantize(w[0], x, quantized);
        let tokens = planes.tokens();
        kinds.into_iter().for_each(|kind| self.stats.projected(kind, tokens));
        let mut widths = w.iter().map(|w| w.n);
        let outs = y.map(|y| {
            let n = widths.next().unwrap_or_default();
            y.resize(tokens * n, 0.0);
            (y.as_mut_slice(), n)
        });
        self.tiles_each(outs, self.granule(w[0], tokens), tokens, |number, rows, sums, _, acc| {
            project(self.kernels, w[number], planes, rows, sums, acc);
        });
    }

    /// `y[t] = W · x[t]` for the unquantized rows of `w` in `rows`; `y` becomes `[tokens, rows]`.
    pub fn linear_bf16(&self, w: &Bf16Matrix, rows: Range<usize>, x: &[f32], y: &mut Vec<f32>) {
        let (tokens, k) = (x.len() / w.k, w.k);
        y.resize(tokens * rows.len(), 0.0);
        let data = &w.data()[rows.start * k..rows.end * k];
        self.tiles(rows.len(), self.wide(rows.len(), tokens), tokens, y, |tile, _, _, acc| {
            self.kernels.dots_bf16(&data[tile.start * k..tile.end * k], k, x, acc);
        });
    }

    /// Rows of `w` that stay with one worker.
    fn granule(&self, w: &Linear, tokens: usize) -> usize {
        match tokens {
            1 => (WORTH / w.bits.row_bytes(w.k)).next_multiple_of(GROUP).clamp(GROUP, GRANULE),
            _ => self.wide(w.n, tokens),
        }
    }

    /// Rows of `n` that stay with one worker: with several tokens whole tiles of the kernels, where there are some for each worker.
    fn wide(&self, n: usize, tokens: usize) -> usize {
        if tokens > 1 && n >= 4 * WIDE * self.pool.width() { WIDE } else { GRANULE }
    }

    /// Splits `n` output rows over the workers, multiples of `granule` to each, and, within a worker, into tiles of at most
    /// [`MAX_ROWS`] rows and [`TILE`] sums. `tile` fills the last of its arguments, `[tokens, rows]`, which lands in `y` `[tokens, n]`;
    /// the two before it are for its own use.
    fn tiles(
        &self,
        n: usize,
        granule: usize,
        tokens: usize,
        y: &mut [f32],
        tile: impl Fn(Range<usize>, &mut [i32], &mut [f32], &mut [f32]) + Sync,
    ) {
        self.tiles_each([(y, n)], granule, tokens, |_, rows, sums, other, acc| tile(rows, sums, other, acc));
    }

    /// As [`Compute::tiles`] for several outputs `(y, n)` in one region; `tile` gets the number of the one whose rows they are first.
    fn tiles_each<const N: usize>(
        &self,
        outs: [(&mut [f32], usize); N],
        granule: usize,
        tokens: usize,
        tile: impl Fn(usize, Range<usize>, &mut [i32], &mut [f32], &mut [f32]) + Sync,
    ) {
        assert!((1..=MAX_BATCH).contains(&tokens), "a batch of {tokens} tokens");
        // The memory of a tile is zeroed each time: for one token, no more of it than it can use.
        match tokens {
            1 => self.tiles_of::<MAX_ROWS, N>(outs, granule, tokens, tile),
            _ => self.tiles_of::<TILE, N>(outs, granule, tokens, tile),
        }
    }

    fn tiles_of<const SUMS: usize, const N: usize>(
        &self,
        outs: [(&mut [f32], usize); N],
        granule: usize,
        tokens: usize,
        tile: impl Fn(usize, Range<usize>, &mut [i32], &mut [f32], &mut [f32]) + Sync,
    ) {
        let height = (SUMS / tokens).clamp(GRANULE, MAX_ROWS) / GRANULE * GRANULE;
        self.pool.rows_into_each(outs, granule, |_, number, rows, out| {
            let (mut sums, mut other, mut acc) = ([0i32; SUMS], [0f32; SUMS], [0f32; SUMS]);
            for start in rows.clone().step_by(height) {
                let range = start..rows.end.min(start + height);
                let (len, at) = (range.len(), start - rows.start);
                let used = ..len * tokens;
                tile(number, range, &mut sums[used], &mut other[used], &mut acc[used]);
                for (t, acc) in acc.chunks_exact(len).enumerate().take(tokens) {
                    out.row(t)[at..at + len].copy_from_slice(acc);
                }
            }
        });
    }

    /// Static activation rounding of `x` `[tokens, k]` for the projection `w`.
    fn quantize<'q>(&self, w: &Linear, x: &[f32], out: &'q mut Quantized) -> Planes<'q> {
        let (tokens, planes) = (x.len() / w.k, w.bits.planes());
        let stride = if tokens == 1 { plane_stride_apart } else { plane_stride };
        let len = planes * stride(w.k, planes);
        let q = aligned(&mut out.q, tokens * len);
        out.sums.clear();
        if tokens == 1 {
            out.sums.push(self.kernels.quantize(&x[..w.k], w.input_step, planes, q));
            return Planes::new(q, &out.sums, planes, w.k);
        }
        let sums: Vec<AtomicI32> = (0..tokens).map(|_| AtomicI32::new(0)).collect();
        self.pool.items_into(q, len, |_, t, q| {
            let sum = self.kernels.quantize(&x[t * w.k..][..w.k], w.input_step, planes, q);
            sums[t].store(sum, Ordering::Relaxed);
        });
        out.sums.extend(sums.into_iter().map(AtomicI32::into_inner));
        Planes::new(q, &out.sums, planes, w.k)
    }

    /// RMSNorm of each row of `x` `[rows, weight.len()]` in place; the weight is used as it stands (no `1 +`).
    pub fn rms_norm(&self, x: &mut [f32], weight: &[f32], eps: f32) {
        self.rms_norm_then(x, weight, eps, |_, _| ());
    }

    /// As [`Compute::rms_norm`], and then `after(row, number)` of each row.
    pub fn rms_norm_then(&self, x: &mut [f32], weight: &[f32], eps: f32, after: impl Fn(&mut [f32], usize) + Sync) {
        let kernels = self.kernels;
        self.pool.items_into(x, weight.len(), |_, i, row| {
            rms_norm(kernels, row, weight, eps);
            after(row, i);
        });
    }

    /// `x = rms_norm(h)`; `x` becomes as long as `h`, `[rows, weight.len()]`.
    pub fn rms_norm_of(&self, h: &[f32], x: &mut Vec<f32>, weight: &[f32], eps: f32) {
        let (kernels, n) = (self.kernels, weight.len());
        x.resize(h.len(), 0.0);
        self.pool.items_into(x, n, |_, i, x| {
            let h = &h[i * n..][..n];
            let r = inverse_rms(kernels, h, eps);
            x.iter_mut().zip(h).zip(weight).for_each(|((x, h), w)| *x = *h * r * w);
        });
    }

    /// `h += rms_norm(x)`, of each row of `h` and `x` `[rows, weight.len()]`.
    pub fn add_rms_norm(&self, h: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
        let (kernels, n) = (self.kernels, weight.len());
        self.pool.items_into(h, n, |_, i, h| {
            let x = &x[i * n..][..n];
            let r = inverse_rms(kernels, x, eps);
            h.iter_mut().zip(x).zip(weight).for_each(|((h, x), w)| *h += *x * r * w);
        });
    }

    /// `h *= factor`, of each row of `h` `[rows, n]`.
    pub fn scale(&self, h: &mut [f32], n: usize, factor: f32) {
        self.pool.items_into(h, n, |_, _, h| h.iter_mut().for_each(|h| *h *= factor));
    }

    /// RMSNorm without a weight, of each row of `x` `[rows, n]` in place.
    pub fn rms_norm_plain(&self, x: &mut [f32], n: usize, eps: f32) {
        let kernels = self.kernels;
        self.pool.items_into(x, n, |_, _, row| {
            let r = inverse_rms(kernels, row, eps);
            row.iter_mut().for_each(|x| *x *= r);
        });
    }

    /// `gate[t] = gelu(gate[t]) ⊙ up(t)` of each row of `gate` `[rows, n]`; `n` is a multiple of 16.
    pub fn gelu_mul<'u>(&self, gate: &mut [f32], n: usize, up: impl Fn(usize) -> &'u [f32] + Sync) {
        self.pool.items_into(gate, n, |_, t, gate| self.kernels.gelu_mul(gate, up(t)));
    }
}

/// `acc[t] = round_clip(W · x[t], s_out)` for some rows of `w`, of activations that are rounded already; `sums` is as long as `acc`.
fn project(kernels: &dyn Kernels, w: &Linear, x: Planes<'_>, rows: Range<usize>, sums: &mut [i32], acc: &mut [f32]) {
    // The scales of a tile are too few to be a stream to the CPU: waiting for them was a twentieth of a token's time.
    kernels.fetch(&w.scales[rows.clone()]);
    kernels.dots(w.codes().slice(rows.clone()), x, sums);
    kernels.requantize(sums, &w.scales[rows], w.input_step, w.output_step, acc);
}

/// Whether what is rounded for one of them serves the other.
fn rounds_alike(a: &Linear, b: &Linear) -> bool {
    a.input_step != 0.0 && a.input_step == b.input_step && a.bits == b.bits && a.k == b.k
}

/// RMSNorm of one row in place.
pub fn rms_norm(kernels: &dyn Kernels, row: &mut [f32], weight: &[f32], eps: f32) {
    let r = inverse_rms(kernels, row, eps);
    row.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * r * w);
}

fn inverse_rms(kernels: &dyn Kernels, row: &[f32], eps: f32) -> f32 {
    1.0 / (kernels.sum_squares(row) / row.len() as f32 + eps).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels;
    use crate::kernels::contract::Bits;

    const K: usize = 64;

    fn linear(n: usize, step: f32, rng: &mut fastrand::Rng) -> Linear {
        let codes = (0..n * Bits::Four.row_bytes(K)).map(|_| rng.u8(..)).collect();
        let scales = (0..n).map(|_| 0.01 + 0.01 * rng.f32()).collect();
        Linear::new(codes, Bits::Four, K, scales, [step, 0.003])
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    /// In one region or one by one: what each projection gives alone.
    #[test]
    fn projections_together_give_what_each_gives_alone() {
        let mut rng = fastrand::Rng::with_seed(8);
        for threads in [1, 3] {
            let pool = Pool::new(threads).unwrap();
            let on = Compute { kernels: kernels::available()[0], pool, stats: Stats::default() };
            let quantized = &mut Quantized::default();
            for (tokens, step) in [(1, 0.02), (7, 0.02), (MAX_BATCH, 0.02), (1, 0.03), (7, 0.03)] {
                let x: Vec<f32> = (0..tokens * K).map(|_| rng.f32() * 4.0 - 2.0).collect();
                // Rounds alike where `step` is the step of the others.
                let w = [linear(20, step, &mut rng), linear(144, 0.02, &mut rng), linear(4, 0.02, &mut rng)];
                let kinds = [Projection::Query, Projection::Key, Projection::Value];
                let (mut together, mut alone) = ([const { Vec::new() }; 3], [const { Vec::new() }; 3]);
                on.linears(kinds, w.each_ref(), &x, together.each_mut(), quantized);
                for ((kind, w), y) in kinds.into_iter().zip(&w).zip(&mut alone) {
                    on.linear(kind, w, &x, y, quantized);
                }
                assert_eq!(together.map(|y| bits(&y)), alone.map(|y| bits(&y)), "{tokens} tokens, step {step}");
                assert_eq!(kinds.map(|kind| on.stats.vectors(kind)), [on.stats.vectors(Projection::Key); 3]);

                let w = [linear(48, step, &mut rng), linear(48, 0.02, &mut rng)];
                let [mut y, mut spare, mut gate, mut up] = [const { Vec::new() }; 4];
                on.gated(w.each_ref(), &x, &mut y, &mut spare, quantized);
                on.linear(Projection::Gate, &w[0], &x, &mut gate, quantized);
                on.linear(Projection::Up, &w[1], &x, &mut up, quantized);
                on.kernels.gelu_mul(&mut gate, &up);
                assert_eq!(bits(&y), bits(&gate), "gated, {tokens} tokens, step {step}");
            }
        }
    }
}
