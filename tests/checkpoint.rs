//! Checkpoints that open, and damaged ones that are refused in words.

use std::fs;
use std::path::{Path, PathBuf};

use emberd::engine::checkpoint::inspect::Report;
use emberd::engine::checkpoint::names::{NESTED, TEXT_ONLY};
use emberd::engine::checkpoint::summary::Summary;
use emberd::engine::checkpoint::synth::{self, Shape};
use emberd::engine::checkpoint::weights::Linear;
use emberd::engine::checkpoint::{Checkpoint, Config, Kind};
use serde_json::{Value, json};

/// Golden checkpoints, or `None` where the test data is not installed (an error under CI).
fn golden(name: &str) -> Option<PathBuf> {
    let shared = std::env::var_os("EMBERD_SHARED")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared")), PathBuf::from);
    let dir = shared.join("golden").join(name);
    if dir.is_dir() {
        return Some(dir);
    }
    assert!(std::env::var_os("CI").is_none(), "{} is missing", dir.display());
    eprintln!("skipped: {} is missing", dir.display());
    None
}

fn open(dir: &Path) -> Checkpoint {
    Checkpoint::open(dir).unwrap_or_else(|e| panic!("{e}"))
}

/// A checkpoint in memory, to be damaged and written.
#[derive(Clone)]
struct Files {
    config: Value,
    /// In file order: name, entry, data.
    tensors: Vec<(String, Value, Vec<u8>)>,
}

impl Files {
    /// A small random one, with every feature of the family.
    fn random() -> Files {
        let dir = tempfile::tempdir().unwrap();
        synth::write(&Shape::named("tiny-e2b").unwrap(), 7, dir.path()).unwrap();
        Files::read(dir.path())
    }

    /// Reads a directory with the safetensors crate: a second opinion on what the files say.
    fn read(dir: &Path) -> Files {
        let config = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
        let bytes = fs::read(dir.join("model.safetensors")).unwrap();
        let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Vec<_> = parsed
            .iter()
            .map(|(name, view)| {
                let entry = json!({"dtype": format!("{}", view.dtype()), "shape": view.shape()});
                (view.data().as_ptr(), (name.to_owned(), entry, view.data().to_vec()))
            })
            .collect();
        tensors.sort_by_key(|(address, (_, _, data))| (*address, data.len()));
        Files { config, tensors: tensors.into_iter().map(|(_, tensor)| tensor).collect() }
    }

    fn tensor(&mut self, name: &str) -> &mut (String, Value, Vec<u8>) {
        self.tensors.iter_mut().find(|t| t.0 == name).unwrap_or_else(|| panic!("no {name}"))
    }

    fn header(&self) -> Value {
        let mut offset = 0;
        let mut header = serde_json::Map::new();
        for (name, entry, data) in &self.tensors {
            let mut entry = entry.clone();
            entry["data_offsets"] = json!([offset, offset + data.len()]);
            offset += data.len();
            header.insert(name.clone(), entry);
        }
        Value::Object(header)
    }

    fn write(&self, dir: &Path) {
        self.write_with_header(dir, &self.header().to_string());
    }

    fn write_with_header(&self, dir: &Path, header: &str) {
        fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        self.tensors.iter().for_each(|(_, _, data)| bytes.extend_from_slice(data));
        fs::write(dir.join("model.safetensors"), bytes).unwrap();
    }

    /// Splits the tensors over two files and an index.
    fn write_shards(&self, dir: &Path) -> [&'static str; 2] {
        let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let (a, b) = self.tensors.split_at(self.tensors.len() / 2);
        let mut map = serde_json::Map::new();
        for (tensors, file) in [a, b].into_iter().zip(names) {
            let part = Files { config: self.config.clone(), tensors: tensors.to_vec() };
            part.write(dir);
            fs::rename(dir.join("model.safetensors"), dir.join(file)).unwrap();
            part.tensors.iter().for_each(|t| drop(map.insert(t.0.clone(), json!(file))));
        }
        let index = json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
        fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
        names
    }
}

/// A row of either table, dequantized: the same in parts, which begin and end within blocks, too.
fn row(table: &emberd::engine::checkpoint::Table, token: usize) -> Vec<f32> {
    let n = table.row_len;
    let mut out = vec![f32::NAN; n];
    table.row(token, 0..n, &mut out);
    let mut parts = vec![f32::NAN; n];
    for part in [0..8, 8..n - 8, n - 8..n] {
        table.row(token, part.clone(), &mut parts[part]);
    }
    assert_eq!(out, parts);
    out
}

