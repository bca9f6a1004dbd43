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
//! Rows follow one another as they are published ([`Layout::Rows`]), or [`GROUP`] of them take turns every [`CHUNK`] bytes
//! ([`Layout::Groups`]): the kernels take four rows at a time, and read one stream of memory then.
//!
//! ```text
//! rows     0: c0 c1 c2 … | 1: c0 c1 c2 … | 2: c0 c1 c2 … | 3: c0 c1 c2 … | 4: …
//! groups   0: c0 | 1: c0 | 2: c0 | 3: c0 | 0: c1 | 1: c1 | 2: c1 | 3: c1 | 0: c2 …
//! ```
//!
//! # Planes
//!
//! Field `p` of consecutive bytes holds the values `p, p + P, p + 2P, …` with `P = 8 / bits` fields in a byte. The
//! activations are therefore stored by plane: plane `p` holds the elements `i % P == p` in order, so a vector of weight
//! bytes, shifted and masked for field `p`, meets its activations in one contiguous load.
//!
//! ```text
//! 2 bits, k = 16:  bytes   [ 3 2 1 0 ] [ 7 6 5 4 ] [ 11 10 9 8 ] [ 15 14 13 12 ]     (element numbers, high bits left)
//!                  plane 0   0 4 8 12 | zeros up to a multiple of PLANE_ALIGN, then anything up to the stride
//!                  plane 1   1 5 9 13 | …
//! ```

use std::ops::Range;

/// Number of partial sums in a float dot product.
pub const LANES: usize = 16;

/// Planes are padded with zeros to a multiple of this many bytes: the widest vector register.
pub const PLANE_ALIGN: usize = 64;

/// Rows that take turns in [`Layout::Groups`].
pub const GROUP: usize = 4;

/// Bytes of a row between two turns.
pub const CHUNK: usize = 64;

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

/// The order of packed weights in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Row after row.
    Rows,
    /// [`CHUNK`] bytes of each of [`GROUP`] rows by turns.
    Groups,
}

impl Layout {
    /// [`Layout::Groups`] for those matrices that it can hold: whole groups of whole chunks.
    pub const fn of(rows: usize, row_bytes: usize) -> Layout {
        if rows.is_multiple_of(GROUP) && row_bytes.is_multiple_of(CHUNK) { Layout::Groups } else { Layout::Rows }
    }

    /// Writes whole groups of `rows`, which follow one another, to `groups`, in turns.
    pub fn group(rows: &[u8], row_bytes: usize, groups: &mut [u8]) {
        assert!(row_bytes.is_multiple_of(CHUNK) && rows.len() == groups.len());
        assert!(rows.len().is_multiple_of(GROUP * row_bytes), "{} bytes in groups", rows.len());
        for (rows, group) in rows.chunks_exact(GROUP * row_bytes).zip(groups.chunks_exact_mut(GROUP * row_bytes)) {
            for (i, turn) in group.chunks_exact_mut(CHUNK).enumerate() {
                turn.copy_from_slice(&rows[i % GROUP * row_bytes + i / GROUP * CHUNK..][..CHUNK]);
            }
        }
    }

    /// Of rows of `row_bytes` bytes: bytes from a row to the next of its group, and from a chunk to the next of its row.
    const fn strides(self, row_bytes: usize) -> (usize, usize) {
        match self {
            Layout::Rows => (row_bytes, CHUNK),
            Layout::Groups => (CHUNK, GROUP * CHUNK),
        }
    }
}

/// Consecutive rows of packed weights, `[rows, k * bits / 8]` bytes.
#[derive(Clone, Copy, Debug)]
pub struct Codes<'a> {
    bytes: &'a [u8],
    bits: Bits,
    k: usize,
    layout: Layout,
}

