//! Integer dot products in AVX2: `qs8-qc{2,4,8}w-gemv-4x1-avx2` and `qs8-qs8-gemm-4x2-avx2`.
//!
//! Unsigned 2-bit and 4-bit codes meet int8 activations in `vpmaddubsw`, which adds two products in an int16: at most
//! `2 · 3 · 128 = 768` or `2 · 15 · 128 = 3840`, so nothing saturates and an int16 holds 42 or 8 of them. Two 8-bit
//! products would saturate it (`2 · 2^14`); they are widened to int16 first and added in int32 by `vpmaddwd`.

use std::arch::x86_64::*;

use crate::kernels::contract::{CHUNK, Codes, Planes, RowsOf};
use crate::kernels::tiles::{self, CODES, ROWS, Tiles, Unpacked};

/// `dots` of the contract, compiled for this set.
#[target_feature(enable = "avx2")]
pub(super) fn dots<S: Tiles>(set: S, w: Codes<'_>, x: Planes<'_>, acc: &mut [i32]) {
    tiles::dots(set, w, x, acc);
}

/// `Σ code · q` of `R` rows with one token.
#[target_feature(enable = "avx2")]
pub(super) fn gemv<const BITS: usize, const R: usize>(rows: RowsOf<'_, R>, token: &[i8], stride: usize) -> [i32; R] {
    let len = tiles::check::<BITS, R>(rows, token, stride);
    let (row, chunk) = rows.strides();
    let mut sums = [_mm256_setzero_si256(); R];
    let mut at = 0;
    while at < len {
        let mut q = [_mm256_setzero_si256(); 4];
        for (p, q) in q.iter_mut().enumerate().take(8 / BITS) {
            // SAFETY: `at < len` is a multiple of 32, so `check` says that plane `p` has 32 bytes there.
            #[allow(unsafe_code)]
            unsafe {
                *q = _mm256_loadu_si256(token.as_ptr().add(p * stride + at).cast());
            }
        }
        for (r, sum) in sums.iter_mut().enumerate() {
            let codes = if at / CHUNK < len / CHUNK {
                // SAFETY: half of a chunk of row `r < R` which, as compared, has it: inside, as `strides` says.
                #[allow(unsafe_code)]
                unsafe {
                    let place = r * row + at / CHUNK * chunk + at % CHUNK;
                    _mm256_loadu_si256(rows.bytes().as_ptr().add(place).cast())
                }
            } else {
                load_codes(&rows.rest(r)[at % CHUNK..])
            };
            let products = if BITS == 8 {
                bytes(codes, q[0])
            } else {
                let mut pairs = _mm256_setzero_si256();
                for (&codes, &q) in fields::<BITS>(codes).iter().zip(&q).take(8 / BITS) {
                    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(codes, q));
                }
                _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
            };
            *sum = _mm256_add_epi32(*sum, products);
        }
        at += 32;
    }
    let mut totals = [0; R];
    for (total, sum) in totals.iter_mut().zip(sums) {
        *total = self::total(sum);
    }
    totals
}

/// Products of 32 signed bytes, added by fours.
#[inline]
#[target_feature(enable = "avx2")]
fn bytes(codes: __m256i, q: __m256i) -> __m256i {
    let wide = |low: __m128i| _mm256_cvtepi8_epi16(low);
    let (low, high) = (|x| wide(_mm256_castsi256_si128(x)), |x| wide(_mm256_extracti128_si256::<1>(x)));
    _mm256_add_epi32(_mm256_madd_epi16(low(codes), low(q)), _mm256_madd_epi16(high(codes), high(q)))
}

/// The codes of each plane of 32 packed bytes; a 16-bit shift is fine because what crosses a byte is masked away.
#[inline]
#[target_feature(enable = "avx2")]
fn fields<const BITS: usize>(codes: __m256i) -> [__m256i; 4] {
    if BITS == 2 {
        let mask = _mm256_set1_epi8(3);
        [
            _mm256_and_si256(codes, mask),
            _mm256_and_si256(_mm256_srli_epi16::<2>(codes), mask),
            _mm256_and_si256(_mm256_srli_epi16::<4>(codes), mask),
            _mm256_and_si256(_mm256_srli_epi16::<6>(codes), mask),
        ]
    } else {
        let mask = _mm256_set1_epi8(15);
        let none = _mm256_setzero_si256();
        [_mm256_and_si256(codes, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(codes), mask), none, none]
    }
}

