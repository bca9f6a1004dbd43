//! Integer dot products in AVX-512 VNNI: `qs8-qc{2,4,8}w-gemv-4x1-avx512vnni` for one token, `-gemv-4x4-` for a few, as in the
//! verification of guesses, which is bound by memory too. Many tokens: `gemm_vnni`.
//!
//! `vpdpbusd` adds four products of unsigned and signed bytes to an int32, exactly. Signed 8-bit codes become unsigned
//! ones by flipping their sign bit, which adds 128 to each: one more offset to take out. With it a sum stays
//! below `255 · 128 · 2^16 < 2^31`; so does a field that is masked where it stands (`192 · 128 · 2^14` for 2-bit codes,
//! `240 · 128 · 2^15` for 4-bit codes), whose sums are divided by its place value in the end.

use std::arch::x86_64::*;

use super::{FAR, gemm_vnni};
use crate::kernels::contract::{Bits, CHUNK, Codes, Planes, RowsOf};
use crate::kernels::gemv::{self, Gemv, ROWS};
use crate::kernels::shapes;

/// Most tokens for which rows are read where they stand. From here on `gemm_vnni` is faster, which transposes them.
const FEW: usize = 8;

/// Tokens of a tile of a few: 16 sums, and what they are made of, fill the registers.
const TOKENS: usize = 4;

/// Tiles of rows by which what is read of a few tokens is fetched before.
const AHEAD: usize = 2;

/// What 8-bit codes stand above their value here.
pub(super) const BYTE_OFFSET: i32 = 128;

/// `dots` of the contract, compiled for this set.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn dots<S: Gemv>(set: S, w: Codes<'_>, x: Planes<'_>, acc: &mut [i32]) {
    match (x.tokens(), w.bits()) {
        (0 | 1, _) => gemv::dots(set, w, x, acc),
        (..=FEW, Bits::Two) => few::<2>(w, x, acc),
        (..=FEW, Bits::Four) => few::<4>(w, x, acc),
        (..=FEW, Bits::Eight) => few::<8>(w, x, acc),
        (_, Bits::Two) => gemm_vnni::tokens::<2>(w, x, acc),
        (_, Bits::Four) => gemm_vnni::tokens::<4>(w, x, acc),
        (_, Bits::Eight) => gemm_vnni::tokens::<8>(w, x, acc),
    }
}

/// `Σ code · q` of `R` rows with one token.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn gemv<const BITS: usize, const R: usize>(rows: RowsOf<'_, R>, token: &[i8], stride: usize) -> [i32; R] {
    let len = gemv::check::<BITS, R>(rows, token, stride);
    let (row, chunk) = rows.strides();
    let start = rows.bytes().as_ptr();
    let mut fields = [[_mm512_setzero_si512(); 4]; R];
    let mut at = 0;
    while at + CHUNK <= len {
        let q = load_q::<BITS>(token, stride, at);
        for (r, fields) in fields.iter_mut().enumerate() {
            let place = r * row + at / CHUNK * chunk;
            _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(place + FAR).cast());
            // SAFETY: `at + CHUNK <= len` and `r < R`: inside, as `strides` says.
            #[allow(unsafe_code)]
            let codes = unsafe { _mm512_loadu_si512(start.add(place).cast()) };
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
    totals(&sums)
}

/// `acc[t * rows + r] = Σ code · q − offset · Σ q` of a few tokens: four rows at a time, which stay in the first-level cache while
/// all tokens pass.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn few<const BITS: usize>(w: Codes<'_>, x: Planes<'_>, acc: &mut [i32]) {
    shapes::dots(w, x, acc);
    let offset = if w.bits() == Bits::Eight { BYTE_OFFSET } else { w.bits().offset() };
    let (rows, tokens) = (w.rows(), x.tokens());
    let mut r = 0;
    while r < rows {
        let height = if rows - r < ROWS { 1 } else { ROWS };
        let mut t = 0;
        while t < tokens {
            let width = (tokens - t).min(TOKENS);
            let out = &mut acc[t * rows + r..];
            match (height, width) {
                (ROWS, 1) => tile::<BITS, ROWS, 1>(w.rows_of(r), x, t, out, rows),
                (ROWS, 2) => tile::<BITS, ROWS, 2>(w.rows_of(r), x, t, out, rows),
                (ROWS, 3) => tile::<BITS, ROWS, 3>(w.rows_of(r), x, t, out, rows),
                (ROWS, _) => tile::<BITS, ROWS, TOKENS>(w.rows_of(r), x, t, out, rows),
                (_, 1) => tile::<BITS, 1, 1>(w.rows_of(r), x, t, out, rows),
                (_, 2) => tile::<BITS, 1, 2>(w.rows_of(r), x, t, out, rows),
                (_, 3) => tile::<BITS, 1, 3>(w.rows_of(r), x, t, out, rows),
                _ => tile::<BITS, 1, TOKENS>(w.rows_of(r), x, t, out, rows),
            }
            t += width;
        }
        r += height;
    }
    for (t, acc) in acc.chunks_exact_mut(rows.max(1)).enumerate() {
        let offset = offset * x.sum(t);
        acc.iter_mut().for_each(|sum| *sum -= offset);
    }
}

