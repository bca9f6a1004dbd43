//! Logits of every position, for comparison with other engines and for perplexity.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::engine::checkpoint::output;
use crate::engine::runner::{RunError, Runner};

/// Why a measurement ended.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The tokens cannot be run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The output cannot be written.
    #[error("{path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Runs `tokens` through all layers, `batch` at a time, and writes `logits` `[tokens, vocab]`, float32 after the soft cap,
/// as a safetensors file. The file appears under its name when it is complete. `progress` gets the tokens done so far.
pub fn write_logits(
    runner: &mut Runner,
    tokens: &[u32],
    batch: usize,
    path: &Path,
    progress: &mut dyn FnMut(usize),
) -> Result<(), MeasureError> {
    let vocab = runner.config().vocab_size;
    let shape = [tokens.len(), vocab];
    let bytes = tokens.len() as u64 * vocab as u64 * 4;
    let mut ran = Ok(());
    let written = output::atomically(path, |out| {
        output::header(
            serde_json::json!({"format": "pt"}),
            8,
            [("logits", "F32", shape.as_slice(), bytes)].into_iter(),
            out,
        )?;
        let (mut result, mut done) = (Ok(()), 0);
        ran = runner.logits(tokens, batch, &mut |logits| {
            let mut each = logits.iter();
            while let (Ok(()), Some(logit)) = (&result, each.next()) {
                result = out.write_all(&logit.to_le_bytes());
            }
            done += logits.len() / vocab;
            progress(done);
        });
        // Nothing may appear under the name when the tokens could not be run.
        if ran.is_err() { Err(std::io::Error::other("not run")) } else { result }
    });
    ran?;
    written.map_err(|source| MeasureError::Write { path: path.to_path_buf(), source })
}

/// What [`perplexity`] found.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Perplexity {
    /// `exp` of the mean negative log-likelihood.
    pub perplexity: f64,
    /// Mean negative log-likelihood in nats.
    pub nll: f64,
    /// Standard error of that mean.
    pub standard_error: f64,
    /// Tokens that were predicted.
    pub tokens: usize,
}

/// Perplexity of `tokens` in windows of `context` positions, each headed by `bos`: every token is predicted once, from the
/// tokens before it in its window. `progress` gets the number of predictions and the perplexity so far.
pub fn perplexity(
    runner: &mut Runner,
    bos: Option<u32>,
    tokens: &[u32],
    batch: usize,
    progress: &mut dyn FnMut(usize, f64),
) -> Result<Perplexity, MeasureError> {
    let vocab = runner.config().vocab_size;
    let window = runner.context() - usize::from(bos.is_some());
    let (mut sum, mut squares, mut count) = (0f64, 0f64, 0usize);
    for window in tokens.chunks(window.max(2)) {
        runner.reset();
        let ids: Vec<u32> = bos.into_iter().chain(window.iter().copied()).collect();
        if ids.len() < 2 {
            continue; // nothing in it can be predicted
        }
        let mut at = 0;
        runner.logits(&ids[..ids.len() - 1], batch, &mut |logits| {
            for logits in logits.chunks_exact(vocab) {
                at += 1;
                let nll = -log_probability(logits, ids[at] as usize);
                (sum, squares, count) = (sum + nll, squares + nll * nll, count + 1);
            }
            progress(count, (sum / count as f64).exp());
        })?;
    }
    if count == 0 {
        return Err(RunError::NoTokens.into());
    }
    let n = count as f64;
    let nll = sum / n;
    let standard_error = ((squares / n - nll * nll).max(0.0) / n).sqrt();
    Ok(Perplexity { perplexity: nll.exp(), nll, standard_error, tokens: count })
}

fn log_probability(logits: &[f32], token: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
    f64::from(logits[token] - max) - total.ln()
}
