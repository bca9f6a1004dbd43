//! Answers of a wanted form: JSON by a schema, a regular expression, a grammar, one of several texts.
//!
//! `llguidance` walks the grammar over a trie of the vocabulary and says which tokens may come next; the logits of all
//! others are struck out. What the grammar forces is appended without asking the model. A thought may stand before the
//! answer and is free. The trie is made at the first request that needs it: of Gemma's 262,144 tokens it takes 26 MB, and
//! as much again while it is made.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::engine::gbnf;
use crate::engine::tokenizer::Tokenizer;
use crate::engine::tools::{self, Marks};

/// Most bytes of a schema, an expression, a grammar or all choices together.
pub const MAX_BYTES: usize = 64 << 10;

/// Longest token, in bytes: a node of the trie counts at most 1,024 above it.
const MAX_WORD: usize = 1000;

/// States of the lexer, of about 2 kB each, that one answer may take.
const MAX_LEXER_STATES: usize = 20_000;

/// The form of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    /// Any JSON object.
    Object,
    /// JSON that a JSON schema accepts.
    Schema(Value),
    /// Text that a regular expression matches from its beginning to its end.
    Regex(String),
    /// Text of a grammar in `llguidance`'s dialect of Lark.
    Lark(String),
    /// Text of a grammar in llama.cpp's GBNF.
    Gbnf(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A call of one of these tools, in the form of OpenAI's declarations.
    Call(Vec<Value>),
}

/// A form that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GrammarError(String);

impl GrammarError {
    fn of(error: impl std::fmt::Display) -> GrammarError {
        let text = error.to_string();
        let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("not understood");
        GrammarError(line.chars().take(300).collect())
    }
}

impl Format {
    /// A grammar that says by its first rule which of the two it is.
    pub fn of_grammar(text: String) -> Format {
        if gbnf::is_gbnf(&text) { Format::Gbnf(text) } else { Format::Lark(text) }
    }

    fn bytes(&self) -> usize {
        match self {
            Format::Object => 0,
            Format::Schema(schema) => schema.to_string().len(),
            Format::Regex(text) | Format::Lark(text) | Format::Gbnf(text) => text.len(),
            Format::Choice(texts) => texts.iter().map(String::len).sum(),
            Format::Call(tools) => tools.iter().map(|tool| tool.to_string().len()).sum(),
        }
    }

    fn grammar(&self, marks: Option<Marks>) -> Result<TopLevelGrammar, GrammarError> {
        Ok(match self {
            Format::Object => schema(&json!({"type": "object"})),
            Format::Schema(wanted) => schema(wanted),
            Format::Regex(expression) => TopLevelGrammar::from_regex(expression),
            Format::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
            Format::Gbnf(grammar) => TopLevelGrammar::from_lark(gbnf::to_lark(grammar).map_err(GrammarError::of)?),
            Format::Choice(texts) => {
                let escaped: Vec<String> = texts.iter().map(|text| regex::escape(text)).collect();
                TopLevelGrammar::from_regex(&escaped.join("|"))
            }
            Format::Call(tools) => {
                let marks = marks.ok_or_else(|| GrammarError("the model's vocabulary has no calls of tools".into()))?;
                TopLevelGrammar::from_lark(tools::lark(tools, marks))
            }
        })
    }
}

/// Between the parts of JSON stands nothing or one space: a small model that may would write spaces without end.
fn schema(wanted: &Value) -> TopLevelGrammar {
    let options = json!({
        "item_separator": ", ?", "key_separator": ": ?", "whitespace_flexible": false, "coerce_one_of": true,
    });
    let mut wanted = match wanted {
        Value::Bool(true) => json!({}),
        other => other.clone(),
    };
    if let Value::Object(map) = &mut wanted {
        map.insert("x-guidance".into(), options);
    }
    TopLevelGrammar::from_json_schema(wanted)
}

/// The vocabulary as grammars need it.
pub struct Grammars {
    factory: ParserFactory,
    eos: Vec<u32>,
    open: Option<u32>,
    close: Option<u32>,
    marks: Option<Marks>,
}

struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| self.tokenizer.encode_text(text))
    }
}

