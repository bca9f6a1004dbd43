//! Every operation of every set that this CPU has, at sizes around each edge, against the scalar one: `==` for integers,
//! the same bits for floats. Inputs end at a guard page. Differences are reported together.

mod guard;

use fastrand::Rng;

use super::available;
use super::contract::{Bits, Codes, Kernels, MAX_K, Planes, plane_stride};
use super::scalar::Scalar;
use guard::Guarded;

/// Around the vector lengths of every set at every width: 16 to 64 bytes of 1 to 4 codes, and the int16 batches of NEON.
const LENGTHS: [usize; 19] =
    [16, 32, 48, 64, 80, 112, 128, 144, 240, 256, 272, 304, 512, 528, 624, 640, 656, 1296, 1536];

/// What differed, by operation; `same` compares whole results and notes the first difference.
struct Report {
    set: &'static dyn Kernels,
    failures: Vec<String>,
}

impl Report {
    fn same<T: PartialEq + std::fmt::Debug>(&mut self, got: &[T], want: &[T], case: std::fmt::Arguments<'_>) {
        if let Some(i) = (0..want.len()).find(|&i| got[i] != want[i]) {
            let name = self.set.name();
            self.failures.push(format!("{name} {case}: [{i}] is {:?}, not {:?}", got[i], want[i]));
        }
    }

    fn same_bits(&mut self, got: &[f32], want: &[f32], case: std::fmt::Arguments<'_>) {
        let bits = |x: &[f32]| -> Vec<u32> { x.iter().map(|x| x.to_bits()).collect() };
        if bits(got) != bits(want) {
            let i = (0..want.len()).find(|&i| got[i].to_bits() != want[i].to_bits()).unwrap_or(0);
            let name = self.set.name();
            self.failures.push(format!("{name} {case}: [{i}] is {:e}, not {:e}", got[i], want[i]));
        }
    }
}

#[test]
fn every_set_equals_scalar() {
    let mut failures = Vec::new();
    println!();
    for set in available() {
        let mut report = Report { set, failures: Vec::new() };
        quantize(&mut report);
        dots(&mut report);
        dots_bf16_and_f32(&mut report);
        attention(&mut report);
        sum_squares(&mut report);
        println!("exercised kernels: {}", set.name());
        failures.append(&mut report.failures);
    }
    let shown = failures.iter().take(40).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "{} differences, the first of them:\n{shown}", failures.len());
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

fn quantize(report: &mut Report) {
    let mut rng = Rng::with_seed(1);
    for k in LENGTHS {
        for planes in [1, 2, 4] {
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
                let bytes = planes * plane_stride(k, planes);
                let (mut got, mut want) = (vec![0x55; bytes], vec![0x2a; bytes]);
                let sum = report.set.quantize(&x, step, planes, &mut got);
                let want_sum = Scalar.quantize(&x, step, planes, &mut want);
                report.same(&got, &want, format_args!("quantize k {k} planes {planes} step {step}"));
                report.same(&[sum], &[want_sum], format_args!("quantize sum k {k} planes {planes} step {step}"));
            }
        }
    }
}

fn dots(report: &mut Report) {
    for bits in [Bits::Two, Bits::Four, Bits::Eight] {
        for k in LENGTHS {
            dots_of(report, bits, k, 9, 9);
        }
        dots_of(report, bits, MAX_K - 16, 2, 2);
        dots_of(report, bits, MAX_K, 2, 2);
    }
}