/// The packed codes of a projection, row by row.
fn bytes(linear: &Linear) -> impl Iterator<Item = u8> {
    (0..linear.n).flat_map(|r| linear.codes().chunks(r)).flatten().copied()
}

/// All numbers that a model would read.
fn contents(checkpoint: &Checkpoint) -> Vec<f32> {
    let w = &checkpoint.weights;
    let mut all =
        [row(&w.embed, 3), row(&w.embed, w.embed.rows - 1), w.norm.clone(), w.lm_head.scales.clone()].concat();
    if let Some(ple) = &w.ple {
        all.extend(row(&ple.table, 5));
        all.extend(ple.model_proj.data().iter().map(|&x| f32::from(x)));
        all.extend(&ple.proj_norm);
    }
    for layer in &w.layers {
        let mut linears = vec![&layer.q_proj, &layer.o_proj, &layer.gate_proj, &layer.up_proj, &layer.down_proj];
        linears.extend(layer.kv.iter().flat_map(|kv| [&kv.k_proj, &kv.v_proj]));
        linears.extend(layer.ple.iter().flat_map(|ple| [&ple.gate, &ple.proj]));
        for linear in linears {
            assert_eq!(linear.codes().rows(), linear.n);
            all.extend(bytes(linear).map(f32::from));
            all.extend(&linear.scales);
            all.extend([linear.input_step, linear.output_step]);
        }
        all.extend([&layer.input_norm, &layer.q_norm, &layer.post_attention_norm].into_iter().flatten());
        all.extend([&layer.pre_feedforward_norm, &layer.post_feedforward_norm].into_iter().flatten());
        all.extend(layer.kv.iter().flat_map(|kv| kv.k_norm.iter().copied().chain([kv.k_step, kv.v_step])));
        all.push(layer.layer_scalar);
    }
    all
}

#[test]
fn golden_checkpoints_open() {
    for name in ["tiny-e2b", "tiny-e4b"] {
        let Some(dir) = golden(name) else { return };
        let checkpoint = open(&dir);
        let config = &checkpoint.config;
        let sources: Vec<usize> = config.layers.iter().map(|layer| layer.kv_source).collect();
        match name {
            "tiny-e2b" => assert_eq!(sources, [0, 1, 2, 3, 4, 3, 3, 3, 3, 4]),
            _ => assert_eq!(sources, [0, 1, 2, 3, 4, 5, 6, 7, 7, 4, 7, 4]),
        }
        assert_eq!(checkpoint.generation.eos, [1, 106]);
        assert_eq!((checkpoint.generation.top_k, checkpoint.generation.top_p), (64, 0.95));
        let full = &config.layers[4];
        assert_eq!((full.kind, full.head_dim, full.rope.rotary, full.rope.theta), (Kind::Full, 64, 8, 1e6));
        assert_eq!(config.layers[0].rope.rotary, 16);
        assert_eq!(checkpoint.prefix, NESTED);

        // The same files through another parser.
        let mut files = Files::read(&dir);
        let scale = |files: &mut Files, name: &str, i: usize| {
            f32::from_le_bytes(files.tensor(name).2[4 * i..][..4].try_into().unwrap())
        };
        let ple = checkpoint.weights.ple.as_ref().unwrap();
        let (token, at) = (9, 70);
        let table = format!("{NESTED}embed_tokens_per_layer.");
        let s = scale(&mut files, &format!("{table}embedding_scale"), token * config.layers.len() + at / 32);
        let codes = &files.tensor(&format!("{table}embedding_quantized")).2;
        let code = match name {
            "tiny-e2b" => i32::from(codes[token * 160 + at / 2] & 15) - 8,
            _ => i32::from(codes[token * 96 + at / 4] >> 4 & 3) - 2,
        };
        assert_eq!(row(&ple.table, token)[at], code as f32 * s);
        let down = &checkpoint.weights.layers[6].down_proj;
        let name = format!("{NESTED}layers.6.mlp.down_proj.");
        assert_eq!(down.scales[11], scale(&mut files, &format!("{name}weight_scale"), 11));
        assert_eq!(down.input_step, scale(&mut files, &format!("{name}input_activation_scale"), 0));
        assert_eq!(bytes(down).collect::<Vec<u8>>(), files.tensor(&format!("{name}weight")).2);
    }
}

#[test]
fn shards_hold_the_same_weights() {
    let files = Files::random();
    let [whole, parts] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    files.write(whole.path());
    files.write_shards(parts.path());
    assert_eq!(contents(&open(whole.path())), contents(&open(parts.path())));
}

