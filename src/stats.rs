//! Counters that the engine keeps of its own work.

use std::sync::atomic::{AtomicU64, Ordering};

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

/// How many activation vectors went through each projection, over all layers, since the start.
#[derive(Debug, Default)]
pub struct Stats {
    vectors: [AtomicU64; PROJECTIONS],
}

impl Stats {
    /// Counts `vectors` activation vectors through one projection of one layer.
    pub fn projected(&self, projection: Projection, vectors: usize) {
        self.vectors[projection as usize].fetch_add(vectors as u64, Ordering::Relaxed);
    }

    /// Vectors that went through `projection` so far.
    pub fn vectors(&self, projection: Projection) -> u64 {
        self.vectors[projection as usize].load(Ordering::Relaxed)
    }
}
