//! From tensors to weights: every tensor that is used is checked here, before anything runs.

use super::config::{Config, LayerConfig};
use super::error::{CheckpointError, Problem};
use super::files::{Tensor, Tensors};
use super::header::Dtype;
use super::names::Projection;
use super::weights::{Bf16Data, Bf16Matrix, Floats, KvWeights, LayerPle, LayerWeights, Linear, Ple, Table, Weights};
use crate::kernels::contract::{Bits, Layout};

// Codes, scales and BF16 values are used as they lie in the file.
const _: () = assert!(cfg!(target_endian = "little"), "safetensors files are little-endian");

/// Checks and collects all weights of the text model; `packed` tells the layout of their codes.
pub(super) fn weights(
    config: &Config,
    tensors: &Tensors,
    prefix: &'static str,
    packed: bool,
) -> Result<Weights, CheckpointError> {
    let loader = Loader { config, tensors, prefix, packed };
    let h = config.hidden;
    let l = config.layers.len();
    let ple = match config.ple_dim {
        0 => None,
        p => Some(Ple {
            table: loader.table("embed_tokens_per_layer", config.ple_vocab_size, l * p, &[l, 1])?,
            model_proj: loader.bf16_matrix("per_layer_model_projection.weight", l * p, h)?,
            proj_norm: loader.norm("per_layer_projection_norm", p)?,
        }),
    };
    Ok(Weights {
        embed: loader.table("embed_tokens", config.vocab_size, h, &[1])?,
        ple,
        layers: (0..l).map(|i| loader.layer(i)).collect::<Result<_, _>>()?,
        norm: loader.norm("norm", h)?,
        lm_head: loader.linear("lm_head", config.vocab_size, h)?,
    })
}

/// What the values of a tensor of floats have to be.
#[derive(Clone, Copy)]
enum Sign {
    /// Scales.
    Positive,
    /// Steps, where 0 stands for none.
    NotNegative,
    /// Norms.
    Any,
}

impl Sign {
    fn accepts(self, x: f32) -> bool {
        x.is_finite()
            && match self {
                Sign::Positive => x > 0.0,
                Sign::NotNegative => x >= 0.0,
                Sign::Any => true,
            }
    }

    fn expected(self) -> &'static str {
        match self {
            Sign::Positive => "finite values above 0",
            Sign::NotNegative => "a finite value, 0 or above",
            Sign::Any => "finite values",
        }
    }
}

struct Loader<'a> {
    config: &'a Config,
    tensors: &'a Tensors,
    prefix: &'static str,
    packed: bool,
}

impl<'a> Loader<'a> {
    fn layer(&self, i: usize) -> Result<LayerWeights, CheckpointError> {
        let layer = &self.config.layers[i];
        let h = self.config.hidden;
        let name = |part: &str| format!("layers.{i}.{part}");
        let linear = |projection| self.projection(i, layer, projection);
        let kv = match layer.owns_cache {
            false => None,
            true => Some(KvWeights {
                k_proj: linear(Projection::K)?,
                v_proj: linear(Projection::V)?,
                k_norm: self.norm(&name("self_attn.k_norm"), layer.head_dim)?,
                k_step: self.optional_step(&name("self_attn.k_cache_scale"))?,
                v_step: self.optional_step(&name("self_attn.v_cache_scale"))?,
            }),
        };
        let ple = match self.config.ple_dim {
            0 => None,
            _ => Some(LayerPle {
                gate: linear(Projection::PleGate)?,
                proj: linear(Projection::PleProj)?,
                post_norm: self.norm(&name("post_per_layer_input_norm"), h)?,
            }),
        };
        let scalar = self.full_name(&name("layer_scalar"));
        Ok(LayerWeights {
            input_norm: self.norm(&name("input_layernorm"), h)?,
            q_proj: linear(Projection::Q)?,
            q_norm: self.norm(&name("self_attn.q_norm"), layer.head_dim)?,
            kv,
            o_proj: linear(Projection::O)?,
            post_attention_norm: self.norm(&name("post_attention_layernorm"), h)?,
            pre_feedforward_norm: self.norm(&name("pre_feedforward_layernorm"), h)?,
            gate_proj: linear(Projection::Gate)?,
            up_proj: linear(Projection::Up)?,
            down_proj: linear(Projection::Down)?,
            post_feedforward_norm: self.norm(&name("post_feedforward_layernorm"), h)?,
            ple,
            layer_scalar: self.floats(&scalar, &[&[1], &[]], Sign::Any)?.get(0),
        })
    }

    fn projection(&self, i: usize, layer: &LayerConfig, projection: Projection) -> Result<Linear, CheckpointError> {
        let (n, k) = projection.shape(self.config, layer);
        self.linear(&self.full_name(&format!("layers.{i}.{}", projection.name())), n, k)
    }

    /// The projection `module`, a full name.
    fn linear(&self, module: &str, n: usize, k: usize) -> Result<Linear, CheckpointError> {
        let bits = self.config.widths.of(module);
        let codes = self.codes(&format!("{module}.weight"), bits, n, k)?;
        let scales = self.floats(&format!("{module}.weight_scale"), &[&[n, 1]], Sign::Positive)?;
        let step = |side: &str| {
            let name = format!("{module}.{side}_activation_scale");
            self.floats(&name, &[&[], &[1]], Sign::NotNegative).map(|step| step.get(0))
        };
        let layout = if self.packed { Layout::of(n, bits.row_bytes(k)) } else { Layout::Rows };
        Ok(Linear {
            codes: codes.bytes,
            layout,
            bits,
            n,
            k,
            scales: scales.to_vec(),
            input_step: step("input")?,
            output_step: step("output")?,
        })
    }

