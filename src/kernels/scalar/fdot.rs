//! Float dot products in the contract's order.

use super::qdot::values;
use crate::kernels::contract::{Codes, LANES};
use crate::kernels::shapes;

/// The sum of products in the order of float sums.
pub(super) fn dot(pairs: impl Iterator<Item = (f32, f32)>) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    for (i, (a, b)) in pairs.enumerate() {
        lanes[i % LANES] = a.mul_add(b, lanes[i % LANES]);
    }
    for half in [8, 4, 2, 1] {
        for j in 0..half {
            lanes[j] += lanes[j + half];
        }
    }
    lanes[0]
}

/// `acc[t * rows + r] = Σ_i (code[r][i] − offset) · x[t][i]`. Every set uses this one: only projections without an
/// activation step take this path, and the published checkpoints have none.
pub(in crate::kernels) fn dots_f32(w: Codes<'_>, x: &[f32], acc: &mut [f32]) {
    let (rows, _) = shapes::matrices(w.rows() * w.k(), x.len(), w.k(), acc.len());
    for r in 0..w.rows() {
        for (t, x) in x.chunks_exact(w.k()).enumerate() {
            acc[t * rows + r] = dot(values(w, r).map(|w| w as f32).zip(x.iter().copied()));
        }
    }
}

/// `acc[t * rows + r] = Σ_i w[r][i] · x[t][i]`.
pub(super) fn dots_bf16(w: &[u16], k: usize, x: &[f32], acc: &mut [f32]) {
    let (rows, _) = shapes::matrices(w.len(), x.len(), k, acc.len());
    for (r, row) in w.chunks_exact(k).enumerate() {
        for (t, x) in x.chunks_exact(k).enumerate() {
            let values = row.iter().map(|&w| f32::from_bits(u32::from(w) << 16));
            acc[t * rows + r] = dot(values.zip(x.iter().copied()));
        }
    }
}

/// `Σ x[i]²`.
pub(super) fn sum_squares(x: &[f32]) -> f32 {
    shapes::lanes(x.len());
    dot(x.iter().map(|&x| (x, x)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::contract::{Bits, Layout};

    /// In lanes: 2^24 − 2^24 meet in the fold before the 1 arrives; left to right the 1 would be lost.
    #[test]
    fn lanes_fold_in_halves() {
        let mut x = [0.0; 16];
        (x[0], x[1], x[8]) = (16_777_216.0, 1.0, -16_777_216.0);
        assert_eq!(dot(x.iter().map(|&x| (x, 1.0))), 1.0);
        let big = 16_777_216.0;
        (x[0], x[1], x[2], x[4], x[8]) = (big, 1.0, -big, 1.0, 0.0);
        assert_eq!(dot(x.iter().map(|&x| (x, 1.0))), 1.0, "0 + 4 loses a 1, then 0 + 2, then 1");
    }

    #[test]
    fn products_are_fused() {
        let e = 1.0 + f32::EPSILON;
        let mut pairs = [(0.0, 0.0); 32];
        (pairs[0], pairs[16]) = ((-e, e), (e, e));
        let exact = f64::from(e) * f64::from(e);
        assert_eq!(f64::from(dot(pairs.into_iter())), exact - f64::from(e * e));
        assert_ne!(exact, f64::from(e * e));
    }

    #[test]
    fn codes_bf16_and_squares_by_hand() {
        let x: Vec<f32> = (0..32_u8).map(f32::from).collect();
        let mut acc = [0.0; 4];
        let bytes = [[0x9f; 8], [0x08; 8]].concat();
        dots_f32(Codes::new(&bytes, Bits::Four, 16, Layout::Rows), &x, &mut acc);
        // Row 0: 7 on even and 1 on odd elements; row 1: 0 and −8.
        assert_eq!(acc, [7.0 * 56.0 + 64.0, -8.0 * 64.0, 7.0 * 184.0 + 192.0, -8.0 * 192.0]);
        let two = 0x4000;
        dots_bf16(&[two; 32], 16, &x, &mut acc);
        assert_eq!(acc, [240.0, 240.0, 752.0, 752.0]);
        assert_eq!(sum_squares(&x), 10_416.0);
        assert_eq!(sum_squares(&[]), 0.0);
    }
}
