//! aarch64: `neon` (Armv8.0, Cortex-A72) and `neondot` (with the dot product instructions, Cortex-A76).
//!
//! Both share everything but the integer products, which are a file each: `qdot` and `qdot_sdot`, those of
//! the attention in `quads`.

mod attention;
mod fdot;
mod lanes;
mod peak;
mod qdot;
mod qdot_sdot;
mod quads;
mod quantize;
mod tiles;

use std::arch::is_aarch64_feature_detected;
use std::ops::Range;

use self::tiles::{Tiles, Unpacked};
use super::contract::{Codes, Kernels, Planes, Quads, RowsOf, Softmax, Split, Weights};
use super::gemv::{Gemv, ROWS};
use super::{fine, math};

/// Proof that this CPU has NEON.
#[derive(Clone, Copy)]
pub(super) struct Neon(());

/// Proof that this CPU has `sdot`, besides NEON.
#[derive(Clone, Copy)]
pub(super) struct NeonDot(());

impl Neon {
    /// The set, if this CPU can run it.
    pub(super) fn detect() -> Option<&'static Neon> {
        is_aarch64_feature_detected!("neon").then_some(&Neon(()))
    }
}

impl NeonDot {
    /// The set, if this CPU can run it.
    pub(super) fn detect() -> Option<&'static NeonDot> {
        (Neon::detect().is_some() && is_aarch64_feature_detected!("dotprod")).then_some(&NeonDot(()))
    }
}

impl Gemv for Neon {
    #[inline(always)]
    fn gemv<const BITS: usize, const R: usize>(self, rows: RowsOf<'_, R>, token: &[i8], stride: usize) -> [i32; R] {
        // SAFETY: `self` exists, so `detect` saw NEON.
        #[allow(unsafe_code)]
        unsafe {
            qdot::gemv::<BITS, R>(rows, token, stride)
        }
    }
}

impl Tiles for Neon {
    #[inline(always)]
    fn gemm<const BITS: usize, const T: usize>(
        self,
        codes: Unpacked<'_>,
        tokens: [&[i8]; T],
        stride: usize,
        at: usize,
    ) -> [[i32; ROWS]; T] {
        // SAFETY: as above.
        #[allow(unsafe_code)]
        unsafe {
            qdot::gemm::<BITS, T>(codes, tokens, stride, at)
        }
    }
}

impl Gemv for NeonDot {
    #[inline(always)]
    fn gemv<const BITS: usize, const R: usize>(self, rows: RowsOf<'_, R>, token: &[i8], stride: usize) -> [i32; R] {
        // SAFETY: `self` exists, so `detect` saw NEON and the dot product.
        #[allow(unsafe_code)]
        unsafe {
            qdot_sdot::gemv::<BITS, R>(rows, token, stride)
        }
    }
}

impl Tiles for NeonDot {
    #[inline(always)]
    fn gemm<const BITS: usize, const T: usize>(
        self,
        codes: Unpacked<'_>,
        tokens: [&[i8]; T],
        stride: usize,
        at: usize,
    ) -> [[i32; ROWS]; T] {
        // SAFETY: as above.
        #[allow(unsafe_code)]
        unsafe {
            qdot_sdot::gemm::<BITS, T>(codes, tokens, stride, at)
        }
    }
}

/// One implementation of the trait for both: they differ in their [`Tiles`].
macro_rules! kernels {
    ($set:ty, $name:literal, $dots:path, $quads:path, $peak:path) => {
        // SAFETY of all blocks: `self` exists, so `detect` saw NEON, which is all that the callees enable; the integer
        // products and the peak of `neondot` enable the dot product too, which its `detect` saw.
        #[allow(unsafe_code, clippy::undocumented_unsafe_blocks)]
        impl Kernels for $set {
            fn name(&self) -> &'static str {
                $name
            }

            fn quantize(&self, x: &[f32], step: f32, planes: usize, q: &mut [i8]) -> i32 {
                unsafe { quantize::quantize(x, step, planes, q) }
            }

            fn dots(&self, w: Codes<'_>, x: Planes<'_>, acc: &mut [i32]) {
                unsafe { $dots(*self, w, x, acc) }
            }

            fn dots_quads(&self, w: Quads<'_>, x: Planes<'_>, acc: &mut [i32]) {
                unsafe { $quads(w, x, acc) }
            }

            fn dots_f32(&self, w: Codes<'_>, x: &[f32], acc: &mut [f32]) {
                super::scalar::dots_f32(w, x, acc);
            }

            fn dots_bf16(&self, w: &[u16], k: usize, x: &[f32], acc: &mut [f32]) {
                unsafe { fdot::dots_bf16(w, k, x, acc) }
            }

            fn scores_f32(&self, q: &[f32], keys: &[f32], out: &mut [f32]) {
                unsafe { attention::scores_f32(q, keys, out) }
            }

            fn mix_f32(&self, p: &[f32], values: &[f32], out: &mut [f32]) {
                unsafe { attention::mix_f32(p, values, out) }
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
                unsafe { fdot::sum_squares(x) }
            }

            fn fetch(&self, values: &[f32]) {
                lanes::fetch(values);
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
                unsafe { $peak(rounds) }
            }
        }
    };
}

kernels!(Neon, "neon", qdot::dots, quads::neon, peak::smlal);
kernels!(NeonDot, "neondot", qdot_sdot::dots, quads::neondot, peak::sdot);
