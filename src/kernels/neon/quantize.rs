//! Static activation rounding in NEON.

use std::arch::aarch64::*;

use super::lanes::load;
use crate::kernels::contract::plane_stride;
use crate::kernels::shapes;

/// As the scalar one: a true division, ties to even (`fcvtns`), `Σ q` returned.
#[target_feature(enable = "neon")]
pub(super) fn quantize(x: &[f32], step: f32, planes: usize, q: &mut [i8]) -> i32 {
    let stride = shapes::quantize(x, planes, q);
    // Bytes of sixteen elements by plane: 0 4 8 12 | 1 5 9 13 | …, or 0 2 4 … 14 | 1 3 5 … 15.
    let n = 16 / planes;
    let order: [u8; 16] = std::array::from_fn(|i| (i % n * planes + i / n) as u8);
    // SAFETY: the array is as long as the load.
    #[allow(unsafe_code)]
    let by_plane = unsafe { vld1q_u8(order.as_ptr()) };
    let step = vdupq_n_f32(step);
    let mut sums = vdupq_n_s32(0);
    for (i, x) in x.as_chunks().0.iter().enumerate() {
        // The conversions saturate, so what leaves the int32 range clamps like the rest.
        let words = load(x).map(|x| vqmovn_s32(vcvtnq_s32_f32(vdivq_f32(x, step))));
        let low = vqmovn_s16(vcombine_s16(words[0], words[1]));
        let high = vqmovn_s16(vcombine_s16(words[2], words[3]));
        let bytes = vcombine_s8(low, high);
        sums = vpadalq_s16(sums, vpaddlq_s8(bytes));
        let mut grouped = [0_i8; 16];
        // SAFETY: the array is as long as the store.
        #[allow(unsafe_code)]
        unsafe {
            vst1q_s8(grouped.as_mut_ptr(), vqtbl1q_s8(bytes, by_plane));
        }
        for (p, group) in grouped.chunks_exact(n).enumerate() {
            q[p * stride + i * n..][..n].copy_from_slice(group);
        }
    }
    for plane in q.chunks_exact_mut(stride.max(1)) {
        plane[x.len() / planes..plane_stride(x.len(), planes)].fill(0);
    }
    vaddvq_s32(sums)
}
