//! What is kept of earlier prompts changes no answer: not one bit of the logits.

mod common;

use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use common::binary::Served;
use emberd::engine::checkpoint::synth::{self, Shape};
use emberd::engine::generate::{Engine, Finish, Outcome, Progress, Wanted};
use emberd::engine::kv_cache::KvKind;
use emberd::engine::runner::Options;
use emberd::engine::stream::Delta;
use serde_json::{Value, json};

const CONTEXT: usize = 512;

/// A model whose windows hold 16 positions, so that every conversation outgrows them.
fn model(dir: &tempfile::TempDir, shape: &str) -> PathBuf {
    let path = dir.path().join(shape);
    synth::write(&Shape::named(shape).expect("a shape"), 1, &path).expect("a model");
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ember-home/chat_template.jinja");
    std::fs::copy(home, path.join("chat_template.jinja")).expect("a template");
    path
}

fn load(path: &Path, kv: KvKind, batch: usize) -> Engine {
    Engine::load(path, &Options { kv, batch, context: CONTEXT, threads: 1, ..Options::default() }).expect("loads")
}

/// The answer to `prompt`, cut off by the client after `patience` steps; and the logits after one more token.
fn answer(
    engine: &mut Engine,
    prompt: &[u32],
    more: usize,
    patience: usize,
) -> (Outcome, Vec<Delta>, Vec<u32>, Vec<u32>) {
    let mut sampling = engine.default_sampling();
    (sampling.seed, sampling.temperature) = (Some(prompt.len() as u64), 2.0);
    let (mut deltas, mut steps) = (Vec::new(), 0);
    let mut on = |progress: Progress<'_>| {
        match progress {
            Progress::Delta(delta) => deltas.push(delta.clone()),
            // Of a prompt that is known less is computed: that is no step.
            Progress::Token(_) => steps += 1,
            Progress::Prefill(_) | Progress::Cached(_) | Progress::Logprobs(_) => {}
        }
        if steps == patience { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let wanted = Wanted { max_tokens: more, ..Wanted::default() };
    let outcome = engine.generate(prompt, sampling, wanted, &mut on).expect("answers");
    let tokens = engine.runner().state().tokens().to_vec();
    let logits = if tokens.len() < CONTEXT {
        let logits = engine.runner_mut().run(&[9], &mut |_| ControlFlow::Continue(())).expect("runs").expect("logits");
        logits.iter().map(|logit| logit.to_bits()).collect()
    } else {
        Vec::new()
    };
    (outcome, deltas, tokens, logits)
}

struct Figures {
    prompt: usize,
    cached: usize,
    cancelled: usize,
    full: usize,
}

/// Conversations that go on, branch, are edited and repeated, begin alike, are taken back and fill the context, in turns.
fn converse(with: &mut Engine, without: &mut Engine, seed: u64, requests: usize) -> Figures {
    let mut rng = fastrand::Rng::with_seed(seed);
    let text = move |rng: &mut fastrand::Rng, most: usize| -> Vec<u32> {
        (0..rng.usize(1..=most)).map(|_| rng.u32(110..480)).collect()
    };
    let roots: Vec<Vec<u32>> =
        [5, 60, 200].map(|len| [vec![2, 105], text(&mut rng, len), vec![106, 107, 105]].concat()).into_iter().collect();
    let mut known: Vec<Vec<u32>> = roots.clone();
    let mut figures = Figures { prompt: 0, cached: 0, cancelled: 0, full: 0 };
    let budgets = [0, 20_000, 100_000, 1 << 20];
    let mut budget = budgets[3];
    for request in 0..requests {
        let mut prompt = match rng.u32(0..4) {
            0 => roots[rng.usize(..roots.len())].clone(),
            _ => known[rng.usize(..known.len())].clone(),
        };
        match rng.u32(0..6) {
            0 => prompt.truncate(rng.usize(1..=prompt.len())),
            1 => {
                let at = rng.usize(..prompt.len());
                prompt[at] = 111;
            }
            _ => {}
        }
        // A repeated prompt has nothing new.
        if rng.u32(0..8) > 0 {
            prompt.extend(text(&mut rng, 90));
        }
        prompt.truncate(CONTEXT - rng.usize(0..30));
        let more = [1, 20, 160][rng.usize(..3)];
        let patience = if rng.u32(0..5) == 0 { rng.usize(1..40) } else { usize::MAX };
        if rng.u32(0..6) == 0 {
            budget = budgets[rng.usize(..budgets.len())];
            with.limit_prefixes(budget);
        }
        if rng.u32(0..25) == 0 {
            with.runner_mut().release();
        }

        without.runner_mut().reset();
        let expected = answer(without, &prompt, more, patience);
        let found = answer(with, &prompt, more, patience);
        assert_eq!(expected.0.cached_tokens, 0);
        assert!(found.0.cached_tokens < prompt.len());
        let uncached = Outcome { cached_tokens: 0, broken_at: None, ..found.0 };
        assert_eq!(Outcome { broken_at: None, ..expected.0 }, uncached, "seed {seed}, request {request}");
        assert_eq!(expected.2, found.2, "seed {seed}, request {request}: tokens");
        assert_eq!(expected.1, found.1, "seed {seed}, request {request}: text");
        assert!(expected.3 == found.3, "seed {seed}, request {request}: logits");
        assert!(with.cache_bytes() - with.runner().kv_bytes() <= budget, "seed {seed}, request {request}: budget");

        figures.prompt += prompt.len();
        figures.cached += found.0.cached_tokens;
        figures.cancelled += usize::from(found.0.finish == Finish::Cancelled);
        figures.full += usize::from(found.2.len() == CONTEXT);
        known.push(found.2);
        if known.len() > 6 {
            known.remove(rng.usize(..3));
        }
    }
    figures
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "golden.rs shows on every architecture what this stands on")]
fn answers_are_the_same_with_and_without_it() {
    let dir = tempfile::tempdir().expect("directory");
    let mut full_ones = 0;
    for (shape, kv, batch, seed) in
        [("tiny-e2b", KvKind::Int8, 64, 1), ("tiny-e4b", KvKind::F32, 128, 2), ("tiny-e2b", KvKind::Int8, 7, 3)]
    {
        let path = model(&dir, shape);
        // The one that starts afresh also cuts its prompts elsewhere.
        let (mut with, mut without) = (load(&path, kv, batch), load(&path, kv, 33));
        with.limit_prefixes(1 << 20);
        let figures = converse(&mut with, &mut without, seed, 30);
        let Figures { prompt, cached, cancelled, full } = figures;
        println!("{shape} {kv:?}: {cached} of {prompt} tokens known, {cancelled} taken back, {full} times full");
        assert!(cached > prompt / 8 && cancelled > 0, "{shape} {kv:?}");
        full_ones += full;
    }
    assert!(full_ones > 0, "no context was ever full");
}

