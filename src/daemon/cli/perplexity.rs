//! `emberd perplexity`: how well a checkpoint predicts a text.

use std::path::PathBuf;

use clap::Args;

use super::super::error::Error;
use super::model::{RunModel, print, progress, read};
use crate::engine::measure;

/// Largest text.
const MAX_TEXT: u64 = 1 << 30;

#[derive(Args)]
pub(super) struct Perplexity {
    #[command(flatten)]
    model: RunModel,
    /// The text, UTF-8
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens in a window; each is predicted from those before it in its window
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..))]
    context: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Perplexity) -> Result<(), Error> {
    let text = String::from_utf8(read(&args.text, MAX_TEXT)?)
        .map_err(|error| Error::Failed(format!("{}: not UTF-8: {}", args.text.display(), error.utf8_error())))?;
    let tokenizer = args.model.tokenizer()?;
    let mut runner = args.model.load(args.context as usize)?;
    let tokens = tokenizer.encode_text(&text);
    let bos = runner.config().bos;
    let bar = progress(tokens.len());
    let batch = args.model.batch();
    let result = measure::perplexity(&mut runner, bos, &tokens, batch, &mut |done, so_far| {
        bar.set_position(done as u64);
        bar.set_message(format!("perplexity {so_far:.3}"));
    });
    bar.finish_and_clear();
    let found = result.map_err(Error::failed)?;
    if args.json {
        return print(&format!("{}\n", serde_json::to_string(&found).map_err(Error::failed)?));
    }
    print(&format!(
        "perplexity {:.4} ({:.4} ± {:.4} nats a token) over {} tokens in windows of {}, {} kernels\n",
        found.perplexity,
        found.nll,
        found.standard_error,
        found.tokens,
        runner.context(),
        runner.compute().kernels.name()
    ))
}
