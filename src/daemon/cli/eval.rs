//! `emberd eval`: how many cases of a file a model answers as expected.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};

use super::super::error::Error;
use super::client;
use super::model::{RunModel, bar, print, read};
use crate::engine::checkpoint::output;
use crate::engine::eval::{self, Case, Tally, Verdict};
use crate::engine::template::STACK_BYTES;

/// Largest file of cases.
const MAX_CASES: u64 = 256 << 20;

const FORMAT: &str = "\
The file has one JSON object per line: \"prompt\" (a text) or \"messages\" (as in OpenAI's chat), \"expected\", \"compare\" \
and, for the summary, \"kind\". An answer is as expected under
  exact        when it is that string, white space around it aside (the default)
  json         when it is JSON of that value: lists in order, keys in any, numbers by value
  json_subset  the same, but objects may have more keys
  contains     when that string, or each of a list, stands in it as whole words and numbers

Answers are the most likely tokens (temperature 0), from the conversation as the checkpoint's template renders it.";

#[derive(Args)]
#[command(after_help = FORMAT)]
pub(super) struct Eval {
    #[command(flatten)]
    model: Option<RunModel>,
    /// Ask the running daemon behind this socket instead of loading a model; its configuration says how that runs
    #[arg(long, value_name = "PATH", conflicts_with = "RunModel", required_unless_present = "model")]
    socket: Option<PathBuf>,
    /// The cases, JSON Lines
    #[arg(long, value_name = "FILE")]
    cases: PathBuf,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Positions for prompt and answer; 0 takes as many as the model was made for
    #[arg(long, value_name = "N", default_value_t = 4096)]
    context: u32,
    /// Fail (exit code 1) when a kind has a smaller share than this, 0 to 1
    #[arg(long, value_name = "SHARE", value_parser = share)]
    at_least: Option<f64>,
    /// Show so many of the cases that were not answered as expected
    #[arg(long, value_name = "N", default_value_t = 5)]
    failures: usize,
    /// Write a JSON report with every answer
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print that report instead of the table
    #[arg(long)]
    json: bool,
}

fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| "expected a number from 0 to 1".into())
}

pub(super) fn run(args: &Eval) -> Result<(), Error> {
    let named = |error: &dyn std::fmt::Display| Error::Failed(format!("{}: {error}", args.cases.display()));
    let text = String::from_utf8(read(&args.cases, MAX_CASES)?);
    let text = text.map_err(|error| named(&format_args!("not UTF-8: {}", error.utf8_error())))?;
    let cases = eval::parse(&text).map_err(|error| named(&error))?;
    let Some(model) = &args.model else { return ask(args, &cases) };
    // Chat templates want a deep stack.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, || evaluate(args, model, &cases));
        let thread = thread.map_err(|error| Error::System("cannot start a thread", error))?;
        thread.join().map_err(|_| Error::failed("the evaluation panicked"))?
    })
}

/// Lets the daemon answer, one case after the other.
fn ask(args: &Eval, cases: &[Case]) -> Result<(), Error> {
    let Some(socket) = &args.socket else { return Err(Error::Usage("--model or --socket: one is needed".into())) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::System("cannot start the I/O runtime", error))?;
    let request = |path: &'static str, body: Option<Value>| {
        let answer = runtime.block_on(async {
            let mut body = client::request(socket, path, body).await?;
            client::read_all(&mut body).await
        })?;
        serde_json::from_str::<Value>(&answer).map_err(Error::failed)
    };
    let served = request("/v1/models", None)?["data"][0].clone();
    let named = |name: &str| served[name].as_str().unwrap_or("unknown").to_owned();
    let (began, mut verdicts) = (Instant::now(), Vec::with_capacity(cases.len()));
    let bar = bar(cases.len(), "{bar:40} {pos}/{len} cases, {eta} left");
    for case in cases {
        let body = json!({"messages": case.messages, "temperature": 0, "max_tokens": args.max_tokens});
        let answer = request("/v1/chat/completions", Some(body)).map_err(|error| match error {
            Error::Refused(why) => Error::Failed(format!("{}: line {}: {why}", args.cases.display(), case.line)),
            other => other,
        })?;
        let (choice, usage) = (&answer["choices"][0], &answer["usage"]);
        let count = |name: &str| usage[name].as_u64().unwrap_or(0) as usize;
        let text = choice["message"]["content"].as_str().unwrap_or_default().to_owned();
        let cut_off = choice["finish_reason"] == "length";
        verdicts.push(eval::verdict(case, text, cut_off, (count("prompt_tokens"), count("completion_tokens"))));
        bar.inc(1);
    }
    bar.finish_and_clear();
    let threads = served["threads"].as_u64().unwrap_or(0) as usize;
    let ran = Ran {
        model: named("id"),
        kernels: named("kernels"),
        threads,
        kv: named("kv"),
        seconds: began.elapsed().as_secs_f64(),
    };
    tell(args, cases, &verdicts, &ran)
}

