//! Keys and values of the tokens seen so far, for the layers that own a cache.
//!
//! One row of `head_dim` values per position and KV head. Full layers append; sliding layers write into a ring that holds
//! the window and the batch that is being added, so that the first token of a batch still finds its whole window when the
//! last one has been written. Memory of full layers grows with the positions in use.
//!
//! A cache can be cut: full layers keep all rows, and a ring still has those of the window before a position as long as no
//! more than [`REACH`] positions behind it have been written, whatever was cut off in between.

use std::io::{self, Write};
use std::ops::Range;

use crate::engine::checkpoint::config::{Config, Kind};
use crate::engine::ops::MAX_BATCH;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvKind {
    /// As computed: for comparison.
    F32,
    /// Rounded onto the checkpoint's `k_cache_scale` and `v_cache_scale`.
    Int8,
}

/// Positions by which a cache can always be cut.
pub const REACH: usize = MAX_BATCH;

/// Positions by which the memory of a full layer grows.
const GROWTH: usize = 256;

/// Rows of one KV head of one layer.
#[derive(Debug)]
struct Rows<T> {
    data: Vec<T>,
    dim: usize,
    /// Ring capacity in rows; `None` appends.
    ring: Option<usize>,
}

impl<T: Copy + Default> Rows<T> {
    fn new(dim: usize, ring: Option<usize>) -> Rows<T> {
        Rows { data: Vec::new(), dim, ring }
    }

    fn put(&mut self, position: usize, row: impl Iterator<Item = T>) {
        let slot = self.ring.map_or(position, |capacity| position % capacity);
        let (from, to) = (slot * self.dim, (slot + 1) * self.dim);
        if to > self.data.len() {
            if to > self.data.capacity() {
                let rows = self.ring.map_or(GROWTH, |capacity| GROWTH.min(capacity - slot));
                self.data.reserve_exact(rows * self.dim);
            }
            self.data.resize(to, T::default());
        }
        self.data[from..to].iter_mut().zip(row).for_each(|(d, v)| *d = v);
    }

    /// Values that `positions` positions take.
    fn values(&self, positions: usize) -> usize {
        self.ring.map_or(positions * self.dim, |_| self.data.len())
    }

    /// The rows of `positions` positions and no room for more.
    fn copy(&self, positions: usize) -> Rows<T> {
        Rows { data: self.data[..self.values(positions)].to_vec(), ..*self }
    }

    /// Takes the place of what is here; the memory is kept.
    fn paste(&mut self, from: &Rows<T>) {
        if from.data.len() > self.data.len() {
            self.data.reserve_exact(from.data.len() - self.data.len());
            self.data.resize(from.data.len(), T::default());
        }
        self.data[..from.data.len()].copy_from_slice(&from.data);
    }

    /// The first of the rows that a position after `positions` needs.
    fn needed(&self, positions: usize) -> usize {
        // A ring holds a window and a batch, less one.
        self.ring.map_or(0, |capacity| positions.saturating_sub(capacity - MAX_BATCH))
    }

    /// Takes rows from the head of `values`, one for each position that is needed after `positions`.
    fn take(&mut self, positions: usize, values: &mut impl Iterator<Item = T>) {
        let dim = self.dim;
        (self.needed(positions)..positions).for_each(|position| self.put(position, values.take(dim)));
    }

    /// The rows of `positions`, oldest first, in at most two runs.
    fn runs(&self, positions: Range<usize>) -> [&[T]; 2] {
        let row = |slot: usize| slot * self.dim;
        let Some(capacity) = self.ring else {
            return [&self.data[row(positions.start)..row(positions.end)], &[]];
        };
        let (start, len) = (positions.start % capacity, positions.len());
        let first = len.min(capacity - start);
        [&self.data[row(start)..row(start + first)], &self.data[..row(len - first)]]
    }
}

/// One head's rows: keys and values, in one of the two forms.
#[derive(Debug)]
enum Head {
    F32 { k: Rows<f32>, v: Rows<f32> },
    Int8 { k: Rows<i8>, v: Rows<i8> },
}

