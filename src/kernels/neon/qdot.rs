//! Integer dot products in Armv8.0 NEON: `qs8-qc{2,4,8}w-gemv-4x1-neon` and `qs8-qs8-gemm-4x2-neon`.
//!
//! `smlal` multiplies eight bytes and adds them to int16 sums, `sadalp` folds those into int32. An int16 holds 85 products
//! of 2-bit codes (`3 · 128 = 384`) and 17 of 4-bit codes (`15 · 128 = 1920`), so it is emptied after 80 and after 16 at most. Of
//! two 8-bit products (`2 · 2^14`) it holds only one.
//!
//! A Cortex-A72 multiplies on one of its two vector pipes: eight products a cycle is the limit, for a prompt and for a
//! single token. Masks, shifts and `sadalp` go to the other pipe beside it. Look-ups by `tbl` (two codes an index, int16
//! tables of a pair of activations) came to 5.8 codes a cycle by `llvm-mca`, this loop to 8.0.

use std::arch::aarch64::*;

use super::qdot_sdot::{last_codes, load_codes, load_q, prefetch, totals};
use super::tiles::{self, Tiles, Unpacked};
use crate::kernels::contract::{CHUNK, Codes, Planes, RowsOf};
use crate::kernels::gemv::{self, ROWS};

/// Products that an int16 sum holds.
const fn products<const BITS: usize>() -> usize {
    if BITS == 2 { 80 } else { 16 }
}

/// `dots` of the contract, compiled for this set.
#[target_feature(enable = "neon")]
pub(super) fn dots<S: Tiles>(set: S, w: Codes<'_>, x: Planes<'_>, acc: &mut [i32]) {
    tiles::dots(set, w, x, acc);
}

/// `Σ code · q` of `R` rows with one token.
#[target_feature(enable = "neon")]
pub(super) fn gemv<const BITS: usize, const R: usize>(rows: RowsOf<'_, R>, token: &[i8], stride: usize) -> [i32; R] {
    let len = gemv::check::<BITS, R>(rows, token, stride);
    let mut sums = [vdupq_n_s32(0); R];
    for chunk in 0..len / CHUNK {
        prefetch(rows, chunk);
        // Four vectors of 16 packed bytes put eight products of every plane into each sum: 32 of 2-bit codes, 16 of 4-bit codes.
        let mut shorts = [vdupq_n_s16(0); R];
        for part in (0..CHUNK).step_by(16) {
            let q = load_q::<BITS>(token, stride, chunk * CHUNK + part);
            for r in 0..R {
                (sums[r], shorts[r]) = step::<BITS>(sums[r], shorts[r], load_codes(rows, r, chunk, part), q);
            }
        }
        for r in 0..R {
            sums[r] = vpadalq_s16(sums[r], shorts[r]);
        }
    }
    let mut totals = [0; R];
    for r in 0..R {
        let (whole, rest) = (len / CHUNK * CHUNK, rows.rest(r));
        for at in (0..rest.len()).step_by(16) {
            let q = load_q::<BITS>(token, stride, whole + at);
            let (sum, short) = step::<BITS>(sums[r], vdupq_n_s16(0), last_codes(&rest[at..]), q);
            sums[r] = vpadalq_s16(sum, short);
        }
        totals[r] = vaddvq_s32(sums[r]);
    }
    totals
}

/// 16 packed bytes of a row with their activations.
#[inline]
#[target_feature(enable = "neon")]
fn step<const BITS: usize>(
    sum: int32x4_t,
    short: int16x8_t,
    codes: uint8x16_t,
    q: [int8x16_t; 4],
) -> (int32x4_t, int16x8_t) {
    let (mut sum, mut short) = (sum, short);
    for (codes, q) in fields::<BITS>(codes).into_iter().zip(q).take(8 / BITS) {
        (sum, short) = multiply::<BITS>(sum, short, codes, q);
    }
    (sum, short)
}

/// 16 products: of few bits into the int16 sums, of 8 bits into the int32 ones.
#[inline]
#[target_feature(enable = "neon")]
fn multiply<const BITS: usize>(
    sum: int32x4_t,
    short: int16x8_t,
    codes: int8x16_t,
    q: int8x16_t,
) -> (int32x4_t, int16x8_t) {
    if BITS == 8 {
        let sum = vpadalq_s16(sum, vmull_s8(vget_low_s8(codes), vget_low_s8(q)));
        (vpadalq_s16(sum, vmull_high_s8(codes, q)), short)
    } else {
        (sum, smlal(short, codes, q))
    }
}

