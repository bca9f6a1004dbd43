//! Integer dot products with `sdot`: `qs8-qc{2,4,8}w-gemv-4x1-neondot` and `qs8-qs8-gemm-4x4-neondot`.
//!
//! `sdot` adds four products of signed bytes to an int32, exactly; codes of 2 and 4 bits are small signed bytes.
//!
//! A Cortex-A76 has two vector pipes; `and` and `sdot` go to either, a shift to one of them only. So a field of a byte is
//! masked where it stands and its sums are divided by its place value (4 or 16, exactly) in the end. The highest field
//! would be negative as a signed byte: it alone is shifted, into the lowest place. 64 two-bit codes take eight operations,
//! four cycles; by `llvm-mca` (neoverse-n1) the loop does 16.0 codes a cycle, as does the one for 4 bits.

use std::arch::aarch64::*;

use super::tiles::{self, Tiles, Unpacked};
use crate::kernels::contract::{CHUNK, Codes, GROUP, Planes, RowsOf};
use crate::kernels::gemv::{self, ROWS};

/// Bytes that a prefetch is ahead.
const AHEAD: usize = 4096;

/// `dots` of the contract, compiled for this set.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn dots<S: Tiles>(set: S, w: Codes<'_>, x: Planes<'_>, acc: &mut [i32]) {
    tiles::dots(set, w, x, acc);
}

/// `Σ code · q` of `R` rows with one token.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn gemv<const BITS: usize, const R: usize>(rows: RowsOf<'_, R>, token: &[i8], stride: usize) -> [i32; R] {
    let len = gemv::check::<BITS, R>(rows, token, stride);
    // By place value: 1, 4 and 16.
    let mut sums = [[vdupq_n_s32(0); 3]; R];
    for chunk in 0..len / CHUNK {
        prefetch(rows, chunk);
        for part in (0..CHUNK).step_by(16) {
            let q = load_q::<BITS>(token, stride, chunk * CHUNK + part);
            for (r, sums) in sums.iter_mut().enumerate() {
                *sums = step::<BITS>(*sums, load_codes(rows, r, chunk, part), q);
            }
        }
    }
    for (r, sums) in sums.iter_mut().enumerate() {
        let (whole, rest) = (len / CHUNK * CHUNK, rows.rest(r));
        for at in (0..rest.len()).step_by(16) {
            *sums = step::<BITS>(*sums, last_codes(&rest[at..]), load_q::<BITS>(token, stride, whole + at));
        }
    }
    let mut totals = [0; R];
    for (total, [ones, fours, sixteens]) in totals.iter_mut().zip(sums) {
        let fours = vaddq_s32(vshrq_n_s32::<2>(fours), vshrq_n_s32::<4>(sixteens));
        *total = vaddvq_s32(if BITS == 2 { vaddq_s32(ones, fours) } else { ones });
    }
    totals
}

/// 16 bytes from `part`, a multiple of that, of a chunk of row `r`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_codes<const R: usize>(rows: RowsOf<'_, R>, r: usize, chunk: usize, part: usize) -> uint8x16_t {
    debug_assert!(r < R && (chunk + 1) * CHUNK <= rows.row_bytes() && part + 16 <= CHUNK);
    let (row, step) = rows.strides();
    // SAFETY: the row has this chunk, so it is inside, as `strides` says; `part + 16 <= CHUNK`.
    #[allow(unsafe_code)]
    unsafe {
        vld1q_u8(rows.bytes().as_ptr().add(r * row + chunk * step + part))
    }
}

/// Asks the memory, while a chunk of each row is multiplied, for as many bytes of what follows [`AHEAD`] bytes later.
#[inline]
pub(super) fn prefetch<const R: usize>(rows: RowsOf<'_, R>, chunk: usize) {
    let ahead = rows.bytes().as_ptr().wrapping_add(chunk * R * CHUNK + AHEAD);
    // SAFETY: a prefetch reads nothing and faults nowhere; the address may be that of anything.
    #[allow(unsafe_code)]
    unsafe {
        std::arch::asm!("prfm pldl1strm, [{0}]", in(reg) ahead, options(readonly, nostack, preserves_flags));
        if R == GROUP {
            std::arch::asm!(
                "prfm pldl1strm, [{0}, #64]", "prfm pldl1strm, [{0}, #128]", "prfm pldl1strm, [{0}, #192]",
                in(reg) ahead, options(readonly, nostack, preserves_flags)
            );
        }
    }
}

