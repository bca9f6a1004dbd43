//! Integer dot products in AVX-512 VNNI: `qs8-qc{2,4,8}w-gemm-{4x1,2x4}-avx512vnni`.
//!
//! `vpdpbusd` adds four products of unsigned and signed bytes to an int32, exactly. Signed 8-bit codes become unsigned
//! ones by flipping their sign bit, which adds 128 to each: one more offset for `tiles` to take out. With it a sum stays
//! below `255 · 128 · 2^16 < 2^31`.

use std::arch::x86_64::*;

use crate::kernels::tiles;

/// What 8-bit codes stand above their value here.
pub(super) const BYTE_OFFSET: i32 = 128;

/// `Σ code · q` of `R` rows with `T` tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn tile<const BITS: usize, const R: usize, const T: usize>(
    rows: [&[u8]; R],
    tokens: [&[i8]; T],
    stride: usize,
) -> [[i32; T]; R] {
    let len = tiles::check::<BITS>(&rows, &tokens, stride);
    let mut sums = [[_mm512_setzero_si512(); T]; R];
    let mut at = 0;
    while at < len {
        for r in 0..R {
            let fields = fields::<BITS>(load_codes(rows[r], at));
            for t in 0..T {
                for (p, &codes) in fields.iter().enumerate().take(8 / BITS) {
                    // SAFETY: `at < len` is a multiple of 64, so `check` says that plane `p` has 64 bytes there.
                    #[allow(unsafe_code)]
                    let q = unsafe { _mm512_loadu_si512(tokens[t].as_ptr().add(p * stride + at).cast()) };
                    sums[r][t] = _mm512_dpbusd_epi32(sums[r][t], codes, q);
                }
            }
        }
        at += 64;
    }
    sums.map(|row| row.map(|sum| _mm512_reduce_add_epi32(sum)))
}

/// The codes of each plane of 64 packed bytes; a 16-bit shift is fine because what crosses a byte is masked away.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn fields<const BITS: usize>(codes: __m512i) -> [__m512i; 4] {
    let none = _mm512_setzero_si512();
    match BITS {
        2 => {
            let mask = _mm512_set1_epi8(3);
            [
                _mm512_and_si512(codes, mask),
                _mm512_and_si512(_mm512_srli_epi16::<2>(codes), mask),
                _mm512_and_si512(_mm512_srli_epi16::<4>(codes), mask),
                _mm512_and_si512(_mm512_srli_epi16::<6>(codes), mask),
            ]
        }
        4 => {
            let mask = _mm512_set1_epi8(15);
            [_mm512_and_si512(codes, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(codes), mask), none, none]
        }
        // Past the end of a row this is 128 and not 0: the activations there are zero.
        _ => [_mm512_xor_si512(codes, _mm512_set1_epi8(-128)), none, none, none],
    }
}

/// 64 bytes of `row` from `at` on, zeros past its end.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_codes(row: &[u8], at: usize) -> __m512i {
    let left = row.len() - at;
    let mask = if left >= 64 { u64::MAX } else { (1 << left) - 1 };
    // SAFETY: the mask takes only the bytes that `row` still has; the others are not touched, by definition.
    #[allow(unsafe_code)]
    unsafe {
        _mm512_maskz_loadu_epi8(mask, row.as_ptr().add(at).cast())
    }
}