/// Neither the order of tensors nor their alignment is the writer's to promise.
#[test]
fn unaligned_files_hold_the_same_weights() {
    let files = Files::random();
    let [even, odd] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    files.write_with_header(even.path(), &pad(files.header().to_string(), 0));
    files.write_with_header(odd.path(), &pad(files.header().to_string(), 1));
    assert_eq!(contents(&open(even.path())), contents(&open(odd.path())));
}

fn pad(mut json: String, odd: usize) -> String {
    while json.len() % 2 != odd {
        json.push(' ');
    }
    json
}

/// A model saved in float32 has F32 norms; BF16 values stay what they are.
#[test]
fn floats_may_be_wider() {
    let files = Files::random();
    let mut wide = files.clone();
    for (_, entry, data) in wide.tensors.iter_mut().filter(|t| t.1["dtype"] == "BF16") {
        entry["dtype"] = json!("F32");
        *data = data.chunks(2).flat_map(|b| [0, 0, b[0], b[1]]).collect();
    }
    let [a, b] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    files.write(a.path());
    wide.write(b.path());
    assert_eq!(contents(&open(a.path())), contents(&open(b.path())));
}

/// What transformers writes for a text-only model: `gemma4_text` at the top, shorter names, layers that differ in
/// `per_layer_config`, no K and V of layers that share, no cache scales.
#[test]
fn saved_by_transformers() {
    let files = Files::random();
    let mut saved = files.clone();
    let mut text = files.config["text_config"].clone();
    let object = text.as_object_mut().unwrap();
    object.retain(|name, _| {
        !["global_head_dim", "bos_token_id", "eos_token_id", "pad_token_id"].contains(&name.as_str())
    });
    object.insert("per_layer_config".into(), json!({"04": {"head_dim": 64}, "09": {"head_dim": 64}}));
    text["quantization_config"] =
        serde_json::from_str(&files.config["quantization_config"].to_string().replace("language_model", "model"))
            .unwrap();
    saved.config = text;
    saved.tensors.retain(|(name, ..)| {
        let shared = (5..10).any(|i| name.contains(&format!("layers.{i}.")));
        let unused = shared && ["k_proj", "v_proj", "k_norm"].iter().any(|p| name.contains(p));
        !(unused || name.ends_with("_cache_scale"))
    });
    saved.tensors.iter_mut().for_each(|t| t.0 = t.0.replace(NESTED, TEXT_ONLY));
    let [a, b] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    files.write(a.path());
    saved.write(b.path());
    let (published, mut saved) = (open(a.path()), open(b.path()));
    assert_eq!(published.config.layers, saved.config.layers);
    assert_eq!(saved.prefix, TEXT_ONLY);
    assert_eq!((saved.config.bos, &saved.config.eos[..], saved.config.pad), (Some(2), &[1][..], Some(0)));
    for (layer, published) in saved.weights.layers.iter_mut().zip(&published.weights.layers) {
        let (Some(kv), Some(published)) = (&mut layer.kv, &published.kv) else { continue };
        assert_eq!([kv.k_step, kv.v_step], [0.0; 2]);
        (kv.k_step, kv.v_step) = (published.k_step, published.v_step);
    }
    assert_eq!(contents(&published), contents(&saved));
}

/// The rest of the family: no sharing, no per-layer embeddings, several KV heads, other widths and patterns.
#[test]
fn other_members_of_the_family() {
    let tiny = || Shape::named("tiny-e4b").unwrap();
    let shapes = [
        Shape { num_kv_shared_layers: 0, ..tiny() },
        Shape { hidden_size_per_layer_input: 0, ..tiny() },
        Shape { num_key_value_heads: 4, head_dim: 48, global_head_dim: 16, ..tiny() },
        Shape { layer_types: vec![Kind::Full; 3], num_kv_shared_layers: 2, use_double_wide_mlp: true, ..tiny() },
        Shape { layer_types: vec![Kind::Full], num_kv_shared_layers: 0, vocab_size: 513, ..tiny() },
        Shape { bits: vec![("self_attn.[qo]".into(), 2), ("embed".into(), 8), ("down|lm_head".into(), 8)], ..tiny() },
    ];
    for shape in shapes {
        let dir = tempfile::tempdir().unwrap();
        synth::write(&shape, 3, dir.path()).unwrap_or_else(|e| panic!("{e}"));
        let checkpoint = open(dir.path());
        assert!(contents(&checkpoint).iter().all(|x| x.is_finite()));
        assert_eq!(checkpoint.weights.ple.is_some(), shape.hidden_size_per_layer_input > 0);
        Report::new(Summary::new(&checkpoint.config, checkpoint.prefix), checkpoint.file_bytes, 100, None).to_string();
    }
}

