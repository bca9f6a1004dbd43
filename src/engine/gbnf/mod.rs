//! Grammars in llama.cpp's GBNF, written in `llguidance`'s dialect of Lark.
//!
//! The two differ in one thing that matters: GBNF matches characters, and `llguidance` cuts the text into lexemes, each as
//! long as it can be, before its parser sees them. `"a" "bc" | "ab" "d"` as four lexemes would refuse `abc`, for the text
//! begins with `ab`. So a lexeme is made of as much as is regular, which is fast, and is taken apart where another way to
//! read the same text would end inside it ([`lexemes`]). A grammar without recursion is one lexeme.

mod lark;
mod lexemes;
mod parse;

use self::parse::Grammar;

/// Rules of a grammar.
const MAX_RULES: usize = 2000;

/// Groups inside each other.
const MAX_GROUPS: usize = 50;

/// Greatest number of a repetition.
const MAX_REPEAT: u32 = 10_000;

/// Parts inside each other in all rules together: `llguidance` follows a grammar by recursion.
const MAX_DEPTH: usize = 6000;

/// A grammar that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {what}")]
pub struct GbnfError {
    /// Of the grammar's text, from 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What was expected and what was found.
    pub what: String,
}

impl GbnfError {
    fn at(text: &str, at: usize, what: impl Into<String>) -> GbnfError {
        let before = &text[..at];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        GbnfError { line, column, what: what.into() }
    }
}

/// Whether `text` is meant as GBNF: its first rule is `name ::=`, which cannot be in Lark.
pub fn is_gbnf(text: &str) -> bool {
    let first = text.lines().map(str::trim_start).find(|line| !line.is_empty() && !line.starts_with('#'));
    let rest = first.map(|line| line.trim_start_matches(parse::in_name)).unwrap_or_default();
    first.is_some_and(|line| line.len() > rest.len()) && rest.trim_start().starts_with("::=")
}

/// The same language in `llguidance`'s dialect of Lark.
///
/// # Errors
///
/// `text` is no GBNF, has a rule that no text can match, or is too large.
pub fn to_lark(text: &str) -> Result<String, GbnfError> {
    let grammar = Grammar::parse(text)?;
    let too_large = "the grammar is too large, or says the same in too many ways, to be made of lexemes";
    lark::write(&grammar).ok_or_else(|| GbnfError::at(text, 0, too_large))
}

#[cfg(test)]
mod tests;