impl<'a> Codes<'a> {
    /// `bytes` as rows of `k` codes.
    ///
    /// # Panics
    ///
    /// When `k` is not a positive multiple of 16 up to [`MAX_K`], or `bytes` is not a whole number of rows, or of groups.
    pub fn new(bytes: &'a [u8], bits: Bits, k: usize, layout: Layout) -> Codes<'a> {
        assert!(k > 0 && k.is_multiple_of(LANES) && k <= MAX_K, "row length {k}");
        let row_bytes = bits.row_bytes(k);
        assert!(bytes.len().is_multiple_of(row_bytes), "{} bytes in rows of {k}", bytes.len());
        let groups = Layout::of(bytes.len() / row_bytes, row_bytes) == Layout::Groups;
        assert!(layout == Layout::Rows || groups, "{} bytes in groups of rows of {k}", bytes.len());
        Codes { bytes, bits, k, layout }
    }

    /// All rows, `rows() * row_bytes()`.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
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

    /// [`CHUNK`] bytes of row `r` from `at` on, a multiple of that; fewer at the end of a row.
    ///
    /// # Panics
    ///
    /// When the row has none there.
    #[inline]
    pub fn chunk(&self, r: usize, at: usize) -> &'a [u8] {
        let len = self.row_bytes();
        let group = if self.layout == Layout::Groups { GROUP } else { 1 };
        let (row, chunk) = self.layout.strides(len);
        &self.bytes[r / group * group * len + r % group * row + at / CHUNK * chunk..][..CHUNK.min(len - at)]
    }

    /// Where the last row ends. Of a slice, the rows behind it stand there: an address to fetch from, not to read.
    pub fn behind(&self) -> *const u8 {
        self.bytes.as_ptr_range().end
    }

    /// The chunks of row `r`, in order.
    pub fn chunks(self, r: usize) -> impl Iterator<Item = &'a [u8]> {
        (0..self.row_bytes()).step_by(CHUNK).map(move |at| self.chunk(r, at))
    }

    /// The rows of `range`.
    ///
    /// # Panics
    ///
    /// When they are not there, or begin or end within a group.
    pub fn slice(&self, range: Range<usize>) -> Codes<'a> {
        let n = self.row_bytes();
        self.begins(range.start);
        Codes::new(&self.bytes[range.start * n..range.end * n], self.bits, self.k, self.layout)
    }

    /// The `R` rows from `r` on: any where rows follow one another, else a group.
    ///
    /// # Panics
    ///
    /// When they are not there, or not the whole of a group.
    #[inline]
    pub fn rows_of<const R: usize>(&self, r: usize) -> RowsOf<'a, R> {
        let n = self.row_bytes();
        self.begins(r);
        assert!(self.layout == Layout::Rows || R == GROUP, "{R} rows of a group");
        RowsOf { bytes: &self.bytes[r * n..][..R * n], row_bytes: n, layout: self.layout }
    }

    /// Panics when row `r` is within a group.
    #[inline]
    fn begins(&self, r: usize) {
        assert!(self.layout == Layout::Rows || r.is_multiple_of(GROUP), "row {r} within a group");
    }
}

/// Bytes of `R` consecutive rows, as they stand in memory.
#[derive(Clone, Copy, Debug)]
pub struct RowsOf<'a, const R: usize> {
    bytes: &'a [u8],
    row_bytes: usize,
    layout: Layout,
}

impl<'a, const R: usize> RowsOf<'a, R> {
    /// All of them, `R * row_bytes()`.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Bytes in a row.
    #[inline]
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Bytes from a row to the next, and from a chunk to the next of its row: of every `at` that is a multiple of [`CHUNK`],
    /// `at + CHUNK <= row_bytes()`, and `r < R`, the chunk at `r * row + at / CHUNK * chunk` is inside of `bytes()`.
    #[inline]
    pub fn strides(&self) -> (usize, usize) {
        self.layout.strides(self.row_bytes)
    }

    /// What row `r` has after its last whole chunk: fewer than [`CHUNK`] bytes, none in groups.
    #[inline]
    pub fn rest(&self, r: usize) -> &'a [u8] {
        let whole = self.row_bytes / CHUNK * CHUNK;
        match self.layout {
            Layout::Rows => &self.bytes[r * self.row_bytes..][whole..self.row_bytes],
            Layout::Groups => &[],
        }
    }
}