/// As the reference searches: leftmost match first, then the order of the patterns, then the default.
#[test]
fn widths_follow_the_patterns() {
    let widths = |patterns: &[(&str, u32)]| {
        let bits = patterns.iter().map(|&(pattern, bits)| (pattern.to_owned(), bits)).collect();
        let shape = Shape { bits, ..Shape::named("tiny-e2b").unwrap() };
        Config::parse(&shape.config_json().to_string()).unwrap_or_else(|e| panic!("{e}")).widths
    };
    let gate = "model.language_model.layers.10.mlp.gate_proj";
    let of = |patterns: &[(&str, u32)]| widths(patterns).of(gate).get();
    assert_eq!(of(&[]), 4);
    assert_eq!(of(&[("up_proj", 2)]), 4);
    assert_eq!(of(&[(r"layers\.1", 8), (r"layers\.", 2)]), 8);
    assert_eq!(of(&[(r"layers\.1\.", 8), (r"layers\.", 2)]), 2);
    assert_eq!(of(&[("gate_proj", 8), ("mlp", 2)]), 2);
    assert_eq!(of(&[("l|mlp", 8), (r"language_model\.(layers)\.(\d+)", 2)]), 8);
    assert_eq!(of(&[(r"^language_model\.layers", 2)]), 2);
    assert_eq!(of(&[(r"^model\.language_model\.layers", 2), ("^language_model", 8)]), 2);
    // A file that lists every module of E4B.
    let patterns: Vec<String> =
        (0..42).flat_map(|i| (0..9).map(move |j| format!(r"^model\.language_model\.layers\.{i}\.p{j}_\d+$"))).collect();
    let all: Vec<(&str, u32)> = patterns.iter().map(|pattern| (pattern.as_str(), 2)).collect();
    assert_eq!(widths(&all).of("model.language_model.layers.41.p8_123").get(), 2);
    assert_eq!(widths(&all).of("model.language_model.layers.42.p8_123").get(), 4);
}

/// The size that is served. Run it with `--release -- --ignored --nocapture` for the times.
#[test]
#[ignore = "writes 2.2 GB"]
fn a_checkpoint_of_the_published_size() {
    let dir = tempfile::tempdir().unwrap();
    let start = std::time::Instant::now();
    synth::write(&Shape::named("e2b").unwrap(), 1, dir.path()).unwrap();
    println!("written in {:?}", start.elapsed());
    let start = std::time::Instant::now();
    let checkpoint = open(dir.path());
    println!("opened in {:?}", start.elapsed());
    let report = Report::new(Summary::new(&checkpoint.config, NESTED), checkpoint.file_bytes, 4096, None);
    println!("{report}");
    // The published file has vision and audio as well.
    assert!((2_100_000_000..2_458_111_846).contains(&report.file_bytes), "{}", report.file_bytes);
}

#[test]
fn synthetic_checkpoints_repeat() {
    let [a, b, c] = [11, 11, 12].map(|seed| {
        let dir = tempfile::tempdir().unwrap();
        synth::write(&Shape::named("tiny-e2b").unwrap(), seed, dir.path()).unwrap();
        fs::read(dir.path().join("model.safetensors")).unwrap()
    });
    assert!(a == b && a != c);
}

