//! Integer dot products of packed weights and rounded activations.

use crate::kernels::contract::{Bits, Codes, Planes, Quads};
use crate::kernels::shapes;

/// The values that the codes of row `r` stand for, in order.
pub(super) fn values(w: Codes<'_>, r: usize) -> impl Iterator<Item = i32> {
    let bits = w.bits();
    w.chunks(r).flat_map(move |chunk| (0..chunk.len() * bits.planes()).map(move |i| value(chunk, bits, i)))
}

/// The value that element `i` of packed bytes stands for.
fn value(row: &[u8], bits: Bits, i: usize) -> i32 {
    let byte = row[i / bits.planes()];
    match bits {
        Bits::Two => i32::from(byte >> (2 * (i % 4)) & 3) - bits.offset(),
        Bits::Four => i32::from(byte >> (4 * (i % 2)) & 15) - bits.offset(),
        Bits::Eight => i32::from(byte as i8),
    }
}

/// `acc[t * rows + r] = Σ_i (code[r][i] − offset) · q[t][i]`.
pub(super) fn dots(w: Codes<'_>, x: Planes<'_>, acc: &mut [i32]) {
    shapes::dots(w, x, acc);
    for r in 0..w.rows() {
        for t in 0..x.tokens() {
            let (q, stride, planes) = (x.token(t), x.stride(), x.planes());
            let products = values(w, r).enumerate().map(|(i, w)| w * i32::from(q[i % planes * stride + i / planes]));
            acc[t * w.rows() + r] = products.sum();
        }
    }
}

/// `acc[t * rows + r] = Σ_i w[r][i] · q[t][i]`.
pub(super) fn dots_quads(w: Quads<'_>, x: Planes<'_>, acc: &mut [i32]) {
    shapes::quads(w, x, acc);
    for r in 0..w.rows() {
        for t in 0..x.tokens() {
            let q = &x.token(t)[..w.k()];
            let code = |i| i32::from(w.codes()[Quads::place(w.k(), r, i)]);
            acc[t * w.rows() + r] = q.iter().enumerate().map(|(i, &q)| code(i) * i32::from(q)).sum();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::contract::Layout;
    use crate::kernels::scalar::quantize::quantize;

    #[test]
    fn the_first_value_sits_in_the_lowest_bits() {
        let values = |bits, row: &[u8]| -> Vec<i32> { (0..4).map(|i| value(row, bits, i)).collect() };
        assert_eq!(values(Bits::Two, &[0b11_10_01_00]), [-2, -1, 0, 1]);
        assert_eq!(values(Bits::Four, &[0xf0, 0x98]), [-8, 7, 0, 1]);
        assert_eq!(values(Bits::Eight, &[0, 1, 0x80, 0xff]), [0, 1, -128, -1]);
    }

    /// Row `r` holds `16 r + i`, written down in the order that the contract names.
    #[test]
    fn four_elements_of_sixteen_rows_take_turns() {
        let codes: Vec<i8> = (0..4)
            .flat_map(|four| (0..16).flat_map(move |r| (0..4).map(move |i| (16 * r + 4 * four + i) as i8)))
            .collect();
        let mut q = [0; 2 * 64];
        (q[5], q[64 + 15]) = (1, -1);
        let mut acc = [0; 32];
        dots_quads(Quads::new(&codes, 16), Planes::new(&q, &[1, -1], 1, 16), &mut acc);
        for r in 0..16 {
            assert_eq!(acc[r], i32::from((16 * r + 5) as i8));
            assert_eq!(acc[16 + r], -i32::from((16 * r + 15) as i8));
        }
    }

    /// Rows of one repeated byte against activations 0, 1, 2, … 15 and all −1, by hand.
    #[test]
    fn sums_by_hand() {
        for (bits, byte, counted, ones) in [
            (Bits::Two, 0b11_10_01_00, -2 * 24 - 28 + 36, 8),
            (Bits::Four, 0xf0, -8 * 56 + 7 * 64, 8),
            (Bits::Eight, 0x80, -128 * 120, 128 * 16),
        ] {
            let counting: Vec<f32> = (0..16_u8).map(f32::from).collect();
            let stride = bits.planes() * 64;
            let mut q = vec![0; 2 * stride];
            let sums = [
                quantize(&counting, 1.0, bits.planes(), &mut q[..stride]),
                quantize(&[-1.0; 16], 1.0, bits.planes(), &mut q[stride..]),
            ];
            let bytes = vec![byte; 2 * bits.row_bytes(16)];
            let mut acc = [0; 4];
            dots(Codes::new(&bytes, bits, 16, Layout::Rows), Planes::new(&q, &sums, bits.planes(), 16), &mut acc);
            assert_eq!(acc, [counted, counted, ones, ones], "{bits:?}");
        }
    }
}
