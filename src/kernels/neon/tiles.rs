//! How the integer products of several tokens are cut in NEON, for prompts and for the verification of guesses.
//!
//! Unpacking would be repeated for each of them. A *block*, [`BLOCK_ROWS`] rows by [`CODES`] codes, is unpacked to bytes in the
//! first-level cache, and all tokens pass over it, [`TOKENS`] at a time, in a loop of nothing but loads and products
//! ([`Tiles::gemm`]). What a token brings from the second-level cache serves all rows of the block.

use crate::kernels::contract::{Bits, CHUNK, Codes, PLANE_ALIGN, Planes};
use crate::kernels::gemv::{self, Gemv, ROWS};
use crate::kernels::shapes;

/// Tokens of a tile.
pub(super) const TOKENS: usize = 4;

/// Rows of a block.
const BLOCK_ROWS: usize = 16;

/// Codes of a row in a block: 16 KiB for all rows.
const CODES: usize = 1024;

/// The inner product of an instruction set for several tokens.
pub(super) trait Tiles: Gemv {
    /// `Σ code · q` of each token, whose planes begin at byte `at`, with the unpacked rows.
    fn gemm<const BITS: usize, const T: usize>(
        self,
        codes: Unpacked<'_>,
        tokens: [&[i8]; T],
        stride: usize,
        at: usize,
    ) -> [[i32; ROWS]; T];
}

/// `acc[t * rows + r] = Σ code · q − offset · Σ q`.
///
/// Inlined into a function that is compiled for the instruction set, as is all that it calls here.
#[inline(always)]
pub(super) fn dots<S: Tiles>(set: S, w: Codes<'_>, x: Planes<'_>, acc: &mut [i32]) {
    match (w.bits(), x.tokens()) {
        (_, 0 | 1) => gemv::dots(set, w, x, acc),
        (Bits::Two, _) => tokens::<S, 2>(set, w, x, acc),
        (Bits::Four, _) => tokens::<S, 4>(set, w, x, acc),
        (Bits::Eight, _) => tokens::<S, 8>(set, w, x, acc),
    }
}

#[inline(always)]
fn tokens<S: Tiles, const BITS: usize>(set: S, w: Codes<'_>, x: Planes<'_>, acc: &mut [i32]) {
    shapes::dots(w, x, acc);
    let offset = w.bits().offset();
    if w.rows() == 0 {
        return;
    }
    acc.chunks_exact_mut(w.rows()).enumerate().for_each(|(t, acc)| acc.fill(-offset * x.sum(t)));
    let mut block = Block { codes: [0; BLOCK_ROWS * CODES], len: 0 };
    for first in (0..w.rows()).step_by(BLOCK_ROWS) {
        let rows = first..w.rows().min(first + BLOCK_ROWS);
        for at in (0..w.row_bytes()).step_by(CODES / (8 / BITS)) {
            block.unpack::<BITS>(w, rows.clone(), at);
            for t in (0..x.tokens()).step_by(TOKENS) {
                for (r, codes) in rows.clone().step_by(ROWS).zip(block.tiles()) {
                    let acc = &mut acc[t * w.rows() + r..];
                    match x.tokens() - t {
                        1 => tile::<S, BITS, 1>(set, codes, x, t, at, acc, w.rows(), w.rows() - r),
                        2 => tile::<S, BITS, 2>(set, codes, x, t, at, acc, w.rows(), w.rows() - r),
                        3 => tile::<S, BITS, 3>(set, codes, x, t, at, acc, w.rows(), w.rows() - r),
                        _ => tile::<S, BITS, TOKENS>(set, codes, x, t, at, acc, w.rows(), w.rows() - r),
                    }
                }
            }
        }
    }
}

