//! `emberd debug`: the engine's parts one by one, for comparison with other implementations.

use std::io::Read;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::super::error::Error;
use super::model::{RunModel, print, progress, read, tokenizer};
use super::thermal::{self, Thermal};
use crate::engine::checkpoint::source::Source;
use crate::engine::checkpoint::synth::{self, SHAPES, Shape};
use crate::engine::measure;
use crate::engine::pack;
use crate::engine::template::{ChatRequest, STACK_BYTES};

/// Largest file of token ids, and largest request or text.
const MAX_INPUT: u64 = 256 << 20;

#[derive(Subcommand)]
pub(super) enum Debug {
    /// Write the logits of every position to a safetensors file
    Logits(Logits),
    /// Turn standard input, as plain text, into a JSON array of token ids
    Tokenize(Text),
    /// Turn a chat request into the text of its prompt
    Render(Render),
    /// Write a random checkpoint of a given shape
    Synth(Synth),
    /// Compare the governor with constant settings on simulated boards
    Thermal(Thermal),
}

#[derive(Args)]
pub(super) struct Logits {
    #[command(flatten)]
    model: RunModel,
    /// JSON array of token ids
    #[arg(long, value_name = "FILE")]
    tokens: PathBuf,
    /// Where `logits` [tokens, vocabulary], float32 after the soft cap, is written
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Args)]
pub(super) struct Text {
    /// Directory with tokenizer.json, or a packed model
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
}

#[derive(Args)]
pub(super) struct Render {
    /// Directory with chat_template.jinja and tokenizer.json, or a packed model
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// JSON object with "messages" and, if need be, "tools" and "enable_thinking"
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
}

#[derive(Args)]
pub(super) struct Synth {
    /// The shape
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(SHAPES))]
    shape: String,
    /// Directory to write to; it is made if need be
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The same seed gives the same bytes
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Take this tokenizer.json instead of a small one
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
}

pub(super) fn run(debug: &Debug) -> Result<(), Error> {
    match debug {
        Debug::Logits(args) => logits(args),
        Debug::Tokenize(args) => tokenize(args),
        Debug::Render(args) => render(args),
        Debug::Synth(args) => synthesize(args),
        Debug::Thermal(args) => thermal::run(args),
    }
}

fn logits(args: &Logits) -> Result<(), Error> {
    let tokens: Vec<u32> = serde_json::from_slice(&read(&args.tokens, MAX_INPUT)?)
        .map_err(|error| Error::Failed(format!("{}: not a JSON array of token ids: {error}", args.tokens.display())))?;
    let mut runner = args.model.load(0)?;
    let bar = progress(tokens.len());
    let result = measure::write_logits(&mut runner, &tokens, args.model.batch(), &args.out, &mut |done| {
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    result.map_err(Error::failed)?;
    let kernels = runner.compute().kernels.name();
    eprintln!("{}: {} positions, {kernels} kernels", args.out.display(), tokens.len());
    Ok(())
}

fn tokenize(args: &Text) -> Result<(), Error> {
    let tokenizer = tokenizer(&args.model)?;
    let mut text = Vec::new();
    let read = std::io::stdin().lock().take(MAX_INPUT + 1).read_to_end(&mut text);
    read.map_err(|error| Error::System("cannot read standard input", error))?;
    if text.len() as u64 > MAX_INPUT {
        return Err(Error::Failed(format!("standard input is longer than {MAX_INPUT} bytes")));
    }
    let text =
        std::str::from_utf8(&text).map_err(|error| Error::Failed(format!("standard input is not UTF-8: {error}")))?;
    print(&format!("{}\n", serde_json::Value::from(tokenizer.encode_text(text))))
}

fn render(args: &Render) -> Result<(), Error> {
    let request: ChatRequest = serde_json::from_slice(&read(&args.request, MAX_INPUT)?)
        .map_err(|error| Error::Failed(format!("{}: {error}", args.request.display())))?;
    let model = args.model.clone();
    let render = move || {
        let source = Source::open(&model).map_err(Error::failed)?;
        let template = pack::chat_template(&source).map_err(Error::failed)?;
        template.render(&request).map_err(Error::failed)
    };
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(render);
    let thread = thread.map_err(|error| Error::System("cannot start a thread", error))?;
    print(&thread.join().map_err(|_| Error::failed("rendering panicked"))??)
}

fn synthesize(args: &Synth) -> Result<(), Error> {
    let Some(shape) = Shape::named(&args.shape) else {
        return Err(Error::Usage(format!("--shape {}: expected one of {}", args.shape, SHAPES.join(", "))));
    };
    synth::write(&shape, args.seed, &args.out).map_err(Error::failed)?;
    if let Some(tokenizer) = &args.tokenizer {
        let to = args.out.join("tokenizer.json");
        std::fs::copy(tokenizer, &to)
            .map_err(|error| Error::Failed(format!("{} to {}: {error}", tokenizer.display(), to.display())))?;
    }
    Ok(())
}
