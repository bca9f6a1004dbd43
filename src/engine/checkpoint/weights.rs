//! The weights as the model uses them: codes in place in the mapped file, small vectors as `f32`.

use std::ops::Range;

use crate::engine::bytes::Bytes;
use crate::kernels::contract::{Bits, Codes, Layout};

/// A quantized projection, `[n, k]`: `y = round_clip(W · round_clip(x, input_step), output_step)`.
#[derive(Clone, Debug)]
pub struct Linear {
    pub(super) codes: Bytes,
    pub(super) layout: Layout,
    /// Width of a code.
    pub bits: Bits,
    /// Output channels.
    pub n: usize,
    /// Input channels.
    pub k: usize,
    /// One scale per output channel, `[n]`.
    pub scales: Vec<f32>,
    /// Static step of the input; 0: the input is not rounded.
    pub input_step: f32,
    /// Static step of the output; 0: the output is not rounded.
    pub output_step: f32,
}

impl Linear {
    /// All rows.
    pub fn codes(&self) -> Codes<'_> {
        Codes::new(&self.codes, self.bits, self.k, self.layout)
    }
}

#[cfg(test)]
impl Linear {
    /// Rows of `k` codes, one for each of the scales.
    pub fn new(codes: Vec<u8>, bits: Bits, k: usize, scales: Vec<f32>, [input_step, output_step]: [f32; 2]) -> Linear {
        let (codes, n) = (codes.into(), scales.len());
        Linear { codes, layout: Layout::Rows, bits, n, k, scales, input_step, output_step }
    }
}

/// Floats of a file, in place: `f32` or BF16, at any address.
#[derive(Clone, Debug)]
pub(super) struct Floats {
    pub(super) bytes: Bytes,
    pub(super) bf16: bool,
}

impl Floats {
    pub(super) fn get(&self, i: usize) -> f32 {
        self.value(&self.bytes[i * self.size()..][..self.size()])
    }

    /// The values from `i` on, read past the mapping.
    fn read_at(&self, i: usize, out: &mut [f32]) {
        let mut bytes = vec![0; out.len() * self.size()];
        self.bytes.read_at(i * self.size(), &mut bytes);
        out.iter_mut().zip(bytes.chunks_exact(self.size())).for_each(|(out, bytes)| *out = self.value(bytes));
    }

    fn size(&self) -> usize {
        if self.bf16 { 2 } else { 4 }
    }