/// Int8 rows in the order in which the products of several vectors take them, `[rows / 16][k / 4][16][4]`: four elements of each of
/// sixteen rows by turns.
///
/// A lane of a register is a row then, so that sums never have to be added across a register. Weights are not stored so: with one vector
/// memory sets the time, and [`Layout::Groups`], which hold every width, are as fast.
#[derive(Clone, Copy, Debug)]
pub struct Quads<'a> {
    codes: &'a [i8],
    k: usize,
}

impl<'a> Quads<'a> {
    /// Rows that take turns.
    pub const ROWS: usize = 16;

    /// `codes` as rows of `k`.
    ///
    /// # Panics
    ///
    /// When `k` is not a positive multiple of 16 up to [`MAX_K`], or the rows are not a multiple of [`Quads::ROWS`].
    pub fn new(codes: &'a [i8], k: usize) -> Quads<'a> {
        assert!(k > 0 && k.is_multiple_of(LANES) && k <= MAX_K, "row length {k}");
        assert!(codes.len().is_multiple_of(Self::ROWS * k), "{} codes in sixteens of rows of {k}", codes.len());
        Quads { codes, k }
    }

    /// Where element `i` of row `r` stands.
    #[inline]
    pub const fn place(k: usize, r: usize, i: usize) -> usize {
        r / Self::ROWS * Self::ROWS * k + i / 4 * 4 * Self::ROWS + r % Self::ROWS * 4 + i % 4
    }

    /// All rows.
    pub fn codes(&self) -> &'a [i8] {
        self.codes
    }

    /// Elements of a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.codes.len() / self.k
    }
}

/// Least bytes from one plane to the next for vectors of `k` elements in `planes` planes.
pub const fn plane_stride(k: usize, planes: usize) -> usize {
    (k / planes).next_multiple_of(PLANE_ALIGN)
}

/// As [`plane_stride`], with room between the planes, for a single vector that all weights pass by. One thread of a Zen 4 reads
/// rows of 384 bytes at 25 GB/s then instead of 18, and of 3,072 bytes at 24 instead of 16; a gap of 256 bytes was not enough
/// for all lengths, a wider one no better. Loads that follow four planes end to end seem to mislead its prefetchers.
pub const fn plane_stride_apart(k: usize, planes: usize) -> usize {
    plane_stride(k, planes) + if planes > 1 { 8 * PLANE_ALIGN } else { 0 }
}

/// `len` bytes of `memory`, which grows as it must, from a multiple of [`PLANE_ALIGN`] on: the loads of a vector register
/// that cross a cache line cost twice. What stands in them is undefined, unless
/// no more were asked for since they were written: then they are the same bytes, as they were left.
pub fn aligned(memory: &mut Vec<i8>, len: usize) -> &mut [i8] {
    memory.resize(memory.len().max(len + PLANE_ALIGN - 1), 0);
    // Without an answer (which only a const evaluation gives) slower, not wrong.
    let start = memory.as_ptr().align_offset(PLANE_ALIGN).min(PLANE_ALIGN - 1);
    &mut memory[start..start + len]
}

/// Quantized activations of some tokens: `[tokens, planes, stride]` int8, and `Σ q` per token.
#[derive(Clone, Copy, Debug)]
pub struct Planes<'a> {
    q: &'a [i8],
    sums: &'a [i32],
    planes: usize,
    stride: usize,
    k: usize,
}

impl<'a> Planes<'a> {
    /// `q` as [`Kernels::quantize`] wrote it, token after token, with the sums that it returned. The length of `q` tells the
    /// stride.
    ///
    /// # Panics
    ///
    /// When the lengths do not fit together.
    pub fn new(q: &'a [i8], sums: &'a [i32], planes: usize, k: usize) -> Planes<'a> {
        let least = plane_stride(k, planes);
        let stride = q.len().checked_div(sums.len() * planes).unwrap_or(least);
        assert_eq!(q.len(), sums.len() * planes * stride);
        assert!(stride >= least && stride.is_multiple_of(PLANE_ALIGN), "planes {stride} apart");
        Planes { q, sums, planes, stride, k }
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

