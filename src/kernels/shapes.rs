//! The lengths that the contract asks for, checked once per call.
//!
//! Every implementation calls these before it touches memory: the loads and stores of the SIMD files rely on them.
//! A slice that does not fit is a mistake in the engine, never something that a file or a user can cause, so it panics.

use super::contract::{Codes, LANES, PLANE_ALIGN, Planes, Quads, plane_stride};

/// For `quantize`; returns the bytes from one plane to the next.
#[track_caller]
pub(super) fn quantize(x: &[f32], planes: usize, q: &[i8]) -> usize {
    assert!(matches!(planes, 1 | 2 | 4), "{planes} planes");
    lanes(x.len());
    let stride = q.len() / planes;
    assert_eq!(q.len(), planes * stride, "planes");
    assert!(stride >= plane_stride(x.len(), planes) && stride.is_multiple_of(PLANE_ALIGN), "planes {stride} apart");
    stride
}

/// For `dots`: afterwards `x.stride() >= w.row_bytes()` and both hold `w.k()` elements.
#[track_caller]
pub(super) fn dots(w: Codes<'_>, x: Planes<'_>, acc: &[i32]) {
    assert_eq!(x.k(), w.k(), "row length");
    assert_eq!(x.planes(), w.bits().planes(), "planes");
    assert_eq!(acc.len(), w.rows() * x.tokens(), "sums");
}

/// For `dots_quads`: afterwards every token holds `w.k()` elements in its one plane.
#[track_caller]
pub(super) fn quads(w: Quads<'_>, x: Planes<'_>, acc: &[i32]) {
    assert_eq!((x.k(), x.planes()), (w.k(), 1), "row length and planes");
    assert_eq!(acc.len(), w.rows() * x.tokens(), "sums");
}

/// For float matrices `[rows, k]` and `[tokens, k]` with `sums` results; returns `(rows, tokens)`.
#[track_caller]
pub(super) fn matrices(w: usize, x: usize, k: usize, sums: usize) -> (usize, usize) {
    assert!(k > 0, "empty rows");
    lanes(k);
    assert!(w.is_multiple_of(k) && x.is_multiple_of(k), "{w} weights, {x} activations in rows of {k}");
    assert_eq!(sums, w / k * (x / k), "sums");
    (w / k, x / k)
}

/// For `scores` and `mix`: a matrix of `rows` rows of `k`.
#[track_caller]
pub(super) fn matrix(len: usize, rows: usize, k: usize) {
    lanes(k);
    assert_eq!(len, rows * k, "{rows} rows of {k}");
}

/// For every float vector.
#[track_caller]
pub(super) fn lanes(len: usize) {
    assert!(len.is_multiple_of(LANES), "a float vector of {len}");
}
