//! The formulas of `math` and `fine` in AVX2's registers: the compiler makes the vectors.

use std::ops::Range;

use crate::kernels::contract::{Softmax, Split, Weights};
use crate::kernels::{fine, math};

#[target_feature(enable = "avx2,fma")]
pub(super) fn requantize(sums: &[i32], scales: &[f32], input_step: f32, step: f32, out: &mut [f32]) {
    math::requantize(sums, scales, input_step, step, out);
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn gelu_mul(gate: &mut [f32], up: &[f32]) {
    math::gelu_mul(gate, up);
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn soft_cap(x: &mut [f32], cap: f32) {
    math::soft_cap(x, cap);
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn exp_sum(x: &mut [f32], max: f32) -> f32 {
    math::exp_sum(x, max)
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn split(x: &[f32], high: &mut [i8], low: &mut [i8]) -> Split {
    fine::split(x, high, low)
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn weigh(
    sums: [&[i32]; 2],
    scale: f32,
    live: [Range<usize>; 2],
    scores: &mut [f32],
    high: &mut [i8],
    low: &mut [i8],
) -> Weights {
    fine::weigh(sums, scale, live, scores, high, low)
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn blend(state: &mut Softmax, weights: Weights, sums: [&[i32]; 2], out: &mut [f32]) {
    fine::blend(state, weights, sums, out);
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn merge(state: &mut Softmax, other: Softmax, mix: &[f32], out: &mut [f32]) {
    fine::merge(state, other, mix, out);
}