/// Rows of consecutive positions as the attention reads them, oldest first, in at most two runs.
#[derive(Clone, Copy, Debug)]
pub enum Window<'a> {
    /// Values as computed.
    F32 {
        /// Keys.
        k: [&'a [f32]; 2],
        /// Values.
        v: [&'a [f32]; 2],
    },
    /// Codes on the grids of the layer's cache steps.
    Int8 {
        /// Keys.
        k: [&'a [i8]; 2],
        /// Values.
        v: [&'a [i8]; 2],
    },
}

/// The caches of all owning layers.
#[derive(Debug)]
pub struct KvCache {
    /// `[layer][kv_head]`; empty for layers that read another one's.
    heads: Vec<Vec<Head>>,
    len: usize,
    /// Furthest position written since the cache was empty, plus one. What was cut off has overwritten rows of the rings.
    written: usize,
    /// Rows of a ring, if there is one.
    ring: Option<usize>,
}

fn code(v: f32, step: f32) -> i8 {
    (v / step).round_ties_even().clamp(-128.0, 127.0) as i8
}

impl KvCache {
    /// An empty cache for the layers of `config`.
    pub fn new(config: &Config, kind: KvKind) -> KvCache {
        let capacity = config.sliding_window + MAX_BATCH - 1;
        let heads = config.layers.iter().map(|layer| {
            let ring = (layer.kind == Kind::Sliding).then_some(capacity);
            let dim = layer.head_dim;
            let head = |_| match kind {
                KvKind::F32 => Head::F32 { k: Rows::new(dim, ring), v: Rows::new(dim, ring) },
                KvKind::Int8 => Head::Int8 { k: Rows::new(dim, ring), v: Rows::new(dim, ring) },
            };
            if layer.owns_cache { (0..layer.kv_heads).map(head).collect() } else { Vec::new() }
        });
        let slides = config.layers.iter().any(|layer| layer.owns_cache && layer.kind == Kind::Sliding);
        KvCache { heads: heads.collect(), len: 0, written: 0, ring: slides.then_some(capacity) }
    }

    /// Positions stored.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets everything; the memory is kept.
    pub fn clear(&mut self) {
        (self.len, self.written) = (0, 0);
    }

    /// The lowest length to which it can be cut, other than 0: the windows before it are complete.
    pub fn lowest(&self) -> usize {
        match self.ring {
            Some(capacity) if self.written > capacity => self.written - REACH,
            _ => 0,
        }
    }

    /// Forgets what comes after the first `len` positions.
    ///
    /// # Panics
    ///
    /// When `len` lies below [`KvCache::lowest`] or above [`KvCache::len`].
    pub fn cut(&mut self, len: usize) {
        assert!((self.lowest()..=self.len).contains(&len), "cut to {len} of {}, {} written", self.len, self.written);
        self.len = len;
    }

    /// A copy that takes no more memory than it needs: [`KvCache::copy_bytes`].
    pub fn copy(&self) -> KvCache {
        let len = self.len;
        let head = |head: &Head| match head {
            Head::F32 { k, v } => Head::F32 { k: k.copy(len), v: v.copy(len) },
            Head::Int8 { k, v } => Head::Int8 { k: k.copy(len), v: v.copy(len) },
        };
        let heads = self.heads.iter().map(|heads| heads.iter().map(head).collect()).collect();
        KvCache { heads, ..*self }
    }

    /// Bytes that a copy would take.
    pub fn copy_bytes(&self) -> usize {
        let len = self.len;
        let head = |head: &Head| match head {
            Head::F32 { k, v } => 4 * (k.values(len) + v.values(len)),
            Head::Int8 { k, v } => k.values(len) + v.values(len),
        };
        self.heads.iter().flatten().map(head).sum()
    }

    /// Takes over what `copy` holds, which was made of a cache of the same model and kind. Memory is kept.
    ///
    /// # Panics
    ///
    /// When it was made of another one.
    pub fn restore(&mut self, copy: &KvCache) {
        assert_eq!(self.heads.len(), copy.heads.len());
        for (own, other) in self.heads.iter_mut().flatten().zip(copy.heads.iter().flatten()) {
            match (own, other) {
                (Head::F32 { k, v }, Head::F32 { k: keys, v: values }) => {
                    k.paste(keys);
                    v.paste(values);
                }
                (Head::Int8 { k, v }, Head::Int8 { k: keys, v: values }) => {
                    k.paste(keys);
                    v.paste(values);
                }
                _ => panic!("a cache of another kind"),
            }
        }
        (self.len, self.written) = (copy.len, copy.written);
    }

    /// Bytes that [`KvCache::store`] writes for `positions` positions.
    pub fn stored_bytes(&self, positions: usize) -> usize {
        let values = |dim: usize, needed: usize| 2 * dim * (positions - needed);
        let head = |head: &Head| match head {
            Head::F32 { k, .. } => 4 * values(k.dim, k.needed(positions)),
            Head::Int8 { k, .. } => values(k.dim, k.needed(positions)),
        };
        self.heads.iter().flatten().map(head).sum()
    }

    /// Writes what positions after the last one need and nothing else: of sliding layers a window, oldest first. The same tokens
    /// give the same bytes, whatever the cache held before them.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn store(&self, out: &mut impl Write) -> io::Result<()> {
        for head in self.heads.iter().flatten() {
            match head {
                Head::F32 { k, v } => {
                    let runs = [k, v].map(|rows| rows.runs(rows.needed(self.len)..self.len));
                    runs.as_flattened().iter().try_for_each(|run| out.write_all(bytemuck::cast_slice(run)))?;
                }
                Head::Int8 { k, v } => {
                    let runs = [k, v].map(|rows| rows.runs(rows.needed(self.len)..self.len));
                    runs.as_flattened().iter().try_for_each(|run| out.write_all(bytemuck::cast_slice(run)))?;
                }
            }
        }
        Ok(())
    }

    /// Takes over `positions` positions as [`KvCache::store`] wrote them, of a cache of the same model and kind.
    ///
    /// # Panics
    ///
    /// When these are not [`KvCache::stored_bytes`] bytes.
    pub fn fetch(&mut self, positions: usize, stored: &[u8]) {
        assert_eq!(stored.len(), self.stored_bytes(positions), "bytes of {positions} positions");
        let mut bytes = stored.iter().map(|byte| byte.cast_signed());
        let mut floats = stored.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        for head in self.heads.iter_mut().flatten() {
            match head {
                Head::F32 { k, v } => [k, v].into_iter().for_each(|rows| rows.take(positions, &mut floats)),
                Head::Int8 { k, v } => [k, v].into_iter().for_each(|rows| rows.take(positions, &mut bytes)),
            }
        }
        self.len = positions;
        // Rows before the window are not there, as if others had been written over them.
        let whole = self.ring.is_none_or(|capacity| positions <= capacity - MAX_BATCH);
        self.written = if whole { positions } else { positions + REACH };
    }

    /// As [`KvCache::clear`], and gives the memory back.
    pub fn release(&mut self) {
        self.clear();
        for head in self.heads.iter_mut().flatten() {
            match head {
                Head::F32 { k, v } => (k.data, v.data) = Default::default(),
                Head::Int8 { k, v } => (k.data, v.data) = Default::default(),
            }
        }
    }

    /// Stores the keys and values `[kv_heads, head_dim]` of one position. `k_step` and `v_step` are the layer's cache steps.
    pub fn put(&mut self, layer: usize, position: usize, k: &[f32], v: &[f32], k_step: f32, v_step: f32) {
        let heads = &mut self.heads[layer];
        let dim = k.len() / heads.len();
        for ((head, k), v) in heads.iter_mut().zip(k.chunks_exact(dim)).zip(v.chunks_exact(dim)) {
            match head {
                Head::F32 { k: keys, v: values } => {
                    keys.put(position, k.iter().copied());
                    values.put(position, v.iter().copied());
                }
                Head::Int8 { k: keys, v: values } => {
                    keys.put(position, k.iter().map(|&x| code(x, k_step)));
                    values.put(position, v.iter().map(|&x| code(x, v_step)));
                }
            }
        }
    }

    /// Counts `tokens` positions as stored in every layer.
    pub fn advance(&mut self, tokens: usize) {
        self.len += tokens;
        self.written = self.written.max(self.len);
    }

    /// Keys and values of `positions` of one head.
    pub fn window(&self, layer: usize, kv_head: usize, positions: Range<usize>) -> Window<'_> {
        match &self.heads[layer][kv_head] {
            Head::F32 { k, v } => Window::F32 { k: k.runs(positions.clone()), v: v.runs(positions) },
            Head::Int8 { k, v } => Window::Int8 { k: k.runs(positions.clone()), v: v.runs(positions) },
        }
    }

    /// Bytes of memory in use.
    pub fn bytes(&self) -> usize {
        let head = |head: &Head| match head {
            Head::F32 { k, v } => 4 * (k.data.capacity() + v.data.capacity()),
            Head::Int8 { k, v } => k.data.capacity() + v.data.capacity(),
        };
        self.heads.iter().flatten().map(head).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_returns_the_latest_rows_in_order() {
        let mut rows = Rows::<i8>::new(2, Some(5));
        for p in 0..23usize {
            rows.put(p, [p as i8, -(p as i8)].into_iter());
            let start = (p + 1).saturating_sub(5);
            let got: Vec<i8> = rows.runs(start..p + 1).concat();
            let want: Vec<i8> = (start..=p).flat_map(|p| [p as i8, -(p as i8)]).collect();
            assert_eq!(got, want, "position {p}");
        }
        assert_eq!(rows.data.len(), 10);
    }

    #[test]
    fn appended_rows_grow_by_a_bounded_step() {
        let mut rows = Rows::<f32>::new(16, None);
        for p in 0..1000 {
            rows.put(p, std::iter::repeat_n(p as f32, 16));
            assert!(rows.data.capacity() <= (p + 1 + GROWTH) * 16);
        }
        assert_eq!(rows.runs(998..1000)[0][16], 999.0);
    }

    #[test]
    fn codes_are_rounded_half_to_even_and_clipped() {
        assert_eq!([0.25, 0.75, -0.75, 1e9, -1e9].map(|v| code(v, 0.5)), [0, 2, -2, 127, -128]);
    }
}
