//! The page that `emberd inspect` prints.

use std::fmt;

use serde::Serialize;

use super::config::Kind;
use super::summary::{Memory, Summary};

/// A checkpoint, what serving it takes, and whether this machine has that.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Bytes of the weight files, other modalities included.
    pub file_bytes: u64,
    /// Architecture and costs.
    #[serde(flatten)]
    pub summary: Summary,
    /// Memory for the context that was asked for.
    pub memory: Memory,
    /// Bytes that this machine has available, if known.
    pub available: Option<u64>,
    /// Whether they are enough.
    pub fits: Option<bool>,
}

impl Report {
    /// Report on `summary` for `context` positions on a machine with `available` bytes.
    pub fn new(summary: Summary, file_bytes: u64, context: usize, available: Option<u64>) -> Report {
        let memory = summary.memory(context);
        Report { file_bytes, summary, memory, available, fits: available.map(|bytes| memory.total <= bytes) }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.summary;
        let mut line = |name: &str, value: String| writeln!(f, "{name:<30} {value}");
        line(
            "layers",
            format!("{}, {} of them full attention, {} share a cache", s.layers, s.full_layers, s.shared_layers),
        )?;
        line("hidden / heads / vocabulary", format!("{} / {} / {}", s.hidden, s.heads, s.vocab_size))?;
        line("sliding window", s.sliding_window.to_string())?;
        line("trained context", s.max_position_embeddings.to_string())?;
        for shape in &s.shapes {
            let kind = match shape.kind {
                Kind::Full => "full",
                Kind::Sliding => "sliding",
            };
            let cache = if shape.owns_cache { "own cache" } else { "shared cache" };
            let value = format!(
                "{kind:<7}  head {:>4}  kv heads {}  MLP {:>5}  {cache}",
                shape.head_dim, shape.kv_heads, shape.intermediate
            );
            line(&format!("  {} layers", shape.count), value)?;
        }
        for run in &s.widths {
            let place = run.layers.map_or(String::new(), |layers| format!(", {}", span(layers)));
            let bits: Vec<String> = run.bits.iter().map(usize::to_string).collect();
            line(&format!("{}{place}", run.group), format!("{} bits", bits.join("/")))?;
        }
        line("weight files", size(self.file_bytes))?;
        line(
            "weights read per token",
            format!("{} + {} of scales", size(s.weights_per_token), size(s.scales_per_token)),
        )?;
        line("multiply-adds per token", giga(s.macs_per_token))?;
        line(
            "multiply-adds per prompt token",
            format!("{} (all layers: {})", giga(s.macs_prompt), giga(s.macs_prompt_all_layers)),
        )?;
        let tables = format!("{} / {} / {}", size(s.embed_table), size(s.ple_table), size(s.table_scales));
        line("tables: embed / PLE / scales", tables)?;
        line("PLE row per token", size(s.ple_row))?;
        let windows = s.kv_sliding_per_token * s.sliding_window as u64;
        line("int8 KV: full / windows", format!("{} per token / {}", size(s.kv_full_per_token), size(windows)))?;
        let m = &self.memory;
        line(
            &format!("memory, context {}", m.context),
            format!(
                "{} = weights {} + KV {} + buffers {} (about)",
                size(m.total),
                size(m.weights),
                size(m.kv),
                size(m.activations)
            ),
        )?;
        match (self.available, self.fits) {
            (Some(available), Some(true)) => line("available here", format!("{}: enough", size(available))),
            (Some(available), _) => line(
                "available here",
                format!("{}: {} too little", size(available), size(m.total.saturating_sub(available))),
            ),
            (None, _) => line("available here", "unknown".to_owned()),
        }
    }
}

fn span((first, last): (usize, usize)) -> String {
    if first == last { format!("layer {first}") } else { format!("layers {first}-{last}") }
}

/// Bytes in decimal units, three digits or so.
fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..100_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        100_000_000..10_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

fn giga(count: u64) -> String {
    match count {
        0..10_000_000 => format!("{:.2} M", count as f64 / 1e6),
        _ => format!("{:.2} G", count as f64 / 1e9),
    }
}
