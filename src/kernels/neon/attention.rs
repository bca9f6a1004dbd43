//! Scores and mix of one attention head in NEON.
//!
//! Four keys at a time keep four independent chains of sums; 64 columns of the mix stay in registers while all values
//! pass.

use super::lanes::{fma, fold, load, splat, store};
use crate::kernels::contract::LANES;
use crate::kernels::shapes;

#[target_feature(enable = "neon")]
pub(super) fn scores_f32(q: &[f32], keys: &[f32], out: &mut [f32]) {
    shapes::matrix(keys.len(), out.len(), q.len());
    let (q, keys) = (q.as_chunks().0, keys.as_chunks().0);
    let (fours, rest) = out.as_chunks_mut::<4>();
    for (n, out) in fours.iter_mut().enumerate() {
        *out = dots(q, &keys[4 * n * q.len()..]);
    }
    let first = 4 * fours.len();
    for (n, out) in rest.iter_mut().enumerate() {
        [*out] = dots(q, &keys[(first + n) * q.len()..]);
    }
}

/// The first `N` keys.
#[inline]
#[target_feature(enable = "neon")]
fn dots<const N: usize>(q: &[[f32; LANES]], keys: &[[f32; LANES]]) -> [f32; N] {
    let mut sums = [splat(0.0); N];
    for (i, query) in q.iter().enumerate() {
        let query = load(query);
        for n in 0..N {
            sums[n] = fma(query, load(&keys[n * q.len() + i]), sums[n]);
        }
    }
    sums.map(|sum| fold(sum))
}

#[target_feature(enable = "neon")]
pub(super) fn mix_f32(p: &[f32], values: &[f32], out: &mut [f32]) {
    shapes::matrix(values.len(), p.len(), out.len());
    let values = values.as_chunks().0;
    let out = out.as_chunks_mut().0;
    let row = out.len();
    let (fours, rest) = out.as_chunks_mut::<4>();
    for (j, out) in fours.iter_mut().enumerate() {
        columns(p, values, row, 4 * j, out);
    }
    let first = 4 * fours.len();
    for (j, out) in rest.iter_mut().enumerate() {
        columns(p, values, row, first + j, std::array::from_mut(out));
    }
}

/// `G` chunks of columns from chunk `j` on, in rows of `row` chunks.
#[inline]
#[target_feature(enable = "neon")]
fn columns<const G: usize>(p: &[f32], values: &[[f32; LANES]], row: usize, j: usize, out: &mut [[f32; LANES]; G]) {
    let mut sums = [splat(0.0); G];
    for g in 0..G {
        sums[g] = load(&out[g]);
    }
    for (n, &p) in p.iter().enumerate() {
        let (p, value) = (splat(p), &values[n * row + j..][..G]);
        for g in 0..G {
            sums[g] = fma(p, load(&value[g]), sums[g]);
        }
    }
    for g in 0..G {
        store(sums[g], &mut out[g]);
    }
}
