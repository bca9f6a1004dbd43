//! The real engine while its threads and chunks change.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use emberd::engine::checkpoint::synth::{self, Shape};
use emberd::engine::runner::{Options, Runner};

fn model(dir: &tempfile::TempDir, shape: &str) -> PathBuf {
    let path = dir.path().join(shape);
    synth::write(&Shape::named(shape).unwrap(), 1, &path).unwrap();
    path
}

fn load(path: &std::path::Path, threads: usize) -> Runner {
    Runner::load(path, &Options { threads, context: 512, ..Options::default() }).unwrap()
}

/// Greedy tokens after `prompt`, with `change` called between chunks and tokens; and the last logits.
fn generate(runner: &mut Runner, prompt: &[u32], more: usize, change: &mut dyn FnMut()) -> (Vec<u32>, Vec<f32>) {
    runner.reset();
    let best = |logits: &[f32]| logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0 as u32;
    let mut next = |tokens: &[u32], change: &mut dyn FnMut()| {
        let logits = runner.run(tokens, &mut |_| {
            change();
            ControlFlow::Continue(())
        });
        logits.unwrap().unwrap().to_vec()
    };
    let mut logits = next(prompt, change);
    let mut answer = Vec::new();
    for _ in 0..more {
        answer.push(best(&logits));
        logits = next(&[answer[answer.len() - 1]], change);
    }
    (answer, logits)
}

#[test]
fn threads_and_chunks_that_change_all_the_time_change_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let path = model(&dir, "tiny-e2b");
    let prompt: Vec<u32> = (0..150).map(|i| i * 7 % 250).collect();
    let mut runner = load(&path, 4);
    let expected = generate(&mut runner, &prompt, 24, &mut || {});
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..6 {
        let knobs = runner.knobs().clone();
        let mut used = std::collections::BTreeSet::new();
        let found = generate(&mut runner, &prompt, 24, &mut || {
            let setting = (rng.usize(1..=4), rng.usize(1..=4), rng.usize(1..=64));
            used.insert(setting);
            knobs.set(setting.0, setting.1, setting.2);
        });
        assert!(used.len() > 20);
        assert_eq!(found.0, expected.0);
        let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found.1), bits(&expected.1), "not even the last bit");
    }
    // Its memory given back in between, it still computes the same.
    runner.knobs().set(0, 0, 0);
    assert!(runner.kv_bytes() > 0);
    runner.release();
    assert_eq!(runner.kv_bytes(), 0);
    assert_eq!(generate(&mut runner, &prompt, 24, &mut || {}), expected);
}

/// The number of threads is obeyed: with one, no other thread of the pool works.
#[test]
fn the_number_of_threads_is_that_of_the_phase() {
    let dir = tempfile::tempdir().unwrap();
    let mut runner = load(&model(&dir, "tiny-e2b"), 3);
    runner.knobs().set(2, 1, 16);
    let mut chunks = Vec::new();
    runner
        .run(&[1; 40], &mut |done| {
            chunks.push(done);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((chunks, runner.compute().pool.width()), (vec![16, 32, 40], 2));
    runner.run(&[1], &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(runner.compute().pool.width(), 1);
}

/// What a change of the number of threads costs, as a share of the second that is between two decisions at least.
///
/// As many tokens with one thread as with two, once in runs of sixteen and once changing at every token, in pairs: the
/// median of their differences bears a machine that does other things.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "times of the emulator")]
fn changes_cost_less_than_two_percent() {
    let mut runner = load(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ember-home"), 2);
    let knobs = runner.knobs().clone();
    const TOKENS: usize = 32;
    let mut time = |period: usize| {
        let mut tokens = 0;
        let began = Instant::now();
        generate(&mut runner, &[1; 16], TOKENS, &mut || {
            tokens += 1;
            knobs.set(2, 1 + tokens / period % 2, 0);
        });
        began.elapsed().as_secs_f64()
    };
    let changes = (TOKENS - TOKENS / 16) as f64;
    let mut costs: Vec<f64> = (0..11).map(|_| (time(1) - time(16)) / changes).collect();
    costs.sort_by(f64::total_cmp);
    let cost = costs[costs.len() / 2];
    println!("a change costs {:.0} µs, {:.3} % of a second", 1e6 * cost, 100.0 * cost);
    assert!(cost < 0.02, "{cost} s for a change");
}

/// The weights of a mapped model are locked, or, where the system does not allow that many, none of them.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the emulator counts locked pages itself")]
fn weights_are_locked_all_or_none() {
    let locked = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
    };
    let dir = tempfile::tempdir().unwrap();
    let runner = load(&model(&dir, "tiny-e2b"), 1);
    match runner.lock_weights() {
        Ok(bytes) => {
            assert!(bytes >= runner.summary().weights_per_token, "{bytes}");
            assert!(locked() >= bytes, "{} of {bytes}", locked());
            drop(runner);
        }
        Err(error) => eprintln!("not allowed here: {error}"),
    }
    assert_eq!(locked(), 0);
}
