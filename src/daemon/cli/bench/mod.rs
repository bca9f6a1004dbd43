//! `emberd bench`: how fast a checkpoint runs on this machine, and how much of the machine that takes.

mod probes;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::super::error::Error;
use super::model::{RunModel, print};
use crate::engine::checkpoint::summary::Summary;
use crate::engine::ops::MAX_BATCH;
use crate::engine::runner::Runner;
use crate::engine::sampler::greedy;
use crate::stats::{Stage, Stats};

#[derive(Args)]
pub(super) struct Bench {
    #[command(flatten)]
    model: RunModel,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
    /// Tokens that are generated after it
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    generate: u32,
    /// Tokens that stand before the prompt and are not measured
    #[arg(long, value_name = "N", default_value_t = 0)]
    context: u32,
    /// Also check this many guessed tokens at once, as speculative decoding does; several numbers with commas
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=MAX_BATCH as i64))]
    verify: Vec<u32>,
    /// How often everything is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Smallest, median and largest of the repetitions.
#[derive(Clone, Copy, Serialize)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Spread { min: values[0], median: (low + high) / 2.0, max: values[values.len() - 1] }
    }
}

/// What one repetition found.
struct Round {
    prefill: Duration,
    decode: Duration,
    first_token: Duration,
    /// One for each number of guessed tokens.
    verify: Vec<Duration>,
    read_bandwidth: f64,
    peak: f64,
}

pub(super) fn run(args: &Bench) -> Result<(), Error> {
    let (context, prompt, generate) = (args.context as usize, args.prompt as usize, args.generate as usize);
    let began = Instant::now();
    let guesses = args.verify.iter().copied().max().unwrap_or(0) as usize;
    let positions = context + prompt + generate + guesses;
    let mut runner = args.model.load(positions)?;
    let ready = began.elapsed();
    if runner.context() < positions {
        let most = runner.context();
        return Err(Error::Usage(format!(
            "--context, --prompt, --generate and --verify: this model has {most} positions in all"
        )));
    }
    let tokens = Tokens { vocab: runner.config().vocab_size as u64 };
    let repetitions = args.repetitions as usize;
    let bar = super::model::bar(repetitions + 1, "{bar:40} {pos}/{len} repetitions {msg}");
    let stages = |stats: &Stats| Stage::ALL.map(|stage| stats.spent(stage));
    let (mut in_prefill, mut in_decode) = ([Duration::ZERO; 5], [Duration::ZERO; 5]);
    let (mut rounds, mut memory) = (Vec::new(), None);
    for repetition in 0..=repetitions {
        runner.reset();
        if context > 0 {
            forward(&mut runner, &tokens.take(repetition, 0, context))?;
        }
        let start = stages(&runner.compute().stats);
        let began = Instant::now();
        let next = forward(&mut runner, &tokens.take(repetition, context, prompt))?;
        let prefill = began.elapsed();
        let middle = stages(&runner.compute().stats);
        let first_token = began.elapsed();
        let began = Instant::now();
        let mut next = next;
        for _ in 0..generate {
            next = forward(&mut runner, &[next])?;
        }
        let decode = began.elapsed();
        let end = stages(&runner.compute().stats);
        let mut verify = Vec::new();
        for &guesses in &args.verify {
            verify.push(check(&mut runner, &tokens.take(repetition, 0, guesses as usize))?);
        }
        // The first one reads the model from disk and is not counted.
        if repetition > 0 {
            for (stage, (prefill, decode)) in in_prefill.iter_mut().zip(&mut in_decode).enumerate() {
                *prefill += middle[stage] - start[stage];
                *decode += end[stage] - middle[stage];
            }
            memory = memory.or_else(probes::memory);
            let on = runner.compute();
            let no_memory = |error| Error::failed(format!("no memory to measure the bandwidth with: {error}"));
            let (read_bandwidth, peak) = (probes::read_bandwidth(on).map_err(no_memory)?, probes::peak(on));
            rounds.push(Round { prefill, decode, first_token, verify, read_bandwidth, peak });
        }
        bar.inc(1);
    }
    bar.finish_and_clear();

    let summary = runner.summary();
    let spread = |of: &dyn Fn(&Round) -> f64| Spread::of(rounds.iter().map(of).collect());
    let found = Found {
        prefill: spread(&|round| prompt as f64 / round.prefill.as_secs_f64()),
        decode: spread(&|round| generate as f64 / round.decode.as_secs_f64()),
        first_token: spread(&|round| 1e3 * round.first_token.as_secs_f64()),
        verify: (0..args.verify.len()).map(|n| spread(&|round| 1e3 * round.verify[n].as_secs_f64())).collect(),
        read_bandwidth: spread(&|round| round.read_bandwidth).median,
        peak: spread(&|round| round.peak).median,
        bytes_per_token: summary.weights_per_token + summary.scales_per_token,
        macs_per_prompt_token: prompt_macs(&summary, prompt) / prompt as f64,
        in_prefill: per_token(in_prefill, rounds.iter().map(|round| round.prefill).sum(), prompt * repetitions),
        in_decode: per_token(in_decode, rounds.iter().map(|round| round.decode).sum(), generate * repetitions),
    };
    let report = found.report(args, &runner, ready, memory);
    if args.json { print(&format!("{report:#}\n")) } else { print(&found.page(args, &report)) }
}

