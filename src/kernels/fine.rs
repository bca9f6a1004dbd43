//! Attention in integers: queries and weights of a softmax as numbers of 15 bits, in two int8 halves.
//!
//! Keys and values are int8 codes. A query that were rounded to int8, too, would shift the scores by tenths (the rounding of
//! 256 elements adds up), so it is taken as `128 · high + low`, with `high` in −127…127 and `low` in −64…63, and each half
//! meets the keys in an exact integer product (`dots_quads` of the contract). The same serves the weights of the softmax. What is
//! left of the error is `2^−15` of the largest element.
//!
//! The softmax is streamed over blocks of positions ([`Softmax`]): a block is weighed against its own maximum, and sums that
//! stand against a smaller one are scaled when they meet. Formulas as in `math`: one for all sets.

use std::ops::Range;

use super::contract::{Softmax, Split, Weights};
use super::math::exp;

/// The largest code: 127 · 128.
const TOP: f32 = 16_256.0;

/// `high` and `low` of `code`, rounded to the nearest integer, ties to even. What is not within ±`TOP` gives anything.
///
/// `1.5 · 2^23` leaves a number of its size no fraction, and its own bits stand above those of the integer. A cast that has to
/// saturate is two branches for every element on x86.
#[inline(always)]
fn halves(code: f32) -> [i8; 2] {
    let code = (code + 12_582_912.0).to_bits().wrapping_sub(0x4b40_0000).cast_signed();
    let high = code.wrapping_add(64) >> 7;
    [high as i8, code.wrapping_sub(high << 7) as i8]
}

/// See [`Kernels::split`](super::contract::Kernels::split).
#[inline(always)]
pub(super) fn split(x: &[f32], high: &mut [i8], low: &mut [i8]) -> Split {
    assert!(x.len() <= high.len() && x.len() <= low.len());
    let step = largest(x, f32::abs).max(0.0) / TOP;
    let mut sums = [0; 2];
    // A vector of zeros has no step; subnormal ones may have one that is zero.
    let divisor = if step > 0.0 { step } else { 1.0 };
    for ((&x, high), low) in x.iter().zip(&mut *high).zip(&mut *low) {
        [*high, *low] = halves((x / divisor).clamp(-TOP, TOP));
        sums[0] += i32::from(*high);
        sums[1] += i32::from(*low);
    }
    high[x.len()..].fill(0);
    low[x.len()..].fill(0);
    Split { step, sums }
}

/// See [`Kernels::weigh`](super::contract::Kernels::weigh).
#[inline(always)]
pub(super) fn weigh(
    sums: [&[i32]; 2],
    scale: f32,
    live: [Range<usize>; 2],
    scores: &mut [f32],
    high: &mut [i8],
    low: &mut [i8],
) -> Weights {
    let n = scores.len();
    assert!(sums[0].len() == n && sums[1].len() == n && high.len() == n && low.len() == n);
    for ((score, &high), &low) in scores.iter_mut().zip(sums[0]).zip(sums[1]) {
        *score = (high as f32).mul_add(128.0, low as f32) * scale;
    }
    let [first, second] = live;
    scores[..first.start].fill(f32::NEG_INFINITY);
    scores[first.end..second.start].fill(f32::NEG_INFINITY);
    scores[second.end..].fill(f32::NEG_INFINITY);
    let max = largest(scores, |score| score);
    if max == f32::NEG_INFINITY {
        high.fill(0);
        low.fill(0);
        return Weights { max, sums: [0; 2] };
    }
    let mut totals = [0; 2];
    for ((&score, high), low) in scores.iter().zip(&mut *high).zip(&mut *low) {
        // What is not live is e^−87 here, and rounded to 0.
        [*high, *low] = halves(exp(score - max) * TOP);
        totals[0] += i32::from(*high);
        totals[1] += i32::from(*low);
    }
    Weights { max, sums: totals }
}

/// See [`Kernels::blend`](super::contract::Kernels::blend).
#[inline(always)]
pub(super) fn blend(state: &mut Softmax, weights: Weights, sums: [&[i32]; 2], out: &mut [f32]) {
    if weights.max == f32::NEG_INFINITY {
        return;
    }
    let total = |[high, low]: [i32; 2]| (high as f32).mul_add(128.0, low as f32);
    let (keep, take) = meet(state, Softmax { max: weights.max, total: total(weights.sums) });
    for ((out, &high), &low) in out.iter_mut().zip(sums[0]).zip(sums[1]) {
        *out = take.mul_add((high as f32).mul_add(128.0, low as f32), *out * keep);
    }
}

/// See [`Kernels::merge`](super::contract::Kernels::merge).
#[inline(always)]
pub(super) fn merge(state: &mut Softmax, other: Softmax, mix: &[f32], out: &mut [f32]) {
    if other.max == f32::NEG_INFINITY {
        return;
    }
    let (keep, take) = meet(state, other);
    out.iter_mut().zip(mix).for_each(|(out, &mix)| *out = take.mul_add(mix, *out * keep));
}

/// Adds what was weighed against another maximum to a softmax, and says what the mix so far and the other one are scaled with.
#[inline(always)]
fn meet(state: &mut Softmax, other: Softmax) -> (f32, f32) {
    let (keep, take) = if other.max <= state.max {
        (1.0, exp(other.max - state.max))
    } else if state.max == f32::NEG_INFINITY {
        (0.0, 1.0)
    } else {
        (exp(state.max - other.max), 1.0)
    };
    state.max = state.max.max(other.max);
    state.total = take.mul_add(other.total, state.total * keep);
    (keep, take)
}

