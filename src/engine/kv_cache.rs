//! Keys and values of the tokens seen so far, for the layers that own a cache.
//!
//! One row of `head_dim` values per position and KV head. Full layers append; sliding layers write into a ring that holds
//! the window and the batch that is being added, so that the first token of a batch still finds its whole window when the
//! last one has been written. Memory of full layers grows with the positions in use.
//!
//! Codes stand in the order in which attention multiplies them ([`Quads`]): a key is a row, and of the values, whose products run
//! along the positions, a block of [`BLOCK`] positions has a row for every element.
//!
//! A cache can be cut: full layers keep all rows, and a ring still has those of the window before a position as long as no
//! more than [`REACH`] positions behind it have been written, whatever was cut off in between.

use std::io::{self, Write};
use std::ops::Range;

use crate::engine::checkpoint::config::{Config, Kind};
use crate::engine::ops::MAX_BATCH;
use crate::kernels::contract::Quads;

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

/// Positions that attention takes together.
pub const BLOCK: usize = 128;

/// Positions by which the memory of a full layer of floats grows.
const GROWTH: usize = 2 * BLOCK;

/// Where a position stands.
fn slot(ring: Option<usize>, position: usize) -> usize {
    ring.map_or(position, |capacity| position % capacity)
}

/// The first of the positions before `positions` that one after them needs. A ring holds a window and a batch, less one, or
/// more.
fn needed(ring: Option<usize>, positions: usize) -> usize {
    ring.map_or(0, |capacity| positions.saturating_sub(capacity - MAX_BATCH))
}

/// Overwrites the beginning of `data`, which grows by no more than it has to.
fn paste<T: Copy + Default>(data: &mut Vec<T>, from: &[T]) {
    if from.len() > data.len() {
        data.reserve_exact(from.len() - data.len());
        data.resize(from.len(), T::default());
    }
    data[..from.len()].copy_from_slice(from);
}

