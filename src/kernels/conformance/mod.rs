//! Every operation of every set that this CPU has, at sizes around each edge, against the scalar one: `==` for integers,
//! the same bits for floats. Inputs end at a guard page. Differences are reported together.
//!
//! `exercised kernels: NAME` means that NAME ran all of this and was equal; what a test run must show is these lines.

mod guard;

use std::fmt::{Arguments, Debug};

use fastrand::Rng;

use super::available;
use super::contract::{
    Bits, Codes, Kernels, Layout, MAX_K, PLANE_ALIGN, Planes, Quads, Softmax, Split, Weights, plane_stride,
};
use super::scalar::Scalar;
use guard::Guarded;

/// Around the vector lengths of every set at every width: 16 to 64 bytes of 1 to 4 codes, and the int16 batches of NEON
/// (640 and 128 codes).
const LENGTHS: [usize; 19] =
    [16, 32, 48, 64, 80, 112, 128, 144, 240, 256, 272, 304, 512, 528, 624, 640, 656, 1296, 1536];

/// Differences shown of each set.
const SHOWN: usize = 20;

/// What one set did otherwise than scalar.
struct Report {
    set: &'static dyn Kernels,
    differences: Vec<String>,
}

/// Runs `operation` once with scalar and once with every other set, and compares all that it returns.
fn compare<T: PartialEq + Debug>(
    reports: &mut [Report],
    case: Arguments<'_>,
    operation: impl Fn(&dyn Kernels) -> Vec<T>,
) {
    let want = operation(&Scalar);
    for report in reports {
        report.same(&operation(report.set), &want, case);
    }
}

impl Report {
    fn same<T: PartialEq + Debug>(&mut self, got: &[T], want: &[T], case: Arguments<'_>) {
        if got != want {
            let i = got.iter().zip(want).take_while(|(got, want)| got == want).count();
            self.differences.push(format!("{case}: [{i}] is {:?}, not {:?}", got.get(i), want.get(i)));
        }
    }
}

/// The bits of an `f32`, shown as its value: `-0.0` is not `0.0`, and a NaN left in an output is itself.
#[derive(Clone, Copy, PartialEq)]
struct Exact(u32);

impl Debug for Exact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:e} ({:#010x})", f32::from_bits(self.0), self.0)
    }
}

fn exact(x: &[f32]) -> Vec<Exact> {
    x.iter().map(|x| Exact(x.to_bits())).collect()
}