    /// Bytes from one plane to the next; those past `k / planes` are zero up to [`plane_stride`].
    pub fn stride(&self) -> usize {
        self.stride
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
    /// each with zeros from its end up to [`plane_stride`]. Returns `Σ q`.
    ///
    /// `q` has `planes` times a stride of at least that, a multiple of [`PLANE_ALIGN`]; what is between the planes stays as it
    /// is. `step` is positive.
    fn quantize(&self, x: &[f32], step: f32, planes: usize, q: &mut [i8]) -> i32;

    /// `acc[t * rows + r] = Σ_i (code[r][i] − offset) · q[t][i]`, exactly.
    ///
    /// `x` has as many planes as a byte of `w` has codes, and the same `k`.
    fn dots(&self, w: Codes<'_>, x: Planes<'_>, acc: &mut [i32]);

    /// `acc[t * rows + r] = Σ_i w[r][i] · q[t][i]`, exactly: keys and queries, values and weights of a softmax. `x` has one plane, and
    /// the same `k`.
    fn dots_quads(&self, w: Quads<'_>, x: Planes<'_>, acc: &mut [i32]);

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

    /// Adds the mix `mix` `[d]` of other positions, which belongs to `other`, to the mix `out` `[d]`, which belongs to `state`. Positions
    /// of which none was seen, whose maximum is −∞, change nothing.
    fn merge(&self, state: &mut Softmax, other: Softmax, mix: &[f32], out: &mut [f32]);

    /// Asks the memory for `values`, which are read soon, and does not wait for them.
    fn fetch(&self, values: &[f32]) {
        let _ = values;
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    /// Byte `i` of row `r` is `r` in its high half and the number of its chunk in its low half.
    fn rows(rows: usize, row_bytes: usize) -> Vec<u8> {
        (0..rows).flat_map(|r| (0..row_bytes).map(move |i| (16 * r + i / CHUNK) as u8)).collect()
    }

    #[test]
    fn rows_take_turns_in_groups() {
        let rows = rows(8, 2 * CHUNK);
        let mut groups = vec![0xff; rows.len()];
        Layout::group(&rows, 2 * CHUNK, &mut groups);
        let turns: Vec<u8> = groups.chunks(CHUNK).map(|turn| turn[0]).collect();
        let first = [0x00, 0x10, 0x20, 0x30, 0x01, 0x11, 0x21, 0x31];
        assert_eq!(turns, [first, first.map(|turn| turn + 0x40)].concat());
        assert!(groups.chunks(CHUNK).all(|turn| turn.iter().all(|byte| *byte == turn[0])));

        let codes = Codes::new(&groups, Bits::Eight, 2 * CHUNK, Layout::Groups);
        for r in 0..8 {
            let row: Vec<u8> = codes.chunks(r).flatten().copied().collect();
            assert_eq!(row, rows[r * 2 * CHUNK..][..2 * CHUNK], "row {r}");
        }
        let last = codes.slice(4..8);
        assert_eq!((last.rows(), last.chunk(1, CHUNK)[0]), (4, 0x51));
        let (row, chunk) = codes.rows_of::<GROUP>(4).strides();
        assert_eq!(codes.rows_of::<GROUP>(4).bytes()[2 * row + chunk], 0x61);
        assert!(codes.rows_of::<GROUP>(4).rest(3).is_empty());
    }

    #[test]
    fn rows_that_do_not_fill_groups_follow_one_another() {
        assert_eq!(Layout::of(8, 2 * CHUNK), Layout::Groups);
        for (number, row_bytes) in [(7, CHUNK), (8, CHUNK + 16), (2, CHUNK)] {
            assert_eq!(Layout::of(number, row_bytes), Layout::Rows);
            let rows = rows(number, row_bytes);
            let codes = Codes::new(&rows, Bits::Eight, row_bytes, Layout::Rows);
            let lengths: Vec<usize> = codes.chunks(1).map(<[u8]>::len).collect();
            assert_eq!(lengths.iter().sum::<usize>(), row_bytes);
            assert_eq!(codes.rows_of::<2>(0).rest(1).len(), row_bytes % CHUNK);
        }
    }

    #[test]
    #[should_panic(expected = "within a group")]
    fn a_group_is_not_cut() {
        let rows = rows(8, CHUNK);
        let _ = Codes::new(&rows, Bits::Eight, CHUNK, Layout::Groups).slice(2..6);
    }
}
