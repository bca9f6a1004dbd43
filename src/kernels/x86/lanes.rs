//! The sixteen lanes of the contract in two AVX2 registers.
//!
//! Loads and stores take arrays of sixteen, so that their bounds are a matter of types.

use std::arch::x86_64::*;

use crate::kernels::contract::LANES;

/// Lanes 0-7 and 8-15.
pub(super) type Lanes = [__m256; 2];

/// See [`Kernels::fetch`](crate::kernels::contract::Kernels::fetch).
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn fetch(values: &[f32]) {
    // A line of the cache each; where they begin within one, the last value has one more.
    for value in values.iter().step_by(16).chain(values.last()) {
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast());
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn splat(x: f32) -> Lanes {
    [_mm256_set1_ps(x); 2]
}

#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn load(x: &[f32; LANES]) -> Lanes {
    // SAFETY: the array is as long as the two loads.
    #[allow(unsafe_code)]
    unsafe {
        [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))]
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn store(x: Lanes, to: &mut [f32; LANES]) {
    // SAFETY: the array is as long as the two stores.
    #[allow(unsafe_code)]
    unsafe {
        _mm256_storeu_ps(to.as_mut_ptr(), x[0]);
        _mm256_storeu_ps(to.as_mut_ptr().add(8), x[1]);
    }
}

/// BF16 to f32, exactly: it is the upper half.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn widen_bf16(x: &[u16; LANES]) -> Lanes {
    // SAFETY: the array is as long as the load.
    #[allow(unsafe_code)]
    let halves = unsafe { _mm256_loadu_si256(x.as_ptr().cast()) };
    [_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves)]
        .map(|half| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half))))
}

/// `a · b + c`, fused.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn fma(a: Lanes, b: Lanes, c: Lanes) -> Lanes {
    [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
}

/// The sum of the lanes in the contract's order: halves of 8, 4, 2, 1.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn fold(lanes: Lanes) -> f32 {
    let eight = _mm256_add_ps(lanes[0], lanes[1]);
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}
