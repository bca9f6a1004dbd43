//! Beginnings of prompts that are kept on disk: there after a restart, never a wrong answer, whatever became of the files.

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::binary::{Served, emberd, run, stdout};
use common::wait_for;
use emberd::engine::checkpoint::synth::{self, Shape};
use emberd::engine::generate::{Engine, Wanted};
use emberd::engine::kv_cache::KvKind;
use emberd::engine::runner::Options;
use emberd::engine::template::ChatRequest;
use serde_json::{Value, json};

const HOME: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/ember-home");

/// A model whose windows hold 16 positions.
fn model(dir: &Path, shape: &str, seed: u64) -> PathBuf {
    let path = dir.join(format!("{shape}-{seed}"));
    synth::write(&Shape::named(shape).expect("a shape"), seed, &path).expect("a model");
    fs::copy(Path::new(HOME).join("chat_template.jinja"), path.join("chat_template.jinja")).expect("a template");
    path
}

fn load(path: &Path, kv: KvKind) -> Engine {
    Engine::load(path, &Options { kv, context: 512, threads: 1, ..Options::default() }).expect("loads")
}

fn text(seed: u64, len: usize) -> Vec<u32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    [2, 105].into_iter().chain((0..len).map(|_| rng.u32(110..480))).collect()
}

/// Pins `tokens` and computes what is missing of them; how many tokens ran for it.
fn prepare(engine: &mut Engine, dir: &Path, pins: &[(&str, &[u32])]) -> usize {
    engine
        .pin(dir, 1 << 30, pins.iter().map(|(name, tokens)| ((*name).to_owned(), tokens.to_vec())).collect())
        .expect("pins");
    let mut ran = 0;
    while engine.unprepared().is_some() {
        ran += engine.prepare();
    }
    ran
}

/// How much of `prompt` was known, and the logits after an answer to it.
fn answer(engine: &mut Engine, prompt: &[u32]) -> (usize, Vec<u32>, Vec<u32>) {
    let mut sampling = engine.default_sampling();
    (sampling.seed, sampling.temperature) = (Some(7), 2.0);
    let wanted = Wanted { max_tokens: 12, ..Wanted::default() };
    let outcome = engine.generate(prompt, sampling, wanted, &mut |_| ControlFlow::Continue(())).expect("answers");
    let tokens = engine.runner().state().tokens().to_vec();
    let logits = engine.runner_mut().run(&[9], &mut |_| ControlFlow::Continue(())).expect("runs").expect("logits");
    (outcome.cached_tokens, tokens, logits.iter().map(|logit| logit.to_bits()).collect())
}

