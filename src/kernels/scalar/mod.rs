//! The executable specification: plain loops, one per promise of the contract.

mod attention;
mod fdot;
mod peak;
mod qdot;
mod quantize;

use std::ops::Range;

use super::contract::{Codes, Kernels, Planes, Quads, Softmax, Split, Weights};
use super::{fine, math};

#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
pub(super) use fdot::dots_f32;

/// Runs everywhere; `EMBERD_KERNELS=scalar` forces it.
pub(super) struct Scalar;

impl Kernels for Scalar {
    fn name(&self) -> &'static str {
        "scalar"
    }

    fn quantize(&self, x: &[f32], step: f32, planes: usize, q: &mut [i8]) -> i32 {
        quantize::quantize(x, step, planes, q)
    }

    fn dots(&self, w: Codes<'_>, x: Planes<'_>, acc: &mut [i32]) {
        qdot::dots(w, x, acc);
    }

    fn dots_quads(&self, w: Quads<'_>, x: Planes<'_>, acc: &mut [i32]) {
        qdot::dots_quads(w, x, acc);
    }

    fn dots_f32(&self, w: Codes<'_>, x: &[f32], acc: &mut [f32]) {
        fdot::dots_f32(w, x, acc);
    }

    fn dots_bf16(&self, w: &[u16], k: usize, x: &[f32], acc: &mut [f32]) {
        fdot::dots_bf16(w, k, x, acc);
    }

    fn scores_f32(&self, q: &[f32], keys: &[f32], out: &mut [f32]) {
        attention::scores(q, keys, out);
    }

    fn mix_f32(&self, p: &[f32], values: &[f32], out: &mut [f32]) {
        attention::mix(p, values, out);
    }

    fn split(&self, x: &[f32], high: &mut [i8], low: &mut [i8]) -> Split {
        fine::split(x, high, low)
    }

    fn weigh(
        &self,
        sums: [&[i32]; 2],
        scale: f32,
        live: [Range<usize>; 2],
        scores: &mut [f32],
        high: &mut [i8],
        low: &mut [i8],
    ) -> Weights {
        fine::weigh(sums, scale, live, scores, high, low)
    }

    fn blend(&self, state: &mut Softmax, weights: Weights, sums: [&[i32]; 2], out: &mut [f32]) {
        fine::blend(state, weights, sums, out)
    }

    fn merge(&self, state: &mut Softmax, other: Softmax, mix: &[f32], out: &mut [f32]) {
        fine::merge(state, other, mix, out)
    }

    fn sum_squares(&self, x: &[f32]) -> f32 {
        fdot::sum_squares(x)
    }

    fn requantize(&self, sums: &[i32], scales: &[f32], input_step: f32, step: f32, out: &mut [f32]) {
        math::requantize(sums, scales, input_step, step, out)
    }

    fn gelu_mul(&self, gate: &mut [f32], up: &[f32]) {
        math::gelu_mul(gate, up)
    }

    fn soft_cap(&self, x: &mut [f32], cap: f32) {
        math::soft_cap(x, cap)
    }

    fn exp_sum(&self, x: &mut [f32], max: f32) -> f32 {
        math::exp_sum(x, max)
    }

    fn peak(&self, rounds: u64) -> u64 {
        peak::peak(rounds)
    }
}