/// The last 1, 2, … of `rows` rows with the last 1, 2, … of `tokens` tokens, so that both end at their guard.
fn dots_of(report: &mut Report, bits: Bits, k: usize, rows: usize, tokens: usize) {
    let mut rng = Rng::with_seed(k as u64);
    // None is random; 0xff and 0x00 are the ends of unsigned codes, 0x80 and 0x7f those of signed ones.
    for (byte, q) in [
        (None, None),
        (Some(0xff), Some(-128)),
        (Some(0), Some(127)),
        (Some(0x80), Some(-128)),
        (Some(0x7f), Some(127)),
    ] {
        let row = bits.row_bytes(k);
        let w: Vec<u8> = (0..rows * row).map(|_| byte.unwrap_or_else(|| rng.u8(..))).collect();
        let w = Guarded::new(&w);
        let bytes = bits.planes() * plane_stride(k, bits.planes());
        let (mut planes, mut sums) = (vec![0; tokens * bytes], Vec::new());
        for token in planes.chunks_exact_mut(bytes) {
            let x: Vec<f32> = (0..k).map(|_| f32::from(q.unwrap_or_else(|| rng.i8(..)))).collect();
            sums.push(Scalar.quantize(&x, 1.0, bits.planes(), token));
        }
        let planes = Guarded::new(&planes);
        let all = |n: usize, m: usize| {
            let x = Planes::new(&planes[(tokens - m) * bytes..], &sums[tokens - m..], bits.planes(), k);
            (Codes::new(&w[(rows - n) * row..], bits, k), x)
        };
        let mut want = vec![0; rows * tokens];
        let (codes, x) = all(rows, tokens);
        Scalar.dots(codes, x, &mut want);
        // Fewer rows only where it is cheap: which rows share a tile has nothing to do with their length or contents.
        let fewest = if byte.is_none() && k <= 272 { 0 } else { rows };
        for n in fewest..=rows {
            for m in 0..=tokens {
                let mut got = vec![0x5555_5555; n * m];
                let (codes, x) = all(n, m);
                report.set.dots(codes, x, &mut got);
                let want: Vec<i32> =
                    want.chunks(tokens).skip(rows - n).flat_map(|row| &row[tokens - m..]).copied().collect();
                report.same(&got, &want, format_args!("dots {bits:?} k {k} rows {n} tokens {m} of {byte:?} {q:?}"));
            }
        }
    }
}

fn dots_bf16_and_f32(report: &mut Report) {
    let mut rng = Rng::with_seed(2);
    for k in [16, 32, 48, 256, 272] {
        for rows in 0..6 {
            for tokens in 0..6 {
                let w: Vec<u16> = floats(&mut rng, rows * k).iter().map(|w| (w.to_bits() >> 16) as u16).collect();
                let (w, x) = (Guarded::new(&w), Guarded::new(&floats(&mut rng, tokens * k)));
                let (mut got, mut want) = (vec![f32::NAN; rows * tokens], vec![f32::NAN; rows * tokens]);
                report.set.dots_bf16(&w, k, &x, &mut got);
                Scalar.dots_bf16(&w, k, &x, &mut want);
                report.same_bits(&got, &want, format_args!("dots_bf16 k {k} rows {rows} tokens {tokens}"));
                for bits in [Bits::Two, Bits::Four, Bits::Eight] {
                    let w: Vec<u8> = (0..rows * bits.row_bytes(k)).map(|_| rng.u8(..)).collect();
                    let w = Guarded::new(&w);
                    report.set.dots_f32(Codes::new(&w, bits, k), &x, &mut got);
                    Scalar.dots_f32(Codes::new(&w, bits, k), &x, &mut want);
                    report.same_bits(&got, &want, format_args!("dots_f32 {bits:?} k {k} rows {rows} tokens {tokens}"));
                }
            }
        }
    }
}

fn attention(report: &mut Report) {
    let mut rng = Rng::with_seed(3);
    for d in [16, 32, 48, 64, 80, 112, 128, 256, 272, 512] {
        for n in [0, 1, 2, 3, 4, 5, 7, 8, 9, 33] {
            let (q, p) = (Guarded::new(&floats(&mut rng, d)), Guarded::new(&floats(&mut rng, n)));
            let floating = Guarded::new(&floats(&mut rng, n * d));
            let bytes = Guarded::new(&(0..n * d).map(|_| rng.i8(..)).collect::<Vec<_>>());
            let scores = |set: &dyn Kernels| {
                let mut out = [vec![f32::NAN; n], vec![f32::NAN; n]];
                set.scores_f32(&q, &floating, &mut out[0]);
                set.scores_i8(&q, &bytes, &mut out[1]);
                out.concat()
            };
            report.same_bits(&scores(report.set), &scores(&Scalar), format_args!("scores d {d} n {n} (f32, then i8)"));
            let before = floats(&mut rng, 2 * d);
            let mix = |set: &dyn Kernels| {
                let mut out = before.clone();
                set.mix_f32(&p, &floating, &mut out[..d]);
                set.mix_i8(&p, &bytes, &mut out[d..]);
                out
            };
            report.same_bits(&mix(report.set), &mix(&Scalar), format_args!("mix d {d} n {n} (f32, then i8)"));
        }
    }
}

fn sum_squares(report: &mut Report) {
    let mut rng = Rng::with_seed(4);
    for k in [0].into_iter().chain(LENGTHS) {
        let x = Guarded::new(&floats(&mut rng, k));
        let (got, want) = (report.set.sum_squares(&x), Scalar.sum_squares(&x));
        report.same_bits(&[got], &[want], format_args!("sum_squares k {k}"));
    }
}
