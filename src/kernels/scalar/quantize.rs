//! Static activation rounding onto int8, into planes.

use crate::kernels::contract::plane_stride;
use crate::kernels::shapes;

/// `q[i] = clamp(round_half_even(x[i] / step), -128, 127)` at `[i % planes][i / planes]`; returns `Σ q`.
///
/// A true division: multiplying by `1 / step` rounds differently near ties.
pub(super) fn quantize(x: &[f32], step: f32, planes: usize, q: &mut [i8]) -> i32 {
    let stride = shapes::quantize(x, planes, q);
    for plane in q.chunks_exact_mut(stride.max(1)) {
        plane[x.len() / planes..plane_stride(x.len(), planes)].fill(0);
    }
    let mut sum = 0;
    for (i, &x) in x.iter().enumerate() {
        let code = (x / step).round_ties_even().clamp(-128.0, 127.0) as i8;
        q[i % planes * stride + i / planes] = code;
        sum += i32::from(code);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_even_and_both_ends_clamp() {
        let x = [0.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49, 126.5, 127.5, 1e30, -127.5, -128.5, -1e30, 3.0, -3.0];
        let want = [0, 0, 2, 2, 0, -2, -2, 0, 126, 127, 127, -128, -128, -128, 3, -3];
        let mut q = [1; 64];
        assert_eq!(quantize(&x, 1.0, 1, &mut q), want.iter().map(|&q| i32::from(q)).sum::<i32>());
        assert_eq!(q[..16], want);
    }

    #[test]
    fn the_step_divides() {
        // In f32, 5.25 / 2.1 is the tie 2.5 and 5.25 * (1 / 2.1) is above it; 2.25 / 0.3 is below 7.5 and its twin a tie.
        for (x, step, want) in [(5.25, 2.1, 2), (-5.25, 2.1, -2), (2.25, 0.3, 7)] {
            let mut q = [1; 64];
            assert_eq!(quantize(&[x; 16], step, 1, &mut q), 16 * i32::from(want), "{x} / {step}");
            assert_eq!(q[..16], [want; 16]);
            assert_ne!((x * (1.0 / step)).round_ties_even() as i8, want);
        }
    }

    #[test]
    fn planes_hold_every_fourth_or_second_element_and_zeros() {
        let x: Vec<f32> = (0..16_u8).map(f32::from).collect();
        let mut q = vec![1; 4 * 64];
        assert_eq!(quantize(&x, 1.0, 4, &mut q), 120);
        for (p, plane) in q.chunks(64).enumerate() {
            let p = p as i8;
            assert_eq!(plane[..4], [p, p + 4, p + 8, p + 12]);
            assert_eq!(plane[4..], [0; 60]);
        }
        let mut q = vec![1; 2 * 64];
        assert_eq!(quantize(&x, 1.0, 2, &mut q), 120);
        assert_eq!(q[..9], [0, 2, 4, 6, 8, 10, 12, 14, 0]);
        assert_eq!(q[64..73], [1, 3, 5, 7, 9, 11, 13, 15, 0]);
    }
}
