//! Products of the attention in AVX2 and in AVX-512 VNNI, `qs8-qs8-gemm-16x2c4-avx2` and `qs8-qs8-gemm-32x8c4-avx512vnni`: a lane is a
//! row, whose four elements of a step are multiplied with four of a token that are broadcast.

use std::arch::x86_64::*;

use super::qdot_vnni::BYTE_OFFSET;
use crate::kernels::contract::{Planes, Quads};
use crate::kernels::shapes;

/// Tokens of the widest tile in AVX-512.
const TOKENS: usize = 8;

/// Bytes of a step: four elements of sixteen rows.
const STEP: usize = 4 * Quads::ROWS;

/// `dots_quads` of the contract. Signed bytes are widened to int16, since two products of theirs would saturate one.
#[target_feature(enable = "avx2")]
pub(super) fn avx2(w: Quads<'_>, x: Planes<'_>, acc: &mut [i32]) {
    shapes::quads(w, x, acc);
    for (group, codes) in w.codes().chunks_exact(Quads::ROWS * w.k()).enumerate() {
        let mut t = 0;
        while t < x.tokens() {
            let out = &mut acc[t * w.rows() + group * Quads::ROWS..];
            t += if x.tokens() - t == 1 {
                words::<1>(codes, x, t, out, w.rows())
            } else {
                words::<2>(codes, x, t, out, w.rows())
            };
        }
    }
}

/// Sixteen rows with the tokens `t..t + T`, whose sums are `apart` from one another in `out`; returns `T`.
#[inline]
#[target_feature(enable = "avx2")]
fn words<const T: usize>(codes: &[i8], x: Planes<'_>, t: usize, out: &mut [i32], apart: usize) -> usize {
    // Two sums for each of four rows.
    let mut sums = [[_mm256_setzero_si256(); 4]; T];
    let codes = codes.as_chunks::<STEP>().0;
    let tokens: [_; T] = std::array::from_fn(|i| fours(x, t + i, codes.len()));
    for (step, codes) in codes.iter().enumerate() {
        let mut rows = [_mm256_setzero_si256(); 4];
        if t == 0 {
            // With few tokens memory is the limit: the same place in the rows behind these.
            _mm_prefetch::<_MM_HINT_T0>(codes.as_ptr().wrapping_add(STEP * tokens[0].len()).cast());
        }
        for (rows, codes) in rows.iter_mut().zip(codes.as_chunks::<16>().0) {
            // SAFETY: the array is as long as the load.
            #[allow(unsafe_code)]
            unsafe {
                *rows = _mm256_cvtepi8_epi16(_mm_loadu_si128(codes.as_ptr().cast()));
            }
        }
        for (sums, token) in sums.iter_mut().zip(tokens) {
            let q = _mm256_cvtepi8_epi16(_mm_set1_epi32(bytemuck::cast(token[step])));
            for (sum, &rows) in sums.iter_mut().zip(&rows) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(rows, q));
            }
        }
    }
    for (i, [a, b, c, d]) in sums.into_iter().enumerate() {
        // Rows 0 1 4 5 | 2 3 6 7, put in order.
        let pairs = |a, b| _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(a, b));
        for (out, sums) in out[i * apart..].as_chunks_mut::<8>().0.iter_mut().zip([pairs(a, b), pairs(c, d)]) {
            // SAFETY: the array is as long as the store.
            #[allow(unsafe_code)]
            unsafe {
                _mm256_storeu_si256(out.as_mut_ptr().cast(), sums);
            }
        }
    }
    T
}

