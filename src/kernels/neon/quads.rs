//! Products of the attention in Armv8.0 NEON and with the dot product, `qs8-qs8-gemm-16x2c4-neon` and
//! `qs8-qs8-gemm-16x4c4-neondot`: a lane is a row, whose four elements of a step are multiplied
//! with four of a token.

use std::arch::aarch64::*;

use crate::kernels::contract::{Planes, Quads};
use crate::kernels::shapes;

/// Bytes of a step: four elements of sixteen rows.
const STEP: usize = 4 * Quads::ROWS;

/// Steps of which a register holds the elements of a token.
const STEPS: usize = 4;

/// `dots_quads` of the contract.
#[target_feature(enable = "neon")]
pub(super) fn neon(w: Quads<'_>, x: Planes<'_>, acc: &mut [i32]) {
    shapes::quads(w, x, acc);
    for (group, codes) in w.codes().chunks_exact(Quads::ROWS * w.k()).enumerate() {
        let mut t = 0;
        while t < x.tokens() {
            let out = &mut acc[t * w.rows() + group * Quads::ROWS..];
            t += if x.tokens() - t == 1 {
                words::<1>(codes, x, t, out, w.rows())
            } else {
                words::<2>(codes, x, t, out, w.rows())
            };
        }
    }
}

/// Sixteen rows with the tokens `t..t + T`, whose sums are `apart` from one another in `out`; returns `T`. An int16 holds a product
/// (`2^14`), not two.
#[inline]
#[target_feature(enable = "neon")]
fn words<const T: usize>(codes: &[i8], x: Planes<'_>, t: usize, out: &mut [i32], apart: usize) -> usize {
    // Two sums for each of two rows.
    let mut sums = [[vdupq_n_s32(0); 8]; T];
    let codes = codes.as_chunks::<STEP>().0;
    let tokens: [&[[i8; 4]]; T] = std::array::from_fn(|i| &x.token(t + i).as_chunks().0[..codes.len()]);
    for (step, codes) in codes.iter().enumerate() {
        let rows = rows(codes);
        for (sums, token) in sums.iter_mut().zip(tokens) {
            let q = vreinterpretq_s8_s32(vdupq_n_s32(bytemuck::cast(token[step])));
            for (r, &rows) in rows.iter().enumerate() {
                sums[2 * r] = vpadalq_s16(sums[2 * r], vmull_s8(vget_low_s8(rows), vget_low_s8(q)));
                sums[2 * r + 1] = vpadalq_s16(sums[2 * r + 1], vmull_high_s8(rows, q));
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        let mut four = [vdupq_n_s32(0); 4];
        for (four, pair) in four.iter_mut().zip(sums.as_chunks::<2>().0) {
            *four = vpaddq_s32(pair[0], pair[1]);
        }
        store(four, &mut out[i * apart..]);
    }
    T
}

/// `dots_quads` of the contract, with the dot product.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn neondot(w: Quads<'_>, x: Planes<'_>, acc: &mut [i32]) {
    shapes::quads(w, x, acc);
    for (group, codes) in w.codes().chunks_exact(Quads::ROWS * w.k()).enumerate() {
        let mut t = 0;
        while t < x.tokens() {
            let out = &mut acc[t * w.rows() + group * Quads::ROWS..];
            t += match x.tokens() - t {
                1 => bytes::<1>(codes, x, t, out, w.rows()),
                2 | 3 => bytes::<2>(codes, x, t, out, w.rows()),
                _ => bytes::<4>(codes, x, t, out, w.rows()),
            };
        }
    }
}

/// As [`words`].
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn bytes<const T: usize>(codes: &[i8], x: Planes<'_>, t: usize, out: &mut [i32], apart: usize) -> usize {
    let mut sums = [[vdupq_n_s32(0); 4]; T];
    let codes = codes.as_chunks::<STEP>().0.as_chunks::<STEPS>().0;
    let tokens: [&[[i8; 16]]; T] = std::array::from_fn(|i| &x.token(t + i).as_chunks().0[..codes.len()]);
    for (four, [a, b, c, d]) in codes.iter().enumerate() {
        let mut q = [vdupq_n_s8(0); T];
        for (q, token) in q.iter_mut().zip(tokens) {
            // SAFETY: the array is as long as the load.
            #[allow(unsafe_code)]
            unsafe {
                *q = vld1q_s8(token[four].as_ptr());
            }
        }
        step::<0, T>(&mut sums, rows(a), q);
        step::<1, T>(&mut sums, rows(b), q);
        step::<2, T>(&mut sums, rows(c), q);
        step::<3, T>(&mut sums, rows(d), q);
    }
    for (i, sums) in sums.into_iter().enumerate() {
        store(sums, &mut out[i * apart..]);
    }
    T
}

/// A step with the four elements in lane `LANE` of every token.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn step<const LANE: usize, const T: usize>(sums: &mut [[int32x4_t; 4]; T], rows: [int8x16_t; 4], q: [int8x16_t; T]) {
    for (sums, q) in sums.iter_mut().zip(q) {
        for (sum, rows) in sums.iter_mut().zip(rows) {
            *sum = sdot_lane::<LANE>(*sum, rows, q);
        }
    }
}

/// `vdotq_laneq_s32`, which is not stable in Rust 1.95.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot_lane<const LANE: usize>(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: one instruction on the registers that it names; the attribute above says that the CPU has it.
    #[allow(unsafe_code)]
    unsafe {
        std::arch::asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.4b[{lane}]",
            sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b, lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// The elements of a step, four rows in a register.
#[inline]
#[target_feature(enable = "neon")]
fn rows(codes: &[i8; STEP]) -> [int8x16_t; 4] {
    let mut rows = [vdupq_n_s8(0); 4];
    for (rows, codes) in rows.iter_mut().zip(codes.as_chunks::<16>().0) {
        // SAFETY: the array is as long as the load.
        #[allow(unsafe_code)]
        unsafe {
            *rows = vld1q_s8(codes.as_ptr());
        }
    }
    rows
}

/// The sums of sixteen rows.
#[inline]
#[target_feature(enable = "neon")]
fn store(sums: [int32x4_t; 4], out: &mut [i32]) {
    for (out, sums) in out.as_chunks_mut::<4>().0.iter_mut().zip(sums) {
        // SAFETY: the array is as long as the store.
        #[allow(unsafe_code)]
        unsafe {
            vst1q_s32(out.as_mut_ptr(), sums);
        }
    }
}