/// Adds the products of the tokens `t..t + T` to `acc`, whose tokens are `rows` apart and of whose rows `left` are there.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn tile<S: Tiles, const BITS: usize, const T: usize>(
    set: S,
    codes: Unpacked<'_>,
    x: Planes<'_>,
    t: usize,
    at: usize,
    acc: &mut [i32],
    rows: usize,
    left: usize,
) {
    let sums = set.gemm::<BITS, T>(codes, std::array::from_fn(|i| x.token(t + i)), x.stride(), at);
    for (acc, sums) in acc.chunks_mut(rows).zip(sums) {
        match acc.first_chunk_mut::<ROWS>() {
            Some(acc) if left >= ROWS => acc.iter_mut().zip(sums).for_each(|(acc, sum)| *acc += sum),
            _ => acc.iter_mut().zip(sums).take(left).for_each(|(acc, sum)| *acc += sum),
        }
    }
}

/// Codes as bytes: `[BLOCK_ROWS][planes][CODES / planes]`, of which `len` bytes of every plane are filled.
#[repr(align(64))]
struct Block {
    codes: [u8; BLOCK_ROWS * CODES],
    len: usize,
}

impl Block {
    /// Unpacks up to [`CODES`] codes of `rows` from the packed byte `at` on, and zeros up to a multiple of [`PLANE_ALIGN`].
    /// Of rows that are not there stays what was.
    #[inline(always)]
    fn unpack<const BITS: usize>(&mut self, w: Codes<'_>, rows: std::ops::Range<usize>, at: usize) {
        let plane = CODES / (8 / BITS);
        let bytes = plane.min(w.row_bytes() - at);
        self.len = bytes.next_multiple_of(PLANE_ALIGN);
        for (r, codes) in rows.zip(self.codes.chunks_exact_mut(CODES)) {
            for from in (0..bytes).step_by(CHUNK) {
                let packed = w.chunk(r, at + from);
                for (p, plane) in codes.chunks_exact_mut(plane).enumerate() {
                    let to = &mut plane[from..from + CHUNK];
                    match (packed.as_array::<CHUNK>(), to.as_mut_array::<CHUNK>()) {
                        // Of known lengths, which the compiler makes vectors of.
                        (Some(packed), Some(to)) => unpack::<BITS>(packed, p, to),
                        _ => {
                            to.fill(0);
                            unpack::<BITS>(packed, p, to);
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn tiles(&self) -> impl Iterator<Item = Unpacked<'_>> {
        self.codes.chunks_exact(ROWS * CODES).map(|codes| Unpacked { codes, len: self.len })
    }
}

/// The codes of plane `p` of `packed`.
#[inline(always)]
fn unpack<const BITS: usize>(packed: &[u8], p: usize, to: &mut [u8]) {
    match BITS {
        2 => to.iter_mut().zip(packed).for_each(|(code, byte)| *code = byte >> (2 * p) & 3),
        4 => to.iter_mut().zip(packed).for_each(|(code, byte)| *code = byte >> (4 * p) & 15),
        _ => to.iter_mut().zip(packed).for_each(|(code, byte)| *code = *byte),
    }
}

/// [`ROWS`] rows of a block.
#[derive(Clone, Copy)]
pub(super) struct Unpacked<'a> {
    codes: &'a [u8],
    len: usize,
}

impl<'a> Unpacked<'a> {
    /// Bytes of every plane, a multiple of [`PLANE_ALIGN`].
    #[inline]
    pub(super) fn len(self) -> usize {
        self.len
    }

    /// Plane `p` of every row, `len()` bytes each.
    #[inline]
    pub(super) fn rows<const BITS: usize>(self, p: usize) -> [&'a [u8]; ROWS] {
        std::array::from_fn(|r| &self.codes[r * CODES + p * (CODES / (8 / BITS))..][..self.len])
    }

    /// Plane `p` of every token, `len()` bytes from `at` on.
    #[inline]
    pub(super) fn tokens<const BITS: usize, const T: usize>(
        self,
        tokens: [&[i8]; T],
        p: usize,
        stride: usize,
        at: usize,
    ) -> [&[i8]; T] {
        assert!(tokens.iter().all(|token| token.len() == 8 / BITS * stride));
        tokens.map(|token| &token[p * stride..][..stride][at..][..self.len])
    }
}
