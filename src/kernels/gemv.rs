//! How the integer products of one token (decoding) are cut, the same for every SIMD set: the weights are read once, from
//! memory, and unpacked on the way, [`ROWS`] rows at a time. For several tokens each set has blocks of its own.

use super::contract::{Bits, Codes, PLANE_ALIGN, Planes, RowsOf};
use super::shapes;

/// Rows that are read together.
pub(super) const ROWS: usize = 4;

/// The inner product of an instruction set for one token.
pub(super) trait Gemv: Copy {
    /// What its codes stand above their value; [`Bits::offset`] unless it makes signed bytes unsigned by flipping their
    /// highest bit, which adds 128.
    fn offset(bits: Bits) -> i32 {
        bits.offset()
    }

    /// `Σ code · q` of each row with one token, codes not yet freed of their offset.
    ///
    /// A token is `8 / BITS` planes of `stride` bytes (see [`check`]).
    fn gemv<const BITS: usize, const R: usize>(self, rows: RowsOf<'_, R>, token: &[i8], stride: usize) -> [i32; R];
}

/// `acc[r] = Σ code · q − offset · Σ q` for one token or none.
///
/// Inlined into a function that is compiled for the instruction set, as is all that it calls here.
#[inline(always)]
pub(super) fn dots<S: Gemv>(set: S, w: Codes<'_>, x: Planes<'_>, acc: &mut [i32]) {
    shapes::dots(w, x, acc);
    match w.bits() {
        _ if x.tokens() == 0 => {}
        Bits::Two => one_token::<S, 2>(set, w, x, acc),
        Bits::Four => one_token::<S, 4>(set, w, x, acc),
        Bits::Eight => one_token::<S, 8>(set, w, x, acc),
    }
}

#[inline(always)]
fn one_token<S: Gemv, const BITS: usize>(set: S, w: Codes<'_>, x: Planes<'_>, acc: &mut [i32]) {
    let (token, stride) = (x.token(0), x.stride());
    let mut r = 0;
    while r + ROWS <= w.rows() {
        let sums = set.gemv::<BITS, ROWS>(w.rows_of(r), token, stride);
        acc[r..r + ROWS].copy_from_slice(&sums);
        r += ROWS;
    }
    for (r, sum) in acc.iter_mut().enumerate().skip(r) {
        [*sum] = set.gemv::<BITS, 1>(w.rows_of(r), token, stride);
    }
    let offset = S::offset(w.bits()) * x.sum(0);
    acc.iter_mut().for_each(|sum| *sum -= offset);
}

/// What the loads of a `gemv` rely on; returns the length of a row.
///
/// Every plane of the token can be read up to that length rounded up to [`PLANE_ALIGN`].
#[inline]
pub(super) fn check<const BITS: usize, const R: usize>(rows: RowsOf<'_, R>, token: &[i8], stride: usize) -> usize {
    let len = rows.row_bytes();
    assert!(len <= stride && stride.is_multiple_of(PLANE_ALIGN));
    assert_eq!(token.len(), 8 / BITS * stride);
    len
}
