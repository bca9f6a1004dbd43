//! How integer dot products are cut into register tiles, the same for every SIMD set.
//!
//! A tile is `R` rows by `T` tokens: each weight vector is unpacked once and meets `T` tokens, each of `R * T` sums has
//! its own accumulator. A row set of [`PANEL`] rows stays in the cache while all tokens pass over it.

use super::contract::{Bits, Codes, PLANE_ALIGN, Planes};
use super::shapes;

/// Rows that all tokens pass over before the next ones are read: at most 96 KiB in the published shapes.
const PANEL: usize = 16;

/// The inner product of an instruction set.
pub(super) trait Tiles: Copy {
    /// What its codes stand above their value; [`Bits::offset`] unless it moves signed codes to unsigned ones.
    fn offset(bits: Bits) -> i32 {
        bits.offset()
    }

    /// `Σ code · q` of each row with each token, codes not yet freed of their offset.
    ///
    /// All rows have the same length; a token is `8 / BITS` planes of `stride` bytes (see [`check`]).
    fn tile<const BITS: usize, const R: usize, const T: usize>(
        self,
        rows: [&[u8]; R],
        tokens: [&[i8]; T],
        stride: usize,
    ) -> [[i32; T]; R];
}

/// `acc[r * tokens + t] = Σ code · q − offset · Σ q`.
pub(super) fn dots<S: Tiles>(set: S, w: Codes<'_>, x: Planes<'_>, acc: &mut [i32]) {
    shapes::dots(w, x, acc);
    match w.bits() {
        Bits::Two => panels::<S, 2>(set, w, x, acc),
        Bits::Four => panels::<S, 4>(set, w, x, acc),
        Bits::Eight => panels::<S, 8>(set, w, x, acc),
    }
}

fn panels<S: Tiles, const BITS: usize>(set: S, w: Codes<'_>, x: Planes<'_>, acc: &mut [i32]) {
    for first in (0..w.rows()).step_by(PANEL) {
        let rows = first..w.rows().min(first + PANEL);
        for t in (0..x.tokens()).step_by(4) {
            match x.tokens() - t {
                1 => columns::<S, BITS, 4, 1>(set, w, rows.clone(), x, t, acc),
                2 => columns::<S, BITS, 2, 2>(set, w, rows.clone(), x, t, acc),
                3 => columns::<S, BITS, 2, 3>(set, w, rows.clone(), x, t, acc),
                _ => columns::<S, BITS, 2, 4>(set, w, rows.clone(), x, t, acc),
            }
        }
    }
}

/// The tokens `t .. t + T` against `rows`, `R` at a time.
fn columns<S: Tiles, const BITS: usize, const R: usize, const T: usize>(
    set: S,
    w: Codes<'_>,
    rows: std::ops::Range<usize>,
    x: Planes<'_>,
    t: usize,
    acc: &mut [i32],
) {
    let tokens: [&[i8]; T] = std::array::from_fn(|i| x.token(t + i));
    let offsets: [i32; T] = std::array::from_fn(|i| S::offset(w.bits()) * x.sum(t + i));
    let mut put = |r: usize, sums: [i32; T]| {
        let acc = &mut acc[r * x.tokens() + t..][..T];
        for i in 0..T {
            acc[i] = sums[i] - offsets[i];
        }
    };
    let mut r = rows.start;
    while r + R <= rows.end {
        let tile: [[i32; T]; R] = set.tile::<BITS, R, T>(std::array::from_fn(|i| w.row(r + i)), tokens, x.stride());
        for (i, sums) in tile.into_iter().enumerate() {
            put(r + i, sums);
        }
        r += R;
    }
    for r in r..rows.end {
        let [sums] = set.tile::<BITS, 1, T>([w.row(r)], tokens, x.stride());
        put(r, sums);
    }
}

/// What the loads of a tile rely on; returns the length of a row.
///
/// Rows are `len` bytes each, and every plane of every token can be read up to `len` rounded up to [`PLANE_ALIGN`].
#[inline]
pub(super) fn check<const BITS: usize>(rows: &[&[u8]], tokens: &[&[i8]], stride: usize) -> usize {
    let len = rows[0].len();
    assert!(rows.iter().all(|row| row.len() == len) && len <= stride && stride.is_multiple_of(PLANE_ALIGN));
    assert!(tokens.iter().all(|q| q.len() == 8 / BITS * stride));
    len
}
