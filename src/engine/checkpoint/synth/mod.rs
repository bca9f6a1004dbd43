//! Random checkpoints in the published schema, of any shape: for tests, measurements and demonstrations.
//!
//! The text they produce is noise. Scales, norms and static steps are chosen so that activations keep the size that a
//! trained model's have: roots of mean squares near 1 before every projection, a few values clipped by every step.
//! Tensors are written one after the other, so the largest shape takes no more memory than the smallest.

mod fill;
mod shapes;
mod vocabulary;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::rc::Rc;

use serde_json::{Value, json};

use super::config::Config;
use super::error::CheckpointError;
use super::files::MODEL_FILE;
use super::names::{NESTED, Projection};
use super::output;
use crate::kernels::contract::Bits;
use fill::{Codes, Fill};
pub use shapes::{SHAPES, Shape};

/// A tensor to be written.
struct Plan {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    fill: Fill,
}

impl Plan {
    fn bytes(&self) -> u64 {
        let size = match self.dtype {
            "F32" => 4,
            "BF16" => 2,
            _ => 1,
        };
        self.shape.iter().map(|&d| d as u64).product::<u64>() * size
    }
}

/// Writes `config.json`, `generation_config.json`, `model.safetensors` and a small `tokenizer.json` of `shape` into `dir`,
/// which is made if need be. The same seed gives the same bytes. Each file appears complete or not at all.
///
/// # Errors
///
/// The shape is none that the engine accepts, or a file cannot be written.
pub fn write(shape: &Shape, seed: u64, dir: &Path) -> Result<(), CheckpointError> {
    let json = pretty(&shape.config_json());
    let config = Config::parse(&json).map_err(|p| p.in_file(&dir.join("config.json")))?;
    fs::create_dir_all(dir).map_err(CheckpointError::io(dir, "make it"))?;
    let plans = plan(&config);
    write_file(&dir.join(MODEL_FILE), |out| write_tensors(&plans, seed, out))?;
    let generation = json!({
        "bos_token_id": 2, "eos_token_id": [1, 106], "pad_token_id": 0,
        "do_sample": true, "temperature": 1.0, "top_k": 64, "top_p": 0.95,
    });
    write_file(&dir.join("generation_config.json"), |out| out.write_all(pretty(&generation).as_bytes()))?;
    write_file(&dir.join("tokenizer.json"), |out| out.write_all(vocabulary::tokenizer_json().as_bytes()))?;
    write_file(&dir.join("config.json"), |out| out.write_all(json.as_bytes()))
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn write_file(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<(), CheckpointError> {
    output::atomically(path, write).map_err(CheckpointError::io(path, "write it"))
}

fn write_tensors(plans: &[Plan], seed: u64, out: &mut impl Write) -> std::io::Result<()> {
    let tensors = plans.iter().map(|plan| (plan.name.as_str(), plan.dtype, plan.shape.as_slice(), plan.bytes()));
    output::header(json!({"format": "pt"}), 8, tensors, out)?;
    for (i, plan) in plans.iter().enumerate() {
        let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(i as u64));
        plan.fill.write(plan.shape.iter().product(), &mut rng, out)?;
    }
    Ok(())
}

/// A step that clips what lies beyond six tenths of `top`, the largest value to be expected.
fn step(top: f64) -> f32 {
    (top * 0.6 / 127.0) as f32
}

/// All tensors, the widest elements first so that each is aligned.
fn plan(config: &Config) -> Vec<Plan> {
    let codes = [Bits::Two, Bits::Four, Bits::Eight].map(|bits| Rc::new(Codes::new(bits)));
    let mut plans = Plans { config, codes, plans: Vec::new() };
    let (h, l, p) = (config.hidden, config.layers.len(), config.ple_dim);
    plans.table("embed_tokens", config.vocab_size, h, 1);
    if p > 0 {
        plans.table("embed_tokens_per_layer", config.ple_vocab_size, l * p, l);
        plans.bf16("per_layer_model_projection.weight", &[l * p, h], 0.0, 1.0);
        plans.bf16("per_layer_projection_norm.weight", &[p], 0.6, 0.1);
    }
    plans.bf16("norm.weight", &[h], 1.0, 0.2);
    plans.linear("lm_head".into(), config.vocab_size, h, 4.0, [4.0, 21.0]);
    // Root of the mean square of the residual stream: the token's row, then what the branches add.
    let mut residual: f64 = 1.08;
    for i in 0..l {
        plans.layer(i, residual);
        residual = 0.9 * (residual * residual + 2.0 * 0.12 * 0.12 + 0.06 * 0.06).sqrt();
    }
    let mut plans = plans.plans;
    plans.sort_by_key(|plan| match plan.dtype {
        "F32" => 0,
        "BF16" => 1,
        _ => 2,
    });
    plans
}

struct Plans<'a> {
    config: &'a Config,
    /// One table for each width.
    codes: [Rc<Codes>; 3],
    plans: Vec<Plan>,
}

