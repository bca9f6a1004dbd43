//! Integer dot products in AVX-512 VNNI: `qs8-qc{2,4,8}w-gemv-4x1-avx512vnni`. Several tokens: `gemm_vnni`.
//!
//! `vpdpbusd` adds four products of unsigned and signed bytes to an int32, exactly. Signed 8-bit codes become unsigned
//! ones by flipping their sign bit, which adds 128 to each: one more offset for `tiles` to take out. With it a sum stays
//! below `255 · 128 · 2^16 < 2^31`; so does a field that is masked where it stands (`192 · 128 · 2^14` for 2-bit codes,
//! `240 · 128 · 2^15` for 4-bit codes), whose sums are divided by its place value in the end.

use std::arch::x86_64::*;

use super::gemm_vnni;
use crate::kernels::contract::{Bits, CHUNK, Codes, Planes, RowsOf};
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
pub(super) fn gemv<const BITS: usize, const R: usize>(rows: RowsOf<'_, R>, token: &[i8], stride: usize) -> [i32; R] {
    let len = tiles::check::<BITS, R>(rows, token, stride);
    let (row, chunk) = rows.strides();
    // No prefetch: groups are a single stream, which the CPU is ahead of by itself.
    let mut fields = [[_mm512_setzero_si512(); 4]; R];
    let mut at = 0;
    while at + CHUNK <= len {
        let q = load_q::<BITS>(token, stride, at);
        for (r, fields) in fields.iter_mut().enumerate() {
            // SAFETY: `at + CHUNK <= len` and `r < R`: inside, as `strides` says.
            #[allow(unsafe_code)]
            let codes = unsafe { _mm512_loadu_si512(rows.bytes().as_ptr().add(r * row + at / CHUNK * chunk).cast()) };
            *fields = step::<BITS>(*fields, codes, q);
        }
        at += CHUNK;
    }
    if at < len {
        let q = load_q::<BITS>(token, stride, at);
        for (r, fields) in fields.iter_mut().enumerate() {
            *fields = step::<BITS>(*fields, load_codes(rows.rest(r)), q);
        }
    }
    let mut sums = [_mm512_setzero_si512(); R];
    for (sum, fields) in sums.iter_mut().zip(fields) {
        *sum = fields[0];
        if BITS == 2 {
            *sum = _mm512_add_epi32(*sum, _mm512_srai_epi32::<2>(fields[1]));
            *sum = _mm512_add_epi32(*sum, _mm512_srai_epi32::<4>(fields[2]));
            *sum = _mm512_add_epi32(*sum, _mm512_srai_epi32::<6>(fields[3]));
        } else if BITS == 4 {
            *sum = _mm512_add_epi32(*sum, _mm512_srai_epi32::<4>(fields[1]));
        }
    }
    match sums.first_chunk() {
        // Rows are short: four sums across a register, one by one, would take as long as the products.
        Some(&[a, b, c, d]) if R == 4 => {
            let mut totals = [0; R];
            totals.copy_from_slice(&four_totals(a, b, c, d));
            totals
        }
        _ => sums.map(|sum| _mm512_reduce_add_epi32(sum)),
    }
}

/// The sums of the lanes of four registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn four_totals(a: __m512i, b: __m512i, c: __m512i, d: __m512i) -> [i32; 4] {
    let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    let all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    let half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64::<1>(all));
    let four = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
    let mut totals = [0; 4];
    // SAFETY: the array is as long as the store.
    #[allow(unsafe_code)]
    unsafe {
        _mm_storeu_si128(totals.as_mut_ptr().cast(), four);
    }
    totals
}

/// 64 packed bytes of a row with their activations; a field is masked where it stands.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn step<const BITS: usize>(mut sums: [__m512i; 4], codes: __m512i, q: [__m512i; 4]) -> [__m512i; 4] {
    for p in 0..8 / BITS {
        let field = match BITS {
            2 => _mm512_and_si512(codes, _mm512_set1_epi8((0x03_u8 << (2 * p)).cast_signed())),
            4 => _mm512_and_si512(codes, _mm512_set1_epi8((0x0f_u8 << (4 * p)).cast_signed())),
            // Past the end of a row this is 128 and not 0: the activations there are zero.
            _ => _mm512_xor_si512(codes, _mm512_set1_epi8(-128)),
        };
        sums[p] = _mm512_dpbusd_epi32(sums[p], field, q[p]);
    }
    sums
}

/// 64 activations of every plane from `at` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_q<const BITS: usize>(token: &[i8], stride: usize, at: usize) -> [__m512i; 4] {
    debug_assert!(token.len() == 8 / BITS * stride && at + 64 <= stride);
    let mut q = [_mm512_setzero_si512(); 4];
    for (p, q) in q.iter_mut().enumerate().take(8 / BITS) {
        // SAFETY: `at < len <= stride`, `at` and `stride` are multiples of 64, and `tiles::check` saw that the token has
        // `8 / BITS` planes of `stride` bytes.
        #[allow(unsafe_code)]
        unsafe {
            *q = _mm512_loadu_si512(token.as_ptr().add(p * stride + at).cast());
        }
    }
    q
}

/// The first 64 bytes of `chunk`, zeros past its end.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn load_codes(chunk: &[u8]) -> __m512i {
    let mask = if chunk.len() >= 64 { u64::MAX } else { (1 << chunk.len()) - 1 };
    // SAFETY: the mask takes only the bytes that `chunk` has; the others are not touched, by definition.
    #[allow(unsafe_code)]
    unsafe {
        _mm512_maskz_loadu_epi8(mask, chunk.as_ptr().cast())
    }
}