/// Token ids that look like none, so that no row of a table is looked up twice in a row; the same in every run.
struct Tokens {
    vocab: u64,
}

impl Tokens {
    fn take(&self, repetition: usize, from: usize, len: usize) -> Vec<u32> {
        let mut rng = fastrand::Rng::with_seed(repetition as u64);
        (0..from + len).map(|_| rng.u64(0..self.vocab) as u32).skip(from).collect()
    }
}

/// Runs `tokens`; the most likely next one.
fn forward(runner: &mut Runner, tokens: &[u32]) -> Result<u32, Error> {
    let logits = runner.run(tokens, &mut |_| ControlFlow::Continue(())).map_err(Error::failed)?;
    let logits = logits.ok_or_else(|| Error::failed("the run was cancelled"))?;
    Ok(greedy(logits))
}

/// How long it takes to have the logits after each of `guesses` when they go through the layers together. They are forgotten
/// again.
fn check(runner: &mut Runner, guesses: &[u32]) -> Result<Duration, Error> {
    const TIMES: u32 = 4;
    let began = Instant::now();
    for _ in 0..TIMES {
        runner.verify(guesses).map_err(Error::failed)?;
    }
    Ok(began.elapsed() / TIMES)
}

/// Multiply-adds of the projections for a prompt; its last token goes through everything.
fn prompt_macs(summary: &Summary, prompt: usize) -> f64 {
    (prompt - 1) as f64 * summary.macs_prompt as f64 + summary.macs_per_token as f64
}

/// Milliseconds a token of every stage and of what is left of `total`.
fn per_token(stages: [Duration; 5], total: Duration, tokens: usize) -> Vec<(&'static str, f64)> {
    let per_token = |spent: Duration| 1e3 * spent.as_secs_f64() / tokens as f64;
    let rest = total.saturating_sub(stages.iter().sum());
    Stage::ALL
        .iter()
        .zip(stages)
        .map(|(stage, spent)| (stage.name(), per_token(spent)))
        .chain([("rest", per_token(rest))])
        .collect()
}

