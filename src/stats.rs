//! Counters and stage timers that the engine keeps of its own work.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The projections of a layer, and the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the model's own
pub enum Projection {
    Query,
    Key,
    Value,
    Output,
    Gate,
    Up,
    Down,
    PerLayerGate,
    PerLayerProjection,
    Head,
}

const PROJECTIONS: usize = Projection::Head as usize + 1;

/// Parts of the forward pass whose time is taken. The rest is norms, residuals and the look-up of the embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Projections of attention, with their roundings, and the norms and rotations of keys and values.
    QueryKeyValueOutput,
    /// Norms and rotations of the queries, scores, softmax and the mix of the values.
    Attention,
    /// The feed-forward branch.
    Mlp,
    /// Per-layer inputs and their branch.
    PerLayer,
    /// The last norm, the head and the soft cap.
    Head,
}

impl Stage {
    /// All of them.
    pub const ALL: [Stage; 5] =
        [Stage::QueryKeyValueOutput, Stage::Attention, Stage::Mlp, Stage::PerLayer, Stage::Head];

    /// As reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Stage::QueryKeyValueOutput => "qkvo",
            Stage::Attention => "attention",
            Stage::Mlp => "mlp",
            Stage::PerLayer => "per_layer",
            Stage::Head => "head",
        }
    }
}

/// What ran since the start.
#[derive(Debug, Default)]
pub struct Stats {
    vectors: [AtomicU64; PROJECTIONS],
    nanoseconds: [AtomicU64; Stage::ALL.len()],
}

impl Stats {
    /// Counts `vectors` activation vectors through one projection of one layer.
    pub fn projected(&self, projection: Projection, vectors: usize) {
        self.vectors[projection as usize].fetch_add(vectors as u64, Ordering::Relaxed);
    }

    /// Vectors that went through `projection` so far, over all layers.
    pub fn vectors(&self, projection: Projection) -> u64 {
        self.vectors[projection as usize].load(Ordering::Relaxed)
    }

    /// Counts the time until the result is dropped for `stage`.
    pub fn time(&self, stage: Stage) -> Timer<'_> {
        Timer { nanoseconds: &self.nanoseconds[stage as usize], began: Instant::now() }
    }

    /// Time that `stage` took so far.
    pub fn spent(&self, stage: Stage) -> Duration {
        Duration::from_nanos(self.nanoseconds[stage as usize].load(Ordering::Relaxed))
    }
}

/// A stage that is going on.
#[must_use]
pub struct Timer<'a> {
    nanoseconds: &'a AtomicU64,
    began: Instant,
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        let spent = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(spent, Ordering::Relaxed);
    }
}
