//! Integer dot products in AVX-512 VNNI: `qs8-qc{2,4,8}w-gemv-4x1-avx512vnni`. Several tokens: `gemm_vnni`.
//!
//! `vpdpbusd` adds four products of unsigned and signed bytes to an int32, exactly. Signed 8-bit codes become unsigned
//! ones by flipping their sign bit, which adds 128 to each: one more offset for `tiles` to take out. With it a sum stays
//! below `255 · 128 · 2^16 < 2^31`; so does a field that is masked where it stands (`192 · 128 · 2^14` for 2-bit codes,
//! `240 · 128 · 2^15` for 4-bit codes), whose sums are divided by its place value in the end.

use std::arch::x86_64::*;

use super::gemm_vnni;
use super::qdot::prefetch;
use crate::kernels::contract::{Bits, Codes, Planes};
use crate::kernels::tiles::{self, Gemv};

/// What 8-bit codes stand above their value here.
pub(super) const BYTE_OFFSET: i32 = 128;

/// `dots` of the contract, compiled for this set.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn dots<S: Gemv>(set: S, w: Codes<'_>, x: Planes<'_>, acc: &mut [i32]) {
    match (x.tokens(), w.bits()) {
        (0 | 1, _) => tiles::dots_one(set, w, x, acc),
        (_, Bits::Two) => gemm_vnni::tokens::<2>(w, x, acc),
        (_, Bits::Four) => gemm_vnni::tokens::<4>(w, x, acc),
        (_, Bits::Eight) => gemm_vnni::tokens::<8>(w, x, acc),
    }
}

/// `Σ code · q` of `R` rows with one token.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn gemv<const BITS: usize, const R: usize>(rows: [&[u8]; R], token: &[i8], stride: usize) -> [i32; R] {
    let len = tiles::check::<BITS>(&rows, token, stride);
    let mut sums = [[_mm512_setzero_si512(); 4]; R];
    let mut at = 0;
    while at < len {
        prefetch(&rows, at, 64);
        let mut q = [_mm512_setzero_si512(); 4];
        for (p, q) in q.iter_mut().enumerate().take(8 / BITS) {
            // SAFETY: `at < len` is a multiple of 64, so `check` says that plane `p` has 64 bytes there.
            #[allow(unsafe_code)]
            unsafe {
                *q = _mm512_loadu_si512(token.as_ptr().add(p * stride + at).cast());
            }
        }
        for r in 0..R {
            let codes = load_codes(rows[r], at);
            for p in 0..8 / BITS {
                let field = match BITS {
                    2 => _mm512_and_si512(codes, _mm512_set1_epi8((0x03_u8 << (2 * p)).cast_signed())),
                    4 => _mm512_and_si512(codes, _mm512_set1_epi8((0x0f_u8 << (4 * p)).cast_signed())),
                    // Past the end of a row this is 128 and not 0: the activations there are zero.
                    _ => _mm512_xor_si512(codes, _mm512_set1_epi8(-128)),
                };
                sums[r][p] = _mm512_dpbusd_epi32(sums[r][p], field, q[p]);
            }
        }
        at += 64;
    }
    let mut totals = [0; R];
    for (total, fields) in totals.iter_mut().zip(sums) {
        let mut sum = fields[0];
        if BITS == 2 {
            sum = _mm512_add_epi32(sum, _mm512_srai_epi32::<2>(fields[1]));
            sum = _mm512_add_epi32(sum, _mm512_srai_epi32::<4>(fields[2]));
            sum = _mm512_add_epi32(sum, _mm512_srai_epi32::<6>(fields[3]));
        } else if BITS == 4 {
            sum = _mm512_add_epi32(sum, _mm512_srai_epi32::<4>(fields[1]));
        }
        *total = _mm512_reduce_add_epi32(sum);
    }
    totals
}

/// 64 bytes of `row` from `at` on, zeros past its end.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn load_codes(row: &[u8], at: usize) -> __m512i {
    let left = row.len() - at;
    let mask = if left >= 64 { u64::MAX } else { (1 << left) - 1 };
    // SAFETY: the mask takes only the bytes that `row` still has; the others are not touched, by definition.
    #[allow(unsafe_code)]
    unsafe {
        _mm512_maskz_loadu_epi8(mask, row.as_ptr().add(at).cast())
    }
}