    fn value(&self, bytes: &[u8]) -> f32 {
        match *bytes {
            [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
            [a, b] => f32::from_bits(u32::from(u16::from_le_bytes([a, b])) << 16),
            _ => unreachable!("an element has 2 or 4 bytes"),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() / self.size()
    }

    pub(super) fn to_vec(&self) -> Vec<f32> {
        (0..self.len()).map(|i| self.get(i)).collect()
    }

    /// The first element that `good` rejects. Whole blocks are judged without branches: the E2B table has 9 million.
    pub(super) fn find_bad(&self, good: impl Fn(f32) -> bool) -> Option<usize> {
        const BLOCK: usize = 1024;
        let size = self.size();
        let block_is_bad = |block: &[u8]| match self.bf16 {
            true => !block.as_chunks().0.iter().fold(true, |ok, &[a, b]| ok & good(f32::from_le_bytes([0, 0, a, b]))),
            false => !block.as_chunks().0.iter().fold(true, |ok, &x| ok & good(f32::from_le_bytes(x))),
        };
        let bad = self.bytes.chunks(BLOCK * size).position(block_is_bad)?;
        (bad * BLOCK..self.len()).find(|&i| !good(self.get(i)))
    }
}

/// A table of embeddings, only looked up: `[rows, row_len]` codes, `blocks` scales in a row.
#[derive(Clone, Debug)]
pub struct Table {
    pub(super) codes: Bytes,
    pub(super) scales: Floats,
    /// Width of a code.
    pub bits: Bits,
    /// Number of tokens.
    pub rows: usize,
    /// Values in a row.
    pub row_len: usize,
    /// Scales in a row, each for `row_len / blocks` consecutive values.
    pub blocks: usize,
}

impl Table {
    /// Writes `part` of the row of `token`, `(code − offset) · scale`, to `out`, `[part]`.
    ///
    /// # Panics
    ///
    /// When `token` is not below `rows`, `part` is not in the row or not whole bytes of it, or `out` has another length.
    pub fn row(&self, token: usize, part: Range<usize>, out: &mut [f32]) {
        assert!(token < self.rows && part.end <= self.row_len, "{part:?} of row {token} of {}", self.rows);
        assert_eq!(out.len(), part.len());
        let planes = self.bits.planes();
        assert!(part.start.is_multiple_of(planes) && part.end.is_multiple_of(planes), "{part:?} by {planes}");
        let block = self.row_len / self.blocks;
        let blocks = part.start / block..part.end.div_ceil(block);
        let (mut codes, mut scales) = (vec![0; part.len() / planes], vec![0.0; blocks.len()]);
        self.codes.read_at((token * self.row_len + part.start) / planes, &mut codes);
        self.scales.read_at(token * self.blocks + blocks.start, &mut scales);
        for (b, scale) in blocks.zip(scales) {
            let values = (b * block).max(part.start) - part.start..((b + 1) * block).min(part.end) - part.start;
            let codes = &codes[values.start / planes..values.end / planes];
            for (out, &byte) in out[values].chunks_exact_mut(planes).zip(codes) {
                unpack(byte, self.bits, scale, out);
            }
        }
    }
}

/// The values of one byte.
fn unpack(byte: u8, bits: Bits, scale: f32, out: &mut [f32]) {
    if bits == Bits::Eight {
        out[0] = f32::from(byte as i8) * scale;
        return;
    }
    let mask = (1 << bits.get()) - 1;
    for (p, out) in out.iter_mut().enumerate() {
        let code = i32::from(byte >> (p * bits.get())) & mask;
        *out = (code - bits.offset()) as f32 * scale;
    }
}

/// A matrix of BF16 values, `[rows, k]`.
#[derive(Clone, Debug)]
pub struct Bf16Matrix {
    pub(super) data: Bf16Data,
    /// Output channels.
    pub rows: usize,
    /// Input channels.
    pub k: usize,
}

#[derive(Clone, Debug)]
pub(super) enum Bf16Data {
    /// In place, at an even address: checked when it was made.
    Mapped(Bytes),
    /// Copied, because the file has it at an odd address or as `f32`.
    Owned(Vec<u16>),
}

impl Bf16Matrix {
    /// The upper halves of the `f32`s, row after row.
    pub fn data(&self) -> &[u16] {
        match &self.data {
            Bf16Data::Mapped(bytes) => bytemuck::cast_slice(bytes),
            Bf16Data::Owned(values) => values,
        }
    }
}

/// What a layer that owns a cache computes K and V with.
#[derive(Clone, Debug)]
pub struct KvWeights {
    /// H → KV heads · head_dim.
    pub k_proj: Linear,
    /// H → KV heads · head_dim.
    pub v_proj: Linear,
    /// `[head_dim]`.
    pub k_norm: Vec<f32>,
    /// Step of K in the int8 cache; 0: the checkpoint has none.
    pub k_step: f32,
    /// Step of V in the int8 cache; 0: the checkpoint has none.
    pub v_step: f32,
}

/// A layer's part in the per-layer embeddings.
#[derive(Clone, Debug)]
pub struct LayerPle {
    /// `per_layer_input_gate`, H → P.
    pub gate: Linear,
    /// `per_layer_projection`, P → H.
    pub proj: Linear,
    /// `post_per_layer_input_norm`, `[H]`.
    pub post_norm: Vec<f32>,
}

/// One layer. Norm weights are `[H]` where nothing else is said.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// `input_layernorm`.
    pub input_norm: Vec<f32>,
    /// H → heads · head_dim.
    pub q_proj: Linear,
    /// `[head_dim]`.
    pub q_norm: Vec<f32>,
    /// `None` in a layer that reads another's cache.
    pub kv: Option<KvWeights>,
    /// heads · head_dim → H.
    pub o_proj: Linear,
    /// `post_attention_layernorm`.
    pub post_attention_norm: Vec<f32>,
    /// `pre_feedforward_layernorm`.
    pub pre_feedforward_norm: Vec<f32>,
    /// H → MLP width.
    pub gate_proj: Linear,
    /// H → MLP width.
    pub up_proj: Linear,
    /// MLP width → H.
    pub down_proj: Linear,
    /// `post_feedforward_layernorm`.
    pub post_feedforward_norm: Vec<f32>,
    /// `None` in a model without per-layer embeddings.
    pub ple: Option<LayerPle>,
    /// Factor of the residual stream after the layer.
    pub layer_scalar: f32,
}

/// The per-layer embeddings: L blocks of P values for every token.
#[derive(Clone, Debug)]
pub struct Ple {
    /// `embed_tokens_per_layer`, `[V, L · P]`.
    pub table: Table,
    /// `per_layer_model_projection`, `[L · P, H]`.
    pub model_proj: Bf16Matrix,
    /// `per_layer_projection_norm`, `[P]`.
    pub proj_norm: Vec<f32>,
}

/// All weights of the text model.
#[derive(Clone, Debug)]
pub struct Weights {
    /// `embed_tokens`, `[V, H]`.
    pub embed: Table,
    /// `None` in a model without per-layer embeddings.
    pub ple: Option<Ple>,
    /// The layers, lowest first.
    pub layers: Vec<LayerWeights>,
    /// The norm before the head, `[H]`.
    pub norm: Vec<f32>,
    /// H → V.
    pub lm_head: Linear,
}

impl Weights {
    /// Locks the matrices that every token reads into memory, all of them or none; how many bytes that are. The tables, of
    /// which a token reads a row, stay as they are.
    ///
    /// # Errors
    ///
    /// As [`Bytes::lock`].
    pub fn lock(&self) -> std::io::Result<u64> {
        let all: Vec<&Bytes> = self.every_token().collect();
        let mut locked = 0;
        for (at, codes) in all.iter().enumerate() {
            match codes.lock() {
                Ok(bytes) => locked += bytes,
                Err(error) => {
                    all[..at].iter().for_each(|codes| codes.unlock());
                    return Err(error);
                }
            }
        }
        Ok(locked)
    }

    fn every_token(&self) -> impl Iterator<Item = &Bytes> {
        let layers = self.layers.iter().flat_map(|layer| {
            let always = [&layer.q_proj, &layer.o_proj, &layer.gate_proj, &layer.up_proj, &layer.down_proj];
            let kv = layer.kv.iter().flat_map(|kv| [&kv.k_proj, &kv.v_proj]);
            let ple = layer.ple.iter().flat_map(|ple| [&ple.gate, &ple.proj]);
            always.into_iter().chain(kv).chain(ple)
        });
        let projection = self.ple.iter().filter_map(|ple| match &ple.model_proj.data {
            Bf16Data::Mapped(bytes) => Some(bytes),
            Bf16Data::Owned(_) => None,
        });
        layers.chain([&self.lm_head]).map(|linear| &linear.codes).chain(projection)
    }
}