impl Grammars {
    /// For answers in the vocabulary of `tokenizer` that end with one of `eos`, at least one.
    ///
    /// # Errors
    ///
    /// The vocabulary is none: no token, or an end that it does not have.
    pub fn new(tokenizer: Arc<Tokenizer>, eos: &[u32]) -> Result<Grammars, GrammarError> {
        let vocab = tokenizer.vocab_size() as u32;
        let Some(first) = eos.first().filter(|_| eos.iter().all(|id| *id < vocab)) else {
            return Err(GrammarError(format!("eos_token_id: expected ids below {vocab}, found {eos:?}")));
        };
        if let Some(id) = (0..vocab).find(|id| tokenizer.token_bytes(*id).len() > MAX_WORD) {
            return Err(GrammarError(format!("token {id} has more than {MAX_WORD} bytes: the vocabulary is damaged")));
        }
        let words: Vec<Vec<u8>> = (0..vocab).map(|id| tokenizer.token_bytes(id).to_vec()).collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab, *first), &words).with_eos_tokens(eos);
        let (open, close) = (tokenizer.control_id("<|channel>"), tokenizer.control_id("<channel|>"));
        let marks = Marks::new(&tokenizer);
        let vocabulary: TokEnv = Arc::new(Vocabulary { tokenizer, trie });
        let capabilities = InferenceCapabilities { ff_tokens: true, ..Default::default() };
        // Tries of the tokens that fit into strings ("slices") took 65 MB more and made no step faster.
        let mut factory = ParserFactory::new(&vocabulary, capabilities, &[]).map_err(GrammarError::of)?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.verbose_errors = false;
        Ok(Grammars { factory, eos: eos.to_vec(), open, close, marks })
    }

    /// The constraint of one answer.
    ///
    /// # Errors
    ///
    /// What `format` says is malformed, too large, or not supported.
    pub fn constraint(&self, format: &Format) -> Result<Constraint, GrammarError> {
        let bytes = format.bytes();
        if bytes > MAX_BYTES {
            return Err(GrammarError(format!("expected at most {MAX_BYTES} bytes, found {bytes}")));
        }
        let parser = self.factory.create_parser(format.grammar(self.marks)?).map_err(GrammarError::of)?;
        let state = if self.open.is_some() && self.close.is_some() { State::Start } else { State::Answer };
        Ok(Constraint {
            matcher: Matcher::new(Ok(parser)),
            mask: None,
            state,
            eos: self.eos.clone(),
            open: self.open,
            close: self.close,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first token, which may open a thought.
    Start,
    Thought,
    Answer,
}

/// What may come next in one answer.
pub struct Constraint {
    matcher: Matcher,
    /// For the next token, once it has been computed.
    mask: Option<Result<SimpleVob, GrammarError>>,
    state: State,
    eos: Vec<u32>,
    open: Option<u32>,
    close: Option<u32>,
}

impl Constraint {
    /// Computes what [`Constraint::apply`] needs; it would otherwise do so itself.
    pub fn prepare(&mut self) {
        if self.state != State::Thought && self.mask.is_none() {
            self.mask = Some(self.matcher.compute_mask_or_eos().map_err(GrammarError::of));
        }
    }

    /// Strikes out of `logits` [V] what may not come next.
    ///
    /// # Errors
    ///
    /// The grammar takes too much work here.
    pub fn apply(&mut self, logits: &mut [f32]) -> Result<(), GrammarError> {
        if self.state == State::Thought {
            // An answer that ended in its thought would be none.
            for id in &self.eos {
                strike(logits, *id);
            }
            return Ok(());
        }
        self.prepare();
        let Some(mask) = self.mask.take() else { return Ok(()) };
        let mask = mask?;
        let thought = self.open.filter(|_| self.state == State::Start);
        let thought = thought.and_then(|id| Some((id, *logits.get(id as usize)?)));
        let known = mask.len().min(logits.len());
        mask.iter_unset_entries(|id| strike(logits, id as u32));
        logits[known..].fill(f32::NEG_INFINITY);
        if let Some((id, logit)) = thought {
            logits[id as usize] = logit;
        }
        Ok(())
    }

    /// Goes on with `token`, which [`Constraint::apply`] left, and returns what the grammar forces after it.
    ///
    /// # Errors
    ///
    /// The grammar does not have `token` here, or takes too much work.
    pub fn accept(&mut self, token: u32) -> Result<Vec<u32>, GrammarError> {
        self.mask = None;
        match self.state {
            State::Start if Some(token) == self.open => self.state = State::Thought,
            State::Thought if Some(token) == self.close => self.state = State::Answer,
            State::Thought => {}
            State::Start | State::Answer => {
                self.state = State::Answer;
                self.matcher.consume_token(token).map_err(GrammarError::of)?;
            }
        }
        if self.state == State::Thought || self.matcher.is_stopped() {
            return Ok(Vec::new());
        }
        let forced = self.matcher.consume_ff_tokens();
        match self.matcher.get_error() {
            Some(error) => Err(GrammarError::of(error)),
            None => Ok(forced),
        }
    }

    /// Whether the answer is complete and nothing can follow.
    pub fn ended(&self) -> bool {
        self.state == State::Answer && self.matcher.is_stopped()
    }
}

fn strike(logits: &mut [f32], id: u32) {
    if let Some(logit) = logits.get_mut(id as usize) {
        *logit = f32::NEG_INFINITY;
    }
}