/// `dots_quads` of the contract. Signed bytes become unsigned ones as in `qdot_vnni`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn avx512vnni(w: Quads<'_>, x: Planes<'_>, acc: &mut [i32]) {
    shapes::quads(w, x, acc);
    let group = Quads::ROWS * w.k();
    for (pair, codes) in w.codes().chunks(2 * group).enumerate() {
        let whole = codes.len() == 2 * group;
        let mut t = 0;
        while t < x.tokens() {
            let out = &mut acc[t * w.rows() + pair * 2 * Quads::ROWS..];
            t += match (whole, x.tokens() - t) {
                (true, 1) => bytes::<1, 2>(codes, x, t, out, w.rows()),
                (true, 2..4) => bytes::<2, 2>(codes, x, t, out, w.rows()),
                (true, 4..8) => bytes::<4, 2>(codes, x, t, out, w.rows()),
                (true, _) => bytes::<TOKENS, 2>(codes, x, t, out, w.rows()),
                (false, 1) => bytes::<1, 1>(codes, x, t, out, w.rows()),
                (false, 2..4) => bytes::<2, 1>(codes, x, t, out, w.rows()),
                (false, 4..8) => bytes::<4, 1>(codes, x, t, out, w.rows()),
                (false, _) => bytes::<TOKENS, 1>(codes, x, t, out, w.rows()),
            };
        }
    }
}

/// `R` times sixteen rows with the tokens `t..t + T`, whose sums are `apart` from one another in `out`; returns `T`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn bytes<const T: usize, const R: usize>(
    codes: &[i8],
    x: Planes<'_>,
    t: usize,
    out: &mut [i32],
    apart: usize,
) -> usize {
    let steps = codes.len() / (R * STEP);
    let groups: [&[[i8; STEP]]; R] = std::array::from_fn(|r| &codes.as_chunks().0[r * steps..][..steps]);
    let tokens: [_; T] = std::array::from_fn(|i| fours(x, t + i, steps));
    let mut sums = [[_mm512_setzero_si512(); R]; T];
    for (i, sums) in sums.iter_mut().enumerate() {
        *sums = [_mm512_set1_epi32(-BYTE_OFFSET * x.sum(t + i)); R];
    }
    // Pointers: with slices the bounds of every token are compared in every step.
    let tokens = tokens.map(|token| token.as_ptr());
    // With few tokens memory is the limit. The rows behind these are fetched while the first tokens pass, or a half each while the first
    // and the second ones do: what waits for memory in one of two passes gains nothing from the other.
    let fetched: [bool; R] = std::array::from_fn(|r| t == if x.tokens() > TOKENS { r * TOKENS } else { 0 });
    for step in 0..steps {
        let mut rows = [_mm512_setzero_si512(); R];
        for (group, fetched) in groups.iter().zip(fetched) {
            if fetched {
                _mm_prefetch::<_MM_HINT_T0>(group.as_ptr().wrapping_add(R * steps + step).cast());
            }
        }
        for (rows, group) in rows.iter_mut().zip(groups) {
            // SAFETY: every group has `steps` steps, as long as the load.
            #[allow(unsafe_code)]
            let codes = unsafe { _mm512_loadu_si512(group.as_ptr().add(step).cast()) };
            *rows = _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
        }
        for (sums, token) in sums.iter_mut().zip(tokens) {
            // SAFETY: `fours` gave every token `steps` steps.
            #[allow(unsafe_code)]
            let q = _mm512_set1_epi32(bytemuck::cast(unsafe { *token.add(step) }));
            for (sum, &rows) in sums.iter_mut().zip(&rows) {
                *sum = _mm512_dpbusd_epi32(*sum, rows, q);
            }
        }
    }
    for (i, sums) in sums.into_iter().enumerate() {
        for (out, sums) in out[i * apart..].as_chunks_mut::<{ Quads::ROWS }>().0.iter_mut().zip(sums) {
            // SAFETY: the array is as long as the store.
            #[allow(unsafe_code)]
            unsafe {
                _mm512_storeu_si512(out.as_mut_ptr().cast(), sums);
            }
        }
    }
    T
}

/// The elements of token `t`, by steps.
#[inline(always)]
fn fours<'a>(x: Planes<'a>, t: usize, steps: usize) -> &'a [[i8; 4]] {
    &x.token(t).as_chunks().0[..steps]
}
