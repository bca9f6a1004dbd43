//! Integer products of several tokens in AVX-512 VNNI: `qs8-qc{2,4,8}w-gemm-32x8c4-avx512vnni`.
//!
//! A lane of a register is a row, and a step takes four codes of each: `vpdpbusd` multiplies the codes of 16 rows with four
//! activations that it broadcasts from memory, so that sums never have to be added across a register. 32 rows by eight
//! tokens are 16 sums for two loads of codes and eight of activations: the multiplier is the limit, one `vpdpbusd` a cycle
//! on Zen 4.
//!
//! The codes of a row stand side by side, [`CHUNK`] bytes at least. A block of them is transposed on the way into the first-level
//! cache, four packed bytes of each row at a time, and taken apart into planes there; all tokens pass over it then.
//!
//! ```text
//! packed     row 0: b0 b1 b2 b3 | b4 …          transposed, step 0:  row 0: b0 b1 b2 b3 | row 1: b0 b1 b2 b3 | … row 15
//!            row 1: b0 b1 b2 b3 | b4 …          plane p of it:       each byte >> (bits · p), masked
//! ```

use std::arch::x86_64::*;

use super::qdot_vnni::{BYTE_OFFSET, load_codes};
use crate::kernels::contract::{Bits, CHUNK, Codes, GROUP, Planes};
use crate::kernels::shapes;

/// Rows of a panel: two registers.
const ROWS: usize = 32;

/// Tokens of a tile.
const TOKENS: usize = 8;

/// Codes of a row in a block: 16 KiB for the panel.
const CODES: usize = 512;

/// Bytes of a step: four codes of every row of a panel.
const STEP: usize = 4 * ROWS;

/// Codes as bytes: `[planes][steps][ROWS][4]`, of which `steps` steps of every plane are used.
#[repr(align(64))]
struct Block {
    codes: [u8; ROWS * CODES],
    steps: usize,
}

/// `acc[t * rows + r] = Σ code · q − offset · Σ q` for two tokens and more.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn tokens<const BITS: usize>(w: Codes<'_>, x: Planes<'_>, acc: &mut [i32]) {
    shapes::dots(w, x, acc);
    let offset = if w.bits() == Bits::Eight { BYTE_OFFSET } else { w.bits().offset() };
    for (t, acc) in acc.chunks_exact_mut(w.rows().max(1)).enumerate() {
        acc.fill(-offset * x.sum(t));
    }
    let mut block = Block { codes: [0; ROWS * CODES], steps: 0 };
    let mut ahead = w.behind();
    let bytes_a_tile = (ROWS * CODES / (8 / BITS)).div_ceil(x.tokens().div_ceil(TOKENS));
    for first in (0..w.rows()).step_by(ROWS) {
        let rows = ROWS.min(w.rows() - first);
        for at in (0..w.row_bytes()).step_by(CODES / (8 / BITS)) {
            block.fill::<BITS>(w, first, rows, at);
            let mut out = Panel { acc: &mut *acc, stride: w.rows(), first, rows };
            let mut t = 0;
            while t < x.tokens() {
                // As many bytes behind these rows as the block has, while the tokens pass: the rows of the next call stand there.
                for line in (0..bytes_a_tile).step_by(64) {
                    _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(line).cast());
                }
                ahead = ahead.wrapping_add(bytes_a_tile);
                t += match x.tokens() - t {
                    1 => tile::<BITS, 1>(&block, x, t, at, &mut out),
                    2 | 3 => tile::<BITS, 2>(&block, x, t, at, &mut out),
                    4..8 => tile::<BITS, 4>(&block, x, t, at, &mut out),
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
    /// Transposes and unpacks up to [`CODES`] codes of the `rows` rows from `first` on, from packed byte `at` on. What stands for
    /// rows that are not there, and past the end of a row, is multiplied with zero or not looked at.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn fill<const BITS: usize>(&mut self, w: Codes<'_>, first: usize, rows: usize, at: usize) {
        let plane = ROWS * CODES / (8 / BITS);
        let bytes = (CODES / (8 / BITS)).min(w.row_bytes() - at);
        self.steps = bytes.div_ceil(4);
        for half in 0..rows.div_ceil(16) {
            for from in (0..bytes).step_by(64) {
                let columns = sixteen(w, first + 16 * half, rows - 16 * half, at + from);
                let columns = transposed(columns);
                for p in 0..8 / BITS {
                    // All sixteen steps, even where the row ends before: a plane has room for them.
                    let to = &mut self.codes[p * plane + from / 4 * STEP..][..16 * STEP];
                    for (c, &column) in columns.iter().enumerate() {
                        let codes = field::<BITS>(column, p);
                        // SAFETY: `c < 16`, and a step has two halves of 64 bytes.
                        #[allow(unsafe_code)]
                        unsafe {
                            _mm512_storeu_si512(to.as_mut_ptr().add(c * STEP + 64 * half).cast(), codes);
                        }
                    }
                }
            }
        }
    }
}

/// 64 packed bytes, from `at` on, of each of the up to sixteen rows from `first` on; zeros where there are none.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn sixteen(w: Codes<'_>, first: usize, rows: usize, at: usize) -> [__m512i; 16] {
    let mut lines = [_mm512_setzero_si512(); 16];
    if rows < 16 || at + CHUNK > w.row_bytes() {
        for (r, line) in lines.iter_mut().enumerate().take(rows) {
            *line = load_codes(w.chunk(first + r, at));
        }
        return lines;
    }
    for four in 0..4 {
        let group = w.rows_of::<GROUP>(first + GROUP * four);
        let (row, chunk) = group.strides();
        let start = group.bytes().as_ptr();
        for r in 0..GROUP {
            let place = r * row + at / CHUNK * chunk;
            // What comes next of the row: it is in the second-level cache.
            _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(place + chunk).cast());
            // SAFETY: `at + CHUNK <= row_bytes` and `r < GROUP`: inside, as `strides` says.
            #[allow(unsafe_code)]
            unsafe {
                lines[GROUP * four + r] = _mm512_loadu_si512(start.add(place).cast());
            }
        }
    }
    lines
}

