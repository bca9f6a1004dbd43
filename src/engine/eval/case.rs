//! A case: a prompt, what a good answer is, and how to compare.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::compare;

/// How an answer is compared with what a case expects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Compare {
    /// The answer is the expected string; white space around both does not count.
    #[default]
    Exact,
    /// The answer is JSON with the expected value: lists in order, objects regardless of it, numbers by value.
    Json,
    /// The answer is JSON that has at least what is expected: an object may have more keys.
    JsonSubset,
    /// The answer has the expected string, or each of several, as whole words and whole numbers.
    Contains,
}

/// A line of a file of cases.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Line of the file, from 1.
    pub line: usize,
    /// Group of the summary.
    pub kind: String,
    /// The conversation, as OpenAI's chat completions have it.
    pub messages: Vec<Value>,
    /// What a good answer is.
    pub expected: Value,
    /// How to tell.
    pub compare: Compare,
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    prompt: Option<String>,
    #[serde(default)]
    messages: Option<Vec<Value>>,
    expected: Value,
    #[serde(default)]
    compare: Compare,
}

/// What is wrong with a file of cases.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line}: {reason}")]
pub struct CaseError {
    /// The line, from 1.
    pub line: usize,
    /// What was expected and what was found.
    pub reason: String,
}

/// The cases of a JSONL text; empty lines are skipped. Fields: `prompt` or `messages`, `expected`, `compare` (`exact` when
/// absent), `kind` (`all` when absent); others are ignored.
///
/// # Errors
///
/// The first line that is not a case, or that there is none.
pub fn parse(text: &str) -> Result<Vec<Case>, CaseError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let cases: Vec<Case> = lines.map(|(index, line)| one(index + 1, line)).collect::<Result<_, _>>()?;
    if cases.is_empty() {
        return Err(CaseError { line: 1, reason: "expected a case, found the end of the file".into() });
    }
    Ok(cases)
}

fn one(number: usize, text: &str) -> Result<Case, CaseError> {
    let refuse = |reason: String| CaseError { line: number, reason };
    // The position in the error counts from this line alone.
    let line: Line = serde_json::from_str(text).map_err(|error| refuse(error.to_string()))?;
    let messages = match (line.prompt, line.messages) {
        (Some(prompt), None) => vec![json!({"role": "user", "content": prompt})],
        (None, Some(messages)) => messages,
        (None, None) => return Err(refuse("expected prompt or messages, found neither".into())),
        (Some(_), Some(_)) => return Err(refuse("expected prompt or messages, found both".into())),
    };
    compare::check(line.compare, &line.expected).map_err(refuse)?;
    let kind = line.kind.unwrap_or_else(|| "all".into());
    Ok(Case { line: number, kind, messages, expected: line.expected, compare: line.compare })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_case() {
        let cases = parse(concat!(
            r#"{"prompt": "hi", "expected": "hello", "note": 1}"#,
            "\n\n",
            r#"{"kind": "k", "messages": [{"role": "user", "content": "x"}], "expected": [1], "compare": "json_subset"}"#,
        ))
        .expect("cases");
        assert_eq!(cases[0].messages, [json!({"role": "user", "content": "hi"})]);
        assert_eq!((cases[0].line, cases[0].kind.as_str(), cases[0].compare), (1, "all", Compare::Exact));
        assert_eq!((cases[1].line, cases[1].kind.as_str(), cases[1].compare), (3, "k", Compare::JsonSubset));
    }

    #[test]
    fn what_is_no_case_is_refused_with_its_line() {
        for (text, line, part) in [
            ("", 1, "end of the file"),
            ("\n{\"prompt\": \"x\"}", 2, "`expected`"),
            (r#"{"prompt": "x", "expected": 1}"#, 1, "exact"),
            (r#"{"prompt": "x", "expected": [], "compare": "contains"}"#, 1, "contains"),
            (r#"{"prompt": "x", "expected": ["a", 1], "compare": "contains"}"#, 1, "contains"),
            (r#"{"prompt": "x", "expected": "", "compare": "contains"}"#, 1, "contains"),
            (r#"{"prompt": "x", "expected": "a", "compare": "like"}"#, 1, "like"),
            (r#"{"expected": "a"}"#, 1, "neither"),
            (r#"{"prompt": "x", "messages": [], "expected": "a"}"#, 1, "both"),
            ("{", 1, "EOF"),
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!(error.line, line, "{text}");
            assert!(error.reason.contains(part), "{text}: {error}");
        }
    }
}
