//! `emberd pack` and `emberd verify`: one file that is the same model, and damaged ones that are refused in words.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::binary::{Served, emberd, run, stdout};
use emberd::engine::bytes::Bytes;
use emberd::engine::checkpoint::Checkpoint;
use emberd::engine::checkpoint::source::{ALIGN, Source};
use emberd::engine::generate::Engine;
use emberd::engine::grammar::Grammars;
use emberd::engine::pack;
use emberd::engine::runner::{Options, Runner};
use emberd::engine::tokenizer::Tokenizer;

fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ember-home")
}

/// A random model of the family's form, its directory and its packed file.
fn packed(dir: &Path) -> (PathBuf, PathBuf) {
    let (model, file) = (dir.join("tiny-e2b"), dir.join("tiny-e2b.ember"));
    stdout(run(emberd().args(["debug", "synth", "--shape", "tiny-e2b", "--out"]).arg(&model)));
    stdout(run(emberd().arg("pack").args([&model, &file])));
    (model, file)
}

fn logits(model: &Path) -> Vec<u32> {
    let mut runner = Runner::load(model, &Options { threads: 1, ..Options::default() }).unwrap();
    let mut bits = Vec::new();
    let tokens: Vec<u32> = (107..147).collect();
    runner.logits(&tokens, 16, &mut |batch| bits.extend(batch.iter().map(|x| x.to_bits()))).unwrap();
    bits
}

#[test]
fn a_packed_model_is_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let (model, file) = packed(dir.path());
    assert_eq!(logits(&model), logits(&file));
    let (a, b) = (Checkpoint::open(&model).unwrap(), Checkpoint::open(&file).unwrap());
    assert_eq!((a.config.layers.len(), &a.generation), (b.config.layers.len(), &b.generation));

    let again = dir.path().join("again.ember");
    stdout(run(emberd().arg("pack").args([&model, &again])));
    assert!(fs::read(&file).unwrap() == fs::read(&again).unwrap(), "packing again gave other bytes");
    assert!(stdout(run(emberd().arg("verify").arg(&file))).contains("SHA-256"));
}

/// A second opinion on the file, by the crate that defines the format.
#[test]
fn a_packed_file_is_a_safetensors_file_with_its_large_tensors_at_pages() {
    let dir = tempfile::tempdir().unwrap();
    let (model, file) = packed(dir.path());
    let bytes = fs::read(&file).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (mut at_pages, mut last_hot, mut first_table) = (0, 0, usize::MAX);
    for (name, view) in parsed.iter() {
        let start = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
        if view.data().len() as u64 >= ALIGN && !name.starts_with("ember.") {
            assert!((start as u64).is_multiple_of(ALIGN), "{name} begins at {start}");
            at_pages += 1;
        }
        match name.contains("embed_tokens") {
            true => first_table = first_table.min(start),
            false if name.starts_with("model.") => last_hot = last_hot.max(start),
            false => {}
        }
    }
    assert!(at_pages > 20, "{at_pages} tensors of a page or more");
    assert!(last_hot < first_table, "tables come last");
    // Rows that fill chunks take turns, four at a time; the directory has them one after the other.
    let published = fs::read(model.join("model.safetensors")).unwrap();
    let published = safetensors::SafeTensors::deserialize(&published).unwrap();
    let mut in_turns = 0;
    for (name, view) in published
        .iter()
        .filter(|(name, view)| name.ends_with("_proj.weight") && view.shape()[0] % 4 == 0 && view.shape()[1] % 64 == 0)
    {
        let Ok(packed) = parsed.tensor(name) else { continue };
        let row = view.shape()[1];
        assert_eq!(packed.data()[64..128], view.data()[row..row + 64], "{name}");
        in_turns += 1;
    }
    assert!(in_turns > 3, "{in_turns} projections in turns");
    let config = Checkpoint::open(&file).unwrap().config;
    let sharing = config.layers.iter().position(|layer| !layer.owns_cache).expect("a layer that shares a cache");
    let names = parsed.names();
    let has = |part: &str| names.iter().any(|name| name.contains(part));
    assert!(has("layers.0.self_attn.k_proj") && !has(&format!("layers.{sharing}.self_attn.k_")));
    assert!(has(&format!("layers.{sharing}.self_attn.q_proj")) && has("lm_head.weight"));
}

#[test]
fn tokenizer_and_template_come_along() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("home.ember");
    pack::pack(&home(), &file, &mut |_, _| {}).unwrap();
    let (a, b) = (Source::open(&home()).unwrap(), Source::open(&file).unwrap());
    let (from_json, in_place) = (pack::tokenizer(&a).unwrap(), pack::tokenizer(&b).unwrap());
    assert_eq!(from_json.vocab_size(), in_place.vocab_size());
    for text in ["dim the hall lights to 30", "  ▁ zwei  Leerzeichen", "Übergröße 日本語 🦙", "<|turn>user\n<h1>", ""]
    {
        assert_eq!(from_json.encode_text(text), in_place.encode_text(text), "{text}");
    }
    for id in 0..from_json.vocab_size() as u32 + 2 {
        assert_eq!(from_json.token_bytes(id), in_place.token_bytes(id), "{id}");
        assert_eq!(from_json.control_name(id), in_place.control_name(id), "{id}");
    }
    let request = serde_json::from_value(serde_json::json!({"messages": [{"role": "user", "content": "hi"}]})).unwrap();
    let render = |source: &Source| pack::chat_template(source).unwrap().render(&request).unwrap();
    assert_eq!(render(&a), render(&b));
    Engine::load(&file, &Options { threads: 1, ..Options::default() }).unwrap();
}