/// What answered, and how long it took.
struct Ran {
    model: String,
    kernels: String,
    threads: usize,
    kv: String,
    seconds: f64,
}

fn evaluate(args: &Eval, model: &RunModel, cases: &[Case]) -> Result<(), Error> {
    let named = |error: eval::EvalError| Error::Failed(format!("{}: {error}", args.cases.display()));
    let mut engine = model.engine(args.context as usize)?;
    let prompts = eval::encode(&engine, cases).map_err(named)?;
    let bar = bar(cases.len(), "{bar:40} {pos}/{len} cases, {msg}, {eta} left");
    let (began, mut passed) = (Instant::now(), 0);
    let mut verdicts = Vec::with_capacity(cases.len());
    for (case, prompt) in cases.iter().zip(&prompts) {
        let verdict = eval::judge(&mut engine, case, prompt, args.max_tokens as usize).map_err(named)?;
        passed += usize::from(verdict.passed);
        verdicts.push(verdict);
        bar.inc(1);
        bar.set_message(format!("{passed} passed"));
    }
    bar.finish_and_clear();
    let compute = engine.runner().compute();
    let ran = Ran {
        model: model.model.display().to_string(),
        kernels: compute.kernels.name().into(),
        threads: compute.pool.threads(),
        kv: model.kv().into(),
        seconds: began.elapsed().as_secs_f64(),
    };
    tell(args, cases, &verdicts, &ran)
}

fn tell(args: &Eval, cases: &[Case], verdicts: &[Verdict<'_>], ran: &Ran) -> Result<(), Error> {
    let (rows, total) = (eval::tally(verdicts), eval::total(verdicts));
    let Ran { model, kernels, threads, kv, seconds } = ran;
    let report = || {
        let report = json!({
            "model": model,
            "cases": args.cases,
            "kernels": kernels,
            "threads": threads,
            "kv": kv,
            "max_tokens": args.max_tokens,
            "seconds": seconds,
            "total": total,
            "kinds": rows,
            "answers": verdicts,
        });
        format!("{report:#}\n")
    };
    if args.json {
        print(&report())?;
    } else {
        let wrong: Vec<_> = cases.iter().zip(verdicts).filter(|(_, verdict)| !verdict.passed).collect();
        let shown: String = wrong.iter().take(args.failures).map(|(case, verdict)| failure(case, verdict)).collect();
        print(&format!(
            "{shown}{}\n{kernels} kernels, {threads} threads, {kv} KV cache, {seconds:.1} s\n",
            table(&rows, &total)
        ))?;
    }
    // After the table: what took long to find is not lost when the report cannot be written.
    if let Some(path) = &args.report {
        output::atomically(path, |out| std::io::Write::write_all(out, report().as_bytes()))
            .map_err(|error| Error::Failed(format!("{}: {error}", path.display())))?;
    }
    match args.at_least {
        Some(least) => enough(&rows, least),
        None => Ok(()),
    }
}

/// What a case asked, expected and got. Answers may hold what a terminal obeys.
fn failure(case: &Case, verdict: &Verdict<'_>) -> String {
    let last = case.messages.last().map(|message| &message["content"]);
    let asked = last.and_then(|content| content.as_str()).unwrap_or("(a conversation)");
    let cut = if verdict.cut_off { " (cut off)" } else { "" };
    let plain = |text: &str| text.replace(char::is_control, " ");
    let (asked, answer) = (plain(asked), plain(&verdict.answer));
    format!("line {}, {}: {asked}\n  expected  {}\n  answered  {answer}{cut}\n\n", case.line, case.kind, case.expected)
}

fn table(rows: &[Tally], total: &Tally) -> String {
    let all = Tally { kind: "all".into(), ..total.clone() };
    // One kind alone is the total.
    let rows: Vec<_> = rows.iter().chain((rows.len() > 1).then_some(&all)).collect();
    let width = rows.iter().map(|row| row.kind.chars().count()).max().unwrap_or(0).max(4);
    let head = format!("{:width$}  passed   cases   share  95 % interval\n", "kind");
    let line = |row: &&Tally| {
        let (kind, (low, high)) = (row.kind.replace(char::is_control, " "), row.interval);
        let percent = |share: f64| 100.0 * share;
        format!(
            "{kind:width$}  {:6}  {:6}  {:5.1}%  {:.1} to {:.1}\n",
            row.passed,
            row.cases,
            percent(row.share),
            percent(low),
            percent(high)
        )
    };
    head + &rows.iter().map(line).collect::<String>()
}

fn enough(rows: &[Tally], least: f64) -> Result<(), Error> {
    let short = |row: &&Tally| row.share < least;
    let said: Vec<_> = rows.iter().filter(short).map(|row| format!("{} has {:.4}", row.kind, row.share)).collect();
    if said.is_empty() {
        return Ok(());
    }
    Err(Error::Failed(format!("--at-least {least}: {}", said.join(", "))))
}
