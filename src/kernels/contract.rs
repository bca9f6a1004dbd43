//! What every kernel promises, said once.
//!
//! Slices in, slices out: no allocation, no threads, no I/O. A kernel computes the output rows it is handed; who
//! splits the rows over threads is not its business, so results cannot depend on the number of threads.
//!
//! `scalar/` is the executable form of this page. Every other instruction set equals it bit for bit: integer sums
//! because they are exact, float sums because the order below is part of the contract.
//!
//! # Order of float sums
//!
//! A dot product of two float vectors runs in [`LANES`] = 16 partial sums. Element `i` goes to lane `i % 16` by a fused
//! multiply-add, in increasing order of `i`; the lanes are then folded in halves:
//!
//! ```text
//! a[j] += a[j + 8]  (j < 8);   a[j] += a[j + 4]  (j < 4);   a[j] += a[j + 2]  (j < 2);   a[0] + a[1]
//! ```
//!
//! One AVX-512 register, two AVX2 registers and four NEON registers hold the same sixteen lanes.
//!
//! # Packed weights
//!
//! A row of `k` codes of `bits` bits takes `k * bits / 8` bytes; the first value of a row sits in the lowest bits of its
//! first byte. 2-bit and 4-bit codes are unsigned with an offset (2 and 8), 8-bit codes are two's complement.
//!
//! # Planes
//!
//! Field `p` of consecutive bytes holds the values `p, p + P, p + 2P, …` with `P = 8 / bits` fields in a byte. The
//! activations are therefore stored by plane: plane `p` holds the elements `i % P == p` in order, so a vector of weight
//! bytes, shifted and masked for field `p`, meets its activations in one contiguous load.
//!
//! ```text
//! 2 bits, k = 16:  bytes   [ 3 2 1 0 ] [ 7 6 5 4 ] [ 11 10 9 8 ] [ 15 14 13 12 ]     (element numbers, high bits left)
//!                  plane 0   0 4 8 12 | zeros up to the stride
//!                  plane 1   1 5 9 13 | …
//! ```

use std::ops::Range;

/// Number of partial sums in a float dot product.
pub const LANES: usize = 16;

/// Planes are padded with zeros to a multiple of this many bytes: the widest vector register.
pub const PLANE_ALIGN: usize = 64;

/// Longest row that the integer kernels accept: `2^16` products of at most `2^14` stay inside an `i32`.
pub const MAX_K: usize = 1 << 16;

/// Width of a stored weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bits {
    /// Four codes a byte, value = field − 2.
    Two,
    /// Two codes a byte, value = nibble − 8.
    Four,
    /// One signed byte.
    Eight,
}

impl Bits {
    /// The width that `bits` names, if it is one of the three.
    pub const fn new(bits: u32) -> Option<Bits> {
        match bits {
            2 => Some(Bits::Two),
            4 => Some(Bits::Four),
            8 => Some(Bits::Eight),
            _ => None,
        }
    }

    /// Bits in a code: 2, 4 or 8.
    pub const fn get(self) -> usize {
        match self {
            Bits::Two => 2,
            Bits::Four => 4,
            Bits::Eight => 8,
        }
    }

    /// Codes in a byte, and so planes of an activation vector: 4, 2 or 1.
    pub const fn planes(self) -> usize {
        8 / self.get()
    }

    /// What is subtracted from an unsigned code: 2, 8, and 0 for signed bytes.
    pub const fn offset(self) -> i32 {
        match self {
            Bits::Two => 2,
            Bits::Four => 8,
            Bits::Eight => 0,
        }
    }

    /// Bytes in a row of `k` codes.
    pub const fn row_bytes(self, k: usize) -> usize {
        k / self.planes()
    }
}

/// Consecutive rows of packed weights, `[rows, k * bits / 8]` bytes.
#[derive(Clone, Copy, Debug)]
pub struct Codes<'a> {
    bytes: &'a [u8],
    bits: Bits,
    k: usize,
}

