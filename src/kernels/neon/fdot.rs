//! Float dot products in NEON: `f32-bf16w-gemm-2x2-neon` and the sum of squares.

use super::lanes::{fetch_line, fma, fold, load, splat, widen_bf16};
use crate::kernels::contract::LANES;
use crate::kernels::shapes;

/// `acc[t * rows + r] = Σ_i w[r][i] · x[t][i]`, two rows by two tokens at a time.
#[target_feature(enable = "neon")]
pub(super) fn dots_bf16(w: &[u16], k: usize, x: &[f32], acc: &mut [f32]) {
    let (rows, tokens) = shapes::matrices(w.len(), x.len(), k, acc.len());
    let (w, x) = (w.as_chunks::<LANES>().0, x.as_chunks::<LANES>().0);
    let n = k / LANES;
    for r in (0..rows).step_by(2) {
        for t in (0..tokens).step_by(2) {
            let (w, x, acc) = (&w[r * n..], &x[t * n..], &mut acc[t * rows + r..]);
            match (rows - r, tokens - t) {
                (1, 1) => tile::<1, 1>(w, x, n, rows, acc),
                (1, _) => tile::<1, 2>(w, x, n, rows, acc),
                (_, 1) => tile::<2, 1>(w, x, n, rows, acc),
                (_, _) => tile::<2, 2>(w, x, n, rows, acc),
            }
        }
    }
}

/// `R` rows by `T` tokens of `n` chunks each; from one token to the next are `rows` sums.
#[inline]
#[target_feature(enable = "neon")]
fn tile<const R: usize, const T: usize>(
    w: &[[u16; LANES]],
    x: &[[f32; LANES]],
    n: usize,
    rows: usize,
    acc: &mut [f32],
) {
    let mut sums = [[splat(0.0); T]; R];
    for i in 0..n {
        if T == 1 {
            // Memory is the limit: the rows behind these, a line at a time of both. Not measured on a board.
            fetch_line(w.as_ptr().wrapping_add(R * (n + i)));
        }
        for r in 0..R {
            let weights = widen_bf16(&w[r * n + i]);
            for t in 0..T {
                sums[r][t] = fma(weights, load(&x[t * n + i]), sums[r][t]);
            }
        }
    }
    for r in 0..R {
        for t in 0..T {
            acc[t * rows + r] = fold(sums[r][t]);
        }
    }
}

/// `Σ x[i]²`.
#[target_feature(enable = "neon")]
pub(super) fn sum_squares(x: &[f32]) -> f32 {
    shapes::lanes(x.len());
    let mut sum = splat(0.0);
    for x in x.as_chunks().0 {
        let x = load(x);
        sum = fma(x, x, sum);
    }
    fold(sum)
}
