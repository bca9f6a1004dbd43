//! Everything that a batch needs between its token ids and its logits; the memory is reused from batch to batch.

use super::attend::Attend;
use super::rope::Rotation;
use crate::engine::checkpoint::config::Config;
use crate::engine::ops::Quantized;
use crate::parallel::{Pool, Scratch};

/// Which tokens of a batch go through all layers. The others only fill the caches: nothing above the last layer that owns
/// one has to run for them, and of that layer only keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// None: a part of the prompt that more of it follows.
    None,
    /// The last one: the end of the prompt, or a token that was just sampled.
    Last,
    /// All of them: logits for every position.
    All,
}

impl Keep {
    /// How many of `tokens`, one or more, are kept.
    pub(super) fn of(self, tokens: usize) -> usize {
        match self {
            Keep::None => 0,
            Keep::Last => 1,
            Keep::All => tokens,
        }
    }
}

/// The state of one batch of T tokens; after [`Activations::keep`] T is the number of kept tokens.
pub struct Activations {
    pub(super) tokens: Vec<u32>,
    /// Position of each token.
    pub(super) positions: Vec<usize>,
    /// Residual stream `[T, H]`.
    pub(super) h: Vec<f32>,
    /// The first `h` `[T, H]`, from which the per-layer inputs are projected.
    pub(super) embedded: Vec<f32>,
    /// Input and then output of the branch in progress `[T, H]`.
    pub(super) x: Vec<f32>,
    /// Per-layer inputs `[T, layers, P]` of `ple_layers`.
    pub(super) ple: Vec<f32>,
    pub(super) ple_layers: std::ops::Range<usize>,
    /// Queries, and then the heads' outputs `[T, heads, d]`.
    pub(super) q: Vec<f32>,
    pub(super) heads: Vec<f32>,
    /// What workers that share the positions of a token leave of theirs, `[kv_heads · parts, group · (d + 2)]` or longer.
    pub(super) parts: Vec<f32>,
    /// Keys and values `[T, kv_heads, d]`.
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    /// Codes of one key and one value.
    pub(super) codes: Vec<i8>,
    /// Hidden vectors of the MLP and of the per-layer branch `[T, I]`.
    pub(super) gate: Vec<f32>,
    pub(super) up: Vec<f32>,
    /// Rotations of the positions, by [`Kind`](crate::engine::checkpoint::config::Kind).
    pub(super) rotations: [Rotation; 2],
    /// What attention needs besides, per worker.
    pub(super) attend: Scratch<Attend>,
    pub(super) quantized: Quantized,
    /// `[T, V]`.
    pub(super) logits: Vec<f32>,
}

impl Activations {
    /// Empty, for the workers of `pool`.
    pub fn new(pool: &Pool) -> Activations {
        Activations {
            tokens: Vec::new(),
            positions: Vec::new(),
            h: Vec::new(),
            embedded: Vec::new(),
            x: Vec::new(),
            ple: Vec::new(),
            ple_layers: 0..0,
            q: Vec::new(),
            heads: Vec::new(),
            parts: Vec::new(),
            k: Vec::new(),
            v: Vec::new(),
            codes: Vec::new(),
            gate: Vec::new(),
            up: Vec::new(),
            rotations: Default::default(),
            attend: Scratch::new(pool, Attend::default),
            quantized: Quantized::default(),
            logits: Vec::new(),
        }
    }

    /// Logits `[kept, vocab]` of the last batch; a sampler may write to them.
    pub fn logits_mut(&mut self) -> &mut [f32] {
        &mut self.logits
    }

    pub(super) fn begin(&mut self, config: &Config, tokens: &[u32], first: usize) {
        self.tokens.clear();
        self.tokens.extend_from_slice(tokens);
        self.positions.clear();
        self.positions.extend(first..first + tokens.len());
        for layer in &config.layers {
            let rotation = &mut self.rotations[layer.kind as usize];
            if !rotation.is_for(&layer.rope, &self.positions) {
                rotation.set(&layer.rope, &self.positions);
            }
        }
    }

    /// Drops the tokens that need no more than their keys and values.
    pub(super) fn keep(&mut self, keep: Keep) {
        let tokens = self.tokens.len();
        let dropped = tokens - keep.of(tokens);
        for rows in [&mut self.h, &mut self.x, &mut self.embedded] {
            let width = rows.len() / tokens;
            rows.drain(..dropped * width);
        }
        self.tokens.drain(..dropped);
        self.positions.drain(..dropped);
        self.rotations.iter_mut().for_each(|rotation| rotation.drop_first(dropped));
    }
}
