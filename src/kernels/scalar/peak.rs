//! Integer multiply-adds without memory.

use std::hint::black_box;

/// Sums that do not wait for each other.
const SUMS: usize = 16;

pub(super) fn peak(rounds: u64) -> u64 {
    let (mut sums, mut codes) = ([0i32; SUMS], [3i32; SUMS]);
    for _ in 0..rounds {
        sums.iter_mut().zip(&codes).for_each(|(sum, code)| *sum = sum.wrapping_add(code * 5));
        // Or the product would be computed once.
        codes = black_box(codes);
    }
    black_box(sums);
    rounds * SUMS as u64
}