fn ask(engine: &mut Engine, prompt: &[u32], more: usize) -> Outcome {
    let mut sampling = engine.default_sampling();
    sampling.seed = Some(1);
    let wanted = Wanted { max_tokens: more, ..Wanted::default() };
    engine.generate(prompt, sampling, wanted, &mut |_| ControlFlow::Continue(())).expect("answers")
}

/// What each kind of reuse saves, in tokens.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "golden.rs shows on every architecture what this stands on")]
fn prompts_that_begin_alike_are_computed_once() {
    let dir = tempfile::tempdir().expect("directory");
    let mut engine = load(&model(&dir, "tiny-e2b"), KvKind::Int8, 64);
    engine.limit_prefixes(1 << 20);
    let text = |from: u32, len: u32| (from..from + len).map(|i| 110 + i * 7 % 370);
    let system: Vec<u32> = [2, 105].into_iter().chain(text(0, 200)).chain([106, 107, 105]).collect();
    let turn =
        |from: u32| -> Vec<u32> { system.iter().copied().chain(text(from, 60)).chain([106, 107, 105]).collect() };
    let (one, two, three) = (turn(1000), turn(2001), turn(3002));
    assert_eq!(ask(&mut engine, &one, 30).cached_tokens, 0);
    // The second already finds the system turn: it was kept where the first turn of the user began.
    assert_eq!(ask(&mut engine, &two, 30).cached_tokens, system.len());
    assert_eq!(ask(&mut engine, &three, 200).cached_tokens, system.len());
    // The same again: all but the last token, though the answer has gone over the windows.
    assert_eq!(ask(&mut engine, &three, 5).cached_tokens, three.len() - 1);
    // An answer goes on in the prompt after it, also when something else came between.
    ask(&mut engine, &one, 150);
    let longer: Vec<u32> = engine.runner().state().tokens().iter().copied().chain(text(5, 9)).collect();
    ask(&mut engine, &[2, 300, 301], 1);
    assert_eq!(ask(&mut engine, &longer, 1).cached_tokens, longer.len() - 9);
    // Without memory for it there is only what the last request left.
    engine.limit_prefixes(0);
    assert_eq!(ask(&mut engine, &two, 1).cached_tokens, 0);
    assert_eq!(ask(&mut engine, &two, 1).cached_tokens, two.len() - 1);
    assert_eq!(engine.cache_bytes(), engine.runner().kv_bytes());
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "golden.rs shows on every architecture what this stands on")]
fn a_prompt_whose_beginning_changes_each_time_is_noticed() {
    let dir = tempfile::tempdir().expect("directory");
    let mut engine = load(&model(&dir, "tiny-e2b"), KvKind::Int8, 64);
    let stamped =
        |stamp: u32| -> Vec<u32> { [2, 105, stamp].into_iter().chain((0..200).map(|i| 110 + i * 7 % 370)).collect() };
    assert_eq!(ask(&mut engine, &stamped(300), 5).broken_at, None);
    assert_eq!(ask(&mut engine, &stamped(301), 5).broken_at, Some(2));
    assert_eq!(ask(&mut engine, &stamped(301), 5).broken_at, None);
    assert_eq!(ask(&mut engine, &[2, 105, 111, 112], 5).broken_at, None);
}