/// The largest of what `of` makes of the elements. A maximum has no order to keep; sixteen of them make it vectors.
#[inline(always)]
fn largest(x: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; super::contract::LANES];
    let (chunks, rest) = x.as_chunks();
    for chunk in chunks.iter().copied() {
        let chunk: [f32; super::contract::LANES] = chunk;
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            let x = of(x);
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.into_iter().chain(rest.iter().map(|&x| of(x))).fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(halves: (&i8, &i8)) -> f32 {
        128.0 * f32::from(*halves.0) + f32::from(*halves.1)
    }

    #[test]
    fn halves_come_back_together() {
        for code in -16_256..=16_256 {
            let [high, low] = halves(code as f32);
            assert_eq!(128 * i32::from(high) + i32::from(low), code);
            assert!((-127..=127).contains(&high) && (-64..=63).contains(&low), "{code}");
            for off in [-0.499, 0.499] {
                assert_eq!(halves(code as f32 + off), [high, low], "{code} and {off}");
            }
            let even = [code, code + 1].into_iter().find(|code| code % 2 == 0).unwrap();
            assert_eq!(halves(code as f32 + 0.5), halves(even as f32), "{code} and a half");
        }
    }

    #[test]
    fn a_split_vector_is_within_half_a_step() {
        let x: Vec<f32> = (0..48).map(|i| ((i * 37) % 101) as f32 * 0.07 - 3.0).collect();
        let (mut high, mut low) = ([9; 64], [9; 64]);
        let Split { step, sums } = split(&x, &mut high, &mut low);
        let largest = x.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        assert_eq!(step, largest / 16_256.0);
        for (x, code) in x.iter().zip(high.iter().zip(&low)) {
            assert!((value(code) * step - x).abs() <= 0.500_1 * step, "{x}");
        }
        assert_eq!(high[48..], [0; 16]);
        assert_eq!(sums, [&high, &low].map(|half| half.iter().map(|&x| i32::from(x)).sum::<i32>()));
        assert_eq!(split(&[0.0; 16], &mut high, &mut low), Split { step: 0.0, sums: [0; 2] });
    }

    /// Three blocks with their maximum in the middle one, some positions of each not to be seen, against the softmax in `f64`.
    #[test]
    fn blocks_add_up_to_a_softmax() {
        let mut rng = fastrand::Rng::with_seed(1);
        let n = 40;
        let (mut state, mut out) = (Softmax::default(), [0.0; 16]);
        let (mut exact, mut total) = ([0.0_f64; 16], 0.0_f64);
        for (block, up) in [0.0_f32, 5.0, -2.0].into_iter().enumerate() {
            let codes: Vec<i32> = (0..n).map(|_| rng.i32(-20_000..20_000) + (up * 10_000.0) as i32).collect();
            let values: Vec<[i8; 16]> = (0..n).map(|_| std::array::from_fn(|_| rng.i8(..))).collect();
            let highs: Vec<i32> = codes.iter().map(|code| code >> 7).collect();
            let lows: Vec<i32> = codes.iter().map(|code| code & 127).collect();
            let live = [[0..n, n..n], [3..10, 20..39], [n..n, n..n]][block].clone();
            let (mut scores, mut high, mut low) = (vec![0.0; n], vec![9; n], vec![9; n]);
            let weights = weigh([&highs, &lows], 1e-4, live.clone(), &mut scores, &mut high, &mut low);
            let mix = |half: &[i8]| -> Vec<i32> {
                let column = |j: usize| half.iter().zip(&values).map(|(&p, v)| i32::from(p) * i32::from(v[j])).sum();
                (0..16).map(column).collect()
            };
            let (highs, lows) = (mix(&high), mix(&low));
            blend(&mut state, weights, [&highs, &lows], &mut out);
            for i in live.into_iter().flatten() {
                let weight = (f64::from(codes[i]) * 1e-4).exp();
                total += weight;
                exact.iter_mut().zip(values[i]).for_each(|(sum, v)| *sum += weight * f64::from(v));
            }
        }
        for (out, exact) in out.iter().zip(exact) {
            assert!(
                (f64::from(out / state.total) - exact / total).abs() < 0.02,
                "{} {}",
                out / state.total,
                exact / total
            );
        }
    }

    /// Three blocks one after the other, and the first and the others merged.
    #[test]
    fn parts_merge_to_what_their_blocks_add_up_to() {
        let mut rng = fastrand::Rng::with_seed(2);
        let blocks: Vec<(Weights, [Vec<i32>; 2])> = [1.0_f32, 4.0, -2.0]
            .map(|max| {
                let half = |rng: &mut fastrand::Rng| (0..16).map(|_| rng.i32(-1_000_000..1_000_000)).collect();
                (Weights { max, sums: [rng.i32(1..20_000), rng.i32(-64..64)] }, [half(&mut rng), half(&mut rng)])
            })
            .into();
        let add = |blocks: &[(Weights, [Vec<i32>; 2])]| {
            let (mut state, mut out) = (Softmax::default(), vec![0.0; 16]);
            blocks.iter().for_each(|(weights, [high, low])| blend(&mut state, *weights, [high, low], &mut out));
            (state, out)
        };
        let (whole, want) = add(&blocks);
        let (mut state, mut out) = add(&blocks[..1]);
        for (other, mix) in [add(&[]), add(&blocks[1..])] {
            merge(&mut state, other, &mix, &mut out);
        }
        assert_eq!(state.max, whole.max);
        assert!((state.total / whole.total - 1.0).abs() < 1e-6, "{} {}", state.total, whole.total);
        let worst = out.iter().zip(&want).map(|(a, b)| (a - b).abs() / b.abs().max(1e3)).fold(0.0, f32::max);
        assert!(worst < 1e-5, "{worst}");
        // Nothing yet: the other one as it stands.
        let (mut state, mut out) = add(&[]);
        merge(&mut state, whole, &want, &mut out);
        assert_eq!((state, out), (whole, want));
    }
}
