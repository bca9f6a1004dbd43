//! Integer dot products of one token in AVX2: `qs8-qc{2,4,8}w-gemv-4x1-avx2`. Several tokens: `gemm`.
//!
//! Unsigned 2-bit and 4-bit codes meet int8 activations in `vpmaddubsw`, which adds two products in an int16: at most
//! `2 · 3 · 128 = 768` or `2 · 15 · 128 = 3840`, so nothing saturates and an int16 holds 42 or 8 of them. Two 8-bit
//! products would saturate it (`2 · 2^14`); they are widened to int16 first and added in int32 by `vpmaddwd`.

use std::arch::x86_64::*;

use super::{FAR, gemm};
use crate::kernels::contract::{Bits, CHUNK, Codes, Planes, RowsOf};
use crate::kernels::gemv::{self, Gemv};

/// `dots` of the contract, compiled for this set.
#[target_feature(enable = "avx2")]
pub(super) fn dots<S: Gemv>(set: S, w: Codes<'_>, x: Planes<'_>, acc: &mut [i32]) {
    match (x.tokens(), w.bits()) {
        (0 | 1, _) => gemv::dots(set, w, x, acc),
        (_, Bits::Two) => gemm::tokens::<2>(w, x, acc),
        (_, Bits::Four) => gemm::tokens::<4>(w, x, acc),
        (_, Bits::Eight) => gemm::tokens::<8>(w, x, acc),
    }
}

/// `Σ code · q` of `R` rows with one token.
#[target_feature(enable = "avx2")]
pub(super) fn gemv<const BITS: usize, const R: usize>(rows: RowsOf<'_, R>, token: &[i8], stride: usize) -> [i32; R] {
    let len = gemv::check::<BITS, R>(rows, token, stride);
    let (row, chunk) = rows.strides();
    let start = rows.bytes().as_ptr();
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
                let place = r * row + at / CHUNK * chunk + at % CHUNK;
                if at.is_multiple_of(CHUNK) {
                    _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(place + FAR).cast());
                }
                // SAFETY: half of a chunk of row `r < R` which, as compared, has it: inside, as `strides` says.
                #[allow(unsafe_code)]
                unsafe {
                    _mm256_loadu_si256(start.add(place).cast())
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
pub(super) fn load_codes(rest: &[u8]) -> __m256i {
    let words = _mm256_set1_epi32((rest.len() / 4) as i32);
    let mask = _mm256_cmpgt_epi32(words, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    // SAFETY: the mask takes only the words that `rest` has; the others are not touched, by definition.
    #[allow(unsafe_code)]
    unsafe {
        _mm256_maskload_epi32(rest.as_ptr().cast(), mask)
    }
}

/// The sum of eight int32.
#[inline]
#[target_feature(enable = "avx2")]
fn total(sum: __m256i) -> i32 {
    let four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
    let two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
}