    /// The table `module`, with one of the numbers of scales in `blocks` for every row.
    fn table(&self, module: &str, rows: usize, row_len: usize, blocks: &[usize]) -> Result<Table, CheckpointError> {
        let module = self.full_name(module);
        let bits = self.config.widths.of(&module);
        let codes = self.codes(&format!("{module}.embedding_quantized"), bits, rows, row_len)?;
        let shapes: Vec<[usize; 2]> = blocks.iter().map(|&b| [rows, b]).collect();
        let shapes: Vec<&[usize]> = shapes.iter().map(|s| s.as_slice()).collect();
        let scales = self.floats(&format!("{module}.embedding_scale"), &shapes, Sign::Positive)?;
        let blocks = scales.len() / rows;
        // A token needs one row: reading ahead would fill the memory with rows that nobody asked for.
        codes.bytes.read_at_random();
        scales.bytes.read_at_random();
        scales.bytes.release(); // All of them were looked at just now: 38 MB of E2B.
        Ok(Table { codes: codes.bytes, scales, bits, rows, row_len, blocks })
    }

    /// The norm weights `module`, `[n]`.
    fn norm(&self, module: &str, n: usize) -> Result<Vec<f32>, CheckpointError> {
        let name = self.full_name(&format!("{module}.weight"));
        Ok(self.floats(&name, &[&[n]], Sign::Any)?.to_vec())
    }

    /// A step that a checkpoint may lack; 0 then.
    fn optional_step(&self, name: &str) -> Result<f32, CheckpointError> {
        let name = self.full_name(name);
        match self.tensors.get(&name) {
            None => Ok(0.0),
            Some(_) => Ok(self.floats(&name, &[&[], &[1]], Sign::NotNegative)?.get(0)),
        }
    }

    fn bf16_matrix(&self, name: &str, rows: usize, k: usize) -> Result<Bf16Matrix, CheckpointError> {
        let name = self.full_name(name);
        let floats = self.floats(&name, &[&[rows, k]], Sign::Any)?;
        let data = if floats.bf16 && bytemuck::try_cast_slice::<u8, u16>(&floats.bytes).is_ok() {
            Bf16Data::Mapped(floats.bytes)
        } else {
            tracing::info!(tensor = name, "copied: it is not BF16 at an even offset");
            let halves = (0..floats.len()).map(|i| {
                let bits = floats.get(i).to_bits();
                (bits & 0xffff == 0).then_some((bits >> 16) as u16).ok_or_else(|| {
                    let found = format!("{} at element {i}", floats.get(i));
                    Problem::at(&name, "values that BF16 holds exactly", found).in_file(self.file_of(&name))
                })
            });
            Bf16Data::Owned(halves.collect::<Result<_, _>>()?)
        };
        Ok(Bf16Matrix { data, rows, k })
    }

    /// Packed codes, `n` rows of `k`. The width by configuration and the width by shape have to agree.
    fn codes(&self, name: &str, bits: Bits, n: usize, k: usize) -> Result<Tensor<'a>, CheckpointError> {
        let tensor = self.tensor(name)?;
        let dtype = if bits == Bits::Eight { Dtype::I8 } else { Dtype::U8 };
        let shape = [n, bits.row_bytes(k)];
        if tensor.entry.dtype == dtype && tensor.entry.shape == shape {
            return Ok(tensor);
        }
        let others = [Bits::Two, Bits::Four, Bits::Eight];
        let by_shape = others.into_iter().find(|b| tensor.entry.shape == [n, b.row_bytes(k)]);
        let width = by_shape.map_or(String::new(), |b| format!(", a width of {} bits", b.get()));
        let expected = format!("{} {shape:?}, a width of {} bits by quantization_config", dtype.name(), bits.get());
        Err(Problem::at(name, expected, format!("{}{width}", tensor.entry.describe())).in_file(tensor.file))
    }

    /// Floats of one of `shapes`, F32 or BF16, all values as `sign` says.
    fn floats(&self, name: &str, shapes: &[&[usize]], sign: Sign) -> Result<Floats, CheckpointError> {
        let tensor = self.tensor(name)?;
        let entry = tensor.entry;
        if !matches!(entry.dtype, Dtype::F32 | Dtype::Bf16) || !shapes.contains(&entry.shape.as_slice()) {
            let shapes: Vec<String> = shapes.iter().map(|s| format!("{s:?}")).collect();
            let expected = format!("F32 or BF16 {}", shapes.join(" or "));
            return Err(Problem::at(name, expected, entry.describe()).in_file(tensor.file));
        }
        let floats = Floats { bytes: tensor.bytes, bf16: entry.dtype == Dtype::Bf16 };
        match floats.find_bad(|x| sign.accepts(x)) {
            None => Ok(floats),
            Some(i) => {
                let found = format!("{} at element {i} of {:?}", floats.get(i), entry.shape);
                Err(Problem::at(name, sign.expected(), found).in_file(tensor.file))
            }
        }
    }

    fn tensor(&self, name: &str) -> Result<Tensor<'a>, CheckpointError> {
        self.tensors
            .get(name)
            .ok_or_else(|| Problem::at(name, "a tensor of this name", "none").in_file(self.tensors.root()))
    }

    fn file_of(&self, name: &str) -> &std::path::Path {
        self.tensors.get(name).map_or(self.tensors.root(), |tensor| tensor.file)
    }

    fn full_name(&self, part: &str) -> String {
        format!("{}{part}", self.prefix)
    }
}
