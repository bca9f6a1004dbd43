//! Static activation rounding in AVX2.

use std::arch::x86_64::*;

use super::lanes::{Lanes, load};
use crate::kernels::contract::plane_stride;
use crate::kernels::shapes;

/// As the scalar one: a true division, ties to even (the rounding mode that Rust guarantees), `Σ q` returned.
#[target_feature(enable = "avx2,fma")]
pub(super) fn quantize(x: &[f32], step: f32, planes: usize, q: &mut [i8]) -> i32 {
    let stride = shapes::quantize(x, planes, q);
    // Bytes of sixteen elements by plane: 0 4 8 12 | 1 5 9 13 | …, or 0 2 4 … 14 | 1 3 5 … 15.
    let by_plane = match planes {
        4 => _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
        2 => _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15),
        _ => _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
    };
    let n = 16 / planes;
    let step = _mm256_set1_ps(step);
    let mut sums = _mm256_setzero_si256();
    for (i, x) in x.as_chunks().0.iter().enumerate() {
        let [low, high] = codes(load(x), step);
        sums = _mm256_add_epi32(sums, _mm256_add_epi32(low, high));
        // Packing works in halves of a register: 0-3 8-11 | 4-7 12-15, put in order before the second one.
        let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
        let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        let mut grouped = [0_i8; 16];
        // SAFETY: the array is as long as the store.
        #[allow(unsafe_code)]
        unsafe {
            _mm_storeu_si128(grouped.as_mut_ptr().cast(), _mm_shuffle_epi8(bytes, by_plane));
        }
        for (p, group) in grouped.chunks_exact(n).enumerate() {
            q[p * stride + i * n..][..n].copy_from_slice(group);
        }
    }
    for plane in q.chunks_exact_mut(stride.max(1)) {
        plane[x.len() / planes..plane_stride(x.len(), planes)].fill(0);
    }
    let mut lanes = [0; 8];
    // SAFETY: the array is as long as the store.
    #[allow(unsafe_code)]
    unsafe {
        _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sums);
    }
    lanes.iter().sum()
}

/// Clamped before it is rounded, which is the same (both ends are integers) and keeps the conversion in range.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn codes(x: Lanes, step: __m256) -> [__m256i; 2] {
    x.map(|x| {
        let steps = _mm256_max_ps(_mm256_div_ps(x, step), _mm256_set1_ps(-128.0));
        _mm256_cvtps_epi32(_mm256_min_ps(steps, _mm256_set1_ps(127.0)))
    })
}