/// `vmlal_high_s8(vmlal_s8(sum, a.low, b.low), a, b)`, as instructions: of masked codes LLVM knows that they are not negative,
/// and then widens them by themselves and multiplies int16, at twice the work.
#[inline]
#[target_feature(enable = "neon")]
fn smlal(sum: int16x8_t, a: int8x16_t, b: int8x16_t) -> int16x8_t {
    let mut sum = sum;
    // SAFETY: two instructions on the registers that they name.
    #[allow(unsafe_code)]
    unsafe {
        std::arch::asm!(
            "smlal {sum:v}.8h, {a:v}.8b, {b:v}.8b",
            "smlal2 {sum:v}.8h, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// The codes of each plane of 16 packed bytes.
#[inline]
#[target_feature(enable = "neon")]
fn fields<const BITS: usize>(codes: uint8x16_t) -> [int8x16_t; 4] {
    let none = vdupq_n_u8(0);
    let fields = match BITS {
        2 => {
            let mask = vdupq_n_u8(3);
            let (second, third) = (vshrq_n_u8::<2>(codes), vshrq_n_u8::<4>(codes));
            [vandq_u8(codes, mask), vandq_u8(second, mask), vandq_u8(third, mask), vshrq_n_u8::<6>(codes)]
        }
        4 => [vandq_u8(codes, vdupq_n_u8(15)), vshrq_n_u8::<4>(codes), none, none],
        _ => [codes, none, none, none],
    };
    fields.map(|field| vreinterpretq_s8_u8(field))
}

/// `Σ code · q` of unpacked rows with `T` tokens, two at a time: more would not leave registers for two kinds of sums.
#[target_feature(enable = "neon")]
pub(super) fn gemm<const BITS: usize, const T: usize>(
    codes: Unpacked<'_>,
    tokens: [&[i8]; T],
    stride: usize,
    at: usize,
) -> [[i32; ROWS]; T] {
    let mut all = [[0; ROWS]; T];
    let mut t = 0;
    while t + 2 <= T {
        [all[t], all[t + 1]] = pair::<BITS, 2>(codes, [tokens[t], tokens[t + 1]], stride, at);
        t += 2;
    }
    if t < T {
        [all[t]] = pair::<BITS, 1>(codes, [tokens[t]], stride, at);
    }
    all
}

#[inline]
#[target_feature(enable = "neon")]
fn pair<const BITS: usize, const T: usize>(
    codes: Unpacked<'_>,
    tokens: [&[i8]; T],
    stride: usize,
    at: usize,
) -> [[i32; ROWS]; T] {
    let batch = 16 * (products::<BITS>() / 2);
    let mut sums = [[vdupq_n_s32(0); T]; ROWS];
    for p in 0..8 / BITS {
        let (rows, q) = (codes.rows::<BITS>(p), codes.tokens::<BITS, T>(tokens, p, stride, at));
        let mut i = 0;
        while i < codes.len() {
            let end = codes.len().min(i + batch);
            let mut shorts = [[vdupq_n_s16(0); T]; ROWS];
            while i < end {
                for r in 0..ROWS {
                    // SAFETY: `i < codes.len()`, the length of every slice here, and both are multiples of 16.
                    #[allow(unsafe_code)]
                    let codes = unsafe { vld1q_s8(rows[r].as_ptr().add(i).cast()) };
                    for t in 0..T {
                        // SAFETY: as above.
                        #[allow(unsafe_code)]
                        let q = unsafe { vld1q_s8(q[t].as_ptr().add(i)) };
                        (sums[r][t], shorts[r][t]) = multiply::<BITS>(sums[r][t], shorts[r][t], codes, q);
                    }
                }
                i += 16;
            }
            for r in 0..ROWS {
                for t in 0..T {
                    sums[r][t] = vpadalq_s16(sums[r][t], shorts[r][t]);
                }
            }
        }
    }
    let mut all = [[0; ROWS]; T];
    for t in 0..T {
        all[t] = totals([sums[0][t], sums[1][t], sums[2][t], sums[3][t]]);
    }
    all
}
