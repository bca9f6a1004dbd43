//! Logits of every position, for comparison with other engines and for perplexity.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

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
    let failed = |source| MeasureError::Write { path: path.to_path_buf(), source };
    let partial = path.with_added_extension("partial");
    let mut out = BufWriter::new(File::create(&partial).map_err(failed)?);
    let vocab = runner.config().vocab_size;
    let bytes = tokens.len() as u64 * vocab as u64 * 4;
    let header =
        format!(r#"{{"logits":{{"dtype":"F32","shape":[{},{vocab}],"data_offsets":[0,{bytes}]}}}}"#, tokens.len());
    // The format wants data that starts at a multiple of eight; spaces at the end of the header are allowed.
    let header = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    let mut written =
        out.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| out.write_all(header.as_bytes()));
    let mut done = 0;
    runner.logits(tokens, batch, &mut |logits| {
        for logit in logits {
            if written.is_ok() {
                written = out.write_all(&logit.to_le_bytes());
            }
        }
        done += logits.len() / vocab;
        progress(done);
    })?;
    written
        .and_then(|()| out.into_inner().map_err(std::io::IntoInnerError::into_error))
        .and_then(|file| file.sync_all())
        .and_then(|()| std::fs::rename(&partial, path))
        .map_err(failed)
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