/// MODEL.md's table, from formulas alone.
#[test]
fn summaries_of_the_published_shapes() {
    struct Row {
        shape: &'static str,
        weights_mb: f64,
        macs: f64,
        prompt: f64,
        owning: f64,
        all: f64,
        tables_mb: [f64; 3],
        ple_row: u64,
        kv: [u64; 2],
    }
    let rows = [
        Row {
            shape: "e2b",
            weights_mb: 790.0,
            macs: 2.28,
            prompt: 0.53,
            owning: 0.58,
            all: 1.88,
            tables_mb: [101.0, 1174.0, 37.75],
            ple_row: 4480 + 140,
            kv: [3072, 3_145_728],
        },
        Row {
            shape: "e4b",
            weights_mb: 2223.0,
            macs: 4.64,
            prompt: 2.20,
            owning: 2.31,
            all: 3.97,
            tables_mb: [168.0, 705.0, 45.1],
            ple_row: 2688 + 168,
            kv: [8192, 10_485_760],
        },
    ];
    let near = |what: &str, got: u64, unit: f64, want: f64| {
        let got = got as f64 / unit;
        assert!((got / want - 1.0).abs() < 0.01, "{what}: {got}, the table says {want}");
    };
    for row in rows {
        let config = Config::parse(&Shape::named(row.shape).unwrap().config_json().to_string()).unwrap();
        let s = Summary::new(&config, NESTED);
        near("weights per token", s.weights_per_token, 1e6, row.weights_mb);
        near("multiply-adds per token", s.macs_per_token, 1e9, row.macs);
        near("per prompt token", s.macs_prompt, 1e9, row.prompt);
        near("in the owning layers", s.macs_prompt_owning_layers, 1e9, row.owning);
        near("in all layers", s.macs_prompt_all_layers, 1e9, row.all);
        let tables = [s.embed_table, s.ple_table, s.table_scales];
        tables.iter().zip(row.tables_mb).for_each(|(&got, want)| near("tables", got, 1e6, want));
        assert_eq!(s.ple_row, row.ple_row);
        assert_eq!([s.kv_full_per_token, s.kv_sliding_per_token * 512], row.kv);
        let memory = s.memory(4096);
        assert_eq!(memory.kv, 4096 * row.kv[0] + row.kv[1]);
        assert_eq!(memory.total, memory.weights + memory.kv + memory.activations);
        let page = Report::new(s, 0, 4096, Some(8 << 30)).to_string();
        assert!(page.contains("enough") && page.contains("mlp, layers 0-"), "{page}");
        println!("{page}");
    }
}

/// Opens `dir` and expects a refusal that says all of `words`.
fn refused(what: &str, dir: &Path, words: &[&str]) {
    let message = match Checkpoint::open(dir) {
        Ok(_) => panic!("{what}: was accepted"),
        Err(e) => e.to_string(),
    };
    for word in words {
        assert!(message.contains(word), "{what}: `{word}` is missing in: {message}");
    }
    assert!(message.len() < 1000 && !message.contains('\n'), "{what}: {message}");
    println!("{message}");
}

const MODEL: &str = "model.safetensors";

