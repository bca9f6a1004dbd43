//! Integer dot products in Armv8.0 NEON: `qs8-qc{2,4,8}w-gemm-{4x1,2x4}-neon`.
//!
//! `smull`/`smlal` multiply eight bytes into int16 sums, `sadalp` folds those into int32. An int16 holds 85 products of
//! 2-bit codes (`3 · 128 = 384`) and 17 of 4-bit codes (`15 · 128 = 1920`), so it is emptied every 10 and every 4 weight
//! vectors (80 and 16 products). Of two 8-bit products (`2 · 2^14`) it holds only one.

use std::arch::aarch64::*;

use super::qdot_sdot::{fields, load_codes};
use crate::kernels::tiles;

/// `Σ code · q` of `R` rows with `T` tokens.
#[target_feature(enable = "neon")]
pub(super) fn tile<const BITS: usize, const R: usize, const T: usize>(
    rows: [&[u8]; R],
    tokens: [&[i8]; T],
    stride: usize,
) -> [[i32; T]; R] {
    let len = tiles::check::<BITS>(&rows, &tokens, stride);
    let batch = 16 * if BITS == 2 { 10 } else { 4 };
    let mut sums = [[vdupq_n_s32(0); T]; R];
    let mut at = 0;
    while at < len {
        let end = len.min(at + batch);
        let mut shorts = [[vdupq_n_s16(0); T]; R];
        while at < end {
            for r in 0..R {
                let fields = fields::<BITS>(load_codes(rows[r], at));
                for t in 0..T {
                    for p in 0..8 / BITS {
                        // SAFETY: `at < len` is a multiple of 16, so `check` says that plane `p` has 16 bytes there.
                        #[allow(unsafe_code)]
                        let q = unsafe { vld1q_s8(tokens[t].as_ptr().add(p * stride + at)) };
                        let (codes_low, q_low) = (vget_low_s8(fields[p]), vget_low_s8(q));
                        if BITS == 8 {
                            sums[r][t] = vpadalq_s16(sums[r][t], vmull_s8(codes_low, q_low));
                            sums[r][t] = vpadalq_s16(sums[r][t], vmull_high_s8(fields[p], q));
                        } else {
                            shorts[r][t] = vmlal_s8(shorts[r][t], codes_low, q_low);
                            shorts[r][t] = vmlal_high_s8(shorts[r][t], fields[p], q);
                        }
                    }
                }
            }
            at += 16;
        }
        if BITS != 8 {
            for r in 0..R {
                for t in 0..T {
                    sums[r][t] = vpadalq_s16(sums[r][t], shorts[r][t]);
                }
            }
        }
    }
    sums.map(|row| row.map(|sum| vaddvq_s32(sum)))
}