impl<'a> Codes<'a> {
    /// `bytes` as rows of `k` codes.
    ///
    /// # Panics
    ///
    /// When `k` is not a positive multiple of 16 up to [`MAX_K`], or `bytes` is not a whole number of rows.
    pub fn new(bytes: &'a [u8], bits: Bits, k: usize) -> Codes<'a> {
        assert!(k > 0 && k.is_multiple_of(LANES) && k <= MAX_K, "row length {k}");
        assert!(bytes.len().is_multiple_of(bits.row_bytes(k)), "{} bytes in rows of {k}", bytes.len());
        Codes { bytes, bits, k }
    }

    /// Width of a code.
    pub fn bits(&self) -> Bits {
        self.bits
    }

    /// Codes in a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.bytes.len() / self.row_bytes()
    }

    /// Bytes in a row.
    pub fn row_bytes(&self) -> usize {
        self.bits.row_bytes(self.k)
    }

    /// All rows, `rows() * row_bytes()` bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The bytes of row `r`.
    pub fn row(&self, r: usize) -> &'a [u8] {
        &self.bytes[r * self.row_bytes()..][..self.row_bytes()]
    }

    /// The rows of `range`.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Codes<'a> {
        let n = self.row_bytes();
        Codes { bytes: &self.bytes[range.start * n..range.end * n], ..*self }
    }
}

/// Bytes from one plane to the next for vectors of `k` elements in `planes` planes.
pub const fn plane_stride(k: usize, planes: usize) -> usize {
    (k / planes).next_multiple_of(PLANE_ALIGN)
}

/// `len` bytes of `memory`, which grows as it must, from a multiple of [`PLANE_ALIGN`] on: the loads of a vector register
/// that cross a cache line cost twice. What stands in them is undefined.
pub fn aligned(memory: &mut Vec<i8>, len: usize) -> &mut [i8] {
    memory.resize(memory.len().max(len + PLANE_ALIGN - 1), 0);
    // Without an answer (which only a const evaluation gives) slower, not wrong.
    let start = memory.as_ptr().align_offset(PLANE_ALIGN).min(PLANE_ALIGN - 1);
    &mut memory[start..start + len]
}

/// Quantized activations of some tokens: `[tokens, planes, plane_stride]` int8, and `Σ q` per token.
#[derive(Clone, Copy, Debug)]
pub struct Planes<'a> {
    q: &'a [i8],
    sums: &'a [i32],
    planes: usize,
    k: usize,
}

impl<'a> Planes<'a> {
    /// `q` as [`Kernels::quantize`] wrote it, token after token, with the sums that it returned.
    ///
    /// # Panics
    ///
    /// When the lengths do not fit together.
    pub fn new(q: &'a [i8], sums: &'a [i32], planes: usize, k: usize) -> Planes<'a> {
        assert_eq!(q.len(), sums.len() * planes * plane_stride(k, planes));
        Planes { q, sums, planes, k }
    }

    /// Number of vectors.
    pub fn tokens(&self) -> usize {
        self.sums.len()
    }

    /// Elements of a vector, without the padding.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Number of planes.
    pub fn planes(&self) -> usize {
        self.planes
    }

    /// Bytes from one plane to the next; the bytes past `k / planes` are zero.
    pub fn stride(&self) -> usize {
        plane_stride(self.k, self.planes)
    }

    /// All planes of token `t`, `planes() * stride()` bytes.
    pub fn token(&self, t: usize) -> &'a [i8] {
        let n = self.planes * self.stride();
        &self.q[t * n..][..n]
    }

    /// `Σ q` of token `t`.
    pub fn sum(&self, t: usize) -> i32 {
        self.sums[t]
    }
}

/// What [`Kernels::split`] found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Split {
    /// What a code of 1 stands for; 0 for a vector of zeros.
    pub step: f32,
    /// `Σ high` and `Σ low`.
    pub sums: [i32; 2],
}

/// What [`Kernels::weigh`] found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// The largest score; negative infinity where no position is live.
    pub max: f32,
    /// `Σ high` and `Σ low`.
    pub sums: [i32; 2],
}

/// A softmax over the blocks so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softmax {
    /// The largest score, against which everything stands.
    pub max: f32,
    /// Sum of the weights, as codes.
    pub total: f32,
}

impl Default for Softmax {
    fn default() -> Softmax {
        Softmax { max: f32::NEG_INFINITY, total: 0.0 }
    }
}

/// The operations that an instruction set implements.
///
/// Lengths of float vectors are multiples of 16. Inputs are finite; with a NaN or an infinity among them the values that
/// come out are unspecified, the memory that is touched is not.
pub trait Kernels: Send + Sync {
    /// Name of the instruction set: `scalar`, `neon`, `neondot`, `avx2`, `avx512vnni`.
    fn name(&self) -> &'static str;

