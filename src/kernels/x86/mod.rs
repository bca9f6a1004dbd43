//! x86_64: `avx2` and `avx512vnni`.
//!
//! Both share the rounding and the float kernels, which run in AVX2's registers: a float vector operation waits for memory more than
//! for the width of its registers. Products with many tokens do not, so these are files of their own: `qdot` for one token, `gemm` for several
//! and, with BF16 weights, `fdot`; `qdot_vnni`, `gemm_vnni` and `fdot_512`.
//! Those of the attention are in `quads`.

mod attention;
mod fdot;
mod fdot_512;
mod gemm;
mod gemm_vnni;
mod lanes;
mod nonlinear;
mod peak;
mod qdot;
mod qdot_vnni;
mod quads;
mod quantize;

use std::ops::Range;

use super::contract::{Bits, Codes, Kernels, Planes, Quads, RowsOf, Softmax, Split, Weights};
use super::gemv::Gemv;

/// Bytes by which the weights of one token are fetched before they are read: the CPU's own prefetchers end at a page. `avx512vnni` on two
/// virtual cores of a Zen 5, decoding with it and without by turns: 64.0, 63.4, 62.0, 62.1 and 58.3, 58.5, 56.7, 55.1 tokens/s; 8 KiB
/// are no better.
const FAR: usize = 4 << 10;

/// Proof that this CPU has AVX2 and FMA.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// Proof that this CPU has AVX-512 F, BW and VNNI, besides AVX2 and FMA.
#[derive(Clone, Copy)]
pub(super) struct Avx512Vnni(());

impl Avx2 {
    /// The set, if this CPU can run it.
    pub(super) fn detect() -> Option<&'static Avx2> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(&Avx2(()))
    }
}

impl Avx512Vnni {
    /// The set, if this CPU can run it.
    pub(super) fn detect() -> Option<&'static Avx512Vnni> {
        (Avx2::detect().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni"))
        .then_some(&Avx512Vnni(()))
    }
}

impl Gemv for Avx2 {
    #[inline(always)]
    fn gemv<const BITS: usize, const R: usize>(self, rows: RowsOf<'_, R>, token: &[i8], stride: usize) -> [i32; R] {
        // SAFETY: `self` exists, so `detect` saw AVX2.
        #[allow(unsafe_code)]
        unsafe {
            qdot::gemv::<BITS, R>(rows, token, stride)
        }
    }
}

impl Gemv for Avx512Vnni {
    fn offset(bits: Bits) -> i32 {
        match bits {
            Bits::Eight => qdot_vnni::BYTE_OFFSET,
            _ => bits.offset(),
        }
    }

    #[inline(always)]
    fn gemv<const BITS: usize, const R: usize>(self, rows: RowsOf<'_, R>, token: &[i8], stride: usize) -> [i32; R] {
        // SAFETY: `self` exists, so `detect` saw AVX-512 F, BW and VNNI.
        #[allow(unsafe_code)]
        unsafe {
            qdot_vnni::gemv::<BITS, R>(rows, token, stride)
        }
    }
}

/// One implementation of the trait for both: they differ in their integer products.
macro_rules! kernels {
    ($set:ty, $name:literal, $dots:path, $quads:path, $bf16:path, $peak:path) => {
        // SAFETY of all blocks: `self` exists, so `detect` saw AVX2 and FMA, which is all that the callees enable; the
        // products and the peak of `avx512vnni` enable what its own `detect` saw.
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
                unsafe { $bf16(w, k, x, acc) }
            }

            fn scores_f32(&self, q: &[f32], keys: &[f32], out: &mut [f32]) {
                unsafe { attention::scores_f32(q, keys, out) }
            }

            fn mix_f32(&self, p: &[f32], values: &[f32], out: &mut [f32]) {
                unsafe { attention::mix_f32(p, values, out) }
            }

            fn split(&self, x: &[f32], high: &mut [i8], low: &mut [i8]) -> Split {
                unsafe { nonlinear::split(x, high, low) }
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
                unsafe { nonlinear::weigh(sums, scale, live, scores, high, low) }
            }

            fn blend(&self, state: &mut Softmax, weights: Weights, sums: [&[i32]; 2], out: &mut [f32]) {
                unsafe { nonlinear::blend(state, weights, sums, out) }
            }

            fn merge(&self, state: &mut Softmax, other: Softmax, mix: &[f32], out: &mut [f32]) {
                unsafe { nonlinear::merge(state, other, mix, out) }
            }

            fn sum_squares(&self, x: &[f32]) -> f32 {
                unsafe { fdot::sum_squares(x) }
            }

            fn fetch(&self, values: &[f32]) {
                unsafe { lanes::fetch(values) }
            }

            fn requantize(&self, sums: &[i32], scales: &[f32], input_step: f32, step: f32, out: &mut [f32]) {
                unsafe { nonlinear::requantize(sums, scales, input_step, step, out) }
            }

            fn gelu_mul(&self, gate: &mut [f32], up: &[f32]) {
                unsafe { nonlinear::gelu_mul(gate, up) }
            }

            fn soft_cap(&self, x: &mut [f32], cap: f32) {
                unsafe { nonlinear::soft_cap(x, cap) }
            }

            fn exp_sum(&self, x: &mut [f32], max: f32) -> f32 {
                unsafe { nonlinear::exp_sum(x, max) }
            }

            fn peak(&self, rounds: u64) -> u64 {
                unsafe { $peak(rounds) }
            }
        }
    };
}

kernels!(Avx2, "avx2", qdot::dots, quads::avx2, fdot::dots_bf16, peak::maddubs);
kernels!(Avx512Vnni, "avx512vnni", qdot_vnni::dots, quads::avx512vnni, fdot_512::dots_bf16, peak::dpbusd);