/// Damages that are made to the configuration: a pointer, the new value, what the message has to say.
#[test]
fn other_configurations_are_refused() {
    let files = Files::random();
    let quant = "/quantization_config/quant_method";
    let cases: Vec<(&str, Value, Vec<&str>)> = vec![
        (quant, json!("compressed-tensors"), vec!["quantization_config.quant_method", "gemma", "compressed-tensors"]),
        (quant, json!("bitsandbytes"), vec!["gemma", "bitsandbytes"]),
        ("/text_config/hidden_size_per_layer_input", json!(65_552), vec!["hidden_size_per_layer_input", "65536"]),
        (quant, json!("gptq"), vec!["gemma", "gptq"]),
        ("/quantization_config", Value::Null, vec!["quant_method", "gemma", "not quantized"]),
        ("/quantization_config/num_bits", json!(3), vec!["quantization_config.num_bits", "2, 4 or 8", "3"]),
        ("/quantization_config/quantize_embeddings", json!(false), vec!["quantize_embeddings", "true", "false"]),
        ("/quantization_config/module_quant_configs", json!({"a(": {"num_bits": 4}}), vec!["a(", "regular expression"]),
        ("/quantization_config/module_quant_configs", json!({"x{999}{999}{999}": {}}), vec!["x{999}", "compile"]),
        ("/quantization_config/module_quant_configs", json!({"a": {"num_bits": 5}}), vec!["configs.a.num_bits", "5"]),
        ("/text_config/enable_moe_block", json!(true), vec!["text_config.enable_moe_block", "mixtures of experts"]),
        ("/text_config/num_experts", json!(8), vec!["num_experts", "mixtures of experts", "8"]),
        ("/text_config/attention_k_eq_v", json!(true), vec!["attention_k_eq_v", "false", "true"]),
        ("/text_config/attention_bias", json!(true), vec!["attention_bias"]),
        ("/text_config/hidden_activation", json!("silu"), vec!["gelu_pytorch_tanh", "silu"]),
        ("/model_type", json!("gemma3"), vec!["model_type", "gemma4", "gemma3"]),
        ("/text_config/model_type", json!("gemma3_text"), vec!["text_config.model_type", "gemma4_text"]),
        ("/text_config", Value::Null, vec!["text_config", "nothing"]),
        ("/text_config/hidden_size", json!(100), vec!["text_config.hidden_size", "multiple of 16", "100"]),
        ("/text_config/hidden_size", json!(1 << 20), vec!["hidden_size", "65536", "1048576"]),
        ("/text_config/hidden_size", json!(-16), vec!["hidden_size", "-16"]),
        ("/text_config/num_hidden_layers", json!(1e9), vec!["num_hidden_layers", "512"]),
        ("/text_config/intermediate_size", json!(40_000), vec!["layer 5", "MLP width of at most 65536", "80000"]),
        ("/text_config/num_key_value_heads", json!(3), vec!["layer 0", "divides the 4 heads", "3"]),
        ("/text_config/num_kv_shared_layers", json!(6), vec!["layer 4", "full_attention layer below layer 4", "none"]),
        ("/text_config/layer_types/2", json!("chunked"), vec!["layer_types[2]", "sliding_attention", "chunked"]),
        ("/text_config/layer_types", json!([]), vec!["layer_types", "a list of 10"]),
        ("/text_config/vocab_size", json!("512"), vec!["text_config.vocab_size", "integer"]),
        ("/text_config/vocab_size_per_layer_input", json!(100), vec!["vocab_size_per_layer_input", "512", "100"]),
        ("/text_config/rms_norm_eps", json!(0), vec!["rms_norm_eps"]),
        ("/text_config/final_logit_softcapping", json!(0), vec!["final_logit_softcapping"]),
        (
            "/text_config/rope_parameters/full_attention/rope_type",
            json!("yarn"),
            vec!["full_attention.rope_type", "yarn"],
        ),
        ("/eos_token_id", json!([1, 512]), vec!["eos_token_id", "below 512"]),
        // The file has 4 bits there.
        (
            "/quantization_config/module_quant_configs",
            json!({"^lm_head$": {"num_bits": 2}, "embed_tokens$": {"num_bits": 2}, "per_layer_(i|p)": {"num_bits": 8}, "q_proj": {"num_bits": 2}}),
            vec![
                MODEL,
                "layers.0.self_attn.q_proj.weight",
                "a width of 2 bits by quantization_config",
                "a width of 4 bits",
            ],
        ),
        (
            "/text_config/intermediate_size",
            json!(512),
            vec![MODEL, "layers.0.mlp.gate_proj.weight", "U8 [512, 64]", "U8 [256, 64]"],
        ),
    ];
    for (pointer, value, mut words) in cases {
        let dir = tempfile::tempdir().unwrap();
        let mut damaged = files.clone();
        match damaged.config.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => damaged.config["text_config"][pointer.rsplit('/').next().unwrap()] = value,
        }
        damaged.write(dir.path());
        if !words.contains(&MODEL) {
            words.push("config.json");
        }
        refused(pointer, dir.path(), &words);
    }
}

/// Damages that are made to one tensor.
#[test]
fn damaged_tensors_are_refused() {
    let files = Files::random();
    type Damage = fn(&mut (String, Value, Vec<u8>));
    fn element<const I: usize>(tensor: &mut (String, Value, Vec<u8>), x: f32) {
        tensor.2[4 * I..4 * I + 4].copy_from_slice(&x.to_le_bytes());
    }
    let cases: [(&str, Damage, &[&str]); 17] = [
        ("layers.3.self_attn.o_proj.weight_scale", |t| element::<1>(t, f32::NAN), &["above 0", "NaN at element 1"]),
        ("layers.3.self_attn.o_proj.weight_scale", |t| element::<0>(t, 0.0), &["above 0", "0 at element 0"]),
        ("layers.3.self_attn.o_proj.weight_scale", |t| element::<5>(t, -1.5), &["above 0", "-1.5 at element 5"]),
        ("layers.9.mlp.up_proj.weight_scale", |t| element::<7>(t, f32::INFINITY), &["finite", "inf at element 7"]),
        ("embed_tokens.embedding_scale", |t| element::<511>(t, f32::NAN), &["finite", "NaN at element 511"]),
        ("embed_tokens_per_layer.embedding_scale", |t| element::<5119>(t, 0.0), &["above 0", "0 at element 5119"]),
        ("embed_tokens_per_layer.embedding_scale", |t| element::<1024>(t, -0.0), &["above 0", "-0 at element 1024"]),
        ("layers.2.mlp.up_proj.input_activation_scale", |t| element::<0>(t, -1.0), &["0 or above", "-1"]),
        ("layers.2.mlp.up_proj.output_activation_scale", |t| element::<0>(t, f32::NAN), &["0 or above", "NaN"]),
        ("layers.1.self_attn.v_cache_scale", |t| element::<0>(t, f32::NEG_INFINITY), &["0 or above", "-inf"]),
        (
            "layers.4.input_layernorm.weight",
            |t| t.2[6..8].copy_from_slice(&[0xc0, 0x7f]),
            &["finite", "NaN at element 3"],
        ),
        ("per_layer_model_projection.weight", |t| t.2[..2].copy_from_slice(&[0x80, 0x7f]), &["finite", "inf"]),
        ("layers.0.self_attn.q_norm.weight", |t| t.0.push('x'), &["a tensor of this name", "none"]),
        ("layers.7.mlp.gate_proj.input_activation_scale", |t| t.0.push('x'), &["a tensor of this name", "none"]),
        ("layers.0.mlp.down_proj.weight", |t| t.1["shape"] = json!([256, 64]), &["U8 [128, 128]", "U8 [256, 64]"]),
        ("layers.0.mlp.down_proj.weight", |t| t.1["dtype"] = json!("I8"), &["U8 [128, 128]", "I8 [128, 128]"]),
        ("layers.5.layer_scalar", |t| t.1["dtype"] = json!("F16"), &["F32 or BF16 [1]", "F16 [1]"]),
    ];
    for (name, damage, words) in cases {
        let dir = tempfile::tempdir().unwrap();
        let mut damaged = files.clone();
        damage(damaged.tensor(&format!("{NESTED}{name}")));
        damaged.write(dir.path());
        refused(name, dir.path(), &[words, &[MODEL, name]].concat());
    }
    // What is not used may be damaged or missing: K of a layer that reads another's cache.
    let dir = tempfile::tempdir().unwrap();
    let mut damaged = files;
    element::<0>(damaged.tensor(&format!("{NESTED}layers.7.self_attn.k_proj.weight_scale")), f32::NAN);
    damaged.tensors.retain(|t| !t.0.contains("layers.8.self_attn.v_proj"));
    damaged.write(dir.path());
    open(dir.path());
}

