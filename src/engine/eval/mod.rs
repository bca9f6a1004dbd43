//! How many cases of a file a model answers as expected.

mod case;
mod compare;

use std::ops::ControlFlow;

use serde::Serialize;

pub use case::{Case, CaseError, Compare, parse};
pub use compare::agrees;

use crate::engine::generate::{Engine, Finish, GenerateError, Progress, Wanted};
use crate::engine::stream::Delta;
use crate::engine::template::{ChatRequest, TemplateError};

/// Why an evaluation cannot run, with the line of the case.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The conversation cannot be rendered.
    #[error("line {line}: {source}")]
    Template {
        /// The line, from 1.
        line: usize,
        /// What the template says.
        source: TemplateError,
    },
    /// The prompt leaves no room for an answer.
    #[error("line {line}: the prompt has {tokens} tokens and the context {context}: none is left for an answer")]
    TooLong {
        /// The line, from 1.
        line: usize,
        /// Tokens of the prompt.
        tokens: usize,
        /// Positions of the context.
        context: usize,
    },
    /// The model failed.
    #[error("line {line}: {source}")]
    Generate {
        /// The line, from 1.
        line: usize,
        /// Why.
        source: GenerateError,
    },
}

/// A case and what the model said.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict<'a> {
    /// Line of the file, from 1.
    pub line: usize,
    /// Group of the summary.
    pub kind: &'a str,
    /// Whether the answer was as expected.
    pub passed: bool,
    /// What was expected.
    pub expected: &'a serde_json::Value,
    /// How it was compared.
    pub compare: Compare,
    /// What the model said, without its thoughts.
    pub answer: String,
    /// `max_tokens` or the context ended the answer.
    pub cut_off: bool,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer, thoughts and the end of the turn included.
    pub completion_tokens: usize,
}

/// Token ids of every case's prompt.
///
/// # Errors
///
/// The first case that cannot be run, so that a long evaluation does not end in its middle.
pub fn encode(engine: &Engine, cases: &[Case]) -> Result<Vec<Vec<u32>>, EvalError> {
    let context = engine.runner().context();
    let encode = |case: &Case| {
        let request = ChatRequest { messages: case.messages.clone(), ..ChatRequest::default() };
        let ids = engine.encode_chat(&request).map_err(|source| EvalError::Template { line: case.line, source })?;
        let tokens = ids.len();
        if tokens >= context { Err(EvalError::TooLong { line: case.line, tokens, context }) } else { Ok(ids) }
    };
    cases.iter().map(encode).collect()
}

/// Answers `prompt`, which is that of `case`, with the most likely tokens, at most `max_tokens`, and compares.
///
/// # Errors
///
/// When the model fails.
pub fn judge<'a>(
    engine: &mut Engine,
    case: &'a Case,
    prompt: &[u32],
    max_tokens: usize,
) -> Result<Verdict<'a>, EvalError> {
    let mut sampling = engine.default_sampling();
    sampling.temperature = 0.0;
    let mut answer = String::new();
    let mut on = |progress: Progress<'_>| {
        if let Progress::Delta(Delta::Text(text)) = progress {
            answer.push_str(text);
        }
        ControlFlow::Continue(())
    };
    let outcome = engine.generate(prompt, sampling, Wanted { max_tokens, ..Wanted::default() }, &mut on);
    let outcome = outcome.map_err(|source| EvalError::Generate { line: case.line, source })?;
    let cut_off = outcome.finish == Finish::Length;
    Ok(verdict(case, answer, cut_off, (prompt.len(), outcome.completion_tokens)))
}

/// Compares an answer that was got elsewhere; the numbers of tokens are those of prompt and answer.
pub fn verdict(case: &Case, answer: String, cut_off: bool, tokens: (usize, usize)) -> Verdict<'_> {
    Verdict {
        line: case.line,
        kind: &case.kind,
        passed: agrees(case.compare, &case.expected, &answer),
        expected: &case.expected,
        compare: case.compare,
        answer,
        cut_off,
        prompt_tokens: tokens.0,
        completion_tokens: tokens.1,
    }
}

/// Cases of one kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tally {
    /// The kind; empty for all cases together.
    pub kind: String,
    /// Cases answered as expected.
    pub passed: usize,
    /// Cases.
    pub cases: usize,
    /// `passed / cases`.
    pub share: f64,
    /// 95 % confidence interval of the share (Wilson, 1927).
    pub interval: (f64, f64),
}

/// One row per kind, in the order of the file.
pub fn tally(verdicts: &[Verdict<'_>]) -> Vec<Tally> {
    let mut kinds: Vec<&str> = Vec::new();
    for verdict in verdicts {
        if !kinds.contains(&verdict.kind) {
            kinds.push(verdict.kind);
        }
    }
    kinds.into_iter().map(|kind| row(kind, verdicts.iter().filter(|v| v.kind == kind))).collect()
}

/// One row for all cases.
pub fn total(verdicts: &[Verdict<'_>]) -> Tally {
    row("", verdicts.iter())
}

fn row<'a>(kind: &str, verdicts: impl Iterator<Item = &'a Verdict<'a>>) -> Tally {
    let (passed, cases) =
        verdicts.fold((0, 0), |(passed, cases), verdict| (passed + usize::from(verdict.passed), cases + 1));
    let share = passed as f64 / cases.max(1) as f64;
    Tally { kind: kind.into(), passed, cases, share, interval: wilson(share, cases as f64) }
}

fn wilson(share: f64, n: f64) -> (f64, f64) {
    const Z: f64 = 1.96;
    if n == 0.0 {
        return (0.0, 1.0);
    }
    let middle = share + Z * Z / (2.0 * n);
    let spread = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    let below = 1.0 + Z * Z / n;
    ((middle - spread) / below, (middle + spread) / below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_wilsons() {
        // Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 gives 0.2553 to 0.3662.
        let (low, high) = wilson(81.0 / 263.0, 263.0);
        assert!((low - 0.2553).abs() < 1e-4 && (high - 0.3662).abs() < 1e-4, "{low} {high}");
    }

    #[test]
    fn kinds_are_counted_apart_in_their_order() {
        let expected = serde_json::Value::Null;
        let verdict = |kind, passed| Verdict {
            line: 1,
            kind,
            passed,
            expected: &expected,
            compare: Compare::Exact,
            answer: String::new(),
            cut_off: false,
            prompt_tokens: 1,
            completion_tokens: 1,
        };
        let verdicts = [verdict("b", true), verdict("a", false), verdict("b", false)];
        let rows: Vec<_> = tally(&verdicts).into_iter().map(|row| (row.kind, row.passed, row.cases)).collect();
        assert_eq!(rows, [("b".to_string(), 1, 2), ("a".to_string(), 0, 1)]);
        assert_eq!((total(&verdicts).passed, total(&verdicts).cases), (1, 3));
    }
}
