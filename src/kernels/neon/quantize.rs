//! Static activation rounding in NEON.

use std::arch::aarch64::*;

use super::lanes::load;
use crate::kernels::contract::{LANES, plane_stride};
use crate::kernels::shapes;

/// As the scalar one: a true division, ties to even (`fcvtns`), `Σ q` returned.
#[target_feature(enable = "neon")]
pub(super) fn quantize(x: &[f32], step: f32, planes: usize, q: &mut [i8]) -> i32 {
    let stride = shapes::quantize(x, planes, q);
    // How many planes there are has to be known while compiling: a copy of an unknown number of bytes is a call.
    let sum = match planes {
        4 => by_planes::<4>(x, step, stride, q),
        2 => by_planes::<2>(x, step, stride, q),
        _ => by_planes::<1>(x, step, stride, q),
    };
    for plane in q.chunks_exact_mut(stride.max(1)) {
        plane[x.len() / planes..plane_stride(x.len(), planes)].fill(0);
    }
    sum
}

/// The codes of `x`, element `i` at `q[i % P * stride + i / P]`, and their sum.
#[inline]
#[target_feature(enable = "neon")]
fn by_planes<const P: usize>(x: &[f32], step: f32, stride: usize, q: &mut [i8]) -> i32 {
    // Bytes of sixteen elements by plane: 0 4 8 12 | 1 5 9 13 | …, or 0 2 4 … 14 | 1 3 5 … 15.
    let n = LANES / P;
    let order: [u8; 16] = std::array::from_fn(|i| (i % n * P + i / n) as u8);
    // SAFETY: the array is as long as the load.
    #[allow(unsafe_code)]
    let by_plane = unsafe { vld1q_u8(order.as_ptr()) };
    let step = vdupq_n_f32(step);
    let mut sums = vdupq_n_s32(0);
    let (blocks, rest) = x.as_chunks::<{ 4 * LANES }>();
    for (i, block) in blocks.iter().enumerate() {
        let mut packs = [vdupq_n_s8(0); 4];
        for (pack, x) in packs.iter_mut().zip(block.as_chunks().0) {
            *pack = packed(x, step, by_plane, &mut sums);
        }
        let [a, b, c, d] = packs.map(|pack| vreinterpretq_u32_s8(pack));
        let pair = |a, b| [vtrn1q_u64(a, b), vtrn2q_u64(a, b)];
        let columns = match P {
            4 => {
                let [even, odd] = [[vtrn1q_u32(a, b), vtrn1q_u32(c, d)], [vtrn2q_u32(a, b), vtrn2q_u32(c, d)]]
                    .map(|[ab, cd]| pair(vreinterpretq_u64_u32(ab), vreinterpretq_u64_u32(cd)));
                [even[0], odd[0], even[1], odd[1]]
            }
            2 => {
                let [ab, cd] = [[a, b], [c, d]].map(|[a, b]| pair(vreinterpretq_u64_u32(a), vreinterpretq_u64_u32(b)));
                [ab[0], cd[0], ab[1], cd[1]]
            }
            _ => [a, b, c, d].map(|pack| vreinterpretq_u64_u32(pack)),
        };
        for (n, column) in columns.into_iter().enumerate() {
            let (plane, part) = (n * P / 4, n % (4 / P));
            let column = bytes(vreinterpretq_s8_u64(column));
            q[plane * stride + i * (4 * LANES / P) + part * 16..][..16].copy_from_slice(&column);
        }
    }
    let done = blocks.len() * (4 * LANES / P);
    for (i, x) in rest.as_chunks().0.iter().enumerate() {
        for (plane, codes) in bytes(packed(x, step, by_plane, &mut sums)).chunks_exact(n).enumerate() {
            q[plane * stride + done + i * n..][..n].copy_from_slice(codes);
        }
    }
    vaddvq_s32(sums)
}

/// Sixteen codes in the order `by_plane`, which are added to `sums`.
#[inline]
#[target_feature(enable = "neon")]
fn packed(x: &[f32; LANES], step: float32x4_t, by_plane: uint8x16_t, sums: &mut int32x4_t) -> int8x16_t {
    // The conversions saturate, so what leaves the int32 range clamps like the rest.
    let words = load(x).map(|x| vqmovn_s32(vcvtnq_s32_f32(vdivq_f32(x, step))));
    let low = vqmovn_s16(vcombine_s16(words[0], words[1]));
    let high = vqmovn_s16(vcombine_s16(words[2], words[3]));
    let bytes = vcombine_s8(low, high);
    *sums = vpadalq_s16(*sums, vpaddlq_s8(bytes));
    vqtbl1q_s8(bytes, by_plane)
}

#[inline]
#[target_feature(enable = "neon")]
fn bytes(of: int8x16_t) -> [i8; 16] {
    let mut bytes = [0; 16];
    // SAFETY: the array is as long as the store.
    #[allow(unsafe_code)]
    unsafe {
        vst1q_s8(bytes.as_mut_ptr(), of);
    }
    bytes
}