/// Damages that are made to the header or the file around it.
#[test]
fn damaged_files_are_refused() {
    let files = Files::random();
    let header = files.header().to_string();
    let first = files.tensors[0].0.clone();
    let end = files.tensors[0].2.len();
    let edit = |from: &str, to: &str| {
        assert!(header.contains(from), "{from} is not in the header");
        header.replacen(from, to, 1)
    };
    let offsets = format!("\"data_offsets\":[0,{end}]");
    let cases: Vec<(&str, String, Vec<&str>)> = vec![
        ("broken JSON", header[..header.len() - 1].to_owned(), vec!["header", "JSON"]),
        ("not an object", "[1]".into(), vec!["header", "an object of tensors"]),
        ("not UTF-8 text", "\u{0}\u{1}".into(), vec!["header", "JSON"]),
        ("trailing text", format!("{header}{{}}"), vec!["header", "JSON"]),
        ("deep nesting", format!("{{\"__metadata__\":{}", "[".repeat(100_000)), vec!["header", "JSON"]),
        ("reversed", edit(&offsets, "\"data_offsets\":[9,4]"), vec![&first, "in order", "[9, 4]"]),
        ("out of range", edit(&offsets, "\"data_offsets\":[0,99999999]"), vec![&first, "bytes of data", "99999999"]),
        ("huge", edit(&offsets, "\"data_offsets\":[0,18446744073709551615]"), vec![&first, "18446744073709551615"]),
        ("negative", edit(&offsets, "\"data_offsets\":[-1,4]"), vec![&first, "header"]),
        ("three offsets", edit(&offsets, "\"data_offsets\":[0,2,4]"), vec![&first, "header"]),
        ("unknown dtype", edit("\"dtype\":\"F32\"", "\"dtype\":\"F31\""), vec![&first, "dtype", "F31"]),
        ("another key", edit("\"dtype\":\"F32\"", "\"dtype\":\"F32\",\"x\":1"), vec![&first, "unknown field"]),
        ("no shape", edit("\"shape\"", "\"form\""), vec![&first, "header"]),
        ("too many dimensions", edit("\"shape\":[", "\"shape\":[1,1,1,1,1,1,1,1,1,"), vec![&first, "8 dimensions"]),
        (
            "shape too large",
            edit("\"shape\":[", "\"shape\":[4294967296,4294967296,4294967296,"),
            vec![&first, "as many bytes"],
        ),
        (
            "a name twice",
            header.replacen(&files.tensors[1].0, &first, 1),
            vec![&first, "one tensor of this name", "two"],
        ),
        ("a long name", header.replacen(&first, &"n".repeat(10_000), 1), vec!["512 bytes"]),
    ];
    for (what, header, words) in cases {
        let dir = tempfile::tempdir().unwrap();
        files.write_with_header(dir.path(), &header);
        refused(what, dir.path(), &[&words[..], &[MODEL]].concat());
    }

    let dir = tempfile::tempdir().unwrap();
    files.write(dir.path());
    let path = dir.path().join(MODEL);
    let whole = fs::read(&path).unwrap();
    let with_length = |length: u64| [&length.to_le_bytes(), &whole[8..]].concat();
    let last = &files.tensors.last().unwrap().0;
    let beyond = (whole.len() as u64 - 7).to_string();
    let cases: Vec<(&str, Vec<u8>, Vec<&str>)> = vec![
        ("truncated data", whole[..whole.len() - 1].to_vec(), vec![last, "truncated"]),
        ("truncated header", whole[..100].to_vec(), vec!["header length", "at most 92", "truncated"]),
        ("truncated length", whole[..7].to_vec(), vec!["at least 8 bytes", "7 bytes"]),
        ("empty", vec![], vec!["empty"]),
        ("more data", [&whole[..], &[0]].concat(), vec!["bytes of data"]),
        ("header longer than the file", with_length(whole.len() as u64 - 7), vec!["header length", &beyond]),
        ("header length 2^64-1", with_length(u64::MAX), vec!["header length", "18446744073709551615"]),
        ("header length 0", with_length(0), vec!["header", "JSON"]),
    ];
    for (what, bytes, words) in cases {
        fs::write(&path, bytes).unwrap();
        refused(what, dir.path(), &[&words[..], &[MODEL]].concat());
    }
}