#[test]
fn every_set_equals_scalar() {
    // Scalar, the last, is what the others are compared with; that it is right is said by its own tests.
    let sets = available();
    let mut reports: Vec<_> =
        sets[..sets.len() - 1].iter().map(|&set| Report { set, differences: Vec::new() }).collect();
    quantize(&mut reports);
    dots(&mut reports);
    dots_quads(&mut reports);
    dots_bf16_and_f32(&mut reports);
    attention(&mut reports);
    fine(&mut reports);
    sum_squares(&mut reports);
    nonlinear(&mut reports);

    println!("\nexercised kernels: {}", Scalar.name());
    let mut wrong = String::new();
    for Report { set, differences } in &reports {
        if differences.is_empty() {
            println!("exercised kernels: {}", set.name());
        } else {
            let shown = differences.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("\n  ");
            wrong += &format!("\n{}: {} differences, the first of them\n  {shown}", set.name(), differences.len());
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Values of all magnitudes, zeros of both signs and subnormal ones among them.
fn floats(rng: &mut Rng, n: usize) -> Vec<f32> {
    let mut float = || match rng.u8(..16) {
        0 => 0.0,
        1 => -0.0,
        2 => f32::MIN_POSITIVE * rng.f32(),
        3 => 1e4 * (rng.f32() - 0.5),
        _ => 4.0 * (rng.f32() - 0.5),
    };
    (0..n).map(|_| float()).collect()
}

fn quantize(reports: &mut [Report]) {
    let mut rng = Rng::with_seed(1);
    for k in [0].into_iter().chain(LENGTHS) {
        for (step, scale) in [(1.0, 300.0), (0.037, 8.0), (2.1, 700.0), (1e-40, 1.0), (3e38, 1e38)] {
            // Ties at every second element, where a multiplication by 1 / step would show.
            let x: Vec<f32> = (0..k)
                .map(|i| {
                    let x = scale * (rng.f32() - 0.5);
                    if i % 2 == 0 { ((x / step).floor() + 0.5) * step } else { x }
                })
                .map(|x| x.clamp(f32::MIN, f32::MAX))
                .collect();
            let x = Guarded::new(&x);
            for (planes, gap) in [(1, 0), (2, 0), (4, 0), (1, 1), (2, 2), (4, 1)] {
                compare(
                    reports,
                    format_args!("quantize k {k} planes {planes} gap {gap} step {step}, then Σ q"),
                    |set| {
                        let mut q = vec![0x55; planes * (plane_stride(k, planes) + gap * PLANE_ALIGN)];
                        let sum = set.quantize(&x, step, planes, &mut q);
                        q.into_iter().map(i32::from).chain([sum]).collect()
                    },
                );
            }
        }
    }
}

fn dots(reports: &mut [Report]) {
    for bits in [Bits::Two, Bits::Four, Bits::Eight] {
        for (i, k) in LENGTHS.into_iter().enumerate() {
            dots_of(reports, bits, k, 9, 9, i % 2);
        }
        // More than two blocks of rows, and of codes.
        dots_of(reports, bits, 272, 35, 17, 0);
        dots_of(reports, bits, 256, 36, 17, 3);
        dots_of(reports, bits, 2064, 5, 12, 0);
        dots_of(reports, bits, 2304, 8, 3, 1);
        // Whole panels of rows: with several blocks of codes, in groups and not, and up to the last byte that can be read.
        dots_of(reports, bits, 1104, 32, 9, 0);
        dots_of(reports, bits, 2304, 32, 9, 1);
        dots_of(reports, bits, 2064, 21, 12, 0);
        dots_of(reports, bits, 256, 16, 9, 0);
        dots_of(reports, bits, MAX_K - 16, 1, 1, 1);
        dots_of(reports, bits, MAX_K, 4, 1, 0);
    }
}

/// The last 1, 2, … of `rows` rows with the last 1, 2, … of `tokens` tokens, so that both end at their guard; in groups too,
/// where there are such. `gap` times a register's bytes of anything are between the planes.
fn dots_of(reports: &mut [Report], bits: Bits, k: usize, rows: usize, tokens: usize, gap: usize) {
    let mut rng = Rng::with_seed(k as u64);
    // None is random; 0xff and 0x00 are the ends of unsigned codes, 0x80 and 0x7f those of signed ones.
    for (byte, q) in [
        (None, None),
        (Some(0xff), Some(-128)),
        (Some(0), Some(127)),
        (Some(0x80), Some(-128)),
        (Some(0x7f), Some(127)),
    ] {
        // Which rows share a tile has nothing to do with their contents, nor with their length once it is a few vectors.
        let (rows, tokens) = if byte.is_none() { (rows, tokens) } else { (rows.min(4), tokens.min(4)) };
        let fewest = if byte.is_none() && k <= 144 { 0 } else { rows };
        let row = bits.row_bytes(k);
        let w: Vec<u8> = (0..rows * row).map(|_| byte.unwrap_or_else(|| rng.u8(..))).collect();
        let w = Guarded::new(&w);
        let bytes = bits.planes() * (plane_stride(k, bits.planes()) + gap * PLANE_ALIGN);
        let (mut planes, mut sums) = (vec![0x55; tokens * bytes], Vec::new());
        for token in planes.chunks_exact_mut(bytes) {
            let x: Vec<f32> = (0..k).map(|_| f32::from(q.unwrap_or_else(|| rng.i8(..)))).collect();
            sums.push(Scalar.quantize(&x, 1.0, bits.planes(), token));
        }
        let planes = Guarded::new(&planes);
        let dots = |set: &dyn Kernels, w: &[u8], layout: Layout, m: usize| {
            let n = w.len() / row;
            let w = Codes::new(w, bits, k, layout);
            let x = Planes::new(&planes[(tokens - m) * bytes..], &sums[tokens - m..], bits.planes(), k);
            let mut acc = vec![0x5555_5555; n * m];
            set.dots(w, x, &mut acc);
            acc
        };
        let all = dots(&Scalar, &w, Layout::Rows, tokens);
        for n in fewest..=rows {
            let w = &w[(rows - n) * row..];
            let mut groups = w.to_vec();
            if Layout::of(n, row) == Layout::Groups {
                Layout::group(w, row, &mut groups);
            }
            let groups = Guarded::new(&groups);
            for m in 0..=tokens {
                let want: Vec<i32> =
                    all.chunks(rows).skip(tokens - m).flat_map(|token| &token[rows - n..]).copied().collect();
                for report in &mut *reports {
                    let case = format_args!("dots {bits:?} k {k} rows {n} tokens {m} of {byte:?} {q:?}");
                    report.same(&dots(report.set, w, Layout::Rows, m), &want, case);
                    if Layout::of(n, row) == Layout::Groups {
                        report.same(
                            &dots(report.set, &groups, Layout::Groups, m),
                            &want,
                            format_args!("{case} in groups"),
                        );
                    }
                }
            }
        }
    }
}

/// The last 16, 32, … of the rows with the last 1, 2, … of the tokens, so that both end at their guard.
fn dots_quads(reports: &mut [Report]) {
    let mut rng = Rng::with_seed(6);
    for (k, rows) in [(16, 48), (32, 64), (48, 16), (128, 80), (256, 32), (512, 16), (MAX_K, 16)] {
        for extreme in [None, Some((-128, -128)), Some((-128, 127)), Some((127, 127))] {
            let tokens = if k == MAX_K { 3 } else { 17 };
            let codes: Vec<i8> = (0..rows * k).map(|_| extreme.map_or_else(|| rng.i8(..), |(code, _)| code)).collect();
            let codes = Guarded::new(&codes);
            let stride = plane_stride(k, 1);
            let mut q = vec![0; tokens * stride];
            for token in q.chunks_exact_mut(stride) {
                token[..k].fill_with(|| extreme.map_or_else(|| rng.i8(..), |(_, q)| q));
            }
            let sums: Vec<i32> = q.chunks(stride).map(|q| q.iter().map(|&q| i32::from(q)).sum()).collect();
            let q = Guarded::new(&q);
            for n in (0..=rows).step_by(Quads::ROWS) {
                for m in (0..=tokens).filter(|m| extreme.is_none() || *m == tokens) {
                    let w = Quads::new(&codes[(rows - n) * k..], k);
                    let x = Planes::new(&q[(tokens - m) * stride..], &sums[tokens - m..], 1, k);
                    compare(reports, format_args!("dots_quads k {k} rows {n} tokens {m} of {extreme:?}"), |set| {
                        let mut acc = vec![0x5555_5555; n * m];
                        set.dots_quads(w, x, &mut acc);
                        acc
                    });
                }
            }
        }
    }
}

fn dots_bf16_and_f32(reports: &mut [Report]) {
    let mut rng = Rng::with_seed(2);
    for k in [16, 32, 48, 256, 272] {
        // More than two tiles of rows, and more than one of tokens.
        let (rows, tokens) = (9, 8);
        let w: Vec<u16> = floats(&mut rng, rows * k).iter().map(|w| (w.to_bits() >> 16) as u16).collect();
        let (w, x) = (Guarded::new(&w), Guarded::new(&floats(&mut rng, tokens * k)));
        let codes = Guarded::new(&(0..rows * k).map(|_| rng.u8(..)).collect::<Vec<_>>());
        // The last n rows and the last m tokens, so that both end at their guard.
        for n in 0..=rows {
            for m in 0..=tokens {
                let x = &x[(tokens - m) * k..];
                compare(reports, format_args!("dots_bf16 k {k} rows {n} tokens {m}"), |set| {
                    let mut acc = vec![f32::NAN; n * m];
                    set.dots_bf16(&w[(rows - n) * k..], k, x, &mut acc);
                    exact(&acc)
                });
                for bits in [Bits::Two, Bits::Four, Bits::Eight] {
                    let codes = Codes::new(&codes[codes.len() - n * bits.row_bytes(k)..], bits, k, Layout::Rows);
                    compare(reports, format_args!("dots_f32 {bits:?} k {k} rows {n} tokens {m}"), |set| {
                        let mut acc = vec![f32::NAN; n * m];
                        set.dots_f32(codes, x, &mut acc);
                        exact(&acc)
                    });
                }
            }
        }
    }
}

fn attention(reports: &mut [Report]) {
    let mut rng = Rng::with_seed(3);
    for d in [16, 32, 48, 64, 80, 112, 128, 256, 272, 512] {
        for n in [0, 1, 2, 3, 4, 5, 7, 8, 9, 33] {
            let (q, p) = (Guarded::new(&floats(&mut rng, d)), Guarded::new(&floats(&mut rng, n)));
            let floating = Guarded::new(&floats(&mut rng, n * d));
            let before = floats(&mut rng, d);
            compare(reports, format_args!("scores_f32 d {d} n {n}"), |set| {
                let mut out = vec![f32::NAN; n];
                set.scores_f32(&q, &floating, &mut out);
                exact(&out)
            });
            compare(reports, format_args!("mix_f32 d {d} n {n}"), |set| {
                let mut out = before.clone();
                set.mix_f32(&p, &floating, &mut out);
                exact(&out)
            });
        }
    }
}

fn fine(reports: &mut [Report]) {
    let mut rng = Rng::with_seed(6);
    for n in [16, 32, 48, 64, 112, 128, 256, 272, 512] {
        for x in [Guarded::new(&floats(&mut rng, n)), Guarded::new(&vec![0.0; n]), Guarded::new(&vec![-1e-39; n])] {
            compare(reports, format_args!("split n {n}, then step and sums"), |set| {
                let (mut high, mut low) = (vec![0x55; n.next_multiple_of(64)], vec![0x55; n.next_multiple_of(64)]);
                let Split { step, sums } = set.split(&x, &mut high, &mut low);
                let codes = high.into_iter().chain(low).map(i32::from);
                codes.chain([step.to_bits().cast_signed()]).chain(sums).collect()
            });
        }
    }
    for n in [1, 3, 15, 16, 17, 31, 64, 100, 127, 128] {
        let mut sums = || Guarded::new(&(0..n).map(|_| rng.i32(-500_000..500_000)).collect::<Vec<_>>());
        let (high, low) = (sums(), sums());
        for live in [[0..n, n..n], [0..0, n..n], [n / 3..n / 2, n / 2..n], [0..n / 4, n / 2..n - 1]] {
            compare(reports, format_args!("weigh n {n} live {live:?}, then max and sums"), |set| {
                let (mut scores, mut highs, mut lows) = (vec![f32::NAN; n], vec![0x55; n], vec![0x55; n]);
                let found = set.weigh([&high, &low], 3e-8, live.clone(), &mut scores, &mut highs, &mut lows);
                let codes = highs.into_iter().chain(lows).map(i32::from);
                codes.chain([found.max.to_bits().cast_signed()]).chain(found.sums).collect()
            });
        }
        let before = floats(&mut rng, n);
        let mix = Guarded::new(&floats(&mut rng, n));
        for (old, new) in [(f32::NEG_INFINITY, 1.0), (1.0, f32::NEG_INFINITY), (2.0, 2.0), (-3.5, 4.25), (4.25, -3.5)] {
            compare(reports, format_args!("blend n {n} {old} {new}, then the state"), |set| {
                let (mut state, mut out) = (Softmax { max: old, total: 77.5 }, before.clone());
                set.blend(&mut state, Weights { max: new, sums: [1000, -3] }, [&high, &low], &mut out);
                exact(&[out, vec![state.max, state.total]].concat())
            });
            compare(reports, format_args!("merge n {n} {old} {new}, then the state"), |set| {
                let (mut state, mut out) = (Softmax { max: old, total: 77.5 }, before.clone());
                set.merge(&mut state, Softmax { max: new, total: 3.25 }, &mix, &mut out);
                exact(&[out, vec![state.max, state.total]].concat())
            });
        }
    }
}

fn sum_squares(reports: &mut [Report]) {
    let mut rng = Rng::with_seed(4);
    for k in [0].into_iter().chain(LENGTHS) {
        let x = Guarded::new(&floats(&mut rng, k));
        compare(reports, format_args!("sum_squares k {k}"), |set| exact(&[set.sum_squares(&x)]));
    }
}

fn nonlinear(reports: &mut [Report]) {
    let mut rng = Rng::with_seed(5);
    for n in [0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 64, 100, 257] {
        let x = Guarded::new(&floats(&mut rng, n));
        let wide = Guarded::new(&x.iter().map(|x| 40.0 * x).collect::<Vec<_>>());
        let sums = Guarded::new(&(0..n).map(|_| rng.i32(-1 << 30..1 << 30)).collect::<Vec<_>>());
        for (scale, step) in [(1e-7, 0.01), (3e-9, 0.0), (1e-3, 2.5)] {
            for tokens in [1, 2] {
                let sums = &sums[..n / tokens * tokens];
                compare(reports, format_args!("requantize {n} / {tokens} scale {scale} step {step}"), |set| {
                    let mut out = vec![f32::NAN; sums.len()];
                    set.requantize(sums, &x[..n / tokens], scale, step, &mut out);
                    exact(&out)
                });
            }
        }
        for x in [&x, &wide] {
            compare(reports, format_args!("gelu_mul n {n}"), |set| {
                let mut gate = x.to_vec();
                set.gelu_mul(&mut gate, &wide);
                exact(&gate)
            });
            compare(reports, format_args!("soft_cap n {n}"), |set| {
                let mut x = x.to_vec();
                set.soft_cap(&mut x, 30.0);
                exact(&x)
            });
            compare(reports, format_args!("exp_sum n {n}, then the sum"), |set| {
                let mut x = x.to_vec();
                let sum = set.exp_sum(&mut x, 3.0);
                x.push(sum);
                exact(&x)
            });
        }
    }
}
