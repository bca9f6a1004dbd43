//! Dot products with BF16 weights in AVX-512: `f32-bf16w-gemv-4x1-avx512` and `f32-bf16w-gemm-4x6-avx512`. A register is the sixteen
//! lanes of the contract.

use std::arch::x86_64::*;

use super::lanes::fold;
use crate::kernels::contract::LANES;
use crate::kernels::shapes;

/// Rows of a tile.
const ROWS: usize = 4;

/// Tokens of a tile: 24 sums, the weights of four rows and one vector of activations fill the registers.
const TOKENS: usize = 6;

/// `acc[t * rows + r] = Σ_i w[r][i] · x[t][i]`: the activations of a tile's tokens stay in the nearest caches while all rows pass.
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) fn dots_bf16(w: &[u16], k: usize, x: &[f32], acc: &mut [f32]) {
    let (rows, tokens) = shapes::matrices(w.len(), x.len(), k, acc.len());
    let (w, x) = (w.as_chunks::<LANES>().0, x.as_chunks::<LANES>().0);
    let n = k / LANES;
    for t in (0..tokens).step_by(TOKENS) {
        let mut r = 0;
        while r < rows {
            let height = if rows - r < ROWS { 1 } else { ROWS };
            let (w, x, acc) = (&w[r * n..], &x[t * n..], &mut acc[t * rows + r..]);
            match (height, tokens - t) {
                (1, 1) => tile::<1, 1>(w, x, n, rows, acc),
                (1, 2) => tile::<1, 2>(w, x, n, rows, acc),
                (1, 3) => tile::<1, 3>(w, x, n, rows, acc),
                (1, 4) => tile::<1, 4>(w, x, n, rows, acc),
                (1, 5) => tile::<1, 5>(w, x, n, rows, acc),
                (1, _) => tile::<1, TOKENS>(w, x, n, rows, acc),
                (_, 1) => tile::<ROWS, 1>(w, x, n, rows, acc),
                (_, 2) => tile::<ROWS, 2>(w, x, n, rows, acc),
                (_, 3) => tile::<ROWS, 3>(w, x, n, rows, acc),
                (_, 4) => tile::<ROWS, 4>(w, x, n, rows, acc),
                (_, 5) => tile::<ROWS, 5>(w, x, n, rows, acc),
                (_, _) => tile::<ROWS, TOKENS>(w, x, n, rows, acc),
            }
            r += height;
        }
    }
}

/// `R` rows by `T` tokens of `n` chunks each; from one token to the next are `rows` sums.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
fn tile<const R: usize, const T: usize>(
    w: &[[u16; LANES]],
    x: &[[f32; LANES]],
    n: usize,
    rows: usize,
    acc: &mut [f32],
) {
    // One after the other in memory: to be fetched in that order, which is one stream.
    let next = w.as_ptr().wrapping_add(R * n);
    let (w, x): ([_; R], [_; T]) =
        (std::array::from_fn(|r| &w[r * n..][..n]), std::array::from_fn(|t| &x[t * n..][..n]));
    let mut sums = [[_mm512_setzero_ps(); T]; R];
    for i in 0..n {
        if T == 1 {
            (0..R).step_by(2).for_each(|line| _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(R * i + line).cast()));
        }
        let mut weights = [_mm512_setzero_ps(); R];
        for (weights, w) in weights.iter_mut().zip(w) {
            *weights = widen(&w[i]);
        }
        for (t, x) in x.iter().enumerate() {
            let x = load(&x[i]);
            for (sums, weights) in sums.iter_mut().zip(weights) {
                sums[t] = _mm512_fmadd_ps(weights, x, sums[t]);
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        for (t, sum) in sums.into_iter().enumerate() {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(sum)));
            acc[t * rows + r] = fold([_mm512_castps512_ps256(sum), high]);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[f32; LANES]) -> __m512 {
    // SAFETY: the array is as long as the load.
    #[allow(unsafe_code)]
    unsafe {
        _mm512_loadu_ps(x.as_ptr())
    }
}

/// BF16 to f32, exactly: it is the upper half.
#[inline]
#[target_feature(enable = "avx512f")]
fn widen(x: &[u16; LANES]) -> __m512 {
    // SAFETY: the array is as long as the load.
    #[allow(unsafe_code)]
    let halves = unsafe { _mm256_loadu_si256(x.as_ptr().cast()) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
}