    /// Static activation rounding: `q[i] = clamp(round_half_even(x[i] / step), -128, 127)`, stored in `planes` planes
    /// with their padding zeroed. Returns `Σ q`.
    ///
    /// `q` has `planes * plane_stride(x.len(), planes)` bytes; `step` is positive.
    fn quantize(&self, x: &[f32], step: f32, planes: usize, q: &mut [i8]) -> i32;

    /// `acc[t * rows + r] = Σ_i (code[r][i] − offset) · q[t][i]`, exactly.
    ///
    /// `x` has as many planes as a byte of `w` has codes, and the same `k`.
    fn dots(&self, w: Codes<'_>, x: Planes<'_>, acc: &mut [i32]);

    /// `acc[t * rows + r] = Σ_i (code[r][i] − offset) · x[t][i]` in the order of float sums: projections whose input is
    /// not rounded. `x` is `[tokens, k]`.
    fn dots_f32(&self, w: Codes<'_>, x: &[f32], acc: &mut [f32]);

    /// `acc[t * rows + r] = Σ_i w[r][i] · x[t][i]` for BF16 weights (the upper halves of `f32`s), in the order of float
    /// sums. `w` is `[rows, k]`, `x` is `[tokens, k]`.
    fn dots_bf16(&self, w: &[u16], k: usize, x: &[f32], acc: &mut [f32]);

    /// `out[n] = Σ_j q[j] · keys[n][j]` in the order of float sums; `keys` is `[out.len(), q.len()]`.
    fn scores_f32(&self, q: &[f32], keys: &[f32], out: &mut [f32]);

    /// `out[j] = fma(p[n], values[n][j], out[j])` for `n` in increasing order; `values` is `[p.len(), out.len()]`.
    fn mix_f32(&self, p: &[f32], values: &[f32], out: &mut [f32]);

    /// `x[i] ≈ step · (128 · high[i] + low[i])` with the step that `x` needs, and zeros past its end: `high` and `low` are as long
    /// as `x`, or longer.
    fn split(&self, x: &[f32], high: &mut [i8], low: &mut [i8]) -> Split;

    /// The weights of a softmax over a block of positions, against the block's own maximum, in halves as those of
    /// [`Kernels::split`] with a step of `1 / 16256`.
    ///
    /// `sums` are the products of a key with both halves of a query; a score is `(128 · high + low) · scale`. Positions outside
    /// the two ascending ranges of `live` weigh nothing. All slices have the block's length; `scores` is for its own use.
    fn weigh(
        &self,
        sums: [&[i32]; 2],
        scale: f32,
        live: [Range<usize>; 2],
        scores: &mut [f32],
        high: &mut [i8],
        low: &mut [i8],
    ) -> Weights;

    /// Adds a block to a softmax that is under way: `sums` `[d]` are the products of its values with both halves of `weights`,
    /// `out` `[d]` is the mix so far, to be divided by `state.total` in the end.
    fn blend(&self, state: &mut Softmax, weights: Weights, sums: [&[i32]; 2], out: &mut [f32]);

    /// `out[t * rows + r] = round_clip(sums[t * rows + r] · (input_step · scales[r]), step)` with a scale for each of the rows.
    fn requantize(&self, sums: &[i32], scales: &[f32], input_step: f32, step: f32, out: &mut [f32]);

    /// `gate[i] = gelu(gate[i]) · up[i]`, GELU in its tanh form; the error bounds of this and of the next two stand with the
    /// formulas, in `math`.
    fn gelu_mul(&self, gate: &mut [f32], up: &[f32]);

    /// `x[i] = cap · tanh(x[i] / cap)`.
    fn soft_cap(&self, x: &mut [f32], cap: f32);

    /// `x[i] = e^(x[i] − max)`; returns the sum, whose lanes are those of float sums.
    fn exp_sum(&self, x: &mut [f32], max: f32) -> f32;

    /// `Σ x[i]²` in the order of float sums.
    fn sum_squares(&self, x: &[f32]) -> f32;

    /// Does the set's integer multiply-adds on registers alone, `rounds` times over, and returns how many it did: the
    /// speed at which it does them is the peak that [`Kernels::dots`] can be compared with.
    fn peak(&self, rounds: u64) -> u64;
}