#[test]
fn the_daemon_serves_a_packed_file() {
    let dir = tempfile::tempdir().unwrap();
    let (_, file) = packed(dir.path());
    let served = Served::start(dir.path(), &file, "", &[]);
    let whole: serde_json::Value = serde_json::from_str(&served.ask("Hello", &["--json"])).unwrap();
    assert_eq!(whole["model"], "tiny-e2b");
    served.stop();
}

/// What `emberd` said on its way out.
fn refused(args: &[&Path], words: &[&str]) {
    let output = run(emberd().args(args));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && words.iter().all(|word| said.contains(word)), "{args:?}: {said}");
}

#[test]
fn what_is_damaged_or_no_packed_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (model, file) = packed(dir.path());
    let (p, v, i) = (Path::new("pack"), Path::new("verify"), Path::new("inspect"));
    refused(&[p, &model, &file], &["tiny-e2b.ember", "--force"]);
    refused(&[p, &file, &dir.path().join("twice.ember")], &["the directory of a checkpoint", "a packed model"]);
    refused(&[p, &model, Path::new("/nowhere/x.ember")], &["/nowhere/x.ember", "cannot write"]);
    refused(&[v, &model], &["tiny-e2b", "checksum"]);
    refused(&[i, &model.join("model.safetensors")], &["model.safetensors", "emberd pack", "another safetensors file"]);
    refused(&[i, &model.join("config.json")], &["config.json", "emberd pack"]);

    let bytes = fs::read(&file).unwrap();
    let bad = dir.path().join("bad.ember");
    // One bit, in a weight.
    let mut damaged = bytes.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 4;
    fs::write(&bad, &damaged).unwrap();
    refused(&[v, &bad], &["bad.ember", "damaged", "pack the checkpoint again"]);
    // A write that was cut off.
    fs::write(&bad, &bytes[..bytes.len() - 40]).unwrap();
    refused(&[v, &bad], &["bad.ember", "truncated"]);
    refused(&[i, &bad], &["bad.ember", "truncated"]);
    // A later version.
    let text = b"\"version\":\"2\"";
    let at = bytes.windows(text.len()).position(|window| window == text).unwrap();
    let mut later = bytes.clone();
    later[at + text.len() - 2] = b'3';
    fs::write(&bad, &later).unwrap();
    refused(&[i, &bad], &["bad.ember", "version", "pack the checkpoint again"]);
}

/// Tables out of a damaged file, byte by byte: wrong tokens are allowed, a panic is not.
#[test]
fn damaged_tokenizer_tables_never_panic() {
    let tokenizer = Tokenizer::load(&home().join("tokenizer.json")).unwrap();
    let (tables, names) = tokenizer.sections();
    let mut rng = fastrand::Rng::with_seed(1);
    for round in 0..300 {
        let (hurt, cut) = (rng.usize(..tables.len()), round % 5 == 0);
        let section = |name: &str| {
            let (i, (_, table)) = tables.iter().enumerate().find(|(_, (other, _))| *other == name)?;
            let mut table = table.to_vec();
            if i == hurt && cut {
                table.truncate(table.len() / 3);
            } else if i == hurt {
                // Many, so that some are followed.
                let (mut rng, len) = (fastrand::Rng::with_seed(round), table.len());
                (0..len / 4).for_each(|_| table[rng.usize(..len)] = rng.u8(..));
            }
            Some(Bytes::from(table))
        };
        let Ok(damaged) = Tokenizer::from_sections(&names, section) else { continue };
        let ids = damaged.encode_text("dim the hall lights to 30 % <h1> Ü 🦙");
        ids.iter().for_each(|id| drop(damaged.token_bytes(*id).to_vec()));
    }
    assert!(Tokenizer::from_sections(&names, |_| None).err().unwrap().contains("tokenizer."));
    assert!(Tokenizer::from_sections("{}", |_| Some(Bytes::from(vec![0; 64]))).is_err());
    let outside = names.replacen("\"bytes\":[", "\"bytes\":[4294967295,", 1);
    assert!(Tokenizer::from_sections(&outside, |_| Some(Bytes::from(vec![0; 64]))).is_err());
    // A bit that makes one token 2,048 bytes long: no trie holds it. And a token of no name.
    let section = |flip: bool| {
        let tables = &tables;
        move |name: &str| {
            let (_, table) = tables.iter().find(|(other, _)| *other == name)?;
            let mut table = table.to_vec();
            if flip && name == "tokenizer.ends" {
                table[4 * 700 + 1] ^= 8;
            }
            Some(Bytes::from(table))
        }
    };
    let long = Arc::new(Tokenizer::from_sections(&names, section(true)).unwrap());
    assert!(Grammars::new(long, &[1]).err().unwrap().to_string().contains("more than"));
    let nameless = names.replacen("\"control\":{", "\"control\":{\"\":5,", 1);
    assert!(nameless != names && Tokenizer::from_sections(&nameless, section(false)).is_err());
}
