//! Integer multiply-adds without memory.

use std::arch::aarch64::*;
use std::hint::black_box;

/// Sums that do not wait for each other: more than latency times pipes on either board.
const SUMS: usize = 16;

/// `sdot`: 16 products an instruction.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn sdot(rounds: u64) -> u64 {
    let (mut sums, codes) = ([vdupq_n_s32(0); SUMS], vdupq_n_s8(3));
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = super::qdot_sdot::sdot(*sum, codes, codes);
        }
    }
    black_box(sums);
    rounds * (SUMS * 16) as u64
}

/// `smlal`: 8 products an instruction, into int16.
#[target_feature(enable = "neon")]
pub(super) fn smlal(rounds: u64) -> u64 {
    let (mut sums, codes) = ([vdupq_n_s16(0); SUMS], vdup_n_s8(3));
    for _ in 0..rounds {
        for sum in &mut sums {
            // SAFETY: one instruction on the registers that it names. As an intrinsic the product would be computed once.
            #[allow(unsafe_code)]
            unsafe {
                std::arch::asm!(
                    "smlal {sum:v}.8h, {codes:v}.8b, {codes:v}.8b",
                    sum = inout(vreg) *sum, codes = in(vreg) codes,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
        }
    }
    black_box(sums);
    rounds * (SUMS * 8) as u64
}