fn file(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.prefix"))
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "golden.rs shows on every architecture what this stands on")]
fn what_is_on_disk_gives_the_same_logits() {
    let dir = tempfile::tempdir().expect("directory");
    // Around the window of 16, the ring of 143 and the growth of 256.
    for (shape, kv) in [("tiny-e2b", KvKind::Int8), ("tiny-e4b", KvKind::F32)] {
        let path = model(dir.path(), shape, 1);
        for len in [1, 13, 14, 15, 60, 126, 141, 142, 200, 258, 300] {
            let pin = text(len as u64, len);
            let kept = dir.path().join(format!("{shape}{len}"));
            let mut first = load(&path, kv);
            // What another conversation left must not get into the file.
            answer(&mut first, &text(99, 290));
            assert_eq!(prepare(&mut first, &kept, &[("p", &pin)]), pin.len(), "{shape} {len}");
            let mut fresh = load(&path, kv);
            let other = dir.path().join(format!("{shape}{len}-again"));
            prepare(&mut fresh, &other, &[("p", &pin)]);
            assert_eq!(fs::read(file(&kept, "p")).unwrap(), fs::read(file(&other, "p")).unwrap(), "{shape} {len}");

            let mut second = load(&path, kv);
            second.limit_prefixes(if len % 2 == 0 { 1 << 20 } else { 0 });
            assert_eq!(prepare(&mut second, &kept, &[("p", &pin)]), 0);
            let mut without = load(&path, kv);
            for more in [1, 5, 40] {
                let prompt: Vec<u32> = pin.iter().copied().chain((0..more).map(|i| 110 + i)).collect();
                without.runner_mut().reset();
                let (known, tokens, logits) = answer(&mut second, &prompt);
                // The second prompt begins with one more token of the first.
                assert!(known >= pin.len() && known < prompt.len(), "{shape} {len}: {known}");
                assert!((0, tokens, logits) == answer(&mut without, &prompt), "{shape} {len} {more}");
                // Another conversation in between, so that it comes from disk again.
                answer(&mut second, &text(77, 200));
            }
        }
    }
    let mode = fs::metadata(file(&dir.path().join("tiny-e2b60"), "p")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// Every byte of a file changed, and every length: it is refused, the answer stays the same, and the file is made again.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "golden.rs shows on every architecture what this stands on")]
fn damaged_files_change_no_answer() {
    let dir = tempfile::tempdir().expect("directory");
    let path = model(dir.path(), "tiny-e2b", 1);
    let pin = text(3, 5);
    let prompt: Vec<u32> = pin.iter().copied().chain([300, 301]).collect();
    let mut engine = load(&path, KvKind::Int8);
    prepare(&mut engine, dir.path(), &[("p", &pin)]);
    let (good, expected) = (fs::read(file(dir.path(), "p")).unwrap(), answer(&mut engine, &prompt));
    let mut check = |bytes: &[u8], what: &str| {
        fs::write(file(dir.path(), "p"), bytes).unwrap();
        engine.runner_mut().reset();
        engine.pin(dir.path(), 1 << 30, vec![("p".into(), pin.clone())]).expect("pins");
        let found = answer(&mut engine, &prompt);
        assert_eq!(found.0, if bytes == good { pin.len() } else { 0 }, "{what}");
        assert!((&found.1, &found.2) == (&expected.1, &expected.2), "{what}");
    };
    check(&good, "as it was");
    let mut rng = fastrand::Rng::with_seed(1);
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << rng.u32(0..8);
        check(&bad, &format!("byte {at}"));
    }
    // Every short length, and others here and there; also one byte too many.
    for len in (0..200).chain((200..good.len()).step_by(37)).chain([good.len() - 1]) {
        check(&good[..len], &format!("length {len}"));
    }
    check(&[&good[..], b"x"].concat(), "one more");
    check(&good, "as it was");
    // A directory and a FIFO in its place neither block nor harm.
    fs::remove_file(file(dir.path(), "p")).unwrap();
    nix::unistd::mkfifo(&file(dir.path(), "p"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    engine.runner_mut().reset();
    engine.pin(dir.path(), 1 << 30, vec![("p".into(), pin.clone())]).expect("pins");
    assert_eq!(answer(&mut engine, &prompt).0, 0);
    engine.runner_mut().reset();
    assert_eq!(prepare(&mut engine, dir.path(), &[("p", &pin)]), pin.len());
    assert_eq!(fs::read(file(dir.path(), "p")).unwrap(), good);
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "golden.rs shows on every architecture what this stands on")]
fn what_differs_is_computed_again_and_what_is_not_wanted_goes() {
    let dir = tempfile::tempdir().expect("directory");
    let kept = dir.path().join("kept");
    let path = model(dir.path(), "tiny-e2b", 1);
    let (pin, other) = (text(3, 40), text(4, 40));
    let run = |path: &Path, kv, pins: &[(&str, &[u32])]| prepare(&mut load(path, kv), &kept, pins);
    assert_eq!(run(&path, KvKind::Int8, &[("p", &pin), ("q", &other)]), 2 * 42 - 2);
    assert_eq!(run(&path, KvKind::Int8, &[("p", &pin), ("q", &other)]), 0);
    // Another text, another form of the cache, other weights, and the same weights copied.
    assert_eq!(run(&path, KvKind::Int8, &[("p", &other)]), 42);
    assert!(!file(&kept, "q").exists());
    assert_eq!(run(&path, KvKind::F32, &[("p", &other)]), 42);
    assert_eq!(run(&path, KvKind::Int8, &[("p", &other)]), 42);
    assert_eq!(run(&model(dir.path(), "tiny-e2b", 2), KvKind::Int8, &[("p", &other)]), 42);
    assert_eq!(run(&path, KvKind::Int8, &[("p", &other)]), 42);
    let weights = path.join("model.safetensors");
    let touched = fs::File::options().write(true).open(&weights).unwrap();
    touched.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(run(&path, KvKind::Int8, &[("p", &other)]), 42);
    // No room, and no directory: nothing is kept, and nothing tried again and again.
    let mut engine = load(&path, KvKind::Int8);
    engine.pin(&dir.path().join("small"), 100, vec![("p".into(), pin.clone())]).expect("pins");
    let mut steps = 0;
    while engine.unprepared().is_some() {
        engine.prepare();
        steps += 1;
    }
    assert!(steps < 5 && !file(&dir.path().join("small"), "p").exists());
    fs::write(dir.path().join("no directory"), "").unwrap();
    engine.pin(&dir.path().join("no directory"), 1 << 30, vec![("p".into(), pin.clone())]).expect("pins");
    engine.prepare();
    assert_eq!(engine.unprepared(), None);
}

/// The tokens of instructions are those that every conversation with them begins with.
#[test]
fn a_beginning_ends_where_the_questions_differ() {
    let engine =
        Engine::load(HOME.as_ref(), &Options { context: 512, threads: 1, ..Options::default() }).expect("loads");
    let request =
        |messages: Value| ChatRequest { messages: messages.as_array().cloned().unwrap(), ..Default::default() };
    let system = json!({"role": "system", "content": "Be short."});
    let beginning = engine.beginning(&request(json!([system]))).unwrap();
    assert!(beginning.len() > 5);
    for question in ["a", "1", "\n\nWhy?", "üß", " x"] {
        let user = json!({"role": "user", "content": question});
        assert!(engine.encode_chat(&request(json!([system, user]))).unwrap().starts_with(&beginning), "{question}");
    }
}

/// The daemon, restarted: the first request finds its instructions computed.
#[test]
fn after_a_restart_the_first_request_needs_no_prefill_of_it() {
    let dir = tempfile::tempdir().expect("directory");
    // Nearly the model's whole context, which is 1,024 tokens; the test asks for few.
    let engine =
        Engine::load(HOME.as_ref(), &Options { context: 64, threads: 1, ..Options::default() }).expect("loads");
    let mut rules = "Answer in one short sentence, and never name a room that was not asked for. ".repeat(60);
    while engine.encode_text(&rules).len() > 1000 {
        rules.truncate(rules.trim_end().rfind(' ').expect("a space"));
    }
    fs::write(dir.path().join("rules"), &rules).unwrap();
    let kept = dir.path().join("prefixes");
    let config = format!(
        "[governor]\nenabled = false\n[cache]\nprefix_dir = {kept:?}\n[[prefix]]\nname = \"rules\"\nsystem_file = {:?}\n",
        dir.path().join("rules")
    );
    let long = [("EMBERD__MODEL__CONTEXT", "1024")];
    let ask = |served: &Served| -> Value {
        let mut ask = emberd();
        ask.args(["ask", "--json", "--temperature", "0", "--max-tokens", "4", "--system", &rules, "--socket"]);
        let answer = stdout(run(ask.arg(&served.socket).arg("why?")));
        serde_json::from_str(&answer).expect("JSON")
    };
    let served = Served::start(dir.path(), HOME.as_ref(), &config, &long);
    // Nobody asks for it.
    wait_for("the file", || file(&kept, "rules").exists().then_some(()));
    let first = ask(&served);
    served.stop();
    let served = Served::start(dir.path(), HOME.as_ref(), &config, &long);
    let second = ask(&served);
    let (all, known) = (&second["usage"]["prompt_tokens"], &second["usage"]["prompt_tokens_details"]["cached_tokens"]);
    let (all, known) = (all.as_u64().unwrap(), known.as_u64().unwrap());
    assert!(known >= 1000 && all - known < 15, "{known} of {all}");
    served.stop();
    // And the same answer without any of it.
    let served = Served::start(dir.path(), HOME.as_ref(), "[cache]\nmemory_mb = 0\n", &long);
    let third = ask(&served);
    assert_eq!(third["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    for answer in [&second, &third] {
        assert_eq!(answer["choices"][0]["message"], first["choices"][0]["message"]);
    }
    served.stop();
}

#[test]
fn what_cannot_be_pinned_is_told_at_the_start() {
    let dir = tempfile::tempdir().expect("directory");
    for (section, words) in [
        ("system_file = \"/does/not/exist\"", "prefix a: system_file: /does/not/exist"),
        ("tools_file = \"/dev/null\"", "prefix a: tools_file: /dev/null: expected a file"),
        (&format!("system = {:?}", "word ".repeat(600)), "and the context holds 256"),
    ] {
        let path = dir.path().join("config.toml");
        let config = format!(
            "[model]\npath = {HOME:?}\ncontext = 256\n[socket]\npath = {:?}\n[governor]\nenabled = false\n[[prefix]]\nname = \"a\"\n{section}\n",
            dir.path().join("s")
        );
        fs::write(&path, config).unwrap();
        let output = emberd().arg("serve").arg("--config").arg(&path).output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(78) && said.contains(words), "{words}: {said}");
    }
}
