//! Integer dot products in AVX2: `qs8-qc{2,4,8}w-gemm-{4x1,2x4}-avx2`.
//!
//! Unsigned 2-bit and 4-bit codes meet int8 activations in `vpmaddubsw`, which adds two products in an int16: at most
//! `2 · 15 · 128 = 3840`, and the sum over the planes of a byte at most 7680, so nothing saturates. Two 8-bit products
//! would (`2 · 2^14`); they are widened to int16 first and added in int32 by `vpmaddwd`.

use std::arch::x86_64::*;

use crate::kernels::tiles;

/// `Σ code · q` of `R` rows with `T` tokens.
#[target_feature(enable = "avx2")]
pub(super) fn tile<const BITS: usize, const R: usize, const T: usize>(
    rows: [&[u8]; R],
    tokens: [&[i8]; T],
    stride: usize,
) -> [[i32; T]; R] {
    let len = tiles::check::<BITS>(&rows, &tokens, stride);
    let mut sums = [[_mm256_setzero_si256(); T]; R];
    let mut at = 0;
    while at < len {
        for r in 0..R {
            let codes = load_codes(rows[r], at);
            if BITS == 8 {
                let halves = [_mm256_castsi256_si128(codes), _mm256_extracti128_si256::<1>(codes)];
                let [low, high] = halves.map(|half| _mm256_cvtepi8_epi16(half));
                for t in 0..T {
                    // SAFETY: `at < len` is a multiple of 32, so `check` says that 32 activations follow.
                    #[allow(unsafe_code)]
                    let [q_low, q_high] = unsafe {
                        let q = tokens[t].as_ptr().add(at);
                        [_mm_loadu_si128(q.cast()), _mm_loadu_si128(q.add(16).cast())]
                    };
                    let products = _mm256_add_epi32(
                        _mm256_madd_epi16(low, _mm256_cvtepi8_epi16(q_low)),
                        _mm256_madd_epi16(high, _mm256_cvtepi8_epi16(q_high)),
                    );
                    sums[r][t] = _mm256_add_epi32(sums[r][t], products);
                }
            } else {
                let fields = fields::<BITS>(codes);
                for t in 0..T {
                    let mut pairs = _mm256_setzero_si256();
                    for (p, &codes) in fields.iter().enumerate().take(8 / BITS) {
                        // SAFETY: `at < len` is a multiple of 32, so `check` says that plane `p` has 32 bytes there.
                        #[allow(unsafe_code)]
                        let q = unsafe { _mm256_loadu_si256(tokens[t].as_ptr().add(p * stride + at).cast()) };
                        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(codes, q));
                    }
                    let products = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
                    sums[r][t] = _mm256_add_epi32(sums[r][t], products);
                }
            }
        }
        at += 32;
    }
    sums.map(|row| row.map(|sum| total(sum)))
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

/// 32 bytes of `row` from `at` on, zeros past its end. Rows are whole 32-bit words (`k` is a multiple of 16).
#[inline]
#[target_feature(enable = "avx2")]
fn load_codes(row: &[u8], at: usize) -> __m256i {
    let left = row.len() - at;
    if left >= 32 {
        // SAFETY: as just compared.
        #[allow(unsafe_code)]
        return unsafe { _mm256_loadu_si256(row.as_ptr().add(at).cast()) };
    }
    let words = _mm256_set1_epi32((left / 4) as i32);
    let mask = _mm256_cmpgt_epi32(words, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    // SAFETY: the mask takes only the words that `row` still has; the others are not touched, by definition.
    #[allow(unsafe_code)]
    unsafe {
        _mm256_maskload_epi32(row.as_ptr().add(at).cast(), mask)
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