/// Offsets that overlap, or leave a gap, with lengths that fit their shapes.
#[test]
fn overlaps_and_gaps_are_refused() {
    let files = Files::random();
    for (moved, word) in [(-1i64, "overlap"), (1, "gap")] {
        let mut header = files.header();
        let offsets = &mut header[&files.tensors[20].0]["data_offsets"];
        let at = |i: usize| offsets[i].as_i64().unwrap() + moved;
        *offsets = json!([at(0), at(1)]);
        let dir = tempfile::tempdir().unwrap();
        files.write_with_header(dir.path(), &header.to_string());
        refused(word, dir.path(), &[MODEL, &files.tensors[20].0, "offsets that continue at", word]);
    }
}

#[test]
fn missing_files_are_refused() {
    let files = Files::random();
    let dir = tempfile::tempdir().unwrap();
    refused("empty directory", dir.path(), &["config.json", "cannot open"]);
    refused("no directory", &dir.path().join("nowhere"), &["nowhere", "cannot open"]);
    files.write(dir.path());
    refused("a file", &dir.path().join(MODEL), &[MODEL, "a directory"]);
    fs::write(dir.path().join("generation_config.json"), "{\"temperature\": -1}").unwrap();
    refused("temperature", dir.path(), &["generation_config.json", "temperature", "-1"]);
    fs::remove_file(dir.path().join("generation_config.json")).unwrap();
    open(dir.path());
    fs::write(dir.path().join("config.json"), "{\"model_type\": ").unwrap();
    refused("broken config", dir.path(), &["config.json", "JSON"]);
    files.write(dir.path());
    fs::remove_file(dir.path().join(MODEL)).unwrap();
    refused("no model file", dir.path(), &[MODEL, "cannot open"]);
    fs::create_dir(dir.path().join(MODEL)).unwrap();
    refused("a directory as model file", dir.path(), &[MODEL, "regular file"]);
    fs::remove_dir(dir.path().join(MODEL)).unwrap();

    let names = files.write_shards(dir.path());
    open(dir.path());
    fs::rename(dir.path().join(names[1]), dir.path().join("elsewhere")).unwrap();
    refused("a shard is missing", dir.path(), &[names[1], "cannot open"]);
    fs::copy(dir.path().join(names[0]), dir.path().join(names[1])).unwrap();
    refused("a shard lacks a tensor", dir.path(), &[names[1], "no such tensor"]);
    let index = dir.path().join("model.safetensors.index.json");
    for name in ["../x.safetensors", "/etc/passwd", "a/b", "..", "", ".hidden", "a\u{0}b"] {
        fs::write(&index, json!({"weight_map": {"t": name}}).to_string()).unwrap();
        refused(name, dir.path(), &["model.safetensors.index.json", "weight_map.t", "plain name"]);
    }
    fs::write(&index, "{\"weight_map\": 1}").unwrap();
    refused("broken index", dir.path(), &["model.safetensors.index.json", "weight_map"]);
}
