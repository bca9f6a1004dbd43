//! Integer products of several tokens in AVX2: `qs8-qc{2,4,8}w-gemm-16x6c4-avx2`.
//!
//! As in `gemm_vnni` a lane of a register is a row, and a step takes four codes of each, so that sums never have to be added
//! across a register. `vpmaddubsw` multiplies unsigned codes with four activations that are broadcast from memory and adds
//! them by twos in an int16: at most `2 · 3 · 128 = 768` or `2 · 15 · 128 = 3840`, of which an int16 holds 42 or 8. Signed bytes
//! are made unsigned and cut in two nibbles, `c + 128 = 16 · high + low`: two planes of 4-bit codes for the same activations.
//!
//! 16 rows by six tokens are 12 sums, which with the codes of a step and the activations of a token fill the registers: 12
//! `vpmaddubsw` and as many `vpaddw` for eight loads.

use std::arch::x86_64::*;

use super::qdot::load_codes;
use crate::kernels::contract::{Bits, CHUNK, Codes, Planes};
use crate::kernels::shapes;

/// Rows of a panel: two registers.
const ROWS: usize = 16;

/// Tokens of a tile.
const TOKENS: usize = 6;

/// Codes of a row in a block, or nibbles: 16 KiB for the panel.
const CODES: usize = 1024;

/// Bytes of a step: four codes of every row of a panel.
const STEP: usize = 4 * ROWS;

/// Steps by which the loop goes on, so that few of its instructions are about addresses.
const UNROLL: usize = 2;

/// Chunks of the next block that are fetched with each tile: all of them while 64 tokens pass.
const AHEAD: usize = 12;

/// What 8-bit codes stand above their value here.
const BYTE_OFFSET: i32 = 128;

/// Planes of a block.
const fn planes(bits: usize) -> usize {
    if bits == 2 { 4 } else { 2 }
}

/// Codes as bytes: `[planes][steps][ROWS][4]`, of which `steps` steps of every plane are filled.
#[repr(align(64))]
struct Block {
    codes: [u8; ROWS * CODES],
    steps: usize,
}

/// `acc[t * rows + r] = Σ code · q − offset · Σ q` for two tokens and more.
#[target_feature(enable = "avx2")]
pub(super) fn tokens<const BITS: usize>(w: Codes<'_>, x: Planes<'_>, acc: &mut [i32]) {
    shapes::dots(w, x, acc);
    let offset = if w.bits() == Bits::Eight { BYTE_OFFSET } else { w.bits().offset() };
    for (t, acc) in acc.chunks_exact_mut(w.rows().max(1)).enumerate() {
        acc.fill(-offset * x.sum(t));
    }
    let mut block = Block { codes: [0; ROWS * CODES], steps: 0 };
    for first in (0..w.rows()).step_by(ROWS) {
        let rows = ROWS.min(w.rows() - first);
        for at in (0..w.row_bytes()).step_by(CODES / planes(BITS)) {
            block.fill::<BITS>(w, first, rows, at);
            let mut out = Panel { acc: &mut *acc, stride: w.rows(), first, rows };
            // What comes next is on its way from memory while the tokens pass.
            let next = at + CODES / planes(BITS);
            let mut ahead = (next..w.row_bytes().min(next + CODES / planes(BITS)))
                .step_by(CHUNK)
                .flat_map(|at| (first..first + rows).map(move |r| w.chunk(r, at)));
            let mut t = 0;
            while t < x.tokens() {
                ahead.by_ref().take(AHEAD).for_each(|chunk| _mm_prefetch::<_MM_HINT_T0>(chunk.as_ptr().cast()));
                t += match x.tokens() - t {
                    1 => tile::<BITS, 1>(&block, x, t, at, &mut out),
                    2 => tile::<BITS, 2>(&block, x, t, at, &mut out),
                    3 => tile::<BITS, 3>(&block, x, t, at, &mut out),
                    4 | 5 => tile::<BITS, 4>(&block, x, t, at, &mut out),
                    _ => tile::<BITS, TOKENS>(&block, x, t, at, &mut out),
                };
            }
        }
    }
}

/// The sums of a panel: the rows `first..first + rows` of `acc` `[tokens, stride]`.
struct Panel<'a> {
    acc: &'a mut [i32],
    stride: usize,
    first: usize,
    rows: usize,
}

impl Block {
    /// Transposes and unpacks up to [`CODES`] codes of the `rows` rows from `first` on, from packed byte `at` on. Of rows that
    /// are not there, and past the end of a row, stays what is multiplied with zero or not looked at.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn fill<const BITS: usize>(&mut self, w: Codes<'_>, first: usize, rows: usize, at: usize) {
        let plane = ROWS * CODES / planes(BITS);
        let bytes = (CODES / planes(BITS)).min(w.row_bytes() - at);
        self.steps = bytes.div_ceil(4).next_multiple_of(UNROLL);
        for half in 0..rows.div_ceil(8) {
            for from in (0..bytes).step_by(32) {
                let mut columns = [_mm256_setzero_si256(); 8];
                for (r, column) in columns.iter_mut().enumerate().take(rows - 8 * half) {
                    // A chunk has two of these; the second may be missing at the end of a row.
                    *column = load_codes(&w.chunk(first + 8 * half + r, (at + from) & !63)[from % 64..]);
                }
                let columns = transposed(columns);
                let steps = (self.steps - from / 4).min(8);
                for p in 0..planes(BITS) {
                    let to = &mut self.codes[p * plane + from / 4 * STEP..][..steps * STEP];
                    for (to, &column) in to.chunks_exact_mut(STEP).zip(&columns) {
                        let codes = field::<BITS>(column, p);
                        // SAFETY: a step has two halves of 32 bytes.
                        #[allow(unsafe_code)]
                        unsafe {
                            _mm256_storeu_si256(to.as_mut_ptr().add(32 * half).cast(), codes);
                        }
                    }
                }
            }
        }
    }
}

