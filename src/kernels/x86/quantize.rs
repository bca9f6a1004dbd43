//! Static activation rounding in AVX2.

use std::arch::x86_64::*;

use super::lanes::{Lanes, load};
use crate::kernels::contract::{LANES, plane_stride};
use crate::kernels::shapes;

/// As the scalar one: a true division, ties to even (the rounding mode that Rust guarantees), `Σ q` returned.
#[target_feature(enable = "avx2,fma")]
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
#[target_feature(enable = "avx2,fma")]
fn by_planes<const P: usize>(x: &[f32], step: f32, stride: usize, q: &mut [i8]) -> i32 {
    let step = _mm256_set1_ps(step);
    let mut sums = _mm256_setzero_si256();
    let (blocks, rest) = x.as_chunks::<{ 4 * LANES }>();
    for (i, block) in blocks.iter().enumerate() {
        let mut packs = [_mm_setzero_si128(); 4];
        for (pack, x) in packs.iter_mut().zip(block.as_chunks().0) {
            *pack = packed::<P>(x, step, &mut sums);
        }
        let [a, b, c, d] = packs;
        let columns = match P {
            4 => {
                let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
                let (high_ab, high_cd) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
                [
                    _mm_unpacklo_epi64(ab, cd),
                    _mm_unpackhi_epi64(ab, cd),
                    _mm_unpacklo_epi64(high_ab, high_cd),
                    _mm_unpackhi_epi64(high_ab, high_cd),
                ]
            }
            2 => {
                [_mm_unpacklo_epi64(a, b), _mm_unpacklo_epi64(c, d), _mm_unpackhi_epi64(a, b), _mm_unpackhi_epi64(c, d)]
            }
            _ => packs,
        };
        for (n, column) in columns.into_iter().enumerate() {
            let (plane, part) = (n * P / 4, n % (4 / P));
            q[plane * stride + i * (4 * LANES / P) + part * 16..][..16].copy_from_slice(&bytes(column));
        }
    }
    let (done, n) = (blocks.len() * (4 * LANES / P), LANES / P);
    for (i, x) in rest.as_chunks().0.iter().enumerate() {
        for (plane, codes) in bytes(packed::<P>(x, step, &mut sums)).chunks_exact(n).enumerate() {
            q[plane * stride + done + i * n..][..n].copy_from_slice(codes);
        }
    }
    let mut lanes = [0; 8];
    // SAFETY: the array is as long as the store.
    #[allow(unsafe_code)]
    unsafe {
        _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sums);
    }
    lanes.iter().sum()
}

/// Sixteen codes, plane by plane, which are added to `sums`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn packed<const P: usize>(x: &[f32; LANES], step: __m256, sums: &mut __m256i) -> __m128i {
    let [low, high] = codes(load(x), step);
    *sums = _mm256_add_epi32(*sums, _mm256_add_epi32(low, high));
    // Packing works in halves of a register: 0-3 8-11 | 4-7 12-15, put in order before the second one.
    let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
    let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
    match P {
        4 => _mm_shuffle_epi8(bytes, _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)),
        2 => _mm_shuffle_epi8(bytes, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15)),
        _ => bytes,
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn bytes(of: __m128i) -> [i8; 16] {
    let mut bytes = [0; 16];
    // SAFETY: the array is as long as the store.
    #[allow(unsafe_code)]
    unsafe {
        _mm_storeu_si128(bytes.as_mut_ptr().cast(), of);
    }
    bytes
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
