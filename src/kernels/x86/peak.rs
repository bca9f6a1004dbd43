//! Integer multiply-adds without memory.

use std::arch::x86_64::*;
use std::hint::black_box;

/// Sums that do not wait for each other: at least latency times ports.
const SUMS: usize = 12;

/// `vpmaddubsw` and `vpaddw`: 32 products in two instructions.
#[target_feature(enable = "avx2")]
pub(super) fn maddubs(rounds: u64) -> u64 {
    let (mut sums, mut codes) = ([_mm256_setzero_si256(); SUMS], _mm256_set1_epi8(3));
    for _ in 0..rounds {
        for sum in &mut sums {
            // SAFETY: no instruction at all. The compiler must not know that `codes` stays what it was, or it would
            // compute the product once.
            #[allow(unsafe_code)]
            unsafe {
                std::arch::asm!("/* {0} */", inout(ymm_reg) codes, options(pure, nomem, nostack, preserves_flags));
            }
            *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(codes, codes));
        }
    }
    black_box(sums);
    rounds * (SUMS * 32) as u64
}

/// `vpdpbusd`: 64 products an instruction.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn dpbusd(rounds: u64) -> u64 {
    let (mut sums, codes) = ([_mm512_setzero_si512(); SUMS], _mm512_set1_epi8(3));
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, codes, codes);
        }
    }
    black_box(sums);
    rounds * (SUMS * 64) as u64
}
