//! What became of the requests, since the start.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::lock::lock;
use super::request::{Answer, Code, Failure};

/// Counts since the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that were not, by the name of their code.
    pub failed: BTreeMap<&'static str, u64>,
    /// Tokens of the prompts of all answers.
    pub prompt_tokens: u64,
    /// Those of them that were not computed again.
    pub cached_tokens: u64,
    /// Tokens of all answers.
    pub completion_tokens: u64,
    /// Tokens per second of the latest answer after its first one; 0 before.
    pub decode_per_s: f64,
    /// Why the latest request failed that was neither taken back nor left for the next start.
    pub last_error: Option<Code>,
}

impl Counts {
    /// Requests that came to an end, one way or the other.
    pub fn ended(&self) -> u64 {
        self.answered + self.failed.values().sum::<u64>()
    }
}

/// The counts, as all threads share them.
#[derive(Debug, Default)]
pub(super) struct Counters(Mutex<Counts>);

impl Counters {
    pub(super) fn count(&self, result: &Result<Answer, Failure>) {
        match result {
            Err(failure) => self.failed(failure),
            Ok(answer) => {
                let mut counts = lock(&self.0);
                counts.answered += 1;
                counts.prompt_tokens += answer.prompt_tokens as u64;
                counts.cached_tokens += answer.cached_tokens as u64;
                counts.completion_tokens += answer.completion_tokens as u64;
                if answer.timings.decode_per_s > 0.0 {
                    counts.decode_per_s = answer.timings.decode_per_s;
                }
            }
        }
    }

    pub(super) fn failed(&self, failure: &Failure) {
        let mut counts = lock(&self.0);
        *counts.failed.entry(failure.code.name()).or_default() += 1;
        if !matches!(failure.code, Code::Cancelled | Code::ShuttingDown) {
            counts.last_error = Some(failure.code);
        }
    }

    pub(super) fn counts(&self) -> Counts {
        lock(&self.0).clone()
    }
}