/// The codes of plane `p` of every byte; of signed bytes, made unsigned by flipping their sign bit, the high nibbles, then the
/// low ones.
#[inline]
#[target_feature(enable = "avx2")]
fn field<const BITS: usize>(bytes: __m256i, p: usize) -> __m256i {
    let (bytes, shift) = match BITS {
        8 => (_mm256_xor_si256(bytes, _mm256_set1_epi8(-128)), 4 - 4 * p),
        _ => (bytes, BITS * p),
    };
    // A shift of 32-bit lanes: what crosses a byte is masked away.
    let shifted = _mm256_srl_epi32(bytes, _mm_cvtsi32_si128(shift as i32));
    _mm256_and_si256(shifted, _mm256_set1_epi8(if BITS == 2 { 3 } else { 15 }))
}

/// Eight registers of eight 32-bit lanes, transposed: lane `r` of the `c`-th is lane `c` of the `r`-th before.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed(rows: [__m256i; 8]) -> [__m256i; 8] {
    // Pairs of 32 bits, then of 64: each 128-bit lane holds a 4 by 4 transpose.
    let mut pairs = rows;
    for i in (0..8).step_by(2) {
        pairs[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    let mut columns = pairs;
    for c in 0..2 {
        let fours = |a, b| [_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b)];
        let (low, high) = (fours(pairs[c], pairs[2 + c]), fours(pairs[4 + c], pairs[6 + c]));
        for i in 0..2 {
            columns[2 * c + i] = _mm256_permute2x128_si256::<0x20>(low[i], high[i]);
            columns[4 + 2 * c + i] = _mm256_permute2x128_si256::<0x31>(low[i], high[i]);
        }
    }
    columns
}

/// Adds the products of the tokens `t..t + T` with the block, whose codes begin at packed byte `at`, to `out`; returns `T`.
#[inline]
#[target_feature(enable = "avx2")]
fn tile<const BITS: usize, const T: usize>(
    block: &Block,
    x: Planes<'_>,
    t: usize,
    at: usize,
    out: &mut Panel<'_>,
) -> usize {
    let mut sums = [[_mm256_setzero_si256(); 2]; T];
    for (p, codes) in block.codes.chunks_exact(ROWS * CODES / planes(BITS)).enumerate() {
        if BITS == 8 {
            // After the high nibbles.
            for sum in sums.iter_mut().flatten() {
                *sum = _mm256_slli_epi32::<4>(*sum);
            }
        }
        // Planes are padded with zeros to 16 steps, so `UNROLL` of them that begin inside one end there.
        let plane = if BITS == 8 { 0 } else { p * x.stride() };
        let mut q: [&[i8]; T] = [&[]; T];
        for (i, q) in q.iter_mut().enumerate() {
            *q = &x.token(t + i)[plane + at..][..4 * block.steps];
        }
        products::<BITS, T>(&codes[..block.steps * STEP], q, &mut sums);
    }
    for (i, sums) in sums.iter().enumerate() {
        let acc = &mut out.acc[(t + i) * out.stride + out.first..][..out.rows];
        for (acc, &sum) in acc.chunks_mut(8).zip(sums) {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(acc.len() as i32), lanes);
            // SAFETY: the mask takes only the sums that are there; the others are not touched, by definition.
            #[allow(unsafe_code)]
            unsafe {
                let before = _mm256_maskload_epi32(acc.as_ptr(), mask);
                _mm256_maskstore_epi32(acc.as_mut_ptr(), mask, _mm256_add_epi32(before, sum));
            }
        }
    }
    T
}

/// Adds the products of a plane of codes, a multiple of [`UNROLL`] steps, with four bytes of each `q` a step.
#[inline]
#[target_feature(enable = "avx2")]
fn products<const BITS: usize, const T: usize>(codes: &[u8], q: [&[i8]; T], sums: &mut [[__m256i; 2]; T]) {
    // How many products an int16 holds; of 2-bit codes it could be 42.
    let batch = if BITS == 2 { 32 } else { 8 };
    assert!(codes.len().is_multiple_of(UNROLL * STEP) && q.iter().all(|q| q.len() * ROWS >= codes.len()));
    let mut q = q.map(<[i8]>::as_ptr);
    for codes in codes.chunks(batch * STEP) {
        let mut pairs = [[_mm256_setzero_si256(); 2]; T];
        for codes in codes.chunks_exact(UNROLL * STEP) {
            for step in 0..UNROLL {
                // SAFETY: `codes` has `UNROLL` steps of two loads, and `q`, which goes on with it, four bytes for each, as
                // asserted.
                #[allow(unsafe_code)]
                unsafe {
                    let low = _mm256_loadu_si256(codes.as_ptr().add(step * STEP).cast());
                    let high = _mm256_loadu_si256(codes.as_ptr().add(step * STEP + 32).cast());
                    for i in 0..T {
                        let four = _mm256_set1_epi32(q[i].add(4 * step).cast::<i32>().read_unaligned());
                        pairs[i][0] = _mm256_add_epi16(pairs[i][0], _mm256_maddubs_epi16(low, four));
                        pairs[i][1] = _mm256_add_epi16(pairs[i][1], _mm256_maddubs_epi16(high, four));
                    }
                }
            }
            for q in &mut q {
                *q = q.wrapping_add(4 * UNROLL);
            }
        }
        for (sums, pairs) in sums.iter_mut().zip(pairs) {
            for (sum, pairs) in sums.iter_mut().zip(pairs) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            }
        }
    }
}