/// Hands `dim` of `values` to `put` for each of `positions`.
fn deal<T>(
    positions: Range<usize>,
    dim: usize,
    values: &mut impl Iterator<Item = T>,
    mut put: impl FnMut(usize, &[T]),
) {
    let mut row = Vec::with_capacity(dim);
    for position in positions {
        row.clear();
        row.extend(values.take(dim));
        put(position, &row);
    }
}

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

    fn put(&mut self, position: usize, row: &[T]) {
        let slot = slot(self.ring, position);
        let (from, to) = (slot * self.dim, (slot + 1) * self.dim);
        if to > self.data.len() {
            if to > self.data.capacity() {
                let rows = self.ring.map_or(GROWTH, |capacity| GROWTH.min(capacity - slot));
                self.data.reserve_exact(rows * self.dim);
            }
            self.data.resize(to, T::default());
        }
        self.data[from..to].copy_from_slice(row);
    }

    /// Values that `positions` positions take.
    fn values(&self, positions: usize) -> usize {
        self.ring.map_or(positions * self.dim, |_| self.data.len())
    }

    /// The rows of `positions` positions and no room for more.
    fn copy(&self, positions: usize) -> Rows<T> {
        Rows { data: self.data[..self.values(positions)].to_vec(), ..*self }
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

/// What a position is to the products of attention.
#[derive(Clone, Copy, Debug)]
enum Slots {
    /// A row: keys, `[slots / 16][dim / 4][16][4]`.
    Rows,
    /// An element of every row: values, `[blocks][dim / 16][BLOCK / 4][16][4]`.
    Columns,
}

/// Codes of one KV head of one layer, as [`Quads`]; whole blocks of positions.
#[derive(Debug)]
struct Blocks {
    data: Vec<i8>,
    dim: usize,
    ring: Option<usize>,
    slots: Slots,
}

impl Blocks {
    fn new(dim: usize, ring: Option<usize>, slots: Slots) -> Blocks {
        Blocks { data: Vec::new(), dim, ring, slots }
    }

    /// Where the first of the elements `4 i..4 i + 4` of a row, or `16 i..16 i + 16` of a column, stands: the others of a row follow it,
    /// those of a column are four bytes apart.
    fn place(&self, slot: usize, i: usize) -> usize {
        let (block, slot) = (slot / BLOCK * BLOCK * self.dim, slot % BLOCK);
        block
            + match self.slots {
                Slots::Rows => Quads::place(self.dim, slot, 4 * i),
                Slots::Columns => Quads::place(BLOCK, Quads::ROWS * i, slot),
            }
    }

    fn put(&mut self, position: usize, codes: &[i8]) {
        let slot = slot(self.ring, position);
        let len = (slot / BLOCK + 1) * BLOCK * self.dim;
        if len > self.data.len() {
            self.data.reserve_exact(len - self.data.len());
            self.data.resize(len, 0);
        }
        match self.slots {
            Slots::Rows => codes.as_chunks::<4>().0.iter().enumerate().for_each(|(i, codes)| {
                let place = self.place(slot, i);
                self.data[place..][..4].copy_from_slice(codes);
            }),
            Slots::Columns => codes.as_chunks::<{ Quads::ROWS }>().0.iter().enumerate().for_each(|(i, codes)| {
                let place = self.place(slot, i);
                self.data[place..].iter_mut().step_by(4).zip(codes).for_each(|(to, &code)| *to = code);
            }),
        }
    }

    /// The codes of `position`.
    fn get(&self, position: usize) -> impl Iterator<Item = i8> {
        let slot = slot(self.ring, position);
        (0..self.dim).map(move |j| match self.slots {
            Slots::Rows => self.data[self.place(slot, j / 4) + j % 4],
            Slots::Columns => self.data[self.place(slot, j / Quads::ROWS) + j % Quads::ROWS * 4],
        })
    }

    /// As [`Rows::values`].
    fn values(&self, positions: usize) -> usize {
        self.ring.map_or(positions.next_multiple_of(BLOCK) * self.dim, |_| self.data.len())
    }

    fn copy(&self, positions: usize) -> Blocks {
        Blocks { data: self.data[..self.values(positions)].to_vec(), ..*self }
    }
}

/// One head's keys and values, in one of the two forms.
#[derive(Debug)]
enum Head {
    F32 { k: Rows<f32>, v: Rows<f32> },
    Int8 { k: Blocks, v: Blocks },
}

/// What attention reads of one head.
#[derive(Clone, Copy, Debug)]
pub enum Stored<'a> {
    /// Values as computed, of the positions that were asked for, oldest first, in at most two runs.
    F32 {
        /// Keys.
        k: [&'a [f32]; 2],
        /// Values.
        v: [&'a [f32]; 2],
    },
    /// Codes on the grids of the layer's cache steps, of all positions.
    Int8(Codes<'a>),
}

/// All codes of a head. A position stands in the slot `position % ring`, or in the one of its number where there is no ring.
#[derive(Clone, Copy, Debug)]
pub struct Codes<'a> {
    k: &'a [i8],
    v: &'a [i8],
    dim: usize,
    ring: Option<usize>,
}

impl<'a> Codes<'a> {
    /// Blocks that hold the positions below `end`.
    pub fn blocks(&self, end: usize) -> usize {
        self.ring.map_or(end, |capacity| capacity.min(end)).div_ceil(BLOCK)
    }

    /// The slots of `positions` that lie in block `block`, counted from its first one: two ascending ranges.
    pub fn slots(&self, block: usize, positions: &Range<usize>) -> [Range<usize>; 2] {
        let (first, last) = (block * BLOCK, (block + 1) * BLOCK);
        let inside = |slots: Range<usize>| {
            let start = slots.start.clamp(first, last) - first;
            start..slots.end.clamp(start + first, last) - first
        };
        let Range { start, end } = *positions;
        match self.ring {
            None => [inside(start..end), BLOCK..BLOCK],
            Some(capacity) if start / capacity == (end - 1) / capacity => {
                [inside(start % capacity..(end - 1) % capacity + 1), BLOCK..BLOCK]
            }
            Some(capacity) => [inside(0..(end - 1) % capacity + 1), inside(start % capacity..capacity)],
        }
    }

    /// Keys of the slots `slots` of `block`, multiples of [`Quads::ROWS`]: as [`Quads`], a row for each. Those of slots that were never
    /// written are zero.
    pub fn keys(&self, block: usize, slots: Range<usize>) -> &'a [i8] {
        &self.k[(block * BLOCK + slots.start) * self.dim..(block * BLOCK + slots.end) * self.dim]
    }

    /// Values of `block`: as [`Quads`], a row of [`BLOCK`] slots for every element. Those of slots that were never written are zero.
    pub fn values(&self, block: usize) -> &'a [i8] {
        &self.v[block * BLOCK * self.dim..][..BLOCK * self.dim]
    }
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

impl KvCache {
    /// An empty cache for the layers of `config`.
    pub fn new(config: &Config, kind: KvKind) -> KvCache {
        let capacity = (config.sliding_window + MAX_BATCH - 1).next_multiple_of(BLOCK);
        let heads = config.layers.iter().map(|layer| {
            let ring = (layer.kind == Kind::Sliding).then_some(capacity);
            let dim = layer.head_dim;
            let head = |_| match kind {
                KvKind::F32 => Head::F32 { k: Rows::new(dim, ring), v: Rows::new(dim, ring) },
                KvKind::Int8 => {
                    Head::Int8 { k: Blocks::new(dim, ring, Slots::Rows), v: Blocks::new(dim, ring, Slots::Columns) }
                }
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
                    paste(&mut k.data, &keys.data);
                    paste(&mut v.data, &values.data);
                }
                (Head::Int8 { k, v }, Head::Int8 { k: keys, v: values }) => {
                    paste(&mut k.data, &keys.data);
                    paste(&mut v.data, &values.data);
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
            Head::F32 { k, .. } => 4 * values(k.dim, needed(k.ring, positions)),
            Head::Int8 { k, .. } => values(k.dim, needed(k.ring, positions)),
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
                    let runs = [k, v].map(|rows| rows.runs(needed(rows.ring, self.len)..self.len));
                    runs.as_flattened().iter().try_for_each(|run| out.write_all(bytemuck::cast_slice(run)))?;
                }
                Head::Int8 { k, v } => {
                    let wanted = needed(k.ring, self.len)..self.len;
                    let of = |blocks: &Blocks| wanted.clone().flat_map(|p| blocks.get(p)).collect::<Vec<i8>>();
                    [k, v].into_iter().try_for_each(|blocks| out.write_all(bytemuck::cast_slice(&of(blocks))))?;
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
                Head::F32 { k, v } => {
                    let wanted = needed(k.ring, positions)..positions;
                    deal(wanted.clone(), k.dim, &mut floats, |position, row| k.put(position, row));
                    deal(wanted, v.dim, &mut floats, |position, row| v.put(position, row));
                }
                Head::Int8 { k, v } => {
                    let wanted = needed(k.ring, positions)..positions;
                    deal(wanted.clone(), k.dim, &mut bytes, |position, row| k.put(position, row));
                    deal(wanted, v.dim, &mut bytes, |position, column| v.put(position, column));
                }
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

    /// Stores the key and value `[head_dim]` of one position.
    ///
    /// # Panics
    ///
    /// When the cache holds codes.
    pub fn put(&mut self, layer: usize, kv_head: usize, position: usize, k: &[f32], v: &[f32]) {
        let Head::F32 { k: keys, v: values } = &mut self.heads[layer][kv_head] else { panic!("a cache of codes") };
        keys.put(position, k);
        values.put(position, v);
    }

    /// Stores the key and value `[head_dim]` of one position, rounded onto the layer's cache steps.
    ///
    /// # Panics
    ///
    /// When the cache holds floats.
    pub fn put_codes(&mut self, layer: usize, kv_head: usize, position: usize, k: &[i8], v: &[i8]) {
        let Head::Int8 { k: keys, v: values } = &mut self.heads[layer][kv_head] else { panic!("a cache of floats") };
        keys.put(position, k);
        values.put(position, v);
    }

    /// Counts `tokens` positions as stored in every layer.
    pub fn advance(&mut self, tokens: usize) {
        self.len += tokens;
        self.written = self.written.max(self.len);
    }

    /// How keys and values of the layers are stored.
    pub fn kind(&self) -> KvKind {
        match self.heads.iter().flatten().next() {
            Some(Head::F32 { .. }) => KvKind::F32,
            _ => KvKind::Int8,
        }
    }

    /// Keys and values of one head: of `positions`, or all codes.
    pub fn stored(&self, layer: usize, kv_head: usize, positions: Range<usize>) -> Stored<'_> {
        match &self.heads[layer][kv_head] {
            Head::F32 { k, v } => Stored::F32 { k: k.runs(positions.clone()), v: v.runs(positions) },
            Head::Int8 { k, v } => Stored::Int8(Codes { k: &k.data, v: &v.data, dim: k.dim, ring: k.ring }),
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
    use crate::kernels;
    use crate::kernels::contract::{Planes, plane_stride};

    #[test]
    fn a_ring_returns_the_latest_rows_in_order() {
        let mut rows = Rows::<i8>::new(2, Some(5));
        for p in 0..23usize {
            rows.put(p, &[p as i8, -(p as i8)]);
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
            rows.put(p, &[p as f32; 16]);
            assert!(rows.data.capacity() <= (p + 1 + GROWTH) * 16);
        }
        assert_eq!(rows.runs(998..1000)[0][16], 999.0);
    }

    /// The slots of every window, by the definition: `position % ring`.
    #[test]
    fn slots_of_a_window_lie_in_its_blocks() {
        for ring in [None, Some(2 * BLOCK), Some(5 * BLOCK)] {
            let codes = Codes { k: &[], v: &[], dim: 16, ring };
            for end in (1..9 * BLOCK).step_by(13) {
                for len in [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK].map(|len: usize| len.min(end)) {
                    let positions = end - len..end;
                    let mut want: Vec<usize> = positions.clone().map(|p| ring.map_or(p, |ring| p % ring)).collect();
                    want.sort_unstable();
                    let slots =
                        |block| codes.slots(block, &positions).map(|slots| slots.map(move |s| block * BLOCK + s));
                    let found: Vec<usize> = (0..codes.blocks(end)).flat_map(slots).flatten().collect();
                    assert_eq!(found, want, "{positions:?} in {ring:?}");
                }
            }
        }
    }

    /// As the products find them: what is multiplied with one position comes out alone.
    #[test]
    fn blocks_hold_keys_as_rows_and_values_as_columns() {
        let (dim, ring) = (32, Some(2 * BLOCK));
        // Positions that share a slot differ.
        let code = |p: usize, j: usize| (7 * p + p / BLOCK + 3 * j) as i8;
        let mut heads = [Slots::Rows, Slots::Columns].map(|slots| Blocks::new(dim, ring, slots));
        for p in 0..3 * BLOCK {
            let codes: Vec<i8> = (0..dim).map(|j| code(p, j)).collect();
            heads.iter_mut().for_each(|blocks| blocks.put(p, &codes));
        }
        let [k, v] = &heads;
        assert_eq!([k.data.len(), v.data.len()], [2 * BLOCK * dim; 2]);
        for p in BLOCK..3 * BLOCK {
            assert!([k, v].into_iter().all(|blocks| blocks.get(p).eq((0..dim).map(|j| code(p, j)))), "position {p}");
        }
        let codes = Codes { k: &k.data, v: &v.data, dim, ring };
        // The product with a vector that is 1 at `i` and 0 elsewhere.
        let one = |w: &[i8], k: usize, i: usize| {
            let mut q = vec![0; plane_stride(k, 1)];
            q[i] = 1;
            let mut acc = vec![0; w.len() / k];
            kernels::select(Some("scalar")).unwrap().dots_quads(
                Quads::new(w, k),
                Planes::new(&q, &[1], 1, k),
                &mut acc,
            );
            acc
        };
        for (block, first) in [(0, 2 * BLOCK), (1, BLOCK)] {
            for j in 0..dim {
                let want: Vec<i32> = (16..48).map(|slot| i32::from(code(first + slot, j))).collect();
                assert_eq!(one(codes.keys(block, 16..48), dim, j), want);
            }
            for slot in 0..BLOCK {
                let want: Vec<i32> = (0..dim).map(|j| i32::from(code(first + slot, j))).collect();
                assert_eq!(one(codes.values(block), BLOCK, slot), want);
            }
        }
    }
}
