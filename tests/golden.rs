//! The engine against the reference implementation: mean KL(reference ‖ engine) over the prompt positions, for every
//! instruction set that this CPU has. Bounds and their reason: `../shared/README.md`.

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use emberd::engine::kv_cache::KvKind;
use emberd::engine::runner::{Options, Runner};
use emberd::kernels;
use emberd::stats::Projection;
use safetensors::SafeTensors;

const FLOAT_BOUND: f64 = 0.010;
const INT8_BOUND: f64 = 0.015;

struct Golden {
    bytes: Vec<u8>,
}

impl Golden {
    fn read(file: &Path) -> Golden {
        Golden { bytes: std::fs::read(file).expect("golden.safetensors") }
    }

    fn f32(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.bytes).expect("safetensors");
        let tensor = file.tensor(name).expect(name);
        assert_eq!(tensor.dtype(), safetensors::Dtype::F32);
        tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        let file = SafeTensors::deserialize(&self.bytes).expect("safetensors");
        let tensor = file.tensor(name).expect(name);
        tensor.data().chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let total: f64 = logits.iter().map(|&l| (l as f64 - max).exp()).sum();
    logits.iter().map(|&l| l as f64 - max - total.ln()).collect()
}

/// Mean KL divergence of the engine's distributions from the reference's, in nats.
fn mean_kl(reference: &[f32], engine: &[f32], vocab: usize) -> f64 {
    assert_eq!(reference.len(), engine.len());
    let rows = reference.chunks_exact(vocab).zip(engine.chunks_exact(vocab));
    let count = rows.len() as f64;
    rows.map(|(r, e)| {
        let (r, e) = (log_softmax(r), log_softmax(e));
        r.iter().zip(&e).map(|(r, e)| r.exp() * (r - e)).sum::<f64>()
    })
    .sum::<f64>()
        / count
}

fn runner(dir: &Path, kv: KvKind, kernels: &str, threads: usize) -> Runner {
    let options = Options { kv, kernels: Some(kernels.into()), threads, ..Options::default() };
    Runner::load(dir, &options).expect("a golden checkpoint loads")
}

fn logits(dir: &Path, kv: KvKind, kernels: &str, threads: usize, batch: usize, ids: &[u32]) -> Vec<f32> {
    let mut all = Vec::new();
    runner(dir, kv, kernels, threads).logits(ids, batch, &mut |rows| all.extend_from_slice(rows)).expect("logits");
    all
}

/// All checkpoints with golden data: the bundled model, `tiny-e2b`, `tiny-e4b`, and whatever else somebody put beside these.
fn checkpoints() -> Vec<(PathBuf, Golden)> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    if let Some(shared) = common::shared() {
        let dirs = std::fs::read_dir(shared.join("golden")).expect("golden/");
        files.extend(dirs.map(|dir| dir.expect("directory entry").path().join("golden.safetensors")));
        files.retain(|file| file.is_file());
        files.sort();
        assert!(files.len() >= 2, "golden checkpoints: {files:?}");
    }
    let beside = |file: PathBuf| (file.parent().expect("a directory").to_path_buf(), Golden::read(&file));
    let mut all: Vec<_> = files.into_iter().map(beside).collect();
    all.push((
        repository.join("models/ember-home"),
        Golden::read(&repository.join("tests/data/ember-home.safetensors")),
    ));
    all
}

#[test]
fn logits_equal_the_reference_on_every_instruction_set() {
    for (dir, golden) in checkpoints() {
        let ids = golden.ids("prompt_ids");
        for set in kernels::available() {
            let name = set.name();
            let float = logits(&dir, KvKind::F32, name, 2, 16, &ids);
            let vocab = float.len() / ids.len();
            for reference in ["logits_f32_kv", "logits_f64_kv"] {
                let kl = mean_kl(&golden.f32(reference), &float, vocab);
                println!("{} {name} f32 cache, {reference}: mean KL {kl:.5}", dir.display());
                assert!(kl <= FLOAT_BOUND, "{} {name} {reference}: mean KL {kl}", dir.display());
            }
            let int8 = logits(&dir, KvKind::Int8, name, 2, 16, &ids);
            let kl = mean_kl(&golden.f32("logits_int8_kv"), &int8, vocab);
            println!("{} {name} int8 cache: mean KL {kl:.5}", dir.display());
            assert!(kl <= INT8_BOUND, "{} {name} int8 cache: mean KL {kl}", dir.display());
        }
    }
}

#[test]
fn batches_threads_and_instruction_sets_change_nothing() {
    for (dir, golden) in checkpoints() {
        let ids = golden.ids("prompt_ids");
        for kv in [KvKind::F32, KvKind::Int8] {
            let one_by_one = logits(&dir, kv, "scalar", 1, 1, &ids);
            for set in kernels::available() {
                for (threads, batch) in [(2, 7), (3, 128)] {
                    let other = logits(&dir, kv, set.name(), threads, batch, &ids);
                    assert!(one_by_one == other, "{} {kv:?} {} {threads} {batch}", dir.display(), set.name());
                }
            }
        }
    }
}

