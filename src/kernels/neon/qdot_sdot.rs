//! Integer dot products with `sdot`: `qs8-qc{2,4,8}w-gemm-{4x1,2x4}-neondot`.
//!
//! `sdot` adds four products of signed bytes to an int32, exactly; codes of 2 and 4 bits are small signed bytes.

use std::arch::aarch64::*;

use crate::kernels::tiles;

/// `Σ code · q` of `R` rows with `T` tokens.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn tile<const BITS: usize, const R: usize, const T: usize>(
    rows: [&[u8]; R],
    tokens: [&[i8]; T],
    stride: usize,
) -> [[i32; T]; R] {
    let len = tiles::check::<BITS>(&rows, &tokens, stride);
    let mut sums = [[vdupq_n_s32(0); T]; R];
    let mut at = 0;
    while at < len {
        for r in 0..R {
            let fields = fields::<BITS>(load_codes(rows[r], at));
            for t in 0..T {
                for p in 0..8 / BITS {
                    // SAFETY: `at < len` is a multiple of 16, so `check` says that plane `p` has 16 bytes there.
                    #[allow(unsafe_code)]
                    let q = unsafe { vld1q_s8(tokens[t].as_ptr().add(p * stride + at)) };
                    sums[r][t] = sdot(sums[r][t], fields[p], q);
                }
            }
        }
        at += 16;
    }
    sums.map(|row| row.map(|sum| vaddvq_s32(sum)))
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

/// The codes of each plane of 16 packed bytes.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn fields<const BITS: usize>(codes: uint8x16_t) -> [int8x16_t; 4] {
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

/// 16 bytes of `row` from `at` on, zeros past its end.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_codes(row: &[u8], at: usize) -> uint8x16_t {
    let mut padded = [0; 16];
    let bytes = match row[at..].first_chunk() {
        Some(bytes) => bytes,
        None => {
            padded[..row.len() - at].copy_from_slice(&row[at..]);
            &padded
        }
    };
    // SAFETY: an array of 16 bytes.
    #[allow(unsafe_code)]
    unsafe {
        vld1q_u8(bytes.as_ptr())
    }
}