/// The codes of plane `p` of every byte; signed bytes become unsigned ones by flipping their sign bit.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn field<const BITS: usize>(bytes: __m512i, p: usize) -> __m512i {
    match BITS {
        2 | 4 => {
            // A shift of 32-bit lanes: what crosses a byte is masked away.
            let shifted = _mm512_srl_epi32(bytes, _mm_cvtsi32_si128((p * BITS) as i32));
            _mm512_and_si512(shifted, _mm512_set1_epi8(if BITS == 2 { 3 } else { 15 }))
        }
        _ => _mm512_xor_si512(bytes, _mm512_set1_epi8(-128)),
    }
}

/// Sixteen registers of sixteen 32-bit lanes, transposed: lane `r` of the `c`-th is lane `c` of the `r`-th before.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
    // Pairs of 32 bits, then of 64: each 128-bit lane holds a 4 by 4 transpose.
    let mut pairs = rows;
    for i in (0..16).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    let mut fours = pairs;
    for i in (0..16).step_by(4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    // `fours[4 * g + c]` has column `4 * lane + c` of the rows `4 * g ..`; now the 128-bit lanes change places.
    let mut columns = fours;
    for c in 0..4 {
        let [a, b, d, e] = [fours[c], fours[4 + c], fours[8 + c], fours[12 + c]];
        let (ab_low, ab_high) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b));
        let (de_low, de_high) = (_mm512_shuffle_i32x4::<0x44>(d, e), _mm512_shuffle_i32x4::<0xee>(d, e));
        columns[c] = _mm512_shuffle_i32x4::<0x88>(ab_low, de_low);
        columns[4 + c] = _mm512_shuffle_i32x4::<0xdd>(ab_low, de_low);
        columns[8 + c] = _mm512_shuffle_i32x4::<0x88>(ab_high, de_high);
        columns[12 + c] = _mm512_shuffle_i32x4::<0xdd>(ab_high, de_high);
    }
    columns
}

/// Adds the products of the tokens `t..t + T` with the block, whose codes begin at packed byte `at`, to `out`; returns `T`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tile<const BITS: usize, const T: usize>(
    block: &Block,
    x: Planes<'_>,
    t: usize,
    at: usize,
    out: &mut Panel<'_>,
) -> usize {
    let mut sums = [[_mm512_setzero_si512(); 2]; T];
    for (p, codes) in block.codes.chunks_exact(ROWS * CODES / (8 / BITS)).enumerate() {
        let codes = &codes[..block.steps * STEP];
        // Planes are padded with zeros, so a step that begins inside one ends there.
        // A loop: a closure is not inlined into functions of the standard library, which are not compiled for AVX-512.
        let mut q: [&[i8]; T] = [&[]; T];
        for (i, q) in q.iter_mut().enumerate() {
            *q = &x.token(t + i)[p * x.stride() + at..][..4 * block.steps];
        }
        for (step, codes) in codes.chunks_exact(STEP).enumerate() {
            // SAFETY: a step of codes is as long as the two loads, and every `q` has four bytes for each step.
            #[allow(unsafe_code)]
            unsafe {
                let low = _mm512_loadu_si512(codes.as_ptr().cast());
                let high = _mm512_loadu_si512(codes.as_ptr().add(64).cast());
                for i in 0..T {
                    let four = _mm512_set1_epi32(q[i].as_ptr().add(4 * step).cast::<i32>().read_unaligned());
                    sums[i][0] = _mm512_dpbusd_epi32(sums[i][0], low, four);
                    sums[i][1] = _mm512_dpbusd_epi32(sums[i][1], high, four);
                }
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        let acc = &mut out.acc[(t + i) * out.stride + out.first..][..out.rows];
        for (acc, &sum) in acc.chunks_mut(16).zip(sums) {
            let mask = if acc.len() == 16 { u16::MAX } else { (1 << acc.len()) - 1 };
            // SAFETY: the mask takes only the sums that are there; the others are not touched, by definition.
            #[allow(unsafe_code)]
            unsafe {
                let before = _mm512_maskz_loadu_epi32(mask, acc.as_ptr());
                _mm512_mask_storeu_epi32(acc.as_mut_ptr(), mask, _mm512_add_epi32(before, sum));
            }
        }
    }
    T
}