impl Plans<'_> {
    fn push(&mut self, name: String, dtype: &'static str, shape: &[usize], fill: Fill) {
        self.plans.push(Plan { name, dtype, shape: shape.to_vec(), fill });
    }

    fn bf16(&mut self, name: &str, shape: &[usize], center: f64, spread: f64) {
        self.push(format!("{NESTED}{name}"), "BF16", shape, Fill::Bf16 { center, spread });
    }

    /// Codes `[n, k]` and their scales; a row of scales is for `gain` times unit rows.
    fn quantized(&mut self, module: &str, [codes, scales]: [&str; 2], [n, k, groups]: [usize; 3], gain: f64) {
        let bits = self.config.widths.of(module);
        let table = self.codes[bits as usize].clone();
        let base = gain / (table.rms() * (k as f64).sqrt());
        let dtype = if bits.get() == 8 { "I8" } else { "U8" };
        self.push(format!("{module}.{codes}"), dtype, &[n, bits.row_bytes(k)], Fill::Codes(table));
        self.push(
            format!("{module}.{scales}"),
            "F32",
            &[n, groups],
            Fill::Uniform { low: 0.6 * base, high: 1.5 * base },
        );
    }

    fn table(&mut self, module: &str, rows: usize, row_len: usize, blocks: usize) {
        let module = format!("{NESTED}{module}");
        self.quantized(&module, ["embedding_quantized", "embedding_scale"], [rows, row_len, blocks], 1.0);
    }

    /// A projection whose input and output are expected to reach `tops`.
    fn linear(&mut self, module: String, n: usize, k: usize, gain: f64, tops: [f64; 2]) {
        self.quantized(&module, ["weight", "weight_scale"], [n, k, 1], gain);
        for (side, top) in ["input", "output"].into_iter().zip(tops) {
            self.push(format!("{module}.{side}_activation_scale"), "F32", &[], Fill::Constant(step(top)));
        }
    }

    fn layer(&mut self, i: usize, residual: f64) {
        let config = self.config;
        let layer = &config.layers[i];
        let (h, d) = (config.hidden, layer.head_dim);
        let name = |part: &str| format!("layers.{i}.{part}");
        for (norm, center) in [
            ("input_layernorm", 1.0),
            ("post_attention_layernorm", 0.12),
            ("pre_feedforward_layernorm", 1.0),
            ("post_feedforward_layernorm", 0.12),
        ] {
            self.bf16(&name(&format!("{norm}.weight")), &[h], center, center / 5.0);
        }
        if config.ple_dim > 0 {
            self.bf16(&name("post_per_layer_input_norm.weight"), &[h], 0.06, 0.012);
        }
        self.bf16(&name("layer_scalar"), &[1], 0.9, 0.05);
        self.bf16(&name("self_attn.q_norm.weight"), &[d], 0.9, 0.2);
        self.bf16(&name("self_attn.k_norm.weight"), &[d], 0.2, 0.05);
        // Layers that share a cache carry its K and V all the same, as the published files do.
        for projection in Projection::ALL {
            let (n, k) = projection.shape(config, layer);
            let tops = match projection {
                Projection::Q | Projection::K | Projection::V | Projection::Gate | Projection::Up => [4.0, 4.5],
                Projection::O => [3.0, 2.5],
                Projection::Down => [6.0, 2.5],
                Projection::PleGate => [4.0 * residual, 4.4 * residual],
                Projection::PleProj => [3.5 * residual, 2.0 * residual],
            };
            if n > 0 && k > 0 {
                self.linear(format!("{NESTED}{}", name(projection.name())), n, k, 1.0, tops);
            }
        }
        for (side, top) in [("k", 0.8), ("v", 4.0)] {
            let tensor = format!("{NESTED}{}", name(&format!("self_attn.{side}_cache_scale")));
            self.push(tensor, "F32", &[], Fill::Constant((top * 0.9 / 127.0) as f32));
        }
    }
}