/// `Σ code · q` of `R` rows with the tokens `t..t + T`, whose sums are `apart` from one another in `out`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tile<const BITS: usize, const R: usize, const T: usize>(
    rows: RowsOf<'_, R>,
    x: Planes<'_>,
    t: usize,
    out: &mut [i32],
    apart: usize,
) {
    let (row, chunk) = rows.strides();
    let mut tokens: [&[i8]; T] = [&[]; T];
    let mut len = 0;
    for (i, token) in tokens.iter_mut().enumerate() {
        *token = x.token(t + i);
        len = gemv::check::<BITS, R>(rows, token, x.stride());
    }
    let mut sums = [[_mm512_setzero_si512(); R]; T];
    let mut at = 0;
    while at + CHUNK <= len {
        // The CPU does not see a stream in what several tokens pass over: as many bytes from the rows behind the next ones as are
        // read here.
        let ahead = rows.bytes().as_ptr().wrapping_add(AHEAD * rows.bytes().len() + R * at);
        (0..R).for_each(|line| _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line * CHUNK).cast()));
        let mut codes = [_mm512_setzero_si512(); R];
        for (r, codes) in codes.iter_mut().enumerate() {
            // SAFETY: `at + CHUNK <= len` and `r < R`: inside, as `strides` says.
            #[allow(unsafe_code)]
            unsafe {
                *codes = _mm512_loadu_si512(rows.bytes().as_ptr().add(r * row + at / CHUNK * chunk).cast());
            }
        }
        sums = add::<BITS, R, T>(sums, codes, tokens, x.stride(), at);
        at += CHUNK;
    }
    if at < len {
        let mut codes = [_mm512_setzero_si512(); R];
        for (r, codes) in codes.iter_mut().enumerate() {
            *codes = load_codes(rows.rest(r));
        }
        sums = add::<BITS, R, T>(sums, codes, tokens, x.stride(), at);
    }
    for (i, sums) in sums.iter().enumerate() {
        out[i * apart..][..R].copy_from_slice(&totals(sums));
    }
}

/// 64 packed bytes of every row with every token's activations.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn add<const BITS: usize, const R: usize, const T: usize>(
    mut sums: [[__m512i; R]; T],
    mut codes: [__m512i; R],
    tokens: [&[i8]; T],
    stride: usize,
    at: usize,
) -> [[__m512i; R]; T] {
    for p in 0..8 / BITS {
        let mut q = [_mm512_setzero_si512(); T];
        for (q, token) in q.iter_mut().zip(tokens) {
            *q = load_plane::<BITS>(token, stride, at, p);
        }
        for (r, codes) in codes.iter_mut().enumerate() {
            // One set of sums for all planes, so that there are registers for all tokens: fields are brought to their place.
            let field = match BITS {
                2 => _mm512_and_si512(*codes, _mm512_set1_epi8(0x03)),
                4 => _mm512_and_si512(*codes, _mm512_set1_epi8(0x0f)),
                _ => _mm512_xor_si512(*codes, _mm512_set1_epi8(-128)),
            };
            for (sums, &q) in sums.iter_mut().zip(&q) {
                sums[r] = _mm512_dpbusd_epi32(sums[r], field, q);
            }
            // Of 16-bit lanes: what crosses a byte is masked away.
            *codes = if BITS == 2 { _mm512_srli_epi16::<2>(*codes) } else { _mm512_srli_epi16::<4>(*codes) };
        }
    }
    sums
}

/// The sums of the lanes of every register.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn totals<const R: usize>(sums: &[__m512i; R]) -> [i32; R] {
    match sums.first_chunk() {
        // Rows are short: four sums across a register, one by one, would take as long as the products.
        Some(&[a, b, c, d]) if R == ROWS => {
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
    let mut q = [_mm512_setzero_si512(); 4];
    for (p, q) in q.iter_mut().enumerate().take(8 / BITS) {
        *q = load_plane::<BITS>(token, stride, at, p);
    }
    q
}

/// 64 activations of plane `p` from `at` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_plane<const BITS: usize>(token: &[i8], stride: usize, at: usize, p: usize) -> __m512i {
    debug_assert!(p < 8 / BITS && token.len() == 8 / BITS * stride && at + 64 <= stride);
    // SAFETY: `p` is one of the `8 / BITS` planes, `at < len <= stride`, `at` and `stride` are multiples of 64, and
    // `gemv::check` saw that the token has `8 / BITS` planes of `stride` bytes.
    #[allow(unsafe_code)]
    unsafe {
        _mm512_loadu_si512(token.as_ptr().add(p * stride + at).cast())
    }
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