fn get(socket: &Path, path: &str) -> String {
    let mut stream = UnixStream::connect(socket).expect("connects");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("sends");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("reads");
    text
}

/// The counts of the daemon: in the answer, in the metrics, in the status.
#[test]
fn what_was_not_computed_is_told() {
    let dir = tempfile::tempdir().expect("directory");
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ember-home");
    let served = Served::start(dir.path(), &home, "", &[]);
    let ask = |system: &str, prompt: &str| -> Value {
        let answer: Value = serde_json::from_str(&served.ask(prompt, &["--json", "--system", system])).expect("JSON");
        answer["usage"].clone()
    };
    let rules = "Answer in one short sentence, and never name a room that was not asked for. ".repeat(4);
    let (first, second) = (ask(&rules, "Is the window open?"), ask(&rules, "Turn on the light."));
    assert_eq!(first["prompt_tokens_details"], json!({"cached_tokens": 0}));
    let known = second["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a number");
    let all = second["prompt_tokens"].as_u64().expect("a number");
    assert!(known > all / 2 && known < all, "{second}");
    let stamped = ask(&format!("It is 10:05. {rules}"), "Turn on the light.");
    assert!(stamped["prompt_tokens_details"]["broken_at"].as_u64().is_some_and(|at| at < 20), "{stamped}");
    let total = known + stamped["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a number");
    let metrics = get(&served.socket, "/metrics");
    assert!(metrics.contains(&format!("\nemberd_cached_tokens_total {total}\n")), "{metrics}");
    assert!(get(&served.socket, "/v1/status").contains(&format!("\"cached_tokens\":{total}")));
    served.stop();
}
