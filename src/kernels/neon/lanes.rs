//! The sixteen lanes of the contract in four NEON registers.
//!
//! Loads and stores take arrays of sixteen, so that their bounds are a matter of types.

use std::arch::aarch64::*;

use crate::kernels::contract::LANES;

/// Lanes 0-3, 4-7, 8-11 and 12-15.
pub(super) type Lanes = [float32x4_t; 4];

/// See [`Kernels::fetch`](crate::kernels::contract::Kernels::fetch).
#[inline]
pub(super) fn fetch(values: &[f32]) {
    // Where they begin within a line of the cache, the last value has one more.
    values.iter().step_by(16).chain(values.last()).for_each(|value| fetch_line(value));
}

/// Asks the memory for the line of the cache that `at` lies in.
#[inline]
pub(super) fn fetch_line<T>(at: *const T) {
    // SAFETY: a prefetch reads nothing and faults nowhere; the address may be that of anything.
    #[allow(unsafe_code)]
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) at, options(readonly, nostack, preserves_flags));
    }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn splat(x: f32) -> Lanes {
    [vdupq_n_f32(x); 4]
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load(x: &[f32; LANES]) -> Lanes {
    // SAFETY: the array is as long as the four loads.
    #[allow(unsafe_code)]
    unsafe {
        let x = x.as_ptr();
        [vld1q_f32(x), vld1q_f32(x.add(4)), vld1q_f32(x.add(8)), vld1q_f32(x.add(12))]
    }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store(x: Lanes, to: &mut [f32; LANES]) {
    // SAFETY: the array is as long as the four stores.
    #[allow(unsafe_code)]
    unsafe {
        for (i, x) in x.into_iter().enumerate() {
            vst1q_f32(to.as_mut_ptr().add(4 * i), x);
        }
    }
}

/// BF16 to f32, exactly: it is the upper half.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn widen_bf16(x: &[u16; LANES]) -> Lanes {
    // SAFETY: the array is as long as the two loads.
    #[allow(unsafe_code)]
    let (low, high) = unsafe { (vld1q_u16(x.as_ptr()), vld1q_u16(x.as_ptr().add(8))) };
    [
        vshll_n_u16::<16>(vget_low_u16(low)),
        vshll_high_n_u16::<16>(low),
        vshll_n_u16::<16>(vget_low_u16(high)),
        vshll_high_n_u16::<16>(high),
    ]
    .map(|words| vreinterpretq_f32_u32(words))
}

/// `a · b + c`, fused.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn fma(a: Lanes, b: Lanes, c: Lanes) -> Lanes {
    let mut sums = c;
    for i in 0..4 {
        sums[i] = vfmaq_f32(c[i], a[i], b[i]);
    }
    sums
}

/// The sum of the lanes in the contract's order: halves of 8, 4, 2, 1.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn fold(lanes: Lanes) -> f32 {
    let four = vaddq_f32(vaddq_f32(lanes[0], lanes[2]), vaddq_f32(lanes[1], lanes[3]));
    let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
}