/// Greedy continuation through the serving path: prefill in batches (upper layers for the last token only), then one
/// token at a time. Compared by the reference's own logits at each step while the ids agree.
#[test]
fn the_serving_path_equals_the_reference_step_by_step() {
    for (dir, golden) in checkpoints() {
        let prompt = golden.ids("prompt_ids");
        for (kv, label, bound) in [(KvKind::F32, "f32_kv", FLOAT_BOUND), (KvKind::Int8, "int8_kv", INT8_BOUND)] {
            let (ids, want) =
                (golden.ids(&format!("greedy_ids_{label}")), golden.f32(&format!("greedy_logits_{label}")));
            let vocab = want.len() / ids.len();
            let mut runner = runner(&dir, kv, "scalar", 2);
            let (mut got, mut tokens) = (Vec::new(), prompt.clone());
            for &id in &ids {
                let logits =
                    runner.run(&tokens, &mut |_| ControlFlow::Continue(())).expect("runs").expect("not cancelled");
                got.extend_from_slice(logits);
                tokens = vec![id]; // the reference's choice, so that one different tie does not end the comparison
            }
            let kl = mean_kl(&want, &got, vocab);
            println!("{} {label} over {} steps: mean KL {kl:.5}", dir.display(), ids.len());
            assert!(kl <= bound, "{} {label}: mean KL {kl}", dir.display());
        }
    }
}

/// Prefill without logits must leave the same caches as running every token through all layers.
#[test]
fn prefill_equals_token_by_token() {
    for (dir, golden) in checkpoints() {
        let ids = golden.ids("prompt_ids");
        for kv in [KvKind::F32, KvKind::Int8] {
            let all = logits(&dir, kv, "scalar", 1, 1, &ids);
            let vocab = all.len() / ids.len();
            for len in [1, 2, 15, 16, 17, 33, ids.len()] {
                let mut runner = runner(&dir, kv, "scalar", 1);
                let last = runner.run(&ids[..len], &mut |_| ControlFlow::Continue(())).expect("runs").expect("logits");
                assert!(*last == all[(len - 1) * vocab..len * vocab], "{} {kv:?} after {len} tokens", dir.display());
            }
        }
    }
}

/// Prompt tokens before the last run only the layers that own a cache, and of the last owning one only K and V.
#[test]
fn prompt_tokens_skip_the_upper_layers() {
    for (dir, golden) in checkpoints() {
        let ids = golden.ids("prompt_ids");
        let mut runner = runner(&dir, KvKind::Int8, "scalar", 1);
        runner.run(&ids, &mut |_| ControlFlow::Continue(())).expect("runs");
        let (tokens, layers) = (ids.len() as u64, runner.config().layers.len() as u64);
        let owners = runner.config().layers.iter().filter(|layer| layer.owns_cache).count() as u64;
        let stats = &runner.compute().stats;
        for projection in [Projection::Key, Projection::Value] {
            assert_eq!(stats.vectors(projection), tokens * owners, "{projection:?}");
        }
        use Projection::*;
        for projection in [Query, Output, Gate, Up, Down, PerLayerGate, PerLayerProjection] {
            let want = tokens * (owners - 1) + (layers - owners + 1);
            assert_eq!(stats.vectors(projection), want, "{projection:?}");
        }
        assert_eq!(stats.vectors(Projection::Head), 1);
    }
}

/// The ring of a sliding layer wraps after the window and a batch: 300 tokens go round it twice.
#[test]
fn long_prompts_do_not_depend_on_where_the_ring_wraps() {
    for (dir, _) in checkpoints() {
        let vocab = runner(&dir, KvKind::Int8, "scalar", 1).config().vocab_size as u32;
        let ids: Vec<u32> = (0..300u32).map(|i| (i * 7919 + 13) % vocab).collect();
        let best = kernels::available()[0].name();
        let one_by_one = logits(&dir, KvKind::Int8, best, 2, 1, &ids);
        for batch in [23, 128] {
            assert!(one_by_one == logits(&dir, KvKind::Int8, best, 2, batch, &ids), "{} {batch}", dir.display());
        }
    }
}

/// Guesses that are checked get the logits of tokens that are run one by one, and leave nothing behind, wherever the ring is.
#[test]
fn guesses_are_checked_and_forgotten() {
    for (dir, _) in checkpoints() {
        let best = kernels::available()[0].name();
        let mut runner = runner(&dir, KvKind::Int8, best, 2);
        let vocab = runner.config().vocab_size;
        let ids: Vec<u32> = (0..300u32).map(|i| (i * 7919 + 13) % vocab as u32).collect();
        let one_by_one = logits(&dir, KvKind::Int8, best, 2, 1, &ids);
        let mut at = 0;
        for (prompt, guesses) in [(5, 2), (120, 3), (31, 8), (90, 9), (38, 1)] {
            runner.run(&ids[at..at + prompt], &mut |_| ControlFlow::Continue(())).expect("runs");
            at += prompt;
            let wrong: Vec<u32> = ids[at..at + guesses].iter().map(|id| (id + 1) % vocab as u32).collect();
            runner.verify(&wrong).expect("runs");
            let checked = runner.verify(&ids[at..at + guesses]).expect("runs");
            assert!(*checked == one_by_one[at * vocab..(at + guesses) * vocab], "{} {guesses} at {at}", dir.display());
            assert_eq!(runner.position(), at);
        }
    }
}
