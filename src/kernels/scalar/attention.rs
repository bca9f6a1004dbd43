//! The two halves of attention for one head: scores against cached keys, and the mix of cached values.

use super::fdot::dot;
use crate::kernels::shapes;

/// `out[n] = Σ_j q[j] · keys[n][j]`.
pub(super) fn scores(q: &[f32], keys: &[f32], out: &mut [f32]) {
    shapes::matrix(keys.len(), out.len(), q.len());
    for (n, out) in out.iter_mut().enumerate() {
        let key = &keys[n * q.len()..][..q.len()];
        *out = dot(q.iter().copied().zip(key.iter().copied()));
    }
}

/// `out[j] = fma(p[n], values[n][j], out[j])` for `n` in increasing order.
pub(super) fn mix(p: &[f32], values: &[f32], out: &mut [f32]) {
    shapes::matrix(values.len(), p.len(), out.len());
    for (n, &p) in p.iter().enumerate() {
        let value = &values[n * out.len()..][..out.len()];
        for (out, &v) in out.iter_mut().zip(value) {
            *out = p.mul_add(v, *out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_and_mix_by_hand() {
        let q: Vec<f32> = (0..16_u8).map(f32::from).collect();
        let keys = [[1.0; 16], [-128.0; 16]].concat();
        let mut out = [9.0; 2];
        scores(&q, &keys, &mut out);
        assert_eq!(out, [120.0, -128.0 * 120.0]);

        let mut mixed = [10.0; 16];
        mix(&[2.0, 0.5], &keys, &mut mixed);
        assert_eq!(mixed, [10.0 + 2.0 - 64.0; 16]);
        mix(&[], &[], &mut mixed);
        assert_eq!(mixed, [-52.0; 16]);
    }

    /// `out` takes the values in order: (2^24 + 1) − 2^24 loses the 1, any other order keeps it.
    #[test]
    fn values_are_added_in_order() {
        let values = [[16_777_216.0_f32; 16], [1.0; 16], [-16_777_216.0; 16]].concat();
        let mut out = [0.0; 16];
        mix(&[1.0, 1.0, 1.0], &values, &mut out);
        assert_eq!(out, [0.0; 16]);
    }
}