/// The first 32 bytes of `rest`, zeros past its end. Rows are whole 32-bit words (`k` is a multiple of 16).
#[inline]
#[target_feature(enable = "avx2")]
fn load_codes(rest: &[u8]) -> __m256i {
    let words = _mm256_set1_epi32((rest.len() / 4) as i32);
    let mask = _mm256_cmpgt_epi32(words, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    // SAFETY: the mask takes only the words that `rest` has; the others are not touched, by definition.
    #[allow(unsafe_code)]
    unsafe {
        _mm256_maskload_epi32(rest.as_ptr().cast(), mask)
    }
}

/// `Σ code · q` of unpacked rows with `T` tokens, two at a time: 16 registers hold no more sums.
#[target_feature(enable = "avx2")]
pub(super) fn gemm<const BITS: usize, const T: usize>(
    codes: Unpacked<'_>,
    tokens: [&[i8]; T],
    stride: usize,
    at: usize,
) -> [[i32; ROWS]; T] {
    let mut all = [[0; ROWS]; T];
    let mut t = 0;
    while t + 2 <= T {
        [all[t], all[t + 1]] = some::<BITS, 2>(codes, [tokens[t], tokens[t + 1]], stride, at);
        t += 2;
    }
    if t < T {
        [all[t]] = some::<BITS, 1>(codes, [tokens[t]], stride, at);
    }
    all
}

/// Loops instead of closures: what a closure does here is not inlined into the
/// functions of the standard library that would call it, because they are not compiled for AVX2.
#[inline]
#[target_feature(enable = "avx2")]
fn some<const BITS: usize, const N: usize>(
    codes: Unpacked<'_>,
    tokens: [&[i8]; N],
    stride: usize,
    at: usize,
) -> [[i32; ROWS]; N] {
    // An int16 holds all the products of a row of 2-bit codes, and those of eight vectors of 4-bit codes.
    const { assert!(CODES / 32 <= 42) };
    let batch = if BITS == 4 { 8 * 32 } else { CODES };
    let mut sums = [[_mm256_setzero_si256(); ROWS]; N];
    let mut pairs = [[_mm256_setzero_si256(); ROWS]; N];
    for p in 0..8 / BITS {
        let (rows, q) = (codes.rows::<BITS>(p), codes.tokens::<BITS, N>(tokens, p, stride, at));
        let mut i = 0;
        while i < codes.len() {
            let end = codes.len().min(i + batch);
            while i < end {
                for r in 0..ROWS {
                    // SAFETY: `i < codes.len()`, the length of every slice here, and both are multiples of 32.
                    #[allow(unsafe_code)]
                    let codes = unsafe { _mm256_loadu_si256(rows[r].as_ptr().add(i).cast()) };
                    for n in 0..N {
                        // SAFETY: as above.
                        #[allow(unsafe_code)]
                        let q = unsafe { _mm256_loadu_si256(q[n].as_ptr().add(i).cast()) };
                        if BITS == 8 {
                            sums[n][r] = _mm256_add_epi32(sums[n][r], bytes(codes, q));
                        } else {
                            pairs[n][r] = _mm256_add_epi16(pairs[n][r], _mm256_maddubs_epi16(codes, q));
                        }
                    }
                }
                i += 32;
            }
            if BITS == 4 {
                widen(&mut sums, &mut pairs);
            }
        }
    }
    if BITS == 2 {
        widen(&mut sums, &mut pairs);
    }
    let mut all = [[0; ROWS]; N];
    for (all, sums) in all.iter_mut().zip(sums) {
        *all = totals(sums);
    }
    all
}

/// Empties the int16 sums into the int32 ones.
#[inline]
#[target_feature(enable = "avx2")]
fn widen<const N: usize>(sums: &mut [[__m256i; ROWS]; N], pairs: &mut [[__m256i; ROWS]; N]) {
    for n in 0..N {
        for r in 0..ROWS {
            sums[n][r] = _mm256_add_epi32(sums[n][r], _mm256_madd_epi16(pairs[n][r], _mm256_set1_epi16(1)));
            pairs[n][r] = _mm256_setzero_si256();
        }
    }
}

/// The sums of eight int32 each.
#[inline]
#[target_feature(enable = "avx2")]
fn totals([a, b, c, d]: [__m256i; ROWS]) -> [i32; ROWS] {
    let halves = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    let sums = _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
    [
        _mm_extract_epi32::<0>(sums),
        _mm_extract_epi32::<1>(sums),
        _mm_extract_epi32::<2>(sums),
        _mm_extract_epi32::<3>(sums),
    ]
}

/// The sum of eight int32.
#[inline]
#[target_feature(enable = "avx2")]
fn total(sum: __m256i) -> i32 {
    let four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
    let two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
}