/// 16 packed bytes of a row with their activations.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn step<const BITS: usize>(sums: [int32x4_t; 3], codes: uint8x16_t, q: [int8x16_t; 4]) -> [int32x4_t; 3] {
    let [ones, fours, sixteens] = sums;
    let field = |mask: u8| vreinterpretq_s8_u8(vandq_u8(codes, vdupq_n_u8(mask)));
    match BITS {
        2 => {
            let ones = sdot(ones, field(0x03), q[0]);
            let fours = sdot(fours, field(0x0c), q[1]);
            let sixteens = sdot(sixteens, field(0x30), q[2]);
            [sdot(ones, vreinterpretq_s8_u8(vshrq_n_u8::<6>(codes)), q[3]), fours, sixteens]
        }
        4 => {
            let ones = sdot(ones, field(0x0f), q[0]);
            [sdot(ones, vreinterpretq_s8_u8(vshrq_n_u8::<4>(codes)), q[1]), fours, sixteens]
        }
        _ => [sdot(ones, vreinterpretq_s8_u8(codes), q[0]), fours, sixteens],
    }
}

/// 16 activations of every plane from `at` on.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_q<const BITS: usize>(token: &[i8], stride: usize, at: usize) -> [int8x16_t; 4] {
    debug_assert!(token.len() == 8 / BITS * stride && at + 16 <= stride);
    let mut q = [vdupq_n_s8(0); 4];
    for (p, q) in q.iter_mut().enumerate().take(8 / BITS) {
        // SAFETY: `at < len <= stride`, `at` and `stride` are multiples of 16, and `gemv::check` saw that the token has
        // `8 / BITS` planes of `stride` bytes.
        #[allow(unsafe_code)]
        unsafe {
            *q = vld1q_s8(token.as_ptr().add(p * stride + at));
        }
    }
    q
}

/// The first 16 of `bytes`, and zeros when there are fewer.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn last_codes(bytes: &[u8]) -> uint8x16_t {
    let mut padded = [0; 16];
    let len = bytes.len().min(16);
    padded[..len].copy_from_slice(&bytes[..len]);
    // SAFETY: an array of 16 bytes.
    #[allow(unsafe_code)]
    unsafe {
        vld1q_u8(padded.as_ptr())
    }
}

/// `Σ code · q` of unpacked rows with `T` tokens: per 16 codes four vectors of codes and `T` of activations are loaded for
/// `4 · T` products; with four tokens the loop does 31.9 of the 32 multiply-adds a cycle (`llvm-mca`, neoverse-n1).
#[target_feature(enable = "neon,dotprod")]
pub(super) fn gemm<const BITS: usize, const T: usize>(
    codes: Unpacked<'_>,
    tokens: [&[i8]; T],
    stride: usize,
    at: usize,
) -> [[i32; ROWS]; T] {
    let mut sums = [[vdupq_n_s32(0); T]; ROWS];
    for p in 0..8 / BITS {
        let (rows, q) = (codes.rows::<BITS>(p), codes.tokens::<BITS, T>(tokens, p, stride, at));
        let mut i = 0;
        while i < codes.len() {
            let mut row = [vdupq_n_s8(0); ROWS];
            for r in 0..ROWS {
                // SAFETY: `i < codes.len()`, the length of every slice here, and both are multiples of 16.
                #[allow(unsafe_code)]
                unsafe {
                    row[r] = vld1q_s8(rows[r].as_ptr().add(i).cast());
                }
            }
            for t in 0..T {
                // SAFETY: as above.
                #[allow(unsafe_code)]
                let q = unsafe { vld1q_s8(q[t].as_ptr().add(i)) };
                for r in 0..ROWS {
                    sums[r][t] = sdot(sums[r][t], row[r], q);
                }
            }
            i += 16;
        }
    }
    let mut all = [[0; ROWS]; T];
    for t in 0..T {
        all[t] = totals([sums[0][t], sums[1][t], sums[2][t], sums[3][t]]);
    }
    all
}

/// The sums of four int32 each.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn totals([a, b, c, d]: [int32x4_t; ROWS]) -> [i32; ROWS] {
    let sums = vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
    let mut totals = [0; ROWS];
    // SAFETY: an array of four int32.
    #[allow(unsafe_code)]
    unsafe {
        vst1q_s32(totals.as_mut_ptr(), sums);
    }
    totals
}

/// `vdotq_s32`, which is not stable in Rust 1.95.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn sdot(sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let mut sum = sum;
    // SAFETY: one instruction on the registers that it names; the attribute above says that the CPU has it.
    #[allow(unsafe_code)]
    unsafe {
        std::arch::asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
