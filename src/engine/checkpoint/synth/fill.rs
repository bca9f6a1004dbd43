//! Random contents of tensors, fast enough for gigabytes.

use std::io::{self, Write};
use std::rc::Rc;

use fastrand::Rng;

use crate::kernels::contract::Bits;

/// Bytes that are made before they are written.
const CHUNK: usize = 1 << 16;

/// How a tensor is filled.
pub(super) enum Fill {
    /// The same `f32` everywhere.
    Constant(f32),
    /// `f32`, evenly between two bounds.
    Uniform {
        /// Least value.
        low: f64,
        /// Largest value.
        high: f64,
    },
    /// BF16, bell-shaped.
    Bf16 {
        /// Mean.
        center: f64,
        /// Standard deviation.
        spread: f64,
    },
    /// Packed codes.
    Codes(Rc<Codes>),
}

impl Fill {
    /// Writes `count` elements (bytes, for codes).
    pub(super) fn write(&self, count: usize, rng: &mut Rng, out: &mut impl Write) -> io::Result<()> {
        match self {
            Fill::Constant(x) => (0..count).try_for_each(|_| out.write_all(&x.to_le_bytes())),
            Fill::Uniform { low, high } => (0..count).try_for_each(|_| {
                let x = low + rng.f64() * (high - low);
                out.write_all(&(x as f32).to_le_bytes())
            }),
            Fill::Bf16 { center, spread } => {
                (0..count).try_for_each(|_| out.write_all(&bf16(center + spread * bell(rng)).to_le_bytes()))
            }
            Fill::Codes(codes) => codes.write(count, rng, out),
        }
    }
}

/// About a standard normal: the sum of four even variables, scaled to a variance of 1.
fn bell(rng: &mut Rng) -> f64 {
    let r = rng.u64(..);
    let sum: u64 = (0..4).map(|i| (r >> (16 * i)) & 0xffff).sum();
    (sum as f64 / 65536.0 - 2.0) * 3f64.sqrt()
}

/// The nearest BF16, ties to even.
fn bf16(x: f64) -> u16 {
    let bits = (x as f32).to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Bell-shaped codes, as trained weights have them: 16 random bits name a byte of codes.
pub(super) struct Codes {
    bytes: Vec<u8>,
    rms: f64,
}

impl Codes {
    pub(super) fn new(bits: Bits) -> Codes {
        let sigma = match bits {
            Bits::Two => 0.8,
            Bits::Four => 2.6,
            Bits::Eight => 36.0,
        };
        let half = 1 << (bits.get() - 1);
        // Random bits of one code, and the code for each of their values, by quantiles.
        let random = 16 / bits.planes();
        let count = 1usize << random;
        let values: Vec<i32> = (0..count)
            .map(|i| {
                (sigma * quantile((i as f64 + 0.5) / count as f64)).round().clamp(-f64::from(half), f64::from(half - 1))
                    as i32
            })
            .collect();
        let rms = (values.iter().map(|&v| f64::from(v * v)).sum::<f64>() / count as f64).sqrt();
        let byte = |r: usize| {
            let field = |p: usize| (values[(r >> (p * random)) & (count - 1)] + bits.offset()) as u8;
            (0..bits.planes()).fold(0, |byte, p| byte | field(p) << (p * bits.get() % 8))
        };
        Codes { bytes: (0..1 << 16).map(byte).collect(), rms }
    }

    /// Root of the mean square of the codes, their offset taken off.
    pub(super) fn rms(&self) -> f64 {
        self.rms
    }

    fn write(&self, count: usize, rng: &mut Rng, out: &mut impl Write) -> io::Result<()> {
        let mut chunk = [0; CHUNK];
        let mut left = count;
        while left > 0 {
            let part = &mut chunk[..left.min(CHUNK)];
            for four in part.chunks_mut(4) {
                let r = rng.u64(..);
                for (i, byte) in four.iter_mut().enumerate() {
                    *byte = self.bytes[(r >> (16 * i)) as usize & 0xffff];
                }
            }
            out.write_all(part)?;
            left -= part.len();
        }
        Ok(())
    }
}

/// Quantile of the standard normal, nearly.
fn quantile(p: f64) -> f64 {
    // Tukey's lambda with 0.14 is within 0.01 of the normal over the range used here, which is more than codes need.
    (p.powf(0.14) - (1.0 - p).powf(0.14)) / 0.1975
}
