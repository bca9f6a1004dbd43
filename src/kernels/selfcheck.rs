//! Before a set is trusted with answers: a few exact sums on the CPU at hand, compared with the scalar ones.
//!
//! The conformance test does this at length, but only on the CPUs that tests run on. A set that is wrong on another one
//! would answer fluently and wrongly; this takes well under a millisecond and turns it into a slower start.

use super::contract::{Bits, Codes, Kernels, Layout, Planes, Quads, plane_stride, plane_stride_apart};
use super::scalar::Scalar;

/// Whether `set` equals the scalar kernels.
pub(super) fn agrees(set: &dyn Kernels) -> bool {
    let mut rng = fastrand::Rng::with_seed(1);
    weights(set, &mut rng) && keys(set, &mut rng)
}

/// On keys, for one query, for a few and for more.
fn keys(set: &dyn Kernels, rng: &mut fastrand::Rng) -> bool {
    let (rows, k) = (3 * Quads::ROWS, 64);
    [1, 7, 9].into_iter().all(|tokens| {
        let codes: Vec<i8> = (0..rows * k).map(|_| rng.i8(..)).collect();
        let q: Vec<i8> = (0..tokens * k).map(|_| rng.i8(..)).collect();
        let totals: Vec<i32> = q.chunks(k).map(|q| q.iter().map(|&q| i32::from(q)).sum()).collect();
        let sums = |set: &dyn Kernels| {
            let mut acc = vec![0; rows * tokens];
            set.dots_quads(Quads::new(&codes, k), Planes::new(&q, &totals, 1, k), &mut acc);
            acc
        };
        sums(set) == sums(&Scalar)
    })
}

/// On vectors with tails and on groups, at every width, for one token, for a few and for more; the rows are more than half of the
/// widest tile.
fn weights(set: &dyn Kernels, rng: &mut fastrand::Rng) -> bool {
    [Bits::Two, Bits::Four, Bits::Eight].into_iter().all(|bits| {
        [(19, 16), (19, 112), (19, 272), (20, 512)].into_iter().all(|(rows, k)| {
            let layout = Layout::of(rows, bits.row_bytes(k));
            [1, 7, 9].into_iter().all(|tokens| {
                let codes: Vec<u8> = (0..rows * bits.row_bytes(k)).map(|_| rng.u8(..)).collect();
                let codes = Codes::new(&codes, bits, k, layout);
                let x: Vec<f32> = (0..tokens * k).map(|_| rng.f32() * 300.0 - 150.0).collect();
                sums(set, codes, &x) == sums(&Scalar, codes, &x)
            })
        })
    })
}

fn sums(set: &dyn Kernels, codes: Codes<'_>, x: &[f32]) -> Vec<i32> {
    let (bits, k) = (codes.bits(), codes.k());
    // As the engine has them.
    let stride = if x.len() == k { plane_stride_apart } else { plane_stride };
    let len = bits.planes() * stride(k, bits.planes());
    let mut q = vec![0; x.len() / k * len];
    let quantized = x.chunks_exact(k).zip(q.chunks_exact_mut(len));
    let totals: Vec<i32> = quantized.map(|(x, q)| set.quantize(x, 1.0, bits.planes(), q)).collect();
    let mut acc = vec![0; codes.rows() * totals.len()];
    set.dots(codes, Planes::new(&q, &totals, bits.planes(), k), &mut acc);
    acc
}

#[cfg(test)]
mod tests {
    use super::super::available;
    use super::*;

    #[test]
    fn every_set_of_this_cpu_agrees() {
        available().into_iter().for_each(|set| assert!(agrees(set), "{}", set.name()));
    }
}
