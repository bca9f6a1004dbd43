//! The model's operations: rows or tokens split over the pool, sums left to the kernels, `f32` in between.

use crate::engine::checkpoint::weights::{Bf16Matrix, Linear};
use crate::kernels::contract::{Kernels, Planes, plane_stride};
use crate::parallel::Pool;
use crate::stats::{Projection, Stats};

/// Most tokens that go through the layers together.
pub const MAX_BATCH: usize = 128;

/// Output rows whose sums a worker holds at a time.
const ROW_TILE: usize = 8;

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

/// `clamp(round_half_even(v / step), −128, 127) · step`, and `v` itself where `step` is 0 (MODEL.md, SRQ).
pub fn round_clip(v: f32, step: f32) -> f32 {
    if step == 0.0 { v } else { (v / step).round_ties_even().clamp(-128.0, 127.0) * step }
}

/// GELU in its tanh form.
pub fn gelu(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    0.5 * x * (1.0 + (SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)).tanh())
}

impl Compute {
    /// `y[t] = round_clip(W · round_clip(x[t], s_in), s_out)`; `x` is `[tokens, k]`, `y` becomes `[tokens, n]`.
    pub fn linear(&self, kind: Projection, w: &Linear, x: &[f32], y: &mut Vec<f32>, quantized: &mut Quantized) {
        let tokens = x.len() / w.k;
        self.stats.projected(kind, tokens);
        y.resize(tokens * w.n, 0.0);
        let codes = w.codes();
        if w.input_step == 0.0 {
            return self.tiles(w.n, tokens, y, |rows, acc: &mut [f32]| {
                self.kernels.dots_f32(codes.slice(rows.clone()), x, acc);
                for (acc, r) in acc.chunks_exact_mut(tokens).zip(rows) {
                    acc.iter_mut().for_each(|a| *a = round_clip(*a * w.scales[r], w.output_step));
                }
            });
        }
        let planes = self.quantize(w, x, quantized);
        self.tiles(w.n, tokens, y, |rows, acc: &mut [f32]| {
            let mut sums = [0i32; ROW_TILE * MAX_BATCH];
            let sums = &mut sums[..acc.len()];
            self.kernels.dots(codes.slice(rows.clone()), planes, sums);
            for ((acc, sums), r) in acc.chunks_exact_mut(tokens).zip(sums.chunks_exact(tokens)).zip(rows) {
                let scale = w.input_step * w.scales[r];
                for (a, &sum) in acc.iter_mut().zip(sums) {
                    *a = round_clip(sum as f32 * scale, w.output_step);
                }
            }
        });
    }

    /// `y[t] = W · x[t]` for the unquantized rows of `w` in `rows`; `y` becomes `[tokens, rows]`.
    pub fn linear_bf16(&self, w: &Bf16Matrix, rows: std::ops::Range<usize>, x: &[f32], y: &mut Vec<f32>) {
        let (tokens, k) = (x.len() / w.k, w.k);
        y.resize(tokens * rows.len(), 0.0);
        let data = &w.data()[rows.start * k..rows.end * k];
        self.tiles(rows.len(), tokens, y, |tile, acc| {
            self.kernels.dots_bf16(&data[tile.start * k..tile.end * k], k, x, acc);
        });
    }

    /// Splits `n` output rows over the workers and, within a worker, into tiles of [`ROW_TILE`] rows. `tile` fills
    /// `[rows, tokens]`, which lands in `y` `[tokens, n]`.
    fn tiles(&self, n: usize, tokens: usize, y: &mut [f32], tile: impl Fn(std::ops::Range<usize>, &mut [f32]) + Sync) {
        assert!((1..=MAX_BATCH).contains(&tokens), "a batch of {tokens} tokens");
        self.pool.rows_into(y, n, ROW_TILE, |_, rows, out| {
            let mut acc = [0f32; ROW_TILE * MAX_BATCH];
            for start in rows.clone().step_by(ROW_TILE) {
                let range = start..rows.end.min(start + ROW_TILE);
                let acc = &mut acc[..range.len() * tokens];
                tile(range.clone(), acc);
                for t in 0..tokens {
                    let to = &mut out.row(t)[start - rows.start..][..range.len()];
                    to.iter_mut().enumerate().for_each(|(r, to)| *to = acc[r * tokens + t]);
                }
            }
        });
    }

    /// Static activation rounding of `x` `[tokens, k]` for the projection `w`.
    fn quantize<'q>(&self, w: &Linear, x: &[f32], out: &'q mut Quantized) -> Planes<'q> {
        let planes = w.bits.planes();
        let len = planes * plane_stride(w.k, planes);
        out.q.resize(x.len() / w.k * len, 0);
        out.sums.clear();
        for (x, q) in x.chunks_exact(w.k).zip(out.q.chunks_exact_mut(len)) {
            out.sums.push(self.kernels.quantize(x, w.input_step, planes, q));
        }
        Planes::new(&out.q, &out.sums, planes, w.k)
    }

    /// RMSNorm of each row of `x` `[rows, weight.len()]` in place; the weight is used as it stands (no `1 +`).
    pub fn rms_norm(&self, x: &mut [f32], weight: &[f32], eps: f32) {
        for row in x.chunks_exact_mut(weight.len()) {
            let r = self.inverse_rms(row, eps);
            row.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * r * w);
        }
    }

    /// RMSNorm without a weight, of each row of `x` `[rows, n]` in place.
    pub fn rms_norm_plain(&self, x: &mut [f32], n: usize, eps: f32) {
        for row in x.chunks_exact_mut(n) {
            let r = self.inverse_rms(row, eps);
            row.iter_mut().for_each(|x| *x *= r);
        }
    }

    fn inverse_rms(&self, row: &[f32], eps: f32) -> f32 {
        1.0 / (self.kernels.sum_squares(row) / row.len() as f32 + eps).sqrt()
    }

    /// `gate[i] = gelu(gate[i]) · up[i]`; lengths are multiples of 16.
    pub fn gelu_mul(&self, gate: &mut [f32], up: &[f32]) {
        const ITEM: usize = 16;
        self.pool.items_into(gate, ITEM, |_, i, gate| {
            gate.iter_mut().zip(&up[i * ITEM..]).for_each(|(g, u)| *g = gelu(*g) * u);
        });
    }
}

/// `h[i] += x[i]`.
pub fn add(h: &mut [f32], x: &[f32]) {
    h.iter_mut().zip(x).for_each(|(h, x)| *h += x);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_half_to_even_and_clips() {
        let step = 0.5;
        for (v, want) in [(0.25, 0.0), (0.75, 1.0), (1.25, 1.0), (-0.25, 0.0), (-0.75, -1.0), (0.3, 0.5)] {
            assert_eq!(round_clip(v, step), want, "{v}");
        }
        assert_eq!(round_clip(1e9, step), 63.5);
        assert_eq!(round_clip(-1e9, step), -64.0);
        assert_eq!(round_clip(0.3, 0.0), 0.3);
    }

    #[test]
    fn gelu_matches_its_definition_in_f64() {
        for i in -800..=800 {
            let x = f64::from(i) / 100.0;
            let exact = 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh());
            assert!((f64::from(gelu(x as f32)) - exact).abs() <= 1e-6, "{x}");
        }
    }
}