struct Found {
    prefill: Spread,
    decode: Spread,
    first_token: Spread,
    verify: Vec<Spread>,
    read_bandwidth: f64,
    peak: f64,
    bytes_per_token: u64,
    macs_per_prompt_token: f64,
    in_prefill: Vec<(&'static str, f64)>,
    in_decode: Vec<(&'static str, f64)>,
}

impl Found {
    fn report(&self, args: &Bench, runner: &Runner, ready: Duration, memory: Option<(u64, u64)>) -> Value {
        let stages = |stages: &[(&str, f64)]| -> Map<String, Value> {
            stages.iter().map(|&(name, ms)| (name.to_string(), json!(ms))).collect()
        };
        let mb = |bytes: u64| bytes as f64 / 1e6;
        json!({
            "model": args.model.model,
            "kernels": runner.compute().kernels.name(),
            "threads": runner.compute().pool.threads(),
            "kv": args.model.kv(),
            "batch": args.model.batch(),
            "prompt": args.prompt,
            "generate": args.generate,
            "context": args.context,
            "repetitions": args.repetitions,
            "ready_ms": 1e3 * ready.as_secs_f64(),
            "rss_mb": memory.map(|(resident, _)| mb(resident)),
            "anon_mb": memory.map(|(_, anonymous)| mb(anonymous)),
            "kv_mb": mb(runner.kv_bytes() as u64),
            "prefill_tok_s": self.prefill,
            "decode_tok_s": self.decode,
            "first_token_ms": self.first_token,
            "verify_ms": args.verify.iter().map(u32::to_string).zip(&self.verify).map(|(n, ms)| (n, json!(ms))).collect::<Map<_, _>>(),
            "read_bandwidth_gb_s": self.read_bandwidth / 1e9,
            "bytes_per_token": self.bytes_per_token,
            "decode_bandwidth_share": self.bytes_per_token as f64 * self.decode.median / self.read_bandwidth,
            "peak_gmac_s": self.peak / 1e9,
            "prefill_gmac_s": self.macs_per_prompt_token * self.prefill.median / 1e9,
            "prefill_peak_share": self.macs_per_prompt_token * self.prefill.median / self.peak,
            "prefill_ms_per_token": stages(&self.in_prefill),
            "decode_ms_per_token": stages(&self.in_decode),
        })
    }

    fn page(&self, args: &Bench, report: &Value) -> String {
        let number = |name: &str| report[name].as_f64().unwrap_or(f64::NAN);
        let percent = |name: &str| 100.0 * number(name);
        let spread = |s: Spread| format!("{:9.1} {:9.1} {:9.1}", s.min, s.median, s.max);
        let mut page = format!(
            "{} kernels, {} threads, {} KV cache; prompt {} after {}, {} generated, {} times\n\n",
            report["kernels"].as_str().unwrap_or_default(),
            report["threads"],
            report["kv"].as_str().unwrap_or_default(),
            report["prompt"],
            report["context"],
            report["generate"],
            report["repetitions"]
        );
        page += &format!("{:24} {:>9} {:>9} {:>9}\n", "", "min", "median", "max");
        page += &format!("{:24} {}\n", "prefill, tokens/s", spread(self.prefill));
        page += &format!("{:24} {}\n", "decode, tokens/s", spread(self.decode));
        page += &format!("{:24} {}\n", "first token after, ms", spread(self.first_token));
        for (guesses, &ms) in args.verify.iter().zip(&self.verify) {
            let tokens = ms.median * self.decode.median / 1e3;
            let name = format!("{guesses} guesses checked, ms");
            page += &format!("{name:24} {}   as long as {tokens:.2} tokens\n", spread(ms));
        }
        page.push('\n');
        page += &format!("{:24} {:9.0}\n", "ready after, ms", number("ready_ms"));
        page += &format!(
            "{:24} {:9.0}   {:.0} of them anonymous, {:.1} keys and values\n",
            "resident, MB",
            number("rss_mb"),
            number("anon_mb"),
            number("kv_mb")
        );
        page += &format!(
            "{:24} {:9.1}   {:.1} GB/s can be read here, decode reads {:.1} %\n",
            "read per token, MB",
            self.bytes_per_token as f64 / 1e6,
            number("read_bandwidth_gb_s"),
            percent("decode_bandwidth_share")
        );
        page += &format!(
            "{:24} {:9.1}   {:.0} G/s can be done here, prefill does {:.1} %\n\n",
            "multiply-adds, G/s",
            number("prefill_gmac_s"),
            number("peak_gmac_s"),
            percent("prefill_peak_share")
        );
        let total = |stages: &[(&str, f64)]| stages.iter().map(|(_, ms)| ms).sum::<f64>();
        page += &format!("{:24} {:>9} {:>5}  {:>9} {:>5}\n", "ms per token", "prefill", "%", "decode", "%");
        for ((name, prefill), (_, decode)) in self.in_prefill.iter().zip(&self.in_decode) {
            let shares = (100.0 * prefill / total(&self.in_prefill), 100.0 * decode / total(&self.in_decode));
            page += &format!("{name:24} {prefill:9.3} {:5.1}  {decode:9.3} {:5.1}\n", shares.0, shares.1);
        }
        page
    }
}
