//! Functions that are not sums, written once and compiled for every instruction set.
//!
//! There is one formula for each, of additions, multiplications, fused multiply-adds and divisions in a fixed order, so every
//! set gives the same bits; the compiler turns the loops into vectors of the width that the caller enables. No table, no
//! branch on a value.
//!
//! Error bounds are those that the tests below measure, in units in the last place of the exact result.

/// `e^x`, within 1 ulp for `−87.3 ≤ x ≤ 88.3`; below that `e^−87.3`, above it `e^88.3`.
///
/// `x = n · ln 2 + r` with `|r| ≤ ln 2 / 2`, `e^r` by its Taylor polynomial of degree 7 (the next term is below `2^−25`), and
/// `2^n` put together from its exponent.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding it leaves an integer in the lowest bits of the sum: 1.5 · 2^23.
    const MAGIC: f32 = 12_582_912.0;
    /// ln 2 in two parts; the product of the first with `n` is exact.
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    let x = x.clamp(-87.3, 88.3);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = n.mul_add(-LN_2.1, n.mul_add(-LN_2.0, x));
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = r.mul_add(p, c);
    }
    // The lowest nine bits of MAGIC are zero: what is shifted up is `n` alone.
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits()))
}

/// `tanh x`, within 1.5 ulp: an odd polynomial near zero (Cephes, `tanhf`), `1 − 2 / (e^2x + 1)` elsewhere.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let z = x * x;
    let mut p = -5.704_988_7e-3;
    for c in [2.063_909e-2, -5.373_971_5e-2, 1.333_144_2e-1, -3.333_328e-1] {
        p = z.mul_add(p, c);
    }
    let near = (p * z).mul_add(x, x);
    let far = (1.0 - 2.0 / (exp(2.0 * a) + 1.0)).copysign(x);
    if a < 0.625 { near } else { far }
}

/// GELU in its tanh form, `x / (1 + e^−2u)` with `u = √(2/π) · (x + 0.044715 x³)`: the same as `x/2 · (1 + tanh u)` without
/// the cancellation. Within 5 ulp where the result is above 0.1, within `5e-8` elsewhere: the exponential magnifies the rounding
/// of `u`.
#[inline(always)]
pub(super) fn gelu(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let u = SQRT_2_OVER_PI * (x * x * x).mul_add(0.044_715, x);
    x / (1.0 + exp(-2.0 * u))
}

/// `clamp(round_half_even(v / step), −128, 127) · step`, and `v` itself where `step` is 0 (static activation rounding).
#[inline(always)]
pub fn round_clip(v: f32, step: f32) -> f32 {
    if step == 0.0 { v } else { (v / step).round_ties_even().clamp(-128.0, 127.0) * step }
}

/// `gate[i] = gelu(gate[i]) · up[i]`.
#[inline(always)]
pub(super) fn gelu_mul(gate: &mut [f32], up: &[f32]) {
    gate.iter_mut().zip(up).for_each(|(gate, up)| *gate = gelu(*gate) * up);
}

/// `x[i] = cap · tanh(x[i] / cap)`.
#[inline(always)]
pub(super) fn soft_cap(x: &mut [f32], cap: f32) {
    x.iter_mut().for_each(|x| *x = cap * tanh(*x / cap));
}

/// `x[i] = e^(x[i] − max)`; returns the sum, in the order of float sums without the multiplication.
#[inline(always)]
pub(super) fn exp_sum(x: &mut [f32], max: f32) -> f32 {
    let mut lanes = [0.0; super::contract::LANES];
    let mut chunks = x.chunks_exact_mut(lanes.len());
    for chunk in &mut chunks {
        for (x, lane) in chunk.iter_mut().zip(&mut lanes) {
            *x = exp(*x - max);
            *lane += *x;
        }
    }
    for (x, lane) in chunks.into_remainder().iter_mut().zip(&mut lanes) {
        *x = exp(*x - max);
        *lane += *x;
    }
    for half in [8, 4, 2, 1] {
        for j in 0..half {
            lanes[j] += lanes[j + half];
        }
    }
    lanes[0]
}

/// `out[t * rows + r] = round_clip(sums[t * rows + r] · (input_step · scales[r]), step)`.
#[inline(always)]
pub(super) fn requantize(sums: &[i32], scales: &[f32], input_step: f32, step: f32, out: &mut [f32]) {
    if scales.is_empty() {
        return;
    }
    for (out, sums) in out.chunks_exact_mut(scales.len()).zip(sums.chunks_exact(scales.len())) {
        let values = sums.iter().zip(scales).map(|(&sum, scale)| sum as f32 * (input_step * scale));
        out.iter_mut().zip(values).for_each(|(out, value)| *out = round_clip(value, step));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Units in the last place of `exact` between it and `found`.
    fn ulps(found: f32, exact: f64) -> f64 {
        let near = exact as f32;
        let unit = f64::from(f32::from_bits(near.abs().to_bits() + 1)) - f64::from(near.abs());
        (f64::from(found) - exact).abs() / unit
    }

    fn worst(from: f32, to: f32, error: impl Fn(f32) -> f64) -> f64 {
        let steps = 400_000;
        (0..=steps).map(|i| error(from + (to - from) * i as f32 / steps as f32)).fold(0.0, f64::max)
    }

    #[test]
    fn errors_stay_within_the_stated_bounds() {
        let found = worst(-87.2, 88.2, |x| ulps(exp(x), f64::from(x).exp()));
        assert!(found < 1.0, "exp: {found} ulp");
        for (from, to) in [(-12.0, 12.0), (-0.7, 0.7), (-1e-3, 1e-3)] {
            let found = worst(from, to, |x| if x == 0.0 { 0.0 } else { ulps(tanh(x), f64::from(x).tanh()) });
            assert!(found < 1.5, "tanh: {found} ulp");
        }
        let exact =
            |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh());
        let found = worst(-10.0, 10.0, |x| {
            let (found, exact) = (gelu(x), exact(f64::from(x)));
            if exact.abs() > 0.1 { ulps(found, exact) } else { (f64::from(found) - exact).abs() / 1e-8 }
        });
        assert!(found < 5.0, "gelu: {found} ulp or 1e-8");
    }

    #[test]
    fn ends_and_zeros() {
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY) < 1e-37, exp(f32::INFINITY).is_finite()), (1.0, true, true));
        assert_eq!((tanh(0.0), tanh(-0.0)), (0.0, 0.0));
        assert_eq!((tanh(40.0), tanh(-1e30)), (1.0, -1.0));
        assert_eq!((gelu(0.0), gelu(50.0), gelu(-50.0).abs() < 1e-35), (0.0, 50.0, true));
    }

    #[test]
    fn rounding_is_half_to_even_and_clips() {
        let step = 0.5;
        for (v, want) in [(0.25, 0.0), (0.75, 1.0), (1.25, 1.0), (-0.25, 0.0), (-0.75, -1.0), (0.3, 0.5)] {
            assert_eq!(round_clip(v, step), want, "{v}");
        }
        assert_eq!((round_clip(1e9, step), round_clip(-1e9, step), round_clip(0.3, 0.0)), (63.5, -64.0, 0.3));
    }

    #[test]
    fn sums_take_their_lanes() {
        let mut x: Vec<f32> = (0..37).map(|i| (i as f32).ln()).collect();
        let sum = exp_sum(&mut x, 0.0);
        assert!((sum - 666.0).abs() < 1e-2, "{sum}");
        assert!((x[36] - 36.0).abs() < 1e-4);
    }
}
